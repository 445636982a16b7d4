"""The ledger's file: made private, locked, checked, set aside where it is damaged; and opened for those who only read.

While a run is active, the file is in SQLite's WAL mode, so that others can read what the run has committed. At rest it
is a single file in rollback mode, which can be read without making or changing anything.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.ledger import forgotten, row_digests, verifications
from pipeline.ledger.lock import Locked, hold_lock, is_locked
from pipeline.model.exits import ExitCode, RunError
from pipeline.model.ownership import owner_hint

LEDGER_NAME = "iterable_ledger.sqlite3"
LOCK_NAME = "iterable_ledger.lock"
FORMAT = 3
READERS_WAIT_S = 5.0
_HEADER_BYTES = 20
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_WAL_FORMAT = b"\x02\x02"  # bytes 18 and 19 of a database that is in WAL mode [sqlite.org/fileformat2.html]


class LedgerBusyError(RunError):
    """Another run holds the ledger."""

    code = ExitCode.TEMPORARY


class LedgerError(RunError):
    """The ledger can't be opened or written; the text says why."""

    code = ExitCode.NO_OUTPUT


class LedgerDamagedError(LedgerError):
    """The ledger's file is damaged. Only a run with --yes sets it aside; else all end as at the brake."""

    code = ExitCode.BRAKE

    def __init__(self, damage: str) -> None:
        super().__init__(f"{damage} Put it back from a backup.")
        self.damage = damage


SCHEMA = (
    """
CREATE TABLE projects (
    id INTEGER PRIMARY KEY, server BLOB NOT NULL, first_key BLOB NOT NULL UNIQUE, name BLOB UNIQUE,
    secret_by_name BLOB, last_key BLOB NOT NULL, secret_by_last_key BLOB NOT NULL
);
CREATE TABLE users (  -- what was accepted last; `run`: of runs, 0 where none is known
    project INTEGER NOT NULL, key BLOB NOT NULL, fingerprint BLOB NOT NULL, fields BLOB NOT NULL, person BLOB,
    address BLOB, origin BLOB, moving_to BLOB, query INTEGER NOT NULL, accepted_at INTEGER NOT NULL,
    run INTEGER NOT NULL, seen_day INTEGER NOT NULL, PRIMARY KEY (project, key)
) WITHOUT ROWID;
CREATE INDEX users_by_person ON users (project, person) WHERE person IS NOT NULL;
CREATE INDEX users_by_address ON users (project, address) WHERE address IS NOT NULL;
CREATE TABLE more_persons (  -- at the address of a user who is known as somebody else
    project INTEGER NOT NULL, person BLOB NOT NULL, key BLOB NOT NULL, PRIMARY KEY (project, person)
) WITHOUT ROWID;
CREATE INDEX more_persons_by_key ON more_persons (project, key);
CREATE TABLE events (  -- whose ids are made of what they say
    project INTEGER NOT NULL, key BLOB NOT NULL, fingerprint BLOB NOT NULL, accepted_at INTEGER NOT NULL,
    run INTEGER NOT NULL, seen_day INTEGER NOT NULL, PRIMARY KEY (project, key)
) WITHOUT ROWID;
CREATE TABLE given_events (  -- whose ids the query gives; `person`: the beginning of the user's key
    project INTEGER NOT NULL, key BLOB NOT NULL, person BLOB NOT NULL, fingerprint BLOB NOT NULL,
    accepted_at INTEGER NOT NULL, run INTEGER NOT NULL, seen_day INTEGER NOT NULL, PRIMARY KEY (project, key)
) WITHOUT ROWID;
CREATE TABLE past_failures (
    project INTEGER NOT NULL, key BLOB NOT NULL, query BLOB NOT NULL, fingerprint BLOB NOT NULL, reasons BLOB NOT NULL,
    outcome TEXT NOT NULL, status_code INTEGER, code TEXT, streak INTEGER NOT NULL, noted_at INTEGER NOT NULL,
    first_at INTEGER NOT NULL, window_from INTEGER, PRIMARY KEY (project, key, query)
) WITHOUT ROWID;
CREATE TABLE queries (  -- full_users, trusts_id: what the last full read found
    id INTEGER PRIMARY KEY, project INTEGER NOT NULL, query BLOB NOT NULL, used_day INTEGER NOT NULL,
    full_day INTEGER, full_users INTEGER, trusts_id INTEGER, cursor_at INTEGER, holds_for BLOB, last_full_at INTEGER,
    UNIQUE (project, query)
);
CREATE TABLE id_schemes (
    id INTEGER PRIMARY KEY, project INTEGER NOT NULL, query BLOB NOT NULL, description TEXT NOT NULL,
    accepted INTEGER NOT NULL, UNIQUE (project, query, description)
);
CREATE TABLE dropped_fields (
    project INTEGER NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (project, kind, name)
) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, project INTEGER NOT NULL, run_id TEXT NOT NULL, started_at INTEGER NOT NULL,
    query_file TEXT NOT NULL, status TEXT, exit_code INTEGER, reason TEXT, duration_s REAL, rows INTEGER,
    since_from INTEGER, full_read INTEGER, users TEXT, events TEXT
);
"""
    + forgotten.TABLE
    + row_digests.TABLE
    + verifications.TABLE
)


