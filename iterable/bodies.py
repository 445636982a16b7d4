"""Payload -> the JSON bytes of a request. What can't be written as JSON is told before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class UnencodableError(Exception):
    """The payload can't be written as JSON; the text says why, as the rest of a sentence."""


def identity_of(email: str | None, user_id: str | None) -> dict[str, Any]:
    given = {"email": email, "userId": user_id}
    return {name: value for name, value in given.items() if value is not None}


def encode(payload: Mapping[str, Any]) -> bytes:
    """UTF-8 without spaces. UnencodableError for NaN, for what is no Unicode text, and for what is no JSON type."""
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (ValueError, TypeError, RecursionError) as error:
        raise UnencodableError(f"can't be written as JSON ({type(error).__name__})") from None


def join(key: str, records: Sequence[Mapping[str, Any] | bytes]) -> bytes:
    """`{"users":[...]}` from records that are objects, or their JSON already."""
    parts = [each if isinstance(each, bytes) else encode(each) for each in records]
    return b'{"%s":[%s]}' % (key.encode("ascii"), b",".join(parts))
