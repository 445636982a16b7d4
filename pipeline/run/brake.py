"""Stops a run that would send something large and probably unwanted, after the plan and before the first request.

Decides from what is pending and from what is known of earlier runs; sends and stores nothing. `resends` and
`id_schemes` have the cases that are about sending something again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

from pipeline.config import MaxChanges, Settings
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Record
from pipeline.model.text import counted, moment, utc
from pipeline.run.baseline import happened_at
from pipeline.run.earlier_runs import unknown_delivery
from pipeline.run.id_schemes import ids_have_changed, is_told
from pipeline.run.opening import project_of
from pipeline.run.resends import OVERRIDE_HINT, KnownRuns, full_over_accepted, sent_again
from pipeline.stage.stage import Stage
from pipeline.transform.address_changes import PeopleReport
from pipeline.transform.rules import Rules

DAY_S = 86_400
LEAST_PART = 10  # a full read that finds less than a tenth of the users of the last one stops
MOST_CHANGED_PERSONS = 20
MOST_CHANGED_PART = 0.1  # of the known persons
KEYS_PER_LOOKUP = 500


@dataclass(frozen=True)
class Pending:
    """What a run would send. new: not known to the ledger; changed: known with other content; again: known as it is.
    known: all that the ledger knows for this project."""

    new: Mapping[Kind, int]
    changed: Mapping[Kind, int]
    again: Mapping[Kind, int]
    known: int

    def total(self, kind: Kind) -> int:
        return self.new[kind] + self.changed[kind] + self.again[kind]

    @property
    def records(self) -> int:
        return sum(self.total(kind) for kind in Kind)


@dataclass(frozen=True)
class Brake:
    """All that it decides from. now: Unix seconds. people: what the read says of them. is_whole: it has read all.
    events_by_scheme: those pending, by how their ids are made. resend: why an earlier run may have sent some of it
    already."""

    options: argparse.Namespace
    settings: Settings
    rules: Rules
    ledger: Ledger
    stage: Stage
    now: float
    people: PeopleReport
    is_whole: bool
    events_by_scheme: Mapping[str, int]
    resend: str = ""

    def ending(self) -> Ending | None:
        """What stops the run; None: nothing."""
        found = self._too_few() or persons_have_changed(self.people, self.rules.person_column)
        if found is not None or not any(self._numbers.values()):
            return found
        return (
            sent_again(
                self._known_runs(),
                self._numbers,
                self.settings.iterable_base_url,
                requires_ledger=self.settings.require_ledger,
            )
            or (full_over_accepted(self._pending.again) if self.options.full else None)
            or self._ids_have_changed()
            or self._too_old()
            or self._too_many()
        )

    @cached_property
    def _numbers(self) -> dict[Kind, int]:
        return {kind: self.stage.states.count_pending(kind) for kind in Kind}

    @cached_property
    def _pending(self) -> Pending:
        counts = {name: dict.fromkeys(Kind, 0) for name in ("new", "changed", "again")}
        for kind in Kind:
            records = pending_records(self.stage, kind)
            while chunk := list(islice(records, KEYS_PER_LOOKUP)):
                known = self.ledger.known([record.key for record in chunk])
                again = sum(known.get(record.key) == record.fingerprint for record in chunk)
                counts["again"][kind] += again
                counts["changed"][kind] += len(known) - again
                counts["new"][kind] += len(chunk) - len(known)
        return Pending(**counts, known=self.ledger.count_known())

    def _known_runs(self) -> KnownRuns:
        ledger = self.ledger
        if ledger.damage:
            return KnownRuns(ledger.damage)
        is_alone = not (self.options.dry_run or self.options.check)  # as it holds the lock
        unknown = unknown_delivery(
            self.settings.output_dir, project_of(self.settings), ledger, before=math.inf if is_alone else self.now
        )
        return KnownRuns("", ledger.is_empty, unknown, ledger.is_new_key_for_known_host)

    def _ids_have_changed(self) -> Ending | None:
        used = self.ledger.queries.id_schemes(str(self.settings.query_file))
        return ids_have_changed(
            self.events_by_scheme,
            used,
            knows_records=self.ledger.count_known() > 0,
            is_told=is_told(used, self.rules, self.ledger),
        )

    def _too_few(self) -> Ending | None:
        before = self.ledger.queries.last_full_users(str(self.settings.query_file)) if self.is_whole else None
        return too_few(self.stage.count_users(), before) if before else None

    def _too_old(self) -> Ending | None:
        days = self.settings.max_event_age_days
        if days is None or not self._numbers[Kind.EVENT]:
            return None
        return too_old(days, (happened_at(event) for event in pending_records(self.stage, Kind.EVENT)), self.now)

    def _too_many(self) -> Ending | None:
        limit = self.settings.max_changes
        if limit is None or (limit.is_percent and not self.ledger.runs.has_full()):
            return None
        query_path = str(self.settings.query_file)
        causes = [] if self.ledger.queries.id_schemes(query_path) else [f"{query_path} is new to the ledger"]
        if self.resend:
            causes.append(self.resend)
        return too_many(limit, self._pending, causes)


def pending_records(stage: Stage, kind: Kind) -> Iterator[Record]:
    """All of a kind; those that failed in an earlier run come last."""
    return chain(*(stage.pending(kind, late=late) for late in (False, True)))


def too_few(users: int, before: int) -> Ending | None:
    """Stops where a full read finds much less than the last one did: a broken join is no success."""
    if users * LEAST_PART >= before:
        return None
    return Ending(
        ExitCode.BRAKE,
        f"The query finds {counted(users, 'user')}, and its last full read found {before:,}. Nothing was sent.",
        ("Check the query and the database.", OVERRIDE_HINT),
    )


def persons_have_changed(people: PeopleReport, column: str | None) -> Ending | None:
    """Stops where so many people have another address that the column can hardly say who they are."""
    changed = people.changed - people.held_before
    if changed <= max(MOST_CHANGED_PERSONS, people.known * MOST_CHANGED_PART):
        return None
    return Ending(
        ExitCode.BRAKE,
        f"{changed:,} of {counted(people.known, 'known person')} have another address than before, by the "
        f"column {column}. Nothing was sent.",
        (
            f"If {column} does not say who somebody is: set PERSON_COLUMN to the column that does, or to - for none.",
            OVERRIDE_HINT,
        ),
    )


def too_old(days: float, times: Iterator[int], now: float) -> Ending | None:
    """Stops where events happened more than so many days ago. times, now: Unix seconds."""
    before = now - days * DAY_S
    old, oldest = 0, now  # no list: there may be millions
    for each in times:
        if each < before:
            old, oldest = old + 1, min(oldest, each)
    if not old:
        return None
    are = "is" if old == 1 else "are"
    return Ending(
        ExitCode.BRAKE,
        f"{counted(old, 'event')} {are} older than MAX_EVENT_AGE_DAYS={days:g}, the oldest of {moment(oldest)}. "
        "Nothing was sent.",
        (
            "To record old events as accepted, without sending them: run with --baseline --before "
            f"{utc(before):%Y-%m-%dT%H:%M:%S}.",
            OVERRIDE_HINT,
        ),
    )


def too_many(limit: MaxChanges | None, pending: Pending, causes: Sequence[str]) -> Ending | None:
    """Stops where more records are pending than MAX_CHANGES allows. causes: why that may be, where it can be seen."""
    if limit is None or (limit.is_percent and not pending.known):
        return None
    most = limit.limit * pending.known / 100 if limit.is_percent else limit.limit
    if pending.records <= most:
        return None
    allowed = f"{limit.limit:g} % of {pending.known:,} known records" if limit.is_percent else f"{limit.limit:,.0f}"
    what = ", ".join(
        f"{counted(pending.total(kind), kind.value)} ({_parts(pending, kind)})" for kind in Kind if pending.total(kind)
    )
    likely = f" Likely cause: {'; '.join(causes)}." if causes else ""
    return Ending(
        ExitCode.BRAKE,
        f"{what} would be sent, more than MAX_CHANGES allows ({allowed}). Nothing was sent.{likely}",
        ("Look at it with --dry-run.", OVERRIDE_HINT),
    )


def _parts(pending: Pending, kind: Kind) -> str:
    """`3 new, 0 changed`, and what --full sends again"""
    again = f", {pending.again[kind]:,} again" if pending.again[kind] else ""
    return f"{pending.new[kind]:,} new, {pending.changed[kind]:,} changed{again}"