# For a run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerFile:
    """An open ledger. warning: what the user should know about the file, if anything. damage: why the file can't be
    used; then this is an empty ledger for this run alone, and the file stays as it is."""

    database: sqlite3.Connection
    warning: str = ""
    damage: str = ""


@dataclass(frozen=True)
class Fetched:
    """What came of bringing the ledger from elsewhere; damage: why what is there can't be used."""

    damage: str = ""
    warning: str = ""


Fetch = Callable[[ExitStack], Fetched]  # puts on the stack what is to be done when the ledger is closed again


@contextmanager
def hold_file(
    folder: Path, now: float, *, replace_damaged: bool = False, fetch: Fetch | None = None
) -> Iterator[LedgerFile]:
    """The ledger, held; made where there is none. replace_damaged: a damaged one is set aside. now: Unix seconds.
    fetch: brings it from elsewhere first, when the folder is locked."""
    with ExitStack() as stack:
        _lock(folder, stack)
        fetched = fetch(stack) if fetch is not None else Fetched()
        try:
            if fetched.damage:
                raise LedgerDamagedError(fetched.damage)
            file = _open_or_replace(folder / LEDGER_NAME, now, replace_damaged)
            stack.callback(_checkpoint_and_close, file.database)
            file = replace(file, warning=file.warning or fetched.warning)
        except LedgerDamagedError as problem:
            file = LedgerFile(memory(stack), damage=problem.damage)
        yield file


def _lock(folder: Path, stack: ExitStack) -> None:
    path = folder / LEDGER_NAME
    try:
        _refuse_links(folder / LOCK_NAME)
        stack.enter_context(hold_lock(folder / LOCK_NAME))
    except Locked as error:
        raise LedgerBusyError(f"Another run is active: it holds {path}. Nothing was read, written or sent.") from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise LedgerError(
                f"{folder} is on a file system that can't lock files ({error.strerror}), so two runs could not be kept "
                "apart; name a folder on a local disk with OUTPUT_DIR."
            ) from error
        hint = owner_hint(folder / LOCK_NAME) if isinstance(error, PermissionError) else "."
        reason = error.strerror or type(error).__name__
        raise LedgerError(f"The ledger's lock {folder / LOCK_NAME} can't be opened ({reason}){hint}") from error


def is_run_active(folder: Path) -> bool:
    """Whether a run holds the ledger of this folder."""
    return is_locked(folder / LOCK_NAME)


def _open_or_replace(path: Path, now: float, replace_damaged: bool) -> LedgerFile:
    try:
        if not path.exists():
            _create(path)
        try:
            return LedgerFile(_connect(path))
        except sqlite3.OperationalError as error:
            raise _explained(path, error) from error
        except sqlite3.DatabaseError as error:
            if not replace_damaged:
                raise _damaged(path, error) from error
            damaged = _set_aside(path, now)
            _create(path)
            warning = f"The ledger was damaged ({error}). It is now {damaged.name}, and a new one has begun."
            return LedgerFile(_connect(path), warning)
    except (OSError, sqlite3.Error) as error:
        raise _not_opened(path, error) from error


def _explained(path: Path, error: sqlite3.OperationalError) -> RunError:
    if "locked" in str(error):
        return LedgerBusyError(f"Another program holds {path} ({error}). Nothing was read, written or sent.")
    return _not_opened(path, error)


def _not_opened(path: Path, error: OSError | sqlite3.Error) -> LedgerError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return LedgerError(f"The ledger {path} can't be opened ({reason}){owner_hint(path)}")


def _damaged(path: Path, error: sqlite3.DatabaseError) -> LedgerDamagedError:
    return LedgerDamagedError(f"The ledger {path} is damaged ({error}).")


def _refuse_links(*paths: Path) -> None:
    for path in paths:
        if path.is_symlink():
            raise OSError(errno.ELOOP, f"{path.name} is a symbolic link, which is not followed")


def _create(path: Path) -> None:
    """A new ledger that only its owner can read. It appears whole, so that an empty file is a damaged one."""
    new = path.with_name(path.name + ".new")
    for each in (new, *_helpers(new)):
        each.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives its helpers the same mode
    with closing(sqlite3.connect(new, isolation_level=None)) as database:
        create_schema(database)
    _refuse_links(path, *_helpers(path))
    new.rename(path)


def _connect(path: Path) -> sqlite3.Connection:
    _refuse_links(path, *_helpers(path))
    database = sqlite3.connect(path, timeout=READERS_WAIT_S, isolation_level=None)
    try:
        check_content(database)
        # WAL with NORMAL never loses consistency; a power cut may lose the last commits, whose records are sent again.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA temp_store = FILE")
        database.execute("PRAGMA cache_size = -8000")  # KiB; it is read and written in the order of its keys
        database.execute("PRAGMA wal_autocheckpoint = 8000")  # pages; each checkpoint waits for the disk
    except BaseException:
        database.close()
        raise
    return database


