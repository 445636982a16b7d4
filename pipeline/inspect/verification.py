"""What --verify found out: counted, and as text and as JSON. Pure.

Every record that was to be compared ends in exactly one of: same, different, missing, doubled, old address, forgotten,
not compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from iterable import VERSION
from pipeline.inspect.event_readback import ComparedEvent, EventState
from pipeline.inspect.readback import Field, advice, beside, differing, fields_as_json, verdict_on
from pipeline.inspect.verify_people import Left, Person
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import counted, iso, moment, shown, wrapped

MAX_SHOWN = 1000  # people who differ; the report has all
MAX_EVENTS_SHOWN = 20  # of one person
COMPARED = ("same", "different", "missing", "doubled")
DIFFER = ("different", "missing", "doubled")
COUNTS = ("compared", *COMPARED, "old_address", "forgotten", "not_compared")


class PersonState(str, Enum):
    """How Iterable's copy of somebody compares."""

    SAME = "same"
    DIFFERENT = "different"
    MISSING = "missing"
    FORGOTTEN = "forgotten"
    NOT_READ = "not_read"


@dataclass(frozen=True)
class Compared:
    """A person beside Iterable's copy. fields: of the user, all that were compared. events: those that were compared.
    problem: why nothing was read."""

    person: Person
    state: PersonState
    fields: Sequence[Field] = ()
    events: Sequence[ComparedEvent] = ()
    missing_fields: Sequence[str] = ()
    problem: str = ""

    @property
    def differing_events(self) -> list[ComparedEvent]:
        return [each for each in self.events if each.state.value in DIFFER]

    @property
    def user_differs(self) -> bool:
        return self.person.user is not None and self.state in (PersonState.DIFFERENT, PersonState.MISSING)

    @property
    def is_worth_showing(self) -> bool:
        return self.user_differs or bool(self.differing_events) or self.state is PersonState.NOT_READ


@dataclass
class Marked:
    """What --repair has marked as not accepted. advice: sentences about the next run."""

    users: int = 0
    events: int = 0
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{counted(self.users, 'user')}, {counted(self.events, 'event')}"


@dataclass
class Verification:
    """offered: how many people could be compared; None where all were to be. left: what was left out before.
    finds_person: there are rows of the person who was asked for. forgotten: records of people whom --forget has
    forgotten. stopped: why not all were compared."""

    notes: list[str]
    settle_s: float
    offered: int | None
    left: Callable[[], Left]
    knows_anybody: bool = True
    finds_person: bool = True
    forgotten: Mapping[Kind, int] = field(default_factory=dict)
    repair: Marked | None = None
    stopped: Ending | None = None
    people: int = 0
    shown: list[Compared] = field(default_factory=list)
    differing_people: int = 0
    missing_fields: Counter[str] = field(default_factory=Counter)
    files: Mapping[str, str | None] = field(default_factory=dict)
    _counts: dict[Kind, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in Kind})

    def add(self, each: Compared) -> None:
        self.people += 1
        users, events = self._counts[Kind.USER], self._counts[Kind.EVENT]
        if each.person.user is not None:
            users["not_compared" if each.state is PersonState.NOT_READ else each.state.value] += 1
        if each.state in (PersonState.NOT_READ, PersonState.FORGOTTEN):
            state = "forgotten" if each.state is PersonState.FORGOTTEN else "not_compared"
            events[state] += len(each.person.accepted_events)
        for event in each.events:
            events["not_compared" if event.state is EventState.UNKNOWN else event.state.value] += 1
        self.missing_fields.update(each.missing_fields)
        if each.is_worth_showing:
            self.differing_people += 1
            if len(self.shown) < MAX_SHOWN:
                self.shown.append(each)

    def finish(self, files: Mapping[str, str | None]) -> None:
        self.files = files

    def counts(self, kind: Kind) -> dict[str, int]:
        found, left = self._counts[kind], self.left()
        return {
            **{name: found[name] for name in COUNTS},
            "forgotten": found["forgotten"] + self.forgotten.get(kind, 0),
            "compared": sum(found[name] for name in COMPARED),
            "not_compared": found["not_compared"] + left.too_recent[kind] + left.changed[kind],
        }

    @property
    def counts_by_kind(self) -> dict[str, dict[str, int]]:
        return {f"{kind.value}s": self.counts(kind) for kind in Kind}

    @property
    def has_compared(self) -> bool:
        return any(self.counts(kind)["compared"] for kind in Kind)

    @property
    def differ(self) -> bool:
        return any(self.counts(kind)[name] for kind in Kind for name in DIFFER)

    @property
    def exit_code(self) -> ExitCode:
        if self.stopped is not None:
            return self.stopped.code
        if not self.finds_person:
            return ExitCode.REJECTED
        if not self.has_compared:
            return ExitCode.TEMPORARY
        return ExitCode.REJECTED if self.differ else ExitCode.SUCCESS


