"""A database's values -> JSON, each by its own type or by the one that its field is declared to have. Pure.

The same value gives the same JSON whichever database it comes from, as the ids of events depend on it. What can't be
sent raises InvalidRecord; its text names the column and the kind of the value, and never the value itself.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any
from uuid import UUID

from iterable.export import types_of
from pipeline.config import FieldMap, FieldType
from pipeline.model.records import Unreadable

MAX_INT = 2**63 - 1
MAX_DIGITS = 400  # on either side of the point; a double has no more
MAX_DEPTH = 20
LEAST_UNIX_TIME = 100_000_000  # seconds; in March 1973
NOT_UTF8 = "is not valid UTF-8"
TIME_FORMS = "expected 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00"

_TEXT_OR_NULL = frozenset({str, type(None)})
_WHOLE_TEXT = re.compile(r"[+-]?\d{1,30}(?:\.0*)?", re.ASCII)
_NUMBER_TEXT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,5})?", re.ASCII)
_BOOLEANS = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}
_BITS = {b"\0": False, b"\1": True}  # MySQL's BIT(1)


class InvalidRecord(Exception):
    """A record that can't be sent; the text is the reason, a sentence without the full stop."""


# Columns ------------------------------------------------------------------------------------------------------------


def json_column(values: Sequence[Any], field: FieldMap, zone: tzinfo) -> list[str]:
    """A part of a column -> each value in JSON, "" for NULL. InvalidRecord where one of them can't be sent.

    zone: of times without an offset.
    """
    kinds = types_of(values)
    if kinds == {str} and field.type in (None, FieldType.TEXT) and is_unicode("".join(values)):
        return list(map(quote, values))
    if kinds <= _TEXT_OR_NULL and field.type in (None, FieldType.TEXT) and is_unicode("".join(filter(None, values))):
        return ["" if value is None else quote(value) for value in values]
    if kinds == {int} and field.type is None and min(values) >= -MAX_INT - 1 and max(values) <= MAX_INT:
        return list(map(str, values))
    found = [field_value(value, field, zone) for value in values]
    return ["" if value is None else canonical(value) for value in found]


def field_value(value: Any, field: FieldMap, zone: tzinfo) -> Any:
    """A database value -> its JSON value, None for NULL."""
    if value is None or (field.type is not FieldType.TEXT and field.type is not None and _is_blank(value)):
        return None
    if field.type is None:
        return json_value(value, field.column, zone)
    if isinstance(value, Unreadable):
        raise InvalidRecord(f"{field.column} {value.problem}")
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = _BITS[bytes(value)] if bytes(value) in _BITS else decoded(value, field.column)
    return _TYPES[field.type](value, field.column, zone)


def _is_blank(value: Any) -> bool:
    return isinstance(value, (str, bytes)) and not value.strip()


# Values by their own type -------------------------------------------------------------------------------------------


def json_value(value: Any, column: str, zone: tzinfo, depth: int = 0) -> Any:
    """A database value -> its JSON value. Times become UTC; Decimals become floats; bytes must be UTF-8."""
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
        return values if isinstance(value, (list, tuple)) else sorted(values, key=canonical)
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which can't be sent")


def text(value: str, column: str) -> str:
    if not is_unicode(value):
        raise InvalidRecord(f"{column} {NOT_UTF8}")
    return str(value)


def is_unicode(value: str) -> bool:
    """False for text with lone surrogates, which is what bytes that are not UTF-8 become."""
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def decoded(value: bytes | bytearray | memoryview, column: str) -> str:
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRecord(f"{column} {NOT_UTF8}") from None


def is_within(value: int | float | Decimal, limit: int) -> bool:
    """False also for NaN and infinity. Decimals are asked first, as comparing their NaN raises."""
    return (not isinstance(value, Decimal) or value.is_finite()) and -limit < value < limit


def _key(key: object, column: str) -> str:
    if not isinstance(key, str):
        raise InvalidRecord(f"{column} has a key that is not text")
    return text(key, column)


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
    return _exact(_float(float(value), column), value, column)


def _exact(number: float, value: int | Decimal, column: str) -> float:
    """Digits of an id or a balance must not change on the way; those behind the point may be rounded."""
    if abs(number) >= 2**53 and int(number) != int(value):
        kind = "a whole number" if value == int(value) else "a number"
        raise InvalidRecord(
            f"{column} is {kind} that a double can't hold exactly; cast it to text or bigint in the query"
        )
    return number


def _moment(value: datetime, column: str, zone: tzinfo) -> str:
    """The one form of a date that every source on Iterable agrees on: UTC, with an offset, without a fraction."""
    try:
        utc = _aware(value, zone).astimezone(timezone.utc)
    except OverflowError:
        raise InvalidRecord(f"{column} is outside the years that a date can have") from None
    return f"{utc.isoformat(' ', 'seconds')[:19]} +00:00"


def _day(value: date, _column: str) -> str:
    """A day has no time zone, so it stays the day that it is: midnight in UTC."""
    return f"{value.isoformat()} 00:00:00 +00:00"


