"""What Iterable has accepted of one project: users with their fields, and events, as hashes.

A user is known by a hash of the address (or userId) under which the ledger first knew them. Where the address has
changed since, `address` has a hash of the present one, and that leads to the user, too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from pipeline.ledger.people import KnownPeople, KnownUser
from pipeline.ledger.row_digests import RowDigests
from pipeline.model.keys import HASH_BYTES, USER_BYTES, is_given, split_fields, split_names
from pipeline.model.records import Kind, Record, UserDetails
from pipeline.model.sql import insert_many, rows_of_keys, run_for_keys

DAY_S = 86_400
REFRESH_DAYS = 30  # how far "last seen" may lag behind, so that a run without news writes nothing
TABLES = ("users", "events", "given_events")

_KEY_FINGERPRINT = itemgetter(3, 4)  # at the speed of C: every event passes through it
_NOTHING = UserDetails()


class GivenEvent(NamedTuple):
    """What is known of an id that the query gave. person: the beginning of the key of the user whose event it is."""

    person: bytes
    fingerprint: bytes


class Accepted:
    """Those of one project. run, query: the numbers under which acceptances are entered."""

    def __init__(self, database: sqlite3.Connection, project: int, today: int) -> None:
        self._database = database
        self._project = project
        self._today = today
        self.run = 0
        self.query = 0
        self._stale: dict[str, bool] = {}  # by table: whether any entry's day lags too far behind
        self.row_digests = RowDigests(database, project, today)
        self.people = KnownPeople(database, project, self.row_digests)

    # Looking up -----------------------------------------------------------------------------------------------

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The fingerprints last accepted, of those of these keys that are known; an empty one for what is void."""
        found: dict[bytes, bytes] = {}
        for table, chosen in _by_table(keys).items():
            rows = dict(self._of_keys("key, fingerprint", table, [_stored_key(table, key) for key in chosen]))
            found |= {key: rows[stored] for key in chosen if (stored := _stored_key(table, key)) in rows}
        return found

    def known_made(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The same for events whose ids are made of what they say."""
        return dict(self._of_keys("key, fingerprint", "events", keys))

    def known_given(self, keys: Sequence[bytes]) -> dict[bytes, GivenEvent]:
        """Events with given ids, whoever they are about: what is known of the ids."""
        rows = self._of_keys("key, person, fingerprint", "given_events", [key[USER_BYTES:] for key in keys])
        found = {key: GivenEvent(person, fingerprint) for key, person, fingerprint in rows}
        return {key: found[key[USER_BYTES:]] for key in keys if key[USER_BYTES:] in found}

    def known_users(self, keys: Sequence[bytes]) -> dict[bytes, KnownUser]:
        return {row[0]: KnownUser(*row) for row in self._of_keys(", ".join(KnownUser._fields), "users", keys)}

    def accepted_at(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """When each of these keys that are known was accepted last, in Unix seconds."""
        found: dict[bytes, int] = {}
        for table, chosen in _by_table(keys).items():
            rows = dict(self._of_keys("key, accepted_at", table, [_stored_key(table, key) for key in chosen]))
            found |= {key: rows[stored] for key in chosen if (stored := _stored_key(table, key)) in rows}
        return found

    def accepted_of(self, user_key: bytes) -> dict[bytes, tuple[int, int]]:
        """When a user and each of their events were accepted last, in Unix seconds, and in which run, by key."""
        prefix = user_key[:USER_BYTES]
        own = "SELECT key, accepted_at, run FROM {} WHERE project = ? AND key >= ? AND key < ?"
        bounds = (self._project, prefix, prefix + b"\xff" * HASH_BYTES)
        rows = chain(
            *(self._database.execute(own.format(table), bounds) for table in ("users", "events")),
            self._database.execute(
                "SELECT CAST(person || key AS BLOB), accepted_at, run FROM given_events"
                " WHERE project = ? AND person = ?",
                (self._project, prefix),
            ),
        )
        return {bytes(key): (accepted_at, run) for key, accepted_at, run in rows}

    # Entering -------------------------------------------------------------------------------------------------

    def accept(self, records: Sequence[Record], now: int) -> None:
        """Iterable has accepted these."""
        users = [each for each in records if each.kind is Kind.USER]
        events = [each for each in records if each.kind is Kind.EVENT] if users else records
        given = [each for each in events if is_given(each.key)]
        made = [each for each in events if not is_given(each.key)] if given else events
        # What is accepted of other events leaves alone what was accepted before.
        self.row_digests.forget(each.key for each in [*users, *given])
        if users:
            self._accept_users(users, now)
        self._accept_rows("events (key, fingerprint", list(map(_KEY_FINGERPRINT, made)), "", now)
        self._accept_rows(
            "given_events (key, person, fingerprint",
            [(each.key[USER_BYTES:], each.key[:USER_BYTES], each.fingerprint) for each in given],
            " person = excluded.person,",
            now,
        )

    def _accept_users(self, users: Sequence[Record], now: int) -> None:
        rows = []
        for each in users:
            details = each.details or _NOTHING
            rows.append((each.key, each.fingerprint, details.fields, details.person, details.address, details.origin))
        self.people.any_moved = self.people.any_moved or any(row[4] is not None for row in rows)
        insert_many(
            self._database,
            "INSERT INTO users (key, fingerprint, fields, person, address, origin, query, project, accepted_at, run,"
            " seen_day) VALUES",
            rows,
            "ON CONFLICT (project, key) DO UPDATE SET fingerprint = excluded.fingerprint, fields = excluded.fields,"
            " person = coalesce(users.person, excluded.person), address = excluded.address, moving_to = NULL,"
            " origin = coalesce(users.origin, excluded.origin),"
            " accepted_at = excluded.accepted_at, run = excluded.run, seen_day = excluded.seen_day",
            constants=(self.query, self._project, now, self.run, self._today),
        )

    def _accept_rows(self, head: str, rows: Sequence[Sequence[object]], update: str, now: int) -> None:
        insert_many(
            self._database,
            f"INSERT INTO {head}, project, accepted_at, run, seen_day) VALUES",
            rows,
            f"ON CONFLICT (project, key) DO UPDATE SET{update} fingerprint = excluded.fingerprint,"
            " accepted_at = excluded.accepted_at, run = excluded.run, seen_day = excluded.seen_day",
            constants=(self._project, now, self.run, self._today),
        )

    def holds_any(self, records: Sequence[Record]) -> bool:
        """Whether anything is known as accepted of these."""
        users = self.known_users([each.key for each in records if each.kind is Kind.USER])
        if any(user.fingerprint or user.fields for user in users.values()):
            return True
        return any(self.known([each.key for each in records if each.kind is Kind.EVENT]).values())

    def invalidate(self, records: Sequence[Record]) -> None:
        """Requests with these may leave: of what they contain, nothing counts as accepted any more."""
        self.row_digests.forget(each.key for each in records)
        users = {each.key: each.details or _NOTHING for each in records if each.kind is Kind.USER}
        known = self.known_users(list(users))
        self._database.executemany(
            "UPDATE users SET fingerprint = x'', fields = ? WHERE project = ? AND key = ?",
            [(_without(known[key].fields, users[key].sent), self._project, key) for key in known],
        )
        for table, keys in _by_table([each.key for each in records if each.kind is Kind.EVENT]).items():
            self._with_keys(f"UPDATE {table} SET fingerprint = x'' WHERE", [_stored_key(table, key) for key in keys])

    def enter_unacknowledged(self, users: Sequence[Record], now: int) -> None:
        """Users whose first update may have arrived: nothing of them counts as accepted, but who they are is known."""
        known = self.known_users([each.key for each in users])
        unknown = [each for each in users if each.key not in known and each.details is not None]
        self._accept_users(
            [
                each._replace(fingerprint=b"", details=each.details and each.details._replace(fields=b""))
                for each in unknown
            ],
            now,
        )

    # Keeping --------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known, so that no look-up can find anything."""
        return not any(self._has(table, "true") for table in TABLES)

    @property
    def knows_made(self) -> bool:
        """Whether any event is known whose id is made of what it says."""
        return self._has("events", "true")

    def count(self, kind: Kind | None = None) -> int:
        """How many records are known, of this kind or in all."""
        tables = {None: TABLES, Kind.USER: ("users",), Kind.EVENT: ("events", "given_events")}[kind]
        return sum(self._count(table) for table in tables)

    def count_users_of_query(self) -> int:
        """Users that were first accepted with rows of the query file of this run."""
        return self._count("users", "AND query = ?", self.query) if self.query else 0

    def has_stale(self) -> bool:
        return any(self._is_stale(table) for table in TABLES)

    def _is_stale(self, table: str) -> bool:
        if table not in self._stale:
            self._stale[table] = self._has(table, f"seen_day < {self._today - REFRESH_DAYS:d}")
        return self._stale[table]

    def mark_seen(self, keys: Sequence[bytes]) -> None:
        """The query of this run shows these: they are still in use."""
        stale = f"seen_day < {self._today - REFRESH_DAYS:d}"
        for table, chosen in _by_table(keys).items():
            if self._is_stale(table):
                stored = [_stored_key(table, key) for key in chosen]
                self._with_keys(f"UPDATE {table} SET seen_day = {self._today:d} WHERE {stale} AND", stored)

    def mark_users_seen(self, keys: Collection[bytes]) -> None:
        """The same for these users with all of their events, of which some may have no row in this read."""
        if not self.has_stale():
            return
        stale = f"seen_day < {self._today - REFRESH_DAYS:d}"
        mark = f"SET seen_day = {self._today:d} WHERE {stale} AND"
        self.mark_seen(sorted(keys))
        beginnings = sorted({key[:USER_BYTES] for key in keys})
        self._database.executemany(
            f"UPDATE events {mark} project = ? AND key >= ? AND key < ?",
            [(self._project, each, each + b"\xff" * HASH_BYTES) for each in beginnings],
        )
        run_for_keys(self._database, f"UPDATE given_events {mark}", self._project, beginnings, column="person")

    def delete_before(self, day: int) -> None:
        for table in TABLES:
            self._database.execute(f"DELETE FROM {table} WHERE project = ? AND seen_day < ?", (self._project, day))
        self.people.forget_unknown()
        self.row_digests.forget_old()

    def _of_keys(self, columns: str, table: str, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        return rows_of_keys(self._database, columns, table, self._project, keys)

    def _with_keys(self, statement: str, keys: Sequence[bytes]) -> None:
        run_for_keys(self._database, statement, self._project, keys)

    def _has(self, table: str, condition: str) -> bool:
        rows = self._database.execute(
            f"SELECT 1 FROM {table} WHERE project = ? AND {condition} LIMIT 1", (self._project,)
        )
        return rows.fetchone() is not None

    def _count(self, table: str, condition: str = "", *values: object) -> int:
        (count,) = self._database.execute(
            f"SELECT count(*) FROM {table} WHERE project = ? {condition}", (self._project, *values)
        ).fetchone()
        return int(count)


def _by_table(keys: Iterable[bytes]) -> dict[str, list[bytes]]:
    """Keys of users and events -> those of each table."""
    found: dict[str, list[bytes]] = {}
    for key in keys:
        table = "users" if len(key) == HASH_BYTES else "given_events" if is_given(key) else "events"
        found.setdefault(table, []).append(key)
    return found


def _stored_key(table: str, key: bytes) -> bytes:
    return key[USER_BYTES:] if table == "given_events" else key


def _without(fields: bytes, names: bytes) -> bytes:
    """What is known of the fields that a request does not contain."""
    kept = split_fields(fields)
    for name in split_names(names):
        kept.pop(name, None)
    return b"".join(kept.values())
