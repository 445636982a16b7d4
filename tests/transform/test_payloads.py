"""Rows in, payloads out. Expected payloads are written out in full."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from ipaddress import IPv4Interface, ip_address, ip_network
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap, FieldType
from pipeline.transform import payloads
from pipeline.transform.payloads import Rules
from pipeline.transform.values import InvalidRecord, canonical, unix_microseconds

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
NOW_S = 1_768_293_912  # 2026-01-13 08:45:12 in UTC
RULES = Rules(
    by_user_id=False,
    identity_column="email",
    user_fields=(FieldMap("first_name", "first_name"), FieldMap("plan_type", "planType")),
    event_fields=(FieldMap("page", "page"), FieldMap("device", "deviceType")),
    event_name="page_view",
    zone=UTC,
    clear_nulls=False,
    latest_s=NOW_S + 86_400,
)
BY_USER_ID = replace(RULES, by_user_id=True, identity_column="id")
ROW: dict[str, Any] = {
    "id": 1,
    "email": "ada@example.com",
    "first_name": "Ada",
    "plan_type": "pro",
    "page": "pricing",
    "device": "desktop",
    "event_time": "2026-01-13 08:45:12",
}
# A change of this id would send every event of every project again, as another event.
PINNED_ID = "ue1-13fe51c5f4b36d5e1da24c5ba82a3fe2a2499f92"


def of_rows(*rows: Mapping[str, Any]) -> payloads.Columns:
    """The rows by the column."""
    return {column: [row[column] for row in rows] for column in ROW | dict(*rows[:1])}


def events_of(rows: Sequence[Mapping[str, Any]], people: Sequence[str], rules: Rules) -> list[Any]:
    """For each row its id and payload, or the reason why there can't be one, or None."""
    found = payloads.events(of_rows(*rows), people, rules)
    events = dict(zip(found.places, ids_and_payloads(found, rules), strict=True))
    problems = {place: str(problem) for place, problem in found.problems}
    assert not events.keys() & problems.keys()
    return [events.get(place) or problems.get(place) for place in range(len(rows))]


def user_update(row: Mapping[str, Any], who: str, rules: Rules) -> dict[str, Any]:
    """The payload of one row alone."""
    (found,) = payloads.user_payloads([who], payloads.user_values(of_rows(row), 1, rules), rules)
    if isinstance(found, InvalidRecord):
        raise found
    payload: dict[str, Any] = json.loads(found)
    return payload


def event(row: Mapping[str, Any], who: str, rules: Rules) -> tuple[str, bytes] | None:
    """The id and the payload of one row; None: there is no event."""
    found = payloads.events(of_rows(row), [who], rules)
    for _, problem in found.problems:
        raise problem
    return ids_and_payloads(found, rules)[0] if found.places else None


def ids_and_payloads(found: payloads.Events, rules: Rules) -> list[tuple[str, bytes]]:
    bodies = payloads.event_payloads(found, rules)
    return [(json.loads(body)["id"], body) for body in bodies]


def has_event(row: Mapping[str, Any], rules: Rules) -> bool:
    return payloads.has_event(of_rows(row), 0, rules)


def user_of(rules: Rules = RULES, **values: Any) -> dict[str, Any]:
    row = ROW | values
    return user_update(row, payloads.identity(row[rules.identity_column], rules), rules)


def event_of(rules: Rules = RULES, **values: Any) -> dict[str, Any] | None:
    row = ROW | values
    return decoded(event(row, payloads.identity(row[rules.identity_column], rules), rules))


def decoded(event: tuple[str, bytes] | None) -> dict[str, Any] | None:
    """The payload as an object; its id is the one that the event is known by."""
    if event is None:
        return None
    event_id, encoded = event
    payload: dict[str, Any] = json.loads(encoded.decode("utf-8"), parse_constant=refuse_constant)
    assert payload["id"] == event_id
    return payload


