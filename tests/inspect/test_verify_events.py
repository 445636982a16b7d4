"""`--verify` of people with events against a stand-in that is changed by hand, its report, and `--repair`."""

from __future__ import annotations

import csv
import json
import re
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.lock import hold_lock
from pipeline.sandbox import Fault, StandIn
from tests.inspect.test_verify import NONE, age, as_json, fill, verified, verified_results
from tests.program import Program, make_table, sent, use_query, wait_until

COLUMNS = "email,first_name,event_id,event_time,page"
ROWS = [
    ("ada@example.com", "Ada", "a-1", "2026-01-13 08:00:00", "docs"),
    ("ada@example.com", "Ada", "a-2", "2026-01-13 09:00:00", "home"),
    ("bob@example.com", "Bob", "b-1", "2026-01-13 10:00:00", "docs"),
    ("eve@example.com", "Eve", "e-1", "2026-01-13 11:00:00", "docs"),
]


@pytest.fixture
def people(program: Program, tmp_path: Path) -> Program:
    """Three users and four events, accepted long enough ago."""
    make_table(tmp_path / "users.db", COLUMNS, ROWS)
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
    assert program.run().code == 0
    age(program, 100)
    program.settings["USER_SETTLE_SECONDS"] = "60"
    return program


def counts(program: Program, *arguments: str, code: int) -> dict[str, Any]:
    found: dict[str, Any] = as_json(program, *arguments, code=code)["counts"]
    return found


def report(program: Program) -> list[tuple[str, ...]]:
    """The lines of the only report."""
    (path,) = program.folder.glob("verify_report_*.csv")
    with path.open(newline="") as file:
        head, *lines = map(tuple, csv.reader(file))
    assert head == ("person", "what", "field", "ours", "theirs")
    return sorted(lines)


def change_all(iterable: StandIn) -> None:
    """Ada: one event differs, one is doubled. Bob's event is gone. Eve is."""
    iterable.project.edit_event("a-1", {"dataFields": {"page": "=changed"}})
    iterable.project.double_event("a-2")
    iterable.project.delete_event("b-1")
    iterable.project.delete_user(email="eve@example.com")


def test_nothing_differs(people: Program) -> None:
    assert verified(people.run("--verify", "all"), 0) == (
        "3 users compared with Iterable: 3 the same.\n4 events compared with Iterable: 4 the same.\nSee <results>\n"
    )
    assert verified_results(people) == {
        "users": {**NONE, "compared": 3, "same": 3}, "events": {**NONE, "compared": 4, "same": 4},
    }  # fmt: skip


CHANGED = {
    "users": {**NONE, "compared": 3, "same": 2, "missing": 1},
    "events": {**NONE, "compared": 4, "different": 1, "missing": 2, "doubled": 1},
}


def test_a_project_that_was_changed_by_hand(people: Program, iterable: StandIn) -> None:
    change_all(iterable)
    assert counts(people, "all", code=1) == CHANGED
    assert report(people) == [
        ("ada@example.com", "different", "a-1.page", "docs", "'=changed"),
        ("ada@example.com", "doubled", "a-2", "", "a-2-2"),
        ("bob@example.com", "missing", "b-1", "", ""),
        ("eve@example.com", "missing", "", "", ""),
        ("eve@example.com", "missing", "e-1", "", ""),
    ]


