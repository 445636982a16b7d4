"""What keeps failing: records that ended rejected or unacknowledged, as hashes, and why.

So a run can try them last, tell a refusal that is known from a new one, and see which record is never acknowledged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.model.failure_policy import UNKNOWN_USER_CODES
from pipeline.model.records import Outcome
from pipeline.model.sql import chunks, insert_many, rows_of_keys, run_for_keys

REASON_BYTES = 8
KEPT_REASONS = 4  # of a record; what is sent singly is refused in other words than what is sent in bulk
MAX_GONE = 100_000  # of more failures, those that are gone expire with time, so that memory stays small


@dataclass(frozen=True)
class Failed:
    """A record that ended rejected or unacknowledged.

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

    reasons: hashes of those for which this content failed, the last one first. streak: in how many runs in a row it
    was not acknowledged, while something else was. noted_at: Unix seconds.
    """

    fingerprint: bytes
    reasons: bytes
    streak: int
    outcome: Outcome
    status_code: int | None
    code: str | None
    noted_at: int

    def knows(self, fingerprint: bytes, reason: bytes) -> bool:
        return fingerprint == self.fingerprint and reason in _split(self.reasons)


class FailureHistory:
    """Those of one project."""

    def __init__(self, database: sqlite3.Connection, project: int, hash_text: Callable[[str], bytes]) -> None:
        self._database = database
        self._project = project
        self._hash = hash_text
        self.exist = (
            database.execute("SELECT 1 FROM past_failures WHERE project = ?", (project,)).fetchone() is not None
        )
        self._gone: set[bytes] | None = None  # those that the query has not shown in this run

    def failed_before(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of these keys whose records failed when they were last tried."""
        if not self.exist:
            return set()
        return {key for (key,) in rows_of_keys(self._database, "key", "past_failures", self._project, keys)}

    def past_failures(self, keys: Sequence[bytes]) -> dict[bytes, PastFailure]:
        if not self.exist:
            return {}
        columns = "key, fingerprint, reasons, streak, outcome, status_code, code, noted_at"
        rows = rows_of_keys(self._database, columns, "past_failures", self._project, keys)
        return {
            key: PastFailure(fingerprint, reasons, streak, Outcome(outcome), *rest)
            for key, fingerprint, reasons, streak, outcome, *rest in rows
        }

    def are_new(self, failed: Sequence[Failed]) -> list[bool]:
        """For each: whether this content has not failed for this reason before."""
        news = []
        for chunk in chunks(failed):
            before = self.past_failures([each.key for each in chunk])
            for each in chunk:
                old = before.get(each.key)
                news.append(old is None or not old.knows(each.fingerprint, self._reason(each)))
        return news

    def note(self, failed: Sequence[Failed], query: bytes, now: int, *, counts: bool) -> None:
        for chunk in chunks(failed):
            keys = [each.key for each in chunk]
            before = self.past_failures(keys)
            self._insert(chunk, before, query, now, counts)
            self.note_seen(keys)
        self.exist = self.exist or bool(failed)

    def _insert(
        self, failed: Sequence[Failed], before: Mapping[bytes, PastFailure], query: bytes, now: int, counts: bool
    ) -> None:
        insert_many(
            self._database,
            "INSERT OR REPLACE INTO past_failures"
            " (key, query, fingerprint, reasons, outcome, status_code, code, streak, project, noted_at) VALUES",
            [
                (
                    each.key,
                    query,
                    each.fingerprint,
                    self._reasons(each, before.get(each.key)),
                    each.outcome.value,
                    each.status_code,
                    each.code,
                    _streak(each, before.get(each.key), counts=counts),
                )
                for each in failed
            ],
            constants=(self._project, now),
        )

    def _reasons(self, failed: Failed, before: PastFailure | None) -> bytes:
        """The reason of this failure, then those that this content had before."""
        reason = self._reason(failed)
        known = _split(before.reasons) if before is not None and before.fingerprint == failed.fingerprint else []
        return b"".join([reason, *(each for each in known if each != reason)][:KEPT_REASONS])

    def _reason(self, failed: Failed) -> bytes:
        return self._hash(reason_text(failed))[:REASON_BYTES]

    def forget(self, keys: Sequence[bytes]) -> None:
        """These were accepted."""
        if self.exist:
            run_for_keys(self._database, "DELETE FROM past_failures WHERE", self._project, keys)

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
            "SELECT key FROM past_failures WHERE project = ? LIMIT ?", (self._project, MAX_GONE + 1)
        ).fetchall()
        return {key for (key,) in rows} if len(rows) <= MAX_GONE else set()

    def forget_gone(self, query: bytes) -> None:
        """The query was read in full: what it showed earlier, and now no longer, needs no memory."""
        self.note_seen(())
        if self._gone:
            run_for_keys(
                self._database, "DELETE FROM past_failures WHERE query = ? AND", self._project, list(self._gone), query
            )


def _split(reasons: bytes) -> list[bytes]:
    return [reasons[start : start + REASON_BYTES] for start in range(0, len(reasons), REASON_BYTES)]


def _streak(failed: Failed, before: PastFailure | None, *, counts: bool) -> int:
    if not failed.is_unacknowledged:
        return 0
    return (before.streak if before is not None else 0) + counts


def reason_text(failed: Failed) -> str:
    """Why a record failed, without what differs from run to run: rows, attempts, times, ids of requests.

    ... 400 BadParams: row 7 is odd (3 attempts) -> ... # BadParams: row # is odd # attempt)
    """
    if failed.code in UNKNOWN_USER_CODES:
        return f"{failed.outcome.value}\nunknown user"
    words = failed.message.replace("attempts", "attempt").split()
    message = " ".join("#" if any(map(str.isdigit, word)) else word for word in words)
    return "\n".join([failed.outcome.value, str(failed.status_code), str(failed.code), message])
