"""USER_FIELDS and EVENT_FIELDS: which column of the query becomes which field of Iterable, and of which type.

    plan_type, plan:plan.tier, since:plan.since:date, *

A dot in a field's name nests it: `{"plan": {"since": ..., "tier": ...}}`. Knows no settings and no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

GRAMMAR = "column, column:fieldName or column:fieldName:type"


class FieldType(str, Enum):
    """What a column is converted to. A column without one is sent as the type that the database gives it."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    DATE = "date"
    JSON = "json"


@dataclass(frozen=True)
class FieldMap:
    """A column of the query and the field of Iterable that it goes to."""

    column: str
    name: str
    type: FieldType | None = None

    @property
    def path(self) -> tuple[str, ...]:
        """`plan.tier` -> ("plan", "tier"): the field `tier` of the object `plan`."""
        return tuple(self.name.split("."))


_SUBSCRIPTIONS = "what a person has subscribed to, and writing it could subscribe them again"
_BOOKKEEPING = "what Iterable itself has noted about the profile"
_DEVICES = "which devices get a person's messages"
# Fields of a profile that Iterable keeps, by their names in lower case; from its documentation of users/update.
_OWN_FIELDS = {
    "emaillistids": "which lists a person is on, and writing it could subscribe them again",
    "unsubscribedchannelids": _SUBSCRIPTIONS,
    "unsubscribedmessagetypeids": _SUBSCRIPTIONS,
    "subscribedmessagetypeids": _SUBSCRIPTIONS,
    "itblinternal": _BOOKKEEPING,
    "itbluserid": _BOOKKEEPING,
    "itblds": _BOOKKEEPING,
    "profileupdatedat": _BOOKKEEPING,
    "signupsource": _BOOKKEEPING,
    "phonenumberdetails": _BOOKKEEPING,
    "devices": _DEVICES,
    "browsertokens": _DEVICES,
}

EVERY_OTHER = FieldMap("*", "*")  # every column of the query that has no other use


def parse_fields(value: str) -> tuple[FieldMap, ...]:
    """`page,device:deviceType` -> the columns and their fields. `-` means none at all.

    ValueError with the rest of a sentence that begins with the setting's name.
    """
    if value == "-":
        return ()
    fields = tuple(_parse_field(part.strip()) for part in value.split(","))
    if fields.count(EVERY_OTHER) > 1:
        raise ValueError("has * twice")
    if clash := find_clash(fields):
        raise ValueError(clash)
    return fields


def parse_user_fields(value: str) -> tuple[FieldMap, ...]:
    """As parse_fields, for a profile: Iterable's own fields are refused."""
    fields = parse_fields(value)
    for each in fields:
        if reason := find_own_field(each.name):
            raise ValueError(
                f"names {each.path[0]}, a field that Iterable keeps itself: it says {reason}; leave it out, or give it "
                "another field name (column:fieldName)"
            )
    return fields


def find_own_field(name: str) -> str | None:
    """What the field says that Iterable keeps under this name, or its first part, in any case; None: it is free.

    Such a field must not be written: it could subscribe people again, or send to the wrong device.
    """
    return _OWN_FIELDS.get(name.partition(".")[0].casefold())


def _parse_field(part: str) -> FieldMap:
    if part == "*":
        return EVERY_OTHER
    column, *rest = (piece.strip() for piece in part.split(":"))
    if column in ("", "*", "-") or len(rest) > 2 or "" in rest:
        raise ValueError(
            f"must be a list of {GRAMMAR}, such as page,device:deviceType (* for every other column, - for none); "
            "a column whose own name has a comma or a colon needs another one in the query (AS)"
        )
    name = rest[0] if rest else column
    if "" in name.split("."):
        raise ValueError("has a field name that begins or ends with a dot, or has two in a row; a dot nests a field")
    return FieldMap(column, name, _parse_type(rest[1]) if len(rest) > 1 else None)


def _parse_type(text: str) -> FieldType:
    try:
        return FieldType(text.lower())
    except ValueError:
        known = ", ".join(each.value for each in FieldType)
        raise ValueError(f"has an unknown type; the types are {known} (column:fieldName:type)") from None


def find_clash(fields: Iterable[FieldMap]) -> str | None:
    """The rest of a sentence about fields of one name, or about one that is a value and an object at once."""
    paths = sorted(each.path for each in fields)
    for path, following in pairwise(paths):  # a path stands right before those that it begins
        if path == following:
            return f"names the field {'.'.join(path)} twice"
        if following[: len(path)] == path:
            return f"has {'.'.join(path)} both as a value and as an object that holds {'.'.join(following)}"
    return None


def is_writable(column: str) -> bool:
    """Whether a column's name can stand in a setting as it is, in a `.env` file, too."""
    is_text = column.isprintable() and column == column.strip() and column not in ("", "*", "-")
    return is_text and set(",:#'\"`$\\").isdisjoint(column)


def expand(fields: Sequence[FieldMap], others: Iterable[str]) -> tuple[FieldMap, ...]:
    """The fields with `*` replaced by the columns that have no other use, each as a field of its name; but for
    Iterable's own fields."""
    expanded: list[FieldMap] = []
    others = [column for column in others if find_own_field(column) is None]
    for each in fields:
        expanded += [FieldMap(column, column) for column in others] if each == EVERY_OTHER else [each]
    return tuple(expanded)
