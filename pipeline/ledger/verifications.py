"""When a project was last verified, and with what result; without personal data."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

TABLE = """
CREATE TABLE IF NOT EXISTS verifications (  -- the last one of each project
    project INTEGER PRIMARY KEY, at INTEGER NOT NULL, exit_code INTEGER NOT NULL, users TEXT NOT NULL,
    events TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class PastVerification:
    """at: Unix seconds. users, events: records by result."""

    at: int
    exit_code: int
    users: Mapping[str, int]
    events: Mapping[str, int]


def set_verification(database: sqlite3.Connection, project: int, found: PastVerification) -> None:
    database.execute(TABLE)
    database.execute(
        "INSERT OR REPLACE INTO verifications (project, at, exit_code, users, events) VALUES (?, ?, ?, ?, ?)",
        (project, found.at, found.exit_code, json.dumps(dict(found.users)), json.dumps(dict(found.events))),
    )


def last_verification(database: sqlite3.Connection, project: int) -> PastVerification | None:
    if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'verifications'").fetchone():
        return None
    row = database.execute(
        "SELECT at, exit_code, users, events FROM verifications WHERE project = ?", (project,)
    ).fetchone()
    return None if row is None else PastVerification(row[0], row[1], json.loads(row[2]), json.loads(row[3]))
