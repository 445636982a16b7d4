"""`--explain WHO`: one person's rows, what a run would send of them, what the ledger knows, and Iterable's copy.

The rows pass through the query and the plan of a run. The person's data goes to stdout and nowhere else.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from heapq import merge
from itertools import chain
from operator import attrgetter
from typing import Any

from iterable_client import Failure
from pipeline.inspect.explanation import (
    MAX_SHOWN,
    Before,
    Copy,
    CopyState,
    Events,
    Explanation,
    Known,
    RecordReport,
    Rows,
    State,
    as_json,
    as_text,
)
from pipeline.inspect.person_files import FoundIn, look_for
from pipeline.inspect.profile import CLIENT_SIDE, get_user, is_client_side, why_not_read
from pipeline.inspect.readback import compare, differing
from pipeline.inspect.reading import Planned, plan_rows
from pipeline.inspect.session import InspectionSession, notes_on, open_session, print_json
from pipeline.ledger.ledger import LEDGER_NAME, PastFailure
from pipeline.ledger.people import KnownUser
from pipeline.model.exits import ExitCode, RunError
from pipeline.model.records import Kind, Record
from pipeline.report import Console
from pipeline.run.conclusion import refuse
from pipeline.run.forgotten import MESSAGE, ForgottenListError, read_forgotten
from pipeline.run.interrupt import Interrupted
from pipeline.stage.pages import pages
from pipeline.transform.address_changes import changes_only
from pipeline.transform.identity import identity_or_none, is_meant
from pipeline.transform.planner import followed_moves


def run_explain(options: argparse.Namespace) -> ExitCode:
    """Print what is known of `options.explain`. 0: something is; 1: nobody knows this person."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    try:
        with open_session(options, console) as session:
            explanation = explain(session, options.explain, search_files=options.files)
    except (RunError, Interrupted) as problem:
        return refuse(problem, console)
    if options.json:
        return print_json(console, as_json(explanation), explanation.exit_code)
    if not options.quiet:
        console.show(as_text(explanation))
    return explanation.exit_code


def explain(session: InspectionSession, who: str, *, search_files: bool = False) -> Explanation:
    """Raises RunError, where the query can't be read or the ledger can't."""
    planned = plan_rows(session, lambda rules: is_meant(who, rules))
    person = _Person(session, planned, identity_or_none(who, planned.rules))
    user = person.user()
    events = person.events()
    return Explanation(
        who=person.identity or who,
        identifier=session.settings.iterable_identifier,
        notes=_notes(session, person),
        rows=Rows(session.settings.query_file.name, planned.columns, planned.read, len(planned.numbers), planned.last),
        user=user,
        events=events,
        known=person.known(),
        copy=_read_copy(session, person.identity, user),
        files=_files(session, who) if search_files else None,
        forgotten_on=person.forgotten_on,
    )


def _files(session: InspectionSession, who: str) -> list[FoundIn]:
    return look_for(session.ledger, session.settings, who)[1]


# What a run would send, and what the ledger knows ---------------------------------------------------------------------


class _Person:
    """One person's records in the stage, each with what a run would do with it."""

    def __init__(self, session: InspectionSession, planned: Planned, identity: str | None) -> None:
        self.identity = identity
        self._session = session
        self._planned = planned
        self._key = b""
        if identity is not None:
            self._key = session.stage.people.key_of(identity) or _key_of(session, identity)
        accepted = session.ledger.accepted.accepted_of(self._key) if identity is not None else {}
        self._accepted = {key: accepted_at for key, (accepted_at, _) in accepted.items()}
        run_ids = session.ledger.runs.ids({run for _, run in accepted.values()})
        self._runs = {key: run_ids.get(run) for key, (_, run) in accepted.items()}
        self._seen: set[bytes] = set()
        self.forgotten = _is_forgotten(session, identity)
        self.forgotten_on = session.ledger.forgotten.find(identity).forgotten_on if identity is not None else None

    def user(self) -> RecordReport | None:
        reports = [*self._records(Kind.USER), *self._refused(Kind.USER)]
        return reports[-1] if reports else None

    def events(self) -> Events:
        counts: Counter[State] = Counter()
        last = deque[RecordReport](maxlen=MAX_SHOWN)
        for report in merge(self._records(Kind.EVENT), self._refused(Kind.EVENT), key=attrgetter("row")):
            counts[report.state] += 1
            last.append(report)
        repeated = None if self._planned.all_staged else self._session.stage.doubled.repeated
        return Events(counts, repeated, last)

    def known(self) -> Known:
        """Call it when the events were looked at."""
        of_events = {key: at for key, at in self._accepted.items() if key != self._key}
        gone = [at for key, at in of_events.items() if key not in self._seen]
        return Known(self._accepted.get(self._key), len(of_events), gone)

    def _records(self, kind: Kind) -> Iterator[RecordReport]:
        by_user = chain(*(self._session.stage.pending_by_user(kind, late=late) for late in (False, True)))
        for page in pages(each for each in by_user if each.records[0].identity == self.identity):
            keys = [record.key for record in page]
            self._seen.update(keys)
            fingerprints = self._session.ledger.known(keys)
            past_failures = self._session.ledger.failures.past_failures(keys)
            users = self._session.ledger.accepted.known_users(keys) if kind is Kind.USER else {}
            for record in page:
                report = self._report(record, fingerprints.get(record.key), past_failures.get(record.key))
                user = users.get(record.key)
                yield report if user is None else self._with_fields(report, record, user)

    def _with_fields(self, report: RecordReport, record: Record, user: KnownUser) -> RecordReport:
        """With the fields of a known user that would be sent, which may be none."""
        leaves = json.loads(changes_only(record, user.fields, self._session.ledger.hasher).payload)
        names = [*leaves["dataFields"], *(["userId"] if "email" in leaves and "userId" in leaves else [])]
        if not names and report.state in (State.CHANGED, State.UNSURE):
            report = replace(report, state=State.UNCHANGED)
        return replace(report, fields_to_send=names)

    def _report(self, record: Record, fingerprint: bytes | None, past_failure: PastFailure | None) -> RecordReport:
        state, reason = _state(record, fingerprint), None
        if self.forgotten is True and state is not State.UNCHANGED:
            state, reason = State.REJECTED, MESSAGE
        return RecordReport(
            row=self._planned.number(record.row),
            state=state,
            payload=json.loads(record.payload),
            reason=reason,
            accepted_at=self._accepted.get(record.key),
            run_id=self._runs.get(record.key),
            before=_before(past_failure, record.fingerprint),
        )

    def _refused(self, kind: Kind) -> Iterator[RecordReport]:
        for each in self._session.stage.outcomes.undelivered():
            if each.kind is kind and self._planned.is_asked_for(each.row):
                accepted_at = self._accepted.get(self._key) if kind is Kind.USER else None
                yield RecordReport(
                    self._planned.number(each.row), State.REJECTED, reason=each.message, accepted_at=accepted_at
                )


