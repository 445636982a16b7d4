"""The client: what it sends, what it makes of answers, when it tries again, and the CSV's place in it.

`responses` where the content of an answer is all that matters, the stand-in Iterable for whole exchanges over HTTP.
What the wire can do to a request is in `test_transport.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import inspect
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable.answers import Failure
from iterable.pacing import Abandoned
from iterable_client import IterableClient, RequestCounts, failed_in
from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, Fault, StandIn
from tests.wire import (
    ADA,
    ADA_AS_JSON,
    BULK_UPDATE,
    HTML,
    KEY,
    NOW,
    SECRET,
    SHORT_S,
    SUCCESS,
    TRACK,
    TRACK_BULK,
    UPDATE,
    URL,
    Clock,
    Peer,
    client_of,
    eager_threads,
    failed,
    http_answer,
    open_client,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def iterable() -> Iterator[StandIn]:
    with StandIn(limits=None, unknown_users="accept") as stand_in:
        yield stand_in


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# 1. The contract ------------------------------------------------------------------------------------------------------


def test_first_four_parameters_are_positional_and_the_rest_keyword_only_with_defaults() -> None:
    parameters = list(inspect.signature(IterableClient).parameters.values())
    assert [(each.name, each.default) for each in parameters[:4]] == [
        ("api_key", None),
        ("jwt_secret", None),
        ("use_jwt", False),
        ("base_url", "https://api.iterable.com"),
    ]
    assert {each.kind for each in parameters[:4]} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {each.kind for each in parameters[4:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(each.default is not inspect.Parameter.empty for each in parameters)


@pytest.mark.parametrize(
    ("method", "positional"),
    [
        ("update_user", ["email", "data_fields"]),
        ("track_event", ["email", "event_name", "data_fields"]),
        ("_make_request_with_retry", ["method", "url", "payload", "name"]),
        ("_calculate_backoff", ["attempt"]),
        ("_is_retryable", ["status_code"]),
    ],
)
def test_methods_take_what_the_specification_names(method: str, positional: list[str]) -> None:
    parameters = inspect.signature(getattr(open_client(), method)).parameters.values()
    kinds = {each.name: each.kind for each in parameters}
    assert [name for name, kind in kinds.items() if kind is not inspect.Parameter.KEYWORD_ONLY] == positional


def test_retry_attributes_have_the_values_of_the_specification() -> None:
    client = IterableClient("key")
    assert (client.max_retries, client.backoff_factor, client.initial_backoff) == (3, 2, 1)


@pytest.mark.parametrize(
    ("attempt", "least", "most"), [(0, 1, 1.2), (1, 2, 2.4), (2, 4, 4.8), (3, 8, 9.6), (9, 512, 614.4)]
)
def test_backoff_doubles_and_its_jitter_is_up_to_a_fifth(attempt: int, least: float, most: float) -> None:
    assert open_client(uniform=lambda: 0.0)._calculate_backoff(attempt) == pytest.approx(least)
    assert open_client(uniform=lambda: 1.0)._calculate_backoff(attempt) == pytest.approx(most)


def test_backoff_is_random_by_default() -> None:
    client = IterableClient("key")
    waits = [client._calculate_backoff(0) for _ in range(100)]
    assert all(1 <= wait <= 1.2 for wait in waits)
    assert len(set(waits)) > 50


def test_backoff_obeys_its_options() -> None:
    client = open_client(initial_backoff=0.5, backoff_factor=3)
    assert [client._calculate_backoff(attempt) for attempt in range(3)] == pytest.approx([0.5, 1.5, 4.5])


def test_exactly_six_statuses_are_retryable() -> None:
    client = open_client()
    assert [status for status in range(100, 600) if client._is_retryable(status)] == [408, 429, 500, 502, 503, 504]


def read_token(token: str, secret: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token whose signature is right, computed without PyJWT."""
    signed, _, signature = token.rpartition(".")
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == signature
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in signed.split("."))
    return header, claims


def test_reading_of_tokens_agrees_with_the_documented_one() -> None:
    token = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJlbWFpbCI6InRlc3RAaXRlcmFibGUuY29tIiwiaWF0IjoxNTk5NjkzMjE4LCJleHAi"
        "OjE1OTk2OTMyMTl9.eDbexB7CnK2jGsXvHfYENrCEkblrLKxgMNbmlfJHXUA"
    )
    claims = {"email": "test@iterable.com", "iat": 1_599_693_218, "exp": 1_599_693_219}
    assert read_token(token, SECRET) == ({"alg": "HS256", "typ": "JWT"}, claims)


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((), {}, {"iss": "iterable-integration"}),
        ((ADA,), {}, {"iss": "iterable-integration", "email": ADA}),
        ((None, "u-17"), {}, {"iss": "iterable-integration", "userId": "u-17"}),
        ((ADA, "u-17"), {}, {"iss": "iterable-integration", "email": ADA}),  # never both
        ((ADA,), {"jwt_issuer": None}, {"email": ADA}),
        ((ADA,), {"jwt_issuer": ""}, {"email": ADA}),
        (("zoë@example.com",), {"jwt_issuer": "we"}, {"iss": "we", "email": "zoë@example.com"}),
    ],
)
def test_token_lives_an_hour_and_names_one_user(
    arguments: tuple[str | None, ...], options: dict[str, Any], expected: dict[str, str]
) -> None:
    client = open_client(jwt_secret=SECRET, use_jwt=True, **options)
    header, claims = read_token(client._generate_jwt_token(*arguments), SECRET)
    assert header == {"alg": "HS256", "typ": "JWT"}
    assert claims == {**expected, "iat": 1_768_293_912, "exp": 1_768_297_512}
    assert type(claims["iat"]) is type(claims["exp"]) is int


@pytest.mark.parametrize(
    ("api_key", "jwt_secret", "use_jwt", "names"),
    [
        (KEY, None, False, ["Api-Key"]),
        (KEY, SECRET, False, ["Api-Key"]),
        (KEY, SECRET, True, ["Api-Key", "Authorization"]),
        (None, SECRET, True, ["Authorization"]),
    ],
)
def test_headers_hold_the_key_and_in_jwt_mode_a_token(
    api_key: str | None, jwt_secret: str | None, use_jwt: bool, names: list[str]
) -> None:
    headers = open_client(api_key=api_key, jwt_secret=jwt_secret, use_jwt=use_jwt)._update_headers()
    assert sorted(headers) == names
    assert headers.get("Api-Key") == api_key
    if use_jwt:
        scheme, token = headers["Authorization"].split(" ")
        assert (scheme, read_token(token, SECRET)[1]["iss"]) == ("Bearer", "iterable-integration")


@pytest.mark.parametrize("options", [{}, {"use_jwt": True}, {"jwt_secret": SECRET}])
def test_missing_credentials_are_told_at_the_call(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^There is no (API key: pass api_key|JWT secret: pass jwt_secret), or "):
        IterableClient(**options).update_user(ADA)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({}, [(logging.INFO, "Using API key authentication")]),
        (
            {"use_jwt": True, "jwt_secret": SECRET},
            [(logging.INFO, "Using JWT authentication"), (logging.DEBUG, "JWT token generated successfully")],
        ),
    ],
)
def test_log_lines_of_a_call_are_those_of_the_specification(
    api: responses.RequestsMock,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    messages: list[tuple[int, str]],
) -> None:
    api.post(URL + UPDATE, json=SUCCESS)
    with caplog.at_level(logging.DEBUG, "iterable_client"):
        open_client(**options).update_user(ADA)
    messages = [*messages, (logging.INFO, "users/update call successful: Success")]
    assert caplog.record_tuples == [("iterable_client", *each) for each in messages]


