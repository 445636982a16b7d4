"""The client: what it sends, what it makes of answers, when it tries again, and what the wire can do to it.

Three fakes, by depth: `responses` where the content of an answer is all that matters, the stand-in Iterable for whole
exchanges over HTTP, and `Peer` for what no HTTP server would do.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import inspect
import json
import logging
import math
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable_client import (
    Abandoned,
    BulkFailures,
    Failure,
    IterableClient,
    Pacer,
    RequestCounts,
    read_failures,
    read_indices,
)
from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, Fault, StandIn

ROOT = Path(__file__).resolve().parent.parent
URL = "https://api.iterable.com"
UPDATE, TRACK = "/api/users/update", "/api/events/track"
BULK_UPDATE, TRACK_BULK = "/api/users/bulkUpdate", "/api/events/trackBulk"
KEY = "0123456789abcdef0123456789abcdef"
SECRET = "2EB6A2F34691492F81A819AEDA32427F"  # the one of Iterable's article "JWT-Enabled API Keys"
NOW = 1_768_293_912.75
ADA = "ada@example.com"
ADA_AS_JSON = b'{"email":"ada@example.com","dataFields":{}}'
SUCCESS = {"msg": "", "code": "Success", "params": None}
SHORT_S = 0.4  # the time-out where a test lets real time pass
MARGIN_S = 5.0  # for a busy machine; what those tests are about would take minutes, or for ever


def never_sleep(seconds: float) -> None:
    raise AssertionError(f"slept for {seconds} s")


def open_client(base_url: str = URL, api_key: str | None = KEY, **options: Any) -> IterableClient:
    """A client whose jitter is 0, which never waits, and which a broken test can't hang."""
    defaults = {"sleep": never_sleep, "clock": lambda: NOW, "uniform": lambda: 0.0, "timeout_s": 5.0}
    return IterableClient(api_key, base_url=base_url, **{**defaults, **options})


Result = tuple[bool, dict[str, Any]]


def failed(
    error: str,
    failure: Failure,
    *,
    status: int | None = None,
    code: str | None = None,
    attempts: int = 1,
    answer: dict[str, Any] | None = None,
) -> Result:
    """The whole result of a call that failed."""
    details = {"error": f"users/update call failed: {error}", "status_code": status, "code": code}
    return False, {**details, "attempts": attempts, "failure": failure, "answer": answer}


@pytest.fixture
def api() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def iterable() -> Iterator[StandIn]:
    with StandIn(limits=None, unknown_users="accept") as stand_in:
        yield stand_in


def client_of(iterable: StandIn, **options: Any) -> IterableClient:
    return open_client(iterable.url, SANDBOX_KEY, **options)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# A peer at the level of bytes -----------------------------------------------------------------------------------------

Action = Callable[[socket.socket], object]


class Peer:
    """A server that answers the first request with the first of `answers`, and so on; the last one serves all others.

    An answer is bytes, after which the connection stays open, or what to do with the connection, which then ends.
    """

    def __init__(self, *answers: bytes | Action, tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{self.port}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Peer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in (self._listener, *self._open):
            end(each)
        for thread in list(self._threads):
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the client has gone, or the test is over
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection:
                while request := read_request(connection):
                    self.requests.append(request)
                    answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                    if callable(answer):
                        answer(connection)
                        return
                    connection.sendall(answer)


def end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    missing = (int(length.group(1)) if length else 0) - len(body)
    while missing > 0:
        piece = connection.recv(65_536)
        if not piece:
            return b""
        data += piece
        missing -= len(piece)
    return data


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def last(data: bytes) -> Action:
    """An answer after which the connection ends."""
    return lambda connection: connection.sendall(data)


def drip(data: bytes) -> Action:
    """An answer that comes a byte at a time, without an end within a test's time."""

    def send(connection: socket.socket) -> None:
        for each in data:
            connection.sendall(bytes([each]))
            threading.Event().wait(0.05)

    return send


OK = http_answer(json.dumps(SUCCESS).encode())


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


def test_malformed_base_url_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid IPv6 URL"):
        open_client("https://[::1")


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
        "user-agent": "iterable-integration/1.0",
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
    assert read_failures(answer) == BulkFailures(
        1, 1, {"bad@": ("invalidEmails", 1)}, frozenset(), frozenset(), frozenset()
    )


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


@pytest.mark.parametrize(("size", "pieces"), [(100, 1), (60_000, 1), (200_000, 4)])
def test_head_and_body_leave_together_in_pieces_of_64_kib(
    iterable: StandIn, monkeypatch: pytest.MonkeyPatch, size: int, pieces: int
) -> None:
    sent: list[bytes] = []
    sendall = socket.socket.sendall

    def spy(self: socket.socket, data: bytes) -> None:
        sent.append(data)
        sendall(self, data)

    monkeypatch.setattr(socket.socket, "sendall", spy)
    assert client_of(iterable).update_user(ADA, {"x": "x" * size})[0] is True
    assert (len(sent), max(map(len, sent)) <= 65_536) == (pieces, True)
    assert sent[0].startswith(b"POST /api/users/update HTTP/1.1\r\n")
    assert b"".join(sent).endswith(b'x"}}')


def test_get_without_payload_has_no_body(iterable: StandIn) -> None:
    client = client_of(iterable)
    url = f"{iterable.url}/api/users/getFields"
    assert client._make_request_with_retry("get", url, None, "users/getFields") == (True, {"fields": {}})
    (request,) = iterable.project.requests
    assert (request.body, "content-length" in request.headers) == (b"", False)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, "\ud800", {1, 2}, b"bytes", object(), 10**5000],
    ids=lambda value: type(value).__name__,
)
def test_value_that_is_no_json_is_refused_before_anything_is_sent(api: responses.RequestsMock, value: Any) -> None:
    if isinstance(value, int) and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python writes integers of any length")
    client = open_client()
    for ok, details in (client.update_user(ADA, {"x": value}), client.bulk_update_users([ADA_AS_JSON, {"x": value}])):
        assert (ok, details["attempts"], details["failure"]) == (False, 0, Failure.REJECTED)
        assert re.fullmatch(r"users/\w+ call failed: can't be written as JSON \(\w+\) \(0 attempts\)", details["error"])
    assert len(api.calls) == 0