def sent_event(rules: Rules = RULES, **values: Any) -> dict[str, Any]:
    event = event_of(rules, **values)
    assert event is not None
    return event


# Whole payloads -------------------------------------------------------------------------------------------------------


def test_row_becomes_a_user_update_and_an_event() -> None:
    assert user_of() == {"email": "ada@example.com", "dataFields": {"first_name": "Ada", "planType": "pro"}}
    assert event_of() == {
        "email": "ada@example.com",
        "eventName": "page_view",
        "id": PINNED_ID,
        "createdAt": NOW_S,
        "dataFields": {"page": "pricing", "deviceType": "desktop"},
    }


def test_identified_by_user_id_both_payloads_carry_it_alone() -> None:
    assert user_of(BY_USER_ID) == {
        "userId": "1",
        "preferUserId": True,
        "dataFields": {"first_name": "Ada", "planType": "pro"},
    }
    assert sent_event(BY_USER_ID) == {
        "userId": "1",
        "eventName": "page_view",
        "id": "ue1-457e1b17d8015b8c42bbd15fd99f070e6acf633b",
        "createdAt": NOW_S,
        "dataFields": {"page": "pricing", "deviceType": "desktop"},
    }


def test_null_is_left_out_by_default_and_null_with_clear_nulls() -> None:
    clear = replace(RULES, clear_nulls=True)
    assert user_of(plan_type=None)["dataFields"] == {"first_name": "Ada"}
    assert user_of(clear, plan_type=None)["dataFields"] == {"first_name": "Ada", "planType": None}
    assert sent_event(clear, device=None)["dataFields"] == {"page": "pricing", "deviceType": None}
    assert sent_event(clear, device=None)["id"] == sent_event(device=None)["id"]


def test_empty_text_is_a_value_and_no_null() -> None:
    assert user_of(plan_type="")["dataFields"] == {"first_name": "Ada", "planType": ""}


def test_user_without_fields_has_empty_data_fields() -> None:
    assert user_of(replace(RULES, user_fields=())) == {"email": "ada@example.com", "dataFields": {}}


def test_payload_is_compact_utf8_json_with_its_fields_in_the_order_of_their_names() -> None:
    rules = replace(RULES, user_fields=RULES.user_fields[::-1])
    (values,) = payloads.user_values(of_rows(ROW | {"plan_type": [1.5, None, True]}), 1, rules)
    assert payloads.user_payloads(["zoë@example.com"], [values], rules) == [
        '{"email":"zoë@example.com","dataFields":{"first_name":"Ada","planType":[1.5,null,true]}}'.encode()
    ]


# Nested fields ----------------------------------------------------------------------------------------------------

NESTED = replace(
    RULES,
    user_fields=(
        FieldMap("plan_type", "plan.tier"),
        FieldMap("first_name", "name"),
        FieldMap("page", "plan.seen.page"),
        FieldMap("device", "plan.seen.device"),
    ),
    event_fields=(
        FieldMap("device", "client.device"),
        FieldMap("page", "page"),
        FieldMap("id", "client.n", FieldType.TEXT),
    ),
)
CLEARED = replace(NESTED, clear_nulls=True)
MERGED = replace(NESTED, merge_nested=True)
CLEARED_AND_MERGED = replace(CLEARED, merge_nested=True)
SEEN = {"page": "pricing", "device": "desktop"}


