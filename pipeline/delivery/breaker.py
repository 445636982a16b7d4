"""The circuit breaker between the run and Iterable: whether calls may go out, wait, or are over.

The workers ask it before each call and report the outcome to it; the client waits through it. It opens when several
calls in a row have failed, whichever records they were about: then nothing leaves any more, nor do further attempts of
calls that have begun. The delivery tries a record that has not failed before, a probe. Where that is accepted, the
failures were their records' own, and the breaker closes. Where there is none to try, the calls that have begun come to
their end. How much a failure counts stands in `failure_policy.POLICIES`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from iterable_client import Abandoned, Failure
from pipeline.delivery.patience import RunPatience
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON, POLICIES, stopped_by
from pipeline.model.records import Kind

PART_COUNTS = 0.25  # the parts of one batch show little that the batch has not shown, and there may be many of them


@dataclass(frozen=True)
class FailedCall:
    """A call that failed, and what it was about."""

    failure: Failure
    message: str
    kind: Kind


class Division(Enum):
    """Whether a failed batch may be divided. ONE_FIRST: not yet; send one of its records alone, as a probe, and ask
    again."""

    NO = "no"
    YES = "yes"
    ONE_FIRST = "one first"


class Turn:
    """A worker's turn with one batch: it asks before each of its calls, and reports each answer. Only the worker's own
    thread uses it."""

    def __init__(self, breaker: Breaker, kind: Kind, is_probe: bool) -> None:
        self.kind = kind
        self.is_probe = is_probe
        self.is_failing = False  # an attempt of the present call has failed
        self._is_part = False
        self._counted_at: int | None = None  # the breaker's closings when the present call was counted as failed
        self._breaker = breaker

    def may_call(self, *, is_part: bool = False) -> bool:
        """Whether the next call may begin; waits while that is open. False: the run is stopping.

        is_part: it is about a part of a batch that has failed.
        """
        self.is_failing, self._counted_at, self._is_part = False, None, is_part
        return self._breaker.wait_for_turn(self)

    def may_divide(self, failure: Failure) -> Division:
        """Whether a record may be to blame for the failure of its batch; waits until that is known, if it can be."""
        if failure is Failure.REJECTED:
            return Division.YES if self._breaker.has_accepted else Division.NO
        return self._breaker.wait_to_divide(self.kind, needs_accepted=failure is not Failure.UNACKNOWLEDGED)

    @contextmanager
    def probing(self) -> Iterator[None]:
        """The call in this block is a probe, for which `may_divide` has asked."""
        self.is_probe, self.is_failing, self._counted_at = True, False, None
        try:
            yield
        finally:
            self.is_probe = False

    def attempt_failed(self, text: str) -> None:
        """Another attempt of the present call is to follow."""
        self.is_failing = True
        self._count(Failure.UNACKNOWLEDGED, text)

    def answered(self, failure: Failure | None, message: str = "") -> None:
        """What came of the call; None for a success."""
        if failure is None:
            self._breaker.note_success(is_probe=self.is_probe)
        elif failure is Failure.REJECTED:
            self._breaker.note_refusal()
        elif failure is not Failure.ABANDONED:
            self._count(failure, message)

    def _count(self, failure: Failure, message: str) -> None:
        weight = PART_COUNTS if self._is_part else 1.0
        failed = FailedCall(failure, message, self.kind)
        self._counted_at = self._breaker.count(failed, weight, counted_at=self._counted_at)


class Pacing:
    """Workers that wait until Iterable's rate limit lets them send; more of them would send nothing more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: Counter[Kind] = Counter()

    def count(self, kind: Kind) -> int:
        return self._waiting[kind]

    @contextmanager
    def waiting(self, kind: Kind) -> Iterator[None]:
        with self._lock:
            self._waiting[kind] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[kind] -= 1


class Breaker:
    """Shared by the delivery, its workers and the client."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_stopping = False
        self.has_accepted = False  # Iterable has accepted something in this run
        self.has_answered = False  # it has accepted or refused something, or let something be read
        self.in_a_row = 0  # calls that failed since the last success
        self.closings = 0  # how often something has shown that Iterable answers
        self.on_wait: Callable[[str], None] = lambda text: None  # called from any thread with what the client waits for
        self._change = threading.Condition()
        self._stopping = threading.Event()
        self._turns = threading.local()
        self._blocked: Counter[Kind] = Counter()
        self._begun_blocked = 0
        self._dividers = 0  # workers that wait to know whether they may divide a batch,
        self._tries = 0  # and how many of them are to send one record first
        self._lets_begun_end = False
        self.pacing = Pacing()
        self._patience = RunPatience()
        self.last = FailedCall(Failure.ABANDONED, "", Kind.USER)

    # For the delivery -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """From here on no call begins, and every wait is over."""
        with self._change:
            self.is_stopping, self._tries = True, 0
            self._stopping.set()
            self._change.notify_all()

    def count_blocked(self, kind: Kind | None = None) -> int:
        """Workers that wait here, with a batch of this kind."""
        return self._blocked[kind] if kind is not None else self._blocked.total() - self._tries

    def let_one_try(self) -> bool:
        """Have a worker that waits to divide its batch send one record of it, as a probe. Whether there is any."""
        with self._change:
            if self._dividers <= self._tries:
                return False
            self._tries += 1
            self._change.notify_all()
            return True

    def acquit(self, *, has_answered: bool = False) -> None:
        """The failures in a row are their records' own: let calls go out again. has_answered: Iterable has shown it."""
        with self._change:
            self.has_answered |= has_answered
            self._patience.succeed(is_probe=True)
            self._close()

    def verdict(self) -> Ending:
        """How the run ends that the last failure has stopped."""
        return stopped_by(self.last.failure, self.last.message, self.in_a_row)

    def verdict_on_late(self) -> Ending:
        """The same, where all that failed had failed in earlier runs, too, and nothing else was there to be tried."""
        reason = "These records failed in earlier runs, too, and this run has nothing else to try"
        return Ending(ExitCode.TEMPORARY, f"{self.last.message.rstrip('.')}. {reason}. {GO_ON}")

    def must_end_run(self) -> bool:
        """Whether the last failure leaves no doubt, such as a wrong key."""
        return self.is_open and POLICIES[self.last.failure].ends_run_at_once

    def let_begun_calls_end(self) -> bool:
        """Let calls whose first attempts have failed have the rest of them. Whether there are any that wait."""
        with self._change:
            self._lets_begun_end = self.is_open
            self._change.notify_all()
            return self._begun_blocked > 0

    def close(self) -> None:
        """Let calls go out again."""
        with self._change:
            self._close()

    # For the workers ------------------------------------------------------------------------------------------

    def turn(self, kind: Kind, *, is_probe: bool = False) -> Turn:
        """A worker begins with a batch, in this thread."""
        turn = Turn(self, kind, is_probe)
        self._turns.now = turn
        return turn

    def wait_for_turn(self, turn: Turn) -> bool:
        if self.is_open and not turn.is_probe:
            self._block(turn, lambda: not self.is_open)
        return not self.is_stopping

    def wait_to_divide(self, kind: Kind, *, needs_accepted: bool) -> Division:
        """needs_accepted: that Iterable has answered does not show that a record is to blame."""

        def may_divide() -> bool:
            return not self.is_open and (self.has_accepted if needs_accepted else self.has_answered)

        with self._change:
            self._blocked[kind] += 1
            self._dividers += 1
            self._change.wait_for(lambda: may_divide() or self._tries or self.is_stopping)
            self._dividers -= 1
            self._blocked[kind] -= 1
            if self._tries and not self.is_stopping:
                self._tries -= 1
                return Division.ONE_FIRST
            return Division.YES if may_divide() and not self.is_stopping else Division.NO

    def note_success(self, *, is_probe: bool) -> None:
        """Iterable has accepted something."""
        if not self._patience.is_calm or self.is_open or not self.has_accepted:
            with self._change:
                self.has_accepted = self.has_answered = True
                self._patience.succeed(is_probe=is_probe)
                self._close()

    def note_refusal(self) -> None:
        """Iterable has read a call, and accepted nothing of it."""
        if not self._patience.is_calm or self.is_open or not self.has_answered:
            self.has_answered = True
            self.close()

    def count(self, failed: FailedCall, weight: float, *, counted_at: int | None) -> int | None:
        """A call has failed; it counts once, also where all of its attempts fail, unless it was closed in between.

        counted_at: what this has returned for the same call before. weight: of 1, for a part of a call.
        """
        with self._change:
            if self.must_end_run():
                return counted_at
            self.last = failed
            policy = POLICIES[failed.failure]
            if counted_at != self.closings:
                self.in_a_row += 1
                self._patience.fail(weight / policy.ends_run_after)
            if self._patience.is_over or policy.ends_run_at_once:
                self.is_open = True
                self._change.notify_all()
            return self.closings

    def _close(self) -> None:
        if not self.must_end_run():
            self._patience.begin_anew()
            self.in_a_row, self.is_open, self._lets_begun_end = 0, False, False
            self.closings += 1
        self._change.notify_all()

    def _block(self, turn: Turn, until: Callable[[], bool], *, has_begun: bool = False) -> None:
        with self._change:
            self._blocked[turn.kind] += 1
            self._begun_blocked += has_begun
            self._change.wait_for(lambda: until() or self.is_stopping)
            self._begun_blocked -= has_begun
            self._blocked[turn.kind] -= 1

    # For the client -------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        """The client's `sleep`. While it is open, it ends a call of which nothing has been sent yet, and holds back
        others."""
        turn = self._turn()
        if turn is None or turn.is_probe:
            has_stopped = self._stopping.wait(seconds)
        elif turn.is_failing:
            has_stopped = self._wait_for_retry(turn, seconds)
        else:
            with self.pacing.waiting(turn.kind):
                has_stopped = self._stopping.wait(seconds) or self.is_open
        if has_stopped:
            raise Abandoned

    def _wait_for_retry(self, turn: Turn, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self.is_stopping:
            with self._change:
                left = until - time.monotonic()
                self._change.wait_for(lambda: self.is_stopping or self._holds_begun_calls(), max(left, 0.0))
                is_held = self._holds_begun_calls()
            if is_held:
                self._block(turn, lambda: not self._holds_begun_calls(), has_begun=True)
            elif time.monotonic() >= until:
                break
        return self.is_stopping

    def _holds_begun_calls(self) -> bool:
        return self.is_open and not self._lets_begun_end

    def before_retry(self, text: str) -> None:
        """The client's `on_wait`: an attempt has failed, and another one is to follow."""
        self.on_wait(text)
        turn = self._turn()
        if turn is not None:
            turn.attempt_failed(text)

    def _turn(self) -> Turn | None:
        return getattr(self._turns, "now", None)
