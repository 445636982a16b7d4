"""What is known of each query file, which a hash of its path names: when it was in use and was last read in full, its
cursor of :since, and the schemes of event ids that it has used."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.ledger.accepted import REFRESH_DAYS
from pipeline.ledger.row_digests import VALID_DAYS


@dataclass(frozen=True)
class Cursor:
    """From when :since reads. at, last_full_at: Unix seconds. holds_for: a hash of what the cursor depends on."""

    at: int
    holds_for: bytes
    last_full_at: int


@dataclass(frozen=True)
class IdScheme:
    """A way of making event ids. accepted: whether events were accepted under it."""

    description: str
    accepted: bool


class Queries:
    """Those of one project. A query file is named by its path."""

    def __init__(
        self, database: sqlite3.Connection, project: int, today: int, hash_text: Callable[[str], bytes]
    ) -> None:
        self._database = database
        self._project = project
        self._today = today
        self._hash = hash_text

    # In use -------------------------------------------------------------------------------------------------------

    def add(self, query: str) -> None:
        """Give it a number. It counts as in use only once it was read."""
        self._database.execute(
            "INSERT OR IGNORE INTO queries (project, query, used_day) VALUES (?, ?, 0)",
            (self._project, self._hash(query)),
        )

    def number(self, query: str) -> int:
        """The number under which acceptances name it; 0: it has none."""
        return self._value(query, "id") or 0

    def note_part_read(self, query: str) -> None:
        """It was read to its end, but did not show all that it has."""
        self._update(query)

    def note_all_shown(self, query: str, users: int | None) -> None:
        """It was read to its end and showed all that it has. users: how many; None leaves the figure as it was."""
        found = {} if users is None else {"full_users": users}
        self._update(query, full_day=self._today, **found)

    def last_full_users(self, query: str) -> int | None:
        """How many users the last full read of a query file found; None where there was none."""
        return self._value(query, "full_users")

    def was_in_use(self, since: int) -> bool:
        """Whether any query file was read on that day or later, or none was ever."""
        (last,) = self._database.execute(
            "SELECT max(used_day) FROM queries WHERE project = ?", (self._project,)
        ).fetchone()
        return not last or last >= since

    def unseen_before(self, oldest: int) -> int | None:
        """Before which day nothing can have been shown by a query file that was in use since the day `oldest`.

        None: one of them was never read in full, so this can't be said.
        """
        rows = self._database.execute(
            "SELECT full_day FROM queries WHERE project = ? AND used_day >= ?", (self._project, oldest)
        ).fetchall()
        full_days = [full_day for (full_day,) in rows]
        if None in full_days:
            return None
        first_full_day: int = min(full_days)
        # "Last seen" may lag so far behind a full read.
        return min(oldest, first_full_day - REFRESH_DAYS - VALID_DAYS)

    # A column `id` ------------------------------------------------------------------------------------------------

    def trusts_id(self, query: str) -> bool:
        """Whether the last full read showed that a column `id` says who people are."""
        return bool(self._value(query, "trusts_id"))

    def note_trust(self, query: str, *, trusts_id: bool) -> None:
        self._update(query, trusts_id=int(trusts_id))

    # :since -------------------------------------------------------------------------------------------------------

    def cursor(self, query: str) -> Cursor | None:
        row = self._database.execute(
            "SELECT cursor_at, holds_for, last_full_at FROM queries"
            " WHERE project = ? AND query = ? AND cursor_at IS NOT NULL",
            (self._project, self._hash(query)),
        ).fetchone()
        return None if row is None else Cursor(*row)

    def set_cursor(self, query: str, cursor: Cursor) -> None:
        """Whether it may move is the caller's to decide."""
        self._update(query, cursor_at=cursor.at, holds_for=cursor.holds_for, last_full_at=cursor.last_full_at)

    def note_full_read(self, query: str, at: int) -> None:
        """Everything was read and tried at that time, in Unix seconds, whether or not the cursor moves."""
        self._update(query, last_full_at=at)

    # Ways of making ids -------------------------------------------------------------------------------------------

    def id_schemes(self, query: str) -> list[IdScheme]:
        """The schemes of event ids that a query file has used so far, the oldest first."""
        rows = self._database.execute(
            "SELECT description, accepted FROM id_schemes WHERE project = ? AND query = ? ORDER BY id",
            (self._project, self._hash(query)),
        )
        return [IdScheme(description, bool(accepted)) for description, accepted in rows.fetchall()]

    def add_id_scheme(self, query: str, description: str, *, accepted: bool) -> None:
        """accepted: events were accepted under it; once true, it stays so."""
        self._database.execute(
            "INSERT INTO id_schemes (project, query, description, accepted) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (project, query, description) DO UPDATE SET accepted = max(accepted, excluded.accepted)",
            (self._project, self._hash(query), description, int(accepted)),
        )

    # Columns ------------------------------------------------------------------------------------------------------

    def _value(self, query: str, column: str) -> int | None:
        row = self._database.execute(
            f"SELECT {column} FROM queries WHERE project = ? AND query = ?", (self._project, self._hash(query))
        ).fetchone()
        return None if row is None else row[0]

    def _update(self, query: str, **values: object) -> None:
        """Note that it is in use, and these values of it."""
        columns = {"used_day": self._today, **values}
        names = ", ".join(columns)
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
        self._database.execute(
            f"INSERT INTO queries (project, query, {names}) VALUES (?, ?{', ?' * len(columns)})"
            f" ON CONFLICT (project, query) DO UPDATE SET {updates}",
            (self._project, self._hash(query), *columns.values()),
        )
