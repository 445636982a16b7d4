"""Which rows of a read need no planning, as the ledger knows them as a whole; and which it may know so from now on.

Most of a night's rows are those of the night before. Where the rows of a user are, and Iterable has accepted all that
they became, one look-up of their digest takes the place of converting and looking up each event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.row_digests import RowDigest
from pipeline.model.keys import USER_BYTES
from pipeline.stage.known_rows import KnownRow, UnchangedRow
from pipeline.stage.stage import Stage
from pipeline.stage.states import UNCHANGED
from pipeline.transform.events import Events
from pipeline.transform.identity import identity
from pipeline.transform.row_groups import Pickler, Row, RowGroup, RowGroups, meaning, unpickle
from pipeline.transform.rules import Rules
from pipeline.transform.values import InvalidRecord

GROUPS_BEFORE_JUDGING = 5_000
ROWS_A_BLOCK = 500


class NewGroup(NamedTuple):
    """Neighbouring rows about one user, from one place of `NewRows` up to another."""

    start: int
    end: int
    key: bytes
    digest: bytes


class NewRows(NamedTuple):
    """Rows that are to be planned, with their numbers; and those of the groups in them that have a digest."""

    rows: Sequence[Row]
    numbers: Sequence[int]
    groups: Sequence[NewGroup] = ()


class Planned(NamedTuple):
    """What became of some rows: their events, the states of these, and how many rows do not repeat what the row before
    said of their user."""

    events: Events
    states: bytes
    user_rows: int


class KnownRows:
    """Takes the rows of a read, and gives back those that are to be planned. columns: of which these have cells."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        rules: Rules,
        columns: Sequence[str],
        user_keys: Callable[[Sequence[str]], Sequence[bytes]],
    ) -> None:
        self._row_digests, self._query = ledger.accepted.row_digests, ledger.accepted.query
        self._stage = stage
        self._rules = rules
        self._user_keys = user_keys
        self._groups = RowGroups(columns, rules)
        self._pickler = Pickler()
        self.columns = self._groups.columns
        self._digest_of = ledger.hasher.row_digests(meaning(rules, self.columns))
        self._new_groups = self._user_rows = 0
        self.pays = True  # not where the rows of most users are apart from each other

    def take(self, rows: Sequence[Row]) -> list[NewRows]:
        """Of these rows, and of those that were held back, the ones that are to be planned."""
        return self._sorted(self._groups.take(rows))

    def end(self) -> list[NewRows]:
        """Of the rows that are held back."""
        return self._sorted(self._groups.end())

    def _sorted(self, groups: Sequence[RowGroup]) -> list[NewRows]:
        of_users: list[tuple[RowGroup, str, bytes]] = []  # with the person and the content
        others: list[RowGroup] = []
        for group in groups:
            who = self._person(group)
            content = None if who is None else self._pickler.dump(group.rows)
            if who is None or content is None:
                others.append(group)
            else:
                of_users.append((group, who, content))
        keys = self._user_keys([who for _, who, _ in of_users])
        known = self._row_digests.known(keys, self._query)
        found: list[KnownRow] = []
        new: list[tuple[RowGroup, bytes, bytes]] = []  # with the key and the digest
        for (group, _, content), key in zip(of_users, keys, strict=True):
            digest = self._digest_of(content)
            entry = known.get(key[:USER_BYTES])
            if entry is not None and entry.digest == digest:
                found.append(KnownRow(key, group.first, entry.events, entry.is_found, entry.is_known_person, content))
            else:
                new.append((group, key, digest))
        self._stage.known_rows.add(found)
        return [each for each in (_new_rows(new), _rows_of(others)) if each.rows]

    def _person(self, group: RowGroup) -> str | None:
        try:
            return identity(group.name, self._rules)
        except InvalidRecord:
            return None

    # Known from now on ----------------------------------------------------------------------------------------

    def note_planned(self, new: NewRows, planned: Planned) -> None:
        """What became of these rows."""
        found = planned.events
        marks = bytearray(len(new.rows))  # 1: an event that is unchanged; 2: anything else that a row may have
        for place, state in zip(found.places, planned.states, strict=True):
            marks[place] = 1 if state == UNCHANGED else 2
        for place in [*(place for place, _ in found.problems), *(each.place for each in found.omitted)]:
            marks[place] = 2
        self._stage.known_rows.note_unchanged(
            [
                UnchangedRow(key, digest, new.numbers[start], end - start, marks.count(1, start, end))
                for start, end, key, digest in new.groups
                if marks.find(2, start, end) < 0
            ]
        )
        self._new_groups += len(new.groups)
        self._user_rows += planned.user_rows
        self.pays = self._new_groups < GROUPS_BEFORE_JUDGING or 2 * self._user_rows > self._new_groups

    # Planned after all ----------------------------------------------------------------------------------------

    def mixed(self) -> Iterator[NewRows]:
        """Those that were known, whose user has other rows, too."""
        return _unpickled(self._stage.known_rows.take_mixed())

    def of_users(self, keys: Sequence[bytes]) -> Iterator[NewRows]:
        """Those that were known, of these users."""
        return _unpickled(self._stage.known_rows.take_of_users(keys))


def enter_settled(ledger: Ledger, stage: Stage) -> None:
    """Users of whom this read of all rows has brought no news: the next one knows them by their rows."""
    accepted = ledger.accepted
    for page in stage.known_rows.settled():
        known = accepted.known_users([each.key for each in page])
        digests = [
            RowDigest(each.key[:USER_BYTES], each.digest, each.events, each.is_found, each.is_known_person)
            for each in page
            if known[each.key].fingerprint == each.fingerprint
        ]
        accepted.row_digests.enter(digests, accepted.query)


def _new_rows(groups: Sequence[tuple[RowGroup, bytes, bytes]]) -> NewRows:
    ends = list(accumulate([len(group.rows) for group, _, _ in groups], initial=0))
    of_digests = [
        NewGroup(start, end, key, digest) for start, end, (_, key, digest) in zip(ends, ends[1:], groups, strict=False)
    ]
    return _rows_of([group for group, _, _ in groups])._replace(groups=of_digests)


def _rows_of(groups: Sequence[RowGroup]) -> NewRows:
    rows = list(chain.from_iterable(group.rows for group in groups))
    numbers = list(chain.from_iterable(range(group.first, group.first + len(group.rows)) for group in groups))
    return NewRows(rows, numbers)


def _unpickled(taken: Iterator[tuple[int, bytes]]) -> Iterator[NewRows]:
    """A block at a time, as far as these are small."""
    groups: list[RowGroup] = []
    for first, content in taken:
        groups.append(RowGroup(None, first, unpickle(content)))
        if sum(len(group.rows) for group in groups) >= ROWS_A_BLOCK:
            yield _rows_of(groups)
            groups = []
    if groups:
        yield _rows_of(groups)
