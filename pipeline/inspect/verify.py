"""`--verify [N]`: reads some users back from Iterable, and compares them with what the ledger says was accepted.

Chosen at random from the users whose rows say what Iterable accepted last. Their values go to stdout and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from iterable_client import Failure
from pipeline.inspect.profile import CLIENT_SIDE, get_user, why_not_read
from pipeline.inspect.readback import Field, advice, beside, compare, differing, fields_as_json, missing, verdict_on
from pipeline.inspect.reading import plan_rows
from pipeline.inspect.session import InspectionSession, notes_on, open_session, print_json
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.records import Kind, Record
from pipeline.model.text import counted, iso, moment, shown, wrapped
from pipeline.report import Console
from pipeline.run.conclusion import refuse
from pipeline.run.forgotten import read_forgotten
from pipeline.run.interrupt import Interrupted
from pipeline.stage.pages import pages

SETTLE_S = 60  # Iterable asks for that long between an update and what depends on it
WORKERS = 16  # enough for the 100 requests a second that Iterable allows, at 150 ms each


@dataclass(frozen=True)
class Chosen:
    """A user to compare. accepted_at: Unix seconds."""

    record: Record
    accepted_at: float


@dataclass
class Sample:
    """Some users at random, each with the same chance, out of as many as there may be."""

    size: int
    chance: random.Random = field(default_factory=random.Random)
    chosen: list[Chosen] = field(default_factory=list)
    offered: int = 0
    too_recent: int = 0
    forgotten: int = 0

    def offer(self, user: Chosen) -> None:
        self.offered += 1
        if len(self.chosen) < self.size:
            self.chosen.append(user)
        elif (place := self.chance.randrange(self.offered)) < self.size:
            self.chosen[place] = user


@dataclass(frozen=True)
class Compared:
    """A user beside Iterable's copy. fields: ours and Iterable's; None where Iterable does not have the user, or for
    the reason in `problem` does not show it."""

    user: Chosen
    fields: Sequence[Field] | None
    problem: str = ""

    @property
    def is_same(self) -> bool:
        return self.fields is not None and not differing(self.fields)


@dataclass(frozen=True)
class Verification:
    """offered: users that could have been chosen. too_recent, forgotten: those left out. stopped: why not all were
    compared."""

    notes: Sequence[str]
    offered: int
    too_recent: int
    forgotten: int
    compared: Sequence[Compared]
    stopped: Ending | None = None
    knows_anybody: bool = True

    @property
    def different(self) -> list[Compared]:
        return [each for each in self.compared if not each.is_same]

    @property
    def missing_fields(self) -> dict[str, int]:
        """Fields that Iterable does not hold although they were sent, and in how many users."""
        return dict(Counter(name for each in self.compared for name in missing(each.fields or ())).most_common())

    @property
    def exit_code(self) -> ExitCode:
        if self.stopped is not None:
            return self.stopped.code
        if not self.compared:
            return ExitCode.TEMPORARY
        return ExitCode.REJECTED if self.different else ExitCode.SUCCESS


def run_verify(options: argparse.Namespace) -> ExitCode:
    """Compare `options.verify` users and say which differ. 0: none; 1: some; 75: nothing was compared."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    try:
        with open_session(options, console) as session:
            verification = verify(session, options.verify)
    except (RunError, Interrupted) as problem:
        return refuse(problem, console)
    code = verification.exit_code
    if options.json:
        code = print_json(console, as_json(verification), code)
    else:
        console.show(different_as_text(verification))
        for line in summary(verification):
            console.say(line)
    if verification.stopped is not None:
        console.error(verification.stopped.reason)
    elif not verification.compared:
        console.error(" ".join([_why_nothing(verification), *verification.notes]))
    return code


def verify(session: InspectionSession, size: int) -> Verification:
    """Raises RunError where the query or the ledger can't be read."""
    if session.settings.use_jwt_auth:
        return Verification((), 0, 0, 0, (), Ending(ExitCode.SETTINGS, f"{CLIENT_SIDE} --verify needs one."))
    skips_forgotten = session.settings.skip_forgotten
    forgotten = read_forgotten(session.client, by_user_id=session.by_user_id) if skips_forgotten else ()
    plan_rows(session, without_events=True)
    sample = Sample(size)
    for user in _unchanged_users(session):
        if user.record.identity in forgotten:
            sample.forgotten += 1
        elif session.now - user.accepted_at < SETTLE_S:
            sample.too_recent += 1
        else:
            sample.offer(user)
    chosen = sorted(sample.chosen, key=lambda user: user.record.row)
    return _read_back(session, chosen, sample)