def test_circle_is_refused_before_anything_is_sent() -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    error = "can't be written as JSON (ValueError) (0 attempts)"
    assert open_client().update_user(ADA, circle) == failed(error, Failure.REJECTED, attempts=0)


@pytest.mark.parametrize("method", ["bulk_update_users", "track_bulk_events"])
def test_empty_batch_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match=r"^There are no (users|events): an empty batch is an error in Iterable\.$"):
        getattr(open_client(), method)([])


# 3. What an answer means ----------------------------------------------------------------------------------------------

HTML = b"<!DOCTYPE html>\n<html><body><h1>Action not found</h1></body></html>"
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
        (200, {}, "an answer of another shape", Failure.UNREADABLE),
        (200, {"code": 7, "msg": {"a": 1}}, "7: {'a': 1}", Failure.UNREADABLE),
        (200, {"successCount": 1, "failCount": 0}, "an answer of another shape", Failure.UNREADABLE),
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


@settings(max_examples=300)
@given(st.integers(200, 599), st.binary() | st.sampled_from([b"{", b'{"code":', b"<", b"\xef\xbb\xbf", b"\x00"]))
def test_no_bytes_on_earth_raise(status: int, body: bytes) -> None:
    with responses.RequestsMock() as api:
        api.post(URL + UPDATE, status=status, body=body)
        ok, details = open_client(max_retries=1).update_user(ADA)
    assert (ok, details["status_code"], details["attempts"]) == (False, status, 1)


SCALARS = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=6) | st.just("Success")
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=6), SCALARS, max_size=3)
ANSWER_KEYS = [
    *("msg", "code", "params", "error", "message", "successCount", "failCount", "failedUpdates", "invalidEmails"),
    *("invalidUserIds", "disallowedEventNames", "filteredOutFields", "createdFields", "notFoundEmails", "noOpEmails"),
]
LISTS = st.dictionaries(st.sampled_from(ANSWER_KEYS), JSON, max_size=6)
ANSWERS = st.dictionaries(st.sampled_from(ANSWER_KEYS), JSON | LISTS, max_size=8)


@settings(max_examples=300)
@given(ANSWERS, st.sampled_from([200, 400, 401, 429, 503]), st.sampled_from(["users/update", "users/bulkUpdate"]))
def test_no_json_on_earth_raises(answer: dict[str, Any], status: int, name: str) -> None:
    with responses.RequestsMock() as api:
        api.post(URL, status=status, body=json.dumps(answer))
        ok, details = open_client(max_retries=1)._make_request_with_retry("POST", URL, {}, name)
    if ok:
        assert status == 200
        assert (details.get("code") == "Success") if name == "users/update" else ("successCount" in details)
    else:
        assert isinstance(details["error"], str)
        assert isinstance(details["failure"], Failure)


