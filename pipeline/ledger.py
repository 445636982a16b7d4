"""What this Iterable project has already accepted, in every run so far; and the lock against a second run.

One SQLite file that outlives the run and holds only keyed hashes, no personal data: (user or event) -> fingerprint of
the payload last accepted. It is held exclusively, which is also the lock. Knows nothing of HTTP. Only the thread that
opened it uses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

from pipeline.ending import ExitCode, RunError
from pipeline.records import Record

LEDGER_NAME = "iterable_ledger.sqlite3"
SCHEMA_VERSION = 1
DAY_S = 86_400
KEEP_DAYS = 400  # entries that no query has shown for so long are dropped
REFRESH_DAYS = 30  # how far "last seen" may lag behind, so that a run without news writes nothing
ROWS_PER_INSERT = 100
KEYS_PER_REFRESH = 500


_KEY_FINGERPRINT = itemgetter(3, 4)  # at the speed of C: every event passes through it


class LedgerBusyError(RunError):
    """Another run holds the ledger."""

    code = ExitCode.TEMPORARY


class LedgerError(RunError):
    """The ledger can't be opened or written; the text says why."""

    code = ExitCode.NO_OUTPUT


# An event's key is the beginning of its user's key, and a hash of its id.
HASH_BYTES = 16
USER_BYTES = 8
EVENT_BYTES = 12


class Ledger:
    """The connection. Make it with `open_ledger`."""

    def __init__(self, database: sqlite3.Connection, project: str, today: int, warning: str = "") -> None:
        self.warning = warning  # what the user should know about the file, if anything
        self._database = database
        hash_key = hashlib.blake2b(project.encode("utf-8"), digest_size=32).digest()
        # Hashers that have read the key already, by the size of their digests: a copy saves a third of each hash.
        self._hashers = {size: hashlib.blake2b(digest_size=size, key=hash_key) for size in (EVENT_BYTES, HASH_BYTES)}
        self._today = today

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

    # What is known --------------------------------------------------------------------------------------------

    def known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The fingerprints last accepted, of those of these keys that are known."""
        places = ",".join("?" * len(keys))
        rows = self._database.execute(f"SELECT key, fingerprint FROM accepted WHERE key IN ({places})", list(keys))
        return dict(rows.fetchall())

    def accept(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these: enter them. `commit` makes it last."""
        insert_many(
            self._database,
            "INSERT INTO accepted (key, fingerprint, seen_day) VALUES",
            list(map(_KEY_FINGERPRINT, records)),
            "ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, seen_day = excluded.seen_day",
            constant=self._today,
        )

    def commit(self) -> None:
        """Make what was accepted so far survive the end of this process."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")
        self._database.execute("BEGIN")

    def refresh(self, keys: Iterable[bytes]) -> None:
        """Note that the entries which this run's query shows are still in use, and drop those long unseen."""
        stale = self._today - REFRESH_DAYS
        if self._count(f"(SELECT 1 FROM accepted WHERE seen_day < {stale:d} LIMIT 1)"):
            keys = iter(keys)
            while chunk := list(islice(keys, KEYS_PER_REFRESH)):
                places = ",".join("?" * len(chunk))
                self._database.execute(
                    f"UPDATE accepted SET seen_day = ? WHERE seen_day < ? AND key IN ({places})",
                    (self._today, stale, *chunk),
                )
            self._database.execute("DELETE FROM accepted WHERE seen_day < ?", (stale - KEEP_DAYS,))

    def count_entries(self) -> int:
        """Records, of all projects, that are known to be in Iterable."""
        return self._count("accepted")

    def _count(self, source: str) -> int:
        (count,) = self._database.execute(f"SELECT count(*) FROM {source}").fetchone()
        return int(count)


def insert_many(
    database: sqlite3.Connection, head: str, rows: Sequence[Sequence[object]], tail: str = "", *,
    constant: int | None = None,
) -> None:  # fmt: skip
    """One statement for many rows: three times as fast as executemany, which runs one for each.

    constant: a number that stands at the end of every row.
    """
    for start in range(0, len(rows), ROWS_PER_INSERT):
        chunk = rows[start : start + ROWS_PER_INSERT]
        statement = _insert_statement(head, tail, len(chunk), len(chunk[0]), constant)
        database.execute(statement, list(chain.from_iterable(chunk)))


@lru_cache
def _insert_statement(head: str, tail: str, rows: int, columns: int, constant: int | None) -> str:
    row = ",".join("?" * columns) + ("" if constant is None else f",{constant:d}")
    return f"{head} {','.join([f'({row})'] * rows)} {tail}"


# Opening --------------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS accepted (
    key BLOB PRIMARY KEY, fingerprint BLOB NOT NULL, seen_day INTEGER NOT NULL
) WITHOUT ROWID
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


def _check_content(database: sqlite3.Connection) -> None:
    """A damage anywhere shows here, when the ledger can still be set aside; 0.1 s for a million entries."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _check_version(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise LedgerError(
            f"The ledger was written by another version of this program (format {version}); move it away."
        )
    if version == 0:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _set_aside(path: Path, now: float) -> Path:
    damaged = path.with_name(f"{path.name}.damaged-{int(now)}")
    path.rename(damaged)
    for helper in _helpers(path):
        helper.unlink(missing_ok=True)
    return damaged


def _helpers(path: Path) -> list[Path]:
    """The files that SQLite may keep beside a database."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]
