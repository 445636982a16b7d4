"""Many rows or keys in one SQLite statement: a statement for each would cost three times as much."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, TypeVar

ROWS_PER_INSERT = 100
KEYS_PER_STATEMENT = 500

_T = TypeVar("_T")


def insert_many(
    database: sqlite3.Connection, head: str, rows: Sequence[Sequence[object]], tail: str = "", *,
    constants: tuple[int, ...] = (),
) -> None:  # fmt: skip
    """constants: numbers that stand at the end of every row."""
    for start in range(0, len(rows), ROWS_PER_INSERT):
        chunk = rows[start : start + ROWS_PER_INSERT]
        statement = _insert_statement(head, tail, len(chunk), len(chunk[0]), constants)
        database.execute(statement, list(chain.from_iterable(chunk)))


@lru_cache
def _insert_statement(head: str, tail: str, rows: int, columns: int, constants: tuple[int, ...]) -> str:
    row = "?," * columns + "".join(f"{constant:d}," for constant in constants)
    return f"{head} {','.join([f'({row[:-1]})'] * rows)} {tail}"


def rows_of_keys(
    database: sqlite3.Connection, columns: str, table: str, project: int, keys: Sequence[bytes], *, column: str = "key"
) -> list[tuple[Any, ...]]:
    """These columns of a table, where its `project` and `key` (or another column with an index) are these."""
    rows = []
    for chunk in chunks(keys):
        # A list after IN would be sorted first, which takes a fifth longer.
        wanted = f"(VALUES {_places(len(chunk), '(?)')}) AS wanted"
        found = f"{wanted} CROSS JOIN {table} ON project = {project:d} AND {column} = wanted.column1"
        rows += database.execute(f"SELECT {columns} FROM {found}", list(chunk)).fetchall()
    return rows


def run_for_keys(
    database: sqlite3.Connection,
    statement: str,
    project: int,
    keys: Sequence[bytes],
    *values: object,
    column: str = "key",
) -> None:
    """A statement that ends with WHERE or AND, for these keys. values: its own, which stand before them."""
    for chunk in chunks(keys):
        places = _places(len(chunk))
        database.execute(f"{statement} project = {project:d} AND {column} IN ({places})", (*values, *chunk))


def chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), KEYS_PER_STATEMENT):
        yield items[start : start + KEYS_PER_STATEMENT]


@lru_cache
def _places(count: int, place: str = "?") -> str:
    return ",".join([place] * count)
