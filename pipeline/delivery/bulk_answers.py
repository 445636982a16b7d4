"""A bulk answer, with its counts and lists -> what became of each record. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iterable.answers import BulkFailures, Failure, read_failures
from pipeline.model.records import FailedRecord, Kind, Outcome, Record


@dataclass(frozen=True)
class Settled:
    """What became of some records. Those that are in none of the lists were not attempted.

    unknown: refused because their user is not known, which may pass. failure: how their request failed, None if it did
    not. message: the sentence for it. was_answered: whether anything came back.
    """

    delivered: Sequence[Record] = ()
    failed: Sequence[FailedRecord] = ()
    unknown: Sequence[FailedRecord] = ()
    failure: Failure | None = None
    message: str = ""
    was_answered: bool = True
    filtered_out_fields: frozenset[str] = frozenset()
    created_fields: frozenset[str] = frozenset()

    def rows(self) -> list[int]:
        """The rows of all records that have found their end, or are to be tried once more."""
        undelivered = (*self.failed, *self.unknown)
        return [record.row for record in self.delivered] + [each.row for each in undelivered]


@dataclass(frozen=True)
class BulkResult:
    """What a bulk answer says of its records.

    alone: to be sent again one by one, as it is not clear which of their user's records failed. unsure: one of these
    failed, and is not named; `problem` says so.
    """

    settled: Settled
    alone: Sequence[Record] = ()
    unsure: Sequence[Record] = ()
    problem: str = ""

    def give_up(self) -> Settled:
        """What became of them if the unsure ones are not sent again."""
        failed = [*self.settled.failed, *(unacknowledged(record, self.problem) for record in self.unsure)]
        return replace(self.settled, failed=failed)


def read_bulk_answer(records: Sequence[Record], answer: dict[str, Any]) -> BulkResult:
    """An answer with counts and lists -> what became of each record.

    The lists name users, who may have several records in the batch. As a rule all of a listed user's records have
    failed. Where fewer failures are counted, sending each of them again alone shows which; it is safe, as their ids
    stay the same. Where more are counted than are named, the others are unsure. Where the counts agree with nothing,
    what is not named is unacknowledged.
    """
    failures = read_failures(answer)
    if failures is None:
        undelivered = [unacknowledged(record, "its answer has no counts") for record in records]
        return BulkResult(Settled(failed=undelivered, failure=Failure.UNREADABLE, message=undelivered[0].message))
    blocked, listed, rest = _sort_out(records, failures)
    named = len(listed)
    alone: list[Record] = []
    if not _adds_up(failures, len(records), named, len(blocked)):
        named = _count_named(listed, failures)
        listed, alone = _part_doubtful(listed, failures)
    undelivered = [_refused_as_listed(record, failures) for record in listed]
    failed = [each for each in undelivered if not _may_pass(each)]
    failed += [_refused_as_blocked(record) for record in blocked]
    is_clear = _adds_up(failures, len(records), named, len(blocked))
    problem = (
        f"its answer counts {failures.success_count} successes and {failures.fail_count} failures "
        f"of {len(records)} records, and names {named + len(blocked)}"
    )
    delivered, unsure = (rest, []) if is_clear else ([], rest)
    if failures.fail_count <= named + len(blocked):
        failed += [unacknowledged(record, problem) for record in unsure]
        unsure = []
    settled = Settled(
        delivered=delivered,
        failed=failed,
        unknown=[each for each in undelivered if _may_pass(each)],
        filtered_out_fields=failures.filtered_out_fields,
        created_fields=failures.created_fields,
    )
    return BulkResult(settled, alone, unsure, problem if unsure else "")


def _sort_out(records: Sequence[Record], failures: BulkFailures) -> tuple[list[Record], list[Record], list[Record]]:
    """Records -> events with a disallowed name, records of users who are listed, all others."""
    blocked, listed, rest = [], [], []
    for record in records:
        if failures.disallowed_event_names and _event_name(record) in failures.disallowed_event_names:
            blocked.append(record)
        elif record.identity in failures.listed:
            listed.append(record)
        else:
            rest.append(record)
    return blocked, listed, rest


def _event_name(record: Record) -> str | None:
    name = json.loads(record.payload).get("eventName")
    return name if isinstance(name, str) else None


def _adds_up(failures: BulkFailures, total: int, named: int, blocked: int) -> bool:
    """Whether the counts agree with the named failures. Whether blocked events are counted is not documented."""
    counted = failures.success_count + failures.fail_count
    return failures.fail_count in (named, named + blocked) and counted in (total, total - blocked)


def _count_named(listed: Sequence[Record], failures: BulkFailures) -> int:
    """How many records the lists name, where each mention stands for one."""
    counts = Counter(record.identity for record in listed)
    return sum(min(count, failures.listed[identity][1]) for identity, count in counts.items())


def _part_doubtful(listed: Sequence[Record], failures: BulkFailures) -> tuple[list[Record], list[Record]]:
    """Records of listed users -> those of users who are listed once for each of their records, and those of others."""
    counts = Counter(record.identity for record in listed)
    sure = {identity for identity, count in counts.items() if failures.listed[identity][1] >= count}
    return (
        [record for record in listed if record.identity in sure],
        [record for record in listed if record.identity not in sure],
    )


def _may_pass(undelivered: FailedRecord) -> bool:
    """Whether its user may only not be known yet. A user update makes its user, so there it is a refusal."""
    return undelivered.kind is Kind.EVENT and (undelivered.code or "").startswith("notFound")


def _refused_as_listed(record: Record, failures: BulkFailures) -> FailedRecord:
    reason, _ = failures.listed[record.identity]
    message = f"{bulk_endpoint(record)} refused it and lists it under {reason}."
    return FailedRecord(record.kind, record.row, record.identity, Outcome.REJECTED, 200, reason, message, 1)


def _refused_as_blocked(record: Record) -> FailedRecord:
    message = f"{bulk_endpoint(record)} refused it: its event name is disallowed in this project."
    return FailedRecord(
        record.kind, record.row, record.identity, Outcome.REJECTED, 200, "disallowedEventNames", message, 1
    )


def unacknowledged(record: Record, problem: str, status_code: int | None = 200) -> FailedRecord:
    message = f"{bulk_endpoint(record)} did not say what became of it: {problem}."
    return FailedRecord(record.kind, record.row, record.identity, Outcome.UNACKNOWLEDGED, status_code, None, message, 1)


def bulk_endpoint(record: Record) -> str:
    return "users/bulkUpdate" if record.kind is Kind.USER else "events/trackBulk"
