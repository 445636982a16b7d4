"""The line that each run leaves in the ledger, and how --history shows it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.inspect.history import history_as_json, history_lines, run_history
from pipeline.ledger.ledger import LEDGER_NAME, PastRun, Project, RunResult, open_ledger, read_ledger
from pipeline.model.exits import ExitCode
from tests.opened import PROJECT

ROOT = Path(__file__).parent.parent.parent
DAY_S = 86_400
STARTED_AT = 1_768_312_800  # 2026-01-13 14:00:00 UTC
KEY = "0123456789abcdef0123456789abcdef"
DONE = RunResult(
    status="success",
    exit_code=0,
    reason="all 12 records delivered",
    duration_s=3.2,
    rows=12,
    since_from=STARTED_AT - DAY_S,
    full_read=False,
    users={"delivered": 5, "unchanged": 0},
    events={"delivered": 12},
)
REFUSED = RunResult(status="failed", exit_code=77, reason="Iterable refused the key.", duration_s=0.2)
MANY = RunResult(
    status="partial",
    exit_code=1,
    reason="300 records were rejected; see\n rejected.csv.",
    duration_s=5_400,
    rows=1_234_567,
    users={"delivered": 9_999, "unchanged": 12_345, "rejected": 300, "unacknowledged": 1, "not_attempted": 2},
    events={"delivered": 0},
)


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    if hasattr(time, "tzset"):
        time.tzset()


def leave(folder: Path, *results: RunResult | None, project: Project = PROJECT, now: float = STARTED_AT) -> None:
    """A run for each, None for one that was killed, a quarter of an hour apart."""
    for number, result in enumerate(results):
        with open_ledger(folder, project, now=now) as ledger:
            ledger.begin_run(f"run-{number}", now + 900 * number, "user_events.sql")
            if result is not None:
                ledger.end_run(result)


def runs(folder: Path, limit: int = 20, project: Project = PROJECT) -> list[PastRun]:
    with read_ledger(folder, project, now=STARTED_AT) as ledger:
        return ledger.runs.last(limit)


# In the ledger --------------------------------------------------------------------------------------------------------


def test_each_run_is_kept_as_it_ended_the_newest_last(tmp_path: Path) -> None:
    leave(tmp_path, DONE, REFUSED, None)
    assert runs(tmp_path) == [
        PastRun("run-0", STARTED_AT, "user_events.sql", True, DONE),
        PastRun("run-1", STARTED_AT + 900, "user_events.sql", True, REFUSED),
        PastRun("run-2", STARTED_AT + 1800, "user_events.sql", True, None),
    ]
    assert [run.run_id for run in runs(tmp_path, limit=2)] == ["run-1", "run-2"]


def test_folder_without_a_ledger_has_no_runs_and_gets_no_file(tmp_path: Path) -> None:
    assert runs(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_runs_of_another_key_are_kept_apart_by_a_word(tmp_path: Path) -> None:
    leave(tmp_path, DONE)
    leave(tmp_path, REFUSED, project=Project(PROJECT.base_url, "another-key"))
    assert [run.is_of_this_project for run in runs(tmp_path)] == [True, False]


@pytest.mark.parametrize(("days_later", "count"), [(400, 3), (401, 2)])
def test_runs_are_dropped_after_400_days(tmp_path: Path, days_later: int, count: int) -> None:
    leave(tmp_path, DONE)
    leave(tmp_path, DONE, REFUSED, now=STARTED_AT + days_later * DAY_S)
    assert len(runs(tmp_path)) == count


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.ledger.ledger import open_ledger
from tests.opened import PROJECT
with open_ledger(Path(sys.argv[1]), PROJECT, now=0) as ledger:
    ledger.begin_run("killed", 0, "user_events.sql")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_run_that_was_killed_did_not_finish(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, check=False)
    assert runs(tmp_path) == [PastRun("killed", 0, "user_events.sql", True, None)]


# As lines and as JSON -------------------------------------------------------------------------------------------------


def test_a_line_a_run_within_80_columns(tmp_path: Path) -> None:
    leave(tmp_path, DONE, MANY, REFUSED, None)
    leave(tmp_path, None, project=Project(PROJECT.base_url, "another-key"), now=STARTED_AT + 3600)
    lines = history_lines(runs(tmp_path), tmp_path, is_active=True, columns=80)
    assert lines == [
        "When              Ended     Rows From Took Records and reason",
        "2026-01-13 14:00  success   12   24h  3s   users +5, events +12: all 12...",
        "2026-01-13 14:15  partial 1 1.2M all  90m  users +9999 =12k !300 ?1 -2: 300...",
        "2026-01-13 14:30  failed 77 -    all  0s   Iterable refused the key.",
        "2026-01-13 14:45  did not finish",
        "2026-01-13 15:00* running",
        "",
        "+ delivered  = unchanged  ! rejected  ? not acknowledged  - not attempted",
        "From: how long before the run :since began to read; all: everything was read",
        "Query file: user_events.sql",
        "* for another Iterable project, or with another key",
    ]
    assert max(map(len, lines)) <= 80


def test_where_there_is_no_terminal_nothing_is_cut_and_of_several_query_files_each_run_has_its_own(
    tmp_path: Path,
) -> None:
    leave(tmp_path, DONE)
    with open_ledger(tmp_path, PROJECT, now=STARTED_AT) as ledger:
        ledger.begin_run("other", STARTED_AT + 900, "queries/other.sql")
    assert history_lines(runs(tmp_path), tmp_path, is_active=False) == [
        "When             Ended   Rows From Took Records and reason",
        "2026-01-13 14:00 success 12   24h  3s   user_events.sql: users +5, events +12: all 12 records delivered",
        "2026-01-13 14:15 did not finish (other.sql)",
        "",
        "+ delivered  = unchanged  ! rejected  ? not acknowledged  - not attempted",
        "From: how long before the run :since began to read; all: everything was read",
        "Query file: user_events.sql",
        "Query file: queries/other.sql",
    ]


def test_lock_that_a_later_run_will_take_says_nothing_about_the_last_one(tmp_path: Path) -> None:
    leave(tmp_path, None)
    (line,) = (line for line in history_lines(runs(tmp_path), tmp_path, is_active=False) if line.startswith("2026"))
    assert line == "2026-01-13 14:00 did not finish"


def test_no_run_yet_is_said_in_a_sentence(tmp_path: Path) -> None:
    assert history_lines([], tmp_path, is_active=False) == [f"There are no runs yet in the ledger of {tmp_path}."]


def test_json_has_all_that_is_known(tmp_path: Path) -> None:
    leave(tmp_path, DONE, None)
    finished, active = history_as_json(runs(tmp_path), is_active=True)["runs"]
    assert finished == {
        "run_id": "run-0",
        "started_at": "2026-01-13T14:00:00+00:00",
        "query_file": "user_events.sql",
        "this_project": True,
        "status": "success",
        "exit_code": 0,
        "reason": "all 12 records delivered",
        "duration_s": 3.2,
        "rows": 12,
        "since": {"from": "2026-01-12T14:00:00+00:00", "full_read": False},
        "users": {"delivered": 5, "unchanged": 0},
        "events": {"delivered": 12},
    }
    named = {"run_id": "run-1", "started_at": "2026-01-13T14:15:00+00:00", "status": "running"}
    assert active == {**dict.fromkeys(finished), **named, "query_file": "user_events.sql", "this_project": True}


# The option -----------------------------------------------------------------------------------------------------------


def options(tmp_path: Path, *, as_json: bool = False, **settings: str) -> argparse.Namespace:
    env_file = tmp_path / "settings.env"
    chosen = {"ITERABLE_API_KEY": KEY, "DATABASE_URL": "sqlite:///users.db", "OUTPUT_DIR": str(tmp_path), **settings}
    env_file.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
    env_file.chmod(0o600)
    return argparse.Namespace(history=20, json=as_json, env_file=env_file, sandbox=False)


def test_option_prints_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project("https://api.iterable.com", KEY)
    leave(tmp_path, DONE, project=project)
    assert run_history(options(tmp_path)) is ExitCode.SUCCESS
    told = capsys.readouterr()
    assert told.out.splitlines() == history_lines(runs(tmp_path, project=project), tmp_path, is_active=False)
    assert told.err == ""


def test_option_prints_json_alone_also_while_a_run_is_active(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(tmp_path, Project("https://api.iterable.com", KEY), now=STARTED_AT))
        ledger.begin_run("active", STARTED_AT, "user_events.sql")
        assert run_history(options(tmp_path, as_json=True)) is ExitCode.SUCCESS
    assert [run["status"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["running"]


def test_option_with_wrong_settings_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_history(options(tmp_path, EVENT_TIMEZONE="Nowhere")) is ExitCode.SETTINGS
    assert "EVENT_TIMEZONE" in capsys.readouterr().err


def test_option_with_a_damaged_ledger_is_65_and_leaves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LEDGER_NAME).write_bytes(b"this is no database; " * 1000)
    assert run_history(options(tmp_path)) is ExitCode.BRAKE
    assert "is damaged (file is not a database)" in capsys.readouterr().err
    assert (tmp_path / LEDGER_NAME).exists()
