"""Which rows of a read need no planning, as the ledger knows them as a whole; and which it may know so from now on.

Most of a night's rows are those of the night before. Where the rows of a user are, and Iterable has accepted all that
they became, one look-up of their digest takes the place of converting and looking up each event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.row_digests import RowDigest
from pipeline.model.keys import USER_BYTES
from pipeline.stage.known_rows import KnownRow, PlannedRow, TakenRow
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
    """Neighbouring rows about one user, from one place of `NewRows` up to another. digest: empty where they can't be
    compared."""

    start: int
    end: int
    key: bytes
    digest: bytes


class NewRows(NamedTuple):
    """Rows that are to be planned, with their numbers; and the groups in them, where they are about users."""

    rows: Sequence[Row]
    numbers: Sequence[int]
    groups: Sequence[NewGroup] = ()


class _Group(NamedTuple):
    """A group of rows about one user."""

    rows: RowGroup
    who: str
    key: bytes
    content: bytes | None
    digest: bytes


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
        forget_changes: Callable[[Sequence[str]], None],
    ) -> None:
        """forget_changes: is told of people some of whose rows are not planned."""
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._user_keys = user_keys
        self._forget_changes = forget_changes
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
        people = [self._person(group) for group in groups]
        of_nobody = [group for group, who in zip(groups, people, strict=True) if who is None]
        of_users = self._compared([(group, who) for group, who in zip(groups, people, strict=True) if who is not None])
        known = self._known([each.key for each in of_users])
        # A user's rows are planned in their order, so that either all or none of a block are.
        times = Counter(each.key for each in of_users)
        new, found = [], []
        for each in of_users:
            entry = known.get(each.key[:USER_BYTES])
            if entry is not None and entry.digest == each.digest and each.content is not None and times[each.key] == 1:
                found.append((each, entry))
            else:
                new.append(each)
        self._stage.known_rows.add(
            [
                KnownRow(each.key, each.rows.first, entry.events, entry.is_found, entry.is_known_person, each.content)
                for each, entry in found
                if each.content is not None
            ]
        )
        self._forget_changes([each.who for each, _ in found])
        return [each for each in (_new_rows(new), _rows_of(of_nobody)) if each.rows]

    def _person(self, group: RowGroup) -> str | None:
        try:
            return identity(group.name, self._rules)
        except InvalidRecord:
            return None

    def _compared(self, groups: Sequence[tuple[RowGroup, str]]) -> list[_Group]:
        found = []
        for (group, who), key in zip(groups, self._user_keys([who for _, who in groups]), strict=True):
            content = self._pickler.dump(group.rows)
            found.append(_Group(group, who, key, content, b"" if content is None else self._digest_of(content)))
        return found

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, RowDigest]:
        """A user with failures is not known as a whole: whether the rows show them is to be seen."""
        known = self._ledger.accepted.row_digests.known(keys, self._ledger.accepted.query)
        if known and self._ledger.failures.exist:
            failing = self._ledger.failures.users_with_some(sorted(known))
            known = {key: each for key, each in known.items() if key not in failing}
        return known

    # Known from now on ----------------------------------------------------------------------------------------

    def note_planned(self, new: NewRows, planned: Planned) -> None:
        """What became of these rows."""
        if not self.pays:
            return
        found = planned.events
        marks = bytearray(len(new.rows))  # 1: an event that is unchanged; 2: anything else that a row may have
        for place, state in zip(found.places, planned.states, strict=True):
            marks[place] = 1 if state == UNCHANGED else 2
        for place in [*(place for place, _ in found.problems), *(each.place for each in found.omitted)]:
            marks[place] = 2
        entries = []
        for start, end, key, digest in new.groups:
            is_unchanged = bool(digest) and marks.find(2, start, end) < 0
            count = marks.count(1, start, end) if is_unchanged else None
            entries.append(PlannedRow(key, digest, new.numbers[start], end - start, count))
        self._stage.known_rows.note_planned(entries)
        self._new_groups += len(new.groups)
        self._user_rows += planned.user_rows
        if self._new_groups >= GROUPS_BEFORE_JUDGING and 2 * self._user_rows <= self._new_groups:
            self.stop()

    def stop(self) -> None:
        """Look at all rows from here on."""
        self.pays = False
        self._stage.known_rows.forget_planned()

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


def _new_rows(groups: Sequence[_Group]) -> NewRows:
    ends = list(accumulate([len(each.rows.rows) for each in groups], initial=0))
    found = [
        NewGroup(start, end, each.key, each.digest) for start, end, each in zip(ends, ends[1:], groups, strict=False)
    ]
    return _rows_of([each.rows for each in groups])._replace(groups=found)


def _rows_of(groups: Sequence[RowGroup]) -> NewRows:
    rows = list(chain.from_iterable(group.rows for group in groups))
    numbers = list(chain.from_iterable(range(group.first, group.first + len(group.rows)) for group in groups))
    return NewRows(rows, numbers)


def _unpickled(taken: Iterator[TakenRow]) -> Iterator[NewRows]:
    """A block at a time, as far as these are small, and no user twice in one."""
    groups: list[RowGroup] = []
    users: set[bytes] = set()
    for key, first, content in taken:
        if key in users or sum(len(group.rows) for group in groups) >= ROWS_A_BLOCK:
            yield _rows_of(groups)
            groups, users = [], set()
        groups.append(RowGroup(None, first, unpickle(content)))
        users.add(key)
    if groups:
        yield _rows_of(groups)
