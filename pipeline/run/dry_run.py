"""What `--dry-run` shows: how many records of each kind would be sent, and what the first ones look like. Pure.

The payloads are whole in their form, but not in what they say: `masked` has the rule that protects people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pipeline.model.records import Kind, Outcome, Record
from pipeline.model.text import counted, shown
from pipeline.transform.events import ID_VERSION

SHOWN_OF_EACH_KIND = 3
MOST_MEMBERS = 50  # of an object
MOST_ELEMENTS = 3  # of a list
LONGEST_NAME = 100
LONGEST_ADDRESS = 320
FEW_DIGITS = 1_000_000  # ids and telephone numbers have more
RULE = "Text is cut to its first letter and dates to the year; long numbers are rounded to one digit."

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ][\d:.]+ ?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_ADDRESS = re.compile(r"[^\s@]+@([^\s@]+)")
_WHOLE = ("eventName", "createdAt", "preferUserId", "mergeNestedObjects")  # of a payload; the same for many people


def counts(kind: Kind, outcomes: Mapping[Outcome, int], pending: int) -> str:
    """`12 users would be sent, 3 unchanged, 1 rejected`"""
    left = ", ".join(f"{outcomes[each]:,} {each.value}" for each in (Outcome.UNCHANGED, Outcome.REJECTED))
    return f"{counted(pending, kind.value)} would be sent, {left}"


def first_lines(record: Record) -> Iterator[str]:
    """A payload as it would be sent, over several lines, without what is personal in it."""
    payload = json.loads(record.payload)
    cut = {name: value if name in _WHOLE else masked(value) for name, value in payload.items()}
    if str(payload.get("id", "")).startswith(f"{ID_VERSION}-"):  # a hash, which says nothing
        cut["id"] = payload["id"]
    text = json.dumps(cut, indent=2, ensure_ascii=False)
    yield from map(shown, f"{record.kind.value} of row {record.row}: {text}".split("\n"))


def masked(value: Any) -> Any:
    """A value of a payload: its form, and next to nothing of what it says about a person.

    "Ada Lovelace" -> "A***", "ada@example.com" -> "a***@example.com", 491701234567 -> 500000000000,
    "1815-12-10 00:00:00 +00:00" -> "1815-**-** **:**:** +**:**". Of long lists and objects, the beginning.
    """
    if isinstance(value, str):
        return _masked_text(value)
    if isinstance(value, dict):
        return _masked_object(value)
    if isinstance(value, list):
        return [*map(masked, value[:MOST_ELEMENTS]), *_more(value, MOST_ELEMENTS)]
    if isinstance(value, (int, float)) and abs(value) >= FEW_DIGITS:
        return type(value)(float(f"{value:.0e}"))
    return value


def _masked_text(text: str) -> str:
    if len(text) <= LONGEST_ADDRESS:
        if _DATE.fullmatch(text):
            return text[:4] + re.sub(r"\d", "*", text[4:])
        if address := _ADDRESS.fullmatch(text):
            return f"{text[0]}***@{address[1]}"
    return f"{text[0]}***" if len(text) > 1 else "***" if text else ""


def _masked_object(value: Mapping[str, Any]) -> dict[str, Any]:
    shown_members = {name[:LONGEST_NAME]: masked(each) for name, each in islice(value.items(), MOST_MEMBERS)}
    return {**shown_members, **dict.fromkeys(_more(value, MOST_MEMBERS), "***")}


def _more(values: Sequence[Any] | Mapping[str, Any], most: int) -> list[str]:
    return [f"... and {len(values) - most:,} more"] if len(values) > most else []