def _key_of(session: InspectionSession, identity: str) -> bytes:
    """The key under which the ledger knows a person, whose address may have changed."""
    moved = followed_moves(session.ledger, [identity]) if session.ledger.accepted.people.any_moved else {}
    return moved[identity].key if identity in moved else session.ledger.user_key(identity)


def _state(record: Record, fingerprint: bytes | None) -> State:
    if fingerprint is None:
        return State.NEW
    if fingerprint == record.fingerprint:
        return State.UNCHANGED
    return State.CHANGED if fingerprint else State.UNSURE


def _before(past_failure: PastFailure | None, fingerprint: bytes) -> Before | None:
    if past_failure is None:
        return None
    return Before(
        outcome=past_failure.outcome.value,
        status_code=past_failure.status_code,
        code=past_failure.code,
        runs_in_a_row=past_failure.streak,
        noted_at=past_failure.noted_at,
        is_same=past_failure.fingerprint == fingerprint,
    )


def _is_forgotten(session: InspectionSession, identity: str | None) -> bool | ForgottenListError:
    """Whether a run would keep this person back; where SKIP_FORGOTTEN asks for it, and Iterable's list can be read."""
    if identity is None or not session.settings.skip_forgotten:
        return False
    try:
        return identity in read_forgotten(session.client, by_user_id=session.by_user_id)
    except ForgottenListError as problem:
        return problem


def _notes(session: InspectionSession, person: _Person) -> list[str]:
    notes = notes_on(session)
    if isinstance(person.forgotten, ForgottenListError):
        notes.append(str(person.forgotten))
    if person.forgotten_on is not None:
        path = session.settings.state_url or session.settings.output_dir / LEDGER_NAME
        notes.append(f"Forgotten on {person.forgotten_on} (--forget): every run rejects this person, by {path}.")
    if person.identity is None:
        kind = "a user id" if session.by_user_id else "an e-mail address"
        notes.append(f"This is not {kind}, by which ITERABLE_IDENTIFIER tells people apart.")
    return notes


# Iterable's copy ------------------------------------------------------------------------------------------------------


def _read_copy(session: InspectionSession, identity: str | None, user: RecordReport | None) -> Copy:
    if identity is None:
        return Copy(CopyState.NOT_READ, problem="Iterable can't know such a person.")
    if session.settings.use_jwt_auth:
        return Copy(CopyState.NOT_READ, problem=CLIENT_SIDE)
    ok, profile = get_user(session, identity)
    if not ok:
        return _unread(profile)
    if not profile:
        return Copy(CopyState.NOT_FOUND)
    if user is None or user.payload is None:
        return Copy(CopyState.UNCOMPARED, profile=profile)
    fields = compare(user.payload, profile)
    return Copy(CopyState.DIFFERENT if differing(fields) else CopyState.SAME, fields, profile)


def _unread(details: Mapping[str, Any]) -> Copy:
    if is_client_side(details):
        return Copy(CopyState.NOT_READ, problem=CLIENT_SIDE)
    if details["failure"] in (Failure.REJECTED, Failure.UNAUTHORIZED):  # it concerns this person, or the key's rights
        return Copy(CopyState.NOT_READ, problem=f"{details['error']}.")
    ending = why_not_read(details)
    return Copy(CopyState.NOT_READ, problem=ending.reason, code=ending.code)
