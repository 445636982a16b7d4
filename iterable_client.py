"""Talks to Iterable: one call, its headers, its pace, its retries, and what the answer means.

In: explicit values (key, secret, payloads). Out: `(ok, details)` for each call, and the CSV that
`export_results_to_csv` writes. This module reads no settings and no environment, keeps no records, and
imports nothing else of this project, so it can be copied into another one.

Facts about the API carry their source: [swagger] is Iterable's own API description (version 1.8),
[jwt] its article "JWT-Enabled API Keys", [keys] its article "API Keys".
"""

from __future__ import annotations

import csv
import email.utils
import errno
import functools
import http.client
import io
import json
import logging
import math
import os
import random
import re
import secrets
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast
from urllib.parse import urlsplit

import jwt
import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection

logger = logging.getLogger("iterable_client")

DEFAULT_BASE_URL = "https://api.iterable.com"
DEFAULT_COLUMNS = (
    "id",
    "email",
    "first_name",
    "last_name",
    "plan_type",
    "candidate",
    "page",
    "device",
    "browser",
    "location",
    "event_time",
)
RETRYABLE_STATUS_CODES = frozenset({408, 429, 500, 502, 503, 504})
TOKEN_LIFETIME_S = 3600
JITTER = 0.2
MAX_ANSWER_BYTES = 1024 * 1024
MAX_QUOTED_CHARS = 500
MAX_WAIT_S = 60.0
SHORTEST_SECRET = 6  # what is shorter is a placeholder; to blot it out would tear words apart

_FIXED_HEADERS = {
    "User-Agent": "iterable-integration/1.0",
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # no compressed answer can grow beyond what was read
    "Content-Type": "application/json",
}
_TOKEN = re.compile(r"((?i:bearer)\s+)[\w.~+/=-]+|\beyJ[\w-]+\.[\w-]+\.[\w-]+")

# Where a call's answer is no {"msg", "code", "params"} object, the key that it has instead [swagger].
_ANSWER_KEYS = {"users/bulkUpdate": "successCount", "events/trackBulk": "successCount", "users/getFields": "fields"}

Record = Mapping[str, Any] | bytes  # one user or event: an object, or its JSON text in UTF-8


class Failure(str, Enum):
    """Why a call failed, as far as it decides what to do next."""

    REJECTED = "rejected"  # Iterable refuses it, or it can't be sent at all; the same request would fare no better
    UNACKNOWLEDGED = "unacknowledged"  # out of attempts: it may or may not have arrived
    UNREADABLE = "unreadable"  # an answer that is not Iterable's, such as a page of HTML
    BAD_API_KEY = "bad_api_key"  # every later call would fail the same way
    UNAUTHORIZED = "unauthorized"  # another 401 or 403; may concern this record alone
    REDIRECTED = "redirected"  # not followed: it would carry the key to another address
    BAD_CERTIFICATE = "bad_certificate"
    THROTTLED = "throttled"  # told to wait longer than MAX_WAIT_S
    ABANDONED = "abandoned"  # `sleep` raised Abandoned; with 0 attempts, nothing was sent


class Abandoned(Exception):
    """For the `sleep` that a client is given: raised there, it ends the call that waits, which returns a failure."""


@dataclass
class RequestCounts:
    """HTTP requests of one endpoint: all attempts, those that repeated one, those answered with 429."""

    sent: int = 0
    retried: int = 0
    rate_limited: int = 0


@dataclass(frozen=True)
class _Answer:
    """What one attempt brought back. No status_code: nothing came back, and `problem` says why."""

    status_code: int | None
    body: dict[str, Any] | None = None
    text: str = ""
    retry_after_s: float = 0.0
    problem: str = ""
    failure: Failure | None = None


