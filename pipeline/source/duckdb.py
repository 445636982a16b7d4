"""DuckDB, read with its own module: a database file, read-only, or Parquet, CSV and JSON files that a query names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from pipeline.model.records import Unreadable
from pipeline.source.errors import SourceError, explained
from pipeline.source.files import DatabaseFile, find_file
from pipeline.source.result import Block, QueryResult, in_blocks
from pipeline.source.unreadable import parse_json, shortest_float, unreadable_time
from pipeline.source.worker import Worker

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_PER_FETCH = 1000
LONGEST_INTERVAL_S = 8.6e13  # of Python's
MEMORY = Path(":memory:")
MOTHERDUCK = "duckdb:///md:"  # DuckDB's own service
MAGIC = b"DUCK"  # at byte 8 of each DuckDB file
_EXAMPLES = "duckdb:///warehouse.duckdb, duckdb:////srv/warehouse.duckdb, or duckdb:///:memory: to query files"
_MOMENTS = ("date", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone")

_Convert = Callable[[Any], Any]


@contextmanager
def run_on_duckdb(
    database_url: str,
    sql: str,
    query_name: str,
    root: Path,
    should_stop: Callable[[], bool],
    connect_limit_s: float,
) -> Iterator[QueryResult]:
    worker = Worker("duckdb", should_stop)
    with _connected(worker, database_url, root, connect_limit_s) as connection:
        with explained(f"The query in {query_name} can't be run"):
            columns = worker.run(partial(_describe, connection, sql, query_name))
            worker.run(partial(connection.execute, _readable(sql, columns)))
        found = {index: _converter(column.type) for index, column in enumerate(columns)}
        converters = {index: convert for index, convert in found.items() if convert}
        fetch = partial(_fetch, worker, connection, converters)
        yield QueryResult(tuple(column.name for column in columns), in_blocks(fetch, ROWS_PER_FETCH))


@contextmanager
def _connected(worker: Worker, database_url: str, root: Path, limit_s: float) -> Iterator[DuckDBPyConnection]:
    """All is done in the worker's thread: MotherDuck may be slow, and a signal's exception aborts DuckDB's import."""
    close: Callable[[], object] = bool
    # The folder is for what a large sort spills; by itself, DuckDB would leave it in the working directory.
    with TemporaryDirectory(prefix="duckdb-", ignore_cleanup_errors=True) as folder:
        try:
            with explained("The database can't be reached"):
                connection = worker.run(partial(_connect, _find(database_url, root), folder, root), limit_s)
            worker.cancel, close = connection.interrupt, connection.close
            yield connection
        finally:
            worker.close(close)


def _find(database_url: str, root: Path) -> DatabaseFile:
    name, _, options = database_url.partition("?")
    if name == f"duckdb:///{MEMORY}":
        return DatabaseFile(MEMORY, dict(parse_qsl(options)))
    if name.startswith(MOTHERDUCK):
        return DatabaseFile(Path(name.removeprefix("duckdb:///")), dict(parse_qsl(options)))
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
    is_file = file.path != MEMORY and not str(file.path).startswith("md:")
    connection = duckdb.connect(str(file.path), read_only=is_file, config=config)
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
    type: Any  # DuckDB's own, with the types of its parts


def _describe(connection: DuckDBPyConnection, sql: str, query_name: str) -> list[_Column]:
    _refuse_all_but_select(connection, sql, query_name)
    described = connection.execute(f"DESCRIBE {sql}").fetchall()
    return [_Column(name, _type(connection, type_)) for name, type_, *_ in described]


def _type(connection: DuckDBPyConnection, text: str) -> Any:
    try:
        return connection.type(text)
    except Exception:  # one that can't be written down: its values are taken as they come
        return connection.type("VARCHAR")


def _readable(sql: str, columns: Sequence[_Column]) -> str:
    """The query, with one more column: for rows with times that Python lacks a list of these as text, else NULL.

    DuckDB gives infinity as the last day of the year 9999, which may also be meant, and raises for years after that.
    And it needs pytz, or a database of time zones, for times with a zone, so these come as they are in UTC.
    """
    names = [f"c{number}" for number in range(len(columns))]
    odd = {name: _odd(name, column.type) for name, column in zip(names, columns, strict=True)}
    values = []
    for name, column in zip(names, columns, strict=True):
        plain = _without_zones(column.type)
        value = name if plain == str(column.type) else f"CAST({name} AS {plain})"
        raises = column.type.id in _RAISING and odd[name] != "false"
        values.append(f"CASE WHEN {odd[name]} THEN NULL ELSE {value} END" if raises else value)
    texts = [f"CASE WHEN {condition} THEN CAST({name} AS VARCHAR) END" for name, condition in odd.items()]
    marks = f"CASE WHEN {' OR '.join(odd.values())} THEN [{', '.join(texts)}] END"
    return f"SELECT {', '.join([*values, marks])} FROM ({sql}\n) AS query({', '.join(names)})"  # noqa: S608


