"""This run's records: what is staged, in which order it is sent, and what became of each.

`Stage` is a private temporary SQLite file that is unlinked as it is opened, so that the operating system removes it
however the run ends: its records are personal data. Knows nothing of HTTP and of other runs. Only the thread that
opened it uses it. `people` holds the users, `event_runs` packs events, `duplicates` settles those of one id,
`known_records` says which are new, `outcomes` notes what became of them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import islice, product
from pathlib import Path

from pipeline.model.exits import OutputError
from pipeline.model.keys import USER_BYTES, is_given
from pipeline.model.ownership import owner_hint
from pipeline.model.records import Kind, Outcome, Record
from pipeline.model.sql import insert_many
from pipeline.stage import known_rows
from pipeline.stage.duplicates import Doubled, Duplicates
from pipeline.stage.event_runs import KEYS_PER_LOOKUP, EventRuns
from pipeline.stage.known_records import FailedBefore, Known, KnownRecords
from pipeline.stage.known_rows import KnownRows
from pipeline.stage.outcomes import Outcomes
from pipeline.stage.pages import UserRecords, pages, records_of
from pipeline.stage.people import People
from pipeline.stage.states import CODES, LATE, PENDING, UNCHANGED, States

LARGE_USER_ROW = 50_000

UserRow = tuple[bytes, int, str, str]  # the user's key, row, identity, and what the row says about the user

BEHIND_ALL_KEYS = b"\xff" * (USER_BYTES + 1)


class Stage:
    """The connection. Make it with `open_stage`."""

    def __init__(self, database: sqlite3.Connection, folder: Path) -> None:
        self._database = database
        self._largest_user_row = 0  # in characters
        self._has_all_users = False  # until the rows of each are put together, a user is in `user_rows` only
        self.states = States()
        self._runs = EventRuns(database, self.states)
        self._duplicates = Duplicates(database, self._runs, self.states)
        self.doubled = Doubled()
        self.merged_users = 0  # whose rows disagreed
        self.left_users = 0  # that are known, and would have been updated otherwise
        self.outcomes = Outcomes(database, self.states, self._runs)
        self.known = KnownRecords()
        self.people = People(database, self.states, self._runs, self.outcomes, self.known)
        self.known_rows = KnownRows(database, folder, self.states)

    # Staging --------------------------------------------------------------------------------------------------

    def begin(self, known: Known | None, late: FailedBefore | None = None, *, made_ids_only: bool = False) -> None:
        """Say what earlier runs know of the records that are going to be staged.

        known: what Iterable has accepted of events; None sends it all the same. late: what failed before.
        made_ids_only: no event has an id of the query's own.
        """
        self.known.set(known, late)
        self._runs.begin(made_only=made_ids_only)

    def stage_user_rows(self, rows: Sequence[UserRow]) -> None:
        """What rows say about their users, to be put together when all of them are there."""
        self._largest_user_row = max([self._largest_user_row, *(len(content) for *_, content in rows)])
        insert_many(self._database, "INSERT INTO user_rows (key, row, identity, content) VALUES", rows)

    def forget_user_rows(self) -> None:
        """What they say is put together, and staged."""
        self._database.execute("DELETE FROM user_rows")

    def user_rows(self) -> Iterator[UserRow]:
        """User by user in the order of their keys, each user's in the query's order."""
        source = "user_rows"
        if self._largest_user_row > LARGE_USER_ROW:
            # SQLite's sorter takes the contents along, and where they are large it holds many of them in memory.
            self._database.execute("CREATE INDEX IF NOT EXISTS user_rows_in_order ON user_rows (key, row)")
            source = "user_rows INDEXED BY user_rows_in_order"
        return iter(self._database.execute(f"SELECT key, row, identity, content FROM {source} ORDER BY key, row"))

    def stage_events(
        self,
        rows: Sequence[int],
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
        payloads: Sequence[bytes],
        states: bytes | None = None,
    ) -> None:
        """Events to track, in the order of their rows. Doubled ones are settled when the stage is finished.

        states: their `first_states`, where they are known.
        """
        if rows:
            self._duplicates.note(list(keys))
            states = self.known.first_states(keys, fingerprints) if states is None else states
            self._runs.insert(rows, keys, fingerprints, payloads, states)

    def end_reading(self) -> None:
        """All rows are staged: keep them, although a disk that is full later on undoes what was done since. Raises
        OSError, sqlite3.Error."""
        self.known_rows.end_reading()
        self._keep()

    def _keep(self) -> None:
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def finish_staging(self, *, ids_are_given: bool = False) -> None:
        """Settle doubled ids, and put what is pending in order.

        ids_are_given: the events' ids come from the query, so that two events may share one by mistake.
        """
        self._keep()
        self._has_all_users = True
        if ids_are_given:
            self.outcomes.note(self._duplicates.find_conflicts())
        self.doubled = self._duplicates.drop()
        if self.states.count_pending(Kind.EVENT):
            self._runs.put_in_order()
        self._put_events_of_late_users_last()

    def _put_events_of_late_users_last(self) -> None:
        """They must not overtake their user's update."""
        users, events = self.states[Kind.USER], self.states[Kind.EVENT]
        if LATE not in users or PENDING not in events:
            return
        for row, user_key in self._database.execute("SELECT row, key FROM users ORDER BY key"):
            if users[row] == LATE:
                for event, _, _ in self._runs.of_user(user_key):
                    if events[event] == PENDING:
                        events[event] = LATE

    def clear(self) -> None:
        """Forget all that was staged and noted, to begin anew."""
        for table in ("user_rows", "users", "events", "undelivered", "adopted", "omitted"):
            self._database.execute(f"DELETE FROM {table}")
        self.merged_users = self.left_users = 0
        self.doubled = Doubled()
        self._duplicates.clear()
        self.known_rows.clear()
        self.states.clear()

    def count_users(self) -> int:
        """Users that this read has found."""
        (count,) = self._database.execute("SELECT count(*) FROM users").fetchone()
        return int(count) + self.known_rows.totals().users

    # What is to be sent ---------------------------------------------------------------------------------------

    def pending(
        self, kind: Kind, *, late: bool = False, first: bytes = b"", before: bytes | None = None
    ) -> Iterator[Record]:
        """Records without an outcome: users in the order of their keys, events user by user in that order, each user's
        in the query's order.

        late: those that failed in earlier runs, else all others. first, before: from this key on, and up to that one;
        for events, keys of users.
        """
        return records_of(self.pending_by_user(kind, late=late, first=first, before=before))

    def pending_by_user(
        self, kind: Kind, *, late: bool = False, first: bytes = b"", before: bytes | None = None
    ) -> Iterator[UserRecords]:
        """The same, some at a time that belong to one user."""
        state = LATE if late else PENDING
        if state not in self.states[kind]:
            return iter(())
        read = self.people.read if kind is Kind.USER else self._runs.read
        return read(state, first[:USER_BYTES], before[:USER_BYTES] if before is not None else BEHIND_ALL_KEYS)

    def open_of(self, key: bytes) -> list[Record]:
        """A user that is pending or unchanged, and the events that are pending."""
        behind = key[: USER_BYTES - 1] + bytes([key[USER_BYTES - 1] + 1]) if key[USER_BYTES - 1] < 255 else None
        states = self.states[Kind.USER]
        user = self.people.record_of(key)
        users = [user] if user is not None and states[user.row] in (PENDING, LATE, UNCHANGED) else []
        events = [
            record
            for late in (False, True)
            for record in self.pending(Kind.EVENT, late=late, first=key[:USER_BYTES], before=behind)
        ]
        return users + events

    def keys(self) -> Iterator[bytes]:
        """The keys of all records that are staged."""
        for (key,) in self._database.execute("SELECT key FROM users"):
            yield key
        for entries in self._runs.entries():
            yield from self._runs.keys_in(entries)

    def pending_given(self) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """Row, key and fingerprint of pending events whose ids the query gives, some at a time."""
        states = self.states[Kind.EVENT]
        events = (each for each in self._runs.all() if is_given(each[1]) and states[each[0]] in (PENDING, LATE))
        while page := list(islice(events, KEYS_PER_LOOKUP)):
            yield page

    # The end --------------------------------------------------------------------------------------------------

    def note_not_attempted(self, message: str) -> None:
        """Everything that has no outcome yet was not attempted, for this reason."""
        try:
            if not self._has_all_users:  # the run broke off before the stage was finished
                self._stage_unmerged_users()
            if self.states.count_pending(Kind.EVENT):
                self._runs.put_in_order()
            for kind, late in product(Kind, (False, True)):
                for page in pages(self.pending_by_user(kind, late=late)):
                    self.outcomes.note_not_attempted(page, message)
        finally:
            for state in (PENDING, LATE):
                self.states.replace(state, CODES[Outcome.NOT_ATTEMPTED])

    def _stage_unmerged_users(self) -> None:
        """So that each of them has one outcome, whether or not somebody has put together what their rows say."""
        missing = "FROM user_rows WHERE key NOT IN (SELECT key FROM users) GROUP BY key"
        is_refused = "key IN (SELECT own_key FROM undelivered WHERE own_key IS NOT NULL)"
        self.states.clear(Kind.USER)
        for source in (f"row, {is_refused} FROM users", f"max(row), {is_refused} {missing}"):
            for row, has_outcome in self._database.execute(f"SELECT {source}"):
                if not has_outcome:
                    self.states.set(Kind.USER, row, PENDING)
        self.known_rows.restore_users()
        for row, outcome in self._database.execute("SELECT row, outcome FROM undelivered WHERE kind = 'user'"):
            self.states.set(Kind.USER, row, CODES[Outcome(outcome)])
        columns = "key, row, identity, fingerprint, payload"
        self._database.execute(f"INSERT INTO users ({columns}) SELECT key, max(row), identity, x'', x'' {missing}")


