"""Keeps each endpoint within Iterable's rate limit. In: requests a second. Out: the wait before each request."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Requests a second that Iterable allows each project [swagger], by call name. None is stated for users/updateEmail and
# for journeys; the first moves whole histories, so it goes slowly.
LIMITS: dict[str, float] = {
    "users/update": 500,
    "users/bulkUpdate": 5,
    "events/track": 2000,
    "events/trackBulk": 10,
    "users/updateEmail": 10,
    "users/getByEmail": 100,
    "users/byUserId": 100,
    "users/getFields": 3,
    "users/forgotten": 3,
    "users/forgottenUserIds": 3,
    "events/byEmail": 100,
    "events/byUserId": 100,
    "journeys": 100,
}
USABLE = 0.97  # of a limit: what leaves within a second may arrive within 30 ms less, on a busy machine or line


def rates(percent: float) -> dict[str, float]:
    """A share of Iterable's limits -> requests a second, by call name, as `IterableClient(rates=...)` wants them.

    Above 100 is for projects whose limits Iterable has raised.
    """
    share = percent / 100 if percent > 100 else min(percent / 100, USABLE)
    return {name: limit * share for name, limit in LIMITS.items()}


@dataclass
class RequestCounts:
    """HTTP requests of one endpoint: all attempts, those that repeated one, those answered with 429."""

    sent: int = 0
    retried: int = 0
    rate_limited: int = 0


class RequestCountsByName(dict[str, RequestCounts]):
    """Those of each endpoint, by call name. Any thread may add."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, name: str, *, is_repeat: bool, is_limited: bool) -> None:
        """Count one attempt more."""
        with self._lock:
            counts = self.setdefault(name, RequestCounts())
            counts.sent += 1
            counts.retried += is_repeat
            counts.rate_limited += is_limited


class Abandoned(Exception):
    """For the `sleep` that a client is given: raised there, it ends the call that waits, which returns a failure."""


class Pacer:
    """Spreads the requests of one endpoint so that it stays within `rate` a second, in any window of a second.

    Each request books a slot; slots lie 1/rate apart. A late request may catch up by CATCH_UP_S at the most, and never
    beyond ceil(rate) requests in ceil(rate)/rate seconds. The same limit holds for the moments at which requests really
    leave: where threads wake up late and all at once, as after the machine was suspended, they leave one by one, hardly
    faster than the rate. Shared by all threads.
    """

    CATCH_UP_S = 0.05
    BUNCH_S = 0.01  # the requests of this many seconds may leave at once
    RUSH = 1.25  # drain rate of the rest, as a multiple of the limit
    SLOWEST = 8.0  # slow_down() stretches the distance of two slots by this factor at the most
    RECOVERY_S = 10.0  # recover() takes this long from half the pace to the full one, whatever the rate

    def __init__(
        self,
        rate: float,
        *,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
        before_leaving: Callable[[], None] | None = None,
    ) -> None:
        """before_leaving: called when a request may leave at once; what it raises keeps it here."""
        self._interval_s = 1.0 / rate
        self._stretch = 1.0
        self._window_s = math.ceil(rate) / rate
        self._booked: deque[float] = deque(maxlen=math.ceil(rate))
        self._left: deque[float] = deque(maxlen=math.ceil(rate))
        self._next_slot = -math.inf
        self._next_exit = -math.inf
        self._paused_until = -math.inf
        self._sleep = sleep
        self._clock = clock
        self._before_leaving = before_leaving
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until this request may leave, which it should do at once."""
        wait_s, exit_at = self.book(), None
        while True:
            if wait_s > 0:
                self._sleep(wait_s)
            exit_at = self.leave(exit_at)
            if exit_at is None:
                break
            wait_s = exit_at - self._clock()
        if self._before_leaving is not None:
            self._before_leaving()

    def book(self) -> float:
        """Take the next slot. Returns the seconds until then."""
        with self._lock:
            now = self._clock()
            slot = max(self._next_slot, now - self.CATCH_UP_S, self._window_after(self._booked))
            self._next_slot = slot + self._interval_s * self._stretch
            self._booked.append(max(slot, now))
            return slot - now

    def leave(self, exit_at: float | None) -> float | None:
        """For a request whose slot has come, or else the moment that this has returned before.

        Returns the moment to come again, or None: it has left.
        """
        with self._lock:
            now = self._clock()
            if exit_at is None or now > exit_at + self.BUNCH_S:  # late, or late once more
                exit_at = max(self._next_exit, now - self.BUNCH_S)
                self._next_exit = exit_at + self._interval_s / self.RUSH
            else:
                now = max(now, exit_at)
            exit_at = max(exit_at, self._window_after(self._left))
            if exit_at > now:
                return exit_at
            self._left.append(now)
            return None

    def _window_after(self, times: deque[float]) -> float:
        """When the window has room for one more."""
        return times[0] + self._window_s if len(times) == times.maxlen else -math.inf

    def slow_down(self, pause_s: float) -> None:
        """After a 429: no request for `pause_s`, then at half the pace.

        A 429 during the pause belongs to the same burst, as its request had left before, and halves nothing again.
        """
        with self._lock:
            now = self._clock()
            if now >= self._paused_until:
                self._stretch = min(self._stretch * 2, self.SLOWEST)
            self._paused_until = max(self._paused_until, now + pause_s)
            self._next_slot = max(self._next_slot, self._paused_until)

    def recover(self) -> None:
        """After an accepted request: a little nearer to full pace."""
        if self._stretch > 1.0:
            with self._lock:
                self._stretch = max(1.0, self._stretch * (1.0 - self._interval_s / self.RECOVERY_S))
