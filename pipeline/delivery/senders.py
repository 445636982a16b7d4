"""A few records -> requests -> what became of each. Runs in the workers of `delivery`.

`SingleSender` sends one record a request, `BulkSender` up to a thousand. Both yield a `Settled` whenever it is known
what became of some records.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from iterable.answers import BulkFailures, Failure, read_failures, read_indices
from iterable_client import IterableClient
from pipeline.delivery.breaker import Turn
from pipeline.model.failure_policy import POLICIES, UNKNOWN_USER_CODES
from pipeline.model.records import FailedRecord, Kind, Outcome, Record

# A refused batch is taken apart to find the bad record: one in a thousand takes 10 refusals and 21 requests. Where so
# many refusals come in a row, or so many requests are made for one batch, its parts are not divided any more, but each
# is still sent. A batch without any success leaves half the patience, down to the least, for the batches after it.
MAX_REFUSALS_IN_A_ROW = 63  # the batch and all its parts, down to a 32nd: 1 + 2 + 4 + 8 + 16 + 32
MIN_REFUSALS_IN_A_ROW = 3  # the batch and its halves
MAX_REQUESTS_A_BATCH = 400


@dataclass(frozen=True)
class Settled:
    """What became of some records. Those that are in none of the lists were not attempted.

    unknown: refused because their user is not known, which may pass. failure: how their request failed, None if it did
    not. message: the sentence for it.
    """

    delivered: Sequence[Record] = ()
    failed: Sequence[FailedRecord] = ()
    unknown: Sequence[FailedRecord] = ()
    failure: Failure | None = None
    message: str = ""
    filtered_out_fields: frozenset[str] = frozenset()
    created_fields: frozenset[str] = frozenset()

    def rows(self) -> list[int]:
        """The rows of all records that have found their end, or are to be tried once more."""
        undelivered = (*self.failed, *self.unknown)
        return [record.row for record in self.delivered] + [each.row for each in undelivered]


class Sender(Protocol):
    """Sends the records of one batch, in order, as far as `turn` lets it."""

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]: ...


class SingleSender:
    """users/update and events/track: one record a request."""

    def __init__(self, client: IterableClient, *, by_user_id: bool = False) -> None:
        """by_user_id: records tell people apart by userId, not by e-mail."""
        self._client = client
        self._by_user_id = by_user_id

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]:
        for record in records:
            ok, answer = False, _NEVER_LEFT
            while _never_left(ok, answer):
                if not turn.may_call():
                    return
                ok, answer = self._call(record)
            turn.answered(*_failure_of(ok, answer))
            yield Settled(delivered=[record]) if ok else _settle_failure([record], answer)
            if not ok and _ends_the_run(answer):
                return

    def _call(self, record: Record) -> tuple[bool, dict[str, Any]]:
        name = "users/update" if record.kind is Kind.USER else "events/track"
        email, user_id = (None, record.identity) if self._by_user_id else (record.identity, None)
        return self._client.send_json(name, record.payload, email=email, user_id=user_id)


class BulkSender:
    """users/bulkUpdate and events/trackBulk. One bad record does not sink its batch."""

    def __init__(self, client: IterableClient) -> None:
        self._client = client
        self._patience = MAX_REFUSALS_IN_A_ROW  # shared by the workers; whose value wins does not matter

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]:
        """Send the batch. Where it is refused as a whole, take out what the answer names, or else send its halves."""
        pieces = deque([list(records)])
        patience = self._patience
        requests = refusals = 0
        while pieces and turn.may_call(is_part=requests > 0):
            piece = pieces.popleft()
            ok, answer = self._call(piece, is_part=requests > 0)
            if _never_left(ok, answer):
                pieces.appendleft(piece)
                continue
            requests += 1
            if ok:
                alone, settled = read_bulk_answer(piece, answer)
                turn.answered(*_failure_in(settled))
                pieces.extendleft([record] for record in reversed(alone))
                yield settled
                refusals, patience = 0, MAX_REFUSALS_IN_A_ROW
                self._patience = patience
                continue
            turn.answered(*_failure_of(ok, answer))
            if refusals < patience and requests < MAX_REQUESTS_A_BATCH and _may_divide(piece, answer, turn):
                bad, smaller = _take_apart(piece, answer)
                _put_back(pieces, smaller)
                yield _settle_failure(bad, answer)
                refusals += 1
            else:
                yield _settle_failure(piece, answer, note=_NOT_ALONE if len(piece) > 1 and _blames(answer) else "")
                if _ends_the_run(answer):
                    break
        if pieces and requests:  # they were part of a request already
            yield _settle_left(pieces)
        if refusals >= patience:
            self._patience = max(patience // 2, MIN_REFUSALS_IN_A_ROW)

    def _call(self, records: Sequence[Record], *, is_part: bool) -> tuple[bool, dict[str, Any]]:
        """Parts of a batch get one attempt, a record alone gets them all."""
        bodies = [record.payload for record in records]
        max_attempts = 1 if is_part and len(records) > 1 else None
        if records[0].kind is Kind.USER:
            return self._client.bulk_update_users(bodies, max_attempts=max_attempts)
        return self._client.track_bulk_events(bodies, max_attempts=max_attempts)


# Taking a refused batch apart -----------------------------------------------------------------------------------------


def _may_divide(piece: Sequence[Record], details: dict[str, Any], turn: Turn) -> bool:
    """Whether a smaller batch may fare better; may wait until that is known."""
    if len(piece) == 1 or not _blames(details):
        return False
    policy = POLICIES[details["failure"]]
    return details["status_code"] in policy.divided_for or turn.may_divide(waits=policy.ends_run_after > 0)


def _blames(details: dict[str, Any]) -> bool:
    """Whether a record may be to blame for this failure of a batch."""
    policy = POLICIES[details["failure"]]
    return details["status_code"] in policy.divided_for | policy.divided_once_accepted


def _take_apart(piece: list[Record], details: dict[str, Any]) -> tuple[list[Record], list[list[Record]]]:
    """A refused batch -> the records that the answer names as bad, and the batches to send instead."""
    named = {index for index in read_indices(details["answer"]) if index < len(piece)}
    if named:
        rest = [record for index, record in enumerate(piece) if index not in named]
        return [piece[index] for index in sorted(named)], [rest] if rest else []
    middle = _middle(piece)
    return [], [piece[:middle], piece[middle:]]


def _middle(piece: Sequence[Record]) -> int:
    """Where to halve: as near to the middle as it goes between two users; only what is all one user's is cut within."""
    middle = len(piece) // 2
    for distance in range(middle + 1):
        for cut in (middle - distance, middle + distance):
            if 0 < cut < len(piece) and piece[cut - 1].identity != piece[cut].identity:
                return cut
    return middle


