"""A database URL and a query -> rows, streamed. Reads only, changes nothing, and knows nothing of Iterable.

SQLite is read with Python's own module, and every other database through SQLAlchemy, whose import takes longer than the
whole start of a run without it.
"""

from __future__ import annotations

import operator
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

from pipeline.ending import ExitCode, RunError

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.engine import URL

ROWS_PER_FETCH = 1000  # from a server
ROWS_PER_BLOCK = 100  # handed on; of more, the processor's cache forgets the first before the last are dealt with
MAX_QUOTED_CHARS = 500
LOCK_TIMEOUT_S = 5.0  # of SQLite; ?timeout=60 in the URL changes it
MYSQL = ("mysql", "mariadb")
PACKAGES = {"MySQLdb": "mysqlclient", "psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}  # by module
DIALECTS = {"snowflake": "snowflake-sqlalchemy", "bigquery": "sqlalchemy-bigquery"}  # by the URL's beginning

Row = dict[str, Any]


class SourceError(RunError):
    """The database or the query can't be read; the text says which and why."""

    code = ExitCode.NO_INPUT


class UndecodableText(SourceError):
    """A text in SQLite is no UTF-8. The query can be run again with `any_bytes`."""


@dataclass(frozen=True)
class QueryResult:
    """The columns, in the query's order, and the rows, which can be taken once."""

    columns: tuple[str, ...]
    rows: Iterator[Row]


@contextmanager
def open_query(
    database_url: str,
    query_file: Path,
    *,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    any_bytes: bool = False,
) -> Iterator[QueryResult]:
    """Run the query in `query_file` and stream its rows; the database is left when the block ends.

    root: the folder that a relative SQLite path starts from. should_stop: asked while SQLite works; True ends the
    query. any_bytes: let bytes in SQLite that are no UTF-8 come through as lone surrogates, which refuse their row
    alone; it takes nearly twice as long. Raises SourceError.
    """
    backend = re.split(r"[+:]", database_url, maxsplit=1)[0]
    sql = _read_query(query_file, backend)
    if backend == "sqlite":
        running = _run_on_sqlite(database_url, sql, query_file.name, root, should_stop, any_bytes)
    else:
        running = _run_on_server(database_url, sql, query_file.name)
    with running as (columns, blocks):
        _check_columns(columns, query_file.name)
        yield QueryResult(columns, _stream(blocks, columns, query_file.name))


def _read_query(path: Path, backend: str) -> str:
    try:
        sql = path.read_text(encoding="utf-8-sig").strip().rstrip(";").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The query file {path} can't be read ({type(error).__name__}).") from error
    bare = (_NO_CODE_IN_MYSQL if backend in MYSQL else _NO_CODE).sub(" ", sql)
    if not bare.strip(" \t\r\n;"):
        raise SourceError(f"The query file {path} holds no query.")
    if ";" in bare.rstrip(" \t\r\n;"):
        raise SourceError(f"The query file {path} holds more than one statement; leave just one SELECT in it.")
    if backend in MYSQL and "||" in bare:
        raise SourceError(f"The query file {path} has ||, which means OR in MySQL; write CONCAT_WS(' ', a, b) instead.")
    return sql


# Comments, and what stands in quotes: "name", `name`, 'text', PostgreSQL's E'text' with backslashes and $tag$text$tag$.
# A doubled quote looks like two texts in a row.
_COMMON = r"--[^\n]*|/\*.*?\*/|`[^`]*`|\$(\w*)\$.*?\$\1\$"
_NO_CODE = re.compile(rf"{_COMMON}|\b[eE]'(?:[^'\\]|\\.)*'|'[^']*'|\"[^\"]*\"", re.DOTALL)
# MySQL has backslashes in both kinds of quotes, and comments after #.
_NO_CODE_IN_MYSQL = re.compile(rf"{_COMMON}|#[^\n]*|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


def _check_columns(columns: tuple[str, ...], query_name: str) -> None:
    if not columns:
        raise SourceError(f"The query in {query_name} returns no rows; it must be a SELECT.")
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise SourceError(
            f"The query in {query_name} has more than one column named {', '.join(doubled)}; rename them with AS."
        )


_Running = Iterator[tuple[tuple[str, ...], Iterator[Sequence[Any]]]]  # the columns, and the rows in blocks


def _stream(blocks: Iterator[Sequence[Any]], columns: tuple[str, ...], query_name: str) -> Iterator[Row]:
    with _explained(f"The query in {query_name} failed while its rows were read"):
        for block in blocks:
            for row in block:
                yield dict(zip(columns, row))  # noqa: B905 - a check that takes time, and a row is as wide as its head


# SQLite ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _run_on_sqlite(
    database_url: str, sql: str, query_name: str, root: Path, should_stop: Callable[[], bool], any_bytes: bool
) -> _Running:
    with _explained("The database can't be reached"):
        database = _open_sqlite(*_sqlite_file(database_url, root))
    with closing(database):
        database.set_progress_handler(should_stop, 100_000)
        if any_bytes:
            database.text_factory = operator.methodcaller("decode", "utf-8", "surrogateescape")
        with _explained(f"The query in {query_name} can't be run"):
            cursor = database.execute(sql)
        columns = tuple(column for column, *_ in cursor.description or ())
        yield columns, iter(lambda: cursor.fetchmany(ROWS_PER_BLOCK), [])


def _sqlite_file(database_url: str, root: Path) -> tuple[Path, dict[str, str]]:
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


def _open_sqlite(path: Path, options: dict[str, str]) -> sqlite3.Connection:
    """An SQLite file, read-only."""
    timeout_s = float(options.get("timeout", LOCK_TIMEOUT_S))
    address = f"{path.absolute().as_uri()}?mode=ro"
    database = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None)
    database.set_authorizer(_refuse_other_files)
    return database