def test_retries_and_the_failure_are_logged(api: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    api.post(URL + UPDATE, status=503, body="unavailable")
    open_client(sleep=lambda _: None, uniform=lambda: 0.25).update_user(ADA)
    retrying = "Retryable error 503 from users/update. Retrying in"
    assert caplog.record_tuples == [
        ("iterable_client", logging.WARNING, f"{retrying} 1.05s (attempt 1/3)"),
        ("iterable_client", logging.WARNING, f"{retrying} 2.10s (attempt 2/3)"),
        ("iterable_client", logging.ERROR, "users/update call failed: 503 unavailable (3 attempts)"),
    ]


def test_bulk_call_with_refusals_is_a_warning(api: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    api.post(URL + BULK_UPDATE, json={"successCount": 1, "failCount": 1})
    api.post(URL + TRACK_BULK, json={"successCount": 1, "failCount": 0})
    with caplog.at_level(logging.INFO, "iterable_client"):
        client = open_client()
        client.bulk_update_users([ADA_AS_JSON])
        client.track_bulk_events([ADA_AS_JSON])
    assert [each.levelname for each in caplog.records[1:]] == ["WARNING", "INFO"]


def test_bulk_success_is_logged_with_its_counts(api: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    api.post(URL + BULK_UPDATE, json={"successCount": 1, "failCount": 1})
    api.post(URL + TRACK_BULK, json={"successCount": "many\nlines", "failCount": 1})
    with caplog.at_level(logging.INFO, "iterable_client"):
        client = open_client()
        client.bulk_update_users([ADA_AS_JSON])
        client.track_bulk_events([ADA_AS_JSON])
    messages = [each.getMessage() for each in caplog.records]
    assert messages[1:] == [
        "users/bulkUpdate call successful: 1 accepted, 1 failed",
        "events/trackBulk call successful: Success",
    ]


def test_jwt_without_a_key_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    open_client(api_key=None, jwt_secret=SECRET, use_jwt=True)
    warning = "No API key is set beside the JWT secret; Iterable asks for both headers."
    assert caplog.record_tuples == [("iterable_client", logging.WARNING, warning)]


def test_out_of_attempts_after_exactly_three_requests_and_two_waits(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=500, json={"msg": "no", "code": "GenericError", "params": None})
    waits: list[float] = []
    client = open_client(sleep=waits.append)
    assert client.update_user(ADA) == failed(
        "500 GenericError: no (3 attempts)",
        Failure.UNACKNOWLEDGED,
        status=500,
        code="GenericError",
        attempts=3,
        answer={"msg": "no", "code": "GenericError", "params": None},
    )
    assert len(api.calls) == 3
    assert waits == [1.0, 2.0]  # none after the last attempt
    assert client.request_counts == {"users/update": RequestCounts(sent=3, retried=2, rate_limited=0)}


def test_max_retries_counts_attempts(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=503)
    assert open_client(max_retries=1).update_user(ADA)[1]["attempts"] == 1
    assert len(api.calls) == 1


@pytest.mark.parametrize(("max_attempts", "sent"), [(None, 3), (1, 1), (2, 2), (5, 3)])
def test_max_attempts_of_a_call_are_never_more_than_max_retries(
    api: responses.RequestsMock, max_attempts: int | None, sent: int
) -> None:
    for path in (UPDATE, BULK_UPDATE, TRACK_BULK):
        api.post(URL + path, status=503)
    client = open_client(sleep=lambda _: None)
    for ok, details in (
        client.send_json("users/update", ADA_AS_JSON, max_attempts=max_attempts),
        client.bulk_update_users([ADA_AS_JSON], max_attempts=max_attempts),
        client.track_bulk_events([ADA_AS_JSON], max_attempts=max_attempts),
    ):
        assert (ok, details["attempts"]) == (False, sent)
    assert len(api.calls) == 3 * sent


def test_each_wait_for_another_attempt_is_told(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=503)
    api.post(URL + UPDATE, body=ConnectionResetError(104, "Connection reset by peer"))
    api.post(URL + UPDATE, json=SUCCESS)
    told: list[str] = []
    open_client(sleep=lambda seconds: told.append(f"{seconds} s"), on_wait=told.append).update_user(ADA)
    assert told == [
        "503 from users/update, attempt 2 of 3",
        "1.0 s",
        "ConnectionResetError (Connection reset by peer) from users/update, attempt 3 of 3",
        "2.0 s",
    ]


@pytest.mark.parametrize("problem", [RuntimeError("a broken bar"), Abandoned()])
def test_what_on_wait_raises_is_dropped(api: responses.RequestsMock, problem: Exception) -> None:
    def on_wait(text: str) -> None:
        raise problem

    api.post(URL + UPDATE, status=503)
    api.post(URL + UPDATE, json=SUCCESS)
    assert open_client(sleep=lambda _: None, on_wait=on_wait).update_user(ADA) == (True, SUCCESS)


def test_replaced_time_sleep_is_used(api: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    api.post(URL + UPDATE, status=503)
    open_client(sleep=None).update_user(ADA)
    assert waits == [1.0, 2.0]


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", "import iterable_client, logging; assert not logging.root.handlers"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr, list(tmp_path.iterdir())) == (0, b"", b"", [])


def test_script_of_a_stranger_passes_mypy_strict(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    if not Path(requests.__file__).with_name("py.typed").exists():
        pytest.skip("this version of requests has no types")
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from iterable_client import Failure, IterableClient, export_results_to_csv, failed_in\n"
        "client = IterableClient(os.environ['ITERABLE_API_KEY'])\n"
        "ok, answer = client.bulk_update_users([{'email': 'ada@example.com', 'dataFields': {'plan': 'pro'}}])\n"
        "refused: dict[str, str] = failed_in(answer) if ok else {}\n"
        "is_bad: bool = not ok and answer['failure'] is Failure.REJECTED\n"
        "path: str = export_results_to_csv([{'a': 1}])\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "script.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n")


def test_malformed_base_url_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid IPv6 URL"):
        open_client("https://[::1")


@pytest.mark.parametrize(
    "base_url", ["http://api.iterable.com", "HTTP://10.0.0.1:8080", "http://127.0.0.1.example.com"]
)
def test_http_to_another_machine_is_refused(base_url: str) -> None:
    with pytest.raises(
        ValueError, match=r"^base_url must begin with https://, since the key travels with each request\.$"
    ):
        open_client(base_url)


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:8080/path"])
def test_http_to_this_machine_is_accepted(base_url: str) -> None:
    assert open_client(base_url).base_url == base_url


@pytest.mark.parametrize("base_url", ["https://user:pw@api.iterable.com", "https://user@api.iterable.com", "http://@x"])
def test_base_url_with_credentials_is_refused_without_being_quoted(base_url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url must not hold a user name or a password\.$"):
        open_client(base_url)


def test_ca_bundle_that_is_none_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("junk.pem", "missing.pem"):
        with pytest.raises(OSError, match=r"."):
            open_client(ca_bundle=str(tmp_path / name))


# 2. What is sent ------------------------------------------------------------------------------------------------------

EVENT = {"email": ADA, "eventName": "page_view", "id": "pv-1", "createdAt": 1_768_293_912, "dataFields": {"page": "/"}}


@pytest.mark.parametrize(
    ("call", "path", "body"),
    [
        (lambda client: client.update_user(ADA), UPDATE, ADA_AS_JSON),
        (
            lambda client: client.update_user(ADA, {"plan": "pro", "age": 36, "x": None, "ok": True}),
            UPDATE,
            b'{"email":"ada@example.com","dataFields":{"plan":"pro","age":36,"x":null,"ok":true}}',
        ),
        (
            lambda client: client.update_user(None, {}, user_id="u-17", prefer_user_id=True),
            UPDATE,
            b'{"userId":"u-17","preferUserId":true,"dataFields":{}}',
        ),
        (
            lambda client: client.update_user("zoë@example.com", {"name": "Zoë 🎉", "quote": '"\\\n'}),
            UPDATE,
            '{"email":"zoë@example.com","dataFields":{"name":"Zoë 🎉","quote":"\\"\\\\\\n"}}'.encode(),
        ),
        (
            lambda client: client.track_event(ADA, "page_view"),
            TRACK,
            b'{"email":"ada@example.com","eventName":"page_view","dataFields":{}}',
        ),
        (
            lambda client: client.track_event(
                ADA, "page_view", {"page": "/"}, created_at=1_768_293_912, event_id="pv-1"
            ),
            TRACK,
            b'{"email":"ada@example.com","eventName":"page_view","id":"pv-1","createdAt":1768293912,'
            b'"dataFields":{"page":"/"}}',
        ),
        (
            lambda client: client.track_event(None, "page_view", user_id="u-17", created_at=0, event_id=""),
            TRACK,
            b'{"userId":"u-17","eventName":"page_view","id":"","createdAt":0,"dataFields":{}}',
        ),
        (
            lambda client: client.send_json("users/update", b'{ "email": "ada@example.com" }'),
            UPDATE,
            b'{ "email": "ada@example.com" }',
        ),
        (
            lambda client: client.bulk_update_users([{"email": "é@example.com"}, ADA_AS_JSON]),
            BULK_UPDATE,
            '{"users":[{"email":"é@example.com"},{"email":"ada@example.com","dataFields":{}}]}'.encode(),
        ),
        (
            lambda client: client.track_bulk_events([b'{"eventName":"a"}', b'{"eventName":"b"}']),
            TRACK_BULK,
            b'{"events":[{"eventName":"a"},{"eventName":"b"}]}',
        ),
        (
            lambda client: client.track_bulk_events([EVENT]),
            TRACK_BULK,
            b'{"events":[{"email":"ada@example.com","eventName":"page_view","id":"pv-1","createdAt":1768293912,'
            b'"dataFields":{"page":"/"}}]}',
        ),
    ],
)
def test_each_call_is_one_request_with_this_body(
    iterable: StandIn, call: Callable[[IterableClient], Any], path: str, body: bytes
) -> None:
    call(client_of(iterable))
    (request,) = iterable.project.requests
    assert (request.path, request.body) == (path, body)
    assert request.headers == {
        "host": f"127.0.0.1:{iterable.port}",
        "user-agent": "iterable-integration/1.2.0",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "api-key": SANDBOX_KEY,
    }


def test_single_calls_return_the_answer_and_arrive(iterable: StandIn) -> None:
    client = client_of(iterable)
    assert client.update_user(ADA, {"plan": "pro"}) == (True, SUCCESS)
    tracked = {"msg": "Event with id: pv-1 tracked.", "code": "Success", "params": {"id": "pv-1"}}
    assert client.track_event(ADA, "page_view", event_id="pv-1") == (True, tracked)
    assert iterable.project.users == {ADA: {"email": ADA, "userId": None, "dataFields": {"plan": "pro"}}}
    assert list(iterable.project.events) == ["pv-1"]


def test_bulk_call_returns_the_answer_even_where_records_failed(iterable: StandIn) -> None:
    ok, answer = client_of(iterable).bulk_update_users([{"email": ADA}, {"email": "bad@"}])
    assert (ok, answer["successCount"], answer["failCount"]) == (True, 1, 1)
    assert failed_in(answer) == {"bad@": "invalidEmails"}


@pytest.mark.parametrize("identity", [{"email": ADA}, {"user_id": "u-17"}, {}])
def test_encoded_body_is_sent_as_it_is_and_its_identity_is_for_the_token(identity: dict[str, Any]) -> None:
    body = json.dumps({"email": ADA} if "email" in identity else {"userId": "u-17"}, indent=2).encode()
    with StandIn(jwt_secret=SANDBOX_JWT_SECRET, unknown_users="accept", strict_claims=True) as iterable:
        client = client_of(
            iterable, jwt_secret=SANDBOX_JWT_SECRET, use_jwt=True, jwt_issuer=None, clock=lambda: time.time()
        )
        assert client.send_json("users/update", body, **identity)[0] is bool(identity)
        (request,) = iterable.project.requests
    assert request.body == body


@pytest.mark.parametrize("identity", [{"email": ADA}, {"email": None, "user_id": "u-17"}])
def test_jwt_call_carries_key_and_a_new_token_for_its_user(identity: dict[str, Any]) -> None:
    with StandIn(jwt_secret=SANDBOX_JWT_SECRET, unknown_users="accept", strict_claims=True) as iterable:
        options = {"jwt_secret": SANDBOX_JWT_SECRET, "use_jwt": True, "jwt_issuer": None}
        clock = Clock(time.time())
        client = client_of(iterable, **options, clock=clock)
        assert client.update_user(**identity) == (True, SUCCESS)
        clock.now += 5000
        assert client.track_event(**identity, event_name="page_view", event_id="1")[0] is True
        first, second = (each.headers for each in iterable.project.requests)
    assert first["api-key"] == second["api-key"] == SANDBOX_KEY
    tokens = [each["authorization"].removeprefix("Bearer ") for each in (first, second)]
    issued = [read_token(each, SANDBOX_JWT_SECRET)[1]["iat"] for each in tokens]
    assert issued[1] - issued[0] == 5000


def test_get_without_payload_has_no_body(iterable: StandIn) -> None:
    client = client_of(iterable)
    url = f"{iterable.url}/api/users/getFields"
    assert client._make_request_with_retry("get", url, None, "users/getFields") == (True, {"fields": {}})
    (request,) = iterable.project.requests
    assert (request.body, "content-length" in request.headers) == (b"", False)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            datetime(2026, 1, 13, 8, 45, 12),
            "x is a datetime; send text such as 2026-01-13 08:45:12 +00:00 or 2026-01-13",
        ),
        (date(2026, 1, 13), "x is a date; send text such as 2026-01-13 08:45:12 +00:00 or 2026-01-13"),
        ({"a": [1, {"b": {1, 2}}]}, "x.a[1].b is a set, which JSON has no form for"),
        (math.nan, "x is nan, which JSON has no form for"),
        ((0, -math.inf), "x[1] is -inf, which JSON has no form for"),
        ("\ud800", "x is not valid Unicode"),
        (b"bytes", "x is a bytes, which JSON has no form for"),
        (Decimal("1.5"), "x is a Decimal, which JSON has no form for"),
        ({(1, 2): 3}, "x has a tuple for a key"),
    ],
)
def test_value_that_is_no_json_is_named_before_anything_is_sent(
    api: responses.RequestsMock, value: Any, problem: str
) -> None:
    client = open_client()
    error = f"dataFields.{problem} (0 attempts)"
    assert client.update_user(ADA, {"a": 1, "x": value}) == failed(error, Failure.REJECTED, attempts=0)
    _, details = client.bulk_update_users([ADA_AS_JSON, {"email": ADA, "dataFields": {"x": value}}])
    assert details["error"] == f"users/bulkUpdate call failed: users[1].{error}"
    assert len(api.calls) == 0


def test_what_can_not_be_written_as_json_for_another_reason_is_told(api: responses.RequestsMock) -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    values = [circle, 10**5000] if hasattr(sys, "get_int_max_str_digits") else [circle]
    for value in values:
        _, details = open_client().update_user(ADA, {"x": value})
        assert re.fullmatch(
            r"users/update call failed: can't be written as JSON \(.+\) \(0 attempts\)", details["error"]
        )
        assert (details["failure"], details["attempts"], len(api.calls)) == (Failure.REJECTED, 0, 0)


@pytest.mark.parametrize("method", ["bulk_update_users", "track_bulk_events"])
def test_empty_batch_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"^There are no (users|events): an empty batch is an error in Iterable\.$"):
        getattr(open_client(), method)([])


# Looking --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "name", "query"),
    [
        ({"email": "zoë+1&x=%@example.com"}, "users/getByEmail", "email=zo%C3%AB%2B1%26x%3D%25%40example.com"),
        ({"user_id": "a/b c?~"}, "users/byUserId", "userId=a%2Fb%20c%3F~"),
        ({"email": ADA, "user_id": "u-17"}, "users/getByEmail", "email=ada%40example.com"),
    ],
)
def test_user_is_read_by_email_or_id(who: dict[str, str], name: str, query: str) -> None:
    copy = {"user": {"email": ADA, "userId": "u-17", "dataFields": {"plan": "pro"}}}
    with Peer(http_answer(json.dumps(copy).encode())) as peer:
        client = open_client(peer.url)
        assert client.get_user(**who) == (True, copy)
    (request,) = peer.requests
    assert request.startswith(f"GET /api/{name}?{query} HTTP/1.1\r\n".encode())
    assert b"content-length" not in request.lower()
    assert client.request_counts == {name: RequestCounts(sent=1)}


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (400, b"No user with that id exists!")])
@pytest.mark.parametrize("who", [{"email": ADA}, {"user_id": "u-17"}])
def test_user_that_iterable_does_not_know_is_empty(
    api: responses.RequestsMock, caplog: pytest.LogCaptureFixture, who: dict[str, str], status: int, body: bytes
) -> None:
    api.get(re.compile(f"{URL}/api/users/.*"), status=status, body=body)
    assert open_client().get_user(**who) == (True, {})
    assert caplog.records == []


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (200, b'{"code":"Success"}', Failure.UNREADABLE),
        (200, b"No user with that id exists!", Failure.UNREADABLE),
        (400, b"{}", Failure.REJECTED),
        (400, b"Bad request", Failure.REJECTED),
        (403, b'{"code":"Forbidden"}', Failure.UNAUTHORIZED),
    ],
)
def test_user_that_can_not_be_read_is_a_failure(
    api: responses.RequestsMock, status: int, body: bytes, failure: Failure
) -> None:
    api.get(re.compile(f"{URL}/api/users/.*"), status=status, body=body)
    ok, details = open_client().get_user(ADA)
    assert (ok, details["failure"]) == (False, failure)