# What a bulk answer says ----------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(ANSWERS)
def test_no_bulk_answer_raises(answer: dict[str, Any]) -> None:
    failures = read_failures(answer)
    if failures is not None:
        assert failures.success_count >= 0
        assert all(times >= 1 for _, times in failures.listed.values())
    assert all(index >= 0 for index in read_indices(answer))


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"successCount": 1},
        {"failCount": 1},
        {"successCount": "1", "failCount": 0},
        {"successCount": True, "failCount": 0},
        {"successCount": 1.0, "failCount": 0},
        {"successCount": None, "failCount": 0},
        {"successCount": 1, "failCount": -1},
    ],
)
def test_counts_that_are_no_numbers_are_unreadable(counts: dict[str, Any]) -> None:
    assert read_failures(counts) is None


def test_failures_are_gathered_from_all_lists_once() -> None:
    answer = {
        "successCount": 1,
        "failCount": 5,
        "invalidEmails": ["Bad@", "bad@", "old@"],
        "invalidUserIds": [],
        "noOpEmails": ["same@example.com"],
        "disallowedEventNames": ["blocked"],
        "filteredOutFields": ["a", 5],
        "createdFields": ["b"],
        "futureEmails": ["not@a.failure"],
        "failedUpdates": {
            "invalidEmails": ["Bad@"],
            "notFoundEmails": ["new@example.com", "NEW@example.com"],
            "forgottenUserIds": ["U-1"],
            "conflictUserIds": [None, 7],
            "futureReasonEmails": ["later@example.com"],
            "count": 5,
        },
    }
    listed = {
        "bad@": ("invalidEmails", 2),
        "old@": ("invalidEmails", 1),
        "new@example.com": ("notFoundEmails", 2),
        "U-1": ("forgottenUserIds", 1),
        "later@example.com": ("futureReasonEmails", 1),
    }
    blocked, filtered, created = frozenset({"blocked"}), frozenset({"a"}), frozenset({"b"})
    assert read_failures(answer) == BulkFailures(1, 5, listed, blocked, filtered, created)


@pytest.mark.parametrize("lists", [{}, {"failedUpdates": None}, {"failedUpdates": [], "invalidEmails": "bad@"}])
def test_lists_are_optional(lists: dict[str, Any]) -> None:
    empty: frozenset[str] = frozenset()
    expected = BulkFailures(2, 0, {}, empty, empty, empty)
    assert read_failures({"successCount": 2, "failCount": 0, **lists}) == expected


@pytest.mark.parametrize(
    ("answer", "indices"),
    [
        ({"params": {"obj.events[1].createdAt": "Number value expected"}}, {1}),
        ({"params": {"obj.users[0]": [], "obj.users[12].email": [{"msg": ["x"], "args": []}]}}, {0, 12}),
        ({"params": {"obj.events(3).id": "x"}}, {3}),
        ({"params": {"obj.events": "x", "obj.eventName": "x", "events[1]": "x", "obj.events[-1]": "x"}}, set()),
        ({"params": {"obj.events[99999999999].id": "x"}}, set()),
        ({"params": {"ip": "203.0.113.5"}}, set()),
        ({"params": ["obj.events[1]"]}, set()),
        ({"params": None}, set()),
        ({}, set()),
        (None, set()),
    ],
)
def test_positions_are_read_from_the_names_of_params(answer: dict[str, Any] | None, indices: set[int]) -> None:
    assert read_indices(answer) == indices


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
    assert client_of(iterable, sleep=waits.append, timeout_s=SHORT_S).update_user(ADA) == (True, SUCCESS)
    assert (fault.matched, waits) == (2, [1.0])


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (Fault(disconnect=True), "ConnectionError (Connection reset by peer)"),
        (Fault(truncate_at=0), "ConnectionError"),
        (Fault(truncate_at=30), "ConnectionError"),  # in the head
        (Fault(truncate_at=80), "IncompleteRead"),  # in the body
        (Fault(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "ConnectionError"),
        (Fault(raw=b"\x00" * 100_000), "ConnectionError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "ConnectionError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n12345"), "InvalidHeader"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), "ProtocolError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), "ProtocolError"),
        (Fault(status=200, headers={"Content-Length": "999"}, body=b"{}", truncate_at=10_000), "IncompleteRead"),
    ],
)
def test_broken_exchange_is_tried_three_times(iterable: StandIn, fault: Fault, problem: str) -> None:
    iterable.inject(fault)
    waits: list[float] = []
    result = client_of(iterable, sleep=waits.append).update_user(ADA)
    assert result == failed(f"{problem} (3 attempts)", Failure.UNACKNOWLEDGED, attempts=3)
    assert (fault.matched, waits) == (3, [1.0, 2.0])


