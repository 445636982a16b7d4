"""Every database that SQLAlchemy has a dialect for. The drivers are the user's choice, and run in a worker's thread."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.source import postgresql as pg
from pipeline.source.errors import SourceError, explained
from pipeline.source.mysql import bit_converters, forget_rows, identify, keep_times_of_mysql, kill_query, prepare_mysql
from pipeline.source.query import MYSQL
from pipeline.source.result import Block, QueryResult, in_blocks
from pipeline.source.sessions import (
    OPTIONS,
    ROWS_PER_FETCH,
    prepare_cursor,
    prepare_driver,
    prepare_session,
    refuse_bad_drivers,
)
from pipeline.source.worker import Worker

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Engine
    from sqlalchemy.engine import URL

CONNECT_LIMIT_S = 60.0  # for a server that accepts the connection and then says nothing
TUPLE_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # SQLAlchemy's rows take as long as theirs once more


@contextmanager
def run_on_server(
    database_url: str,
    sql: str,
    query_name: str,
    options: Mapping[str, Any],
    should_stop: Callable[[], bool],
    connect_limit_s: float,
) -> Iterator[QueryResult]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what drivers and dialects print about themselves helps nobody here
        session = _Session(Worker("source", should_stop))
        try:
            with explained("The database can't be opened"):  # drivers are imported here, where no signal meets them
                session.worker.run(partial(session.open, database_url, options))
            with explained("The database can't be reached"):
                connection = session.worker.run(session.connect, connect_limit_s)
            with explained(f"The query in {query_name} can't be run"):
                result = session.worker.run(partial(session.execute, connection, sql))
            yield QueryResult(_columns(result), session.blocks(result))
        finally:
            session.close()


class _Session:
    """One connection with one query. All but `cancel` runs in the worker's thread."""

    _engine: Engine

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._connection: Connection | None = None
        self._cursor: Any = None
        self._mysql: tuple[str, int] | None = None
        self._is_read = False
        self._text: Callable[[str], str] = str

    def _note_cursor(self, _connection: object, cursor: Any, *_: object) -> None:
        self._cursor = cursor
        prepare_cursor(self._engine.dialect, cursor)

    def open(self, database_url: str, options: Mapping[str, Any]) -> None:
        self._engine = _make_engine(_parse_url(database_url), options)

    def connect(self) -> Connection:
        self._connection = connection = self._engine.connect()
        backend = connection.dialect.name
        if backend == "postgresql":
            self._text = pg.prepare_postgresql(connection)
        elif backend in MYSQL:
            prepare_mysql(connection)
            self._mysql = identify(connection)
            connection.rollback()
        else:
            if connection.dialect.driver in pg.DRIVERS:
                pg.prepare_relative(connection)
            prepare_session(connection)
        self.worker.cancel = self.cancel
        return connection

    def execute(self, connection: Connection, sql: str) -> CursorResult[Any]:
        from sqlalchemy import event

        event.listen(connection, "before_cursor_execute", self._note_cursor)
        streaming = connection.execution_options(stream_results=True, no_parameters=True)
        return streaming.exec_driver_sql(self._text(sql))

    def blocks(self, result: CursorResult[Any]) -> Iterator[Block]:
        convert = self._converters(result)

        def fetch(call: Callable[[int], Any], count: int) -> Block:
            rows = self.worker.run(partial(_fetch, call, count))
            return convert(rows) if rows else rows

        first: Block = fetch(result.fetchmany, 1)  # which SQLAlchemy has read, to know the columns
        if first:
            yield first
        call: Callable[[int], Any] = result.fetchmany
        if self._engine.dialect.driver in TUPLE_DRIVERS and result.cursor is not None:
            call = result.cursor.fetchmany
        if first:
            yield from in_blocks(partial(fetch, call), ROWS_PER_FETCH)
        self._is_read = True

    def _converters(self, result: CursorResult[Any]) -> Callable[[Block], Block]:
        description = result.cursor.description if result.cursor is not None else None
        found = bit_converters(description or ()) if self._mysql else {}
        return partial(_convert, found) if found else lambda rows: rows

    def cancel(self) -> None:
        """End what the server does for this connection, by whichever way the driver has."""
        if self._mysql is not None:
            kill_query(self._engine, *self._mysql)
            return
        raw = self._connection.connection.driver_connection if self._connection is not None else None
        job = getattr(self._cursor, "query_job", None)  # BigQuery's
        ways = [(job, "cancel"), (self._cursor, "cancel_operation"), (self._cursor, "cancel"), (raw, "cancel")]
        for thing, name in ways:
            if (cancel := getattr(thing, name, None)) is not None:
                cancel()
                return

    def close(self) -> None:
        if self._mysql is not None and not self._is_read and not self.worker.is_stuck:
            self.worker.end(self.cancel)  # or closing would read all rows that are left
        self.worker.close(self._close)

    def _close(self) -> None:
        if self._connection is None:
            return
        with suppress(Exception):
            if not self._is_read and self._engine.dialect.driver == "pymysql":
                forget_rows(self._cursor, self._connection.connection.driver_connection)
        with suppress(Exception):
            self._cursor.close()
        with suppress(Exception):
            self._connection.close()
        with suppress(Exception):
            self._engine.dispose()


def _fetch(call: Callable[[int], Any], count: int) -> Block:
    rows = call(count)
    return rows if not rows or type(rows[0]) is tuple else [tuple(row) for row in rows]


def _convert(converters: Mapping[int, Callable[[Any], Any]], rows: Block) -> Block:
    columns: list[Any] = list(zip(*rows, strict=True))
    for index, convert in converters.items():
        columns[index] = map(convert, columns[index])
    return list(zip(*columns, strict=True))


def _make_engine(url: URL, options: Mapping[str, Any]) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    refuse_bad_drivers(url)
    backend = url.get_backend_name()
    ours = pg.OPTIONS if url.get_driver_name() in pg.DRIVERS else OPTIONS.get(backend, {})
    engine = create_engine(url, poolclass=NullPool, connect_args={**ours, **options})
    prepare_driver(engine)
    keep_times_of_mysql(engine)
    return engine


def _parse_url(database_url: str) -> URL:
    from sqlalchemy.engine import make_url

    try:
        return make_url(database_url)
    except Exception:  # the text of the error may quote the URL, and so the password
        raise SourceError(
            "DATABASE_URL is not a valid URL; expected, for example, sqlite:///users.db or "
            "postgresql+psycopg://user:password@host/name."
        ) from None


def _columns(result: CursorResult[Any]) -> tuple[str, ...]:
    return tuple(result.keys()) if result.returns_rows else ()
