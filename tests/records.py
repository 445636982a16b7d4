"""Records of three people, and whole runs over them, as the tests of the ledger and of the stage need them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.accepted import TABLES
from pipeline.ledger.ledger import Project
from pipeline.model.records import FailedRecord, Kind, Outcome, Record, UserDetails
from tests.opened import PROJECT, Opened, open_both, read_both
from tests.processes import child

ROOT = Path(__file__).parent.parent
DAY_S = 86_400
TODAY = 20_000  # days since 1970
NOON_S = TODAY * DAY_S + DAY_S // 2
ADA, BOB, CY = "ada@example.com", "bob@example.com", "cy@example.com"

posix_only = pytest.mark.skipif(os.name == "nt", reason="modes, links and SIGKILL are POSIX")

Opening = AbstractContextManager[Opened]


def opening(folder: Path, project: Project = PROJECT, *, day: int = TODAY, lasting: bool = True) -> Opening:
    return open_both(folder, project, now=day * DAY_S, lasting=lasting)


def reading(folder: Path, project: Project = PROJECT, *, day: int = TODAY) -> Opening:
    return read_both(folder, project, now=day * DAY_S)


# Records --------------------------------------------------------------------------------------------------------------


def user(opened: Opened, row: int, email: str = ADA, plan: str = "pro") -> Record:
    """An update with a single field."""
    text = f'"plan":{json.dumps(plan)}'
    payload = f'{{"email":{json.dumps(email)},"dataFields":{{{text}}}}}'.encode()
    hasher = opened.ledger.hasher
    details = UserDetails(hasher.field_hashes("plan", [json.dumps(plan)])[0], hasher.field_name("plan"))
    (fingerprint,) = opened.ledger.fingerprints([text.encode()])
    return Record(Kind.USER, row, email, opened.ledger.user_key(email), fingerprint, payload, details)


def event(
    opened: Opened, row: int, event_id: str, email: str = ADA, page: str = "pricing", *, name: str = "visit",
    seconds: int = NOON_S,
) -> Record:  # fmt: skip
    """An event whose id the query gives."""
    fields = {"page": page}
    content = {"email": email, "eventName": name, "id": event_id, "createdAt": seconds, "dataFields": fields}
    hasher = opened.ledger.hasher
    (key,) = hasher.given_event_keys([opened.ledger.user_key(email)], [event_id])
    (fingerprint,) = hasher.given_fingerprints([f"{seconds},{json.dumps(name)}"], [json.dumps(fields)])
    return Record(Kind.EVENT, row, email, key, fingerprint, json.dumps(content).encode())


def rejected(kind: Kind, row: int, email: str | None = ADA, outcome: Outcome = Outcome.REJECTED) -> FailedRecord:
    return FailedRecord(kind, row, email, outcome, 400, "BadParams", "refused", 1)


def shown(records: Sequence[Record]) -> list[str]:
    """user ada@example.com row 1: pro; in the order of the query, users first"""
    told = []
    for record in sorted(records, key=lambda record: (record.kind is Kind.EVENT, record.row)):
        content = json.loads(record.payload)
        value = content.get("id") or content["dataFields"]["plan"]
        told.append(f"{record.kind.value} {record.identity} row {record.row}: {value}")
    return told


# Runs -----------------------------------------------------------------------------------------------------------------


def stage(opened: Opened, *records: Record, skip_unchanged: bool = True, ids_are_given: bool = False) -> None:
    opened.begin(skip_unchanged=skip_unchanged)
    opened.stage.people.stage_users(list({each.key: each for each in records if each.kind is Kind.USER}.values()))
    opened.stage_events([record for record in records if record.kind is Kind.EVENT])
    opened.stage.finish_staging(ids_are_given=ids_are_given)


def pending(opened: Opened) -> list[Record]:
    return [*opened.stage.pending(Kind.USER), *opened.stage.pending(Kind.EVENT)]


def run(folder: Path, *rows: tuple[str, str, str | None], skip_unchanged: bool = True, **options: Any) -> list[str]:
    """A whole run over rows of (email, plan, event id), in which Iterable takes everything -> what was sent."""
    with opening(folder, **options) as opened:
        users = [user(opened, row, email, plan) for row, (email, plan, _) in enumerate(rows, 1)]
        events = [event(opened, row, name, email) for row, (email, _, name) in enumerate(rows, 1) if name]
        stage(opened, *users, *events, skip_unchanged=skip_unchanged)
        records = pending(opened)
        opened.accept(records)
        opened.refresh()
        opened.ledger.commit()
        return shown(records)


def count_accepted(ledger: sqlite3.Connection) -> int:
    """How many records a ledger's file knows, of all projects."""
    return sum(int(ledger.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in TABLES)


# Other processes ------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from tests.opened import open_both
with open_both(Path(sys.argv[1]), now=0) as opened:
    rows = range(1, 100_001)
    keys = [b"%020d" % row for row in rows]
    opened.stage.stage_events(rows, keys, [b"f" * 16] * len(rows), [b"x" * 300] * len(rows))
    print("staged", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the ledger, with a large stage."""
    with child(HOLD, folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        yield process
        process.kill()