@pytest.mark.parametrize(
    ("values", "omitted", "cleared", "cleared_and_merged"),
    [
        ({}, *[{"name": "Ada", "plan": {"tier": "pro", "seen": SEEN}}] * 3),
        (
            {"plan_type": None},
            {"name": "Ada", "plan": {"seen": SEEN}},
            {"name": "Ada", "plan": {"seen": SEEN}},
            {"name": "Ada", "plan": {"tier": None, "seen": SEEN}},
        ),
        (
            {"page": None, "first_name": None},
            {"plan": {"tier": "pro", "seen": {"device": "desktop"}}},
            {"name": None, "plan": {"tier": "pro", "seen": {"device": "desktop"}}},
            {"name": None, "plan": {"tier": "pro", "seen": {"device": "desktop"}}},
        ),
        (
            {"page": None, "device": None},
            {"name": "Ada", "plan": {"tier": "pro"}},
            {"name": "Ada", "plan": {"tier": "pro"}},
            {"name": "Ada", "plan": {"tier": "pro", "seen": None}},
        ),
        (
            {"plan_type": None, "page": None, "device": None},
            {"name": "Ada"},
            {"name": "Ada", "plan": None},
            {"name": "Ada", "plan": {"tier": None, "seen": None}},
        ),
    ],
)
def test_dots_nest_fields_and_nulls_clear_what_iterable_would_keep(
    values: dict[str, Any],
    omitted: dict[str, Any],
    cleared: dict[str, Any],
    cleared_and_merged: dict[str, Any],
) -> None:
    """Iterable replaces an object as a whole, so what is left out of it is gone; merged, only a null clears a field."""
    found = [user_of(rules, **values)["dataFields"] for rules in (NESTED, CLEARED, CLEARED_AND_MERGED)]
    assert found == [omitted, cleared, cleared_and_merged]


def test_merge_nested_is_said_in_each_user_update_and_in_no_event() -> None:
    assert user_of(MERGED, plan_type=None, page=None, device=None) == {
        "email": "ada@example.com",
        "dataFields": {"name": "Ada"},
        "mergeNestedObjects": True,
    }
    assert sent_event(MERGED) == sent_event(NESTED)


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


# Who --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "email"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.LOVELACE@Example.COM", "ada.lovelace@example.com"),
        (" ada@example.com\r\n", "ada@example.com"),
        (b"ada@example.com", "ada@example.com"),
        (bytearray(b"ada@example.com"), "ada@example.com"),
        (memoryview(b"ada@example.com"), "ada@example.com"),
        ("o'brien+news@example.co.uk", "o'brien+news@example.co.uk"),
        ("!#$%&*+-/=?^_`{|}~@example.com", "!#$%&*+-/=?^_`{|}~@example.com"),
        ('"joe blow"@example.com', '"joe blow"@example.com'),
        ('"a@b".c@example.com', '"a@b".c@example.com'),
        ('"a\\"b"@example.com', '"a\\"b"@example.com'),
        ("joe\\@blow@example.com", "joe\\@blow@example.com"),
        ("jörg@example.com", "jörg@example.com"),
        ("ada@bücher.example", "ada@bücher.example"),
        ("ada@डेटामेल.भारत", "ada@डेटामेल.भारत"),
        ("ada@xn--bcher-kva.xn--p1ai", "ada@xn--bcher-kva.xn--p1ai"),
        ("ada@a-b.c--d.museum", "ada@a-b.c--d.museum"),
        ("ada@1.com", "ada@1.com"),
        (f"{'a' * 64}@example.com", f"{'a' * 64}@example.com"),
        (f"a@{'b' * 63}.com", f"a@{'b' * 63}.com"),
    ],
)
def test_good_email_is_taken_in_lower_case(value: Any, email: str) -> None:
    assert payloads.identity(value, RULES) == email


