"""The stand-in, asked over real HTTP. Expected bodies are copied from recordings where there are any."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from pipeline.sandbox import (
    DOCUMENTED_LIMITS,
    SANDBOX_JWT_SECRET,
    SANDBOX_KEY,
    Fault,
    StandIn,
    create_sample_database,
)

UPDATE = "/api/users/update"
BULK_UPDATE = "/api/users/bulkUpdate"
TRACK = "/api/events/track"
TRACK_BULK = "/api/events/trackBulk"
GET_FIELDS = "/api/users/getFields"
GET_BY_EMAIL = "/api/users/getByEmail"
BY_USER_ID = "/api/users/byUserId"
FORGOTTEN_EMAILS = "/api/users/forgotten"
FORGOTTEN_USER_IDS = "/api/users/forgottenUserIds"


def empty(*names: str) -> dict[str, list[str]]:
    return {name: [] for name in names}


INVALID = ("invalidEmails", "invalidUserIds")
NOT_FOUND = ("notFoundEmails", "notFoundUserIds")
BAD_OR_CLASHING = ("invalidDataEmails", "invalidDataUserIds", "conflictEmails", "conflictUserIds")
FORGOTTEN = ("forgottenEmails", "forgottenUserIds")
NOTHING_FAILED_USERS: dict[str, Any] = {
    "successCount": 0,
    "failCount": 0,
    **empty(*INVALID, "filteredOutFields", "createdFields", "noOpEmails", "noOpUserIds"),
    "failedUpdates": empty(*INVALID, *NOT_FOUND, *BAD_OR_CLASHING, *FORGOTTEN),
}
NOTHING_FAILED_EVENTS: dict[str, Any] = {
    "successCount": 0,
    "failCount": 0,
    **empty(*INVALID, "disallowedEventNames", "filteredOutFields", "createdFields"),
    "failedUpdates": empty(*INVALID, *NOT_FOUND, *FORGOTTEN),
}


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rehearsal:
    """A stand-in and a client of it."""

    def __init__(self, stand_in: StandIn, session: requests.Session) -> None:
        self.stand_in = stand_in
        self.project = stand_in.project
        self.session = session

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None, **options: Any) -> Any:
        headers = {"Api-Key": SANDBOX_KEY} if headers is None else headers
        return self.session.post(self.stand_in.url + path, json=body, headers=headers, timeout=5, **options)

    def get(self, path: str) -> Any:
        return self.session.get(self.stand_in.url + path, headers={"Api-Key": SANDBOX_KEY}, timeout=5)

    def answer(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        response = self.post(path, body, headers)
        return response.status_code, response.json()

    def know(self, *emails: str) -> None:
        for email in emails:
            assert self.answer(UPDATE, {"email": email})[0] == 200

    def talk(self, data: bytes) -> bytes:
        """Sends bytes on a new connection; all that comes back until the stand-in ends it."""
        with socket.create_connection(("127.0.0.1", self.stand_in.port), timeout=5) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def rehearse() -> Iterator[Any]:
    """rehearse(**options) -> Rehearsal, without rate limits unless asked for."""
    running: list[Rehearsal] = []

    def start(**options: Any) -> Rehearsal:
        session = requests.Session()
        session.trust_env = False
        running.append(Rehearsal(StandIn(**{"limits": None, **options}).start(), session))
        return running[-1]

    yield start
    for rehearsal in running:
        rehearsal.session.close()
        rehearsal.stand_in.stop()


@pytest.fixture
def iterable(rehearse: Any) -> Rehearsal:
    rehearsal: Rehearsal = rehearse()
    return rehearsal


def event(**changes: Any) -> dict[str, Any]:
    return {"email": "ada@example.com", "eventName": "pageView", "id": "pv-1", "createdAt": 1709285400, **changes}


def bulk_users(iterable: Rehearsal, *users: dict[str, Any]) -> Any:
    return iterable.answer(BULK_UPDATE, {"users": list(users)})


def bulk_events(iterable: Rehearsal, *events: dict[str, Any]) -> Any:
    return iterable.answer(TRACK_BULK, {"events": list(events)})


def failures(answer: Any) -> dict[str, Any]:
    """What in a bulk answer tells of failures: the count, and the lists that are not empty."""
    listed = {**answer["failedUpdates"], "disallowedEventNames": answer.get("disallowedEventNames")}
    return {"failCount": answer["failCount"], **{name: values for name, values in listed.items() if values}}


# --- 0. What is taken


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


def test_bulk_with_one_bad_address_names_it_and_keeps_the_other(iterable: Rehearsal) -> None:
    answer = bulk_users(iterable, {"email": "ada@example.com", "dataFields": {"age": 36}}, {"email": "bad@"})
    failed = {**NOTHING_FAILED_USERS["failedUpdates"], "invalidEmails": ["bad@"]}
    counts = {"successCount": 1, "failCount": 1, "invalidEmails": ["bad@"], "createdFields": ["age"]}
    assert answer == (200, {**NOTHING_FAILED_USERS, **counts, "failedUpdates": failed})
    assert list(iterable.project.users) == ["ada@example.com"]


def test_bulk_events_all_taken_is_answered_with_all_lists_empty(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    answer = bulk_events(iterable, event(id="1"), event(id="2", email="ADA@example.com"))
    assert answer == (200, {**NOTHING_FAILED_EVENTS, "successCount": 2})
    assert iterable.project.event_order == ["1", "2"]


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


# --- 1. Keys


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


# --- 2. Key types


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


def test_jwt_enabled_key_is_never_a_server_side_one(rehearse: Any) -> None:
    iterable = rehearse(jwt_secret=SANDBOX_JWT_SECRET, key_type="ServerSide")
    status, answer = iterable.answer(BULK_UPDATE, {"users": [ADA]}, bearer(ADA))
    assert (status, answer["params"]["apiKeyType"]) == (401, "Mobile")


# --- 3. JWTs

YEAR = 31_536_000
ADA = {"email": "ada@example.com"}
# From Iterable's article on JWT-enabled API keys; it ran out in 2020.
ARTICLE_SECRET = "2EB6A2F34691492F81A819AEDA32427F"
ARTICLE_TOKEN = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJlbWFpbCI6InRlc3RAaXRlcmFibGUuY29tIiwiaWF0IjoxNTk5NjkzMjE4LCJleHAiOjE1OTk2OTMyMTl9"
    ".eDbexB7CnK2jGsXvHfYENrCEkblrLKxgMNbmlfJHXUA"
)


def bearer(
    claims: dict[str, Any], secret: str = SANDBOX_JWT_SECRET, algorithm: str = "HS256", **times: Any
) -> dict[str, str]:
    now = int(time.time())
    token = jwt.encode({**claims, "iat": now, "exp": now + 3600, **times}, secret, algorithm)
    return {"Api-Key": SANDBOX_KEY, "Authorization": f"Bearer {token}"}


def authorization(text: str) -> dict[str, str]:
    return {"Api-Key": SANDBOX_KEY, "Authorization": text}


def test_jwt_of_the_same_user_is_accepted_whatever_the_case(rehearse: Any) -> None:
    iterable = rehearse(jwt_secret=SANDBOX_JWT_SECRET)
    assert iterable.answer(UPDATE, {"email": "ADA@example.com"}, bearer(ADA))[0] == 200
    assert iterable.answer(UPDATE, {"userId": "u-1"}, bearer({"userId": "u-1"}))[0] == 200


@pytest.mark.parametrize(
    ("headers", "msg"),
    [
        (authorization("Bearer not-a-token"), "JWT format is invalid"),
        (authorization("Bearer a.b.c"), "JWT format is invalid"),
        (authorization(bearer(ADA)["Authorization"].removeprefix("Bearer ")), "JWT format is invalid"),
        (bearer(ADA, secret="another-secret-of-at-least-32-bytes"), "JWT is invalid"),
        (bearer(ADA, secret=SANDBOX_JWT_SECRET * 2, algorithm="HS512"), "JWT is invalid"),
        (bearer(ADA, exp=int(time.time())), "JWT token is expired"),
        (bearer(ADA, iat=int(time.time()), exp=int(time.time()) + YEAR + 60), "Exp must be less than 1 year from iat"),
        (bearer(ADA, exp=time.time() + 60), "Invalid payload"),
        (bearer(ADA, iat="1709285400"), "Invalid payload"),
        (bearer({**ADA, "userId": "u-1"}), "JWT payload requires a value for userId or email"),
        (bearer({}), "JWT payload requires a value for userId or email"),
    ],
)
def test_bad_jwt_is_401_in_iterables_words(rehearse: Any, headers: dict[str, str], msg: str) -> None:
    iterable = rehearse(jwt_secret=SANDBOX_JWT_SECRET)
    expected = {"msg": msg, "code": "InvalidJwtPayload", "params": {"endpoint": UPDATE}}
    assert iterable.answer(UPDATE, ADA, headers) == (401, expected)
    assert iterable.project.users == {}


def test_jwt_of_iterables_article_has_a_good_signature_and_is_expired(rehearse: Any) -> None:
    iterable = rehearse(jwt_secret=ARTICLE_SECRET)
    answer = iterable.answer(TRACK, {"email": "test@iterable.com"}, authorization(f"Bearer {ARTICLE_TOKEN}"))
    expected = {"msg": "JWT token is expired", "code": "InvalidJwtPayload", "params": {"endpoint": TRACK}}
    assert answer == (401, expected)


def test_missing_jwt_is_bad_authorization_header(rehearse: Any) -> None:
    status, answer = rehearse(jwt_secret=SANDBOX_JWT_SECRET).answer(UPDATE, ADA)
    assert (status, answer["code"]) == (401, "BadAuthorizationHeader")
    assert answer["msg"] == "JWT Authorization header is not set"


@pytest.mark.parametrize("body", [{"email": "bob@example.com"}, {"userId": "u-1"}, {}])
def test_jwt_of_another_user_is_a_mismatch(rehearse: Any, body: dict[str, str]) -> None:
    status, answer = rehearse(jwt_secret=SANDBOX_JWT_SECRET).answer(UPDATE, body, bearer(ADA))
    assert (status, answer["code"]) == (401, "JwtUserIdentifiersMismatched")


@pytest.mark.parametrize(("strict", "status"), [(False, 200), (True, 401)])
def test_extra_iss_claim_passes_unless_strict(rehearse: Any, strict: bool, status: int) -> None:
    iterable = rehearse(jwt_secret=SANDBOX_JWT_SECRET, strict_claims=strict)
    assert iterable.answer(UPDATE, ADA, bearer({**ADA, "iss": "iterable-integration"}))[0] == status


# --- 4. Rate limits


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


def test_ids_in_the_path_share_one_limit(rehearse: Any) -> None:
    iterable = rehearse(limits={BY_USER_ID: 2}, clock=Clock(), unknown_user_id="200")
    assert [iterable.get(f"{BY_USER_ID}{rest}").status_code for rest in ("/1", "?userId=2", "/3")] == [200, 200, 429]
    assert iterable.project.rate_limited == {BY_USER_ID: 1}


def test_retry_after_is_sent_if_asked_for(rehearse: Any) -> None:
    assert rehearse(limits={UPDATE: 0}, retry_after="7").post(UPDATE, ADA).headers["Retry-After"] == "7"


# --- 5. Size


@pytest.mark.parametrize(("switch", "status", "code"), [("413", 413, "BadParams"), ("400", 400, "BatchTooLarge")])
def test_bulk_body_over_four_megabytes_is_refused(rehearse: Any, switch: str, status: int, code: str) -> None:
    iterable = rehearse(too_large=switch)
    body = b'{"users":[{"email":"ada@example.com"}]}'
    assert iterable.post(BULK_UPDATE, data=body.ljust(4_000_000)).status_code == 200
    response = iterable.post(BULK_UPDATE, data=body.ljust(4_000_001))
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert iterable.post(UPDATE, data=b'{"email":"ada@example.com"}'.ljust(4_000_001)).status_code == 200


# --- 6. The shape of a request

MISSING = [{"msg": "error.path.missing", "args": []}]


@pytest.mark.parametrize(
    ("path", "body", "params"),
    [
        (TRACK, event(createdAt="1709285400"), {"obj.createdAt": "Number value expected"}),
        (TRACK, event(createdAt=1709285400.5), {"obj.createdAt": "Number value expected"}),
        (TRACK, event(createdAt=True), {"obj.createdAt": "Number value expected"}),
        (TRACK, event(createdAt=2**63), {"obj.createdAt": "Number value expected"}),
        (TRACK, {"email": "ada@example.com"}, {"obj.eventName": MISSING}),
        (TRACK, event(eventName=None), {"obj.eventName": MISSING}),
        (TRACK, event(id=7), {"obj.id": "String value expected"}),
        (TRACK, event(id="é" * 257), {"obj.id": "Length must be at most 512 bytes"}),
        (TRACK, event(dataFields=["a"]), {"obj.dataFields": "Object value expected"}),
        (TRACK, ["a"], {"obj": "Object value expected"}),
        (UPDATE, {"email": 7}, {"obj.email": "String value expected"}),
        (UPDATE, {"userId": 7}, {"obj.userId": "String value expected"}),
        (UPDATE, {**ADA, "mergeNestedObjects": 1}, {"obj.mergeNestedObjects": "Boolean value expected"}),
        (BULK_UPDATE, {"users": {}}, {"obj.users": "Array value expected"}),
        (BULK_UPDATE, {}, {"obj.users": MISSING}),
        (BULK_UPDATE, {"users": [ADA, "bob"]}, {"obj.users[1]": "Object value expected"}),
        (
            TRACK_BULK,
            {"events": [event(), event(createdAt="x", id=1)]},
            {"obj.events[1].createdAt": "Number value expected", "obj.events[1].id": "String value expected"},
        ),
    ],
)
def test_wrong_type_fails_the_whole_request_by_name(rehearse: Any, path: str, body: Any, params: Any) -> None:
    iterable = rehearse(unknown_users="accept")
    expected = {"msg": f"[{path}] Invalid JSON body", "code": "BadJsonBody", "params": params}
    assert iterable.answer(path, body) == (400, expected)
    assert (iterable.project.users, iterable.project.events) == ({}, {})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1" * 5000, "1,"])
def test_what_is_not_json_names_nothing(iterable: Rehearsal, number: str) -> None:
    response = iterable.post(UPDATE, data=f'{{"email":"ada@example.com","dataFields":{{"age":{number}}}}}')
    expected = {"msg": f"[{UPDATE}] Invalid JSON body", "code": "BadJsonBody", "params": {}}
    assert (response.status_code, response.json()) == (400, expected)


def test_event_id_of_512_bytes_is_taken(rehearse: Any) -> None:
    assert rehearse(unknown_users="accept").answer(TRACK, event(id="é" * 256))[0] == 200


# --- 7. Addresses and ids

GOOD_ADDRESSES = [
    "a@example.com", "O'Neil+tag@mail.example.co.uk", "x_y-z@example.museum", "jörg@bücher.de", "a@1and1.com",
]  # fmt: skip
BAD_ADDRESSES = [
    "", "000", "sayan", "bad@", "foo@", "@example.com", "a b@example.com", "a@example", "a@example.c", " a@example.com",
    "a..b@example.com", ".a@example.com", "a@-x.com", "a@x-.com", "a@x..com", "a@example.123", "a@x_y.com ",
    "a@b@example.com", "a@x.invalid", "a@x.TEST", "a@printer.local", f"{'a' * 65}@example.com",
]  # fmt: skip
GOOD_USER_IDS = ["7", "u-17", "a" * 52, "with space", "#!~"]
BAD_USER_IDS = ["", "a" * 53, "trailing ", "tab\tin", "ünicode", "line\n"]


def test_addresses_are_sorted_out_as_apache_commons_would(iterable: Rehearsal) -> None:
    users = [{"email": email} for email in GOOD_ADDRESSES + BAD_ADDRESSES]
    status, answer = bulk_users(iterable, *users)
    assert (status, answer["invalidEmails"], answer["successCount"]) == (200, BAD_ADDRESSES, len(GOOD_ADDRESSES))
    assert failures(answer) == {"failCount": len(BAD_ADDRESSES), "invalidEmails": BAD_ADDRESSES}


def test_user_ids_are_52_printable_ascii_characters_at_most(iterable: Rehearsal) -> None:
    status, answer = bulk_users(iterable, *({"userId": user_id} for user_id in GOOD_USER_IDS + BAD_USER_IDS))
    assert (status, answer["invalidUserIds"], answer["successCount"]) == (200, BAD_USER_IDS, len(GOOD_USER_IDS))
    assert list(iterable.project.users) == GOOD_USER_IDS


@pytest.mark.parametrize("path", [UPDATE, TRACK])
@pytest.mark.parametrize(
    ("identity", "code", "msg"),
    [
        ({"email": "000"}, "InvalidEmailAddressError", "Invalid email: 000"),
        ({"email": ""}, "InvalidEmailAddressError", "Invalid email: "),
        ({"email": "000", "userId": "7"}, "InvalidEmailAddressError", "Invalid email: 000"),
        ({"email": None, "userId": "7 "}, "InvalidUserIdError", "Invalid userId: 7 "),
        ({"email": None}, "BadParams", "email or userId is required"),
    ],
)
def test_bad_identity_is_400_on_single_calls(
    iterable: Rehearsal, path: str, identity: dict[str, Any], code: str, msg: str
) -> None:
    assert iterable.answer(path, event(**identity)) == (400, {"msg": msg, "code": code, "params": None})


def test_record_without_identity_is_counted_and_not_named_in_bulk(iterable: Rehearsal) -> None:
    status, answer = bulk_users(iterable, ADA, {"dataFields": {}})
    assert (status, answer["successCount"], failures(answer)) == (200, 1, {"failCount": 1})


def test_empty_batch_of_users_is_400_and_of_events_200_as_recorded(iterable: Rehearsal) -> None:
    expected = {"msg": "Emails invalid: ", "code": "InvalidEmailAddressError", "params": None}
    assert bulk_users(iterable) == (400, expected)
    assert bulk_events(iterable) == (200, NOTHING_FAILED_EVENTS)


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


# --- 8. Forgotten users


def test_forgotten_user_is_409_alone_and_named_in_bulk(iterable: Rehearsal) -> None:
    iterable.project.forgotten |= {"ada@example.com", "u-1"}
    for path in (UPDATE, TRACK):
        status, answer = iterable.answer(path, event(email="Ada@example.com"))
        assert (status, answer["code"]) == (409, "ForgottenUserError")
    by_id = {"email": None, "userId": "u-1"}
    for _, answer in (bulk_users(iterable, ADA, by_id), bulk_events(iterable, event(), event(**by_id))):
        expected = {"failCount": 2, "forgottenEmails": ["ada@example.com"], "forgottenUserIds": ["u-1"]}
        assert failures(answer) == expected


# --- 9. Field types


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


# --- Reading users back


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


# --- 10. Events that are refused


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


# --- 11. Events are kept by id


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


# --- 12. Faults

UPDATE_OF_ADA = (
    b"POST /api/users/update HTTP/1.1\r\nApi-Key: sandbox-api-key\r\nContent-Length: 27\r\n\r\n"
    b'{"email":"ada@example.com"}'
)


def test_fault_skips_then_strikes_so_many_times(iterable: Rehearsal) -> None:
    body = b'{"msg":"x","code":"GenericError","params":null}'
    fault = iterable.stand_in.inject(Fault(path=UPDATE, skip=1, times=2, status=500, body=body))
    assert iterable.post(TRACK, event()).status_code == 400
    responses = [iterable.post(UPDATE, {"email": f"u{n}@example.com"}) for n in range(4)]
    assert [response.status_code for response in responses] == [200, 500, 500, 200]
    assert (responses[1].content, responses[1].headers["Content-Type"]) == (body, "application/json")
    assert list(iterable.project.users) == ["u0@example.com", "u3@example.com"]
    assert [received.status for received in iterable.project.requests] == [400, 200, 500, 500, 200]
    assert fault.matched == 4


def test_faults_strike_one_after_the_other_in_the_order_of_injection(iterable: Rehearsal) -> None:
    for status in (503, 504):
        iterable.stand_in.inject(Fault(status=status, times=1))
    assert [iterable.post(UPDATE, ADA).status_code for _ in range(3)] == [503, 504, 200]


def test_cleared_faults_strike_no_more(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503))
    iterable.stand_in.clear_faults()
    assert iterable.post(UPDATE, ADA).status_code == 200


def test_fault_for_one_record_applies_to_it_alone_and_in_a_batch(iterable: Rehearsal) -> None:
    fault = iterable.stand_in.inject(Fault(match=b"ada@example.com", status=500))
    bob = {"email": "bob@example.com"}
    requests = [(UPDATE, ADA), (UPDATE, bob), (BULK_UPDATE, {"users": [bob, ADA]}), (TRACK, event())]
    assert [iterable.post(path, body).status_code for path, body in requests] == [500, 200, 500, 500]
    assert (list(iterable.project.users), fault.matched) == (["bob@example.com"], 3)


def test_fault_applies_to_every_nth_match_after_those_skipped(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, skip=1, every=3, times=2, status=500, store=True))
    statuses = [iterable.post(UPDATE, {"email": f"u{n}@example.com"}).status_code for n in range(12)]
    assert statuses == [200, 200, 200, 500, 200, 200, 500, 200, 200, 200, 200, 200]
    assert len(iterable.project.users) == 12


def test_fault_by_endpoint_includes_ids_in_the_path(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=BY_USER_ID, status=503))
    assert [iterable.get(BY_USER_ID + rest).status_code for rest in ("/u-1", "?userId=u-1")] == [503, 503]
    assert iterable.get(f"{BY_USER_ID}/u/1").status_code == 404


@pytest.mark.parametrize("options", [{}, {"status": 503}])
def test_interim_answer_goes_out_before_the_real_one(iterable: Rehearsal, options: dict[str, Any]) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    iterable.stand_in.inject(Fault(prefix=interim, close_after=True, **options))
    answer = iterable.talk(UPDATE_OF_ADA)
    assert answer.startswith(interim + b"HTTP/1.1 %d " % options.get("status", 200))


def test_html_and_headers_of_a_fault_go_out_as_given(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503, body=b"<html>down</html>", headers={"Retry-After": "3"}))
    response = iterable.post(UPDATE, ADA)
    assert (response.text, response.headers["Retry-After"]) == ("<html>down</html>", "3")
    assert response.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("store", [True, False])
def test_reset_connection_keeps_the_request_only_if_stored_first(iterable: Rehearsal, store: bool) -> None:
    iterable.stand_in.inject(Fault(disconnect=True, store=store))
    with pytest.raises(ConnectionResetError):
        iterable.talk(UPDATE_OF_ADA)
    assert list(iterable.project.users) == (["ada@example.com"] if store else [])
    assert [received.status for received in iterable.project.requests] == [0]


def test_stored_request_with_a_500_is_a_lost_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=500, store=True))
    assert iterable.post(UPDATE, ADA).status_code == 500
    assert list(iterable.project.users) == ["ada@example.com"]


def test_raw_bytes_go_out_instead_of_an_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(raw=b"SSH-2.0-OpenSSH\r\n"))
    assert iterable.talk(UPDATE_OF_ADA) == b"SSH-2.0-OpenSSH\r\n"


def test_truncated_answer_ends_within_its_body(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(truncate_at=100))
    answer = iterable.talk(UPDATE_OF_ADA)
    assert (len(answer), answer[-20:]) == (100, b',"code":"Success","p')
    assert list(iterable.project.users) == ["ada@example.com"]


def test_connection_closed_after_a_good_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(close_after=True))
    answer = iterable.talk(UPDATE_OF_ADA + UPDATE_OF_ADA)  # the second is not answered any more
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" not in answer.lower()


def test_fault_without_path_strikes_the_api_only(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503))
    assert [iterable.get(path).status_code for path in (GET_FIELDS, "/heartbeat", "/sandbox/state")] == [503, 404, 200]


@pytest.mark.parametrize("options", [{"latency_s": 0.06}, {"fault": Fault(latency_s=0.06)}])
def test_latency_delays_api_answers_only(rehearse: Any, options: dict[str, Any]) -> None:
    fault = options.pop("fault", None)
    iterable = rehearse(**options)
    if fault is not None:
        iterable.stand_in.inject(fault)
    iterable.get("/sandbox/state")
    started = time.monotonic()
    iterable.get("/sandbox/state")
    assert time.monotonic() - started < 0.06
    started = time.monotonic()
    assert iterable.post(UPDATE, ADA).status_code == 200
    assert time.monotonic() - started >= 0.06


def test_dripped_answer_comes_whole_and_slowly(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(drip_s=0.001))
    started = time.monotonic()
    assert iterable.post(UPDATE, ADA).json()["code"] == "Success"
    assert time.monotonic() - started > 0.1  # it has over a hundred bytes


def test_slow_answers_do_not_hold_up_other_connections(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, latency_s=5))
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port)) as slow:
        slow.sendall(UPDATE_OF_ADA)
        started = time.monotonic()
        assert iterable.get(GET_FIELDS).status_code == 200
        assert time.monotonic() - started < 1


# --- HTTP


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/nothing"), ("GET", UPDATE), ("POST", GET_FIELDS), ("GET", "/sandbox/nothing")]
)
def test_unknown_path_or_method_is_an_html_404(iterable: Rehearsal, method: str, path: str) -> None:
    headers = {"Api-Key": SANDBOX_KEY}
    response = iterable.session.request(method, iterable.stand_in.url + path, headers=headers, timeout=5)
    assert (response.status_code, response.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "Action not found" in response.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello there\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"A" * 70_000,
    ],
)
def test_garbage_is_a_plain_400_and_the_end(iterable: Rehearsal, garbage: bytes) -> None:
    answer = iterable.talk(garbage)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n")
    assert answer.endswith(b"\r\n\r\nBad Request")


def test_chunked_body_is_put_together(iterable: Rehearsal) -> None:
    response = iterable.post(UPDATE, data=iter([b'{"email":', b'"ada@exa', b'mple.com"}']))
    assert response.status_code == 200
    assert iterable.project.requests[0].body == b'{"email":"ada@example.com"}'


def test_request_cut_into_single_bytes_is_understood(iterable: Rehearsal) -> None:
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in UPDATE_OF_ADA:
            connection.send(bytes([byte]))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("latency_s", [0.0, 0.02])
def test_requests_sent_at_once_are_answered_in_order(iterable: Rehearsal, latency_s: float) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, latency_s=latency_s))
    last = b"GET /sandbox/state HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = iterable.talk(UPDATE_OF_ADA + b"GET /nothing HTTP/1.1\r\n\r\n" + UPDATE_OF_ADA + last)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"200"]


@pytest.mark.parametrize(("version", "header"), [(b"1.0", b""), (b"1.1", b"Connection: close\r\n")])
def test_connection_ends_when_the_client_asks_for_it(iterable: Rehearsal, version: bytes, header: bytes) -> None:
    answer = iterable.talk(b"GET /sandbox/state HTTP/" + version + b"\r\n" + header + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_request_is_recorded_as_it_came(iterable: Rehearsal) -> None:
    before = time.monotonic()
    iterable.post(UPDATE + "?a=b", ADA)
    (received,) = iterable.project.requests
    assert before <= received.time <= time.monotonic()
    assert (received.path, received.status, json.loads(received.body)) == (UPDATE, 200, ADA)
    assert received.headers["api-key"] == SANDBOX_KEY
    assert received.headers["content-type"] == "application/json"


def test_stopped_stand_in_refuses_and_started_again_goes_on(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.stand_in.stop()
    with pytest.raises(requests.ConnectionError):
        iterable.post(UPDATE, ADA)
    iterable.stand_in.start()
    assert iterable.answer(TRACK, event())[0] == 200


def test_stop_drops_connections_and_leaves_no_thread(rehearse: Any) -> None:
    threads = threading.active_count()
    iterable = rehearse(latency_s=30)
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port), timeout=5) as connection:
        connection.sendall(b"GET /api/users/getFields HTTP/1.1\r\n\r\n")
        while not iterable.project.requests:
            pass
        iterable.stand_in.stop()
        assert connection.recv(1000) == b""
    iterable.stand_in.stop()  # a second time does no harm
    assert threading.active_count() == threads


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
def test_https_is_served_with_a_context(rehearse: Any, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-out",
        certificate,
        "-keyout",
        key,
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    iterable = rehearse(ssl_context=context, host_name="localhost")
    assert iterable.stand_in.url.startswith("https://localhost:")
    assert iterable.post(UPDATE, ADA, verify=certificate).status_code == 200
    iterable.stand_in.inject(Fault(disconnect=True))
    with pytest.raises(requests.ConnectionError):
        iterable.post(UPDATE, ADA, verify=certificate)


# --- Control


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
        "rate_limited": {UPDATE: 1},
        "fields": {"plan": "string"},
        "event_fields": {"pageView": {}},
    }
    assert ask("/sandbox/users") == {"ada@example.com": {**ADA, "userId": None, "dataFields": {"plan": "pro"}}}
    assert ask("/sandbox/events") == {"pv-1": event(), "2": event(id="2")}


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


# --- Control: changes by hand


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
        ("DELETE", "users", None),
    ],
)
def test_change_by_hand_without_its_name_is_400(iterable: Rehearsal, method: str, path: str, body: Any) -> None:
    iterable.know("ada@example.com")
    status, answer = control(iterable, method, path, body)
    assert (status, list(answer), len(iterable.project.users)) == (400, ["error"], 1)


# --- The order of acceptance


def test_order_of_acceptance_is_kept_by_user_and_event(iterable: Rehearsal) -> None:
    iterable.answer(UPDATE, {"userId": "u-1"})
    bulk_events(iterable, event(id="1", email=None, userId="u-1"), event(id="2"))
    iterable.answer(UPDATE, {"userId": "u-1", **ADA})  # the same user, known by address from here on
    bulk_users(iterable, {"email": "bob@example.com"}, {"email": "bad@"})
    iterable.answer(TRACK, event(id="1"))
    iterable.answer(TRACK, event(id="3"))
    assert iterable.project.user_accepted_seq == {"ada@example.com": 0, "bob@example.com": 2}
    assert iterable.project.event_accepted_seq == {"1": 1, "3": 3}


# --- Sample data


@pytest.fixture
def sample(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    create_sample_database(tmp_path / "sample.db")
    with closing(sqlite3.connect(tmp_path / "sample.db")) as database:
        database.row_factory = sqlite3.Row
        return {
            "users": [dict(row) for row in database.execute("SELECT * FROM users")],
            "events": [dict(row) for row in database.execute("SELECT * FROM user_events")],
        }


def test_sample_database_holds_what_a_real_one_would(sample: dict[str, list[dict[str, Any]]]) -> None:
    users, events = sample["users"], sample["events"]
    assert list(users[0]) == ["id", "email", "first_name", "last_name", "plan_type"]
    assert list(events[0]) == ["id", "user_id", "page", "device", "browser", "location", "event_time"]
    assert len({user["email"] for user in users}) == 12
    assert 30 <= len(events) <= 40
    assert len({visit["user_id"] for visit in events}) == 11
    assert any(not user["first_name"].isascii() for user in users)
    assert any(user["plan_type"] is None for user in users)
    assert any(visit["location"] is None for visit in events)
    assert all(datetime.strptime(visit["event_time"], "%Y-%m-%d %H:%M:%S").month == 1 for visit in events)


def test_sample_database_is_accepted_as_a_whole(iterable: Rehearsal, sample: dict[str, list[dict[str, Any]]]) -> None:
    emails = {user["id"]: user.pop("email") for user in sample["users"]}
    users = [{"email": emails[user["id"]], "dataFields": user} for user in sample["users"]]
    assert failures(bulk_users(iterable, *users)[1]) == {"failCount": 0}
    events = [event(id=str(row["id"]), email=emails[row["user_id"]], dataFields=row) for row in sample["events"]]
    assert failures(bulk_events(iterable, *events)[1]) == {"failCount": 0}
    assert len(iterable.project.events) == len(events)


# --- Command line


def start_command(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.sandbox", *arguments]
    root = Path(__file__).parent.parent
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_settings(process: subprocess.Popen[str]) -> dict[str, str]:
    """The .env lines of the introduction, which is read up to its last line."""
    assert process.stdout is not None
    settings = {}
    for line in process.stdout:
        name, equals, value = line.strip().partition("=")
        if equals and name.replace("_", "").isupper():
            settings[name] = value
        if line.startswith("To stop it"):
            break
    return settings


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_with_the_settings_it_prints_and_ends_on_a_signal(name: signal.Signals) -> None:
    with start_command("--port", "0", "--jwt", "--unknown-users", "accept", "--count-only", "--no-limits") as process:
        settings = read_settings(process)
        headers = bearer(ADA, settings.pop("ITERABLE_JWT_SECRET"))
        headers["Api-Key"] = settings.pop("ITERABLE_API_KEY")
        url = settings.pop("ITERABLE_BASE_URL")
        response = requests.post(url + TRACK, json=event(), headers=headers, timeout=5)
        kept = requests.get(url + "/sandbox/events", timeout=5).json()
        process.send_signal(name)
        out, err = process.communicate(timeout=5)
    assert settings == {"USE_JWT_AUTH": "true"}
    assert (response.status_code, kept) == (200, {"pv-1": {}})
    assert (process.returncode, err) == (0, "")
    assert "0 users and 1 events" in out


@pytest.mark.parametrize("impossible", [None, "65536"])
def test_command_with_a_port_in_use_or_impossible_says_so_and_ends_with_1(impossible: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = impossible or str(taken.getsockname()[1])
        with start_command("--port", port) as process:
            out, err = process.communicate(timeout=5)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"Port {port} of 127.0.0.1 can't be used")
    assert err.count("\n") == 1
