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

from pipeline.values import InvalidRecord, unix_microseconds

MICROSECONDS = 1_000_000  # in a second


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
    values, theirs = sent["dataFields"], held.get("dataFields") or {}
    replaces = not sent.get("mergeNestedObjects")
    fields = list(_compare_identity(sent, held))
    for name, value in values.items():
        fields += _compare_value(name, value, theirs.get(name), replaces)
    return fields


def differing(fields: Sequence[Field]) -> list[Field]:
    return [field for field in fields if field.match is not Match.SAME]


def _compare_identity(sent: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[Field]:
    for name in ("email", "userId"):
        if sent.get(name) is not None and held.get(name) is not None:
            yield _field(name, sent[name], held[name])


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
