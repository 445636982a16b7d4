"""The query's columns and the settings -> `Rules`, or the mistake that keeps a run from beginning.

Nothing is dropped silently: a column that is not sent is an error while neither USER_FIELDS nor EVENT_FIELDS is set,
and is listed in `Rules.not_sent` otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import cached_property
from typing import Any

from pipeline.config import Settings
from pipeline.config.fields import EVERY_OTHER, FieldMap, expand, find_clash, find_own_field, is_writable
from pipeline.model.exits import ExitCode, RunError
from pipeline.transform.data_fields import FieldTemplate

logger = logging.getLogger("pipeline.rules")

FUTURE_TOLERANCE_S = 86_400
WHO = ("id", "user_id", "email")  # they say who, whichever of them the project goes by
PREVIOUS_EMAIL = "previous_email"  # an optional column: the address before the present one
OF_EVENTS = ("event_time", "event_name", "event_id")


Columns = Mapping[str, Sequence[Any]]  # the values of some rows, by the column


@dataclass(frozen=True)
class Rules:
    """How rows become payloads.

    zone: of times without an offset. latest_s: events after this (Unix seconds) are refused. id_column, name_column,
    time_column: None where the query has no such column. merge_nested: objects in a profile are merged, not replaced.
    swept: the columns that `*` stands for. not_sent: those that no setting names. person_column: says who somebody is,
    whatever the address; guessed: only where the read shows that it does. previous_column: the address before the
    present one.
    """

    by_user_id: bool
    identity_column: str
    user_fields: tuple[FieldMap, ...]
    event_fields: tuple[FieldMap, ...]
    event_name: str
    zone: tzinfo
    clear_nulls: bool
    latest_s: float
    time_column: str | None = "event_time"
    name_column: str | None = None
    id_column: str | None = None
    merge_nested: bool = False
    swept: frozenset[str] = frozenset()
    not_sent: tuple[str, ...] = ()
    person_column: str | None = None
    person_is_guessed: bool = False
    previous_column: str | None = None
    sends_user_id: bool = False
    email_changes: str = "hold"
    omits_bad_values: bool = False

    @cached_property
    def user_template(self) -> FieldTemplate:
        return FieldTemplate(self.user_fields)

    @cached_property
    def event_template(self) -> FieldTemplate:
        return FieldTemplate(self.event_fields)

    @property
    def person_columns(self) -> tuple[str, ...]:
        """What a row says of its user beside the fields, in this order."""
        return tuple(filter(None, (self.person_column, self.previous_column)))

    @cached_property
    def columns_of_events(self) -> tuple[str, ...]:
        """The columns that say something about an event alone, and nothing about its user."""
        others = {self.identity_column, *(field.column for field in self.user_fields), *self.swept}
        columns = [field.column for field in self.event_fields if field.column not in others]
        return (*columns, self.id_column) if self.id_column is not None else tuple(columns)


class ColumnsError(RunError):
    """The columns of the query and the settings don't go together. `remedy` says what to do."""

    code = ExitCode.NO_INPUT

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


def make_rules(columns: Sequence[str], settings: Settings, now: float) -> Rules:
    """now: Unix seconds. Raises ColumnsError."""
    by_user_id = settings.iterable_identifier == "userId"
    identity_column = _identity_column(columns, by_user_id)
    person_column = None if by_user_id else _person_column(columns, settings)
    previous_column = _optional(PREVIOUS_EMAIL, columns) if person_column is not None else None
    person_is_guessed = person_column == "id" and settings.person_column is None
    if person_is_guessed and settings.send_user_id:
        raise _guessed_id_error()
    others = _columns_without_use(columns, settings, {person_column, previous_column})
    user_fields = _available("USER_FIELDS", _with_address(columns, settings), columns, others, settings)
    event_fields = _available("EVENT_FIELDS", settings.event_fields, columns, others, settings)
    free = [column for column in others if find_own_field(column) is None]
    swept = frozenset(free if EVERY_OTHER in settings.user_fields + settings.event_fields else ())
    not_sent = tuple(column for column in others if column not in swept)
    time_column = _optional("event_time", columns)
    if time_column is None:
        _refuse_events_without_time(columns, event_fields)
    unmapped = [column for column in not_sent if column in free]
    if unmapped and not settings.given & {"USER_FIELDS", "EVENT_FIELDS"}:
        raise _unmapped_columns_error(unmapped, user_fields)
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
        merge_nested=settings.merge_nested,
        swept=swept,
        not_sent=not_sent,
        person_column=person_column,
        person_is_guessed=person_is_guessed,
        previous_column=previous_column,
        sends_user_id=settings.send_user_id and not by_user_id,
        email_changes=settings.email_changes,
        omits_bad_values=settings.bad_values == "omit",
    )