def _unchanged_users(session: InspectionSession) -> Iterator[Chosen]:
    """Those whose update a run would skip, since Iterable has accepted it as it is."""
    for page in pages(session.stage.pending_by_user(Kind.USER)):
        keys = [record.key for record in page]
        fingerprints, accepted_at = session.ledger.known(keys), session.ledger.accepted_at(keys)
        for record in page:
            if fingerprints.get(record.key) == record.fingerprint:
                yield Chosen(record, accepted_at[record.key])


def _read_back(session: InspectionSession, users: Sequence[Chosen], sample: Sample) -> Verification:
    """Until a failure that would meet the others, too."""
    compared: list[Compared] = []
    stopped = None
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for user, (ok, answer) in zip(users, pool.map(partial(_get, session), users), strict=True):
            if not ok and answer["failure"] is not Failure.REJECTED:
                stopped = why_not_read(answer)
                break
            compared.append(_compare(user, answer) if ok else Compared(user, None, str(answer["error"])))
    finally:
        session.breaker.stop()
        pool.shutdown(cancel_futures=True)
    counts = (sample.offered, sample.too_recent, sample.forgotten)
    return Verification(notes_on(session), *counts, compared, stopped, not session.ledger.is_empty)


def _get(session: InspectionSession, user: Chosen) -> tuple[bool, dict[str, Any]]:
    return get_user(session, user.record.identity)


def _compare(user: Chosen, profile: Mapping[str, Any]) -> Compared:
    return Compared(user, compare(json.loads(user.record.payload), profile) if profile else None)


# Text -----------------------------------------------------------------------------------------------------------------

NOTHING = (
    "Nothing was compared: of the users that the query finds, the ledger knows none as accepted and unchanged since."
)
TOO_SOON = f"Nothing was compared: all users were accepted less than {SETTLE_S} seconds ago. Try again in a minute."


NOBODY = "Nothing was compared: the ledger knows nobody of this project as accepted. Run the job first."


def _why_nothing(found: Verification) -> str:
    if found.too_recent:
        return TOO_SOON
    return NOTHING if found.knows_anybody else NOBODY


def different_as_text(found: Verification) -> Iterator[str]:
    for each in found.different:
        accepted = f"accepted {moment(each.user.accepted_at)}"
        yield from wrapped(f"{shown(each.user.record.identity)}: {_verdict(each)}; {accepted}", "", "    ")
        if each.fields is not None:
            yield from beside(differing(each.fields))
        yield ""


def _verdict(each: Compared) -> str:
    if each.fields is not None:
        return verdict_on(each.fields)
    return each.problem or "not found in Iterable"


def summary(found: Verification) -> Iterator[str]:
    """Without anybody's values, so that it may be logged."""
    for note in found.notes if found.compared else ():
        yield from wrapped(note)
    for name, users in found.missing_fields.items():
        yield from wrapped(f"{shown(name)} was sent, and is missing in Iterable for {counted(users, 'user')}.")
    if found.compared:
        same = len(found.compared) - len(found.different)
        yield from wrapped(
            f"{counted(len(found.compared), 'user')} compared with Iterable: {same:,} the same, "
            f"{len(found.different):,} different. Chosen from {found.offered:,} accepted and unchanged."
        )
    if found.different:
        yield from wrapped(advice(is_any_missing=bool(found.missing_fields)))
    if found.too_recent and found.compared:
        yield from wrapped(
            f"Left out: {counted(found.too_recent, 'user')} accepted less than {SETTLE_S} seconds ago, as Iterable "
            "takes a while to show what it accepted."
        )
    if found.forgotten:
        yield from wrapped(f"Left out: {counted(found.forgotten, 'user')} whom Iterable has forgotten.")


# JSON -----------------------------------------------------------------------------------------------------------------


def as_json(found: Verification) -> dict[str, Any]:
    return {
        "notes": list(found.notes),
        "offered": found.offered,
        "too_recent": found.too_recent,
        "forgotten": found.forgotten,
        "compared": len(found.compared),
        "same": len(found.compared) - len(found.different),
        "missing_fields": found.missing_fields,
        "different": [
            {
                "who": each.user.record.identity,
                "row": each.user.record.row,
                "accepted_at": iso(each.user.accepted_at),
                "is_found": each.fields is not None,
                "problem": each.problem or None,
                "fields": fields_as_json(differing(each.fields or ())),
            }
            for each in found.different
        ],
        "stopped": found.stopped.reason if found.stopped is not None else None,
        "exit_code": int(found.exit_code),
    }
