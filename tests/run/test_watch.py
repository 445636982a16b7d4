"""75 in run after run, through the whole program."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.file import hold_file
from pipeline.ledger.runs import Fruitless, Runs
from pipeline.sandbox import StandIn
from tests.program import Finished, Program

DOWN = "http://127.0.0.1:1"


def codes(program: Program, *runs: dict[str, Any]) -> list[int]:
    return [program.run(**settings).code for settings in runs]


@pytest.fixture
def down(program: Program, sample: Path) -> dict[str, Any]:
    """The settings of a run that reaches nobody."""
    program.settings |= {"MAX_RETRIES": "1", "ALERT_AFTER": "3"}
    return {"ITERABLE_BASE_URL": DOWN, "ITERABLE_PROJECT": "shop"}


def started_at(run: Finished) -> str:
    moment = datetime.fromisoformat(run.results["started_at"]).astimezone(timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def test_the_third_outage_in_a_row_ends_with_69_and_says_since_when(program: Program, down: dict[str, Any]) -> None:
    first = program.run(**down)
    assert (first.code, program.run(**down).code) == (75, 75)
    third = program.run("--quiet", **down)
    sentence = f"Since {started_at(first)} nothing has been accepted, in 3 runs in a row."
    assert third.code == third.results["exit_code"] == 69
    assert third.results["status"] == "failed"
    assert third.results["reason"].endswith(f" {sentence}")
    assert sentence in third.err
    assert program.run(**down).results["reason"].endswith("in 4 runs in a row.")


def test_a_run_that_ends_otherwise_starts_the_count_again(
    program: Program, down: dict[str, Any], iterable: StandIn
) -> None:
    assert codes(program, down, down) == [75, 75]
    no_database = down | {"DATABASE_URL": "sqlite:////nonexistent"}
    assert codes(program, no_database, down, down, down) == [66, 75, 75, 69]


def test_dry_runs_and_runs_that_found_the_lock_held_do_not_count(program: Program, down: dict[str, Any]) -> None:
    assert codes(program, down, down) == [75, 75]
    assert program.run("--dry-run", **down).code == 0
    with hold_file(program.folder, 0.0):
        assert program.run(**down).code == 75
    assert program.run(**down).code == 69


def test_another_query_file_has_a_count_of_its_own(program: Program, down: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other.sql"
    other.write_text("SELECT email FROM users")
    users_only = down | {"QUERY_FILE": str(other), "USER_FIELDS": "-", "EVENT_FIELDS": "-"}
    assert codes(program, down, users_only, down, users_only, users_only) == [75, 75, 75, 75, 69]


def test_zero_means_never(program: Program, down: dict[str, Any]) -> None:
    assert codes(program, *[down | {"ALERT_AFTER": "0"}] * 5) == [75] * 5


@pytest.mark.parametrize(
    ("endings", "fruitless"),
    [
        ([], Fruitless(0)),
        ([(75, 0), (75, 0)], Fruitless(2, 100)),
        ([(0, 3), (75, 0), (69, 0)], Fruitless(2, 101)),
        ([(75, 0), (75, 4)], Fruitless(0)),  # a first load that MAX_RUN_MINUTES cuts goes on all the same
        ([(75, 0), (None, 0), (75, 0)], Fruitless(2, 100)),  # one that was killed says nothing
        ([(75, 0), (1, 0)], Fruitless(0)),
    ],
)
def test_what_counts_as_a_run_without_fruit(endings: list[tuple[int | None, int]], fruitless: Fruitless) -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(
            "CREATE TABLE runs "
            "(id INTEGER PRIMARY KEY, project, query_file, started_at, status, exit_code, users, events)"
        )
        rows = [
            (1, "q.sql", 100 + number, code and "x", code, f'{{"delivered": {delivered}}}', None)
            for number, (code, delivered) in enumerate(endings)
        ]
        database.executemany(
            "INSERT INTO runs (project, query_file, started_at, status, exit_code, users, events) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        assert Runs(database, 1).fruitless("q.sql") == fruitless
        assert Runs(database, 2).fruitless("q.sql") == Fruitless(0)
