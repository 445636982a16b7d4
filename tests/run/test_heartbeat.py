"""The pings that tell a monitor how runs begin and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.ledger.file import hold_file
from pipeline.model.exits import ExitCode
from pipeline.run.heartbeat import Heartbeat
from pipeline.sandbox import StandIn
from tests.program import Program


def pings(iterable: StandIn) -> list[str]:
    return [request.path for request in iterable.project.requests if request.path.startswith("/ping")]


def test_the_heartbeat_tells_start_and_success(program: Program, iterable: StandIn, sample: Path) -> None:
    assert program.run(HEARTBEAT_URL=f"{iterable.url}/ping/uuid").code == 0
    assert pings(iterable) == ["/ping/uuid/start", "/ping/uuid"]


def test_the_heartbeat_tells_the_exit_code_of_a_failure(program: Program, iterable: StandIn) -> None:
    run = program.run(HEARTBEAT_URL=f"{iterable.url}/ping/uuid")
    assert run.code == 66
    assert pings(iterable) == ["/ping/uuid/start", "/ping/uuid/66"]


def test_a_heartbeat_that_fails_changes_nothing_but_the_log(program: Program, sample: Path) -> None:
    run = program.run(HEARTBEAT_URL="http://127.0.0.1:1/secret-uuid")
    assert (run.code, run.err) == (0, "")
    assert "The heartbeat could not be sent" in run.log
    assert "secret-uuid" not in run.log


def test_a_run_that_finds_the_lock_held_and_a_dry_run_tell_nothing(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    program.settings["HEARTBEAT_URL"] = f"{iterable.url}/ping/uuid"
    assert program.run("--dry-run").code == 0
    with hold_file(program.folder, 0.0):
        assert program.run().code == 75
    assert pings(iterable) == []


@contextmanager
def slow_at_start() -> Iterator[tuple[str, list[str]]]:
    """A monitor that is still busy with the first ping when the last one comes, if that does not wait; and what it
    has heard in full."""
    heard: list[str] = []
    overtaken = threading.Event()

    class Monitor(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/start":
                overtaken.wait(0.3)
            heard.append(self.path)
            overtaken.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing, so that the tests stay quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Monitor) as server:
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
        heartbeat.finish(code)
        assert heard == ["/start", last]


def test_a_ping_for_which_no_thread_can_be_started_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pipeline.heartbeat")
    logger.addHandler(caplog.handler)
    before = threading.stack_size(2**46)  # more than there is
    try:
        heartbeat = Heartbeat("http://127.0.0.1:1/secret-uuid")
        heartbeat.start()
        heartbeat.finish(ExitCode.SUCCESS)
    finally:
        threading.stack_size(before)
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"The heartbeat could not be sent (can't start new thread)."}