@pytest.mark.parametrize("event_times", ["seconds", "milliseconds", "iso", "text"])
def test_where_iterable_does_not_show_our_ids_events_are_found_by_what_they_say(
    program: Program, tmp_path: Path, event_times: str
) -> None:
    with StandIn(own_event_ids=True, event_times=event_times) as iterable:
        make_table(tmp_path / "users.db", COLUMNS, ROWS)
        use_query(program, f"SELECT {COLUMNS} FROM rows")
        program.settings |= {"ITERABLE_BASE_URL": iterable.url, "USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
        assert program.run().code == 0
        change_all(iterable)
        assert counts(program, "all", code=1) == CHANGED


def test_of_more_events_than_iterable_shows_the_older_ones_are_not_compared(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [("ada@example.com", "Ada", f"a-{n}", f"2026-01-13 08:{n // 60:02}:{n % 60:02}", "x") for n in range(250)]
    make_table(tmp_path / "users.db", COLUMNS, rows)
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
    assert program.run(PUSH_MODE="bulk").code == 0
    assert counts(program, code=0)["events"] == {**NONE, "compared": 200, "same": 200, "not_compared": 50}
    iterable.project.delete_event("a-249")
    assert counts(program, code=1)["events"] == {
        **NONE, "compared": 201, "same": 200, "missing": 1, "not_compared": 49,
    }  # fmt: skip


def test_only_events_that_are_not_compared_are_no_failure(people: Program) -> None:
    with sqlite3.connect(people.folder / "iterable_ledger.sqlite3") as ledger:
        ledger.execute("UPDATE given_events SET accepted_at = accepted_at + 100000")
    ledger.close()
    assert counts(people, code=0) == {
        "users": {**NONE, "compared": 3, "same": 3}, "events": {**NONE, "not_compared": 4},
    }  # fmt: skip


def test_events_of_users_who_changed_since_are_compared(people: Program, iterable: StandIn, tmp_path: Path) -> None:
    (tmp_path / "users.db").unlink()
    make_table(tmp_path / "users.db", COLUMNS, [("bob@example.com", "Robert", *ROWS[2][2:])])
    iterable.project.delete_event("b-1")
    assert counts(people, code=1) == {
        "users": {**NONE, "not_compared": 1}, "events": {**NONE, "compared": 1, "missing": 1},
    }  # fmt: skip


def test_forgotten_people_count_with_their_events(people: Program, iterable: StandIn) -> None:
    iterable.project.forget_user(email="ada@example.com")
    assert counts(people, code=0) == {
        "users": {**NONE, "compared": 2, "same": 2, "forgotten": 1},
        "events": {**NONE, "compared": 2, "same": 2, "forgotten": 2},
    }


def test_events_that_can_not_be_read_end_it(people: Program, iterable: StandIn) -> None:
    iterable.inject(Fault(path="/api/events/byEmail", status=503))
    run = people.run("--verify")
    assert run.code == 75
    assert verified_results(people)["events"] == NONE


def test_the_history_says_when_it_was_last_verified_and_with_what_result(people: Program, iterable: StandIn) -> None:
    assert "verified" not in people.run("--history").out
    change_all(iterable)
    people.run("--verify", "all")
    last = people.run("--history").out.splitlines()[-1]
    assert re.sub(r"\d{4}-.* UTC", "<then>", last) == (
        "Last verified <then>: 3 users and 4 events compared, 1 different, 3 missing, 1 doubled"
    )
    found = json.loads(people.run("--history", "--json").out)["verified"]
    assert {**found, "finished_at": None} == {"finished_at": None, "exit_code": 1, **CHANGED}
    assert people.run().counts("events") == {"unchanged": 4}


def test_while_a_run_is_active_the_files_are_written_and_the_ledger_keeps_nothing(people: Program) -> None:
    with hold_lock(people.folder / "iterable_ledger.lock"):
        run = people.run("--verify")
    assert (run.code, run.err) == (0, "")
    assert "A run is active; this is what it has committed so far." in run.out
    assert verified_results(people)["events"] == {**NONE, "compared": 4, "same": 4}
    assert json.loads(people.run("--history", "--json").out)["verified"] is None


# One person -----------------------------------------------------------------------------------------------------------


def test_only_one_person(people: Program, iterable: StandIn) -> None:
    change_all(iterable)
    iterable.project.requests.clear()
    assert counts(people, "--only", "BOB@example.com", code=1) == {
        "users": {**NONE, "compared": 1, "same": 1}, "events": {**NONE, "compared": 1, "missing": 1},
    }  # fmt: skip
    assert sorted(each.path for each in iterable.project.requests) == [
        "/api/events/bob%40example.com", "/api/users/getByEmail",
    ]  # fmt: skip


def test_nobody_of_that_name_ends_with_1(people: Program) -> None:
    run = people.run("--verify", "--only", "nobody@example.com")
    assert (run.code, run.out) == (1, "")
    assert run.err == "Nothing was compared: the query finds no rows of the person that --only names.\n"


# Repair ---------------------------------------------------------------------------------------------------------------


def test_repair_marks_what_differs_and_the_next_run_sends_just_that(people: Program, iterable: StandIn) -> None:
    change_all(iterable)
    iterable.project.edit_user({"email": "bob@example.com", "dataFields": {"first_name": "Rob"}})
    iterable.project.add_journey("Welcome", ["page_view"], lifetimeLimit=1)
    run = people.run("--verify", "all", "--repair")
    assert run.code == 1
    assert "Marked as not accepted: 2 users, 3 events. The next run sends just these.\n" in run.out
    assert "3 events of page_view (3 people) would start: Welcome" in run.out.replace("\n", " ")
    assert "or marked by --repair" in " ".join(people.run("--explain", "bob@example.com").out.split())
    iterable.project.requests.clear()
    run = people.run()
    assert (run.code, run.counts("users"), run.counts("events")) == (
        0, {"delivered": 2, "unchanged": 1}, {"delivered": 3, "unchanged": 1},
    )  # fmt: skip
    bodies = [json.loads(each.body) for each in iterable.project.requests if each.path == "/api/events/track"]
    assert sorted(body["id"] for body in bodies) == ["a-1", "b-1", "e-1"]
    age(people, 1000)
    assert counts(people, "all", code=1) == {
        "users": {**NONE, "compared": 3, "same": 3}, "events": {**NONE, "compared": 4, "same": 3, "doubled": 1},
    }  # fmt: skip


def test_repair_of_one_field_sends_that_field_alone(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    fill(tmp_path, [("ada@example.com", "Ada", 5, "2026-01-13 08:00:00")])
    use_query(program, "SELECT * FROM rows")
    program.settings["USER_FIELDS"] = "first_name,seats:plan.seats,since:plan.since"
    program.run()
    iterable.project.edit_user({"email": "ada@example.com", "dataFields": {"plan": {"seats": 6}}})
    assert program.run("--verify", "--repair").code == 1
    iterable.project.requests.clear()
    assert program.run().code == 0
    (body,) = [json.loads(each.body) for each in iterable.project.requests if each.path == "/api/users/update"]
    assert body == {
        "email": "ada@example.com",
        "dataFields": {"plan": {"seats": 5, "since": "2026-01-13 08:00:00"}},
    }


def test_without_differences_nothing_is_marked(people: Program, iterable: StandIn) -> None:
    assert "Marked as not accepted: 0 users, 0 events.\n" in verified(people.run("--verify", "--repair"), 0)
    iterable.project.requests.clear()
    assert people.run().code == 0
    assert sent(iterable) == []


def test_while_a_run_is_active_nothing_is_marked(people: Program, iterable: StandIn) -> None:
    change_all(iterable)
    before = (people.folder / "iterable_ledger.sqlite3").read_bytes()
    with hold_lock(people.folder / "iterable_ledger.lock"):
        run = people.run("--verify", "--repair")
    assert (run.code, run.out) == (75, "")
    assert run.err.startswith("Another run is active")
    assert (people.folder / "iterable_ledger.sqlite3").read_bytes() == before
    assert not list(people.folder.glob("verify_*"))


def test_with_since_it_says_that_the_rows_must_be_read_again(people: Program, iterable: StandIn) -> None:
    use_query(people, f"SELECT {COLUMNS} FROM rows WHERE event_time >= :since")
    iterable.project.delete_event("b-1")
    run = people.run("--verify", "--repair")
    assert "The query has :since, so the next run must read these rows" in run.out
    run = people.run("--since", "all")
    assert run.counts("events") == {"delivered": 1, "unchanged": 3}


def test_repair_without_verify_is_a_usage_error(people: Program) -> None:
    run = people.run("--repair")
    assert run.code == 2
    assert "--repair marks what --verify finds, so it needs --verify" in run.err


def test_ctrl_c_keeps_what_was_compared_so_far(people: Program, iterable: StandIn) -> None:
    change_all(iterable)
    iterable.inject(Fault(path="/api/users/getByEmail", match=b"eve%40", status=503, headers={"Retry-After": "60"}))
    process = people.start("--verify", "all", "--repair")
    wait_until(lambda: sum(iterable.project.request_counts[path] for path in READ) >= 6)
    process.send_signal(signal.SIGINT)
    finished = people.wait_for(process)
    assert (finished.code, finished.err) == (130, "The run was interrupted by SIGINT.\n")
    users = verified_results(people)["users"]
    assert users == {**NONE, "compared": users["same"], "same": users["same"]}
    assert users["same"] <= 2


READ = ("/api/users/getByEmail", "/api/events/byEmail")
