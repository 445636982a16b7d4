"""Blocks of rows -> groups of neighbouring rows about one person, and a digest of all that a group says. Pure.

Two groups of one digest are alike in each cell that counts, so that they become the same records.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import fields
from io import BytesIO
from itertools import compress, count, pairwise
from operator import itemgetter, ne
from typing import Any, NamedTuple

from iterable import VERSION
from pipeline.transform.rules import Rules

MOST_BLOCKS = 4  # that are held back for one group
Row = tuple[Any, ...]


class RowGroup(NamedTuple):
    """name: what the rows have in the identity column. first: the number of the first row. rows: their cells in the
    columns that count."""

    name: Any
    first: int
    rows: Sequence[Row]


class RowGroups:
    """Cuts the rows of a read into groups. columns: those that count."""

    def __init__(self, columns: Sequence[str], rules: Rules) -> None:
        wanted = _columns_that_count(rules)
        places = [place for place, column in enumerate(columns) if column in wanted]
        self.columns = [columns[place] for place in places]
        self._name = self.columns.index(rules.identity_column)
        self._cut: Callable[[Row], Row] | None = None
        if len(places) < len(columns):
            self._cut = itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        self._held: list[Row] = []
        self._blocks_held = 0
        self._next = 1  # the number of the first row that is held

    def take(self, block: Sequence[Row]) -> list[RowGroup]:
        """The groups that end in this block. The last one may go on in the next block, and is held back."""
        cells = block if self._cut is None else list(map(self._cut, block))
        rows = [*self._held, *cells]
        names = [row[self._name] for row in rows]
        starts = [0, *compress(count(1), map(ne, names[1:], names))]
        self._blocks_held = self._blocks_held + 1 if len(starts) == 1 else 1
        if self._blocks_held > MOST_BLOCKS:
            return self.end(cells)
        groups = self._between(rows, starts)
        self._held = rows[starts[-1] :]
        return groups

    def end(self, more: Sequence[Row] = ()) -> list[RowGroup]:
        """The group that is held, and more rows of it."""
        rows = [*self._held, *more]
        self._held, self._blocks_held = [], 0
        return self._between(rows, [0, len(rows)]) if rows else []

    def _between(self, rows: Sequence[Row], starts: Sequence[int]) -> list[RowGroup]:
        first = self._next
        self._next += starts[-1]
        return [RowGroup(rows[start][self._name], first + start, rows[start:end]) for start, end in pairwise(starts)]


def _columns_that_count(rules: Rules) -> set[str]:
    of_ours = (rules.identity_column, rules.time_column, rules.name_column, rules.id_column)
    of_fields = (field.column for field in (*rules.user_fields, *rules.event_fields))
    return {*filter(None, of_ours), *of_fields, *rules.person_columns, *rules.columns_of_events}


def meaning(rules: Rules, columns: Sequence[str]) -> str:
    """All that decides, beside the cells, what rows become."""
    parts = {
        each.name: getattr(rules, each.name) for each in fields(rules) if each.name not in ("latest_s", "not_sent")
    }
    parts["swept"] = sorted(rules.swept)
    return repr([VERSION, *columns, *(f"{name}={value}" for name, value in parts.items())])


class Pickler:
    """Cells -> bytes that are the same for the same cells in every run, and other bytes for other cells."""

    def __init__(self) -> None:
        self._buffer = BytesIO()
        self._pickler = pickle.Pickler(self._buffer, protocol=5)
        self._pickler.fast = True  # without a memo, by which the bytes would tell which cells are one object in memory

    def dump(self, rows: Sequence[Row]) -> bytes | None:
        """None for cells that can't be pickled, of types that a driver has made."""
        self._buffer.seek(0)
        self._buffer.truncate()
        try:
            self._pickler.dump(rows)
        except Exception:  # whatever a type of its own raises
            return None
        return self._buffer.getvalue()


def unpickle(content: bytes) -> Sequence[Row]:
    """The rows again."""
    rows: Sequence[Row] = pickle.loads(content)  # noqa: S301 (this process has pickled it, into a file without a name)
    return rows
