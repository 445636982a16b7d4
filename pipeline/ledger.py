"""What this Iterable project has already accepted, what is pending in this run, and what became of each record.

`Ledger` is one SQLite connection with two databases:

- the ledger itself, a file that outlives the run and holds only keyed hashes: (user or event) -> fingerprint of the
  payload last accepted. It is held exclusively, which is also the lock against a second run.
- the stage, a private temporary file that SQLite unlinks as it opens it, so that the operating system removes it
  however the run ends: the records of this run, which are personal data, and the outcome of each.

Knows nothing of HTTP. Only the thread that opened it uses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

LEDGER_NAME = "iterable_ledger.sqlite3"
SCHEMA_VERSION = 1
DAY_S = 86_400
KEEP_DAYS = 400  # entries that no query has shown for so long are dropped
REFRESH_DAYS = 30  # how far "last seen" may lag behind, so that a run without news writes nothing
ROWS_PER_INSERT = 100


class Kind(str, Enum):
    """The two kinds of records."""

    USER = "user"
    EVENT = "event"


class Outcome(str, Enum):
    """Where each record ends, exactly one each."""

    DELIVERED = "delivered"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    UNACKNOWLEDGED = "unacknowledged"
    NOT_ATTEMPTED = "not_attempted"


class Record(NamedTuple):
    """A user update or an event that can be sent. `row`: its line in the CSV, 1 for the first under the header."""

    kind: Kind
    row: int
    identity: str  # e-mail or userId
    key: bytes
    fingerprint: bytes
    payload: bytes  # JSON in UTF-8, as it goes to Iterable


StagedEvent = tuple[int, bytes, bytes, bytes]  # row, key, fingerprint and payload; its user is staged apart

_ALL_BUT_KIND = itemgetter(1, 2, 3, 4, 5)
_KEY_FINGERPRINT = itemgetter(3, 4)  # at the speed of C: every event passes through it


class Verdict(NamedTuple):
    """What became of a record that was not delivered, and why."""

    kind: Kind
    row: int
    identity: str | None
    outcome: Outcome
    status_code: int | None
    code: str | None
    message: str
    attempts: int


class LedgerBusyError(Exception):
    """Another run holds the ledger."""


class LedgerError(Exception):
    """The ledger can't be opened or written; the text says why."""


# An event's key is the beginning of its user's key, and a hash of its id.
HASH_BYTES = 16
USER_BYTES = 8
EVENT_BYTES = 12
_USER_OF_KEY = f"substr(key, 1, {USER_BYTES})"
_ID_OF_KEY = f"substr(key, {USER_BYTES + 1})"

# States of a staged record: its outcome's code, or one of those before it.
_NO_RECORD = 0
_PENDING = 1
_HELD = 2  # refused, and to be tried once more in this run
_CODES = {outcome: code for code, outcome in enumerate(Outcome, start=3)}
_DELIVERED = _CODES[Outcome.DELIVERED]


