"""One Iterable project: its answer to each request, and what can be changed by hand. No sockets, no waiting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.sandbox import events, people
from pipeline.sandbox.effects import subscriptions_in
from pipeline.sandbox.endpoints import endpoint_of
from pipeline.sandbox.exchange import Answer, ApiError, Fault, Json, Received
from pipeline.sandbox.gate import check_request
from pipeline.sandbox.outcome import Outcome
from pipeline.sandbox.reading import READERS
from pipeline.sandbox.store import Endpoint, Store
from pipeline.sandbox.writing import WRITERS, admit_users

# An HTML page with these words is what Iterable's own client expects (its error-handling tests).
NOT_FOUND = Answer(
    404,
    b"<!DOCTYPE html><html><head><title>Action not found</title></head><body><h1>Action not found</h1></body></html>",
    {"Content-Type": "text/html; charset=utf-8"},
)
_ENDPOINTS: dict[tuple[str, str], Endpoint] = {
    **{("POST", path): endpoint for path, endpoint in WRITERS.items()},
    **{("GET", path): endpoint for path, endpoint in READERS.items()},
}


class Project(Store):
    """A store that answers. Its settings and what it holds are those of Store."""

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to one request. `target`: the path with its query; `headers` with names in lower case."""
        arrived = self.clock()
        if self.first_request_at is None:
            self.first_request_at = arrived
        path, _, query = target.partition("?")
        endpoint = endpoint_of(path)
        fault = self._next_fault(endpoint, body or target.encode()) if self.faults else None
        if fault is not None and fault.replaces_answer and not fault.store:
            answer = fault.answer()
        else:
            answer = self._answer(method, endpoint, target, headers, body)
            if fault is not None:
                answer = fault.answer() if fault.replaces_answer else replace(answer, fault=fault)
        self.request_counts[endpoint] += 1
        self.request_bytes[endpoint] += len(body)
        if self.record_requests:
            self.requests.append(Received(arrived, path, headers, body, answer.status, query))
        return answer

    def _next_fault(self, endpoint: str, content: bytes) -> Fault | None:
        return next((fault for fault in self.faults if fault.takes_next(endpoint, content)), None)

    def _answer(self, method: str, endpoint: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer_it = _ENDPOINTS.get((method, endpoint))
        if answer_it is None:
            return NOT_FOUND
        try:
            check_request(self, endpoint, headers, body)
            return answer_it(self, target, body)
        except ApiError as error:
            answer = error.answer()
            if error.status == 429 and self.retry_after is not None:
                return replace(answer, headers={**answer.headers, "Retry-After": self.retry_after})
            return answer

    def state(self) -> Json:
        """Counts of what it received and holds, and the types of all fields, as in GET /sandbox/state."""
        return {
            "users": len(self.users),
            "events": len(self.events),
            "event_sends": sum(self.event_sends.values()),
            "most_sends_of_one_event": max(self.event_sends.values(), default=0),
            "requests": dict(self.request_counts),
            "request_bytes": dict(self.request_bytes),
            "rate_limited": dict(self.rate_limited),
            "first_request_at": self.first_request_at,
            "last_answer_at": self.last_answer_at,
            "fields": self.user_field_types,
            "event_fields": self.event_field_types,
        }

    # --- Changed by hand: no request, no update, no effect is counted

    def edit_user(self, user: Json) -> str:
        """Applies {"email": ..., "dataFields": {...}} as if someone had edited the user in Iterable's web interface.

        Creates an unknown user. Returns the key in `users`. Raises ApiError.
        """
        admit_users(self, [user], Outcome(raises=True), people.put_user)
        return str(self.find(email=user.get("email"), user_id=user.get("userId")))

    def delete_user(self, *, email: str | None = None, user_id: str | None = None) -> None:
        """Later events do not find this user; those accepted so far stay in `events`, and are nobody's."""
        people.delete_user(self, email=email, user_id=user_id)

    def forget_user(self, *, email: str | None = None, user_id: str | None = None) -> None:
        """Deletes a user, known or not, and refuses all later writes under the address and the id."""
        people.forget_user(self, email=email, user_id=user_id)

    def unforget_user(self, *, email: str | None = None, user_id: str | None = None) -> None:
        """Accepts writes under this address and this id again."""
        self.forgotten -= {str(email).lower(), str(user_id)}

    def subscriptions(self, *, email: str | None = None, user_id: str | None = None) -> dict[str, list[Any]]:
        """What the profile says of its subscriptions; all lists are empty for who is subscribed to everything.

        Change them by `edit_user`, as the person would: {"dataFields": {"unsubscribedChannelIds": [7]}}. Raises
        LookupError for an unknown user.
        """
        key = self.find(email=email, user_id=user_id)
        if key is None:
            raise LookupError("no such user")
        return subscriptions_in(self.users[key]["dataFields"])

    def edit_event(self, event_id: str, changes: Json) -> None:
        """Applies {"createdAt": ..., "dataFields": {...}} to an event; None removes. LookupError for an unknown one."""
        events.edit_event(self, event_id, changes)

    def delete_event(self, event_id: str) -> None:
        """Raises LookupError for an unknown one."""
        events.delete_event(self, event_id)

    def double_event(self, event_id: str) -> str:
        """The id of the copy. Raises LookupError for an unknown one."""
        return events.double_event(self, event_id)

    def add_journey(self, name: str, trigger_event_names: list[str] | None = None, **more: Any) -> Json:
        """An enabled journey that is not archived, unless `more` says otherwise, in the words of the API.

        trigger_event_names: None: the answer does not have them. more: `lifetimeLimit=1`, `simultaneousLimit=1`, ...
        """
        number = 1 + max((each["id"] for each in self.journeys), default=0)
        journey = {"id": number, "name": name, "enabled": True, "isArchived": False, "journeyType": "Published", **more}
        if trigger_event_names is not None:
            journey["triggerEventNames"] = trigger_event_names
        self.journeys.append(journey)
        return journey
