"""The brake where what was accepted would be sent again: a ledger that is damaged, lost, or older than the results."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.ledger.ledger import LEDGER_NAME, Project
from pipeline.run.earlier_runs import project_mark
from pipeline.sandbox import StandIn
from tests.program import Finished, Program, make_table, sent, use_query

ALL = "12 users and 36 events would be sent, accepted or not: "
WAYS_ON = ("Nothing was sent.", "To send it all the same: run once with --yes.")
EACH_MODE = pytest.mark.parametrize("mode", ["single", "bulk"])


def stopped(run: Finished, iterable: StandIn, *words: str) -> None:
    """The brake has stopped this run, and nothing was sent since `iterable` forgot its requests."""
    assert (run.code, sent(iterable)) == (65, [])
    reason = run.results["reason"]
    assert [each for each in (*words, *WAYS_ON) if each not in reason] == []


def delivered(program: Program, iterable: StandIn, *arguments: str) -> Finished:
    run = program.run(*arguments)
    assert (run.code, run.results["delivered_total"]) == (0, 48)
    iterable.project.requests.clear()
    return run


def ledger(program: Program) -> Path:
    return program.folder / LEDGER_NAME


# Damaged --------------------------------------------------------------------------------------------------------------


@EACH_MODE
@pytest.mark.parametrize("content", [b"", b"this is no database; " * 1000], ids=["nothing", "garbage"])
def test_a_damaged_ledger_stops_the_run_and_stays_until_yes(
    program: Program, iterable: StandIn, sample: Path, mode: str, content: bytes
) -> None:
    program.settings["PUSH_MODE"] = mode
    delivered(program, iterable)
    ledger(program).write_bytes(content)
    for option in ((), ("--dry-run",), ("--limit", "99")):
        stopped(program.run(*option), iterable, ALL, f"The ledger {ledger(program)} is damaged", "--baseline")
        assert (ledger(program).read_bytes(), len(list(program.folder.glob(f"{LEDGER_NAME}*")))) == (content, 1)
    run = delivered(program, iterable, "--yes")
    assert "The ledger was damaged" in run.err
    assert [path.read_bytes() for path in run.files(f"{LEDGER_NAME}.damaged-*")] == [content]
    assert program.run().counts("events") == {"unchanged": 36}


def test_a_baseline_over_a_damaged_ledger_needs_yes(program: Program, iterable: StandIn, sample: Path) -> None:
    delivered(program, iterable)
    ledger(program).write_bytes(b"")
    run = program.run("--baseline", "--yes")
    assert (run.code, run.counts("users"), sent(iterable)) == (0, {"unchanged": 12}, [])
    assert program.run().counts("events") == {"unchanged": 36}


# Lost, or older than the results --------------------------------------------------------------------------------------


@EACH_MODE
def test_a_lost_ledger_stops_the_run_beside_results_of_earlier_deliveries(
    program: Program, iterable: StandIn, sample: Path, mode: str
) -> None:
    program.settings["PUSH_MODE"] = mode
    first = delivered(program, iterable)
    ledger(program).unlink()
    words = (ALL, f"knows nothing of this project, to which run {first.results['run_id']} delivered", "--baseline")
    stopped(program.run(), iterable, *words)
    stopped(program.run("--dry-run"), iterable, *words)
    stopped(program.run("--limit", "1"), iterable, "1 user and 1 event would be sent")
    delivered(program, iterable, "--yes")
    assert program.run().code == 0


@pytest.mark.parametrize(
    "part",
    [
        ("--yes", "--limit", "1"),
        ("--baseline", "--yes", "--limit", "1"),
        ("--baseline", "--yes", "--before", "2026-01-07"),
    ],
)
def test_a_way_on_for_a_part_leaves_the_rest_to_be_stopped(
    program: Program, iterable: StandIn, sample: Path, part: tuple[str, ...]
) -> None:
    first = delivered(program, iterable)
    ledger(program).unlink()
    assert program.run(*part).code == 0
    iterable.project.requests.clear()
    stopped(program.run(), iterable, f"the ledger is older than run {first.results['run_id']}")
    assert program.run("--yes").code == 0
    assert program.run().code == 0


def test_a_baseline_is_a_way_on(program: Program, iterable: StandIn, sample: Path) -> None:
    delivered(program, iterable)
    ledger(program).unlink()
    run = program.run("--baseline", "--yes")
    assert (run.code, run.results["delivered_total"], sent(iterable)) == (0, 48, [])
    assert program.run().code == 0


def test_a_baseline_counts_as_an_earlier_run(program: Program, iterable: StandIn, sample: Path) -> None:
    program.run("--baseline", "--yes")
    ledger(program).unlink()
    stopped(program.run(), iterable, "knows nothing of this project")


def of_another_project(results: dict[str, object]) -> None:
    results["project_mark"] = "0" * 32


def without_delivery(results: dict[str, object]) -> None:
    results["delivered_total"] = 0


def of_an_older_version(results: dict[str, object]) -> None:
    del results["project_mark"], results["delivered_total"]


@pytest.mark.parametrize("change", [of_another_project, without_delivery, of_an_older_version])
def test_results_that_say_nothing_of_this_project_let_a_first_run_begin(
    program: Program, iterable: StandIn, sample: Path, change: Callable[[dict[str, object]], None]
) -> None:
    run = delivered(program, iterable)
    ledger(program).unlink()
    (path,) = run.files("integration_results_*")
    change(run.results)
    path.write_text(json.dumps(run.results))
    assert program.run().code == 0


@pytest.mark.parametrize("option", ["--dry-run", "--sandbox"])
def test_dry_and_sandbox_runs_are_no_earlier_runs(
    program: Program, iterable: StandIn, sample: Path, option: str
) -> None:
    assert program.run(option).code == 0
    assert program.run().code == 0


def test_results_that_can_not_be_read_are_passed_over(program: Program, iterable: StandIn, sample: Path) -> None:
    run = delivered(program, iterable)
    ledger(program).unlink()
    (path,) = run.files("integration_results_*")
    path.write_text(path.read_text()[:500])
    assert program.run().code == 0


def test_an_older_copy_of_the_ledger_stops_the_run(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    """Ada's plan goes from A to B and back to A: yesterday's ledger would take the second A for known."""
    make_table(tmp_path / "users.db", "email, plan_type", [("ada@example.com", "A"), ("bob@example.com", "A")])
    use_query(program, "SELECT * FROM rows")
    assert program.run().code == 0
    shutil.copy(ledger(program), tmp_path / "yesterday")
    make = "UPDATE rows SET plan_type = ? WHERE email = ?"
    change(tmp_path / "users.db", make, "B", "ada@example.com")
    newest = program.run()
    assert newest.results["delivered_total"] == 1
    shutil.copy(tmp_path / "yesterday", ledger(program))
    change(tmp_path / "users.db", make, "A", "ada@example.com")
    change(tmp_path / "users.db", make, "B", "bob@example.com")
    iterable.project.requests.clear()
    run_id = newest.results["run_id"]
    words = ("1 user would be sent, some of them again", f"older than run {run_id}", "back as that run left it")
    for _ in range(2):  # the first one enters its own id
        stopped(program.run(), iterable, *words)
    assert program.run("--yes").code == 0
    change(tmp_path / "users.db", make, "C", "bob@example.com")
    assert program.run().code == 0


def change(path: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def test_runs_without_news_after_the_last_delivery_change_nothing(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    delivered(program, iterable)
    for _ in range(3):
        assert program.run().code == 0
    change(sample, "UPDATE users SET plan_type = ? WHERE id = 1", "new")
    run = program.run()
    assert (run.code, run.counts("users")) == (0, {"delivered": 1, "unchanged": 11})


def test_the_mark_of_a_project_is_by_its_name_else_by_its_key() -> None:
    url, other = "https://api.iterable.com", "https://api.eu.iterable.com"
    marks = [
        project_mark(project)
        for project in (
            Project(url, "key"), Project(url, "another"), Project(other, "key"), Project(url, "key", "shop"),
            Project(url, "shop"),
        )
    ]  # fmt: skip
    assert len(set(marks)) == len(marks)
    assert project_mark(Project(url, "another", "shop")) == marks[3]


# A new key, a ledger that must be there, --full -----------------------------------------------------------------------


def test_a_new_key_stops_the_run_where_the_ledger_knows_others(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    delivered(program, iterable)
    key = iterable.project.api_key = "another-key-of-this-project"
    program.settings["ITERABLE_API_KEY"] = key
    stopped(program.run(), iterable, ALL, "the API key is new to the ledger", "ITERABLE_PROJECT=name")
    delivered(program, iterable, "--yes")
    assert program.run().code == 0


def test_require_ledger_stops_a_run_without_one(program: Program, iterable: StandIn, sample: Path) -> None:
    program.settings["REQUIRE_LEDGER"] = "true"
    stopped(program.run(), iterable, ALL, "REQUIRE_LEDGER=true")
    delivered(program, iterable, "--yes")
    assert program.run().code == 0


@EACH_MODE
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--full"],
            "12 users and 36 events again that Iterable has accepted as they are, and fields and events start journeys",
        ),
        (
            ["--full", "users"],
            "--full would send 12 users again that Iterable has accepted as they are, and fields",
        ),
        (["--full", "events"], "--full would send 36 events again that Iterable has accepted as they are, and events"),
    ],
    ids=["all", "users", "events"],
)
def test_full_over_accepted_records_needs_yes(
    program: Program, iterable: StandIn, sample: Path, mode: str, arguments: list[str], words: str
) -> None:
    program.settings["PUSH_MODE"] = mode
    assert program.run(*arguments).code == 0  # a first run: nothing is accepted yet
    iterable.project.requests.clear()
    stopped(program.run(*arguments), iterable, words)
    stopped(program.run(*arguments, "--dry-run"), iterable, words)
    run = program.run(*arguments, "--yes")
    assert (run.code, bool(sent(iterable))) == (0, True)


# Old events, and a part of what is known ------------------------------------------------------------------------------


def test_events_that_are_too_old_stop_the_run(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    rows = [("ada@example.com", "2001-02-03 04:05:06"), ("ada@example.com", "2026-11-29 00:00:00")]
    make_table(tmp_path / "users.db", "email, event_time", rows)
    use_query(program, "SELECT * FROM rows")
    program.settings["MAX_EVENT_AGE_DAYS"] = "3650"
    run = program.run()
    stopped(run, iterable, "1 event is older than MAX_EVENT_AGE_DAYS=3650, the oldest of 2001-02-03 04:05:06 UTC")
    assert "run with --baseline --before 20" in run.results["reason"]
    assert program.run("--baseline", "--before", "2016-01-01", "--yes").code == 0
    run = program.run()
    assert (run.code, run.counts("events")) == (0, {"delivered": 1, "unchanged": 1})


def test_a_percentage_does_not_lock_out_a_first_load_that_was_cut(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    program.settings["MAX_CHANGES"] = "10%"
    assert program.run("--limit", "5").code == 0
    run = program.run()
    assert (run.code, run.counts("events")["delivered"]) == (0, 31)
    change(sample, "UPDATE users SET plan_type = ?", "new")
    stopped(program.run(), iterable_of(iterable), "more than MAX_CHANGES allows (10 % of 48 known records)")


def iterable_of(iterable: StandIn) -> StandIn:
    iterable.project.requests.clear()
    return iterable