def body_of(each: Compared, event: ComparedEvent) -> dict[str, Any]:
    """An event as it is sent."""
    body: dict[str, Any] = json.loads(each.person.events[event.place].record.payload)
    return body


# Text -----------------------------------------------------------------------------------------------------------------

NOTHING = "Nothing was compared: nothing that the query finds is known as accepted and unchanged since."
NOBODY = "Nothing was compared: the ledger knows nobody of this project yet. Run the job first."
NO_ROWS = "Nothing was compared: the query finds no rows of the person that --only names."
UNREAD = "Nothing was compared: Iterable refused to show the people who were chosen."
OLD_ADDRESS = "Nothing was compared: what was accepted may be in the profiles of addresses before (EMAIL_CHANGES=new)."
FORGOTTEN = "Nothing was compared: everybody who was to be was forgotten, by Iterable or by --forget."


def why_nothing(found: Verification) -> str:
    if not found.finds_person:
        return NO_ROWS
    counts = found.counts(Kind.USER)
    if found.people:
        if found.counts(Kind.EVENT)["old_address"]:
            return OLD_ADDRESS
        return FORGOTTEN if counts["forgotten"] else UNREAD
    if any(found.left().too_recent.values()):
        what = f"less than {found.settle_s:g} seconds ago. Try again in a minute."
        return f"Nothing was compared: everything was accepted {what}"
    if counts["forgotten"]:
        return FORGOTTEN
    return NOTHING if found.knows_anybody else NOBODY


def different_as_text(found: Verification) -> Iterator[str]:
    for each in found.shown:
        yield from wrapped(f"{shown(each.person.identity)}: {_verdict(each)}", "", "    ")
        if each.state is PersonState.DIFFERENT:
            yield from beside(differing(each.fields))
        if each.state is not PersonState.MISSING:
            yield from _events_as_text(each)
        yield ""
    if found.differing_people > len(found.shown):
        yield from wrapped(f"And {found.differing_people - len(found.shown):,} more people; the report has all.")
        yield ""


def _verdict(each: Compared) -> str:
    at = each.person.accepted_at
    accepted = f"; accepted {moment(at)}" if at is not None else ""
    if each.state is PersonState.NOT_READ:
        return f"not read: {each.problem}"
    if each.state is PersonState.MISSING:
        missing = len(each.differing_events)
        events = f", nor {counted(missing, 'event')}" if missing else ""
        return f"not found in Iterable{events}{accepted}"
    user = verdict_on(each.fields) if each.person.user is not None else "the user was not compared"
    events = f", {counted(len(each.differing_events), 'event')} not as accepted" if each.differing_events else ""
    return f"{user}{events}{accepted}"


def _events_as_text(each: Compared) -> Iterator[str]:
    for event in each.differing_events[:MAX_EVENTS_SHOWN]:
        body = body_of(each, event)
        about = f"{moment(body['createdAt'])}  {shown(body['eventName'])} {shown(body['id'])}"
        copies = f" as {', '.join(map(shown, event.doubles))}" if event.doubles else ""
        yield from wrapped(f"{about}: {event.state.value}{copies}", "    ", "        ")
        if event.fields:
            yield from beside(event.fields)
    if len(each.differing_events) > MAX_EVENTS_SHOWN:
        yield f"    and {len(each.differing_events) - MAX_EVENTS_SHOWN:,} more events; the report has all"


def summary(found: Verification) -> Iterator[str]:
    """Without anybody's values, so that it may be logged."""
    for note in found.notes if found.has_compared else ():
        yield from wrapped(note)
    for name, users in found.missing_fields.most_common():
        yield from wrapped(f"{shown(name)} was sent but is missing in Iterable for {counted(users, 'user')}.")
    if found.has_compared:
        for kind in Kind:
            yield from _counts_as_text(found, kind)
    yield from _left_as_text(found)
    if found.repair is not None:
        then = " The next run sends just these." if found.repair.users or found.repair.events else ""
        yield from wrapped(f"Marked as not accepted: {found.repair}.{then}")
        for sentence in found.repair.advice:
            yield from wrapped(sentence)
    elif found.differ:
        yield from wrapped(advice(is_any_missing=bool(found.missing_fields)))
    for name in filter(None, found.files.values() if found.has_compared else ()):
        yield f"See {name}"


