"""A few records -> requests -> what became of each. Runs in the workers of `delivery`.

`SingleSender` sends one record a request, `BulkSender` up to a thousand. Both yield a `Settled` whenever it is known
what became of some records. What a bulk answer says of its records is read in `bulk_answers`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

from iterable.answers import Failure, read_indices
from iterable_client import IterableClient
from pipeline.delivery.breaker import Division, Turn
from pipeline.delivery.bulk_answers import Settled, read_bulk_answer, unacknowledged
from pipeline.delivery.patience import BatchPatience, SplitPatience
from pipeline.model.failure_policy import POLICIES, UNKNOWN_USER_CODES
from pipeline.model.records import FailedRecord, Kind, Record


class Sender(Protocol):
    """Sends the records of one batch, in order, as far as `turn` lets it."""

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]: ...

    def is_answered(self) -> bool | None:
        """Whether Iterable answers a call that changes nothing; None: this key may not read, so nothing is known."""


class SingleSender:
    """users/update and events/track: one record a request."""

    def __init__(self, client: IterableClient, *, by_user_id: bool = False) -> None:
        """by_user_id: records identify people by userId, not by e-mail."""
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

    def is_answered(self) -> bool | None:
        return _is_answered(self._client)

    def _call(self, record: Record) -> tuple[bool, dict[str, Any]]:
        name = "users/update" if record.kind is Kind.USER else "events/track"
        email, user_id = (None, record.identity) if self._by_user_id else (record.identity, None)
        return self._client.send_json(name, record.payload, email=email, user_id=user_id)


def _is_answered(client: IterableClient) -> bool | None:
    if client.use_jwt:
        return None
    ok, answer = client.get_user_fields()
    may_not_read = not ok and answer["failure"] in (Failure.REJECTED, Failure.UNAUTHORIZED, Failure.ABANDONED)
    return None if may_not_read else ok


class BulkSender:
    """users/bulkUpdate and events/trackBulk. One bad record does not sink its batch."""

    def __init__(self, client: IterableClient) -> None:
        self._client = client
        self._patience = SplitPatience()

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]:
        """Send the batch. Where it is refused as a whole, take out what the answer names, or else send its halves."""
        pieces = deque([list(records)])
        patience = BatchPatience(self._patience)
        while pieces and turn.may_call(is_part=patience.has_begun):
            piece = pieces.popleft()
            ok, answer = self._call(piece, is_part=patience.has_begun)
            if _never_left(ok, answer):
                pieces.appendleft(piece)
                continue
            patience.count_request()
            if ok:
                yield self._settle_answer(piece, answer, pieces, patience, turn)
                continue
            turn.answered(*_failure_of(ok, answer))
            if patience.may_divide and (yield from self._may_divide(piece, answer, turn)):
                bad, smaller = _take_apart(piece, answer)
                _put_back(pieces, smaller)
                patience.refuse()
                yield _settle_failure(bad, answer)
            else:
                yield _settle_failure(piece, answer, note=_NOT_ALONE if _may_be_of_another(piece, answer) else "")
                if _ends_the_run(answer):
                    break
        if pieces and patience.has_begun:  # they were part of a request already
            yield _settle_left(pieces)
        patience.end()

    def _settle_answer(
        self,
        piece: Sequence[Record],
        answer: dict[str, Any],
        pieces: deque[list[Record]],
        patience: BatchPatience,
        turn: Turn,
    ) -> Settled:
        """Iterable has read the piece: what became of its records; `pieces` gets what is to be sent again."""
        result = read_bulk_answer(piece, answer)
        turn.answered(*_failure_in(result.settled))
        pieces.extendleft([record] for record in reversed(result.alone))
        if len(result.unsure) > 1 and patience.may_divide:
            _put_back(pieces, _halves(result.unsure))
            patience.refuse()
            return result.settled
        patience.succeed()
        return result.give_up()

    def _may_divide(self, piece: list[Record], details: dict[str, Any], turn: Turn) -> Generator[Settled, None, bool]:
        """Whether a smaller batch may fare better; may wait until that is known, and send one of the records alone."""
        if len(piece) == 1 or not _blames(details):
            return False
        failure = details["failure"]
        if details["status_code"] in POLICIES[failure].divided_for:
            return True
        while (division := turn.may_divide(failure)) is Division.ONE_FIRST and len(piece) > 1:
            record = piece.pop(_place_to_try(piece))
            with turn.probing():
                ok, answer = self._call([record], is_part=True)
                settled = read_bulk_answer([record], answer).give_up() if ok else _settle_failure([record], answer)
                turn.answered(*(_failure_in(settled) if ok else _failure_of(ok, answer)))
            yield settled
        return division is not Division.NO

    def is_answered(self) -> bool | None:
        return _is_answered(self._client)

    def _call(self, records: Sequence[Record], *, is_part: bool) -> tuple[bool, dict[str, Any]]:
        """Parts of a batch get one attempt, a record alone gets them all."""
        bodies = [record.payload for record in records]
        max_attempts = 1 if is_part and len(records) > 1 else None
        if records[0].kind is Kind.USER:
            return self._client.bulk_update_users(bodies, max_attempts=max_attempts)
        return self._client.track_bulk_events(bodies, max_attempts=max_attempts)


# Taking a refused batch apart -----------------------------------------------------------------------------------------


def _blames(details: dict[str, Any]) -> bool:
    """Whether a record may be to blame for this failure of a batch."""
    policy = POLICIES[details["failure"]]
    return details["status_code"] in policy.divided_for | policy.divided_once_accepted


def _may_be_of_another(piece: Sequence[Record], details: dict[str, Any]) -> bool:
    """Whether Iterable has refused the whole for what may be one record's fault. An outage is nobody's."""
    return len(piece) > 1 and details["failure"] is Failure.REJECTED and _blames(details)


def _take_apart(piece: list[Record], details: dict[str, Any]) -> tuple[list[Record], list[list[Record]]]:
    """A refused batch -> the records that the answer names as bad, and the batches to send instead."""
    named = {index for index in read_indices(details["answer"]) if index < len(piece)}
    if named:
        rest = [record for index, record in enumerate(piece) if index not in named]
        return [piece[index] for index in sorted(named)], [rest] if rest else []
    return [], _halves(piece)


def _halves(piece: Sequence[Record]) -> list[list[Record]]:
    if len(piece) == 1:
        return [list(piece)]
    middle = _middle(piece)
    return [list(piece[:middle]), list(piece[middle:])]


def _place_to_try(piece: Sequence[Record]) -> int:
    """Which record to send first: one from the middle, unless an earlier one is of the same user."""
    middle = _middle(piece)
    return middle if piece[middle - 1].identity != piece[middle].identity else 0


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
    """For the breaker: an answer that accepts nothing is not a success, but shows that Iterable has read the batch."""
    if settled.failure is None and not settled.delivered:
        return Failure.REJECTED, ""
    return settled.failure, settled.message


def _failure_of(ok: bool, details: dict[str, Any]) -> tuple[Failure | None, str]:
    return (None, "") if ok else (details["failure"], details["error"])


_NOT_ALONE = "It was only sent in a batch, so another record may be to blame."


def _settle_failure(records: Sequence[Record], details: dict[str, Any], note: str = "") -> Settled:
    """The details of a failed call -> what became of the records that it was about."""
    failure: Failure = details["failure"]
    outcome = POLICIES[failure].outcome
    # A blocked event's answer is 200 Success; it is called what the list in a bulk answer is called.
    is_blocked = failure is Failure.REJECTED and details["status_code"] == 200 and records[0].kind is Kind.EVENT
    code = "disallowedEventNames" if is_blocked and details["code"] == "Success" else details["code"]
    message = f"{details['error'].rstrip('.')}. {note}" if note else details["error"]
    rest = (outcome, details["status_code"], code, message, details["attempts"])
    undelivered = [FailedRecord(record.kind, record.row, record.identity, *rest) for record in records]
    is_unknown_user = details["code"] in UNKNOWN_USER_CODES and failure is Failure.REJECTED
    how = {"failure": failure, "message": details["error"], "was_answered": details["status_code"] is not None}
    if is_unknown_user and all(record.kind is Kind.EVENT for record in records):
        return Settled(unknown=undelivered, **how)
    return Settled(failed=undelivered, **how)


def _settle_left(pieces: Iterable[Sequence[Record]]) -> Settled:
    """The parts of a refused batch that the run's end kept from being sent again."""
    problem = "the run stopped before it was sent again in a smaller batch"
    failed = [unacknowledged(record, problem, None) for piece in pieces for record in piece]
    return Settled(failed=failed, failure=Failure.ABANDONED)
