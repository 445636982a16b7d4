"""Rows through the Planner into a real ledger: what is staged, what is refused, and with which words."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.payloads import Rules
from pipeline.plan import MAX_RECORD_BYTES, ColumnsError, Planner, make_rules
from pipeline.records import Kind, Outcome, Record, Undelivered
from pipeline.settings import Settings, load_settings
from tests.opened import Opened, open_both

NOW_S = 1_768_293_912.0  # 2026-01-13 08:45:12 in UTC
COLUMNS = ["id", "email", "first_name", "last_name", "plan_type", "candidate", "page", "device", "browser", "location"]
COLUMNS += ["event_time"]
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
    user_fields=(("first_name", "first_name"), ("plan_type", "plan_type")),
    event_fields=(("page", "page"),),
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


def plan(opened: Opened, rows: Sequence[dict[str, Any]], rules: Rules = RULES) -> Plan:
    planner = Planner(opened.ledger, opened.stage, rules)
    assert list(planner.watch(rows)) == rows
    assert planner.rows == len(rows)
    opened.finish_staging(skip_unchanged=True, ids_are_given=rules.id_column is not None)
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
    (key,) = opened.ledger.event_keys([key], [event_id])
    assert found == Record(
        Kind.EVENT, 1, "ada@example.com", key, opened.ledger.fingerprints([event_payload])[0], event_payload
    )


def test_no_rows_plan_nothing(opened: Opened) -> None:
    assert plan(opened, []) == Plan([], [], [], 0)


def test_rows_are_planned_and_handed_on_a_block_at_a_time(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.ROWS_PER_BLOCK", 2)
    taken = []

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(5):
            taken.append(number)
            yield ROW

    planner = Planner(opened.ledger, opened.stage, RULES)
    watched = planner.watch(rows())
    assert next(watched) is ROW
    assert (taken, planner.rows) == ([0, 1], 2)
    assert list(watched) == [ROW] * 4
    assert (taken, planner.rows) == ([0, 1, 2, 3, 4], 5)


def test_row_of_a_left_join_without_event_is_a_user_only(opened: Opened) -> None:
    assert plan(opened, [ROW | NO_EVENT]) == Plan([(1, user())], [], [], 0)


def test_user_in_many_rows_is_one_update_with_the_values_of_the_last(opened: Opened) -> None:
    rows = [ROW | {"plan_type": plan_type} for plan_type in ("pro", "pro", "free", "free")]
    found = plan(opened, rows)
    assert found.users == [(3, user(plan_type="free"))]
    assert (len(found.events), found.duplicate_events) == (1, 3)


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
    monkeypatch.setattr("pipeline.plan.ROWS_PER_BLOCK", 3)
    monkeypatch.setattr("pipeline.plan.RECORDS_PER_STAGING", 4)
    monkeypatch.setattr("pipeline.plan.REMEMBERED_USERS", 2)
    with open_both(tmp_path, now=NOW_S, lasting=False) as other:
        piecemeal = plan(other, rows)
    assert [payload for _, payload in piecemeal.users] == [payload for _, payload in whole.users]
    assert piecemeal.events == whole.events
    assert [each[2:] for each in piecemeal.refused] == [each[2:] for each in whole.refused]


def test_refused_rows_alone_are_staged_before_the_end(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("pipeline.plan.RECORDS_PER_STAGING", 4)
    watched = Planner(opened.ledger, opened.stage, RULES).watch([ROW | {"email": "nobody"}] * 3)
    next(watched)
    assert list(opened.stage.undelivered()) == []
    next(watched)
    assert len(list(opened.stage.undelivered())) == 4


def test_single_user_field_that_changes_is_sent_with_its_last_value(opened: Opened) -> None:
    rules = replace(RULES, user_fields=(("plan_type", "plan_type"),))
    found = plan(opened, [ROW, ROW | {"plan_type": "rpo"}, ROW | {"plan_type": "free"}], rules)
    assert found.users == [(3, {"email": "ada@example.com", "dataFields": {"plan_type": "free"}})]


def test_users_alone_are_staged_before_the_end(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.plan.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("pipeline.plan.RECORDS_PER_STAGING", 2)
    watched = Planner(opened.ledger, opened.stage, RULES).watch(
        [ROW | NO_EVENT | {"email": f"{n}@example.com"} for n in range(3)]
    )
    next(watched)
    assert list(opened.stage.pending(Kind.USER)) == []
    next(watched)
    opened.finish_staging(skip_unchanged=True)
    assert len(list(opened.stage.pending(Kind.USER))) == 2


# What is refused --------------------------------------------------------------------------------------------------


def test_row_that_names_nobody_is_refused_once_for_the_user_and_once_for_its_event(opened: Opened) -> None:
    planner = Planner(opened.ledger, opened.stage, RULES)
    list(planner.watch([ROW | {"email": "nobody"}]))
    message = "email is not an e-mail address."
    assert list(opened.stage.undelivered()) == [
        Undelivered(Kind.USER, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
        Undelivered(Kind.EVENT, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
    ]


def test_row_of_nothing_but_null_is_one_refused_user(opened: Opened) -> None:
    refused: Refused = [(Kind.USER, 1, None, "email is empty, so nobody is named.")]
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
            "event_time is no time of the form 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00.",
        ),
        (Kind.USER, 2, "bob@example.com", "plan_type has bytes that are no UTF-8."),
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


def test_user_whose_last_row_is_valid_is_updated_despite_an_earlier_one(opened: Opened) -> None:
    rows = [ROW | NO_EVENT | {"plan_type": float("nan")}, ROW | NO_EVENT]
    assert plan(opened, rows) == Plan([(2, user())], [], [], 0)


def test_invalid_row_counts_also_when_its_user_was_staged_long_before(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.plan.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("pipeline.plan.RECORDS_PER_STAGING", 1)
    bad = ROW | NO_EVENT | {"plan_type": b"\xff"}
    rows = [ROW | NO_EVENT, ROW | NO_EVENT | {"email": "bob@example.com"}, bad, bad]
    found = plan(opened, rows)
    assert found.users == [(2, user("bob@example.com"))]
    assert found.refused == [(Kind.USER, 3, "ada@example.com", "plan_type has bytes that are no UTF-8.")]


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


# Rules from the columns -------------------------------------------------------------------------------------------


def settings(**changes: str) -> Settings:
    needed = {"ITERABLE_API_KEY": "key", "DATABASE_URL": "sqlite:///users.db"}
    return load_settings(Path("/nonexistent/.env"), needed | changes)


def test_default_query_gives_the_default_rules() -> None:
    assert make_rules(COLUMNS, settings(), NOW_S) == Rules(
        by_user_id=False,
        identity_column="email",
        user_fields=tuple((name, name) for name in ("first_name", "last_name", "plan_type", "candidate")),
        event_fields=tuple((name, name) for name in ("page", "device", "browser", "location")),
        event_name="page_view",
        zone=timezone.utc,
        clear_nulls=False,
        latest_s=NOW_S + 86_400,
        time_column="event_time",
        name_column=None,
        id_column=None,
    )


def test_settings_and_further_columns_shape_the_rules() -> None:
    changes = {
        "ITERABLE_IDENTIFIER": "userId",
        "USER_FIELDS": "plan_type:plan",
        "EVENT_FIELDS": "-",
        "EVENT_NAME": "visit",
        "NULL_VALUES": "clear",
    }
    found = make_rules([*COLUMNS, "event_name", "event_id"], settings(**changes), NOW_S)
    assert found == Rules(
        by_user_id=True,
        identity_column="id",
        user_fields=(("plan_type", "plan"),),
        event_fields=(),
        event_name="visit",
        zone=timezone.utc,
        clear_nulls=True,
        latest_s=NOW_S + 86_400,
        time_column="event_time",
        name_column="event_name",
        id_column="event_id",
    )


def test_user_id_column_goes_before_id() -> None:
    by_user_id = settings(ITERABLE_IDENTIFIER="userId")
    assert make_rules(["id", "user_id"], by_user_id, NOW_S).identity_column == "user_id"
    assert make_rules(["id", "email"], by_user_id, NOW_S).identity_column == "id"


def test_default_fields_that_the_query_lacks_are_let_go() -> None:
    found = make_rules(["email", "last_name", "page", "event_time"], settings(), NOW_S)
    assert (found.user_fields, found.event_fields) == ((("last_name", "last_name"),), (("page", "page"),))


def test_query_of_users_only_has_no_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = make_rules(["email", "first_name"], settings(), NOW_S)
    assert (found.time_column, found.event_fields) == (None, ())
    assert caplog.messages == ["The query has no column event_time: users are updated, and no events are tracked."]


def test_columns_that_stay_behind_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    make_rules([*COLUMNS, "user_id", "event_name", "event_id", "phone", "zip"], settings(), NOW_S)
    assert caplog.messages == [
        "Not sent, as neither USER_FIELDS nor EVENT_FIELDS names them (they are in the CSV): phone, zip."
    ]


@pytest.mark.parametrize(
    ("columns", "changes", "problem"),
    [
        (
            ["id", "first_name"],
            {},
            "The query has no column email, by which ITERABLE_IDENTIFIER=email tells people apart; its columns are "
            "id, first_name.",
        ),
        (
            ["EMAIL"],
            {},
            "The query has no column email, by which ITERABLE_IDENTIFIER=email tells people apart; its columns are "
            "EMAIL.",
        ),
        (
            ["email", "first_name"],
            {"ITERABLE_IDENTIFIER": "userId"},
            "The query has no column user_id or id, by which ITERABLE_IDENTIFIER=userId tells people apart; its "
            "columns are email, first_name.",
        ),
        (
            ["email", "plan_type"],
            {"USER_FIELDS": "plan_type,nick,phone:mobile"},
            "USER_FIELDS names nick, phone, which the query does not have; its columns are email, plan_type.",
        ),
        (
            ["email", "event_time"],
            {"EVENT_FIELDS": "page"},
            "EVENT_FIELDS names page, which the query does not have; its columns are email, event_time.",
        ),
        (
            ["email", "page"],
            {},
            "The query has no column event_time, although page belongs to events; its columns are email, page. Add "
            "event_time, or set EVENT_FIELDS=- to send users only.",
        ),
        (
            ["email", "event_id"],
            {},
            "The query has no column event_time, although event_id belongs to events; its columns are email, event_id. "
            "Add event_time, or set EVENT_FIELDS=- to send users only.",
        ),
    ],
)
def test_missing_column_is_named(columns: list[str], changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ColumnsError) as caught:
        make_rules(columns, settings(**changes), NOW_S)
    assert str(caught.value) == problem
