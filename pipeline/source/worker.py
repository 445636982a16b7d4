"""A thread in which a driver's calls block, so that the run does not: a signal and the time limit end it at once.

C code, and drivers that retry by themselves, hold a signal back until they are done, which may take minutes. Here the
main thread only waits; a call that does not end when it is cancelled is left behind in its daemon thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

STOP_CHECK_S = 0.1
CANCEL_S = 1.0  # for what was cancelled to end by itself
CLOSE_S = 0.5

Result = TypeVar("Result")


class QueryStopped(Exception):
    """The run was asked to end while the database worked."""


class NoAnswer(Exception):
    """The database did not answer in time."""


class Worker:
    """Runs one call after another in its thread.

    cancel: ends the one that runs, and may be called often; None: nothing can, so nobody waits for it.
    """

    def __init__(self, name: str, should_stop: Callable[[], bool]) -> None:
        self.cancel: Callable[[], object] | None = None
        self.is_stuck = False
        self._should_stop = should_stop
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._is_busy = False
        Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                outcome: tuple[Any, BaseException | None] = call(), None
            except BaseException as error:  # passed on to the thread that waits
                outcome = None, error
            del call  # it holds the connection
            self._outcomes.put(outcome)
            del outcome

    def run(self, call: Callable[[], Result], limit_s: float = math.inf) -> Result:
        """What the call returns or raises. Raises QueryStopped, or NoAnswer after limit_s."""
        deadline = time.monotonic() + limit_s
        self._is_busy = True
        self._calls.put(call)
        try:
            while not self._wait(min(STOP_CHECK_S, limit_s)):
                if self._should_stop():
                    raise QueryStopped("interrupted")
                if time.monotonic() > deadline:
                    raise NoAnswer(f"no answer within {limit_s:g} s")
        except BaseException:  # also what a signal's handler raises
            self._end_call()
            raise
        return self._take()  # type: ignore[no-any-return]

    def end(self, call: Callable[[], object]) -> None:
        """Run a call beside the worker, as long as closing may take at most."""
        helper = Thread(target=self._quietly, args=[call], daemon=True)
        helper.start()
        helper.join(CLOSE_S)

    def close(self, call: Callable[[], object]) -> None:
        """Run a last call; where an earlier one hangs, after it. Its errors no longer matter."""
        self._calls.put(call)
        self._calls.put(None)
        if not self.is_stuck:
            self._is_busy = True
            self.is_stuck = not self._wait(CLOSE_S)

    def _wait(self, limit_s: float) -> bool:
        """Whether the call is over; its outcome is kept for `_take`."""
        try:
            self._outcome = self._outcomes.get(timeout=limit_s)
        except Empty:
            return False
        self._is_busy = False
        return True

    def _take(self) -> Any:
        (value, error), self._outcome = self._outcome, (None, None)
        if error is not None:
            raise error
        return value

    def _end_call(self) -> None:
        """Cancel it, more than once, as the first time may come before it has begun in the database."""
        deadline = time.monotonic() + CANCEL_S
        cancelling: Thread | None = None
        while self._is_busy and self.cancel is not None and time.monotonic() < deadline:
            if cancelling is None or not cancelling.is_alive():
                cancelling = Thread(target=self._quietly, args=[self.cancel], daemon=True)  # it may block, too
                cancelling.start()
            self._wait(STOP_CHECK_S)
        self.is_stuck = self._is_busy
        self._outcome = None, None

    @staticmethod
    def _quietly(call: Callable[[], object]) -> None:
        with suppress(Exception):
            call()
