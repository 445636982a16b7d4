"""What `--check` says about events: which columns they are made of, and how their times are read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, datetime, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Any

from pipeline.inspect.findings import Area, Finding, good, note
from pipeline.model.text import counted
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.values import InvalidRecord, parsed_time

_DOCUMENTED_ID = re.compile(r"[A-Za-z0-9-]+")  # Iterable's article "Custom Event Properties"


class TimeForm(Enum):
    """How a database may give a time, and what is taken for it."""

    ZONED = "timestamps with a time zone, as they are"
    NAIVE = "timestamps without a time zone, taken as {zone} (EVENT_TIMEZONE)"
    TEXT_ZONED = "text with an offset, as it says"
    TEXT_NAIVE = "text without an offset, taken as {zone} (EVENT_TIMEZONE)"
    DAY = "days without a time of day, taken as midnight in {zone} (EVENT_TIMEZONE)"
    NUMBER = "numbers, taken as Unix seconds"

    def described(self, zone: tzinfo) -> str:
        return self.value.format(zone=zone)


def time_form(value: Any) -> TimeForm | None:
    """None for what is not a time."""
    try:
        found = parsed_time(value, "")
    except InvalidRecord:
        return None
    if isinstance(found, (int, float, Decimal)):
        return TimeForm.NUMBER
    if not isinstance(found, datetime):
        return TimeForm.DAY if isinstance(found, date) else None
    is_text = not isinstance(value, datetime)
    if found.tzinfo is None:
        return TimeForm.TEXT_NAIVE if is_text else TimeForm.NAIVE
    return TimeForm.TEXT_ZONED if is_text else TimeForm.ZONED


class EventColumns:
    """What the first rows have in the columns of events."""

    def __init__(self) -> None:
        self._times: dict[TimeForm, int] = {}  # with the first row that has it
        self._odd_ids = 0  # with characters that Iterable does not document

    def add(self, columns: Columns, rules: Rules, first_row: int) -> None:
        if rules.time_column is not None:
            for row, value in enumerate(columns[rules.time_column], first_row):
                form = time_form(value) if value not in (None, "") else None
                if form is not None:
                    self._times.setdefault(form, row)
        if rules.id_column is not None:
            ids = (str(value) for value in columns[rules.id_column] if value not in (None, ""))
            self._odd_ids += sum(_DOCUMENTED_ID.fullmatch(each) is None for each in ids)

    def findings(self, rules: Rules) -> Iterator[Finding]:
        if rules.time_column is None:
            yield note(Area.EVENTS, "without a column event_time, users are updated and no events are tracked")
            return
        yield good(Area.EVENTS, f"event_time: {self._described_times(rules.zone)}")
        name = f"column {rules.name_column}" if rules.name_column is not None else f"EVENT_NAME={rules.event_name}"
        yield good(Area.EVENTS, f"event_name: {name}")
        yield self._about_ids(rules)

    def _described_times(self, zone: tzinfo) -> str:
        if not self._times:
            return f"times without an offset would be taken as {zone} (EVENT_TIMEZONE)"
        if len(self._times) == 1:
            return next(iter(self._times)).described(zone)
        return "; ".join(f"{form.described(zone)}, such as row {row:,}" for form, row in self._times.items())

    def _about_ids(self, rules: Rules) -> Finding:
        if rules.id_column is None:
            text = (
                "event_id: the query has none, so ids are made from person, name, time and fields, and a correction in "
                "the database becomes a second event"
            )
            return note(Area.EVENTS, text, "alias the event's key AS event_id")
        if not self._odd_ids:
            return good(Area.EVENTS, f"event_id: column {rules.id_column}")
        text = (
            f"event_id: {counted(self._odd_ids, 'id')} of column {rules.id_column} with other characters than letters, "
            "digits and hyphens, which Iterable does not document"
        )
        return note(Area.EVENTS, text, "build the ids of letters, digits and hyphens")
