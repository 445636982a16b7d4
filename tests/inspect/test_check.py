"""`--check`: as a user runs it, and the comparison of fields by table."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pipeline.inspect.event_columns import EventColumns
from pipeline.inspect.findings import Area, Finding, Mark, about_fields, bad
from pipeline.inspect.mapping import Sample, iterable_type, with_parents
from pipeline.ledger.lock import hold_lock
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import PIP_INSTALL
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from pipeline.transform.rules import Rules
from tests.program import Program, make_table, use_query


def lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("[")]


def test_a_run_that_would_start_is_all_good_and_sends_nothing(program: Program, iterable: StandIn, sample: Any) -> None:
    run = program.run("--check")
    assert (run.code, run.err) == (0, "")
    assert [line for line in lines(run.out) if line[:6] != "[ ok ]"] == [
        "[note] database: while a run reads this SQLite file, other programs can't write to it -> "
        "PRAGMA journal_mode=WAL, run once on it, changes that",
        "[note] events: event_id: the query has none, so ids are made from person, name, time and fields, and a "
        "correction in the database becomes a second event -> "
        "alias the event's key AS event_id",
    ]
    assert run.out.endswith("Ready to run.\n")
    assert dict(iterable.project.request_counts) == {
        "/api/users/getFields": 1, "/api/users/update": 1, "/api/journeys": 1,
    }  # fmt: skip
    assert (iterable.project.state()["users"], iterable.project.state()["events"]) == (0, 0)
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


def test_bad_rows_are_a_note_with_their_share_and_end_as_a_run_would(program: Program, tmp_path: Any) -> None:
    make_table(tmp_path / "users.db", "email", [("ada@example.com",), ("nobody",), ("no one",), (None,)])
    use_query(program, "SELECT email FROM rows")
    told = (
        "[note] rows: 3 of 4 records can't be sent (75.00%): email is not a valid email address (2 records, the first "
        "in row 2); email is empty (row 4)"
    )
    run = program.run("--check")
    assert run.code == 1
    assert f"{told} -> fix them in the source, or leave them out" in run.out
    assert "no one" not in run.out
    assert "Ready to run. Exit code 1, as some records can't be sent" in run.out
    assert program.run("--check", EXIT_ON_REJECTED="new").code == 1
    assert program.run(EXIT_ON_REJECTED="new").code == 1
    run = program.run("--check", EXIT_ON_REJECTED="new")
    assert run.code == 0
    assert f"{told}; all are known from earlier runs (EXIT_ON_REJECTED=new)" in run.out
    assert program.run("--check").code == 1


def test_types_are_those_of_rows_that_can_be_sent(program: Program, tmp_path: Any) -> None:
    rows = [("nobody", "text", 1), ("ada@example.com", "text", "5,5"), ("bob@example.com", 5, 5)]
    make_table(tmp_path / "users.db", "email,a,b", rows)
    use_query(program, "SELECT * FROM rows")
    run = program.run("--check", USER_FIELDS="a,b:b:integer")
    assert [line for line in run.out.splitlines() if line.startswith("  a ")] == [
        "  a       a      long     integer, row 3  new"
    ]


def test_what_is_worse_than_bad_rows_decides_the_code(program: Program, tmp_path: Any) -> None:
    make_table(tmp_path / "users.db", "email", [("nobody",)])
    use_query(program, "SELECT email FROM rows")
    assert program.run("--check", ITERABLE_API_KEY="wrong-key").code == 77


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "string"),
        ("2026-01-13", "date"),
        ("2026-01-13 08:45:12", "date"),
        ("2026-01-13 08:45:12 +00:00", "date"),
        ("2026-01-13T08:45:12.000Z", "date"),
        ("2026-01-13T08:45:12.000+01:00", "date"),
        ("2026-01-13T08:45:12Z", "string"),
        ("2026-01-13T08:45:12.123456+00:00", "string"),
        ("2026-01-13 08:45:12.000", "string"),
        ("2026-01-13 08:45:12+00:00", "string"),
        ("2026-01-13 or so", "string"),
        (True, "boolean"),
        (1, "long"),
        (1.0, "double"),
        ({}, "object"),
        ([1], "long"),
        ([None, "a"], "string"),
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
    findings = about_fields(rules(), [sample_of("field", found)], {"field": expected})
    assert [finding.code for finding in findings if finding.mark is Mark.BAD] == ([] if fits else [ExitCode.REJECTED])


def test_a_finding_is_one_line_with_its_remedy() -> None:
    finding = bad(Area.FIELDS, "it is broken", "fix it", ExitCode.REJECTED)
    assert finding.line() == "[BAD ] fields: it is broken -> fix it"
    assert finding.lines() == ["[BAD ] fields: it is broken", "       -> fix it"]


def test_on_a_terminal_each_way_on_has_a_line_of_its_own() -> None:
    finding = Finding(Mark.BAD, Area.BRAKE, "a run would stop.", ("Look.", "Run with --yes."), ExitCode.BRAKE)
    assert finding.line() == "[BAD ] brake: a run would stop. -> Look. Run with --yes."
    assert finding.lines() == ["[BAD ] brake: a run would stop.", "       -> Look.", "       -> Run with --yes."]


def test_an_object_is_one_whether_or_not_the_project_lists_it() -> None:
    leaves = {"plan.tier": "string", "plan.since.year": "long"}
    assert with_parents(leaves) == {**leaves, "plan": "object", "plan.since": "object"}
    assert with_parents({**leaves, "plan": "nested"})["plan"] == "nested"


def rules() -> Rules:
    return Rules(False, "email", (), (), "visit", timezone.utc, False, 0)


def sample_of(name: str, type_: str, row: int = 7) -> Sample:
    return Sample(Kind.USER, name, name, type_, "text", row)


@pytest.mark.parametrize("option", ["--check", "--dry-run"])
def test_a_damaged_ledger_is_told_and_left_where_it_is(program: Program, sample: Any, option: str) -> None:
    ledger = program.folder / "iterable_ledger.sqlite3"
    ledger.write_bytes(b"this is no database; " * 1000)
    run = program.run(option)
    problem = f"The ledger {ledger} is damaged (file is not a database)."
    assert run.code == 65
    if option == "--check":
        assert f"[BAD ] ledger: {problem} -> Put it back from a backup. Run with --baseline --yes" in run.out
    else:
        first, *ways_on = run.err.splitlines()
        assert first == f"12 users and 36 events would be sent, accepted or not: {problem} Nothing was sent."
        assert ways_on == [
            "-> Put it back from a backup.",
            "-> If Iterable has all of it: run with --baseline --yes, which records everything as accepted. It sets "
            "the damaged file aside.",
            "-> To send it all the same: run once with --yes.",
        ]
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


# The mapping ----------------------------------------------------------------------------------------------------------

MESSY = "email,first_name,tier,ltv,prefs,signed_up,zip,birthday,internal_note,event_time,page"
MESSY_ROWS = [
    ("ada@example.com", "Ada", "pro", 12.5, '{"lang": "en", "topics": ["a"]}', "2026-01-13T08:45:12Z", "00021",
     "1985-12-10", "x", "2026-01-13 08:45:12", "pricing"),
    ("bob@example.com", "Bob", "free", 3, '{"lang": "de", "topics": []}', "2026-01-14T08:45:12Z", 10115,
     None, "y", None, None),
]  # fmt: skip
MESSY_FIELDS = "first_name,tier:plan.tier,ltv,prefs:prefs:json,signed_up,zip,birthday"
MESSY_PROJECT = {"plan.tier": "string", "ltv": "string", "firstName": "string", "signed_up": "date"}


@pytest.fixture
def messy(program: Program, iterable: StandIn, tmp_path: Any) -> Program:
    iterable.project.user_field_types.update(MESSY_PROJECT)
    make_table(tmp_path / "users.db", MESSY, MESSY_ROWS)
    use_query(program, "SELECT * FROM rows")
    program.settings |= {"USER_FIELDS": MESSY_FIELDS, "EVENT_FIELDS": "page"}
    return program


def test_the_mapping_is_a_table_of_80_columns(messy: Program) -> None:
    run = messy.run("--check")
    assert run.code == 1
    table = [line for line in run.out.splitlines() if line.startswith("  ")]
    assert table == [
        "  column         field         sent as        such as        in the project",
        "  first_name     first_name    string         text, row 1    new",
        "  tier           plan.tier     string         text, row 1    string",
        "  ltv            ltv           double, long   number, row 1  string CLASH",
        "  prefs          prefs         object         text, row 1    new",
        "  prefs          prefs.lang    string         text, row 1    new",
        "  prefs          prefs.topics  string, array  text, row 1    new",
        "  signed_up      signed_up     string         text, row 1    date CLASH",
        "  zip            zip           string, long   text, row 1    new CLASH",
        "  birthday       birthday      date           text, row 1    new",
        "  page           event: page   string         text, row 1    -",
        "  internal_note  -             (not sent)     -              -",
    ]


def test_what_is_told_about_fields(messy: Program) -> None:
    run = messy.run("--check")
    assert [line for line in lines(run.out) if "] fields: " in line] == [
        "[BAD ] fields: ltv is a string in the project, and a double in row 1 -> declare its type in USER_FIELDS: "
        "ltv:ltv:text, or convert it in the query; Iterable never changes a field's type",
        "[BAD ] fields: signed_up is a date in the project, and a string in row 1, as its text is a time in a form "
        "that Iterable does not take for one -> declare its type in USER_FIELDS: signed_up:signed_up:date",
        "[BAD ] fields: zip is a string in row 1, and a long in row 2; Iterable takes the type of the first value and "
        "refuses others -> declare its type in USER_FIELDS: zip:zip:text, or convert it in the query",
        "[note] fields: Iterable takes the text of birthday for dates (row 1) and makes a date field of it -> "
        "if that is right, declare its type in USER_FIELDS: birthday:birthday:date",
        "[note] fields: first_name would be a new field beside firstName -> "
        "map it in USER_FIELDS, as first_name:firstName",
        "[note] fields: not sent: internal_note -> add them to USER_FIELDS or EVENT_FIELDS if they should be",
    ]


def test_what_check_advises_makes_it_pass_and_the_run_too(messy: Program) -> None:
    fields = (
        "first_name:firstName,tier:plan.tier,ltv:ltv:text,prefs:prefs:json,signed_up:signed_up:date,zip:zip:text,"
        "birthday:birthday:date"
    )
    run = messy.run("--check", USER_FIELDS=fields)
    assert run.code == 0
    assert "no user field clashes with the project's types; 4 would be new" in run.out
    assert messy.run(USER_FIELDS=fields).code == 0


def test_as_json_there_is_one_object_and_nothing_else(messy: Program) -> None:
    run = messy.run("--check", "--json")
    assert (run.code, run.err) == (1, "")
    found = json.loads(run.out)
    assert list(found) == ["exit_code", "findings", "rows", "since", "mapping"]
    assert (found["exit_code"], found["rows"], found["since"]) == (1, {"looked_at": 2, "bad": 0}, None)
    assert {"settings", "ledger", "fields"} <= {each["area"] for each in found["findings"]}
    assert found["mapping"][2] == {
        "kind": "user",
        "column": "ltv",
        "field": "ltv",
        "declared": None,
        "sent_as": ["double", "long"],
        "example": {"type": "number", "row": 1},
        "project": "string",
        "state": "clash",
    }
    assert found["mapping"][-1]["column"] == "internal_note"
    assert "Ada" not in run.out


def test_missing_settings_are_json_too(program: Program) -> None:
    run = program.run("--check", "--json", ITERABLE_API_KEY=None)
    assert (run.code, run.err, json.loads(run.out)["exit_code"]) == (78, "", 78)


def test_a_value_for_an_object_of_the_project_clashes(program: Program, iterable: StandIn, tmp_path: Any) -> None:
    iterable.project.user_field_types.update({"plan.tier": "string"})
    make_table(tmp_path / "users.db", "email,plan", [("ada@example.com", "pro")])
    use_query(program, "SELECT * FROM rows")
    run = program.run("--check", USER_FIELDS="plan")
    assert run.code == 1
    assert "plan is an object in the project, and a string in row 1" in run.out


def test_columns_that_nothing_names_are_told_with_the_setting_once(program: Program, tmp_path: Any) -> None:
    make_table(tmp_path / "users.db", "email,full_name", [("ada@example.com", "Ada")])
    use_query(program, "SELECT * FROM rows")
    run = program.run("--check")
    assert run.code == 66
    assert run.out.count("USER_FIELDS=full_name") == 1


# What a run would do --------------------------------------------------------------------------------------------------


def test_says_from_when_the_next_run_reads_and_why(program: Program, tmp_path: Any) -> None:
    make_table(tmp_path / "users.db", "email,changed_at", [("ada@example.com", "2026-01-13 08:45:12")])
    use_query(program, "SELECT email FROM rows WHERE changed_at >= :since")
    run = program.run("--check")
    assert "the next run would read from 1970-01-01 00:00:00 UTC: no complete run is known" in run.out
    assert program.run().code == 0
    run = program.run("--check")
    assert run.code == 0
    assert "UTC: the last complete run began at" in run.out
    since = json.loads(program.run("--check", "--json").out)["since"]
    assert (since["full_read"], since["why"].startswith("the last complete run began at")) == (False, True)


def test_since_without_a_place_for_it_is_bad(program: Program, sample: Any) -> None:
    run = program.run("--check", "--since", "2026-01-12")
    assert run.code == 2
    assert "[BAD ] settings: --since needs a query that contains :since" in run.out


def test_a_locked_database_is_bad_for_now(program: Program, sample: Any) -> None:
    with closing(sqlite3.connect(sample, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        run = program.run("--check", DATABASE_URL=f"sqlite:///{sample}?timeout=0.1")
    assert run.code == 75
    assert "-> try again later" in run.out


def test_the_list_of_forgotten_people_is_read_where_a_run_needs_it(program: Program, sample: Any) -> None:
    run = program.run("--check", SKIP_FORGOTTEN="true")
    assert run.code == 0
    assert "[ ok ] key: Iterable lists 0 forgotten people (SKIP_FORGOTTEN)" in run.out


def first_address(sample: Path) -> str:
    with closing(sqlite3.connect(sample)) as database:
        (address,) = database.execute("SELECT email FROM users ORDER BY id LIMIT 1").fetchone()
    return str(address)


FORBIDDEN = b'{"msg": "no", "code": "Forbidden", "params": null}'


def test_forgotten_people_end_it_as_they_would_end_a_run(program: Program, iterable: StandIn, sample: Any) -> None:
    iterable.project.forget_user(email=first_address(sample))
    check = program.run("--check", SKIP_FORGOTTEN="true")
    assert (check.code, program.run(SKIP_FORGOTTEN="true").code) == (1, 1)
    assert "can't be sent" in check.out
    assert re.search(r"to be forgotten, and SKIP_FORGOTTEN is set \(\d records, the first in row 1\)", check.out)


def test_what_earlier_runs_met_as_refused_ends_it_as_it_would_end_a_run(
    program: Program, iterable: StandIn, sample: Any
) -> None:
    iterable.project.blocked_events.add("page_view")
    assert program.run().code == 1
    check = program.run("--check")
    assert (check.code, program.run().code) == (1, 1)
    assert (
        "[note] rows: 36 records to send were refused in earlier runs, unchanged: disallowedEventNames (36) -> "
        "allow the"
    ) in check.out
    settings = {"EXIT_ON_REJECTED": "new"}
    assert (program.run("--check", **settings).code, program.run(**settings).code) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (
            Fault(path="/api/users/update", status=403, body=FORBIDDEN),
            77,
            "[BAD ] key: the key may read, and not write",
        ),
        (Fault(path="/api/users/update", status=404, body=FORBIDDEN), 0, "Ready to run."),
        (Fault(path="/api/users/update", status=503), 0, "[note] key: whether the key may write is not known: "),
    ],
    ids=["may not", "refused for another reason", "not known"],
)
def test_whether_the_key_may_write_is_found_out_by_an_update_of_nobody(
    program: Program, iterable: StandIn, sample: Any, fault: Fault, code: int, words: str
) -> None:
    iterable.inject(fault)
    run = program.run("--check")
    assert (run.code, words in run.out) == (code, True)


def test_rows_none_of_which_can_be_sent_end_it_as_they_would_end_a_run(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email, event_time", [("nobody", "2026-01-13 08:00:00")] * 3)
    use_query(program, "SELECT * FROM rows")
    check = program.run("--check")
    assert (check.code, program.run().code) == (1, 1)
    (line,) = (line for line in lines(check.out) if "4 of 4 records can't be sent (100.00%)" in line)
    assert line.startswith("[BAD ] rows: ")
    assert check.out.endswith("Fix what is marked BAD, and check again. A run would end with exit code 1.\n")


def test_says_what_the_columns_of_events_are_taken_for(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email, event_time, event_name, event_id", [])
    use_query(program, "SELECT email, event_time FROM rows")
    assert about_events(program, EVENT_TIMEZONE="Europe/Berlin", EVENT_NAME="visit") == [
        "[ ok ] events: event_time: times without an offset would be taken as Europe/Berlin (EVENT_TIMEZONE)",
        "[ ok ] events: event_name: EVENT_NAME=visit",
        "[note] events: event_id: the query has none, so ids are made from person, name, time and fields, and a "
        "correction in the database becomes a second event -> alias the event's key AS event_id",
    ]
    use_query(program, "SELECT * FROM rows")
    assert about_events(program)[1:] == [
        "[ ok ] events: event_name: column event_name",
        "[ ok ] events: event_id: column event_id",
    ]
    use_query(program, "SELECT email FROM rows")
    assert about_events(program) == [
        "[note] events: without a column event_time, users are updated and no events are tracked"
    ]


def about_events(program: Program, **settings: Any) -> list[str]:
    return [line for line in lines(program.run("--check", **settings).out) if " events: " in line]


@pytest.mark.parametrize(
    ("values", "described"),
    [
        (["2026-01-13 08:45:12"], "text without an offset, taken as Europe/Berlin (EVENT_TIMEZONE)"),
        (["2026-01-13T08:45:12Z", b"2026-01-13T08:45:12+01:00"], "text with an offset, as it says"),
        ([datetime(2026, 1, 13)], "timestamps without a time zone, taken as Europe/Berlin (EVENT_TIMEZONE)"),
        ([datetime(2026, 1, 13, tzinfo=timezone.utc)], "timestamps with a time zone, as they are"),
        ([date(2026, 1, 13)], "days without a time of day, taken as midnight in Europe/Berlin (EVENT_TIMEZONE)"),
        (["2026-01-13"], "days without a time of day, taken as midnight in Europe/Berlin (EVENT_TIMEZONE)"),
        ([1768293912, Decimal(1768293912)], "numbers, taken as Unix seconds"),
        (
            [None, "soon", 1768293912, "2026-01-13T08:45:12Z"],
            "numbers, taken as Unix seconds, such as row 13; text with an offset, as it says, such as row 14",
        ),
    ],
)
def test_says_how_each_kind_of_time_is_read(values: list[Any], described: str) -> None:
    berlin = replace(rules(), time_column="event_time", zone=ZoneInfo("Europe/Berlin"))
    found = EventColumns()
    found.add({"event_time": values}, berlin, 11)
    assert next(iter(found.findings(berlin))).text == f"event_time: {described}"


def test_a_declared_type_is_not_to_be_declared_again(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email, birthday", [("ada@example.com", "1815-12-10")])
    use_query(program, "SELECT * FROM rows")
    assert "birthday:birthday:date" in program.run("--check", USER_FIELDS="birthday").out
    assert "birthday:birthday:date" not in program.run("--check", USER_FIELDS="birthday:birthday:date").out


def test_a_driver_that_is_missing_is_to_be_installed_and_nothing_else(program: Program) -> None:
    (line,) = (each for each in lines(program.run("--check", DATABASE_URL="oracle://x/y").out) if "database:" in each)
    assert line.endswith(f"its driver is not installed; run: {PIP_INSTALL} oracledb")


def test_says_that_the_brake_would_stop_a_run(program: Program, sample: Any) -> None:
    assert program.run().code == 0
    run = program.run("--check", EVENT_FIELDS="page")
    assert run.code == 65
    assert "[BAD ] brake: a run would stop after 37 rows. What event ids are made of has changed" in run.out
    assert program.run("--check", "--yes", EVENT_FIELDS="page").code == 0


def test_it_says_where_it_has_not_read_all_rows(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,plan_type", [(f"p{n}@example.com", "pro") for n in range(10_001)])
    use_query(program, "SELECT * FROM rows")
    program.settings["MAX_CHANGES"] = "10000"
    run = program.run("--check")
    assert run.code == 0
    assert (
        "[note] rows: only the first 10,000 rows were read, and all that is said here, also of the brake, is by these "
        "alone -> --dry-run reads all rows, and ends with 65 where the brake would stop a run" in run.out
    )
    assert run.out.endswith("Ready to run, as far as the first 10,000 rows show.\n")
    assert program.run("--dry-run").code == 65


def test_where_the_ledger_can_not_be_found_nothing_else_is_said_of_it(program: Program, sample: Any) -> None:
    assert program.run().code == 0
    run = program.run("--check", STATE_URL="file:///nope")
    assert run.code == 78
    bad = [line for line in lines(run.out) if line.startswith("[BAD ]")]
    assert [line.split(",")[0] for line in bad] == ["[BAD ] ledger: STATE_URL names /nope"]


def test_a_new_key_stops_a_run(program: Program, iterable: StandIn, sample: Any) -> None:
    assert program.run().code == 0
    iterable.project.api_key = "another-key-of-this-project"
    run = program.run("--check", ITERABLE_API_KEY="another-key-of-this-project")
    assert run.code == 65
    assert "[BAD ] brake: a run would stop after 37 rows. 12 users and 36 events would be sent, accepted" in run.out
    assert "the API key is new to the ledger" in run.out


def test_outputs_that_fill_the_disk_are_a_note(program: Program, sample: Any) -> None:
    with (program.folder / "query_results_20260113_143122.csv").open("wb") as file:
        file.truncate(2**31)  # sparse
    assert "[note] output folder: OUTPUT_DIR holds 2.1 GB from 1 run" in program.run("--check").out
    assert "OUTPUT_DIR holds" not in program.run("--check", KEEP_DAYS="30").out


def test_under_quiet_only_what_ends_a_run_otherwise_is_told(messy: Program) -> None:
    run = messy.run("--check", "--quiet")
    assert run.out == ""
    assert {line[:14] for line in run.err.splitlines()} == {"[BAD ] fields:"}


def test_ctrl_c_ends_a_query_that_takes_long(program: Program, sample: Any) -> None:
    use_query(
        program, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS email FROM n WHERE i < 0"
    )
    process = program.start("--check")
    assert process.stdout is not None
    while "ledger: " not in process.stdout.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    run = program.wait_for(process)
    assert (run.code, run.err) == (130, "The run was interrupted by SIGINT.\n")


def test_users_none_of_whom_can_be_sent_are_bad_although_events_can_be_and_their_types_are_shown(
    program: Program, tmp_path: Path
) -> None:
    rows = [(f"{number}@example.com", "Y", 7, "2026-01-13 08:00:00") for number in range(3)]
    make_table(tmp_path / "users.db", "email, newsletter, score, event_time", rows)
    use_query(program, "SELECT * FROM rows")
    check = program.run("--check", USER_FIELDS="newsletter:newsletter:boolean,score", EVENT_FIELDS="-")
    assert check.code == 1
    (line,) = (each for each in lines(check.out) if each.startswith("[BAD ]"))
    assert line.endswith("-> fix the query or the settings: no user could be sent")
    assert ["score", "score", "long", "integer,", "row", "1", "new"] in [
        each.split() for each in check.out.splitlines()
    ]
