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
from collections.abc import Callable
from dataclasses import dataclass

from iterable_client import Abandoned, Failure
from pipeline.delivery.patience import RunPatience
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON, POLICIES, stopped_by
from pipeline.model.records import Kind

PART_COUNTS = 0.25  # the parts of one batch say little that the batch has not said; but there may be many of them


@dataclass(frozen=True)
class _Failed:
    """A call that failed, and what it was about."""

    failure: Failure
    message: str
    kind: Kind


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

    def may_divide(self, *, waits: bool) -> bool:
        """Whether Iterable has accepted anything in this run, so that a record may be to blame for a batch's failure.

        waits: until it has.
        """
        return self._breaker.wait_for_success(self) if waits else self._breaker.has_accepted

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
        failed = _Failed(failure, message, self.kind)
        self._counted_at = self._breaker.count(failed, weight, counted_at=self._counted_at)


class Breaker:
    """Shared by the delivery, its workers and the client."""

    def __init__(self) -> None:
        self.is_open = False
        self.is_stopping = False
        self.has_accepted = False  # Iterable has accepted something in this run
        self.in_a_row = 0  # calls that failed since the last success
        self.closings = 0  # how often something has shown that Iterable answers
        self.on_wait: Callable[[str], None] = lambda text: None  # called from any thread with what the client waits for
        self._change = threading.Condition()
        self._stopping = threading.Event()
        self._turns = threading.local()
        self._blocked: Counter[Kind] = Counter()
        self._begun_blocked = 0
        self._lets_begun_end = False
        self._slots = threading.Lock()
        self._pacing: Counter[Kind] = Counter()
        self._patience = RunPatience()
        self._last = _Failed(Failure.ABANDONED, "", Kind.USER)

    # For the delivery -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """From here on no call begins, and every wait is over."""
        with self._change:
            self.is_stopping = True
            self._stopping.set()
            self._change.notify_all()

    def count_blocked(self, kind: Kind | None = None) -> int:
        """Workers that wait here, with a batch of this kind."""
        return self._blocked[kind] if kind is not None else self._blocked.total()

    def count_pacing(self, kind: Kind) -> int:
        """Workers that wait until Iterable's rate limit lets them send; more of them would send nothing more."""
        return self._pacing[kind]

    @property
    def failing_kind(self) -> Kind:
        """What the last failure was about."""
        return self._last.kind

    def verdict(self) -> Ending:
        """How the run ends that the last failure has stopped."""
        return stopped_by(self._last.failure, self._last.message, self.in_a_row)

    def verdict_on_late(self) -> Ending:
        """The same, where all that failed had failed in earlier runs, too, and nothing else was there to be tried."""
        reason = "These records failed in earlier runs, too, and this run has nothing else to try"
        return Ending(ExitCode.TEMPORARY, f"{self._last.message.rstrip('.')}. {reason}. {GO_ON}")

    def must_end_run(self) -> bool:
        """Whether the last failure leaves no doubt, such as a wrong key."""
        return self.is_open and POLICIES[self._last.failure].ends_run_at_once

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

    def wait_for_success(self, turn: Turn) -> bool:
        self._block(turn, lambda: self.has_accepted and not self.is_open)
        return not self.is_stopping

    def note_success(self, *, is_probe: bool) -> None:
        """Iterable has accepted something."""
        if not self._patience.is_calm or self.is_open or not self.has_accepted:
            with self._change:
                self.has_accepted = True
                self._patience.succeed(is_probe=is_probe)
                self._close()

    def note_refusal(self) -> None:
        """Iterable has read a call, and accepted nothing of it."""
        if not self._patience.is_calm or self.is_open:
            self.close()

    def count(self, failed: _Failed, weight: float, *, counted_at: int | None) -> int | None:
        """A call has failed; it counts once, also where all of its attempts fail, unless it was closed in between.

        counted_at: what this has returned for the same call before. weight: of 1, for a part of a call.
        """
        with self._change:
            if self.must_end_run():
                return counted_at
            self._last = failed
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
            has_stopped = self._wait_for_slot(turn.kind, seconds) or self.is_open
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

    def _wait_for_slot(self, kind: Kind, seconds: float) -> bool:
        with self._slots:
            self._pacing[kind] += 1
        try:
            return self._stopping.wait(seconds)
        finally:
            with self._slots:
                self._pacing[kind] -= 1

    def before_retry(self, text: str) -> None:
        """The client's `on_wait`: an attempt has failed, and another one is to follow."""
        self.on_wait(text)
        turn = self._turn()
        if turn is not None:
            turn.attempt_failed(text)

    def _turn(self) -> Turn | None:
        return getattr(self._turns, "now", None)
