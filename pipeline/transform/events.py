"""Rows -> events, as Iterable takes them. Pure.

    {"email": "ada@example.com", "page": "pricing", "event_time": "2026-01-13 08:45:12"}
    -> {"email": "ada@example.com", "eventName": "page_view", "id": "ue2-1f4e...-5d0c...", "createdAt": 1768293912,
        "dataFields": {"page": "pricing"}}

An id that is made of what an event says is `ue2-`, a hash of the person's address, `-`, and a hash of name, time and
fields. Neither a change of the address nor another order of the fields makes another id of it, as long as the ledger
remembers the first address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.model.failure_policy import IN_THE_FUTURE
from pipeline.transform.identity import id_text, origin_of
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.users import MAX_RECORD_BYTES, OmittedValue, too_large
from pipeline.transform.values import (
    InvalidRecord,
    cell_text,
    decoded,
    json_column,
    quote,
    text,
    unix_microseconds_column,
)

ID_VERSION = "ue2"  # change it and every event without an id of its own is sent again, as another event
MAX_EVENT_ID_BYTES = 512
DAY_S = 86_400


@dataclass(frozen=True)
class Events:
    """The events of some rows, by the column, as far as looking them up in the ledger needs it; `event_payloads` makes
    the rest.

    places: of the rows that have one. contents: all that each says but for its person and for NULLs, in JSON.
    given_ids: those of the query, "" where it gives none. names: in JSON. fields: the members of `dataFields`.
    problems: the places of the rows whose event can't be sent, and why. omitted: values that were left out.
    """

    places: Sequence[int] = ()
    contents: Sequence[str] = ()
    given_ids: Sequence[str] = ()
    names: Sequence[str] = ()
    people: Sequence[str] = ()
    microseconds: Sequence[int] = ()
    fields: Sequence[str] = ()
    problems: Sequence[tuple[int, InvalidRecord]] = ()
    omitted: Sequence[OmittedValue] = ()

    def take(self, indexes: Sequence[int]) -> Events:
        """Those at these indexes, without the problems."""
        return Events(**{name: [getattr(self, name)[index] for index in indexes] for name in _COLUMNS})


_COLUMNS = tuple(each.name for each in fields(Events) if each.name not in ("problems", "omitted"))


def events(columns: Columns, people: Sequence[str], rules: Rules) -> Events:
    """The events of rows, each of which is about the person at the same place.

    Where one of the rows can't be sent, they are divided until it stands alone.
    """
    if rules.time_column is None or not people:
        return Events()
    moments = columns[rules.time_column]
    if None in moments or "" in moments:
        return _events_of_some(columns, people, rules)
    try:
        return _convert_events(columns, people, rules)
    except InvalidRecord as problem:
        if len(people) == 1:
            return Events(problems=[(0, problem)])
    half = len(people) // 2
    places = range(half), range(half, len(people))
    return _joined([(each, _events_at(each, columns, people, rules)) for each in places])


def _events_of_some(columns: Columns, people: Sequence[str], rules: Rules) -> Events:
    """Rows of which some have no event."""
    places = [place for place in range(len(people)) if has_event(columns, place, rules)]
    without = [place for place in range(len(people)) if not has_event(columns, place, rules)]
    problems = [(place, problem) for place in without if (problem := _problem_without_time(columns, place, rules))]
    return _joined(
        [(places, _events_at(places, columns, people, rules)), (range(len(people)), Events(problems=problems))]
    )


def _events_at(places: Sequence[int], columns: Columns, people: Sequence[str], rules: Rules) -> Events:
    return events(selected(columns, places), [people[place] for place in places], rules)


def _joined(parts: Iterable[tuple[Sequence[int], Events]]) -> Events:
    """Events of parts of a block, given with the places that these parts have in it."""
    joined: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    problems: list[tuple[int, InvalidRecord]] = []
    omitted: list[OmittedValue] = []
    for places, found in parts:
        for name in _COLUMNS:
            joined[name] += getattr(found, name) if name != "places" else [places[place] for place in found.places]
        problems += [(places[place], problem) for place, problem in found.problems]
        omitted += [each._replace(place=places[each.place]) for each in found.omitted]
    return Events(**joined, problems=problems, omitted=omitted)


def selected(columns: Columns, places: Sequence[int]) -> Columns:
    return {column: [values[place] for place in places] for column, values in columns.items()}


def has_event(columns: Columns, place: int, rules: Rules) -> bool:
    """Whether the row at this place carries an event, whoever it is about."""
    return rules.time_column is not None and columns[rules.time_column][place] not in (None, "")


def _problem_without_time(columns: Columns, place: int, rules: Rules) -> InvalidRecord | None:
    """A LEFT JOIN leaves all columns of the event empty, but not those that describe the user in it."""
    for column in rules.columns_of_events:
        if columns[column][place] not in (None, ""):
            return InvalidRecord(f"{rules.time_column} is empty, although {column} says that there was an event")
    return None


# Columns -> events ----------------------------------------------------------------------------------------------------


def _convert_events(columns: Columns, people: Sequence[str], rules: Rules) -> Events:
    """Rows that all carry an event -> the parts of their events."""
    count = len(people)
    names = _event_names(columns, count, rules)
    microseconds = _event_times(columns, rules)
    given = [""] * count
    if rules.id_column is not None:
        given = [_given_event_id(value, rules.id_column) for value in columns[rules.id_column]]
    omitted: list[OmittedValue] = []
    values = [
        _event_values(columns[each.column], each.column, given, omitted, number, rules)
        for number, each in enumerate(rules.event_template.fields)
    ]
    fields_of = rules.event_template.fill_all(values, count)
    contents = event_contents(names, microseconds, fields_of)
    if rules.clear_nulls:
        fields_of = rules.event_template.fill_all(values, count, nulls=True)
    found = Events(range(count), contents, given, names, people, microseconds, fields_of, omitted=omitted)
    if max(map(len, contents)) + max(map(len, fields_of)) > MAX_RECORD_BYTES // 8:  # in characters, of 4 bytes at most
        largest = max(event_payloads(found, rules), key=len)
        if len(largest) > MAX_RECORD_BYTES:
            raise too_large(len(largest))
    return found


def _event_values(
    values: Sequence[Any], column: str, given_ids: Sequence[str], omitted: list[OmittedValue], number: int, rules: Rules
) -> Sequence[str | None]:
    """Of one field, in JSON. With BAD_VALUES=omit, what can't be sent is left out of events that have an id of their
    own: an id that is made of the event would change with the corrected value."""
    mapped = rules.event_template.fields[number]
    try:
        return json_column(values, mapped, rules.zone)
    except InvalidRecord:
        if not rules.omits_bad_values or "" in given_ids:
            raise
    found: list[str | None] = []
    for place, value in enumerate(values):
        try:
            found += json_column([value], mapped, rules.zone)
        except InvalidRecord as problem:
            cell = hashlib.blake2b(cell_text(value).encode(errors="backslashreplace"), digest_size=8).hexdigest()
            omitted.append(OmittedValue(place, mapped.name, str(problem), cell))
            found.append(None)
    return found


def event_contents(names: Sequence[str], microseconds: Sequence[int], fields_of: Sequence[str]) -> list[str]:
    """The same for the same event in every run, on every machine: its name, time and fields but for NULLs.

    All of them in JSON; the fields without braces and in the order of their names, so that the order of EVENT_FIELDS
    does not matter.
    """
    return [
        f'["{ID_VERSION}",{name},{moment},{{{each}}}]'
        for name, moment, each in zip(names, microseconds, fields_of, strict=True)
    ]


def given_heads(found: Events) -> list[str]:
    """What a given id may not change: name and time, to the second, as Iterable has them."""
    return [f"{moment // 1_000_000},{name}" for moment, name in zip(found.microseconds, found.names, strict=True)]


def id_prefix(origin: bytes) -> str:
    """What the ids of a person's events begin with."""
    return f"{ID_VERSION}-{origin.hex()}-"


