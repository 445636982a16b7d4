"""One project's settings, and all that it holds. What changes it stands in people.py and events.py."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from pipeline.sandbox.effects import Effects
from pipeline.sandbox.endpoints import DOCUMENTED_LIMITS
from pipeline.sandbox.exchange import Answer, Fault, Json, Received

SANDBOX_KEY = "sandbox-api-key"
SANDBOX_JWT_SECRET = "sandbox-jwt-secret-of-at-least-32-bytes"  # noqa: S105 - opens nothing but this stand-in


@dataclass(eq=False, repr=False)
class Store:
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
    unknown_user_id: str = "400"  # or "200", with {}: how users/byUserId answers for an unknown user
    events_of_unknown: str = "empty"  # or "400", with the same words: how events are read of unknown users
    event_times: str = "text"  # or "iso", "seconds", "milliseconds": the form of `createdAt` in events that are read
    own_event_ids: bool = False  # True: `_id` of an event that is read is Iterable's own, not the id that was sent
    email_exists: str = "400"  # or "409": how updateEmail refuses a new address that is taken or forgotten
    next_page_url: bool = True  # whether a page of journeys names the next one
    unknown_users: str = "not_found"  # or "accept": how to answer events of users that were never updated
    visible_after_s: float = 0.0  # how long events do not find a new user, or one with a new address
    record_requests: bool = True
    keep_payloads: bool = True  # False: only keys and counts, for millions of events
    clock: Callable[[], float] = time.monotonic

    forgotten: set[str] = field(default_factory=set)  # e-mail addresses in lower case, userIds
    blocked_events: set[str] = field(default_factory=set)  # event names
    dropped_fields: set[str] = field(default_factory=set)
    user_field_types: dict[str, str] = field(default_factory=dict)
    event_field_types: dict[str, dict[str, str]] = field(default_factory=dict)  # by event name
    journeys: list[Json] = field(default_factory=list)  # as they are read, see Project.add_journey
    other_events: dict[str, list[Json]] = field(default_factory=dict)  # by the keys of `users`; read as they are

    users: dict[str, Json] = field(default_factory=dict, init=False)  # by e-mail address in lower case, or userId
    events: dict[str, Json] = field(default_factory=dict, init=False)  # by id
    event_order: list[str] = field(default_factory=list, init=False)  # ids, in the order of first acceptance
    event_sends: Counter[str] = field(default_factory=Counter, init=False)  # how often each event was accepted
    user_updates: Counter[str] = field(default_factory=Counter, init=False)  # how often each user was updated
    effects: Effects = field(default_factory=Effects, init=False)  # what these did; nothing in one that only counts
    requests: list[Received] = field(default_factory=list, init=False)
    request_counts: Counter[str] = field(default_factory=Counter, init=False)  # by path
    request_bytes: Counter[str] = field(default_factory=Counter, init=False)  # of their bodies, by path
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

    # Indexes, kept by people.py, events.py and gate.py.
    key_by_user_id: dict[str, str] = field(default_factory=dict, init=False)
    visible_at: dict[str, float] = field(default_factory=dict, init=False)  # by `clock`, by the keys of `users`
    # by person: id -> Unix seconds of its arrival
    event_ids_of: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict), init=False)
    person_of_event: dict[str, str] = field(default_factory=dict, init=False)
    recent_requests: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(deque), init=False)
    sequence: Iterator[int] = field(default_factory=count, init=False)

    def __post_init__(self) -> None:
        if self.jwt_secret is not None and self.key_type == "ServerSide":
            self.key_type = "Mobile"

    def find(self, *, email: str | None = None, user_id: str | None = None) -> str | None:
        """The key in `users` of the user with this address or id, None if there is none."""
        if email is not None and self.project_type != "userId" and (key := email.lower()) in self.users:
            return key
        by_id = self.key_by_user_id.get(user_id) if user_id is not None else None
        if by_id in self.users:
            return by_id
        if email is None or user_id is not None or self.project_type != "userId":
            return None
        # Addresses are not unique there. Which of several users Iterable picks is not known.
        return next((key for key, user in self.users.items() if user["email"] == email.lower()), None)


# The project, the request's path with its query, and its body -> the answer, or an ApiError.
Endpoint = Callable[[Store, str, bytes], Answer]