def test_content_length_that_is_too_small_gives_an_unreadable_answer(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, status=200, headers={"Content-Length": "5"}, body=b'{"code":"Success"}'))
    assert client_of(iterable).update_user(ADA)[1]["failure"] is Failure.UNREADABLE
    iterable.clear_faults()
    assert client_of(iterable).update_user(ADA) == (True, SUCCESS)  # what was left over is not taken for an answer
    assert fault.matched == 1


def test_refused_connection_is_tried_three_times(deaf_port: int) -> None:
    waits: list[float] = []
    client = open_client(f"http://127.0.0.1:{deaf_port}", sleep=waits.append)
    error = "ConnectionError (Connection refused) (3 attempts)"
    assert client.update_user(ADA) == failed(error, Failure.UNACKNOWLEDGED, attempts=3)
    assert waits == [1.0, 2.0]


def test_unknown_host_is_tried_again() -> None:
    ok, details = open_client("http://nowhere.invalid", sleep=lambda _: None).update_user(ADA)
    assert (ok, details["attempts"], details["failure"]) == (False, 3, Failure.UNACKNOWLEDGED)


def test_keep_alive_that_the_server_closed_in_between_costs_no_attempt(iterable: StandIn) -> None:
    iterable.inject(Fault(path=UPDATE, close_after=True))
    client = client_of(iterable)
    for _ in range(5):
        assert client.update_user(ADA) == (True, SUCCESS)
        while iterable.connections:  # until the end of the connection has arrived
            threading.Event().wait(0.001)
    assert client.request_counts == {"users/update": RequestCounts(sent=5)}


def test_keep_alive_that_the_server_closes_at_the_next_request_is_tried_again() -> None:
    waits: list[float] = []
    with Peer(OK, lambda connection: None, OK) as peer:
        client = open_client(peer.url, sleep=waits.append)
        assert [client.update_user(ADA) for _ in range(2)] == [(True, SUCCESS)] * 2
    assert (waits, len(peer.requests), peer.connections) == ([1.0], 3, 2)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        http_answer(b'{"msg":"no","code":"BadParams"}', "400 Bad Request"),
        http_answer(HTML, "404 Not Found"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n" + b'{"code":"Success"}' + b"\r\n0\r\n\r\n",
    ],
)
def test_one_connection_serves_many_calls(answer: bytes) -> None:
    with Peer(answer) as peer:
        client = open_client(peer.url)
        for _ in range(5):
            client.update_user(ADA)
    assert (peer.connections, len(peer.requests)) == (1, 5)


def test_closed_session_drops_its_connections_and_opens_again() -> None:
    with Peer(OK) as peer:
        client = open_client(peer.url)
        assert client.update_user(ADA) == (True, SUCCESS)
        client.session.close()
        assert client.update_user(ADA) == (True, SUCCESS)
    assert peer.connections == 2


def test_refusal_before_the_whole_request_has_arrived_is_read() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(http_answer(b"too large", "413 Request Entity Too Large", "Connection: close"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1_000_000):
            pass

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener.accept()[0] as connection:
            refuse(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    _, details = client.bulk_update_users([b'{"x":"' + b"x" * 3_500_000 + b'"}'])
    assert (details["status_code"], details["failure"]) == (413, Failure.REJECTED)
    client.session.close()
    thread.join(5)
    listener.close()


def abandon(seconds: float) -> None:
    raise Abandoned


def test_abandoned_back_off_ends_the_call_after_its_attempts(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, status=503))
    result = client_of(iterable, sleep=abandon).update_user(ADA)
    assert result == failed("the run is ending (1 attempt)", Failure.ABANDONED, attempts=1)
    assert fault.matched == 1


def test_abandoned_turn_ends_the_call_before_anything_is_sent(iterable: StandIn) -> None:
    client = client_of(iterable, sleep=abandon, rates={"users/update": 1}, monotonic=lambda: 0.0)
    assert client.update_user(ADA) == (True, SUCCESS)
    result = client.update_user(ADA)
    assert result == failed("the run is ending (0 attempts)", Failure.ABANDONED, attempts=0)
    assert client.request_counts == {"users/update": RequestCounts(sent=1)}
    assert len(iterable.project.requests) == 1


# 5. The wire ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_redirect_is_not_followed_and_its_body_is_not_read(status: int, elsewhere: bool) -> None:
    endless = f"HTTP/1.1 {status} Found\r\nContent-Length: 999999999\r\nLocation: %s/\r\n\r\n"
    with Peer(OK) as other, Peer(lambda connection: None) as peer:
        peer.answers = ((endless % (other if elsewhere else peer).url).encode(),)
        result = open_client(peer.url).update_user(ADA)
        error = f"{status} it redirects to another address (1 attempt)"
        assert result == failed(error, Failure.REDIRECTED, status=status)
        assert (len(peer.requests), other.connections) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"HTTP/1.1 200 OK\r\n" * 1000),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        lambda connection: (connection.sendall(http_answer(b" " * 1000)[:-1000]), drip(b" " * 1000)(connection)),
        lambda connection: (
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            drip(b"1\r\nx\r\n" * 1000)(connection),
        ),
    ],
    ids=["status line", "100 Continue", "body", "chunks"],
)
def test_dripping_answer_is_ended_by_the_total_deadline(answer: Action) -> None:
    with Peer(answer) as peer:
        started = time.monotonic()
        ok, details = open_client(peer.url, timeout_s=SHORT_S, max_retries=1).update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"], details["status_code"]) == (False, Failure.UNACKNOWLEDGED, None)
    assert re.fullmatch(r"users/update call failed: Read\w*Time\w* \(1 attempt\)", details["error"])


