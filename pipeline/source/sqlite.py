"""SQLite, read with Python's own module: importing SQLAlchemy takes longer than the whole start of a run without it."""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from pipeline.source.errors import SourceError, explained
from pipeline.source.result import ROWS_PER_BLOCK, QueryResult

LOCK_TIMEOUT_S = 5.0  # ?timeout=60 in the URL changes it


@contextmanager
def run_on_sqlite(
    database_url: str, sql: str, query_name: str, root: Path, should_stop: Callable[[], bool], any_bytes: bool
) -> Iterator[QueryResult]:
    with explained("The database can't be reached"):
        database = _open(*_file(database_url, root))
    with closing(database):
        database.set_progress_handler(should_stop, 100_000)
        if any_bytes:
            database.text_factory = operator.methodcaller("decode", "utf-8", "surrogateescape")
        with explained(f"The query in {query_name} can't be run"):
            cursor = database.execute(sql)
        columns = tuple(column for column, *_ in cursor.description or ())
        yield QueryResult(columns, iter(lambda: cursor.fetchmany(ROWS_PER_BLOCK), []))


def _file(database_url: str, root: Path) -> tuple[Path, dict[str, str]]:
    """The file that the URL names, and its options. A missing file is an error; SQLite by itself would create it."""
    name = database_url.partition(":///")[2]
    database, _, options = name.partition("?")
    if not database or database == ":memory:":
        raise SourceError("DATABASE_URL names no file; write sqlite:///users.db, or sqlite:////srv/data/users.db.")
    spellings = (name, database, unquote(database))  # a ? or a % may be a part of the name
    path = next((path for each in spellings if (path := root / each).exists()), root / database)
    if not path.exists():
        raise SourceError(f"DATABASE_URL names the SQLite file {path}, which does not exist.")
    if not path.is_file():
        raise SourceError(f"DATABASE_URL names {path}, which is not a file.")
    return path, dict(parse_qsl(options))


def _open(path: Path, options: dict[str, str]) -> sqlite3.Connection:
    """An SQLite file, read-only."""
    timeout_s = float(options.get("timeout", LOCK_TIMEOUT_S))
    address = f"{path.absolute().as_uri()}?mode=ro"
    database = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    database.set_authorizer(_refuse_other_files)
    return database


def _refuse_other_files(action: int, *_details: object) -> int:
    """ATTACH and VACUUM INTO create files even on a read-only connection."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK
