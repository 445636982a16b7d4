"""What the query's columns become in Iterable, for `--check`: the types that rows have, beside those of the project.

Iterable's types are those of `GET /api/users/getFields`, which knows users' fields only, and names what is nested with
dots. The first value sets a field's type for good, and data of another type is refused. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pipeline.config import FieldMap
from pipeline.model.records import Kind
from pipeline.model.text import shown, table
from pipeline.transform import events
from pipeline.transform.identity import identity
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.values import InvalidRecord, field_value, unix_microseconds

MOST_PARTS = 200  # of one column's JSON; one with more has names that are data
MOST_LINES = 20  # of them in the table
NO_VALUE = "(no value)"
UNSENDABLE = object()
KNOWN_TYPES = ("string", "date", "long", "double", "boolean", "object", "nested")
NUMBERS = frozenset({"long", "double"})
OBJECTS = frozenset({"object", "nested"})

# The forms that Iterable takes for a date [block/iterable-go, after Iterable's article on field types].
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?: [+-]\d\d:\d\d)?|T\d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d\d:\d\d))?", re.ASCII
)


@dataclass(frozen=True)
class Sample:
    """One type that a field has: its name, and the first row (1: the first of the query) where it has that type.

    type: Iterable's word. source: what the database gave. is_time: a text that is a time in whatever form.
    """

    kind: Kind
    column: str
    name: str
    type: str
    source: str
    row: int
    is_time: bool = False


class State(str, Enum):
    """How a field goes together with the project's."""

    FITS = "fits"
    NEW = "new"
    CLASH = "clash"
    UNKNOWN = "unknown"  # the types of the project are not known; never those of events
    NOT_SENT = "not sent"


@dataclass(frozen=True)
class Mapped:
    """One line of the mapping. sent_as: Iterable's types, more than one where rows differ. project: its type there."""

    kind: Kind | None
    column: str
    field: str | None
    declared: str | None
    sent_as: tuple[str, ...]
    source: str | None
    row: int | None
    project: str | None
    state: State


# Sampling -------------------------------------------------------------------------------------------------------------


class Sampler:
    """Looks at rows, and keeps a sample of each type that a field has. Records that can't be sent count only for fields
    that no other record has."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._samples: dict[tuple[Kind, str, str, str, bool], Sample] = {}
        self._of_rejected: dict[tuple[Kind, str, str, str, bool], Sample] = {}
        self._parts: dict[tuple[Kind, str], set[str]] = {}

    @property
    def samples(self) -> list[Sample]:
        known = {(each.kind, each.column) for each in self._samples.values()}
        others = [each for each in self._of_rejected.values() if (each.kind, each.column) not in known]
        return [*self._samples.values(), *others]

    def add(self, columns: Columns, count: int, first_row: int) -> None:
        """first_row: the number of the first of these `count` rows."""
        rules = self._rules
        people = [_identity(value, rules) for value in columns[rules.identity_column]]
        named = [place for place in range(count) if people[place] is not None]
        identified = [who for who in people if who is not None]
        found = events.events(events.selected(columns, named), identified, rules)
        for place in named:
            self._take(Kind.USER, rules.user_fields, columns, place, first_row)
        for place in found.places:
            self._take(Kind.EVENT, rules.event_fields, columns, named[place], first_row)

    def _take(self, kind: Kind, fields: Sequence[FieldMap], columns: Columns, place: int, first_row: int) -> None:
        found_values = [columns[field.column][place] for field in fields]
        values = [_sendable(each, field, self._rules) for each, field in zip(found_values, fields, strict=True)]
        samples = self._of_rejected if UNSENDABLE in values else self._samples
        for field, found, value in zip(fields, found_values, values, strict=True):
            if value is None or value is UNSENDABLE:
                continue
            is_time = isinstance(found, str) and isinstance(value, str) and is_a_time(value)
            parents = [(".".join(field.path[:depth]), "object") for depth in range(1, len(field.path))]
            for name, type_ in (*parents, *typed_parts(field.name, value)):
                sample = Sample(kind, field.column, name, type_, source_type(found), first_row + place, is_time)
                self._keep(sample, samples)

    def _keep(self, sample: Sample, samples: dict[tuple[Kind, str, str, str, bool], Sample]) -> None:
        names = self._parts.setdefault((sample.kind, sample.column), set())
        if sample.name in names or len(names) < MOST_PARTS:
            names.add(sample.name)
            key = (sample.kind, sample.column, sample.name, sample.type, sample.is_time)
            samples.setdefault(key, sample)


def _identity(value: Any, rules: Rules) -> str | None:
    try:
        return identity(value, rules)
    except InvalidRecord:
        return None


def _sendable(found: Any, field: FieldMap, rules: Rules) -> Any:
    """The value as it would be sent, or UNSENDABLE."""
    try:
        return field_value(found, field, rules.zone)
    except InvalidRecord:
        return UNSENDABLE


def typed_parts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A JSON value -> its name and type, and, by their dotted names, those of what is nested in it."""
    yield name, iterable_type(value)
    if isinstance(value, dict):
        for key, each in value.items():
            if each is not None:
                yield from typed_parts(f"{name}.{key}", each)


def iterable_type(value: Any) -> str:
    """A JSON value -> the name that Iterable gives its type. A list has the type of its elements."""
    if isinstance(value, list):
        return next((iterable_type(each) for each in value if each is not None), "array")
    names = {bool: "boolean", int: "long", float: "double", dict: "object"}
    if type(value) in names:
        return names[type(value)]
    return "date" if _DATE.fullmatch(str(value)) else "string"


def source_type(value: Any) -> str:
    """A database's value -> a word for its type."""
    for kinds, word in _SOURCE_TYPES:
        if isinstance(value, kinds):
            return word
    return type(value).__name__