def _refuse_other_files(action: int, *_details: object) -> int:
    """ATTACH and VACUUM INTO create files even on a read-only connection."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


# Other databases ------------------------------------------------------------------------------------------------------


@contextmanager
def _run_on_server(database_url: str, sql: str, query_name: str) -> _Running:
    from sqlalchemy import create_engine

    url = _parse_url(database_url)
    with _explained("The database can't be opened"):
        engine = create_engine(url)
    try:
        with _explained("The database can't be reached"):
            connection = engine.connect()
        with connection:
            with _explained(f"The query in {query_name} can't be run"):
                _forbid_writing(connection)
                result = connection.execution_options(yield_per=ROWS_PER_FETCH, no_parameters=True).exec_driver_sql(sql)
            with closing(result):
                # Without its size, a partition is all rows on PostgreSQL: SQLAlchemy does not heed yield_per here, for
                # SQL as text.
                yield _columns(result), result.partitions(ROWS_PER_BLOCK)
    finally:
        engine.dispose()


def _parse_url(database_url: str) -> URL:
    from sqlalchemy.engine import make_url

    try:
        return make_url(database_url)
    except Exception:  # the text of the error may quote the URL, and so the password
        raise SourceError(
            "DATABASE_URL can't be read; it must look like sqlite:///users.db or "
            "postgresql+psycopg://user:password@host/name."
        ) from None


def _forbid_writing(connection: Connection) -> None:
    """Make the session read-only where the database has a way to say so; elsewhere nothing is ever committed."""
    backend = connection.dialect.name
    if backend == "postgresql":
        connection.execution_options(postgresql_readonly=True)
    elif backend in MYSQL:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.rollback()


def _columns(result: CursorResult[Any]) -> tuple[str, ...]:
    return tuple(result.keys()) if result.returns_rows else ()


# What went wrong ------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever a driver or SQLAlchemy raises into a SourceError of one line, without a copy of the whole query."""
    try:
        yield
    except SourceError:
        raise
    except sqlite3.Error as error:
        if "Could not decode to UTF-8" in str(error):  # and the text itself, which is no matter for a log
            raise UndecodableText(f"{what}: a text is no UTF-8.") from error
        raise SourceError(f"{what}: {_one_line(error)}.") from error
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise SourceError(f"{what}: its driver is not installed; run: pip install {package}") from error
    except Exception as error:  # drivers raise TypeError for options they don't know, ValueError for odd dates
        raise SourceError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError

    if isinstance(error, DBAPIError):
        return f"{_one_line(error.orig)}."
    if not isinstance(error, NoSuchModuleError):
        return f"{type(error).__name__}: {_one_line(error)}."
    package = DIALECTS.get(str(error).rpartition(":")[2].partition(".")[0])
    if package is not None:
        return f"its driver is not installed; run: pip install {package}"
    return (
        "DATABASE_URL names an unknown kind of database; it begins, for example, with sqlite:///, "
        "postgresql+psycopg:// or mysql+pymysql://."
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:MAX_QUOTED_CHARS].rstrip(".")
