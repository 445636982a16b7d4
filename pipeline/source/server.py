"""Every database that SQLAlchemy has a dialect for. The drivers are the user's choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.source.errors import SourceError, explained
from pipeline.source.query import MYSQL
from pipeline.source.result import Block, QueryResult, in_blocks
from pipeline.source.unreadable import keep_times_of_mysql, keep_times_of_postgresql

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.engine import URL

ROWS_PER_FETCH = 1000  # at most; each fetch is a round trip to the server
TUPLE_DRIVERS = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # SQLAlchemy's rows take as long as theirs once more


@contextmanager
def run_on_server(database_url: str, sql: str, query_name: str) -> Iterator[QueryResult]:
    from sqlalchemy import create_engine

    url = _parse_url(database_url)
    with explained("The database can't be opened"):
        engine = create_engine(url)
        keep_times_of_mysql(engine)
    try:
        with explained("The database can't be reached"):
            connection = engine.connect()
        with connection:
            with explained(f"The query in {query_name} can't be run"):
                _prepare(connection)
                result = connection.execution_options(stream_results=True, no_parameters=True).exec_driver_sql(sql)
            with closing(result):
                yield QueryResult(_columns(result), _blocks(result, engine.dialect.driver))
    finally:
        engine.dispose()


def _blocks(result: CursorResult[Any], driver: str) -> Iterator[Block]:
    def fetch(count: int) -> Block:
        return [tuple(row) for row in result.fetchmany(count)]

    if driver not in TUPLE_DRIVERS:
        yield from in_blocks(fetch, ROWS_PER_FETCH)
        return
    first = fetch(1)  # which SQLAlchemy has read, to know the columns
    if first:
        yield first
    if result.cursor is not None:
        yield from in_blocks(result.cursor.fetchmany, ROWS_PER_FETCH)


def _parse_url(database_url: str) -> URL:
    from sqlalchemy.engine import make_url

    try:
        return make_url(database_url)
    except Exception:  # the text of the error may quote the URL, and so the password
        raise SourceError(
            "DATABASE_URL is not a valid URL; expected, for example, sqlite:///users.db or "
            "postgresql+psycopg://user:password@host/name."
        ) from None


def _prepare(connection: Connection) -> None:
    """Make the session read-only where the database has a way to say so; elsewhere nothing is ever committed."""
    backend = connection.dialect.name
    if backend == "postgresql":
        connection.execution_options(postgresql_readonly=True)
        # :since is in UTC. Local to the transaction, so that a pool's next session does not inherit it.
        connection.exec_driver_sql("SET LOCAL TimeZone TO 'UTC'")
    elif backend in MYSQL:
        connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
        connection.rollback()
    keep_times_of_postgresql(connection)


def _columns(result: CursorResult[Any]) -> tuple[str, ...]:
    return tuple(result.keys()) if result.returns_rows else ()
