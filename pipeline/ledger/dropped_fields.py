"""The fields that Iterable drops from what it accepts, so that each run can warn of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from pipeline.model.records import Kind


class DroppedFields:
    """Those of one project."""

    def __init__(self, database: sqlite3.Connection, project: int) -> None:
        self._database = database
        self._project = project

    def all(self) -> set[tuple[Kind, str]]:
        rows = self._database.execute("SELECT kind, name FROM dropped_fields WHERE project = ?", (self._project,))
        return {(Kind(kind), name) for kind, name in rows.fetchall()}

    def remember(self, fields: Iterable[tuple[Kind, str]]) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO dropped_fields (project, kind, name) VALUES (?, ?, ?)",
            [(self._project, kind.value, name) for kind, name in fields],
        )

    def forget(self, fields: Iterable[tuple[Kind, str]]) -> None:
        self._database.executemany(
            "DELETE FROM dropped_fields WHERE project = ? AND kind = ? AND name = ?",
            [(self._project, kind.value, name) for kind, name in fields],
        )
