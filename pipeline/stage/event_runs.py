"""Events in the stage: neighbours that belong to one user are one row, a run, as SQLite takes as long for one as for
ten. A test holds the packing against ten plain lines that do the same."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice, pairwise, repeat

from pipeline.model.keys import HASH_BYTES, KEY_BYTES, MADE, USER_BYTES
from pipeline.model.records import Kind, Record
from pipeline.model.sql import insert_many
from pipeline.stage.pages import UserRecords, size_of
from pipeline.stage.states import UNCHANGED, States

KEYS_PER_LOOKUP = 500
USER_OF_RUN = f"substr(entries, 1, {USER_BYTES})"
RUN_OF_ROW = "events.first_row = (SELECT max(first_row) FROM events WHERE first_row <= undelivered.row)"
_USER_OF_KEY = f"substr(key, 1, {USER_BYTES})"
_BETWEEN_PAYLOADS = b"\n"  # JSON has none
# A stage of many events is compressed, as it would take twice the room of the CSV. It costs some 2 us an event.
PLAIN_PAYLOAD_BYTES = 2**26
PATTERN_BYTES = 2**12
_COMPRESSED = b"x"  # with which a zlib stream begins [RFC 1950], and neither JSON nor a line break
_PADDING = bytes(HASH_BYTES - len(MADE))

Event = tuple[int, bytes, bytes]  # row, key, fingerprint


def packed(
    rows: Sequence[int], keys: Sequence[bytes], fingerprints: Sequence[bytes], payloads: Sequence[bytes]
) -> list[tuple[int, bytes, bytes]]:
    """Events -> runs of neighbours of one user: the first row, the entries (keys with fingerprints), the payloads."""
    users = [key[:USER_BYTES] for key in keys]
    entries = list(map(bytes.__add__, keys, fingerprints))
    starts = [at for at in range(1, len(rows)) if users[at] != users[at - 1] or rows[at] != rows[at - 1] + 1]
    if len(starts) == len(rows) - 1:  # nobody has neighbours
        return list(zip(rows, entries, payloads, strict=True))
    return [
        (rows[start], b"".join(entries[start:end]), _BETWEEN_PAYLOADS.join(payloads[start:end]))
        for start, end in pairwise([0, *starts, len(rows)])
    ]


def unpadded(fingerprint: bytes) -> bytes:
    """In a read with ids of the query's own, all fingerprints are stored as long as those of these events."""
    return MADE if fingerprint[len(MADE) :] == _PADDING else fingerprint