def test_server_that_takes_no_bytes_is_given_up_after_the_time_out() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.bulk_update_users([b'{"x":"' + b"x" * 8_000_000 + b'"}'])
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)


def test_sending_may_take_longer_than_connecting() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            threading.Event().wait(SHORT_S)
            with connection:
                read_request(connection)
                connection.sendall(http_answer(b'{"successCount":1,"failCount":0}'))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=SHORT_S / 4)
        ok, _ = client.bulk_update_users([b'{"x":"' + b"x" * 8_000_000 + b'"}'])
        thread.join(5)
    assert ok is True


def measure_memory(call: Callable[[], Result]) -> tuple[Result, int]:
    """The result of a call, and how many bytes more than before were in use at its peak."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak - before


def test_answer_above_a_mebibyte_is_not_read_on() -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"[" * 1_000_000)
            sent.append(1_000_000)

    with Peer(flood) as peer:
        result, peak = measure_memory(lambda: open_client(peer.url).update_user(ADA))
    assert result == failed("200 more than 1048576 bytes (1 attempt)", Failure.UNREADABLE, status=200)
    assert sum(sent) < 20_000_000  # the rest of what the two sockets hold
    assert peak < 8_000_000


def test_answer_of_just_a_mebibyte_is_read(iterable: StandIn) -> None:
    body = json.dumps({**SUCCESS, "msg": "x" * (1024 * 1024 - len(json.dumps(SUCCESS)))}).encode()
    assert len(body) == 1024 * 1024
    iterable.inject(Fault(path=UPDATE, status=200, body=body))
    assert client_of(iterable).update_user(ADA) == (True, json.loads(body))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bomb_is_not_unpacked(iterable: StandIn, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(200)) + packer.flush()
    assert len(bomb) < 1_000_000
    iterable.inject(Fault(path=UPDATE, status=200, headers={"Content-Encoding": encoding}, body=bomb))
    client = client_of(iterable)
    (_, details), peak = measure_memory(lambda: client.update_user(ADA))
    assert details["failure"] is Failure.UNREADABLE
    assert peak < 10_000_000


def test_cookies_are_never_sent_back(iterable: StandIn) -> None:
    iterable.inject(Fault(path=UPDATE, status=503, headers={"Set-Cookie": "session=1; Path=/"}, times=2))
    client = client_of(iterable, sleep=lambda _: None)
    assert client.update_user(ADA) == (True, SUCCESS)
    assert [each.headers.get("cookie") for each in iterable.project.requests] == [None] * 3
    assert list(client.session.cookies) == []


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: "]))
def test_no_bytes_on_the_wire_raise(garbage: bytes, start: bytes) -> None:
    with Peer(last(start + garbage)) as peer:
        ok, details = open_client(peer.url, max_retries=1).update_user(ADA)
    assert (ok, details["attempts"]) == (False, 1)


# Secrets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["key-of-seven\n", "key-of-seven\r\nX: y", "key-of-sevén…"])
def test_key_that_no_header_can_carry_is_not_sent_and_not_told(iterable: StandIn, key: str) -> None:
    client = open_client(iterable.url, key)
    ok, details = client.update_user(ADA)
    problem = r"can't be sent: its address or a header is malformed \(\w+\)"
    assert re.fullmatch(rf"users/update call failed: {problem} \(1 attempt\)", details["error"])
    assert (ok, details["failure"], details["attempts"]) == (False, Failure.REJECTED, 1)
    assert iterable.project.requests == []


@pytest.mark.parametrize("base_url", ["", "api.iterable.com", "ftp://api.iterable.com", "https://", "http://x:99999"])
def test_address_that_is_none_is_not_tried_again(base_url: str) -> None:
    ok, details = open_client(base_url).update_user(ADA)
    assert (ok, details["attempts"], details["failure"]) == (False, 1, Failure.REJECTED)
    assert "its address or a header is malformed" in details["error"]


def test_credentials_in_an_address_become_no_header(iterable: StandIn) -> None:
    url = f"http://user:pw@127.0.0.1:{iterable.port}{UPDATE}"
    assert client_of(iterable)._make_request_with_retry("POST", url, {"email": ADA}, "users/update") == (True, SUCCESS)
    (request,) = iterable.project.requests
    assert (request.headers.get("authorization"), request.headers["host"]) == (None, f"127.0.0.1:{iterable.port}")


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


def test_short_placeholder_for_a_key_tears_no_words_apart(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=400, json={"msg": "Invalid API key", "code": "BadParams"})
    error = open_client(api_key="key").update_user(ADA)[1]["error"]
    assert error == "users/update call failed: 400 BadParams: Invalid API key (1 attempt)"


# The environment ------------------------------------------------------------------------------------------------------


def test_environment_adds_no_credentials_and_no_proxy(
    iterable: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with Peer(OK) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        client = client_of(iterable)
        assert client.update_user(ADA) == (True, SUCCESS)
        client.session.post(iterable.url + UPDATE, json={}, timeout=5)
        assert proxy.connections == 0
    assert ["authorization" in each.headers for each in iterable.project.requests] == [False, False]


def test_proxy_is_used_where_it_is_named_and_gets_its_own_credentials() -> None:
    with Peer(OK) as proxy:
        client = open_client("http://api.example.com", proxy=f"http://user:pw@127.0.0.1:{proxy.port}")
        assert client.update_user(ADA) == (True, SUCCESS)
    (request,) = proxy.requests
    assert request.startswith(b"POST http://api.example.com/api/users/update HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwdw==\r\n" in request


def test_proxy_that_drips_its_answer_is_ended_by_the_time_out_for_connecting() -> None:
    with Peer(drip(b"HTTP/1.1 200 Connection established\r\n" * 1000)) as proxy:
        client = open_client(URL, proxy=proxy.url, connect_timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)
    assert proxy.requests[0].startswith(b"CONNECT api.iterable.com:443 HTTP/1.")
    assert KEY.encode() not in proxy.requests[0]


class Certificates:
    """A certificate authority, made with openssl, and what it signs: for `localhost`, for another host, and by none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "authority.pem"
        self._create("authority", "/CN=Test authority", "basicConstraints=critical,CA:TRUE")
        for name, host in (("good", "localhost"), ("other", "elsewhere.example.com")):
            self._create(name, f"/CN={host}", f"subjectAltName=DNS:{host}", "-CA", "authority")
        self._create("selfmade", "/CN=localhost", "subjectAltName=DNS:localhost")

    def _create(self, name: str, subject: str, extension: str, *signer: str) -> None:
        path = self.folder / name
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", subject, "-addext", extension, "-out", f"{path}.pem", "-keyout", f"{path}.key"]
        if signer:
            command += ["-CA", str(self.authority), "-CAkey", f"{self.folder / 'authority'}.key"]
            command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(command, check=True, capture_output=True)

    def serve(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def fresh_authority(certificates: Certificates, tmp_path: Path) -> str:
    """The authority's certificate under a name that no client has read before."""
    path = tmp_path / "fresh.pem"
    path.write_bytes(certificates.authority.read_bytes())
    return str(path)


def test_certificate_of_a_named_authority_is_accepted(certificates: Certificates) -> None:
    with Peer(OK, tls=certificates.serve("good")) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority))
        assert [client.update_user(ADA) for _ in range(3)] == [(True, SUCCESS)] * 3
    assert (len(peer.requests), peer.connections) == (3, 1)


