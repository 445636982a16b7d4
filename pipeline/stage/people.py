"""The users of this run, each once, and what is done with a user together with the user's events: a new key, a refusal.

The rows from which users are put together are in `stage`.
"""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.model.records import FailedRecord, Kind, Outcome, Record, UserDetails
from pipeline.model.sql import insert_many
from pipeline.stage.event_runs import KEYS_PER_LOOKUP, EventRuns
from pipeline.stage.known_records import KnownRecords
from pipeline.stage.outcomes import KeyedFailure, Outcomes
from pipeline.stage.pages import UserRecords
from pipeline.stage.states import CODES, LATE, PENDING, UNCHANGED, States

_USER_COLUMNS = "row, identity, key, fingerprint, payload, fields, sent, person, address, origin"

NOT_CARRIED_OUT = (401, 403, 407, 429)  # the key, a proxy or the limits refused the request, so that it changed nothing


class Note(NamedTuple):
    """is_stale: whether the ledger is to learn something of the user without an update. settled: whether it has nothing
    to learn, and how it knows the user; see `known_rows`."""

    is_stale: bool = False
    settled: int = 0


_NOTHING = UserDetails()


class People:
    """The table `users`, and `adopted`: what Iterable has already, and the ledger does not know yet."""

    def __init__(
        self,
        database: sqlite3.Connection,
        states: States,
        runs: EventRuns,
        outcomes: Outcomes,
        known: KnownRecords,
    ) -> None:
        self._database = database
        self._states = states
        self._runs = runs
        self._outcomes = outcomes
        self._known = known

    def stage_users(
        self, records: Sequence[Record], states: Sequence[int] | None = None, notes: Sequence[Note] | None = None
    ) -> None:
        """Users, each once. An empty payload: the user can't be updated, and is there for its events.

        states: their `first_states`, where they are known.
        """
        rows: list[tuple[Any, ...]] = [(*each[1:6], *(each.details or _NOTHING)) for each in records]
        columns = _USER_COLUMNS
        if notes is not None:
            rows = list(map(operator.add, rows, notes))
            columns += f", {', '.join(Note._fields)}"
        insert_many(self._database, f"INSERT INTO users ({columns}) VALUES", rows)
        if states is None:
            states = self._known.first_states([each.key for each in records], [each.fingerprint for each in records])
        sent = [(each.row, state) for each, state in zip(records, states, strict=True) if each.payload]
        self._states.set_all(Kind.USER, [row for row, _ in sent], bytes([state for _, state in sent]))

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

    def key_of(self, identity: str) -> bytes | None:
        """The key under which a user of this read is known."""
        row = self._database.execute("SELECT key FROM users WHERE identity = ?", (identity,)).fetchone()
        return None if row is None else bytes(row[0])

    def has_user(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM users WHERE key = ?", (key,)).fetchone() is not None

    def record_of(self, key: bytes) -> Record | None:
        row = self._database.execute(f"SELECT {_USER_COLUMNS} FROM users WHERE key = ?", (key,)).fetchone()
        return None if row is None else _user_record(row)

    def read(self, state: int, first: bytes, before: bytes) -> Iterator[UserRecords]:
        """The users in this state, in the order of their keys. first, before: from this key on, and up to that one."""
        states = self._states[Kind.USER]
        rows = self._database.execute(
            f"SELECT {_USER_COLUMNS} FROM users WHERE key >= ? AND key < ? ORDER BY key", (first, before)
        )
        for columns in rows:
            if columns[0] < len(states) and states[columns[0]] == state:
                record = _user_record(columns)
                yield UserRecords([record], len(record.payload))

    def stale_users(self) -> Iterator[list[Record]]:
        """Unchanged users of whom the ledger is to learn something, some at a time."""
        rows = self._database.execute(f"SELECT {_USER_COLUMNS} FROM users WHERE is_stale ORDER BY key")
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            records = [_user_record(each) for each in page]
            yield [each for each in records if self._states[Kind.USER][each.row] == UNCHANGED]

    def unacknowledged_users(self) -> Iterator[list[Record]]:
        """Users whose update was sent, and may have been carried out without an acknowledgement, some at a time."""
        columns = ", ".join(f"users.{name.strip()}" for name in _USER_COLUMNS.split(","))
        rows = self._database.execute(
            f"SELECT {columns} FROM users CROSS JOIN undelivered ON undelivered.row = users.row"
            " WHERE undelivered.kind = ? AND outcome = ? AND attempts"
            f" AND coalesce(status_code, 0) NOT IN ({', '.join(map(str, NOT_CARRIED_OUT))})",
            (Kind.USER.value, Outcome.UNACKNOWLEDGED.value),
        )
        if CODES[Outcome.UNACKNOWLEDGED] in self._states[Kind.USER]:
            while page := rows.fetchmany(KEYS_PER_LOOKUP):
                yield list(map(_user_record, page))

    def replace_user(
        self,
        key: bytes,
        record: Record,
        state: int,
        old_id: str,
        new_id: str,
        *,
        is_late: bool = False,
        adopts: bool = True,
    ) -> None:
        """A user whom the ledger knows under another key, which `record` has; the events become those of that key.

        old_id, new_id: what the made ids of their events begin with. is_late: the events are sent after all others.
        adopts: what Iterable has under the present key, and the ledger does not know under the other one, is `adopted`.
        """
        self._database.execute("DELETE FROM users WHERE key = ?", (key,))
        self.stage_users([record], [state])
        events = self._runs.rekey(key, record.key, old_id.encode(), new_id.encode())
        states = self._known.first_states([each for _, each, _ in events], [each for _, _, each in events])
        for (row, event_key, fingerprint), found in zip(events, states, strict=True):
            present = self._states[Kind.EVENT][row]
            if present == UNCHANGED and found != UNCHANGED:  # staged without its payload, and needs none
                if adopts:
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
        """All of them, some at a time."""
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

    def reject_user(self, key: bytes, code: str, message: str) -> int:
        """Reject a user, also one that is unchanged, and what is pending of the events. How many records these are."""
        (row, identity, fingerprint) = self._database.execute(
            "SELECT row, identity, fingerprint FROM users WHERE key = ?", (key,)
        ).fetchone()
        if row < len(self._states[Kind.USER]) and self._states[Kind.USER][row] == UNCHANGED:
            self._states.set(Kind.USER, row, PENDING)
        return self._reject([(row, key, fingerprint, identity)], code, message)

    def reject_people(self, is_meant: Callable[[str], bool], code: str, message: str) -> int:
        """The same for all people whose identity is meant."""
        people = self._database.execute("SELECT row, key, fingerprint, identity FROM users ORDER BY key")
        return sum(self._reject([each], code, message) for each in people if is_meant(each[3]))

    def reject_forgotten(self, key: bytes, code: str, message: str) -> None:
        """Reject a user with everything that the rows say of it, also what can't be sent for another reason."""
        self.reject_user(key, code, message)
        (identity,) = self._database.execute("SELECT identity FROM users WHERE key = ?", (key,)).fetchone()
        self._outcomes.restate(identity, key, code, message)

    def _reject(self, people: Sequence[tuple[int, bytes, bytes, str]], code: str, message: str) -> int:
        rejected = 0
        for row, key, fingerprint, identity in people:
            records = [(Kind.USER, row, key, fingerprint)]
            if self._states.count_pending(Kind.EVENT):
                records += [(Kind.EVENT, *event) for event in self._runs.of_user(key)]
            refusals = [
                KeyedFailure(
                    own_key, own, FailedRecord(kind, number, identity, Outcome.REJECTED, None, code, message, 0)
                )
                for kind, number, own_key, own in records
                if number < len(self._states[kind]) and self._states[kind][number] in (PENDING, LATE)
            ]
            self._outcomes.note_refusals(refusals)
            rejected += len(refusals)
        return rejected


def _user_record(columns: Sequence[Any]) -> Record:
    """A row of _USER_COLUMNS."""
    row, identity, key, fingerprint, payload, *details = columns
    return Record(Kind.USER, row, identity, key, fingerprint, payload, UserDetails(*details))
