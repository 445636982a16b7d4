"""Whole runs under faults: killed, interrupted, out of disk, lied to by the server; and what they leave behind.

Each test runs the real `main.py` as a process, with real signals and real limits, against the stand-in.
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.report.log import LOG_NAME
from pipeline.sandbox import Answer, Fault, Project, StandIn
from tests.program import Finished, Program, has_logged, make_table, use_query, wait_until
from tests.records import count_accepted

OUR_FILES = re.compile(
    r"query_results_\d{8}_\d{6}\.csv|rejected_rows_\d{8}_\d{6}\.csv|integration_results_\d{8}_\d{6}\.json"
    r"|iterable_integration\.log|iterable_ledger\.(lock|sqlite3(\.new)?(-wal|-shm|-journal)?)"
)
UNFINISHED = re.compile(r"\..+\.(csv|json)\.[0-9a-f]+\.tmp")  # what SIGKILL may leave, hidden
LASTING = "600"  # seconds; no test waits for them: a run that did would meet the time-out of Program.wait_for


def use_rows(program: Program, rows: list[tuple[Any, ...]], columns: str = "email,page,event_time") -> None:
    path = program.folder.parent / "users.db"
    path.unlink(missing_ok=True)
    make_table(path, columns, rows)
    use_query(program, f"SELECT {columns} FROM rows")


def some_rows(users: int, events_each: int = 1) -> list[tuple[str, str, str]]:
    return [
        (f"user{user}@example.com", f"p{number}", "2026-01-13 08:00:00")
        for number in range(events_each)
        for user in range(users)
    ]


def records_sent(iterable: StandIn) -> int:
    """Accepted user updates and events, repeated ones included."""
    return sum(iterable.project.user_updates.values()) + sum(iterable.project.event_sends.values())


def ledger_entries(folder: Path, scratch: Path) -> int:
    """How many records the ledger of a dead run knows; read from a copy, so that the next run finds what it left."""
    scratch.mkdir(exist_ok=True)
    for path in folder.glob(f"{LEDGER_NAME}*"):
        shutil.copy(path, scratch)
    try:
        with closing(sqlite3.connect(scratch / LEDGER_NAME)) as database:
            return count_accepted(database)
    except sqlite3.OperationalError:  # killed before the table was made
        return 0
    finally:
        shutil.rmtree(scratch)


def assert_nothing_is_half_written(folder: Path, rows: int) -> None:
    for path in folder.iterdir():
        assert OUR_FILES.fullmatch(path.name) or UNFINISHED.fullmatch(path.name), path.name
    for path in folder.glob("query_results_*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            assert len(list(csv.reader(file))) == rows + 1
    for path in folder.glob("integration_results_*.json"):
        json.loads(path.read_text())


def assert_sums(run: Finished, users: int, events: int) -> None:
    assert sum(run.results["counts"]["users"].values()) == users
    assert sum(run.results["counts"]["events"].values()) == events


def kill_when(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    wait_until(lambda: condition() or process.poll() is not None)
    process.kill()
    process.communicate()


# SIGKILL --------------------------------------------------------------------------------------------------------------

KILLS = {  # mode -> users, events of each, settings, after how many requests of a run it is killed
    "single": (20, 2, {"PUSH_MODE": "single", "MAX_WORKERS": "3"}, (1, 19, 21, 9, 30)),
    "bulk": (2000, 3, {"PUSH_MODE": "bulk", "MAX_WORKERS": "2"}, (1, 2, 3, 4, 4)),
}


@pytest.mark.parametrize("mode", KILLS)
def test_killed_after_some_requests_again_and_again_nothing_is_lost_and_nothing_doubled(
    mode: str, tmp_path: Path
) -> None:
    users, events_each, settings, kills = KILLS[mode]
    events = users * events_each
    with StandIn(limits=None, latency_s=0.03) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        program.settings |= {
            "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
            "RATE_LIMIT_PERCENT": "10000",
            **settings,
        }
        use_rows(program, some_rows(users, events_each))
        known = 0
        for kill in kills:
            requests, sent = iterable.project.request_counts.total(), records_sent(iterable)
            process = program.start()
            kill_when(process, lambda: iterable.project.request_counts.total() >= requests + kill)  # noqa: B023
            wait_until(lambda: not iterable.connections)
            # What was acknowledged and committed before a kill is not sent again.
            assert records_sent(iterable) - sent <= users + events - known
            known = ledger_entries(program.folder, tmp_path / "copy")
            assert known <= len(iterable.project.users) + len(iterable.project.events)
            assert_nothing_is_half_written(program.folder, events)
        iterable.latency_s = 0.0
        run = program.run()
        assert (run.code, run.err) == (0, "")
        assert_sums(run, users, events)
        assert run.counts("users").get("unchanged", 0) + run.counts("events").get("unchanged", 0) == known
        assert len(iterable.project.users) == users
        assert len(iterable.project.events) == events
        assert sorted(iterable.project.event_order) == sorted(iterable.project.events)
        assert_nothing_is_half_written(program.folder, events)
        assert program.run().counts("events") == {"unchanged": events}


def test_killed_at_random_moments_until_a_run_ends_by_itself(tmp_path: Path) -> None:
    chance = random.Random(20260113)
    with StandIn(limits=None, latency_s=0.01) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        program.settings |= {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "MAX_WORKERS": "2"}
        use_rows(program, some_rows(1500, 3))
        limit_s = 0.3
        for _ in range(20):
            process = program.start(RATE_LIMIT_PERCENT="10000")
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.1, limit_s))
            process.kill()
            process.communicate()
            assert_nothing_is_half_written(program.folder, 4500)
            if process.returncode == 0:
                break
            limit_s += 0.15
        else:
            assert program.run(RATE_LIMIT_PERCENT="10000").code == 0
        assert len(iterable.project.users) == 1500
        assert len(iterable.project.events) == 4500


SLOW_ROWS = (  # some rows, and then none for a long time
    "SELECT email, page, event_time FROM rows UNION ALL SELECT email, page, event_time FROM rows WHERE"
    " (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000000) SELECT max(i) FROM n) = 0"
)


def test_killed_during_the_export_leaves_no_csv_and_no_stage(program: Program, iterable: StandIn) -> None:
    use_rows(program, some_rows(3000))
    use_query(program, SLOW_ROWS)
    process = program.start()
    kill_when(process, lambda: has_logged(program, "Step 4:") and list(program.folder.glob(".query_results*")))
    assert list(program.folder.glob("query_results*")) == []
    assert_nothing_is_half_written(program.folder, 3000)
    assert not iterable.project.request_counts


def test_what_a_killed_run_left_unfinished_is_swept_away_by_the_next_one(program: Program, sample: Path) -> None:
    left = program.folder / ".query_results_20260113_143122.csv.0a1b2c3d.tmp"
    left.write_text("id,email\n1,ada@exam")
    not_ours = program.folder / ".notes.tmp"
    not_ours.touch()
    assert program.run().code == 0
    assert not left.exists()
    assert not_ours.exists()


@pytest.mark.parametrize("option", ["--sandbox", "--dry-run"])
def test_a_run_that_may_not_hold_the_lock_sweeps_nothing_away(program: Program, sample: Path, option: str) -> None:
    left = program.folder / ".query_results_20260113_143122.csv.0a1b2c3d.tmp"
    left.touch()
    assert program.run(option).code == 0
    assert left.exists()


# Signals --------------------------------------------------------------------------------------------------------------

SIGNALS: dict[signal.Signals, int] = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143}


def assert_interrupted(run: Finished, code: int, rows: int | None) -> None:
    assert run.code == code
    assert (run.results["status"], run.results["exit_code"]) == ("interrupted", code)
    assert run.results["counts"]["rows"] == (rows or 0)
    assert len(run.files("query_results*")) == (0 if rows is None else 1)
    assert run.files(".*") == []
    assert_nothing_is_half_written(run.folder, rows or 0)
    assert len([line for line in run.err.splitlines() if not line.startswith("Stopping: waiting up to")]) == 1


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_a_back_off_ends_the_run_at_once(
    number: signal.Signals, program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/events/track", status=503, skip=3))
    process = program.start(INITIAL_BACKOFF="60", MAX_WORKERS="2")
    wait_until(lambda: has_logged(program, "Retrying in 6"))
    process.send_signal(number)
    run = program.wait_for(process)
    assert_interrupted(run, SIGNALS[number], 37)
    assert run.counts("users")["delivered"] >= 1
    assert_sums(run, 12, 36)
    assert run.counts("events")["delivered"] >= 3
    assert 1 <= run.counts("events")["unacknowledged"] <= 2
    iterable.clear_faults()
    assert program.run().counts("events")["unchanged"] == run.counts("events")["delivered"]


def test_a_signal_in_a_request_ends_the_run_after_its_grace(iterable: StandIn, sample: Path, tmp_path: Path) -> None:
    expected = {
        "single": ("/api/events/track", {"unacknowledged": 1, "not_attempted": 35}),
        "bulk": ("/api/events/trackBulk", {"unacknowledged": 36}),
    }
    programs = {mode: Program(tmp_path / mode, iterable.url) for mode in expected}
    processes = {}
    for mode, (path, _) in expected.items():  # both at once, to save time
        iterable.inject(Fault(path=path, latency_s=float(LASTING)))
        database_url = f"sqlite:///{sample}"
        processes[mode] = programs[mode].start(PUSH_MODE=mode, DATABASE_URL=database_url, REQUEST_TIMEOUT=LASTING)
    for mode, (path, _) in expected.items():
        wait_until(lambda: iterable.project.request_counts[path])  # noqa: B023
        processes[mode].send_signal(signal.SIGTERM)
    for mode, (_, events) in expected.items():
        run = programs[mode].wait_for(processes[mode])
        assert_interrupted(run, 143, 37)
        assert set(run.counts("users")) <= {"delivered", "not_attempted"}
        assert run.counts("events") == events


SLOW_QUERIES = {
    "before its first row": (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000000)"
        " SELECT 'a@example.com' AS email, max(i) AS page, NULL AS event_time FROM n",
        "Step 3:",
    ),
    "between its rows": (SLOW_ROWS, "Step 4:"),
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", SLOW_QUERIES)
def test_a_signal_in_the_query_of_sqlite_ends_it(
    place: str, number: signal.Signals, program: Program, iterable: StandIn
) -> None:
    use_rows(program, some_rows(1500))
    sql, step = SLOW_QUERIES[place]
    use_query(program, sql)
    process = program.start()
    wait_until(lambda: has_logged(program, step))
    if place == "between its rows":
        wait_until(lambda: [each for each in program.folder.glob(".query_results*") if each.stat().st_size])
    process.send_signal(number)
    assert_interrupted(program.wait_for(process), SIGNALS[number], None)
    assert not iterable.project.request_counts


def test_a_signal_while_the_stage_is_finished_ends_the_run_with_a_whole_account(
    program: Program, iterable: StandIn
) -> None:
    use_rows(program, some_rows(20_000))
    process = program.start()
    wait_until(lambda: has_logged(program, "Step 4.5:"))
    process.send_signal(signal.SIGTERM)
    run = program.wait_for(process)
    assert_interrupted(run, 143, 20_000)
    assert_sums(run, 20_000, 20_000)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_query_of_postgresql_ends_it(
    number: signal.Signals, program: Program, iterable: StandIn, postgresql_url: str
) -> None:
    use_query(program, "SELECT 'a@example.com' AS email, NULL AS event_time, pg_sleep(600)::text AS page")
    process = program.start(DATABASE_URL=f"{postgresql_url}&application_name=run-{number:d}")
    with closing(connect_to(postgresql_url)) as database:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND application_name = %s"
        wait_until(lambda: database.execute(asleep, [f"run-{number:d}"]).fetchone()[0])
        process.send_signal(number)
        assert_interrupted(program.wait_for(process), SIGNALS[number], None)
        database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")


def test_a_signal_while_held_events_wait_ends_the_run(tmp_path: Path) -> None:
    with StandIn(visible_after_s=float(LASTING)) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        use_rows(program, some_rows(3))
        process = program.start(DATABASE_URL=f"sqlite:///{tmp_path}/users.db", USER_SETTLE_SECONDS=LASTING)
        wait_until(lambda: has_logged(program, "trying once more in"))
        process.send_signal(signal.SIGTERM)
        run = program.wait_for(process)
    assert_interrupted(run, 143, 3)
    assert run.counts("users") == {"delivered": 3}
    assert run.counts("events") == {"unacknowledged": 3}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_wait_for_what_is_under_way(
    number: signal.Signals, program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(latency_s=float(LASTING)))
    process = program.start(REQUEST_TIMEOUT=LASTING)
    wait_until(lambda: iterable.project.request_counts)
    process.send_signal(number)
    wait_until(lambda: has_logged(program, "Stopping: "))
    process.send_signal(number)
    run = program.wait_for(process)
    assert (run.code, run.results["status"]) == (SIGNALS[number], "interrupted")
    assert_sums(run, 12, 36)
    assert_nothing_is_half_written(program.folder, 37)
    iterable.clear_faults()
    assert program.run().code == 0
    assert len(iterable.project.events) == 36


# A full disk ----------------------------------------------------------------------------------------------------------


def run_with_file_limit(program: Program, most_bytes: int, **settings: Any) -> Finished:
    """A run none of whose files can grow beyond a size, which is how a full disk shows to a program."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return program.wait_for(program.start(preexec_fn=limit, **settings))


def test_a_low_limit_of_open_files_makes_fewer_connections_and_a_whole_account(
    program: Program, iterable: StandIn
) -> None:
    iterable.latency_s = 0.05
    use_rows(program, some_rows(120))  # 90 connections, if there is no limit
    run = program.wait_for(
        program.start(PUSH_MODE="single", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    )
    assert (run.code, run.err) == (0, "")
    assert (run.counts("users"), run.counts("events")) == ({"delivered": 120}, {"delivered": 120})


@pytest.fixture
def unlimited(tmp_path: Path) -> Iterator[tuple[Program, StandIn]]:
    with StandIn(limits=None) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        program.settings |= {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "RATE_LIMIT_PERCENT": "10000"}
        yield program, iterable


@pytest.mark.parametrize("most_bytes", [220_000, 500_000])
def test_a_disk_that_is_full_for_the_ledger_is_75_and_the_next_run_completes(
    most_bytes: int, unlimited: tuple[Program, StandIn]
) -> None:
    program, iterable = unlimited
    use_rows(program, some_rows(5000))
    assert program.run().code == 0  # a large ledger, most of whose pages any later commit writes
    rows = [(f"new{user}@example.com", "p", "2026-01-13 08:00:00") for user in range(500)]
    use_rows(program, rows)
    run = run_with_file_limit(program, most_bytes, PUSH_MODE="bulk")
    assert run.code == 75
    assert len(run.err.splitlines()) == 1
    assert "The ledger can't be written" in run.err
    assert run.results["exit_code"] == 75
    assert_sums(run, 500, 500)
    held = sum(name.startswith("new") for name in iterable.project.users)
    assert run.counts("users").get("delivered", 0) == held
    assert run.counts("events").get("delivered", 0) == len(iterable.project.events) - 5000
    assert run.files(".*") == []
    second = program.run()
    assert (second.code, second.err) == (0, "")
    assert_sums(second, 500, 500)
    assert len(iterable.project.users) == len(iterable.project.events) == 5500


@pytest.mark.parametrize(
    ("rows", "page", "event_fields", "most_bytes", "problem"),
    [
        (
            30_000,
            "p" * 400,
            "-",
            12_000_000,
            r"query_results_\w+\.csv can't be written \(File too large\); nothing was sent\.",
        ),
        (
            30_000,
            "p" * 400,
            "page",
            14_000_000,
            r"query_results_\w+\.csv can't be written \(disk I/O error\); nothing was sent\.",
        ),
        (
            30_000,
            "p" * 400,
            "page",
            20_500_000,
            "/out has no room for the records of this run .disk I/O error.; nothing was sent",
        ),
        (
            30_000,
            "p" * 400,
            "page",
            21_000_000,
            "/out has no room for the records of this run .disk I/O error.; nothing was sent",
        ),
    ],
    ids=["the CSV", "the stage", "its users", "its index"],
)
def test_a_disk_that_is_full_before_anything_was_sent_is_73(
    rows: int, page: str, event_fields: str, most_bytes: int, problem: str, unlimited: tuple[Program, StandIn]
) -> None:
    program, iterable = unlimited
    use_rows(program, [(f"u{n}@example.com", page, "2026-01-13 08:00:00") for n in range(rows)])
    run = run_with_file_limit(program, most_bytes, EVENT_FIELDS=event_fields)
    assert run.code == 73
    assert re.search(problem, run.err), run.err
    assert len(run.err.splitlines()) == 1
    assert iterable.project.requests == []
    assert run.results["exit_code"] == 73
    assert_sums(run, *[rows if run.files("query_results*") else 0] * 2)
    assert run.files(".*") == []


def test_results_that_no_longer_fit_on_the_disk_are_told_and_75(unlimited: tuple[Program, StandIn]) -> None:
    program, iterable = unlimited
    use_rows(program, [("no address", "p", "2026-01-13 08:00:00")] * 600 + some_rows(5))
    run = run_with_file_limit(program, 150_000)
    assert run.code == 75
    assert "The results could not be written: File too large" in run.err
    assert run.results == {}
    assert run.files(".*") == []
    assert len(run.files("rejected_rows*")) == 1
    assert "Summary of run" in run.out
    assert run.log.splitlines()[-1].endswith("The results could not be written: File too large.")
    assert len(iterable.project.events) == 5


def test_rejected_rows_that_no_longer_fit_on_the_disk_are_told_and_75(unlimited: tuple[Program, StandIn]) -> None:
    program, iterable = unlimited
    use_rows(program, [("no address", "x" * 100, "2026-01-13 08:00:00")] * 1000 + some_rows(5))
    run = run_with_file_limit(program, 200_000)
    assert run.code == 75
    assert "The results could not be written: File too large" in run.err
    assert run.files(".*") == run.files("rejected_rows*") == []
    assert len(iterable.project.events) == 5


def test_a_full_disk_for_the_log_does_not_stop_the_run(program: Program, iterable: StandIn, sample: Path) -> None:
    (program.folder / LOG_NAME).write_bytes(b"-" * 199_999 + b"\n")
    run = run_with_file_limit(program, 200_000)
    assert (run.code, run.err) == (0, "")
    assert len(iterable.project.events) == 36
    assert run.results["status"] == "success"
    assert (program.folder / LOG_NAME).stat().st_size == 200_000


def test_a_bug_at_the_very_end_is_70_and_not_what_rejected_records_are(sample: Path) -> None:
    code = (
        "import main, pipeline.report.results as results; results.write_results = None; "
        "raise SystemExit(main.main(['--sandbox', '--quiet']))"
    )
    environment = {"PATH": os.environ["PATH"], "OUTPUT_DIR": str(sample.parent)}
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 70
    assert done.stderr.endswith("A bug: TypeError. Please report it with the lines above.\n")


# Secrets and people ---------------------------------------------------------------------------------------------------

KEY = "canary-Kx81+/=&~41zQ5vTq0pLm"
SECRET = "canary/J7w+wT=secret-of-at-least-32-bytes~9fR"
PASSWORD = "canary@p:a/s%s+W0rd"  # what has a policy of its own in a URL
PEOPLE = ["canary.person@example.com", "o'canary+tag@example.com", "CANARY.Third@sub.example.com", "c4n@example.com"]


class EchoingProject(Project):
    """A server whose faults repeat what it was sent: ECHO in a body or a header becomes the request, JSON-escaped."""

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        for fault in self.faults:
            if isinstance(fault, Echo):
                echo = json.dumps(f"{headers} ({', '.join(map(','.join, headers.items()))}) {body.decode()}")[1:-1]
                if fault.escapes:
                    echo = echo.replace("+", "\\u002b").replace("/", "\\/").replace("@", "\\u0040")
                fault.body = fault.template.replace(b"ECHO", echo.encode())
        return super().handle(method, path, headers, body)


@dataclass
class Echo(Fault):
    template: bytes = b""
    escapes: bool = False


def refusal(status: int, code: str = "BadParams", **options: Any) -> Callable[[], Fault]:
    return lambda: Echo(status=status, template=b'{"code":"%s","msg":"ECHO"}' % code.encode(), **options)


def page(status: int, template: bytes, **headers: str) -> Callable[[], Fault]:
    return lambda: Echo(status=status, template=template, headers=headers)


def cut_at(position: int, escapes: bool) -> Callable[[], Fault]:
    """The echoed headers begin so that the program's own limit on quotations falls into the key or the token."""
    template = b'{"code":"BadParams","msg":"%sECHO"}' % (b"x" * position)
    return lambda: Echo(status=400, template=template, escapes=escapes)


YEAR = "31536000"
FAULTS: dict[str, tuple[Callable[[], Fault], int]] = {  # name -> the fault, the exit code
    "400": (refusal(400), 1),
    "400 escaped": (refusal(400, escapes=True), 1),
    **{f"400 cut at {position}": (cut_at(position, False), 1) for position in (250, 340)},
    **{f"400 escaped, cut at {position}": (cut_at(position, True), 1) for position in (250, 340)},
    "401 BadApiKey": (refusal(401, "BadApiKey"), 77),
    "401": (refusal(401, "InvalidJwtPayload"), 77),
    "403": (refusal(403, "Forbidden"), 77),
    "404": (refusal(404, "NotFound"), 1),
    "409": (refusal(409, "Conflict"), 1),
    "429": (refusal(429, "RateLimitExceeded"), 75),
    "429 for a year": (refusal(429, headers={"Retry-After": YEAR}), 75),
    "500": (refusal(500, "GenericError"), 75),
    "503": (refusal(503), 75),
    "503 for a year": (refusal(503, headers={"Retry-After": YEAR}), 75),
    "200 that is none": (refusal(200), 1),
    "200 HTML": (page(200, b"<html><body>ECHO</body></html>"), 76),
    "404 HTML": (page(404, b"<html><body>ECHO</body></html>"), 76),
    "503 HTML": (page(503, b"<html><body>ECHO</body></html>"), 75),
    "200 text": (page(200, b"ECHO"), 76),
    "400 text": (page(400, b"ECHO"), 1),
    "400 odd type": (page(400, b'"ECHO"', **{"Content-Type": "text/html; charset=utf-16"}), 1),
    "no HTTP": (lambda: Fault(raw=f"{KEY} \x00\xff {PEOPLE[0]}\r\n".encode() * 20), 75),
    "odd header": (lambda: Fault(raw=f"HTTP/1.1 200 OK\r\n{KEY} {PEOPLE[0]}\r\n: {SECRET}\r\n\r\n".encode()), 76),
    "reset": (lambda: Fault(disconnect=True), 75),
    "cut": (lambda: Fault(truncate_at=120), 75),
    "slow": (lambda: Fault(drip_s=0.2), 75),
    "late": (lambda: Fault(latency_s=5.0), 75),
    "unbelievable length": (lambda: Fault(status=200, body=b"{}", headers={"Content-Length": "9" * 30}), 75),
}


def secrets_in_jwt_mode(iterable: StandIn) -> set[str]:
    tokens = {request.headers["authorization"].split()[1] for request in iterable.project.requests}
    return {part for token in tokens for part in (token, *token.split(".")[1:])}


def pieces(secret: str, size: int = 12) -> set[str]:
    """A cut secret is still most of one."""
    return {secret[start : start + size] for start in range(len(secret) - size + 1)}


def assert_no_secret_and_no_person_is_shown(run: Finished, secrets: set[str]) -> None:
    files = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    shown = {"stdout": run.out.encode(), "stderr": run.err.encode(), **files}
    for name, content in shown.items():
        text = content.decode("utf-8", "replace")
        for secret in secrets:
            found = [piece for piece in pieces(secret) if piece in text]
            assert not found, f"{name}: {found}"
        if not name.endswith((".csv", ".json")):
            found = [person for person in PEOPLE if person.lower() in text.lower()]
            assert not found, f"{name}: {found}"


def run_against(fault: Fault, folder: Path, *, jwt: bool) -> tuple[Finished, StandIn]:
    folder.mkdir(exist_ok=True)
    answers_in_time = not (fault.latency_s or fault.drip_s)
    with StandIn() as iterable:
        project = EchoingProject(api_key=KEY, jwt_secret=SECRET if jwt else None)
        iterable.project = project
        iterable.inject(fault)
        program = Program(folder / "out", iterable.url)
        use_rows(program, [(person, "p", "2026-01-13 08:00:00") for person in PEOPLE])
        run = program.run(
            "--verbose",
            DATABASE_URL=f"sqlite:///{folder}/users.db",
            ITERABLE_API_KEY=KEY,
            ITERABLE_JWT_SECRET=SECRET,
            USE_JWT_AUTH=str(jwt).lower(),
            REQUEST_TIMEOUT="30" if answers_in_time else "0.1",
            INITIAL_BACKOFF="0.001",
            MAX_RETRIES="2",
            MAX_WORKERS="4",
        )
        return run, iterable


@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_shows_a_secret_or_a_person(name: str, tmp_path: Path) -> None:
    make_fault, code = FAULTS[name]
    folders = {False: tmp_path / "key", True: tmp_path / "jwt"}
    with ThreadPoolExecutor(2) as pool:  # both at once, to save time
        runs = {jwt: pool.submit(run_against, make_fault(), folder, jwt=jwt) for jwt, folder in folders.items()}
    for jwt, running in runs.items():
        run, iterable = running.result()
        assert "This is a bug" not in run.log
        assert "Traceback" not in run.err
        assert run.code == code
        assert_sums(run, 4, 4)
        assert iterable.project.requests
        secrets = {KEY, SECRET} | (secrets_in_jwt_mode(iterable) if jwt else set())
        assert_no_secret_and_no_person_is_shown(run, secrets)


@pytest.mark.parametrize("status", [301, 302, 307])
def test_a_redirect_is_76_and_the_other_host_gets_no_request(status: int, tmp_path: Path) -> None:
    with StandIn(api_key=KEY) as other:
        location = {"Location": f"{other.url}/api/users/update"}
        run, iterable = run_against(
            Echo(status=status, template=b"ECHO", headers=location), tmp_path, jwt=status % 2 == 0
        )
        assert run.code == 76
        assert iterable.project.request_counts.total() == 1
        assert not other.project.request_counts
    assert_no_secret_and_no_person_is_shown(run, {KEY, SECRET})


# The database's password ----------------------------------------------------------------------------------------------


def connect_to(postgresql_url: str) -> Any:
    import psycopg

    return psycopg.connect(postgresql_url.replace("+psycopg", ""), autocommit=True)


@pytest.fixture
def guarded_url(postgresql_url: str) -> str:
    """The address of that PostgreSQL for a role of a test's own; it lacks the role and the password, at {} and {}."""
    with closing(connect_to(postgresql_url)) as database:
        for role, may in (("canary_role", "LOGIN"), ("canary_outcast", "NOLOGIN")):
            database.execute(f"DROP ROLE IF EXISTS {role}")
            database.execute(f"CREATE ROLE {role} {may} PASSWORD '{PASSWORD}'")
    scheme, _, rest = postgresql_url.partition("://")
    return f"{scheme}://{{}}:{{}}@{rest.rpartition('@')[2]}"


ENCODED = quote(PASSWORD, safe="")
PERSON_QUERY = f"SELECT '{PEOPLE[0]}' AS email, 'p' AS page, TIMESTAMP '2026-01-13 08:00:00' AS event_time"


def test_a_password_with_odd_characters_opens_the_database_and_is_not_shown(
    program: Program, iterable: StandIn, guarded_url: str
) -> None:
    use_query(program, PERSON_QUERY)
    run = program.run("--verbose", DATABASE_URL=guarded_url.format("canary_role", ENCODED))
    assert (run.code, run.counts("events")) == (0, {"delivered": 1})
    assert_no_secret_and_no_person_is_shown(run, {PASSWORD, ENCODED})


WRONG_DATABASES = {  # {0}: what comes before the role in a right URL, {1}: what comes after the password's @
    "refused role": f"{{}}canary_outcast:{ENCODED}@{{}}",
    "password in the options": f"{{}}canary_outcast:x@{{}}&password={ENCODED}&bogus=1",
    "wrong option": f"{{}}canary_role:{ENCODED}@{{}}&bogus=1",
    "nobody listens": f"{{}}canary_role:{ENCODED}@127.0.0.1:1/x",
    "no such driver": f"postgresql+bogus://canary_role:{ENCODED}@127.0.0.1:1/x",
}


@pytest.mark.parametrize("name", WRONG_DATABASES)
def test_a_database_that_cant_be_opened_is_66_or_75_if_it_is_down_and_its_password_is_not_shown(
    name: str, program: Program, iterable: StandIn, guarded_url: str
) -> None:
    use_query(program, PERSON_QUERY)
    before, after = guarded_url.split("{}:{}@")
    run = program.run("--verbose", DATABASE_URL=WRONG_DATABASES[name].format(before, after))
    assert run.code == (75 if name == "nobody listens" else 66)
    assert_no_secret_and_no_person_is_shown(run, {PASSWORD, ENCODED})
    assert not iterable.project.request_counts


def test_a_query_that_fails_on_a_person_shows_neither_password_nor_person(
    program: Program, iterable: StandIn, guarded_url: str
) -> None:
    use_query(program, f"SELECT email, CAST(email AS integer) AS page FROM (SELECT '{PEOPLE[0]}'::text AS email) AS t")
    run = program.run("--verbose", DATABASE_URL=guarded_url.format("canary_role", ENCODED))
    assert run.code == 66
    assert "invalid input syntax" in run.err
    assert_no_secret_and_no_person_is_shown(run, {PASSWORD, ENCODED})


# The server -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_a_server_that_dies_and_comes_back_loses_and_doubles_nothing(mode: str, tmp_path: Path) -> None:
    path = {"single": "/api/events/track", "bulk": "/api/events/trackBulk"}[mode]
    iterable = StandIn(limits=None, latency_s=0.02).start()
    try:
        program = Program(tmp_path / "out", iterable.url)
        use_rows(program, some_rows(1000, 4) if mode == "bulk" else some_rows(20, 4))
        settings: dict[str, Any] = {
            "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
            "PUSH_MODE": mode,
            "MAX_WORKERS": "2",
            "RATE_LIMIT_PERCENT": "10000",
            "REQUEST_TIMEOUT": "3",
        }
        process = program.start(**settings)
        wait_until(lambda: iterable.project.request_counts[path] >= 3)  # both workers are connected
        iterable.stop()
        run = program.wait_for(process)
        assert run.code == 75
        users, events = (1000, 4000) if mode == "bulk" else (20, 80)
        assert_sums(run, users, events)
        assert sum(run.counts(kind).get("unacknowledged", 0) for kind in ("users", "events")) > 0
        iterable.latency_s = 0.0
        iterable.start()
        second = program.run(**settings)
    finally:
        iterable.stop()
    assert (second.code, second.err) == (0, "")
    for kind in ("users", "events"):
        assert second.counts(kind).get("unchanged", 0) == run.counts(kind).get("delivered", 0)
    assert len(iterable.project.events) == events
    assert set(iterable.project.event_sends.values()) <= {1, 2}


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_nothing_but_429_is_an_outage_and_no_record_is_rejected(
    mode: str, program: Program, iterable: StandIn, sample: Path
) -> None:
    program.settings |= {"PUSH_MODE": mode, "RATE_LIMIT_PERCENT": "1000"}
    iterable.inject(Fault(status=429, body=b'{"code":"RateLimitExceeded","msg":"Slow down"}'))
    run = program.run()
    assert run.code == 75
    assert_sums(run, 12, 36)
    assert set(run.counts("users")) | set(run.counts("events")) <= {"unacknowledged", "not_attempted"}
    assert len(run.err.splitlines()) == 1
    iterable.clear_faults()
    assert program.run().code == 0
    assert len(iterable.project.events) == 36


def test_an_env_file_that_others_can_read_is_warned_of_once_and_the_run_goes_on(
    program: Program, iterable: StandIn, sample: Path, tmp_path: Path
) -> None:
    env_file = tmp_path / "open.env"
    env_file.write_text(f"ITERABLE_API_KEY={iterable.project.api_key}\n")
    env_file.chmod(0o644)
    run = program.run("--env-file", str(env_file), ITERABLE_API_KEY=None)
    assert run.code == 0
    assert run.err == (f"Warning: {env_file} can be read by other users of this machine; run: chmod 600 {env_file}\n")
    assert len(iterable.project.events) == 36


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "cell"),
    [
        ('=HYPERLINK("http://evil.example","x")', """'=HYPERLINK("http://evil.example","x")"""),
        ("x;=1+1;", "x;'=1+1;"),
        ("＝1+1", "'＝1+1"),
    ],
)
def test_formulas_are_guarded_in_both_csvs_and_sent_as_they_are(
    program: Program, iterable: StandIn, formula: str, cell: str
) -> None:
    iterable.project.blocked_events.add("page_view")
    use_rows(program, [("ada@example.com", formula, "2026-01-13 08:00:00")])
    run = program.run()
    assert run.code == 1
    (exported,), (rejected,) = run.files("query_results*"), run.files("rejected_rows*")
    for path in (exported, rejected):
        with path.open(encoding="utf-8", newline="") as file:
            assert [row["page"] for row in csv.DictReader(file)] == [cell]
    event = json.loads(iterable.project.requests[-1].body)
    assert event["dataFields"] == {"page": formula}