@pytest.mark.parametrize("method", ["get_user", "get_events"])
def test_nobody_can_not_be_read(method: str) -> None:
    with pytest.raises(ValueError, match=r"^Pass email or user_id\.$"):
        getattr(open_client(), method)()


@pytest.mark.parametrize(
    ("who", "name", "target"),
    [
        ({"email": "zoë+1&x=%/@example.com"}, "events/byEmail", "events/zo%C3%AB%2B1%26x%3D%25%2F%40example.com"),
        ({"user_id": "a/b c?~"}, "events/byUserId", "events/byUserId/a%2Fb%20c%3F~"),
        ({"email": ADA, "user_id": "u-17"}, "events/byEmail", "events/ada%40example.com"),
    ],
)
def test_events_are_read_by_email_or_id(who: dict[str, Any], name: str, target: str) -> None:
    events = {"events": [{"_id": "e1", "eventName": "page_view", "createdAt": "2026-01-14 06:20:22 +00:00"}]}
    with Peer(http_answer(json.dumps(events).encode())) as peer:
        client = open_client(peer.url)
        assert client.get_events(**who) == (True, events)
        assert client.get_events(**who, limit=7) == (True, events)
    assert [each.split(b" HTTP")[0] for each in peer.requests] == [
        f"GET /api/{target}?limit={limit}".encode() for limit in (200, 7)
    ]
    assert client.request_counts == {name: RequestCounts(sent=2)}


