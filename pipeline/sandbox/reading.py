"""The endpoints that read: one user, one user's events, the fields of users, who is forgotten, the journeys.

A store and a request in, an answer out. For server-side keys only. Known from the Swagger file of August 2026, and from
recordings: `{}` for an unknown address (2021), the plain text for an unknown userId (2017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime, timezone
from urllib.parse import parse_qs

from pipeline.sandbox import endpoints
from pipeline.sandbox.events import person_of
from pipeline.sandbox.exchange import Answer, ApiError, Json, json_answer
from pipeline.sandbox.fields import date_text, read_back
from pipeline.sandbox.rules import is_email
from pipeline.sandbox.store import Endpoint, Store

MAX_EVENTS = 200  # "Max is 200", and 30 by default (Swagger)
MAX_JOURNEYS = 50  # "maximum of 50", and 10 by default (Swagger)

_NO_SUCH_ID = Answer(400, b"No user with that id exists!", {"Content-Type": "text/plain; charset=utf-8"})


# --- Users


def _get_fields(store: Store, target: str, body: bytes) -> Answer:
    return json_answer({"fields": store.user_field_types})


def _get_by_email(store: Store, target: str, body: bytes) -> Answer:
    email = _valid_email(_parameter(target, "email"))
    key = store.find(email=email)
    return json_answer({} if key is None else {"user": _profile(store, key)})


def _by_user_id(store: Store, target: str, body: bytes) -> Answer:
    in_path = endpoints.identity_in(target, endpoints.BY_USER_ID)
    key = store.find(user_id=in_path or _parameter(target, "userId"))
    if key is not None:
        return json_answer({"user": _profile(store, key)})
    return _NO_SUCH_ID if store.unknown_user_id == "400" else json_answer({})


def _profile(store: Store, key: str) -> Json:
    """A user with what Iterable adds itself; a field of the same name that was sent stays (`signupDate`, recorded)."""
    user = store.users[key]
    added: Json = {name: user[name] for name in ("email", "userId") if user[name] is not None}
    if key in store.created_at:  # not in a project that only counts
        added["signupDate"] = _date(store.created_at[key])
        added["profileUpdatedAt"] = _date(store.updated_at[key])
    fields = {**added, **read_back(user["dataFields"], store.user_field_types)}
    if user["email"] is not None:
        fields["email"] = user["email"]  # also where a field of this name gave the user another address
    return {**user, "dataFields": fields}


def _forgotten(store: Store, target: str, body: bytes) -> Answer:
    _refuse_in(store, "userId")
    return json_answer({"hashedEmails": _hashes(each for each in store.forgotten if not _is_user_id(store, each))})


def _forgotten_user_ids(store: Store, target: str, body: bytes) -> Answer:
    _refuse_in(store, "email")
    return json_answer({"hashedUserIds": _hashes(each for each in store.forgotten if _is_user_id(store, each))})


def _refuse_in(store: Store, project_type: str) -> None:
    if store.project_type == project_type:
        # That there is an error is documented; its status and text are INF.
        raise ApiError(400, "BadParams", f"Not available in projects of type {project_type}")


def _is_user_id(store: Store, identity: str) -> bool:
    if store.project_type == "hybrid":
        return not is_email(identity)
    return store.project_type == "userId"


def _hashes(identities: Iterable[str]) -> list[str]:
    return sorted(hashlib.sha256(each.strip().lower().encode()).hexdigest() for each in identities)


# --- Events


def _events_by_email(store: Store, target: str, body: bytes) -> Answer:
    email = _valid_email(endpoints.identity_in(target, "/api/events"))
    return _events(store, target, store.find(email=email) or person_of({"email": email}))


def _events_by_user_id(store: Store, target: str, body: bytes) -> Answer:
    user_id = endpoints.identity_in(target, endpoints.EVENTS_BY_USER_ID)
    return _events(store, target, store.find(user_id=user_id) or user_id)


def _events(store: Store, target: str, person: str) -> Answer:
    """The latest events of a user: the newest first (INF)."""
    limit = _number(target, "limit", default=30, most=MAX_EVENTS)
    if person not in store.users and person not in store.event_ids_of and store.events_of_unknown == "400":
        return _NO_SUCH_ID  # what is recorded for profiles; for events it is INF, and so is the empty list
    arrived = store.event_ids_of.get(person, {})
    newest = sorted(arrived, key=lambda each: store.events[each].get("createdAt") or arrived[each])[::-1]
    others = store.other_events.get(person, [])
    return json_answer({"events": [*others, *(_event(store, person, each) for each in newest)][:limit]})


def _event(store: Store, person: str, event_id: str) -> Json:
    """An event as it is read. Whether `_id` is the id that was sent is not documented, so there is a switch."""
    event, user = store.events[event_id], store.users.get(person, {})
    identity = {name: user.get(name, event.get(name)) for name in ("email", "userId")}
    types = store.event_field_types.get(event["eventName"], {})
    return {
        "_id": hashlib.md5(event_id.encode()).hexdigest() if store.own_event_ids else event_id,  # noqa: S324 - no secret
        "eventName": event["eventName"],
        "eventType": "customEvent",
        "createdAt": _event_time(store, event.get("createdAt") or store.event_ids_of[person][event_id]),
        "dataFields": read_back(event.get("dataFields") or {}, types),
        **{name: value for name, value in identity.items() if value is not None},
    }


def _event_time(store: Store, unix_time: float) -> str | int:
    """One of the forms that readers of Iterable's events have met (Iterable's own client; estuary/connectors)."""
    if store.event_times == "seconds":
        return int(unix_time)
    if store.event_times == "milliseconds":
        return int(unix_time * 1000)
    if store.event_times == "iso":
        return datetime.fromtimestamp(unix_time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f.000Z")
    return _date(unix_time)


# --- Journeys


def _journeys(store: Store, target: str, body: bytes) -> Answer:
    """One page by id: "all non-archived journeys", or with state=Archived "only archived journeys" (Swagger)."""
    page = _number(target, "page", default=1)
    size = _number(target, "pageSize", default=10, most=MAX_JOURNEYS)
    is_archived = parse_qs(target.partition("?")[2]).get("state") == ["Archived"]
    found = sorted((each for each in store.journeys if each["isArchived"] == is_archived), key=lambda each: each["id"])
    answer = {"journeys": found[(page - 1) * size : page * size], "totalJourneysCount": len(found)}
    if store.next_page_url and page * size < len(found):
        answer["nextPageUrl"] = f"{endpoints.JOURNEYS}?page={page + 1}&pageSize={size}"  # its form is INF
    return json_answer(answer)


# --- What they share


def _parameter(target: str, name: str) -> str:
    values = parse_qs(target.partition("?")[2], keep_blank_values=True).get(name)
    if not values:
        raise ApiError(400, "BadParams", f"Missing parameter: {name}")  # INF
    return values[0]


def _number(target: str, name: str, *, default: int, most: int | None = None) -> int:
    text = parse_qs(target.partition("?")[2], keep_blank_values=True).get(name, [str(default)])[0]
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1 or (most is not None and number > most):
        raise ApiError(
            400, "BadParams", f"Invalid parameter: {name}"
        )  # "Invalid parameters" (Swagger); the code is INF
    return number


def _valid_email(email: str) -> str:
    if not is_email(email):
        raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {email}")  # INF
    return email


def _date(unix_time: float) -> str:
    return date_text(datetime.fromtimestamp(unix_time, timezone.utc))


READERS: dict[str, Endpoint] = {
    endpoints.GET_FIELDS: _get_fields,
    endpoints.GET_BY_EMAIL: _get_by_email,
    endpoints.BY_USER_ID: _by_user_id,
    endpoints.FORGOTTEN: _forgotten,
    endpoints.FORGOTTEN_USER_IDS: _forgotten_user_ids,
    endpoints.EVENTS_BY_EMAIL: _events_by_email,
    endpoints.EVENTS_BY_USER_ID: _events_by_user_id,
    endpoints.JOURNEYS: _journeys,
}
