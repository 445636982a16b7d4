"""What --explain found out about one person, as text and as JSON. Pure.

The text answers in this order: who it is, their rows, whether a run would send the user and each event (or when
Iterable accepted it, or why it can't be sent), what the ledger knows beyond that, and Iterable's copy beside ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from enum import Enum
from itertools import compress
from typing import Any

from pipeline.inspect.person_files import FoundIn
from pipeline.inspect.readback import Field, advice, beside, fields_as_json, missing, verdict_on
from pipeline.model.exits import ExitCode
from pipeline.model.text import GAP, counted, iso, moment, shown, table, text_of, wrapped

MAX_SHOWN = 1000
WIDEST_NAME = 30  # a longer one moves its value to the right
IN = "    "


class State(str, Enum):
    """What a run would do with a record now."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    UNSURE = "unsure"  # accepted once, and sent again later without an answer, or marked by --repair
    REJECTED = "rejected"


@dataclass(frozen=True)
class Before:
    """What went wrong with a record in earlier runs. is_same: its content was what it is now."""

    outcome: str
    status_code: int | None
    code: str | None
    runs_in_a_row: int
    noted_at: float
    is_same: bool


@dataclass(frozen=True)
class RecordReport:
    """A user update or an event. row: where it stands in the query. payload: all that we have. fields_to_send: the
    names of those that would leave; None: all. reason: why it can't be sent. run_id: of the run that sent what was
    accepted last; None where it is not remembered."""

    row: int
    state: State
    payload: dict[str, Any] | None = None
    reason: str | None = None
    accepted_at: float | None = None
    run_id: str | None = None
    before: Before | None = None
    fields_to_send: Sequence[str] | None = None


@dataclass(frozen=True)
class QueriedRow:
    """A row of the query. number: 1 for the first one."""

    number: int
    cells: tuple[Any, ...]


@dataclass(frozen=True)
class Rows:
    """What the query finds. read: rows of everybody. found: this person's; `shown` are the last of them."""

    query_file: str
    columns: Sequence[str]
    read: int
    found: int
    shown: Sequence[QueriedRow]


@dataclass(frozen=True)
class Events:
    """counts: of all events; `shown` are the last of them. repeated: rows that repeat another row's event; None where
    nobody counted them."""

    counts: Mapping[State, int]
    repeated: int | None
    shown: Sequence[RecordReport]


@dataclass(frozen=True)
class Known:
    """What the ledger has. Unix seconds. gone: when events were accepted that the query no longer finds."""

    user_accepted_at: float | None
    events: int
    gone: Sequence[float]


class CopyState(str, Enum):
    """Iterable's copy of the person."""

    SAME = "same"
    DIFFERENT = "different"
    UNCOMPARED = "uncompared"  # it is there, and there is nothing of ours to compare it with
    NOT_FOUND = "not_found"
    NOT_READ = "not_read"


@dataclass(frozen=True)
class Copy:
    """Iterable's copy. fields: ours beside Iterable's. profile: all that Iterable has. problem: why it was not read.
    code: how the program ends for that."""

    state: CopyState
    fields: Sequence[Field] = ()
    profile: Mapping[str, Any] | None = None
    problem: str = ""
    code: ExitCode = ExitCode.SUCCESS


@dataclass(frozen=True)
class Explanation:
    """All of it. who: the identity as records have it, or what was asked for where that is none."""

    who: str
    identifier: str
    notes: Sequence[str]
    rows: Rows
    user: RecordReport | None
    events: Events
    known: Known
    copy: Copy
    files: Sequence[FoundIn] | None = None  # None: nobody asked for them
    forgotten_on: date | None = None  # by --forget

    @property
    def is_known(self) -> bool:
        in_ledger = self.known.user_accepted_at is not None or self.known.events
        return bool(self.rows.found or in_ledger or self.copy.profile is not None or self.files or self.forgotten_on)

    @property
    def exit_code(self) -> ExitCode:
        if self.copy.code is not ExitCode.SUCCESS or self.is_known:
            return self.copy.code
        return ExitCode.REJECTED


# Text -----------------------------------------------------------------------------------------------------------------


def as_text(each: Explanation) -> Iterator[str]:
    """Lines of at most 80 columns, as far as single words allow."""
    yield shown(each.who)
    for note in each.notes:
        yield from wrapped(note)
    if not each.is_known and each.copy.state is not CopyState.NOT_READ:
        rows = f"the {counted(each.rows.read, 'row')} of {each.rows.query_file}"
        yield from wrapped(f"Unknown: neither in {rows}, nor in the ledger, nor in Iterable.")
        return
    for part in (_rows(each.rows), _user(each), _events(each), _gone(each), _copy(each), _files(each)):
        lines = list(part)
        if lines:
            yield ""
            yield from lines


