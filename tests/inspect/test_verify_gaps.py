"""`--verify` at its edges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.sandbox import Fault, StandIn
from tests.inspect.test_verify import NONE, age, as_json, verified_results
from tests.program import Program, make_table, use_query


@pytest.fixture
def bare(program: Program, tmp_path: Path) -> Program:
    make_table(tmp_path / "users.db", "email", [("ada@example.com",), ("bob@example.com",)])
    use_query(program, "SELECT email FROM rows")
    program.settings["USER_FIELDS"] = ""
    assert program.run().code == 0
    age(program, 100)
    return program


def test_a_missing_person_without_fields_is_repaired(bare: Program, iterable: StandIn) -> None:
    iterable.project.delete_user(email="ada@example.com")
    run = bare.run("--verify", "--repair")
    assert "Marked as not accepted: 1 user, 0 events" in run.out
    assert bare.run().counts("users") == {"delivered": 1, "unchanged": 1}


NO_PROFILES = [
    b'{"user": []}',
    b'{"user": "x"}',
    b'{"user": null}',
    b'{"user": {}}',
    b'{"user": {"email": "ada@example.com", "dataFields": []}}',
    b'{"user": {"email": "other@example.com", "dataFields": {}}}',
]


@pytest.mark.parametrize("body", NO_PROFILES)
def test_what_is_no_profile_is_not_compared_and_marks_nobody(bare: Program, iterable: StandIn, body: bytes) -> None:
    iterable.project.faults += [Fault(path="/api/users/getByEmail", status=200, body=body)]
    run = bare.run("--verify", "all", "--repair", "--json")
    found = json.loads(run.out)
    assert (run.code, found["counts"]["users"]["not_compared"], found["marked"]) == (75, 2, {"users": 0, "events": 0})
    iterable.project.faults[:] = [Fault(path="/api/users/getByEmail", status=200, body=body)]
    run = bare.run("--explain", "ada@example.com")
    assert "Iterable's copy: not read. Iterable's answer is not " in run.out


@pytest.mark.parametrize("body", [b'{"events": null}', b'{"events": {}}', b'{"events": [1]}'])
def test_what_is_no_list_of_events_is_not_compared(
    program: Program, iterable: StandIn, tmp_path: Path, body: bytes
) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [("ada@example.com", "2026-01-13 08:00:00")])
    use_query(program, "SELECT * FROM rows")
    program.settings |= {"USER_FIELDS": "", "EVENT_FIELDS": ""}
    assert program.run().code == 0
    age(program, 100)
    iterable.project.faults.append(Fault(path="/api/events/byEmail", status=200, body=body))
    run = program.run("--verify", "all", "--repair", "--json")
    found = json.loads(run.out)
    assert (run.code, found["counts"]["events"]["not_compared"], found["marked"]) == (75, 1, {"users": 0, "events": 0})


def test_a_profile_of_megabytes_is_read_and_one_beyond_all_limits_concerns_its_person_alone(
    bare: Program, iterable: StandIn
) -> None:
    for size, compared in ((300, 2), (900, 1)):
        fields = {f"f{number}": "x" * 10_000 for number in range(size)}
        iterable.project.edit_user({"email": "ada@example.com", "dataFields": fields})
        found = json.loads(bare.run("--verify", "all", "--json").out)
        assert (found["exit_code"], found["counts"]["users"]["same"]) == (0, compared)
    assert found["counts"]["users"]["not_compared"] == 1
    run = bare.run("--explain", "ada@example.com")
    assert (run.code, "more than 8388608 bytes" in " ".join(run.out.split())) == (0, True)


@pytest.mark.parametrize("mode", ["move", "hold"])
def test_people_with_another_address_now_are_counted_as_not_compared(
    program: Program, iterable: StandIn, tmp_path: Path, mode: str
) -> None:
    columns = "email,user_id,previous_email,event_time"
    rows = [("ada@example.com", "1", "", "2026-01-13 08:00:00"), ("bob@example.com", "2", "", "2026-01-13 08:00:00")]
    make_table(tmp_path / "users.db", columns, rows)
    use_query(program, f"SELECT {columns} FROM rows")
    program.settings |= {"USER_FIELDS": "", "EVENT_FIELDS": "", "EMAIL_CHANGES": mode}
    assert program.run().code == 0
    age(program, 100)
    (tmp_path / "users.db").unlink()
    make_table(tmp_path / "users.db", columns, [("new@example.com", "1", "ada@example.com", rows[0][3]), rows[1]])
    found = json.loads(program.run("--verify", "all", "--json").out)
    assert [
        (kind, found["counts"][kind]["same"], found["counts"][kind]["not_compared"]) for kind in ("users", "events")
    ] == [("users", 1, 1), ("events", 1, 1)]
    run = program.run("--verify", "--only", "new@example.com")
    assert (run.code, "Nothing was compared" in run.err) == (75, True)


def test_two_differences_among_all_are_found_and_a_run_sends_exactly_these(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    columns = "email,first_name,plan,event_id,event_time"
    rows = [(f"u{n}@example.com", f"N{n}", "pro", f"e{n}", "2026-01-13 08:00:00") for n in range(120)]
    make_table(tmp_path / "users.db", columns, rows)
    use_query(program, f"SELECT {columns} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name,plan", "EVENT_FIELDS": ""}
    assert program.run().code == 0
    age(program, 100)
    iterable.project.edit_user({"email": "u77@example.com", "dataFields": {"plan": "free"}})
    iterable.project.delete_event("e42")
    found = json.loads(program.run("--verify", "all", "--repair", "--json").out)
    assert (found["exit_code"], found["marked"]) == (1, {"users": 1, "events": 1})
    assert [(found["counts"][kind]["same"], found["counts"][kind]["compared"]) for kind in ("users", "events")] == [
        (119, 120), (119, 120),
    ]  # fmt: skip
    iterable.project.requests.clear()
    assert program.run().code == 0
    bodies = [json.loads(each.body) for each in iterable.project.requests if each.body]
    assert bodies == [
        {"email": "u77@example.com", "dataFields": {"plan": "pro"}},
        {
            "email": "u42@example.com",
            "eventName": "page_view",
            "id": "e42",
            "createdAt": 1768291200,
            "dataFields": {},
        },
    ]
    age(program, 100)
    assert program.run("--verify", "all").code == 0


@pytest.fixture
def second_profile(program: Program, iterable: StandIn, tmp_path: Path) -> Program:
    """Bob has another address and a second profile, and an event in each of the two."""
    program.settings |= {"USER_FIELDS": "plan", "EVENT_FIELDS": "page", "EMAIL_CHANGES": "new"}
    columns = "user_id,email,plan,page,event_id,event_time"
    use_query(program, f"SELECT {columns} FROM rows")
    ada = (1, "ada@example.com", "pro", "home", "a-1", "2026-01-13 08:00:00")
    bob = (2, "bob@example.com", "pro", "home", "b-1", "2026-01-13 08:00:00")
    new = (2, "bob@example.org", "pro", "docs", "b-2", "2026-01-13 09:00:00")
    for rows in ([ada, bob], [ada, (2, new[1], *bob[2:]), new]):
        (tmp_path / "users.db").unlink(missing_ok=True)
        make_table(tmp_path / "users.db", columns, rows)
        assert program.run().code == 0
        age(program, 100)
    return program


def test_what_the_old_profile_keeps_is_neither_missing_nor_sent_again(
    second_profile: Program, iterable: StandIn
) -> None:
    run = second_profile.run("--verify", "all", "--repair")
    assert (run.code, run.err) == (0, "")
    assert "2 events compared with Iterable: 2 the same." in run.out
    assert "1 event of people with another address than before" in " ".join(run.out.split())
    assert "Marked as not accepted: 0 users, 0 events." in run.out
    assert verified_results(second_profile) == {
        "users": {**NONE, "compared": 2, "same": 2}, "events": {**NONE, "compared": 2, "same": 2, "old_address": 1},
    }  # fmt: skip
    assert second_profile.run().counts("events") == {"unchanged": 3}


def test_of_a_second_profile_that_is_gone_the_user_alone_is_marked(second_profile: Program, iterable: StandIn) -> None:
    iterable.project.delete_user(email="bob@example.org")
    found = as_json(second_profile, "all", "--repair", code=1)
    assert (found["counts"]["users"]["missing"], found["counts"]["events"]["missing"]) == (1, 0)
    assert (found["counts"]["events"]["old_address"], found["marked"]) == (2, {"users": 1, "events": 0})
    run = second_profile.run()
    assert (run.counts("users"), run.counts("events")) == ({"delivered": 1, "unchanged": 1}, {"unchanged": 3})


def test_events_that_differ_in_a_second_profile_are_not_marked(second_profile: Program, iterable: StandIn) -> None:
    iterable.project.edit_event("b-2", {"dataFields": {"page": "other"}})
    iterable.project.edit_event("a-1", {"dataFields": {"page": "other"}})
    found = as_json(second_profile, "all", "--repair", code=1)
    assert (found["counts"]["events"]["different"], found["marked"]) == (2, {"users": 0, "events": 1})


def test_where_addresses_are_moved_an_event_that_is_gone_is_missing(second_profile: Program, iterable: StandIn) -> None:
    second_profile.settings["EMAIL_CHANGES"] = "hold"
    found = as_json(second_profile, "all", code=1)
    assert (found["counts"]["events"]["missing"], found["counts"]["events"]["old_address"]) == (1, 0)
