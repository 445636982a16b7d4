"""How far a step is that lasts: a live line on a terminal; elsewhere, and in the log, a line every 30 seconds.

`Display` is what shows it; `ReadingProgress` and `DeliveryProgress` say what there is to show.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TextIO, TypeVar

from pipeline.model.records import Kind
from pipeline.model.text import counted, duration
from pipeline.report.log import Console

SECONDS_PER_LINE = 30.0
SECONDS_PER_DRAWING = 0.2
LONG_S = 3.0  # without an answer: shown instead of the rate
ROOM_FOR_CTRL_C = 4  # columns: the terminal shows ^C where the line ends

_Row = TypeVar("_Row")

logger = logging.getLogger("main")

_STEPS = {Kind.USER: "Step 6: Updating", Kind.EVENT: "Step 7: Tracking"}


@dataclass
class _Part:
    """The records of one kind."""

    kind: Kind
    total: int
    done: int = 0
    done_at: float = 0.0  # when the last one of these was done

    def __str__(self) -> str:
        return f"{self.done:,}/{self.total:,} {self.kind.value}s"


class DeliveryProgress:
    """Learns how far the delivery is. `waiting` is for any thread, the rest for the one that runs the delivery."""

    def __init__(
        self,
        console: Console,
        delivered: Callable[[], Mapping[Kind, int]],
        *,
        pause_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """delivered: how many records of each kind Iterable has accepted in this run; asked at the end.
        pause_s: how long the rate limit keeps two requests apart."""
        self._console = console
        self._delivered = delivered
        self._pause_s = pause_s
        self._clock = clock
        self._parts: dict[Kind, _Part] = {}
        self._started_at = self._advanced_at = 0.0
        self._waiting = ""  # for what, until the next record is done
        self._display: Display | None = None

    def start(self, totals: Mapping[Kind, int]) -> None:
        self._started_at = self._advanced_at = self._clock()
        self._parts = {kind: _Part(kind, total, 0, self._started_at) for kind, total in totals.items()}
        for part in self._begun():
            self._console.say(f"{_STEPS[part.kind]} {counted(part.total, part.kind.value)}")
        if self._begun():
            self._display = Display(self._console, self.state)

    def advance(self, kind: Kind, count: int) -> None:
        """So many more records are done, delivered or not."""
        now = self._clock()
        part = self._parts[kind]
        part.done, part.done_at = part.done + count, now
        part.total = max(part.total, part.done)  # a user whom Iterable has lost is sent although unchanged
        self._waiting, self._advanced_at = "", now

    def waiting(self, text: str) -> None:
        """Why nothing may happen for a while: `503 from users/update, attempt 2 of 3`. Holds until something does."""
        self._waiting = self._console.redactor.line(text)

    def finish(self) -> None:
        """Say what became of each kind. Only the first call does."""
        if self._display is not None:
            self._display.close()
            self._display = None
        if parts := self._begun():
            delivered = self._delivered()
            for part in parts:
                took_s = part.done_at - self._started_at
                self._console.say(f"        {_result(part, delivered.get(part.kind, 0), took_s)}")
        self._parts = {}

    def say(self, text: str) -> None:
        self._console.say(text)

    def _begun(self) -> list[_Part]:
        return [part for part in self._parts.values() if part.total]

    def state(self) -> State:
        now = self._clock()
        parts = self._begun()
        done, total = sum(part.done for part in parts), sum(part.total for part in parts)
        idle_s = now - self._advanced_at
        if waiting := self._waiting:
            return State(done, total, f"waiting: {waiting} ({idle_s:.0f} s)")
        words = [str(part) for part in parts if part.done < part.total or done == total]
        if LONG_S <= idle_s < 2 * self._pause_s:
            words.append(f"waiting for the rate limit ({idle_s:.0f} s)")
        elif idle_s >= LONG_S:
            words.append(f"no answer for {idle_s:.0f} s")
        elif done:
            rate = done / max(now - self._started_at, SECONDS_PER_DRAWING)
            words += [_rate(rate), f"{duration((total - done) / rate)} left"]
        return State(done, total, ", ".join(words))


class ReadingProgress:
    """How far the reading of the query's rows is, shown while it is entered."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._rows = 0
        self._started_at = self._first_at = clock()

    def __enter__(self) -> ReadingProgress:
        self._display = Display(self._console, self.state)
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()

    def passing(self, blocks: Iterable[Sequence[_Row]]) -> Iterator[Sequence[_Row]]:
        """The blocks of rows, counted."""
        self._first_at = self._clock()
        for rows in blocks:
            self._rows += len(rows)
            yield rows

    def state(self) -> State:
        now = self._clock()
        if not self._rows:
            return State(0, 0, f"Waiting for the database ({now - self._started_at:.0f} s)")
        rate = self._rows / max(now - self._first_at, SECONDS_PER_DRAWING)
        return State(self._rows, 0, f"{self._rows:,} rows read, {_rate(rate)}")


