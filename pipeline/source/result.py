"""What a running query gives: its columns, and its rows in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

ROWS_PER_BLOCK = 100  # of more, the processor's cache forgets the first before the last are dealt with

Row = dict[str, Any]


@dataclass(frozen=True)
class QueryResult:
    """The columns, in the query's order, and the rows: as blocks of plain tuples or as dicts, to be taken once."""

    columns: tuple[str, ...]
    blocks: Iterator[Sequence[tuple[Any, ...]]]

    @cached_property
    def rows(self) -> Iterator[Row]:
        # Not strict: a check that takes time, and a row is as wide as its head.
        return (dict(zip(self.columns, row)) for block in self.blocks for row in block)  # noqa: B905
