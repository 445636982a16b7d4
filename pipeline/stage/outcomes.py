"""What became of the records of this run: their outcomes, the reasons, and what is to be tried once more."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from pipeline.model.keys import KEY_BYTES, USER_BYTES, split_fields, split_names
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.model.sql import insert_many
from pipeline.model.text import generalized
from pipeline.stage.event_runs import KEYS_PER_LOOKUP, RUN_OF_ROW, USER_OF_RUN, EventRuns, unpadded
from pipeline.stage.states import CODES, DELIVERED, HELD, PENDING, UNCHANGED, States


class KeyedFailure(NamedTuple):
    """A failed record, and how a later run knows it again: key and fingerprint of the record or, if it has none, of its
    cells."""

    key: bytes
    fingerprint: bytes
    undelivered: FailedRecord


@dataclass(frozen=True)
class Omitted:
    """A value that was left out of a record that is sent all the same (BAD_VALUES=omit).

    key, fingerprint: by which another run knows it again.
    """

    kind: Kind
    row: int
    field: str
    reason: str
    key: bytes
    fingerprint: bytes


_COLUMNS = "kind, row, identity, outcome, status_code, code, message, attempts"


class Outcomes:
    """Each record's. States are set first: they are in memory, and so stay right when a full disk refuses the rest."""

    def __init__(self, database: sqlite3.Connection, states: States, runs: EventRuns) -> None:
        self._database = database
        self._database.create_function("generalized", 1, lru_cache(generalized), deterministic=True)
        self._states = states
        self._runs = runs
        self._not_attempted = ""  # why; once for them all, as they may be all records of a large read

    def note_delivered(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these."""
        for each in records:
            self._states[each.kind][each.row] = DELIVERED

    def note_unchanged(self, records: Sequence[Record]) -> None:
        """These need no sending, as Iterable has them."""
        for each in records:
            self._states[each.kind][each.row] = CODES[Outcome.UNCHANGED]

    def note(self, undelivered: Sequence[FailedRecord], *, is_blamed: bool = True) -> None:
        """Note what was not delivered. It stays out of the ledger, so the next run tries it again.

        is_blamed: the record may be the reason, and not only that the run ended; see `failures`.
        """
        for each in undelivered:
            self._states.set(each.kind, each.row, CODES[each.outcome])
        self._insert_undelivered(undelivered, [each.outcome.value for each in undelivered], is_blamed=is_blamed)

    def note_not_attempted(self, records: Sequence[Record], message: str) -> None:
        """The run ended before these."""
        self._not_attempted = message
        rest = (Outcome.NOT_ATTEMPTED, None, None, None, 0)
        for each in records:
            self._states.set(each.kind, each.row, CODES[Outcome.NOT_ATTEMPTED])
        insert_many(
            self._database,
            f"INSERT INTO undelivered ({_COLUMNS}, is_blamed) VALUES",
            [(each.kind.value, each.row, each.identity, rest[0].value, *rest[1:]) for each in records],
            constants=(1,),
        )

    def pardon(self, failed: Sequence[FailedRecord]) -> None:
        """What was noted of these is not their own fault, after all: they count as unacknowledged."""
        for each in failed:
            self._states.set(each.kind, each.row, CODES[Outcome.UNACKNOWLEDGED])
        self._database.executemany(
            "UPDATE undelivered SET outcome = ?, is_blamed = 0 WHERE kind = ? AND row = ?",
            [(Outcome.UNACKNOWLEDGED.value, each.kind.value, each.row) for each in failed],
        )

    def note_refusals(self, refusals: Sequence[KeyedFailure]) -> None:
        """Note what can't be sent, and so was never staged."""
        for _, _, each in refusals:
            self._states.set(each.kind, each.row, CODES[each.outcome])
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

    def restate(self, identity: str, user_key: bytes, code: str, message: str) -> None:
        """What was rejected of a person was so for this reason, and no value of theirs was left out."""
        self._database.execute(
            "UPDATE undelivered SET code = ?, message = ? WHERE identity = ? AND outcome = ?",
            (code, message, identity, Outcome.REJECTED.value),
        )
        prefix = user_key[:USER_BYTES]
        self._database.execute(
            "DELETE FROM omitted WHERE own_key >= ? AND own_key < ?", (prefix, prefix + b"\xff" * KEY_BYTES)
        )

    def note_omitted(self, values: Sequence[Omitted]) -> None:
        """Note values that are left out of records which are sent all the same."""
        insert_many(
            self._database,
            "INSERT INTO omitted (kind, row, field, reason, own_key, own_fingerprint) VALUES",
            [(each.kind.value, each.row, each.field, each.reason, each.key, each.fingerprint) for each in values],
        )

    def omitted(self) -> Iterator[list[Omitted]]:
        """All of them, some at a time, in the order of the CSV."""
        rows = self._database.execute(
            "SELECT kind, row, field, reason, own_key, own_fingerprint FROM omitted ORDER BY row, kind DESC, field"
        )
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            yield [Omitted(Kind(kind), *rest) for kind, *rest in page]

    def mark_omitted_known(self, values: Sequence[Omitted]) -> None:
        """These were left out in an earlier run, too."""
        self._database.executemany(
            "UPDATE omitted SET is_new = 0 WHERE own_key = ? AND own_fingerprint = ?",
            [(each.key, each.fingerprint) for each in values],
        )

    def count_omitted(self) -> tuple[int, int] | None:
        """How many values were left out, and how many of them are new; None where there are none."""
        count, new = self._database.execute("SELECT count(*), coalesce(sum(is_new), 0) FROM omitted").fetchone()
        return (int(count), int(new)) if count else None

    def hold(self, undelivered: Sequence[FailedRecord]) -> None:
        """Note refusals that may pass. Until `release_held` or `give_up_held`, they are neither pending nor settled."""
        self._insert_undelivered(undelivered, ["held"] * len(undelivered), is_blamed=False)
        for each in undelivered:
            self._states.set(each.kind, each.row, HELD)

    def _insert_undelivered(
        self, undelivered: Sequence[FailedRecord], outcomes: Sequence[str], *, is_blamed: bool
    ) -> None:
        insert_many(
            self._database,
            f"INSERT INTO undelivered ({_COLUMNS}, is_blamed) VALUES",
            [
                (each.kind.value, each.row, each.identity, outcome, *each[4:])
                for each, outcome in zip(undelivered, outcomes, strict=True)
            ],
            constants=(int(is_blamed),),
        )

    def release_held(self) -> None:
        """Make what is held pending again."""
        self._database.execute("DELETE FROM undelivered WHERE outcome = 'held'")
        self._states.replace(HELD, PENDING)

    def release_users_of_held(self) -> int:
        """Make the unchanged users of held events pending: Iterable has lost them. Returns how many they are."""
        states = self._states[Kind.USER]
        count = 0
        for row, key, fields, sent in self._users_of_held():
            if states[row] == UNCHANGED:
                states[row] = PENDING
                names = set(split_names(sent))  # Iterable has nothing but what is sent now
                kept = b"".join(entry for name, entry in split_fields(fields).items() if name in names)
                self._database.execute("UPDATE users SET fields = ? WHERE key = ?", (kept, key))
                count += 1
        return count

    def may_know_users_of_held(self) -> bool:
        """Whether Iterable may have learned of any of these users in this run."""
        states = self._states[Kind.USER]
        return any(states[row] in (DELIVERED, CODES[Outcome.UNACKNOWLEDGED]) for row, *_ in self._users_of_held())

    def _users_of_held(self) -> Iterator[tuple[int, bytes, bytes, bytes]]:
        people = self._database.execute(
            f"SELECT DISTINCT {USER_OF_RUN} FROM undelivered JOIN events ON {RUN_OF_ROW} WHERE outcome = 'held'"
        ).fetchall()
        for (user,) in people:
            yield self._database.execute(
                "SELECT row, key, fields, sent FROM users WHERE key >= ? ORDER BY key", (user,)
            ).fetchone()

    def give_up_held(self) -> None:
        """What is still held when the run ends was attempted, and the next run tries again."""
        outcome = Outcome.UNACKNOWLEDGED
        self._states.replace(HELD, CODES[outcome])
        self._database.execute("UPDATE undelivered SET outcome = ? WHERE outcome = 'held'", (outcome.value,))

    def failures(self) -> Iterator[list[KeyedFailure]]:
        """The records that were refused or not acknowledged for a reason of their own, some at a time.

        Not among them are those that never left, and those that only the end of the run cut off.
        """
        failed = (Outcome.REJECTED, Outcome.UNACKNOWLEDGED)
        for kind, own, tables in (
            (Kind.USER, "key, fingerprint", "users CROSS JOIN undelivered ON undelivered.row = users.row"),
            (
                Kind.EVENT,
                ", ".join(self._runs.sql_of_row()),
                f"undelivered CROSS JOIN events ON {RUN_OF_ROW}",
            ),
        ):
            if not any(CODES[outcome] in self._states[kind] for outcome in failed):
                continue  # users are looked for by row, which has no index
            rows = self._database.execute(
                f"SELECT {own}, undelivered.row, undelivered.identity, outcome, status_code, code, message, attempts"
                f" FROM {tables} WHERE undelivered.kind = ? AND is_blamed AND attempts AND outcome IN (?, ?)",
                (kind.value, *(outcome.value for outcome in failed)),
            )
            while page := rows.fetchmany(KEYS_PER_LOOKUP):
                yield [
                    KeyedFailure(key, unpadded(fingerprint), FailedRecord(kind, row, identity, Outcome(outcome), *rest))
                    for key, fingerprint, row, identity, outcome, *rest in page
                ]

    def refusals(self) -> Iterator[list[KeyedFailure]]:
        """The records that never left, as they can't be sent, some at a time."""
        key, fingerprint = self._runs.sql_of_row()
        rows = self._database.execute(
            f"SELECT coalesce(own_key, {key}), coalesce(own_fingerprint, {fingerprint}), kind,"
            " undelivered.row, identity, outcome, status_code, code, message, attempts FROM undelivered"
            f" LEFT JOIN events ON kind = ? AND own_key IS NULL AND {RUN_OF_ROW}"
            " WHERE outcome = ? AND NOT attempts",
            (Kind.EVENT.value, Outcome.REJECTED.value),
        )
        while page := rows.fetchmany(KEYS_PER_LOOKUP):
            yield [
                KeyedFailure(
                    key, unpadded(fingerprint), FailedRecord(Kind(kind), row, identity, Outcome(outcome), *rest)
                )
                for key, fingerprint, kind, row, identity, outcome, *rest in page
            ]

    def reject(self, failures: Sequence[KeyedFailure], code: str) -> None:
        """What was not acknowledged is rejected after all, with this code of ours."""
        for _, _, undelivered in failures:
            self._states[undelivered.kind][undelivered.row] = CODES[Outcome.REJECTED]
        self._database.executemany(
            "UPDATE undelivered SET outcome = ?, code = ? WHERE kind = ? AND row = ?",
            [(Outcome.REJECTED.value, code, each.kind.value, each.row) for _, _, each in failures],
        )

    def mark_known(self, failures: Sequence[KeyedFailure]) -> None:
        """These failed in an earlier run, too, with the same content and for the same reason."""
        self._database.executemany(
            "UPDATE undelivered SET is_new = 0 WHERE kind = ? AND row = ?",
            [(each.kind.value, each.row) for _, _, each in failures],
        )

    def count_delivered(self) -> dict[Kind, int]:
        """How many records of each kind Iterable has accepted in this run, so far."""
        return {kind: counts[Outcome.DELIVERED] for kind, counts in self._states.count_outcomes().items()}

    def undelivered(self, limit: int = -1, *, with_not_attempted: bool = True) -> Iterator[FailedRecord]:
        """What was neither delivered nor unchanged, in the order of the CSV. limit: -1 for all."""
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM undelivered WHERE outcome <> ? ORDER BY row, kind DESC LIMIT ?",
            ("" if with_not_attempted else Outcome.NOT_ATTEMPTED.value, limit),
        )
        for kind, row, identity, outcome, status_code, code, message, attempts in rows:
            rest = (status_code, code, self._not_attempted if message is None else message, attempts)
            # What is still held, as the disk was full when it was to be given up, is unacknowledged all the same.
            ended = Outcome.UNACKNOWLEDGED if outcome == "held" else Outcome(outcome)
            yield FailedRecord(Kind(kind), row, identity, ended, *rest)

    def count_new_rejections(self) -> int:
        """Rejected records that were not rejected before, unchanged and for the same reason."""
        (count,) = self._database.execute(
            "SELECT count(*) FROM undelivered WHERE outcome = ? AND is_new", (Outcome.REJECTED.value,)
        ).fetchone()
        return int(count)

    def count_reasons(self, limit: int) -> list[tuple[str, str | None, str, int, int]]:
        """The most frequent reasons: (outcome, code, one of the messages, how many, how many of them are new).

        A code of Iterable's is one reason, whatever its messages; elsewhere, messages that differ only in what they
        name are one.
        """
        found = self._database.execute(
            "SELECT outcome, code, min(message), count(*), sum(is_new) FROM undelivered GROUP BY outcome, code,"
            " CASE WHEN code = 'InvalidRecord' OR (code IS NULL AND attempts) THEN generalized(message) END"
            " ORDER BY 4 DESC LIMIT ?",
            (limit,),
        ).fetchall()
        return [(outcome, code, self._not_attempted if text is None else text, *n) for outcome, code, text, *n in found]
