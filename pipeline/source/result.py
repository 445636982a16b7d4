"""What a running query gives: its columns, and its rows in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

ROWS_PER_BLOCK = 500  # of more, the processor's cache forgets the first before the last are dealt with
BYTES_PER_FETCH = 2**22
BYTES_PER_BLOCK = 2**20  # of which each step makes copies

Block = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class QueryResult:
    """The columns, in the query's order, and the rows in blocks of plain tuples, to be taken once."""

    columns: tuple[str, ...]
    blocks: Iterator[Block]


def in_blocks(fetch: Callable[[int], Block], most: int) -> Iterator[Block]:
    """All rows that `fetch` gives, which is asked for up to `most` at a time.

    It is asked for fewer where rows are large, so that the memory of a run does not grow with the size of its rows.
    """
    waiting: list[tuple[Any, ...]] = []
    count, size = 1, 0
    while rows := fetch(count):
        waiting += rows
        fetched = _size(rows)
        size += fetched
        if len(waiting) >= ROWS_PER_BLOCK or size >= BYTES_PER_FETCH:
            length = max(1, min(ROWS_PER_BLOCK, BYTES_PER_BLOCK * len(waiting) // max(size, 1)))
            yield from (waiting[start : start + length] for start in range(0, len(waiting), length))
            waiting, size = [], 0
        count = max(1, min(most, 4 * count, BYTES_PER_FETCH * len(rows) // max(fetched, 1)))
    if waiting:
        yield waiting


def _size(rows: Block) -> int:
    """The length of their texts; all else is small."""
    return sum([len(value) for row in rows for value in row if type(value) is str or type(value) is bytes])