def test_folder_of_certificates_is_accepted(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(certificates.authority.read_bytes())
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, capture_output=True)
    with Peer(OK, tls=certificates.serve("good")) as peer:
        assert open_client(peer.url, ca_bundle=str(tmp_path)).update_user(ADA) == (True, SUCCESS)


@pytest.mark.parametrize(
    ("name", "has_authority", "reason"),
    [
        ("selfmade", True, "self.signed certificate"),
        ("other", True, "Hostname mismatch, certificate is not valid for 'localhost'."),
        ("good", False, "unable to get local issuer certificate"),
    ],
)
def test_certificate_that_fails_is_not_tried_again_and_gets_no_request(
    certificates: Certificates, name: str, has_authority: bool, reason: str
) -> None:
    with Peer(OK, tls=certificates.serve(name)) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority) if has_authority else None)
        ok, details = client.update_user(ADA)
    assert (peer.requests, peer.connections) == ([], 1)
    error = rf"users/update call failed: certificate check failed \({reason}\) \(1 attempt\)"
    assert re.fullmatch(error, details["error"])
    assert (ok, details["failure"], details["attempts"]) == (False, Failure.BAD_CERTIFICATE, 1)


def test_certificate_check_of_the_session_can_not_be_switched_off(certificates: Certificates) -> None:
    with Peer(OK, tls=certificates.serve("good")) as peer:
        session = open_client(peer.url).session
        session.verify = False
        with pytest.raises(requests.exceptions.SSLError):
            session.get(peer.url, verify=False, timeout=5)
    assert peer.requests == []