@pytest.mark.parametrize(("status", "body"), [(200, b"{}"), (400, b"No user with that id exists!")])
def test_events_of_a_user_that_iterable_does_not_know_are_empty(
    api: responses.RequestsMock, status: int, body: bytes
) -> None:
    api.get(re.compile(f"{URL}/api/events/.*"), status=status, body=body)
    assert open_client().get_events(user_id="u-17") == (True, {})


@pytest.mark.parametrize(("method", "key"), [("get_user", "user"), ("get_events", "events")])
def test_answers_about_one_person_may_have_8_mib(method: str, key: str) -> None:
    large = {key: [{"text": "x" * 7_000_000}]}
    with Peer(http_answer(json.dumps(large).encode()), http_answer(b" " * (8 * 1024 * 1024 + 1))) as peer:
        client = open_client(peer.url)
        assert getattr(client, method)(ADA) == (True, large)
        assert getattr(client, method)(ADA)[1]["failure"] is Failure.UNREADABLE


def test_journeys_are_read_by_the_page() -> None:
    page = {"journeys": [{"id": 1, "name": "Welcome", "enabled": True}], "totalJourneysCount": 51}
    with Peer(http_answer(json.dumps(page).encode()), http_answer(b'{"code":"Success"}')) as peer:
        client = open_client(peer.url)
        assert client.get_journeys(1) == (True, page)
        assert client.get_journeys(2, page_size=10)[1]["failure"] is Failure.UNREADABLE
    assert [each.split(b" HTTP")[0] for each in peer.requests] == [
        b"GET /api/journeys?page=1&pageSize=50",
        b"GET /api/journeys?page=2&pageSize=10",
    ]
    assert client.request_counts == {"journeys": RequestCounts(sent=2)}


# Another address ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "body"),
    [
        ({"current_email": ADA}, {"currentEmail": ADA, "newEmail": "al@example.com"}),
        ({"current_user_id": "u-17"}, {"currentUserId": "u-17", "newEmail": "al@example.com"}),
        (
            {"current_email": ADA, "current_user_id": "u-17"},
            {"currentEmail": ADA, "currentUserId": "u-17", "newEmail": "al@example.com"},
        ),
    ],
)
def test_address_is_changed(api: responses.RequestsMock, who: dict[str, str], body: dict[str, str]) -> None:
    api.post(f"{URL}/api/users/updateEmail", json=SUCCESS, match=[responses.matchers.json_params_matcher(body)])
    client = open_client()
    assert client.update_email("al@example.com", **who) == (True, SUCCESS)
    assert client.request_counts == {"users/updateEmail": RequestCounts(sent=1)}


