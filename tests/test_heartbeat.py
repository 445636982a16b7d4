"""The pings that tell a monitor how runs begin and end."""

from __future__ import annotations

from pathlib import Path

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
