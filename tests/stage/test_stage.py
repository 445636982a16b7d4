"""The stage on a real file: what is staged, in which order it is read, and what became of each record."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.keys import MADE
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.stage.duplicates import Doubled
from pipeline.stage.outcomes import KeyedFailure
from tests.opened import Opened, open_both
from tests.processes import child
from tests.records import (
    ADA,
    BOB,
    CY,
    NOON_S,
    event,
    holder,
    opening,
    pending,
    posix_only,
    rejected,
    run,
    shown,
    stage,
    user,
)


def stage_events(opened: Opened, *events: Record) -> None:
    opened.stage_events(events)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with opening(tmp_path) as both:
        yield both


MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.model.records import *
from tests.opened import open_both

def peak_mb():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform.startswith("linux") else peak / 1024 ** 2

with open_both(Path(sys.argv[1]), now=0) as opened:
    before = peak_mb()
    for start in range(0, int(sys.argv[2]), 1000):
        who = f"{start}@example.com"
        key = opened.ledger.user_key(who)
        opened.stage.people.stage_users([Record(Kind.USER, start + 1, who, key, b"f" * 16, b"{}")])
        rows = range(start + 1, start + 1001)
        keys = opened.ledger.event_keys([key] * len(rows), map(str, rows))
        opened.stage.stage_events(rows, keys, [b"f" * 16] * len(rows), [b"{" + b"x" * 499] * len(rows))
    opened.stage.finish_staging()
    print(sum(1 for _ in opened.stage.pending(Kind.EVENT)), peak_mb() - before)
"""


