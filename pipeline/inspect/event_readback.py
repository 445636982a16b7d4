"""Compares one person's events as we send them with what Iterable shows of them. Pure.

In: the bodies of events/track, and the `events` of Iterable's answer, which has the latest 200. Out: for each of those
that Iterable has accepted, whether it is there, and in which fields it differs; or that this can't be told.

    {"id": "a-1", "eventName": "page_view", "createdAt": 1768293912, "dataFields": {"page": "docs"}}
    {"_id": "a-1", "eventName": "page_view", "createdAt": "2026-01-13 08:45:12 +00:00", "dataFields": {"page": "home"}}
    -> different: page

Whether `_id` is the id that was sent is not documented. So an event is found by its id, where Iterable shows one of
ours, or else by its name, its time to the second, and its fields.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from enum import Enum
from typing import Any

from pipeline.inspect.readback import Field, Match, compare_fields, differing
from pipeline.transform.values import InvalidRecord, unix_microseconds

MAX_EVENTS = 200  # that Iterable shows of one person [swagger]
MICROSECONDS = 1_000_000  # in a second
MOST_SECONDS = 100_000_000_000  # a larger number has milliseconds
_TWO_FRACTIONS = re.compile(r"(\.\d{1,6})\d*\.\d+Z")  # 2025-12-19T22:43:34.134105.000Z, as readers of events have met

Json = Mapping[str, Any]


class EventState(str, Enum):
    """How an event compares with what Iterable shows."""

    SAME = "same"
    DIFFERENT = "different"
    MISSING = "missing"
    DOUBLED = "doubled"  # Iterable has it once more, under another id
    OLD_ADDRESS = "old_address"  # not there, as the profile of the address before may have it
    UNKNOWN = "unknown"  # older than what Iterable shows


@dataclass(frozen=True)
class ComparedEvent:
    """place: in what was given. fields: those that differ. doubles: the ids under which Iterable has it, too."""

    place: int
    state: EventState
    fields: Sequence[Field] = ()
    doubles: Sequence[str] = ()


@dataclass(frozen=True)
class _Held:
    """An event of Iterable's. second: Unix; None where its time can't be read."""

    event_id: str
    second: int | None
    body: Json


def compare_events(ours: Sequence[Json], accepted: Sequence[bool], answer: Sequence[Any]) -> list[ComparedEvent]:
    """Each of ours that is accepted. The others may be there or not, and belong to what is found by its content."""
    shown = [_held(each) for each in answer if isinstance(each, dict)]
    held = [each for each in shown if each.body.get("eventName")]
    pairs, has_ids = _pair(ours, held)
    taken = {id(each) for each in pairs.values()}
    left: dict[tuple[str, int | None], list[_Held]] = defaultdict(list)
    for each in held:
        if id(each) not in taken:
            left[_name_and_second(each)].append(each)
    oldest = _oldest(shown) if len(answer) >= MAX_EVENTS else None
    found = []
    for place, event in enumerate(ours):
        if accepted[place]:
            pair = pairs.get(place)
            others = left[(event["eventName"], event["createdAt"])]
            if pair is None and others and not has_ids:
                pair = min(others, key=lambda each: len(_differing_fields(event, each)))
                others.remove(pair)
            found.append(_compare(place, event, pair, others, oldest, is_all=len(answer) < MAX_EVENTS))
    return found


def _pair(ours: Sequence[Json], held: Sequence[_Held]) -> tuple[dict[int, _Held], bool]:
    """Which of theirs is which of ours, by place; and whether Iterable shows our ids."""
    by_id = {each.event_id: each for each in held if each.event_id}
    pairs = {place: by_id[event["id"]] for place, event in enumerate(ours) if event["id"] in by_id}
    taken = {id(each) for each in pairs.values()}
    left: dict[tuple[str, int | None], list[_Held]] = defaultdict(list)
    for each in held:
        if id(each) not in taken:
            left[_name_and_second(each)].append(each)
    # Those with the most fields first: what has fewer could be taken for them.
    rest = sorted(set(range(len(ours))) - set(pairs), key=lambda place: -len(ours[place]["dataFields"]))
    has_ids = bool(pairs)
    for place in rest:
        candidates = left.get((ours[place]["eventName"], ours[place]["createdAt"]), [])
        same = next((each for each in candidates if not _differing_fields(ours[place], each)), None)
        if same is not None:
            candidates.remove(same)
            pairs[place] = same
    return pairs, has_ids


def _compare(
    place: int, event: Json, pair: _Held | None, others: list[_Held], oldest: float | None, *, is_all: bool
) -> ComparedEvent:
    """others: events of the same name and second that are nobody's. oldest: that Iterable shows, where that tells."""
    if pair is None:
        is_told = is_all or (oldest is not None and event["createdAt"] > oldest)
        return ComparedEvent(place, EventState.MISSING if is_told else EventState.UNKNOWN)
    if fields := _differing(event, pair):
        return ComparedEvent(place, EventState.DIFFERENT, fields)
    doubles = [each for each in others if _says_the_same(event, pair, each)]
    for each in doubles:
        others.remove(each)
    if doubles:
        return ComparedEvent(place, EventState.DOUBLED, (), [each.event_id for each in doubles])
    return ComparedEvent(place, EventState.SAME)


def _differing(event: Json, held: _Held) -> list[Field]:
    found = []
    if held.body["eventName"] != event["eventName"]:
        found.append(Field("eventName", event["eventName"], held.body["eventName"], Match.DIFFERENT))
    if held.second not in (None, event["createdAt"]):
        found.append(Field("createdAt", event["createdAt"], held.body["createdAt"], Match.DIFFERENT))
    return found + _differing_fields(event, held)


def _differing_fields(event: Json, held: _Held) -> list[Field]:
    return differing(compare_fields(event["dataFields"], held.body.get("dataFields") or {}))


def _says_the_same(event: Json, held: _Held, other: _Held) -> bool:
    """Whether another event of Iterable's is a copy of the one that is ours, and no event with more fields."""
    fields, others = (each.body.get("dataFields") or {} for each in (held, other))
    return fields.keys() == others.keys() and not _differing_fields(event, other)


def _held(event: Json) -> _Held:
    return _Held(str(event.get("_id") or ""), _second(event.get("createdAt")), event)


def _name_and_second(event: _Held) -> tuple[str, int | None]:
    return event.body["eventName"], event.second


def _oldest(shown: Sequence[_Held]) -> float | None:
    """The time of the oldest event shown; None where they are not the latest ones by their time, so that an event which
    is not among them may be there all the same."""
    seconds = [each.second for each in shown if each.second is not None]
    if len(seconds) < len(shown) or seconds != sorted(seconds, reverse=True):
        return None
    return seconds[-1]


def _second(value: Any) -> int | None:
    """`2026-01-14 06:20:22 +00:00`, `2025-12-19T22:43:34.134105.000Z`, seconds or milliseconds -> Unix seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value // 1000 if value >= MOST_SECONDS else value)
    if not isinstance(value, str):
        return None
    try:
        return unix_microseconds(_TWO_FRACTIONS.sub(r"\1Z", value), timezone.utc, "") // MICROSECONDS
    except InvalidRecord:
        return None
