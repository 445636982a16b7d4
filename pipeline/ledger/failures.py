"""What keeps failing: records that ended rejected or unacknowledged, as hashes, and why.

So a run can try them last, distinguish new rejections from reported ones, see which record is never acknowledged,
and read again what may be accepted later. A record that failed is noted at once; its reason counts as known only when
a run has reported it, see `report`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.model.failure_policy import ITERABLE_CODES, OUR_CODES, UNKNOWN_USER_CODES, may_pass
from pipeline.model.records import Outcome
from pipeline.model.sql import chunks, insert_many, rows_of_keys, run_for_keys
from pipeline.model.text import generalized

REASON_BYTES = 8
KEPT_REASONS = 4  # of a record; what is sent singly is refused in other words than what is sent in bulk
HELD_DAYS = 30  # how long :since goes back to the window that first read a record which may be accepted later
DAY_S = 86_400
MAX_GONE = 100_000  # of more failures, those that are gone expire with time, so that memory stays small


@dataclass(frozen=True)
class FailureEntry:
    """A record that ended rejected or unacknowledged in this run, as it is entered here.

    is_unacknowledged: it may have arrived; also of a record that is rejected because it was never acknowledged.
    """

    key: bytes
    fingerprint: bytes
    outcome: Outcome
    status_code: int | None
    code: str | None
    message: str
    is_unacknowledged: bool


@dataclass(frozen=True)
class PastFailure:
    """What is remembered of a record that failed.

    reasons: hashes of those that were reported for this content, the last one first. streak: in how many runs in a row
    it was not acknowledged, while something else was. noted_at, first_at: when this content failed last and first, in
    Unix seconds. window_from: the start of the window of :since that first read it; None where no later window need
    read it.
    """

    fingerprint: bytes
    reasons: bytes
    streak: int
    outcome: Outcome
    status_code: int | None
    code: str | None
    noted_at: int
    first_at: int = 0
    window_from: int | None = None

    def knows(self, fingerprint: bytes, reason: bytes) -> bool:
        return fingerprint == self.fingerprint and reason in _split(self.reasons)


class FailureHistory:
    """Those of one project. exist: whether anything failed in earlier runs and was not accepted since."""

    def __init__(
        self,
        database: sqlite3.Connection,
        project: int,
        hash_text: Callable[[str], bytes],
        now: Callable[[], int],
    ) -> None:
        self._database = database
        self._project = project
        self._hash = hash_text
        self._now = now  # Unix seconds
        self.exist = (
            database.execute("SELECT 1 FROM past_failures WHERE project = ?", (project,)).fetchone() is not None
        )
        # Whose failures are looked up and forgotten: two query files may send different fields of the same people.
        self._query: bytes | None = None  # all
        self._gone: set[bytes] | None = None  # those that the query has not shown in this run

    def use_query(self, query: str) -> None:
        self._query = self._hash(query)

    def failed_before(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of these keys whose records failed when they were last tried."""
        if not self.exist:
            return set()
        return {key for (key,) in rows_of_keys(self._database, "key", "past_failures", self._project, keys)}

    def users_with_some(self, beginnings: Sequence[bytes]) -> set[bytes]:
        """Those of these users, given by the beginnings of their keys, of whom any record is known to have failed."""
        found: set[bytes] = set()
        for chunk in chunks(beginnings):
            wanted = f"(VALUES {', '.join(['(?)'] * len(chunk))}) AS wanted"
            rows = self._database.execute(
                f"SELECT column1 FROM {wanted} WHERE EXISTS (SELECT 1 FROM past_failures WHERE project = ?"
                " AND key >= column1 AND key < CAST(column1 || x'ffffffffffffffffffffffffff' AS BLOB))",
                (*chunk, self._project),
            )
            found.update(each for (each,) in rows)
        return found

    def past_failures(self, keys: Sequence[bytes]) -> dict[bytes, PastFailure]:
        if not self.exist:
            return {}
        columns = (
            "query, key, fingerprint, reasons, streak, outcome, status_code, code, noted_at, first_at, window_from"
        )
        rows = rows_of_keys(self._database, columns, "past_failures", self._project, keys)
        return {
            key: PastFailure(fingerprint, reasons, streak, Outcome(outcome), *rest)
            for query, key, fingerprint, reasons, streak, outcome, *rest in rows
            if self._query in (None, query)
        }

    def are_new(self, failed: Sequence[FailureEntry]) -> list[bool]:
        """For each: whether no run has reported yet that this content failed for this reason."""
        news = []
        for chunk in chunks(failed):
            before = self.past_failures([each.key for each in chunk])
            for each in chunk:
                old = before.get(each.key)
                news.append(old is None or not old.knows(each.fingerprint, self._reason(each)))
        return news

    def note(
        self, failed: Sequence[FailureEntry], query: str, *, counts: bool, window_from: int | None = None
    ) -> list[bool]:
        """Remember what failed in this run. For each: whether it is new, so not reported with this content and reason.

        counts: something else was accepted in this run, so that records which were not acknowledged are to blame
        themselves. window_from: where the window of :since starts that this run reads, in Unix seconds. Call it at the
        end of the run, once for each record, and before the ledger's `end_reading`.
        """
        news = self.are_new(failed)
        query_hash, now = self._hash(query), self._now()
        for chunk in chunks(failed):
            keys = [each.key for each in chunk]
            before = self.past_failures(keys)
            insert_many(
                self._database,
                "INSERT OR REPLACE INTO past_failures (key, query, fingerprint, reasons, outcome, status_code, code,"
                " streak, first_at, window_from, project, noted_at) VALUES",
                [self._row(each, before.get(each.key), query_hash, now, counts, window_from) for each in chunk],
                constants=(self._project, now),
            )
            self.note_seen(keys)
        self.exist = self.exist or bool(failed)
        return news

    def _row(
        self,
        failed: FailureEntry,
        before: PastFailure | None,
        query: bytes,
        now: int,
        counts: bool,
        window_from: int | None,
    ) -> tuple[object, ...]:
        streak = ((before.streak if before is not None else 0) + counts) if failed.is_unacknowledged else 0
        reasons, first_at = b"", now
        if before is not None and before.fingerprint == failed.fingerprint:
            reasons, first_at = before.reasons, before.first_at
            if before.window_from is not None:
                window_from = before.window_from if window_from is None else min(before.window_from, window_from)
        return (
            failed.key,
            query,
            failed.fingerprint,
            reasons,
            failed.outcome.value,
            failed.status_code,
            self._code(failed.code),
            streak,
            first_at,
            window_from if may_pass(failed.code, failed.message) else None,
        )

    def _code(self, code: str | None) -> str | None:
        """As it may be kept: a code that is not documented may be any text, so it becomes a hash."""
        if code is None or code in ITERABLE_CODES or code in OUR_CODES:
            return code
        return f"#{self._hash(code)[:REASON_BYTES].hex()}"

    def report(self, failed: Sequence[FailureEntry]) -> None:
        """A run has reported these, which were noted before: they are known now with their content and reason."""
        for chunk in chunks(failed):
            before = self.past_failures([each.key for each in chunk])
            self._database.executemany(
                f"UPDATE past_failures SET reasons = ? WHERE {self._of_query} AND project = ? AND key = ?",
                [
                    (self._with_reason(each, before[each.key]), self._query, self._project, each.key)
                    for each in chunk
                    if each.key in before and before[each.key].fingerprint == each.fingerprint
                ],
            )

    def _with_reason(self, failed: FailureEntry, before: PastFailure) -> bytes:
        reason = self._reason(failed)
        return b"".join([reason, *(each for each in _split(before.reasons) if each != reason)][:KEPT_REASONS])

    def held_from(self, query: str) -> int | None:
        """Where :since has to start at the latest, in Unix seconds, so that what may still be accepted is read again.

        None: nothing is held. What has failed for HELD_DAYS is dropped.
        """
        (start,) = self._database.execute(
            "SELECT min(window_from) FROM past_failures WHERE project = ? AND query = ? AND first_at > ?",
            (self._project, self._hash(query), self._now() - HELD_DAYS * DAY_S),
        ).fetchone()
        return None if start is None else int(start)

    def count_let_go(self, query: str) -> int:
        """Records that may still be accepted, but are read by full reads only, as they have failed for HELD_DAYS."""
        (count,) = self._database.execute(
            "SELECT count(*) FROM past_failures"
            " WHERE project = ? AND query = ? AND window_from IS NOT NULL AND first_at <= ?",
            (self._project, self._hash(query), self._now() - HELD_DAYS * DAY_S),
        ).fetchone()
        return int(count)

    def _reason(self, failed: FailureEntry) -> bytes:
        return self._hash(reason_text(failed))[:REASON_BYTES]

    def forget(self, keys: Sequence[bytes]) -> None:
        """These were accepted."""
        if self.exist:
            statement = f"DELETE FROM past_failures WHERE {self._of_query} AND"
            run_for_keys(self._database, statement, self._project, keys, self._query)

    @property
    def _of_query(self) -> str:
        """A condition with one value, the query."""
        return "query = ?" if self._query is not None else "? IS NULL"

    def forget_before(self, oldest: int) -> None:
        self._database.execute("DELETE FROM past_failures WHERE noted_at < ?", (oldest,))

    def note_seen(self, keys: Sequence[bytes]) -> None:
        """The query of this run has shown these."""
        if self._gone is None:
            self._gone = self._all_keys()
        self._gone.difference_update(keys)

    def _all_keys(self) -> set[bytes]:
        if not self.exist:
            return set()
        rows = self._database.execute(
            f"SELECT key FROM past_failures WHERE project = ? AND {self._of_query} LIMIT ?",
            (self._project, self._query, MAX_GONE + 1),
        ).fetchall()
        return {key for (key,) in rows} if len(rows) <= MAX_GONE else set()

    def forget_gone(self, query: str, *, window_from: int | None = None) -> None:
        """The query was read in full: what it showed earlier, and now no longer, needs no memory.

        window_from: it was read from then on, so that this holds for what such windows, or later ones, have shown.
        """
        self.note_seen(())
        if self._gone:
            which = "query = ?" if window_from is None else f"query = ? AND window_from >= {window_from:d}"
            statement = f"DELETE FROM past_failures WHERE {which} AND"
            run_for_keys(self._database, statement, self._project, list(self._gone), self._hash(query))


def _split(reasons: bytes) -> list[bytes]:
    return [reasons[start : start + REASON_BYTES] for start in range(0, len(reasons), REASON_BYTES)]


def reason_text(failed: FailureEntry) -> str:
    """Why a record failed, without what differs from run to run: rows, attempts, times, ids of requests.

    ... 400 BadParams: row 7 is odd (3 attempts) -> ... # BadParams: row # is odd # attempt)
    """
    if failed.code in UNKNOWN_USER_CODES:
        return f"{failed.outcome.value}\nunknown user"
    message = generalized(failed.message.replace("attempts", "attempt"))
    return "\n".join([failed.outcome.value, str(failed.status_code), str(failed.code), message])
