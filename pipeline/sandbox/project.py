"""One Iterable project: its settings, what it holds, and its answer to each request. No sockets, no waiting."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.sandbox.exchange import Answer, ApiError, Fault, Json, Received, json_answer
from pipeline.sandbox.rules import (
    EVENT_SHAPE,
    USER_SHAPE,
    FieldCheck,
    is_email,
    is_user_id,
    names_same_user,
    parse_record,
    parse_records,
    read_claims,
)

SANDBOX_KEY = "sandbox-api-key"
SANDBOX_JWT_SECRET = "sandbox-jwt-secret-of-at-least-32-bytes"  # noqa: S105 - opens nothing but this stand-in

# Requests a second and project (Swagger).
DOCUMENTED_LIMITS: dict[str, float] = {
    "/api/users/update": 500,
    "/api/users/bulkUpdate": 5,
    "/api/events/track": 2000,
    "/api/events/trackBulk": 10,
    "/api/users/getFields": 3,
}
# "Max size of request body: 4MB" (Swagger). Which megabyte is not said; this is the smaller one.
MAX_BULK_BYTES = 4_000_000

_BULK_PATHS = frozenset({"/api/users/bulkUpdate", "/api/events/trackBulk"})
_SERVER_SIDE_PATHS = _BULK_PATHS | {"/api/users/getFields"}

_SUCCESS = json_answer({"msg": "", "code": "Success", "params": None})
# An HTML page with these words is what Iterable's own client expects (its error-handling tests).
_NOT_FOUND = Answer(
    404,
    b"<!DOCTYPE html><html><head><title>Action not found</title></head><body><h1>Action not found</h1></body></html>",
    {"Content-Type": "text/html; charset=utf-8"},
)
_INVALID = ("invalidEmails", "invalidUserIds")
_USER_CONFLICTS = ("invalidDataEmails", "invalidDataUserIds", "conflictEmails", "conflictUserIds")
_NOT_FOUND_USERS = ("notFoundEmails", "notFoundUserIds")
_FORGOTTEN = ("forgottenEmails", "forgottenUserIds")
_NOT_KEPT: Json = {}  # stands for every event of a project that only counts


@dataclass(eq=False, repr=False)
class Project:
    """Settings first, then state. All of it may be read and changed at any time."""

    api_key: str = SANDBOX_KEY
    key_type: str = "ServerSide"  # or "Mobile", "Web", "JavaScript": these may not use the bulk endpoints
    jwt_secret: str | None = None  # set: a JWT-enabled key, which is never a server-side one
    jwt_failure_status: int = 401  # as Iterable's JWT article has it; its list of response codes has 400
    strict_claims: bool = False  # refuse claims that Iterable does not document, like `iss`
    limits: dict[str, float] | None = field(default_factory=DOCUMENTED_LIMITS.copy)  # requests a second, by path
    retry_after: str | None = None  # a header of 429s; the one recorded has none
    too_large: str = "413"  # or "400", with BatchTooLarge
    all_bad_users: str = "200"  # or "400": how bulkUpdate says that no address was valid
    project_type: str = "hybrid"  # or "email", "userId"
    unknown_users: str = "not_found"  # or "accept": what becomes of events of users who were never updated
    visible_after_s: float = 0.0  # so long after the first update of a user, events still don't find the user
    strict_numbers: bool = False  # long and double are two types that don't mix
    record_requests: bool = True
    keep_payloads: bool = True  # False: keys and counts only, for a million events
    clock: Callable[[], float] = time.monotonic

    forgotten: set[str] = field(default_factory=set)  # e-mail addresses in lower case, userIds
    blocked_events: set[str] = field(default_factory=set)  # event names
    dropped_fields: set[str] = field(default_factory=set)
    user_field_types: dict[str, str] = field(default_factory=dict)
    event_field_types: dict[str, dict[str, str]] = field(default_factory=dict)  # by event name

    users: dict[str, Json] = field(default_factory=dict, init=False)  # by e-mail address in lower case, or userId
    events: dict[str, Json] = field(default_factory=dict, init=False)  # by id
    event_order: list[str] = field(default_factory=list, init=False)  # ids in the order of first storing
    event_sends: Counter[str] = field(default_factory=Counter, init=False)  # how often each event was accepted
    user_updates: Counter[str] = field(default_factory=Counter, init=False)  # how often an update of each user was
    requests: list[Received] = field(default_factory=list, init=False)
    request_counts: Counter[str] = field(default_factory=Counter, init=False)  # by path
    rate_limited: Counter[str] = field(default_factory=Counter, init=False)  # by path
    faults: list[Fault] = field(default_factory=list, init=False)

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
            ("GET", "/api/users/getFields"): self._users_get_fields,
        }
        self._controls: dict[tuple[str, str], Callable[[bytes], Any]] = {
            ("GET", "/sandbox/state"): lambda _: self.state(),
            ("GET", "/sandbox/users"): lambda _: self.users,
            ("GET", "/sandbox/events"): lambda _: self.events,
            ("POST", "/sandbox/faults"): self._add_fault,
            ("DELETE", "/sandbox/faults"): self._clear_faults,
        }

    # --- One request

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to one request. `path` without query, `headers` with names in lower case."""
        if path.startswith("/sandbox/"):
            return self._control(method, path, body)
        arrived = self.clock()
        fault = next((fault for fault in self.faults if fault.takes_next(path)), None)
        if fault is not None and fault.replaces_answer and not fault.store:
            answer = fault.answer()
        else:
            answer = self._answer(method, path, headers, body)
            if fault is not None:
                answer = fault.answer() if fault.replaces_answer else replace(answer, fault=fault)
        self.request_counts[path] += 1
        if self.record_requests:
            self.requests.append(Received(arrived, path, headers, body, answer.status))
        return answer

    def state(self) -> Json:
        """Counts of what it got and what it holds, as GET /sandbox/state gives them."""
        return {
            "users": len(self.users),
            "events": len(self.events),
            "event_sends": sum(self.event_sends.values()),
            "most_sends_of_one_event": max(self.event_sends.values(), default=0),
            "requests": dict(self.request_counts),
            "rate_limited": dict(self.rate_limited),
        }

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        endpoint = self._endpoints.get((method, path))
        if endpoint is None:
            return _NOT_FOUND
        try:  # the order of the checks is INF
            self._check_key(path, headers)
            self._check_jwt(path, headers.get("authorization"), body)
            self._check_rate(path)
            self._check_size(path, body)
            return endpoint(path, body)
        except ApiError as error:
            answer = error.answer()
            if error.status == 429 and self.retry_after is not None:
                return replace(answer, headers={**answer.headers, "Retry-After": self.retry_after})
            return answer

    # --- Who may ask, how often, how much

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
            raise ApiError(self.jwt_failure_status, "InvalidJwtPayload", str(error), params) from None
        if not names_same_user(claims, body):
            msg = "JWT user identifiers do not match the request"
            raise ApiError(self.jwt_failure_status, "JwtUserIdentifiersMismatched", msg, params)

    def _check_rate(self, path: str) -> None:
        """No more than the limit in any one second; what is refused doesn't count."""
        limit = None if self.limits is None else self.limits.get(path)
        if limit is None:
            return
        recent, now = self._recent[path], self.clock()
        while recent and recent[0] <= now - 1:
            recent.popleft()
        if len(recent) >= limit:
            self.rate_limited[path] += 1
            msg = f"Exceeded rate limit of {float(limit)} per second for endpoint: {path}, project: 1 "
            raise ApiError(429, "RateLimitExceeded", msg, {})
        recent.append(now)

    def _check_size(self, path: str, body: bytes) -> None:
        # No body of either answer is known; BatchTooLarge is one of the codes in the Swagger file.
        if len(body) <= MAX_BULK_BYTES or path not in _BULK_PATHS:
            return
        if self.too_large == "400":
            raise ApiError(400, "BatchTooLarge", f"Batch too large for endpoint: {path}")
        raise ApiError(413, "BadParams", "Request entity too large")

    # --- Endpoints

    def _users_update(self, path: str, body: bytes) -> Answer:
        self._take_users([parse_record(path, body, USER_SHAPE)], _Outcome(raises=True))
        return _SUCCESS

    def _users_bulk_update(self, path: str, body: bytes) -> Answer:
        users, outcome = parse_records(path, body, "users", USER_SHAPE), _Outcome()
        self._take_users(users, outcome)
        invalid = outcome.lists["invalidEmails"]
        if not users or (self.all_bad_users == "400" and len(invalid) == len(users)):
            raise ApiError(400, "InvalidEmailAddressError", f"Emails invalid: {', '.join(invalid)}")
        return json_answer(
            {
                **outcome.counts(len(users)),
                **outcome.named(*_INVALID),
                **outcome.fields(),
                "noOpEmails": [],
                "noOpUserIds": [],
                "failedUpdates": outcome.named(*_INVALID, *_NOT_FOUND_USERS, *_USER_CONFLICTS, *_FORGOTTEN),
            }
        )

    def _events_track(self, path: str, body: bytes) -> Answer:
        event = parse_record(path, body, EVENT_SHAPE)
        self._take_events([event], _Outcome(raises=True))
        msg = f"Event with id: {event['id']} tracked."
        return json_answer({"msg": msg, "code": "Success", "params": {"id": event["id"]}})

    def _events_track_bulk(self, path: str, body: bytes) -> Answer:
        events, outcome = parse_records(path, body, "events", EVENT_SHAPE), _Outcome()
        self._take_events(events, outcome)
        return json_answer(
            {
                **outcome.counts(len(events)),
                **outcome.named(*_INVALID, "disallowedEventNames"),
                **outcome.fields(),
                "failedUpdates": outcome.named(*_INVALID, *_NOT_FOUND_USERS, *_FORGOTTEN),
            }
        )

    def _users_get_fields(self, path: str, body: bytes) -> Answer:
        return json_answer({"fields": self.user_field_types})

    # --- Records

    def _take_users(self, users: list[Json], outcome: _Outcome) -> None:
        users = outcome.sift(users, self._check_identity)
        self._drop_fields(users, outcome)
        check = FieldCheck(self.strict_numbers)
        for user in users:
            check.look_at("user", self.user_field_types, user.get("dataFields") or {})
        check.raise_errors()
        for fresh in check.fresh.values():
            self.user_field_types.update(fresh)
            outcome.created_fields.update(fresh)
        outcome.sift(users, self._store_user)

    def _take_events(self, events: list[Json], outcome: _Outcome) -> None:
        events = outcome.sift(events, self._check_identity)
        self._drop_fields(events, outcome)
        check = FieldCheck(self.strict_numbers)
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
            raise ApiError(400, "BadParams", "email or userId is required")  # INF; a bulk answer has nothing to name
        if email is not None and not is_email(email):
            raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {email}", None, ("invalidEmails", email))
        if user_id is not None and not is_user_id(user_id):
            raise ApiError(400, "InvalidUserIdError", f"Invalid userId: {user_id}", None, ("invalidUserIds", user_id))
        if self.project_type == "userId" and user_id is None:
            raise _unknown_user(record)  # INF; such projects identify by userId
        if self.forgotten and not self.forgotten.isdisjoint((str(email).lower(), user_id)):
            raise ApiError(409, "ForgottenUserError", "User is forgotten", None, _listed("forgotten", record))

    def _drop_fields(self, records: list[Json], outcome: _Outcome) -> None:
        if not self.dropped_fields:
            return
        for record in records:
            data_fields = record.get("dataFields") or {}
            for name in self.dropped_fields.intersection(data_fields):
                del data_fields[name]
                outcome.filtered_fields[name] = None

    # --- Users

    def _store_user(self, user: Json) -> None:
        key = self._key_to_store(user)
        stored = self.users.setdefault(key, {"email": None, "userId": None, "dataFields": {}})
        if user.get("email") is not None:
            stored["email"] = user["email"].lower()  # "stored in lower case" (Email Validation in Iterable)
        if user.get("userId") is not None:
            stored["userId"] = user["userId"]
            self._key_by_user_id[user["userId"]] = key
        if self.keep_payloads:
            _merge(stored["dataFields"], user.get("dataFields") or {}, user.get("mergeNestedObjects") is True)
        if self.visible_after_s:
            self._visible_at.setdefault(key, self.clock() + self.visible_after_s)
        self.user_updates[key] += 1

    def _key_to_store(self, user: Json) -> str:
        """The key of the user whom this update is for, and who may be new."""
        email, user_id = user.get("email"), user.get("userId")
        if self.project_type == "userId":
            return str(user_id)
        if email is None:
            if self.project_type == "email" and not user.get("preferUserId") and self._find(user) is None:
                raise _unknown_user(user)  # "Iterable returns an error" (Creating and Identifying Users)
            return self._key_by_user_id.get(str(user_id), str(user_id))
        if self.project_type == "hybrid" and user_id is not None:
            self._join_identities(user, email.lower(), user_id)
        return str(email.lower())

    def _join_identities(self, user: Json, email: str, user_id: str) -> None:
        """Makes one user of who was known by userId alone and now has an address; 409 if those are two users' already.

        Status and meaning as in the Swagger file ("Email/userId conflict"), the code as in a list of response codes.
        """
        key, holder = self._key_by_user_id.get(user_id), self.users.get(email)
        if key == user_id and holder is None:
            self.users[email] = self.users.pop(user_id)
            self.user_updates[email] = self.user_updates.pop(user_id)
            if user_id in self._visible_at:
                self._visible_at[email] = self._visible_at.pop(user_id)
        elif key not in (None, email) or (holder is not None and holder["userId"] not in (None, user_id)):
            raise ApiError(409, "ExternalKeyConflict", "Email/userId conflict", None, _listed("conflict", user))

    def _find(self, record: Json) -> str | None:
        """The key of the user whom a record names, None if there is none."""
        email, user_id = record.get("email"), record.get("userId")
        if email is not None and (key := email.lower()) in self.users:
            return str(key)
        key = self._key_by_user_id.get(user_id, user_id) if user_id is not None else None
        return key if key in self.users else None

    # --- Events

    def _store_event(self, event: Json) -> None:
        if self.unknown_users == "not_found":
            self._check_visible(event)
        name, event_id = event["eventName"], event.get("id")
        if name in self.blocked_events:
            # block/iterable-go looks for these words in a 200; the code beside them is INF.
            msg = f"Event {name} is disallowed from tracking."
            raise ApiError(200, "Success", msg, None, ("disallowedEventNames", name))
        if event_id is None:
            event_id = event["id"] = f"generated-{len(self.event_order) + 1}"
        if event_id not in self.events:
            self.event_order.append(event_id)
        # "If an event exists with that id, the event will be updated" (Swagger).
        self.events[event_id] = event if self.keep_payloads else _NOT_KEPT
        self.event_sends[event_id] += 1

    def _check_visible(self, event: Json) -> None:
        key = self._find(event)
        if key is None or (self._visible_at and self._visible_at.get(key, 0) > self.clock()):
            raise _unknown_user(event)

    # --- Control

    def _control(self, method: str, path: str, body: bytes) -> Answer:
        control = self._controls.get((method, path))
        if control is None:
            return _NOT_FOUND
        try:
            return json_answer(control(body))
        except (TypeError, ValueError) as error:
            return json_answer({"error": str(error)}, 400)

    def _add_fault(self, body: bytes) -> Json:
        options = dict(json.loads(body))
        for name in ("body", "raw"):
            if isinstance(options.get(name), str):
                options[name] = options[name].encode()
        self.faults.append(Fault(**options))
        return {"faults": len(self.faults)}

    def _clear_faults(self, body: bytes) -> Json:
        self.faults.clear()
        return {"faults": 0}


