"""Rows through the Planner into a real ledger: what is staged, what is refused, and with which words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FieldMap
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import FailedRecord, Kind, Outcome, Record, Unreadable
from pipeline.transform import payloads
from pipeline.transform.payloads import MAX_RECORD_BYTES, Rules
from pipeline.transform.planner import Planner
from tests.opened import Opened, open_both

NOW_S = 1_768_293_912.0  # 2026-01-13 08:45:12 in UTC
# A change of this key would send every event of every project once more.
PINNED_KEY = "9e5b2f6943190cafd3e788c5caafe8e48c3b314b"
ROW: dict[str, Any] = {
    "id": 1,
    "email": "ada@example.com",
    "first_name": "Ada",
    "plan_type": "pro",
    "page": "pricing",
    "event_time": "2026-01-13 08:45:12",
}
NO_EVENT = {"page": None, "event_time": None}
RULES = Rules(
    by_user_id=False,
    identity_column="email",
    user_fields=(FieldMap("first_name", "first_name"), FieldMap("plan_type", "plan_type")),
    event_fields=(FieldMap("page", "page"),),
    event_name="page_view",
    zone=timezone.utc,
    clear_nulls=False,
    latest_s=NOW_S + 86_400,
)
BY_USER_ID = replace(RULES, by_user_id=True, identity_column="id")
WITH_EVENT_ID = replace(RULES, id_column="event_id")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with open_both(tmp_path, now=NOW_S, lasting=False) as opened:
        yield opened


Refused = list[tuple[Kind, int, str | None, str]]  # kind, row, identity, reason


@dataclass(frozen=True)
class Plan:
    """What a run would find in the stage."""

    users: list[tuple[int, dict[str, Any]]]  # row, payload
    events: list[tuple[int, dict[str, Any]]]
    refused: Refused
    duplicate_events: int


def plan(opened: Opened, rows: Sequence[dict[str, Any]], rules: Rules = RULES, *, rows_per_block: int = 100) -> Plan:
    opened.plan(rules, rows, rows_per_block=rows_per_block)
    opened.stage.finish_staging(ids_are_given=rules.id_column is not None)
    undelivered = list(opened.stage.undelivered())
    assert {undelivered[3:6] for undelivered in undelivered} <= {(Outcome.REJECTED, None, "InvalidRecord")}
    return Plan(
        users=[(each.row, json.loads(each.payload)) for each in opened.stage.pending(Kind.USER)],
        events=[(each.row, json.loads(each.payload)) for each in opened.stage.pending(Kind.EVENT)],
        refused=[(each.kind, each.row, each.identity, each.message) for each in undelivered],
        duplicate_events=opened.stage.duplicate_events,
    )


def user(email: str = "ada@example.com", **fields: Any) -> dict[str, Any]:
    return {"email": email, "dataFields": {"first_name": "Ada", "plan_type": "pro"} | fields}


# What rows become -------------------------------------------------------------------------------------------------


def test_row_becomes_a_user_and_an_event(opened: Opened) -> None:
    plan(opened, [ROW])
    (found,) = opened.stage.pending(Kind.USER)
    user_payload = b'{"email":"ada@example.com","dataFields":{"first_name":"Ada","plan_type":"pro"}}'
    key = opened.ledger.user_key("ada@example.com")
    assert found == Record(
        Kind.USER, 1, "ada@example.com", key, opened.ledger.fingerprints([user_payload])[0], user_payload
    )
    (found,) = opened.stage.pending(Kind.EVENT)
    event_id = json.loads(found.payload)["id"]
    event_payload = (
        f'{{"email":"ada@example.com","eventName":"page_view","id":"{event_id}","createdAt":1768293912,'
        '"dataFields":{"page":"pricing"}}'
    ).encode()
    content = payloads.event_contents(['"page_view"'], ['"ada@example.com"'], [1768293912000000], ['"page":"pricing"'])
    assert [event_id] == payloads.event_ids(content)
    (key,) = opened.ledger.event_keys([key], content)
    assert key.hex() == PINNED_KEY
    assert found == Record(Kind.EVENT, 1, "ada@example.com", key, key[USER_BYTES:], event_payload)


@pytest.mark.parametrize(
    "values",
    [(-1, -2), (-2, -1), (-1.0, -2.0), (1, True), (1, 1.0), ("1", 1), (0, 2**61 - 1), (0.0, -0.0), (None, "None")],
    ids=str,
)
@pytest.mark.parametrize("rows_per_block", [1, 2])
def test_later_value_of_a_user_counts_also_where_its_hash_is_the_same(
    opened: Opened, values: tuple[Any, Any], rows_per_block: int
) -> None:
    plan(opened, [ROW | NO_EVENT | {"plan_type": value} for value in values], rows_per_block=rows_per_block)
    (found,) = opened.stage.pending(Kind.USER)
    assert f'"plan_type":{json.dumps(values[1])}'.encode() in found.payload


def test_no_rows_plan_nothing(opened: Opened) -> None:
    assert plan(opened, []) == Plan([], [], [], 0)


def test_row_of_a_left_join_without_event_is_a_user_only(opened: Opened) -> None:
    assert plan(opened, [ROW | NO_EVENT]) == Plan([(1, user())], [], [], 0)


def test_user_in_many_rows_is_one_update_with_the_values_of_the_last(opened: Opened) -> None:
    rows = [ROW | {"plan_type": plan_type} for plan_type in ("pro", "pro", "free", "free")]
    found = plan(opened, rows)
    assert found.users == [(3, user(plan_type="free"))]
    assert (len(found.events), found.duplicate_events) == (1, 3)


def test_rows_of_one_user_are_put_together_field_by_field(opened: Opened) -> None:
    rows = [
        ROW | NO_EVENT | {"email": "Ada@example.com", "plan_type": "pro"},
        ROW | NO_EVENT | {"email": "bob@example.com", "first_name": "Bob"},
        ROW | NO_EVENT | {"plan_type": "free", "first_name": None},
        ROW | NO_EVENT | {"email": "ada@example.com ", "plan_type": None, "first_name": None},
    ]
    found = sorted(plan(opened, rows).users, key=itemgetter(0))
    assert found == [(2, user("bob@example.com", first_name="Bob")), (3, user(plan_type="free"))]
    assert opened.stage.merged_users == 1


def test_a_later_null_clears_where_nulls_clear(opened: Opened) -> None:
    rows = [ROW | NO_EVENT, ROW | NO_EVENT | {"plan_type": None}]
    assert plan(opened, rows, replace(RULES, clear_nulls=True)).users == [(2, user(plan_type=None))]
    assert opened.stage.merged_users == 1


def test_users_whose_rows_only_leave_fields_out_do_not_disagree(opened: Opened) -> None:
    rows = [ROW | NO_EVENT | {"plan_type": None}, ROW | NO_EVENT | {"first_name": None}, ROW | NO_EVENT]
    assert plan(opened, rows).users == [(2, user())]
    assert opened.stage.merged_users == 0


def test_users_in_any_order_beyond_what_is_remembered_are_one_update_each(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transform.planner.REMEMBERED_USERS", 3)
    monkeypatch.setattr("pipeline.transform.planner.SLOTS", 3)
    values = ["pro", None, "free", None, "pro", "team", None]
    rows = [ROW | NO_EVENT | {"email": f"{n}@example.com", "plan_type": value} for value in values for n in range(10)]
    found = plan(opened, rows, rows_per_block=7)
    assert sorted(found.users, key=itemgetter(0)) == [
        (51 + n, user(f"{n}@example.com", plan_type="team")) for n in range(10)
    ]
    assert opened.stage.merged_users == 10


def test_values_that_go_back_to_an_earlier_state_are_the_last_ones(opened: Opened) -> None:
    rows = [ROW | NO_EVENT | {"plan_type": plan_type} for plan_type in ("pro", "free", "pro")]
    assert plan(opened, rows).users == [(3, user())]


@pytest.mark.parametrize(
    ("first", "last", "sent"),
    [(1, True, True), (1.0, 1, 1), (1, Decimal(1), 1.0), ([1], [True], [True]), ({"a": 1}, {"a": 1.0}, {"a": 1.0})],
)
def test_values_that_are_equal_and_of_another_type_are_the_last_ones(
    opened: Opened, first: Any, last: Any, sent: Any
) -> None:
    (found,) = plan(opened, [ROW | {"plan_type": first}, ROW | {"plan_type": last}]).users
    assert json.dumps(found) == json.dumps((2, user(plan_type=sent)))


def test_mixed_case_addresses_are_one_user(opened: Opened) -> None:
    found = plan(opened, [ROW, ROW | {"email": " ADA@Example.com ", "page": "home"}])
    assert found.users == [(1, user())]
    assert [payload["email"] for _, payload in found.events] == ["ada@example.com"] * 2


def test_mixed_case_user_ids_are_two_users(opened: Opened) -> None:
    found = plan(opened, [ROW | {"id": "u-1"}, ROW | {"id": "U-1"}], BY_USER_ID)
    assert [payload["userId"] for _, payload in found.users] == ["u-1", "U-1"]


def test_events_come_user_by_user_in_the_order_of_the_users_and_within_it_in_that_of_the_query(opened: Opened) -> None:
    rows = [ROW | {"email": f"{name}@example.com", "page": str(n)} for n, name in enumerate("bacab" * 5)]
    found = plan(opened, rows)
    users = [payload["email"][0] for _, payload in found.users]
    assert sorted(users) == ["a", "b", "c"]
    of_each = {name: [n for n, each in enumerate("bacab" * 5, start=1) if each == name] for name in users}
    assert [(payload["email"][0], row) for row, payload in found.events] == [
        (name, row) for name in users for row in of_each[name]
    ]


def test_plan_is_the_same_beyond_what_is_staged_or_remembered_at_once(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ROW | {"email": f"person{n % 7}@example.com", "plan_type": n % 5 // 2 or float("nan"), "page": str(n)}
        for n in range(100)
    ]
    whole = plan(opened, rows)
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 4)
    monkeypatch.setattr("pipeline.transform.planner.REMEMBERED_USERS", 2)
    monkeypatch.setattr("pipeline.transform.planner.SLOTS", 2)
    with open_both(tmp_path, now=NOW_S, lasting=False) as other:
        piecemeal = plan(other, rows, rows_per_block=3)
    assert [payload for _, payload in piecemeal.users] == [payload for _, payload in whole.users]
    assert piecemeal.events == whole.events
    assert [each[2:] for each in piecemeal.refused] == [each[2:] for each in whole.refused]


def test_records_are_staged_before_the_end(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 4)
    planner = Planner(opened.ledger, opened.stage, RULES, list(ROW))
    nobody = [[value] for value in (ROW | {"email": "nobody"}).values()]
    planner.plan(nobody)
    assert list(opened.stage.undelivered()) == []
    planner.plan(nobody)
    assert len(list(opened.stage.undelivered())) == 4


def test_large_records_are_staged_at_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transform.planner.BYTES_PER_STAGING", 1_000)
    planner = Planner(opened.ledger, opened.stage, RULES, list(ROW))
    for text in ("x" * 500, "y" * 1_000):
        planner.plan([[value] for value in (ROW | NO_EVENT | {"plan_type": text}).values()])
    assert [row for _, row, _, _ in opened.stage.user_rows()] == [1, 2]


def test_single_user_field_that_changes_is_sent_with_its_last_value(opened: Opened) -> None:
    rules = replace(RULES, user_fields=(FieldMap("plan_type", "plan_type"),))
    found = plan(opened, [ROW, ROW | {"plan_type": "rpo"}, ROW | {"plan_type": "free"}], rules)
    assert found.users == [(3, {"email": "ada@example.com", "dataFields": {"plan_type": "free"}})]


# What is refused --------------------------------------------------------------------------------------------------


def test_row_that_names_nobody_is_refused_once_for_the_user_and_once_for_its_event(opened: Opened) -> None:
    opened.plan(RULES, [ROW | {"email": "nobody"}])
    message = "email is not a valid email address."
    assert list(opened.stage.undelivered()) == [
        FailedRecord(Kind.USER, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
        FailedRecord(Kind.EVENT, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
    ]


def test_row_of_nothing_but_null_is_one_refused_user(opened: Opened) -> None:
    refused: Refused = [(Kind.USER, 1, None, "email is empty.")]
    assert plan(opened, [dict.fromkeys(ROW), ROW]) == Plan([(2, user())], [(2, event_payload())], refused, 0)


def event_payload(**changes: Any) -> dict[str, Any]:
    return {
        "email": "ada@example.com",
        "eventName": "page_view",
        "id": "ue1-5d203c8b0dc7f19ea44f17aace38f9d1aa9b999a",
        "createdAt": int(NOW_S),
        "dataFields": {"page": "pricing"},
    } | changes


def test_bad_event_leaves_its_user_and_bad_user_leaves_its_event(opened: Opened) -> None:
    rows = [
        ROW | {"event_time": "soon"},
        ROW | {"email": "bob@example.com", "plan_type": b"\xff"},
        ROW | {"email": "eve@example.com", "event_time": "2036-01-13"},
        ROW | {"email": "joe@example.com", "event_time": None},
    ]
    found = plan(opened, rows)
    by_row = sorted(found.users, key=lambda update: update[0])
    assert by_row == [(1, user()), (3, user("eve@example.com")), (4, user("joe@example.com"))]
    assert [(row, payload["email"]) for row, payload in found.events] == [(2, "bob@example.com")]
    assert found.refused == [
        (
            Kind.EVENT,
            1,
            "ada@example.com",
            "event_time is not a valid time; expected 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00.",
        ),
        (Kind.USER, 2, "bob@example.com", "plan_type is not valid UTF-8."),
        (Kind.EVENT, 3, "eve@example.com", "event_time is more than a day in the future."),
        (
            Kind.EVENT,
            4,
            "joe@example.com",
            "event_time is empty, although page says that there was an event.",
        ),
    ]


def test_user_whose_last_row_is_invalid_is_refused_and_no_earlier_row_is_sent(opened: Opened) -> None:
    rows = [ROW | NO_EVENT, ROW | NO_EVENT | {"plan_type": float("nan")}]
    reason = "plan_type is nan, which JSON can't hold."
    assert plan(opened, rows) == Plan([], [], [(Kind.USER, 2, "ada@example.com", reason)], 0)


def test_field_whose_last_value_is_invalid_refuses_the_user_unless_a_later_row_has_a_valid_one(opened: Opened) -> None:
    bad = {"plan_type": b"\xff"}
    named = [{"email": f"{name}@example.com"} for name in ("ada", "bob")]
    rows = [ROW | NO_EVENT | person for person in named] + [ROW | NO_EVENT | person | bad for person in named]
    rows += [ROW | NO_EVENT | named[0] | {"plan_type": None}, ROW | NO_EVENT | named[1] | {"plan_type": "free"}]
    found = plan(opened, rows)
    assert found.users == [(6, user("bob@example.com", plan_type="free"))]
    assert found.refused == [(Kind.USER, 3, "ada@example.com", "plan_type is not valid UTF-8.")]


def test_user_whose_last_row_is_valid_is_updated_despite_an_earlier_one(opened: Opened) -> None:
    rows = [ROW | NO_EVENT | {"plan_type": float("nan")}, ROW | NO_EVENT]
    assert plan(opened, rows) == Plan([(2, user())], [], [], 0)


def test_invalid_row_counts_also_when_its_user_was_staged_long_before(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 1)
    bad = ROW | NO_EVENT | {"plan_type": b"\xff"}
    rows = [ROW | NO_EVENT, ROW | NO_EVENT | {"email": "bob@example.com"}, bad, bad]
    found = plan(opened, rows, rows_per_block=1)
    assert found.users == [(2, user("bob@example.com"))]
    assert found.refused == [(Kind.USER, 3, "ada@example.com", "plan_type is not valid UTF-8.")]


def test_record_that_fills_a_request_is_sent_and_a_byte_more_is_refused(opened: Opened) -> None:
    around_it = len(b'{"email":"ada@example.com","dataFields":{"first_name":"Ada","plan_type":""}}')
    full = "x" * (MAX_RECORD_BYTES - around_it)
    found = plan(opened, [ROW | {"plan_type": full}, ROW | {"email": "bob@example.com", "plan_type": full[1:] + "é"}])
    assert found.users == [(1, user(plan_type=full))]
    reason = "it has 3,499,001 bytes as JSON, more than the 3,499,000 of one request."
    assert found.refused == [(Kind.USER, 2, "bob@example.com", reason)]


def test_event_too_big_for_a_request_is_refused_and_its_user_is_not(opened: Opened) -> None:
    found = plan(opened, [ROW | {"page": "x" * MAX_RECORD_BYTES}])
    assert (found.users, found.events) == ([(1, user())], [])
    assert [each[:3] for each in found.refused] == [(Kind.EVENT, 1, "ada@example.com")]


def test_unreadable_value_refuses_its_record_alone(opened: Opened) -> None:
    never = Unreadable("infinity", "is infinity, which can't be sent as a date")
    rows = [
        ROW | {"plan_type": never},
        ROW | {"email": "bob@example.com", "event_time": never},
        ROW | {"email": never, "page": None, "event_time": None},
        ROW | {"email": "cy@example.com"},
    ]
    found = plan(opened, rows)
    assert sorted(row for row, _ in found.users) == [2, 4]
    assert sorted(row for row, _ in found.events) == [1, 4]
    assert found.refused == [
        (Kind.USER, 1, "ada@example.com", "plan_type is infinity, which can't be sent as a date."),
        (Kind.EVENT, 2, "bob@example.com", "event_time is infinity, which can't be sent as a date."),
        (Kind.USER, 3, None, "email is infinity, which can't be sent as a date."),
    ]


# What another run knows it by -----------------------------------------------------------------------------------------


def refusals_of(tmp_path: Path, *rows: dict[str, Any]) -> list[tuple[Kind, bytes, bytes, str]]:
    """The kind, the key, the fingerprint and the message of each."""
    with open_both(tmp_path, now=NOW_S, lasting=False) as opened:
        plan(opened, rows)
        return sorted(
            (each.kind, key, fingerprint, each.message)
            for page in opened.stage.refusals()
            for key, fingerprint, each in page
        )


BAD_ROWS = [
    ROW | {"email": "nobody"},
    ROW | {"plan_type": b"\xff"},
    ROW | {"email": "bob@example.com", "event_time": "soon"},
]


def test_a_refusal_is_the_same_in_another_run_whatever_lies_around_it(tmp_path: Path) -> None:
    found = refusals_of(tmp_path, *BAD_ROWS)
    assert found == refusals_of(tmp_path, ROW | NO_EVENT | {"email": "cy@example.com"}, *BAD_ROWS[::-1])
    lengths = [(kind, len(key), len(fingerprint)) for kind, key, fingerprint, _ in found]
    assert lengths == [(Kind.EVENT, 20, 16)] * 2 + [(Kind.USER, 16, 16)] * 2
    with open_both(tmp_path, now=NOW_S, lasting=False) as opened:
        ada, bob = opened.ledger.user_key("ada@example.com"), opened.ledger.user_key("bob@example.com")
    keys = {key for _, key, _, _ in found}
    assert ada in keys
    assert bob[:8] in {key[:8] for key in keys if len(key) == 20}


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (BAD_ROWS[0], {"email": "no-one"}),
        (BAD_ROWS[0], {"page": "home", "plan_type": "free"}),
        (BAD_ROWS[1], {"plan_type": b"\xfe"}),
        (BAD_ROWS[2], {"event_time": "later"}),
        (BAD_ROWS[2], {"page": None}),
    ],
)
def test_a_refusal_of_other_values_is_another_one(tmp_path: Path, row: dict[str, Any], changes: dict[str, Any]) -> None:
    before, after = refusals_of(tmp_path, row), refusals_of(tmp_path, row | changes)
    assert {fingerprint for _, _, fingerprint, _ in before}.isdisjoint(fingerprint for _, _, fingerprint, _ in after)


# Runs that break off --------------------------------------------------------------------------------------------------


def test_run_that_breaks_off_before_users_are_put_together_has_a_whole_account(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 1)
    rows = [ROW, ROW | {"email": "bob@example.com"}, ROW | NO_EVENT | {"plan_type": "free"}, ROW | {"email": "nobody"}]
    planner = Planner(opened.ledger, opened.stage, RULES, list(ROW))
    planner.plan(list(zip(*(row.values() for row in rows), strict=True)))
    opened.stage.note_not_attempted("Not attempted.")
    assert [each[:4] for each in opened.stage.undelivered()] == [
        (Kind.EVENT, 1, "ada@example.com", Outcome.NOT_ATTEMPTED),
        (Kind.USER, 2, "bob@example.com", Outcome.NOT_ATTEMPTED),
        (Kind.EVENT, 2, "bob@example.com", Outcome.NOT_ATTEMPTED),
        (Kind.USER, 3, "ada@example.com", Outcome.NOT_ATTEMPTED),
        (Kind.USER, 4, None, Outcome.REJECTED),
        (Kind.EVENT, 4, None, Outcome.REJECTED),
    ]


# Parts of the rows ----------------------------------------------------------------------------------------------------


def test_with_a_limit_known_users_are_left_alone_and_their_new_events_are_sent(tmp_path: Path) -> None:
    bob, cy = (ROW | NO_EVENT | {"email": f"{name}@example.com"} for name in ("bob", "cy"))
    with open_both(tmp_path, now=NOW_S, lasting=True) as opened:
        plan(opened, [ROW | NO_EVENT, bob])
        opened.accept(list(opened.stage.pending(Kind.USER)))
        opened.ledger.commit()
    with open_both(tmp_path, now=NOW_S, lasting=True) as opened:
        opened.plan(RULES, [ROW | {"plan_type": "free"}, bob, cy], leave_known_users=True)
        opened.stage.finish_staging()
        assert [each.identity for each in opened.stage.pending(Kind.USER)] == ["cy@example.com"]
        assert [each.identity for each in opened.stage.pending(Kind.EVENT)] == ["ada@example.com"]
        assert opened.stage.count_outcomes()[Kind.USER][Outcome.UNCHANGED] == 2
        assert opened.stage.left_users == 1


# Events that are the same -----------------------------------------------------------------------------------------


def test_identical_rows_are_one_event(opened: Opened) -> None:
    same = ROW | {"event_time": datetime(2026, 1, 13, 8, 45, 12)}
    found = plan(opened, [ROW, ROW, same, ROW | {"page": "home"}])
    assert [row for row, _ in found.events] == [1, 4]
    assert found.duplicate_events == 2


def test_event_id_with_other_content_of_the_same_user_is_the_last_one(opened: Opened) -> None:
    found = plan(opened, [ROW | {"event_id": 7, "page": page} for page in ("a", "b", "b")], WITH_EVENT_ID)
    assert found.events == [(2, event_payload(id="7", dataFields={"page": "b"}))]
    assert (found.refused, found.duplicate_events) == ([], 2)


def test_event_id_of_another_user_is_refused(opened: Opened) -> None:
    rows = [ROW | {"email": f"{name}@example.com", "event_id": 7} for name in ("ada", "bob", "ada")]
    found = plan(opened, rows, WITH_EVENT_ID)
    assert found.events == [(1, event_payload(id="7"))]
    reason = "event_id is the same as in row 1, which is about another user."
    assert found.refused == [(Kind.EVENT, 2, None, reason)]


def test_without_event_id_the_same_event_of_two_users_is_two(opened: Opened) -> None:
    found = plan(opened, [ROW, ROW | {"email": "bob@example.com"}])
    first, second = (payload["id"] for _, payload in found.events)
    assert first != second