class Pacer:
    """Spreads the requests of one endpoint so that it stays within `rate` a second, in any window of a second.

    Slots lie 1/rate apart. Who is late may catch up by CATCH_UP_S at the most, and never beyond
    ceil(rate) requests in ceil(rate)/rate seconds. Shared by all threads.
    """

    CATCH_UP_S = 0.05
    SLOWEST = 8.0  # slow_down() stretches the distance of two slots by this factor at the most
    RECOVERY_S = 10.0  # so long recover() takes from half the pace to the full one, whatever the rate

    def __init__(self, rate: float, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._interval_s = 1.0 / rate
        self._stretch = 1.0
        self._window_s = math.ceil(rate) / rate
        self._taken: deque[float] = deque(maxlen=math.ceil(rate))
        self._next = -math.inf
        self._paused_until = -math.inf
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleep until this request's slot."""
        with self._lock:
            now = self._clock()
            slot = max(self._next, now - self.CATCH_UP_S)
            if len(self._taken) == self._taken.maxlen:
                slot = max(slot, self._taken[0] + self._window_s)
            self._next = slot + self._interval_s * self._stretch
            self._taken.append(max(slot, now))
        if slot > now:
            self._sleep(slot - now)

    def slow_down(self, pause_s: float) -> None:
        """After a 429: no request for `pause_s`, then at half the pace.

        A 429 during the pause belongs to the same burst, as its request had left before, and halves nothing again.
        """
        with self._lock:
            now = self._clock()
            if now >= self._paused_until:
                self._stretch = min(self._stretch * 2, self.SLOWEST)
            self._paused_until = max(self._paused_until, now + pause_s)
            self._next = max(self._next, self._paused_until)

    def recover(self) -> None:
        """After an accepted request: a little nearer to full pace."""
        if self._stretch > 1.0:
            with self._lock:
                self._stretch = max(1.0, self._stretch * (1.0 - self._interval_s / self.RECOVERY_S))


class IterableClient:
    """One Iterable project, over one `requests.Session`. Safe to share between threads.

    Every method that calls Iterable returns `(True, answer)` or `(False, details)` and does not raise for
    anything the network or the server does. `details` has `error` (one sentence), `status_code` (int or None),
    `code` (Iterable's, or None), `attempts`, `failure` (see `Failure`) and `answer` (the JSON object, or None).

    Repeating a call is safe: users/update and users/bulkUpdate are upserts, and an event with an `event_id` that
    Iterable knows is updated, not doubled [swagger]. An event without one can double.

    `sleep` may raise `Abandoned` to end a call that is waiting.
    """

    def __init__(
        self,
        api_key: str | None = None,
        jwt_secret: str | None = None,
        use_jwt: bool = False,
        base_url: str = DEFAULT_BASE_URL,
        *,
        jwt_issuer: str | None = "iterable-integration",
        timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        max_retries: int = 3,
        backoff_factor: float = 2,
        initial_backoff: float = 1,
        max_connections: int = 10,
        rates: Mapping[str, float] | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        sleep: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is sent here.

        jwt_issuer: the `iss` claim; None or "" leaves it out. timeout_s: for sending, and for the whole answer of one
        attempt. max_retries: attempts in total. max_connections: how many stay open for the next call; give it the
        number of your threads. rates: requests a second, by call name (`users/update`); a name that is missing is not
        paced. proxy, ca_bundle: the only way to either, as the environment is not asked. uniform: a random number
        from 0 to 1, for the jitter.

        Raises ValueError for a base_url that is malformed or has a user or a password in it, OSError for a ca_bundle
        that is none.
        """
        if "@" in urlsplit(base_url).netloc:
            raise ValueError("base_url must not hold a user name or a password.")
        self.api_key = api_key
        self.jwt_secret = jwt_secret
        self.use_jwt = use_jwt
        self.jwt_issuer = jwt_issuer
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self.connect_timeout_s = connect_timeout_s
        self.max_retries = max_retries
        self.backoff_factor = backoff_factor
        self.initial_backoff = initial_backoff
        self.request_counts: dict[str, RequestCounts] = {}
        self._given_sleep = sleep
        self._clock = clock
        self._uniform = uniform
        self._counts_lock = threading.Lock()
        self._pacers = {name: Pacer(rate, sleep=self._sleep, clock=monotonic) for name, rate in (rates or {}).items()}
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self.session = _open_session(timeout_s, max_connections, _tls_context(ca_bundle))
        if use_jwt:
            logger.info("Using JWT authentication")
            if not api_key:
                logger.warning("No API key is set beside the JWT secret; Iterable asks for both headers.")
        else:
            logger.info("Using API key authentication")

    # The calls ------------------------------------------------------------------------------------------------

    def update_user(
        self,
        email: str | None,
        data_fields: Mapping[str, Any] | None = None,
        *,
        user_id: str | None = None,
        prefer_user_id: bool = False,
    ) -> tuple[bool, dict[str, Any]]:
        """Create or update one user: POST /api/users/update. Give `email` or `user_id`.

        Fields that are not named stay as they are; a field that is None is removed from the profile.
        prefer_user_id: let an e-mail based project create a user that it knows by `user_id` only [swagger].
        """
        payload: dict[str, Any] = _identity(email, user_id)
        if prefer_user_id:
            payload["preferUserId"] = True
        payload["dataFields"] = dict(data_fields or {})
        return self._post(payload, "users/update")

    def track_event(
        self,
        email: str | None,
        event_name: str,
        data_fields: Mapping[str, Any] | None = None,
        *,
        created_at: int | None = None,
        event_id: str | None = None,
        user_id: str | None = None,
    ) -> tuple[bool, dict[str, Any]]:
        """Track one event: POST /api/events/track. Give `email` or `user_id`.

        created_at: whole Unix seconds; without it Iterable takes the time of arrival. event_id: at most 512 bytes;
        an event with an id that exists is updated instead of doubled [swagger].
        """
        payload: dict[str, Any] = _identity(email, user_id)
        payload["eventName"] = event_name
        if event_id is not None:
            payload["id"] = event_id
        if created_at is not None:
            payload["createdAt"] = created_at
        payload["dataFields"] = dict(data_fields or {})
        return self._post(payload, "events/track")

    def bulk_update_users(self, users: Sequence[Record]) -> tuple[bool, dict[str, Any]]:
        """Create or update many users: POST /api/users/bulkUpdate; each as `update_user` would send it, or its JSON.

        At least one, else ValueError; at most 4 MB in all [swagger]. True only says that Iterable read the batch:
        which users it refused stands in the answer, see `read_failures`. Not for JWT-enabled keys [keys].
        """
        return self._post_batch("users", users, "users/bulkUpdate")

    def track_bulk_events(self, events: Sequence[Record]) -> tuple[bool, dict[str, Any]]:
        """Track many events: POST /api/events/trackBulk. For the rest see `bulk_update_users` and `track_event`."""
        return self._post_batch("events", events, "events/trackBulk")

    def get_user_fields(self) -> tuple[bool, dict[str, Any]]:
        """The names and types of the project's user fields: GET /api/users/getFields -> {"fields": {name: type}}.

        Changes nothing. Server-side keys only [keys].
        """
        return self._make_request_with_retry("GET", f"{self.base_url}/api/users/getFields", None, "users/getFields")

    def _post(self, payload: Mapping[str, Any] | bytes, name: str) -> tuple[bool, dict[str, Any]]:
        return self._make_request_with_retry("POST", f"{self.base_url}/api/{name}", payload, name)

    def _post_batch(self, key: str, records: Sequence[Record], name: str) -> tuple[bool, dict[str, Any]]:
        if not records:
            raise ValueError(f"There are no {key}: an empty batch is an error in Iterable.")
        try:
            payload = _join(key, records)
        except _ENCODING_ERRORS as error:
            return self._fail(name, _unencodable(error), 0)
        return self._post(payload, name)

    # One request with its retries -------------------------------------------------------------------------------

    def _make_request_with_retry(
        self, method: str, url: str, payload: Mapping[str, Any] | bytes | None, name: str
    ) -> tuple[bool, dict[str, Any]]:
        """Send one request, up to `max_retries` times in total. `name` is what the log calls it (`users/update`).

        Tried again: time-outs, lost connections, cut answers, and the statuses of `_is_retryable`. Everything
        else is final at once, and so is a `Retry-After` of more than MAX_WAIT_S, the longest wait there is.
        """
        try:
            body = _encode(payload)
        except _ENCODING_ERRORS as error:
            return self._fail(name, _unencodable(error), 0)
        identity = payload if isinstance(payload, Mapping) else {}
        attempts = 0
        try:
            while True:
                headers = self._update_headers(identity.get("email"), identity.get("userId"))
                answer = self._attempt(method, url, body, headers, name, is_repeat=attempts > 0)
                attempts += 1
                if _is_success(answer, name):
                    return True, self._succeed(name, answer)
                wait_s = max(min(self._calculate_backoff(attempts - 1), MAX_WAIT_S), answer.retry_after_s)
                if answer.status_code == 429 and name in self._pacers:
                    self._pacers[name].slow_down(min(wait_s, MAX_WAIT_S))
                if attempts >= self.max_retries or not self._is_worth_repeating(answer):
                    return self._fail(name, answer, attempts)
                logger.warning(
                    "Retryable error %s from %s. Retrying in %.2fs (attempt %d/%d)",
                    answer.problem or answer.status_code, name, wait_s, attempts, self.max_retries,
                )  # fmt: skip
                self._sleep(wait_s)
        except Abandoned:
            return self._fail(name, _Answer(None, problem="the run is ending", failure=Failure.ABANDONED), attempts)

    def _attempt(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], name: str, *, is_repeat: bool
    ) -> _Answer:
        """One request in its turn, counted, and what came of it."""
        if name in self._pacers:
            self._pacers[name].wait()
        answer = self._exchange(method, url, body, headers)
        with self._counts_lock:
            counts = self.request_counts.setdefault(name, RequestCounts())
            counts.sent += 1
            counts.retried += is_repeat
            counts.rate_limited += answer.status_code == 429
        return answer

    def _exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> _Answer:
        """One HTTP request and its answer; every way in which it can go wrong becomes an `_Answer`."""
        try:
            response = self.session.send(
                self._prepare(method, url, body, headers),
                stream=True,
                allow_redirects=False,
                timeout=(self.connect_timeout_s, self.timeout_s),
                verify=True,
                proxies=self._proxies,
            )
        except _TRANSPORT_ERRORS as error:
            return _unanswered(error)
        try:
            return _read_answer(response, self._clock())
        except _TRANSPORT_ERRORS as error:
            return _Answer(None, problem=_problem_of(error))
        finally:
            response.close()

    def _prepare(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]
    ) -> requests.PreparedRequest:
        """What `requests.Request(...).prepare()` would give, without what costs time and is not wanted: authentication
        by the address or `.netrc`, cookies, and checks of headers that http.client checks again."""
        prepared = requests.PreparedRequest()
        prepared.method = method.upper()
        prepared.url = _normalize_url(url)
        prepared.headers = CaseInsensitiveDict({**_FIXED_HEADERS, **headers})
        if body is not None:
            prepared.body = body
            prepared.headers["Content-Length"] = str(len(body))
        return prepared

    def _succeed(self, name: str, answer: _Answer) -> dict[str, Any]:
        body = answer.body or {}
        if name in self._pacers:
            self._pacers[name].recover()
        failures = read_failures(body) if "failCount" in body else None
        if failures is None:
            logger.info("%s call successful: Success", name)
        else:
            accepted, failed = failures.success_count, failures.fail_count
            logger.info("%s call successful: %d accepted, %d failed", name, accepted, failed)
        return body

    def _fail(self, name: str, answer: _Answer, attempts: int) -> tuple[bool, dict[str, Any]]:
        """The details of a call that is given up, and its log line."""
        failure = _classify(answer, attempts)
        answer = self._clean(answer)
        code = (answer.body or {}).get("code")
        error = f"{name} {_describe(answer, attempts, self._without_secrets)}"
        logger.error("%s", error)
        return False, {
            "error": error,
            "status_code": answer.status_code,
            "code": code if isinstance(code, str) else None,
            "attempts": attempts,
            "failure": failure,
            "answer": answer.body,
        }

    def _is_worth_repeating(self, answer: _Answer) -> bool:
        if answer.failure is not None or answer.retry_after_s > MAX_WAIT_S:
            return False
        return answer.status_code is None or self._is_retryable(answer.status_code)

    def _is_retryable(self, status_code: int) -> bool:
        """True for exactly 408, 429, 500, 502, 503, 504."""
        return status_code in RETRYABLE_STATUS_CODES

    def _calculate_backoff(self, attempt: int) -> float:
        """Seconds to wait after the attempt numbered `attempt` (the first is 0): 1-1.2, 2-2.4, 4-4.8, ..."""
        return float(self.initial_backoff * self.backoff_factor**attempt * (1 + JITTER * self._uniform()))

    def _sleep(self, seconds: float) -> None:
        # time.sleep is looked up late, so that a program which replaces it is heard.
        (self._given_sleep or time.sleep)(seconds)

    # Headers ----------------------------------------------------------------------------------------------------

    def _update_headers(self, email: str | None = None, user_id: str | None = None) -> dict[str, str]:
        """The authentication headers of one call; in JWT mode with a new token for this user.

        A JWT-enabled key wants both headers, and a token names the one user of its request [jwt].
        Raises ValueError where the key or the secret is missing.
        """
        if not self.use_jwt:
            if not self.api_key:
                raise ValueError("There is no API key: pass api_key, or use_jwt=True with jwt_secret.")
            return {"Api-Key": self.api_key}
        headers = {"Authorization": f"Bearer {self._generate_jwt_token(email, user_id)}"}
        if self.api_key:
            headers["Api-Key"] = self.api_key
        return headers

    def _generate_jwt_token(self, email: str | None = None, user_id: str | None = None) -> str:
        """A token for one hour, HS256, naming the user by e-mail or else by id: Iterable takes just one of them [jwt].

        Raises ValueError where the secret is missing.
        """
        if not self.jwt_secret:
            raise ValueError("There is no JWT secret: pass jwt_secret, or use_jwt=False with api_key.")
        issued_at = int(self._clock())
        claims: dict[str, Any] = {"iss": self.jwt_issuer} if self.jwt_issuer else {}
        claims |= {"iat": issued_at, "exp": issued_at + TOKEN_LIFETIME_S}
        if email is not None:
            claims["email"] = email
        elif user_id is not None:
            claims["userId"] = user_id
        token = jwt.encode(claims, self.jwt_secret, algorithm="HS256")
        logger.debug("JWT token generated successfully")
        return token

    def _clean(self, answer: _Answer) -> _Answer:
        """The answer without our secrets: Iterable has echoed a request's headers in error messages."""
        text = self._without_secrets(answer.text)
        return answer if text == answer.text else replace(answer, text=text, body=_parse_object(text))

    def _without_secrets(self, text: str) -> str:
        for secret in (self.api_key, self.jwt_secret):
            if secret and len(secret) >= SHORTEST_SECRET:
                text = text.replace(secret, "***")
        return _TOKEN.sub(r"\1***", text)


@functools.lru_cache(maxsize=16)
def _normalize_url(url: str) -> str:
    """The address as requests would write it. Its errors are ValueErrors."""
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, None)
    return str(prepared.url)


def _identity(email: str | None, user_id: str | None) -> dict[str, Any]:
    given = {"email": email, "userId": user_id}
    return {name: value for name, value in given.items() if value is not None}


_ENCODING_ERRORS = (ValueError, TypeError, RecursionError)


def _encode(payload: Mapping[str, Any] | bytes | None) -> bytes | None:
    """Payload -> JSON in UTF-8. One of _ENCODING_ERRORS for NaN, for what is no Unicode text, and for no JSON type."""
    if payload is None or isinstance(payload, bytes):
        return payload
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _join(key: str, records: Sequence[Record]) -> bytes:
    """`{"users":[...]}` from records that are objects or JSON already."""
    parts = [each if isinstance(each, bytes) else _encode(each) or b"" for each in records]
    return b'{"%s":[%s]}' % (key.encode("ascii"), b",".join(parts))


def _unencodable(error: Exception) -> _Answer:
    return _Answer(None, problem=f"can't be written as JSON ({type(error).__name__})")


# What an answer means -----------------------------------------------------------------------------------------------


def _read_answer(response: requests.Response, now: float) -> _Answer:
    """Response -> _Answer. Reads at most MAX_ANSWER_BYTES, and never raises for what is in them."""
    status_code = response.status_code
    retry_after_s = _parse_retry_after(response.headers.get("Retry-After"), now)
    if 300 <= status_code < 400:
        return _Answer(status_code, text="it redirects to another address", failure=Failure.REDIRECTED)
    content: bytes = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=False) or b""
    if len(content) > MAX_ANSWER_BYTES:
        return _Answer(status_code, text=f"more than {MAX_ANSWER_BYTES} bytes", retry_after_s=retry_after_s)
    missing = response.raw.length_remaining or 0
    if missing > 0:  # urllib3 hands over a cut answer as if it were whole
        raise http.client.IncompleteRead(content, missing)
    text = content.decode("utf-8-sig", errors="replace")
    return _Answer(status_code, _parse_object(text), text, retry_after_s)


