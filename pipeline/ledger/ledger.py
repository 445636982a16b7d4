"""What this Iterable project has already accepted, in every run so far; what keeps failing; and how the runs ended.

A SQLite file that outlives the run and holds keyed hashes, no personal data: (user or event) -> fingerprint of the
payload last accepted (see `accepted`). Beside it: records that were refused or not acknowledged, the cursors of
:since, the schemes of event ids, and one line for each run. Knows nothing of HTTP. Only the thread that opened it uses
it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pipeline.ledger.accepted import REFRESH_DAYS, Accepted
from pipeline.ledger.failures import Failed, FailureHistory, PastFailure
from pipeline.ledger.file import (
    LEDGER_NAME,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    LedgerFile,
    hold_file,
    is_run_active,
    memory,
    read_file,
)
from pipeline.ledger.project import Hasher, Project, enter_project, find_project, is_new_key_for_known_host
from pipeline.ledger.runs import (
    Fruitless,
    PastRun,
    RunResult,
    delete_runs_before,
    has_full_run,
    insert_run,
    last_fruitless_runs,
    last_runs,
    last_success,
    last_whole_delivery,
    run_ids,
    run_ids_after,
    update_run,
)
from pipeline.ledger.verifications import PastVerification, last_verification, set_verification
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import Kind, Record
from pipeline.model.sql import KEYS_PER_STATEMENT, insert_many

__all__ = [
    "LEDGER_NAME",
    "USER_BYTES",
    "Cursor",
    "Failed",
    "IdScheme",
    "Ledger",
    "LedgerBusyError",
    "LedgerDamagedError",
    "LedgerError",
    "PastFailure",
    "PastRun",
    "PastVerification",
    "Project",
    "RunResult",
    "insert_many",
    "is_run_active",
    "open_ledger",
    "read_ledger",
]

DAY_S = 86_400
FORGET_AFTER_DAYS = 400  # what no query has shown for so long is dropped; runs and failures, too


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


class Ledger:
    """One project's part of the ledger. Make it with `open_ledger` or `read_ledger`."""

    def __init__(
        self,
        database: sqlite3.Connection,
        project: Project,
        now: float,
        *,
        warning: str = "",
        damage: str = "",
        is_read_only: bool = False,
    ) -> None:
        self.warning = warning  # what the user should know about the file, if anything
        self.damage = damage  # why the file can't be used, so that this ledger knows nothing
        self._database = database
        self.is_read_only = is_read_only
        self._opened_at, self._opened_at_monotonic = now, time.monotonic()
        self._today = int(now // DAY_S)
        self._run = 0
        self._begin()
        found = find_project(database, project)
        self._project = found.number if is_read_only else enter_project(database, project, found)
        self.note = found.note  # what the user should know about key and name, if anything
        self.commit()
        hasher = Hasher(found.secret)
        self.hasher = hasher
        self.user_key, self.event_keys, self.fingerprints = hasher.user_key, hasher.event_keys, hasher.fingerprints
        self._hash = hasher.text
        self.accepted = Accepted(database, self._project, self._today)
        self.known, self.accepted_at = self.accepted.known, self.accepted.accepted_at
        self.is_new_key_for_known_host = is_new_key_for_known_host(database, project, self._project)
        self._failure_history = FailureHistory(database, self._project, self._hash)
        self.failed_before, self.past_failures, self.are_new = (
            self._failure_history.failed_before,
            self._failure_history.past_failures,
            self._failure_history.are_new,
        )

    def _begin(self) -> None:
        if not self.is_read_only:
            self._database.execute("BEGIN")

    def commit(self) -> None:
        """Make what was entered so far survive the end of this process."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._begin()

    def _now(self) -> int:
        return int(self._opened_at + time.monotonic() - self._opened_at_monotonic)

    # What was accepted ----------------------------------------------------------------------------------------

    def accept(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these: enter them. `commit` makes it last."""
        self.accepted.accept(records, self._now())
        if self._failure_history.exist:
            self._failure_history.forget([record.key for record in records])

    def enter_unacknowledged(self, users: Sequence[Record]) -> None:
        """Users whose first update may have arrived."""
        self.accepted.enter_unacknowledged(users, self._now())

    def invalidate(self, records: Sequence[Record]) -> None:
        """A request with these may leave now. What was accepted before may be overwritten, so it counts no more; of a
        user, that is what the request contains.

        Lasts when this returns, even if the power fails. Costs nothing where none of these is known.
        """
        if not self.accepted.holds_any(records):
            return
        with self._durably():
            self.accepted.invalidate(records)

    @contextmanager
    def _durably(self) -> Iterator[None]:
        """What is changed within lasts afterwards, even if the power fails."""
        self._database.execute("COMMIT")
        self._database.execute("PRAGMA synchronous = FULL")  # a commit in WAL mode waits for the disk only then
        try:
            self._database.execute("BEGIN")
            yield
            self._database.execute("COMMIT")
        finally:
            self._database.execute("PRAGMA synchronous = NORMAL")
        self._begin()

    @property
    def is_empty(self) -> bool:
        """Whether it knows nothing of this project, so that no look-up can find anything."""
        return self.accepted.is_empty

    def count_known(self, kind: Kind | None = None) -> int:
        """Records of this project that the ledger knows, of this kind or in all."""
        return self.accepted.count(kind)

    def begin_move(self, user_key: bytes, address: bytes) -> None:
        """A request may leave now that moves this user to another address; lasts when this returns."""
        with self._durably():
            self.accepted.people.begin_move(user_key, address)

    def use_query(self, query: str) -> None:
        """What is accepted from now on was found by this query file."""
        if not self.is_read_only:  # in use it is only once it was read
            self._database.execute(
                "INSERT OR IGNORE INTO queries (project, query, used_day) VALUES (?, ?, 0)",
                (self._project, self._hash(query)),
            )
        self.accepted.query = self._of_query(query, "id") or 0

    # What the query shows -------------------------------------------------------------------------------------

    def mark_seen(self, keys: Sequence[bytes]) -> None:
        """The query of this run shows these: they are still in use."""
        self._failure_history.note_seen(keys)
        if self.accepted.has_stale():
            self.accepted.mark_seen(keys)

    def end_reading(
        self, query: str, *, full_read: bool, window_from: int | None = None, users: int | None = None
    ) -> None:
        """The query was read to its end, and all that it found was `mark_seen`. full_read: it showed all that it has.
        users: how many it found; None where that says nothing to later runs.

        A full read makes the ledger forget: records that no query file has shown for FORGET_AFTER_DAYS, and failures of
        what this one no longer shows. Each query file in use must have had a full read since. A window of :since, which
        starts at window_from, forgets the failures that it or later windows have shown, and it does not.
        """
        if not full_read:
            self._update_query(query)
            if window_from is not None:
                self._failure_history.forget_gone(self._hash(query), window_from=window_from)
            return
        found = {} if users is None else {"full_users": users}
        self._update_query(query, full_day=self._today, **found)
        self._failure_history.forget_gone(self._hash(query))
        self._forget_unseen()

    def trusts_id(self, query: str) -> bool:
        """Whether the last full read showed that a column `id` says who people are."""
        return bool(self._of_query(query, "trusts_id"))

    def note_trust(self, query: str, *, trusts_id: bool) -> None:
        self._update_query(query, trusts_id=int(trusts_id))

    def last_full_users(self, query: str) -> int | None:
        """How many users the last full read of a query file found; None where there was none."""
        return self._of_query(query, "full_users")

    def _of_query(self, query: str, column: str) -> int | None:
        row = self._database.execute(
            f"SELECT {column} FROM queries WHERE project = ? AND query = ?", (self._project, self._hash(query))
        ).fetchone()
        return None if row is None else row[0]

    def refresh(
        self,
        keys: Iterable[bytes],
        query: str,
        *,
        full_read: bool,
        window_from: int | None = None,
        users: int | None = None,
    ) -> None:
        """`shown` and `end_reading` in one. The keys are read only where something is to be noted about them."""
        if self._failure_history.exist or self.accepted.has_stale():
            keys = iter(keys)
            while chunk := list(islice(keys, KEYS_PER_STATEMENT)):
                self.mark_seen(chunk)
        self.end_reading(query, full_read=full_read, window_from=window_from, users=users)

    def _forget_unseen(self) -> None:
        oldest = self._today - FORGET_AFTER_DAYS
        rows = self._database.execute(
            "SELECT full_day FROM queries WHERE project = ? AND used_day >= ?", (self._project, oldest)
        ).fetchall()
        full_days = [full_day for (full_day,) in rows]
        if None not in full_days:
            # What a query shows is at most REFRESH_DAYS older than its last full read.
            before = min(oldest, min(full_days) - REFRESH_DAYS)
            self.accepted.delete_before(before)

    def _update_query(self, query: str, **values: object) -> None:
        """Note that it is in use, and these values of it."""
        columns = {"used_day": self._today, **values}
        names = ", ".join(columns)
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
        self._database.execute(
            f"INSERT INTO queries (project, query, {names}) VALUES (?, ?{', ?' * len(columns)})"
            f" ON CONFLICT (project, query) DO UPDATE SET {updates}",
            (self._project, self._hash(query), *columns.values()),
        )

    # What failed ----------------------------------------------------------------------------------------------

    def note_failures(
        self, failed: Sequence[Failed], query: str, *, counts: bool, window_from: int | None = None
    ) -> list[bool]:
        """Remember what failed in this run. For each: whether it is new, so not reported with this content and reason.

        counts: something else was accepted in this run, so that records which were not acknowledged are to blame
        themselves. window_from: where the window of :since starts that this run reads, in Unix seconds. Call it at the
        end of the run, once for each record, and before `end_reading`.
        """
        news = self.are_new(failed)
        self._failure_history.note(failed, self._hash(query), self._now(), counts=counts, window_from=window_from)
        return news

    def report_failures(self, failed: Sequence[Failed]) -> None:
        """A run has reported these, which were noted before: they are not new any more."""
        self._failure_history.report(failed)

    @property
    def has_failure_history(self) -> bool:
        """Whether anything failed in earlier runs and was not accepted since."""
        return self._failure_history.exist

    # :since ---------------------------------------------------------------------------------------------------

    def held_from(self, query: str) -> int | None:
        """Where :since has to start at the latest, in Unix seconds, so that what may still be accepted is read again.

        None: nothing is held. What has failed for HELD_DAYS is dropped.
        """
        return self._failure_history.held_from(self._hash(query), self._now())

    def count_let_go(self, query: str) -> int:
        """Records that may still be accepted, but are read by full reads only, as they have failed for HELD_DAYS."""
        return self._failure_history.count_let_go(self._hash(query), self._now())

    def note_full_read(self, query: str, at: int) -> None:
        """Everything was read and tried at that time, in Unix seconds, whether or not the cursor moves."""
        self._update_query(query, last_full_at=at)

    def cursor(self, query: str) -> Cursor | None:
        """The cursor of a query file, named by its path."""
        row = self._database.execute(
            "SELECT cursor_at, holds_for, last_full_at FROM queries"
            " WHERE project = ? AND query = ? AND cursor_at IS NOT NULL",
            (self._project, self._hash(query)),
        ).fetchone()
        return None if row is None else Cursor(*row)

    def set_cursor(self, query: str, cursor: Cursor) -> None:
        """Whether it may move is the caller's to decide."""
        self._update_query(query, cursor_at=cursor.at, holds_for=cursor.holds_for, last_full_at=cursor.last_full_at)

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

    # Fields that Iterable drops -----------------------------------------------------------------------------------

    def dropped_fields(self) -> set[tuple[Kind, str]]:
        rows = self._database.execute("SELECT kind, name FROM dropped_fields WHERE project = ?", (self._project,))
        return {(Kind(kind), name) for kind, name in rows.fetchall()}

    def remember_dropped(self, fields: Iterable[tuple[Kind, str]]) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO dropped_fields (project, kind, name) VALUES (?, ?, ?)",
            [(self._project, kind.value, name) for kind, name in fields],
        )

    def forget_dropped(self, fields: Iterable[tuple[Kind, str]]) -> None:
        self._database.executemany(
            "DELETE FROM dropped_fields WHERE project = ? AND kind = ? AND name = ?",
            [(self._project, kind.value, name) for kind, name in fields],
        )

    # Runs -----------------------------------------------------------------------------------------------------

    def begin_run(self, run_id: str, started_at: float, query_file: str) -> None:
        """Note that a run has begun, for good; and drop what is older than FORGET_AFTER_DAYS. Raises LedgerError."""
        oldest = self._now() - FORGET_AFTER_DAYS * DAY_S
        try:
            delete_runs_before(self._database, oldest)
            self._failure_history.forget_before(oldest)
            self._run = insert_run(self._database, self._project, run_id, started_at, query_file)
            self.accepted.run = self._run
            self.commit()
        except sqlite3.Error as error:
            raise LedgerError(f"The ledger can't be written ({error}); nothing was sent.") from error

    def end_run(self, result: RunResult) -> None:
        """Note how it ended, for good."""
        update_run(self._database, self._run, result)
        self.commit()

    def last_whole_delivery(self) -> str:
        """The id of the last run of this project that read all, and delivered or entered something; none: an empty
        text."""
        return last_whole_delivery(self._database, self._project)

    def run_ids_after(self, run_id: str) -> set[str]:
        """The ids of all runs that held this ledger, of all projects, as far as they are later than this one."""
        return run_ids_after(self._database, run_id)

    def run_ids(self, numbers: Collection[int]) -> dict[int, str]:
        """The ids of the runs that acceptances name, as far as they are remembered."""
        return run_ids(self._database, numbers)

    def has_full_run(self) -> bool:
        """Whether a run of this project has read everything and got to its end."""
        return has_full_run(self._database, self._project)

    def runs(self, limit: int) -> list[PastRun]:
        """The last runs that held this ledger, of all projects, the newest last."""
        return last_runs(self._database, limit, self._project)

    def set_verification(self, found: PastVerification) -> None:
        """The project was verified; lasts when this returns."""
        set_verification(self._database, self._project, found)
        self.commit()

    def last_verification(self) -> PastVerification | None:
        """When this project was last verified, and with what result."""
        return last_verification(self._database, self._project)

    def fruitless_runs(self, query_file: str) -> Fruitless:
        """The last finished runs of this query file that ended with an outage and had nothing accepted."""
        return last_fruitless_runs(self._database, self._project, query_file)

    def last_success(self, query_file: str) -> float | None:
        """When the last run of this query file that ended with 0 did so, Unix seconds."""
        return last_success(self._database, self._project, query_file)


