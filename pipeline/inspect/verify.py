"""`--verify [N|all]`: reads people and their events back from Iterable, and compares them with what was accepted.

Compared is what the query finds now and the ledger calls accepted as it is. What differs goes to stdout and into
verify_report_*.csv; with --repair it is marked as not accepted, so that the next run sends just that.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from iterable_client import Failure
from pipeline.inspect.event_readback import ComparedEvent, EventState, compare_events
from pipeline.inspect.profile import CLIENT_SIDE, ClientSideKeyError, get_events, get_user, why_not_read
from pipeline.inspect.readback import compare, differing, missing
from pipeline.inspect.reading import Planned, plan_rows
from pipeline.inspect.session import InspectionSession, notes_on, open_session, print_json
from pipeline.inspect.verification import (
    Compared,
    PersonState,
    Verification,
    as_json,
    different_as_text,
    summary,
    why_nothing,
)
from pipeline.inspect.verify_files import VerifyFiles, open_files
from pipeline.inspect.verify_people import Candidates, Person, choose
from pipeline.inspect.verify_repair import Repair
from pipeline.ledger.ledger import PastVerification
from pipeline.model.exits import ExitCode, OutputError, RunError
from pipeline.model.failure_policy import FORGOTTEN
from pipeline.model.records import Kind
from pipeline.model.text import counted
from pipeline.report import Console
from pipeline.report.progress import Display, State
from pipeline.report.results import reason_of
from pipeline.run.conclusion import refuse
from pipeline.run.forgotten import ForgottenListError, ForgottenPeople, read_forgotten
from pipeline.run.interrupt import Interrupted
from pipeline.run.opening import change_ledger
from pipeline.transform.identity import identity_or_none, is_meant

ALL = "all"
WORKERS = 16  # for each of the two endpoints: enough for the 100 a second that Iterable allows, at 150 ms each
PEOPLE_AHEAD = 4 * WORKERS
LOOK_S = 0.1  # how soon Ctrl-C is heard

_T = TypeVar("_T")


def run_verify(options: argparse.Namespace) -> ExitCode:
    """Compare `options.verify` people and say what differs. 0: nothing; 1: something; 75: nothing was compared."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    try:
        with ExitStack() as stack:
            session = stack.enter_context(open_session(options, console, changes_ledger=options.repair))
            if session.settings.use_jwt_auth:
                raise ClientSideKeyError(f"{CLIENT_SIDE} --verify needs one.")
            files = stack.enter_context(open_files(session.settings.output_dir))
            verification = verify(
                session, options.verify, options.only, Repair(session) if options.repair else None, files
            )
            verification.finish(files.close(verification))
        if not options.sandbox and verification.has_compared:
            _remember(session, verification)
    except (RunError, Interrupted) as problem:
        return refuse(problem, console)
    except OSError as problem:
        return refuse(OutputError(f"The report can't be written ({reason_of(problem)})."), console)
    return _report(verification, console, as_json_only=options.json)


def _remember(session: InspectionSession, found: Verification) -> None:
    """When it was verified, and with what result; nothing where there is no ledger, or a run holds it."""
    now = time.time()
    users, events = (found.counts(kind) for kind in Kind)
    with (
        suppress(RunError, sqlite3.Error),
        change_ledger(session.settings) as ledger,
    ):
        ledger.verifications.set(PastVerification(int(now), int(found.exit_code), users, events))
        ledger.commit()


def _report(verification: Verification, console: Console, *, as_json_only: bool) -> ExitCode:
    code = verification.exit_code
    if as_json_only:
        code = print_json(console, as_json(verification), code)
    else:
        console.show(different_as_text(verification))
        for line in summary(verification):
            console.say(line)
    if verification.stopped is not None:
        console.error(verification.stopped.reason)
    elif not verification.has_compared:
        console.error(" ".join([why_nothing(verification), *verification.notes]))
    return code


def verify(
    session: InspectionSession, size: int | str, only: str | None, repair: Repair | None, files: VerifyFiles
) -> Verification:
    """size: how many people, or all. only: this person alone. Raises RunError where the query or the ledger can't be
    read, and OSError where the report can't be written."""
    planned = plan_rows(session, (lambda rules: is_meant(only, rules)) if only is not None else None)
    identity = identity_or_none(only, planned.rules) if only is not None else None
    candidates = Candidates(session, identity, session.now - session.settings.user_settle_seconds)
    offered = None
    people = candidates.people()
    if only is None and size != ALL:
        offered, people = choose(candidates.people, int(size), random.Random())  # noqa: S311 - a sample
    found = Verification(
        notes=notes_on(session),
        settle_s=session.settings.user_settle_seconds,
        offered=offered,
        left=lambda: candidates.left,
        knows_anybody=not session.ledger.is_empty,
        finds_person=only is None or bool(planned.numbers),
        forgotten=_count_forgotten(session, planned, everybody=only is None),
        repair=repair.marked if repair is not None else None,
    )
    if only is not None and identity is None:
        return found
    session.interrupt.stop_raising()
    with _Reader(session, found) as reader:
        for compared in reader.compare_all(people):
            found.add(compared)
            files.add(compared)
            if repair is not None:
                repair.mark(compared)
        if repair is not None:
            repair.finish()
    return found


