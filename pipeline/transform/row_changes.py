"""Which rows do not repeat what the row before has said of their user. Pure.

Most rows of a join of users and events do, and then need no look at the user. What the row before has said is
remembered as a hash, in the slot of its user. Users who share a slot may be looked at more than once, which changes
nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

from iterable.export import types_of
from pipeline.transform.events import selected
from pipeline.transform.rules import Columns, Rules

SLOTS = 2**19
PERSON_SLOTS = 2**17
NOBODY = frozenset([hash(None), hash(repr(None)), hash(""), hash(repr(""))])
_TEXT_OR_NULL = frozenset({str, type(None)})


def _slots(count: int) -> memoryview:
    """Zeros, of which only those take memory that are used."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("q")


class RowChanges:
    """Those of one read."""

    def __init__(self, rules: Rules) -> None:
        self._fields = [field.column for field in rules.user_template.fields]
        self._person_columns = rules.person_columns
        self._rows = _slots(SLOTS)
        self._persons = _Persons() if rules.person_column is not None else None
        self._fields_of_rows = _slots(PERSON_SLOTS) if rules.person_column is not None else self._rows

    def places(self, columns: Columns, people: Sequence[str]) -> list[int]:
        """Of some rows, and whom they are about: the places of those that are to be looked at."""
        places = _differing(self._rows, people, _hashes(columns, [*self._fields, *self._person_columns], people))
        if self._persons is None or not places:
            return places
        named = [people[place] for place in places]
        columns = selected({name: columns[name] for name in (*self._fields, *self._person_columns)}, places)
        fields = _differing(self._fields_of_rows, named, _hashes(columns, self._fields, named))
        cells = [_comparable(columns[column]) for column in self._person_columns]
        return [places[place] for place in sorted({*fields, *self._persons.changed(named, *cells)})]

    def forget(self, people: Iterable[str]) -> None:
        """The next row of each of these repeats nothing, as rows before it were not looked at."""
        for who in map(hash, people):
            self._rows[who % len(self._rows)] = 0
            self._fields_of_rows[who % len(self._fields_of_rows)] = 0


class _Persons:
    """Which rows name another person, or another earlier address, than the row of their user before.

    Of more than two persons at one address, no more is learnt from a third; so a column with another value in each row,
    such as a row number, stages each user twice, and not once for each row.
    """

    def __init__(self) -> None:
        self._owners, self._persons, self._previous = (_slots(PERSON_SLOTS) for _ in range(3))
        self._seen = bytearray(PERSON_SLOTS)

    def changed(self, people: Sequence[str], persons: Sequence[Any], previous: Sequence[Any] = ()) -> list[int]:
        owners, known, places = self._owners, self._persons, []
        for place, (owner, person) in enumerate(zip(map(hash, people), map(hash, persons), strict=True)):
            slot = owner % PERSON_SLOTS
            earlier = hash(previous[place]) if previous else 0
            if owners[slot] != owner:
                owners[slot], self._seen[slot] = owner, 0
            elif self._previous[slot] == earlier and (
                person in NOBODY or known[slot] == person or self._seen[slot] > 1
            ):
                continue
            if person not in NOBODY and (not self._seen[slot] or known[slot] != person):
                self._seen[slot] = min(self._seen[slot] + 1, 2)
                known[slot] = person
            self._previous[slot] = earlier
            places.append(place)
        return places


def _differing(remembered: memoryview, people: Sequence[str], hashes: Iterable[int]) -> list[int]:
    """The places whose hash is not the one that is remembered for their user; remembers them."""
    places, count = [], len(remembered)
    for place, (who, said) in enumerate(zip(map(hash, people), hashes, strict=True)):
        slot = who % count
        if remembered[slot] != said:
            remembered[slot] = said
            places.append(place)
    return places


def _hashes(columns: Columns, names: Sequence[str], people: Sequence[str]) -> Iterator[int]:
    """A hash for what each row says in these columns; of text alone, as hash(-1) == hash(-2)."""
    is_text = [types_of(columns[name]) <= _TEXT_OR_NULL for name in names]
    cells = [
        columns[name] if as_it_is else list(map(repr, columns[name]))
        for name, as_it_is in zip(names, is_text, strict=True)
    ]
    return map(hash, zip(people, *cells, repeat(hash(tuple(is_text)))))


def _comparable(values: Sequence[Any]) -> Sequence[Any]:
    """Values whose hashes tell them apart."""
    return values if types_of(values) <= _TEXT_OR_NULL else list(map(repr, values))