class _Outcome:
    """What became of the records of one request, for its bulk answer; in a single call the first failure raises."""

    def __init__(self, raises: bool = False) -> None:
        self._raises = raises
        self.fail_count = 0
        self.lists: dict[str, list[str]] = defaultdict(list)
        self.created_fields: dict[str, Any] = {}  # a dict keeps the order of their coming
        self.filtered_fields: dict[str, Any] = {}

    def sift(self, records: Iterable[Json], take: Callable[[Json], None]) -> list[Json]:
        """The records that `take` took; those it refused are counted and listed."""
        taken = []
        for record in records:
            try:
                take(record)
                taken.append(record)
            except ApiError as error:
                if self._raises:
                    raise
                self._add(error)
        return taken

    def _add(self, error: ApiError) -> None:
        self.fail_count += 1
        if error.listed is not None:
            name, value = error.listed
            self.lists[name].append(value)

    def counts(self, sent: int) -> Json:
        return {"successCount": sent - self.fail_count, "failCount": self.fail_count}

    def named(self, *names: str) -> Json:
        return {name: self.lists[name] for name in names}

    def fields(self) -> Json:
        return {"filteredOutFields": list(self.filtered_fields), "createdFields": list(self.created_fields)}


def _listed(kind: str, record: Json) -> tuple[str, str]:
    """Where a bulk answer names a record: "notFound", {"userId": "7"} -> ("notFoundUserIds", "7")."""
    if record.get("email") is not None:
        return f"{kind}Emails", record["email"]
    return f"{kind}UserIds", record["userId"]


def _unknown_user(record: Json) -> ApiError:
    # The text is recorded for userId, at another endpoint; for an address it is INF.
    listed = _listed("notFound", record)
    if listed[0] == "notFoundEmails":
        return ApiError(400, "UnknownEmailError", f"No user exists with email {listed[1]}", None, listed)
    return ApiError(400, "UnknownUserIdError", f"No user exists with userId {listed[1]}", None, listed)


def _merge(stored: Json, sent: Json, merge_nested: bool) -> None:
    """Missing fields stay, null removes (recorded 2021). Nested objects merge one level deep, if asked to (Swagger)."""
    for name, value in sent.items():
        if value is None:
            stored.pop(name, None)
        elif merge_nested and isinstance(value, dict) and isinstance(stored.get(name), dict):
            stored[name] = {**stored[name], **value}
        else:
            stored[name] = value
