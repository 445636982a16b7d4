"""Rows through the Planner into a real ledger: what is staged, what is refused, and with which words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap
from pipeline.model.keys import MADE
from pipeline.model.records import FailedRecord, Kind, Outcome, Record, Unreadable, UserDetails
from pipeline.stage.duplicates import Doubled
from pipeline.transform import events
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules
from pipeline.transform.users import MAX_RECORD_BYTES
from tests.opened import Opened, open_both

NOW_S = 1_768_293_912.0  # 2026-01-13 08:45:12 in UTC
# A change of this id would send every event of every project again, as another event.
PINNED_ID = "ue2-b5fc85e55755f9e0d030-ba1c09a7a7bc386e6ebd0f9798c54aea"
# A change of this key would send every event of every project once more.
PINNED_KEY = "9e5b2f6943190caf003d947ae97ecae5969de5a1"
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
BY_USER_ID_AND_EVENT_ID = replace(BY_USER_ID, id_column="event_id")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with open_both(tmp_path, now=NOW_S, lasting=False) as opened:
        yield opened


NONE_DOUBLED = Doubled()
Refused = list[tuple[Kind, int, str | None, str]]  # kind, row, identity, reason


@dataclass(frozen=True)
class Plan:
    """What a run would find in the stage."""

    users: list[tuple[int, dict[str, Any]]]  # row, payload
    events: list[tuple[int, dict[str, Any]]]
    refused: Refused
    doubled: Doubled = NONE_DOUBLED


def plan(opened: Opened, rows: Sequence[dict[str, Any]], rules: Rules = RULES, *, rows_per_block: int = 100) -> Plan:
    opened.plan(rules, rows, rows_per_block=rows_per_block)
    opened.stage.finish_staging(ids_are_given=rules.id_column is not None)
    undelivered = list(opened.stage.outcomes.undelivered())
    assert {undelivered[3:6] for undelivered in undelivered} <= {
        (Outcome.REJECTED, None, code) for code in ("InvalidRecord", "EventIdConflict")
    }
    return Plan(
        users=[(each.row, json.loads(each.payload)) for each in opened.stage.pending(Kind.USER)],
        events=[(each.row, json.loads(each.payload)) for each in opened.stage.pending(Kind.EVENT)],
        refused=[(each.kind, each.row, each.identity, each.message) for each in undelivered],
        doubled=opened.stage.doubled,
    )


def user(email: str = "ada@example.com", **fields: Any) -> dict[str, Any]:
    return {"email": email, "dataFields": {"first_name": "Ada", "plan_type": "pro"} | fields}


# What rows become -------------------------------------------------------------------------------------------------


def test_row_becomes_a_user_and_an_event(opened: Opened) -> None:
    plan(opened, [ROW])
    (found,) = opened.stage.pending(Kind.USER)
    text = b'"first_name":"Ada","plan_type":"pro"'
    key = opened.ledger.user_key("ada@example.com")
    hasher = opened.ledger.hasher
    details = UserDetails(
        fields=hasher.field_hashes("first_name", ['"Ada"'])[0] + hasher.field_hashes("plan_type", ['"pro"'])[0],
        sent=hasher.field_name("first_name") + hasher.field_name("plan_type"),
    )
    assert found == Record(
        Kind.USER,
        1,
        "ada@example.com",
        key,
        opened.ledger.fingerprints([text])[0],
        b'{"email":"ada@example.com","dataFields":{' + text + b"}}",
        details,
    )
    (found,) = opened.stage.pending(Kind.EVENT)
    (content,) = events.event_contents(['"page_view"'], [1768293912000000], ['"page":"pricing"'])
    event_payload = (
        f'{{"email":"ada@example.com","eventName":"page_view","id":"{PINNED_ID}","createdAt":1768293912,'
        '"dataFields":{"page":"pricing"}}'
    ).encode()
    assert events.event_ids(["ada@example.com"], [content], {}) == [PINNED_ID]
    (key,) = opened.ledger.event_keys([key], [content])
    assert key.hex() == PINNED_KEY
    assert found == Record(Kind.EVENT, 1, "ada@example.com", key, MADE, event_payload)


def test_event_with_an_id_of_the_query_is_known_by_it_with_what_it_says(opened: Opened) -> None:
    plan(opened, [ROW | {"event_id": "e1"}], WITH_EVENT_ID)
    (found,) = opened.stage.pending(Kind.EVENT)
    user_keys = [opened.ledger.user_key("ada@example.com")]
    (key,) = opened.ledger.hasher.given_event_keys(user_keys, ["e1"])
    (fingerprint,) = opened.ledger.hasher.given_fingerprints(['1768293912,"page_view"'], ['"page":"pricing"'])
    assert (found.key, found.fingerprint) == (key, fingerprint)
    assert json.loads(found.payload) == event_payload(id="e1")


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
    assert plan(opened, []) == Plan([], [], [])


def test_row_of_a_left_join_without_event_is_a_user_only(opened: Opened) -> None:
    assert plan(opened, [ROW | NO_EVENT]) == Plan([(1, user())], [], [])


def test_user_in_many_rows_is_one_update_with_the_values_of_the_last(opened: Opened) -> None:
    rows = [ROW | {"plan_type": plan_type} for plan_type in ("pro", "pro", "free", "free")]
    found = plan(opened, rows)
    assert found.users == [(3, user(plan_type="free"))]
    assert (len(found.events), found.doubled) == (1, Doubled(repeated=3))


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
    monkeypatch.setattr("pipeline.transform.row_changes.SLOTS", 3)
    monkeypatch.setattr("pipeline.transform.row_changes.PERSON_SLOTS", 3)
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
    monkeypatch.setattr("pipeline.transform.row_changes.SLOTS", 2)
    monkeypatch.setattr("pipeline.transform.row_changes.PERSON_SLOTS", 2)
    with open_both(tmp_path, now=NOW_S, lasting=False) as other:
        piecemeal = plan(other, rows, rows_per_block=3)
    assert [payload for _, payload in piecemeal.users] == [payload for _, payload in whole.users]
    assert piecemeal.events == whole.events
    assert [each[2:] for each in piecemeal.refused] == [each[2:] for each in whole.refused]


def test_records_are_staged_before_the_end(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 4)
    planner = Planner(opened.ledger, opened.stage, RULES, list(ROW))
    for who in ("nobody", "no one"):
        assert list(opened.stage.outcomes.undelivered()) == []
        planner.plan([[value] for value in (ROW | {"email": who}).values()])
    assert len(list(opened.stage.outcomes.undelivered())) == 4


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
    assert list(opened.stage.outcomes.undelivered()) == [
        FailedRecord(Kind.USER, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
        FailedRecord(Kind.EVENT, 1, None, Outcome.REJECTED, None, "InvalidRecord", message, 0),
    ]


def test_row_of_nothing_but_null_is_one_refused_user(opened: Opened) -> None:
    refused: Refused = [(Kind.USER, 1, None, "email is empty.")]
    assert plan(opened, [dict.fromkeys(ROW), ROW]) == Plan([(2, user())], [(2, event_payload())], refused)


def event_payload(**changes: Any) -> dict[str, Any]:
    return {
        "email": "ada@example.com",
        "eventName": "page_view",
        "id": PINNED_ID,
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
    assert plan(opened, rows) == Plan([], [], [(Kind.USER, 2, "ada@example.com", reason)])


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
    assert plan(opened, rows) == Plan([(2, user())], [], [])


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
            for page in opened.stage.outcomes.refusals()
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
        (BAD_ROWS[1], {"plan_type": b"\xfe"}),
        (BAD_ROWS[2], {"event_time": "later"}),
        (BAD_ROWS[2], {"page": None}),
    ],
)
def test_a_refusal_of_other_values_is_another_one(tmp_path: Path, row: dict[str, Any], changes: dict[str, Any]) -> None:
    before, after = refusals_of(tmp_path, row), refusals_of(tmp_path, row | changes)
    assert {fingerprint for _, _, fingerprint, _ in before}.isdisjoint(fingerprint for _, _, fingerprint, _ in after)


def test_a_user_whose_address_is_wrong_is_the_same_whatever_else_the_row_says(tmp_path: Path) -> None:
    row = BAD_ROWS[0]
    found = [refusals_of(tmp_path, each)[-1] for each in (row, row | {"page": "home", "plan_type": "free"})]
    assert found[0] == found[1]
    assert found[0][0] is Kind.USER


# Runs that break off --------------------------------------------------------------------------------------------------


def test_run_that_breaks_off_before_users_are_put_together_has_a_whole_account(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.transform.planner.RECORDS_PER_STAGING", 1)
    rows = [ROW, ROW | {"email": "bob@example.com"}, ROW | NO_EVENT | {"plan_type": "free"}, ROW | {"email": "nobody"}]
    planner = Planner(opened.ledger, opened.stage, RULES, list(ROW))
    planner.plan(list(zip(*(row.values() for row in rows), strict=True)))
    opened.stage.note_not_attempted("Not attempted.")
    assert [each[:4] for each in opened.stage.outcomes.undelivered()] == [
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
        assert opened.stage.states.count_outcomes()[Kind.USER][Outcome.UNCHANGED] == 2
        assert opened.stage.left_users == 1


# Events that are the same -----------------------------------------------------------------------------------------


def test_identical_rows_are_one_event(opened: Opened) -> None:
    same = ROW | {"event_time": datetime(2026, 1, 13, 8, 45, 12)}
    found = plan(opened, [ROW, ROW, same, ROW | {"page": "home"}])
    assert [row for row, _ in found.events] == [1, 4]
    assert found.doubled == Doubled(repeated=2)


def test_event_id_with_other_content_of_the_same_user_is_the_last_one(opened: Opened) -> None:
    found = plan(opened, [ROW | {"event_id": 7, "page": page} for page in ("a", "b", "b")], WITH_EVENT_ID)
    assert found.events == [(2, event_payload(id="7", dataFields={"page": "b"}))]
    assert (found.refused, found.doubled) == ([], Doubled(repeated=1, corrected=1))


@pytest.mark.parametrize(
    "other", [{"email": "bob@example.com"}, {"event_time": "2026-01-13 08:45:13"}, {"event_name": "order"}]
)
def test_rows_with_one_event_id_and_another_person_time_or_name_are_all_refused(
    opened: Opened, other: dict[str, Any]
) -> None:
    first = ROW | {"event_id": 7, "event_name": "visit"}
    rows = [first, first | other, first | {"page": "home"}, first | {"event_id": 8}]
    found = plan(opened, rows, replace(WITH_EVENT_ID, name_column="event_name"))
    assert [row for row, _ in found.events] == [4]
    reasons = dict.fromkeys((1, 3), "event_id is also that of row 2, which has another name, person or time.")
    reasons[2] = "event_id is also that of row 1, which has another name, person or time."
    assert found.refused == [(Kind.EVENT, row, None, reasons[row]) for row in (1, 2, 3)]


def test_time_within_a_second_is_no_other_time_as_iterable_has_none(opened: Opened) -> None:
    rows = [ROW | {"event_id": 7, "event_time": f"2026-01-13 08:45:12.{n}"} for n in (1, 9)]
    found = plan(opened, rows, WITH_EVENT_ID)
    assert ([row for row, _ in found.events], found.refused) == ([1], [])
    assert found.doubled == Doubled(repeated=1)


PERSONAL = replace(WITH_EVENT_ID, person_column="id")


def accept_all(folder: Path, rules: Rules, *rows: dict[str, Any]) -> None:
    """A run in which Iterable accepts everything."""
    with open_both(folder, now=NOW_S) as opened:
        plan(opened, rows, rules)
        opened.accept([*opened.stage.pending(Kind.USER), *opened.stage.pending(Kind.EVENT)])
        opened.ledger.commit()


@pytest.mark.parametrize("rules", [PERSONAL, BY_USER_ID_AND_EVENT_ID])
def test_event_id_that_iterable_has_of_another_person_is_refused(tmp_path: Path, rules: Rules) -> None:
    accept_all(tmp_path, rules, ROW | {"event_id": 7})
    with open_both(tmp_path, now=NOW_S) as opened:
        found = plan(opened, [ROW | {"id": 2, "email": "bob@example.com", "event_id": 7}], rules)
    reason = "event_id is that of an event of another person, which Iterable has accepted."
    assert (found.events, found.refused) == ([], [(Kind.EVENT, 1, None, reason)])


def test_where_no_column_says_who_a_person_is_an_accepted_event_is_unchanged_under_another_address(
    tmp_path: Path,
) -> None:
    accept_all(tmp_path, WITH_EVENT_ID, ROW | {"event_id": 7})
    for values, is_refused in (({}, False), ({"page": "home"}, True), ({"event_time": "2026-01-13 08:45:13"}, True)):
        with open_both(tmp_path, now=NOW_S) as opened:
            found = plan(opened, [ROW | {"email": "new@example.com", "event_id": 7} | values], WITH_EVENT_ID)
            unchanged = opened.stage.states.count_outcomes()[Kind.EVENT][Outcome.UNCHANGED]
        assert (found.events, len(found.refused), unchanged) == ([], int(is_refused), int(not is_refused))


def test_event_of_the_same_person_with_another_time_is_an_update(tmp_path: Path) -> None:
    accept_all(tmp_path, PERSONAL, ROW | {"event_id": 7})
    with open_both(tmp_path, now=NOW_S) as opened:
        found = plan(opened, [ROW | {"event_id": 7, "event_time": "2026-01-13 08:45:10"}], PERSONAL)
    assert [payload["createdAt"] for _, payload in found.events] == [int(NOW_S) - 2]
    assert found.refused == []


def test_without_event_id_the_same_event_of_two_users_is_two(opened: Opened) -> None:
    found = plan(opened, [ROW, ROW | {"email": "bob@example.com"}])
    first, second = (payload["id"] for _, payload in found.events)
    assert first != second


# Rows that repeat the row before --------------------------------------------------------------------------------------

said = st.tuples(
    st.sampled_from(["ada@example.com", "bob@example.com", "cy@example.com"]),
    st.sampled_from([None, "pro", "free", 1, True]),
    st.sampled_from([None, 1, 2, 3]),
    st.sampled_from([None, "old@example.com", "older@example.com"]),
)


@given(st.lists(said, min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 5), st.booleans())
def test_nothing_that_a_row_says_is_lost_where_users_share_a_slot(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, Any, int | None, str | None]],
    slots: int,
    rows_per_block: int,
    clear_nulls: bool,
) -> None:
    rules = replace(
        RULES,
        user_fields=(FieldMap("plan_type", "plan"),),
        time_column=None,
        person_column="id",
        previous_column="previous_email",
        clear_nulls=clear_nulls,
    )
    plans: dict[str, Any] = {}  # the plain way
    persons: dict[str, set[int]] = {}
    previous: dict[str, str] = {}
    for who, plan_type, person, earlier in rows:
        if plan_type is not None or clear_nulls or who not in plans:
            plans[who] = plan_type
        persons.setdefault(who, set()).update(() if person is None else {person})
        if earlier is not None:
            previous[who] = earlier
    names = ("email", "plan_type", "id", "previous_email")
    with ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setattr("pipeline.transform.row_changes.SLOTS", slots)
        monkeypatch.setattr("pipeline.transform.row_changes.PERSON_SLOTS", slots)
        opened = stack.enter_context(open_both(tmp_path_factory.getbasetemp(), now=NOW_S, lasting=False))
        planner = Planner(opened.ledger, opened.stage, rules, names)
        for start in range(0, len(rows), rows_per_block):
            planner.plan(list(zip(*rows[start : start + rows_per_block], strict=True)))
        planner.end_reading()
        found = {each.who: each.said for each in planner._merged_users()}
    assert {who: said.values[0] for who, said in found.items()} == {
        who: "" if value is None else json.dumps(value) for who, value in plans.items()
    }
    for who, several in persons.items():  # of more than two, two are enough to know
        named = found[who].persons
        assert named <= {f'"{person}"' for person in several}
        assert bool(named) == (len(several) > 1)
    assert {who: json.loads(said.values[2] or '""') for who, said in found.items()} == {
        who: previous.get(who, "") for who in plans
    }


def test_rows_that_repeat_what_the_row_before_said_of_their_user_are_not_staged(opened: Opened) -> None:
    rows = [ROW | NO_EVENT | {"id": 1, "page": None}] * 5
    planner = Planner(opened.ledger, opened.stage, replace(RULES, person_column="id"), list(ROW))
    planner.plan(list(zip(*(row.values() for row in rows), strict=True)))
    planner.end_reading()
    assert [row for _, row, _, _ in opened.stage.user_rows()] == [1]


def test_column_with_another_value_in_each_row_stages_each_user_twice(opened: Opened) -> None:
    """An event's id in `id`, say, is no person's."""
    rows = [ROW | {"id": number} for number in range(20)]
    planner = Planner(opened.ledger, opened.stage, replace(RULES, person_column="id"), list(ROW))
    planner.plan(list(zip(*(row.values() for row in rows), strict=True)))
    planner.end_reading()
    assert [row for _, row, _, _ in opened.stage.user_rows()] == [1, 2]
