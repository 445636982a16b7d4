"""People who were forgotten (`--forget`): all that is left of them are keyed hashes of who they are, by which every
later run knows them, so that nothing of them is sent.

A hash is that of an address (or userId), or of the person, whatever the address. These hashes stay for ever.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count

from pipeline.ledger.people import KnownPeople, KnownUser
from pipeline.model.keys import HASH_BYTES, USER_BYTES

TABLE = """
CREATE TABLE forgotten (  -- people; `number`: one for each, `hash`: of an address or userId, or of a person
    project INTEGER NOT NULL, hash BLOB NOT NULL, number INTEGER NOT NULL, day INTEGER NOT NULL,
    PRIMARY KEY (project, hash)
) WITHOUT ROWID;
"""

_EPOCH = date(1970, 1, 1)
_END_OF_PREFIX = b"\xff" * HASH_BYTES


@dataclass(frozen=True)
class PersonInLedger:
    """All by which one person is known.

    hashes: of addresses (or userIds), and of who it is. keys: with which what is known of the person begins. users,
    events, failures: how many entries that are. is_shared: several people had the address, so that nothing says which
    of them is meant. forgotten_on: when the person was forgotten before.
    """

    hashes: frozenset[bytes]
    keys: tuple[bytes, ...] = ()
    users: int = 0
    events: int = 0
    failures: int = 0
    is_shared: bool = False
    forgotten_on: date | None = None

    @property
    def addresses(self) -> frozenset[bytes]:
        return frozenset(each for each in self.hashes if len(each) == HASH_BYTES)

    @property
    def persons(self) -> frozenset[bytes]:
        return self.hashes - self.addresses

    @property
    def is_known(self) -> bool:
        """Whether there is anything to delete."""
        return bool(self.users or self.events or self.failures)


class Forgotten:
    """Those of one project. user_key: of an address or userId."""

    def __init__(
        self,
        database: sqlite3.Connection,
        project: int,
        today: int,
        people: KnownPeople,
        user_key: Callable[[str], bytes],
    ) -> None:
        self._database = database
        self._project = project
        self._today = today
        self._people = people
        self._user_key = user_key
        rows = database.execute("SELECT hash, number, day FROM forgotten WHERE project = ?", (project,))
        self._known: dict[bytes, tuple[int, int]] = {hashed: (number, day) for hashed, number, day in rows}

    def __bool__(self) -> bool:
        """Whether anybody was forgotten."""
        return bool(self._known)

    def __contains__(self, hashed: bytes) -> bool:
        return hashed in self._known

    def count(self) -> int:
        """How many people."""
        return len({number for number, _ in self._known.values()})

    def day_of(self, hashes: Iterable[bytes]) -> date | None:
        """When whoever these hashes mean was forgotten last; None: nobody was."""
        days = [self._known[each][1] for each in hashes if each in self._known]
        return _EPOCH + timedelta(days=max(days)) if days else None

    # One person -------------------------------------------------------------------------------------------------

    def find(self, identity: str, person: bytes | None = None) -> PersonInLedger:
        """Whom an address or userId means: the one who has it now, or else the only one who had it. person: who that is
        by other evidence, where the ledger does not say."""
        own = self._user_key(identity)
        users = self._users_of(identity, own)
        is_shared = any(self._people.has_more_persons(user.key) for user in users)
        persons = set() if is_shared else {user.person for user in users if user.person is not None}
        if person is not None and not persons and not is_shared:
            persons = {person}
        if persons:  # the same person may be known under more addresses
            same = self._people.users_of_persons(list(persons))
            more = [user for found in same.values() for user in found if user.person in persons]
            users = list({user.key: user for user in (*users, *more)}.values())
        keys = [user.key for user in users]
        hashes = {own, *persons, *self._same_as(own)}
        for user in users:
            hashes.update(self._addresses_of(user, keys))
        addresses = [each for each in hashes if len(each) == HASH_BYTES]
        others = {user.key for user in self._people.users_by_key(addresses)}.difference(keys)
        all_keys = {*keys, *addresses}.difference(others)  # a failure needs no user
        prefixes = {each[:USER_BYTES] for each in all_keys}
        return PersonInLedger(
            frozenset(hashes),
            tuple(sorted(all_keys)),
            len(keys),
            sum(self._count(*each) for prefix in prefixes for each in _events_of(prefix)),
            sum(self._count("past_failures", *_begins_with(prefix)) for prefix in prefixes),
            is_shared,
            self.day_of(hashes),
        )

    def _users_of(self, identity: str, own: bytes) -> list[KnownUser]:
        here = list(self._people.users_at([own]).values())
        first = self._people.users_by_key([own])
        here += [user for user in first if user.address is None]
        here += self._people.users_moving_to(own)
        if here:
            return list({user.key: user for user in here}.values())
        left = [*first, *self._later_owners(identity)]
        return left if len(left) == 1 else []  # which of several is meant can't be told

    def _later_owners(self, identity: str) -> Iterator[KnownUser]:
        """Those who had the address after its first owner had left it."""
        for number in count(2):
            found = self._people.users_by_key([self._user_key(later_owner(identity, number))])
            if not found:
                return
            yield from found

    def _addresses_of(self, user: KnownUser, keys: list[bytes]) -> Iterator[bytes]:
        """Hashes of the addresses that a user has, had or was to have; not of one that is somebody else's now."""
        for hashed in filter(None, (user.key, user.address, user.moving_to)):
            if all(owner.key in keys for owner in self._people.users_at([hashed]).values()):
                yield hashed

    def _same_as(self, hashed: bytes) -> set[bytes]:
        """All hashes of the person who was forgotten with this one."""
        if hashed not in self._known:
            return set()
        number = self._known[hashed][0]
        return {each for each, (same, _) in self._known.items() if same == number}

    # Changing ---------------------------------------------------------------------------------------------------

    def forget(self, person: PersonInLedger) -> None:
        """Keep the hashes, and delete all else that is known of the person. Who commits makes both last at once."""
        (last,) = self._database.execute(
            "SELECT coalesce(max(number), 0) FROM forgotten WHERE project = ?", (self._project,)
        ).fetchone()
        number = next((self._known[each][0] for each in sorted(person.hashes) if each in self._known), last + 1)
        for hashed in sorted(person.hashes):
            day = self._known[hashed][1] if hashed in self._known else self._today
            self._known[hashed] = number, day
            self._database.execute(
                "INSERT OR REPLACE INTO forgotten (project, hash, number, day) VALUES (?, ?, ?, ?)",
                (self._project, hashed, number, day),
            )
        for key in person.keys:
            for table, condition, values in _events_of(key[:USER_BYTES]):
                self._delete(table, condition, values)
            self._delete("past_failures", *_begins_with(key[:USER_BYTES]))
            self._delete("users", "key = ?", (key,))
            self._delete("more_persons", "key = ?", (key,))
        for each in person.persons:
            self._delete("more_persons", "person = ?", (each,))
        self._delete("row_digests", "true", ())  # the person may stand in rows of others, or under the other identifier

    def lift(self, hashes: Iterable[bytes]) -> None:
        """Whoever these hashes mean is no longer one of the forgotten."""
        for number in {self._known[each][0] for each in hashes if each in self._known}:
            self._delete("forgotten", "number = ?", (number,))
            self._known = {each: known for each, known in self._known.items() if known[0] != number}

    def _count(self, table: str, condition: str, values: tuple[object, ...]) -> int:
        (found,) = self._database.execute(
            f"SELECT count(*) FROM {table} WHERE project = ? AND {condition}", (self._project, *values)
        ).fetchone()
        return int(found)

    def _delete(self, table: str, condition: str, values: tuple[object, ...]) -> None:
        self._database.execute(f"DELETE FROM {table} WHERE project = ? AND {condition}", (self._project, *values))


def later_owner(identity: str, number: int) -> str:
    """What stands for the second owner of an address, and so on, whose first one has moved on: no address."""
    return f"{identity}\n{number}"


def _begins_with(prefix: bytes) -> tuple[str, tuple[object, ...]]:
    return "key >= ? AND key < ?", (prefix, prefix + _END_OF_PREFIX)


def _events_of(prefix: bytes) -> list[tuple[str, str, tuple[object, ...]]]:
    """Where the events of a user stand, whose key begins so."""
    return [("events", *_begins_with(prefix)), ("given_events", "person = ?", (prefix,))]
