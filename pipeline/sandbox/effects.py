"""What sends do to people beyond what is stored: Iterable acts on each arrival, also where it changes nothing.

- "When an event is added to or updated on their user profile", a journey on that event may start (Journey Setup: The
  Start Tile). So every accepted write of an event counts, also under an id that is known.
- "Any call to users/update or users/bulkUpdate that contains the specified field" may start a journey, "regardless of
  whether the value of the field has changed or stayed the same" (the same article).
- "New user created" is an entry source, too, and a new profile starts subscribed (INF: subscriptions are a part of the
  profile).

Changes made by hand count for nothing here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.sandbox.exchange import Json

# Fields that Iterable keeps itself and lets updates overwrite, "Iterable's own fields" (Swagger; article 217744303): to
# write them is to subscribe and unsubscribe people. A profile without them is subscribed to all.
SUBSCRIPTION_FIELDS = (
    "emailListIds",
    "subscribedMessageTypeIds",
    "unsubscribedChannelIds",
    "unsubscribedMessageTypeIds",
)


class Effects:
    """Counts, by person: the keys of `Project.users`, and for events of unknown users their address or id.

    Who gets another address takes the counts along.
    """

    def __init__(self) -> None:
        self.created: list[str] = []  # profiles, in the order in which updates made them
        self.moved: list[tuple[str, str]] = []  # from one address to another, by updateEmail or a field `email`
        self.event_writes: dict[str, Counter[str]] = defaultdict(Counter)  # by person and event id: added or updated
        self.field_writes: dict[str, Counter[str]] = defaultdict(Counter)  # by person and field; dotted inside objects

    def count_event(self, person: str, event_id: str) -> None:
        writes = self.event_writes[person]
        writes[event_id] = writes.get(event_id, 0) + 1

    def count_update(self, person: str, data_fields: Json, is_new: bool) -> None:
        """data_fields: of an accepted update, whatever their values."""
        if is_new:
            self.created.append(person)
        _count_fields(self.field_writes[person], data_fields)

    def rename(self, old: str, new: str) -> None:
        for by_person in (self.event_writes, self.field_writes):
            if old in by_person:
                by_person[new].update(by_person.pop(old))

    def clear(self) -> None:
        """Start to count anew, such as for the next run."""
        for each in (self.created, self.moved, self.event_writes, self.field_writes):
            each.clear()

    def as_json(self, users: Mapping[str, Json], person: str | None = None) -> Json:
        """As in GET /sandbox/effects. person: this one only. users: `Project.users`."""
        people = sorted({*self.event_writes, *self.field_writes, *users}) if person is None else [person]
        return {
            "created": self.created,
            "moved": [{"from": old, "to": new} for old, new in self.moved],
            "people": {each: self._of_person(each, users) for each in people},
        }

    def _of_person(self, person: str, users: Mapping[str, Json]) -> Json:
        return {
            "event_writes": dict(self.event_writes.get(person, {})),
            "field_writes": dict(self.field_writes.get(person, {})),
            "subscriptions": subscriptions_in(users[person]["dataFields"]) if person in users else None,
        }


def subscriptions_in(data_fields: Json) -> dict[str, list[Any]]:
    """What a profile's fields say of its subscriptions. All lists empty: as a new profile, subscribed to everything."""
    return {name: data_fields.get(name) or [] for name in SUBSCRIPTION_FIELDS}


def _count_fields(counts: Counter[str], data_fields: Json, inside: str = "") -> None:
    """{"plan": {"tier": "pro"}} counts for "plan" and for "plan.tier"."""
    for name, value in data_fields.items():
        name = inside + name if inside else name
        counts[name] = counts.get(name, 0) + 1  # half the time of +=, which asks __missing__
        if type(value) is dict:
            _count_fields(counts, value, f"{name}.")