class EventRuns:
    """The table of runs."""

    def __init__(self, database: sqlite3.Connection, states: States) -> None:
        self._database = database
        self._states = states
        self._fingerprint_bytes = HASH_BYTES
        self._payload_bytes = 0
        self._pattern = b""

    @property
    def entry_bytes(self) -> int:
        return KEY_BYTES + self._fingerprint_bytes

    def begin(self, *, made_only: bool) -> None:
        """made_only: no event has a given id, so that each fingerprint is MADE."""
        self._fingerprint_bytes = len(MADE) if made_only else HASH_BYTES

    def insert(
        self,
        rows: Sequence[int],
        keys: Sequence[bytes],
        fingerprints: Sequence[bytes],
        payloads: Sequence[bytes],
        states: bytes,
    ) -> None:
        """In the order of their rows. What is unchanged is kept without its payload, to find two events of one id."""
        if UNCHANGED in states:
            payloads = [b"" if state == UNCHANGED else each for each, state in zip(payloads, states, strict=True)]
        size = self._fingerprint_bytes
        if any(len(each) != size for each in fingerprints):
            fingerprints = [each.ljust(size, b"\0") for each in fingerprints]
        runs = packed(rows, keys, fingerprints, payloads)
        self._payload_bytes += sum(map(len, payloads))
        if self._payload_bytes > PLAIN_PAYLOAD_BYTES:
            self._pattern = self._pattern or _BETWEEN_PAYLOADS.join(payloads)[-PATTERN_BYTES:]
            runs = [(first_row, entries, self._compressed(joined)) for first_row, entries, joined in runs]
        insert_many(self._database, "INSERT INTO events (first_row, entries, payloads) VALUES", runs)
        self._states.set_all(Kind.EVENT, rows, states)

    def _compressed(self, payloads: bytes) -> bytes:
        """Those of one run. As all look alike, those of an earlier one are the pattern."""
        if not payloads or not self._pattern:
            return payloads
        compressor = zlib.compressobj(1, zdict=self._pattern)
        return compressor.compress(payloads) + compressor.flush()

    def _payloads_of(self, stored: bytes) -> list[bytes]:
        if stored[:1] == _COMPRESSED:
            stored = zlib.decompressobj(zdict=self._pattern).decompress(stored)
        return stored.split(_BETWEEN_PAYLOADS)

    def put_in_order(self) -> None:
        """User by user, in the order of the keys: they enter the ledger in less than half the time of any other."""
        self._database.execute(f"CREATE INDEX IF NOT EXISTS events_in_order ON events ({USER_OF_RUN})")

    def keys_in(self, entries: bytes) -> list[bytes]:
        return [entries[start : start + KEY_BYTES] for start in range(0, len(entries), self.entry_bytes)]

    def fingerprints_in(self, entries: bytes) -> list[bytes]:
        size = self.entry_bytes
        found = [entries[start : start + size - KEY_BYTES] for start in range(KEY_BYTES, len(entries), size)]
        return found if size == KEY_BYTES + len(MADE) else list(map(unpadded, found))

    def sql_of_row(self) -> tuple[str, str]:
        """Key and fingerprint of the event of `undelivered.row`, in SQL, from its run."""
        start = f"1 + {self.entry_bytes} * (undelivered.row - first_row)"
        key = f"substr(entries, {start}, {KEY_BYTES})"
        return key, f"substr(entries, {KEY_BYTES} + {start}, {self._fingerprint_bytes})"

    def of_user(self, user_key: bytes) -> Iterator[Event]:
        """The events of a user, in the order of the rows."""
        return self.all(f"WHERE {USER_OF_RUN} = ? ORDER BY first_row", user_key[:USER_BYTES])

    def all(self, which: str = "", *values: object) -> Iterator[Event]:
        runs = self._database.execute(f"SELECT first_row, entries FROM events {which}", values)
        for first_row, entries in runs:
            yield from zip(count(first_row), self.keys_in(entries), self.fingerprints_in(entries))

    def entries(self) -> Iterator[bytes]:
        for (entries,) in self._database.execute("SELECT entries FROM events"):
            yield entries

    @contextmanager
    def unpacked(self, events: Iterable[Event]) -> Iterator[None]:
        """Have row, key and fingerprint of these events in a table of their own, `unpacked`."""
        events = iter(events)
        while some := list(islice(events, KEYS_PER_LOOKUP)):
            insert_many(self._database, "INSERT INTO unpacked (row, key, fingerprint) VALUES", some)
        yield
        self._database.execute("DELETE FROM unpacked")

    def rekey(self, old: bytes, new: bytes, old_id: bytes, new_id: bytes) -> list[Event]:
        """Make the events of one user those of another. old_id, new_id: what their made ids begin with."""
        self.put_in_order()
        runs = self._database.execute(
            f"SELECT first_row, entries, payloads FROM events WHERE {USER_OF_RUN} = ?", (old[:USER_BYTES],)
        ).fetchall()
        for first_row, entries, payloads in runs:
            keys = [new[:USER_BYTES] + key[USER_BYTES:] for key in self.keys_in(entries)]
            size = self.entry_bytes
            rests = [entries[start : start + size - KEY_BYTES] for start in range(KEY_BYTES, len(entries), size)]
            mark = b'"id":"'
            renamed = [each.replace(mark + old_id, mark + new_id, 1) for each in self._payloads_of(payloads)]
            self._database.execute(
                "UPDATE events SET entries = ?, payloads = ? WHERE first_row = ?",
                (b"".join(map(bytes.__add__, keys, rests)), _BETWEEN_PAYLOADS.join(renamed), first_row),
            )
        return list(self.of_user(new))

    def read(self, state: int, first: bytes, before: bytes) -> Iterator[UserRecords]:
        """Those in this state, of the users from one key up to another, some at a time that belong to one user."""
        states = self._states[Kind.EVENT]
        users = self._database.execute(
            f"SELECT {_USER_OF_KEY}, identity FROM users WHERE key >= ? AND key < ? ORDER BY key", (first, before)
        )
        runs = self._database.execute(
            f"SELECT {USER_OF_RUN}, first_row, entries, payloads FROM events"
            f" WHERE {USER_OF_RUN} >= ? AND {USER_OF_RUN} < ? ORDER BY {USER_OF_RUN}, first_row",
            (first, before),
        )
        user, identity = b"", ""
        for user_of_run, first_row, entries, stored in runs:
            length = len(entries) // self.entry_bytes
            wanted = states[first_row : first_row + length].count(state)
            if not wanted:
                continue
            while user_of_run != user:
                user, identity = next(users)  # every event's user is staged
            parts = (
                repeat(Kind.EVENT),
                count(first_row),
                repeat(identity),
                self.keys_in(entries),
                self.fingerprints_in(entries),
                self._payloads_of(stored),
            )
            records = list(map(Record, *parts))
            if wanted < length:
                records = [each for each in records if states[each.row] == state]
            yield UserRecords(records, size_of(records))
