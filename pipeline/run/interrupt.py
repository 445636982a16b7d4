"""What asks a run to end before it is done: Ctrl-C, SIGTERM, SIGHUP, and the time limit MAX_RUN_MINUTES.

The first signal asks, the second one says not to wait for what is under way, and a third one kills the process.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON

CODES = {"SIGINT": ExitCode.SIGINT, "SIGTERM": ExitCode.SIGTERM, "SIGHUP": ExitCode.SIGTERM}


class Interrupted(BaseException):
    """The run was asked to end while nothing was under way; `ending` says how it ends."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class Interrupt:
    """Whether the run was asked to end. At first, this also raises `Interrupted` in the main thread, once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_urgent = False  # a second signal came: don't wait for what is under way
        self._name: str | None = None
        self._minutes = self._deadline = math.inf
        self._raises = True
        self._notice = ""
        self._clock = clock

    def ending(self) -> Ending | None:
        """How the run is to end, or None if it may go on. For any thread, and cheap."""
        if self._name is not None:
            return Ending(CODES[self._name], f"The run was interrupted by {self._name}.")
        if self._clock() >= self._deadline:
            limit = f"MAX_RUN_MINUTES={self._minutes:g}"
            return Ending(ExitCode.TEMPORARY, f"The run reached its time limit ({limit}). {GO_ON}")
        return None

    def limit(self, minutes: float | None) -> None:
        """The run is to end so many minutes from now; None: whenever it is done."""
        if minutes is not None:
            self._minutes, self._deadline = minutes, self._clock() + minutes * 60
            if sys.platform != "win32":  # where only those who ask `ending` learn of it
                signal.setitimer(signal.ITIMER_REAL, minutes * 60)

    def stop_raising(self, notice: str = "") -> None:
        """From here on, only `ending` tells. notice: one line that the first Ctrl-C writes to stderr at once."""
        self._raises, self._notice = False, notice

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGALRM":
            self._deadline = -math.inf
        elif self._name is None:
            self._name = name
            if name == "SIGINT" and self._notice:
                _write_at_once(self._notice)
        else:
            self.is_urgent = True
            for each in _existing(CODES):
                if signal.getsignal(each) == self.on_signal:
                    signal.signal(each, signal.SIG_DFL)
        self._raise()

    def _raise(self) -> None:
        ending = self.ending()
        if self._raises and ending is not None:
            self._raises = False
            raise Interrupted(ending)


def _write_at_once(text: str) -> None:
    """Write a line to stderr, without the buffers and locks that a signal may have interrupted. It covers a bar."""
    with suppress(OSError, ValueError, AttributeError):  # closed, replaced, or None as it was closed from the start
        descriptor = sys.stderr.fileno()
        if os.isatty(descriptor):
            text = "\r" + text.ljust(os.get_terminal_size(descriptor).columns - 1)
        os.write(descriptor, f"{text}\n".encode())


def _existing(names: Iterable[str]) -> list[signal.Signals]:
    """Windows has no SIGHUP and no SIGALRM."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Handle the signals until the block ends. A SIGHUP that is ignored from outside, as under nohup, stays ignored."""
    interrupt = Interrupt()
    ignored = [each for each in _existing(["SIGHUP"]) if signal.getsignal(each) is signal.SIG_IGN]
    caught = [each for each in _existing([*CODES, "SIGALRM"]) if each not in ignored]
    before = {each: signal.signal(each, interrupt.on_signal) for each in caught}
    try:
        yield interrupt
    finally:
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)
