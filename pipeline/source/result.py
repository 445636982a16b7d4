"""What a running query gives: its columns, and its rows in blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ROWS_PER_BLOCK = 500  # of more, the processor's cache forgets the first before the last are dealt with
BYTES_PER_FETCH = 2**22

Row = dict[str, Any]
Block = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class QueryResult:
    """The columns, in the query's order, and the rows: as blocks of plain tuples or as dicts, to be taken once."""

    columns: tuple[str, ...]
    blocks: Iterator[Block]

    @cached_property
    def rows(self) -> Iterator[Row]:
        # Not strict: a check that takes time, and a row is as wide as its head.
        return (dict(zip(self.columns, row)) for block in self.blocks for row in block)  # noqa: B905


def in_blocks(fetch: Callable[[int], Block], most: int) -> Iterator[Block]:
    """All rows that `fetch` gives, which is asked for up to `most` at a time.

    It is asked for fewer where rows are large, so that the memory of a run does not grow with the size of its rows.
    """
    waiting: list[tuple[Any, ...]] = []
    count = 1
    while rows := fetch(count):
        waiting += rows
        row_bytes = max(_size(rows[0]), _size(rows[-1]), 1)
        if len(waiting) >= ROWS_PER_BLOCK or len(waiting) * row_bytes >= BYTES_PER_FETCH:
            yield from (waiting[start : start + ROWS_PER_BLOCK] for start in range(0, len(waiting), ROWS_PER_BLOCK))
            waiting = []
        count = max(1, min(most, 4 * count, BYTES_PER_FETCH // row_bytes))
    if waiting:
        yield waiting


def _size(row: tuple[Any, ...]) -> int:
    """What it takes of memory: one emoji makes four bytes of each character of a text."""
    return sum(map(sys.getsizeof, row))