@pytest.mark.parametrize("value", [None, "", "   ", b"", "\u00a0"])
def test_missing_email_names_nobody(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^email is empty$"):
        payloads.identity(value, RULES)


@pytest.mark.parametrize("value", [None, "", b""])
def test_missing_user_id_names_nobody(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^id is empty$"):
        payloads.identity(value, BY_USER_ID)


@pytest.mark.parametrize(
    "value",
    [
        "ada",
        "000",
        "ada@",
        "@example.com",
        "ada@example",
        "ada@localhost",
        "ada@example.c",
        "ada@example.123",
        "ada@.com",
        "ada@example..com",
        "ada@example.com.",
        "ada@-example.com",
        "ada@example-.com",
        "ada@exam_ple.com",
        "ada@exam ple.com",
        "ada@[127.0.0.1]",
        ".ada@example.com",
        "ada.@example.com",
        "a..da@example.com",
        "a da@example.com",
        "ada@x@example.com",
        "ada,bob@example.com",
        "ada@example.com,bob@example.com",
        "ada;bob@example.com",
        "Ada <ada@example.com>",
        "(ada)@example.com",
        'a"d"a@example.com',
        '"ada@example.com',
        "ada\\@example.com",
        "mailto:ada@example.com",
        "ada\x00@example.com",
        "ada\n@example.com",
        "a\u200bda@example.com",
        "ada\udce9@example.com",
        "ada@ex\udce9ample.com",
        f"a@{'b' * 64}.com",
        f"a@{'ü' * 60}.com",
        f"a@{'b.' * 126}com",
        17,
        UUID(int=5),
    ],
)
def test_malformed_email_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^email is not a valid email address$"):
        payloads.identity(value, RULES)


def test_email_with_65_characters_before_the_at_is_refused() -> None:
    with pytest.raises(InvalidRecord, match=r"^email has more than 64 characters before the @$"):
        payloads.identity(f"{'a' * 65}@example.com", RULES)


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        ("u-17", "u-17"),
        ("MiXeD", "MiXeD"),
        (" leading", " leading"),
        ("with space!~", "with space!~"),
        ("a" * 52, "a" * 52),
        (17, "17"),
        (0, "0"),
        (-5, "-5"),
        (17.0, "17"),
        (Decimal("17.00"), "17"),
        (Decimal("1E+3"), "1000"),
        (10**51, "1" + 51 * "0"),
        (UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        (b"u-17", "u-17"),
        (memoryview(b"u-17"), "u-17"),
    ],
)
def test_good_user_id_is_taken_to_the_letter(value: Any, user_id: str) -> None:
    assert payloads.identity(value, BY_USER_ID) == user_id


ODD_CHARACTER = "id has a character that a user id may not have, or a space at its end"
NO_WHOLE_NUMBER = "id is not a whole number, or has more than 52 digits"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a" * 53, "id has more than 52 characters"),
        ("trailing ", ODD_CHARACTER),
        (" ", ODD_CHARACTER),
        ("ünicode", ODD_CHARACTER),
        ("tab\tin", ODD_CHARACTER),
        ("line\n", ODD_CHARACTER),
        ("nul\x00", ODD_CHARACTER),
        ("del\x7f", ODD_CHARACTER),
        ("\udce9", ODD_CHARACTER),
        (b"\xe9", "id is not valid UTF-8"),
        (17.5, NO_WHOLE_NUMBER),
        (Decimal("17.5"), NO_WHOLE_NUMBER),
        (10**52, NO_WHOLE_NUMBER),
        pytest.param(10**5000, NO_WHOLE_NUMBER, id="huge"),
        (Decimal("1E+999999"), NO_WHOLE_NUMBER),
        (Decimal("1E-999999"), NO_WHOLE_NUMBER),
        (float("nan"), NO_WHOLE_NUMBER),
        (float("inf"), NO_WHOLE_NUMBER),
        (Decimal("NaN"), NO_WHOLE_NUMBER),
        (Decimal("sNaN"), NO_WHOLE_NUMBER),
        (Decimal("-Infinity"), NO_WHOLE_NUMBER),
        (True, "id has the type bool, which can't be an id"),
        ([1], "id has the type list, which can't be an id"),
        (date(2026, 1, 13), "id has the type date, which can't be an id"),
    ],
)
def test_bad_user_id_is_refused_with_its_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        payloads.identity(value, BY_USER_ID)
    assert str(caught.value) == reason


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("text", "text"),
        ("zoë 😀 \x00\n", "zoë 😀 \x00\n"),
        pytest.param("x" * 100_000, "x" * 100_000, id="100,000 characters"),
        (b"caf\xc3\xa9", "café"),
        (bytearray(b"abc"), "abc"),
        (memoryview(b"abc"), "abc"),
        (True, True),
        (0, 0),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
        (1.5, 1.5),
        (Decimal("19.90"), 19.9),
        (Decimal("5"), 5.0),
        (datetime(2026, 1, 13, 8, 45, 12, 999_999), "2026-01-13 08:45:12 +00:00"),
        (datetime(2026, 1, 13, 8, 45, 12, tzinfo=BERLIN), "2026-01-13 07:45:12 +00:00"),
        (datetime(2026, 1, 13, 8, tzinfo=timezone(timedelta(hours=-5, minutes=-30))), "2026-01-13 13:30:00 +00:00"),
        (datetime(1, 1, 1), "0001-01-01 00:00:00 +00:00"),
        (date(1815, 12, 10), "1815-12-10 00:00:00 +00:00"),
        (time(8, 45), "08:45:00"),
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ip_address("192.0.2.1"), "192.0.2.1"),
        (ip_address("2001:db8::1"), "2001:db8::1"),
        (ip_network("192.0.2.0/24"), "192.0.2.0/24"),
        (IPv4Interface("192.0.2.1/24"), "192.0.2.1/24"),
        ([1, "a", None, Decimal("1.5")], [1, "a", None, 1.5]),
        ((1, 2), [1, 2]),
        ({"b", "a", "c"}, ["a", "b", "c"]),
        ({"at": datetime(2026, 1, 13), "tags": ["x"]}, {"at": "2026-01-13 00:00:00 +00:00", "tags": ["x"]}),
    ],
)
def test_value_is_sent_by_its_type(value: Any, sent: Any) -> None:
    found = user_of(plan_type=value)["dataFields"]["planType"]
    assert (found, type(found)) == (sent, type(sent))


