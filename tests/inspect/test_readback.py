"""Our payloads against Iterable's copies: what counts as the same, and how a difference is told."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.inspect.readback import Field, Match, compare, differing


def compared(sent: dict[str, Any], held: dict[str, Any], **payload: Any) -> list[Field]:
    ours = {"email": "ada@example.com", "dataFields": sent, **payload}
    return differing(compare(ours, {"email": "ada@example.com", "dataFields": held}))


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("pro", "pro"),
        (5, 5.0),
        (5.0, 5),
        (0.1, 0.1),
        (True, True),
        ("2020-08-19T20:50:04.000Z", "2020-08-19 20:50:04 +00:00"),
        ("2020-08-19T20:50:04.123Z", "2020-08-19 20:50:04 +00:00"),
        ("2020-08-19 22:50:04 +02:00", "2020-08-19 20:50:04 +00:00"),
        ("2020-08-19", "2020-08-19 00:00:00 +00:00"),
        (["a", 1, None], ["a", 1.0, None]),
        (["2020-08-19"], ["2020-08-19 00:00:00 +00:00"]),
        ([{"a": 1, "b": None}], [{"a": 1.0}]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": None}, {}),
        ({"a": None}, None),
        ({}, None),
        (None, None),
        ([], []),
    ],
)
def test_alike(sent: Any, held: Any) -> None:
    assert compared({"field": sent}, {"field": held}) == []


@pytest.mark.parametrize(
    ("sent", "held"),
    [
        ("pro", "Pro"),
        ("5", 5),
        (5, 6),
        (2**53, 2.0**53 + 2),
        (True, 1),
        (1, True),
        (False, 0),
        ("true", True),
        ("2020-08-19 20:50:04 +00:00", "2020-08-19 20:50:05 +00:00"),
        ("2020-08-19T20:50:04.100Z", "2020-08-19T20:50:04.200Z"),
        ("2020-13-45", "2020-13-46"),
        ("", "x"),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ([{"a": 1}], [{"a": 1, "b": 2}]),
        ({"a": 1}, "text"),
        ("text", {"a": 1}),
        ([1], 1),
    ],
)
def test_different(sent: Any, held: Any) -> None:
    assert compared({"field": sent}, {"field": held}) == [Field("field", sent, held, Match.DIFFERENT)]


def test_a_field_that_iterable_does_not_hold_is_missing_whether_left_out_or_null() -> None:
    sent = {"plan": "pro", "tier": 5, "kept": 1}
    assert compared(sent, {"kept": 1, "tier": None}) == [
        Field("plan", "pro", None, Match.MISSING),
        Field("tier", 5, None, Match.MISSING),
    ]


def test_a_null_that_we_send_removes_the_field() -> None:
    assert compared({"plan": None}, {}) == []
    assert compared({"plan": None}, {"plan": "pro"}) == [Field("plan", None, "pro", Match.DIFFERENT)]


def test_fields_that_iterable_adds_are_not_looked_at() -> None:
    assert compared({}, {"signupDate": "2026-01-13 08:45:12 +00:00", "email": "ada@example.com", "other": 1}) == []


def test_nested_objects_are_compared_by_leaf() -> None:
    sent = {"plan": {"tier": "pro", "since": {"day": "2026-01-13", "by": "sales"}}}
    held = {"plan": {"tier": "free", "since": {"day": "2026-01-13 00:00:00 +00:00"}}}
    assert compared(sent, held) == [
        Field("plan.tier", "pro", "free", Match.DIFFERENT),
        Field("plan.since.by", "sales", None, Match.MISSING),
    ]


def test_what_else_is_in_an_object_differs_only_where_the_object_is_replaced() -> None:
    sent = {"plan": {"tier": "pro"}}
    held = {"plan": {"tier": "pro", "seats": 3, "old": {"a": 1, "b": None}, "gone": None}}
    assert sorted(compared(sent, held), key=lambda field: field.name) == [
        Field("plan.old.a", None, 1, Match.EXTRA),
        Field("plan.seats", None, 3, Match.EXTRA),
    ]
    assert compared(sent, held, mergeNestedObjects=True) == []


def test_an_object_that_iterable_does_not_hold_at_all_is_missing_leaf_by_leaf() -> None:
    assert compared({"plan": {"tier": "pro", "seats": 3}}, {}) == [
        Field("plan.tier", "pro", None, Match.MISSING),
        Field("plan.seats", 3, None, Match.MISSING),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "match"),
    [
        ({"email": "Ada@Example.com"}, {"email": "ada@example.com"}, Match.SAME),
        ({"email": "ada@example.com"}, {"email": "bob@example.com"}, Match.DIFFERENT),
        ({"userId": "u-17"}, {"userId": "u-17", "email": "ada@example.com"}, Match.SAME),
        ({"userId": "u-17"}, {"userId": "U-17"}, Match.DIFFERENT),
    ],
)
def test_addresses_in_any_case_and_user_ids_to_the_letter(
    ours: dict[str, Any], theirs: dict[str, Any], match: Match
) -> None:
    (name,) = ours
    assert compare({**ours, "dataFields": {}}, theirs) == [Field(name, ours[name], theirs[name], match)]


def test_an_address_among_the_fields_is_kept_in_lower_case_too() -> None:
    assert compared({"email": "Ada@Example.com"}, {"email": "ada@example.com"}) == []


def test_all_fields_in_the_order_in_which_we_send_them() -> None:
    ours = {"email": "ada@example.com", "dataFields": {"z": 1, "a": {"y": 2, "b": 3}}}
    held = {"email": "ada@example.com", "dataFields": {"a": {"b": 3, "y": 2}, "z": 1}}
    assert [field.name for field in compare(ours, held)] == ["email", "z", "a.y", "a.b"]


@pytest.mark.parametrize("held", [{}, {"dataFields": None}])
def test_an_answer_without_fields_lacks_them_all(held: dict[str, Any]) -> None:
    assert compare({"email": "ada@example.com", "dataFields": {"a": 1}}, held) == [Field("a", 1, None, Match.MISSING)]