def _count_forgotten(session: InspectionSession, planned: Planned, *, everybody: bool) -> dict[Kind, int]:
    """Records of people whom --forget has forgotten, which the ledger does not know, and Iterable may."""
    rejected = session.stage.outcomes.undelivered()
    forgotten = (each for each in rejected if each.code == FORGOTTEN)
    return Counter(each.kind for each in forgotten if everybody or planned.is_asked_for(each.row))


class _Reader:
    """Reads people back, some ahead, until a failure that would meet the others, too, or a signal."""

    def __init__(self, session: InspectionSession, found: Verification) -> None:
        self._session = session
        self._found = found
        self._pool = ThreadPoolExecutor(2 * WORKERS)
        self._forgotten: ForgottenPeople | None = None
        self._done = 0

    def __enter__(self) -> _Reader:
        self._display = Display(self._session.console, self._state)
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()
        self._session.breaker.stop()
        self._pool.shutdown(cancel_futures=True)

    def _state(self) -> State:
        total = self._found.offered or 0
        return State(self._done, total, f"{counted(self._done, 'person')} compared".replace("persons", "people"))

    def compare_all(self, people: Iterator[Person]) -> Iterator[Compared]:
        ahead: deque[tuple[Person, Future[_Answer] | None, Future[_Answer] | None]] = deque()
        while True:
            for person in islice(people, PEOPLE_AHEAD - len(ahead)):
                ahead.append(self._asked(person))
            if not ahead:
                return
            person, user, events = ahead.popleft()
            answers = [self._result(each) if each is not None else None for each in (user, events)]
            if self._found.stopped is not None:
                return
            compared = self._compare(person, *answers)
            if self._found.stopped is not None:
                return
            self._done += 1
            yield compared

    def _asked(self, person: Person) -> tuple[Person, Future[_Answer] | None, Future[_Answer] | None]:
        def ask(read: Callable[[InspectionSession, str], _Answer]) -> Future[_Answer]:
            return self._pool.submit(read, self._session, person.identity)

        return person, ask(get_user) if person.user else None, ask(get_events) if person.accepted_events else None

    def _result(self, future: Future[_T]) -> _T | None:
        """None where a signal came first."""
        while self._found.stopped is None:
            self._found.stopped = self._session.interrupt.ending()
            if wait([future], timeout=LOOK_S).done:
                return future.result()
        return None

    def _compare(self, person: Person, user: _Answer | None, events: _Answer | None) -> Compared:
        for answer in (user, events):
            if answer is not None and not answer[0] and answer[1]["failure"] is not Failure.REJECTED:
                self._found.stopped = why_not_read(answer[1])
        problems = [str(details["error"]) for ok, details in filter(None, (user, events)) if not ok]
        if problems:
            return Compared(person, PersonState.NOT_READ, problem=problems[0])
        is_unknown = not user[1] if user is not None else events is not None and not events[1].get("events")
        if is_unknown:
            if self._is_forgotten(person.identity):
                return Compared(person, PersonState.FORGOTTEN)
            own = [
                ComparedEvent(place, EventState.MISSING) for place, each in enumerate(person.events) if each.accepted_at
            ]
            return Compared(person, PersonState.MISSING, events=_told(person, own))
        fields = compare(json.loads(person.user.payload), user[1]) if person.user is not None and user else []
        state = PersonState.DIFFERENT if differing(fields) else PersonState.SAME
        return Compared(person, state, fields, _compare_events(person, events), missing_fields=missing(fields))

    def _is_forgotten(self, identity: str) -> bool:
        """The list is read when the first person is missing. Where it can't be, a note says so."""
        if self._forgotten is None:
            self._forgotten = self._read_forgotten()
        return identity in self._forgotten

    def _read_forgotten(self) -> ForgottenPeople:
        reading = self._pool.submit(read_forgotten, self._session.client, by_user_id=self._session.by_user_id)
        try:
            return self._result(reading) or ForgottenPeople([])
        except ForgottenListError as problem:
            self._found.notes.append(f"Iterable's list of forgotten people could not be read: {problem.reason}")
            return ForgottenPeople([])


_Answer = tuple[bool, dict[str, Any]]


def _compare_events(person: Person, answer: _Answer | None) -> Sequence[ComparedEvent]:
    if answer is None:
        return ()
    ours = [json.loads(each.record.payload) for each in person.events]
    accepted = [each.accepted_at is not None for each in person.events]
    return _told(person, compare_events(ours, accepted, answer[1].get("events") or []))


def _told(person: Person, events: Sequence[ComparedEvent]) -> Sequence[ComparedEvent]:
    """What the profile of the address before may have is not missing."""
    if not person.has_new_profile:
        return events
    return [
        replace(each, state=EventState.OLD_ADDRESS) if each.state is EventState.MISSING else each for each in events
    ]
