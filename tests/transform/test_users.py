"""Rows in, updates of users out. Expected payloads are written out in full."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Interface, ip_address, ip_network
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap
from pipeline.transform.data_fields import Member
from pipeline.transform.identity import identity
from pipeline.transform.rules import Rules
from pipeline.transform.users import (
    MAX_ROWS,
    USER_ID_FIELD,
    MergedUser,
    full_payloads,
    merge,
    texts_of,
    user_payload,
    user_values,
)
from pipeline.transform.values import InvalidRecord, quote
from tests.transform.rows import (
    BERLIN,
    BY_USER_ID,
    MERGED,
    PERSONAL,
    ROW,
    RULES,
    any_rows,
    any_rules,
    event,
    fields_of,
    of_rows,
    refuse_constant,
    user_of,
    user_update,
)

# Whole payloads -------------------------------------------------------------------------------------------------------


def test_row_becomes_a_user_update() -> None:
    assert user_of() == {"email": "ada@example.com", "dataFields": {"first_name": "Ada", "planType": "pro"}}


def test_identified_by_user_id_an_update_carries_it_alone() -> None:
    assert user_of(BY_USER_ID) == {
        "userId": "1",
        "preferUserId": True,
        "dataFields": {"first_name": "Ada", "planType": "pro"},
    }


def test_null_is_left_out_by_default_and_null_with_clear_nulls() -> None:
    clear = replace(RULES, clear_nulls=True)
    assert user_of(plan_type=None)["dataFields"] == {"first_name": "Ada"}
    assert user_of(clear, plan_type=None)["dataFields"] == {"first_name": "Ada", "planType": None}


def test_empty_text_is_a_value_and_no_null() -> None:
    assert user_of(plan_type="")["dataFields"] == {"first_name": "Ada", "planType": ""}


def test_user_without_fields_has_empty_data_fields() -> None:
    assert user_of(replace(RULES, user_fields=())) == {"email": "ada@example.com", "dataFields": {}}


def test_payload_is_compact_utf8_json_with_its_fields_in_the_order_of_their_names() -> None:
    rules = replace(RULES, user_fields=RULES.user_fields[::-1])
    found = fields_of(rules, ROW | {"plan_type": [1.5, None, True]})
    assert full_payloads(["zoë@example.com"], texts_of(found.members, 1), rules) == [
        '{"email":"zoë@example.com","dataFields":{"first_name":"Ada","planType":[1.5,null,true]}}'.encode()
    ]


def test_merge_nested_is_said_in_each_user_update() -> None:
    assert user_of(MERGED, plan_type=None, page=None, device=None) == {
        "email": "ada@example.com",
        "dataFields": {"name": "Ada"},
        "mergeNestedObjects": True,
    }


# Some of the fields ---------------------------------------------------------------------------------------------------


def test_update_with_some_of_the_fields_has_them_in_the_order_given() -> None:
    fields = [("plan", '"pro"'), ('the "city"', "null")]
    assert user_payload("zoë@example.com", fields, RULES).decode() == (
        '{"email":"zoë@example.com","dataFields":{"plan":"pro","the \\"city\\"":null}}'
    )
    assert user_payload("u-1", fields[:1], replace(MERGED, by_user_id=True)).decode() == (
        '{"userId":"u-1","preferUserId":true,"dataFields":{"plan":"pro"},"mergeNestedObjects":true}'
    )
    assert user_payload("ada@example.com", [], RULES) == b'{"email":"ada@example.com","dataFields":{}}'


def test_user_id_beside_the_email_is_no_field() -> None:
    rules = replace(PERSONAL, sends_user_id=True)
    (*fields, user_id) = fields_of(rules, ROW, ROW | {"id": None}).members
    assert [each.name for each in fields] == ["first_name", "planType"]
    assert user_id == Member(USER_ID_FIELD, ['"1"', ""])
    assert user_payload("ada@example.com", [(USER_ID_FIELD, '"1"'), ("plan", '"pro"')], rules) == (
        b'{"email":"ada@example.com","userId":"1","dataFields":{"plan":"pro"}}'
    )
    assert user_payload("ada@example.com", [(USER_ID_FIELD, '"1"')], rules) == (
        b'{"email":"ada@example.com","userId":"1","dataFields":{}}'
    )


@given(st.lists(any_rows, max_size=4), any_rules)
def test_update_with_all_fields_is_the_same_either_way(rows: list[dict[str, Any]], rules: Rules) -> None:
    found = fields_of(rules, *rows)
    people = [f"{number}@example.com" for number in range(len(rows))]
    one_by_one = [
        user_payload(who, [(each.name, each.values[place]) for each in found.members if each.values[place]], rules)
        for place, who in enumerate(people)
    ]
    sent = [place for place in range(len(rows)) if place not in found.problems]
    at_once = full_payloads(people, texts_of(found.members, len(rows)), rules)
    assert [at_once[place] for place in sent] == [one_by_one[place] for place in sent]


# Values ---------------------------------------------------------------------------------------------------------------


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
            "plan_type is outside the years that a date can have",
        ),
        (
            datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-1))),
            "plan_type is outside the years that a date can have",
        ),
    ],
)
def test_value_that_json_cannot_hold_refuses_the_record(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        user_of(plan_type=value)
    assert str(caught.value) == reason


def test_20_levels_of_lists_are_sent() -> None:
    assert user_of(plan_type=nested(20))["dataFields"]["planType"] == nested(20)


# BAD_VALUES=omit ------------------------------------------------------------------------------------------------------

OMITS = replace(RULES, omits_bad_values=True)


def test_bad_value_is_left_out_and_named_and_the_rest_is_sent() -> None:
    bad = ROW | {"plan_type": float("nan")}
    found = fields_of(OMITS, ROW, bad)
    ((place, field, reason, cell),) = found.omitted
    assert (place, field, reason, len(cell)) == (1, "planType", "plan_type is nan, which JSON can't hold", 16)
    assert (found.problems, texts_of(found.members, 2)) == (
        {},
        ['"first_name":"Ada","planType":"pro"', '"first_name":"Ada"'],
    )
    refused = fields_of(RULES, ROW, bad)
    assert ({place: str(each) for place, each in refused.problems.items()}, refused.omitted) == (
        {1: "plan_type is nan, which JSON can't hold"},
        [],
    )


def test_left_out_is_no_null() -> None:
    clears = replace(OMITS, clear_nulls=True)
    assert user_of(clears, plan_type=float("nan"))["dataFields"] == {"first_name": "Ada"}
    assert user_of(clears, plan_type=None)["dataFields"] == {"first_name": "Ada", "planType": None}


def test_cell_that_is_wrong_in_another_way_is_another_one() -> None:
    one, same, other = fields_of(OMITS, *(ROW | {"plan_type": value} for value in (b"\xff", b"\xff", b"\xfe"))).omitted
    assert one.cell == same.cell != other.cell


# The address where people are known by userId -------------------------------------------------------------------------

WITH_ADDRESS = replace(BY_USER_ID, user_fields=(FieldMap("email", "email"), FieldMap("plan_type", "plan")))


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("Ada@Example.com ", {"email": "ada@example.com", "plan": "pro"}),
        (b"ada@example.com", {"email": "ada@example.com", "plan": "pro"}),
        (None, {"plan": "pro"}),
        ("", {"plan": "pro"}),
        ("  ", {"plan": "pro"}),
        ("ada", {"plan": "pro"}),
        ("caf\udce9@example.com", {"plan": "pro"}),
        (17, {"plan": "pro"}),
    ],
)
@pytest.mark.parametrize("clear_nulls", [False, True])
def test_address_is_a_field_that_is_never_cleared(value: Any, sent: dict[str, Any], clear_nulls: bool) -> None:
    assert user_of(replace(WITH_ADDRESS, clear_nulls=clear_nulls), email=value)["dataFields"] == sent


def test_address_that_is_none_is_left_out_and_named_also_where_bad_values_refuse() -> None:
    found = fields_of(WITH_ADDRESS, ROW | {"email": "ada"}, ROW | {"email": None}, ROW)
    assert [each[:3] for each in found.omitted] == [(0, "email", "email is not a valid email address")]
    assert found.problems == {}


def test_by_email_the_address_in_a_field_is_text_like_any_other() -> None:
    rules = replace(RULES, clear_nulls=True, user_fields=(FieldMap("email", "address"),))
    assert user_update(ROW | {"email": "Ada"}, "ada@example.com", rules)["dataFields"] == {"address": "Ada"}
    assert user_update(ROW | {"email": None}, "ada@example.com", rules)["dataFields"] == {"address": None}


# Several rows of one user ---------------------------------------------------------------------------------------------

said_values = st.lists(st.sampled_from(["", "1", "2", "!ab bad"]), min_size=3, max_size=3)


@given(st.lists(said_values, min_size=1, max_size=6), st.booleans())
def test_rows_put_together_say_of_each_field_what_the_last_one_of_them_says(
    rows: list[list[str]], clear_nulls: bool
) -> None:
    rules = replace(PERSONAL, clear_nulls=clear_nulls)
    said = MergedUser(1, rows[0], (1,))
    before = [rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        said = merge(said, number, row, rules)
        before.append(list(said.values))
    by_field = [[value for value in field if value or clear_nulls] for field in list(zip(*rows, strict=True))[:2]]
    persons = [row[2] for row in rows if row[2]]
    assert list(said.values) == [*(values[-1] if values else "" for values in by_field), persons[-1] if persons else ""]
    assert said.disagreed == {place for place, values in enumerate(by_field) if len(set(values)) > 1}
    assert said.persons == (set(persons) if len(set(persons)) > 1 else set())
    new = [number for number, (old, now) in enumerate(pairwise(before), start=2) if old != now]
    assert said.rows == (1, *new)
    assert said.row == said.rows[-1]


def test_of_the_rows_of_one_user_the_first_hundred_are_remembered() -> None:
    said = MergedUser(1, ["0", ""], (1,))
    for row in range(2, 200):
        said = merge(said, row, [str(row), ""], RULES)
    assert (said.row, said.rows) == (199, tuple(range(1, MAX_ROWS + 1)))


def test_row_says_who_a_person_is_and_under_which_address_before() -> None:
    rules = replace(PERSONAL, previous_column="first_name", user_fields=RULES.user_fields[1:])
    rows = [ROW, ROW | {"id": None, "first_name": None}, ROW | {"id": 2.0, "first_name": " Old@Example.com "}]
    assert user_values(of_rows(*rows), 3, rules) == [
        ('"pro"', '"1"', '"Ada"'),
        ('"pro"', "", ""),
        ('"pro"', '"2"', '"Old@Example.com"'),
    ]


# Any rows at all ------------------------------------------------------------------------------------------------------


@given(st.lists(any_rows, max_size=6), any_rules)
def test_rows_say_the_same_of_their_users_together_as_each_alone(rows: list[dict[str, Any]], rules: Rules) -> None:
    alone = [user_values(of_rows(row), 1, rules)[0] for row in rows]
    assert user_values(of_rows(*rows), len(rows), rules) == alone


@given(st.lists(any_rows, max_size=6), any_rules)
def test_rows_become_the_same_updates_together_as_each_alone(rows: list[dict[str, Any]], rules: Rules) -> None:
    together = fields_of(rules, *rows)
    texts = texts_of(together.members, len(rows))
    for place, row in enumerate(rows):
        alone = fields_of(rules, row)
        assert texts_of(alone.members, 1) == texts[place : place + 1]
        problems = [str(each) for number, each in together.problems.items() if number == place]
        assert [str(each) for each in alone.problems.values()] == problems
        omitted = [each._replace(place=0) for each in together.omitted if each.place == place]
        assert alone.omitted == omitted


@given(any_rows, any_rules)
def test_any_row_gives_an_update_that_can_be_sent_or_a_reason(row: dict[str, Any], rules: Rules) -> None:
    try:
        who = identity(row[rules.identity_column], rules)
    except InvalidRecord:
        return
    found = fields_of(rules, row)
    if not found.problems:
        (body,) = full_payloads([who], texts_of(found.members, 1), rules)
        payload = json.loads(body.decode("utf-8"), parse_constant=refuse_constant)
        assert payload["userId" if rules.by_user_id else "email"] == who
        assert all(quote(value) for value in payload["dataFields"])


def test_huge_numbers_are_refused_without_being_written_out() -> None:
    """Python turns an int into text in quadratic time, and refuses beyond 4,300 digits."""
    assert sys.get_int_max_str_digits() == 4300
    for value in (10**5000, Decimal("1E+100000000")):
        row = ROW | {"id": value, "event_time": value, "plan_type": value}
        for make in (
            lambda row: identity(row["id"], BY_USER_ID),
            lambda row: user_update(row, "1", BY_USER_ID),
            lambda row: event(row, "1", BY_USER_ID),
        ):
            with pytest.raises(InvalidRecord):
                make(row)