def _put_back(pieces: deque[list[Record]], smaller: list[list[Record]]) -> None:
    """Halves go to the end, behind the other halves: a dead server and a bad export show soonest that way.

    Those of one user go to the front, so that none of the user's later events is sent before them.
    """
    if smaller and smaller[0][0].identity == smaller[-1][-1].identity:
        pieces.extendleft(reversed(smaller))
    else:
        pieces.extend(smaller)


# Answer -> what became of each record ---------------------------------------------------------------------------------


def read_bulk_answer(records: Sequence[Record], answer: dict[str, Any]) -> tuple[list[Record], Settled]:
    """An answer with counts and lists -> the records to send again one by one, and what became of the others.

    The lists name users, who may have several records in the batch. As a rule all of a listed user's records have
    failed. Where fewer failures are counted, sending each of them again alone tells which; it is safe, as their ids
    stay the same. Where the counts agree with nothing, what is not named is unacknowledged.
    """
    failures = read_failures(answer)
    if failures is None:
        undelivered = [_unacknowledged(record, "its answer has no counts") for record in records]
        return [], Settled(failed=undelivered, failure=Failure.UNREADABLE, message=undelivered[0].message)
    blocked, listed, rest = _sort_out(records, failures)
    named = len(listed)
    alone: list[Record] = []
    if not _adds_up(failures, len(records), named, len(blocked)):
        named = _count_named(listed, failures)
        listed, alone = _part_doubtful(listed, failures)
    undelivered = [_refused_as_listed(record, failures) for record in listed]
    failed = [each for each in undelivered if not _may_pass(each)]
    failed += [_refused_as_blocked(record) for record in blocked]
    delivered = rest
    if not _adds_up(failures, len(records), named, len(blocked)):
        problem = (
            f"its answer counts {failures.success_count} successes and {failures.fail_count} failures "
            f"of {len(records)} records, and names {named + len(blocked)}"
        )
        failed += [_unacknowledged(record, problem) for record in rest]
        delivered = []
    return alone, Settled(
        delivered=delivered,
        failed=failed,
        unknown=[each for each in undelivered if _may_pass(each)],
        filtered_out_fields=failures.filtered_out_fields,
        created_fields=failures.created_fields,
    )


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
    message = f"{_endpoint(record)} refused it and lists it under {reason}."
    return FailedRecord(record.kind, record.row, record.identity, Outcome.REJECTED, 200, reason, message, 1)


