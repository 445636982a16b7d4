"""The pacer: when requests may leave, at a clock that only the test moves; and Iterable's limits."""

from __future__ import annotations

import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable.pacing import Pacer
from tests.wire import (
    Clock,
    eager_threads,
)


class Slots:
    """When the requests of a pacer's callers leave. Who waits keeps nobody else from asking, as threads would not."""

    def __init__(self, rate: float, now: float = 1000.0) -> None:
        self.clock = Clock(now)
        self.times: list[float] = []
        self._wait_s = 0.0
        self.pacer = Pacer(rate, sleep=self._sleep, clock=self.clock)

    def _sleep(self, seconds: float) -> None:
        self._wait_s = seconds

    def take(self, count: int = 1) -> list[float]:
        """The next slots, of callers who all ask now; as seconds from now."""
        waits = []
        for _ in range(count):
            self._wait_s = 0.0
            self.pacer.wait()
            waits.append(self._wait_s)
            self.times.append(self.clock.now + self._wait_s)
        return waits


def most_in_a_second(times: list[float]) -> int:
    """The most that lie in any one second, its beginning included and its end not."""
    times = sorted(times)
    most = start = 0
    for end, each in enumerate(times):
        while each - times[start] >= 1 - 1e-6:
            start += 1
        most = max(most, end - start + 1)
    return most


RATES = [0.5, 1, 4.5, 9, 450, 1800]


@pytest.mark.parametrize("rate", RATES)
def test_crowd_from_the_first_moment_on_keeps_to_the_rate(rate: float) -> None:
    slots = Slots(rate)
    slots.take(math.ceil(rate) * 4)
    assert most_in_a_second(slots.times) == math.ceil(rate)
    assert slots.times[-1] - slots.times[0] == pytest.approx(4 * math.ceil(rate) / rate, abs=1 / rate + 0.05)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 40)), min_size=1, max_size=12))
def test_no_second_has_more_than_the_rate_whenever_callers_come(rate: float, arrivals: list[tuple[float, int]]) -> None:
    slots = Slots(rate)
    for gap_s, count in arrivals:
        slots.clock.now += gap_s * (10 / rate if rate < 10 else 1)
        slots.take(min(count * math.ceil(rate / 40), 3000))
    assert most_in_a_second(slots.times) <= math.ceil(rate)


@pytest.mark.parametrize("rate", [4.5, 9, 450, 1800])
def test_late_callers_catch_up_by_50_ms_at_most(rate: float) -> None:
    slots = Slots(rate)
    slots.take()
    slots.clock.now += 30
    waits = slots.take(math.ceil(rate))
    assert waits == pytest.approx([max(0, number / rate - 0.05) for number in range(len(waits))], abs=1e-6)


def test_429_stops_all_for_the_pause_and_halves_the_pace() -> None:
    slots = Slots(10)
    slots.take()
    slots.pacer.slow_down(3)
    assert slots.take(3) == pytest.approx([3.0, 3.2, 3.4])


def test_burst_of_429_halves_the_pace_once_and_later_ones_again_down_to_an_eighth() -> None:
    slots = Slots(10)
    spacings = []
    for _ in range(5):
        for _ in range(50):
            slots.pacer.slow_down(1)
        slots.clock.now += 1
        slots.take()
        spacings.append(slots.take()[0])
        slots.clock.now += 60
    assert spacings == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_longer_pause_prevails() -> None:
    slots = Slots(10)
    slots.pacer.slow_down(5)
    slots.pacer.slow_down(2)
    slots.clock.now += 3
    slots.pacer.slow_down(0)
    assert slots.take(2) == pytest.approx([2.0, 2.2])


@pytest.mark.parametrize("rate", [4.5, 450, 1800])
def test_accepted_requests_bring_the_pace_back_in_ten_seconds(rate: float) -> None:
    slots = Slots(rate)
    slots.take()
    slots.pacer.slow_down(1)
    slots.clock.now += slots.take()[0]
    begun = slots.clock.now
    spacings: list[float] = []
    while not spacings or spacings[-1] > 1.0001 / rate:
        spacings += slots.take()
        slots.clock.now += spacings[-1]
        slots.pacer.recover()
    assert spacings[0] == pytest.approx(2 / rate)
    assert slots.clock.now - begun == pytest.approx(10, rel=0.1)


def test_32_threads_get_each_slot_once() -> None:
    waits: list[float] = []
    pacer = Pacer(100, sleep=waits.append, clock=lambda: 0.0)

    def take_100() -> None:
        for _ in range(100):
            pacer.wait()

    threads = [threading.Thread(target=take_100) for _ in range(32)]
    with eager_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(waits) == pytest.approx([wait for wait in Slots(100, now=0.0).take(3200) if wait > 0])
