"""The one small object that decides everything: who holds the ledger, which copy of it counts, and which runs may have
sent what no copy knows. It is only ever replaced as it was seen, and never deleted."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.state.store import StoreRefusedError

RECORD_NAME = "iterable_ledger.state.json"
COPY = re.compile(r"iterable_ledger\.(\d{6,})-[0-9a-f]{8}\.sqlite3")
FORMAT = 1


@dataclass(frozen=True)
class Holder:
    """A run that has the ledger. place: the folder of its local copy. job: its project and query.

    sending: how many records it may send before it puts the ledger back again; None: it has not begun to send.
    """

    host: str
    process: int
    run: str
    token: str
    place: str
    job: str
    sending: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """A copy of the ledger. number: how often the ledger was put back until then. digest: SHA-256 of the file."""

    name: str
    number: int
    size: int
    digest: str


@dataclass(frozen=True)
class Resend:
    """A run that ended without putting its ledger back. records: how many at most it may have sent that no copy knows.

    token: of that run.
    """

    job: str
    run: str
    host: str
    token: str
    records: int

    def __str__(self) -> str:
        return f"run {self.run} on {self.host} ended without putting its ledger back"


@dataclass(frozen=True)
class StateRecord:
    """write: unlike in any other write, so that one whose answer was lost can be told from another run's."""

    holder: Holder | None = None
    snapshot: Snapshot | None = None
    resends: tuple[Resend, ...] = ()
    write: str = ""

    def resend_of(self, job: str) -> Resend | None:
        return next((each for each in self.resends if each.job == job), None)

    def with_resend(self, job: str, resend: Resend | None) -> StateRecord:
        """One for each job: a later run sends again what an earlier one has left."""
        others = tuple(each for each in self.resends if each.job != job)
        return replace(self, resends=others if resend is None else (*others, resend))

    def as_bytes(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


def _snapshot(name: str, number: int, size: int, digest: str) -> Snapshot:
    """Raises ValueError for a name that no copy has, as what it names is fetched, and later deleted."""
    found = COPY.fullmatch(name)
    if found is None or int(found[1]) != number:
        raise ValueError
    return Snapshot(name, number, size, digest)


def parse_record(content: bytes, url: str) -> StateRecord:
    """Raises StoreRefusedError for what this version did not write."""
    try:
        found: dict[str, Any] = json.loads(content)
        if found["format"] != FORMAT:
            raise ValueError
        return StateRecord(
            holder=Holder(**found["holder"]) if found["holder"] else None,
            snapshot=_snapshot(**found["snapshot"]) if found["snapshot"] else None,
            resends=tuple(Resend(**each) for each in found["resends"]),
            write=found["write"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreRefusedError(
            f"{url}/{RECORD_NAME} was not written by this version of the program; name another folder with STATE_URL, "
            "or put that file back as it was."
        ) from error
