"""Neighbouring rows about one user that the ledger knows as a whole, and those that it may know so from now on.

Rows that are known are not staged one by one: all their records are unchanged. Should something else of this read
concern their user, they are planned after all. So their contents wait in a file, which is personal data: it has no
name, and is gone however the run ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple

from pipeline.model.records import Kind
from pipeline.model.sql import chunks, insert_many
from pipeline.stage.event_runs import KEYS_PER_LOOKUP
from pipeline.stage.states import NO_RECORD, UNCHANGED, States

TABLES = """
CREATE TABLE known_rows (
    key BLOB NOT NULL, first_row INTEGER NOT NULL, events INTEGER NOT NULL, is_found INTEGER NOT NULL,
    is_known_person INTEGER NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL, is_planned INTEGER NOT NULL
);
CREATE TABLE unchanged_rows (
    key BLOB NOT NULL, digest BLOB NOT NULL, first_row INTEGER NOT NULL, rows INTEGER NOT NULL, events INTEGER NOT NULL
);
"""


# What `users.settled` says of a user.
IS_SETTLED, IS_FOUND, IS_KNOWN_PERSON = 1, 2, 4


class KnownRow(NamedTuple):
    """key: the user's. first_row: the number of the first of these rows. events: how many they have. is_found,
    is_known_person: as in the ledger's `RowDigest`. content: the rows."""

    key: bytes
    first_row: int
    events: int
    is_found: bool
    is_known_person: bool
    content: bytes


class UnchangedRow(NamedTuple):
    """Neighbouring rows, and how many events they have. key: the user's."""

    key: bytes
    digest: bytes
    first_row: int
    rows: int
    events: int


class SettledRow(NamedTuple):
    """The same of rows that may be known from now on, with the user's fingerprint and the rows' digest."""

    key: bytes
    fingerprint: bytes
    digest: bytes
    events: int
    is_found: bool
    is_known_person: bool


class KnownTotals(NamedTuple):
    """Of those that need no planning: how many users they are about, how many of these are found, and known persons."""

    users: int
    found: int
    known_persons: int


class KnownRows:
    """The tables `known_rows`, and `unchanged_rows` for those whose records all turned out to be unchanged."""

    def __init__(self, database: sqlite3.Connection, folder: Path, states: States) -> None:
        self._database = database
        self._folder = folder
        self._states = states
        self._contents: IO[bytes] | None = None
        self._end = 0

    def close(self) -> None:
        if self._contents is not None:
            self._contents.close()

    def clear(self) -> None:
        for table in ("known_rows", "unchanged_rows"):
            self._database.execute(f"DELETE FROM {table}")
        self._end = 0

    # Known rows -----------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[KnownRow]) -> None:
        """All of their records are unchanged."""
        if not rows:
            return
        if self._contents is None:
            self._contents = TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed with the stage)
        entries = []
        for each in rows:
            entries.append((*each[:5], self._end, len(each.content), 0))
            self._end += len(each.content)
        self._states.set_groups([(each.first_row, each.events) for each in rows], UNCHANGED)
        self._contents.write(b"".join([each.content for each in rows]))
        insert_many(self._database, "INSERT INTO known_rows VALUES", entries)

    def totals(self) -> KnownTotals:
        row = self._database.execute(
            "SELECT count(*), total(is_found), total(is_known_person) FROM known_rows WHERE NOT is_planned"
        ).fetchone()
        return KnownTotals(*map(int, row))

    def restore_users(self) -> None:
        """Set the states of their users once more."""
        for (row,) in self._database.execute("SELECT first_row FROM known_rows WHERE NOT is_planned"):
            self._states.set(Kind.USER, row, UNCHANGED)

    # Planned after all ----------------------------------------------------------------------------------------

    def take_mixed(self) -> Iterator[tuple[int, bytes]]:
        """Those whose user has other rows, too: the first row's number, and the content. They are to be planned now."""
        return self._take(
            "key IN (SELECT key FROM user_rows) OR key IN (SELECT key FROM known_rows GROUP BY key HAVING count(*) > 1)"
        )

    def take_of_users(self, keys: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Those of these users."""
        for chunk in chunks(sorted(set(keys))):
            yield from self._take(f"key IN ({', '.join('?' * len(chunk))})", *chunk)

    def _take(self, which: str, *values: object) -> Iterator[tuple[int, bytes]]:
        rows = self._database.execute(
            f"UPDATE known_rows SET is_planned = 2 WHERE NOT is_planned AND ({which})", values
        ).rowcount
        if not rows or self._contents is None:
            return
        found = self._database.execute(
            "SELECT first_row, events, start, size FROM known_rows WHERE is_planned = 2 ORDER BY first_row"
        )
        while page := found.fetchmany(KEYS_PER_LOOKUP):
            for first_row, events, start, size in page:
                self._states.set_groups([(first_row, events)], NO_RECORD)
                self._contents.seek(start)
                yield first_row, self._contents.read(size)
        self._database.execute("UPDATE known_rows SET is_planned = 1 WHERE is_planned = 2")

    # Known from now on ----------------------------------------------------------------------------------------

    def note_unchanged(self, rows: Sequence[UnchangedRow]) -> None:
        """Rows whose events are all unchanged."""
        insert_many(self._database, "INSERT INTO unchanged_rows VALUES", rows)

    def settled(self) -> Iterator[list[SettledRow]]:
        """Of users of whom nothing has changed, and nothing else is to be said, the only rows; some at a time."""
        found = self._database.execute(
            "SELECT users.key, fingerprint, digest, events, settled, row, first_row, rows FROM unchanged_rows"
            " JOIN users ON users.key = unchanged_rows.key WHERE settled"
            " GROUP BY users.key HAVING count(*) = 1 ORDER BY users.key"
        )
        users, states = self._states[Kind.USER], self._states[Kind.EVENT]
        while page := found.fetchmany(KEYS_PER_LOOKUP):
            yield [
                SettledRow(key, fingerprint, digest, events, bool(settled & IS_FOUND), bool(settled & IS_KNOWN_PERSON))
                for key, fingerprint, digest, events, settled, row, first, rows in page
                if users[row] == UNCHANGED and states.count(UNCHANGED, first, first + rows) == events
            ]