def test_environment_changes_no_certificate_check_and_records_no_keys(
    certificates: Certificates, fresh_authority: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, fresh_authority)
    with Peer(OK, tls=certificates.serve("good")) as peer:
        assert open_client(peer.url).update_user(ADA)[1]["failure"] is Failure.BAD_CERTIFICATE
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "nothing.pem"))
        assert open_client(peer.url, ca_bundle=fresh_authority).update_user(ADA) == (True, SUCCESS)
    assert not key_log.exists()


def test_https_proxy_is_checked_and_its_keys_are_not_recorded(
    certificates: Certificates, fresh_authority: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    forbidden = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with Peer(last(forbidden), tls=certificates.serve("good")) as proxy:
        trusting = open_client(URL, proxy=proxy.url, ca_bundle=fresh_authority, max_retries=1)
        assert trusting.update_user(ADA)[1]["failure"] is Failure.UNACKNOWLEDGED
        assert open_client(URL, proxy=proxy.url).update_user(ADA)[1]["failure"] is Failure.BAD_CERTIFICATE
    assert [each.partition(b" HTTP")[0] for each in proxy.requests] == [b"CONNECT api.iterable.com:443"]
    assert not key_log.exists()


def test_dripping_answer_over_tls_is_ended_by_the_total_deadline(certificates: Certificates) -> None:
    with Peer(drip(b"HTTP/1.1 200 OK\r\n" * 1000), tls=certificates.serve("good")) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority), timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)


def test_old_tls_is_refused(certificates: Certificates) -> None:
    client = open_client("https://localhost", ca_bundle=str(certificates.authority))
    adapter: Any = client.session.get_adapter("https://localhost")
    context = adapter.poolmanager.connection_pool_kw["ssl_context"]
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


# 6. The pace ----------------------------------------------------------------------------------------------------------


class Slots:
    """When the requests of a pacer's callers leave. Who waits keeps nobody else from asking, as threads would not."""

    def __init__(self, rate: float, now: float = 1000.0) -> None:
        self.clock = Clock(now)
        self.times: list[float] = []
        self._wait_s = 0.0
        self.pacer = Pacer(rate, sleep=self._sleep, clock=self.clock)

    def _sleep(self, seconds: float) -> None:
        self._wait_s = seconds

    def take(self, count: int = 1) -> list[float]:
        """The next slots, of callers who all ask now; as seconds from now."""
        waits = []
        for _ in range(count):
            self._wait_s = 0.0
            self.pacer.wait()
            waits.append(self._wait_s)
            self.times.append(self.clock.now + self._wait_s)
        return waits


def most_in_a_second(times: list[float]) -> int:
    """The most that lie in any one second, its beginning included and its end not."""
    times = sorted(times)
    most = start = 0
    for end, each in enumerate(times):
        while each - times[start] >= 1 - 1e-6:
            start += 1
        most = max(most, end - start + 1)
    return most


RATES = [0.5, 1, 4.5, 9, 450, 1800]


@pytest.mark.parametrize("rate", RATES)
def test_crowd_from_the_first_moment_on_keeps_to_the_rate(rate: float) -> None:
    slots = Slots(rate)
    slots.take(math.ceil(rate) * 4)
    assert most_in_a_second(slots.times) == math.ceil(rate)
    assert slots.times[-1] - slots.times[0] == pytest.approx(4 * math.ceil(rate) / rate, abs=1 / rate + 0.05)


@pytest.mark.parametrize("rate", RATES)
@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 40)), min_size=1, max_size=12))
def test_no_second_has_more_than_the_rate_whenever_callers_come(rate: float, arrivals: list[tuple[float, int]]) -> None:
    slots = Slots(rate)
    for gap_s, count in arrivals:
        slots.clock.now += gap_s * (10 / rate if rate < 10 else 1)
        slots.take(min(count * math.ceil(rate / 40), 3000))
    assert most_in_a_second(slots.times) <= math.ceil(rate)


