"""The whole program, as a user runs it: a process of its own, against the stand-in over HTTP, on SQLite files."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from iterable.pacing import rates
from pipeline.config import load_settings
from pipeline.run.opening import make_client
from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, Fault, StandIn
from tests.program import ROOT, Program, make_table, sent, use_query

COLUMNS = "id,email,first_name,last_name,plan_type,candidate,page,device,browser,location,event_time"
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - [\w.]+ - (DEBUG|INFO|WARNING|ERROR|CRITICAL) - .*")


# The contract ---------------------------------------------------------------------------------------------------------


def test_a_run_with_an_api_key_delivers_everything(program: Program, iterable: StandIn, sample: Path) -> None:
    run = program.run()
    assert (run.code, run.err) == (0, "")
    assert run.counts("users") == {"delivered": 12}
    assert run.counts("events") == {"delivered": 36}
    assert len(iterable.project.users) == 12
    assert set(iterable.project.event_sends.values()) == {1}
    assert "Using API key authentication" in run.log
    assert " - iterable_client - INFO - users/update call successful: Success" in run.log
    assert all(LINE.fullmatch(line) for line in run.log.splitlines())


def test_a_run_with_jwt_delivers_everything_with_a_token_for_each_user(tmp_path: Path, sample: Path) -> None:
    with StandIn(key_type="Mobile", jwt_secret=SANDBOX_JWT_SECRET) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        run = program.run(
            DATABASE_URL=f"sqlite:///{sample}", USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SANDBOX_JWT_SECRET
        )
        assert (run.code, run.err) == (0, "")
        assert run.counts("users") == {"delivered": 12}
        assert run.counts("events") == {"delivered": 36}
        assert run.results["authentication"] == "JWT"
        tokens = {request.headers["authorization"] for request in iterable.project.requests}
        assert len(tokens) >= 12
        assert {request.headers["api-key"] for request in iterable.project.requests} == {SANDBOX_KEY}
    assert " - iterable_client - INFO - Using JWT authentication" in run.log
    assert " - iterable_client - DEBUG - JWT token generated successfully" in run.log


def test_the_csv_has_the_specified_columns_and_every_row(program: Program, sample: Path) -> None:
    run = program.run()
    (path,) = run.files("query_results_*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == COLUMNS.split(",")
    assert len(rows) == run.results["counts"]["rows"] == 37
    assert re.fullmatch(r"query_results_\d{8}_\d{6}\.csv", path.name)


def test_the_csv_is_exported_between_the_query_and_the_first_call(program: Program, sample: Path) -> None:
    run = program.run()
    steps = [line for line in run.out.splitlines() if line.startswith("Step")]
    assert [line.split(":")[0] for line in steps] == [
        "Step 1", "Step 2", "Step 3", "Step 4", "Step 4.5", "Step 5", "Step 6", "Step 7",
    ]  # fmt: skip
    log = run.log
    assert log.index("Step 4:") < log.index("Step 4.5:") < log.index("users/update call")


def test_the_results_json_has_exactly_the_promised_keys(program: Program, sample: Path) -> None:
    results = program.run().results
    outcomes = ["delivered", "unchanged", "rejected", "unacknowledged", "not_attempted"]
    assert list(results) == [
        "result_version", "tool_version", "project_mark", "run_id", "status", "exit_code", "reason", "started_at",
        "finished_at", "duration_s", "host", "database", "query_file", "options", "since", "authentication",
        "push_mode", "base_url", "retry", "counts", "delivered_total", "requests", "fields", "files", "reasons",
        "journeys", "failures_total", "failures", "email_changes", "shared_addresses", "merged_users_rows",
        "omitted_values",
    ]  # fmt: skip
    assert (results["result_version"], results["delivered_total"]) == (3, 48)
    assert re.fullmatch("[0-9a-f]{32}", results["project_mark"])
    assert results["options"] == dict.fromkeys(["sandbox", "dry_run", "full", "limit", "baseline"], False) | {
        "limit": None
    }
    assert (results["since"], results["query_file"], results["failures_total"]) == (None, "user_events.sql", 0)
    assert results["retry"] == {"max_retries": 3, "backoff_factor": 2, "initial_backoff": 0.01}
    assert list(results["counts"]) == [
        "rows", "duplicate_events", "corrected_events", "merged_users", "gone_users", "users", "events",
    ]  # fmt: skip
    assert list(results["counts"]["users"]) == list(results["counts"]["events"]) == outcomes
    assert results["requests"] == {
        "users/update": {"sent": 12, "retried": 0, "rate_limited": 0},
        "events/track": {"sent": 36, "retried": 0, "rate_limited": 0},
    }
    assert results["fields"] == {"filtered_out": [], "created": [], "not_sent": []}
    stamp = results["run_id"]
    assert results["files"] == {
        "results": f"integration_results_{stamp}.json", "csv": f"query_results_{stamp}.csv",
        "log": "iterable_integration.log", "rejected": None, "preview": None,
    }  # fmt: skip


def test_a_failure_has_exactly_the_promised_keys(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [("ada@example.com", "2026-01-13 08:45:12")])
    use_query(program, "SELECT email, event_time FROM rows")
    iterable.project.blocked_events.add("page_view")
    run = program.run()
    assert run.code == 1
    assert run.results["failures"] == [
        {
            "row": 1, "kind": "event", "email": "ada@example.com", "user_id": None, "outcome": "rejected",
            "status_code": 200, "code": run.results["failures"][0]["code"],
            "message": run.results["failures"][0]["message"], "attempts": 1,
        }
    ]  # fmt: skip
    assert "is disallowed from tracking" in run.results["failures"][0]["message"]


def test_every_file_is_private_under_any_umask(program: Program, sample: Path) -> None:
    previous = os.umask(0)
    try:
        run = program.run()
    finally:
        os.umask(previous)
    assert {path.name.split(".")[0].split("_2")[0] for path in run.files("*")} == {
        "query_results", "integration_results", "iterable_integration", "iterable_ledger",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in run.files("*")} == {0o600}


# What is sent ---------------------------------------------------------------------------------------------------------


def test_each_user_comes_before_their_events_which_keep_the_order_of_the_query(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [
        ("bob@example.com", "Bob", "2026-01-13 08:00:00", "b1"),
        ("ada@example.com", "Ada", "2026-01-13 09:00:00", "a1"),
        ("bob@example.com", "Bobby", "2026-01-13 10:00:00", "b2"),
        ("eve@example.com", "Eve", None, None),
        ("bob@example.com", "Bobby", "2026-01-13 07:00:00", "b3"),
    ]
    make_table(tmp_path / "users.db", "email,first_name,event_time,page", rows)
    use_query(program, "SELECT email, first_name, event_time, page FROM rows")
    assert program.run(MAX_WORKERS="1").code == 0
    sent = [(request.path, json.loads(request.body)) for request in iterable.project.requests]
    users = [body for path, body in sent if path == "/api/users/update"]
    events = [body for path, body in sent if path == "/api/events/track"]
    assert (len(users), len(events), len(sent)) == (3, 4, 7)
    for event in events:  # which may leave while other users are still being updated
        updated = [path == "/api/users/update" and body["email"] == event["email"] for path, body in sent]
        assert updated.index(True) < sent.index(("/api/events/track", event))
    assert {body["email"]: body["dataFields"] for body in users} == {
        "bob@example.com": {"first_name": "Bobby"},
        "ada@example.com": {"first_name": "Ada"},
        "eve@example.com": {"first_name": "Eve"},
    }
    of_bob = [(body["dataFields"], body["createdAt"]) for body in events if body["email"] == "bob@example.com"]
    assert of_bob == [({"page": "b1"}, 1768291200), ({"page": "b2"}, 1768298400), ({"page": "b3"}, 1768287600)]
    assert [body["dataFields"] for body in events if body["email"] == "ada@example.com"] == [{"page": "a1"}]
    assert len({event["id"] for event in events}) == 4


@pytest.mark.parametrize("percent", [90, 100, 200])
def test_client_is_paced_by_the_percentage_of_the_limits(percent: float) -> None:
    needed = {"ITERABLE_API_KEY": SANDBOX_KEY, "DATABASE_URL": "sqlite:///users.db"}
    client = make_client(load_settings(Path("/no/.env"), needed | {"RATE_LIMIT_PERCENT": str(percent)}))
    paced = {name: 1 / pacer._interval_s for name, pacer in client._pacers.items()}
    assert paced == pytest.approx(rates(percent))


def test_text_that_is_no_utf8_refuses_its_row_alone_and_nothing_doubles(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [(f"u{n}@example.com", "2026-01-13 08:00:00", f"p{n}") for n in range(700)]
    make_table(tmp_path / "users.db", "email,event_time,page", rows)
    bad = "CASE email WHEN 'u650@example.com' THEN CAST(x'c3a9e9' AS TEXT) ELSE page END AS page"
    use_query(program, f"SELECT email, event_time, {bad}, strftime('%f', 'now') AS read_at, random() AS r FROM rows")
    iterable.project.unknown_users = "accept"
    run = program.run(RATE_LIMIT_PERCENT="10000", USER_FIELDS="-")
    assert run.code == 1
    assert run.counts("users") == {"delivered": 700}
    assert run.counts("events") == {"delivered": 699, "rejected": 1}
    assert run.results["counts"]["rows"] == 700
    assert [(each["row"], each["message"]) for each in run.results["failures"]] == [(651, "page is not valid UTF-8.")]
    assert "a text is not valid UTF-8. All rows are read once more" in run.log
    assert run.out.count("Step 3") == run.out.count("Step 4: ") == 1
    (path,) = run.files("query_results_*.csv")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 701


def test_user_ids_identify_where_the_project_says_so(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "id,event_time", [(17, "2026-01-13 08:00:00")])
    use_query(program, "SELECT id, event_time FROM rows")
    assert program.run(ITERABLE_IDENTIFIER="userId").code == 0
    user, event = (json.loads(request.body) for request in iterable.project.requests)
    assert user == {"userId": "17", "preferUserId": True, "dataFields": {}}
    assert (event["userId"], "email" in event) == ("17", False)


def test_more_than_a_hundred_records_go_in_bulk(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    rows = [(f"user{n}@example.com", "2026-01-13 08:00:00") for n in range(60)]
    make_table(tmp_path / "users.db", "email,event_time", rows)
    use_query(program, "SELECT email, event_time FROM rows")
    run = program.run()
    assert (run.code, run.results["push_mode"]) == (0, "bulk")
    assert dict(iterable.project.request_counts) == {"/api/users/bulkUpdate": 1, "/api/events/trackBulk": 1}
    assert (run.counts("users"), run.counts("events")) == ({"delivered": 60}, {"delivered": 60})


def test_a_second_run_over_the_same_data_sends_nothing_and_says_so(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    program.run()
    iterable.project.request_counts.clear()
    run = program.run()
    assert run.code == 0
    assert not iterable.project.request_counts
    assert run.counts("users") == {"unchanged": 12}
    assert run.counts("events") == {"unchanged": 36}
    assert "36 unchanged" in run.out


# Options --------------------------------------------------------------------------------------------------------------


def test_a_sandbox_run_needs_no_settings_and_keeps_no_ledger(program: Program) -> None:
    run = program.run("--sandbox", ITERABLE_API_KEY=None, ITERABLE_BASE_URL=None, DATABASE_URL=None)
    assert (run.code, run.err) == (0, "")
    assert "nothing left this machine" in run.out
    assert "holds 12 users and 36 events" in run.out
    assert run.files("iterable_ledger*") == []


def test_a_sandbox_run_never_uses_the_real_key(program: Program, sample: Path) -> None:
    run = program.run("--sandbox", ITERABLE_API_KEY="a-real-key", ITERABLE_BASE_URL="https://api.iterable.com")
    assert run.code == 0
    assert run.results["base_url"].startswith("http://127.0.0.1:")
    assert "a-real-key" not in run.out + run.log


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    run = program.run("--dry-run")
    assert (run.code, run.err, sent(iterable)) == (0, "", [])
    assert run.results["status"] == "dry_run"
    assert run.counts("users") == {"not_attempted": 12}
    assert "12 users and 36 events to send" in run.out
    assert run.files("iterable_ledger*") == []
    assert len(run.files("query_results_*.csv")) == 1


def test_a_dry_run_leaves_an_existing_ledger_as_it_is(program: Program, sample: Path) -> None:
    program.run("--limit", "3")
    ledger = program.folder / "iterable_ledger.sqlite3"
    before = ledger.read_bytes()
    run = program.run("--dry-run")
    assert run.counts("users")["unchanged"] >= 1
    assert ledger.read_bytes() == before


@pytest.mark.parametrize(
    ("argument", "users", "events"),
    [([], 12, 36), (["users"], 12, 0), (["events"], 0, 36)],
    ids=["all", "users", "events"],
)
def test_full_sends_everything_of_a_kind_again(
    program: Program, sample: Path, argument: list[str], users: int, events: int
) -> None:
    program.run()
    run = program.run("--full", *argument, "--yes")
    assert (run.counts("users").get("delivered", 0), run.counts("events").get("delivered", 0)) == (users, events)
    assert run.results["options"]["full"] == (argument[0] if argument else True)


def test_limit_takes_only_the_first_rows(program: Program, sample: Path) -> None:
    assert program.run("--limit", "3").results["counts"]["rows"] == 3


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_count_is_a_usage_error(program: Program, value: str) -> None:
    run = program.run("--limit", value)
    assert run.code == 2
    assert "whole number" in run.err


@pytest.mark.parametrize("option", [["--lim", "3"], ["--dry"], ["--sand"], ["--check", "--env", "x"]])
def test_half_an_option_is_none(program: Program, option: list[str]) -> None:
    run = program.run(*option)
    assert (run.code, "unrecognized arguments" in run.err) == (2, True)


@pytest.mark.parametrize(
    ("look", "option"),
    [
        *((["--check"], option) for option in (["--limit", "2"], ["--only", "x"], ["--dry-run"], ["--baseline"])),
        *((["--verify"], option) for option in (["--limit", "3"], ["--full"], ["--since", "all"], ["--yes"])),
        *((["--explain", "x"], option) for option in (["--full"], ["--limit", "3"], ["--dry-run"])),
        *((["--history"], option) for option in (["--yes"], ["--only", "x"])),
        (["--report"], ["--dry-run"]),
    ],
)
def test_an_option_that_a_look_would_ignore_is_refused(program: Program, look: list[str], option: list[str]) -> None:
    run = program.run(*look, *option)
    sentence = f"main.py: error: {look[0]} would ignore {option[0]}, so they can't be used together\n"
    assert (run.code, run.err.endswith(sentence)) == (2, True)


@pytest.mark.parametrize("look", ["--verify", "--history", "--report"])
def test_what_needs_a_ledger_is_refused_with_the_sandbox(program: Program, look: str) -> None:
    run = program.run("--sandbox", look)
    sentence = f"{look} needs what runs have left in the ledger, and --sandbox keeps none\n"
    assert (run.code, run.err.endswith(sentence)) == (2, True)


@pytest.mark.parametrize("option", ["--only", "--explain", "--forget"])
def test_nobody_is_no_person(program: Program, option: str) -> None:
    run = program.run(option, " ")
    assert (run.code, run.err.endswith(f"argument {option}: must be an e-mail address, or a userId\n")) == (2, True)


def test_who_is_not_among_the_rows_is_told_by_a_dry_run_too(program: Program, sample: Path) -> None:
    for option in ([], ["--dry-run"]):
        run = program.run("--only", "nobody@example.com", *option)
        assert (run.code, run.results["reason"]) == (1, "The query finds no rows of the person that --only names.")
        run = program.run("--only", "nobody@example.com", "--limit", "2", *option)
        sentence = "The first 2 rows of the query hold no rows of the person that --only names."
        assert (run.code, run.results["reason"]) == (1, sentence)


def test_the_file_to_fix_is_the_one_that_was_named(program: Program) -> None:
    run = program.run("--env-file", "/nope")
    assert (run.code, run.err.splitlines()) == (
        78,
        [
            "/nope does not exist; check --env-file.",
            "Fix this in /nope, which begins as a copy of .env.example; or try the job without a key: main.py "
            "--sandbox",
        ],
    )
    run = program.run("--env-file", "")
    assert (run.code, run.err.endswith("argument --env-file: must be the path of a file\n")) == (2, True)


@pytest.mark.parametrize("name", ["OUTPUT_DIR", "QUERY_FILE", "DATABASE_URL", "STATE_URL"])
@pytest.mark.parametrize("look", [[], ["--check"]])
def test_a_file_name_that_the_process_can_not_have_is_told(program: Program, look: list[str], name: str) -> None:
    beginnings = {"DATABASE_URL": "sqlite:////tmp", "STATE_URL": "file:///tmp"}
    program.env_file.write_text(f"{name}={beginnings.get(name, '/tmp')}/ü\n", encoding="utf-8")
    program.settings |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program.settings.pop(name, None)
    run = program.wait_for(program.start(*look))
    sentence = (
        f"{name} has a character that file names can't have here, as this process has ascii for them; start it with "
        "LC_ALL=C.UTF-8."
    )
    assert (run.code, sentence in run.out + run.err) == (78, True)


def test_quiet_prints_nothing_on_success(program: Program, sample: Path) -> None:
    run = program.run("--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")


def test_quiet_prints_errors(program: Program) -> None:
    run = program.run("--quiet")
    assert (run.code, run.out) == (66, "")
    assert "does not exist" in run.err


def test_verbose_shows_the_log_with_addresses_masked(program: Program, sample: Path) -> None:
    run = program.run("--verbose")
    assert "INFO iterable_client: users/update call successful: Success" in run.err
    assert "alex.moreau@" not in run.err


def test_version_and_help(program: Program) -> None:
    assert program.run("--version").out.startswith("iterable-integration 1.")
    assert "--sandbox" in program.run("--help").out


def test_the_env_file_is_read_and_the_environment_wins(program: Program, sample: Path, tmp_path: Path) -> None:
    env_file = tmp_path / "my.env"
    env_file.write_text(f"DATABASE_URL=sqlite:///{sample}\nEVENT_NAME=from_file\nPUSH_MODE=bulk\n")
    env_file.chmod(0o600)
    run = program.run("--env-file", str(env_file), DATABASE_URL=None, PUSH_MODE="single")
    assert (run.code, run.err) == (0, "")
    assert run.results["push_mode"] == "single"


def test_an_env_file_in_the_working_directory_is_not_read(program: Program, sample: Path) -> None:
    (program.folder.parent / ".env").write_text("PUSH_MODE=nonsense\n")
    assert program.run().code == 0


# Bad input ------------------------------------------------------------------------------------------------------------


def test_without_settings_three_lines_tell_what_is_missing_and_how_to_try_it(program: Program) -> None:
    run = program.run(ITERABLE_API_KEY=None, DATABASE_URL=None)
    assert (run.code, run.out) == (78, "")
    lines = run.err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("ITERABLE_API_KEY is not set")
    assert lines[1].startswith("DATABASE_URL is not set")
    assert "main.py --sandbox" in lines[2]
    assert run.files("*") == []


BAD_SOURCES = {
    "missing": (None, None, "does not exist"),
    "not a database": (b"this is no database " * 50, None, "not a database"),
    "broken query": (b"", "SELEC email FROM rows", "syntax error"),
    "missing table": (b"", "SELECT email FROM nowhere", "no such table"),
    "no identity": (b"", "SELECT 'Ada' AS first_name", "no column email"),
    "no event_time": (b"", "SELECT 'a@example.com' AS email, 'x' AS page", "no column event_time"),
    "doubled columns": (b"", "SELECT 'a@example.com' AS email, 1 AS n, 2 AS n", "more than one column named n"),
    "writing query": (b"", "CREATE TABLE t (x)", "must be one SELECT"),
    "two statements": (b"", "SELECT 'a@example.com' AS email; SELECT 2", "more than one statement"),
    "empty": (b"", "-- nothing", "holds no query"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_source_that_cant_be_read_is_one_sentence_and_exit_66(
    name: str, program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    content, sql, words = BAD_SOURCES[name]
    database = tmp_path / "users.db"
    if content is not None:
        database.write_bytes(content)
    if sql is not None:
        use_query(program, sql)
    run = program.run()
    assert run.code == 66
    assert words in run.err
    assert len(run.err.splitlines()) == 1
    assert run.files("query_results*") == []
    assert not iterable.project.request_counts
    assert database.exists() == (content is not None)
    assert (run.results["status"], run.results["exit_code"]) == ("failed", 66)


def test_rows_that_cant_be_sent_are_listed_and_the_others_go_on(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [
        ("ada@example.com", "Ada", "2026-01-13 08:45:12"),
        (None, "Nobody", "2026-01-13 08:45:12"),
        ("no address", "Nil", None),
        ("eve@example.com", "Eve", "yesterday"),
        ("bob@example.com", "=Bob()", "2026-01-13 08:45:12"),
    ]
    make_table(tmp_path / "users.db", "email,first_name,event_time", rows)
    use_query(program, "SELECT email, first_name, event_time FROM rows")
    run = program.run()
    assert run.code == 1
    assert run.counts("users") == {"delivered": 3, "rejected": 2}
    assert run.counts("events") == {"delivered": 2, "rejected": 2}
    assert [(each["row"], each["kind"], each["code"]) for each in run.results["failures"]] == [
        (2, "user", "InvalidRecord"),
        (2, "event", "InvalidRecord"),
        (3, "user", "InvalidRecord"),
        (4, "event", "InvalidRecord"),
    ]
    assert iterable.project.users["bob@example.com"]["dataFields"] == {"first_name": "=Bob()"}
    (rejected,) = run.files("rejected_rows_*.csv")
    with rejected.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(row["first_name"], row["kind"], row["outcome"]) for row in listed] == [
        ("Nobody", "user", "rejected"),
        ("Nobody", "event", "rejected"),
        ("Nil", "user", "rejected"),
        ("Eve", "event", "rejected"),
    ]
    assert "is not a valid email address" in listed[2]["message"]
    assert run.results["files"]["rejected"] == rejected.name


def test_no_rows_is_a_success_with_a_header_only(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [])
    use_query(program, "SELECT email, event_time FROM rows")
    run = program.run()
    assert (run.code, run.err) == (0, "")
    (path,) = run.files("query_results_*.csv")
    assert path.read_bytes() == b"email,event_time\r\n"
    assert not iterable.project.request_counts


# What Iterable may answer ---------------------------------------------------------------------------------------------


def test_a_wrong_key_stops_after_the_first_request(program: Program, iterable: StandIn, sample: Path) -> None:
    run = program.run(ITERABLE_API_KEY="wrong-key")
    assert run.code == 77
    assert iterable.project.request_counts.total() == 1
    assert run.counts("users") == {"unacknowledged": 1, "not_attempted": 11}
    assert run.counts("events") == {"not_attempted": 36}
    assert "wrong-key" not in run.err + run.out + run.log


def test_one_503_is_retried_and_logged_as_specified(program: Program, iterable: StandIn, sample: Path) -> None:
    iterable.inject(Fault(path="/api/users/update", status=503, times=1))
    run = program.run()
    assert run.code == 0
    assert run.results["requests"]["users/update"] == {"sent": 13, "retried": 1, "rate_limited": 0}
    assert re.search(
        r" - iterable_client - WARNING - Retryable error 503 from users/update\."
        r" Retrying in 0\.01s \(attempt 1/3\)",
        run.log,
    )


def test_an_outage_stops_the_run_and_the_next_one_sends_the_rest(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/events/track", status=503, skip=10))
    run = program.run()
    assert run.code == 75
    assert run.counts("users") == {"delivered": 12}
    assert run.counts("events")["unacknowledged"] >= 5
    assert sum(run.counts("events").values()) == 36
    assert "503" in run.err
    iterable.clear_faults()
    second = program.run()
    assert second.code == 0
    assert second.counts("users") == {"unchanged": 12}
    assert second.counts("events")["delivered"] == 36 - run.counts("events")["delivered"]
    assert len(iterable.project.events) == 36


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"", b"null", b"[]", b"\xff\xfe"])
def test_answers_that_are_not_iterables_stop_the_run(
    body: bytes, program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(status=200, body=body))
    run = program.run()
    assert run.code == 76
    assert "delivered" not in run.counts("users")
    assert run.counts("users")["unacknowledged"] >= 3


def test_a_lost_answer_is_sent_again_with_the_same_id(program: Program, iterable: StandIn, sample: Path) -> None:
    iterable.inject(Fault(path="/api/events/track", disconnect=True, store=True, times=2))
    run = program.run()
    assert run.code == 0
    assert len(iterable.project.events) == 36
    assert sorted(iterable.project.event_sends.values())[-2:] == [1, 3]


# Two at once, and signals ---------------------------------------------------------------------------------------------


def wait_for(condition: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_second_run_at_once_leaves_with_75_and_without_a_trace(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/users/update", latency_s=30.0))
    first = program.start()
    try:
        wait_for(lambda: iterable.project.request_counts.total() > 0)
        before = {path.name: path.stat().st_size for path in program.folder.iterdir()}
        run = program.run()
        assert run.code == 75
        assert "Another run is active" in run.err
        assert {path.name: path.stat().st_size for path in program.folder.iterdir()} == before
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_what_is_known_and_the_next_run_goes_on(
    number: signal.Signals, code: int, program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/events/track", latency_s=0.5, skip=5))
    process = program.start(MAX_WORKERS="2")
    wait_for(lambda: iterable.project.request_counts["/api/events/track"] > 5)
    process.send_signal(number)
    run = program.wait_for(process)
    assert run.code == code
    assert run.results["status"] == "interrupted"
    assert run.counts("events")["not_attempted"] > 0
    iterable.clear_faults()
    assert program.run().code == 0
    assert len(iterable.project.events) == 36


# Columns that no setting names ----------------------------------------------------------------------------------------


def test_a_query_of_ones_own_with_nothing_set_is_66_with_the_setting_to_write_and_nothing_is_written(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [("ada@example.com", "Ada", "2026-01-13 08:00:00")]
    make_table(tmp_path / "users.db", "email,full_name,event_time", rows)
    use_query(program, "SELECT email, full_name, event_time FROM rows")
    run = program.run()
    assert run.code == 66
    assert run.err == (
        "The query's columns full_name would not be sent, as neither USER_FIELDS nor EVENT_FIELDS is set; write "
        "USER_FIELDS=full_name (or USER_FIELDS=*) into .env, or name some of them in EVENT_FIELDS.\n"
    )
    assert (run.files("query_results*"), iterable.project.requests) == ([], [])
    assert program.run(USER_FIELDS="full_name").code == 0
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"full_name": "Ada"}


def test_many_rows_that_are_refused_alike_are_all_new_at_first(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [(None, None)] * 1500)
    use_query(program, "SELECT email, event_time FROM rows")
    assert [reason["new"] for reason in program.run().results["reasons"]] == [1500]
    assert [reason["new"] for reason in program.run().results["reasons"]] == [0]


def test_fields_that_iterable_keeps_itself_are_not_sent_by_a_star(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    make_table(tmp_path / "users.db", "email,city,emailListIds", [("ada@example.com", "London", "[1]")])
    use_query(program, "SELECT * FROM rows")
    run = program.run(USER_FIELDS="*")
    assert run.code == 0
    assert run.results["fields"]["not_sent"] == ["emailListIds"]
    assert "        Not sent, as Iterable keeps these fields itself: emailListIds\n" in run.out
    assert [json.loads(each.body)["dataFields"] for each in iterable.project.requests] == [{"city": "London"}]
    assert (
        "[note] fields: not sent, as Iterable keeps these fields itself: emailListIds\n"
        in program.run("--check", USER_FIELDS="*").out
    )


def test_columns_that_are_not_sent_are_named_once_and_silent_under_quiet(program: Program, sample: Path) -> None:
    use_query(program, "SELECT email, first_name, page, event_time FROM users JOIN user_events ON user_id = users.id")
    run = program.run(USER_FIELDS="first_name", EVENT_FIELDS="-")
    assert run.results["fields"]["not_sent"] == ["page"]
    assert [line for line in run.out.splitlines() if "page" in line] == [
        "        Not sent, as neither USER_FIELDS nor EVENT_FIELDS names them: page"
    ]
    assert program.run("--quiet", USER_FIELDS="first_name", EVENT_FIELDS="-").out == ""


def test_limit_leaves_known_users_alone_and_says_so(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    rows = [("ada@example.com", "free", None), ("ada@example.com", "pro", None)]
    make_table(tmp_path / "users.db", "email,plan_type,event_time", rows)
    use_query(program, "SELECT email, plan_type, event_time FROM rows")
    assert program.run().code == 0
    run = program.run("--limit", "1")
    assert run.counts("users") == {"unchanged": 1}
    assert "1 known user not updated, as --limit may have seen only some of their rows" in " ".join(run.out.split())
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"plan_type": "pro"}


MEMORY = """
import atexit, pathlib, runpy, sys

