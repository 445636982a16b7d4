"""The words that all steps share: the two kinds of records, a record, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Kind(str, Enum):
    """The two kinds of records."""

    USER = "user"
    EVENT = "event"


class Outcome(str, Enum):
    """How each record ends; exactly one of these."""

    DELIVERED = "delivered"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    UNACKNOWLEDGED = "unacknowledged"
    NOT_ATTEMPTED = "not_attempted"


class UserDetails(NamedTuple):
    """What the ledger keeps of a user once the update is accepted; all of it hashes.

    fields: of all fields that Iterable then has of us. sent: the names of those that the request contains. person: who
    it is, whatever the address. address: the present one, where the user's key is made of an earlier one. origin: what
    made event ids say of the person, sealed. None: nothing is known of it.
    """

    fields: bytes = b""
    sent: bytes = b""
    person: bytes | None = None
    address: bytes | None = None
    origin: bytes | None = None


class Record(NamedTuple):
    """A user update or an event that can be sent. `row`: its line in the CSV, 1 for the first under the header."""

    kind: Kind
    row: int
    identity: str  # e-mail or userId
    key: bytes
    fingerprint: bytes
    payload: bytes  # JSON in UTF-8, as it goes to Iterable
    details: UserDetails | None = None  # of a user


class FailedRecord(NamedTuple):
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
