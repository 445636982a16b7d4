"""Events of one id in one read: those that are alike, those that correct each other, and those in conflict."""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from pipeline.model.failure_policy import EVENT_ID_CONFLICT
from pipeline.model.keys import GIVEN_KEY, HASH_BYTES, USER_BYTES
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.stage.event_runs import USER_OF_RUN, EventRuns
from pipeline.stage.states import LATE, NO_RECORD, PENDING, REJECTED, States

MOST_KEYS = 2**17  # that are compared in memory

_ID_OF_KEY = f"substr(key, {USER_BYTES + 1})"
_IS_GIVEN = f"substr(key, {USER_BYTES + 1}, 1) = x'{GIVEN_KEY.hex()}'"
_WHOSE_AND_WHEN = f"CAST(substr(key, 1, {USER_BYTES}) || substr(fingerprint, 1, {HASH_BYTES // 2}) AS BLOB)"


@dataclass(frozen=True)
class Doubled:
    """How many rows repeat another row's event, and how many change the fields of one, so that only the last counts."""

    repeated: int = 0
    corrected: int = 0


class Duplicates:
    """Finds them, and settles which of them count."""

    def __init__(self, database: sqlite3.Connection, runs: EventRuns, states: States) -> None:
        self._database = database
        self._runs = runs
        self._states = states
        self._distinct: set[bytes] | None = set()  # the events' keys; None where they are too many
        self._staged = 0

    def clear(self) -> None:
        self._distinct, self._staged = set(), 0

    def note(self, keys: list[bytes]) -> None:
        """These are staged."""
        self._staged += len(keys)
        if self._distinct is not None:
            self._distinct.update(keys)
            if len(self._distinct) > MOST_KEYS:
                self._distinct = None

    def find_conflicts(self) -> list[FailedRecord]:
        """Events with one given id, which differ in name, person or time: one would overwrite the other, as ids are the
        project's [article "Custom Event Properties"]. Which of them is meant can't be told, so none is sent; what
        Iterable has already is left as it is."""
        states = self._states[Kind.EVENT]
        text = "event_id is also that of row {}, which has another name, person or time."
        with self._runs.unpacked(self._runs.all()):
            conflicting = (
                f"SELECT {_ID_OF_KEY} FROM unpacked WHERE {_IS_GIVEN} GROUP BY 1"
                f" HAVING count(DISTINCT {_WHOSE_AND_WHEN}) > 1"
            )
            rows = self._database.execute(
                f"SELECT row, {_ID_OF_KEY}, {_WHOSE_AND_WHEN} FROM unpacked WHERE {_ID_OF_KEY} IN ({conflicting})"
                " ORDER BY 2, 1"
            ).fetchall()
        found = []
        for _, group in groupby(rows, key=itemgetter(1)):
            alike = list(group)
            for row, _, content in alike:
                if states[row] in (PENDING, LATE):
                    other = next(number for number, _, each in alike if each != content)
                    rest = (Outcome.REJECTED, None, EVENT_ID_CONFLICT, text.format(other), 0)
                    found.append(FailedRecord(Kind.EVENT, row, None, *rest))
        return found

    def drop(self) -> Doubled:
        """Of several events with one id the last one counts, and of equal ones the first."""
        has_none = self._distinct is not None and len(self._distinct) == self._staged
        self._distinct = None
        users = [] if has_none else list(self._users_with_some())
        if not users:
            return Doubled()
        self._runs.put_in_order()
        states = self._states[Kind.EVENT]
        events = (event for user in users for event in self._runs.of_user(user))
        with self._runs.unpacked(event for event in events if states[event[0]] not in (NO_RECORD, REJECTED)):
            rows = self._database.execute(
                "SELECT key, row, fingerprint FROM unpacked WHERE key IN"
                " (SELECT key FROM unpacked GROUP BY key HAVING count(*) > 1) ORDER BY key, row"
            )
            dropped, corrected = array("q"), 0
            kept_key = kept_fingerprint = b""
            kept_row = 0
            for key, row, fingerprint in rows:
                is_same = fingerprint == kept_fingerprint
                if key == kept_key:
                    dropped.append(row if is_same else kept_row)
                    corrected += not is_same
                if key != kept_key or not is_same:
                    kept_key, kept_row, kept_fingerprint = key, row, fingerprint
        for row in dropped:
            self._states.set(Kind.EVENT, row, NO_RECORD)
        return Doubled(len(dropped) - corrected, corrected)

    def _users_with_some(self) -> Iterator[bytes]:
        """The keys of users who have, or may have, two events of one id."""
        # By an index, SQLite would look for each run in the whole of the file.
        runs = self._database.execute(f"SELECT {USER_OF_RUN}, entries FROM events NOT INDEXED ORDER BY 1")
        for user, runs_of_user in groupby(runs, key=itemgetter(0)):
            keys: list[bytes] = []
            for _, entries in runs_of_user:
                keys += self._runs.keys_in(entries)
                if len(keys) > MOST_KEYS:
                    break
            if len(keys) > MOST_KEYS or len(set(keys)) < len(keys):
                yield user
