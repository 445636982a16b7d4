"""A row -> a user update and an event, as Iterable takes them. Pure: no network, no clock, no files.

`Rules` says how; `user_update` and `event` apply them. What can't be sent raises InvalidRecord with the reason.

    {"email": "ada@example.com", "plan_type": "pro", "page": "pricing", "event_time": "2026-01-13 08:45:12"}
    -> {"email": "ada@example.com", "dataFields": {"plan_type": "pro"}}
    -> {"email": "ada@example.com", "eventName": "page_view", "id": "ue1-5d0c...", "createdAt": 1768293912,
        "dataFields": {"page": "pricing"}}
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import compress
from operator import itemgetter
from typing import Any
from uuid import UUID

ID_VERSION = "ue1"  # change it and every event without an id of its own is sent again, as another event
MAX_EVENT_ID_BYTES = 512
MAX_USER_ID_CHARS = 52
MAX_EMAIL_LOCAL_CHARS = 64
MAX_EMAIL_DOMAIN_CHARS = 253
MAX_INT = 2**63 - 1
DAY_S = 86_400
MAX_DEPTH = 20
REMEMBERED_EMAILS = 10_000

JsonObject = dict[str, Any]


class InvalidRecord(Exception):
    """A record that can't be sent; the text is the reason, a sentence without the full stop."""


@dataclass(frozen=True)
class Rules:
    """How rows become payloads.

    fields: (column, field name) pairs. zone: of times without an offset. latest_s: events after this (Unix seconds) are
    refused. id_column, name_column, time_column: None where the query has no such column.
    """

    by_user_id: bool
    identity_column: str
    user_fields: tuple[tuple[str, str], ...]
    event_fields: tuple[tuple[str, str], ...]
    event_name: str
    zone: tzinfo
    clear_nulls: bool
    latest_s: float
    time_column: str | None = "event_time"
    name_column: str | None = None
    id_column: str | None = None

    @cached_property
    def event_openings(self) -> tuple[tuple[str, str], ...]:
        """The event's columns in the order of their fields' names, each with what stands before its value in JSON."""
        by_name = sorted(self.event_fields, key=itemgetter(1))
        return tuple((column, f"{_quote(name)}:") for column, name in by_name)

    @cached_property
    def columns_of_events(self) -> tuple[str, ...]:
        """The columns that say something about an event alone, and nothing about its user."""
        of_the_user = {self.identity_column, *(column for column, _ in self.user_fields)}
        columns = [column for column, _ in self.event_fields if column not in of_the_user]
        return (*columns, self.id_column) if self.id_column is not None else tuple(columns)


# Identity -----------------------------------------------------------------------------------------------------------

# After Apache Commons' EmailValidator, which Iterable uses (its article "Email Validation in Iterable"). Narrower only
# in what no mailbox needs: an IP address for a domain, a dot at the end, invisible characters. Wider in one thing:
# whether a top-level domain exists is left to Iterable.
_ATOM = r"(?:\\[^\s]|[^\s\x00-\x1f\x7f()<>@,;:\\\".\[\]])+"
_WORD = rf"(?:{_ATOM}|\"(?:\\\"|[^\"])*\")"
_LOCAL = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?:[a-z]{{2,63}}|xn--[a-z0-9-]{{1,58}}[a-z0-9])", re.ASCII | re.IGNORECASE)


def identity(row: Mapping[str, Any], rules: Rules) -> str:
    """Who the row is about: the e-mail in lower case, as Iterable stores it, or the userId to the letter."""
    text = row[rules.identity_column]
    if type(text) is not str:
        text = _id_text(text, rules.identity_column)
    return _user_id(text, rules.identity_column) if rules.by_user_id else _email(text, rules.identity_column)