_SOURCE_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "text"),
    (bool, "boolean"),
    (int, "integer"),
    ((float, Decimal), "number"),
    (datetime, "timestamp"),
    (date, "date"),
    ((bytes, bytearray, memoryview), "bytes"),
    (UUID, "uuid"),
    (Mapping, "object"),
    ((list, tuple, set, frozenset), "list"),
)


def is_a_time(text: str) -> bool:
    """Whether `column:field:date` would take this text."""
    try:
        unix_microseconds(text, timezone.utc, "")
    except InvalidRecord:
        return False
    return True


# Comparing ------------------------------------------------------------------------------------------------------------


def with_parents(fields: Mapping[str, Any]) -> dict[str, str]:
    """The project's types by name; what holds nested fields is an object, whether or not it is listed itself."""
    types = {name: str(type_).lower() for name, type_ in fields.items()}
    for name in fields:
        path = name.split(".")
        for depth in range(1, len(path)):
            types.setdefault(".".join(path[:depth]), "object")
    return types


def fits(found: str, expected: str) -> bool:
    """Whether a value of one type may go into a field of another. Unknown types fit."""
    if found == "array" or expected not in KNOWN_TYPES or found == expected:
        return True
    if {found, expected} <= NUMBERS or {found, expected} <= OBJECTS:
        return True
    return (found, expected) == ("date", "string")


def disagree(types: Iterable[str]) -> bool:
    """Whether one of these is refused in a field that another has made. Of dates and text, that is not known."""
    found = {"object" if each in OBJECTS else each for each in types} - {"array"}
    return len(found) > 1 and found not in (NUMBERS, {"date", "string"})


def make_mapping(rules: Rules, samples: Sequence[Sample], types: Mapping[str, str] | None) -> list[Mapped]:
    """One entry for each field and what is nested in it, and for each column that is not sent. types: the project's,
    `with_parents`; None where they are not known."""
    mapped = []
    for kind, fields in ((Kind.USER, rules.user_fields), (Kind.EVENT, rules.event_fields)):
        for field in fields:
            of_field = [each for each in samples if each.kind is kind and each.column == field.column]
            inside = {each.name for each in of_field if each.name.startswith(f"{field.name}.")}
            for name in (field.name, *sorted(inside)):
                mapped.append(_mapped(kind, field, name, [each for each in of_field if each.name == name], types))
    return mapped + [
        Mapped(None, column, None, None, (), None, None, None, State.NOT_SENT) for column in rules.not_sent
    ]


def _mapped(
    kind: Kind, field: FieldMap, name: str, samples: Sequence[Sample], types: Mapping[str, str] | None
) -> Mapped:
    first = samples[0] if samples else None
    known = types if kind is Kind.USER else None
    project = known.get(name) if known is not None else None
    return Mapped(
        kind=kind,
        column=field.column,
        field=name,
        declared=field.type.value if field.type is not None else None,
        sent_as=tuple(dict.fromkeys(each.type for each in samples)),
        source=first.source if first else None,
        row=first.row if first else None,
        project=project,
        state=_state(samples, project, is_known=known is not None),
    )


def _state(samples: Iterable[Sample], project: str | None, *, is_known: bool) -> State:
    if not is_known:
        return State.UNKNOWN
    if project is None:
        return State.CLASH if disagree(each.type for each in samples) else State.NEW
    return State.FITS if all(fits(each.type, project) for each in samples) else State.CLASH


def folded(name: str) -> str:
    """Names that differ in case, spaces, underscores and hyphens only are one."""
    return re.sub(r"[_\s-]", "", name).casefold()


# As a table, and as JSON ----------------------------------------------------------------------------------------------


def as_lines(mapping: Sequence[Mapped]) -> list[str]:
    """The mapping as a table, in 80 columns where there is room for that."""
    if not mapping:
        return []
    rows = [["column", "field", "sent as", "such as", "in the project"]]
    left_out: dict[str, int] = {}
    shown_of: dict[tuple[Kind | None, str], int] = {}
    for each in mapping:
        key = (each.kind, each.column)
        shown_of[key] = shown_of.get(key, 0) + 1
        if shown_of[key] > MOST_LINES:
            left_out[each.column] = left_out.get(each.column, 0) + 1
        else:
            rows.append(_cells(each))
    lines = table(rows, "  ") or ["  " + " | ".join(row) for row in rows]
    return lines + [f"  ... and {count:,} more in {shown(column)}" for column, count in left_out.items()]


def _cells(each: Mapped) -> list[str]:
    if each.state is State.NOT_SENT:
        return [shown(each.column), "-", "(not sent)", "-", "-"]
    owner = "event: " if each.kind is Kind.EVENT else ""
    such_as = f"{each.source}, row {each.row}" if each.source is not None else "-"
    return [
        shown(each.column),
        f"{owner}{shown(each.field)}",
        ", ".join(each.sent_as) or NO_VALUE,
        such_as,
        _in_project(each),
    ]


def _in_project(each: Mapped) -> str:
    if each.state is State.UNKNOWN:
        return "-" if each.kind is Kind.EVENT else "?"
    if each.state is State.NEW:
        return "new"
    return f"{each.project or 'new'} CLASH" if each.state is State.CLASH else str(each.project)


def as_json(mapping: Iterable[Mapped]) -> list[dict[str, Any]]:
    return [
        {
            "kind": each.kind.value if each.kind is not None else None,
            "column": each.column,
            "field": each.field,
            "declared": each.declared,
            "sent_as": list(each.sent_as),
            "example": {"type": each.source, "row": each.row} if each.row is not None else None,
            "project": each.project,
            "state": each.state.value,
        }
        for each in mapping
    ]
