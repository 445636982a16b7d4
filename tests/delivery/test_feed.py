"""What may be sent next: batches, ranges, and that no event overtakes its user's update, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import attrgetter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.delivery.feed import Packer, Ranges, make_batches
from pipeline.delivery.modes import Mode, bulk_mode, single_mode
from pipeline.model.records import Kind, Record
from pipeline.sandbox import Fault, StandIn
from pipeline.stage.pages import UserRecords, size_of
from tests.job import (
    SIGTERM,
    Job,
    Rows,
    assert_no_event_was_before_its_user,
    each_mode,
    records_in,
    requests_of,
    small_bulk,
    some_events,
)
from tests.opened import open_both

# Batches --------------------------------------------------------------------------------------------------------------

SIZES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=40)


def sized_records(sizes: list[tuple[int, int]]) -> list[Record]:
    """(user, size of the payload) pairs, grouped by user -> records."""
    ordered = sorted(sizes, key=lambda each: each[0])
    return [Record(Kind.EVENT, row, str(who), b"", b"", b"x" * size) for row, (who, size) in enumerate(ordered, 1)]


def by_user(records: Sequence[Record]) -> Iterator[UserRecords]:
    for _, of_user in groupby(records, key=attrgetter("identity")):
        listed = list(of_user)
        yield UserRecords(listed, size_of(listed))


@example(sizes=[(0, 5), (1, 8), (1, 10)], most=8, max_bytes=19, is_bulk=True)
@given(sizes=SIZES, most=st.integers(1, 8), max_bytes=st.integers(13, 40), is_bulk=st.booleans())
def test_batches_keep_all_records_in_order_within_the_limits_and_cut_a_user_only_where_one_fills_a_batch(
    sizes: list[tuple[int, int]], most: int, max_bytes: int, is_bulk: bool
) -> None:
    records = sized_records(sizes)
    batches = list(make_batches(by_user(records), Mode("", 1, most, max_bytes, is_bulk, ("", ""))))
    assert [record for batch in batches for record in batch] == records
    for batch in batches:
        assert 1 <= len(batch) <= most
        assert sum(len(record.payload) + 1 for record in batch) <= max_bytes
        assert is_bulk or len({record.identity for record in batch}) == 1
    for batch, after in pairwise(batches):
        if batch[-1].identity == after[0].identity:
            assert {record.identity for record in batch} == {after[0].identity}
            size = sum(len(record.payload) + 1 for record in (*batch, after[0]))
            assert len(batch) == most or size > max_bytes


def test_record_larger_than_a_batch_travels_alone_and_its_neighbours_together() -> None:
    records = sized_records([(0, 5), (1, 99), (2, 5), (3, 5)])
    batches = make_batches(by_user(records), Mode("", 1, 10, 20, True, ("", "")))
    assert [[record.row for record in batch] for batch in batches] == [[1], [2], [3, 4]]


@given(sizes=SIZES, parts=st.integers(1, 5))
def test_batches_are_the_same_however_the_records_come_in(sizes: list[tuple[int, int]], parts: int) -> None:
    records = sized_records(sizes)
    mode = Mode("", 1, 4, 30, True, ("", ""))
    packer = Packer(mode)
    batches = [
        batch
        for start in range(0, len(records), parts)
        for batch in packer.pack(by_user(records[start : start + parts]))
    ]
    rest = packer.rest()
    assert [*batches, *([rest] if rest else [])] == list(make_batches(by_user(records), mode))


# Ranges ---------------------------------------------------------------------------------------------------------------


@given(st.permutations(range(8)))
def test_ranges_that_touch_become_one(order: list[int]) -> None:
    borders: list[bytes | None] = [b"", b"1", b"2", b"3", b"4", b"5", b"6", b"7", None]
    ranges = Ranges()
    for place in order:
        first, before = borders[place], borders[place + 1]
        assert first is not None
        ranges.add(first, before)
    assert ranges.pop() == (b"", None)
    assert not ranges


def test_ranges_apart_stay_apart_and_an_empty_one_is_none() -> None:
    ranges = Ranges()
    ranges.add(b"1", b"1")
    assert not ranges
    ranges.add(b"5", b"6")
    ranges.add(b"1", b"2")
    assert [ranges.pop(), ranges.pop()] == [(b"5", b"6"), (b"1", b"2")]


# Order ----------------------------------------------------------------------------------------------------------------


def troubled_rows(chance: random.Random) -> Rows:
    """60 users with up to five events each, one with forty more, and events in turn."""
    people = [f"{number}@example.com" for number in range(60)]
    events = [who for who in people for _ in range(chance.randrange(6))] + [people[7]] * 40
    chance.shuffle(events)
    return [(who, None) for who in people] + [(who, f"e{number}") for number, who in enumerate(events)]


def make_trouble(iterable: StandIn, chance: random.Random) -> None:
    """Answers that are late, lost or errors, refusals of single records and of batches."""
    project = iterable.project
    faults = [Fault(latency_s=chance.choice((0.01, 0.02, 0.04)), every=chance.randrange(3, 9)) for _ in range(3)]
    faults += [
        Fault(status=chance.choice((500, 502, 503, 504)), every=chance.randrange(5, 12)),
        Fault(store=True, disconnect=True, every=chance.randrange(6, 12)),
        Fault(status=429, every=chance.randrange(20, 40)),
        Fault(status=400, body=b'{"msg":"no","code":"BadParams"}', match=b'"11@example.com"'),
        Fault(status=503, match=b'"12@example.com"'),
        Fault(status=409, body=b'{"msg":"no","code":"Conflict"}', every=chance.randrange(9, 15)),
    ]
    chance.shuffle(faults)
    project.faults += faults


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", [single_mode(8), small_bulk(4)], ids=["single", "bulk"])
def test_no_event_arrives_before_its_users_update_whatever_happens(
    job: Job, iterable: StandIn, mode: Mode, seed: int
) -> None:
    chance = random.Random(seed)
    iterable.latency_s = 0.003
    iterable.project.unknown_users = "accept"  # so that an event that is too early is stored
    rows = troubled_rows(chance)
    make_trouble(iterable, chance)
    ran = job.run(rows, mode)
    assert_no_event_was_before_its_user(iterable)
    assert sum(ran.users.values()) == 60
    assert sum(ran.events.values()) == len(rows) - 60
    iterable.clear_faults()
    ran = job.run(rows, mode)
    assert ran.stop is None
    assert set(ran.users) | set(ran.events) <= {"delivered", "unchanged"}


@pytest.mark.parametrize("mode", [single_mode(8), small_bulk(8)], ids=["single", "bulk"])
def test_slow_user_holds_back_no_events_but_those_of_its_own_range(job: Job, iterable: StandIn, mode: Mode) -> None:
    rows: Rows = [(f"{number}@example.com", f"e{number}") for number in range(100)]
    iterable.inject(Fault(path=f"/api/{mode.endpoints[0]}", latency_s=3600, skip=3, times=1))
    a_batch = 10 if mode.is_bulk else 1

    def is_all_else_sent() -> bool:
        """In bulk, what does not fill a request waits for the slow ones."""
        return len(iterable.project.events) >= (80 if mode.is_bulk else 99)

    ran = job.run(rows, mode, interrupted=lambda: SIGTERM if is_all_else_sent() else None, is_urgent=is_all_else_sent)
    assert ran.users == {"delivered": 100 - a_batch, "unacknowledged": a_batch}
    assert_no_event_was_before_its_user(iterable)


def test_user_with_many_events_holds_back_no_others_singly(job: Job, iterable: StandIn) -> None:
    iterable.latency_s = 0.01
    others = some_events(100, users=50)
    with open_both(job.folder, now=0) as opened:
        first = min((who for who, _ in others), key=opened.ledger.user_key)
    rows: Rows = [*[(first, f"a{number:03d}") for number in range(80)], *[each for each in others if each[0] != first]]
    ran = job.run(rows, replace(single_mode(8), records_a_batch=10))
    assert ran.events == {"delivered": 178}
    order = iterable.project.event_order
    assert [each for each in order if each.startswith("a")] == [f"a{number:03d}" for number in range(80)]
    assert order.index("a079") > max(place for place, each in enumerate(order) if each.startswith("e"))


# What the ledger knows with another content ---------------------------------------------------------------------------


@each_mode
def test_change_whose_answer_was_lost_and_that_was_taken_back_is_sent_once_more(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    rows = some_events(30, users=10)
    assert job.run(rows, mode, version="A").events == {"delivered": 30}
    iterable.inject(Fault(store=True, disconnect=True))
    lost = job.run(rows, mode, version="B", max_retries=1)
    assert lost.users.get("delivered", 0) + lost.events.get("delivered", 0) == 0
    versions = {each["dataFields"]["version"] for each in iterable.project.events.values()}
    versions |= {each["dataFields"]["version"] for each in iterable.project.users.values()}
    assert "B" in versions
    iterable.clear_faults()
    ran = job.run(rows, mode, version="A")
    assert ran.stop is None
    for held in (iterable.project.users, iterable.project.events):
        assert {each["dataFields"]["version"] for each in held.values()} == {"A"}
    assert job.run(rows, mode, version="A").events == {"unchanged": 30}


@each_mode
def test_what_is_sent_again_unchanged_stays_known_until_it_is_answered(job: Job, iterable: StandIn, mode: Mode) -> None:
    """As with --full."""
    rows = some_events(30, users=10)
    job.run(rows, mode, version="A")
    iterable.inject(Fault(status=503))
    job.run(rows, mode, version="A", max_retries=1, sends_all=True)
    assert job.run(rows, mode, version="A").users == {"unchanged": 10}


def test_events_flow_at_the_pace_of_full_batches_while_users_are_still_updated(job: Job, iterable: StandIn) -> None:
    rows: Rows = [(f"{number % 2000}@example.com", f"e{number}") for number in range(6000)]
    ran = job.run(rows, bulk_mode(None))
    assert (ran.users, ran.events) == ({"delivered": 2000}, {"delivered": 6000})
    sizes = [len(records_in(request.body)) for request in requests_of(iterable, "/api/events/trackBulk")]
    assert len(sizes) <= 8
    assert_no_event_was_before_its_user(iterable)
