"""EMAIL_CHANGES=move: Iterable changes the addresses of people who have another one now, before their records are sent.

One call at a time (users/updateEmail). The ledger knows of each before it may leave, so that a later run finds out by
reading back what became of one whose answer was lost. A profile that has moved keeps its subscriptions and its events.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from iterable.answers import Failure
from iterable_client import IterableClient
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON, POLICIES, stopped_by
from pipeline.model.records import FailedRecord, Outcome
from pipeline.report.log import Console
from pipeline.stage.stage import Stage
from pipeline.transform.address_changes import EMAIL_CHANGED, Move, PeopleReport

logger = logging.getLogger("main")

MAX_UNANSWERED = 5  # in a row; then the run ends
_UNKNOWN = "does not exist"  # of an old address that Iterable does not know [article "Updating a user's email address"]


@dataclass(frozen=True)
class Moved:
    """What came of all. stopped: how the run ends, where it has to. moved: addresses that have changed now."""

    moved: int = 0
    stopped: Ending | None = None


class Mover:
    """Changes the addresses of one run."""

    def __init__(
        self,
        client: IterableClient,
        ledger: Ledger,
        stage: Stage,
        report: PeopleReport,
        *,
        interrupted: Callable[[], Ending | None],
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._stage = stage
        self._report = report
        self._interrupted = interrupted
        self._moved = 0
        self._unanswered = 0

    def move_all(self, moves: Sequence[Move]) -> Moved:
        try:
            for move in moves:
                stopped = self._interrupted() or self._move(move)
                if stopped is not None:
                    return Moved(self._moved, stopped)
        except sqlite3.Error as problem:
            reason = f"The ledger can't be written ({problem}); make room and run again. {GO_ON}"
            return Moved(self._moved, Ending(ExitCode.TEMPORARY, reason))
        return Moved(self._moved)

    def _move(self, move: Move) -> Ending | None:
        """How the run ends because of it; None where it goes on."""
        if move.has_begun and self._has_arrived(move):  # in an earlier run, which did not learn what came of it
            self._finish(move)
            return None
        self._ledger.begin_move(move.key, move.address)
        ok, answer = self._client.update_email(
            move.new, current_email=move.old, current_user_id=move.user_id if move.old is None else None
        )
        if ok:
            self._finish(move)
            return None
        failure: Failure = answer["failure"]
        if failure is Failure.REJECTED:
            return self._refused(move, answer)
        if POLICIES[failure].ends_run_at_once or POLICIES[failure].code is not ExitCode.TEMPORARY:
            return stopped_by(failure, answer["error"], 1)
        if self._has_arrived(move):
            self._finish(move)
            return None
        return self._not_known(move, answer)

    def _finish(self, move: Move) -> None:
        self._ledger.accepted.people.end_move(move.key, move.address)
        self._ledger.commit()
        self._report.note_change(move.row, move.text, "moved")
        self._moved += 1
        self._unanswered = 0

    def _refused(self, move: Move, answer: dict[str, Any]) -> Ending | None:
        self._unanswered = 0
        was_carried_out = move.has_begun or answer["attempts"] > 1  # perhaps, by an attempt before the last one
        if was_carried_out and self._has_arrived(move):
            self._finish(move)
            return None
        self._ledger.accepted.people.cancel_move(move.key)
        if _UNKNOWN in str(answer["error"]):
            logger.warning("Iterable does not know the old address of row %d; a new profile is made.", move.row)
            self._stage.people.send_all_fields(move.full)
            self._report.note_change(move.row, move.text, "new")
            self._ledger.commit()
            return None
        self._ledger.commit()
        message = (
            f"Iterable does not change this person's address ({str(answer['error']).rstrip('.')}); merge the two "
            "profiles in Iterable, and then run with --baseline --only and the new address."
        )
        self._stage.people.reject_user(move.key, EMAIL_CHANGED, message)
        self._report.note_change(move.row, move.text, "held")
        return None

    def _not_known(self, move: Move, answer: dict[str, Any]) -> Ending | None:
        """Whether it was carried out is not known, so nothing may be sent to either address; the next run finds out."""
        self._unanswered += 1
        message = f"It is not known whether Iterable changed this person's address: {answer['error']}"
        rest = (Outcome.UNACKNOWLEDGED, answer["status_code"], answer["code"], message, answer["attempts"])
        failed = [FailedRecord(each.kind, each.row, each.identity, *rest) for each in self._stage.open_of(move.key)]
        self._stage.outcomes.note(failed, is_blamed=False)
        self._report.note_change(move.row, move.text, "held")
        if self._unanswered < MAX_UNANSWERED:
            return None
        return stopped_by(answer["failure"], answer["error"], self._unanswered)

    def _has_arrived(self, move: Move) -> bool:
        """Whether Iterable has the user under the new address and no longer under the old one; False where it can't be
        read."""
        ok, profile = self._client.get_user(move.new)
        if not ok or not profile:
            return False
        if move.old is None:
            user = profile.get("user")
            return isinstance(user, dict) and user.get("userId") == move.user_id
        ok, profile = self._client.get_user(move.old)
        return ok and not profile


def move_addresses(mover: Mover, moves: Sequence[Move], console: Console) -> Moved:
    """Change the addresses, and say so."""
    if not moves:
        return Moved()
    console.say(f"        Addresses that Iterable is to change first: {len(moves):,}")
    moved = mover.move_all(moves)
    console.say(f"        Addresses changed: {moved.moved:,}")
    return moved