def _rows(rows: Rows) -> Iterator[str]:
    yield f"Rows: {rows.found:,} of the {counted(rows.read, 'row')} of {rows.query_file}{_last(rows.found, rows.shown)}"
    if not rows.shown:
        return
    table_of = [[shown(cell) for cell in row.cells] for row in rows.shown]
    alike = [len(set(cells)) == 1 for cells in zip(*table_of, strict=True)]
    if len(rows.shown) == 1:
        yield f"{IN}row {rows.shown[0].number:,}"
    elif any(alike):
        yield f"{IN}in each of them"
    yield from _pairs(list(compress(zip(rows.columns, table_of[0], strict=True), alike)), IN * 2)
    if not all(alike):
        yield from _varying(rows, [not each for each in alike], table_of)
    elif len(rows.shown) > 1:
        yield from wrapped(f"alike: rows {', '.join(f'{row.number:,}' for row in rows.shown)}", IN)


def _varying(rows: Rows, varies: Sequence[bool], cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of what differs between the rows, or, where that is too wide, a paragraph for each row."""
    columns = [shown(column) for column in compress(rows.columns, varies)]
    numbered = [[f"{row.number:,}", *compress(texts, varies)] for row, texts in zip(rows.shown, cells, strict=True)]
    lines = table([["row", *columns], *numbered], IN)
    if lines is not None and "…" not in lines[0]:  # event_id, event_name and event_time are distinguishable
        yield from lines
        return
    for number, *texts in numbered:
        yield from wrapped(f"row {number}: {_listed(zip(columns, texts, strict=True))}", IN, IN * 2)


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    """`page pricing, device desktop`"""
    return ", ".join(f"{name} {value}" for name, value in pairs)


def _values(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    return _pairs([(shown(name), shown(value)) for name, value in values.items()], indent)


def _pairs(pairs: Sequence[tuple[str, str]], indent: str) -> Iterator[str]:
    width = min(max((len(name) for name, _ in pairs), default=0), WIDEST_NAME)
    for name, value in pairs:
        yield from wrapped(f"{name:{width}}{GAP}{value}", indent, indent + " " * (width + len(GAP)))


def _user(each: Explanation) -> Iterator[str]:
    user = each.user
    if user is None:
        accepted_at = each.known.user_accepted_at
        known = f"accepted {moment(accepted_at)}" if accepted_at is not None else "not in the ledger"
        yield f"User: {known}; without a row, nothing is sent"
        return
    unchanged = ", unchanged since" if user.state is State.UNCHANGED else ""
    yield from wrapped(f"User: {_verdict(user)}{unchanged}", "", IN)
    yield from _run(user, IN)
    if user.fields_to_send and user.state in (State.CHANGED, State.UNSURE):
        yield from wrapped(f"of its fields, these are sent: {', '.join(map(shown, user.fields_to_send))}", IN)
    yield from _before(user, IN)
    if user.payload is not None and not each.copy.fields:  # else they stand beside Iterable's
        yield from _values(user.payload["dataFields"], IN)


def _verdict(record: RecordReport) -> str:
    when = f" {moment(record.accepted_at)}" if record.accepted_at is not None else ""
    if record.state is State.REJECTED:
        accepted = f" (An earlier version was accepted{when}.)" if when else ""
        return f"can't be sent: {record.reason}{accepted}"
    if record.state is State.UNCHANGED:
        return f"accepted{when}"
    if record.state is State.UNSURE:
        return f"to be sent; accepted{when}, and sent again later without an answer, or marked by --repair"
    return f"to be sent; changed since accepted{when}" if when else "to be sent; never accepted so far"


def _run(record: RecordReport, indent: str) -> Iterator[str]:
    if record.run_id is not None:
        yield f"{indent}last accepted in run {record.run_id}"


def _before(record: RecordReport, indent: str) -> Iterator[str]:
    before = record.before
    if before is None or record.state is State.UNCHANGED:
        return
    reason = " ".join(str(each) for each in (before.status_code, before.code) if each is not None)
    what = "This" if before.is_same else "An earlier version"
    runs = f" in {before.runs_in_a_row:,} runs in a row" if before.runs_in_a_row > 1 else ""
    ended = f"{what} was {before.outcome}{runs}{f' ({reason})' if reason else ''}"
    yield from wrapped(f"{ended}, last noted on {moment(before.noted_at)}.", indent)


def _events(each: Explanation) -> Iterator[str]:
    counts = each.events.counts
    total = sum(counts.values())
    if not total:
        yield "Events: none in the rows" if each.rows.found else "Events: none, as there is no row"
        return
    accepted, rejected = counts.get(State.UNCHANGED, 0), counts.get(State.REJECTED, 0)
    parts = ((total - accepted - rejected, "to be sent"), (accepted, "accepted"), (rejected, "can't be sent"))
    yield f"Events: {', '.join(f'{count:,} {what}' for count, what in parts if count)}{_last(total, each.events.shown)}"
    if each.events.repeated:
        yield f"{IN}{counted(each.events.repeated, 'more row')} repeat an event, which is sent once"
    for event in each.events.shown:
        yield from _event(event)


def _event(event: RecordReport) -> Iterator[str]:
    if event.payload is None:
        yield from wrapped(f"row {event.row:,}: {_verdict(event)}", IN, IN * 2)
    else:
        name, happened = shown(event.payload["eventName"]), moment(event.payload["createdAt"])
        yield from wrapped(f"{happened}  {name}: {_verdict(event)}", IN, IN * 2)
        yield from wrapped(f"event_id {shown(event.payload['id'])}", IN * 2)
        yield from _run(event, IN * 2)
        fields = event.payload["dataFields"]
        if fields:
            yield from wrapped(_listed((shown(name), shown(value)) for name, value in fields.items()), IN * 2)
    yield from _before(event, IN * 2)


def _gone(each: Explanation) -> Iterator[str]:
    gone = each.known.gone
    if not gone:
        return
    first, last = moment(min(gone)), moment(max(gone))
    when = f"on {first}" if first == last else f"from {first} to {last}"
    yield from wrapped(
        f"The ledger also knows {counted(len(gone), 'event')} of this person that the query no longer finds, accepted "
        f"{when}. It keeps only hashes, so it can't say what they were."
    )


def _copy(each: Explanation) -> Iterator[str]:
    copy = each.copy
    if copy.state is CopyState.NOT_READ:
        yield from wrapped(f"Iterable's copy: not read. {copy.problem}")
    elif copy.state is CopyState.NOT_FOUND:
        yield "Iterable's copy: none; Iterable does not know this person"
    elif copy.state is CopyState.UNCOMPARED:
        yield "Iterable's copy:"
        yield from _values((copy.profile or {}).get("dataFields") or {}, IN)
    else:
        yield f"Iterable's copy: {verdict_on(copy.fields)}"
        yield from beside(copy.fields)
    if each.user is not None and each.user.state is State.UNCHANGED and copy.state in _IN_NEED:
        yield from wrapped(advice(is_any_missing=bool(missing(copy.fields))))


def _files(each: Explanation) -> Iterator[str]:
    if each.files is None:
        return
    if not each.files:
        yield "Files: none in OUTPUT_DIR names this person"
        return
    yield "Files:"
    for file in each.files:
        if file.problem:
            yield from wrapped(f"{file.name}: can't be read ({file.problem})", IN, IN * 2)
        else:
            what = "failure" if file.name.endswith(".json") else "line"
            what += "s" if file.count != 1 else ""
            more = f", and {file.count - len(file.lines):,} more" if file.count > len(file.lines) else ""
            found = f"{what} {', '.join(map(str, file.lines))}{more}" if file.lines else "changed addresses"
            yield from wrapped(f"{file.name}: {found}", IN, IN * 2)


_IN_NEED = (CopyState.DIFFERENT, CopyState.NOT_FOUND)


def _last(total: int, listed: Sequence[object]) -> str:
    return f"; the last {len(listed):,}:" if len(listed) < total else ""


# JSON -----------------------------------------------------------------------------------------------------------------


def as_json(each: Explanation) -> dict[str, Any]:
    """One object; times are ISO 8601 in UTC. Values of the query that JSON does not have are text."""
    return {
        "who": each.who,
        "identifier": each.identifier,
        "is_known": each.is_known,
        "notes": list(each.notes),
        "query": {
            "file": each.rows.query_file,
            "rows_read": each.rows.read,
            "rows_found": each.rows.found,
            "rows": [
                {"row": row.number, "values": _plain(dict(zip(each.rows.columns, row.cells, strict=True)))}
                for row in each.rows.shown
            ],
        },
        "user": _record_as_json(each.user) if each.user is not None else None,
        "events": {
            "counts": {state.value: each.events.counts.get(state, 0) for state in State},
            "repeated": each.events.repeated,
            "shown": [_record_as_json(event) for event in each.events.shown],
        },
        "ledger": {
            "user_accepted_at": iso(each.known.user_accepted_at),
            "events": each.known.events,
            "events_not_in_query": len(each.known.gone),
            "first_of_them_accepted_at": iso(min(each.known.gone, default=None)),
            "last_of_them_accepted_at": iso(max(each.known.gone, default=None)),
            "forgotten_on": each.forgotten_on.isoformat() if each.forgotten_on is not None else None,
        },
        "iterable": {
            "state": each.copy.state.value,
            "problem": each.copy.problem or None,
            "fields": fields_as_json(each.copy.fields),
            "profile": each.copy.profile,
        },
        "files": None if each.files is None else [asdict(file) for file in each.files],
        "exit_code": int(each.exit_code),
    }


def _record_as_json(record: RecordReport) -> dict[str, Any]:
    before = record.before
    return {
        "row": record.row,
        "state": record.state.value,
        "reason": record.reason,
        "accepted_at": iso(record.accepted_at),
        "run_id": record.run_id,
        "before": {**asdict(before), "noted_at": iso(before.noted_at)} if before is not None else None,
        "fields_to_send": list(record.fields_to_send) if record.fields_to_send is not None else None,
        "payload": record.payload,
    }


def _plain(value: Any) -> Any:
    """A database's value as JSON has it, else as text."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return text_of(value)
