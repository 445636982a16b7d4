"""Rows -> pending records in the stage, while they pass on their way to the CSV.

Decides what each row becomes: at most one user update and one event. What can't be sent is set apart with its reason.
Sends nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from pipeline import payloads
from pipeline.ending import ExitCode, RunError
from pipeline.ledger import Ledger
from pipeline.payloads import InvalidRecord, Rules
from pipeline.records import Kind, Outcome, Record, Undelivered
from pipeline.settings import FieldMap, Settings
from pipeline.stage import Stage, StagedEvent

logger = logging.getLogger("pipeline.plan")

ROWS_PER_BLOCK = 100  # of more, the processor's cache would forget the first before the last are planned
RECORDS_PER_STAGING = 500
REMEMBERED_USERS = 10_000
FUTURE_TOLERANCE_S = 86_400
MAX_RECORD_BYTES = 3_499_000  # so that a request of 3.5 MB holds at least one; Iterable allows 4 MB in bulk
Row = Mapping[str, Any]

_TEXTS = frozenset({str, type(None)})
_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})


class ColumnsError(RunError):
    """The query lacks a column that the settings ask for."""

    code = ExitCode.NO_INPUT


class _Known(NamedTuple):
    """What was last staged for a user: most rows repeat their user, who need not be encoded again."""

    key: bytes
    values: tuple[Any, ...] | None
    types: tuple[type, ...] | None  # 1, 1.0 and True are equal, and yet not the same JSON; None for texts alone


class Planner:
    """Takes rows in, hands them on unchanged, and leaves what became of them in the stage."""

    def __init__(self, ledger: Ledger, stage: Stage, rules: Rules) -> None:
        self.rows = 0
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._users: list[Record] = []
        self._events: list[StagedEvent] = []
        self._invalid: list[Undelivered] = []
        self._user_values = _getter([column for column, _ in rules.user_fields])
        self._known: dict[str, _Known] = {}  # by identity

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Plan the rows, a hundred at a time, and yield them. The stage is complete when the last one was taken."""
        rows = iter(rows)
        while block := list(islice(rows, ROWS_PER_BLOCK)):
            self._plan(block)
            if len(self._users) + len(self._events) + len(self._invalid) >= RECORDS_PER_STAGING:
                self._flush()
            yield from block
        self._flush()

    def _plan(self, block: Sequence[Row]) -> None:
        named = []  # (number, row, who, user_key) of the rows that name somebody
        for number, row in enumerate(block, start=self.rows + 1):
            try:
                who = payloads.identity(row, self._rules)
            except InvalidRecord as problem:
                self._refuse(Kind.USER, number, None, problem)
                if payloads.has_event(row, self._rules):
                    self._refuse(Kind.EVENT, number, None, problem)
            else:
                named.append((number, row, who, self._plan_user(row, number, who)))
        self.rows += len(block)
        if named:
            self._plan_events(*zip(*named, strict=True))

    def _plan_user(self, row: Row, number: int, who: str) -> bytes:
        values = self._user_values(row)
        known = self._known.get(who)
        if known is not None and known.values == values and known.types in (None, tuple(map(type, values))):
            return known.key
        key = known.key if known is not None else self._ledger.user_key(who)
        if len(self._known) >= REMEMBERED_USERS:
            self._known.clear()
        self._known[who] = _remember(key, values)
        try:
            payload = payloads.encode(payloads.user_update(row, who, self._rules))
            _check_size(payload)
        except InvalidRecord as problem:
            self._flush()
            self._stage.stage_invalid_user(key, number, who, _sentence(problem))
        else:
            (fingerprint,) = self._ledger.fingerprints([payload])
            self._users.append(Record(Kind.USER, number, who, key, fingerprint, payload))
        return key

    def _plan_events(
        self, numbers: Sequence[int], rows: Sequence[Row], people: Sequence[str], user_keys: Sequence[bytes]
    ) -> None:
        found = payloads.events(rows, people, self._rules)
        sendable = []  # (number, user_key, event_id, payload)
        for number, who, user_key, event in zip(numbers, people, user_keys, found, strict=True):
            if isinstance(event, InvalidRecord):
                self._refuse(Kind.EVENT, number, who, event)
            elif event is not None and len(event[1]) > MAX_RECORD_BYTES:
                self._refuse(Kind.EVENT, number, who, _too_large(event[1]))
            elif event is not None:
                sendable.append((number, user_key, *event))
        if sendable:
            numbers, user_keys, event_ids, contents = zip(*sendable, strict=True)
            keys = self._ledger.event_keys(user_keys, event_ids)
            fingerprints = self._ledger.fingerprints(contents)
            self._events += zip(numbers, keys, fingerprints, contents, strict=True)

    def _refuse(self, kind: Kind, number: int, who: str | None, problem: InvalidRecord) -> None:
        self._invalid.append(
            Undelivered(kind, number, who, Outcome.REJECTED, None, "InvalidRecord", _sentence(problem), 0)
        )

    def _flush(self) -> None:
        self._stage.stage_users(self._users)
        self._stage.stage_events(self._events)
        self._stage.note(self._invalid)
        self._users, self._events, self._invalid = [], [], []