def _aware(value: datetime, zone: tzinfo) -> datetime:
    return value if value.tzinfo is not None else value.replace(tzinfo=zone)


def _unreadable(value: Unreadable, column: str) -> Any:
    raise InvalidRecord(f"{column} {value.problem}")


_CONVERTERS: dict[type, Callable[[Any, str], Any]] = {
    bool: lambda value, column: bool(value),  # before int, which it is a subclass of
    type(None): lambda value, column: None,
    str: text,
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
    bytes: decoded,
    bytearray: decoded,
    memoryview: decoded,
    Unreadable: _unreadable,
}


# Values by the type of their field ----------------------------------------------------------------------------------

# Each takes a value that is neither NULL nor bytes, its column, and the zone of times without an offset.


def _as_text(value: Any, column: str, zone: tzinfo) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return _number_text(value, column)
    if isinstance(value, datetime):
        return value.isoformat(" ")
    if isinstance(value, date):
        return value.isoformat()
    plain = json_value(value, column, zone)
    return plain if isinstance(plain, str) else canonical(plain)


def _number_text(value: int | float | Decimal, column: str) -> str:
    """5, 5.0 and Decimal("5.00") are one text, as databases differ in which of them they give."""
    if not is_within(value, 10**MAX_DIGITS):
        raise _misfit(value, FieldType.TEXT, column)
    if value == int(value):
        return str(int(value))
    exact = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if exact.adjusted() < -MAX_DIGITS:
        raise _misfit(value, FieldType.TEXT, column)
    return format(exact, "f").rstrip("0")


def _as_integer(value: Any, column: str, _zone: tzinfo) -> int:
    number = value
    if isinstance(value, str) and _WHOLE_TEXT.fullmatch(value.strip()):
        number = int(value.strip().partition(".")[0])
    if isinstance(number, (int, float, Decimal)) and is_within(number, 10**MAX_DIGITS) and number == int(number):
        return _whole(int(number), column)
    raise _misfit(value, FieldType.INTEGER, column)


def _as_number(value: Any, column: str, _zone: tzinfo) -> float:
    number = value
    if isinstance(value, str) and _NUMBER_TEXT.fullmatch(value.strip()):
        number = Decimal(value.strip())
    if isinstance(number, float):
        return _float(number, column)
    if isinstance(number, (int, Decimal)) and is_within(number, 10**308):
        return _exact(float(number), number, column)
    raise _misfit(value, FieldType.NUMBER, column)


def _as_boolean(value: Any, column: str, _zone: tzinfo) -> bool:
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return _BOOLEANS[value.strip().lower()]
    if isinstance(value, (int, float, Decimal)) and is_within(value, 2) and value in (0, 1):
        return bool(value)
    raise _misfit(value, FieldType.BOOLEAN, column)


def _as_date(value: Any, column: str, zone: tzinfo) -> str:
    """Takes what event_time takes. A day alone stays the day that it is, in whatever zone."""
    if isinstance(value, str):
        value = _parse_time(value.strip(), column)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            value = _EPOCH_UTC + timedelta(microseconds=_number_microseconds(value, column))
        except OverflowError:
            raise InvalidRecord(
                f"{column} is a number outside the years that a date can have; perhaps it is in milliseconds"
            ) from None
    if isinstance(value, datetime):
        return _moment(value, column, zone)
    if isinstance(value, date):
        return _day(value, column)
    raise _misfit(value, FieldType.DATE, column)


def _as_json(value: Any, column: str, zone: tzinfo) -> Any:
    found = value
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
    if found is None:  # JSON's own null
        return None
    if isinstance(found, (Mapping, list, tuple, set, frozenset)):
        return json_value(found, column, zone)
    raise _misfit(value, FieldType.JSON, column)


_TYPES: dict[FieldType, Callable[[Any, str, tzinfo], Any]] = {
    FieldType.TEXT: _as_text,
    FieldType.INTEGER: _as_integer,
    FieldType.NUMBER: _as_number,
    FieldType.BOOLEAN: _as_boolean,
    FieldType.DATE: _as_date,
    FieldType.JSON: _as_json,
}


def _misfit(value: Any, wanted: FieldType, column: str) -> InvalidRecord:
    return InvalidRecord(f"{column} is {_kind(value)} that can't be sent as {_WANTED[wanted]}")


_WANTED = {
    FieldType.TEXT: "text",
    FieldType.INTEGER: "an integer",
    FieldType.NUMBER: "a number",
    FieldType.BOOLEAN: "a boolean (true/false, t/f, yes/no or 1/0)",
    FieldType.DATE: "a date",
    FieldType.JSON: "JSON (an object or a list)",
}


