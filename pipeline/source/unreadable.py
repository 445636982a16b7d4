"""Values that Python has no value for: one of them must refuse its own record, and not keep all other rows back."""

from __future__ import annotations

import json
from functools import reduce, wraps
from typing import Any

from pipeline.model.records import Unreadable


def unreadable_time(text: str) -> Unreadable:
    """text: a date, time or interval as the database writes it."""
    return Unreadable(text, _problem(text))


def _problem(text: str) -> str:
    if text.endswith("infinity"):
        return f"is {text}, which can't be sent as a date"
    if text.startswith("0000-") or "-00" in text[4:10]:
        return "is a zero date, which can't be sent"
    if "BC" in text:
        return "is before the year 1, which can't be sent as a date"
    if text.startswith("24:"):
        return "is 24:00:00, which can't be sent as a time"
    return "is out of range"


def keep_odd_values(module: object, function: str, place: int) -> None:
    """Let a driver's function, such as Mapper.map, give what it raises for as `Unreadable`. Once for each is enough.

    place: of the value among the function's arguments.
    """
    *holders, name = function.split(".")
    holder = reduce(getattr, holders, module)
    usual = getattr(holder, name)

    @wraps(usual)
    def lenient(*arguments: Any, **options: Any) -> Any:
        try:
            return usual(*arguments, **options)
        except Exception:
            return unreadable_time(str(arguments[place]))

    if not hasattr(usual, "__wrapped__"):
        setattr(holder, name, lenient)


def parse_json(text: str | bytes) -> Any:
    """A cell of JSON. What is nested too deep, or has too long a number for Python, is `Unreadable`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        text = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
        problem = "is nested too deep" if isinstance(error, RecursionError) else "is JSON that can't be read"
        return Unreadable(text, problem)


def shortest_float(value: float) -> float:
    """A number of single precision, as the fewest digits that mean it: 37.09000015258789 -> 37.09"""
    from struct import error, pack, unpack

    for digits in (6, 7, 8, 9):
        short = float(f"{value:.{digits}g}")
        try:
            if unpack("f", pack("f", short))[0] == value:
                return short
        except (error, OverflowError):
            break
    return value