@posix_only
def test_memory_stays_flat_however_many_events_are_staged(tmp_path: Path) -> None:
    with child(MEMORY, tmp_path, 200_000) as process:
        told, _ = process.communicate(timeout=60)
    count, growth_mb = told.split()
    assert count == "200000"
    assert float(growth_mb) < 60  # their payloads alone are 100 MB


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_doubled_events_are_found_however_many_keys_are_compared_in_memory(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("pipeline.stage.duplicates.MOST_KEYS", most)
    opened.stage.people.stage_users([user(opened, 1, ADA), user(opened, 2, BOB)])
    ids = ["a", "b", "a", "c", "a", "d"]
    stage_events(opened, *(event(opened, row, each) for row, each in enumerate(ids, start=1)))
    stage_events(opened, event(opened, 7, "a", BOB), event(opened, 8, "c"), event(opened, 9, "e", BOB))
    opened.stage.finish_staging()
    assert sorted(record.row for record in opened.stage.pending(Kind.EVENT)) == [1, 2, 4, 6, 7, 9]
    assert opened.stage.doubled.repeated == 3


def test_records_come_in_the_order_of_the_users_keys_and_within_a_user_by_row(opened: Opened) -> None:
    opened.stage.people.stage_users([user(opened, 1, CY), user(opened, 2, ADA), user(opened, 3, BOB)])
    stage_events(opened, event(opened, 9, "z", ADA), event(opened, 5, "y", CY), event(opened, 7, "x", ADA))
    stage_events(opened, event(opened, 2, "w", ADA), event(opened, 6, "v", CY), event(opened, 8, "u", BOB))
    opened.stage.finish_staging()
    in_order = sorted([ADA, BOB, CY], key=opened.ledger.user_key)
    assert [record.identity for record in opened.stage.pending(Kind.USER)] == in_order
    of_each = {ADA: [2, 7, 9], BOB: [8], CY: [5, 6]}
    assert [(record.identity, record.row) for record in opened.stage.pending(Kind.EVENT)] == [
        (who, row) for who in in_order for row in of_each[who]
    ]


def test_records_of_a_range_are_those_between_two_users(opened: Opened) -> None:
    everyone = [ADA, BOB, CY]
    users = [user(opened, row, who) for row, who in enumerate(everyone, 1)]
    stage(opened, *users, *(event(opened, row, f"e{row}", who) for row, who in enumerate(everyone * 2, 1)))
    in_order = sorted(everyone, key=opened.ledger.user_key)
    keys = [opened.ledger.user_key(who) for who in in_order]
    for kind in Kind:
        ranges = [(keys[1], None), (b"", keys[1]), (keys[1], keys[2])]
        people = [
            {record.identity for record in opened.stage.pending(kind, first=first, before=before)}
            for first, before in ranges
        ]
        assert people == [set(in_order[1:]), {in_order[0]}, {in_order[1]}]


def test_what_had_trouble_before_and_the_events_of_such_users_come_apart_from_the_others(opened: Opened) -> None:
    users = [user(opened, row, who) for row, who in enumerate([ADA, BOB, CY], 1)]
    events = [event(opened, row, f"e{row}", who) for row, who in enumerate([ADA, BOB, CY, CY], 1)]
    failed_before = {users[0].key, events[3].key}
    opened.stage.begin(opened.ledger.known, lambda keys: failed_before)
    opened.stage.people.stage_users(users)
    stage_events(opened, *events)
    opened.stage.finish_staging()
    offered = {
        (kind, late): sorted(record.row for record in opened.stage.pending(kind, late=late))
        for kind in Kind
        for late in (False, True)
    }
    assert offered == {
        (Kind.USER, False): [2, 3],
        (Kind.USER, True): [1],
        (Kind.EVENT, False): [2, 3],
        (Kind.EVENT, True): [1, 4],
    }
    assert [opened.stage.states.count_pending(kind) for kind in Kind] == [3, 4]
    opened.stage.note_not_attempted("an outage")
    assert len(list(opened.stage.outcomes.undelivered())) == 7


def test_unchanged_users_of_held_events_are_released_and_no_others(opened: Opened) -> None:
    users = [user(opened, row, who) for row, who in enumerate([ADA, BOB, CY], 1)]
    events = [event(opened, row, f"e{row}", who) for row, who in enumerate([ADA, ADA, BOB, CY], 1)]
    opened.ledger.accept([users[0], users[2]])
    stage(opened, *users, *events)
    opened.accept([users[1]])
    opened.stage.outcomes.hold([rejected(Kind.EVENT, row) for row in (1, 2, 3)])
    assert opened.stage.outcomes.release_users_of_held() == 1
    assert list(opened.stage.pending(Kind.USER)) == [users[0]]


def test_doubled_events_are_counted_and_sent_once_with_the_last_content(opened: Opened) -> None:
    opened.stage.people.stage_users([user(opened, 1)])
    stage_events(opened, event(opened, 1, "same"), event(opened, 2, "same"), event(opened, 3, "changed", page="old"))
    stage_events(opened, event(opened, 4, "changed", page="new"), event(opened, 5, "same"))
    opened.stage.finish_staging()
    assert opened.stage.doubled == Doubled(repeated=2, corrected=1)
    assert [(each.row, json.loads(each.payload)["dataFields"]) for each in opened.stage.pending(Kind.EVENT)] == [
        (1, {"page": "pricing"}),
        (4, {"page": "new"}),
    ]


def conflict(row: int, other: int) -> FailedRecord:
    message = f"event_id is also that of row {other}, which has another name, person or time."
    return FailedRecord(Kind.EVENT, row, None, Outcome.REJECTED, None, "EventIdConflict", message, 0)


@pytest.mark.parametrize(
    "others", [{"email": BOB}, {"name": "order"}, {"seconds": NOON_S + 1}], ids=["person", "name", "time"]
)
def test_events_with_one_id_and_another_person_name_or_time_are_all_rejected(
    opened: Opened, others: dict[str, Any]
) -> None:
    stage(
        opened,
        user(opened, 1, ADA),
        user(opened, 2, BOB),
        event(opened, 1, "same", ADA),
        event(opened, 2, "same", **others),
        event(opened, 3, "own", BOB),
        event(opened, 4, "same", ADA, page="home"),
        ids_are_given=True,
    )
    assert shown(list(opened.stage.pending(Kind.EVENT))) == ["event bob@example.com row 3: own"]
    assert list(opened.stage.outcomes.undelivered()) == [conflict(1, 2), conflict(2, 1), conflict(4, 2)]
    assert opened.stage.doubled == Doubled()


def test_ids_that_are_made_never_conflict(opened: Opened) -> None:
    keys = [opened.ledger.user_key(who) for who in (ADA, BOB)]
    opened.stage.people.stage_users([user(opened, 1, ADA), user(opened, 2, BOB)])
    made = opened.ledger.event_keys(keys, ["content", "content"])
    opened.stage.stage_events([1, 2], made, [MADE, MADE], [b"{}", b"{}"])
    opened.stage.finish_staging(ids_are_given=True)
    assert sorted(each.key for each in opened.stage.pending(Kind.EVENT)) == sorted(made)
    assert list(opened.stage.outcomes.undelivered()) == []


@pytest.mark.parametrize("order", [(ADA, BOB), (BOB, ADA)])
def test_of_events_in_conflict_what_iterable_has_already_is_unchanged(tmp_path: Path, order: Sequence[str]) -> None:
    run(tmp_path, (ADA, "pro", "same"))
    with opening(tmp_path) as opened:
        users = [user(opened, row, who) for row, who in enumerate(order, 1)]
        events = [event(opened, row, "same", who) for row, who in enumerate(order, 1)]
        stage(opened, *users, *events, ids_are_given=True)
        assert list(opened.stage.pending(Kind.EVENT)) == []
        assert states(opened)["event"] == {"unchanged": 1, "rejected": 1}
        row = order.index(BOB) + 1
        assert list(opened.stage.outcomes.undelivered()) == [conflict(row, 3 - row)]


def test_what_was_not_attempted_is_counted_also_where_a_full_disk_takes_no_more_reasons(opened: Opened) -> None:
    stage(
        opened,
        *(user(opened, row, f"{row}@example.com") for row in range(1, 1001)),
        event(opened, 1, "e1", "1@example.com"),
    )
    opened.stage._database.execute("PRAGMA max_page_count = 1")  # which means: as many as there are
    with pytest.raises(sqlite3.OperationalError, match="full"):
        opened.stage.note_not_attempted("Not attempted: " + "x" * 500)
    outcomes = {
        kind: {each: count for each, count in of.items() if count}
        for kind, of in opened.stage.states.count_outcomes().items()
    }
    assert outcomes == {Kind.USER: {Outcome.NOT_ATTEMPTED: 1000}, Kind.EVENT: {Outcome.NOT_ATTEMPTED: 1}}
    assert pending(opened) == []


def test_cleared_stage_is_as_new(opened: Opened) -> None:
    opened.stage.people.stage_users([user(opened, 1, ADA), user(opened, 2, BOB)])
    stage_events(opened, event(opened, 1, "e1"))
    opened.stage.outcomes.note([rejected(Kind.EVENT, 2)])
    opened.stage.clear()
    assert (list(opened.stage.outcomes.undelivered()), opened.stage.states.count_pending(Kind.EVENT)) == ([], 0)
    stage(opened, user(opened, 3, CY), event(opened, 3, "e1", CY))
    assert shown(pending(opened)) == ["user cy@example.com row 3: pro", "event cy@example.com row 3: e1"]


def test_events_have_their_own_user_also_behind_users_without_any(opened: Opened) -> None:
    people = [f"{number}@example.com" for number in range(50)]
    users = [user(opened, row, who) for row, who in enumerate(people, start=1)]
    events = [event(opened, row, "e", who) for row, who in enumerate(people, start=1) if row % 7 == 0]
    stage(opened, *users, *events)
    assert {(each.row, each.identity) for each in opened.stage.pending(Kind.EVENT)} == {
        (each.row, each.identity) for each in events
    }


def doubled(pages: str) -> Doubled:
    """Of one event, whose rows have these pages one after the other."""
    corrected = sum(page != before for before, page in pairwise(pages))
    return Doubled(len(pages) - 1 - corrected, corrected)


@pytest.mark.parametrize("first_row", [1, 300, 70_000])
@pytest.mark.parametrize(
    ("pages", "kept"), [("aab", 2), ("abb", 1), ("aba", 2), ("abab", 3), ("aaa", 0), ("baa", 1), ("abbcc", 3)]
)
def test_of_doubled_events_the_first_with_the_last_content_is_sent(
    opened: Opened, pages: str, kept: int, first_row: int
) -> None:
    opened.stage.people.stage_users([user(opened, first_row)])
    stage_events(opened, *(event(opened, row, "e", page=page) for row, page in enumerate(pages, start=first_row)))
    opened.stage.finish_staging()
    assert [each.row for each in opened.stage.pending(Kind.EVENT)] == [first_row + kept]
    assert opened.stage.states.count_pending(Kind.EVENT) == 1
    assert opened.stage.doubled == doubled(pages)


def test_held_events_are_settled_until_they_are_released(opened: Opened) -> None:
    events = [event(opened, row, f"e{row}") for row in (1, 2, 3)]
    stage(opened, user(opened, 1), *events)
    opened.accept([user(opened, 1), events[0]])
    opened.stage.outcomes.hold([rejected(Kind.EVENT, 2), rejected(Kind.EVENT, 3)])
    assert (pending(opened), opened.stage.states.count_pending(Kind.EVENT)) == ([], 0)
    opened.stage.outcomes.release_held()
    assert (pending(opened), opened.stage.states.count_pending(Kind.EVENT)) == (events[1:], 2)
    assert list(opened.stage.outcomes.undelivered()) == []


def test_held_events_given_up_are_unacknowledged_with_what_iterable_said(opened: Opened) -> None:
    stage(opened, user(opened, 1), event(opened, 1, "e1"))
    opened.stage.outcomes.hold([rejected(Kind.EVENT, 1)])
    opened.stage.outcomes.give_up_held()
    assert list(opened.stage.outcomes.undelivered()) == [rejected(Kind.EVENT, 1, outcome=Outcome.UNACKNOWLEDGED)]


def test_what_has_no_outcome_is_not_attempted(opened: Opened) -> None:
    stage(opened, user(opened, 1, ADA), user(opened, 2, BOB), event(opened, 1, "e1"), event(opened, 2, "e2", BOB))
    opened.accept([user(opened, 1, ADA)])
    opened.stage.outcomes.note([rejected(Kind.EVENT, 1)])
    opened.stage.note_not_attempted("an outage")
    not_attempted = (Outcome.NOT_ATTEMPTED, None, None, "an outage", 0)
    assert list(opened.stage.outcomes.undelivered()) == [
        rejected(Kind.EVENT, 1),
        FailedRecord(Kind.USER, 2, BOB, *not_attempted),
        FailedRecord(Kind.EVENT, 2, BOB, *not_attempted),
    ]
    assert list(opened.stage.outcomes.undelivered(with_not_attempted=False)) == [rejected(Kind.EVENT, 1)]
    assert list(opened.stage.outcomes.undelivered(limit=1)) == [rejected(Kind.EVENT, 1)]


def test_counts_cover_every_outcome_and_leave_out_what_is_pending_or_held(opened: Opened) -> None:
    stage(opened, user(opened, 1, ADA), user(opened, 2, BOB), event(opened, 1, "e1"), event(opened, 2, "e2", BOB))
    opened.accept([user(opened, 1, ADA)])
    opened.stage.outcomes.hold([rejected(Kind.EVENT, 1)])
    opened.stage.outcomes.note([rejected(Kind.EVENT, 2, BOB)])
    nothing = dict.fromkeys(Outcome, 0)
    assert opened.stage.states.count_outcomes() == {
        Kind.USER: {**nothing, Outcome.DELIVERED: 1},
        Kind.EVENT: {**nothing, Outcome.REJECTED: 1},
    }
    assert (opened.stage.states.count_pending(Kind.USER), opened.stage.states.count_pending(Kind.EVENT)) == (1, 0)


def test_reasons_are_counted_by_code_and_what_was_never_sent_by_its_message(opened: Opened) -> None:
    invalid = [
        FailedRecord(Kind.USER, row, None, Outcome.REJECTED, None, "InvalidRecord", text, 0)
        for row, text in enumerate(["no email", "no email", "no email", "no plan"], 1)
    ]
    refused = [rejected(Kind.EVENT, row) for row in (1, 2)]
    opened.stage.outcomes.note([*invalid, *refused])
    assert opened.stage.outcomes.count_reasons(2) == [
        ("rejected", "InvalidRecord", "no email", 3, 3),
        ("rejected", "BadParams", "refused", 2, 2),
    ]


def test_reasons_that_differ_only_in_what_they_name_are_one(opened: Opened) -> None:
    invalid = [
        FailedRecord(Kind.USER, row, None, Outcome.REJECTED, None, "InvalidRecord", f"it has {row},000 bytes", 0)
        for row in (4, 5)
    ]
    lost = [
        FailedRecord(Kind.EVENT, row, ADA, Outcome.UNACKNOWLEDGED, None, None, f"no answer for {who}", 3)
        for row, who in ((1, "a***@example.com"), (2, "b***@example.com"), (3, "c***@example.org"))
    ]
    opened.stage.outcomes.note([*invalid, *lost])
    assert opened.stage.outcomes.count_reasons(9) == [
        ("unacknowledged", None, "no answer for a***@example.com", 3, 3),
        ("rejected", "InvalidRecord", "it has 4,000 bytes", 2, 2),
    ]


def test_stage_is_an_unlinked_file_in_the_outputs_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        targets = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    stages = [target for target in targets if "etilqs_" in target]
    assert [(target.startswith(f"{tmp_path}/"), target.endswith(" (deleted)")) for target in stages] == [(True, True)]


# What earlier runs know -----------------------------------------------------------------------------------------------


def states(opened: Opened) -> dict[str, dict[str, int]]:
    return {
        kind.value: {outcome.value: count for outcome, count in counts.items() if count}
        for kind, counts in opened.stage.states.count_outcomes().items()
    }


def test_what_is_unchanged_is_counted_and_kept_without_its_payload(tmp_path: Path) -> None:
    with opening(tmp_path) as opened:
        stage(opened, user(opened, 1), event(opened, 1, "e1"), event(opened, 2, "e2"))
        opened.accept(pending(opened))
        opened.ledger.commit()
    with opening(tmp_path) as opened:
        stage(opened, user(opened, 1), event(opened, 1, "e1"), event(opened, 2, "e2"), event(opened, 3, "e3"))
        assert states(opened) == {"user": {"unchanged": 1}, "event": {"unchanged": 2}}
        assert shown(pending(opened)) == ["event ada@example.com row 3: e3"]
        assert len(list(opened.stage.keys())) == 4


@pytest.mark.parametrize(
    ("pages", "sent"),
    [("aa", None), ("ab", 2), ("ba", None), ("aba", None), ("bab", 3), ("bb", 1)],
)
def test_of_doubled_events_the_last_content_is_compared_with_what_was_accepted(
    tmp_path: Path, pages: str, sent: int | None
) -> None:
    with opening(tmp_path) as opened:
        stage(opened, user(opened, 1), event(opened, 1, "e", page="a"))
        opened.accept(pending(opened))
        opened.ledger.commit()
    with opening(tmp_path) as opened:
        stage(opened, user(opened, 1), *(event(opened, row, "e", page=page) for row, page in enumerate(pages, 1)))
        assert [each.row for each in opened.stage.pending(Kind.EVENT)] == ([sent] if sent else [])
        assert opened.stage.doubled == doubled(pages)
        assert sum(states(opened)["event"].values()) == (0 if sent else 1)


def test_user_without_a_payload_is_no_record_and_names_its_events(opened: Opened) -> None:
    stage(opened, replace_payload(user(opened, 1), b""), event(opened, 1, "e1"))
    assert shown(pending(opened)) == ["event ada@example.com row 1: e1"]
    assert opened.stage.states.count_pending(Kind.USER) == 0


def replace_payload(record: Record, payload: bytes) -> Record:
    return record._replace(payload=payload)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from("ab")), max_size=12))
