"""Users read back, and the lists of who is forgotten."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from tests.sandbox.rehearsal import (
    ADA,
    BY_USER_ID,
    FORGOTTEN_EMAILS,
    FORGOTTEN_USER_IDS,
    GET_BY_EMAIL,
    UPDATE,
    Rehearsal,
    bulk_events,
    bulk_users,
    event,
    failures,
)


def read(iterable: Rehearsal, path: str) -> dict[str, Any]:
    """The user in an answer, without the two times that Iterable adds and that differ in every run."""
    user: dict[str, Any] = iterable.get(path).json()["user"]
    for name in ("signupDate", "profileUpdatedAt"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+00:00", user["dataFields"].pop(name))
    return user


def test_user_is_read_back_by_address_and_by_id(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {"email": "Ada+x@Example.com", "userId": "u/1 %", "dataFields": {"plan": "pro"}})
    identity = {"email": "ada+x@example.com", "userId": "u/1 %"}
    user = {**identity, "dataFields": {**identity, "plan": "pro"}}
    assert read(iterable, f"{GET_BY_EMAIL}?email=ADA%2Bx%40example.com") == user
    assert read(iterable, f"{BY_USER_ID}/u%2F1%20%25") == user
    assert read(iterable, f"{BY_USER_ID}?userId=u%2F1+%25") == user
    assert (iterable.project.requests[-1].path, iterable.project.requests[-1].query) == (BY_USER_ID, "userId=u%2F1+%25")


@pytest.mark.parametrize(
    ("sent", "read_back"),
    [
        ("2020-08-19T20:50:04.000Z", "2020-08-19 20:50:04 +00:00"),  # recorded
        ("2020-08-19T20:50:04.999-07:00", "2020-08-20 03:50:04 +00:00"),
        ("2020-08-19 20:50:04 +02:00", "2020-08-19 18:50:04 +00:00"),
        ("2020-08-19 20:50:04", "2020-08-19 20:50:04 +00:00"),
        ("2020-08-19", "2020-08-19 00:00:00 +00:00"),
        ("0001-01-01 00:00:00 +02:00", "0001-01-01 00:00:00 +02:00"),  # no such time in UTC
        ("2020-02-30", "2020-02-30"),
    ],
)
def test_dates_are_read_back_in_one_form(iterable: Rehearsal, sent: str, read_back: str) -> None:
    iterable.project.user_field_types["text"] = "string"
    fields = {"d": sent, "o": {"d": sent}, "l": [sent], "text": sent, "n": 5, "lo": [{"d": sent}]}
    iterable.answer(UPDATE, {**ADA, "dataFields": fields})
    expected = {"d": read_back, "o": {"d": read_back}, "l": [read_back], "text": sent, "n": 5, "lo": [{"d": sent}]}
    assert read(iterable, f"{GET_BY_EMAIL}?email=ada@example.com")["dataFields"] == {**ADA, **expected}
    assert iterable.project.users["ada@example.com"]["dataFields"] == fields


def test_signup_date_that_was_sent_is_read_back(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {**ADA, "dataFields": {"signupDate": "2021-02-02"}})
    fields = iterable.get(f"{GET_BY_EMAIL}?email=ada@example.com").json()["user"]["dataFields"]
    assert fields["signupDate"] == "2021-02-02 00:00:00 +00:00"


@pytest.mark.parametrize(
    ("switch", "status", "content_type", "body"),
    [("400", 400, "text/plain; charset=utf-8", "No user with that id exists!"), ("200", 200, "application/json", "{}")],
)
def test_unknown_user_is_an_empty_object_by_address_and_either_by_id(
    rehearse: Any, switch: str, status: int, content_type: str, body: str
) -> None:
    iterable = rehearse(unknown_user_id=switch)
    iterable.know("ada@example.com")
    assert (iterable.get(f"{GET_BY_EMAIL}?email=bob@example.com").text) == "{}"
    for rest in ("/u-1", "?userId=u-1", "/ada@example.com"):
        response = iterable.get(BY_USER_ID + rest)
        assert (response.status_code, response.headers["Content-Type"], response.text) == (status, content_type, body)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (GET_BY_EMAIL, "BadParams"),
        (f"{GET_BY_EMAIL}?email=", "InvalidEmailAddressError"),
        (f"{GET_BY_EMAIL}?email=000", "InvalidEmailAddressError"),
        (BY_USER_ID, "BadParams"),
    ],
)
def test_reading_without_a_valid_identity_is_400(iterable: Rehearsal, target: str, code: str) -> None:
    response = iterable.get(target)
    assert (response.status_code, response.json()["code"]) == (400, code)


def test_user_id_project_is_read_by_address_as_well(rehearse: Any) -> None:
    iterable = rehearse(project_type="userId")
    bulk_users(iterable, {"userId": "u-1"}, {**ADA, "userId": "u-2"}, {**ADA, "userId": "u-3"})
    assert read(iterable, f"{GET_BY_EMAIL}?email=ADA@example.com")["userId"] == "u-2"
    status, answer = bulk_events(iterable, event(userId="u-3"), event(userId="u-4"))
    assert (status, failures(answer)) == (200, {"failCount": 1, "notFoundEmails": ["ada@example.com"]})


def test_user_id_that_was_overwritten_finds_nobody(rehearse: Any) -> None:
    iterable = rehearse(project_type="email")
    bob = {"email": "bob@example.com", "userId": "u-1"}
    bulk_users(iterable, {**ADA, "userId": "u-1"}, {**ADA, "userId": "u-2"})
    assert iterable.get(f"{BY_USER_ID}/u-1").status_code == 400
    bulk_users(iterable, {**ADA, "userId": "u-1"}, bob, {**ADA, "userId": "u-3"})
    assert read(iterable, f"{BY_USER_ID}/u-1")["email"] == "bob@example.com"
    assert read(iterable, f"{BY_USER_ID}/u-3")["email"] == "ada@example.com"


@pytest.mark.parametrize(
    ("project_type", "emails", "user_ids"),
    [
        ("hybrid", ["ada@example.com"], ["U-1"]),
        ("email", ["U-1", "ada@example.com"], None),
        ("userId", None, ["U-1", "ada@example.com"]),
    ],
)
def test_forgotten_are_listed_by_their_hashes(rehearse: Any, project_type: str, emails: Any, user_ids: Any) -> None:
    iterable = rehearse(project_type=project_type)
    iterable.project.forgotten |= {"ada@example.com", "U-1"}
    for path, name, identities in (
        (FORGOTTEN_EMAILS, "hashedEmails", emails),
        (FORGOTTEN_USER_IDS, "hashedUserIds", user_ids),
    ):
        response = iterable.get(path)
        if identities is None:
            assert (response.status_code, response.json()["code"]) == (400, "BadParams")
        else:
            hashes = sorted(hashlib.sha256(each.lower().encode()).hexdigest() for each in identities)
            assert response.json() == {name: hashes}
