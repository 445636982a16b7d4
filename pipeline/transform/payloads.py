"""Rows -> user updates and events, as Iterable takes them. Pure: no network, no clock, no files.

`Rules` says how. Rows come by the column: `Columns` holds, for each column's name, the values of some rows; they are
converted in a third of the time that rows take one by one. What can't be sent is an InvalidRecord with the reason.

    {"email": "ada@example.com", "plan_type": "pro", "page": "pricing", "event_time": "2026-01-13 08:45:12"}
    -> {"email": "ada@example.com", "dataFields": {"plan_type": "pro"}}
    -> {"email": "ada@example.com", "eventName": "page_view", "id": "ue1-5d0c...", "createdAt": 1768293912,
        "dataFields": {"page": "pricing"}}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Union
from uuid import UUID

from pipeline.config import FieldMap
from pipeline.model.failure_policy import IN_THE_FUTURE
from pipeline.model.records import Unreadable
from pipeline.transform.values import (
    InvalidRecord,
    cell_text,
    decoded,
    is_within,
    json_column,
    quote,
    text,
    unix_microseconds_column,
)

ID_VERSION = "ue1"  # change it and every event without an id of its own is sent again, as another event
MAX_EVENT_ID_BYTES = 512
MAX_USER_ID_CHARS = 52
MAX_RECORD_BYTES = 3_499_000  # so that a request of 3.5 MB holds at least one; Iterable allows 4 MB in bulk
MAX_EMAIL_LOCAL_CHARS = 64
MAX_EMAIL_DOMAIN_CHARS = 253
DAY_S = 86_400
REMEMBERED_DOMAINS = 10_000

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Rules:
    """How rows become payloads.

    zone: of times without an offset. latest_s: events after this (Unix seconds) are refused. id_column, name_column,
    time_column: None where the query has no such column. merge_nested: objects in a profile are merged, not replaced.
    swept: the columns that `*` stands for. not_sent: those that no setting names.
    """

    by_user_id: bool
    identity_column: str
    user_fields: tuple[FieldMap, ...]
    event_fields: tuple[FieldMap, ...]
    event_name: str
    zone: tzinfo
    clear_nulls: bool
    latest_s: float
    time_column: str | None = "event_time"
    name_column: str | None = None
    id_column: str | None = None
    merge_nested: bool = False
    swept: frozenset[str] = frozenset()
    not_sent: tuple[str, ...] = ()

    @cached_property
    def user_template(self) -> FieldTemplate:
        return FieldTemplate(self.user_fields)

    @cached_property
    def event_template(self) -> FieldTemplate:
        return FieldTemplate(self.event_fields)

    @cached_property
    def columns_of_events(self) -> tuple[str, ...]:
        """The columns that say something about an event alone, and nothing about its user."""
        others = {self.identity_column, *(field.column for field in self.user_fields), *self.swept}
        columns = [field.column for field in self.event_fields if field.column not in others]
        return (*columns, self.id_column) if self.id_column is not None else tuple(columns)


# The object `dataFields` ----------------------------------------------------------------------------------------------

Node = Union[int, "list[tuple[str, Node]]"]  # the place of a value, or an object's members: (name and colon, node)


class FieldTemplate:
    """Where each field's value stands. In the order of their names, so that neither the order of a setting nor that of
    the query's columns changes what is sent."""

    def __init__(self, fields: Sequence[FieldMap]) -> None:
        self.fields = tuple(sorted(fields, key=attrgetter("path")))
        self._members = _members([field.path for field in self.fields], range(len(self.fields)))
        self._template = _template(self._members)

    def fill_all(
        self, by_field: Sequence[Sequence[str]], count: int, *, nulls: bool = False, nulls_in_objects: bool = False
    ) -> list[str]:
        """`fill` for `count` objects, whose values are given by the field."""
        if not by_field:
            return [""] * count
        values = zip(*by_field, strict=True)
        if any("" in each for each in by_field):
            return [self.fill(each, nulls=nulls, nulls_in_objects=nulls_in_objects) for each in values]
        return list(map(self._template.__mod__, values))

    def fill(self, values: Sequence[str], *, nulls: bool = False, nulls_in_objects: bool = False) -> str:
        """Values in JSON, in the order of `fields`, "" for NULL -> what stands within the braces of `dataFields`.

        nulls: whether a NULL, or an object of nothing but NULLs, is null or left out. nulls_in_objects: the same for
        what is in an object of `dataFields`; what lies deeper is left out in any case.
        """
        if "" not in values:
            return self._template % tuple(values)
        return _fill(self._members, values, nulls, nulls_in_objects)