def tell_peak():
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    pathlib.Path("peak").write_text(line.split()[1])

atexit.register(tell_peak)
sys.path.insert(0, {root!r})
runpy.run_path({root!r} + "/main.py", run_name="__main__")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux")
@pytest.mark.parametrize(("rows", "every"), [(70, 1), (400, 10)], ids=["all", "some"])
def test_memory_stays_small_where_rows_are_large_and_the_server_is_dead(
    program: Program, tmp_path: Path, rows: int, every: int
) -> None:
    script = tmp_path / "measured.py"
    script.write_text(MEMORY.format(root=str(ROOT)))
    make_table(tmp_path / "users.db", "email", [])
    numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"
    notes = f"printf('%.*c', CASE i % {every} WHEN 0 THEN 3000000 ELSE 3 END, 'x')"
    use_query(program, f"{numbers} SELECT i || '@example.com' AS email, {notes} AS notes FROM n")
    settings = {"USER_FIELDS": "notes", "ITERABLE_BASE_URL": "http://127.0.0.1:9", "MAX_RETRIES": "1"}
    run = program.run(script=script, **settings)
    assert (run.code, sum(run.counts("users").values())) == (75, rows)
    assert (
        int((tmp_path / "peak").read_text()) / 1024 < 200
    )  # the rows are over 120 MB, of which each step makes a copy


@pytest.mark.parametrize("option", ["--history", "--verify", "--limit"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "9223372036854775808", "1" * 5000])
def test_a_number_that_is_none_is_2(program: Program, option: str, number: str) -> None:
    run = program.run(f"{option}={number}")
    assert (run.code, "must be a whole number of at least 1" in run.err) == (2, True)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "0000-01-01", "10000-01-01"]
)
@pytest.mark.parametrize("option", ["--since", "--baseline --yes --before"])
def test_a_time_beyond_all_years_is_2(program: Program, option: str, text: str) -> None:
    run = program.run(*option.split(), text)
    assert (run.code, "is not a time" in run.err) == (2, True)
    assert program.run("--check", SINCE_START=text).code == 78


def test_years_have_four_digits(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,changed", [("ada@example.com", "2026-01-13 08:00:00")])
    use_query(program, "SELECT email FROM rows WHERE changed >= :since")
    run = program.run("--since", "0999-05-05", SINCE_START="0001-01-01")
    assert (run.code, run.results["since"]["from"]) == (0, "0999-05-05 00:00:00")
