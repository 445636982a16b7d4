"""What a reading call asks for -> the name of its endpoint, and its address below /api/. Nothing is sent here.

Addresses of the API are those of Iterable's own description of it [swagger].
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlencode


class Lookup(NamedTuple):
    """`name` is what log, limits and answers call the endpoint; `path` is the rest of the URL after /api/."""

    name: str
    path: str


def of_profile(email: str | None, user_id: str | None) -> Lookup:
    """One user's profile, by e-mail or else by id. ValueError without either."""
    is_by_email, identity = _who(email, user_id)
    if is_by_email:
        return Lookup("users/getByEmail", f"users/getByEmail?{_query(email=identity)}")
    return Lookup("users/byUserId", f"users/byUserId?{_query(userId=identity)}")


def of_events(email: str | None, user_id: str | None, limit: int) -> Lookup:
    """One user's latest events, by e-mail or else by id, which stands in the path. ValueError without either."""
    is_by_email, identity = _who(email, user_id)
    place = f"{_segment(identity)}?{_query(limit=limit)}"
    if is_by_email:
        return Lookup("events/byEmail", f"events/{place}")
    return Lookup("events/byUserId", f"events/byUserId/{place}")


def of_journeys(page: int, page_size: int) -> Lookup:
    return Lookup("journeys", f"journeys?{_query(page=page, pageSize=page_size)}")


def _who(email: str | None, user_id: str | None) -> tuple[bool, str]:
    if not email and not user_id:
        raise ValueError("Pass email or user_id.")
    return bool(email), str(email or user_id)


def _segment(text: str) -> str:
    """One part of a path. Alone, dots would mean another place."""
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


def _query(**parameters: str | int) -> str:
    return urlencode(parameters, quote_via=quote, safe="")