def test_each_event_is_once_pending_dropped_or_unchanged_whatever_comes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, str]]
) -> None:
    with open_both(tmp_path_factory.mktemp("stage"), now=0, lasting=False) as opened:
        people = [f"{number}@example.com" for number in range(4)]
        users = [user(opened, 100 + number, who) for number, who in enumerate(people)]
        events = [event(opened, n, f"{who}-{id_}", people[who], page) for n, (who, id_, page) in enumerate(rows, 1)]
        stage(opened, *users, *events)
        last = {each.key: each for each in events}
        found = list(opened.stage.pending(Kind.EVENT))
        assert {each.key: each.fingerprint for each in found} == {key: each.fingerprint for key, each in last.items()}
        assert len(found) + opened.stage.doubled.repeated + opened.stage.doubled.corrected == len(events)
        in_order = [(each.key[:8], each.row) for each in found]
        assert in_order == sorted(in_order)


# What can't be sent ---------------------------------------------------------------------------------------------------


def test_refusals_are_those_that_never_left_each_with_what_tells_it_again(opened: Opened) -> None:
    never = FailedRecord(Kind.EVENT, 3, ADA, Outcome.REJECTED, None, "InvalidRecord", "page is nan.", 0)
    opened.stage.outcomes.note_refusals([KeyedFailure(b"k" * 20, b"f" * 16, never)])
    one, other = event(opened, 1, "same"), event(opened, 2, "same", BOB)
    stage(opened, user(opened, 1), user(opened, 2, BOB), one, other, ids_are_given=True)
    opened.stage.outcomes.note([rejected(Kind.USER, 1)])
    found = [each for page in opened.stage.outcomes.refusals() for each in page]
    assert [(each.key, each.fingerprint, each.undelivered.row) for each in found] == [
        (one.key, one.fingerprint, 1),
        (other.key, other.fingerprint, 2),
        (b"k" * 20, b"f" * 16, 3),
    ]


def test_users_that_nobody_has_put_together_yet_have_one_outcome_each(opened: Opened) -> None:
    ada, bob = user(opened, 2), user(opened, 3, BOB)
    rows = [(ada.key, 1, ADA, "a"), (ada.key, 4, ADA, "b"), (bob.key, 3, BOB, "c")]
    opened.stage.stage_user_rows(rows)
    stage_events(opened, event(opened, 1, "e1"), event(opened, 3, "e2", BOB))
    opened.stage.end_reading()
    refused = FailedRecord(Kind.USER, 3, BOB, Outcome.REJECTED, None, "InvalidRecord", "plan is nan.", 0)
    opened.stage.outcomes.note_refusals([KeyedFailure(bob.key, bob.fingerprint, refused)])
    opened.stage.people.stage_users([ada])
    opened.stage.note_not_attempted("the disk is full")
    assert states(opened) == {"user": {"rejected": 1, "not_attempted": 1}, "event": {"not_attempted": 2}}
    assert [(each.kind, each.row, each.identity) for each in opened.stage.outcomes.undelivered()] == [
        (Kind.EVENT, 1, ADA),
        (Kind.USER, 2, ADA),
        (Kind.USER, 3, BOB),
        (Kind.EVENT, 3, BOB),
    ]