def test_a_servers_message_that_is_a_formula_is_guarded_in_the_rejected_rows(
    program: Program, iterable: StandIn
) -> None:
    use_rows(program, [("ada@example.com", "p", "2026-01-13 08:00:00")])
    iterable.inject(Fault(status=400, body=b'{"code":"=1+1","msg":"=cmd|\' /C calc\'!A0"}'))
    run = program.run()
    assert run.code == 1
    (rejected,) = run.files("rejected_rows*")
    with rejected.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.startswith(("=", "+", "@", "-")) for cell in cells)


def test_two_runs_in_one_second_keep_their_files_apart(program: Program, iterable: StandIn, sample: Path) -> None:
    program.settings["TZ"] = "UTC"
    runs = [program.start() for _ in range(3)]
    codes = {program.wait_for(each).code for each in runs}
    assert codes <= {0, 75}
    before = {path: path.read_bytes() for path in program.folder.glob("*_2*")}
    names = [program.run("--limit", "1").results["run_id"] for _ in range(2)]
    assert len(set(names)) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(program.folder.glob("integration_results*"))) == len(list(program.folder.glob("query_results*")))


@pytest.mark.parametrize("name", [LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-journal", LOG_NAME])
@pytest.mark.parametrize("has_target", [True, False])
def test_a_planted_link_is_73_and_its_target_untouched(
    name: str, has_target: bool, program: Program, iterable: StandIn, sample: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if has_target:
        target.write_text("untouched")
    (program.folder / name).symlink_to(target)
    run = program.run()
    assert run.code == 73
    assert len(run.err.splitlines()) == 1
    assert (target.read_text() if has_target else target.exists()) == ("untouched" if has_target else False)
    assert (program.folder / name).is_symlink()
    assert not iterable.project.request_counts
    assert list(program.folder.glob("query_results*")) == []