def _members(paths: Sequence[tuple[str, ...]], places: Iterable[int], depth: int = 0) -> list[tuple[str, Node]]:
    members: list[tuple[str, Node]] = []
    for name, group in groupby(places, key=lambda place: paths[place][depth]):
        inside = list(group)
        is_value = len(paths[inside[0]]) == depth + 1
        members.append((f"{quote(name)}:", inside[0] if is_value else _members(paths, inside, depth + 1)))
    return members


def _template(members: Iterable[tuple[str, Node]]) -> str:
    """`"page":%s,"plan":{"since":%s,"tier":%s}`: an object without NULLs is filled in by one operation."""
    parts = []
    for opening, node in members:
        inside = "%s" if isinstance(node, int) else f"{{{_template(node)}}}"
        parts.append(opening.replace("%", "%%") + inside)
    return ",".join(parts)


def _fill(members: Iterable[tuple[str, Node]], values: Sequence[str], nulls: bool, nulls_in_objects: bool) -> str:
    parts = []
    for opening, node in members:
        if isinstance(node, int):
            value = values[node]
        else:
            inside = _fill(node, values, nulls_in_objects, False)
            value = f"{{{inside}}}" if inside else ""
        if value or nulls:
            parts.append(opening + (value or "null"))
    return ",".join(parts)


# Identity -----------------------------------------------------------------------------------------------------------

# After Apache Commons' EmailValidator, which Iterable uses (its article "Email Validation in Iterable"). Narrower only
# in what no mailbox needs: an IP address for a domain, a dot at the end, invisible characters. Wider in one thing:
# whether a top-level domain exists is left to Iterable.
_ATOM = r"(?:\\[^\s]|[^\s\x00-\x1f\x7f()<>@,;:\\\".\[\]])+"
_WORD = rf"(?:{_ATOM}|\"(?:\\\"|[^\"])*\")"
_LOCAL = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?:[a-z]{{2,63}}|xn--[a-z0-9-]{{1,58}}[a-z0-9])", re.ASCII | re.IGNORECASE)


def identity(value: Any, rules: Rules) -> str:
    """Whom a value of the identity column names: the e-mail in lower case, as Iterable stores it, or the userId to the
    letter."""
    name = value if type(value) is str else _id_text(value, rules.identity_column)
    return _user_id(name, rules.identity_column) if rules.by_user_id else _email(name, rules.identity_column)


def _email(address: str, column: str) -> str:
    address = address.strip()
    if not address:
        raise InvalidRecord(f"{column} is empty")
    local, _, domain = address.rpartition("@")
    if not (address.isprintable() and _LOCAL.fullmatch(local) and _is_domain(domain)):
        raise InvalidRecord(f"{column} is not a valid email address")
    if len(local) > MAX_EMAIL_LOCAL_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_EMAIL_LOCAL_CHARS} characters before the @")
    return address.lower()


@lru_cache(maxsize=REMEMBERED_DOMAINS)
def _is_domain(name: str) -> bool:
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    return len(name) <= MAX_EMAIL_DOMAIN_CHARS and _DOMAIN.fullmatch(name) is not None


def _user_id(user_id: str, column: str) -> str:
    """Iterable's rule: 1 to 52 printable ASCII characters, no space at the end."""
    if not user_id:
        raise InvalidRecord(f"{column} is empty")
    if len(user_id) > MAX_USER_ID_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_USER_ID_CHARS} characters")
    if not (user_id.isascii() and user_id.isprintable()) or user_id.endswith(" "):
        raise InvalidRecord(f"{column} has a character that a user id may not have, or a space at its end")
    return user_id


