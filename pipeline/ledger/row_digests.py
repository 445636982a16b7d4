"""Rows of the query by which a user is known as a whole, so that nothing of it has to be looked up.

A row digest is a keyed hash of neighbouring rows about one user, all of whose records Iterable has accepted. While a
read finds the same rows, and nothing that was accepted of the user has been invalidated, there is no news of the user.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipeline.model.keys import USER_BYTES
from pipeline.model.sql import insert_many, rows_of_keys, run_for_keys

# The records of these rows are not marked as seen, so now and then they are looked at one by one. Far less than
# FORGET_AFTER_DAYS.
VALID_DAYS = 30
TABLE = """
CREATE TABLE row_digests (  -- key: the beginning of the user's key; events: how many these rows have
    project INTEGER NOT NULL, key BLOB NOT NULL, query INTEGER NOT NULL, digest BLOB NOT NULL,
    events INTEGER NOT NULL, is_found INTEGER NOT NULL, is_known_person INTEGER NOT NULL, day INTEGER NOT NULL,
    PRIMARY KEY (project, key, query)
) WITHOUT ROWID;
"""


class RowDigest(NamedTuple):
    """key: the beginning of the user's key. is_found: whether the query file found the user first; is_known_person:
    whether its rows name the person whom the ledger knows (both as in `PeopleReport`)."""

    key: bytes
    digest: bytes
    events: int
    is_found: bool
    is_known_person: bool


class RowDigests:
    """Those of one project."""

    def __init__(self, database: sqlite3.Connection, project: int, today: int) -> None:
        self._database = database
        self._project = project
        self._today = today
        row = database.execute("SELECT 1 FROM row_digests WHERE project = ? LIMIT 1", (project,)).fetchone()
        self._has_any = row is not None

    def known(self, keys: Sequence[bytes], query: int) -> dict[bytes, RowDigest]:
        """Those of these users that still hold, in this query file's rows."""
        if not self._has_any:
            return {}
        columns = ", ".join(RowDigest._fields)
        rows = rows_of_keys(
            self._database, f"{columns}, query, day", "row_digests", self._project, [key[:USER_BYTES] for key in keys]
        )
        oldest = self._today - VALID_DAYS
        return {row[0]: RowDigest(*row[:5]) for row in rows if row[5] == query and oldest <= row[6] <= self._today}

    def enter(self, digests: Sequence[RowDigest], query: int) -> None:
        """Those of users that are known as a whole."""
        self._has_any = self._has_any or bool(digests)
        insert_many(
            self._database,
            f"INSERT OR REPLACE INTO row_digests ({', '.join(RowDigest._fields)}, project, query, day) VALUES",
            digests,
            constants=(self._project, query, self._today),
        )

    def forget(self, user_keys: Iterable[bytes]) -> None:
        """What was accepted of these users counts no more, or is not what it was. Takes keys of events, too."""
        if self._has_any:
            keys = sorted({key[:USER_BYTES] for key in user_keys})
            run_for_keys(self._database, "DELETE FROM row_digests WHERE", self._project, keys)

    def forget_old(self) -> None:
        self._database.execute(
            "DELETE FROM row_digests WHERE project = ? AND day < ?", (self._project, self._today - VALID_DAYS)
        )
