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


class Verifications:
    """The last one of one project."""

    def __init__(self, database: sqlite3.Connection, project: int) -> None:
        self._database = database
        self._project = project

    def set(self, found: PastVerification) -> None:
        """The project was verified."""
        self._database.execute(TABLE)
        self._database.execute(
            "INSERT OR REPLACE INTO verifications (project, at, exit_code, users, events) VALUES (?, ?, ?, ?, ?)",
            (self._project, found.at, found.exit_code, json.dumps(dict(found.users)), json.dumps(dict(found.events))),
        )

    def last(self) -> PastVerification | None:
        """When this project was last verified, and with what result."""
        if not self._database.execute("SELECT 1 FROM sqlite_master WHERE name = 'verifications'").fetchone():
            return None
        row = self._database.execute(
            "SELECT at, exit_code, users, events FROM verifications WHERE project = ?", (self._project,)
        ).fetchone()
        return None if row is None else PastVerification(row[0], row[1], json.loads(row[2]), json.loads(row[3]))