def test_change_of_address_needs_somebody() -> None:
    with pytest.raises(ValueError, match=r"^Pass current_email or current_user_id\.$"):
        open_client().update_email("al@example.com")


def test_refused_change_of_address_names_nobody(api: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    said = f"Cannot change user {ADA} to al@example.com. User does not exist"
    answer = {"msg": said, "code": "BadParams", "params": None}
    api.post(f"{URL}/api/users/updateEmail", status=400, json=answer)
    ok, details = open_client().update_email("al@example.com", current_email=ADA)
    assert (ok, details["failure"], details["code"], details["attempts"]) == (False, Failure.REJECTED, "BadParams", 1)
    assert details["error"] == (
        "users/updateEmail call failed: 400 BadParams: Cannot change user a***@example.com to a***@example.com. "
        "User does not exist (1 attempt)"
    )
    assert caplog.messages == [details["error"]]


def test_change_of_address_whose_answer_was_lost_is_refused_the_second_time(api: responses.RequestsMock) -> None:
    answer = {"msg": "User does not exist", "code": "BadParams", "params": None}
    api.post(f"{URL}/api/users/updateEmail", body=requests.ConnectionError("lost"))
    api.post(f"{URL}/api/users/updateEmail", status=400, json=answer)
    ok, details = open_client(sleep=Clock().sleep).update_email("al@example.com", current_email=ADA)
    assert (ok, details["code"], details["attempts"]) == (False, "BadParams", 2)


@pytest.mark.parametrize(
    ("method", "name", "key"),
    [
        ("get_forgotten_emails", "users/forgotten", "hashedEmails"),
        ("get_forgotten_user_ids", "users/forgottenUserIds", "hashedUserIds"),
    ],
)
def test_lists_of_forgotten_people_may_be_long(method: str, name: str, key: str) -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(20_000)]
    with Peer(http_answer(json.dumps({key: hashes}).encode()), http_answer(b"{}")) as peer:
        client = open_client(peer.url)
        assert getattr(client, method)() == (True, {key: hashes})
        assert getattr(client, method)()[1]["failure"] is Failure.UNREADABLE
    assert peer.requests[0].startswith(f"GET /api/{name} HTTP/1.1\r\n".encode())


def test_reading_is_paced_like_any_call(api: responses.RequestsMock) -> None:
    api.get(re.compile(f"{URL}/api/users/.*"), body=b"{}")
    clock = Clock()
    client = open_client(sleep=clock.sleep, monotonic=clock, rates={"users/getByEmail": 4, "users/byUserId": 2})
    for _ in range(2):
        client.get_user(ADA)
    client.get_user(user_id="u-17")
    assert clock.waits == pytest.approx([0.2])


# Whole exchanges ------------------------------------------------------------------------------------------------------


def test_address_events_and_journeys_of_the_stand_in() -> None:
    with StandIn(limits=None, project_type="email") as iterable:
        iterable.project.add_journey("Welcome", ["page_view"])
        client = client_of(iterable)
        assert client.update_user(ADA, user_id="u/17 %")[0]
        assert client.track_event(ADA, "page_view", created_at=1_768_293_912, event_id="pv-1")[0]
        assert client.update_email("al@example.com", current_email=ADA) == (True, SUCCESS)
        ok, details = client.update_email("al@example.com", current_email=ADA)
        assert (ok, details["code"], details["failure"]) == (False, "BadParams", Failure.REJECTED)
        for who in ({"email": "al@example.com"}, {"user_id": "u/17 %"}):
            ok, answer = client.get_events(**who)  # type: ignore[arg-type]
            assert (ok, [each["_id"] for each in answer["events"]]) == (True, ["pv-1"])
        iterable.project.events_of_unknown = "400"
        assert client.get_events(ADA) == (True, {})
        ok, answer = client.get_journeys(1)
        assert (ok, answer["journeys"]) == (True, iterable.project.journeys)
        assert client.request_counts["events/byUserId"] == RequestCounts(sent=1)


@pytest.mark.parametrize("user_id", [".", "..", "a/../b", "a?b#c;d", "%2F", "é"])
def test_events_are_asked_for_by_any_id(user_id: str) -> None:
    with Peer(http_answer(b'{"events":[]}')) as peer:
        assert open_client(peer.url).get_events(user_id=user_id) == (True, {"events": []})
    target = peer.requests[0].split(b" ")[1].decode()
    path, _, query = target.partition("?")
    assert (path.rpartition("/")[0], query) == ("/api/events/byUserId", "limit=200")
    assert unquote(path.rpartition("/")[2]) == user_id


# 3. What an answer means ----------------------------------------------------------------------------------------------

HTML_SAID = "<!DOCTYPE html> <html><body><h1>Action not found</h1></body></html>"
DISALLOWED = {"msg": "Event page_view is disallowed from tracking.", "code": "Success", "params": None}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(SUCCESS).encode(),
        b"\xef\xbb\xbf" + json.dumps(SUCCESS).encode(),
        b' \n {"code":"Success"} \n',
        b'{"code":"Success","msg":"User successfully created/updated.","params":{"id":"1"},"new":[{}]}',
        b'{"code":"Success","msg":null}',
    ],
)
@pytest.mark.parametrize("status", [200, 201, 202, 299])
def test_answer_with_code_success_is_success(api: responses.RequestsMock, status: int, body: bytes) -> None:
    api.post(URL + UPDATE, status=status, body=body)
    assert open_client().update_user(ADA) == (True, json.loads(body.decode("utf-8-sig")))