def _id_text(value: Any, column: str) -> str:
    """An id, as databases give it, as text: 17, 17.0 and Decimal("17.00") are one id. NULL is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decoded(value, column)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _whole_number_text(value, column)
    if isinstance(value, Unreadable):
        raise InvalidRecord(f"{column} {value.problem}")
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which can't be an id")


def _whole_number_text(value: int | float | Decimal, column: str) -> str:
    if not is_within(value, 10**MAX_USER_ID_CHARS) or value != int(value):
        raise InvalidRecord(f"{column} is not a whole number, or has more than {MAX_USER_ID_CHARS} digits")
    return str(int(value))


# Users ----------------------------------------------------------------------------------------------------------------

# The values of a user's fields, in the order of Rules.user_template: each in JSON, "" for NULL, or the reason why it
# can't be sent, which begins like no JSON.
UserValues = Sequence[str]
PROBLEM = "!"


def user_values(columns: Columns, count: int, rules: Rules) -> list[UserValues]:
    """What each of `count` rows says about its user."""
    if not rules.user_template.fields:
        return [()] * count
    by_field = []
    for field in rules.user_template.fields:
        values = columns[field.column]
        try:
            found = json_column(values, field, rules.zone)
        except InvalidRecord:
            found = [_json_or_problem(value, field, rules.zone) for value in values]
        by_field.append(found)
    return list(zip(*by_field, strict=True))


def _json_or_problem(value: Any, field: FieldMap, zone: tzinfo) -> str:
    """A problem has a hash of the cell, so that a cell that is wrong in another way is another problem."""
    try:
        return json_column([value], field, zone)[0]
    except InvalidRecord as problem:
        cell = hashlib.blake2b(cell_text(value).encode(errors="backslashreplace"), digest_size=8).hexdigest()
        return f"{PROBLEM}{cell} {' '.join(str(problem).splitlines())}"


class MergedUser(NamedTuple):
    """What the rows of one user say together. row: the last one that changed it. disagreed: whether two rows give one
    field two values."""

    row: int
    values: UserValues
    disagreed: bool = False


def merge(said: MergedUser, row: int, later: UserValues, rules: Rules) -> MergedUser:
    """What is said with one more row: field by field, the later value counts.

    A NULL says nothing, unless NULLs clear fields. A value that can't be sent says something, so that an earlier one is
    not sent in its place.
    """
    nulls_count = rules.clear_nulls
    values = [new if new or nulls_count else old for old, new in zip(said.values, later, strict=True)]
    changed = [old for old, new in zip(said.values, values, strict=True) if old != new]
    if not changed:
        return said
    return MergedUser(row, values, said.disagreed or nulls_count or any(changed))


def user_payloads(people: Sequence[str], values: Sequence[UserValues], rules: Rules) -> list[bytes | InvalidRecord]:
    """The bodies of users/update, which are also elements of users/bulkUpdate; or why one can't be sent."""
    # Iterable replaces a nested object as a whole, so a field that is left out of it is cleared. Where it merges, only
    # a null clears one, and null for the whole object would clear what others keep there.
    nulls, nulls_in_objects = rules.clear_nulls, rules.clear_nulls and rules.merge_nested
    by_field = list(zip(*values, strict=True)) if rules.user_template.fields else []
    fields = rules.user_template.fill_all(by_field, len(people), nulls=nulls, nulls_in_objects=nulls_in_objects)
    opening, more = ('{"userId":', ',"preferUserId":true') if rules.by_user_id else ('{"email":', "")
    merged = ',"mergeNestedObjects":true' if rules.merge_nested else ""
    encoded = [
        f'{opening}{person}{more},"dataFields":{{{each}}}{merged}}}'.encode()
        for person, each in zip(map(quote, people), fields, strict=True)
    ]
    found = [payload if len(payload) <= MAX_RECORD_BYTES else _too_large(payload) for payload in encoded]
    for column in by_field:
        for place in [place for place, value in enumerate(column) if value[:1] == PROBLEM]:
            found[place] = InvalidRecord(column[place].partition(" ")[2])
    return found


# Events ---------------------------------------------------------------------------------------------------------------


