"""The pacer: when requests may leave, at a clock that only the test moves; and Iterable's limits."""

from __future__ import annotations

import heapq
import math
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable.pacing import LIMITS, Pacer, rates
from tests.wire import Clock, eager_threads, never_sleep


class Slots:
    """The slots of callers who come when a test says so."""

    def __init__(self, rate: float, now: float = 1000.0) -> None:
        self.clock = Clock(now)
        self.times: list[float] = []
        self.pacer = Pacer(rate, sleep=never_sleep, clock=self.clock)

    def take(self, count: int = 1) -> list[float]:
        """The next slots, of callers who all ask now; as seconds from now."""
        waits = [max(self.pacer.book(), 0.0) for _ in range(count)]
        self.times += [self.clock.now + wait_s for wait_s in waits]
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
    pacer = Pacer(100, sleep=never_sleep, clock=lambda: 0.0)
    threads = [
        threading.Thread(target=lambda: waits.extend(max(pacer.book(), 0.0) for _ in range(100))) for _ in range(32)
    ]
    with eager_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(waits) == pytest.approx(Slots(100, now=0.0).take(3200))


# Threads that wake up late --------------------------------------------------------------------------------------------


def departures(rate: float, workers: int, count: int, lateness: Callable[[float], float]) -> list[float]:
    """When requests leave that workers send one after the other, each answered after 50 ms.

    lateness: by how many seconds one who wanted to wake up at a time does so too late.
    """
    clock = Clock(0.0)
    pacer = Pacer(rate, sleep=never_sleep, clock=clock)
    times: list[float] = []
    wakings: list[tuple[float, int]] = []

    def run(worker: int) -> Iterator[None]:
        while True:
            at: float | None = clock.now + max(pacer.book(), 0.0)
            exit_at = None
            while at is not None:
                heapq.heappush(wakings, (at + (lateness(at) if at > clock.now else 0.0), worker))
                yield
                at = exit_at = pacer.leave(exit_at)
            times.append(clock.now)
            heapq.heappush(wakings, (clock.now + 0.05, worker))
            yield

    runs = [run(worker) for worker in range(workers)]
    for each in runs:
        next(each)
    while len(times) < count:
        clock.now, worker = heapq.heappop(wakings)
        next(runs[worker])
    return times


@pytest.mark.parametrize("rate", [4.85, 9.7, 485, 1940])
def test_late_threads_do_not_make_a_second_too_full_and_lose_little(rate: float) -> None:
    chance = random.Random(20260113)
    latenesses: dict[str, Callable[[float], float]] = {
        "each a little": lambda _: chance.expovariate(1 / 0.004),
        "some very": lambda _: 0.3 if chance.random() < 0.02 else 0.0,
        "all at times": lambda at: max(0.0, 0.1 - at % 0.7),  # the machine stands still for 100 ms
    }
    for name, lateness in latenesses.items():
        times = departures(rate, workers=256, count=math.ceil(rate) * 12, lateness=lateness)
        assert most_in_a_second(times) <= math.ceil(rate), name
        assert len(times) / (times[-1] - times[0]) > 0.95 * rate, name


def test_wait_sleeps_again_where_too_many_have_left_late() -> None:
    clock = Clock()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.now += seconds + (0.5 if len(waits) == 1 else 0.0)

    pacer = Pacer(2, sleep=sleep, clock=clock)
    left = []
    for _ in range(4):
        pacer.wait()
        left.append(clock.now)
    assert left == pytest.approx([1000.0, 1000.95, 1001.34, 1001.95])
    assert waits == pytest.approx([0.45, 0.05, 0.34, 0.16, 0.45])


# Iterable's limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (90, [450, 4.5, 1800, 9, 9, 90, 90, 2.7, 2.7, 2.7, 90, 90, 90]),
        (98, [485, 4.85, 1940, 9.7, 9.7, 97, 97, 2.91, 2.91, 2.91, 97, 97, 97]),
        (100, [485, 4.85, 1940, 9.7, 9.7, 97, 97, 2.91, 2.91, 2.91, 97, 97, 97]),
        (101, [505, 5.05, 2020, 10.1, 10.1, 101, 101, 3.03, 3.03, 3.03, 101, 101, 101]),
    ],
)
def test_rates_are_the_percentage_of_the_limits_and_never_the_limit_itself(
    percent: float, expected: list[float]
) -> None:
    assert list(rates(percent).values()) == pytest.approx(expected)
    assert list(rates(percent)) == list(LIMITS)