def _parse_object(text: str) -> dict[str, Any] | None:
    """JSON text -> the object in it, or None for everything that is none."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _parse_retry_after(value: str | None, now: float) -> float:
    """`Retry-After`, as seconds or as an HTTP date -> seconds from now; 0 for none, for junk and for the past."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


# requests wraps most of what urllib3, http.client and the socket raise, but not all; its own errors are OSErrors.
_TRANSPORT_ERRORS = (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)


def _unanswered(error: Exception) -> _Answer:
    """An exception from sending -> an _Answer that says whether another attempt can help."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = f"certificate check failed ({cause.verify_message})"
            return _Answer(None, problem=problem, failure=Failure.BAD_CERTIFICATE)
    is_in_answer = any(isinstance(cause, urllib3.exceptions.InvalidHeader) for cause in causes)
    if isinstance(error, ValueError) and not is_in_answer:
        # requests' InvalidURL, InvalidSchema and so on are ValueErrors, and so is what http.client says of a header.
        problem = f"can't be sent: its address or a header is malformed ({type(error).__name__})"
        return _Answer(None, problem=problem, failure=Failure.REJECTED)
    return _Answer(None, problem=_problem_of(error))


def _problem_of(error: Exception) -> str:
    """`ConnectionError (Connection refused)`. No more of an exception's text: it may quote a header, and so the key."""
    reasons = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    return type(error).__name__ + (f" ({reasons[-1]})" if reasons else "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it wraps, also in the ways of urllib3 (`reason`, nested arguments)."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        pending += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


def _is_success(answer: _Answer, name: str) -> bool:
    """200 is not success: the code must say so, and a blocked event is told in `msg` alone."""
    if answer.status_code is None or not 200 <= answer.status_code < 300 or answer.body is None:
        return False
    own_key = _ANSWER_KEYS.get(name)
    if own_key is not None:
        return own_key in answer.body
    return answer.body.get("code") == "Success" and not _is_disallowed(answer.body)


def _is_disallowed(body: Mapping[str, Any]) -> bool:
    # 200 with this text means that the event name is blocked and nothing was stored (block/iterable-go checks it, too).
    return "is disallowed from tracking" in str(body.get("msg"))


@dataclass(frozen=True)
class BulkFailures:
    """What a bulk answer says of its failures; Iterable lists ids, not positions, and may count more than it lists.

    listed: id -> (reason, how often it is listed), for example {"bad@": ("invalidEmails", 1)}. E-mails in lower case.
    """

    success_count: int
    fail_count: int
    listed: dict[str, tuple[str, int]]
    disallowed_event_names: frozenset[str]
    filtered_out_fields: frozenset[str]
    created_fields: frozenset[str]


def read_failures(answer: Mapping[str, Any]) -> BulkFailures | None:
    """The answer of a bulk call -> its failures; None where its counts are no numbers.

    Every list is optional, and unknown keys are let be [swagger]. The deprecated lists at the top repeat
    those in `failedUpdates`.
    """
    counts = answer.get("successCount"), answer.get("failCount")
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    nested = answer.get("failedUpdates")
    deprecated = [(reason, answer.get(reason)) for reason in ("invalidEmails", "invalidUserIds")]
    listed: dict[str, tuple[str, int]] = {}
    for reason, names in [*(nested.items() if isinstance(nested, dict) else ()), *deprecated]:
        if reason.endswith(("Emails", "UserIds")):
            is_email = reason.endswith("Emails")
            for name, times in Counter(each.lower() if is_email else each for each in _strings(names)).items():
                if name not in listed or listed[name][1] < times:
                    listed[name] = (reason, times)
    return BulkFailures(
        success_count=answer["successCount"],
        fail_count=answer["failCount"],
        listed=listed,
        disallowed_event_names=frozenset(_strings(answer.get("disallowedEventNames"))),
        filtered_out_fields=frozenset(_strings(answer.get("filteredOutFields"))),
        created_fields=frozenset(_strings(answer.get("createdFields"))),
    )


def read_indices(answer: Mapping[str, Any] | None) -> frozenset[int]:
    """The positions that a refused batch names in `params`: {"obj.events[3].createdAt": ...} -> {3}."""
    params = (answer or {}).get("params")
    names = params if isinstance(params, dict) else {}
    found = (re.match(r"obj\.(?:users|events)[\[(](\d{1,9})[\])]", str(name)) for name in names)
    return frozenset(int(match.group(1)) for match in found if match)


def _strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _classify(answer: _Answer, attempts: int) -> Failure:
    """Status first, then code: error bodies have been seen with code Success."""
    status_code, body = answer.status_code, answer.body or {}
    code = body.get("code")
    if answer.failure is not None:
        return answer.failure
    if status_code is None:
        return Failure.UNACKNOWLEDGED if attempts else Failure.REJECTED
    if status_code in RETRYABLE_STATUS_CODES:
        return Failure.THROTTLED if answer.retry_after_s > MAX_WAIT_S else Failure.UNACKNOWLEDGED
    if status_code == 401 and (code == "BadApiKey" or "Invalid API key" in str(body.get("msg"))):
        return Failure.BAD_API_KEY
    if status_code == 413:  # a gateway may say it, too, and a smaller request passes it
        return Failure.REJECTED
    if answer.body is None and (status_code < 300 or _is_page_or_nothing(answer.text)):
        return Failure.UNREADABLE
    if status_code < 300 and (not isinstance(code, str) or (code == "Success" and not _is_disallowed(body))):
        return Failure.UNREADABLE
    if status_code in (401, 403):
        return Failure.UNAUTHORIZED
    return Failure.UNACKNOWLEDGED if status_code >= 500 else Failure.REJECTED


def _is_page_or_nothing(text: str) -> bool:
    return text.lstrip()[:1] in ("<", "")


def _describe(answer: _Answer, attempts: int, clean: Callable[[str], str]) -> str:
    """What a failed call is told as, after its name: `call failed: 400 BadParams: ... (1 attempt)`."""
    tries = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    if answer.status_code is None:
        return f"call failed: {answer.problem} ({tries})"
    wait = f"; told to wait {answer.retry_after_s:.0f} s" if answer.retry_after_s > MAX_WAIT_S else ""
    return f"call failed: {answer.status_code} {_say(answer, clean)} ({tries}{wait})"


def _say(answer: _Answer, clean: Callable[[str], str]) -> str:
    """What the answer itself says. Iterable has errors as {msg, code} and as {error, message, code} [swagger].

    clean: takes out secrets, which has to come before the cut: half a key is not found any more.
    """
    body = answer.body
    if body is None:
        return _quote(clean(answer.text)) or "an empty answer"
    said = (body.get("code"), body.get("msg") or body.get("message") or body.get("error"))
    return _quote(clean(": ".join(str(each) for each in said if each))) or "an answer of another shape"


def _quote(text: str) -> str:
    """The beginning of a foreign text, on one line and without anything that a terminal or a log would act upon."""
    start = text.strip()[:MAX_QUOTED_CHARS]
    return " ".join("".join(each if each.isprintable() else " " for each in start).split())


# Below the session ----------------------------------------------------------------------------------------------------


class _NoCookies(RequestsCookieJar):
    """Stays empty."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class _Session(requests.Session):
    """A session that follows no redirect, keeps no cookies, and takes nothing from the environment or `.netrc`."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies = _NoCookies()

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class _Adapter(HTTPAdapter):
    """One TLS context for all connections, and connections of the kind below.

    requests would parse the certificate bundle for each new connection (14 ms and 0.8 MB).
    """

    def __init__(self, timeout_s: float, max_connections: int, tls: ssl.SSLContext) -> None:
        self._timeout_s = timeout_s
        self._tls = tls
        self._pools: dict[str, Any] = {}
        super().__init__(pool_connections=4, pool_maxsize=max_connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._tls, **pool_kwargs)
        _set_connections(self.poolmanager, self._timeout_s)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, **proxy_kwargs)
        if is_new:
            _set_connections(manager, self._timeout_s)
        return manager

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The pool for an address, of which a client has few. To look it up anew takes a seventh of each request."""
        url = str(request.url)
        pool = self._pools.get(url)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
            self._pools[url] = pool
        return pool

    def close(self) -> None:
        self._pools.clear()
        super().close()

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return super().request_url(request, proxies) if proxies else request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """As in requests, but without looking for cookies and for the encoding of the text."""
        response = requests.Response()
        response.status_code = resp.status
        response.headers = CaseInsensitiveDict(resp.headers)
        response.raw = resp
        response.reason = resp.reason
        response.url = str(req.url)
        response.request = req
        return response

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # against what the TLS context trusts; there is no way to switch it off


def _open_session(timeout_s: float, max_connections: int, tls: ssl.SSLContext) -> requests.Session:
    session = _Session()
    adapter = _Adapter(timeout_s, max_connections, tls)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


@functools.lru_cache(maxsize=4)
def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, as Iterable demands. Made by hand: create_default_context() obeys SSLKEYLOGFILE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    location = Path(ca_bundle or DEFAULT_CA_BUNDLE_PATH)
    if location.is_dir():
        context.load_verify_locations(capath=location)
    else:
        context.load_verify_locations(cafile=location)
    return context


def _set_connections(manager: Any, timeout_s: float) -> None:
    """Give a urllib3 pool manager, whichever kinds of connections it makes, the manners of `_Connection`."""
    manager.pool_classes_by_scheme = {
        scheme: type(pool.__name__, (pool,), {"ConnectionCls": _with_manners(pool.ConnectionCls, timeout_s)})
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _with_manners(connection: Any, timeout_s: float) -> type:
    return type(connection.__name__, (_Connection, connection), {"timeout_s": timeout_s})


def _left_until(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is up")
    return left_s


class _TimedInput(io.RawIOBase):
    """A socket's input until a point in time: each read waits for what is left until then, not anew."""

    def __init__(self, sock: Any) -> None:
        """The socket's time-out has just been set, and counts from here."""
        super().__init__()
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + sock.gettimeout()
        self._has_read = False
        self.is_in_head = True

    def makefile(self, mode: str) -> io.BufferedReader:
        """All that http.client wants of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._has_read:  # to set it the first time would only let another thread in
            self._sock.settimeout(_left_until(self._deadline))
        self._has_read = True
        count: int | None = self._raw.readinto(buffer)
        if count == 0 and self.is_in_head:
            raise http.client.RemoteDisconnected("the answer breaks off amidst its head")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer for which the time-out counts as a whole, head and body, and whose head must be whole.

    The time-out of urllib3 starts again with every byte that arrives, and http.client takes an answer that breaks off
    amidst its head for one without a body.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        self._input = _TimedInput(sock)
        super().__init__(cast(Any, self._input), *args, **kwargs)

    def begin(self) -> None:
        super().begin()
        self._input.is_in_head = False


_SEND_BYTES = 65_536  # a TLS socket starts its time-out anew with each record of 16 KiB


class _Connection(HTTPConnection):
    """Sends head and body together, and a large body within `timeout_s`.

    urllib3 would send the two apart, and allow the sending as long as the connecting.
    """

    response_class = _Response
    timeout_s: float
    _held_back: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held_back = []
        super().request(*args, **kwargs)
        message, self._held_back = b"".join(self._held_back), None
        deadline = time.monotonic() + self.timeout_s
        for start in range(0, len(message), _SEND_BYTES):
            if start:  # the first piece connects, if need be
                self.sock.settimeout(_left_until(deadline))
            self.send(message[start : start + _SEND_BYTES])

    def send(self, data: Any) -> None:
        if self._held_back is None:
            super().send(data)
        else:
            self._held_back.append(data)


# The CSV --------------------------------------------------------------------------------------------------------------

_ROWS_PER_BLOCK = 100  # of more, the processor's cache would forget the first before the last are written
_PLAIN_TYPES = frozenset({str, int, float, Decimal, type(None)})
_FORMULA_STARTS = frozenset("=+-@\t\r\n")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?\Z")


def export_results_to_csv(
    user_records: Iterable[Mapping[str, Any]], filename: str | None = None, *, columns: Sequence[str] | None = None
) -> str:
    """Write the records as CSV and return the file's path. Records are taken one by one and not kept.

    The format is that of RFC 4180 in UTF-8, with a header: `columns`, else the keys of the first record, else (no
    record at all) DEFAULT_COLUMNS. None is an empty cell; a text that a spreadsheet would run as a formula
    gets a leading `'`.

    filename: default `query_results_YYYYMMDD_HHMMSS.csv` (local time) in the working directory. The file is private
    (0600) and appears whole or not at all. FileExistsError where it exists already; ValueError for a record with a
    key that the header lacks; an exception from `user_records` passes through and leaves no file.
    """
    records = iter(user_records)
    if columns is None:
        first = next(records, None)
        columns = DEFAULT_COLUMNS if first is None else tuple(first)
        records = iter(()) if first is None else _chain(first, records)
    path = Path(filename) if filename is not None else _free_csv_path()
    with new_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([_cell(column) for column in columns])
        writer.writerows(_csv_rows(records, columns))
    return str(path)


def _chain(first: Mapping[str, Any], rest: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    yield first
    yield from rest


def _csv_rows(records: Iterator[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Records -> rows of harmless cells. They are looked at by the column, which takes half the time."""
    header = tuple(columns)
    numbered = enumerate(records, start=1)
    while rows := [
        tuple(record.values()) if tuple(record) == header else _row_of(record, number, header)
        for number, record in islice(numbered, _ROWS_PER_BLOCK)
    ]:
        yield from zip(*map(_harmless, zip(*rows, strict=True)), strict=True) if header else rows


