"""One line for each run that held the ledger, however it ended; without personal data."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pipeline.model.exits import ExitCode


@dataclass(frozen=True)
class RunResult:
    """How a run ended. users, events: records by outcome. since_from: Unix seconds; None without :since."""

    status: str
    exit_code: int
    reason: str
    duration_s: float
    rows: int | None = None
    since_from: int | None = None
    full_read: bool = True
    users: Mapping[str, int] | None = None
    events: Mapping[str, int] | None = None


@dataclass(frozen=True)
class PastRun:
    """A run that held the ledger. result: None for one that did not finish, or is active."""

    run_id: str
    started_at: int
    query_file: str
    is_of_this_project: bool
    result: RunResult | None


@dataclass(frozen=True)
class Fruitless:
    """How many runs in a row ended with an outage and had nothing accepted.

    since: when the first of them began, Unix seconds.
    """

    count: int
    since: float | None = None


OUTAGES = (ExitCode.TEMPORARY, ExitCode.UNAVAILABLE)

_COLUMNS = tuple(column.name for column in fields(RunResult))


class Runs:
    """Those that held this ledger, as far as they are remembered; `project` is the one that is looked from."""

    def __init__(self, database: sqlite3.Connection, project: int) -> None:
        self._database = database
        self._project = project

    def insert(self, run_id: str, started_at: float, query_file: str) -> int:
        """The number of the new run."""
        cursor = self._database.execute(
            "INSERT INTO runs (project, run_id, started_at, query_file) VALUES (?, ?, ?, ?)",
            (self._project, run_id, int(started_at), query_file),
        )
        return int(cursor.lastrowid or 0)

    def note_end(self, number: int, result: RunResult) -> None:
        values = {name: _stored(getattr(result, name)) for name in _COLUMNS}
        assignments = ", ".join(f"{name} = ?" for name in values)
        self._database.execute(f"UPDATE runs SET {assignments} WHERE id = ?", (*values.values(), number))

    def delete_before(self, oldest: int) -> None:
        """Those of all projects that began before that time, in Unix seconds."""
        self._database.execute("DELETE FROM runs WHERE started_at < ?", (oldest,))

    def last(self, limit: int) -> list[PastRun]:
        """The last ones of all projects, the newest last."""
        return self._select("ORDER BY id DESC LIMIT ?", limit)[::-1]

    def of_project(self, *, since: float) -> list[PastRun]:
        """Those of this project that began then (Unix seconds) or later, and in any case the last two; the newest last.

        Two, as the last one may be active.
        """
        return self._select(
            "WHERE project = ? AND (started_at >= ? OR id IN "
            "(SELECT id FROM runs WHERE project = ? ORDER BY id DESC LIMIT 2)) ORDER BY id",
            *(self._project, since, self._project),
        )

    def _select(self, which: str, *parameters: float) -> list[PastRun]:
        rows = self._database.execute(
            f"SELECT run_id, started_at, query_file, project, {', '.join(_COLUMNS)} FROM runs {which}", parameters
        )
        return [
            PastRun(run_id, started_at, query_file, number == self._project, _result(values))
            for run_id, started_at, query_file, number, *values in rows
        ]

    def ids(self, numbers: Collection[int]) -> dict[int, str]:
        """The ids of the runs that acceptances name."""
        found: dict[int, str] = {}
        for number in numbers:
            row = self._database.execute("SELECT run_id FROM runs WHERE id = ?", (number,)).fetchone()
            if row is not None:
                found[number] = str(row[0])
        return found

    def ids_after(self, run_id: str) -> set[str]:
        """The ids of those of all projects that are later than this one."""
        rows = self._database.execute("SELECT run_id FROM runs WHERE run_id > ?", (run_id,))
        return {found for (found,) in rows}

    def fruitless(self, query_file: str) -> Fruitless:
        """The last ones of this query file up to the first that did not end with an outage and nothing accepted.

        Those that did not finish say nothing.
        """
        count, since = 0, None
        for started_at, exit_code, *outcomes in self._database.execute(
            "SELECT started_at, exit_code, users, events FROM runs "
            "WHERE project = ? AND query_file = ? AND status IS NOT NULL ORDER BY id DESC",
            (self._project, query_file),
        ):
            if exit_code not in OUTAGES or any(json.loads(each)["delivered"] for each in outcomes if each):
                break
            count, since = count + 1, started_at
        return Fruitless(count, since)

    def last_success(self, query_file: str) -> float | None:
        """When the last run of this query file that ended with 0 did so, Unix seconds."""
        (ended_at,) = self._database.execute(
            "SELECT max(started_at + duration_s) FROM runs WHERE project = ? AND query_file = ? AND exit_code = 0",
            (self._project, query_file),
        ).fetchone()
        return None if ended_at is None else float(ended_at)

    def last_whole_delivery(self) -> str:
        """The id of the project's last run that read everything, and delivered or entered something; none: an empty
        text. After a part of it, such as with --limit, the rest may still be what was accepted before."""
        rows = self._database.execute(
            "SELECT run_id, status, users, events FROM runs WHERE project = ? AND full_read ORDER BY id DESC",
            (self._project,),
        )
        for run_id, status, *counts in rows:
            if status == "baseline" or any(json.loads(each).get("delivered") for each in counts if each):
                return str(run_id)
        return ""

    def has_full(self) -> bool:
        """Whether one of the project has read everything and got to its end: in its line, or in a cursor of :since."""
        found = self._database.execute(
            "SELECT 1 FROM runs WHERE project = ? AND full_read AND exit_code IN (0, 1)"
            " UNION ALL SELECT 1 FROM queries WHERE project = ? AND last_full_at IS NOT NULL LIMIT 1",
            (self._project, self._project),
        )
        return found.fetchone() is not None


def _stored(value: Any) -> Any:
    return json.dumps(dict(value)) if isinstance(value, Mapping) else value


def _result(values: Sequence[Any]) -> RunResult | None:
    named = dict(zip(_COLUMNS, values, strict=True))
    if named["status"] is None:
        return None
    for name in ("users", "events"):
        named[name] = json.loads(named[name]) if named[name] else None
    return RunResult(**{**named, "full_read": bool(named["full_read"])})