@lru_cache(maxsize=REMEMBERED_EMAILS)  # most rows repeat the address of the row before
def _email(text: str, column: str) -> str:
    text = text.strip()
    if not text:
        raise InvalidRecord(f"{column} is empty, so nobody is named")
    local, _, domain = text.rpartition("@")
    if not (text.isprintable() and _LOCAL.fullmatch(local) and _is_domain(domain)):
        raise InvalidRecord(f"{column} is not an e-mail address")
    if len(local) > MAX_EMAIL_LOCAL_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_EMAIL_LOCAL_CHARS} characters before the @")
    return text.lower()


def _is_domain(text: str) -> bool:
    if not text.isascii():
        try:
            text = text.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    return len(text) <= MAX_EMAIL_DOMAIN_CHARS and _DOMAIN.fullmatch(text) is not None


def _user_id(text: str, column: str) -> str:
    """Iterable's rule: 1 to 52 printable ASCII characters, no space at the end."""
    if not text:
        raise InvalidRecord(f"{column} is empty, so nobody is named")
    if len(text) > MAX_USER_ID_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_USER_ID_CHARS} characters")
    if not (text.isascii() and text.isprintable()) or text.endswith(" "):
        raise InvalidRecord(f"{column} has a character that no user id may have, or a space at its end")
    return text


def _id_text(value: Any, column: str) -> str:
    """An id, as databases give it, as text: 17, 17.0 and Decimal("17.00") are one id. NULL is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _decoded(value, column)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _whole_number_text(value, column)
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which is no id")


def _whole_number_text(value: int | float | Decimal, column: str) -> str:
    if not _is_within(value, 10**MAX_USER_ID_CHARS) or value != int(value):
        raise InvalidRecord(f"{column} is not a whole number, or has more than {MAX_USER_ID_CHARS} digits")
    return str(int(value))


def _is_within(value: int | float | Decimal, limit: int) -> bool:
    """False also for NaN and infinity. Decimals are asked first, as comparing their NaN raises."""
    return (not isinstance(value, Decimal) or value.is_finite()) and -limit < value < limit


def _is_unicode(text: str) -> bool:
    """False for text with lone surrogates, which is what bytes that are no UTF-8 become."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# The two payloads -----------------------------------------------------------------------------------------------------


def user_update(row: Mapping[str, Any], who: str, rules: Rules) -> JsonObject:
    """The body of users/update, which is also an element of users/bulkUpdate."""
    payload: JsonObject = {"userId": who, "preferUserId": True} if rules.by_user_id else {"email": who}
    payload["dataFields"] = _data_fields(row, rules.user_fields, rules)
    return payload


Event = tuple[str, bytes]  # its id, and the whole of its payload in JSON


def event(row: Mapping[str, Any], who: str, rules: Rules) -> Event | None:
    """The body of events/track, which is also an element of events/trackBulk; None for a row without an event."""
    (found,) = events([row], [who], rules)
    if isinstance(found, InvalidRecord):
        raise found
    return found


def events(
    rows: Sequence[Mapping[str, Any]], people: Sequence[str], rules: Rules
) -> Sequence[Event | InvalidRecord | None]:
    """For each row, which is about the person at the same place: what `event` returns, or raises.

    Rows are converted by the column, in a third of the time that they take one by one. Only where one of them can't be
    sent, each is converted alone.
    """
    if rules.time_column is None or not rows:
        return [None] * len(rows)
    moments = [row[rules.time_column] for row in rows]
    try:
        if None not in moments and "" not in moments:
            return _convert_events(rows, people, moments, rules)
    except InvalidRecord as problem:
        if len(rows) == 1:
            return [problem]
        return [events([row], [who], rules)[0] for row, who in zip(rows, people, strict=True)]
    has_event = [moment is not None and moment != "" for moment in moments]
    found = iter(events(list(compress(rows, has_event)), list(compress(people, has_event)), rules))
    return [next(found) if has else _row_without_time(row, rules) for row, has in zip(rows, has_event, strict=True)]


