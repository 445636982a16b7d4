"""This run's records: what is staged, in which order it is sent, and what became of each.

`Stage` is a private temporary SQLite file that is unlinked as it is opened, so that the operating system removes it
however the run ends: its records are personal data. Knows nothing of HTTP and of other runs. Only the thread that
opened it uses it. `event_runs` packs events, `duplicates` settles those of one id, `outcomes` notes what became of
them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import Any

from pipeline.model.exits import OutputError
from pipeline.model.keys import USER_BYTES, is_given
from pipeline.model.records import FailedRecord, Kind, Outcome, Record, UserDetails
from pipeline.model.sql import insert_many
from pipeline.stage.duplicates import Doubled, Duplicates
from pipeline.stage.event_runs import KEYS_PER_LOOKUP, EventRuns
from pipeline.stage.outcomes import Failure, Outcomes
from pipeline.stage.pages import UserRecords, pages, records_of
from pipeline.stage.states import CODES, LATE, PENDING, UNCHANGED, States

LARGE_USER_ROW = 50_000

UserRow = tuple[bytes, int, str, str]  # the user's key, row, identity, and what the row says about the user
Known = Callable[[Sequence[bytes]], Mapping[bytes, bytes]]  # keys -> the fingerprints last accepted, of those known
FailedBefore = Callable[[Sequence[bytes]], Container[bytes]]  # keys -> those that failed in an earlier run

_BEHIND_ALL_KEYS = b"\xff" * (USER_BYTES + 1)
_USER_COLUMNS = "row, identity, key, fingerprint, payload, fields, sent, person, address, origin"


class Stage:
    """The connection. Make it with `open_stage`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._known: Known | None = None
        self._late: FailedBefore | None = None
        self._largest_user_row = 0  # in characters
        self._has_all_users = False  # until the rows of each are put together, a user is in `user_rows` only
        self._states = States()
        self._runs = EventRuns(database, self._states)
        self._duplicates = Duplicates(database, self._runs, self._states)
        self.doubled = Doubled()
        self.merged_users = 0  # whose rows disagreed
        self.left_users = 0  # that are known, and would have been updated otherwise
        self.outcomes = outcomes = Outcomes(database, self._states, self._runs)
        self.note_delivered, self.note_unchanged = outcomes.note_delivered, outcomes.note_unchanged
        self.note, self.note_refusals, self.reject = outcomes.note, outcomes.note_refusals, outcomes.reject
        self.hold, self.release_held, self.give_up_held = outcomes.hold, outcomes.release_held, outcomes.give_up_held
        self.release_users_of_held = outcomes.release_users_of_held
        self.failures, self.refusals, self.mark_known = outcomes.failures, outcomes.refusals, outcomes.mark_known
        self.undelivered, self.rejected_codes = outcomes.undelivered, outcomes.rejected_codes
        self.count_new_rejections, self.count_reasons = outcomes.count_new_rejections, outcomes.count_reasons
        self.count_pending, self.count_outcomes = self._states.count_pending, self._states.count_outcomes
        self.count_delivered = outcomes.count_delivered

    @property
    def duplicate_events(self) -> int:
        return self.doubled.repeated

    # Staging --------------------------------------------------------------------------------------------------

    def begin(self, known: Known | None, late: FailedBefore | None = None, *, made_ids_only: bool = False) -> None:
        """Say what earlier runs know of the records that are going to be staged.

        known: what Iterable has accepted of events; None sends it all the same. late: what failed before.
        made_ids_only: no event has an id of the query's own.
        """
        self._known, self._late = known, late
        self._runs.begin(made_only=made_ids_only)

    def stage_user_rows(self, rows: Sequence[UserRow]) -> None:
        """What rows say about their users, to be put together when all of them are there."""
        self._largest_user_row = max([self._largest_user_row, *(len(content) for *_, content in rows)])
        insert_many(self._database, "INSERT INTO user_rows (key, row, identity, content) VALUES", rows)

    def user_rows(self) -> Iterator[UserRow]:
        """User by user in the order of their keys, each user's in the query's order."""
        source = "user_rows"
        if self._largest_user_row > LARGE_USER_ROW:
            # SQLite's sorter takes the contents along, and where they are large it holds many of them in memory.
            self._database.execute("CREATE INDEX IF NOT EXISTS user_rows_in_order ON user_rows (key, row)")
            source = "user_rows INDEXED BY user_rows_in_order"
        return iter(self._database.execute(f"SELECT key, row, identity, content FROM {source} ORDER BY key, row"))

    def stage_users(
        self, records: Sequence[Record], states: Sequence[int] | None = None, stale: Sequence[bool] | None = None
    ) -> None:
        """Users, each once. An empty payload: the user can't be updated, and is there for its events.

        states: their `first_states`, where they are known. stale: whether the ledger is to learn something of the user
        without an update.
        """
        stale = [False] * len(records) if stale is None else stale
        rows = [
            (*each[1:6], *(each.details or UserDetails()), int(is_stale))
            for each, is_stale in zip(records, stale, strict=True)
        ]
        insert_many(
            self._database,
            f"INSERT INTO users ({_USER_COLUMNS}, is_stale) VALUES",
            rows,
        )
        if states is None:
            states = self.first_states([each.key for each in records], [each.fingerprint for each in records])
        for each, state in zip(records, states, strict=True):
            if each.payload:
                self._states.set(Kind.USER, each.row, state)

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
            states = self.first_states(keys, fingerprints) if states is None else states
            self._runs.insert(rows, keys, fingerprints, payloads, states)

    def first_states(self, keys: Sequence[bytes], fingerprints: Sequence[bytes]) -> bytes:
        """The states that records begin with."""
        accepted, failed_before = self._look_up(keys)
        if not accepted and not failed_before:
            return bytes([PENDING]) * len(keys)
        if len(accepted) == len(keys) and list(map(accepted.get, keys)) == list(fingerprints):
            return bytes([UNCHANGED]) * len(keys)
        return bytes(
            UNCHANGED if accepted.get(key) == fingerprint else LATE if key in failed_before else PENDING
            for key, fingerprint in zip(keys, fingerprints, strict=True)
        )

    def failed_before(self, keys: Sequence[bytes]) -> Container[bytes]:
        """Those of these that failed in an earlier run, and so are sent after all others."""
        return self._late(sorted(keys)) if self._late is not None else ()

    def _look_up(self, keys: Sequence[bytes]) -> tuple[Mapping[bytes, bytes], Container[bytes]]:
        """The fingerprints accepted, and the keys of what failed before."""
        if self._known is None and self._late is None:
            return {}, ()
        in_order = sorted(keys)  # in which the ledger has them
        accepted = self._known(in_order) if self._known is not None else {}
        return accepted, self._late(in_order) if self._late is not None else ()

    def end_reading(self) -> None:
        """All rows are staged: keep them, although a disk that is full later on undoes what was done since."""
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
            self.note(self._duplicates.find_conflicts())
        self.doubled = self._duplicates.drop()
        if self.count_pending(Kind.EVENT):
            self._runs.put_in_order()
        self._put_events_of_late_users_last()

    def _put_events_of_late_users_last(self) -> None:
        """They must not overtake their user's update."""
        users, events = self._states[Kind.USER], self._states[Kind.EVENT]
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
        self._states.clear()

    # People ---------------------------------------------------------------------------------------------------

    def forget_persons(self) -> None:
        """The column that was taken for the person's says nothing about people."""
        self._database.execute("UPDATE users SET person = NULL")

    def persons_of_several(self, persons: Sequence[bytes]) -> set[bytes]:
        """Those of these persons who have more than one address in this read."""
        found: set[bytes] = set()
        wanted = set(persons)
        if wanted:
            rows = self._database.execute(
                "SELECT person FROM users WHERE person IS NOT NULL GROUP BY person HAVING count(*) > 1"
            )
            found = {person for (person,) in rows if person in wanted}
        return found

    def stale_users(self) -> Iterator[list[Record]]:
        """Unchanged users of whom the ledger is to learn something, some at a time."""
        rows = self._database.execute(f"SELECT {_USER_COLUMNS} FROM users WHERE is_stale ORDER BY key")
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            records = [_user_record(each) for each in page]
            yield [each for each in records if self._states[Kind.USER][each.row] == UNCHANGED]

    def unacknowledged_users(self) -> Iterator[list[Record]]:
        """Users whose update was sent, and not acknowledged, some at a time."""
        columns = ", ".join(f"users.{name.strip()}" for name in _USER_COLUMNS.split(","))
        rows = self._database.execute(
            f"SELECT {columns} FROM users CROSS JOIN undelivered ON undelivered.row = users.row"
            " WHERE undelivered.kind = ? AND outcome = ? AND attempts",
            (Kind.USER.value, Outcome.UNACKNOWLEDGED.value),
        )
        if CODES[Outcome.UNACKNOWLEDGED] in self._states[Kind.USER]:
            while page := rows.fetchmany(KEYS_PER_LOOKUP):
                yield list(map(_user_record, page))

    def key_of(self, identity: str) -> bytes | None:
        """The key under which a user of this read is known."""
        row = self._database.execute("SELECT key FROM users WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else bytes(row[0])

    def has_user(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM users WHERE key = ?", (key,)).fetchone() is not None

    def replace_user(
        self, key: bytes, record: Record, state: int, old_id: str, new_id: str, *, is_late: bool = False
    ) -> None:
        """A user whom the ledger knows under another key, which `record` has; the events become those of that key.

        old_id, new_id: what the made ids of their events begin with. is_late: the events are sent after all others.
        What Iterable has under the present key, and the ledger does not know under the other one, is `adopted`.
        """
        self._database.execute("DELETE FROM users WHERE key = ?", (key,))
        self.stage_users([record], [state])
        events = self._runs.rekey(key, record.key, old_id.encode(), new_id.encode())
        states = self.first_states([each for _, each, _ in events], [each for _, _, each in events])
        for (row, event_key, fingerprint), found in zip(events, states, strict=True):
            present = self._states[Kind.EVENT][row]
            if present == UNCHANGED and found != UNCHANGED:  # staged without its payload, and needs none
                self.adopt([Record(Kind.EVENT, row, record.identity, event_key, fingerprint, b"")])
            elif present == UNCHANGED:
                self._database.execute("DELETE FROM adopted WHERE kind = ? AND row = ?", (Kind.EVENT.value, row))
            elif present in (PENDING, LATE):
                self._states.set(Kind.EVENT, row, LATE if is_late and found == PENDING else found)

    def adopt(self, records: Sequence[Record]) -> None:
        """Iterable has these already; the ledger is to know them under these keys."""
        for each in records:
            self._database.execute(
                f"INSERT OR REPLACE INTO adopted (kind, {_USER_COLUMNS}) VALUES (?{', ?' * 10})",
                (each.kind.value, *each[1:6], *(each.details or UserDetails())),
            )

    def adopted(self) -> Iterator[list[Record]]:
        """They all, some at a time."""
        rows = self._database.execute(f"SELECT kind, {_USER_COLUMNS} FROM adopted ORDER BY key")
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            yield [_user_record(columns)._replace(kind=Kind(kind)) for kind, *columns in page]

    def send_all_fields(self, record: Record) -> None:
        """A user, whose profile turned out to be new, is sent with all fields."""
        details = record.details or UserDetails()
        self._database.execute(
            "UPDATE users SET payload = ?, fields = ?, sent = ?, address = ? WHERE key = ?",
            (record.payload, details.fields, details.sent, details.address, record.key),
        )
        if record.payload:
            self._states.set(Kind.USER, record.row, LATE)

    def open_of(self, key: bytes) -> list[Record]:
        """A user that is pending or unchanged, and the events that are pending."""
        behind = key[: USER_BYTES - 1] + bytes([key[USER_BYTES - 1] + 1]) if key[USER_BYTES - 1] < 255 else None
        states = self._states[Kind.USER]
        rows = self._database.execute(f"SELECT {_USER_COLUMNS} FROM users WHERE key = ?", (key,)).fetchall()
        users = [record for record in map(_user_record, rows) if states[record.row] in (PENDING, LATE, UNCHANGED)]
        events = [
            record
            for late in (False, True)
            for record in self.pending(Kind.EVENT, late=late, first=key[:USER_BYTES], before=behind)
        ]
        return users + events

    def reject_user(self, key: bytes, code: str, message: str) -> int:
        """Reject a user, also one that is unchanged, and what is pending of the events. How many records these are."""
        (row, identity, fingerprint) = self._database.execute(
            "SELECT row, identity, fingerprint FROM users WHERE key = ?", (key,)
        ).fetchone()
        if row < len(self._states[Kind.USER]) and self._states[Kind.USER][row] == UNCHANGED:
            self._states.set(Kind.USER, row, PENDING)
        return self._reject([(row, key, fingerprint, identity)], code, message)

    def reject_people(self, is_meant: Callable[[str], bool], code: str, message: str) -> int:
        """The same for all people who are meant, told by their identity."""
        people = self._database.execute("SELECT row, key, fingerprint, identity FROM users ORDER BY key")
        return sum(self._reject([each], code, message) for each in people if is_meant(each[3]))

    def _reject(self, people: Sequence[tuple[int, bytes, bytes, str]], code: str, message: str) -> int:
        rejected = 0
        for row, key, fingerprint, identity in people:
            records = [(Kind.USER, row, key, fingerprint)]
            if self.count_pending(Kind.EVENT):
                records += [(Kind.EVENT, *event) for event in self._runs.of_user(key)]
            refusals = [
                Failure(own_key, own, FailedRecord(kind, number, identity, Outcome.REJECTED, None, code, message, 0))
                for kind, number, own_key, own in records
                if number < len(self._states[kind]) and self._states[kind][number] in (PENDING, LATE)
            ]
            self.note_refusals(refusals)
            rejected += len(refusals)
        return rejected

    def count_users(self) -> int:
        """Users that this read has found."""
        (count,) = self._database.execute("SELECT count(*) FROM users").fetchone()
        return int(count)

    def keys(self) -> Iterator[bytes]:
        """The keys of all records that are staged."""
        for (key,) in self._database.execute("SELECT key FROM users"):
            yield key
        for entries in self._runs.entries():
            yield from self._runs.keys_in(entries)

    def pending_given(self) -> Iterator[list[tuple[int, bytes, bytes]]]:
        """Row, key and fingerprint of pending events whose ids the query gives, some at a time."""
        states = self._states[Kind.EVENT]
        events = (each for each in self._runs.all() if is_given(each[1]) and states[each[0]] in (PENDING, LATE))
        while page := list(islice(events, KEYS_PER_LOOKUP)):
            yield page

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
        if state not in self._states[kind]:
            return iter(())
        read = self._read_users if kind is Kind.USER else self._runs.read
        return read(state, first[:USER_BYTES], before[:USER_BYTES] if before is not None else _BEHIND_ALL_KEYS)

    def _read_users(self, state: int, first: bytes, before: bytes) -> Iterator[UserRecords]:
        states = self._states[Kind.USER]
        rows = self._database.execute(
            f"SELECT {_USER_COLUMNS} FROM users WHERE key >= ? AND key < ? ORDER BY key", (first, before)
        )
        for columns in rows:
            if columns[0] < len(states) and states[columns[0]] == state:
                record = _user_record(columns)
                yield UserRecords([record], len(record.payload))

    # The end --------------------------------------------------------------------------------------------------

    def note_not_attempted(self, message: str) -> None:
        """Everything that has no outcome yet was not attempted, for this reason."""
        undelivered = (Outcome.NOT_ATTEMPTED, None, None, message, 0)
        try:
            if not self._has_all_users:  # the run broke off before the stage was finished
                self._stage_unmerged_users()
            if self.count_pending(Kind.EVENT):
                self._runs.put_in_order()
            for kind, late in product(Kind, (False, True)):
                for page in pages(self.pending_by_user(kind, late=late)):
                    self.note([FailedRecord(kind, record.row, record.identity, *undelivered) for record in page])
        finally:
            for state in (PENDING, LATE):
                self._states.replace(state, CODES[Outcome.NOT_ATTEMPTED])

    def _stage_unmerged_users(self) -> None:
        """So that each of them has one outcome, whether or not somebody has put together what their rows say."""
        missing = "FROM user_rows WHERE key NOT IN (SELECT key FROM users) GROUP BY key"
        is_refused = "key IN (SELECT own_key FROM undelivered WHERE own_key IS NOT NULL)"
        self._states.clear(Kind.USER)
        for source in (f"row, {is_refused} FROM users", f"max(row), {is_refused} {missing}"):
            for row, has_outcome in self._database.execute(f"SELECT {source}"):
                if not has_outcome:
                    self._states.set(Kind.USER, row, PENDING)
        for row, outcome in self._database.execute("SELECT row, outcome FROM undelivered WHERE kind = 'user'"):
            self._states.set(Kind.USER, row, CODES[Outcome(outcome)])
        columns = "key, row, identity, fingerprint, payload"
        self._database.execute(f"INSERT INTO users ({columns}) SELECT key, max(row), identity, x'', x'' {missing}")


def _user_record(columns: Sequence[Any]) -> Record:
    """A row of _USER_COLUMNS."""
    row, identity, key, fingerprint, payload, *details = columns
    return Record(Kind.USER, row, identity, key, fingerprint, payload, UserDetails(*details))


_SCHEMA = """
PRAGMA page_size = 8192;  -- a run of ten events fits into one page
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
PRAGMA temp_store = FILE;
CREATE TABLE user_rows (key BLOB NOT NULL, row INTEGER NOT NULL, identity TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE users (
    key BLOB NOT NULL UNIQUE, row INTEGER NOT NULL, identity TEXT NOT NULL, fingerprint BLOB NOT NULL,
    payload BLOB NOT NULL, fields BLOB NOT NULL DEFAULT x'', sent BLOB NOT NULL DEFAULT x'', person BLOB, address BLOB,
    origin BLOB, is_stale INTEGER NOT NULL DEFAULT 0
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
BEGIN;
"""


@contextmanager
def open_stage(folder: Path) -> Iterator[Stage]:
    """An empty stage, whose file lies in `folder` and is gone when the block ends. Raises OutputError.

    It and SQLite's sorting go where the outputs go, not to a /tmp that may be small, or memory. The variable
    SQLITE_TMPDIR would come too late here: SQLite reads it when its module is imported.
    """
    directory = str(folder).replace("'", "''")
    database = sqlite3.connect("", isolation_level=None)
    try:
        try:
            database.execute(f"PRAGMA temp_store_directory = '{directory}'")
            database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise OutputError(f"{folder} can't hold the records of this run ({error}).") from error
        yield Stage(database)
    finally:
        database.close()