# Opening --------------------------------------------------------------------------------------------------------------


@contextmanager
def open_ledger(
    folder: Path,
    project: Project,
    *,
    now: float,
    lasting: bool = True,
    replace_damaged: bool = False,
    damage: str = "",
) -> Iterator[Ledger]:
    """The ledger in `folder`, for a run, which nobody else can begin until the block ends. now: Unix seconds.

    In the place of a damaged one: an empty ledger for this run alone, with the `damage`; replace_damaged: a new one,
    and the damaged one is set aside. lasting=False: an empty ledger for this run alone, without a file or a lock.
    Raises LedgerBusyError, LedgerError.
    """
    with ExitStack() as stack:
        if lasting:
            file = stack.enter_context(hold_file(folder, now, replace_damaged=replace_damaged))
        else:
            file = LedgerFile(memory(stack), damage=damage)
        try:
            ledger = Ledger(file.database, project, now, warning=file.warning, damage=file.damage)
        except sqlite3.Error as error:
            raise LedgerError(f"The ledger {folder / LEDGER_NAME} can't be written ({error}).") from error
        yield ledger


@contextmanager
def read_ledger(folder: Path, project: Project, *, now: float) -> Iterator[Ledger]:
    """The ledger to look at, also while a run is active. Makes and changes nothing; a missing file is an empty ledger.

    Raises LedgerDamagedError, LedgerBusyError, LedgerError.
    """
    with read_file(folder) as database:
        yield Ledger(database, project, now, is_read_only=True)
