"""What is refused: JWTs, bodies of the wrong shape, addresses and ids."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY
from tests.sandbox.rehearsal import (
    ADA,
    BULK_UPDATE,
    TRACK,
    TRACK_BULK,
    UPDATE,
    Rehearsal,
    bearer,
    bulk_users,
    event,
    failures,
)

# --- JWTs


YEAR = 31_536_000
# From Iterable's article on JWT-enabled API keys; it ran out in 2020.
ARTICLE_SECRET = "2EB6A2F34691492F81A819AEDA32427F"
ARTICLE_TOKEN = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    ".eyJlbWFpbCI6InRlc3RAaXRlcmFibGUuY29tIiwiaWF0IjoxNTk5NjkzMjE4LCJleHAiOjE1OTk2OTMyMTl9"
    ".eDbexB7CnK2jGsXvHfYENrCEkblrLKxgMNbmlfJHXUA"
)


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


# --- The shape of a request


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


# --- Addresses and ids


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