def _convert_events(
    rows: Sequence[Mapping[str, Any]], people: Sequence[str], moments: list[Any], rules: Rules
) -> list[Event]:
    """Rows that all carry an event -> their events, put together from parts that are JSON already."""
    names = _event_names(rows, rules)
    microseconds = _unix_microseconds(moments, rules)
    who = list(map(_quote, people))
    filled = _fields_json(rows, rules, nulls=False)
    ids = list(map(derived_event_id, names, who, microseconds, filled))
    if rules.id_column is not None:
        given = [_given_event_id(row[rules.id_column], rules.id_column) for row in rows]
        ids = [one or other for one, other in zip(given, ids, strict=True)]
    fields = _fields_json(rows, rules, nulls=True) if rules.clear_nulls else filled
    opening = '{"userId":' if rules.by_user_id else '{"email":'
    return [
        (
            event_id,
            f'{opening}{person},"eventName":{name},"id":{_quote(event_id)},"createdAt":{moment // 1_000_000},'
            f'"dataFields":{{{each}}}}}'.encode(),
        )
        for person, name, event_id, moment, each in zip(who, names, ids, microseconds, fields, strict=True)
    ]


def has_event(row: Mapping[str, Any], rules: Rules) -> bool:
    """Whether a row that names nobody carries an event all the same, so that it can be accounted for."""
    return rules.time_column is not None and row[rules.time_column] not in (None, "")


def _row_without_time(row: Mapping[str, Any], rules: Rules) -> InvalidRecord | None:
    """A LEFT JOIN leaves all columns of the event empty, but not those that describe the user in it."""
    for column in rules.columns_of_events:
        if row[column] is not None and row[column] != "":
            return InvalidRecord(f"{rules.time_column} is empty, although {column} says that there was an event")
    return None


def _event_names(rows: Sequence[Mapping[str, Any]], rules: Rules) -> list[str]:
    """The names in JSON."""
    column = rules.name_column
    if column is None:
        return [_quote(rules.event_name)] * len(rows)
    return [_quote(_event_name(row[column], column)) for row in rows]


def _event_name(name: Any, column: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InvalidRecord(f"{column} is empty or no text")
    return _text(name, column)


def _given_event_id(value: Any, column: str) -> str:
    """The query's own event id, at most 512 bytes as Iterable's connectors document it; empty where there is none."""
    text = _text(_id_text(value, column), column)
    if len(text.encode("utf-8")) > MAX_EVENT_ID_BYTES:
        raise InvalidRecord(f"{column} is longer than {MAX_EVENT_ID_BYTES} bytes")
    return text if text.strip() else ""


def derived_event_id(name: str, who: str, microseconds: int, fields: str) -> str:
    """The same for the same event in every run, on every machine: its name, person, time and fields but for NULLs.

    All of them in JSON; the fields without braces and in the order of their names, so that the order of EVENT_FIELDS
    does not matter.
    """
    content = f'["{ID_VERSION}",{name},{who},{microseconds},{{{fields}}}]'
    return f"{ID_VERSION}-{hashlib.sha256(content.encode()).hexdigest()[:40]}"


def _fields_json(rows: Sequence[Mapping[str, Any]], rules: Rules, *, nulls: bool) -> list[str]:
    """The events' fields in JSON, without braces, in the order of their names. nulls: whether to write them."""
    if not rules.event_openings:
        return [""] * len(rows)
    columns = [
        _column_json([row[column] for row in rows], column, opening, f"{opening}null" if nulls else "", rules.zone)
        for column, opening in rules.event_openings
    ]
    if any("" in column for column in columns):
        return [",".join(filter(None, fields)) for fields in zip(*columns, strict=True)]
    return list(map(",".join, zip(*columns, strict=True)))


def _column_json(values: list[Any], column: str, opening: str, null: str, zone: tzinfo) -> list[str]:
    """A column's values as parts of JSON objects, each with its field's name; `null` in place of NULLs."""
    if set(map(type, values)) == {str} and "".join(values).isascii():
        return [opening + _quote(value) for value in values]
    return [null if value is None else opening + _canonical(json_value(value, column, zone)) for value in values]


def _make_encoder(*, sort_keys: bool) -> Callable[[Any], str]:
    """A JSON encoder that refuses NaN and keeps non-ASCII text.

    JSONEncoder.encode makes its C encoder anew for each call, which takes half of the time of a small payload. Payloads
    are built here and hold no cycles, so none are looked for.
    """
    general = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), sort_keys=sort_keys
    )
    try:
        encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, general.default, json.encoder.encode_basestring, None, ":", ",", sort_keys, False, False
        )
    except TypeError:  # a Python without it
        return general.encode
    return lambda value: "".join(encode(value, 0))