def test_naive_time_in_a_field_is_taken_in_the_zone_of_the_rules() -> None:
    rules = replace(RULES, zone=BERLIN)
    assert user_of(rules, plan_type=datetime(2026, 7, 1, 12))["dataFields"]["planType"] == "2026-07-01 10:00:00 +00:00"
    assert user_of(rules, plan_type=date(2026, 7, 1))["dataFields"]["planType"] == "2026-07-01 00:00:00 +00:00"


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


NO_UTF8 = "plan_type is not valid UTF-8"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "plan_type is nan, which JSON can't hold"),
        (float("-inf"), "plan_type is -inf, which JSON can't hold"),
        (Decimal("NaN"), "plan_type is NaN, which JSON can't hold"),
        (Decimal("sNaN"), "plan_type is sNaN, which JSON can't hold"),
        (Decimal("Infinity"), "plan_type is Infinity, which JSON can't hold"),
        (Decimal("1E+400"), "plan_type is inf, which JSON can't hold"),
        (2**63, "plan_type is a number beyond 64 bits"),
        (-(2**63) - 1, "plan_type is a number beyond 64 bits"),
        pytest.param(10**5000, "plan_type is a number beyond 64 bits", id="huge"),
        (b"caf\xe9", NO_UTF8),
        (memoryview(b"\xff"), NO_UTF8),
        ("caf\udce9", NO_UTF8),
        ([1, ["caf\udce9"]], NO_UTF8),
        ({"caf\udce9": 1}, NO_UTF8),
        ({1: "a"}, "plan_type has a key that is not text"),
        ([float("nan")], "plan_type is nan, which JSON can't hold"),
        (nested(21), "plan_type is nested more than 20 levels deep"),
        (1j, "plan_type has the type complex, which can't be sent"),
        (object(), "plan_type has the type object, which can't be sent"),
        (
            datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
            "plan_type is beyond the years that a date can have",
        ),
        (
            datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-1))),
            "plan_type is beyond the years that a date can have",
        ),
    ],
)
def test_value_that_json_cannot_hold_refuses_the_record(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        user_of(plan_type=value)
    assert str(caught.value) == reason


def test_20_levels_of_lists_are_sent() -> None:
    assert user_of(plan_type=nested(20))["dataFields"]["planType"] == nested(20)


# When -------------------------------------------------------------------------------------------------------------


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


NO_FORM = "event_time is not a valid time; expected 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00"
NO_UNIX_TIME = "event_time is a number below 100,000,000, which is no Unix time; cast it to a timestamp in the query"
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
        ("9999-12-31 23:59:59", f"{FUTURE}; is it in milliseconds"),
        (datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-1))), f"{FUTURE}; is it in milliseconds"),
        (NOW_S * 1000, f"{FUTURE}; is it in milliseconds"),
        (NOW_S * 1_000_000_000, f"{FUTURE}; is it in milliseconds"),
    ],
)
def test_impossible_time_refuses_the_event_with_its_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        event_of(event_time=value)
    assert str(caught.value) == reason


