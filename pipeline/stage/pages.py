"""Records by user, a page of them at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from pipeline.model.records import Record

RECORDS_A_PAGE = 2000
BYTES_A_PAGE = 4_000_000


def size_of(records: Iterable[Record]) -> int:
    """The bytes of their payloads."""
    return sum([len(record.payload) for record in records])


class UserRecords(NamedTuple):
    """Records of one user, not always all of them, and the bytes of their payloads."""

    records: list[Record]
    size: int


def take_page(by_user: Iterator[UserRecords]) -> list[UserRecords]:
    """The next of them, a few where they are large; none at the end."""
    page: list[UserRecords] = []
    count = size = 0
    for each in by_user:
        page.append(each)
        count += len(each.records)
        size += each.size
        if count >= RECORDS_A_PAGE or size >= BYTES_A_PAGE:
            break
    return page


def records_of(by_user: Iterable[UserRecords]) -> Iterator[Record]:
    return chain.from_iterable(each.records for each in by_user)


def pages(by_user: Iterator[UserRecords]) -> Iterator[list[Record]]:
    """All of them, page by page."""
    while page := take_page(by_user):
        yield list(records_of(page))
