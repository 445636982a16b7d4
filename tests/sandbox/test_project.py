"""What a project accepts, refuses and keeps. Expected bodies are copied from recordings where there are any."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.sandbox import DOCUMENTED_LIMITS, SANDBOX_JWT_SECRET, SANDBOX_KEY, StandIn
from tests.sandbox.rehearsal import (
    ADA,
    BULK_UPDATE,
    BY_USER_ID,
    EVENTS_BY_EMAIL,
    EVENTS_BY_USER_ID,
    FORGOTTEN_EMAILS,
    FORGOTTEN_USER_IDS,
    GET_BY_EMAIL,
    GET_FIELDS,
    JOURNEYS,
    TRACK,
    TRACK_BULK,
    UPDATE,
    Clock,
    Rehearsal,
    bearer,
    bulk_events,
    bulk_users,
    event,
    failures,
)

# --- Accepted


def test_user_update_is_answered_as_recorded_and_kept(iterable: Rehearsal) -> None:
    answer = iterable.answer(UPDATE, {"email": "Ada@Example.com", "dataFields": {"firstName": "Ada"}})
    assert answer == (200, {"msg": "", "code": "Success", "params": None})
    kept = {"email": "ada@example.com", "userId": None, "dataFields": {"firstName": "Ada"}}
    assert iterable.project.users == {"ada@example.com": kept}
    assert iterable.project.user_updates == {"ada@example.com": 1}


def test_event_is_answered_as_recorded_and_kept(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    assert iterable.answer(TRACK, event()) == (
        200,
        {"msg": "Event with id: pv-1 tracked.", "code": "Success", "params": {"id": "pv-1"}},
    )
    assert iterable.project.events == {"pv-1": event()}


# --- Keys


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Api-Key": SANDBOX_KEY}, "", 200),
        ({"api_key": SANDBOX_KEY}, "", 200),
        ({"API-KEY": SANDBOX_KEY}, "", 200),
        ({"Api-Key": "another"}, "", 401),
        ({"Authorization": f"Bearer {SANDBOX_KEY}"}, "", 401),
        ({}, f"?api_key={SANDBOX_KEY}", 401),
    ],
)
def test_key_counts_only_in_its_header(iterable: Rehearsal, headers: dict[str, str], query: str, status: int) -> None:
    assert iterable.post(UPDATE + query, {"email": "ada@example.com"}, headers).status_code == status


def test_wrong_key_is_answered_as_recorded(iterable: Rehearsal) -> None:
    params = {"ip": "127.0.0.1", "endpoint": UPDATE}
    answer = iterable.answer(UPDATE, {"email": "ada@example.com"}, {"Api-Key": "another"})
    assert answer == (401, {"msg": "Invalid API key", "code": "BadApiKey", "params": params})
    assert iterable.project.users == {}


@pytest.mark.parametrize("key_type", ["Mobile", "Web", "JavaScript"])
def test_client_side_key_reaches_single_endpoints_only(rehearse: Any, key_type: str) -> None:
    iterable = rehearse(key_type=key_type)
    assert iterable.answer(UPDATE, {"email": "ada@example.com"})[0] == 200
    for path in (BULK_UPDATE, TRACK_BULK):
        status, answer = iterable.answer(path, {})
        assert (status, answer["code"], answer["params"]["apiKeyType"]) == (401, "BadApiKey", key_type)
        assert answer["msg"] == "Disabled API key or insufficient privileges"
    for path in (GET_FIELDS, f"{GET_BY_EMAIL}?email=a@example.com", f"{BY_USER_ID}/1", FORGOTTEN_EMAILS):
        assert iterable.get(path).status_code == 401
    for path in ("/api/events/a@example.com", f"{EVENTS_BY_USER_ID}/1", JOURNEYS):
        assert iterable.get(path).status_code == 401


def test_jwt_enabled_key_is_never_a_server_side_one(rehearse: Any) -> None:
    iterable = rehearse(jwt_secret=SANDBOX_JWT_SECRET, key_type="ServerSide")
    status, answer = iterable.answer(BULK_UPDATE, {"users": [ADA]}, bearer(ADA))
    assert (status, answer["params"]["apiKeyType"]) == (401, "Mobile")


# --- Rate limits and size


def test_limit_refuses_what_exceeds_it_within_any_second(rehearse: Any) -> None:
    clock = Clock()
    iterable = rehearse(limits={UPDATE: 2}, clock=clock)
    iterable.know("ada@example.com")
    clock.now += 0.6
    iterable.know("ada@example.com")
    msg = f"Exceeded rate limit of 2.0 per second for endpoint: {UPDATE}, project: 1 "
    params = {"rateLimitLimit": 2, "rateLimitRemaining": 0, "rateLimitReset": 1}
    response = iterable.post(UPDATE, ADA)
    assert (response.status_code, response.json()) == (429, {"msg": msg, "code": "RateLimitExceeded", "params": params})
    assert "Retry-After" not in response.headers
    clock.now += 0.35  # both are still in the window
    assert iterable.answer(UPDATE, ADA)[0] == 429
    clock.now += 0.05  # the first has left it, the second has not
    assert [iterable.answer(UPDATE, ADA)[0] for _ in range(2)] == [200, 429]
    assert iterable.project.rate_limited == {UPDATE: 3}
    assert iterable.answer(TRACK, event())[0] == 200


def test_limits_are_iterables_own_unless_told_otherwise(rehearse: Any) -> None:
    iterable = rehearse(clock=Clock(), limits=dict(DOCUMENTED_LIMITS))
    assert [iterable.get(GET_FIELDS).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert DOCUMENTED_LIMITS == {
        **{UPDATE: 500, BULK_UPDATE: 5, TRACK: 2000, TRACK_BULK: 10},
        **{GET_FIELDS: 3, GET_BY_EMAIL: 100, BY_USER_ID: 100, FORGOTTEN_EMAILS: 3, FORGOTTEN_USER_IDS: 3},
        **{EVENTS_BY_EMAIL: 100, EVENTS_BY_USER_ID: 100},
    }
    assert StandIn().project.limits == DOCUMENTED_LIMITS


@pytest.mark.parametrize(
    ("switch", "params"),
    [
        ("numbers", {"rateLimitLimit": 0, "rateLimitRemaining": 0, "rateLimitReset": 1}),
        ("text", {"rateLimitLimit": "0", "rateLimitRemaining": "0", "rateLimitReset": "1"}),
        ("absent", {}),
    ],
)
def test_429s_of_the_users_endpoints_alone_say_how_long_to_wait(rehearse: Any, switch: str, params: Any) -> None:
    iterable = rehearse(rate_limit_params=switch, limits=dict.fromkeys((UPDATE, BULK_UPDATE, TRACK, TRACK_BULK), 0))
    said = [iterable.answer(path, {})[1]["params"] for path in (UPDATE, BULK_UPDATE, TRACK, TRACK_BULK)]
    assert said == [params, params, {}, {}]


def test_addresses_and_ids_of_events_share_one_limit_each(rehearse: Any) -> None:
    iterable = rehearse(limits={EVENTS_BY_EMAIL: 1, EVENTS_BY_USER_ID: 1}, clock=Clock())
    paths = ("/api/events/ada@example.com", "/api/events/bob%40example.com", "/api/events/byUserId/1%2F2")
    assert [iterable.get(path).status_code for path in paths] == [200, 429, 200]
    assert iterable.project.request_counts == {EVENTS_BY_EMAIL: 2, EVENTS_BY_USER_ID: 1}


def test_ids_in_the_path_share_one_limit(rehearse: Any) -> None:
    iterable = rehearse(limits={BY_USER_ID: 2}, clock=Clock(), unknown_user_id="200")
    assert [iterable.get(f"{BY_USER_ID}{rest}").status_code for rest in ("/1", "?userId=2", "/3")] == [200, 200, 429]
    assert iterable.project.rate_limited == {BY_USER_ID: 1}


def test_retry_after_is_sent_if_asked_for(rehearse: Any) -> None:
    assert rehearse(limits={UPDATE: 0}, retry_after="7").post(UPDATE, ADA).headers["Retry-After"] == "7"


@pytest.mark.parametrize(("switch", "status", "code"), [("413", 413, "BadParams"), ("400", 400, "BatchTooLarge")])
def test_bulk_body_over_four_megabytes_is_refused(rehearse: Any, switch: str, status: int, code: str) -> None:
    iterable = rehearse(too_large=switch)
    body = b'{"users":[{"email":"ada@example.com"}]}'
    assert iterable.post(BULK_UPDATE, data=body.ljust(4_000_000)).status_code == 200
    response = iterable.post(BULK_UPDATE, data=body.ljust(4_000_001))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert iterable.post(UPDATE, data=b'{"email":"ada@example.com"}'.ljust(4_000_001)).status_code == 200


# --- Identities


def test_user_known_by_id_and_then_by_both_is_one_user(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {"userId": "u-1", "dataFields": {"plan": "pro"}})
    iterable.answer(UPDATE, {"userId": "u-1", "email": "ada@example.com"})
    iterable.answer(UPDATE, {"userId": "u-1", "dataFields": {"city": "Oslo"}})
    kept = {"email": "ada@example.com", "userId": "u-1", "dataFields": {"plan": "pro", "city": "Oslo"}}
    assert iterable.project.users == {"ada@example.com": kept}
    assert iterable.project.user_updates == {"ada@example.com": 3}
    for identity in ({"email": "ada@example.com"}, {"email": None, "userId": "u-1"}):
        assert iterable.answer(TRACK, event(**identity))[0] == 200


def test_address_and_id_of_two_users_conflict_in_a_hybrid_project(iterable: Rehearsal) -> None:
    iterable.know("bob@example.com")
    iterable.answer(UPDATE, {**ADA, "userId": "u-1"})
    clash = {"email": "bob@example.com", "userId": "u-1"}
    status, answer = iterable.answer(UPDATE, clash)
    assert (status, answer["code"]) == (409, "ExternalKeyConflict")
    assert failures(bulk_users(iterable, clash)[1]) == {"failCount": 1, "conflictEmails": ["bob@example.com"]}
    assert iterable.answer(UPDATE, {**ADA, "userId": "u-2"})[0] == 409
    assert iterable.project.user_updates == {"bob@example.com": 1, "ada@example.com": 1}


@pytest.mark.parametrize(
    ("project_type", "user", "status"),
    [
        ("hybrid", {"userId": "u-1"}, 200),
        ("userId", {"userId": "u-1"}, 200),
        ("userId", ADA, 400),
        ("email", {"userId": "u-1"}, 400),
        ("email", {"userId": "u-1", "preferUserId": True}, 200),
    ],
)
def test_project_type_decides_which_new_users_are_taken(
    rehearse: Any, project_type: str, user: dict[str, Any], status: int
) -> None:
    iterable = rehearse(project_type=project_type)
    assert iterable.answer(UPDATE, user)[0] == status
    assert bulk_users(iterable, user)[1]["failCount"] == (0 if status == 200 else 1)


def test_user_id_project_keeps_users_by_id_whatever_their_address(rehearse: Any) -> None:
    iterable = rehearse(project_type="userId")
    bulk_users(iterable, {**ADA, "userId": "u-1"}, {**ADA, "userId": "u-2"})
    assert list(iterable.project.users) == ["u-1", "u-2"]
    status, answer = bulk_events(iterable, event(), event(userId="u-2"))
    assert (status, failures(answer)) == (200, {"failCount": 1, "notFoundEmails": ["ada@example.com"]})


# --- Refused


def test_forgotten_user_is_409_alone_and_named_in_bulk(iterable: Rehearsal) -> None:
    iterable.project.forgotten |= {"ada@example.com", "u-1"}
    for path in (UPDATE, TRACK):
        status, answer = iterable.answer(path, event(email="Ada@example.com"))
        assert (status, answer["code"]) == (409, "ForgottenUserError")
    by_id = {"email": None, "userId": "u-1"}
    for _, answer in (bulk_users(iterable, ADA, by_id), bulk_events(iterable, event(), event(**by_id))):
        expected = {"failCount": 2, "forgottenEmails": ["ada@example.com"], "forgottenUserIds": ["u-1"]}
        assert failures(answer) == expected


def test_event_of_an_unknown_user_is_refused_by_default(iterable: Rehearsal) -> None:
    for identity, code in [({}, "UnknownEmailError"), ({"email": None, "userId": "u-1"}, "UnknownUserIdError")]:
        status, answer = iterable.answer(TRACK, event(**identity))
        assert (status, answer["code"]) == (400, code)
    answer = bulk_events(iterable, event(), event(email=None, userId="u-1"))[1]
    assert failures(answer) == {"failCount": 2, "notFoundEmails": ["ada@example.com"], "notFoundUserIds": ["u-1"]}
    assert iterable.project.events == {}


def test_event_of_an_unknown_user_is_kept_if_so_set(rehearse: Any) -> None:
    iterable = rehearse(unknown_users="accept")
    assert iterable.answer(TRACK, event())[0] == 200
    assert (list(iterable.project.events), iterable.project.users) == (["pv-1"], {})


def test_new_user_is_found_only_after_a_while(rehearse: Any) -> None:
    clock = Clock()
    iterable = rehearse(visible_after_s=60, clock=clock)
    iterable.know("ada@example.com")
    clock.now += 59.9
    iterable.know("ada@example.com")  # another update does not start the wait again
    assert failures(bulk_events(iterable, event())[1]) == {"failCount": 1, "notFoundEmails": ["ada@example.com"]}
    clock.now += 0.1
    assert failures(bulk_events(iterable, event())[1]) == {"failCount": 0}


def test_blocked_event_name_is_200_and_not_kept(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.project.blocked_events.add("pageView")
    status, answer = iterable.answer(TRACK, event())
    assert (status, answer["msg"]) == (200, "Event pageView is disallowed from tracking.")
    status, answer = bulk_events(iterable, event(), event(id="2", eventName="signup"))
    assert (status, answer["successCount"]) == (200, 1)
    assert failures(answer) == {"failCount": 1, "disallowedEventNames": ["pageView"]}
    assert list(iterable.project.events) == ["2"]


# --- Events by id


def test_event_sent_twice_is_one_event_updated(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event(dataFields={"page": "home"}))
    bulk_events(iterable, event(id="2"), event(dataFields={"page": "docs"}))
    assert iterable.project.events["pv-1"]["dataFields"] == {"page": "docs"}
    assert iterable.project.event_order == ["pv-1", "2"]
    assert iterable.project.event_sends == {"pv-1": 2, "2": 1}


def test_event_without_id_is_a_new_event_each_time(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    ids = [iterable.answer(TRACK, event(id=None))[1]["params"]["id"] for _ in range(2)]
    assert list(iterable.project.events) == ids
    assert len(set(ids)) == 2


def test_counting_project_keeps_keys_and_counts_only(rehearse: Any) -> None:
    iterable = rehearse(keep_payloads=False, record_requests=False)
    iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": "pro"}})
    iterable.answer(TRACK, event())
    assert iterable.project.users["ada@example.com"]["dataFields"] == {}
    assert iterable.project.events == {"pv-1": {}}
    assert (iterable.project.user_accepted_seq, iterable.project.event_accepted_seq) == ({}, {})
    assert (iterable.project.requests, iterable.project.request_counts) == ([], {UPDATE: 1, TRACK: 1})


def test_order_of_acceptance_is_kept_by_user_and_event(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {"userId": "u-1"})
    bulk_events(iterable, event(id="1", email=None, userId="u-1"), event(id="2"))
    iterable.answer(UPDATE, {"userId": "u-1", **ADA})  # the same user, known by address from here on
    bulk_users(iterable, {"email": "bob@example.com"}, {"email": "bad@"})
    iterable.answer(TRACK, event(id="1"))
    iterable.answer(TRACK, event(id="3"))
    assert iterable.project.user_accepted_seq == {"ada@example.com": 0, "bob@example.com": 2}
    assert iterable.project.event_accepted_seq == {"1": 1, "3": 3}
