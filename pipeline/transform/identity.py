"""Who a row is about: the e-mail address or userId by which Iterable knows people, and the person behind it. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from typing import Any, Protocol
from uuid import UUID

from pipeline.model.keys import ORIGIN_BYTES
from pipeline.model.records import Unreadable
from pipeline.model.text import text_of
from pipeline.transform.values import InvalidRecord, decoded, is_within

MAX_USER_ID_CHARS = 52
MAX_EMAIL_LOCAL_CHARS = 64
MAX_EMAIL_DOMAIN_CHARS = 253
REMEMBERED_DOMAINS = 10_000
REMEMBERED_ORIGINS = 10_000

# After Apache Commons' EmailValidator, which Iterable uses (its article "Email Validation in Iterable"). Narrower only
# in what no mailbox needs: an IP address for a domain, a dot at the end, invisible characters. Wider in one thing:
# whether a top-level domain exists is left to Iterable.
_ATOM = r"(?:\\[^\s]|[^\s\x00-\x1f\x7f()<>@,;:\\\".\[\]])+"
_WORD = rf"(?:{_ATOM}|\"(?:\\\"|[^\"])*\")"
_LOCAL = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?:[a-z]{{2,63}}|xn--[a-z0-9-]{{1,58}}[a-z0-9])", re.ASCII | re.IGNORECASE)


class NamesPeople(Protocol):
    """What identifies people: which kind of value, and in which column."""

    @property
    def by_user_id(self) -> bool: ...

    @property
    def identity_column(self) -> str: ...


def identity(value: Any, rules: NamesPeople) -> str:
    """Whom a value of the identity column names: the e-mail in lower case, as Iterable stores it, or the userId to the
    letter."""
    name = value if type(value) is str else id_text(value, rules.identity_column)
    return _user_id(name, rules.identity_column) if rules.by_user_id else email_address(name, rules.identity_column)


def identity_or_none(value: Any, rules: NamesPeople) -> str | None:
    """None for what names nobody."""
    try:
        return identity(value, rules)
    except InvalidRecord:
        return None


def is_meant(who: str, rules: NamesPeople) -> Callable[[Any], bool]:
    """Whether a value of the identity column names this person, as somebody has typed it."""
    wanted = identity_or_none(who, rules)
    if wanted is not None:
        return lambda value: identity_or_none(value, rules) == wanted
    # It is not a valid identity, but rows may have it, and are rejected for that.
    return lambda value: value is not None and text_of(value).strip().lower() == who.strip().lower()


def email_address(address: str, column: str) -> str:
    address = address.strip()
    if not address:
        raise InvalidRecord(f"{column} is empty")
    local, _, domain = address.rpartition("@")
    if not (address.isprintable() and _LOCAL.fullmatch(local) and _is_domain(domain)):
        raise InvalidRecord(f"{column} is not a valid email address")
    if len(local) > MAX_EMAIL_LOCAL_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_EMAIL_LOCAL_CHARS} characters before the @")
    return address.lower()


@lru_cache(maxsize=REMEMBERED_DOMAINS)
def _is_domain(name: str) -> bool:
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return False
    return len(name) <= MAX_EMAIL_DOMAIN_CHARS and _DOMAIN.fullmatch(name) is not None


def _user_id(user_id: str, column: str) -> str:
    """Iterable's rule: 1 to 52 printable ASCII characters, no space at the end."""
    if not user_id:
        raise InvalidRecord(f"{column} is empty")
    if len(user_id) > MAX_USER_ID_CHARS:
        raise InvalidRecord(f"{column} has more than {MAX_USER_ID_CHARS} characters")
    if not (user_id.isascii() and user_id.isprintable()) or user_id.endswith(" "):
        raise InvalidRecord(f"{column} has a character that a user id may not have, or a space at its end")
    return user_id


def id_text(value: Any, column: str) -> str:
    """An id, as databases give it, as text: 17, 17.0 and Decimal("17.00") are one id. NULL is empty."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decoded(value, column)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return _whole_number_text(value, column)
    if isinstance(value, Unreadable):
        raise InvalidRecord(f"{column} {value.problem}")
    raise InvalidRecord(f"{column} has the type {type(value).__name__}, which can't be an id")


def _whole_number_text(value: int | float | Decimal, column: str) -> str:
    if not is_within(value, 10**MAX_USER_ID_CHARS) or value != int(value):
        raise InvalidRecord(f"{column} is not a whole number, or has more than {MAX_USER_ID_CHARS} digits")
    return str(int(value))


def person_text(value: Any, column: str) -> str:
    """Who somebody is, by the column that says so; empty where it says nothing."""
    try:
        return id_text(value, column).strip()
    except InvalidRecord:
        return ""


def guessed_person(text: str, query: int) -> str:
    """What stands for the person where a column `id` is guessed to say who it is: that of another query, by its number
    in the ledger, is another kind of id."""
    return f"id in query {query}\n{text}" if text else ""


@lru_cache(maxsize=REMEMBERED_ORIGINS)
def origin_of(identity: str) -> bytes:
    """What the ids that are made of events say of their person."""
    return hashlib.sha256(identity.encode("utf-8")).digest()[:ORIGIN_BYTES]