# Whether there is an event ----------------------------------------------------------------------------------------


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


# What it is called ------------------------------------------------------------------------------------------------


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


# Its id -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("microsecond", [0, 1, 123_457, 999_999])
@pytest.mark.parametrize("second", [100_000_000, 999_999_999, NOW_S])
def test_time_as_a_float_has_the_microsecond_that_it_stands_for(second: int, microsecond: int) -> None:
    found = unix_microseconds(second + microsecond / 1e6, UTC, "event_time")
    assert found == second * 1_000_000 + microsecond


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


# Any row at all ---------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()))  # with lone surrogates, which undecodable bytes become


def moments(earliest: datetime, latest: datetime) -> st.SearchStrategy[datetime]:
    return st.datetimes(earliest, latest) | st.datetimes(earliest, latest, timezones=st.timezones())


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.decimals(),
    st.sampled_from([Decimal("sNaN"), Decimal("1E+999999"), Decimal("-1E-999999"), 1j, object()]),
    any_text,
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(lambda each: memoryview(each)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    moments(datetime.min, datetime.max),
    st.uuids(),
    st.ip_addresses(),
)
anything = st.recursive(
    scalars,
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.lists(each, max_size=3).map(tuple),
        st.dictionaries(any_text | st.integers(), each, max_size=3),
        st.sets(st.integers() | any_text, max_size=3),
    ),
    max_leaves=6,
)
COLUMNS = ["id", "email", "first_name", "plan_type", "page", "device", "event_time", "event_name", "event_id"]
good_rows = st.fixed_dictionaries(
    {
        "id": st.integers(1, 99),
        "email": st.sampled_from(["ada@example.com", "Zoë@Bücher.example"]),
        "event_time": moments(datetime(1970, 1, 3), datetime(2026, 1, 12)),
        "event_name": st.just("page_view"),
        "event_id": st.none() | st.uuids(),
    }
)
any_rows = st.builds(
    lambda good, wild, kept: wild | {column: good[column] for column in kept},
    good_rows,
    st.fixed_dictionaries(dict.fromkeys(COLUMNS, anything)),
    st.sets(st.sampled_from(["id", "email", "event_time", "event_name", "event_id"])),
)
any_rules = st.builds(
    Rules,
    by_user_id=st.booleans(),
    identity_column=st.sampled_from(["id", "email"]),
    user_fields=st.sampled_from([RULES.user_fields, NESTED.user_fields]),
    event_fields=st.sampled_from([RULES.event_fields, NESTED.event_fields, ()]),
    event_name=st.just("page_view"),
    zone=st.sampled_from([UTC, BERLIN, NEW_YORK]),
    clear_nulls=st.booleans(),
    latest_s=st.just(RULES.latest_s),
    name_column=st.sampled_from([None, "event_name"]),
    id_column=st.sampled_from([None, "event_id"]),
    merge_nested=st.booleans(),
)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def assert_sendable(payload: dict[str, Any]) -> None:
    body = canonical(payload).encode()
    assert json.loads(body.decode("utf-8"), parse_constant=refuse_constant) == payload
    identity = payload.get("email") or payload.get("userId")
    assert isinstance(identity, str)
    if "eventName" in payload:
        assert 1 <= len(payload["id"].encode()) <= 512
        assert isinstance(payload["createdAt"], int)
        assert 0 <= payload["createdAt"] <= RULES.latest_s


