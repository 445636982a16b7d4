"""SQLite, read with Python's own module: importing SQLAlchemy takes longer than the whole start of a run without it."""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.source.errors import explained
from pipeline.source.files import DatabaseFile, find_file
from pipeline.source.result import QueryResult, in_blocks

LOCK_TIMEOUT_S = 5.0  # ?timeout=60 in the URL changes it
ROWS_PER_FETCH = 25  # a few at a time, so that large ones are noticed before there are many of them
_EXAMPLES = "sqlite:///users.db, or sqlite:////srv/data/users.db"


@contextmanager
def run_on_sqlite(
    database_url: str, sql: str, query_name: str, root: Path, should_stop: Callable[[], bool], any_bytes: bool
) -> Iterator[QueryResult]:
    with explained("The database can't be reached"):
        database = _open(find_file(database_url, root, "SQLite", _EXAMPLES))
    with closing(database):
        database.set_progress_handler(should_stop, 100_000)
        if any_bytes:
            database.text_factory = operator.methodcaller("decode", "utf-8", "surrogateescape")
        with explained(f"The query in {query_name} can't be run"):
            cursor = database.execute(sql)
        columns = tuple(column for column, *_ in cursor.description or ())
        yield QueryResult(columns, in_blocks(cursor.fetchmany, ROWS_PER_FETCH))


def sqlite_blocks_writers(database_url: str, root: Path) -> bool:
    """Whether others can't write to this SQLite file while its rows are read, as its journal is not a WAL."""
    if not database_url.startswith("sqlite:"):
        return False
    with explained("The database can't be reached"):
        with closing(_open(find_file(database_url, root, "SQLite", _EXAMPLES))) as database:
            (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        return bool(mode != "wal")


def _open(file: DatabaseFile) -> sqlite3.Connection:
    """Read-only."""
    timeout_s = float(file.options.get("timeout", LOCK_TIMEOUT_S))
    address = f"{file.path.absolute().as_uri()}?mode=ro"
    database = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    database.set_authorizer(_refuse_other_files)
    return database


def _refuse_other_files(action: int, *_details: object) -> int:
    """ATTACH and VACUUM INTO create files even on a read-only connection."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK
