"""This run's records: what is staged, in which order it is sent, and what became of each.

`Stage` is a private temporary SQLite file that is unlinked as it is opened, so that the operating system removes it
however the run ends: its records are personal data. Knows nothing of HTTP and of other runs. Only the thread that
opened it uses it.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, groupby, islice, pairwise, product, repeat
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from pipeline.model.exits import OutputError
from pipeline.model.keys import HASH_BYTES, KEY_BYTES, USER_BYTES
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.model.sql import insert_many
from pipeline.stage.pages import UserRecords, pages, records_of, size_of

KEYS_PER_LOOKUP = 500
MOST_KEYS = 2**17  # that are compared in memory
LARGE_USER_ROW = 50_000


UserRow = tuple[bytes, int, str, str]  # the user's key, row, identity, and what the row says about the user
Known = Callable[[Sequence[bytes]], Mapping[bytes, bytes]]  # keys -> the fingerprints last accepted, of those known
FailedBefore = Callable[
    [Sequence[bytes]], Container[bytes]
]  # keys -> those that were refused or not acknowledged before

_ALL_BUT_KIND = itemgetter(1, 2, 3, 4, 5)
_USER_OF_KEY = f"substr(key, 1, {USER_BYTES})"
_ID_OF_KEY = f"substr(key, {USER_BYTES + 1})"
_BETWEEN_PAYLOADS = b"\n"  # JSON has none
_USER_OF_RUN = f"substr(entries, 1, {USER_BYTES})"
_RUN_OF_UNDELIVERED = "events.first_row = (SELECT max(first_row) FROM events WHERE first_row <= undelivered.row)"
_BEHIND_ALL_KEYS = b"\xff" * (USER_BYTES + 1)

# States of a staged record: its outcome's code, or one of those before it.
_NO_RECORD = 0
_PENDING = 1
_LATE = 2  # pending, too, but offered after all others: it, or its user, failed in an earlier run
_HELD = 3  # refused, and to be tried once more in this run
_CODES = {outcome: code for code, outcome in enumerate(Outcome, start=4)}
_DELIVERED = _CODES[Outcome.DELIVERED]
UNCHANGED = _CODES[Outcome.UNCHANGED]


class Failure(NamedTuple):
    """A record that was not delivered. key, fingerprint: of the record or, where there is none, of its cells."""

    key: bytes
    fingerprint: bytes
    undelivered: FailedRecord


def _runs(
    rows: Sequence[int], keys: Sequence[bytes], fingerprints: Sequence[bytes], payloads: Sequence[bytes]
) -> list[tuple[int, bytes, bytes]]:
    """Neighbouring events of one user, put together: SQLite takes as long for one as for ten."""
    users = [key[:USER_BYTES] for key in keys]
    entries = list(map(bytes.__add__, keys, fingerprints))
    starts = [at for at in range(1, len(rows)) if users[at] != users[at - 1] or rows[at] != rows[at - 1] + 1]
    if len(starts) == len(rows) - 1:  # nobody has neighbours
        return list(zip(rows, entries, payloads, strict=True))
    return [
        (rows[start], b"".join(entries[start:end]), _BETWEEN_PAYLOADS.join(payloads[start:end]))
        for start, end in pairwise([0, *starts, len(rows)])
    ]


class Stage:
    """The connection. Make it with `open_stage`."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._known: Known | None = None
        self._late: FailedBefore | None = None
        self._resend: Container[Kind] = ()
        self._leaves_known_users = False
        self._largest_user_row = 0  # in characters
        self._entry_bytes = KEY_BYTES + HASH_BYTES  # an event's key and fingerprint
        self._distinct: set[bytes] | None = set()  # the events' keys; None where they are too many
        self._staged_events = 0
        self._has_all_users = False  # until the rows of each are put together, a user is in `user_rows` only
        self.duplicate_events = 0
        self.merged_users = 0  # whose rows disagreed
        self.left_users = 0  # that are known, and would have been updated otherwise
        # One byte for each row and kind: its state. A table of this would cost more than the rest of the stage.
        self._states: dict[Kind, bytearray] = {kind: bytearray() for kind in Kind}

    # Staging --------------------------------------------------------------------------------------------------

    def begin(
        self,
        known: Known | None,
        late: FailedBefore | None = None,
        *,
        resend: Container[Kind] = (),
        leave_known_users: bool = False,
    ) -> None:
        """Say what earlier runs know of the records that are going to be staged.

        known: what Iterable has accepted; None sends it all the same, as do the kinds in `resend`. late: what failed
        before.
        leave_known_users: users that are known count as unchanged, whatever was accepted of them.
        """
        self._known, self._late, self._leaves_known_users = known, late, leave_known_users
        self._resend = resend

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

    def stage_users(self, records: Sequence[Record]) -> None:
        """Users, each once. An empty payload: the user can't be updated, and is there for its events."""
        insert_many(
            self._database,
            "INSERT INTO users (row, identity, key, fingerprint, payload) VALUES",
            list(map(_ALL_BUT_KIND, records)),
        )
        sendable = [each for each in records if each.payload]
        states = self.first_states(Kind.USER, [each.key for each in sendable], [each.fingerprint for each in sendable])
        self._set_states(Kind.USER, [each.row for each in sendable], states)

    def stage_events(
        self,
        rows: Sequence[int],
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
        payloads: Sequence[bytes],
        states: bytes | None = None,
    ) -> None:
        """Events to track, in the order of their rows. Doubled ones are settled when the stage is finished.

        What is unchanged is staged without its payload, so that two events of one id are still found.
        states: their `first_states`, where they are known.
        """
        if not rows:
            return
        self._entry_bytes = KEY_BYTES + len(fingerprints[0])
        self._staged_events += len(keys)
        if self._distinct is not None:
            self._distinct.update(keys)
            if len(self._distinct) > MOST_KEYS:
                self._distinct = None
        states = self.first_states(Kind.EVENT, keys, fingerprints) if states is None else states
        if UNCHANGED in states:
            payloads = [b"" if state == UNCHANGED else each for each, state in zip(payloads, states, strict=True)]
        insert_many(
            self._database,
            "INSERT INTO events (first_row, entries, payloads) VALUES",
            _runs(rows, keys, fingerprints, payloads),
        )
        self._set_states(Kind.EVENT, rows, states)

    def first_states(self, kind: Kind, keys: Sequence[bytes], fingerprints: Sequence[bytes]) -> bytes:
        """The states that records begin with."""
        accepted, failed_before = self._look_up(kind, keys)
        if not accepted and not failed_before:
            return bytes([_PENDING]) * len(keys)
        if len(accepted) == len(keys) and list(map(accepted.get, keys)) == list(fingerprints):
            return bytes([UNCHANGED]) * len(keys)
        states = bytearray()
        leaves_known = self._leaves_known_users and kind is Kind.USER
        for key, fingerprint in zip(keys, fingerprints, strict=True):
            is_unchanged = accepted.get(key) == fingerprint
            if is_unchanged or (leaves_known and key in accepted):
                states.append(UNCHANGED)
                self.left_users += not is_unchanged
            else:
                states.append(_LATE if key in failed_before else _PENDING)
        return bytes(states)

    def _look_up(self, kind: Kind, keys: Sequence[bytes]) -> tuple[Mapping[bytes, bytes], Container[bytes]]:
        """The fingerprints accepted, and the keys of what failed before."""
        known = None if kind in self._resend else self._known
        if known is None and self._late is None:
            return {}, ()
        in_order = sorted(keys)  # in which the ledger has them
        accepted = known(in_order) if known is not None else {}
        return accepted, self._late(in_order) if self._late is not None else ()

    def end_reading(self) -> None:
        """All rows are staged: keep them, although a disk that is full later on undoes what was done since."""
        self._keep()

    def _keep(self) -> None:
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def finish_staging(self, *, ids_are_given: bool = False) -> None:
        """Settle doubled ids, and put what is pending in order.

        ids_are_given: the events' ids come from the query, so that two users may share one by mistake.
        """
        self._keep()
        self._has_all_users = True
        self._drop_duplicate_events()
        if ids_are_given:
            self._refuse_shared_event_ids()
        if self.count_pending(Kind.EVENT):
            self._order_events()
        self._put_events_of_late_users_last()

    def _order_events(self) -> None:
        """User by user, in the order of the keys: they enter the ledger in less than half the time of any other."""
        self._database.execute(f"CREATE INDEX IF NOT EXISTS events_in_order ON events ({_USER_OF_RUN})")

    def _put_events_of_late_users_last(self) -> None:
        """They must not overtake their user's update."""
        users, events = self._states[Kind.USER], self._states[Kind.EVENT]
        if _LATE not in users or _PENDING not in events:
            return
        for row, user_key in self._database.execute("SELECT row, key FROM users ORDER BY key"):
            if users[row] == _LATE:
                for event, _, _ in self._events_of(user_key):
                    if events[event] == _PENDING:
                        events[event] = _LATE

    def clear(self) -> None:
        """Forget all that was staged and noted, to begin anew."""
        for table in ("user_rows", "users", "events", "undelivered"):
            self._database.execute(f"DELETE FROM {table}")
        self.duplicate_events = self.merged_users = self.left_users = 0
        self._distinct, self._staged_events = set(), 0
        self._states = {kind: bytearray() for kind in Kind}

    def _drop_duplicate_events(self) -> None:
        """Of several events with one id the last one counts, and of equal ones the first."""
        has_none = self._distinct is not None and len(self._distinct) == self._staged_events
        self._distinct = None
        users = [] if has_none else list(self._users_with_doubled_events())
        if not users:
            return
        self._order_events()
        with self._unpacked(event for user in users for event in self._events_of(user)):
            rows = self._database.execute(
                "SELECT key, row, fingerprint FROM unpacked WHERE key IN"
                " (SELECT key FROM unpacked GROUP BY key HAVING count(*) > 1) ORDER BY key, row"
            )
            dropped = array("q")
            kept_key = kept_fingerprint = b""
            kept_row = 0
            for key, row, fingerprint in rows:
                if key == kept_key:
                    dropped.append(row if fingerprint == kept_fingerprint else kept_row)
                if key != kept_key or fingerprint != kept_fingerprint:
                    kept_key, kept_row, kept_fingerprint = key, row, fingerprint
        for row in dropped:
            self._set_state(Kind.EVENT, row, _NO_RECORD)
        self.duplicate_events = len(dropped)

    def _users_with_doubled_events(self) -> Iterator[bytes]:
        """The keys of users who have, or may have, two events of one id."""
        # By an index, SQLite would look for each run in the whole of the file.
        runs = self._database.execute(f"SELECT {_USER_OF_RUN}, entries FROM events NOT INDEXED ORDER BY 1")
        for user, runs_of_user in groupby(runs, key=itemgetter(0)):
            keys: list[bytes] = []
            for _, entries in runs_of_user:
                keys += self._keys_in(entries)
                if len(keys) > MOST_KEYS:
                    break
            if len(keys) > MOST_KEYS or len(set(keys)) < len(keys):
                yield user

    def _keys_in(self, entries: bytes) -> list[bytes]:
        return [entries[start : start + KEY_BYTES] for start in range(0, len(entries), self._entry_bytes)]

    def _fingerprints_in(self, entries: bytes) -> list[bytes]:
        size = self._entry_bytes
        return [entries[start : start + size - KEY_BYTES] for start in range(KEY_BYTES, len(entries), size)]

    @contextmanager
    def _unpacked(self, events: Iterable[tuple[int, bytes, bytes]]) -> Iterator[None]:
        """Have row, key and fingerprint of these events in a table of their own."""
        events = iter(events)
        while some := list(islice(events, KEYS_PER_LOOKUP)):
            insert_many(self._database, "INSERT INTO unpacked (row, key, fingerprint) VALUES", some)
        yield
        self._database.execute("DELETE FROM unpacked")

    def _refuse_shared_event_ids(self) -> None:
        """Refuse events whose id an earlier row uses for another user.

        Whether an id is unique per user or per project is not documented, so one of them might replace the other.
        """
        text = "event_id is the same as in row {}, which is about another user."
        with self._unpacked(event for event in self._all_events() if self._states[Kind.EVENT][event[0]] != _NO_RECORD):
            rows = self._database.execute(
                "SELECT row, first FROM ("
                f" SELECT row, min(row) OVER (PARTITION BY {_ID_OF_KEY}) AS first FROM unpacked) WHERE row <> first"
            )
            self.note(
                [
                    FailedRecord(Kind.EVENT, row, None, Outcome.REJECTED, None, "InvalidRecord", text.format(first), 0)
                    for row, first in rows
                ]
            )

    def reject_people(self, is_meant: Callable[[str], bool], code: str, message: str) -> int:
        """Reject what is pending of these people, told by their identity: the update and the events. How many."""
        rejected = 0
        people = self._database.execute("SELECT row, key, fingerprint, identity FROM users ORDER BY key")
        for row, key, fingerprint, identity in people:
            if is_meant(identity):
                records = [(Kind.USER, row, key, fingerprint)]
                if self.count_pending(Kind.EVENT):  # without any, there is no index either
                    records += [(Kind.EVENT, *event) for event in self._events_of(key)]
                refusals = [
                    Failure(
                        own_key, own, FailedRecord(kind, number, identity, Outcome.REJECTED, None, code, message, 0)
                    )
                    for kind, number, own_key, own in records
                    if self._states[kind][number] in (_PENDING, _LATE)
                ]
                self.note_refusals(refusals)
                rejected += len(refusals)
        return rejected

    def _events_of(self, user_key: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Row, key and fingerprint of each event of a user, in the order of the rows."""
        return self._all_events(f"WHERE {_USER_OF_RUN} = ? ORDER BY first_row", user_key[:USER_BYTES])

    def _all_events(self, which: str = "", *values: object) -> Iterator[tuple[int, bytes, bytes]]:
        runs = self._database.execute(f"SELECT first_row, entries FROM events {which}", values)
        for first_row, entries in runs:
            yield from zip(count(first_row), self._keys_in(entries), self._fingerprints_in(entries))

    def keys(self) -> Iterator[bytes]:
        """The keys of all records that are staged."""
        for (key,) in self._database.execute("SELECT key FROM users"):
            yield key
        for (entries,) in self._database.execute("SELECT entries FROM events"):
            yield from self._keys_in(entries)

    def _set_states(self, kind: Kind, rows: Sequence[int], states: bytes) -> None:
        if (
            rows and rows[-1] - rows[0] == len(rows) - 1 and kind is Kind.EVENT
        ):  # in the order of their rows, without gaps
            self._set_state(kind, rows[-1], states[-1])
            self._states[kind][rows[0] : rows[-1] + 1] = states
        else:
            for row, state in zip(rows, states, strict=True):
                self._set_state(kind, row, state)

    def _set_state(self, kind: Kind, row: int, state: int) -> None:
        states = self._states[kind]
        if row >= len(states):
            states.extend(bytes(row + 1 - len(states)))
        states[row] = state

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
        state = _LATE if late else _PENDING
        if state not in self._states[kind]:
            return iter(())
        read = self._read_users if kind is Kind.USER else self._read_events
        return read(state, first[:USER_BYTES], before[:USER_BYTES] if before is not None else _BEHIND_ALL_KEYS)

    def _read_users(self, state: int, first: bytes, before: bytes) -> Iterator[UserRecords]:
        states = self._states[Kind.USER]
        rows = self._database.execute(
            "SELECT row, identity, key, fingerprint, payload FROM users WHERE key >= ? AND key < ? ORDER BY key",
            (first, before),
        )
        for row, identity, key, fingerprint, payload in rows:
            if states[row] == state:
                yield UserRecords([Record(Kind.USER, row, identity, key, fingerprint, payload)], len(payload))

    def _read_events(self, state: int, first: bytes, before: bytes) -> Iterator[UserRecords]:
        states = self._states[Kind.EVENT]
        users = self._database.execute(
            f"SELECT {_USER_OF_KEY}, identity FROM users WHERE key >= ? AND key < ? ORDER BY key", (first, before)
        )
        runs = self._database.execute(
            f"SELECT {_USER_OF_RUN}, first_row, entries, payloads FROM events"
            f" WHERE {_USER_OF_RUN} >= ? AND {_USER_OF_RUN} < ? ORDER BY {_USER_OF_RUN}, first_row",
            (first, before),
        )
        user, identity = b"", ""
        for user_of_run, first_row, entries, payloads in runs:
            length = len(entries) // self._entry_bytes
            wanted = states[first_row : first_row + length].count(state)
            if not wanted:
                continue
            while user_of_run != user:
                user, identity = next(users)  # every event's user is staged
            parts = (
                repeat(Kind.EVENT),
                count(first_row),
                repeat(identity),
                self._keys_in(entries),
                self._fingerprints_in(entries),
                payloads.split(_BETWEEN_PAYLOADS),
            )
            records = list(map(Record, *parts))
            if wanted == length:
                yield UserRecords(records, len(payloads) - length + 1)
            else:
                records = [each for each in records if states[each.row] == state]
                yield UserRecords(records, size_of(records))

    def count_pending(self, kind: Kind) -> int:
        """Staged records without an outcome."""
        states = self._states[kind]
        return states.count(_PENDING) + states.count(_LATE)

    # What became of it ----------------------------------------------------------------------------------------

    # States are set first: they are in memory, and so stay right when a full disk refuses the rest.

    def note_delivered(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these."""
        for each in records:
            self._states[each.kind][each.row] = _DELIVERED

    def note_unchanged(self, records: Sequence[Record]) -> None:
        """These need no sending, as Iterable has them."""
        for each in records:
            self._states[each.kind][each.row] = _CODES[Outcome.UNCHANGED]

    def note(self, undelivered: Sequence[FailedRecord], *, is_blamed: bool = True) -> None:
        """Note what was not delivered. It stays out of the ledger, so the next run offers it again.

        is_blamed: the record may be the reason, and not only that the run ended; see `failures`.
        """
        for each in undelivered:
            self._set_state(each.kind, each.row, _CODES[each.outcome])
        self._insert_undelivered(undelivered, [each.outcome.value for each in undelivered], is_blamed=is_blamed)

    def note_refusals(self, refusals: Sequence[Failure]) -> None:
        """Note what can't be sent, and so was never staged."""
        for _, _, each in refusals:
            self._set_state(each.kind, each.row, _CODES[each.outcome])
        insert_many(
            self._database,
            "INSERT INTO undelivered (own_key, own_fingerprint, kind, row, identity, outcome, status_code, code,"
            " message, attempts, is_blamed) VALUES",
            [
                (key, fingerprint, each.kind.value, each.row, each.identity, each.outcome.value, *each[4:])
                for key, fingerprint, each in refusals
            ],
            constants=(1,),
        )

    def hold(self, undelivered: Sequence[FailedRecord]) -> None:
        """Note refusals that may pass. Until `release_held` or `give_up_held`, they are neither pending nor settled."""
        self._insert_undelivered(undelivered, ["held"] * len(undelivered), is_blamed=False)
        for each in undelivered:
            self._set_state(each.kind, each.row, _HELD)

    def _insert_undelivered(
        self, undelivered: Sequence[FailedRecord], outcomes: Sequence[str], *, is_blamed: bool
    ) -> None:
        insert_many(
            self._database,
            "INSERT INTO undelivered"
            " (kind, row, identity, outcome, status_code, code, message, attempts, is_blamed) VALUES",
            [
                (each.kind.value, each.row, each.identity, outcome, *each[4:])
                for each, outcome in zip(undelivered, outcomes, strict=True)
            ],
            constants=(int(is_blamed),),
        )

    def release_held(self) -> None:
        """Make what is held pending again."""
        self._database.execute("DELETE FROM undelivered WHERE outcome = 'held'")
        self._replace_states(_HELD, _PENDING)

    def release_users_of_held(self) -> int:
        """Make the unchanged users of held events pending: Iterable has lost them. Returns how many they are."""
        states = self._states[Kind.USER]
        count = 0
        people = self._database.execute(
            f"SELECT DISTINCT {_USER_OF_RUN} FROM undelivered JOIN events ON {_RUN_OF_UNDELIVERED}"
            " WHERE outcome = 'held'"
        ).fetchall()
        for (user,) in people:
            (row,) = self._database.execute("SELECT row FROM users WHERE key >= ? ORDER BY key", (user,)).fetchone()
            if states[row] == UNCHANGED:
                states[row] = _PENDING
                count += 1
        return count

    def give_up_held(self) -> None:
        """What is still held when the run ends was attempted, and the next run tries again."""
        outcome = Outcome.UNACKNOWLEDGED
        self._replace_states(_HELD, _CODES[outcome])
        self._database.execute("UPDATE undelivered SET outcome = ? WHERE outcome = 'held'", (outcome.value,))

    def _replace_states(self, old: int, new: int) -> None:
        for kind, states in self._states.items():
            self._states[kind] = states.replace(bytes([old]), bytes([new]))

    def note_not_attempted(self, message: str) -> None:
        """Everything that has no outcome yet was not attempted, for this reason."""
        undelivered = (Outcome.NOT_ATTEMPTED, None, None, message, 0)
        try:
            if not self._has_all_users:  # the run broke off before the stage was finished
                self._stage_unmerged_users()
            if self.count_pending(Kind.EVENT):
                self._order_events()
            for kind, late in product(Kind, (False, True)):
                for page in pages(self.pending_by_user(kind, late=late)):
                    self.note([FailedRecord(kind, record.row, record.identity, *undelivered) for record in page])
        finally:
            for state in (_PENDING, _LATE):
                self._replace_states(state, _CODES[Outcome.NOT_ATTEMPTED])

    def _stage_unmerged_users(self) -> None:
        """So that each of them has one outcome, whether or not somebody has put together what their rows say."""
        missing = "FROM user_rows WHERE key NOT IN (SELECT key FROM users) GROUP BY key"
        is_refused = "key IN (SELECT own_key FROM undelivered WHERE own_key IS NOT NULL)"
        self._states[Kind.USER] = bytearray()
        for source in (f"row, {is_refused} FROM users", f"max(row), {is_refused} {missing}"):
            for row, has_outcome in self._database.execute(f"SELECT {source}"):
                if not has_outcome:
                    self._set_state(Kind.USER, row, _PENDING)
        for row, outcome in self._database.execute("SELECT row, outcome FROM undelivered WHERE kind = 'user'"):
            self._set_state(Kind.USER, row, _CODES[Outcome(outcome)])
        columns = "key, row, identity, fingerprint, payload"
        self._database.execute(f"INSERT INTO users ({columns}) SELECT key, max(row), identity, x'', x'' {missing}")

    # What failed ----------------------------------------------------------------------------------------------

    def failures(self) -> Iterator[list[Failure]]:
        """The records that were refused or not acknowledged for a reason of their own, some at a time.

        Not among them are those that never left, and those that only the end of the run cut off.
        """
        failed = (Outcome.REJECTED, Outcome.UNACKNOWLEDGED)
        for kind, own, tables in (
            (Kind.USER, "key, fingerprint", "users CROSS JOIN undelivered ON undelivered.row = users.row"),
            (
                Kind.EVENT,
                ", ".join(self._key_and_fingerprint_sql()),
                f"undelivered CROSS JOIN events ON {_RUN_OF_UNDELIVERED}",
            ),
        ):
            if not any(_CODES[outcome] in self._states[kind] for outcome in failed):
                continue  # users are looked for by row, which has no index
            rows = self._database.execute(
                f"SELECT {own}, undelivered.row, undelivered.identity, outcome, status_code, code, message, attempts"
                f" FROM {tables} WHERE undelivered.kind = ? AND is_blamed AND attempts AND outcome IN (?, ?)",
                (kind.value, *(outcome.value for outcome in failed)),
            )
            while page := rows.fetchmany(KEYS_PER_LOOKUP):
                yield [
                    Failure(key, fingerprint, FailedRecord(kind, row, identity, Outcome(outcome), *rest))
                    for key, fingerprint, row, identity, outcome, *rest in page
                ]

    def refusals(self) -> Iterator[list[Failure]]:
        """The records that never left, as they can't be sent, some at a time."""
        key, fingerprint = self._key_and_fingerprint_sql()
        rows = self._database.execute(
            f"SELECT coalesce(own_key, {key}), coalesce(own_fingerprint, {fingerprint}), kind,"
            " undelivered.row, identity, outcome, status_code, code, message, attempts FROM undelivered"
            f" LEFT JOIN events ON kind = ? AND own_key IS NULL AND {_RUN_OF_UNDELIVERED}"
            " WHERE outcome = ? AND NOT attempts",
            (Kind.EVENT.value, Outcome.REJECTED.value),
        )
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            yield [
                Failure(key, fingerprint, FailedRecord(Kind(kind), row, identity, Outcome(outcome), *rest))
                for key, fingerprint, kind, row, identity, outcome, *rest in page
            ]

    def _key_and_fingerprint_sql(self) -> tuple[str, str]:
        """Key and fingerprint of an undelivered event, in SQL, from the run that it was staged with."""
        start = f"1 + {self._entry_bytes} * (undelivered.row - first_row)"
        key = f"substr(entries, {start}, {KEY_BYTES})"
        return key, f"substr(entries, {KEY_BYTES} + {start}, {self._entry_bytes - KEY_BYTES})"

    def reject(self, failures: Sequence[Failure], code: str) -> None:
        """What was not acknowledged is rejected after all, with this code of ours."""
        for _, _, undelivered in failures:
            self._states[undelivered.kind][undelivered.row] = _CODES[Outcome.REJECTED]
        self._database.executemany(
            "UPDATE undelivered SET outcome = ?, code = ? WHERE kind = ? AND row = ?",
            [(Outcome.REJECTED.value, code, each.kind.value, each.row) for _, _, each in failures],
        )

    def mark_known(self, failures: Sequence[Failure]) -> None:
        """These failed in an earlier run, too, with the same content and for the same reason."""
        self._database.executemany(
            "UPDATE undelivered SET is_new = 0 WHERE kind = ? AND row = ?",
            [(each.kind.value, each.row) for _, _, each in failures],
        )

    # The account ----------------------------------------------------------------------------------------------

    def count_outcomes(self) -> dict[Kind, dict[Outcome, int]]:
        """How many records of each kind ended how, so far."""
        return {
            kind: {outcome: states.count(code) for outcome, code in _CODES.items()}
            for kind, states in self._states.items()
        }

    def count_delivered(self) -> dict[Kind, int]:
        """How many records of each kind Iterable has accepted in this run, so far."""
        return {kind: counts[Outcome.DELIVERED] for kind, counts in self.count_outcomes().items()}

    def undelivered(self, limit: int = -1, *, with_not_attempted: bool = True) -> Iterator[FailedRecord]:
        """What was neither delivered nor unchanged, in the order of the CSV. limit: -1 for all."""
        rows = self._database.execute(
            "SELECT kind, row, identity, outcome, status_code, code, message, attempts FROM undelivered"
            " WHERE outcome <> ? ORDER BY row, kind DESC LIMIT ?",
            ("" if with_not_attempted else Outcome.NOT_ATTEMPTED.value, limit),
        )
        for kind, row, identity, outcome, *rest in rows:
            # What is still held, as the disk was full when it was to be given up, is unacknowledged all the same.
            ended = Outcome.UNACKNOWLEDGED if outcome == "held" else Outcome(outcome)
            yield FailedRecord(Kind(kind), row, identity, ended, *rest)

    def rejected_codes(self) -> list[str | None]:
        """The codes of all rejections, each once."""
        query = "SELECT DISTINCT code FROM undelivered WHERE outcome = ?"
        return [code for (code,) in self._database.execute(query, (Outcome.REJECTED.value,))]

    def count_new_rejections(self) -> int:
        """Rejected records that were not rejected before, unchanged and for the same reason."""
        return self._count(f"undelivered WHERE outcome = '{Outcome.REJECTED.value}' AND is_new")

    def count_reasons(self, limit: int) -> list[tuple[str, str | None, str, int, int]]:
        """The most frequent reasons: (outcome, code, one of the messages, how many, how many of them are new)."""
        return self._database.execute(
            "SELECT outcome, code, min(message), count(*), sum(is_new) FROM undelivered"
            " GROUP BY outcome, code, CASE code WHEN 'InvalidRecord' THEN message END ORDER BY 4 DESC LIMIT ?",
            (limit,),
        ).fetchall()

    def _count(self, source: str) -> int:
        (count,) = self._database.execute(f"SELECT count(*) FROM {source}").fetchone()
        return int(count)


_SCHEMA = """
PRAGMA page_size = 8192;  -- a run of ten events fits into one page
PRAGMA journal_mode = MEMORY;
PRAGMA synchronous = OFF;
PRAGMA cache_size = -4000;
PRAGMA temp_store = FILE;
CREATE TABLE user_rows (key BLOB NOT NULL, row INTEGER NOT NULL, identity TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE users (
    key BLOB NOT NULL UNIQUE, row INTEGER NOT NULL, identity TEXT NOT NULL, fingerprint BLOB NOT NULL,
    payload BLOB NOT NULL
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
