"""Neighbouring rows about one user that the ledger knows as a whole, and those that it may know so from now on.

Rows that are known are not staged one by one: all their records are unchanged. Should something else of this read
concern their user, they are planned after all. So their contents wait in a file, which is personal data: it has no
name, and is gone however the run ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
CREATE TABLE planned_rows (
    key BLOB NOT NULL, digest BLOB NOT NULL, first_row INTEGER NOT NULL, rows INTEGER NOT NULL, events INTEGER
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


class TakenRow(NamedTuple):
    key: bytes
    first_row: int
    content: bytes


class PlannedRow(NamedTuple):
    """Neighbouring rows. key: the user's. events: how many they have, all of them unchanged; None where anything else
    is to be said of the rows, so that they can't be known from now on."""

    key: bytes
    digest: bytes
    first_row: int
    rows: int
    events: int | None


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
    """The tables `known_rows`, and `planned_rows` for all others of a read."""

    def __init__(self, database: sqlite3.Connection, folder: Path, states: States) -> None:
        self._database = database
        self._folder = folder
        self._states = states
        self._contents: IO[bytes] | None = None
        self._end = 0

    def close(self) -> None:
        if self._contents is not None:
            with suppress(OSError):  # where the disk is full, and the run over
                self._contents.close()

    def clear(self) -> None:
        for table in ("known_rows", "planned_rows"):
            self._database.execute(f"DELETE FROM {table}")
        self.close()
        self._contents, self._end = None, 0

    def end_reading(self) -> None:
        """All of them are there. Raises OSError where the disk has no room for them."""
        if self._contents is not None:
            self._contents.flush()

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
        """Set the states of their users once more, but of those who have other rows, too."""
        rows = self._database.execute(
            "SELECT min(first_row) FROM known_rows WHERE NOT is_planned AND key NOT IN (SELECT key FROM user_rows)"
            " GROUP BY key"
        )
        for (row,) in rows:
            self._states.set(Kind.USER, row, UNCHANGED)

    # Planned after all ----------------------------------------------------------------------------------------

    def take_mixed(self) -> Iterator[TakenRow]:
        """Those whose user has other rows, too. They are to be planned now."""
        return self._take(
            "key IN (SELECT key FROM user_rows) OR key IN (SELECT key FROM known_rows GROUP BY key HAVING count(*) > 1)"
        )

    def take_of_users(self, keys: Sequence[bytes]) -> Iterator[TakenRow]:
        """Those of these users."""
        for chunk in chunks(sorted(set(keys))):
            yield from self._take(f"key IN ({', '.join('?' * len(chunk))})", *chunk)

    def _take(self, which: str, *values: object) -> Iterator[TakenRow]:
        rows = self._database.execute(
            f"UPDATE known_rows SET is_planned = 2 WHERE NOT is_planned AND ({which})", values
        ).rowcount
        if not rows or self._contents is None:
            return
        found = self._database.execute(
            "SELECT key, first_row, events, start, size FROM known_rows WHERE is_planned = 2 ORDER BY first_row"
        )
        while page := found.fetchmany(KEYS_PER_LOOKUP):
            for key, first_row, events, start, size in page:
                self._states.set_groups([(first_row, events)], NO_RECORD)
                self._contents.seek(start)
                yield TakenRow(key, first_row, self._contents.read(size))
        self._database.execute("UPDATE known_rows SET is_planned = 1 WHERE is_planned = 2")

    # Known from now on ----------------------------------------------------------------------------------------

    def note_planned(self, rows: Sequence[PlannedRow]) -> None:
        """Rows that are not known, and were planned: all of a read, or `forget_planned`."""
        insert_many(self._database, "INSERT INTO planned_rows VALUES", rows)

    def forget_planned(self) -> None:
        self._database.execute("DELETE FROM planned_rows")

    def settled(self) -> Iterator[list[SettledRow]]:
        """Of users of whom nothing has changed, and nothing else is to be said, the only rows; some at a time."""
        if UNCHANGED not in self._states[Kind.USER]:
            return
        found = self._database.execute(
            "SELECT users.key, fingerprint, digest, events, settled, row, first_row, rows FROM planned_rows"
            " JOIN users ON users.key = planned_rows.key WHERE settled"
            " AND users.key NOT IN (SELECT key FROM known_rows)"
            " GROUP BY users.key HAVING count(*) = 1 AND events IS NOT NULL ORDER BY users.key"
        )
        users, states = self._states[Kind.USER], self._states[Kind.EVENT]
        while page := found.fetchmany(KEYS_PER_LOOKUP):
            yield [
                SettledRow(key, fingerprint, digest, events, bool(settled & IS_FOUND), bool(settled & IS_KNOWN_PERSON))
                for key, fingerprint, digest, events, settled, row, first, rows in page
                if users[row] == UNCHANGED and states.count(UNCHANGED, first, first + rows) == events
            ]