_compact = _make_encoder(sort_keys=False)
_canonical = _make_encoder(sort_keys=True)
_quote = json.encoder.encode_basestring  # text -> JSON text, non-ASCII kept


def encode(payload: JsonObject) -> bytes:
    """Payload -> the bytes that go to Iterable."""
    return _compact(payload).encode("utf-8")


# Values -------------------------------------------------------------------------------------------------------------


def _data_fields(row: Mapping[str, Any], fields: tuple[tuple[str, str], ...], rules: Rules) -> JsonObject:
    values: JsonObject = {}
    for column, name in fields:
        value = row[column]
        if value is None:
            if rules.clear_nulls:
                values[name] = None
        elif type(value) is str and value.isascii():
            values[name] = value
        else:
            values[name] = json_value(value, column, rules.zone)
    return values


def json_value(value: Any, column: str, zone: tzinfo, depth: int = 0) -> Any:
    """A database value -> its JSON value. InvalidRecord, naming the column, for what JSON or Iterable can't hold.

    zone: of times without an offset. Times become UTC; Decimals become floats; bytes must be UTF-8.
    """
    if isinstance(value, datetime):
        return _moment(value, column, zone)
    convert = _CONVERTERS.get(type(value))
    if convert is None:
        convert = next((each for kind, each in _CONVERTERS.items() if isinstance(value, kind)), None)
    if convert is not None:
        return convert(value, column)
    if depth >= MAX_DEPTH:
        raise InvalidRecord(f"{column} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        return {_key(key, column): json_value(each, column, zone, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        values = [json_value(each, column, zone, depth + 1) for each in value]
        # A set in one order in every run, as the event's id depends on it.
        return values if isinstance(value, (list, tuple)) else sorted(values, key=_canonical)
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which can't be sent")


def _text(value: str, column: str) -> str:
    if not _is_unicode(value):
        raise InvalidRecord(f"{column} has bytes that are no UTF-8")
    return str(value)


def _key(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise InvalidRecord(f"{column} has a key that is no text")
    return _text(value, column)


def _whole(value: int, column: str) -> int:
    if not -MAX_INT - 1 <= value <= MAX_INT:
        raise InvalidRecord(f"{column} is a number beyond 64 bits")
    return int(value)


def _float(value: float, column: str) -> float:
    if not math.isfinite(value):
        raise InvalidRecord(f"{column} is {value}, which JSON can't hold")
    return float(value)


def _decimal(value: Decimal, column: str) -> float:
    # Always a float: a column that is now 5 and now 5.5 must not change its type in Iterable.
    if not value.is_finite():
        raise InvalidRecord(f"{column} is {value}, which JSON can't hold")
    return _float(float(value), column)


def _decoded(value: bytes | bytearray | memoryview, column: str) -> str:
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRecord(f"{column} has bytes that are no UTF-8") from None


def _moment(value: datetime, column: str, zone: tzinfo) -> str:
    """The one form of a date that every source on Iterable agrees on: UTC, with an offset, without a fraction."""
    try:
        utc = _aware(value, zone).astimezone(timezone.utc)
    except OverflowError:
        raise InvalidRecord(f"{column} is beyond the years that a date can have") from None
    return f"{utc.isoformat(' ', 'seconds')[:19]} +00:00"


def _day(value: date, column: str) -> str:
    """A day has no time zone, so it stays the day that it is: midnight in UTC."""
    return f"{value.isoformat()} 00:00:00 +00:00"


def _aware(value: datetime, zone: tzinfo) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=zone)


_CONVERTERS: dict[type, Callable[[Any, str], Any]] = {
    bool: lambda value, column: bool(value),  # before int, which it is a subclass of
    type(None): lambda value, column: None,
    str: _text,
    int: _whole,
    float: _float,
    Decimal: _decimal,
    date: _day,
    time: lambda value, column: value.isoformat(),
    timedelta: lambda value, column: value.total_seconds(),
    UUID: lambda value, column: str(value),
    IPv4Address: lambda value, column: str(value),
    IPv6Address: lambda value, column: str(value),
    IPv4Network: lambda value, column: str(value),
    IPv6Network: lambda value, column: str(value),
    bytes: _decoded,
    bytearray: _decoded,
    memoryview: _decoded,
}


# Times --------------------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_PLAIN_TIME = ("-- ::", "--T::")  # what 2026-01-13 08:45:12, as nearly all texts are, has at every third place from 4
_TIME_TEXT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?)?\s?(?:(Z|UTC|GMT)|([+-]\d\d)(?::?(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)


def _unix_microseconds(moments: Sequence[Any], rules: Rules) -> list[int]:
    """The times of events -> microseconds since 1970, within the bounds of what Iterable should be sent."""
    column = str(rules.time_column)
    found: list[int] = []
    if rules.zone is timezone.utc and set(map(type, moments)) == {str}:
        with suppress(ValueError):  # it can't be told here which one it is
            found = [
                (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
                for text in moments
                if len(text) == 19 and text[4:17:3] in _PLAIN_TIME
            ]
    if len(found) != len(moments):
        found = [unix_microseconds(moment, rules.zone, column) for moment in moments]
    if min(found) < 0 or max(found) // 1_000_000 > rules.latest_s:
        for each in found:
            _check_time(each // 1_000_000, rules)
    return found


def unix_microseconds(value: Any, zone: tzinfo, column: str) -> int:
    """A time, as databases give it, -> microseconds since 1970. InvalidRecord for what is none.

    Times and dates without an offset are in `zone`. Numbers are Unix seconds.
    """
    if isinstance(value, str):
        value = _parse_time(value.strip(), column)
    if isinstance(value, datetime):
        if value.tzinfo is None and zone is timezone.utc:
            return (value - _EPOCH) // _MICROSECOND  # half the time of the general way
        return (_aware(value, zone) - _EPOCH_UTC) // _MICROSECOND
    if isinstance(value, date):
        return unix_microseconds(datetime.combine(value, time()), zone, column)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if not _is_within(value, MAX_INT):
            raise InvalidRecord(f"{column} is a number that is no time")
        return round(value * 1_000_000)
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which is no time")


def _parse_time(text: str, column: str) -> datetime:
    """ISO 8601 and its usual relatives: a space for the T, Z or UTC, fractions of any length, dates alone."""
    try:
        return datetime.fromisoformat(_normal_form(text, column))
    except ValueError:
        raise InvalidRecord(f"{column} is a day or a time that does not exist") from None


def _normal_form(text: str, column: str) -> str:
    """A time -> the one way of writing it that datetime.fromisoformat takes in every Python since 3.7."""
    match = _TIME_TEXT.fullmatch(text)
    if match is None:
        raise InvalidRecord(f"{column} is no time of the form 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00")
    day, minutes, seconds, fraction, is_utc, hours_off, minutes_off = match.groups()
    offset = "+00:00" if is_utc else f"{hours_off}:{minutes_off or '00'}" if hours_off else ""
    micro = f".{fraction[:6]:0<6}" if fraction else ""
    return f"{day}T{minutes or '00:00'}{seconds or ':00'}{micro}{offset}"


def _check_time(created_at: int, rules: Rules) -> None:
    if created_at < 0:
        raise InvalidRecord(f"{rules.time_column} is before 1970")
    if created_at > rules.latest_s:
        hint = "; is it in milliseconds" if created_at > 1000 * DAY_S * 365 else ""
        raise InvalidRecord(f"{rules.time_column} is more than a day in the future{hint}")
