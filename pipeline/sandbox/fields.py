"""The fields of users and events: their types, what a type refuses, how an update changes them, how they read back.

Values in, values or an ApiError out. Nothing here knows what the project holds.

A field inside an object goes by its dotted name: {"plan": {"tier": "pro"}} has the fields `plan` and `plan.tier`. What
stands in a list of objects has no names of its own, and any object fits there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from datetime import datetime, timezone
from typing import Any

from pipeline.sandbox.exchange import ApiError, Json

# The date forms that block/iterable-go takes from Iterable's article on field types: a fraction only after a T.
_DATE = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"(?: \d\d:\d\d:\d\d(?: [+-]\d\d:\d\d)?|T\d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d\d:\d\d))?"
)
_TYPE_NAMES = {bool: "boolean", int: "long", float: "double", dict: "object"}
# "string" with "keyword" is recorded; that a date may be text as well is INF.
_POSSIBLE_TYPES = {"string": ["string", "keyword"], "date": ["date", "string", "keyword"]}
_NUMBERS = frozenset({"long", "double"})


def value_type(value: Any) -> str | None:
    """The type that this value gives to a new field; None where it shows none (null, an empty list).

    "2026-01-13" -> "date", "pro" -> "string", 5 -> "long". A list has the type of its elements: ["a"] -> "string".
    """
    if type(value) is str:
        return "date" if _DATE.fullmatch(value) else "string"
    if type(value) is list:
        return next((kind for kind in map(value_type, value) if kind), None)
    return _TYPE_NAMES.get(type(value))


class FieldCheck:
    """The fields of one request against the types known so far: "The first value sets the type for ever" (Field Data
    Types). It changes nothing; new fields end up in `fresh`, by category ("user", or the event's name).
    """

    def __init__(self) -> None:
        self._errors: dict[str, Json] = {}
        self.fresh: dict[str, dict[str, str]] = {}

    def look_at(self, category: str, known: Mapping[str, str], data_fields: Json, inside: str = "") -> None:
        """`inside`: the dotted name of the object whose fields these are, with a dot at its end."""
        fresh = self.fresh.setdefault(category, {})
        for name, value in data_fields.items():
            if inside:
                name = inside + name
            expected = known.get(name) or fresh.get(name)
            if expected == "string" and type(value) is str:
                continue  # a date fits, too; this is most fields, so a shortcut pays
            kind = value_type(value)
            if kind != expected and kind is not None:
                if expected is None:
                    fresh[name] = kind
                elif not _fits(kind, expected):
                    self._errors.setdefault(name, _type_error(category, value, kind, expected))
                    continue
            if type(value) is dict:
                self.look_at(category, known, value, f"{name}.")

    def raise_errors(self) -> None:
        """Raises what was recorded for users/update in 2021; for events, and for several fields, it is INF."""
        if not self._errors:
            return
        msg = "Project 1: The request does not have the same data types as the data previously submitted."
        for name, error in self._errors.items():
            msg += (
                f" Field '{name}' already exists for type '{error['category']}' and has a data type of "
                f"'{error['expectedType']}' but possible types '{', '.join(error['incomingTypes'])}' in the request."
            )
        raise ApiError(400, "RequestFieldsTypesMismatched", msg, {"validationErrors": self._errors})


def _fits(kind: str, expected: str) -> bool:
    # A date is text as well. No source says whether 5 may follow 5.5.
    return (kind == "date" and expected == "string") or (kind in _NUMBERS and expected in _NUMBERS)


def _type_error(category: str, value: Any, kind: str, expected: str) -> Json:
    return {
        "incomingTypes": _POSSIBLE_TYPES.get(kind, [kind]),
        "expectedType": expected,
        "_type": "UnexpectedType",
        "offendingValue": value,
        "category": category,
    }


def drop_fields(data_fields: Json, dropped: Set[str]) -> list[str]:
    """Takes the fields named in `dropped` out of `data_fields`; the names of those that were there."""
    return [name for name in sorted(dropped) if _drop(data_fields, name)]


def _drop(data_fields: Json, name: str) -> bool:
    if name in data_fields:
        del data_fields[name]
        return True
    outer, dot, inner = name.partition(".")
    nested = data_fields.get(outer)
    return bool(dot) and isinstance(nested, dict) and _drop(nested, inner)


def update_fields(stored: Json, sent: Json, merge_nested: bool) -> None:
    """What a user update does to a profile. A field that is not sent stays; null removes it (recorded in 2021).

    An object replaces the stored one, or, with mergeNestedObjects, the fields of the stored one that it names: "one
    level only, arrays never merged" (Updating User Profiles). That null removes a field there as well is INF.
    """
    for name, value in sent.items():
        if value is None:
            stored.pop(name, None)
        elif merge_nested and isinstance(value, dict) and isinstance(stored.get(name), dict):
            merged = {**stored[name], **value}
            stored[name] = {inner: each for inner, each in merged.items() if each is not None}
        else:
            stored[name] = value


def read_back(value: Any, types: Mapping[str, str], name: str = "") -> Any:
    """A value as Iterable gives it back: dates as `2020-08-19 20:50:04 +00:00`, whatever form was sent (recorded 2021).

    `name`: of the field; "" for all of a user's fields. A field of type string keeps even what looks like a date.
    """
    if type(value) is dict:
        return {inner: read_back(each, types, f"{name}.{inner}" if name else inner) for inner, each in value.items()}
    if type(value) is list:
        return [read_back(each, types, name) for each in value]
    if type(value) is str and types.get(name) == "date":
        return _date_read_back(value)
    return value


def _date_read_back(text: str) -> str:
    # Python 3.10 reads neither the space before an offset nor a Z.
    spelled = text.replace(" +", "+").replace(" -", "-").replace("Z", "+00:00")
    try:
        moment = datetime.fromisoformat(spelled)
        if moment.tzinfo is not None:
            moment = moment.astimezone(timezone.utc)
    except (ValueError, OverflowError):  # the 30th of February has the form of a date
        return text
    return date_text(moment)


def date_text(moment: datetime) -> str:
    """`moment` is in UTC, which a time without an offset is taken for (INF)."""
    return f"{moment.isoformat(' ')[:19]} +00:00"
