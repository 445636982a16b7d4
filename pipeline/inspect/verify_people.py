"""Whom `--verify` compares: people with what the ledger calls accepted of them, out of the plan of all rows.

Nobody is kept: people pass one by one, however many there are, in the order of the ledger's keys, which are hashes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, islice

from pipeline.inspect.session import InspectionSession
from pipeline.ledger.people import KnownUser
from pipeline.ledger.project import Hasher
from pipeline.model.keys import USER_BYTES, is_given
from pipeline.model.records import Kind, Record
from pipeline.model.sql import KEYS_PER_STATEMENT
from pipeline.stage.pages import BYTES_A_PAGE, RECORDS_A_PAGE, records_of
from pipeline.stage.stage import BEHIND_ALL_KEYS
from pipeline.stage.states import UNCHANGED
from pipeline.transform.address_changes import EMAIL_CHANGED, changes_only

SORTED_BELOW = 1000  # people: so few are read in the order of the query


@dataclass(frozen=True)
class OurEvent:
    """accepted_at: Unix seconds; None for what is not accepted as it is, or so recently that it is not compared."""

    record: Record
    accepted_at: float | None


@dataclass(frozen=True)
class Person:
    """Somebody to compare. user: None where the update is not compared. accepted_at: of the user, Unix seconds.
    has_new_profile: another one may have what was accepted under the address before."""

    identity: str
    row: int
    user: Record | None
    accepted_at: float | None
    events: Sequence[OurEvent]
    has_new_profile: bool = False

    @property
    def accepted_events(self) -> list[OurEvent]:
        return [each for each in self.events if each.accepted_at is not None]


@dataclass
class Left:
    """Records that are known and not compared, by kind. too_recent: accepted just now. changed: others."""

    too_recent: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    changed: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))


@dataclass
class Candidates:
    """Those who can be compared. identity: this person alone; None: everybody. settled_before: Unix seconds."""

    session: InspectionSession
    identity: str | None
    settled_before: float
    left: Left = field(default_factory=Left)

    def people(self) -> Iterator[Person]:
        self.left = Left()
        for page in self._pages():
            yield from self._look_up(page)
        self._leave_changed_addresses()

    def _pages(self) -> Iterator[list[tuple[Record | None, list[Record]]]]:
        """Some people at a time, each with the update and the events that a run with --full would send."""
        page: list[tuple[Record | None, list[Record]]] = []
        count = size = 0
        for user, events in self._by_person():
            if self.identity not in (None, (user or events[0]).identity):
                continue
            page.append((user, events))
            count += 1 + len(events)
            size += sum(len(each.payload) for each in events) + len(user.payload if user else b"")
            if count >= RECORDS_A_PAGE or size >= BYTES_A_PAGE:
                yield page
                page, count, size = [], 0, 0
        if page:
            yield page

    def _leave_changed_addresses(self) -> None:
        """Count what is known of people who have another address now. Iterable has them under the old one, until a run
        has moved them, or somebody has settled a change that is held."""
        records = (each for each in self._with_changed_address() if self.identity in (None, each[1]))
        while chunk := list(islice(records, KEYS_PER_STATEMENT)):
            known = self.session.ledger.known([key for _, _, key in chunk])
            for kind, _, key in chunk:
                self.left.changed[kind] += key in known

    def _with_changed_address(self) -> Iterator[tuple[Kind, str | None, bytes]]:
        stage = self.session.stage
        # Nothing else is late in a plan that sends all, and nobody else unchanged.
        unchanged = records_of(stage.people.read(UNCHANGED, b"", BEHIND_ALL_KEYS))
        for record in chain(unchanged, *(stage.pending(kind, late=True) for kind in Kind)):
            yield record.kind, record.identity, record.key
        for failures in stage.outcomes.refusals():
            for key, _, failed in failures:
                if failed.code == EMAIL_CHANGED:
                    yield failed.kind, failed.identity, key

    def _by_person(self) -> Iterator[tuple[Record | None, list[Record]]]:
        stage = self.session.stage
        users = records_of(stage.pending_by_user(Kind.USER))
        by_person = groupby(stage.pending_by_user(Kind.EVENT), key=lambda each: each.records[0].key[:USER_BYTES])
        events = ((prefix, list(records_of(found))) for prefix, found in by_person)
        user, own = next(users, None), next(events, None)
        while user is not None or own is not None:
            prefix = user.key[:USER_BYTES] if user is not None else own[0] if own is not None else b""
            if own is not None and own[0] < prefix:
                prefix = own[0]
            is_of_user, is_of_events = user is not None and user.key[:USER_BYTES] == prefix, own and own[0] == prefix
            yield user if is_of_user else None, own[1] if own is not None and is_of_events else []
            if is_of_user:
                user = next(users, None)
            if is_of_events:
                own = next(events, None)

    def _look_up(self, page: Sequence[tuple[Record | None, list[Record]]]) -> Iterator[Person]:
        ledger = self.session.ledger
        user_keys = [user.key for user, _ in page if user is not None]
        event_keys = [each.key for _, events in page for each in events]
        users = ledger.accepted.known_users(user_keys)
        known = ledger.known(event_keys)
        given = ledger.accepted.known_given([key for key in event_keys if is_given(key)])
        others = {key for key, each in given.items() if each.person != key[:USER_BYTES]}
        accepted_at = ledger.accepted_at([*user_keys, *event_keys])
        new_profiles = self._new_profiles([(user or events[0]).identity for user, events in page])
        for user, events in page:
            user_at = None
            if user is not None and user.key in users:
                is_accepted = is_accepted_as_it_is(user, users[user.key], ledger.hasher)
                user_at = self._settled(Kind.USER, is_accepted, accepted_at.get(user.key))
            found = []
            for each in events:
                at = None
                if each.key in known:
                    is_accepted = known[each.key] == each.fingerprint and each.key not in others
                    at = self._settled(Kind.EVENT, is_accepted, accepted_at.get(each.key))
                found.append(OurEvent(each, at))
            if user_at is not None or any(each.accepted_at is not None for each in found):
                first = user or events[0]
                update = user if user_at is not None else None
                yield Person(first.identity, first.row, update, user_at, found, first.identity in new_profiles)

    def _new_profiles(self, people: Sequence[str]) -> set[str]:
        """Those of these people whose address has changed, where that makes a second profile."""
        if self.session.settings.email_changes != "new":
            return set()
        addresses = {who: self.session.ledger.user_key(who) for who in people}
        moved = self.session.ledger.accepted.people.users_at(list(addresses.values()))
        return {who for who, address in addresses.items() if address in moved}

    def _settled(self, kind: Kind, is_accepted: bool, accepted_at: float | None) -> float | None:
        """When a known record was accepted, if it is to be compared."""
        if not is_accepted or accepted_at is None:
            self.left.changed[kind] += 1
            return None
        if accepted_at > self.settled_before:
            self.left.too_recent[kind] += 1
            return None
        return accepted_at


def is_accepted_as_it_is(user: Record, known: KnownUser, hasher: Hasher) -> bool:
    """Whether a run would skip the update: known as a whole, or field by field."""
    if known.fingerprint == user.fingerprint:
        return True
    details = changes_only(user, known.fields, hasher).details
    return details is not None and not details.sent


def choose(people: Callable[[], Iterator[Person]], size: int, chance: random.Random) -> tuple[int, Iterator[Person]]:
    """How many there are, and `size` of them at random, each with the same chance. They pass twice."""
    offered = sum(1 for _ in people())
    chosen = _draw(people(), size, offered, chance)
    if size < SORTED_BELOW:
        return offered, iter(sorted(chosen, key=lambda person: person.row))
    return offered, chosen


def _draw(people: Iterator[Person], size: int, offered: int, chance: random.Random) -> Iterator[Person]:
    """Each is taken with the chance that as many as are wanted among all that are left have. All pass to the end, so
    that what is left out is counted."""
    for person, left in zip(people, range(offered, 0, -1), strict=False):
        if chance.random() * left < size:
            size -= 1
            yield person
