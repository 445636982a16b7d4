"""A database URL and a query -> rows, streamed. Reads only, changes nothing, and knows nothing of Iterable.

`query` reads the query's file, and `select_only` refuses what would change anything. `sqlite`, `duckdb` and, for all
other databases, `server` run it; `postgresql`, `mysql` and `sessions` have what each server is told first. `worker` is
the thread in which drivers block. `unreadable` keeps values that Python lacks from ending the query; `errors` says what
went wrong, and `temporary` whether it passes. Imports `pipeline.model` alone; only drivers run beside the main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.source.duckdb import run_on_duckdb
from pipeline.source.errors import SourceBusyError, SourceError, UndecodableText, explained
from pipeline.source.query import Query, read_query
from pipeline.source.result import Block, QueryResult
from pipeline.source.select_only import refuse_all_but_select
from pipeline.source.server import CONNECT_LIMIT_S, run_on_server
from pipeline.source.sqlite import advice_for_writers, run_on_sqlite
from pipeline.source.worker import QueryStopped

__all__ = [
    "Block",
    "Query",
    "QueryResult",
    "SourceBusyError",
    "SourceError",
    "UndecodableText",
    "advice_for_writers",
    "open_query",
    "read_query",
]


@contextmanager
def open_query(
    database_url: str,
    query: Query,
    *,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    any_bytes: bool = False,
    since: datetime | None = None,
    options: Mapping[str, Any] | None = None,
    connect_limit_s: float = CONNECT_LIMIT_S,
) -> Iterator[QueryResult]:
    """Run the query and stream its rows; the database is left when the block ends.

    root: the folder that relative paths start from. should_stop: asked while the database works; True ends the query
    within two seconds, as does whatever a signal's handler raises. any_bytes: let bytes in SQLite that are not UTF-8
    come through as lone surrogates, which refuse their row alone; it takes nearly twice as long. since: takes the
    place of :since, needs an offset, and must be given where the query uses it. options: for the driver of a server.
    Raises SourceError, or SourceBusyError for what a later run may not meet.
    """
    sql = query.sql(since)
    if query.backend == "sqlite":
        running = run_on_sqlite(database_url, sql, query.name, root, should_stop, any_bytes)
    elif query.backend == "duckdb":
        running = run_on_duckdb(database_url, sql, query.name, root, should_stop, connect_limit_s)
    else:
        refuse_all_but_select(sql, query.backend, query.name)
        running = run_on_server(database_url, sql, query.name, options or {}, should_stop, connect_limit_s)
    with running as result:
        _check_columns(result.columns, query.name)
        yield QueryResult(result.columns, _stream(result.blocks, query.name, should_stop))


def _check_columns(columns: tuple[str, ...], query_name: str) -> None:
    if not columns:
        raise SourceError(f"The query in {query_name} returns no rows; it must be a SELECT.")
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise SourceError(
            f"The query in {query_name} has more than one column named {', '.join(doubled)}; rename them with AS."
        )


def _stream(blocks: Iterator[Block], query_name: str, should_stop: Callable[[], bool]) -> Iterator[Block]:
    with explained(f"The query in {query_name} failed while its rows were read"):
        for block in blocks:
            if should_stop():  # Python drops what a signal's handler raises in the middle of an import or a clean-up
                raise QueryStopped("interrupted")
            yield block