def _counts_as_text(found: Verification, kind: Kind) -> Iterator[str]:
    counts = found.counts(kind)
    if not counts["compared"] and not counts["not_compared"]:
        return
    numbers = [f"{counts['same']:,} the same"] + [f"{counts[name]:,} {name}" for name in DIFFER if counts[name]]
    chosen = ""
    if kind is Kind.USER and found.offered is not None and found.people < found.offered:
        chosen = f" Chosen from {found.offered:,} people."
    yield from wrapped(
        f"{counted(counts['compared'], kind.value)} compared with Iterable: {', '.join(numbers)}.{chosen}"
    )


def _left_as_text(found: Verification) -> Iterator[str]:
    left = found.left()
    if not found.has_compared:
        return
    if any(left.too_recent.values()):
        yield from wrapped(
            f"Left out: {_numbers(left.too_recent)} accepted less than {found.settle_s:g} seconds ago, as Iterable "
            "takes a while to show what it accepted."
        )
    if any(left.changed.values()):
        yield from wrapped(f"Left out: {_numbers(left.changed)} changed since, or not known as accepted.")
    if kept := found.counts(Kind.EVENT)["old_address"]:
        yield from wrapped(
            f"Left out: {counted(kept, 'event')} of people with another address than before, whose old profile may "
            "have them (EMAIL_CHANGES=new)."
        )
    forgotten = {kind: found.counts(kind)["forgotten"] for kind in Kind}
    if any(forgotten.values()):
        yield from wrapped(f"Left out: {_numbers(forgotten)} of people who were forgotten, by Iterable or by --forget.")
    events = found.counts(Kind.EVENT)["not_compared"] - left.too_recent[Kind.EVENT] - left.changed[Kind.EVENT]
    if events:
        yield from wrapped(
            f"Not compared: {counted(events, 'event')}, as Iterable shows only the latest 200 of a person."
        )


def _numbers(counts: Mapping[Kind, int]) -> str:
    """`1 user and 2 events`"""
    return " and ".join(counted(counts[kind], kind.value) for kind in Kind if counts[kind])


# JSON -----------------------------------------------------------------------------------------------------------------


def results_as_json(found: Verification, finished_at: str) -> dict[str, Any]:
    """What verify_results_*.json has: no personal data."""
    return {
        "tool_version": VERSION,
        "exit_code": int(found.exit_code),
        "finished_at": finished_at,
        "counts": found.counts_by_kind,
    }


def as_json(found: Verification) -> dict[str, Any]:
    users, left = found.counts(Kind.USER), found.left()
    return {
        "tool_version": VERSION,
        "notes": list(found.notes),
        "offered": found.offered if found.offered is not None else found.people,
        "too_recent": left.too_recent[Kind.USER],
        "forgotten": users["forgotten"],
        "compared": users["compared"],
        "same": users["same"],
        "missing_fields": dict(found.missing_fields.most_common()),
        "counts": found.counts_by_kind,
        "different": [_person_as_json(each) for each in found.shown],
        "marked": None if found.repair is None else {"users": found.repair.users, "events": found.repair.events},
        "files": dict(found.files),
        "stopped": found.stopped.reason if found.stopped is not None else None,
        "exit_code": int(found.exit_code),
    }


def _person_as_json(each: Compared) -> dict[str, Any]:
    return {
        "who": each.person.identity,
        "row": each.person.row,
        "accepted_at": iso(each.person.accepted_at),
        "is_found": each.state in (PersonState.SAME, PersonState.DIFFERENT),
        "problem": each.problem or None,
        "fields": fields_as_json(differing(each.fields)),
        "events": [_event_as_json(each, event) for event in each.differing_events],
    }


def _event_as_json(each: Compared, event: ComparedEvent) -> dict[str, Any]:
    return {
        "event_id": body_of(each, event)["id"],
        "state": event.state.value,
        "fields": fields_as_json(event.fields),
        "doubles": list(event.doubles),
    }