@pytest.mark.parametrize(
    ("status", "body", "said", "failure"),
    [
        (200, {"msg": "no", "code": "BadParams"}, "BadParams: no", Failure.REJECTED),
        (200, DISALLOWED, "Success: Event page_view is disallowed from tracking.", Failure.REJECTED),
        (200, {"msg": "no"}, "no", Failure.UNREADABLE),
        (200, {}, "an answer not in Iterable's form", Failure.UNREADABLE),
        (200, {"code": 7, "msg": {"a": 1}}, "7: {'a': 1}", Failure.UNREADABLE),
        (200, {"successCount": 1, "failCount": 0}, "an answer not in Iterable's form", Failure.UNREADABLE),
        (200, HTML, HTML_SAID, Failure.UNREADABLE),
        (200, b"", "an empty answer", Failure.UNREADABLE),
        (204, b"", "an empty answer", Failure.UNREADABLE),
        (200, b"OK", "OK", Failure.UNREADABLE),
        (200, b"null", "null", Failure.UNREADABLE),
        (200, b'"Success"', '"Success"', Failure.UNREADABLE),
        (200, b'[{"code":"Success"}]', '[{"code":"Success"}]', Failure.UNREADABLE),
        (200, b'{"code":"Success"', '{"code":"Success"', Failure.UNREADABLE),
        (200, b"[" * 100_000, "[" * 500, Failure.UNREADABLE),
        (200, b'{"a":' * 100_000, '{"a":' * 100, Failure.UNREADABLE),
        (200, b"1" * 5000, "1" * 500, Failure.UNREADABLE),
        (200, b"NaN", "NaN", Failure.UNREADABLE),
        (200, b"\xff\xfe{", "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}{", Failure.UNREADABLE),
        (400, {"msg": "no", "code": "InvalidEmailAddressError"}, "InvalidEmailAddressError: no", Failure.REJECTED),
        (400, {"msg": "error.lists.invalidListId(9)", "code": "Success"}, None, Failure.REJECTED),
        (400, {"error": "e", "message": "m", "code": "c", "data": {}}, "c: m", Failure.REJECTED),
        (400, {"error": "e"}, "e", Failure.REJECTED),
        (400, {"msg": "", "code": "BadParams"}, "BadParams", Failure.REJECTED),
        (400, [], "[]", Failure.REJECTED),
        (400, b"No user with that id exists!", "No user with that id exists!", Failure.REJECTED),
        (400, b"", "an empty answer", Failure.UNREADABLE),
        (400, HTML, HTML_SAID, Failure.UNREADABLE),
        (401, {"msg": "Invalid API key", "code": "BadApiKey"}, "BadApiKey: Invalid API key", Failure.BAD_API_KEY),
        (401, {"msg": "Disabled API key", "code": "BadApiKey"}, "BadApiKey: Disabled API key", Failure.BAD_API_KEY),
        (401, {"msg": "Invalid API key", "code": "Success"}, "Success: Invalid API key", Failure.BAD_API_KEY),
        (401, {"msg": "JWT is invalid", "code": "InvalidJwtPayload"}, None, Failure.UNAUTHORIZED),
        (401, {"msg": "differ", "code": "JwtUserIdentifiersMismatched"}, None, Failure.REJECTED),
        (400, {"msg": "differ", "code": "JwtUserIdentifiersMismatched"}, None, Failure.REJECTED),
        (400, {"msg": 'Invalid JSON. Body: {"a": 1}', "code": "x"}, "x: Invalid JSON. body: ...", Failure.REJECTED),
        (400, b"Invalid. body:\n{Ada}, headers: Lovelace", "Invalid. body: ...", Failure.REJECTED),
        (401, {"msg": "no", "code": "Unauthorized"}, "Unauthorized: no", Failure.UNAUTHORIZED),
        (401, b"Unauthorized", "Unauthorized", Failure.UNAUTHORIZED),
        (401, HTML, HTML_SAID, Failure.UNREADABLE),
        (403, {"msg": "no", "code": "Forbidden"}, "Forbidden: no", Failure.UNAUTHORIZED),
        (403, HTML, HTML_SAID, Failure.UNREADABLE),
        (404, {"msg": "no", "code": "NotFound"}, "NotFound: no", Failure.REJECTED),
        (404, HTML, HTML_SAID, Failure.UNREADABLE),
        (409, {"msg": "no", "code": "ForgottenUserError"}, "ForgottenUserError: no", Failure.REJECTED),
        (413, b"Request Entity Too Large", "Request Entity Too Large", Failure.REJECTED),
        (413, HTML, HTML_SAID, Failure.REJECTED),  # a gateway's words; a smaller request passes it
        (501, {"msg": "no", "code": "GenericError"}, "GenericError: no", Failure.UNACKNOWLEDGED),
        (505, b"no", "no", Failure.UNACKNOWLEDGED),
    ],
)
def test_answer_that_is_no_success_fails_at_once(
    api: responses.RequestsMock, status: int, body: Any, said: str | None, failure: Failure
) -> None:
    answer = body if isinstance(body, dict) else None
    api.post(URL + UPDATE, status=status, body=body if isinstance(body, bytes) else json.dumps(body))
    code = answer.get("code") if answer else None
    said = said or f"{code}: {answer['msg']}"  # type: ignore[index]
    assert open_client().update_user(ADA) == failed(
        f"{status} {said} (1 attempt)",
        failure,
        status=status,
        code=code if isinstance(code, str) else None,
        answer=answer,
        disallowed=answer == DISALLOWED,
    )
    assert len(api.calls) == 1


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"msg": "no", "code": "BadParams"}, Failure.REJECTED),
        (SUCCESS, Failure.UNREADABLE),  # accepted, it says, and not how many
        ({"failCount": 0}, Failure.UNREADABLE),
        ([1], Failure.UNREADABLE),
    ],
)
def test_bulk_answer_without_its_counts_fails(api: responses.RequestsMock, body: Any, failure: Failure) -> None:
    api.post(URL + BULK_UPDATE, json=body)
    ok, details = open_client().bulk_update_users([ADA_AS_JSON])
    assert (ok, details["failure"], len(api.calls)) == (False, failure, 1)


def test_every_status_is_tried_as_often_and_judged_as_its_group(api: responses.RequestsMock) -> None:
    def expected(status: int) -> tuple[int, Failure]:
        if 300 <= status < 400:
            return 1, Failure.REDIRECTED
        if status in (401, 403):
            return 1, Failure.UNAUTHORIZED
        if status == 407:
            return 1, Failure.PROXY_REFUSED
        retried = status in (408, 429, 500, 502, 503, 504)
        return 3 if retried else 1, Failure.UNACKNOWLEDGED if retried or status >= 500 else Failure.REJECTED

    client = open_client(sleep=lambda _: None)
    seen = {}
    for status in range(200, 600):
        api.reset()
        api.post(URL + UPDATE, status=status, json={"msg": "no", "code": "Odd"})
        _, details = client.update_user(ADA)
        assert details["status_code"] == status
        seen[status] = len(api.calls), details["failure"]
    assert seen == {status: expected(status) for status in range(200, 600)}


