"""A query of our own, read through pipeline.source."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.source import QueryResult, SourceError, open_query, read_query


@contextmanager
def opened(
    url: str,
    sql: str | bytes,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    any_bytes: bool = False,
    since: datetime | None = None,
) -> Iterator[QueryResult]:
    query_file = folder / "query.sql"
    query_file.write_bytes(sql if isinstance(sql, bytes) else sql.encode())
    query = read_query(query_file, url)
    with open_query(url, query, root=folder, should_stop=should_stop, any_bytes=any_bytes, since=since) as result:
        yield result


def read(url: str, sql: str | bytes, folder: Path, since: datetime | None = None) -> list[dict[str, Any]]:
    with opened(url, sql, folder, since=since) as result:
        return list(rows(result))


def rows(result: QueryResult) -> Iterator[dict[str, Any]]:
    """Each row as a dict."""
    return (dict(zip(result.columns, row, strict=True)) for block in result.blocks for row in block)


def problem(url: str, sql: str | bytes, folder: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read(url, sql, folder)
    return str(caught.value)


class Alarm(BaseException):
    """What the handler of a signal raises, as that of Ctrl-C does in a run."""


@contextmanager
def alarm(after_s: float = 0.2) -> Iterator[None]:
    """A signal in a moment, once."""

    def handle(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
