"""Every database that SQLAlchemy has a dialect for. The drivers are the user's choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.source.errors import SourceError, explained
from pipeline.source.query import MYSQL
from pipeline.source.result import ROWS_PER_BLOCK, QueryResult

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult
    from sqlalchemy.engine import URL

ROWS_PER_FETCH = 1000


@contextmanager
def run_on_server(database_url: str, sql: str, query_name: str) -> Iterator[QueryResult]:
    from sqlalchemy import create_engine

    url = _parse_url(database_url)
    with explained("The database can't be opened"):
        engine = create_engine(url)
    try:
        with explained("The database can't be reached"):
            connection = engine.connect()
        with connection:
            with explained(f"The query in {query_name} can't be run"):
                _forbid_writing(connection)
                result = connection.execution_options(yield_per=ROWS_PER_FETCH, no_parameters=True).exec_driver_sql(sql)
            with closing(result):
                # Without its size, a partition is all rows on PostgreSQL: SQLAlchemy does not heed yield_per here, for
                # SQL as text.
                blocks = ([tuple(row) for row in block] for block in result.partitions(ROWS_PER_BLOCK))
                yield QueryResult(_columns(result), blocks)
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
