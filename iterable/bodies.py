"""Payload -> the JSON bytes of a request. What can't be written as JSON is reported before anything is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

Records = Sequence[Mapping[str, Any] | bytes]  # users or events: objects, or their JSON in UTF-8


class UnencodableError(Exception):
    """The payload can't be written as JSON; the text says why, as the rest of a sentence."""


def record(
    email: str | None, user_id: str | None, own: Mapping[str, Any], data_fields: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A user update or an event. own: what belongs to its kind. Of that and the identity, None is left out."""
    named = {"email": email, "userId": user_id, **own}
    return {
        **{name: value for name, value in named.items() if value is not None},
        "dataFields": dict(data_fields or {}),
    }


def new_address(new_email: str, current_email: str | None, current_user_id: str | None) -> dict[str, Any]:
    """A change of address. ValueError where nobody is named whose address it is."""
    if not current_email and not current_user_id:
        raise ValueError("Pass current_email or current_user_id.")
    named = {"currentEmail": current_email, "currentUserId": current_user_id}
    return {**{name: value for name, value in named.items() if value}, "newEmail": new_email}


def encode(payload: Mapping[str, Any], path: str = "") -> bytes:
    """UTF-8 without spaces. UnencodableError for NaN, for what is not valid Unicode, and for what is no JSON type.

    path: what the message calls the payload.
    """
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise UnencodableError(_find_problem(payload, path) or f"can't be written as JSON ({error})") from None


def join(key: str, records: Records) -> bytes:
    """`{"users":[...]}` from records that are objects, or their JSON already. ValueError for none at all."""
    if not records:
        raise ValueError(f"There are no {key}: an empty batch is an error in Iterable.")
    parts = [
        each if isinstance(each, bytes) else encode(each, f"{key}[{index}].") for index, each in enumerate(records)
    ]
    return b'{"%s":[%s]}' % (key.encode("ascii"), b",".join(parts))


def _find_problem(payload: Mapping[str, Any], path: str) -> str | None:
    """`dataFields.signup is a datetime, ...` for the first value that JSON has no form for."""
    try:
        return next(_problems(payload, path), None)
    except RecursionError:
        return None


def _problems(value: Any, path: str) -> Iterator[str]:
    """`path` ends with the dot that joins it to a key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, (str, int, float, bool, type(None))):
                yield f"{path[:-1] or 'the payload'} has a {type(key).__name__} for a key"
            yield from _problems(item, f"{path}{key}.")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path[:-1]}[{index}].")
    elif isinstance(value, (date, datetime)):
        yield f"{path[:-1]} is a {type(value).__name__}; send text such as 2026-01-13 08:45:12 +00:00 or 2026-01-13"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{path[:-1]} is {value}, which JSON has no form for"
    elif isinstance(value, str):
        if any("\ud800" <= each <= "\udfff" for each in value):
            yield f"{path[:-1]} is not valid Unicode"
    elif not isinstance(value, (int, float, type(None))):
        yield f"{path[:-1]} is a {type(value).__name__}, which JSON has no form for"