def _getter(columns: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
    """The values of these columns, at the speed of C where there are two or more."""
    if len(columns) > 1:
        return itemgetter(*columns)
    return lambda row: tuple([row[column] for column in columns])


def _remember(key: bytes, values: tuple[Any, ...]) -> _Known:
    types = tuple(map(type, values))
    if _TEXTS.issuperset(types):
        return _Known(key, values, None)
    # The types say nothing about what is inside a list, so that one is never taken for another.
    return _Known(key, values if _CONTAINERS.isdisjoint(types) else None, types)


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_RECORD_BYTES:
        raise _too_large(payload)


def _too_large(payload: bytes) -> InvalidRecord:
    size = f"{len(payload):,} bytes as JSON, more than the {MAX_RECORD_BYTES:,} of one request"
    return InvalidRecord(f"it has {size}")


def _sentence(problem: InvalidRecord) -> str:
    return f"{problem}."


# The rules of this query ----------------------------------------------------------------------------------------------


def make_rules(columns: Sequence[str], settings: Settings, now: float) -> Rules:
    """The query's columns and the settings -> how rows become payloads. now: Unix seconds. Raises ColumnsError."""
    by_user_id = settings.iterable_identifier == "userId"
    identity_column = _identity_column(columns, by_user_id)
    time_column = _optional("event_time", columns)
    event_fields = _available("EVENT_FIELDS", settings.event_fields, columns, settings)
    if time_column is None:
        _refuse_events_without_time(columns, event_fields)
    user_fields = _available("USER_FIELDS", settings.user_fields, columns, settings)
    _tell_what_stays_behind(columns, user_fields + event_fields)
    return Rules(
        by_user_id=by_user_id,
        identity_column=identity_column,
        user_fields=user_fields,
        event_fields=event_fields,
        event_name=settings.event_name,
        zone=settings.event_timezone,
        clear_nulls=settings.null_values == "clear",
        latest_s=now + FUTURE_TOLERANCE_S,
        time_column=time_column,
        name_column=_optional("event_name", columns),
        id_column=_optional("event_id", columns),
    )


def _identity_column(columns: Sequence[str], by_user_id: bool) -> str:
    candidates = ("user_id", "id") if by_user_id else ("email",)
    for column in candidates:
        if column in columns:
            return column
    raise ColumnsError(
        f"The query has no column {' or '.join(candidates)}, by which ITERABLE_IDENTIFIER="
        f"{'userId' if by_user_id else 'email'} tells people apart; its columns are {_listed(columns)}."
    )


def _optional(column: str, columns: Sequence[str]) -> str | None:
    return column if column in columns else None


def _available(
    name: str, fields: tuple[FieldMap, ...], columns: Sequence[str], settings: Settings
) -> tuple[tuple[str, str], ...]:
    """The fields whose columns the query has. Missing ones are an error where the user named them, else let go."""
    missing = [field.column for field in fields if field.column not in columns]
    if missing and name in settings.given:
        raise ColumnsError(
            f"{name} names {_listed(missing)}, which the query does not have; its columns are {_listed(columns)}."
        )
    return tuple((field.column, field.name) for field in fields if field.column in columns)


def _refuse_events_without_time(columns: Sequence[str], event_fields: tuple[tuple[str, str], ...]) -> None:
    about_events = [column for column, _ in event_fields]
    about_events += [column for column in ("event_name", "event_id") if column in columns]
    if about_events:
        raise ColumnsError(
            f"The query has no column event_time, although {about_events[0]} belongs to events; its columns are "
            f"{_listed(columns)}. Add event_time, or set EVENT_FIELDS=- to send users only."
        )
    logger.info("The query has no column event_time: users are updated, and no events are tracked.")


def _tell_what_stays_behind(columns: Sequence[str], fields: tuple[tuple[str, str], ...]) -> None:
    used = {column for column, _ in fields} | {"id", "user_id", "email", "event_time", "event_name", "event_id"}
    unused = [column for column in columns if column not in used]
    if unused:
        logger.warning(
            "Not sent, as neither USER_FIELDS nor EVENT_FIELDS names them (they are in the CSV): %s.", _listed(unused)
        )


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns)
