"""Rows in, events out. Expected payloads are written out in full."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap, FieldType
from pipeline.transform import events
from pipeline.transform.identity import origin_of
from pipeline.transform.rules import Rules
from pipeline.transform.users import OmittedValue
from pipeline.transform.values import InvalidRecord, unix_microseconds
from tests.transform.rows import (
    BERLIN,
    BY_USER_ID,
    CLEARED,
    MERGED,
    NESTED,
    NEW_YORK,
    NO_FORM,
    NOW_S,
    ROW,
    RULES,
    UTC,
    any_rows,
    any_rules,
    decoded,
    event,
    event_of,
    events_of,
    has_event,
    of_rows,
    sent_event,
)

PINNED_ORIGIN = "b5fc85e55755f9e0d030"
# A change of this id would send every event of every project again, as another event.
PINNED_ID = f"ue2-{PINNED_ORIGIN}-af417653358c7d1748c317ca6bd74162"


# Whole payloads -------------------------------------------------------------------------------------------------------


def test_row_becomes_an_event() -> None:
    assert event_of() == {
        "email": "ada@example.com",
        "eventName": "page_view",
        "id": PINNED_ID,
        "createdAt": NOW_S,
        "dataFields": {"page": "pricing", "deviceType": "desktop"},
    }


def test_identified_by_user_id_an_event_carries_it_alone() -> None:
    assert sent_event(BY_USER_ID) == {
        "userId": "1",
        "eventName": "page_view",
        "id": "ue2-6b86b273ff34fce19d6b-af417653358c7d1748c317ca6bd74162",
        "createdAt": NOW_S,
        "dataFields": {"page": "pricing", "deviceType": "desktop"},
    }


def test_null_is_left_out_by_default_and_null_with_clear_nulls_and_never_changes_the_id() -> None:
    clear = replace(RULES, clear_nulls=True)
    assert sent_event(device=None)["dataFields"] == {"page": "pricing"}
    assert sent_event(clear, device=None)["dataFields"] == {"page": "pricing", "deviceType": None}
    assert sent_event(clear, device=None)["id"] == sent_event(device=None)["id"]


def test_payload_is_compact_utf8_json_with_its_fields_in_the_order_of_their_names() -> None:
    found = event(ROW | {"page": [1.5, None, "ü"]}, "zoë@example.com", RULES)
    assert found is not None
    event_id, body = found
    assert body.decode() == (
        f'{{"email":"zoë@example.com","eventName":"page_view","id":"{event_id}","createdAt":1768293912,'
        '"dataFields":{"deviceType":"desktop","page":[1.5,null,"ü"]}}'
    )


def test_events_nest_too_and_their_ids_depend_on_neither_order_nor_nulls() -> None:
    assert sent_event(NESTED)["dataFields"] == {"page": "pricing", "client": {"device": "desktop", "n": "1"}}
    turned = replace(NESTED, event_fields=NESTED.event_fields[::-1])
    assert sent_event(turned)["id"] == sent_event(NESTED)["id"]
    assert sent_event(CLEARED, device=None, id=None)["dataFields"] == {"page": "pricing", "client": None}
    assert sent_event(CLEARED, device=None, id=None)["id"] == sent_event(NESTED, device=None, id=None)["id"]


def test_a_type_changes_the_value_and_so_the_id() -> None:
    typed = replace(RULES, event_fields=(FieldMap("page", "page", FieldType.TEXT), FieldMap("device", "deviceType")))
    assert sent_event(typed)["id"] == PINNED_ID
    assert sent_event(typed, page=21)["id"] == sent_event(page="21")["id"] != sent_event(page=21)["id"]


def test_field_name_with_a_quote_is_sent() -> None:
    rules = replace(RULES, event_fields=(FieldMap("page", 'the "page" 100%s\\'),))
    assert sent_event(rules)["dataFields"] == {'the "page" 100%s\\': "pricing"}


def test_merge_nested_is_said_in_no_event() -> None:
    assert sent_event(MERGED) == sent_event(NESTED)


# When -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "zone", "created_at"),
    [
        ("2026-01-13 08:45:12", UTC, NOW_S),
        ("2026-01-13T08:45:12", UTC, NOW_S),
        ("2026-01-13t08:45:12z", UTC, NOW_S),
        (" 2026-01-13 08:45:12\n", UTC, NOW_S),
        ("2026-01-13 08:45:12.999999999", UTC, NOW_S),
        ("2026-01-13 08:45:12,5", UTC, NOW_S),
        ("2026-01-13T08:45:12.123Z", BERLIN, NOW_S),
        ("2026-01-13 08:45:12 UTC", BERLIN, NOW_S),
        ("2026-01-13 09:45:12+01", UTC, NOW_S),
        ("2026-01-13T09:45:12.123+01:00", UTC, NOW_S),
        ("2026-01-13 03:15:12 -0530", UTC, NOW_S),
        ("2026-01-13 09:45:12", BERLIN, NOW_S),
        ("2026-01-13 08:45", UTC, NOW_S - 12),
        ("2026-01-13", UTC, NOW_S - 31_512),
        ("2026-01-13", BERLIN, NOW_S - 31_512 - 3600),
        (datetime(2026, 1, 13, 8, 45, 12, 500_000), UTC, NOW_S),
        (datetime(2026, 1, 13, 9, 45, 12), BERLIN, NOW_S),
        (datetime(2026, 1, 13, 3, 45, 12, tzinfo=NEW_YORK), UTC, NOW_S),
        (date(2026, 1, 13), UTC, NOW_S - 31_512),
        (date(2026, 1, 13), BERLIN, NOW_S - 31_512 - 3600),
        (NOW_S, BERLIN, NOW_S),
        (NOW_S + 0.75, BERLIN, NOW_S),
        (Decimal(NOW_S) + Decimal("0.999999"), UTC, NOW_S),
        (b"2026-01-13 08:45:12", BERLIN, NOW_S - 3600),
        (bytearray(b"2026-01-13T08:45:12Z"), BERLIN, NOW_S),
        (100_000_000, UTC, 100_000_000),
        ("1970-01-01 00:00:00", UTC, 0),
        # Clocks were put forward at 2:00 and back at 3:00: the hour that does not exist, and the one that comes twice.
        ("2025-03-30 02:30:00", BERLIN, 1_743_298_200),
        ("2025-10-26 02:30:00", BERLIN, 1_761_438_600),
        (datetime(2025, 10, 26, 2, 30, fold=1), BERLIN, 1_761_442_200),
        ("2026-01-14 08:45:12", UTC, NOW_S + 86_400),
    ],
)
def test_created_at_is_the_time_in_whole_unix_seconds(value: Any, zone: tzinfo, created_at: int) -> None:
    found = sent_event(replace(RULES, zone=zone), event_time=value)["createdAt"]
    assert (found, type(found)) == (created_at, int)


NO_UNIX_TIME = "event_time is a number below 100,000,000, which is not a Unix time; cast it to a timestamp in the query"
NO_SUCH = "event_time is a day or a time that does not exist"
FUTURE = "event_time is more than a day in the future"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("yesterday", NO_FORM),
        ("13.01.2026 08:45", NO_FORM),
        ("01/13/2026", NO_FORM),
        ("20260113T084512", NO_FORM),
        ("2026-W03-2T08:45:12", NO_FORM),
        ("2026-01-13 08:45:12 PST", NO_FORM),
        ("2026-01-13 08", NO_FORM),
        ("２０２６-01-13 08:45:12", NO_FORM),
        ("1768293912", NO_FORM),
        ("2026-01-13x08:45:12", NO_FORM),
        ("2026-01-13 08:45:12\udce9", NO_FORM),
        ("  ", NO_FORM),
        ("2026-02-30 08:45:12", NO_SUCH),
        ("2026-02-30", NO_SUCH),
        ("2026-01-13 25:00:00", NO_SUCH),
        ("2026-01-13 08:60:00", NO_SUCH),
        ("0000-00-00 00:00:00", NO_SUCH),
        ("2026-01-13 08:45:12+99:00", NO_SUCH),
        (b"2026-01-13 08:45:1\xff", "event_time is not valid UTF-8"),
        (True, "event_time has the type bool, which is not a time"),
        (time(8, 45), "event_time has the type time, which is not a time"),
        ([], "event_time has the type list, which is not a time"),
        (float("nan"), "event_time is a number that is not a valid time"),
        (float("inf"), "event_time is a number that is not a valid time"),
        (1e300, "event_time is a number that is not a valid time"),
        (10**400, "event_time is a number that is not a valid time"),
        (Decimal("sNaN"), "event_time is a number that is not a valid time"),
        (Decimal("1E+999999"), "event_time is a number that is not a valid time"),
        ("1969-12-31 23:59:59.999999", "event_time is before 1970"),
        *[(number, NO_UNIX_TIME) for number in (-1, 0, 46_035.36, Decimal("2461053.86"), 99_999_999)],
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "event_time is before 1970"),
        ("2026-01-14 08:45:13", FUTURE),
        ("9999-12-31 23:59:59", f"{FUTURE}; perhaps it is in milliseconds"),
        (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-1))), f"{FUTURE}; perhaps it is in milliseconds"),
        (NOW_S * 1000, f"{FUTURE}; perhaps it is in milliseconds"),
        (NOW_S * 1_000_000_000, f"{FUTURE}; perhaps it is in milliseconds"),
    ],
)
def test_impossible_time_refuses_the_event_with_its_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        event_of(event_time=value)
    assert str(caught.value) == reason


@pytest.mark.parametrize("microsecond", [0, 1, 123_457, 999_999])
@pytest.mark.parametrize("second", [100_000_000, 999_999_999, NOW_S])
def test_time_as_a_float_has_the_microsecond_that_it_stands_for(second: int, microsecond: int) -> None:
    found = unix_microseconds(second + microsecond / 1e6, UTC, "event_time")
    assert found == second * 1_000_000 + microsecond


# Whether there is an event --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, ""])
def test_row_of_a_left_join_without_event_has_none(empty: str | None) -> None:
    rules = replace(RULES, id_column="event_id", name_column="event_name")
    values = {"event_time": empty, "page": empty, "device": None, "event_id": None, "event_name": "page_view"}
    assert event_of(rules, **values) is None
    assert not has_event(ROW | values, rules)


def test_query_without_event_time_has_no_events() -> None:
    rules = replace(RULES, time_column=None)
    assert event_of(rules) is None
    assert not has_event(ROW, rules)


def test_event_without_time_is_refused() -> None:
    reason = r"^event_time is empty, although page says that there was an event$"
    with pytest.raises(InvalidRecord, match=reason):
        event_of(event_time=None)
    with pytest.raises(InvalidRecord, match=r"^event_time is empty, although event_id says"):
        event_of(replace(RULES, id_column="event_id"), event_time="", page=None, device=None, event_id=7)


def test_row_without_event_may_still_carry_what_describes_its_user() -> None:
    fields = (FieldMap("plan_type", "plan"), FieldMap("email", "address"), FieldMap("page", "page"))
    assert event_of(replace(RULES, event_fields=fields), event_time=None, page=None) is None


def test_row_that_names_nobody_still_tells_that_it_has_an_event() -> None:
    assert has_event(ROW | {"email": None}, RULES)


# What it is called ----------------------------------------------------------------------------------------------------


def test_event_name_column_wins_over_the_setting() -> None:
    rules = replace(RULES, name_column="event_name")
    assert sent_event(rules, event_name='sign "up" \\ ✓')["eventName"] == 'sign "up" \\ ✓'


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "event_name is empty or not text"),
        ("", "event_name is empty or not text"),
        (" \t", "event_name is empty or not text"),
        (7, "event_name is empty or not text"),
        ("caf\udce9", "event_name is not valid UTF-8"),
    ],
)
def test_event_without_a_usable_name_is_refused(name: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        event_of(replace(RULES, name_column="event_name"), event_name=name)
    assert str(caught.value) == reason


# The query's own ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "event_id"),
    [
        ("pv-1", "pv-1"),
        (" pv 1 ", " pv 1 "),
        ('a"b\\c\n\0', 'a"b\\c\n\0'),
        ("é" * 256, "é" * 256),
        (17, "17"),
        (Decimal("17.0"), "17"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"pv-1", "pv-1"),
    ],
)
def test_event_id_of_the_query_is_used(value: Any, event_id: str) -> None:
    assert sent_event(replace(RULES, id_column="event_id"), event_id=value)["id"] == event_id


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_name_and_time_may_come_as_bytes(kind: Any) -> None:
    """As from MySQL's binary columns and Spark's."""
    rules = replace(RULES, name_column="event_name")
    expected = sent_event(rules, event_name="plan_é", event_time="2026-01-13 08:45:12")
    found = sent_event(rules, event_name=kind("plan_é".encode()), event_time=kind(b"2026-01-13 08:45:12"))
    assert (found, found["eventName"], found["createdAt"]) == (expected, "plan_é", 1768293912)


@pytest.mark.parametrize("value", [None, "", "  ", b""])
def test_empty_event_id_gives_way_to_the_derived_one(value: Any) -> None:
    assert sent_event(replace(RULES, id_column="event_id"), event_id=value)["id"] == PINNED_ID


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("é" * 256 + "x", "event_id is longer than 512 bytes"),
        ("caf\udce9", "event_id is not valid UTF-8"),
        (b"\xff", "event_id is not valid UTF-8"),
        (float("nan"), "event_id is not a whole number, or has more than 52 digits"),
        pytest.param(10**5000, "event_id is not a whole number, or has more than 52 digits", id="huge"),
        (True, "event_id has the type bool, which can't be an id"),
        ({}, "event_id has the type dict, which can't be an id"),
    ],
)
def test_unusable_event_id_refuses_the_event(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        event_of(replace(RULES, id_column="event_id"), event_id=value)
    assert str(caught.value) == reason


def test_what_a_given_id_may_not_change_is_the_name_and_the_second() -> None:
    rules = replace(RULES, id_column="event_id", name_column="event_name")
    row = ROW | {"event_id": 1, "event_name": "visit"}
    changes = [{}, {"page": "home"}, {"event_time": "2026-01-13 08:45:12.9"}, {"event_name": "order"}]
    found = events.events(of_rows(*(row | each for each in changes)), ["ada@example.com"] * 4, rules)
    assert events.given_heads(found) == [f'{NOW_S},"visit"'] * 3 + [f'{NOW_S},"order"']


# Ids that are made of what an event says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "2026-01-13T08:45:12Z",
        "2026-01-13 08:45:12.000000",
        "2026-01-13 09:45:12+01:00",
        datetime(2026, 1, 13, 8, 45, 12),
        datetime(2026, 1, 13, 9, 45, 12, tzinfo=BERLIN),
        NOW_S,
        float(NOW_S),
        Decimal(NOW_S),
    ],
)
def test_derived_id_is_the_same_for_every_form_of_one_time(value: Any) -> None:
    assert sent_event(event_time=value)["id"] == PINNED_ID


def test_derived_id_does_not_depend_on_the_order_of_fields_or_on_other_columns() -> None:
    turned = replace(RULES, event_fields=RULES.event_fields[::-1])
    assert sent_event(turned, first_name="Grace", id=99)["id"] == PINNED_ID


@pytest.mark.parametrize(
    ("rules", "values"),
    [
        (replace(RULES, event_name="page_views"), {}),
        (RULES, {"email": "bob@example.com"}),
        (RULES, {"event_time": "2026-01-13 08:45:13"}),
        (RULES, {"event_time": "2026-01-13 08:45:12.000001"}),
        (RULES, {"page": "Pricing"}),
        (RULES, {"page": None}),
        (RULES, {"page": ""}),
        (RULES, {"page": "desktop", "device": "pricing"}),
        (replace(RULES, event_fields=(FieldMap("page", "page"), FieldMap("device", "device"))), {}),
    ],
)
def test_derived_id_differs_where_name_person_time_or_fields_differ(rules: Rules, values: dict[str, Any]) -> None:
    assert sent_event(rules, **values)["id"] != PINNED_ID


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (1, "1"), (None, "None"), ([1, 2], [2, 1])])
def test_derived_id_tells_types_apart(one: Any, other: Any) -> None:
    assert sent_event(page=one)["id"] != sent_event(page=other)["id"]


def test_derived_id_goes_by_the_names_of_the_fields_and_not_of_their_columns() -> None:
    crossed = replace(RULES, event_fields=(FieldMap("page", "b"), FieldMap("device", "a")))
    straight = replace(RULES, event_fields=(FieldMap("page", "a"), FieldMap("device", "b")))
    assert sent_event(crossed, page="1", device="2")["id"] == sent_event(straight, page="2", device="1")["id"]


@given(
    st.datetimes(datetime(1973, 3, 5), datetime(2026, 1, 12)),
    st.timezones(),
    st.permutations([FieldMap("page", "page"), FieldMap("device", "deviceType")]),
)
def test_derived_id_is_that_of_the_instant(moment: datetime, zone: tzinfo, fields: list[FieldMap]) -> None:
    utc = moment.replace(tzinfo=UTC)
    forms = [
        moment,
        utc,
        utc.astimezone(zone),
        moment.isoformat(),
        moment.isoformat(" "),
        utc.isoformat(),
        Decimal((moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)) / 1_000_000,
    ]
    rules = replace(RULES, event_fields=tuple(fields))
    assert {sent_event(rules, event_time=form)["id"] for form in forms} == {sent_event(event_time=moment)["id"]}


texts = st.text(max_size=3)
parts = st.tuples(texts, texts, st.integers(0, 10**6), st.dictionaries(texts, texts, max_size=2))


@given(parts, parts)
def test_derived_ids_are_the_same_only_for_the_same_parts(
    one: tuple[str, str, int, dict[str, str]], other: tuple[str, str, int, dict[str, str]]
) -> None:
    ids = []
    for name, who, moment, fields in (one, other):
        contents = events.event_contents([json.dumps(name)], [moment], [json.dumps(fields, sort_keys=True)[1:-1]])
        ids += events.event_ids([who], contents, {})
    assert (ids[0] == ids[1]) == (one == other)


def test_person_whose_address_has_changed_keeps_the_ids_of_the_first_one() -> None:
    people = ["new@example.com", "bob@example.com"]
    found = events.events(of_rows(ROW, ROW), people, RULES)
    moved = events.event_payloads(found, RULES, {"new@example.com": origin_of("ada@example.com")})
    assert [json.loads(body)["email"] for body in moved] == people
    assert [json.loads(body)["id"] for body in moved] == [
        PINNED_ID,
        sent_event(email="bob@example.com")["id"],
    ]
    assert PINNED_ID.startswith(events.id_prefix(origin_of("ada@example.com")))


# BAD_VALUES=omit ------------------------------------------------------------------------------------------------------

OMITS = replace(RULES, omits_bad_values=True, id_column="event_id")
BAD = ROW | {"page": float("nan"), "event_id": "e1"}


def test_bad_value_is_left_out_of_an_event_with_an_id_of_its_own_and_named() -> None:
    found = events.events(of_rows(ROW | {"event_id": "e0"}, BAD), ["ada@example.com"] * 2, OMITS)
    ((place, field, reason, cell),) = found.omitted
    assert (place, field, reason, len(cell)) == (1, "page", "page is nan, which JSON can't hold", 16)
    assert (list(found.places), list(found.problems)) == ([0, 1], [])
    assert found.fields == ['"deviceType":"desktop","page":"pricing"', '"deviceType":"desktop"']


def test_left_out_is_no_null() -> None:
    clears = replace(OMITS, clear_nulls=True)
    assert sent_event(clears, page=float("nan"), event_id="e1")["dataFields"] == {"deviceType": "desktop"}
    assert sent_event(clears, page=None, event_id="e1")["dataFields"] == {"deviceType": "desktop", "page": None}


def test_cell_that_is_wrong_in_another_way_is_another_one() -> None:
    def cell(value: Any) -> str:
        (found,) = events.events(of_rows(BAD | {"page": value}), ["ada@example.com"], OMITS).omitted
        return found.cell

    assert cell(b"\xff") == cell(b"\xff") != cell(b"\xfe")


@pytest.mark.parametrize(
    ("rules", "values", "reason"),
    [
        (OMITS, {"event_id": None}, "page is nan, which JSON can't hold"),
        (replace(RULES, omits_bad_values=True), {}, "page is nan, which JSON can't hold"),
        (replace(OMITS, omits_bad_values=False), {}, "page is nan, which JSON can't hold"),
        (OMITS, {"page": "home", "event_time": "soon"}, NO_FORM),
        (OMITS, {"page": "home", "event_id": b"\xff"}, "event_id is not valid UTF-8"),
        (
            replace(OMITS, name_column="event_name"),
            {"page": "home", "event_name": None},
            "event_name is empty or not text",
        ),
    ],
)
def test_what_an_event_needs_is_never_left_out(rules: Rules, values: dict[str, Any], reason: str) -> None:
    """Nor is a field of an event whose id is made of its fields: it would change with the mended value."""
    with pytest.raises(InvalidRecord) as caught:
        event(BAD | values, "ada@example.com", rules)
    assert str(caught.value) == reason


# Many rows ------------------------------------------------------------------------------------------------------------


def test_of_rows_planned_together_only_the_bad_ones_are_refused() -> None:
    rows = [
        ROW,
        ROW | {"event_time": None, "page": None, "device": ""},
        ROW | {"page": "tür"},
        ROW | {"event_time": "yesterday"},
        ROW | {"event_time": ""},
        ROW | {"page": None, "device": 17},
        ROW | {"event_time": datetime(2026, 1, 13, 8, 45, 12)},
        ROW | {"event_time": "1969-12-31 23:59:59"},
        ROW | {"event_time": "2026-01-15 08:45:12"},
        ROW | {"page": "caf\udce9"},
        ROW,
    ]
    people = ["ada@example.com"] * len(rows)
    told = [each if isinstance(each, str) else decoded(each) for each in events_of(rows, people, RULES)]
    assert [each if isinstance(each, str) else each and each["dataFields"] for each in told] == [
        {"page": "pricing", "deviceType": "desktop"},
        None,
        {"page": "tür", "deviceType": "desktop"},
        NO_FORM,
        "event_time is empty, although page says that there was an event",
        {"deviceType": 17},
        {"page": "pricing", "deviceType": "desktop"},
        "event_time is before 1970",
        FUTURE,
        "page is not valid UTF-8",
        {"page": "pricing", "deviceType": "desktop"},
    ]
    assert events_of([], [], RULES) == []


@given(st.lists(st.tuples(any_rows | st.just(ROW), st.sampled_from(["", "keep", "empty"])), max_size=6), any_rules)
def test_rows_become_the_same_events_together_as_each_alone(
    wild: list[tuple[dict[str, Any], str]], rules: Rules
) -> None:
    plain = ROW | {"event_name": "page_view", "event_id": None}
    empty = {"event_time": None, "page": "", "device": None, "event_id": None}
    rows = [plain | (empty if choice == "empty" else row if choice else {}) for row, choice in wild]
    people = [f"{number}@example.com" for number in range(len(rows))]
    alone = [events_of([row], [who], rules)[0] for row, who in zip(rows, people, strict=True)]
    assert events_of(rows, people, rules) == alone


@given(st.lists(any_rows, max_size=6), any_rules)
def test_values_are_left_out_together_as_of_each_alone(rows: list[dict[str, Any]], rules: Rules) -> None:
    def omitted(*some: dict[str, Any]) -> list[OmittedValue]:
        found = events.events(of_rows(*some), ["ada@example.com"] * len(some), rules)
        return sorted(each for each in found.omitted if each.place in found.places)

    alone = [each._replace(place=place) for place, row in enumerate(rows) for each in omitted(row)]
    assert omitted(*rows) == sorted(alone)


@given(any_rows, any_rules)
def test_any_row_gives_an_event_that_can_be_sent_or_a_reason(row: dict[str, Any], rules: Rules) -> None:
    has_event(row, rules)
    payload = None
    with suppress(InvalidRecord):
        payload = decoded(event(row, "ada@example.com", rules))
    if payload is not None:
        assert 1 <= len(payload["id"].encode()) <= 512
        assert isinstance(payload["createdAt"], int)
        assert 0 <= payload["createdAt"] <= RULES.latest_s
