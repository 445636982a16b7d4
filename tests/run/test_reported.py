"""A rejection is known only once a run that ended with 1 has reported it, however the runs before it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.sandbox import Fault, StandIn
from tests.endings import WAYS
from tests.program import Finished, Program, make_table, use_query

BOB = b'"bob@example.com"'
REFUSED = b'{"msg":"no","code":"BadParams","params":null}'
GOOD = [f"{number}@example.com" for number in range(8)]
REJECTED = {"InvalidRecord": 2, "BadParams": 2}  # a user and an event each


@pytest.fixture
def program(tmp_path: Path, iterable: StandIn) -> Program:
    """Bob, whom Iterable refuses, somebody without an address, and eight others, each with an event."""
    program = Program(tmp_path / "out", iterable.url)
    make_table(
        tmp_path / "users.db",
        "email,page,event_time",
        [(who, "p", "2026-01-13 08:00:00") for who in ("no address", "bob@example.com", *GOOD)],
    )
    use_query(program, "SELECT * FROM rows")
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "EXIT_ON_REJECTED": "new", "MAX_WORKERS": "1"}
    program.settings |= {**settings, "ALERT_AFTER": "0"}
    refuse_bob(iterable)
    return program


def refuse_bob(iterable: StandIn) -> None:
    iterable.clear_faults()
    iterable.inject(Fault(match=BOB, status=400, body=REFUSED))


def reported(run: Finished) -> dict[str, int]:
    """Rejections that are new, by code."""
    return {
        each["code"]: each["new"] for each in run.results["reasons"] if each["outcome"] == "rejected" and each["new"]
    }


@pytest.mark.parametrize("mode", ["single", "bulk"])
@pytest.mark.parametrize("name", WAYS)
def test_each_rejection_is_in_exactly_one_exit_1(name: str, mode: str, program: Program, iterable: StandIn) -> None:
    program.settings["PUSH_MODE"] = mode
    way, code = WAYS[name]
    assert way(program, iterable) == code
    refuse_bob(iterable)
    runs = [(run.code, reported(run)) for run in (program.run() for _ in range(3))]
    silent: tuple[int, dict[str, int]] = (0, {})
    assert runs == [silent if code == 1 else (1, REJECTED), silent, silent]


def test_rejection_of_a_run_that_ended_with_75_is_reported_also_where_since_reads_only_what_changed(
    program: Program, iterable: StandIn
) -> None:
    use_query(program, "SELECT * FROM rows WHERE event_time >= :since")
    iterable.inject(Fault(match=b'"7@example.com"', status=503))
    assert program.run().code == 75
    refuse_bob(iterable)
    assert [(run.code, reported(run)) for run in (program.run() for _ in range(2))] == [(1, REJECTED), (0, {})]


def test_two_queries_for_the_same_people_know_their_own_rejections(program: Program, iterable: StandIn) -> None:
    other = program.folder.parent / "other.sql"
    other.write_text("SELECT email, page AS plan FROM rows")
    settings: dict[str, Any] = {"QUERY_FILE": str(other), "USER_FIELDS": "plan", "EVENT_FIELDS": "-"}
    runs = [(run.code, reported(run)) for _ in range(3) for run in (program.run(), program.run(**settings))]
    silent: tuple[int, dict[str, int]] = (0, {})
    assert runs == [(1, REJECTED), (1, {"InvalidRecord": 1, "BadParams": 1}), *[silent] * 4]


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_a_rejection_that_is_known_is_not_taken_for_a_wrong_key(program: Program, iterable: StandIn, mode: str) -> None:
    program.settings["PUSH_MODE"] = mode
    iterable.clear_faults()
    iterable.inject(Fault(match=BOB, status=403, body=b'{"msg":"no","code":"Forbidden"}'))
    assert [program.run().code for _ in range(4)] == [1, 0, 0, 0]
    iterable.clear_faults()
    assert program.run().counts("users") == {"delivered": 1, "unchanged": 8, "rejected": 1}