def event_ids(people: Sequence[str], contents: Sequence[str], origins: Mapping[str, bytes]) -> list[str]:
    """The ids that are made of these contents. origins: of people whose events keep an earlier address."""
    sha256 = hashlib.sha256
    prefixes = {who: id_prefix(origins.get(who) or origin_of(who)) for who in set(people)}
    return [
        prefixes[who] + sha256(content.encode()).hexdigest()[:32] for who, content in zip(people, contents, strict=True)
    ]


def event_payloads(found: Events, rules: Rules, origins: Mapping[str, bytes] | None = None) -> list[bytes]:
    """The bodies of events/track, which are also elements of events/trackBulk."""
    opening = '{"userId":' if rules.by_user_id else '{"email":'
    made = event_ids(found.people, found.contents, origins or {})
    ids = [quote(given) if given else f'"{other}"' for given, other in zip(found.given_ids, made, strict=True)]
    return [
        f'{opening}{person},"eventName":{name},"id":{each_id},"createdAt":{moment // 1_000_000},'
        f'"dataFields":{{{each}}}}}'.encode()
        for person, name, each_id, moment, each in zip(
            map(quote, found.people), found.names, ids, found.microseconds, found.fields, strict=True
        )
    ]


def _event_times(columns: Columns, rules: Rules) -> list[int]:
    """Microseconds since 1970, within the bounds of what Iterable should be sent."""
    column = str(rules.time_column)
    found = unix_microseconds_column(columns[column], rules.zone, column)
    if min(found) < 0 or max(found) // 1_000_000 > rules.latest_s:
        for each in found:
            _check_time(each // 1_000_000, column, rules)
    return found


def _check_time(created_at: int, column: str, rules: Rules) -> None:
    if created_at < 0:
        raise InvalidRecord(f"{column} is before 1970")
    if created_at > rules.latest_s:
        hint = "; perhaps it is in milliseconds" if created_at > 1000 * DAY_S * 365 else ""
        raise InvalidRecord(f"{column} {IN_THE_FUTURE}{hint}")


def _event_names(columns: Columns, count: int, rules: Rules) -> list[str]:
    """The names in JSON."""
    column = rules.name_column
    if column is None:
        return [quote(rules.event_name)] * count
    return [quote(_event_name(value, column)) for value in columns[column]]


def _event_name(name: Any, column: str) -> str:
    if isinstance(name, (bytes, bytearray, memoryview)):
        name = decoded(name, column)
    if not isinstance(name, str) or not name.strip():
        raise InvalidRecord(f"{column} is empty or not text")
    return text(name, column)


def _given_event_id(value: Any, column: str) -> str:
    """The query's own event id, at most 512 bytes as Iterable's connectors document it; empty where there is none."""
    event_id = text(id_text(value, column), column)
    if len(event_id.encode("utf-8")) > MAX_EVENT_ID_BYTES:
        raise InvalidRecord(f"{column} is longer than {MAX_EVENT_ID_BYTES} bytes")
    return event_id if event_id.strip() else ""
