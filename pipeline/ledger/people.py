"""Who the users are that the ledger knows: persons, whatever their address, and the moves to another address.

Several people may share an address; then the user is known as one of them, and `more_persons` has the others.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.ledger.row_digests import RowDigests
from pipeline.model.records import Record
from pipeline.model.sql import rows_of_keys, run_for_keys


class KnownUser(NamedTuple):
    """What is known of a user. fingerprint: empty where a request may have left since. query: a number of `queries`."""

    key: bytes
    fingerprint: bytes
    fields: bytes
    person: bytes | None
    address: bytes | None
    origin: bytes | None
    moving_to: bytes | None
    query: int


class KnownPeople:
    """Those of one project. any_moved: whether any address has changed."""

    def __init__(self, database: sqlite3.Connection, project: int, row_digests: RowDigests) -> None:
        self._database = database
        self._project = project
        self._row_digests = row_digests
        self.any_moved = self._has("users", "address IS NOT NULL")
        self._any_more_persons = self._has("more_persons", "true")

    def users_at(self, addresses: Sequence[bytes]) -> dict[bytes, KnownUser]:
        """Users whose address has changed, by a hash of the present one."""
        return {user.address: user for user in self._users_by("address", addresses) if user.address is not None}

    def users_of_persons(self, persons: Sequence[bytes]) -> dict[bytes, list[KnownUser]]:
        found = self.users_of_more_persons(persons)
        for user in self._users_by("person", persons):
            found.setdefault(user.person or b"", []).append(user)
        return found

    def users_of_more_persons(self, persons: Sequence[bytes]) -> dict[bytes, list[KnownUser]]:
        """Of persons at an address that was another person's before: the user whom they share."""
        found: dict[bytes, list[KnownUser]] = {}
        if not self._any_more_persons:
            return found
        for person, key in rows_of_keys(
            self._database, "person, more_persons.key", "more_persons", self._project, persons, column="person"
        ):
            found.setdefault(person, []).extend(self._users_by("key", [key]))
        return found

    def has_more_persons(self, key: bytes) -> bool:
        """Whether an address has, or had, several people."""
        rows = self._database.execute("SELECT 1 FROM more_persons WHERE project = ? AND key = ?", (self._project, key))
        return self._any_more_persons and rows.fetchone() is not None

    def users_by_key(self, keys: Sequence[bytes]) -> list[KnownUser]:
        return self._users_by("key", keys)

    def users_moving_to(self, address: bytes) -> list[KnownUser]:
        """Users of whom a request may have left that moves them to this address. Reads all users."""
        rows = self._database.execute(
            f"SELECT {', '.join(KnownUser._fields)} FROM users WHERE project = ? AND moving_to = ?",
            (self._project, address),
        )
        return [KnownUser(*row) for row in rows]

    def _users_by(self, column: str, values: Sequence[bytes]) -> list[KnownUser]:
        # Without it, all users of the project would be read, for each value.
        indexed = "users" if column == "key" else f"users INDEXED BY users_by_{column}"
        rows = rows_of_keys(self._database, ", ".join(KnownUser._fields), indexed, self._project, values, column=column)
        return [KnownUser(*row) for row in rows]

    def restamp(self, users: Sequence[Record]) -> None:
        """Users that need no update: all of their fields are known as a whole, too, and who they are."""
        self._database.executemany(
            "UPDATE users SET fingerprint = ?, person = coalesce(person, ?), origin = coalesce(origin, ?)"
            " WHERE project = ? AND key = ?",
            [
                (each.fingerprint, each.details.person, each.details.origin, self._project, each.key)
                for each in users
                if each.details is not None
            ],
        )

    def add_persons(self, persons: Sequence[tuple[bytes, bytes]]) -> None:
        """More people at the address of a user: a person, and the user's key."""
        self._row_digests.forget(key for _, key in persons)
        self._database.executemany(
            "INSERT OR IGNORE INTO more_persons (project, person, key) VALUES (?, ?, ?)",
            [(self._project, person, key) for person, key in persons],
        )

    def forget_users(self, keys: Sequence[bytes]) -> None:
        """They turned out to be known under other keys."""
        self._row_digests.forget(keys)
        run_for_keys(self._database, "DELETE FROM users WHERE", self._project, keys)

    def begin_move(self, key: bytes, address: bytes) -> None:
        """A request may leave now that moves this user to another address."""
        self._update_user(key, "moving_to = ?", address)

    def cancel_move(self, key: bytes) -> None:
        """It was refused: the user is where they were."""
        self._update_user(key, "moving_to = ?", None)

    def end_move(self, key: bytes, address: bytes | None) -> None:
        """The user is at this address now; None: at the one that the key is made of."""
        self._update_user(key, "address = ?, moving_to = NULL", address)
        self.any_moved = True

    def _update_user(self, key: bytes, assignments: str, *values: object) -> None:
        self._row_digests.forget([key])
        self._database.execute(
            f"UPDATE users SET {assignments} WHERE project = ? AND key = ?", (*values, self._project, key)
        )

    def forget_unknown(self) -> None:
        """More people at the addresses of users whom the ledger has forgotten."""
        if self._any_more_persons:
            self._database.execute(
                "DELETE FROM more_persons WHERE project = ? AND key NOT IN (SELECT key FROM users WHERE project = ?)",
                (self._project, self._project),
            )

    def _has(self, table: str, condition: str) -> bool:
        rows = self._database.execute(
            f"SELECT 1 FROM {table} WHERE project = ? AND {condition} LIMIT 1", (self._project,)
        )
        return rows.fetchone() is not None
