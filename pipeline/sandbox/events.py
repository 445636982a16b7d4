"""The events of a project: how one is added or updated, and changed by hand. A store in, the store changed."""

from __future__ import annotations

import time
from itertools import count

from pipeline.sandbox.exchange import ApiError, Json
from pipeline.sandbox.outcome import unknown_user
from pipeline.sandbox.store import Store

_NOT_KEPT: Json = {}  # stored in place of every event by a project that only counts


def store_event(store: Store, event: Json) -> None:
    """Takes an event that was sent, and counts what it did."""
    key = None
    if store.unknown_users == "not_found" or store.keep_payloads:
        key = store.find(email=event.get("email"), user_id=event.get("userId"))
    if store.unknown_users == "not_found" and not _is_visible(store, key):
        raise unknown_user(event)
    name, event_id = event["eventName"], event.get("id")
    if name in store.blocked_events:
        # block/iterable-go looks for these words in a 200; the code is INF.
        msg = f"Event {name} is disallowed from tracking."
        raise ApiError(200, "Success", msg, None, ("disallowedEventNames", name))
    if event_id is None:
        event_id = event["id"] = f"generated-{len(store.event_order) + 1}"
    if event_id not in store.events:
        store.event_order.append(event_id)
    # "If an event exists with that id, the event will be updated" (Swagger).
    store.events[event_id] = event if store.keep_payloads else _NOT_KEPT
    store.event_sends[event_id] += 1
    if store.keep_payloads:
        if event_id not in store.event_accepted_seq:
            store.event_accepted_seq[event_id] = next(store.sequence)
        person = key or person_of(event)
        _give_to(store, person, event_id)
        store.effects.count_event(person, event_id)


def _is_visible(store: Store, key: str | None) -> bool:
    return key is not None and (not store.visible_at or store.visible_at.get(key, 0) <= store.clock())


def person_of(record: Json) -> str:
    """The key under which an unknown user would stand."""
    email = record.get("email")
    return str(email.lower() if email is not None else record.get("userId"))


def _give_to(store: Store, person: str, event_id: str) -> None:
    """An id is unique in the project (Custom Event Properties), so an event with one that another user has is theirs
    no longer (INF)."""
    owner = store.person_of_event.get(event_id)
    if owner != person:
        if owner is not None:
            del store.event_ids_of[owner][event_id]
        store.person_of_event[event_id] = person
        store.event_ids_of[person][event_id] = time.time()


# --- By hand


def delete_event(store: Store, event_id: str) -> None:
    """Raises LookupError where there is no such event."""
    _known(store, event_id)
    del store.events[event_id]
    store.event_order.remove(event_id)
    store.event_accepted_seq.pop(event_id, None)
    person = store.person_of_event.pop(event_id, None)
    if person is not None:
        del store.event_ids_of[person][event_id]


def double_event(store: Store, event_id: str) -> str:
    """The id of the copy, such as "pv-1-2". Raises LookupError where there is no such event."""
    event = _known(store, event_id)
    copied = next(each for each in (f"{event_id}-{number}" for number in count(2)) if each not in store.events)
    store.events[copied] = {**event, "id": copied}
    store.event_order.append(copied)
    if event_id in store.person_of_event:
        _give_to(store, store.person_of_event[event_id], copied)
    return copied


def edit_event(store: Store, event_id: str, changes: Json) -> None:
    """changes: such as {"createdAt": 1709285400, "dataFields": {"page": None}}: of the fields of an event, those that
    are not named stay, and None removes. Raises LookupError where there is no such event.
    """
    event = _known(store, event_id)
    fields = {**(event.get("dataFields") or {}), **(changes.get("dataFields") or {})}
    kept = {name: value for name, value in fields.items() if value is not None}
    store.events[event_id] = {**event, **changes, "dataFields": kept}


def _known(store: Store, event_id: str) -> Json:
    event = store.events.get(event_id)
    if event is None:
        raise LookupError("no such event")
    return event
