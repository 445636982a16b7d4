"""The journeys that pending events would start, as Iterable lists them: for --dry-run, --check and the brake.

`GET /api/journeys` needs a server-side key that may read them. Whatever goes wrong there is a note, and no more.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from iterable_client import IterableClient
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import Record
from pipeline.model.text import counted, shown

MOST_PAGES = 20
DEADLINE_S = 30.0  # for all pages
MOST_NAMES = 20  # of events, that are shown
MOST_NAMES_STORED = 1000  # in the results

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Journey:
    """An enabled journey. simultaneous: how often a person may be in it at once; lifetime: ever. None: no limit."""

    name: str
    event_names: frozenset[str]
    simultaneous: int | None
    lifetime: int | None

    def __str__(self) -> str:
        at_once = f"{self.simultaneous:,} at a time" if self.simultaneous is not None else "any number at a time"
        ever = f"{self.lifetime:,} in a lifetime" if self.lifetime is not None else "no lifetime limit"
        return f"{shown(self.name)} ({at_once}, {ever})"


@dataclass
class PendingEvents:
    """How many events of one name are pending, and of how many people."""

    events: int = 0
    people: int = 0


@dataclass(frozen=True)
class StartedJourneys:
    """What the pending events of one name would start."""

    event_name: str
    pending: PendingEvents
    journeys: Sequence[Journey]

    def __str__(self) -> str:
        events, people = counted(self.pending.events, "event"), _people(self.pending.people)
        return f"{events} of {shown(self.event_name)} ({people}) would start: {', '.join(map(str, self.journeys))}."


@dataclass(frozen=True)
class FoundJourneys:
    """What pending events would start, name by name. problem: why this is not known."""

    started: Sequence[StartedJourneys] = ()
    problem: str | None = None

    def in_words(self) -> list[str]:
        if self.problem is not None:
            return [f"Which journeys these events would start is not known: {self.problem}."]
        sentences = [str(each) for each in self.started[:MOST_NAMES]]
        if len(self.started) > MOST_NAMES:
            sentences.append(f"{len(self.started) - MOST_NAMES:,} more names of events would start journeys.")
        return sentences

    def as_json(self) -> dict[str, Any]:
        """For the results."""
        started = [
            {
                "event_name": each.event_name,
                "events": each.pending.events,
                "people": each.pending.people,
                "journeys": [asdict(journey, dict_factory=_without_event_names) for journey in each.journeys],
            }
            for each in self.started[:MOST_NAMES_STORED]
        ]
        return {"problem": self.problem, "started": started}


def _without_event_names(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if name != "event_names"}


class Unreadable(Exception):
    """The journeys can't be read. The text says why."""


def count_by_name(events: Iterator[Record]) -> dict[str, PendingEvents]:
    """Pending events by their name. They come user by user."""
    counts: dict[str, PendingEvents] = {}
    last_user: dict[str, bytes] = {}
    for event in events:
        name = str(json.loads(event.payload)["eventName"])
        count = counts.setdefault(name, PendingEvents())
        count.events += 1
        if last_user.get(name) != (user := event.key[:USER_BYTES]):
            last_user[name] = user
            count.people += 1
    return counts


def find_journeys(client: IterableClient, counts: Mapping[str, PendingEvents], *, is_jwt: bool) -> FoundJourneys:
    """What these events would start. Without any, nothing is asked for."""
    if not counts:
        return FoundJourneys()
    if is_jwt:
        return FoundJourneys(problem="a client-side key (JWT) can't read them")
    try:
        journeys = read_journeys(client)
    except Unreadable as problem:
        return FoundJourneys(problem=str(problem))
    listening = {name: [each for each in journeys if name in each.event_names] for name in counts}
    return FoundJourneys([StartedJourneys(name, counts[name], each) for name, each in listening.items() if each])


def journeys_in_words(client: IterableClient, counts: Mapping[str, PendingEvents], *, is_jwt: bool) -> list[str]:
    """A sentence for each name of events that starts journeys, or the one that says why this is not known."""
    return find_journeys(client, counts, is_jwt=is_jwt).in_words()


def _people(number: int) -> str:
    return "1 person" if number == 1 else f"{number:,} people"


# Reading --------------------------------------------------------------------------------------------------------------


def read_journeys(client: IterableClient, deadline_s: float = DEADLINE_S) -> list[Journey]:
    """The enabled ones that listen to events. Raises Unreadable."""
    found: list[list[Journey] | str] = []

    def read() -> None:
        try:
            found.append(_read_all(client))
        except Exception as bug:
            logger.error("Reading the journeys failed.", exc_info=bug)
            found.append(type(bug).__name__)

    reading = threading.Thread(target=read, name="journeys", daemon=True)
    reading.start()
    reading.join(deadline_s)
    if not found:
        raise Unreadable(f"Iterable did not list them within {deadline_s:g} s")
    (journeys,) = found
    if isinstance(journeys, str):
        raise Unreadable(journeys)
    return journeys


def _read_all(client: IterableClient) -> list[Journey] | str:
    """All pages, asked for by their number: an address that an answer names is not followed. A text: why not."""
    journeys: list[Journey] = []
    seen = 0
    for page in range(1, MOST_PAGES + 1):
        ok, answer = client.get_journeys(page)
        if not ok:
            return str(answer["error"]).rstrip(".")
        listed = answer.get("journeys")
        if not isinstance(listed, list):
            return "Iterable's answer has no list of journeys"
        journeys += [_journey(each) for each in listed if isinstance(each, dict) and _is_enabled(each)]
        seen += len(listed)
        if not listed or not (answer.get("nextPageUrl") or seen < _number(answer.get("totalJourneysCount"))):
            return journeys
    return f"the project has more than {MOST_PAGES} pages of journeys"


def _is_enabled(listed: Mapping[str, Any]) -> bool:
    return bool(listed.get("enabled")) and not listed.get("isArchived")


def _journey(listed: Mapping[str, Any]) -> Journey:
    names = listed.get("triggerEventNames")
    event_names = frozenset(map(str, names)) if isinstance(names, list) else frozenset()
    simultaneous, lifetime = (_limit(listed.get(name)) for name in ("simultaneousLimit", "lifetimeLimit"))
    return Journey(str(listed.get("name")), event_names, simultaneous, lifetime)


def _limit(listed: Any) -> int | None:
    return _number(listed) or None


def _number(listed: Any) -> int:
    return max(0, listed) if isinstance(listed, int) else 0
