"""Talks to Iterable: the calls, their headers, and the loop that tries again. And the CSV of a query's results.

In: explicit values (key, secret, payloads). Out: `(ok, details)` for each call, and a CSV. Reads no settings and no
environment, and imports nothing of this project but the package `iterable`, so the two can be copied elsewhere.

Facts about the API carry their source: [swagger] is Iterable's own API description (version 1.8),
[jwt] its article "JWT-Enabled API Keys", [keys] its article "API Keys".
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt

from iterable import answers, bodies, export, failed_call, lookups
from iterable.answers import MAX_WAIT_S, RETRYABLE_STATUS_CODES, Answer, Failure, failed_in
from iterable.bodies import Records, UnencodableError
from iterable.pacing import Abandoned, Pacer, RequestCounts, RequestCountsByName
from iterable.redaction import Redactor
from iterable.transport import MAX_ANSWER_BYTES, Session, check_base_url

__all__ = ["Abandoned", "Failure", "IterableClient", "RequestCounts", "export_results_to_csv", "failed_in"]

logger = logging.getLogger("iterable_client")

DEFAULT_BASE_URL = "https://api.iterable.com"
MAX_PERSON_BYTES = 8 * 1024 * 1024  # of an answer with one user's profile or events; updates have 3.5 MB
MAX_LIST_BYTES = 256 * 1024 * 1024  # of an answer that may list millions of hashes
TOKEN_LIFETIME_S = 3600
JITTER = 0.2


class IterableClient:
    """One Iterable project, over one `requests.Session`. Safe to share between threads.

    Every method that calls Iterable returns `(True, answer)` or `(False, details)` and does not raise for
    anything the network or the server does. `details` has `error` (one sentence, without secrets and whole addresses),
    `status_code` (int or None), `code` (Iterable's, or None), `attempts`, `failure` (see `Failure`), `disallowed`
    (whether the project blocks this event's name) and `answer` (the JSON object, or None).

    Repeating a call is safe: users/update and users/bulkUpdate are upserts, and an event with an `event_id` that
    Iterable knows is updated, not doubled [swagger]. An event without one can double. For `update_email`, see there.

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
        connect_timeout_s: float | None = None,
        max_retries: int = 3,
        backoff_factor: float = 2,
        initial_backoff: float = 1,
        max_connections: int = 10,
        rates: Mapping[str, float] | None = None,
        proxy: str | None = None,
        ca_bundle: str | None = None,
        sleep: Callable[[float], None] | None = None,
        on_wait: Callable[[str], None] | None = None,
        before_request: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is sent here.

        jwt_issuer: the `iss` claim; None or "" leaves it out. timeout_s: for sending, and for the whole answer of one
        attempt. connect_timeout_s: None is as long, but 10 s at most. max_retries: attempts in total. max_connections:
        how many stay open for the next call; give it the number of your threads. rates: requests a second, by call name
        (`users/update`, see `iterable.pacing.rates`); a name that is missing is not paced. proxy, ca_bundle: the only
        way to either, as the environment is not asked. on_wait: told before each wait for another attempt, in words
        such as `503 from users/update, attempt 2 of 3`; what it raises is dropped. before_request: called when
        a paced request may leave; may raise `Abandoned`. uniform: a random number from 0 to 1, for the jitter.

        Raises ValueError for a base_url that is malformed, has a user or a password in it, or is http:// and not this
        machine, and OSError for a ca_bundle that can't be loaded.
        """
        check_base_url(base_url)
        self.api_key = api_key
        self.jwt_secret = jwt_secret
        self.use_jwt = use_jwt
        self.jwt_issuer = jwt_issuer
        self.base_url = base_url.rstrip("/")
        self.max_retries = max_retries
        self.backoff_factor = backoff_factor
        self.initial_backoff = initial_backoff
        self.request_counts = RequestCountsByName()
        self._sleep = sleep or _sleep
        self._on_wait = on_wait
        self._clock = clock
        self._uniform = uniform
        pacing: dict[str, Any] = {"sleep": self._sleep, "clock": monotonic, "before_leaving": before_request}
        self._pacers = {name: Pacer(rate, **pacing) for name, rate in (rates or {}).items()}
        self.session = Session(
            timeout_s=timeout_s,
            connect_timeout_s=min(10.0, timeout_s) if connect_timeout_s is None else connect_timeout_s,
            max_connections=max_connections,
            proxy=proxy,
            ca_bundle=ca_bundle,
        )
        logger.info("Using %s authentication", "JWT" if use_jwt else "API key")
        if use_jwt and not api_key:
            logger.warning("No API key is set beside the JWT secret; Iterable asks for both headers.")

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
        options = {"preferUserId": True} if prefer_user_id else {}
        payload = bodies.record(email, user_id, options, data_fields)
        return self._post("users/update", payload)

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
        own = {"eventName": event_name, "id": event_id, "createdAt": created_at}
        return self._post("events/track", bodies.record(email, user_id, own, data_fields))

    def send_json(
        self,
        name: str,
        body: bytes,
        *,
        email: str | None = None,
        user_id: str | None = None,
        max_attempts: int | None = None,
    ) -> tuple[bool, dict[str, Any]]:
        """POST JSON that is encoded already to /api/<name>, as it is: `users/update`, `events/track`.

        email, user_id: whom it is about, for the token and for masking; they are not put into the body.
        max_attempts: at most so many for this call, and never more than `max_retries`.
        """
        return self._post(name, body, email=email, user_id=user_id, max_attempts=max_attempts)

    def bulk_update_users(self, users: Records, *, max_attempts: int | None = None) -> tuple[bool, dict[str, Any]]:
        """Create or update many users: POST /api/users/bulkUpdate; each as `update_user` would send it, or its JSON.

        At least one, else ValueError; at most 4 MB in all [swagger]. **True only says that Iterable read the batch**:
        it may still have refused some of the users. `failed_in(answer)` names them and is empty where all are updated.
        max_attempts: as in `send_json`. Not for JWT-enabled keys [keys].
        """
        return self._post_batch("users/bulkUpdate", "users", users, max_attempts)

    def track_bulk_events(self, events: Records, *, max_attempts: int | None = None) -> tuple[bool, dict[str, Any]]:
        """Track many events: POST /api/events/trackBulk, each as `track_event` would send it, or its JSON.

        **True only says that Iterable read the batch**: see `failed_in(answer)`, and `bulk_update_users` for the rest.
        """
        return self._post_batch("events/trackBulk", "events", events, max_attempts)

    def update_email(
        self, new_email: str, *, current_email: str | None = None, current_user_id: str | None = None
    ) -> tuple[bool, dict[str, Any]]:
        """Move a user's profile and events to a new address, in an e-mail based project: POST /api/users/updateEmail.

        Pass current_email or current_user_id; of both, Iterable takes current_email [swagger].
        **A refusal may be a repetition**: where it was done and the answer was lost, the next attempt (of this call,
        too) is refused, as the old address is gone. Only reading both addresses back tells what was done.
        """
        payload = bodies.new_address(new_email, current_email, current_user_id)
        return self._post("users/updateEmail", payload, email=current_email, user_id=current_user_id)

    def get_user(self, email: str | None = None, *, user_id: str | None = None) -> tuple[bool, dict[str, Any]]:
        """Iterable's copy of one user, by e-mail or else by id: {"user": {"email", "userId", "dataFields"}}.

        `(True, {})`: there is no such user. This and the calls below change nothing; server-side keys only [keys].
        """
        lookup = lookups.of_profile(email, user_id)
        return self._get(*lookup, email=email, user_id=user_id, max_bytes=MAX_PERSON_BYTES)

    def get_events(
        self, email: str | None = None, *, user_id: str | None = None, limit: int = 200
    ) -> tuple[bool, dict[str, Any]]:
        """One user's latest events, at most `limit` (at most 200): {"events": [{"eventName", "createdAt", ...}]}.

        `(True, {})`: there is no such user. `createdAt` comes in several forms; `_id` need not be the id that was sent.
        """
        lookup = lookups.of_events(email, user_id, limit)
        return self._get(*lookup, email=email, user_id=user_id, max_bytes=MAX_PERSON_BYTES)

    def get_journeys(self, page: int, page_size: int = 50) -> tuple[bool, dict[str, Any]]:
        """One page (the first is 1) of the project's journeys: {"journeys": [...], "totalJourneysCount": number}."""
        return self._get(*lookups.of_journeys(page, page_size))

    def get_user_fields(self) -> tuple[bool, dict[str, Any]]:
        """The names and types of the project's user fields: {"fields": {name: type}}."""
        return self._get("users/getFields")

    def get_forgotten_emails(self) -> tuple[bool, dict[str, Any]]:
        """Those who asked to be forgotten: {"hashedEmails": [SHA-256 in hex of the trimmed, lower-cased address]}.

        Not for projects that know people by userId [swagger]. The answer may have MAX_LIST_BYTES, four million hashes.
        """
        return self._get("users/forgotten", max_bytes=MAX_LIST_BYTES)

    def get_forgotten_user_ids(self) -> tuple[bool, dict[str, Any]]:
        """As `get_forgotten_emails`: {"hashedUserIds": [...]}. Not for projects that know people by e-mail."""
        return self._get("users/forgottenUserIds", max_bytes=MAX_LIST_BYTES)

    def _get(self, name: str, path: str | None = None, **options: Any) -> tuple[bool, dict[str, Any]]:
        return self._make_request_with_retry("GET", f"{self.base_url}/api/{path or name}", None, name, **options)

    def _post(self, name: str, payload: Mapping[str, Any] | bytes, **options: Any) -> tuple[bool, dict[str, Any]]:
        return self._make_request_with_retry("POST", f"{self.base_url}/api/{name}", payload, name, **options)

    def _post_batch(
        self, name: str, key: str, records: Records, max_attempts: int | None
    ) -> tuple[bool, dict[str, Any]]:
        try:
            payload = bodies.join(key, records)
        except UnencodableError as error:
            return self._fail(name, Answer(None, problem=str(error)), 0)
        return self._post(name, payload, max_attempts=max_attempts)

    # One request with its retries -------------------------------------------------------------------------------

    def _make_request_with_retry(
        self,
        method: str,
        url: str,
        payload: Mapping[str, Any] | bytes | None,
        name: str,
        *,
        email: str | None = None,
        user_id: str | None = None,
        max_attempts: int | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> tuple[bool, dict[str, Any]]:
        """Send one request, up to `max_retries` times in total. `name` is what the log calls it (`users/update`).

        Tried again: time-outs, lost connections, cut answers, and the statuses of `_is_retryable`. Everything
        else is final at once, and so is a `Retry-After` of more than MAX_WAIT_S, the longest wait there is.
        """
        if isinstance(payload, Mapping):
            email, user_id = payload.get("email", email), payload.get("userId", user_id)
        identity = email or user_id
        try:
            body = bodies.encode(payload) if isinstance(payload, Mapping) else payload
        except UnencodableError as error:
            return self._fail(name, Answer(None, problem=str(error)), 0, identity)
        allowed = min(self.max_retries, self.max_retries if max_attempts is None else max_attempts)
        attempts, answer = 0, Answer(None, problem="the run is ending", failure=Failure.ABANDONED)
        try:
            while True:
                headers = self._update_headers(email, user_id)
                turn = self._pacers[name].wait if name in self._pacers else None
                answer = self.session.exchange(
                    method, url, body, headers, clock=self._clock, turn=turn, max_bytes=max_bytes
                )
                self.request_counts.add(name, is_repeat=attempts > 0, is_limited=answer.status_code == 429)
                attempts += 1
                if answers.is_success(answer, name):
                    return True, self._succeed(name, answer)
                wait_s = max(min(self._calculate_backoff(attempts - 1), MAX_WAIT_S), answer.retry_after_s)
                if answer.status_code == 429 and name in self._pacers:
                    self._pacers[name].slow_down(min(wait_s, MAX_WAIT_S))
                if attempts >= allowed or not self._is_worth_repeating(answer):
                    return self._fail(name, answer, attempts, identity)
                self._wait_for_retry(name, answer, wait_s, attempts, allowed)
        except Abandoned:
            return self._fail(name, answer, attempts, identity)

    def _wait_for_retry(self, name: str, answer: Answer, wait_s: float, attempts: int, allowed: int) -> None:
        reason = f"{answer.problem or answer.status_code} from {name}"
        logger.warning("Retryable error %s. Retrying in %.2fs (attempt %d/%d)", reason, wait_s, attempts, allowed)
        if self._on_wait is not None:
            with suppress(Exception):
                self._on_wait(f"{reason}, attempt {attempts + 1} of {allowed}")
        self._sleep(wait_s)

    def _succeed(self, name: str, answer: Answer) -> dict[str, Any]:
        body = answer.body or {}
        if name in self._pacers:
            self._pacers[name].recover()
        has_failed, result = answers.describe_success(body)
        logger.log(logging.WARNING if has_failed else logging.INFO, "%s call successful: %s", name, result)
        return body

    def _fail(
        self, name: str, answer: Answer, attempts: int, identity: str | None = None
    ) -> tuple[bool, dict[str, Any]]:
        """The details of a call that is given up, and its log line."""
        details = failed_call.details_of(name, answer, attempts, Redactor((self.api_key, self.jwt_secret)), identity)
        logger.error("%s", details["error"])
        return False, details

    def _is_worth_repeating(self, answer: Answer) -> bool:
        if answer.failure is not None or answer.retry_after_s > MAX_WAIT_S:
            return False
        return answer.status_code is None or self._is_retryable(answer.status_code)

    def _is_retryable(self, status_code: int) -> bool:
        """True for exactly 408, 429, 500, 502, 503, 504."""
        return status_code in RETRYABLE_STATUS_CODES

    def _calculate_backoff(self, attempt: int) -> float:
        """Seconds to wait after the attempt numbered `attempt` (the first is 0): 1-1.2, 2-2.4, 4-4.8, ..."""
        return float(self.initial_backoff * self.backoff_factor**attempt * (1 + JITTER * self._uniform()))

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


def _sleep(seconds: float) -> None:
    time.sleep(seconds)  # looked up late, so that a program which replaces it is heard


def export_results_to_csv(
    user_records: Iterable[Mapping[str, Any]], filename: str | None = None, *, columns: Sequence[str] | None = None
) -> str:
    """Write the records as CSV and return the file's path. Records are taken one by one and not kept.

    The format is that of RFC 4180 in UTF-8, with a header: `columns`, else the keys of the first record, else (no
    record at all) those of the default query. None is an empty cell; a text that a spreadsheet would run as a formula
    gets a leading `'`.

    filename: default `query_results_YYYYMMDD_HHMMSS.csv` (local time) in the working directory. The file is private
    (0600) and appears whole or not at all. FileExistsError where it exists already; ValueError for a record with a
    key that the header lacks; an exception from `user_records` passes through and leaves no file.
    """
    records = iter(user_records)
    if columns is None:
        first = next(records, None)
        columns = export.DEFAULT_COLUMNS if first is None else tuple(first)
        records = export.chain_first(first, records)
    path = Path(filename) if filename is not None else export.free_csv_path()
    export.write_csv(path, columns, export.blocks_of(records, columns))
    return str(path)