class Ledger:
    """The connection. Make it with `open_ledger`."""

    def __init__(self, database: sqlite3.Connection, project: str, today: int, warning: str = "") -> None:
        self.warning = warning  # what the user should know about the file, if anything
        self._database = database
        hash_key = hashlib.blake2b(project.encode("utf-8"), digest_size=32).digest()
        # Hashers that have read the key already, by the size of their digests: a copy saves a third of each hash.
        self._hashers = {size: hashlib.blake2b(digest_size=size, key=hash_key) for size in (EVENT_BYTES, HASH_BYTES)}
        self._today = today
        self.duplicate_events = 0
        self._users_are_counted_in = False
        # One byte for each row and kind: its state. A table of this would cost more than everything else on the stage.
        self._states: dict[Kind, bytearray] = {kind: bytearray() for kind in Kind}

    # Keys -----------------------------------------------------------------------------------------------------

    # Only who has the project's key can repeat these hashes, so that addresses can't be found by trying them.

    def user_key(self, identity: str) -> bytes:
        return self._hash([identity.encode("utf-8")], HASH_BYTES)[0]

    def event_keys(self, user_keys: Iterable[bytes], event_ids: Iterable[str]) -> list[bytes]:
        """They begin like their users', so that a user and its events lie together; their length tells them apart."""
        hashes = self._hash([event_id.encode("utf-8") for event_id in event_ids], EVENT_BYTES)
        return [user_key[:USER_BYTES] + each for user_key, each in zip(user_keys, hashes, strict=True)]

    def fingerprints(self, payloads: Iterable[bytes]) -> list[bytes]:
        return self._hash(payloads, HASH_BYTES)

    def _hash(self, contents: Iterable[bytes], size: int) -> list[bytes]:
        copy = self._hashers[size].copy
        hashes = []
        for content in contents:
            hasher = copy()
            hasher.update(content)
            hashes.append(hasher.digest())
        return hashes

    # Staging --------------------------------------------------------------------------------------------------

    def stage_users(self, records: Sequence[Record]) -> None:
        """Users to update. Of several for one user the last one counts."""
        self._insert_many(
            "INSERT INTO stage.users (row, identity, key, fingerprint, payload) VALUES",
            list(map(_ALL_BUT_KIND, records)),
            "ON CONFLICT (key) DO UPDATE SET row = excluded.row, fingerprint = excluded.fingerprint,"
            " payload = excluded.payload, problem = NULL",
        )

    def stage_invalid_user(self, key: bytes, row: int, identity: str, problem: str) -> None:
        """A user whose last row can't be sent; an earlier row must not be sent in its place."""
        self._insert_many(
            "INSERT INTO stage.users (key, row, identity, problem) VALUES",
            [(key, row, identity, problem)],
            "ON CONFLICT (key) DO UPDATE SET row = excluded.row, fingerprint = NULL, payload = NULL,"
            " problem = excluded.problem",
        )

    def stage_events(self, events: Sequence[StagedEvent]) -> None:
        """Events to track. Doubled ones are settled when the stage is finished."""
        self._insert_many(
            "INSERT INTO stage.events (row, key, fingerprint, payload) VALUES",
            events,
        )
        for row, *_ in events:
            self._set_state(Kind.EVENT, row, _PENDING)

    def finish_staging(self, *, skip_unchanged: bool, ids_are_given: bool = False) -> None:
        """Settle what needs no sending: doubled ids, invalid users and, unless told otherwise, what is unchanged.

        ids_are_given: the events' ids come from the query, so that two users may share one by mistake.
        """
        self._count_users_in()
        # An index made at the end is sorted once; one kept up to date costs as much as all the rest of the stage.
        self._database.execute("CREATE INDEX stage.events_by_key ON events (key)")
        self._drop_duplicate_events()
        self._refuse_invalid_users()
        if ids_are_given:
            self._refuse_shared_event_ids()
        if skip_unchanged:
            for kind in Kind:
                self._skip_unchanged(kind)
        if self.count_pending(Kind.EVENT):
            self._order_events()

    def _order_events(self) -> None:
        """User by user, in the order of the keys: they enter the ledger in less than half the time of any other."""
        self._database.execute(
            f"CREATE TABLE IF NOT EXISTS stage.event_order AS SELECT row FROM stage.events ORDER BY {_USER_OF_KEY}, row"
        )

    def _count_users_in(self) -> None:
        """Only now it is known which row is each user's last."""
        for (row,) in self._database.execute("SELECT row FROM stage.users"):
            self._set_state(Kind.USER, row, _PENDING)
        self._users_are_counted_in = True

    def clear_stage(self) -> None:
        """Forget all that was staged and noted, to begin anew."""
        for table in ("users", "events", "verdicts"):
            self._database.execute(f"DELETE FROM stage.{table}")
        self._states = {kind: bytearray() for kind in Kind}

    def _drop_duplicate_events(self) -> None:
        """Of several events with one id the last one counts, and of equal ones the first."""
        staged = self._count("stage.events")
        if staged == self._count("(SELECT DISTINCT key FROM stage.events)"):
            return
        rows = self._database.execute(
            "SELECT key, row, fingerprint FROM stage.events"
            " WHERE key IN (SELECT key FROM stage.events GROUP BY key HAVING count(*) > 1) ORDER BY key, row"
        )
        dropped = array("q")
        kept_key = kept_fingerprint = b""
        kept_row = 0
        for key, row, fingerprint in rows:
            if key == kept_key:
                dropped.append(row if fingerprint == kept_fingerprint else kept_row)
            if key != kept_key or fingerprint != kept_fingerprint:
                kept_key, kept_row, kept_fingerprint = key, row, fingerprint
        self._database.executemany("DELETE FROM stage.events WHERE row = ?", zip(dropped))
        for row in dropped:
            self._set_state(Kind.EVENT, row, _NO_RECORD)
        self.duplicate_events = len(dropped)

    def _refuse_invalid_users(self) -> None:
        rows = self._database.execute("SELECT row, identity, problem FROM stage.users WHERE problem IS NOT NULL")
        self.note(
            [
                Verdict(Kind.USER, row, identity, Outcome.REJECTED, None, "InvalidRecord", problem, 0)
                for row, identity, problem in rows
            ]
        )

    def _refuse_shared_event_ids(self) -> None:
        """Refuse events whose id an earlier row uses for another user.

        Whether an id is unique per user or per project is not documented, so one of them might replace the other.
        """
        rows = self._database.execute(
            "SELECT row, first FROM ("
            f" SELECT row, min(row) OVER (PARTITION BY {_ID_OF_KEY}) AS first FROM stage.events) WHERE row <> first"
        )
        text = "event_id is the same as in row {}, which is about another user."
        self.note(
            [
                Verdict(Kind.EVENT, row, None, Outcome.REJECTED, None, "InvalidRecord", text.format(first), 0)
                for row, first in rows
            ]
        )

    def _skip_unchanged(self, kind: Kind) -> None:
        states = self._states[kind]
        for (row,) in self._database.execute(
            f"SELECT staged.row FROM stage.{kind.value}s AS staged CROSS JOIN main.accepted AS known"
            " ON known.key = staged.key AND known.fingerprint = staged.fingerprint ORDER BY staged.key"
        ):
            if states[row] == _PENDING:
                states[row] = _CODES[Outcome.UNCHANGED]

    def _set_state(self, kind: Kind, row: int, state: int) -> None:
        states = self._states[kind]
        if row >= len(states):
            states.extend(bytes(row + 1 - len(states)))
        states[row] = state

    # What is to be sent ---------------------------------------------------------------------------------------

    def pending_users(self) -> Iterator[Record]:
        """Users without an outcome, in the order of their keys."""
        states = self._states[Kind.USER]
        rows = self._database.execute("SELECT row, identity, key, fingerprint, payload FROM stage.users ORDER BY key")
        for row, *rest in rows:
            if states[row] == _PENDING:
                yield Record(Kind.USER, row, *rest)

    def pending_events(self) -> Iterator[Record]:
        """Events without an outcome: user by user in the order of their keys, each user's in the query's order."""
        if not self.count_pending(Kind.EVENT):
            return
        states = self._states[Kind.EVENT]
        users = self._database.execute(f"SELECT {_USER_OF_KEY}, identity FROM stage.users ORDER BY key")
        events = self._database.execute(
            "SELECT event.row, event.key, event.fingerprint, event.payload"
            " FROM stage.event_order AS place CROSS JOIN stage.events AS event ON event.row = place.row"
            " ORDER BY place.rowid"
        )
        user, identity = b"", ""
        for row, key, fingerprint, payload in events:
            if states[row] == _PENDING:
                while key[:USER_BYTES] != user:
                    user, identity = next(users)  # every event's user is staged
                yield Record(Kind.EVENT, row, identity, key, fingerprint, payload)

    def count_pending(self, kind: Kind) -> int:
        """Staged records without an outcome."""
        return self._states[kind].count(_PENDING)

    # What became of it ----------------------------------------------------------------------------------------

    # States are set first: they are in memory, and so stay right when a full disk refuses the rest.

    def accept(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these: note them as delivered, and enter them."""
        for each in records:
            self._states[each.kind][each.row] = _DELIVERED
        self._insert_many(
            "INSERT INTO main.accepted (key, fingerprint, seen_day) VALUES",
            list(map(_KEY_FINGERPRINT, records)),
            "ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, seen_day = excluded.seen_day",
            constant=self._today,
        )

    def note(self, verdicts: Sequence[Verdict]) -> None:
        """Note what was not delivered. It stays out of the ledger, so the next run offers it again."""
        for each in verdicts:
            self._set_state(each.kind, each.row, _CODES[each.outcome])
        self._insert_verdicts(verdicts, [verdict.outcome.value for verdict in verdicts])

    def hold(self, verdicts: Sequence[Verdict]) -> None:
        """Note refusals that may pass. Until `release_held` or `give_up_held`, they are neither pending nor settled."""
        self._insert_verdicts(verdicts, ["held"] * len(verdicts))
        for each in verdicts:
            self._set_state(each.kind, each.row, _HELD)

    def _insert_verdicts(self, verdicts: Sequence[Verdict], outcomes: Sequence[str]) -> None:
        self._insert_many(
            "INSERT INTO stage.verdicts (kind, row, identity, outcome, status_code, code, message, attempts) VALUES",
            [
                (each.kind.value, each.row, each.identity, outcome, *each[4:])
                for each, outcome in zip(verdicts, outcomes, strict=True)
            ],
        )

    def release_held(self) -> None:
        """Make what is held pending again."""
        self._database.execute("DELETE FROM stage.verdicts WHERE outcome = 'held'")
        self._replace_states(_HELD, _PENDING)

    def give_up_held(self) -> None:
        """What is still held when the run ends was attempted, and the next run tries again."""
        outcome = Outcome.UNACKNOWLEDGED
        self._replace_states(_HELD, _CODES[outcome])
        self._database.execute("UPDATE stage.verdicts SET outcome = ? WHERE outcome = 'held'", (outcome.value,))

    def _replace_states(self, old: int, new: int) -> None:
        for kind, states in self._states.items():
            self._states[kind] = states.replace(bytes([old]), bytes([new]))

    def note_not_attempted(self, message: str) -> None:
        """Everything that has no outcome yet was not attempted, for this reason."""
        verdict = (Outcome.NOT_ATTEMPTED, None, None, message, 0)
        try:
            if not self._users_are_counted_in:  # the run broke off before the stage was finished
                self._count_users_in()
            if self.count_pending(Kind.EVENT):
                self._order_events()
            for kind, pending in ((Kind.USER, self.pending_users()), (Kind.EVENT, self.pending_events())):
                if self.count_pending(kind):
                    while records := list(islice(pending, ROWS_PER_INSERT)):
                        self.note([Verdict(kind, record.row, record.identity, *verdict) for record in records])
        finally:
            self._replace_states(_PENDING, _CODES[Outcome.NOT_ATTEMPTED])

    def commit(self) -> None:
        """Make what was accepted so far survive the end of this process."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    # The account ----------------------------------------------------------------------------------------------

    def count_outcomes(self) -> dict[Kind, dict[Outcome, int]]:
        """How many records of each kind ended how, so far."""
        return {
            kind: {outcome: states.count(code) for outcome, code in _CODES.items()}
            for kind, states in self._states.items()
        }

    def verdicts(self, limit: int = -1, *, with_not_attempted: bool = True) -> Iterator[Verdict]:
        """What was neither delivered nor unchanged, in the order of the CSV. limit: -1 for all."""
        rows = self._database.execute(
            "SELECT kind, row, identity, outcome, status_code, code, message, attempts FROM stage.verdicts"
            " WHERE outcome <> ? ORDER BY row, kind DESC LIMIT ?",
            ("" if with_not_attempted else Outcome.NOT_ATTEMPTED.value, limit),
        )
        for kind, row, identity, outcome, *rest in rows:
            # What is still held, as the disk was full when it was to be given up, is unacknowledged all the same.
            ended = Outcome.UNACKNOWLEDGED if outcome == "held" else Outcome(outcome)
            yield Verdict(Kind(kind), row, identity, ended, *rest)

    def count_reasons(self, limit: int) -> list[tuple[str, str | None, str, int]]:
        """The most frequent reasons: (outcome, code, one of the messages, how many)."""
        return self._database.execute(
            "SELECT outcome, code, min(message), count(*) FROM stage.verdicts"
            " GROUP BY outcome, code, CASE code WHEN 'InvalidRecord' THEN message END ORDER BY 4 DESC LIMIT ?",
            (limit,),
        ).fetchall()

    # Below ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Note that the entries which this run's query shows are still in use, and drop those long unseen."""
        stale = self._today - REFRESH_DAYS
        if self._count(f"(SELECT 1 FROM main.accepted WHERE seen_day < {stale:d} LIMIT 1)"):
            for kind in Kind:
                self._database.execute(
                    "UPDATE main.accepted SET seen_day = ? WHERE seen_day < ?"
                    f" AND key IN (SELECT key FROM stage.{kind.value}s)",
                    (self._today, stale),
                )
            self._database.execute("DELETE FROM main.accepted WHERE seen_day < ?", (stale - KEEP_DAYS,))

    def count_entries(self) -> int:
        """Records, of all projects, that are known to be in Iterable."""
        return self._count("main.accepted")

    def _count(self, source: str) -> int:
        (count,) = self._database.execute(f"SELECT count(*) FROM {source}").fetchone()
        return int(count)

    def _insert_many(
        self, head: str, rows: Sequence[Sequence[object]], tail: str = "", *, constant: int | None = None
    ) -> None:
        """One statement for many rows: three times as fast as executemany, which runs one for each.

        constant: a number that stands at the end of every row.
        """
        for start in range(0, len(rows), ROWS_PER_INSERT):
            chunk = rows[start : start + ROWS_PER_INSERT]
            statement = _insert_statement(head, tail, len(chunk), len(chunk[0]), constant)
            self._database.execute(statement, list(chain.from_iterable(chunk)))


@lru_cache
def _insert_statement(head: str, tail: str, rows: int, columns: int, constant: int | None) -> str:
    row = ",".join("?" * columns) + ("" if constant is None else f",{constant:d}")
    return f"{head} {','.join([f'({row})'] * rows)} {tail}"


# Opening --------------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS main.accepted (
    key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, seen_day INTEGER NOT NULL
) WITHOUT ROWID
"""

_STAGE = """
ATTACH '' AS stage;
PRAGMA stage.journal_mode = MEMORY;
PRAGMA stage.synchronous = OFF;
PRAGMA stage.cache_size = -16000;
CREATE TABLE stage.users (
    key BLOB NOT NULL UNIQUE, row INTEGER NOT NULL, identity TEXT NOT NULL, fingerprint BLOB, payload BLOB, problem TEXT
);
CREATE TABLE stage.events (
    row INTEGER PRIMARY KEY, key BLOB NOT NULL, fingerprint BLOB NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE stage.verdicts (
    kind TEXT NOT NULL, row INTEGER NOT NULL, outcome TEXT NOT NULL, status_code INTEGER, code TEXT, message TEXT,
    attempts INTEGER, identity TEXT, PRIMARY KEY (kind, row)
) WITHOUT ROWID;
"""


@contextmanager
def open_ledger(folder: Path, project: str, *, now: float, lasting: bool, read_only: bool = False) -> Iterator[Ledger]:
    """The ledger in `folder`, held until the block ends. Raises LedgerBusyError, LedgerError.

    project: what tells one Iterable project from another; part of every hash. now: Unix seconds. lasting=False: an
    empty ledger for this run alone, without a file. read_only: nothing will be entered, so a missing file is not made.
    """
    path = folder / LEDGER_NAME
    warning = ""
    if lasting and not (read_only and not path.exists()):
        database, warning = _open_file(path, now)
    else:
        database = _connect(":memory:")
    try:
        _open_stage(database, folder)
        database.execute("BEGIN")
        yield Ledger(database, project, int(now // DAY_S), warning)
    finally:
        database.close()


def _open_file(path: Path, now: float) -> tuple[sqlite3.Connection, str]:
    """The ledger file, locked; made where there is none. A damaged one is set aside, with a warning."""
    try:
        _create_private(path)
        try:
            return _connect(str(path)), ""
        except sqlite3.OperationalError as error:
            raise _explained(path, error) from error
        except sqlite3.DatabaseError as error:
            damaged = _set_aside(path, now)
            _create_private(path)
            return _connect(str(path)), (
                f"The ledger was damaged ({error}) and is now {damaged.name}. Everything is sent again; "
                "the events' ids keep them from doubling."
            )
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"The ledger {path} can't be opened ({error}).") from error


def _explained(path: Path, error: sqlite3.OperationalError) -> Exception:
    if "locked" in str(error):
        return LedgerBusyError(f"Another run is active: it holds {path}. Nothing was read, written or sent.")
    return LedgerError(f"The ledger {path} can't be opened ({error}).")


def _create_private(path: Path) -> None:
    """An empty file that only its owner can read, if there is none. SQLite gives its helper files the same mode."""
    for each in (path, *_helpers(path)):
        if each.is_symlink():
            raise OSError(errno.ELOOP, f"{each.name} is a symbolic link, which is not followed")
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(path, flags, 0o600))


def _connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        # WAL with NORMAL never loses consistency; a power cut may lose the last commits, whose records are sent again.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA temp_store = FILE")
        database.execute("PRAGMA cache_size = -8000")  # KiB; it is read and written in the order of its keys
        database.execute("PRAGMA wal_autocheckpoint = 8000")  # pages; each checkpoint waits for the disk
        database.execute("BEGIN EXCLUSIVE")  # takes the lock, which then stays until the connection is closed
        _check_content(database)
        _check_version(database)
        database.execute(_SCHEMA)
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _open_stage(database: sqlite3.Connection, folder: Path) -> None:
    """The stage and SQLite's sorting go where the outputs go, not to a /tmp that may be small, or memory.

    The variable SQLITE_TMPDIR would come too late here: SQLite reads it when its module is imported.
    """
    directory = str(folder).replace("'", "''")
    try:
        database.execute(f"PRAGMA temp_store_directory = '{directory}'")
        database.executescript(_STAGE)
    except sqlite3.Error as error:
        raise LedgerError(f"{folder} can't hold the records of this run ({error}).") from error


def _check_content(database: sqlite3.Connection) -> None:
    """A damage anywhere shows here, when the ledger can still be set aside; 0.1 s for a million entries."""
    (found,) = database.execute("PRAGMA main.quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _check_version(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA main.user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise LedgerError(
            f"The ledger was written by another version of this program (format {version}); move it away."
        )
    if version == 0:
        database.execute(f"PRAGMA main.user_version = {SCHEMA_VERSION}")


def _set_aside(path: Path, now: float) -> Path:
    damaged = path.with_name(f"{path.name}.damaged-{int(now)}")
    path.rename(damaged)
    for helper in _helpers(path):
        helper.unlink(missing_ok=True)
    return damaged


def _helpers(path: Path) -> list[Path]:
    """The files that SQLite may keep beside a database."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]
