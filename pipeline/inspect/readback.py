"""Compares a user as we send it with Iterable's copy, field by field, in Iterable's forms. Pure.

In: the body of a users/update, and the `user` of Iterable's answer. Out: a `Field` for each value, the same or not.

    {"email": "ada@example.com", "dataFields": {"plan": {"tier": "pro"}, "since": "2026-01-13T08:00:00Z"}}
    {"email": "ada@example.com", "dataFields": {"plan": {"tier": "free"}, "since": "2026-01-13 08:00:00 +00:00"}}
    -> email same, plan.tier different, since same

What Iterable adds itself (`signupDate`, `profileUpdatedAt`) was not sent, and is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from enum import Enum
from typing import Any

from pipeline.model.text import counted, shown, table
from pipeline.transform.values import InvalidRecord, unix_microseconds

MICROSECONDS = 1_000_000  # in a second
LONG_TEXT = 20
CONTEXT = 5  # characters shown of what long texts have in common
INDENT = "    "
REPAIR = "The next run does not send what was accepted and is unchanged. With --verify --repair it sends what differs."
DROPPED = "A field that is missing may have been dropped: a project can be set to ignore unknown fields."


class Match(str, Enum):
    """How Iterable's value compares with ours."""

    SAME = "same"
    DIFFERENT = "different"
    MISSING = "missing"  # we send it, and Iterable has none: a project may be set to drop unknown fields
    EXTRA = "extra"  # inside an object that we replace as a whole, so that it should be gone


@dataclass(frozen=True)
class Field:
    """One value. name: with dots for what is nested. sent, held: None where there is none."""

    name: str
    sent: Any
    held: Any
    match: Match


def compare(sent: Mapping[str, Any], held: Mapping[str, Any]) -> list[Field]:
    """The body of a users/update against the `user` of an answer: who it is, then each field, in our order.

    Without `mergeNestedObjects` an object replaces the one before, so what else Iterable has in it is a difference.
    Missing and null are alike.
    """
    replaces = not sent.get("mergeNestedObjects")
    theirs = held.get("dataFields") or {}
    return [*_compare_identity(sent, held), *compare_fields(sent["dataFields"], theirs, replaces=replaces)]


def compare_fields(sent: Mapping[str, Any], held: Mapping[str, Any], *, replaces: bool = True) -> list[Field]:
    """Fields as we send them against Iterable's. replaces: an object takes the place of the one before."""
    fields: list[Field] = []
    for name, value in sent.items():
        fields += _compare_value(name, value, held.get(name), replaces)
    return fields


def differing(fields: Sequence[Field]) -> list[Field]:
    return [field for field in fields if field.match is not Match.SAME]


def missing(fields: Sequence[Field]) -> list[str]:
    """The fields that Iterable does not hold although they were sent."""
    return [field.name for field in fields if field.match is Match.MISSING]


def _compare_identity(sent: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[Field]:
    """Of the two, Iterable may keep what it was not sent; what it was sent beside the other, it should have."""
    is_sent = [name for name in ("email", "userId") if sent.get(name) is not None]
    for name in is_sent:
        if len(is_sent) > 1 or held.get(name) is not None:
            yield _field(name, sent[name], held.get(name))


def _compare_value(name: str, sent: Any, held: Any, replaces: bool) -> Iterator[Field]:
    if isinstance(sent, dict) and (held is None or isinstance(held, dict)):
        held = held or {}
        for key, value in sent.items():
            yield from _compare_value(f"{name}.{key}", value, held.get(key), replaces)
        if replaces:
            for key in [key for key in held if key not in sent]:
                yield from _extra(f"{name}.{key}", held[key])
    else:
        yield _field(name, sent, held)


def _extra(name: str, held: Any) -> Iterator[Field]:
    if isinstance(held, dict):
        for key, value in held.items():
            yield from _extra(f"{name}.{key}", value)
    elif held is not None:
        yield Field(name, None, held, Match.EXTRA)


def _field(name: str, sent: Any, held: Any) -> Field:
    if _is_alike(sent, held) or (name == "email" and _is_same_address(sent, held)):
        return Field(name, sent, held, Match.SAME)
    return Field(name, sent, held, Match.MISSING if held is None else Match.DIFFERENT)


# Values ---------------------------------------------------------------------------------------------------------------


def _is_alike(sent: Any, held: Any) -> bool:
    """Numbers as numbers, dates as instants, objects and lists by their parts."""
    if isinstance(sent, bool) or isinstance(held, bool):
        return sent is held
    if isinstance(sent, str) and isinstance(held, str):
        return sent == held or _is_same_instant(sent, held)
    if isinstance(sent, list) and isinstance(held, list):
        return len(sent) == len(held) and all(map(_is_alike, sent, held))
    if isinstance(sent, dict) and isinstance(held, dict):
        return all(_is_alike(sent.get(key), held.get(key)) for key in sent.keys() | held.keys())
    return bool(sent == held)


def _is_same_instant(sent: str, held: str) -> bool:
    """Iterable gives dates back as `2020-08-19 20:50:04 +00:00`, whatever form was sent, and without a fraction."""
    try:
        ours, theirs = (unix_microseconds(text, timezone.utc, "") for text in (sent, held))
    except InvalidRecord:
        return False
    return ours == theirs or (theirs % MICROSECONDS == 0 and ours // MICROSECONDS == theirs // MICROSECONDS)


def _is_same_address(sent: Any, held: Any) -> bool:
    """Iterable keeps e-mail addresses in lower case."""
    return isinstance(sent, str) and isinstance(held, str) and sent.lower() == held.lower()


# As text, and as JSON -------------------------------------------------------------------------------------------------


def verdict_on(fields: Sequence[Field]) -> str:
    """`the same in all 5 fields`, `1 of 5 fields differs`"""
    different = len(differing(fields))
    if not different:
        return f"the same in all {counted(len(fields), 'field')}"
    return f"{different:,} of {counted(len(fields), 'field')} differ{'s' if different == 1 else ''}"


def beside(fields: Sequence[Field]) -> Iterator[str]:
    """Ours beside Iterable's; what differs has a mark before it."""
    rows = [["", "field", "ours", "Iterable's"]]
    for field in fields:
        ours = "(not sent)" if field.match is Match.EXTRA else shown(field.sent)
        theirs = "(missing)" if field.held is None else shown(field.held)
        if field.match is Match.SAME:
            rows.append(["", shown(field.name), ours, theirs])
        else:
            skipped = _alike_at_first(ours, theirs)
            rows.append(["!", shown(field.name), _from(ours, skipped), _from(theirs, skipped)])
    yield from table(rows, INDENT) or []


def advice(*, is_any_missing: bool) -> str:
    """What to do where Iterable's copy differs from what it accepted."""
    return f"{REPAIR} {DROPPED}" if is_any_missing else REPAIR


def _alike_at_first(ours: str, theirs: str) -> int:
    """How much of two long texts may be left out, so that where they differ is not cut off."""
    if max(len(ours), len(theirs)) <= LONG_TEXT:
        return 0
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((place for place, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
    return max(0, first - CONTEXT)


def _from(text: str, start: int) -> str:
    return f"…{text[start:]}" if start else text


def fields_as_json(fields: Sequence[Field]) -> list[dict[str, Any]]:
    return [
        {"name": field.name, "ours": field.sent, "iterable": field.held, "match": field.match.value} for field in fields
    ]
