"""Keeps each endpoint within Iterable's rate limit. In: requests a second. Out: the wait before each request."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """per_second: requests that Iterable allows each project [swagger]. usable: the share of it that can be used, as
    requests arrive less evenly than they leave, large ones even less, and some would come too early."""

    per_second: float
    usable: float


LIMITS = {
    "users/update": Limit(500, 0.99),
    "users/bulkUpdate": Limit(5, 0.97),
    "events/track": Limit(2000, 0.99),
    "events/trackBulk": Limit(10, 0.97),
}


def rates(percent: float) -> dict[str, float]:
    """A share of Iterable's limits -> requests a second, by call name, as `IterableClient(rates=...)` wants them.

    Above 100 is for projects whose limits Iterable has raised.
    """
    share = percent / 100
    return {
        name: limit.per_second * (min(share, limit.usable) if share <= 1 else share) for name, limit in LIMITS.items()
    }


class Abandoned(Exception):
    """For the `sleep` that a client is given: raised there, it ends the call that waits, which returns a failure."""


class Pacer:
    """Spreads the requests of one endpoint so that it stays within `rate` a second, in any window of a second.

    Slots lie 1/rate apart. Who is late may catch up by CATCH_UP_S at the most, and never beyond
    ceil(rate) requests in ceil(rate)/rate seconds. Shared by all threads.
    """

    CATCH_UP_S = 0.05
    SLOWEST = 8.0  # slow_down() stretches the distance of two slots by this factor at the most
    RECOVERY_S = 10.0  # so long recover() takes from half the pace to the full one, whatever the rate

    def __init__(self, rate: float, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._interval_s = 1.0 / rate
        self._stretch = 1.0
        self._window_s = math.ceil(rate) / rate
        self._taken: deque[float] = deque(maxlen=math.ceil(rate))
        self._next = -math.inf
        self._paused_until = -math.inf
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until this request's slot."""
        with self._lock:
            now = self._clock()
            slot = max(self._next, now - self.CATCH_UP_S)
            if len(self._taken) == self._taken.maxlen:
                slot = max(slot, self._taken[0] + self._window_s)
            self._next = slot + self._interval_s * self._stretch
            self._taken.append(max(slot, now))
        if slot > now:
            self._sleep(slot - now)

    def slow_down(self, pause_s: float) -> None:
        """After a 429: no request for `pause_s`, then at half the pace.

        A 429 during the pause belongs to the same burst, as its request had left before, and halves nothing again.
        """
        with self._lock:
            now = self._clock()
            if now >= self._paused_until:
                self._stretch = min(self._stretch * 2, self.SLOWEST)
            self._paused_until = max(self._paused_until, now + pause_s)
            self._next = max(self._next, self._paused_until)

    def recover(self) -> None:
        """After an accepted request: a little nearer to full pace."""
        if self._stretch > 1.0:
            with self._lock:
                self._stretch = max(1.0, self._stretch * (1.0 - self._interval_s / self.RECOVERY_S))
