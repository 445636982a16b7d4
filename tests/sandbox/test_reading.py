"""Users read back, and the lists of who is forgotten."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

import pytest

from tests.sandbox.rehearsal import (
    ADA,
    BY_USER_ID,
    EVENTS_BY_USER_ID,
    FORGOTTEN_EMAILS,
    FORGOTTEN_USER_IDS,
    GET_BY_EMAIL,
    JOURNEYS,
    TRACK,
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


# --- Events


def test_events_are_read_the_newest_first_by_address_and_by_id(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {"email": "a/b@example.com", "userId": "u/1 %"})
    iterable.know("bob@example.com")
    sent = {"email": "A/b@example.com", "dataFields": {"page": "home", "day": "2026-01-13"}}
    bulk_events(iterable, event(**sent, createdAt=1768371622), event(id="2", email=None, userId="u/1 %"))
    iterable.answer(TRACK, event(id="3", email="bob@example.com"))
    identity = {"email": "a/b@example.com", "userId": "u/1 %"}
    newest = {
        **{
            "_id": "pv-1",
            "eventName": "pageView",
            "eventType": "customEvent",
            "createdAt": "2026-01-14 06:20:22 +00:00",
        },
        "dataFields": {"page": "home", "day": "2026-01-13 00:00:00 +00:00"},
        **identity,
    }
    older = {**newest, "_id": "2", "createdAt": "2024-03-01 09:30:00 +00:00", "dataFields": {}}
    for path in ("/api/events/a%2FB%40example.com", f"{EVENTS_BY_USER_ID}/u%2F1%20%25"):
        response = iterable.get(f"{path}?limit=200")
        assert (response.status_code, response.json()) == (200, {"events": [newest, older]})
        assert iterable.get(f"{path}?limit=1").json() == {"events": [newest]}


def test_30_events_are_read_unless_a_limit_says_otherwise(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    bulk_events(iterable, *(event(id=str(number), createdAt=number) for number in range(1, 202)))
    path = "/api/events/ada@example.com"
    ids = [[each["_id"] for each in iterable.get(path + query).json()["events"]] for query in ("", "?limit=200")]
    assert ids == [[str(number) for number in range(201, 201 - limit, -1)] for limit in (30, 200)]


@pytest.mark.parametrize("limit", ["0", "201", "", "ten", "-1"])
def test_limit_outside_of_1_to_200_is_400(iterable: Rehearsal, limit: str) -> None:
    response = iterable.get(f"/api/events/ada@example.com?limit={limit}")
    assert (response.status_code, response.json()["code"]) == (400, "BadParams")


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("text", "2026-01-14 06:20:22 +00:00"),
        ("iso", "2026-01-14T06:20:22.000000.000Z"),
        ("seconds", 1768371622),
        ("milliseconds", 1768371622000),
    ],
)
def test_time_of_an_event_is_read_in_any_of_the_known_forms(rehearse: Any, form: str, read: Any) -> None:
    iterable = rehearse(event_times=form)
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event(createdAt=1768371622))
    assert iterable.get("/api/events/ada@example.com").json()["events"][0]["createdAt"] == read


def test_event_without_a_time_has_that_of_its_arrival(rehearse: Any) -> None:
    iterable = rehearse(event_times="seconds")
    iterable.know("ada@example.com")
    began = int(time.time())
    iterable.answer(TRACK, event(createdAt=None))
    (read,) = iterable.get("/api/events/ada@example.com").json()["events"]
    assert began <= read["createdAt"] <= time.time()


def test_event_may_be_read_with_an_id_of_iterables_own(rehearse: Any) -> None:
    iterable = rehearse(own_event_ids=True)
    iterable.know("ada@example.com")
    bulk_events(iterable, event(), event(id="pv-2"))
    ids = {each["_id"] for each in iterable.get("/api/events/ada@example.com").json()["events"]}
    assert len(ids) == 2
    assert ids.isdisjoint({"pv-1", "pv-2"})


def test_other_events_of_a_user_are_read_as_they_are(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.project.other_events["ada@example.com"] = [{"eventType": "emailSend", "campaignId": 7}]
    assert iterable.get("/api/events/ada@example.com").json() == {
        "events": [{"eventType": "emailSend", "campaignId": 7}]
    }


@pytest.mark.parametrize(
    ("switch", "status", "text"), [("empty", 200, '{"events":[]}'), ("400", 400, "No user with that id exists!")]
)
def test_events_of_unknown_users_are_none_or_400(rehearse: Any, switch: str, status: int, text: str) -> None:
    iterable = rehearse(events_of_unknown=switch)
    for path in ("/api/events/ada@example.com", f"{EVENTS_BY_USER_ID}/u-1"):
        response = iterable.get(path)
        assert (response.status_code, response.text) == (status, text)
    iterable.know("ada@example.com")
    assert iterable.get("/api/events/ada@example.com").json() == {"events": []}


def test_event_whose_id_another_user_sends_is_theirs(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com", "bob@example.com")
    bulk_events(iterable, event(), event(email="bob@example.com"))
    found = [iterable.get(f"/api/events/{who}@example.com").json()["events"] for who in ("ada", "bob")]
    assert [[(each["_id"], each["email"]) for each in each] for each in found] == [[], [("pv-1", "bob@example.com")]]


def test_profile_that_is_made_anew_has_no_events(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event())
    iterable.project.delete_user(**ADA)
    iterable.know("ada@example.com")
    assert iterable.get("/api/events/ada@example.com").json() == {"events": []}
    iterable.answer(TRACK, event())
    assert len(iterable.get("/api/events/ada@example.com").json()["events"]) == 1


@pytest.mark.parametrize("path", ["/api/events/000", "/api/events/", "/api/events/byUserId/1/2", "/api/events/a@b/c"])
def test_path_of_no_endpoint_is_404(iterable: Rehearsal, path: str) -> None:
    assert iterable.get(path).status_code == 404


# --- Journeys


def test_journeys_are_read_by_the_page_without_the_archived_ones(iterable: Rehearsal) -> None:
    journeys = [iterable.project.add_journey(f"J{number}", ["page_view"]) for number in range(1, 61)]
    archived = iterable.project.add_journey("Old", isArchived=True)
    plain = iterable.project.add_journey("No events", lifetimeLimit=1)
    url = "/api/journeys?page=2&pageSize=50"
    assert iterable.get(f"{JOURNEYS}?page=1&pageSize=50").json() == {
        **{"journeys": journeys[:50], "totalJourneysCount": 61, "nextPageUrl": url}
    }
    assert iterable.get(url).json() == {"journeys": [*journeys[50:], plain], "totalJourneysCount": 61}
    assert iterable.get(f"{JOURNEYS}?state=Archived").json() == {"journeys": [archived], "totalJourneysCount": 1}
    assert iterable.get(JOURNEYS).json()["journeys"] == journeys[:10]
    assert iterable.get(f"{JOURNEYS}?page=9").json() == {"journeys": [], "totalJourneysCount": 61}
    iterable.project.next_page_url = False
    assert iterable.get(JOURNEYS).json() == {"journeys": journeys[:10], "totalJourneysCount": 61}


@pytest.mark.parametrize("query", ["page=0", "pageSize=51", "pageSize=x"])
def test_impossible_page_of_journeys_is_400(iterable: Rehearsal, query: str) -> None:
    response = iterable.get(f"{JOURNEYS}?{query}")
    assert (response.status_code, response.json()["code"]) == (400, "BadParams")
