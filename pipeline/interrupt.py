"""SIGINT and SIGTERM: the first one asks the run to end, the second one ends the process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal that came while nothing was under way; `args[0]` is its name."""


class Interrupt:
    """Whether a signal came. `raises`: raise `Interrupted` where it comes, instead of only noting it."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.raises = True

    def handle(self, number: int, _frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self.raises:
            raise Interrupted(self.name)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Handle both signals until the block ends."""
    interrupt = Interrupt()
    before = {each: signal.signal(each, interrupt.handle) for each in SIGNALS}
    try:
        yield interrupt
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
