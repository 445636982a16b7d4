"""The pings that tell a monitor how runs begin and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.ledger.file import hold_file
from pipeline.model.exits import ExitCode
from pipeline.run.heartbeat import Heartbeat
from tests.program import Program, make_table, use_query


@dataclass(frozen=True)
class Ping:
    method: str
    path: str
    body: str


class Monitor:
    """A monitor that writes down what it is sent. status: its answer to each path that ends so, else 200."""

    def __init__(self, status: dict[str, int]) -> None:
        self.pings: list[Ping] = []
        pings = self.pings

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                pings.append(Ping(self.command, self.path, body))
                self.send_response(next((code for end, code in status.items() if self.path.endswith(end)), 200))
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Nothing, so that the tests stay quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def paths(self) -> list[str]:
        return [ping.path for ping in self.pings]


@contextmanager
def monitor_of(status: dict[str, int]) -> Iterator[Monitor]:
    monitor = Monitor(status)
    threading.Thread(target=monitor.server.serve_forever, args=(0.01,)).start()
    try:
        yield monitor
    finally:
        monitor.server.shutdown()
        monitor.server.server_close()


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with monitor_of({}) as running:
        yield running


def test_the_heartbeat_tells_start_and_success(program: Program, monitor: Monitor, sample: Path) -> None:
    run = program.run(HEARTBEAT_URL=f"{monitor.url}/ping/uuid")
    assert run.code == 0
    host, seconds = run.results["host"], run.results["duration_s"]
    assert monitor.pings == [
        Ping("POST", "/ping/uuid/start", ""),
        Ping(
            "POST",
            "/ping/uuid",
            f"Run {run.results['run_id']} of user_events.sql on {host}: success\n"
            "exit code 0: All records are in Iterable: 48 delivered.\n"
            f"37 rows in {seconds:.1f} s\n"
            "users: 12 delivered\n"
            "events: 36 delivered\n",
        ),
    ]


def test_the_heartbeat_tells_the_exit_code_of_a_failure(program: Program, monitor: Monitor) -> None:
    run = program.run(HEARTBEAT_URL=f"{monitor.url}/ping/uuid")
    assert run.code == 66
    assert monitor.paths == ["/ping/uuid/start", "/ping/uuid/66"]
    assert "exit code 66: " in monitor.pings[-1].body


def test_the_suffix_goes_before_a_query(program: Program, monitor: Monitor) -> None:
    assert program.run(HEARTBEAT_URL=f"{monitor.url}/key/job/?create=1&rid=a%2Fb").code == 66
    assert monitor.paths == ["/key/job/start?create=1&rid=a%2Fb", "/key/job/66?create=1&rid=a%2Fb"]


@pytest.mark.parametrize("query", ["status=up&msg=OK&ping=", "STATE=complete"])
def test_an_address_that_says_the_state_itself_is_called_after_successes_only(
    program: Program, monitor: Monitor, sample: Path, query: str
) -> None:
    url = f"{monitor.url}/api/push/token?{query}"
    assert program.run(HEARTBEAT_URL=url, DATABASE_URL="sqlite:////nonexistent").code == 66
    assert monitor.pings == []
    assert program.run(HEARTBEAT_URL=url).code == 0
    assert monitor.pings == [Ping("GET", f"/api/push/token?{query}", "")]
    check = program.run("--check", HEARTBEAT_URL=url)
    assert "the query of HEARTBEAT_URL says how things are" in " ".join(check.out.split())
    assert len(monitor.pings) == 1


def test_the_body_names_reasons_by_their_codes_and_no_person(
    program: Program, monitor: Monitor, tmp_path: Path
) -> None:
    make_table(tmp_path / "rows.db", "email, first_name", [("bob@example", "Bob"), ("ada@example.com", "Ada")])
    use_query(program, "SELECT email, first_name FROM rows")
    url = f"sqlite:///{tmp_path}/rows.db"
    run = program.run(HEARTBEAT_URL=monitor.url, DATABASE_URL=url, EVENT_FIELDS="-")
    assert run.code == 1
    assert monitor.pings[-1].path == "/1"
    assert monitor.pings[-1].body.splitlines()[2:] == [
        f"2 rows in {run.results['duration_s']:.1f} s",
        "users: 1 delivered, 1 rejected",
        "events: none",
        "1 rejected: InvalidRecord (1 new)",
    ]
    assert "bob" not in monitor.pings[-1].body.lower()


def test_a_body_of_many_reasons_stays_under_ten_kilobytes() -> None:
    with monitor_of({}) as monitor:
        Heartbeat(monitor.url).finish(ExitCode.REJECTED, "é" * 50_000)
        assert monitor.pings[0].body == "é" * 4_999


@pytest.mark.parametrize("status", [301, 404, 500])
def test_a_monitor_that_refuses_is_a_line_in_the_log_and_a_warning(program: Program, sample: Path, status: int) -> None:
    with monitor_of({"/uuid": status}) as monitor:
        run = program.run("--quiet", HEARTBEAT_URL=f"{monitor.url}/secret/uuid")
    text = f"The monitor answered the heartbeat with {status}; check HEARTBEAT_URL."
    assert (run.code, run.err) == (0, f"Warning: {text}\n")
    assert run.log.count(text) == 1
    assert "secret" not in run.log


def test_a_heartbeat_that_fails_changes_nothing_but_the_log(program: Program, sample: Path) -> None:
    run = program.run(HEARTBEAT_URL="http://127.0.0.1:1/secret-uuid")
    assert (run.code, run.err) == (0, "")
    assert "The heartbeat could not be sent" in run.log
    assert "secret-uuid" not in run.log


def test_a_run_that_finds_the_lock_held_and_a_dry_run_tell_nothing(
    program: Program, monitor: Monitor, sample: Path
) -> None:
    program.settings["HEARTBEAT_URL"] = f"{monitor.url}/ping/uuid"
    assert program.run("--dry-run").code == 0
    with hold_file(program.folder, 0.0):
        assert program.run().code == 75
    assert monitor.pings == []


@contextmanager
def slow_at_start() -> Iterator[tuple[str, list[str]]]:
    """A monitor that is still busy with the first ping when the last one comes, if that does not wait; and what it
    has heard in full."""
    heard: list[str] = []
    overtaken = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path == "/start":
                overtaken.wait(0.3)
            heard.append(self.path)
            overtaken.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing, so that the tests stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", heard
        finally:
            server.shutdown()


@pytest.mark.parametrize(("code", "last"), [(ExitCode.SUCCESS, "/"), (ExitCode.TEMPORARY, "/75")])
def test_the_last_ping_never_overtakes_the_first(code: ExitCode, last: str) -> None:
    with slow_at_start() as (url, heard):
        heartbeat = Heartbeat(url)
        heartbeat.start()
        heartbeat.finish(code, "")
        assert heard == ["/start", last]


def test_a_ping_for_which_no_thread_can_be_started_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pipeline.heartbeat")
    logger.addHandler(caplog.handler)
    before = threading.stack_size(2**46)  # more than there is
    try:
        heartbeat = Heartbeat("http://127.0.0.1:1/secret-uuid")
        heartbeat.start()
        heartbeat.finish(ExitCode.SUCCESS, "")
    finally:
        threading.stack_size(before)
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"The heartbeat could not be sent (can't start new thread)."}