def _kind(value: Any) -> str:
    """What kind of value it is, without quoting it."""
    if isinstance(value, (float, Decimal)):
        if not is_within(value, 10**MAX_DIGITS):
            return "NaN or infinity"
        return "a number" if value == int(value) else "a number with a fraction"
    for kinds, name in _KINDS:
        if isinstance(value, kinds):
            return name
    return f"a value of the type {type(value).__name__}"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "text"),
    (bool, "a boolean"),
    (int, "a whole number"),
    (datetime, "a time"),
    (date, "a date"),
    (Mapping, "an object"),
    ((list, tuple, set, frozenset), "a list"),
)


# Times --------------------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = _EPOCH.replace(tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_PLAIN_TIME = ("-- ::", "--T::")  # what 2026-01-13 08:45:12, as nearly all texts are, has at every third place from 4
_TIME_TEXT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?)?\s?(?:(Z|UTC|GMT)|([+-]\d\d)(?::?(\d\d))?)?",
    re.ASCII | re.IGNORECASE,
)


def unix_microseconds_column(moments: Sequence[Any], zone: tzinfo, column: str) -> list[int]:
    """What `unix_microseconds` makes of each."""
    if zone is timezone.utc and types_of(moments) == {str}:
        with suppress(ValueError):  # which one it is shows below
            since = [
                datetime.fromisoformat(moment) - _EPOCH
                for moment in moments
                if len(moment) == 19 and moment[4:17:3] in _PLAIN_TIME
            ]
            if len(since) == len(moments):  # none of which has a fraction
                return [(each.days * 86_400 + each.seconds) * 1_000_000 for each in since]
    return [unix_microseconds(moment, zone, column) for moment in moments]


def unix_microseconds(value: Any, zone: tzinfo, column: str) -> int:
    """A time, as databases give it, -> microseconds since 1970.

    Times and dates without an offset are in `zone`. Numbers are Unix seconds; small ones count something else, such as
    days since 1900 in a spreadsheet.
    """
    value = parsed_time(value, column)
    if isinstance(value, datetime):
        if value.tzinfo is None and zone is timezone.utc:
            return (value - _EPOCH) // _MICROSECOND  # half the time of the general way
        return (_aware(value, zone) - _EPOCH_UTC) // _MICROSECOND
    if isinstance(value, date):
        return unix_microseconds(datetime.combine(value, time()), zone, column)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if is_within(value, LEAST_UNIX_TIME):
            raise InvalidRecord(
                f"{column} is a number below {LEAST_UNIX_TIME:,}, which is not a Unix time; cast it to a timestamp in "
                "the query"
            )
        return _number_microseconds(value, column)
    if isinstance(value, Unreadable):
        raise InvalidRecord(f"{column} {value.problem}")
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which is not a time")


def _number_microseconds(value: int | float | Decimal, column: str) -> int:
    if not is_within(value, MAX_INT):
        raise InvalidRecord(f"{column} is a number that is not a valid time")
    return round(value * 1_000_000)


def parsed_time(value: Any, column: str) -> Any:
    """A time that is text as a datetime, or as a date where it is a day alone; anything else as it is."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = decoded(value, column)
    return _parse_time(value.strip(), column) if isinstance(value, str) else value


def _parse_time(written: str, column: str) -> datetime | date:
    """ISO 8601 and its usual relatives: a space for the T, Z or UTC, fractions of any length, dates alone."""
    match = _TIME_TEXT.fullmatch(written)
    if match is None:
        raise InvalidRecord(f"{column} is not a valid time; {TIME_FORMS}")
    try:
        return date.fromisoformat(written) if len(written) == 10 else datetime.fromisoformat(_normal_form(match))
    except ValueError:
        raise InvalidRecord(f"{column} is a day or a time that does not exist") from None


def _normal_form(match: re.Match[str]) -> str:
    """A time -> the one way of writing it that datetime.fromisoformat takes in every Python since 3.7."""
    day, minutes, seconds, fraction, is_utc, hours_off, minutes_off = match.groups()
    offset = "+00:00" if is_utc else f"{hours_off}:{minutes_off or '00'}" if hours_off else ""
    micro = f".{fraction[:6]:0<6}" if fraction else ""
    return f"{day}T{minutes or '00:00'}{seconds or ':00'}{micro}{offset}"


# What was refused ---------------------------------------------------------------------------------------------------


def cell_text(value: Any) -> str:
    """A value as text, whatever it is; different values have different texts."""
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)  # Python writes no huge ones in decimal
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return f"{type(value).__name__} {value}"


# JSON ---------------------------------------------------------------------------------------------------------------


def _make_encoder() -> Callable[[Any], str]:
    """A JSON encoder with sorted keys that refuses NaN and keeps non-ASCII text.

    JSONEncoder.encode makes its C encoder anew for each call, which takes half of the time of a small value. Values
    are built here and hold no cycles, so none are looked for.
    """
    general = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"), sort_keys=True
    )
    try:
        encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, general.default, json.encoder.encode_basestring, None, ":", ",", True, False, False
        )
    except TypeError:  # a Python without it
        return general.encode
    return lambda value: "".join(encode(value, 0))


canonical = _make_encoder()
quote = json.encoder.encode_basestring  # text -> JSON text, non-ASCII kept