_RAISING = ("list", "array", "struct", "map", "interval")  # whose odd values must not come at all


def _odd(name: str, type_: Any, depth: int = 0) -> str:
    """The condition in SQL under which Python has no value for it, or for a part of it."""
    if type_.id in _MOMENTS:
        return f"NOT isfinite({name}) OR year({name}) NOT BETWEEN 1 AND 9999"
    if type_.id == "time":
        return f"{name} = TIME '24:00:00'"
    if type_.id == "interval":
        return f"abs(epoch({name})) > {LONGEST_INTERVAL_S}"
    if type_.id == "struct":
        parts = [_odd(f'({name})."{_doubled(field)}"', part, depth) for field, part in type_.children]
    elif type_.id == "map":
        parts = [_odd_in(f"map_{kind}s({name})", part, depth) for kind, part in type_.children]
    elif type_.id == "union":
        of_member = [
            (f"union_extract({name}, '{tag.replace(chr(39), chr(39) * 2)}')", part) for tag, part in type_.children
        ]
        parts = [_odd(member, part, depth) for member, part in of_member[1:]]  # the first one is the tag
    elif type_.id in ("list", "array"):
        parts = [_odd_in(name, type_.children[0][1], depth)]
    else:
        return "false"
    return " OR ".join(f"coalesce({part}, false)" for part in parts if part != "false") or "false"


def _odd_in(values: str, type_: Any, depth: int) -> str:
    part = _odd(f"x{depth}", type_, depth + 1)
    return part if part == "false" else f"len(list_filter({values}, lambda x{depth}: {part})) > 0"


def _doubled(name: str) -> str:
    return name.replace('"', '""')


def _without_zones(type_: Any) -> str:
    """TIMESTAMP WITH TIME ZONE[] -> TIMESTAMP[]"""
    if type_.id == "timestamp with time zone":
        return "TIMESTAMP"
    if type_.id == "list":
        return f"{_without_zones(type_.children[0][1])}[]"
    if type_.id == "array":
        return f"{_without_zones(type_.children[0][1])}[{type_.children[1][1]}]"
    if type_.id == "struct":
        parts = [f'"{_doubled(field)}" {_without_zones(part)}' for field, part in type_.children]
        return f"STRUCT({', '.join(parts)})"
    if type_.id == "map":
        return f"MAP({', '.join(_without_zones(part) for _, part in type_.children)})"
    return str(type_)


def _fetch(worker: Worker, connection: DuckDBPyConnection, converters: Mapping[int, _Convert], count: int) -> Block:
    rows = worker.run(partial(connection.fetchmany, count))
    if not rows:
        return []
    *values, marks = map(list, zip(*rows, strict=True))
    for index, convert in converters.items():
        values[index] = [None if value is None else convert(value) for value in values[index]]
    for row, texts in enumerate(marks):
        for index, text in enumerate(texts or ()):
            if text is not None:
                values[index][row] = _unreadable(text)
    return list(zip(*values, strict=True))


def _unreadable(text: str) -> Unreadable:
    if text[:1] in "[{":
        return Unreadable(text, "holds a time that can't be sent: infinity, or not of the years 1 to 9999")
    return unreadable_time(text)


def _converter(type_: Any) -> _Convert | None:
    """What makes of a value, which is not NULL, the one that PostgreSQL would give; None: it is that already."""
    if str(type_) == "JSON":
        return parse_json
    if type_.id in _CONVERTED:
        return _CONVERTED[type_.id]
    if type_.id in ("list", "array"):
        return _each(_converter(type_.children[0][1]))
    if type_.id == "struct":
        return _by_name({name: found for name, part in type_.children if (found := _converter(part))})
    if type_.id == "map":
        return _map_of(*(_converter(part) for _, part in type_.children))
    return None


def _each(convert: _Convert | None) -> _Convert | None:
    return convert and (lambda values: [None if value is None else convert(value) for value in values])


def _by_name(converters: Mapping[str, _Convert]) -> _Convert | None:
    def convert(struct: Any) -> Any:
        found = {name: each(struct[name]) for name, each in converters.items() if struct[name] is not None}
        return {**struct, **found}

    return convert if converters else None


def _map_of(key: _Convert | None, value: _Convert | None) -> _Convert | None:
    def convert(found: Any) -> Any:
        return {
            (key(each) if key else each): (value(part) if value and part is not None else part)
            for each, part in found.items()
        }

    return convert if key or value else None


def _in_utc(moment: Any) -> Any:
    return moment.replace(tzinfo=timezone.utc) if isinstance(moment, datetime) else moment


_CONVERTED: dict[str, _Convert] = {"timestamp with time zone": _in_utc, "float": shortest_float}