def build_all(row: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
    """The payloads of a row, in as far as it has some."""
    built = []
    has_event(row, rules)
    try:
        who = payloads.identity(row[rules.identity_column], rules)
    except InvalidRecord:
        return []
    with suppress(InvalidRecord):
        built.append(user_update(row, who, rules))
    with suppress(InvalidRecord):
        found = decoded(event(row, who, rules))
        built += [found] if found is not None else []
    return built


@given(any_rows, any_rules)
def test_any_row_gives_sendable_payloads_or_a_reason(row: dict[str, Any], rules: Rules) -> None:
    for payload in build_all(row, rules):
        assert_sendable(payload)


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
def test_rows_say_the_same_of_their_users_together_as_each_alone(rows: list[dict[str, Any]], rules: Rules) -> None:
    alone = [payloads.user_values(of_rows(row), 1, rules)[0] for row in rows]
    assert payloads.user_values(of_rows(*rows), len(rows), rules) == alone


said_values = st.lists(st.sampled_from(["", "1", "2", "!ab bad"]), min_size=2, max_size=2)


@given(st.lists(said_values, min_size=1, max_size=6), st.booleans())
def test_rows_put_together_say_of_each_field_what_the_last_one_of_them_says(
    rows: list[list[str]], clear_nulls: bool
) -> None:
    rules = replace(RULES, clear_nulls=clear_nulls)
    said = payloads.MergedUser(1, rows[0])
    for number, row in enumerate(rows[1:], start=2):
        said = payloads.merge(said, number, row, rules)
    by_field = [[value for value in field if value or clear_nulls] for field in zip(*rows, strict=True)]
    assert list(said.values) == [values[-1] if values else "" for values in by_field]
    assert said.disagreed == any(len(set(values)) > 1 for values in by_field)


def test_derived_id_goes_by_the_names_of_the_fields_and_not_of_their_columns() -> None:
    crossed = replace(RULES, event_fields=(FieldMap("page", "b"), FieldMap("device", "a")))
    straight = replace(RULES, event_fields=(FieldMap("page", "a"), FieldMap("device", "b")))
    assert sent_event(crossed, page="1", device="2")["id"] == sent_event(straight, page="2", device="1")["id"]


def test_field_name_with_a_quote_is_sent() -> None:
    rules = replace(RULES, event_fields=(FieldMap("page", 'the "page" 100%s\\'),))
    assert sent_event(rules)["dataFields"] == {'the "page" 100%s\\': "pricing"}


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
    contents = [
        payloads.event_contents(
            [json.dumps(name)], [json.dumps(who)], [time], [json.dumps(fields, sort_keys=True)[1:-1]]
        )
        for name, who, time, fields in (one, other)
    ]
    ids = [payloads.event_ids(content) for content in contents]
    assert (ids[0] == ids[1]) == (contents[0] == contents[1]) == (one == other)


def test_huge_numbers_are_refused_without_being_written_out() -> None:
    """Python turns an int into text in quadratic time, and refuses beyond 4,300 digits."""
    assert sys.get_int_max_str_digits() == 4300
    for value in (10**5000, Decimal("1E+100000000")):
        assert build_all(ROW | {"id": value, "event_time": value, "plan_type": value}, BY_USER_ID) == []
