"""What this Iterable project has already accepted, in every run so far; what keeps failing; and how the runs ended.

A SQLite file that outlives the run and holds keyed hashes, no personal data: (user or event) -> fingerprint of the
payload last accepted (see `accepted`). Beside it: records that were refused or not acknowledged (`failures`), the
cursors of :since and the schemes of event ids (`queries`), the fields that Iterable drops, one line for each run
(`runs`), and the last verification. Knows nothing of HTTP. Only the thread that opened it uses it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from pipeline.ledger.accepted import Accepted
from pipeline.ledger.dropped_fields import DroppedFields
from pipeline.ledger.failures import FailureEntry, FailureHistory, PastFailure
from pipeline.ledger.file import (
    LEDGER_NAME,
    Fetch,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    LedgerFile,
    compact,
    hold_file,
    is_run_active,
    memory,
    read_file,
)
from pipeline.ledger.forgotten import Forgotten, PersonInLedger
from pipeline.ledger.project import (
    Hasher,
    Project,
    count_forgotten_of_others,
    count_others,
    enter_project,
    find_project,
    is_new_key_for_known_host,
)
from pipeline.ledger.queries import Cursor, IdScheme, Queries
from pipeline.ledger.runs import PastRun, RunResult, Runs
from pipeline.ledger.verifications import PastVerification, Verifications
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import Kind, Record
from pipeline.model.sql import KEYS_PER_STATEMENT, insert_many

__all__ = [
    "LEDGER_NAME",
    "USER_BYTES",
    "Cursor",
    "FailureEntry",
    "IdScheme",
    "Ledger",
    "LedgerBusyError",
    "LedgerDamagedError",
    "LedgerError",
    "PastFailure",
    "PastRun",
    "PastVerification",
    "PersonInLedger",
    "Project",
    "RunResult",
    "insert_many",
    "is_run_active",
    "open_ledger",
    "read_ledger",
]

DAY_S = 86_400
FORGET_AFTER_DAYS = 400  # what no query has shown for so long is dropped; runs and failures, too
# After a longer one, a run drops nothing: nobody could show anything, or the clock is wrong.
LONGEST_PAUSE_DAYS = 100


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
        self._now = _clock(now)
        self._today = int(now // DAY_S)
        self._run = 0
        self._forgets = True
        self._begin()
        found = find_project(database, project)
        self._project = found.number if is_read_only else enter_project(database, project, found)
        self.note = found.note  # what the user should know about key and name, if anything
        self.commit()
        hasher = Hasher(found.secret)
        self.hasher = hasher
        self.user_key, self.event_keys, self.fingerprints = hasher.user_key, hasher.event_keys, hasher.fingerprints
        self.accepted = Accepted(database, self._project, self._today)
        self.known, self.accepted_at = self.accepted.known, self.accepted.accepted_at
        self.is_new_key_for_known_host = is_new_key_for_known_host(database, project, self._project)
        self._note_forgotten_of_others(project)
        self.failures = FailureHistory(database, self._project, hasher.text, self._now)
        self.queries = Queries(database, self._project, self._today, hasher.text)
        self.dropped_fields = DroppedFields(database, self._project)
        self.runs = Runs(database, self._project)
        self.forgotten = Forgotten(database, self._project, self._today, self.accepted.people, self.user_key)
        self.verifications = Verifications(database, self._project)

    def _note_forgotten_of_others(self, project: Project) -> None:
        count = count_forgotten_of_others(self._database, project, self._project)
        if count and self.is_new_key_for_known_host:
            people = "1 person" if count == 1 else f"{count:,} people"
            self.note = (
                f"{self.note} The key is new to the ledger, and does not know {people} whom --forget has forgotten "
                "under another one. If it was rotated, repeat --forget for them before anything is sent."
            ).strip()

    def _begin(self) -> None:
        if not self.is_read_only:
            self._database.execute("BEGIN")

    def commit(self) -> None:
        """Make what was entered so far survive the end of this process."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._begin()

    # What was accepted ----------------------------------------------------------------------------------------

    def accept(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these: enter them. `commit` makes it last."""
        self.accepted.accept(records, self._now())
        if self.failures.exist:
            self.failures.forget([record.key for record in records])

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
        return self.accepted.is_empty and not self.forgotten

    def count_known(self, kind: Kind | None = None) -> int:
        """Records of this project that the ledger knows, of this kind or in all."""
        return self.accepted.count(kind)

    def begin_move(self, user_key: bytes, address: bytes) -> None:
        """A request may leave now that moves this user to another address; lasts when this returns."""
        with self._durably():
            self.accepted.people.begin_move(user_key, address)

    def forget(self, person: PersonInLedger) -> None:
        """From now on the ledger knows nothing of this person but that it is one of the `forgotten`. Lasts when this
        returns."""
        self._database.execute("PRAGMA secure_delete = ON")
        with self._durably():
            self.forgotten.forget(person)

    def count_other_projects(self) -> int:
        """Projects whose entries can't be distinguished without their own key or name."""
        return count_others(self._database, self._project)

    def compact(self) -> bool:
        """Leave nothing of what was deleted in the file. Returns whether that is done; see `file.compact`."""
        self._database.execute("COMMIT")
        try:
            return compact(self._database)
        finally:
            self._begin()

    def use_query(self, query: str) -> None:
        """What is accepted, or fails, from now on was found by this query file."""
        if not self.is_read_only:
            self.queries.add(query)
        self.accepted.query = self.queries.number(query)
        self.failures.use_query(query)

    # What the query shows -------------------------------------------------------------------------------------

    def mark_seen(self, keys: Sequence[bytes]) -> None:
        """The query of this run shows these: they are still in use."""
        self.failures.note_seen(keys)
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
            self.queries.note_part_read(query)
            if window_from is not None:
                self.failures.forget_gone(query, window_from=window_from)
            return
        self.queries.note_all_shown(query, users)
        self.failures.forget_gone(query)
        before = self.queries.unseen_before(self._today - FORGET_AFTER_DAYS)
        if before is not None and self._forgets:
            self.accepted.delete_before(before)

    def refresh(
        self,
        keys: Iterable[bytes],
        query: str,
        *,
        full_read: bool,
        window_from: int | None = None,
        users: int | None = None,
    ) -> None:
        """`mark_seen` and `end_reading` in one. The keys are read only where something is to be noted about them."""
        if self.failures.exist or self.accepted.has_stale():
            keys = iter(keys)
            while chunk := list(islice(keys, KEYS_PER_STATEMENT)):
                self.mark_seen(chunk)
        self.end_reading(query, full_read=full_read, window_from=window_from, users=users)

    # Runs -----------------------------------------------------------------------------------------------------

    def begin_run(self, run_id: str, started_at: float, query_file: str) -> None:
        """Note that a run has begun, for good; and drop what is older than FORGET_AFTER_DAYS. Raises LedgerError."""
        oldest = self._now() - FORGET_AFTER_DAYS * DAY_S
        self._forgets = self.queries.was_in_use(self._today - LONGEST_PAUSE_DAYS)
        try:
            if self._forgets:
                self.runs.delete_before(oldest)
                self.failures.forget_before(oldest)
            self._run = self.runs.insert(run_id, started_at, query_file)
            self.accepted.run = self._run
            self.commit()
        except sqlite3.Error as error:
            raise LedgerError(f"The ledger can't be written ({error}); nothing was sent.") from error

    @property
    def remembers_runs_from(self) -> float:
        """Later runs would still be known, Unix seconds. A day less than that, as a run's id is in local time."""
        return self._now() - (FORGET_AFTER_DAYS - 1) * DAY_S

    def end_run(self, result: RunResult) -> None:
        """Note how it ended, for good."""
        self.runs.note_end(self._run, result)
        self.commit()


def _clock(now: float) -> Callable[[], int]:
    """The time in Unix seconds, counted on from `now`."""
    started = time.monotonic()
    return lambda: int(now + time.monotonic() - started)


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
    fetch: Fetch | None = None,
) -> Iterator[Ledger]:
    """The ledger in `folder`, for a run, which nobody else can begin until the block ends. now: Unix seconds.

    In the place of a damaged one: an empty ledger for this run alone, with the `damage`; replace_damaged: a new one,
    and the damaged one is set aside. lasting=False: an empty ledger for this run alone, without a file or a lock.
    fetch: brings it from elsewhere first, when the folder is locked.
    Raises LedgerBusyError, LedgerError.
    """
    with ExitStack() as stack:
        if lasting:
            file = stack.enter_context(hold_file(folder, now, replace_damaged=replace_damaged, fetch=fetch))
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
