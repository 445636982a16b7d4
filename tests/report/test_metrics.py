"""METRICS_FILE, through the whole program and alone."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.metrics import write_metrics
from tests.program import Finished, Program

NAME = "user_events.sql"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sync.prom"


def samples(path: Path) -> dict[str, float]:
    """Each sample by its name and labels. Refuses what is not the format."""
    found = {}
    for line in path.read_text().splitlines():
        if re.fullmatch(r"# (HELP iterable_sync_\w+ .+|TYPE iterable_sync_\w+ gauge)", line):
            continue
        match = re.fullmatch(r'(iterable_sync_\w+)\{query_file="([^"]*)"((?:,\w+="\w+")*)\} ([\d.]+)', line)
        assert match, line
        assert match[2] == NAME
        found[match[1].removeprefix("iterable_sync_") + match[3]] = float(match[4])
    return found


def records(**delivered: int) -> dict[str, float]:
    return {
        f'records,kind="{kind}",outcome="{outcome}"': float(delivered.get(kind, 0) if outcome == "delivered" else 0)
        for kind in ("user", "event")
        for outcome in ("delivered", "unchanged", "rejected", "unacknowledged", "not_attempted")
    }


def times(run: Finished) -> dict[str, float]:
    finished_at = datetime.fromisoformat(run.results["finished_at"]).timestamp()
    return {"last_run_timestamp_seconds": finished_at, "duration_seconds": run.results["duration_s"]}


def test_a_successful_run_is_told(program: Program, sample: Path, path: Path) -> None:
    run = program.run(METRICS_FILE=str(path))
    found = samples(path)
    last_success = found.pop("last_success_timestamp_seconds")
    assert abs(last_success - times(run)["last_run_timestamp_seconds"]) <= 2
    assert found == {
        **times(run),
        **records(user=12, event=36),
        "exit_code": 0,
        "consecutive_temporary_failures": 0,
        'known_records,kind="user"': 12,
        'known_records,kind="event"': 36,
    }
    assert path.stat().st_mode & 0o777 == 0o644


def test_failures_are_counted_and_the_last_success_stays(program: Program, sample: Path, path: Path) -> None:
    program.settings |= {"METRICS_FILE": str(path), "MAX_RETRIES": "1", "ITERABLE_PROJECT": "shop"}
    program.run("--limit", "2")
    before = samples(path)["last_success_timestamp_seconds"]
    down: dict[str, Any] = {"ITERABLE_PROXY": "http://127.0.0.1:1"}
    program.run(**down)
    run = program.run(**down)
    found = samples(path)
    assert (run.code, found["exit_code"], found["consecutive_temporary_failures"]) == (75, 75, 2)
    assert found["last_success_timestamp_seconds"] == before


def test_without_a_success_there_is_no_time_of_one(program: Program, path: Path) -> None:
    assert program.run(METRICS_FILE=str(path)).code == 66
    assert "last_success" not in path.read_text()
    assert samples(path)["exit_code"] == 66


@pytest.mark.parametrize("option", ["--dry-run", "--sandbox", "--check"])
def test_what_is_no_run_leaves_the_file_alone(program: Program, sample: Path, path: Path, option: str) -> None:
    path.write_text("as it was")
    assert program.run(option, METRICS_FILE=str(path)).code == 0
    assert path.read_text() == "as it was"


def test_a_file_that_can_not_be_written_is_a_warning(program: Program, sample: Path, tmp_path: Path) -> None:
    path = tmp_path / "missing" / "sync.prom"
    run = program.run("--quiet", METRICS_FILE=str(path))
    assert (run.code, run.err) == (0, f"Warning: METRICS_FILE can't be written (No such file or directory): {path}\n")


def test_check_says_that_the_folder_is_missing(program: Program, sample: Path, tmp_path: Path) -> None:
    check = program.run("--check", METRICS_FILE=str(tmp_path / "missing" / "sync.prom"))
    assert f"METRICS_FILE can't be written: {tmp_path}/missing is not a folder" in " ".join(check.out.split())
    assert check.code == 0


def test_the_file_is_replaced_whole_and_a_link_in_its_place_is_not_followed(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    path.symlink_to(other)
    write_metrics(path, "new\n")
    assert (path.read_text(), path.is_symlink(), other.read_text()) == ("new\n", False, "precious")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "sync.prom"]