class Events(NamedTuple):
    """The events of some rows, as far as looking them up in the ledger needs it; `event_payloads` makes the rest.

    places: of the rows that have one. contents: all that each says but for NULLs, in JSON. given_ids: those of the
    query, "" where it gives none. names, people: in JSON. fields: the members of `dataFields`. problems: the places of
    the rows whose event can't be sent, and why.
    """

    places: Sequence[int] = ()
    contents: Sequence[str] = ()
    given_ids: Sequence[str] = ()
    names: Sequence[str] = ()
    people: Sequence[str] = ()
    microseconds: Sequence[int] = ()
    fields: Sequence[str] = ()
    problems: Sequence[tuple[int, InvalidRecord]] = ()

    def take(self, which: Sequence[int]) -> Events:
        """Those at these indexes."""
        return Events._make([*([part[index] for index in which] for part in self[:-1]), ()])


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
    places: list[int] = []
    others: list[Any] = [[] for _ in Events._fields[1:-1]]
    problems: list[tuple[int, InvalidRecord]] = []
    for of_part, found in parts:
        places += [of_part[place] for place in found.places]
        for joined, part in zip(others, found[1:-1], strict=True):
            joined += part
        problems += [(of_part[place], problem) for place, problem in found.problems]
    return Events._make([places, *others, problems])


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


def _convert_events(columns: Columns, people: Sequence[str], rules: Rules) -> Events:
    """Rows that all carry an event -> the parts of their events."""
    names = _event_names(columns, len(people), rules)
    microseconds = _event_times(columns, rules)
    who = list(map(quote, people))
    values = [json_column(columns[field.column], field, rules.zone) for field in rules.event_template.fields]
    fields = rules.event_template.fill_all(values, len(people))
    contents = event_contents(names, who, microseconds, fields)
    given = [""] * len(people)
    if rules.id_column is not None:
        given = [_given_event_id(value, rules.id_column) for value in columns[rules.id_column]]
    if rules.clear_nulls:
        fields = rules.event_template.fill_all(values, len(people), nulls=True)
    found = Events(range(len(people)), contents, given, names, who, microseconds, fields)
    if max(map(len, contents)) + max(map(len, fields)) > MAX_RECORD_BYTES // 8:  # in characters; none has over 4 bytes
        largest = max(event_payloads(found, rules), key=len)
        if len(largest) > MAX_RECORD_BYTES:
            raise _too_large(largest)
    return found


def event_contents(
    names: Sequence[str], people: Sequence[str], microseconds: Sequence[int], fields: Sequence[str]
) -> list[str]:
    """The same for the same event in every run, on every machine: its name, person, time and fields but for NULLs.

    All of them in JSON; the fields without braces and in the order of their names, so that the order of EVENT_FIELDS
    does not matter.
    """
    return [
        f'["{ID_VERSION}",{name},{who},{moment},{{{each}}}]'
        for name, who, moment, each in zip(names, people, microseconds, fields, strict=True)
    ]


def event_ids(contents: Sequence[str]) -> list[str]:
    """The ids that are derived from these contents."""
    sha256 = hashlib.sha256
    return [f"{ID_VERSION}-{sha256(content.encode()).hexdigest()[:40]}" for content in contents]


def event_identities(found: Events, rules: Rules) -> Sequence[str]:
    """What tells each event of a user from all others: its id or, as long as all are derived, what it is derived from.

    The ledger knows events by it: a change of this would send every event of every project again.
    """
    return found.contents if rules.id_column is None else _ids(found)


def _ids(found: Events) -> list[str]:
    derived = event_ids(found.contents)
    return [given or other for given, other in zip(found.given_ids, derived, strict=True)]


def event_payloads(found: Events, rules: Rules) -> list[bytes]:
    """The bodies of events/track, which are also elements of events/trackBulk."""
    opening = '{"userId":' if rules.by_user_id else '{"email":'
    if rules.id_column is None:
        ids = [f'"{each}"' for each in event_ids(found.contents)]
    else:
        ids = list(map(quote, _ids(found)))
    return [
        f'{opening}{person},"eventName":{name},"id":{each_id},"createdAt":{moment // 1_000_000},'
        f'"dataFields":{{{each}}}}}'.encode()
        for person, name, each_id, moment, each in zip(
            found.people, found.names, ids, found.microseconds, found.fields, strict=True
        )
    ]


def _too_large(payload: bytes) -> InvalidRecord:
    size = f"{len(payload):,} bytes as JSON, more than the {MAX_RECORD_BYTES:,} of one request"
    return InvalidRecord(f"it has {size}")


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
        hint = "; is it in milliseconds" if created_at > 1000 * DAY_S * 365 else ""
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
    event_id = text(_id_text(value, column), column)
    if len(event_id.encode("utf-8")) > MAX_EVENT_ID_BYTES:
        raise InvalidRecord(f"{column} is longer than {MAX_EVENT_ID_BYTES} bytes")
    return event_id if event_id.strip() else ""