def _row_of(record: Mapping[str, Any], number: int, header: tuple[str, ...]) -> tuple[Any, ...]:
    """A record whose keys are not those of the header, in its order."""
    if unknown := record.keys() - set(header):
        named = ", ".join(sorted(map(repr, unknown)))
        raise ValueError(f"Record {number} has {named}, for which the CSV has no column.")
    return tuple(map(record.get, header))


def _harmless(column: tuple[Any, ...]) -> Sequence[Any]:
    """A part of a column as CSV cells; as it is, where nothing in it can do harm, as nearly always."""
    types = set(map(type, column))
    if types <= _PLAIN_TYPES:
        texts = set(column) if types == {str} else {value for value in column if type(value) is str}
        if _FORMULA_STARTS.isdisjoint([text[:1] for text in texts]) and "\0" not in "".join(texts):
            return column
    return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    """A value as a CSV cell: numbers as they are, times without a `T`, everything else as guarded text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return value
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value).decode("utf-8", errors="backslashreplace")
    elif isinstance(value, (dict, list)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return _guarded(str(value).replace("\0", "\\x00"))  # a NUL makes many CSV readers give up


def _guarded(text: str) -> str:
    """A text that a spreadsheet would run gets a `'`; a plain number with a sign is no formula."""
    if text[:1] in _FORMULA_STARTS and text and not _PLAIN_NUMBER.match(text):
        return "'" + text
    return text


def _free_csv_path() -> Path:
    """The default name. A second export within the same second waits for the next one."""
    while True:
        path = Path(f"query_results_{datetime.now():%Y%m%d_%H%M%S}.csv")
        if not os.path.lexists(path):
            return path
        time.sleep(1.0 - time.time() % 1.0)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A new private text file, which appears under its name only when the block ends without an exception.

    FileExistsError where the name is taken, also by a symbolic link; it is never followed or replaced.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "the file exists already", str(path))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(unfinished, flags, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _move_without_replacing(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _move_without_replacing(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the target exists, or the file system has no hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the file exists already", str(target)) from None
        source.rename(target)
