"""Field types, nested fields, and what an update does to a profile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sandbox.rehearsal import ADA, GET_FIELDS, TRACK, UPDATE, Rehearsal, bulk_events, bulk_users, event


@pytest.mark.parametrize("merge", [True, False])
def test_update_keeps_missing_fields_removes_nulls_and_merges_if_asked(iterable: Rehearsal, merge: bool) -> None:
    fields = {"plan": "pro", "city": "Oslo", "pet": {"name": "Rex", "age": 3}}
    iterable.answer(UPDATE, {"email": "ada@example.com", "dataFields": fields})
    change = {"city": None, "pet": {"age": 4}}
    iterable.answer(UPDATE, {"email": "ada@example.com", "dataFields": change, "mergeNestedObjects": merge})
    pet = {"name": "Rex", "age": 4} if merge else {"age": 4}
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"plan": "pro", "pet": pet}


def test_merging_goes_one_level_deep_and_never_into_lists(iterable: Rehearsal) -> None:
    first = {"a": {"b": {"c": 1, "d": 2}, "list": [1, 2], "old": "x", "kept": True}, "list": ["x"]}
    change = {"a": {"b": {"d": 3}, "list": [3], "old": None}, "list": ["y"]}
    bulk_users(iterable, {**ADA, "dataFields": first}, {**ADA, "dataFields": change, "mergeNestedObjects": True})
    merged = {"a": {"b": {"d": 3}, "list": [3], "kept": True}, "list": ["y"]}
    assert iterable.project.users["ada@example.com"]["dataFields"] == merged


def test_field_with_another_type_is_refused_as_recorded(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {**ADA, "dataFields": {"signupDate": "2021-02-02"}})
    answer = iterable.answer(UPDATE, {**ADA, "dataFields": {"signupDate": "GGG"}})
    msg = (
        "Project 1: The request does not have the same data types as the data previously submitted. Field 'signupDate' "
        "already exists for type 'user' and has a data type of 'date' but possible types 'string, keyword' in the "
        "request."
    )
    error = {
        "incomingTypes": ["string", "keyword"],
        "expectedType": "date",
        "_type": "UnexpectedType",
        "offendingValue": "GGG",
        "category": "user",
    }
    params = {"validationErrors": {"signupDate": error}}
    assert answer == (400, {"msg": msg, "code": "RequestFieldsTypesMismatched", "params": params})
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"signupDate": "2021-02-02"}


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("pro", "2026-01-13", 200),  # a date is text as well
        ("2026-01-13", "2026-01-13 08:45:12 +00:00", 200),
        ("2026-01-13", "2026-01-13T08:45:12.000Z", 200),
        ("2026-01-13", "2026-01-13 08:45:12.000", 400),  # a fraction only after a T
        ("2026-01-13", "2026-01-13T08:45:12Z", 400),
        ("2026-01-13", "2026-13-01", 400),
        ("2026-01-13", None, 200),
        (5, 5.5, 200),
        (5.5, 5, 200),
        (5, "5", 400),
        ("5", 5, 400),
        (True, 1, 400),
        (1, True, 400),
        ({"a": 1}, "a", 400),
        (["a"], "b", 200),
        (["a"], [1], 400),
        ([], 1, 200),
        (5, "2026-01-13", 400),
    ],
)
def test_first_value_sets_the_type(iterable: Rehearsal, first: Any, second: Any, status: int) -> None:
    assert iterable.answer(UPDATE, {**ADA, "dataFields": {"x": first}})[0] == 200
    assert iterable.answer(UPDATE, {**ADA, "dataFields": {"x": second}})[0] == status


def test_one_mismatch_fails_the_batch_and_teaches_nothing(iterable: Rehearsal) -> None:
    iterable.project.user_field_types["age"] = "long"
    fits = {"email": "a@example.com", "dataFields": {"new": "x"}}
    misfit = {"email": "b@example.com", "dataFields": {"age": "x"}}
    assert bulk_users(iterable, fits, misfit)[1]["code"] == "RequestFieldsTypesMismatched"
    assert iterable.project.users == {}
    assert iterable.project.user_field_types == {"age": "long"}


def test_event_fields_have_types_by_event_name(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.project.event_field_types["signup"] = {"page": "long"}
    status, answer = bulk_events(iterable, event(id="1", dataFields={"page": "home"}))
    assert (status, answer["createdFields"]) == (200, ["page"])
    assert iterable.answer(TRACK, event(dataFields={"page": 1}))[0] == 400
    assert iterable.answer(TRACK, event(eventName="signup", dataFields={"page": "home"}))[0] == 400
    assert iterable.project.event_field_types == {"signup": {"page": "long"}, "pageView": {"page": "string"}}
    assert list(iterable.project.events) == ["1"]


def test_get_fields_tells_the_types_of_user_fields(iterable: Rehearsal) -> None:
    values = {"s": "x", "d": "2026-01-13", "n": 1, "f": 1.5, "b": False, "o": {}, "l": ["x"], "nothing": None}
    iterable.answer(UPDATE, {**ADA, "dataFields": values})
    types = {"s": "string", "d": "date", "n": "long", "f": "double", "b": "boolean", "o": "object", "l": "string"}
    assert iterable.get(GET_FIELDS).json() == {"fields": types}


def test_dropped_fields_are_reported_in_bulk_and_not_kept(iterable: Rehearsal) -> None:
    iterable.project.dropped_fields.add("secret")
    _, answer = bulk_users(iterable, {**ADA, "dataFields": {"secret": 1, "plan": "pro"}})
    assert (answer["filteredOutFields"], answer["createdFields"], answer["successCount"]) == (["secret"], ["plan"], 1)
    _, answer = bulk_events(iterable, event(dataFields={"secret": 1, "page": "home"}))
    assert (answer["filteredOutFields"], answer["successCount"]) == (["secret"], 1)
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"plan": "pro"}
    assert iterable.project.events["pv-1"]["dataFields"] == {"page": "home"}


def test_fields_inside_objects_have_types_by_their_dotted_names(iterable: Rehearsal) -> None:
    _, answer = bulk_users(iterable, {**ADA, "dataFields": {"plan": {"tier": "pro", "since": {"year": 2026}}}})
    types = {"plan": "object", "plan.tier": "string", "plan.since": "object", "plan.since.year": "long"}
    assert (answer["createdFields"], iterable.get(GET_FIELDS).json()) == (list(types), {"fields": types})
    status, answer = iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": {"since": {"year": "x"}, "tier": "free"}}})
    assert (status, list(answer["params"]["validationErrors"])) == (400, ["plan.since.year"])
    assert iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": {"tier": {"name": "pro"}}}})[0] == 400
    assert iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": "pro"}})[0] == 400


def test_any_object_fits_into_a_list_of_objects(iterable: Rehearsal) -> None:
    for orders in ([{"sku": 1}, {"sku": "x"}], [{"sku": {"id": 1}}]):
        assert iterable.answer(UPDATE, {**ADA, "dataFields": {"orders": orders}})[0] == 200
    assert iterable.project.user_field_types == {"orders": "object"}


def test_field_inside_an_object_can_be_dropped(iterable: Rehearsal) -> None:
    iterable.project.dropped_fields |= {"plan.tier", "plan.since.year", "name.first"}
    fields = {"plan": {"tier": "pro", "since": {"year": 2026, "month": 1}}, "name": "Ada", "tier": "x"}
    _, answer = bulk_users(iterable, {**ADA, "dataFields": fields})
    assert answer["filteredOutFields"] == ["plan.since.year", "plan.tier"]
    kept = {"plan": {"since": {"month": 1}}, "name": "Ada", "tier": "x"}
    assert iterable.project.users["ada@example.com"]["dataFields"] == kept
