"""`--check`: as a user runs it, and the comparison of fields by table."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from pipeline.check import Area, Finding, Mark, Sample, compare_fields, iterable_type
from pipeline.lock import hold_lock
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from tests.program import Program, make_table, use_query


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("[")]


def test_a_run_that_would_start_is_all_good_and_sends_nothing(program: Program, iterable: StandIn, sample: Any) -> None:
    run = program.run("--check")
    assert (run.code, run.err) == (0, "")
    assert {line[:6] for line in lines(run.out)} == {"[ ok ]"}
    assert dict(iterable.project.request_counts) == {"/api/users/getFields": 1}
    assert run.files("*") == []
    assert "alex.moreau" not in run.out


def test_each_bad_thing_is_told_with_its_remedy_and_the_first_decides_the_code(
    program: Program, iterable: StandIn
) -> None:
    run = program.run("--check", ITERABLE_API_KEY="wrong-key")
    assert run.code == 66
    bad = [line for line in lines(run.out) if line.startswith("[BAD ]")]
    assert [line.split(":")[0] for line in bad] == ["[BAD ] database", "[BAD ] key"]
    assert "does not exist" in bad[0]
    assert "Check ITERABLE_API_KEY" in bad[1]
    assert "wrong-key" not in run.out


def test_missing_settings_are_findings(program: Program) -> None:
    run = program.run("--check", ITERABLE_API_KEY=None, DATABASE_URL=None)
    assert run.code == 78
    assert [line.split(" is not")[0] for line in lines(run.out)] == [
        "[BAD ] settings: ITERABLE_API_KEY",
        "[BAD ] settings: DATABASE_URL",
    ]


def test_a_server_that_is_down_is_a_connection_problem(program: Program, sample: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        run = program.run("--check", ITERABLE_BASE_URL=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert run.code == 75
    assert "check the network" in run.out


def test_html_is_not_iterable(program: Program, iterable: StandIn, sample: Any) -> None:
    iterable.inject(Fault(status=200, body=b"<html></html>"))
    run = program.run("--check")
    assert run.code == 76
    assert "Check ITERABLE_BASE_URL" in run.out


def test_a_jwt_key_is_checked_without_touching_anybody(tmp_path: Any, sample: Any) -> None:
    with StandIn(key_type="Mobile", jwt_secret=SANDBOX_JWT_SECRET) as iterable:
        program = Program(tmp_path / "out", iterable.url)
        run = program.run(
            "--check",
            DATABASE_URL=f"sqlite:///{sample}",
            USE_JWT_AUTH="true",
            ITERABLE_JWT_SECRET=SANDBOX_JWT_SECRET,
        )
        assert run.code == 0
        assert "knows the key" in run.out
        assert iterable.project.users == {}


def test_clashing_and_near_duplicate_fields_are_named_with_a_row(
    program: Program, iterable: StandIn, tmp_path: Any
) -> None:
    iterable.project.user_field_types.update({"plan_type": "long", "firstName": "string"})
    make_table(
        tmp_path / "users.db",
        "email,plan_type,first_name",
        [("ada@example.com", None, "Ada"), ("bob@example.com", "pro", "Bob")],
    )
    use_query(program, "SELECT email, plan_type, first_name FROM rows")
    run = program.run("--check")
    assert run.code == 1
    assert "plan_type is a long in the project, and a string in row 2" in run.out
    assert "map it in USER_FIELDS, as first_name:firstName" in run.out


def test_rows_that_cant_be_sent_are_told(program: Program, tmp_path: Any) -> None:
    make_table(tmp_path / "users.db", "email", [("ada@example.com",), ("nobody",)])
    use_query(program, "SELECT email FROM rows")
    run = program.run("--check")
    assert run.code == 66
    assert "1 of the first 2 rows can't be sent, such as row 2: email is not a valid email address" in run.out


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "string"),
        ("2026-01-13", "date"),
        ("2026-01-13 08:45:12", "date"),
        ("2026-01-13 08:45:12 +00:00", "date"),
        ("2026-01-13T08:45:12.000Z", "date"),
        ("2026-01-13 or so", "string"),
        (True, "boolean"),
        (1, "long"),
        (1.0, "double"),
        ({}, "object"),
        ([1], "long"),
        ([], "array"),
    ],
)
def test_the_type_of_a_value_in_iterables_words(value: Any, expected: str) -> None:
    assert iterable_type(value) == expected


@pytest.mark.parametrize(
    ("expected", "found", "fits"),
    [
        ("string", "string", True),
        ("string", "date", True),
        ("date", "string", False),
        ("long", "double", True),
        ("double", "long", True),
        ("long", "string", False),
        ("string", "long", False),
        ("boolean", "string", False),
        ("geo_location", "object", True),
        ("date", "array", True),
    ],
)
def test_which_types_clash(expected: str, found: str, fits: bool) -> None:
    findings = list(compare_fields({"field": expected}, [Sample("field", found, 7)]))
    assert [finding.mark for finding in findings] == [Mark.GOOD if fits else Mark.BAD]


def test_a_finding_is_one_line_with_its_remedy() -> None:
    finding = Finding(Mark.BAD, Area.FIELDS, "it is broken", "mend it")
    assert finding.line() == "[BAD ] fields: it is broken -> mend it"


@pytest.mark.parametrize("option", ["--check", "--dry-run"])
def test_a_damaged_ledger_is_told_and_left_where_it_is(program: Program, sample: Any, option: str) -> None:
    ledger = program.folder / "iterable_ledger.sqlite3"
    ledger.write_bytes(b"this is no database; " * 1000)
    run = program.run(option)
    problem = (
        f"The ledger {ledger} is damaged (file is not a database). "
        "The next run sets it aside and sends everything again."
    )
    if option == "--check":
        assert run.code == 75
        assert f"[BAD ] ledger: {problem} -> bring it back from a backup, or let the next run go on" in run.out
    else:
        assert run.code == 0
        assert f"Warning: {problem}" in run.err
    assert [path.name for path in run.files("iterable_ledger*")] == [ledger.name]
    assert ledger.read_bytes() == b"this is no database; " * 1000


def test_an_active_run_is_told_and_the_ledger_read_all_the_same(program: Program, sample: Any) -> None:
    assert program.run().code == 0
    with hold_lock(program.folder / "iterable_ledger.lock"):
        run = program.run("--check")
        assert run.code == 75
        assert "[BAD ] ledger: another run is active" in run.out
        dry = program.run("--dry-run")
        assert (dry.code, dry.err) == (0, "")
        assert "0 users and 0 events to send" in dry.out