@pytest.mark.parametrize("rate", [4.5, 9, 450, 1800])
def test_late_callers_catch_up_by_50_ms_at_most(rate: float) -> None:
    slots = Slots(rate)
    slots.take()
    slots.clock.now += 30
    waits = slots.take(math.ceil(rate))
    assert waits == pytest.approx([max(0, number / rate - 0.05) for number in range(len(waits))], abs=1e-6)


def test_429_stops_all_for_the_pause_and_halves_the_pace() -> None:
    slots = Slots(10)
    slots.take()
    slots.pacer.slow_down(3)
    assert slots.take(3) == pytest.approx([3.0, 3.2, 3.4])


def test_burst_of_429_halves_the_pace_once_and_later_ones_again_down_to_an_eighth() -> None:
    slots = Slots(10)
    spacings = []
    for _ in range(5):
        for _ in range(50):
            slots.pacer.slow_down(1)
        slots.clock.now += 1
        slots.take()
        spacings.append(slots.take()[0])
        slots.clock.now += 60
    assert spacings == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_longer_pause_prevails() -> None:
    slots = Slots(10)
    slots.pacer.slow_down(5)
    slots.pacer.slow_down(2)
    slots.clock.now += 3
    slots.pacer.slow_down(0)
    assert slots.take(2) == pytest.approx([2.0, 2.2])


@pytest.mark.parametrize("rate", [4.5, 450, 1800])
def test_accepted_requests_bring_the_pace_back_in_ten_seconds(rate: float) -> None:
    slots = Slots(rate)
    slots.take()
    slots.pacer.slow_down(1)
    slots.clock.now += slots.take()[0]
    begun = slots.clock.now
    spacings: list[float] = []
    while not spacings or spacings[-1] > 1.0001 / rate:
        spacings += slots.take()
        slots.clock.now += spacings[-1]
        slots.pacer.recover()
    assert spacings[0] == pytest.approx(2 / rate)
    assert slots.clock.now - begun == pytest.approx(10, rel=0.1)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that interrupt each other as often as they can."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval_s)


@pytest.mark.usefixtures("eager_threads")
def test_32_threads_get_each_slot_once() -> None:
    waits: list[float] = []
    pacer = Pacer(100, sleep=waits.append, clock=lambda: 0.0)

    def take_100() -> None:
        for _ in range(100):
            pacer.wait()

    threads = [threading.Thread(target=take_100) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([wait for wait in Slots(100, now=0.0).take(3200) if wait > 0])


def test_each_endpoint_has_its_own_pace_and_others_have_none(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, json=SUCCESS)
    api.post(URL + TRACK, json=SUCCESS)
    waits: list[float] = []
    client = open_client(sleep=waits.append, monotonic=lambda: 0.0, rates={"users/update": 4})
    for _ in range(3):
        client.update_user(ADA)
        client.track_event(ADA, "page_view")
    assert waits == pytest.approx([0.2, 0.45])  # the first one counts as 50 ms late


@pytest.mark.parametrize(("retry_after", "pause_s"), [("30", 30.0), ("31536000", 60.0)])
def test_429_slows_its_endpoint_down_but_for_a_minute_at_most(
    api: responses.RequestsMock, retry_after: str, pause_s: float
) -> None:
    api.post(URL + UPDATE, status=429, headers={"Retry-After": retry_after})
    api.post(URL + UPDATE, json=SUCCESS)
    waits: list[float] = []
    client = open_client(
        sleep=waits.append, monotonic=lambda: 0.0, rates={"users/update": 1000, "events/track": 1000}, max_retries=1
    )
    client.update_user(ADA)
    client.update_user(ADA)
    assert waits == [pause_s]


def test_accepted_call_brings_its_endpoint_nearer_to_full_pace(api: responses.RequestsMock) -> None:
    api.post(URL + UPDATE, status=429)
    api.post(URL + UPDATE, json=SUCCESS)
    clock = Clock()
    waits: list[float] = []
    client = open_client(sleep=waits.append, monotonic=clock, rates={"users/update": 0.2}, max_retries=1)
    for _ in range(4):
        client.update_user(ADA)
        clock.now += 20
    assert waits == []
    client.update_user(ADA)
    client.update_user(ADA)
    assert waits == [5.0]  # at half the pace it would be 10


@pytest.mark.usefixtures("eager_threads")
def test_threads_share_a_client_and_its_counts(iterable: StandIn) -> None:
    client = client_of(iterable, max_connections=16)
    results: list[bool] = []

    def call(number: int) -> None:
        for each in range(20):
            results.append(client.track_event(ADA, "page_view", event_id=f"{number}-{each}")[0])

    threads = [threading.Thread(target=call, args=(number,)) for number in range(16)]
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
