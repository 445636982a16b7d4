"""`/sandbox/...`: what the stand-in shows, and changes made by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

import pipeline.sandbox
from pipeline.sandbox.control import CONTROLS
from tests.sandbox.rehearsal import ADA, GET_BY_EMAIL, TRACK, UPDATE, Clock, Rehearsal, event


def test_control_tells_state_and_content_without_a_key(rehearse: Any) -> None:
    iterable = rehearse(limits={UPDATE: 1}, clock=Clock())
    iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": "pro"}})
    iterable.answer(UPDATE, ADA)
    for _ in range(2):
        iterable.answer(TRACK, event())
    iterable.answer(TRACK, event(id="2"))

    def ask(path: str) -> Any:
        return iterable.session.get(iterable.stand_in.url + path, timeout=5).json()

    assert ask("/sandbox/state") == {
        "users": 1,
        "events": 2,
        "event_sends": 3,
        "most_sends_of_one_event": 2,
        "requests": {UPDATE: 2, TRACK: 3},
        "request_bytes": {UPDATE: 87, TRACK: 273},
        "rate_limited": {UPDATE: 1},
        "first_request_at": 1000.0,
        "last_answer_at": 1000.0,
        "fields": {"plan": "string"},
        "event_fields": {"pageView": {}},
    }
    assert ask("/sandbox/users") == {"ada@example.com": {**ADA, "userId": None, "dataFields": {"plan": "pro"}}}
    assert ask("/sandbox/events") == {"pv-1": event(), "2": event(id="2")}


def test_every_control_is_documented_and_every_documented_one_exists() -> None:
    documented = set(
        re.findall(r"^    (GET|POST|DELETE) +(/sandbox/\w+) ", pipeline.sandbox.__doc__ or "", re.MULTILINE)
    )
    shown_as_well = {("GET", f"/sandbox/{name}") for name in ("forgotten", "dropped_fields", "blocked_events")}
    assert documented | shown_as_well == set(CONTROLS)


def test_control_makes_and_clears_faults(iterable: Rehearsal) -> None:
    fault = {"path": UPDATE, "status": 502, "body": "<html>é", "headers": {"X-From": "proxy"}}
    assert iterable.answer("/sandbox/faults", fault, {}) == (200, {"faults": 1})
    response = iterable.post(UPDATE, ADA)
    assert (response.status_code, response.text, response.headers["X-From"]) == (502, "<html>é", "proxy")
    response = iterable.session.delete(iterable.stand_in.url + "/sandbox/faults", timeout=5)
    assert (response.status_code, response.json()) == (200, {"faults": 0})
    assert iterable.post(UPDATE, ADA).status_code == 200


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"pth":"/api/users/update"}', b'{"every":0}'])
def test_control_refuses_what_is_no_fault(iterable: Rehearsal, body: bytes) -> None:
    response = iterable.post("/sandbox/faults", data=body)
    assert (response.status_code, list(response.json())) == (400, ["error"])
    assert iterable.project.faults == []


def control(iterable: Rehearsal, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    response = iterable.session.request(method, f"{iterable.stand_in.url}/sandbox/{path}", json=body, timeout=5)
    return response.status_code, response.json()


def test_value_changed_by_hand_is_no_update(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {**ADA, "userId": "u-1", "dataFields": {"plan": "pro", "city": "Oslo"}})
    change = {"email": "ADA@example.com", "dataFields": {"plan": "free", "city": None, "age": 36}}
    kept = {**ADA, "userId": "u-1", "dataFields": {"plan": "free", "age": 36}}
    assert control(iterable, "POST", "users", change) == (200, {"ada@example.com": kept})
    assert control(iterable, "GET", "users?userId=u-1") == (200, {"ada@example.com": kept})
    assert (iterable.project.user_updates, iterable.project.request_counts) == ({"ada@example.com": 1}, {UPDATE: 1})
    assert iterable.project.user_field_types == {"plan": "string", "city": "string", "age": "long"}


@pytest.mark.parametrize(
    "body", [{"dataFields": {}}, {"email": "000"}, {"email": 7}, {"dataFields": {"plan": 7}, **ADA}, [], None]
)
def test_impossible_change_by_hand_is_400(iterable: Rehearsal, body: Any) -> None:
    iterable.project.user_field_types["plan"] = "string"
    status, answer = control(iterable, "POST", "users", body)
    assert (status, list(answer), iterable.project.users) == (400, ["error"], {})


@pytest.mark.parametrize("query", ["email=ADA%40example.com", "userId=u-1"])
def test_deleted_user_is_not_found_any_more_and_can_come_back(iterable: Rehearsal, query: str) -> None:
    iterable.answer(UPDATE, {**ADA, "userId": "u-1", "dataFields": {"plan": "pro"}})
    iterable.answer(TRACK, event())
    assert control(iterable, "DELETE", f"users?{query}") == (200, {"deleted": "ada@example.com"})
    for identity in (ADA, {"email": None, "userId": "u-1"}):
        assert iterable.answer(TRACK, event(id="2", **identity))[0] == 400
    assert iterable.get(f"{GET_BY_EMAIL}?email=ada@example.com").json() == {}
    assert control(iterable, "DELETE", f"users?{query}") == (404, {"error": "no such user"})
    assert control(iterable, "GET", f"users?{query}") == (404, {"error": "no such user"})
    assert list(iterable.project.events) == ["pv-1"]
    iterable.know("ada@example.com")
    assert iterable.project.users == {"ada@example.com": {**ADA, "userId": None, "dataFields": {}}}
    assert iterable.project.user_updates == {"ada@example.com": 1}


def test_forgotten_user_is_deleted_and_refused_by_both_identities_until_unforgotten(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {**ADA, "userId": "u-1"})
    both = (200, {"forgotten": ["ada@example.com", "u-1"]})
    assert control(iterable, "POST", "forgotten", {"userId": "u-1"}) == both
    assert control(iterable, "GET", "forgotten") == both
    assert iterable.project.users == {}
    assert [iterable.answer(UPDATE, user)[0] for user in (ADA, {"userId": "u-1"})] == [409, 409]
    assert control(iterable, "DELETE", "forgotten?email=Ada@example.com") == (200, {"forgotten": ["u-1"]})
    assert iterable.answer(UPDATE, ADA)[0] == 200


def test_unknown_user_can_be_forgotten(iterable: Rehearsal) -> None:
    assert control(iterable, "POST", "forgotten", ADA) == (200, {"forgotten": ["ada@example.com"]})


@pytest.mark.parametrize("path", ["dropped_fields", "blocked_events"])
def test_fields_are_dropped_and_events_blocked_by_name(iterable: Rehearsal, path: str) -> None:
    assert control(iterable, "POST", path, {"name": "b"}) == (200, {path: ["b"]})
    assert control(iterable, "POST", path, {"name": "a"}) == (200, {path: ["a", "b"]})
    assert getattr(iterable.project, path) == {"a", "b"}
    assert control(iterable, "DELETE", f"{path}?name=b") == (200, {path: ["a"]})
    assert control(iterable, "GET", path) == (200, {path: ["a"]})
    assert control(iterable, "DELETE", path) == (200, {path: []})


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "dropped_fields", {}),
        ("POST", "dropped_fields", ["plan"]),
        ("POST", "blocked_events", {"name": 7}),
        ("POST", "forgotten", {"email": 7}),
        ("POST", "forgotten", {}),
        ("DELETE", "forgotten", None),
        ("DELETE", "events", None),
        ("POST", "events", {"dataFields": {}}),
        ("POST", "events", {"id": "pv-1", "createdAt": "now"}),
        ("POST", "doubled_events", {}),
        ("POST", "journeys", {}),
        ("POST", "journeys", {"name": "Welcome", "triggerEventNames": "page_view"}),
        ("DELETE", "users", None),
    ],
)
def test_change_by_hand_without_its_name_is_400(iterable: Rehearsal, method: str, path: str, body: Any) -> None:
    iterable.know("ada@example.com")
    status, answer = control(iterable, method, path, body)
    assert (status, list(answer), len(iterable.project.users)) == (400, ["error"], 1)


def test_event_is_changed_doubled_and_deleted_by_hand(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event(dataFields={"page": "home", "device": "desktop"}))
    changed = event(createdAt=7, dataFields={"page": "docs"})
    changes = {"id": "pv-1", "createdAt": 7, "dataFields": {"page": "docs", "device": None}}
    assert control(iterable, "POST", "events", changes) == (200, {"pv-1": changed})
    assert control(iterable, "POST", "doubled_events", {"id": "pv-1"}) == (200, {"pv-1-2": {**changed, "id": "pv-1-2"}})
    assert control(iterable, "POST", "doubled_events", {"id": "pv-1"})[1] == {"pv-1-3": {**changed, "id": "pv-1-3"}}
    assert control(iterable, "DELETE", "events?id=pv-1") == (200, {"deleted": "pv-1"})
    assert control(iterable, "DELETE", "events?id=pv-1") == (404, {"error": "no such event"})
    read = iterable.get("/api/events/ada@example.com").json()["events"]
    assert sorted(each["_id"] for each in read) == ["pv-1-2", "pv-1-3"]
    assert (list(iterable.project.events), iterable.project.event_sends) == (["pv-1-2", "pv-1-3"], {"pv-1": 1})
    assert iterable.project.event_order == ["pv-1-2", "pv-1-3"]
    assert iterable.project.effects.event_writes == {"ada@example.com": {"pv-1": 1}}


@pytest.mark.parametrize(("path", "body"), [("events", {"id": "pv-1"}), ("doubled_events", {"id": "pv-1"})])
def test_unknown_event_can_not_be_changed(iterable: Rehearsal, path: str, body: Any) -> None:
    assert control(iterable, "POST", path, body) == (404, {"error": "no such event"})
    assert iterable.project.events == {}


def test_journeys_are_added_shown_and_removed(iterable: Rehearsal) -> None:
    plain = {"id": 1, "name": "Welcome", "enabled": True, "isArchived": False, "journeyType": "Published"}
    limited = {
        **plain,
        "id": 2,
        "name": "Back",
        "enabled": False,
        "triggerEventNames": ["page_view"],
        "lifetimeLimit": 1,
    }
    assert control(iterable, "POST", "journeys", {"name": "Welcome"}) == (200, plain)
    more = {"enabled": False, "lifetimeLimit": 1}
    answer = control(iterable, "POST", "journeys", {"name": "Back", "triggerEventNames": ["page_view"], **more})
    assert answer == (200, limited)
    assert control(iterable, "GET", "journeys") == (200, {"journeys": [plain, limited]})
    assert control(iterable, "DELETE", "journeys?name=Welcome") == (200, {"journeys": [limited]})
    assert control(iterable, "DELETE", "journeys") == (200, {"journeys": []})


def test_effects_are_shown_for_all_or_one_and_cleared(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com", "bob@example.com")
    iterable.answer(UPDATE, {**ADA, "userId": "u-1", "dataFields": {"unsubscribedChannelIds": [7]}})
    iterable.answer(TRACK, event())
    subscribed: dict[str, list[int]] = {
        **{"emailListIds": [], "subscribedMessageTypeIds": []},
        **{"unsubscribedChannelIds": [], "unsubscribedMessageTypeIds": []},
    }
    ada = {
        "event_writes": {"pv-1": 1},
        "field_writes": {"unsubscribedChannelIds": 1},
        "subscriptions": {**subscribed, "unsubscribedChannelIds": [7]},
    }
    bob = {"event_writes": {}, "field_writes": {}, "subscriptions": subscribed}
    both = {"created": ["ada@example.com", "bob@example.com"], "moved": []}
    everybody = {**both, "people": {"ada@example.com": ada, "bob@example.com": bob}}
    assert control(iterable, "GET", "effects") == (200, everybody)
    for query in ("email=ADA@example.com", "userId=u-1"):
        assert control(iterable, "GET", f"effects?{query}") == (200, {**both, "people": {"ada@example.com": ada}})
    iterable.project.delete_user(**ADA)
    gone = {"people": {"ada@example.com": {**ada, "subscriptions": None}}}
    assert control(iterable, "GET", "effects?email=ada@example.com") == (200, {**both, **gone})
    cleared = {"created": [], "moved": [], "people": {"bob@example.com": bob}}
    assert control(iterable, "DELETE", "effects") == (200, cleared)
