"""One Iterable project: its settings, what it holds, and its answer to each request. No sockets, no waiting."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from pipeline.sandbox import reading
from pipeline.sandbox.exchange import Answer, ApiError, Fault, Json, Received, json_answer
from pipeline.sandbox.fields import FieldCheck, drop_fields, update_fields
from pipeline.sandbox.outcome import Outcome, unknown_user, where_listed
from pipeline.sandbox.rules import (
    EVENT_SHAPE,
    USER_SHAPE,
    is_email,
    is_user_id,
    names_same_user,
    parse_record,
    parse_records,
    read_claims,
)

SANDBOX_KEY = "sandbox-api-key"
SANDBOX_JWT_SECRET = "sandbox-jwt-secret-of-at-least-32-bytes"  # noqa: S105 - opens nothing but this stand-in

# Requests per second, for each project (Swagger).
DOCUMENTED_LIMITS: dict[str, float] = {
    "/api/users/update": 500,
    "/api/users/bulkUpdate": 5,
    "/api/events/track": 2000,
    "/api/events/trackBulk": 10,
    reading.GET_FIELDS: 3,
    reading.GET_BY_EMAIL: 100,
    reading.BY_USER_ID: 100,
    reading.FORGOTTEN: 3,
    reading.FORGOTTEN_USER_IDS: 3,
}
# "Max size of request body: 4MB" (Swagger). It does not say which megabyte; this is the smaller one.
MAX_BULK_BYTES = 4_000_000

_BULK_PATHS = frozenset({"/api/users/bulkUpdate", "/api/events/trackBulk"})
_SERVER_SIDE_PATHS = _BULK_PATHS | reading.READERS.keys()
# Since August 2026 their 429s say how long to wait (Swagger); it declares no 429 for the events endpoints.
_PATHS_WITH_LIMIT_PARAMS = frozenset({"/api/users/update", "/api/users/bulkUpdate"})

_SUCCESS = json_answer({"msg": "", "code": "Success", "params": None})
# An HTML page with these words is what Iterable's own client expects (its error-handling tests).
NOT_FOUND = Answer(
    404,
    b"<!DOCTYPE html><html><head><title>Action not found</title></head><body><h1>Action not found</h1></body></html>",
    {"Content-Type": "text/html; charset=utf-8"},
)
_NOT_KEPT: Json = {}  # stored in place of every event by a project that only counts


@dataclass(eq=False, repr=False)
class Project:
    """Settings first, then state. You may read and change all of it at any time."""

    api_key: str = SANDBOX_KEY
    key_type: str = "ServerSide"  # or "Mobile", "Web", "JavaScript", which may only update and track one at a time
    jwt_secret: str | None = None  # if set, the key is JWT-enabled, and so never a server-side one
    strict_claims: bool = False  # refuse claims that Iterable does not document, like `iss`
    limits: dict[str, float] | None = field(default_factory=DOCUMENTED_LIMITS.copy)  # requests per second, by path
    retry_after: str | None = None  # this header of 429s; the only recorded 429 has none
    rate_limit_params: str = "numbers"  # or "text", "absent": `params` in the 429s of the users endpoints
    too_large: str = "413"  # or "400", with BatchTooLarge
    project_type: str = "hybrid"  # or "email", "userId"
    unknown_user_id: str = "400"  # or "200", with {}: how byUserId answers for an unknown user
    unknown_users: str = "not_found"  # or "accept": how to answer events of users that were never updated
    visible_after_s: float = 0.0  # how long events do not find a new user
    record_requests: bool = True
    keep_payloads: bool = True  # False: only keys and counts, for millions of events
    clock: Callable[[], float] = time.monotonic

    forgotten: set[str] = field(default_factory=set)  # e-mail addresses in lower case, userIds
    blocked_events: set[str] = field(default_factory=set)  # event names
    dropped_fields: set[str] = field(default_factory=set)
    user_field_types: dict[str, str] = field(default_factory=dict)
    event_field_types: dict[str, dict[str, str]] = field(default_factory=dict)  # by event name

    users: dict[str, Json] = field(default_factory=dict, init=False)  # by e-mail address in lower case, or userId
    events: dict[str, Json] = field(default_factory=dict, init=False)  # by id
    event_order: list[str] = field(default_factory=list, init=False)  # ids, in the order of first acceptance
    event_sends: Counter[str] = field(default_factory=Counter, init=False)  # how often each event was accepted
    user_updates: Counter[str] = field(default_factory=Counter, init=False)  # how often each user was updated
    requests: list[Received] = field(default_factory=list, init=False)
    request_counts: Counter[str] = field(default_factory=Counter, init=False)  # by path
    rate_limited: Counter[str] = field(default_factory=Counter, init=False)  # by path
    first_request_at: float | None = field(default=None, init=False)  # by `clock`
    last_answer_at: float | None = field(default=None, init=False)  # when it left, latency included
    faults: list[Fault] = field(default_factory=list, init=False)
    created_at: dict[str, float] = field(default_factory=dict, init=False)  # Unix seconds, by the keys of `users`
    updated_at: dict[str, float] = field(default_factory=dict, init=False)
    # When each user and event was first accepted: one sequence of numbers for both, so that they can be compared. Clear
    # both for the next run's order. Empty in a project that only counts.
    user_accepted_seq: dict[str, int] = field(default_factory=dict, init=False)  # by the keys of `users`
    event_accepted_seq: dict[str, int] = field(default_factory=dict, init=False)  # by id

    _sequence: Iterator[int] = field(default_factory=count, init=False)
    _key_by_user_id: dict[str, str] = field(default_factory=dict, init=False)
    _visible_at: dict[str, float] = field(default_factory=dict, init=False)
    _recent: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque), init=False)

    def __post_init__(self) -> None:
        if self.jwt_secret is not None and self.key_type == "ServerSide":
            self.key_type = "Mobile"
        self._endpoints: dict[tuple[str, str], Callable[[str, bytes], Answer]] = {
            ("POST", "/api/users/update"): self._users_update,
            ("POST", "/api/users/bulkUpdate"): self._users_bulk_update,
            ("POST", "/api/events/track"): self._events_track,
            ("POST", "/api/events/trackBulk"): self._events_track_bulk,
            **{("GET", name): self._reads_with(reader) for name, reader in reading.READERS.items()},
        }

    # --- One request

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to one request. `target`: the path with its query; `headers` with names in lower case."""
        arrived = self.clock()
        if self.first_request_at is None:
            self.first_request_at = arrived
        path, _, query = target.partition("?")
        endpoint = reading.endpoint_of(path)
        fault = self._next_fault(endpoint, body) if self.faults else None
        if fault is not None and fault.replaces_answer and not fault.store:
            answer = fault.answer()
        else:
            answer = self._answer(method, endpoint, target, headers, body)
            if fault is not None:
                answer = fault.answer() if fault.replaces_answer else replace(answer, fault=fault)
        self.request_counts[endpoint] += 1
        if self.record_requests:
            self.requests.append(Received(arrived, path, headers, body, answer.status, query))
        return answer

    def _next_fault(self, endpoint: str, body: bytes) -> Fault | None:
        return next((fault for fault in self.faults if fault.takes_next(endpoint, body)), None)

    def state(self) -> Json:
        """Counts of what it received and holds, and the types of all fields, as in GET /sandbox/state."""
        return {
            "users": len(self.users),
            "events": len(self.events),
            "event_sends": sum(self.event_sends.values()),
            "most_sends_of_one_event": max(self.event_sends.values(), default=0),
            "requests": dict(self.request_counts),
            "rate_limited": dict(self.rate_limited),
            "first_request_at": self.first_request_at,
            "last_answer_at": self.last_answer_at,
            "fields": self.user_field_types,
            "event_fields": self.event_field_types,
        }

    def _answer(self, method: str, endpoint: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer_it = self._endpoints.get((method, endpoint))
        if answer_it is None:
            return NOT_FOUND
        try:  # the order of the checks is INF
            self._check_key(endpoint, headers)
            self._check_jwt(endpoint, headers.get("authorization"), body)
            self._check_rate(endpoint)
            self._check_size(endpoint, body)
            return answer_it(target, body)
        except ApiError as error:
            answer = error.answer()
            if error.status == 429 and self.retry_after is not None:
                return replace(answer, headers={**answer.headers, "Retry-After": self.retry_after})
            return answer

    def _reads_with(self, reader: reading.Reader) -> Callable[[str, bytes], Answer]:
        return lambda target, body: reader(self, target)

    # --- Keys, rate limits, size

    def _check_key(self, path: str, headers: Mapping[str, str]) -> None:
        # Api-Key or Api_Key, "not case sensitive"; a key in the query is for legacy projects only (API Keys).
        params = {"ip": "127.0.0.1", "endpoint": path}
        if headers.get("api-key", headers.get("api_key")) != self.api_key:
            raise ApiError(401, "BadApiKey", "Invalid API key", params)
        if self.key_type != "ServerSide" and path in _SERVER_SIDE_PATHS:
            params["apiKeyIdentifier"] = hashlib.sha256(self.api_key.encode()).hexdigest()[:8]
            params["apiKeyType"] = self.key_type
            raise ApiError(401, "BadApiKey", "Disabled API key or insufficient privileges", params)

    def _check_jwt(self, path: str, authorization: str | None, body: bytes) -> None:
        if self.jwt_secret is None:
            return
        params = {"endpoint": path}
        if authorization is None:
            raise ApiError(401, "BadAuthorizationHeader", "JWT Authorization header is not set", params)
        try:
            claims = read_claims(authorization, self.jwt_secret, self.strict_claims)
        except ValueError as error:
            raise ApiError(401, "InvalidJwtPayload", str(error), params) from None
        if not names_same_user(claims, body):
            msg = "JWT user identifiers do not match the request"
            raise ApiError(401, "JwtUserIdentifiersMismatched", msg, params)

    def _check_rate(self, path: str) -> None:
        """At most the limit in any one second. Refused requests do not count."""
        limit = None if self.limits is None else self.limits.get(path)
        if limit is None:
            return
        recent, now = self._recent[path], self.clock()
        while recent and recent[0] <= now - 1:
            recent.popleft()
        if len(recent) >= limit:
            self.rate_limited[path] += 1
            msg = f"Exceeded rate limit of {float(limit)} per second for endpoint: {path}, project: 1 "
            reset_s = recent[0] + 1 - now if recent else 1.0
            raise ApiError(429, "RateLimitExceeded", msg, self._limit_params(path, int(limit), reset_s))
        recent.append(now)

    def _limit_params(self, path: str, limit: int, reset_s: float) -> Json:
        if self.rate_limit_params == "absent" or path not in _PATHS_WITH_LIMIT_PARAMS:
            return {}
        numbers = {"rateLimitLimit": limit, "rateLimitRemaining": 0, "rateLimitReset": math.ceil(reset_s)}
        return numbers if self.rate_limit_params == "numbers" else {name: str(each) for name, each in numbers.items()}

    def _check_size(self, path: str, body: bytes) -> None:
        # No real body of either answer was found; BatchTooLarge is one of the codes in the Swagger file.
        if len(body) <= MAX_BULK_BYTES or path not in _BULK_PATHS:
            return
        if self.too_large == "400":
            raise ApiError(400, "BatchTooLarge", f"Batch too large for endpoint: {path}")
        raise ApiError(413, "BadParams", "Request entity too large")

    # --- Endpoints

    def _users_update(self, path: str, body: bytes) -> Answer:
        self._take_users([parse_record(path, body, USER_SHAPE)], Outcome(raises=True))
        return _SUCCESS

    def _users_bulk_update(self, path: str, body: bytes) -> Answer:
        users, outcome = parse_records(path, body, "users", USER_SHAPE), Outcome()
        self._take_users(users, outcome)
        if not users:
            raise ApiError(400, "InvalidEmailAddressError", "Emails invalid: ")  # recorded in 2017
        return json_answer(outcome.of_users(len(users)))

    def _events_track(self, path: str, body: bytes) -> Answer:
        event = parse_record(path, body, EVENT_SHAPE)
        self._take_events([event], Outcome(raises=True))
        msg = f"Event with id: {event['id']} tracked."
        return json_answer({"msg": msg, "code": "Success", "params": {"id": event["id"]}})

    def _events_track_bulk(self, path: str, body: bytes) -> Answer:
        events, outcome = parse_records(path, body, "events", EVENT_SHAPE), Outcome()
        self._take_events(events, outcome)
        return json_answer(outcome.of_events(len(events)))

    # --- Records

    def _take_users(self, users: list[Json], outcome: Outcome) -> None:
        self._admit_users(users, outcome, self._store_user)

    def _admit_users(self, users: list[Json], outcome: Outcome, store: Callable[[Json], object]) -> None:
        users = outcome.sift(users, self._check_identity)
        self._drop_fields(users, outcome)
        check = FieldCheck()
        for user in users:
            check.look_at("user", self.user_field_types, user.get("dataFields") or {})
        check.raise_errors()
        for fresh in check.fresh.values():
            self.user_field_types.update(fresh)
            outcome.created_fields.update(fresh)
        outcome.sift(users, store)

    def _take_events(self, events: list[Json], outcome: Outcome) -> None:
        events = outcome.sift(events, self._check_identity)
        self._drop_fields(events, outcome)
        check = FieldCheck()
        for event in events:
            name = event["eventName"]
            check.look_at(name, self.event_field_types.get(name, {}), event.get("dataFields") or {})
        check.raise_errors()
        for name, fresh in check.fresh.items():
            self.event_field_types.setdefault(name, {}).update(fresh)
            outcome.created_fields.update(fresh)
        outcome.sift(events, self._store_event)

    def _check_identity(self, record: Json) -> None:
        email, user_id = record.get("email"), record.get("userId")
        if email is None and user_id is None:
            raise ApiError(400, "BadParams", "email or userId is required")  # INF; a bulk answer can't name it
        if email is not None and not is_email(email):
            raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {email}", None, ("invalidEmails", email))
        if user_id is not None and not is_user_id(user_id):
            raise ApiError(400, "InvalidUserIdError", f"Invalid userId: {user_id}", None, ("invalidUserIds", user_id))
        if self.project_type == "userId" and user_id is None:
            raise unknown_user(record)  # INF; such projects identify by userId
        if self.forgotten and not self.forgotten.isdisjoint((str(email).lower(), user_id)):
            raise ApiError(409, "ForgottenUserError", "User is forgotten", None, where_listed("forgotten", record))

    def _drop_fields(self, records: list[Json], outcome: Outcome) -> None:
        if not self.dropped_fields:
            return
        for record in records:
            dropped = drop_fields(record.get("dataFields") or {}, self.dropped_fields)
            outcome.filtered_fields.update(dict.fromkeys(dropped))

    # --- Users

    def _store_user(self, user: Json) -> None:
        key = self._put_user(user)
        if self.visible_after_s:
            self._visible_at.setdefault(key, self.clock() + self.visible_after_s)
        if self.keep_payloads and key not in self.user_accepted_seq:
            self.user_accepted_seq[key] = next(self._sequence)
        self.user_updates[key] += 1

    def _put_user(self, user: Json) -> str:
        key = self._key_to_store(user)
        stored = self.users.setdefault(key, {"email": None, "userId": None, "dataFields": {}})
        if user.get("email") is not None:
            stored["email"] = user["email"].lower()  # "stored in lower case" (Email Validation in Iterable)
        if user.get("userId") is not None:
            self._release_user_id(key)
            stored["userId"] = user["userId"]
            self._key_by_user_id[user["userId"]] = key
        if self.keep_payloads:
            update_fields(stored["dataFields"], user.get("dataFields") or {}, user.get("mergeNestedObjects") is True)
            now = self.updated_at[key] = time.time()
            self.created_at.setdefault(key, now)
        return key

    def _key_to_store(self, user: Json) -> str:
        """The key of the user that this update is for, known or new."""
        email, user_id = user.get("email"), user.get("userId")
        if self.project_type == "userId":
            return str(user_id)
        if email is None:
            if self.project_type == "email" and not user.get("preferUserId") and self.find(user_id=user_id) is None:
                raise unknown_user(user)  # "Iterable returns an error" (Creating and Identifying Users)
            return self._key_by_user_id.get(str(user_id), str(user_id))
        if self.project_type == "hybrid" and user_id is not None:
            self._join_identities(user, email.lower(), user_id)
        return str(email.lower())

    def _join_identities(self, user: Json, email: str, user_id: str) -> None:
        """Moves a user known only by userId to the address it now has. 409 if id and address belong to two users.

        The status is from the Swagger file ("Email/userId conflict"), the code from a list of response codes.
        """
        key, holder = self._key_by_user_id.get(user_id), self.users.get(email)
        if key == user_id and holder is None:
            for by_key in self._all_by_user_key():
                if user_id in by_key:
                    by_key[email] = by_key.pop(user_id)
        elif key not in (None, email) or (holder is not None and holder["userId"] not in (None, user_id)):
            raise ApiError(409, "ExternalKeyConflict", "Email/userId conflict", None, where_listed("conflict", user))

    def _release_user_id(self, key: str) -> None:
        user_id = self.users[key]["userId"]
        if self._key_by_user_id.get(user_id) == key:  # in an email-based project, several users may have one id
            del self._key_by_user_id[user_id]

    def _all_by_user_key(self) -> tuple[dict[str, Any], ...]:
        users, times = (self.users, self.user_updates, self.user_accepted_seq), (self.created_at, self.updated_at)
        return *users, *times, self._visible_at

    def find(self, *, email: str | None = None, user_id: str | None = None) -> str | None:
        """The key in `users` of the user with this address or id, None if there is none."""
        if email is not None and self.project_type != "userId" and (key := email.lower()) in self.users:
            return key
        by_id = self._key_by_user_id.get(user_id) if user_id is not None else None
        if by_id in self.users:
            return by_id
        if email is None or user_id is not None or self.project_type != "userId":
            return None
        # Addresses are not unique there. Which of several users Iterable picks is not known.
        return next((key for key, user in self.users.items() if user["email"] == email.lower()), None)

    # --- Users, changed by hand

    def edit_user(self, user: Json) -> str:
        """Applies {"email": ..., "dataFields": {...}} as if someone had edited the user in Iterable's web interface.

        Counts no request and no update. Creates an unknown user. Returns the key in `users`. Raises ApiError.
        """
        self._admit_users([user], Outcome(raises=True), self._put_user)
        return str(self.find(email=user.get("email"), user_id=user.get("userId")))

    def delete_user(self, *, email: str | None = None, user_id: str | None = None) -> None:
        """Later events do not find this user; those accepted so far stay in `events`."""
        key = self.find(email=email, user_id=user_id)
        if key is not None:
            self._release_user_id(key)
            for by_key in self._all_by_user_key():
                by_key.pop(key, None)

    def forget_user(self, *, email: str | None = None, user_id: str | None = None) -> None:
        """Deletes a user, known or not, and refuses all later writes under the address and the id."""
        key = self.find(email=email, user_id=user_id)
        known = {} if key is None else self.users[key]
        emails = {email and email.lower(), known.get("email")}
        self.forgotten |= {each for each in emails | {user_id, known.get("userId")} if each is not None}
        self.delete_user(email=email, user_id=user_id)

    # --- Events

    def _store_event(self, event: Json) -> None:
        if self.unknown_users == "not_found":
            self._check_visible(event)
        name, event_id = event["eventName"], event.get("id")
        if name in self.blocked_events:
            # block/iterable-go looks for these words in a 200; the code is INF.
            msg = f"Event {name} is disallowed from tracking."
            raise ApiError(200, "Success", msg, None, ("disallowedEventNames", name))
        if event_id is None:
            event_id = event["id"] = f"generated-{len(self.event_order) + 1}"
        if event_id not in self.events:
            self.event_order.append(event_id)
            if self.keep_payloads:
                self.event_accepted_seq[event_id] = next(self._sequence)
        # "If an event exists with that id, the event will be updated" (Swagger).
        self.events[event_id] = event if self.keep_payloads else _NOT_KEPT
        self.event_sends[event_id] += 1

    def _check_visible(self, event: Json) -> None:
        key = self.find(email=event.get("email"), user_id=event.get("userId"))
        if key is None or (self._visible_at and self._visible_at.get(key, 0) > self.clock()):
            raise unknown_user(event)
