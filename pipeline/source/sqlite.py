"""SQLite, read with Python's own module: importing SQLAlchemy takes longer than the whole start of a run without it."""

from __future__ import annotations

import operator
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path

from pipeline.source.errors import SourceBusyError, SourceError, explained
from pipeline.source.files import DatabaseFile, find_file
from pipeline.source.result import Block, QueryResult, in_blocks

LOCK_TIMEOUT_S = 5.0  # ?timeout=60 in the URL changes it
ROWS_PER_FETCH = 25  # a few at a time, so that large ones are noticed before there are many of them
_EXAMPLES = "sqlite:///users.db, or sqlite:////srv/data/users.db"


@contextmanager
def run_on_sqlite(
    database_url: str, sql: str, query_name: str, root: Path, should_stop: Callable[[], bool], any_bytes: bool
) -> Iterator[QueryResult]:
    with explained("The database can't be reached"):
        file = find_file(database_url, root, "SQLite", _EXAMPLES)
        way = _way_to_open(file.path)
        before = _state(file.path)
        database = _open(file, way)
    with closing(database):
        database.set_progress_handler(should_stop, 100_000)
        if any_bytes:
            database.text_factory = operator.methodcaller("decode", "utf-8", "surrogateescape")
        with explained(f"The query in {query_name} can't be run"):
            cursor = database.execute(sql)
        columns = tuple(column for column, *_ in cursor.description or ())
        blocks = in_blocks(cursor.fetchmany, ROWS_PER_FETCH)
        if way is _Way.UNLOCKED:
            blocks = _unless_changed(blocks, file.path, before)
        yield QueryResult(columns, blocks)


def advice_for_writers(database_url: str, root: Path) -> str | None:
    """What to do about a file to which others can't write while its rows are read; None where they can."""
    if not database_url.startswith("sqlite:"):
        return None
    with explained("The database can't be reached"):
        path = find_file(database_url, root, "SQLite", _EXAMPLES).path
        if _is_wal(path):
            return None
        if _is_ours(path):
            return "PRAGMA journal_mode=WAL, run once on it, changes that"
    return "let a run read a copy of it, or run when nobody writes"


class _Way(Enum):
    """How a file is opened, so that reading it leaves nothing behind that was not there."""

    READ_ONLY = "mode=ro"
    OWN = "mode=rw"  # the WAL and its index, which SQLite makes for reading, go when it is closed
    UNLOCKED = "mode=ro&immutable=1"  # no lock and no other file; a change meanwhile has to be noticed


def _way_to_open(path: Path) -> _Way:
    """A file with a WAL is read by way of two more files. Another user's program could not write to ours."""
    if not _is_wal(path):
        return _Way.READ_ONLY
    wal, index = (Path(f"{path}-{suffix}") for suffix in ("wal", "shm"))
    if wal.exists() and index.exists():
        return _Way.READ_ONLY
    if _is_ours(path):
        return _Way.OWN
    if wal.exists() and wal.stat().st_size > 0:
        raise SourceError(
            f"{path} has changes in {wal.name} that can't be read without writing beside it; open it once with the "
            "program that it belongs to, or run this job as the file's owner."
        )
    return _Way.UNLOCKED


def _is_wal(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\2\2"


def _is_ours(path: Path) -> bool:
    """Whether files that this process makes beside it are the owner's, too."""
    is_owner = not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()
    return is_owner and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unless_changed(blocks: Iterator[Block], path: Path, before: tuple[int, ...]) -> Iterator[Block]:
    """The rows, which without a lock may be of two states, unless the file is at the end what it was before."""
    for block in blocks:
        yield block
        if _state(path) != before:
            break
    else:
        if _state(path) == before:
            return
    raise SourceBusyError(f"{path.name} was written to while it was read, so its rows may not fit together.")


def _open(file: DatabaseFile, way: _Way) -> sqlite3.Connection:
    timeout_s = float(file.options.get("timeout", LOCK_TIMEOUT_S))
    address = f"{file.path.absolute().as_uri()}?{way.value}"
    database = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    database.execute("PRAGMA query_only = ON")
    database.set_authorizer(_allow_reading)
    return database


_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
# Of a table, in a SELECT: pragma_table_info('users'). The last one is asked for by full-text search.
_LOOKS = ("table_info", "table_xinfo", "index_list", "index_info", "index_xinfo", "foreign_key_list", "data_version")


def _allow_reading(action: int, name: object, *_details: object) -> int:
    """ATTACH and VACUUM INTO create files even on a read-only connection, and the job may be the file's owner."""
    is_look = action == sqlite3.SQLITE_PRAGMA and name in _LOOKS
    # What SQLite says of a virtual table that is there; it writes nothing, which `query_only` would not let it.
    is_declaration = action == sqlite3.SQLITE_UPDATE and name == "sqlite_master"
    return sqlite3.SQLITE_OK if action in _READING or is_look or is_declaration else sqlite3.SQLITE_DENY
