"""DuckDB, read with its own module: a database file, read-only, or Parquet, CSV and JSON files that a query names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from pipeline.source.errors import SourceError, explained
from pipeline.source.files import DatabaseFile, find_file
from pipeline.source.result import Block, QueryResult, in_blocks
from pipeline.source.unreadable import unreadable_time
from pipeline.source.worker import Worker

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_PER_FETCH = 1000
MEMORY = Path(":memory:")
MAGIC = b"DUCK"  # at byte 8 of each DuckDB file
_EXAMPLES = "duckdb:///warehouse.duckdb, duckdb:////srv/warehouse.duckdb, or duckdb:///:memory: to query files"
_MOMENTS = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE")


@contextmanager
def run_on_duckdb(
    database_url: str, sql: str, query_name: str, root: Path, should_stop: Callable[[], bool]
) -> Iterator[QueryResult]:
    # The folder is for what a large sort spills; by itself, DuckDB would leave it in the working directory.
    with TemporaryDirectory(prefix="duckdb-") as folder:
        with explained("The database can't be reached"):
            connection = _connect(_find(database_url, root), folder, root)
        worker = Worker("duckdb", should_stop)
        worker.cancel = connection.interrupt
        with _closed_by(worker, connection):
            with explained(f"The query in {query_name} can't be run"):
                _refuse_all_but_select(connection, sql, query_name)
                columns = worker.run(partial(_describe, connection, sql))
                worker.run(partial(connection.execute, _readable(sql, columns)))
            fetch = partial(_fetch, worker, connection, columns)
            yield QueryResult(tuple(column.name for column in columns), in_blocks(fetch, ROWS_PER_FETCH))


@contextmanager
def _closed_by(worker: Worker, connection: DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    finally:
        worker.close(connection.close)


def _find(database_url: str, root: Path) -> DatabaseFile:
    name, _, options = database_url.partition("?")
    if name == f"duckdb:///{MEMORY}":
        return DatabaseFile(MEMORY, dict(parse_qsl(options)))
    file = find_file(database_url, root, "DuckDB", _EXAMPLES)
    with file.path.open("rb") as opened:  # by itself, DuckDB would want to install an extension for SQLite's
        if opened.read(12)[8:] != MAGIC:
            raise SourceError(f"DATABASE_URL names {file.path}, which is not a DuckDB file.")
    return file


def _connect(file: DatabaseFile, spill_folder: str, root: Path) -> DuckDBPyConnection:
    import duckdb

    config: dict[str, Any] = {
        "temp_directory": spill_folder,
        **file.options,
        "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false",  # a table's name must not find one of this program's variables
    }
    connection = duckdb.connect(str(file.path), read_only=file.path != MEMORY, config=config)
    connection.execute("SET file_search_path = ?", [str(root)])
    connection.execute("SET TimeZone = 'UTC'")  # which is what :since is in; by itself, it is the machine's
    connection.execute("SET enable_progress_bar = false")  # it would be written to stdout
    connection.execute("SET lock_configuration = true")
    return connection


def _refuse_all_but_select(connection: DuckDBPyConnection, sql: str, query_name: str) -> None:
    """COPY writes files and ATTACH makes them, also where the database is read-only."""
    import duckdb

    kinds = [statement.type for statement in connection.extract_statements(sql)]
    if kinds != [duckdb.StatementType.SELECT]:
        raise SourceError(f"The query in {query_name} can't be run: it must be one SELECT.")


# From DuckDB's values to Python's -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    name: str
    type: str


def _describe(connection: DuckDBPyConnection, sql: str) -> list[_Column]:
    described = connection.execute(f"DESCRIBE {sql}").fetchall()
    return [_Column(name, type_) for name, type_, *_ in described]


def _readable(sql: str, columns: Sequence[_Column]) -> str:
    """The query, with one more column: for rows with times that Python lacks a list of these as text, else NULL.

    DuckDB gives infinity as the last day of the year 9999, which may also be meant. And it needs pytz, or a database of
    time zones, for times with a zone, so these come as they are in UTC.
    """
    names = [f"c{number}" for number in range(len(columns))]
    odd = {name: _odd(name, column.type) for name, column in zip(names, columns, strict=True)}
    values = [
        f"CAST({name} AS TIMESTAMP)" if column.type == "TIMESTAMP WITH TIME ZONE" else name
        for name, column in zip(names, columns, strict=True)
    ]
    texts = [f"CASE WHEN {condition} THEN CAST({name} AS VARCHAR) END" for name, condition in odd.items()]
    marks = f"CASE WHEN {' OR '.join(odd.values())} THEN [{', '.join(texts)}] END"
    return f"SELECT {', '.join([*values, marks])} FROM ({sql}\n) AS query({', '.join(names)})"  # noqa: S608


def _odd(name: str, type_: str) -> str:
    """The condition in SQL under which Python has no value for it."""
    if type_ in _MOMENTS:
        return f"NOT isfinite({name}) OR year({name}) NOT BETWEEN 1 AND 9999"
    if type_ == "TIME":
        return f"{name} = TIME '24:00:00'"
    return "false"


def _fetch(worker: Worker, connection: DuckDBPyConnection, columns: Sequence[_Column], count: int) -> Block:
    rows = worker.run(partial(connection.fetchmany, count))
    if not rows:
        return []
    *values, marks = map(list, zip(*rows, strict=True))
    for index, column in enumerate(columns):
        if column.type in _CONVERTED:
            values[index] = list(map(_CONVERTED[column.type], values[index]))
    for row, texts in enumerate(marks):
        for index, text in enumerate(texts or ()):
            if text is not None:
                values[index][row] = unreadable_time(text)
    return list(zip(*values, strict=True))


def _in_utc(moment: Any) -> Any:
    return moment.replace(tzinfo=timezone.utc) if isinstance(moment, datetime) else moment


def _parsed(text: str | None) -> Any:
    return None if text is None else json.loads(text)


_CONVERTED: dict[str, Callable[[Any], Any]] = {"TIMESTAMP WITH TIME ZONE": _in_utc, "JSON": _parsed}