_SCHEMA = (
    """
PRAGMA page_size = 8192;  -- a run of ten events fits into one page
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
PRAGMA temp_store = FILE;
CREATE TABLE user_rows (key BLOB NOT NULL, row INTEGER NOT NULL, identity TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE users (
    key BLOB NOT NULL UNIQUE, row INTEGER NOT NULL, identity TEXT NOT NULL, fingerprint BLOB NOT NULL,
    payload BLOB NOT NULL, fields BLOB NOT NULL DEFAULT x'', sent BLOB NOT NULL DEFAULT x'', person BLOB, address BLOB,
    origin BLOB, is_stale INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE events (  -- runs of neighbours that belong to one user
    first_row INTEGER PRIMARY KEY, entries BLOB NOT NULL, payloads BLOB NOT NULL
);
CREATE TABLE unpacked (row INTEGER NOT NULL, key BLOB NOT NULL, fingerprint BLOB NOT NULL);
CREATE TABLE undelivered (
    kind TEXT NOT NULL, row INTEGER NOT NULL, outcome TEXT NOT NULL, status_code INTEGER, code TEXT, message TEXT,
    attempts INTEGER, identity TEXT, is_blamed INTEGER NOT NULL, is_new INTEGER NOT NULL DEFAULT 1,
    own_key BLOB, own_fingerprint BLOB,  -- of what was never staged
    PRIMARY KEY (kind, row)
) WITHOUT ROWID;
CREATE TABLE adopted (
    kind TEXT NOT NULL, row INTEGER NOT NULL, identity TEXT NOT NULL, key BLOB NOT NULL, fingerprint BLOB NOT NULL,
    payload BLOB NOT NULL, fields BLOB NOT NULL, sent BLOB NOT NULL, person BLOB, address BLOB, origin BLOB,
    PRIMARY KEY (kind, row)
);
CREATE TABLE omitted (  -- values
    kind TEXT NOT NULL, row INTEGER NOT NULL, field TEXT NOT NULL, reason TEXT NOT NULL, own_key BLOB NOT NULL,
    own_fingerprint BLOB NOT NULL, is_new INTEGER NOT NULL DEFAULT 1
);
"""
    + known_rows.TABLES
    + "BEGIN;"
)


def _hint(folder: Path) -> str:
    if os.access(folder, os.W_OK | os.X_OK):
        return "."
    hint = owner_hint(folder / "a new file")
    return hint if hint != "." else "; let the user of the job write there, or name another folder with OUTPUT_DIR."


@contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """An empty stage, whose file lies in `folder` and is gone when the block ends. Raises OutputError.

    It and SQLite's sorting go where the outputs go, not to a /tmp that may be small, or memory. The variable
    SQLITE_TMPDIR would come too late here: SQLite reads it when its module is imported.
    """
    directory = str(folder).replace("'", "''")
    with ExitStack() as stack:
        database = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        try:
            database.execute(f"PRAGMA temp_store_directory = '{directory}'")
            database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise OutputError(f"{folder} can't hold the records of this run ({error}){_hint(folder)}") from error
        stage = Stage(database, folder)
        stack.callback(stage.known_rows.close)
        yield stage