@dataclass(frozen=True)
class State:
    """How many records are done, of how many (0: not known), and the text beside that."""

    done: int
    total: int
    text: str


def _result(part: _Part, delivered: int, took_s: float) -> str:
    """`12 of 12 users delivered in 1.3 s, 9/s`"""
    text = f"{delivered:,} of {counted(part.total, part.kind.value)} delivered"
    if delivered < part.total:
        text += f", {part.total - delivered:,} not delivered" + ("," if part.done else "")
    if part.done:
        text += f" in {took_s:.1f} s"
    return text + (f", {_rate(delivered / took_s)}" if delivered and took_s >= 1 else "")


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s" if a_second >= 10 else f"{a_second:.1f}/s"


class Display:
    """Shows how something stands while it lasts: on a terminal in a live line, else by a line every half minute, which
    the log gets in any case. Nothing on the console of a quiet run."""

    def __init__(self, console: Console, look: Callable[[], State], *, pause_s: float = SECONDS_PER_LINE) -> None:
        self._console = console
        self._look = look
        self._pause_s = pause_s
        self._live = LiveLine(sys.stderr, look) if console.can_draw else None
        if self._live is not None:
            console.hide_live_line = self._live.hidden
        self._lock = threading.Lock()
        self._closing = threading.Event()
        with suppress(RuntimeError):  # no more threads can be started; the run goes on without the lines
            threading.Thread(target=self._run, name="progress lines", daemon=True).start()

    def _run(self) -> None:
        while not self._closing.wait(self._pause_s):
            with self._lock:  # so that nothing is said after what closes this
                if not self._closing.is_set():
                    self._say(self._look().text)

    def _say(self, text: str) -> None:
        if self._live is None:
            self._console.say(f"        {text}")
        else:
            logger.info("%s", text)

    def close(self) -> None:
        with self._lock:
            self._closing.set()
        if self._live is not None:
            self._console.hide_live_line = nullcontext
            self._live.close()


class LiveLine:
    """A bar and a text on the last line of a terminal, drawn by a thread of its own, as all others may be waiting."""

    def __init__(self, stream: TextIO, look: Callable[[], State]) -> None:
        from tqdm import tqdm  # not needed, and so not loaded, without a terminal

        self._format = tqdm.format_meter
        self._stream = stream
        self._look = look
        self._lock = threading.Lock()
        self._closing = threading.Event()
        thread = threading.Thread(target=self._run, name="progress", daemon=True)
        with suppress(RuntimeError):  # no more threads can be started; the run goes on without the line
            thread.start()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone
            while not self._closing.wait(SECONDS_PER_DRAWING):
                self._draw()

    def _draw(self) -> None:
        state = self._look()
        with self._lock:
            if self._closing.is_set():
                return
            columns = self._columns() - ROOM_FOR_CTRL_C
            self._stream.write("\r" + self._line(state, columns).ljust(columns))
            self._stream.flush()

    def _line(self, state: State, columns: int) -> str:
        if not state.total:
            return state.text[:columns]
        is_ascii = "utf" not in self._stream.encoding.lower()
        layout = "{percentage:3.0f}% |{bar}| {desc}"
        return self._format(
            state.done, state.total, 0, ncols=columns, ascii=is_ascii, bar_format=layout, prefix=state.text
        )

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """For what is written to the terminal meanwhile."""
        with self._lock:
            self._clear()
            yield

    def close(self) -> None:
        with self._lock:
            self._closing.set()
            self._clear()

    def _clear(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.write("\r" + " " * (self._columns() - 1) + "\r")
            self._stream.flush()

    def _columns(self) -> int:
        return os.get_terminal_size(self._stream.fileno()).columns
