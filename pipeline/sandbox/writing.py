"""The endpoints that write: users and their addresses, events. A store and a request in, an answer out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeline.sandbox import endpoints
from pipeline.sandbox.events import store_event
from pipeline.sandbox.exchange import Answer, ApiError, Json, json_answer
from pipeline.sandbox.fields import FieldCheck, drop_fields
from pipeline.sandbox.outcome import Outcome
from pipeline.sandbox.people import check_identity, move_user, store_user
from pipeline.sandbox.rules import EMAIL_SHAPE, EVENT_SHAPE, USER_SHAPE, parse_record, parse_records
from pipeline.sandbox.store import Endpoint, Store

_SUCCESS = json_answer({"msg": "", "code": "Success", "params": None})


# --- Endpoints


def _users_update(store: Store, path: str, body: bytes) -> Answer:
    admit_users(store, [parse_record(path, body, USER_SHAPE)], Outcome(raises=True), store_user)
    return _SUCCESS


def _users_bulk_update(store: Store, path: str, body: bytes) -> Answer:
    users, outcome = parse_records(path, body, "users", USER_SHAPE), Outcome()
    admit_users(store, users, outcome, store_user)
    if not users:
        raise ApiError(400, "InvalidEmailAddressError", "Emails invalid: ")  # recorded in 2017
    return json_answer(outcome.of_users(len(users)))


def _users_update_email(store: Store, path: str, body: bytes) -> Answer:
    move_user(store, parse_record(path, body, EMAIL_SHAPE))
    return _SUCCESS  # "{msg, code, params}" (Swagger)


def _events_track(store: Store, path: str, body: bytes) -> Answer:
    event = parse_record(path, body, EVENT_SHAPE)
    _admit_events(store, [event], Outcome(raises=True))
    msg = f"Event with id: {event['id']} tracked."
    return json_answer({"msg": msg, "code": "Success", "params": {"id": event["id"]}})


def _events_track_bulk(store: Store, path: str, body: bytes) -> Answer:
    events, outcome = parse_records(path, body, "events", EVENT_SHAPE), Outcome()
    _admit_events(store, events, outcome)
    return json_answer(outcome.of_events(len(events)))


WRITERS: dict[str, Endpoint] = {
    endpoints.UPDATE: _users_update,
    endpoints.BULK_UPDATE: _users_bulk_update,
    endpoints.UPDATE_EMAIL: _users_update_email,
    endpoints.TRACK: _events_track,
    endpoints.TRACK_BULK: _events_track_bulk,
}


# --- Records


def admit_users(store: Store, users: list[Json], outcome: Outcome, take: Callable[[Store, Json], object]) -> None:
    """Checks all and takes what may be taken, one by one."""
    users = outcome.sift(users, partial(check_identity, store))
    _drop_fields(store, users, outcome)
    check = FieldCheck()
    for user in users:
        check.look_at("user", store.user_field_types, user.get("dataFields") or {})
    check.raise_errors()
    for fresh in check.fresh.values():
        store.user_field_types.update(fresh)
        outcome.created_fields.update(fresh)
    outcome.sift(users, partial(take, store))


def _admit_events(store: Store, events: list[Json], outcome: Outcome) -> None:
    events = outcome.sift(events, partial(check_identity, store))
    _drop_fields(store, events, outcome)
    check = FieldCheck()
    for event in events:
        name = event["eventName"]
        check.look_at(name, store.event_field_types.get(name, {}), event.get("dataFields") or {})
    check.raise_errors()
    for name, fresh in check.fresh.items():
        store.event_field_types.setdefault(name, {}).update(fresh)
        outcome.created_fields.update(fresh)
    outcome.sift(events, partial(store_event, store))


def _drop_fields(store: Store, records: list[Json], outcome: Outcome) -> None:
    if not store.dropped_fields:
        return
    for record in records:
        dropped = drop_fields(record.get("dataFields") or {}, store.dropped_fields)
        outcome.filtered_fields.update(dict.fromkeys(dropped))