def _guessed_id_error() -> ColumnsError:
    way_out = "alias the person's id AS user_id, or set PERSON_COLUMN=id if it is that"
    return ColumnsError(
        f"SEND_USER_ID=true would send the column id, which may be the id of an event; {way_out}.", way_out
    )


def _person_column(columns: Sequence[str], settings: Settings) -> str | None:
    """The column that says who somebody is, whatever the address."""
    named = settings.person_column
    if named == "-":
        return None
    if named is None:
        return next((column for column in ("user_id", "id") if column in columns), None)
    if named not in columns:
        raise ColumnsError(
            f"PERSON_COLUMN names {named}, which the query does not have; its columns are {_listed(columns)}.",
            "fix PERSON_COLUMN, or add the column to the query",
        )
    return named


def _with_address(columns: Sequence[str], settings: Settings) -> tuple[FieldMap, ...]:
    """A project that knows people by userId has the address as a field like others, by default, too."""
    if settings.iterable_identifier != "userId" or "email" not in columns or "USER_FIELDS" in settings.given:
        return settings.user_fields
    return (FieldMap("email", "email"), *settings.user_fields)


def _identity_column(columns: Sequence[str], by_user_id: bool) -> str:
    candidates = ("user_id", "id") if by_user_id else ("email",)
    for column in candidates:
        if column in columns:
            return column
    raise ColumnsError(
        f"The query has no column {' or '.join(candidates)}, by which ITERABLE_IDENTIFIER="
        f"{'userId' if by_user_id else 'email'} tells people apart; its columns are {_listed(columns)}.",
        f"name a column {candidates[0]} in the query (AS {candidates[0]}), or change ITERABLE_IDENTIFIER",
    )


def _optional(column: str, columns: Sequence[str]) -> str | None:
    return column if column in columns else None


def _columns_without_use(
    columns: Sequence[str], settings: Settings, says_who: Collection[str | None]
) -> tuple[str, ...]:
    """What `*` stands for: neither setting names it, given or by default, and it says neither who nor what happened."""
    used = {field.column for field in _with_address(columns, settings) + settings.event_fields}
    used |= {*WHO, *OF_EVENTS}
    if settings.iterable_identifier == "userId" and "email" not in {field.column for field in settings.user_fields}:
        used -= {"email"} if "USER_FIELDS" in settings.given else set()
    return tuple(column for column in columns if column not in used and column not in says_who)


def _available(
    name: str, fields: tuple[FieldMap, ...], columns: Sequence[str], others: Sequence[str], settings: Settings
) -> tuple[FieldMap, ...]:
    """The fields whose columns the query has. Missing ones are an error where the user named them, else ignored."""
    fields = expand(fields, others)
    missing = [field.column for field in fields if field.column not in columns]
    if missing and name in settings.given:
        raise ColumnsError(
            f"{name} names {_listed(missing)}, which the query does not have; its columns are {_listed(columns)}.",
            f"fix {name}, or add the column to the query",
        )
    if clash := find_clash(fields):  # a name that `*` has brought in
        raise ColumnsError(f"{name} {clash}.", f"fix {name}: give one of the two another field name (column:fieldName)")
    return tuple(field for field in fields if field.column in columns)


def _refuse_events_without_time(columns: Sequence[str], event_fields: tuple[FieldMap, ...]) -> None:
    about_events = [field.column for field in event_fields]
    about_events += [column for column in ("event_name", "event_id") if column in columns]
    if about_events:
        raise ColumnsError(
            f"The query has no column event_time, although {about_events[0]} belongs to events; its columns are "
            f"{_listed(columns)}. Add event_time, or set EVENT_FIELDS=- to send users only.",
            "add event_time to the query (AS event_time), or set EVENT_FIELDS=- to send users only",
        )
    logger.info("The query has no column event_time: users are updated, and no events are tracked.")


def _unmapped_columns_error(columns: Sequence[str], user_fields: Sequence[FieldMap]) -> ColumnsError:
    """The error about columns that would be dropped, with the setting to write in their stead."""
    if all(map(is_writable, columns)):
        line = f"USER_FIELDS={','.join([*(field.column for field in user_fields), *columns])}"
        remedy = f"write {line} (or USER_FIELDS=*) into .env, or name some of them in EVENT_FIELDS"
    else:
        remedy = (
            "write USER_FIELDS=* into .env, or give the columns other names in the query (AS): "
            "one with a comma, a colon or a quote can't be written in USER_FIELDS"
        )
    return ColumnsError(
        f"The query's columns {_listed(columns)} would not be sent, as neither USER_FIELDS nor EVENT_FIELDS is set; "
        f"{remedy}.",
        remedy,
    )


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(columns)