def create_schema(database: sqlite3.Connection) -> None:
    database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")


def check_content(database: sqlite3.Connection) -> None:
    """A damage anywhere shows here, before anything is sent; 0.1 s for a million entries.

    Raises LedgerError for a format that this version does not know.
    """
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, FORMAT):
        raise LedgerError(
            f"The ledger was written by another version of this program (format {version}); go on with that version, "
            "or move the ledger away and run with --baseline, which records everything as accepted."
        )
    if missing := _columns_of_schema() - _columns(database):
        raise sqlite3.DatabaseError(f"it has no {min(missing)}")


def _columns(database: sqlite3.Connection) -> frozenset[str]:
    """`runs.status` and so on."""
    rows = database.execute(
        "SELECT tables.name || '.' || columns.name FROM sqlite_master AS tables"
        " JOIN pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
    )
    return frozenset(name for (name,) in rows)


@cache
def _columns_of_schema() -> frozenset[str]:
    with ExitStack() as stack:
        return _columns(memory(stack))


def _checkpoint_and_close(database: sqlite3.Connection) -> None:
    """Close it, as a single file where nobody is reading it."""
    with closing(database), suppress(sqlite3.Error):
        if database.in_transaction:
            database.execute("ROLLBACK")
        database.execute("PRAGMA busy_timeout = 0")
        database.execute("PRAGMA journal_mode = DELETE")


def compact(database: sqlite3.Connection) -> bool:
    """Write the file anew, so that nothing of what was deleted is left in it or beside it. Outside of a transaction.

    Returns whether that is done: others who read the ledger meanwhile keep the old pages beside it.
    """
    (_, _, name) = database.execute("PRAGMA database_list").fetchone()
    folder = str(Path(name).parent).replace("'", "''")
    database.execute(f"PRAGMA temp_store_directory = '{folder}'")  # a copy of all; /tmp may be small
    database.execute("VACUUM")
    (is_busy, _, _) = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy


def _set_aside(path: Path, now: float) -> Path:
    damaged = path.with_name(f"{path.name}.damaged-{int(now)}")
    path.rename(damaged)
    for helper in _helpers(path):
        helper.unlink(missing_ok=True)
    return damaged


def _helpers(path: Path) -> list[Path]:
    """The files that SQLite may keep beside a database."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]


# For those who only read ----------------------------------------------------------------------------------------------


@contextmanager
def read_file(folder: Path) -> Iterator[sqlite3.Connection]:
    """The ledger as its last run left it or has committed so far; an empty one where there is none.

    Makes and changes nothing. Raises LedgerDamagedError, LedgerBusyError, LedgerError.
    """
    path = folder / LEDGER_NAME
    with ExitStack() as stack:
        try:
            database = _connect_to_read(path, stack)
        except sqlite3.OperationalError as error:
            raise _explained(path, error) from error
        except sqlite3.DatabaseError as error:
            raise _damaged(path, error) from error
        except OSError as error:
            raise _not_opened(path, error) from error
        yield database


def _connect_to_read(path: Path, stack: ExitStack) -> sqlite3.Connection:
    _refuse_links(path, *_helpers(path))
    if not path.exists():
        return memory(stack)
    if _would_need_helpers(path):
        return _open_copy(path, stack)
    try:
        return _open_to_read(path, "ro", stack)
    except sqlite3.OperationalError:
        if not _helpers(path)[2].exists():
            raise
        return _open_copy(path, stack)  # a change of the file was cut off by a kill; only a writer can take it back


def _open_copy(path: Path, stack: ExitStack) -> sqlite3.Connection:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="ledger-")))
    for each in (path, *_helpers(path)):
        if each.exists():
            shutil.copyfile(each, folder / each.name)
    return _open_to_read(folder / path.name, "rw", stack)


def _open_to_read(path: Path, mode: str, stack: ExitStack) -> sqlite3.Connection:
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=READERS_WAIT_S, isolation_level=None
    )
    stack.enter_context(closing(database))
    check_content(database)
    database.execute("PRAGMA query_only = ON")
    return database


def memory(stack: ExitStack) -> sqlite3.Connection:
    """An empty ledger without a file."""
    database = stack.enter_context(closing(sqlite3.connect(":memory:", isolation_level=None)))
    create_schema(database)
    return database


def _would_need_helpers(path: Path) -> bool:
    """Whether SQLite would have to make its helper files anew, as after a run that was killed on another machine."""
    with path.open("rb") as file:
        is_in_wal_mode = file.read(_HEADER_BYTES)[18:20] == _WAL_FORMAT
    wal, shm, _ = _helpers(path)
    return is_in_wal_mode and not (wal.exists() and shm.exists())
