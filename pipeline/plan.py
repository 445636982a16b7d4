"""Rows -> pending records in the stage, block by block, while they pass on their way to the CSV.

Decides what each row becomes: at most one user update and one event. What can't be sent is rejected with its reason.
Sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from pipeline import payloads
from pipeline.ledger import Ledger
from pipeline.payloads import Columns, Rules, Said
from pipeline.records import Kind, Outcome, Record, Undelivered
from pipeline.stage import Failure, Stage, StagedEvent, UserRow
from pipeline.values import InvalidRecord, canonical, cell_text

RECORDS_PER_STAGING = 500
BYTES_PER_STAGING = 2**20
REMEMBERED_USERS = 100_000
MAX_RECORD_BYTES = 3_499_000  # so that a request of 3.5 MB holds at least one; Iterable allows 4 MB in bulk
BETWEEN_VALUES = "\n"  # JSON has none


class Planner:
    """Takes the rows, and leaves what became of them in the stage."""

    def __init__(self, ledger: Ledger, stage: Stage, rules: Rules, columns: Sequence[str]) -> None:
        self.rows = 0
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._columns = columns
        self._user_rows: list[UserRow] = []
        self._events: list[StagedEvent] = []
        self._refusals: list[Failure] = []
        self._waiting_bytes = 0
        # By identity: the user's key, and a hash of what a row last said; most rows repeat what was said before.
        self._said: dict[str, tuple[bytes, int]] = {}

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
        waiting = len(self._user_rows) + len(self._events) + len(self._refusals)
        if waiting >= RECORDS_PER_STAGING or self._waiting_bytes >= BYTES_PER_STAGING:
            self._flush()

    def finish(self) -> None:
        """All rows are planned: put together what the rows of each user say."""
        self._flush()
        self._said.clear()
        records: list[Record] = []
        for record in self._merged_users():
            records.append(record)
            self._waiting_bytes += len(record.payload)
            if len(records) >= RECORDS_PER_STAGING or self._waiting_bytes >= BYTES_PER_STAGING:
                self._stage.stage_users(records)
                records, self._waiting_bytes = [], 0
        self._stage.stage_users(records)
        self._flush()

    # Users ----------------------------------------------------------------------------------------------------

    def _identify(self, columns: Columns, names: Sequence[Any], numbers: Sequence[int]) -> list[str | None]:
        people: list[str | None] = []
        for place, name in enumerate(names):
            try:
                people.append(payloads.identity(name, self._rules))
            except InvalidRecord as problem:
                people.append(None)
                self._refuse_row_of_nobody(columns, place, numbers[place], problem)
        return people

    def _plan_users(self, columns: Columns, numbers: Sequence[int], people: Sequence[str]) -> list[bytes]:
        """Stages what each row says about its user, unless the user's row before said the same; returns the keys."""
        keys = []
        values = payloads.user_values(columns, len(people), self._rules)
        for number, who, content in zip(numbers, people, map(BETWEEN_VALUES.join, values), strict=True):
            said = self._said.get(who)
            if said is None or said[1] != hash(content):
                said = self._remember(who, said[0] if said else self._ledger.user_key(who), content)
                self._user_rows.append((said[0], number, who, content))
                self._waiting_bytes += len(content)
            keys.append(said[0])
        return keys

    def _remember(self, who: str, key: bytes, content: str) -> tuple[bytes, int]:
        if len(self._said) >= REMEMBERED_USERS:
            self._said.clear()
        self._said[who] = said = (key, hash(content))
        return said

    def _merged_users(self) -> Iterator[Record]:
        """One update for each user, with the effect of all rows in the query's order; or a refusal."""
        for key, rows in groupby(self._stage.user_rows(), key=itemgetter(0)):
            _, row, who, content = next(rows)
            said = Said(row, content.split(BETWEEN_VALUES))
            for _, row, _, later in rows:  # noqa: B031 (it goes on behind the first)
                said = payloads.merge(said, row, later.split(BETWEEN_VALUES), self._rules)
            self._stage.merged_users += said.disagreed
            try:
                payload = payloads.user_payload(who, said.values, self._rules)
                _check_size(payload)
                (fingerprint,) = self._ledger.fingerprints([payload])
            except InvalidRecord as problem:
                payload = b""  # the user is staged all the same, as its events may be sent
                (fingerprint,) = self._ledger.fingerprints([BETWEEN_VALUES.join(said.values).encode()])
                self._refuse(Kind.USER, said.row, who, problem, key, fingerprint)
            yield Record(Kind.USER, said.row, who, key, fingerprint, payload)

    # Events ---------------------------------------------------------------------------------------------------

    def _plan_events(
        self, columns: Columns, numbers: Sequence[int], people: Sequence[str], user_keys: Sequence[bytes]
    ) -> None:
        found = payloads.events(columns, people, self._rules)
        sendable = []  # (number, user_key, event_id, payload)
        for place, (number, user_key, event) in enumerate(zip(numbers, user_keys, found, strict=True)):
            if event is not None and not isinstance(event, InvalidRecord) and len(event[1]) > MAX_RECORD_BYTES:
                event = InvalidRecord(f"it has {_too_large(event[1])}")
            if isinstance(event, InvalidRecord):
                self._refuse_event(columns, place, number, people[place], user_key, event)
            elif event is not None:
                sendable.append((number, user_key, *event))
        if sendable:
            numbers, user_keys, event_ids, contents = zip(*sendable, strict=True)
            keys = self._ledger.event_keys(user_keys, event_ids)
            fingerprints = self._ledger.fingerprints(contents)
            self._events += zip(numbers, keys, fingerprints, contents, strict=True)
            self._waiting_bytes += sum(map(len, contents))

    # What can't be sent ---------------------------------------------------------------------------------------

    # Each refusal has a key and a fingerprint, by which another run knows it again.

    def _refuse_row_of_nobody(self, columns: Columns, place: int, number: int, problem: InvalidRecord) -> None:
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
        undelivered = Undelivered(kind, number, who, Outcome.REJECTED, None, "InvalidRecord", f"{problem}.", 0)
        self._refusals.append(Failure(key, fingerprint, undelivered))

    def _flush(self) -> None:
        self._stage.stage_user_rows(self._user_rows)
        self._stage.stage_events(self._events)
        self._stage.note_refusals(self._refusals)
        self._user_rows, self._events, self._refusals, self._waiting_bytes = [], [], [], 0


def _cells(columns: Columns, place: int, names: Sequence[str]) -> str:
    """What a row says in these columns; unlike any e-mail, user id or event id, it begins with a bracket."""
    texts = [[name, cell_text(columns[name][place])] for name in names]
    return canonical(texts).encode(errors="backslashreplace").decode()


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_RECORD_BYTES:
        raise InvalidRecord(f"it has {_too_large(payload)}")


def _too_large(payload: bytes) -> str:
    return f"{len(payload):,} bytes as JSON, more than the {MAX_RECORD_BYTES:,} of one request"
