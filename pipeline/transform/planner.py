"""Rows -> pending records in the stage, block by block, while they pass on their way to the CSV.

Decides what each row becomes: at most one user update and one event. What can't be sent is rejected with its reason.
Sends nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, NamedTuple

from iterable.export import types_of
from pipeline.ledger.ledger import Ledger
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.stage.stage import UNCHANGED, Failure, Stage, UserRow
from pipeline.transform import payloads
from pipeline.transform.payloads import Columns, MergedUser, Rules
from pipeline.transform.values import InvalidRecord, canonical, cell_text

RECORDS_PER_STAGING = 2_000
BYTES_PER_STAGING = 2**20
REMEMBERED_USERS = 40_000
SLOTS = 2**19
_TEXT_OR_NULL = frozenset({str, type(None)})
BETWEEN_VALUES = "\n"  # JSON has none


class _Merged(NamedTuple):
    """A user, and what all rows say of it."""

    key: bytes
    who: str
    said: MergedUser


class _Events(NamedTuple):
    """Events to be staged, in the order of their rows."""

    rows: list[int]
    keys: list[bytes]
    fingerprints: list[bytes]
    payloads: list[bytes]
    states: bytearray


def _no_events() -> _Events:
    return _Events([], [], [], [], bytearray())


class Planner:
    """Takes the rows, and leaves what became of them in the stage."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        rules: Rules,
        columns: Sequence[str],
        *,
        full: Container[Kind] = (),
        leave_known_users: bool = False,
    ) -> None:
        """full: the kinds of which all is sent, also what the ledger knows. leave_known_users: users that it knows are
        not."""
        stage.begin(
            None if ledger.is_empty else ledger.known,
            ledger.failed_before if ledger.has_failure_history else None,
            resend=full,
            leave_known_users=leave_known_users,
        )
        self.rows = 0
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._columns = columns
        self._user_rows: list[UserRow] = []
        self._events = _no_events()
        self._refusals: list[Failure] = []
        self._waiting_bytes = 0
        self._keys: dict[str, bytes] = {}  # of users, by identity
        # Most rows repeat what the row before said about their user. In the slot of a user, and of others that share
        # it: a hash of who was last staged there, and with what. A user who shares one may be staged more than once.
        self._said = array("q", bytes(8 * SLOTS))

    def plan(self, block: Sequence[Sequence[Any]]) -> None:
        """Plan some rows, given by the column."""
        columns: Columns = dict(zip(self._columns, block, strict=True))
        names = columns[self._rules.identity_column]
        numbers: Sequence[int] = range(self.rows + 1, self.rows + 1 + len(names))
        self.rows += len(names)
        people = self._identify(columns, names, numbers)
        if None in people:
            places = [place for place, who in enumerate(people) if who is not None]
            columns, numbers = payloads.selected(columns, places), [numbers[place] for place in places]
        named = [who for who in people if who is not None]
        user_keys = self._plan_users(columns, numbers, named)
        self._plan_events(columns, numbers, named, user_keys)
        waiting = len(self._user_rows) + len(self._events.rows) + len(self._refusals)
        if waiting >= RECORDS_PER_STAGING or self._waiting_bytes >= BYTES_PER_STAGING:
            self._flush()

    def end_reading(self) -> None:
        """From here on, every record has a place in the account."""
        self._flush()
        self._stage.end_reading()

    def finish(self) -> None:
        """All rows are staged: put together what those of each user say."""
        self._keys, self._said = {}, array("q")
        users: list[_Merged] = []
        for user in self._merged_users():
            users.append(user)
            self._waiting_bytes += sum(map(len, user.said.values))
            if len(users) >= RECORDS_PER_STAGING or self._waiting_bytes >= BYTES_PER_STAGING:
                self._stage_merged(users)
                users = []
        self._stage_merged(users)

    # Users ----------------------------------------------------------------------------------------------------

    def _identify(self, columns: Columns, names: Sequence[Any], numbers: Sequence[int]) -> Sequence[str | None]:
        known = self._keys
        if types_of(names) == {str}:
            distinct = set(names)
            self._learn(distinct.difference(known))
            if known.keys() >= distinct:  # as nearly always, all are written as Iterable has them
                return names
        people: list[str | None] = []
        for place, name in enumerate(names):
            if type(name) is str and name in known:
                people.append(name)
                continue
            try:
                people.append(payloads.identity(name, self._rules))
            except InvalidRecord as problem:
                people.append(None)
                self._reject_unidentified_row(columns, place, numbers[place], problem)
        return people

    def _learn(self, names: Iterable[str]) -> None:
        """Remember those users who are written as Iterable has them."""
        for name in names:
            try:
                if payloads.identity(name, self._rules) == name:
                    self._key_of(name)
            except InvalidRecord:
                continue

    def _plan_users(self, columns: Columns, numbers: Sequence[int], people: Sequence[str]) -> list[bytes]:
        """Stages what each row says about its user, unless the user's row before said the same; returns the keys."""
        keys = [self._keys.get(who) or self._key_of(who) for who in people]
        places = self._changed_indexes(columns, people)
        if len(places) < len(people):
            columns = payloads.selected(columns, places)
        values = payloads.user_values(columns, len(places), self._rules)
        for place, each in zip(places, values, strict=True):
            content = BETWEEN_VALUES.join(each)
            self._user_rows.append((keys[place], numbers[place], people[place], content))
            self._waiting_bytes += len(content)
        return keys

    def _changed_indexes(self, columns: Columns, people: Sequence[str]) -> list[int]:
        """The places of the rows that do not say of their user what the user's row before has said."""
        remembered = self._said
        places = []
        for place, (who, said) in enumerate(zip(people, self._hashes(columns, people), strict=True)):
            slot = hash(who) % SLOTS
            if remembered[slot] != said:
                remembered[slot] = said
                places.append(place)
        return places

    def _hashes(self, columns: Columns, people: Sequence[str]) -> Iterator[int]:
        """A hash for what each row says of its user. Of text alone, as numbers share theirs: hash(-1) == hash(-2)."""
        columns_of_user = [columns[field.column] for field in self._rules.user_template.fields]
        is_text = [types_of(column) <= _TEXT_OR_NULL for column in columns_of_user]
        cells = [
            column if as_it_is else list(map(repr, column))
            for column, as_it_is in zip(columns_of_user, is_text, strict=True)
        ]
        return map(hash, zip(people, *cells, repeat(hash(tuple(is_text)))))

    def _key_of(self, who: str) -> bytes:
        if len(self._keys) >= REMEMBERED_USERS:
            self._keys.clear()
        self._keys[who] = key = self._ledger.user_key(who)
        return key

    def _merged_users(self) -> Iterator[_Merged]:
        """What the rows of each user say together."""
        for key, rows in groupby(self._stage.user_rows(), key=itemgetter(0)):
            _, row, who, content = next(rows)
            said = MergedUser(row, content.split(BETWEEN_VALUES))
            for _, row, _, later in rows:  # noqa: B031 (it goes on behind the first)
                said = payloads.merge(said, row, later.split(BETWEEN_VALUES), self._rules)
            self._stage.merged_users += said.disagreed
            yield _Merged(key, who, said)

    def _stage_merged(self, users: Sequence[_Merged]) -> None:
        people = [user.who for user in users]
        found = payloads.user_payloads(people, [user.said.values for user in users], self._rules)
        contents = [
            payload if isinstance(payload, bytes) else BETWEEN_VALUES.join(user.said.values).encode()
            for user, payload in zip(users, found, strict=True)
        ]
        records = []
        for user, payload, fingerprint in zip(users, found, self._ledger.fingerprints(contents), strict=True):
            key, who, said = user
            if isinstance(payload, InvalidRecord):
                self._refuse(Kind.USER, said.row, who, payload, key, fingerprint)
                payload = b""  # the user is staged all the same, as its events may be sent
            records.append(Record(Kind.USER, said.row, who, key, fingerprint, payload))
        self._flush()
        self._stage.stage_users(records)

    # Events ---------------------------------------------------------------------------------------------------

    def _plan_events(
        self, columns: Columns, numbers: Sequence[int], people: Sequence[str], user_keys: Sequence[bytes]
    ) -> None:
        found = payloads.events(columns, people, self._rules)
        for place, problem in found.problems:
            self._refuse_event(columns, place, numbers[place], people[place], user_keys[place], problem)
        keys = self._ledger.event_keys(
            [user_keys[place] for place in found.places], payloads.event_identities(found, self._rules)
        )
        if self._rules.id_column is None:
            # A key that stands for all that the event says tells its content from any other.
            fingerprints = [key[USER_BYTES:] for key in keys]
            states = self._stage.first_states(Kind.EVENT, keys, fingerprints)
            contents = self._payloads_of_news(found, states)
        else:
            contents = payloads.event_payloads(found, self._rules)
            fingerprints = self._ledger.fingerprints(contents)
            states = self._stage.first_states(Kind.EVENT, keys, fingerprints)
        waiting = self._events
        waiting.rows.extend([numbers[place] for place in found.places])
        waiting.keys.extend(keys)
        waiting.fingerprints.extend(fingerprints)
        waiting.payloads.extend(contents)
        waiting.states.extend(states)
        self._waiting_bytes += sum(map(len, contents))

    def _payloads_of_news(self, found: payloads.Events, states: bytes) -> list[bytes]:
        """What is unchanged needs no payload."""
        if UNCHANGED not in states:
            return payloads.event_payloads(found, self._rules)
        news = [at for at, state in enumerate(states) if state != UNCHANGED]
        contents = [b""] * len(states)
        for at, payload in zip(news, payloads.event_payloads(found.take(news), self._rules), strict=True):
            contents[at] = payload
        return contents

    # What can't be sent ---------------------------------------------------------------------------------------

    # Each refusal has a key and a fingerprint, by which another run knows it again.

    def _reject_unidentified_row(self, columns: Columns, place: int, number: int, problem: InvalidRecord) -> None:
        rules = self._rules
        cells = _cells(columns, place, [rules.identity_column, *(field.column for field in rules.user_fields)])
        key = self._ledger.user_key(cells)
        (fingerprint,) = self._ledger.fingerprints([cells.encode()])
        self._refuse(Kind.USER, number, None, problem, key, fingerprint)
        if payloads.has_event(columns, place, rules):
            self._refuse_event(columns, place, number, None, key, problem)

    def _refuse_event(
        self, columns: Columns, place: int, number: int, who: str | None, user_key: bytes, problem: InvalidRecord
    ) -> None:
        rules = self._rules
        columns_of_ours = (rules.identity_column, rules.time_column, rules.name_column, rules.id_column)
        names = [*filter(None, columns_of_ours), *(field.column for field in rules.event_fields)]
        cells = _cells(columns, place, names)
        (key,) = self._ledger.event_keys([user_key], [cells])
        (fingerprint,) = self._ledger.fingerprints([cells.encode()])
        self._refuse(Kind.EVENT, number, who, problem, key, fingerprint)

    def _refuse(
        self, kind: Kind, number: int, who: str | None, problem: InvalidRecord, key: bytes, fingerprint: bytes
    ) -> None:
        undelivered = FailedRecord(kind, number, who, Outcome.REJECTED, None, "InvalidRecord", f"{problem}.", 0)
        self._refusals.append(Failure(key, fingerprint, undelivered))

    def _flush(self) -> None:
        self._stage.stage_user_rows(self._user_rows)
        events = self._events
        self._stage.stage_events(*events[:-1], states=bytes(events.states))
        self._stage.note_refusals(self._refusals)
        self._user_rows, self._events, self._refusals = [], _no_events(), []
        self._waiting_bytes = 0


def _cells(columns: Columns, place: int, names: Sequence[str]) -> str:
    """What a row says in these columns; unlike any e-mail, user id or event id, it begins with a bracket."""
    texts = [[name, cell_text(columns[name][place])] for name in names]
    return canonical(texts).encode(errors="backslashreplace").decode()