@pytest.mark.parametrize("piece", ["eyJ-", "a@", "bearer ", "body: ", '"'])
def test_hostile_answer_of_a_mebibyte_costs_no_time(piece: str) -> None:
    """In a process that can be ended: what took the square of its length would take hours."""
    program = (
        "import sys\n"
        "from iterable_client import IterableClient\n"
        "client = IterableClient('0123456789abcdef', base_url=sys.argv[1])\n"
        "print(client.update_user('ada@example.com')[1]['failure'].value)\n"
    )
    text = piece * (500_000 // len(piece))
    answers = [text + text, json.dumps({"msg": text, "code": text[:100_000], "params": {"a": [text[:100_000]]}})]
    for body in answers:
        with Peer(http_answer(body.encode(), "400 Bad Request")) as peer:
            command = [sys.executable, "-c", program, peer.url]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == "rejected\n"


def test_html_from_a_gateway_is_tried_again(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=502, body=HTML)
    details = failed(f"502 {HTML_SAID} (3 attempts)", Failure.UNACKNOWLEDGED, status=502, attempts=3)
    assert open_client(sleep=lambda _: None).update_user(ADA) == details


def test_foreign_text_is_cut_and_can_forge_no_line(api: responses.RequestsMock) -> None:
    msg = "x\n2026-01-13 14:31:22 - iterable_client - INFO - all is well\x1b[2J\u2028\x00" + "y" * 10_000
    api.post(URL + UPDATE, status=400, json={"msg": msg, "code": "BadParams"})
    error = open_client().update_user(ADA)[1]["error"]
    assert error.isprintable()
    assert error.startswith("users/update call failed: 400 BadParams: x 2026-01-13 14:31:22 - iterable_client - INFO")
    assert len(error) < 600


@settings(max_examples=150)
@given(st.integers(200, 599), st.binary() | st.sampled_from([b"{", b'{"code":', b"<", b"\xef\xbb\xbf", b"\x00"]))
def test_no_bytes_on_earth_raise(status: int, body: bytes) -> None:
    with responses.RequestsMock() as api:
        api.post(URL + UPDATE, status=status, body=body)
        ok, details = open_client(max_retries=1).update_user(ADA)
    assert (ok, details["status_code"], details["attempts"]) == (False, status, 1)


# 4. Trying again ------------------------------------------------------------------------------------------------------


def test_503_twice_then_200_is_success_after_two_waits(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, status=503, body=b"unavailable", times=2))
    waits: list[float] = []
    client = client_of(iterable, sleep=waits.append)
    assert client.update_user(ADA) == (True, SUCCESS)
    assert (fault.matched, waits) == (3, [1.0, 2.0])
    assert client.request_counts == {"users/update": RequestCounts(sent=3, retried=2, rate_limited=0)}


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        (None, 1.0),
        ("", 1.0),
        ("0", 1.0),
        ("1", 1.0),  # the larger of it and the back-off
        ("30", 30.0),
        ("1.5", 1.5),
        ("60", 60.0),
        (formatdate(NOW + 20, usegmt=True), 19.25),  # a date has whole seconds
        (formatdate(NOW - 20, usegmt=True), 1.0),
        ("soon", 1.0),
        ("-5", 1.0),
        ("nan", 1.0),
        ("inf", 1.0),
        ("Fri, 99 Foo 2026 25:61:61 GMT", 1.0),
        ("\xe9", 1.0),
    ],
)
def test_429_then_200_is_success_after_the_wait_that_is_asked_for(
    api: responses.RequestsMock, retry_after: str | None, wait_s: float
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    api.post(URL + UPDATE, status=429, json={"msg": "no", "code": "RateLimitExceeded"}, headers=headers)
    api.post(URL + UPDATE, json=SUCCESS)
    waits: list[float] = []
    client = open_client(sleep=waits.append)
    assert client.update_user(ADA) == (True, SUCCESS)
    assert waits == [wait_s]
    assert client.request_counts == {"users/update": RequestCounts(sent=2, retried=1, rate_limited=1)}


@pytest.mark.parametrize(
    ("retry_after", "params", "wait_s"),
    [
        (None, {"rateLimitReset": 7, "rateLimitLimit": 500, "rateLimitRemaining": 0}, 7.0),
        (None, {"rateLimitReset": "7.5", "rateLimitLimit": "500"}, 7.5),
        ("30", {"rateLimitReset": 7}, 30.0),
        ("3", {"rateLimitReset": "60"}, 60.0),
        (None, {"rateLimitReset": 0.2}, 1.0),  # the back-off is longer
        *(
            (None, {"rateLimitReset": junk}, 1.0)
            for junk in (None, "", "soon", "nan", "inf", -5, [7], {"a": 7}, 10**400)
        ),
        (None, None, 1.0),
        (None, [7], 1.0),
    ],
)
def test_429_with_a_reset_is_waited_for(
    api: responses.RequestsMock, retry_after: str | None, params: Any, wait_s: float
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    api.post(URL + UPDATE, status=429, json={"msg": "", "code": "RateLimitExceeded", "params": params}, headers=headers)
    api.post(URL + UPDATE, json=SUCCESS)
    waits: list[float] = []
    assert open_client(sleep=waits.append).update_user(ADA) == (True, SUCCESS)
    assert waits == [wait_s]


@pytest.mark.parametrize(("status", "failure"), [(429, Failure.THROTTLED), (503, Failure.UNACKNOWLEDGED)])
def test_reset_of_more_than_a_minute_ends_the_call_of_a_429_only(
    api: responses.RequestsMock, status: int, failure: Failure
) -> None:
    answer = {"msg": "later", "code": "RateLimitExceeded", "params": {"rateLimitReset": "61"}}
    api.post(URL + UPDATE, status=status, json=answer)
    _, details = open_client(max_retries=1).update_user(ADA)
    assert details["failure"] is failure
    told = "; told to wait 61 s" if status == 429 else ""
    assert details["error"] == f"users/update call failed: {status} RateLimitExceeded: later (1 attempt{told})"


@pytest.mark.parametrize("retry_after", ["61", "31536000", formatdate(NOW + 86_400, usegmt=True)])
@pytest.mark.parametrize("status", [429, 503])
def test_longer_wait_than_a_minute_ends_the_call_at_once(
    api: responses.RequestsMock, status: int, retry_after: str
) -> None:
    api.post(URL + UPDATE, status=status, body="later", headers={"Retry-After": retry_after})
    ok, details = open_client().update_user(ADA)
    assert (ok, details["failure"], details["attempts"], len(api.calls)) == (False, Failure.THROTTLED, 1, 1)
    told = r"users/update call failed: \d+ later \(1 attempt; told to wait (61|31536000|8639\d|86400) s\)"
    assert re.fullmatch(told, details["error"])


def test_back_off_never_exceeds_a_minute(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=503)
    waits: list[float] = []
    open_client(sleep=waits.append, max_retries=6, backoff_factor=10, initial_backoff=5).update_user(ADA)
    assert waits == [5.0, 50.0, 60.0, 60.0, 60.0]


def test_lost_answer_is_sent_again_with_the_same_id(iterable: StandIn) -> None:
    iterable.inject(Fault(path=TRACK, disconnect=True, store=True, times=1))
    waits: list[float] = []
    ok, _ = client_of(iterable, sleep=waits.append).track_event(ADA, "page_view", event_id="pv-1")
    assert (ok, waits) == (True, [1.0])
    assert (len(iterable.project.events), iterable.project.event_sends["pv-1"]) == (1, 2)


def test_time_out_is_tried_again(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, latency_s=30, times=1))
    waits: list[float] = []
    assert client_of(iterable, sleep=waits.append, timeout_s=2 * SHORT_S).update_user(ADA) == (True, SUCCESS)
    assert (fault.matched, waits) == (2, [1.0])


def test_refused_connection_is_tried_three_times(deaf_port: int) -> None:
    waits: list[float] = []
    client = open_client(f"http://127.0.0.1:{deaf_port}", sleep=waits.append)
    error = "ConnectionError (Connection refused) (3 attempts)"
    assert client.update_user(ADA) == failed(error, Failure.UNACKNOWLEDGED, attempts=3)
    assert waits == [1.0, 2.0]


def test_unknown_host_is_tried_again() -> None:
    ok, details = open_client("https://nowhere.invalid", sleep=lambda _: None).update_user(ADA)
    assert (ok, details["attempts"], details["failure"]) == (False, 3, Failure.UNACKNOWLEDGED)


def abandon(seconds: float) -> None:
    raise Abandoned


def test_abandoned_back_off_ends_the_call_after_its_attempts(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, status=503))
    result = client_of(iterable, sleep=abandon).update_user(ADA)
    assert result == failed("503 an empty answer (1 attempt)", Failure.UNACKNOWLEDGED, status=503, attempts=1)
    assert fault.matched == 1


def test_abandoned_turn_ends_the_call_before_anything_is_sent(iterable: StandIn) -> None:
    client = client_of(iterable, sleep=abandon, rates={"users/update": 1}, monotonic=lambda: 0.0)
    assert client.update_user(ADA) == (True, SUCCESS)
    result = client.update_user(ADA)
    assert result == failed("the run is ending (0 attempts)", Failure.ABANDONED, attempts=0)
    assert client.request_counts == {"users/update": RequestCounts(sent=1)}
    assert len(iterable.project.requests) == 1


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["key-of-seven\n", "key-of-seven\r\nX: y", "key-of-sevén…"])
def test_key_that_no_header_can_carry_is_not_sent_and_not_told(iterable: StandIn, key: str) -> None:
    client = open_client(iterable.url, key)
    ok, details = client.update_user(ADA)
    problem = r"can't be sent: its address or a header is malformed \(\w+\)"
    assert re.fullmatch(rf"users/update call failed: {problem} \(1 attempt\)", details["error"])
    assert (ok, details["failure"], details["attempts"]) == (False, Failure.REJECTED, 1)
    assert iterable.project.requests == []


