"""The words that all steps share: the two kinds of records, a record, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import NamedTuple

RECORDS_A_PAGE = 2000
BYTES_A_PAGE = 4_000_000


class Kind(str, Enum):
    """The two kinds of records."""

    USER = "user"
    EVENT = "event"


def counted(number: int, noun: str) -> str:
    """`1 user`, `1,200 users`"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Outcome(str, Enum):
    """How each record ends; exactly one of these."""

    DELIVERED = "delivered"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    UNACKNOWLEDGED = "unacknowledged"
    NOT_ATTEMPTED = "not_attempted"


class Record(NamedTuple):
    """A user update or an event that can be sent. `row`: its line in the CSV, 1 for the first under the header."""

    kind: Kind
    row: int
    identity: str  # e-mail or userId
    key: bytes
    fingerprint: bytes
    payload: bytes  # JSON in UTF-8, as it goes to Iterable


def size_of(records: Iterable[Record]) -> int:
    """The bytes of their payloads."""
    return sum([len(record.payload) for record in records])


class OfUser(NamedTuple):
    """Records of one user, not always all of them, and the bytes of their payloads."""

    records: list[Record]
    size: int


def take_page(by_user: Iterator[OfUser]) -> list[OfUser]:
    """The next of them, a few where they are large; none at the end."""
    page: list[OfUser] = []
    count = size = 0
    for each in by_user:
        page.append(each)
        count += len(each.records)
        size += each.size
        if count >= RECORDS_A_PAGE or size >= BYTES_A_PAGE:
            break
    return page


def records_of(by_user: Iterable[OfUser]) -> Iterator[Record]:
    return chain.from_iterable(each.records for each in by_user)


def pages(by_user: Iterator[OfUser]) -> Iterator[list[Record]]:
    """All of them, page by page."""
    while page := take_page(by_user):
        yield list(records_of(page))


class Undelivered(NamedTuple):
    """What became of a record that was not delivered, and why."""

    kind: Kind
    row: int
    identity: str | None
    outcome: Outcome
    status_code: int | None
    code: str | None
    message: str
    attempts: int


@dataclass(frozen=True)
class Unreadable:
    """A value of the database that Python has no type for, such as PostgreSQL's date `infinity`.

    text: what stands in the CSV. problem: the rest of a sentence that begins with the column's name.
    """

    text: str
    problem: str

    def __str__(self) -> str:
        return self.text