def _refused_as_blocked(record: Record) -> FailedRecord:
    message = f"{_endpoint(record)} refused it: its event name is disallowed in this project."
    return FailedRecord(
        record.kind, record.row, record.identity, Outcome.REJECTED, 200, "disallowedEventNames", message, 1
    )


def _unacknowledged(record: Record, problem: str, status_code: int | None = 200) -> FailedRecord:
    message = f"{_endpoint(record)} did not say what became of it: {problem}."
    return FailedRecord(record.kind, record.row, record.identity, Outcome.UNACKNOWLEDGED, status_code, None, message, 1)


def _endpoint(record: Record) -> str:
    return "users/bulkUpdate" if record.kind is Kind.USER else "events/trackBulk"


# Failed calls ---------------------------------------------------------------------------------------------------------


def _ends_the_run(details: dict[str, Any]) -> bool:
    """Whether sending more makes no sense: the failure has nothing to do with the records."""
    failure = details["failure"]
    return failure is Failure.ABANDONED or POLICIES[failure].ends_run_at_once


_NEVER_LEFT = {"failure": Failure.ABANDONED, "attempts": 0}


def _never_left(ok: bool, details: dict[str, Any]) -> bool:
    """Whether the call ended before its first request, as the run is stopping or calls have to wait."""
    return not ok and details["failure"] is Failure.ABANDONED and details["attempts"] == 0


def _failure_in(settled: Settled) -> tuple[Failure | None, str]:
    """For the breaker: an answer that accepts nothing is no success, but shows that Iterable has read the batch."""
    if settled.failure is None and not settled.delivered:
        return Failure.REJECTED, ""
    return settled.failure, settled.message


def _failure_of(ok: bool, details: dict[str, Any]) -> tuple[Failure | None, str]:
    return (None, "") if ok else (details["failure"], details["error"])


_NOT_ALONE = " It was only sent in a batch, so another record may be to blame."


def _settle_failure(records: Sequence[Record], details: dict[str, Any], note: str = "") -> Settled:
    """The details of a failed call -> what became of the records that it was about."""
    failure: Failure = details["failure"]
    outcome = POLICIES[failure].outcome
    # A blocked event's answer is 200 Success; it is called what the list in a bulk answer is called.
    is_blocked = failure is Failure.REJECTED and details["status_code"] == 200 and records[0].kind is Kind.EVENT
    code = "disallowedEventNames" if is_blocked and details["code"] == "Success" else details["code"]
    rest = (outcome, details["status_code"], code, details["error"] + note, details["attempts"])
    undelivered = [FailedRecord(record.kind, record.row, record.identity, *rest) for record in records]
    is_unknown_user = details["code"] in UNKNOWN_USER_CODES and failure is Failure.REJECTED
    if is_unknown_user and all(record.kind is Kind.EVENT for record in records):
        return Settled(unknown=undelivered, failure=failure, message=details["error"])
    return Settled(failed=undelivered, failure=failure, message=details["error"])


def _settle_left(pieces: Iterable[Sequence[Record]]) -> Settled:
    """The parts of a refused batch that the run's end kept from being sent again."""
    problem = "the run stopped before it was sent again in a smaller batch"
    failed = [_unacknowledged(record, problem, None) for piece in pieces for record in piece]
    return Settled(failed=failed, failure=Failure.ABANDONED)