@pytest.mark.parametrize("base_url", ["", "api.iterable.com", "ftp://api.iterable.com", "https://", "https://x:99999"])
def test_address_that_is_none_is_not_tried_again(base_url: str) -> None:
    ok, details = open_client(base_url).update_user(ADA)
    assert (ok, details["attempts"], details["failure"]) == (False, 1, Failure.REJECTED)
    assert "its address or a header is malformed" in details["error"]


TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJlbWFpbCI6ImEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize("padding", ["", "x" * 480])  # the second puts it where the text is cut
@pytest.mark.parametrize(
    ("echo", "shown"),
    [
        (f"(Api-Key,{KEY})", "(Api-Key,***)"),
        (f"secret {SECRET}", "secret ***"),
        (f"Authorization: Bearer {TOKEN}", "Authorization: Bearer ***"),
        (f"bearer  {TOKEN[:20]}", "bearer  ***"),
        (f"The token {TOKEN} has expired", "The token *** has expired"),
    ],
)
@pytest.mark.parametrize("is_json", [True, False])
def test_secret_that_the_server_echoes_is_blotted_out(
    api: responses.RequestsMock, caplog: pytest.LogCaptureFixture, echo: str, shown: str, padding: str, is_json: bool
) -> None:
    body = json.dumps({"msg": padding + echo, "code": echo, "params": {echo: [echo]}}) if is_json else padding + echo
    api.post(URL + UPDATE, status=400, body=body)
    _, details = open_client(jwt_secret=SECRET).update_user(ADA)
    told = json.dumps(details, default=str) + caplog.text
    assert [secret for secret in (KEY[:8], SECRET[:8], TOKEN[:8]) if secret in told] == []
    if is_json:
        assert details["answer"] == {"msg": padding + shown, "code": shown, "params": {shown: [shown]}}
    elif not padding:
        assert details["error"] == f"users/update call failed: 400 {' '.join(shown.split())} (1 attempt)"


@pytest.mark.parametrize(("padding", "shown"), [("", "***"), ("x" * 480, "x" * 480 + "***"), ("x" * 500, "x" * 489)])
def test_escaped_echo_is_blotted_out(api: responses.RequestsMock, padding: str, shown: str) -> None:
    escaped = padding + "".join(f"\\u{ord(each):04x}" for each in KEY)
    api.post(URL + UPDATE, status=400, body=f'{{"msg":"{escaped}","code":"BadParams"}}')
    error = open_client().update_user(ADA)[1]["error"]
    assert error == f"users/update call failed: 400 BadParams: {shown} (1 attempt)"


@pytest.mark.parametrize("identity", ["ada@example.com", '"ada lovelace"@example.com', "ada lovelace@x", "u-17"])
def test_person_that_the_server_names_is_masked_in_the_error_and_the_log(
    api: responses.RequestsMock, caplog: pytest.LogCaptureFixture, identity: str
) -> None:
    who = {"email": identity} if "@" in identity else {"email": None, "user_id": identity}
    body = {"msg": f"Invalid: {identity.upper()} {identity}, bob@example.com", "code": "BadParams"}
    api.post(URL + UPDATE, status=400, json=body)
    masked = f"{identity[0]}***{identity[identity.find('@') :] if '@' in identity else ''}"
    error = f"users/update call failed: 400 BadParams: Invalid: {masked} {masked}, b***@example.com (1 attempt)"
    assert open_client().update_user(**who)[1]["error"] == error
    assert caplog.messages[-1] == error


def test_short_placeholder_for_a_key_tears_no_words_apart(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=400, json={"msg": "Invalid API key", "code": "BadParams"})
    error = open_client(api_key="key").update_user(ADA)[1]["error"]
    assert error == "users/update call failed: 400 BadParams: Invalid API key (1 attempt)"


# 5. The pace ----------------------------------------------------------------------------------------------------------


def test_each_endpoint_has_its_own_pace_and_others_have_none(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, json=SUCCESS)
    api.post(URL + TRACK, json=SUCCESS)
    clock = Clock()
    client = open_client(sleep=clock.sleep, monotonic=clock, rates={"users/update": 4})
    for _ in range(3):
        client.update_user(ADA)
        client.track_event(ADA, "page_view")
    assert clock.waits == pytest.approx([0.2, 0.25])  # the first one counts as 50 ms late


@pytest.mark.parametrize(("retry_after", "pause_s"), [("30", 30.0), ("31536000", 60.0)])
def test_429_slows_its_endpoint_down_but_for_a_minute_at_most(
    api: responses.RequestsMock, retry_after: str, pause_s: float
) -> None:
    api.post(URL + UPDATE, status=429, headers={"Retry-After": retry_after})
    api.post(URL + UPDATE, json=SUCCESS)
    clock = Clock()
    rates = {"users/update": 1000.0, "events/track": 1000.0}
    client = open_client(sleep=clock.sleep, monotonic=clock, rates=rates, max_retries=1)
    client.update_user(ADA)
    client.update_user(ADA)
    assert clock.waits == [pause_s]


def test_accepted_call_brings_its_endpoint_nearer_to_full_pace(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=429)
    api.post(URL + UPDATE, json=SUCCESS)
    clock = Clock()
    client = open_client(sleep=clock.sleep, monotonic=clock, rates={"users/update": 0.2}, max_retries=1)
    for _ in range(4):
        client.update_user(ADA)
        clock.now += 20
    assert clock.waits == []
    client.update_user(ADA)
    client.update_user(ADA)
    assert clock.waits == [5.0]  # at half the pace it would be 10


def test_threads_share_a_client_and_its_counts(iterable: StandIn) -> None:
    client = client_of(iterable, max_connections=16)
    results: list[bool] = []

    def call(number: int) -> None:
        for each in range(20):
            results.append(client.track_event(ADA, "page_view", event_id=f"{number}-{each}")[0])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
    with eager_threads():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True] * 320
    assert client.request_counts == {"events/track": RequestCounts(sent=320)}
    assert (len(iterable.project.events), len(iterable.connections) <= 16) == (320, True)


@pytest.mark.parametrize("padding", range(440, 500))
def test_a_key_that_is_echoed_in_json_escapes_is_not_half_shown_at_the_cut(padding: int) -> None:
    key = "canary+key/with&signs"
    escaped = key.replace("+", "\\u002b").replace("/", "\\/").replace("&", "\\u0026")
    body = f'{{"code": "BadParams", "msg": "{"x" * padding}{escaped}"}}'
    with responses.RequestsMock() as server:
        server.post(URL + UPDATE, body=body, status=400)
        _, details = open_client(api_key=key).update_user(ADA)
    assert "canary" not in details["error"]


def test_a_gateways_413_is_a_refusal_so_that_a_batch_can_be_split() -> None:
    with responses.RequestsMock() as server:
        server.post(URL + BULK_UPDATE, body="<html>413 Request Entity Too Large</html>", status=413)
        _, details = open_client().bulk_update_users([ADA_AS_JSON])
    assert (details["failure"], details["status_code"]) == (Failure.REJECTED, 413)
