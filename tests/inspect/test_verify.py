"""`--verify [N|all]`, as a user runs it: against a project that changed by hand, and one that can't be read."""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iterable import VERSION
from pipeline.inspect.verify_people import Person, choose
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from tests.program import Finished, Program, make_table, use_query, wait_until

NAMES = ["ada", "bob", "eve"]
NONE = dict.fromkeys(
    ("compared", "same", "different", "missing", "doubled", "old_address", "forgotten", "not_compared"), 0
)


@pytest.fixture
def accepted(program: Program, tmp_path: Path) -> Program:
    """Three users, accepted long enough ago; one row each."""
    fill(tmp_path, [(f"{name}@example.com", name.title(), 5, "2026-01-13 08:00:00") for name in NAMES])
    use_query(program, "SELECT * FROM rows")
    program.settings["USER_FIELDS"] = "first_name,seats:plan.seats,since:plan.since"
    assert program.run().code == 0
    program.settings["USER_SETTLE_SECONDS"] = "60"
    age(program, 100)
    return program


def fill(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    (tmp_path / "users.db").unlink(missing_ok=True)
    make_table(tmp_path / "users.db", "email,first_name,seats,since", rows)


def age(program: Program, seconds: int) -> None:
    """Put back when everything was accepted."""
    with sqlite3.connect(program.folder / "iterable_ledger.sqlite3") as ledger:
        for table in ("users", "events", "given_events"):
            ledger.execute(f"UPDATE {table} SET accepted_at = accepted_at - ?", (seconds,))
    ledger.close()


def verified(run: Finished, code: int) -> str:
    """What was printed, without the moments of acceptance."""
    assert (run.code, run.err) == (code, "")
    text = re.sub(r"\baccepted \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", "accepted <then>", run.out)
    return re.sub(r"\bverify_(report|results)_\d{8}_\d{6}\.(csv|json)", r"<\1>", text)


def as_json(program: Program, *arguments: str, code: int) -> dict[str, Any]:
    run = program.run("--verify", *arguments, "--json")
    assert run.code == code
    found: dict[str, Any] = json.loads(run.out)
    assert found["exit_code"] == code
    return found


def verified_results(program: Program) -> dict[str, Any]:
    """The counts of the only verify_results_*.json."""
    (path,) = program.folder.glob("verify_results_*.json")
    counts: dict[str, Any] = json.loads(path.read_text())["counts"]
    return counts


# What it says ---------------------------------------------------------------------------------------------------------


def test_nothing_differs(accepted: Program) -> None:
    assert verified(accepted.run("--verify"), 0) == "3 users compared with Iterable: 3 the same.\nSee <results>\n"
    found = as_json(accepted, code=0)
    assert found == {
        "tool_version": VERSION, "notes": [], "offered": 3, "too_recent": 0, "forgotten": 0, "compared": 3, "same": 3,
        "missing_fields": {}, "counts": {"users": {**NONE, "compared": 3, "same": 3}, "events": NONE}, "different": [],
        "marked": None, "files": {"report": None, "results": found["files"]["results"]}, "stopped": None,
        "exit_code": 0,
    }  # fmt: skip


ALL_DIFFER = """\
ada@example.com: 2 of 5 fields differ; accepted <then>
       field       ours        Iterable's
    !  first_name  Ada         Ada L.
    !  plan.by     (not sent)  hand

bob@example.com: 1 of 4 fields differs; accepted <then>
       field       ours  Iterable's
    !  first_name  Bob   (missing)

eve@example.com: not found in Iterable; accepted <then>

first_name was sent but is missing in Iterable for 1 user.
3 users compared with Iterable: 0 the same, 2 different, 1 missing.
The next run does not send what was accepted and is unchanged. With --verify
--repair it sends what differs. A field that is missing may have been dropped: a
project can be set to ignore unknown fields.
See <report>
See <results>
"""


def test_a_project_that_was_changed_by_hand(accepted: Program, iterable: StandIn) -> None:
    fields = {"first_name": "Ada L.", "plan": {"seats": 5.0, "since": "2026-01-13 08:00:00 +00:00", "by": "hand"}}
    iterable.project.edit_user({"email": "ada@example.com", "dataFields": fields})
    iterable.project.edit_user({"email": "bob@example.com", "dataFields": {"first_name": None}})
    iterable.project.delete_user(email="eve@example.com")
    assert verified(accepted.run("--verify"), 1) == ALL_DIFFER
    assert "example.com" not in accepted.run("--verify", "--verbose").err


def test_a_field_that_the_project_dropped_counts_as_differing(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    fill(tmp_path, [(f"{name}@example.com", name, 5, None) for name in NAMES])
    use_query(program, "SELECT email, first_name, seats FROM rows")
    program.settings["USER_FIELDS"] = "first_name,seats"
    iterable.project.dropped_fields.add("seats")
    program.run()
    found = as_json(program, code=1)
    assert found["missing_fields"] == {"seats": 3}
    assert [each["fields"] for each in found["different"]] == [
        [{"name": "seats", "ours": 5, "iterable": None, "match": "missing"}]
    ] * 3


def test_merged_objects_are_compared_by_what_was_sent(accepted: Program, iterable: StandIn) -> None:
    accepted.settings["MERGE_NESTED"] = "true"
    assert accepted.run().code == 0
    age(accepted, 100)
    fields = {"plan": {"seats": 5, "since": "2026-01-13 08:00:00", "by": "hand"}}
    iterable.project.edit_user({"email": "ada@example.com", "dataFields": fields})
    assert as_json(accepted, code=0)["same"] == 3


@pytest.mark.parametrize("unknown", ["400", "200"])
def test_users_by_id_that_iterable_lost_are_not_found(program: Program, tmp_path: Path, unknown: str) -> None:
    with StandIn(unknown_user_id=unknown) as iterable:
        make_table(tmp_path / "users.db", "id", [("a/1 ?",), (17,)])
        use_query(program, "SELECT id FROM rows")
        program.settings |= {"ITERABLE_IDENTIFIER": "userId", "ITERABLE_BASE_URL": iterable.url}
        program.run()
        assert as_json(program, code=0)["same"] == 2
        iterable.project.delete_user(user_id="17")
        (lost,) = as_json(program, code=1)["different"]
    assert (lost["who"], lost["row"], lost["is_found"], lost["problem"]) == ("17", 2, False, None)


# Which users ----------------------------------------------------------------------------------------------------------


def test_only_users_that_are_accepted_and_unchanged(accepted: Program, iterable: StandIn, tmp_path: Path) -> None:
    rows = [("ada@example.com", "Changed", 5, None), ("bob@example.com", "Bob", 5, "2026-01-13 08:00:00")]
    fill(tmp_path, [*rows, ("new@example.com", "New", 1, None), ("no address", "Bad", 1, None)])
    found = as_json(accepted, code=0)
    assert (found["offered"], found["compared"]) == (1, 1)
    assert [received.query for received in iterable.project.requests if received.path == "/api/users/getByEmail"] == [
        "email=bob%40example.com"
    ]


def test_some_accepted_just_now_are_left_out_and_counted(accepted: Program, tmp_path: Path) -> None:
    rows = [(f"{name}@example.com", name.title(), 5, "2026-01-13 08:00:00") for name in NAMES]
    fill(tmp_path, [*rows, ("new@example.com", "New", 1, None)])
    assert accepted.run().counts("users") == {"delivered": 1, "unchanged": 3}
    text = verified(accepted.run("--verify"), 0)
    assert "3 users compared with Iterable: 3 the same." in text
    assert "Left out: 1 user accepted less than 60 seconds ago, as Iterable takes a while to" in text


def test_no_more_than_were_asked_for(accepted: Program) -> None:
    found = as_json(accepted, "2", code=0)
    assert (found["offered"], found["compared"]) == (3, 2)


def test_users_accepted_just_now_are_left_out(accepted: Program, iterable: StandIn) -> None:
    age(accepted, -100)
    iterable.project.request_counts.clear()
    run = accepted.run("--verify")
    assert (run.code, run.out) == (75, "")
    assert run.err == (
        "Nothing was compared: everything was accepted less than 60 seconds ago. Try again in a minute.\n"
    )
    assert not iterable.project.request_counts


def test_forgotten_people_are_told_from_missing_ones(accepted: Program, iterable: StandIn) -> None:
    iterable.project.forget_user(email="ada@example.com")
    assert "Left out: 1 user of people who were forgotten, by Iterable or by --forget.\n" in verified(
        accepted.run("--verify"), 0
    )
    iterable.project.delete_user(email="bob@example.com")
    assert as_json(accepted, code=1)["counts"]["users"] == {
        **NONE, "compared": 2, "same": 1, "missing": 1, "forgotten": 1,
    }  # fmt: skip


def test_where_the_list_of_forgotten_people_can_not_be_read_a_note_says_so(
    accepted: Program, iterable: StandIn
) -> None:
    iterable.project.forget_user(email="ada@example.com")
    iterable.inject(Fault(path="/api/users/forgotten", status=403))
    found = as_json(accepted, code=1)
    assert found["counts"]["users"] == {**NONE, "compared": 3, "same": 2, "missing": 1}
    assert "Iterable's list of forgotten people could not be read: " in found["notes"][0]


def test_where_nothing_was_accepted_it_says_that_nothing_was_compared(accepted: Program) -> None:
    run = accepted.run("--verify", "--quiet", ITERABLE_API_KEY="another-key")
    assert (run.code, run.out) == (75, "")
    assert run.err == (
        "Nothing was compared: the ledger knows nobody of this project yet. Run the job first. The API key is "
        "new to the ledger, which knows other projects only (ITERABLE_PROJECT keeps what it knows when a key is "
        "rotated).\n"
    )


def test_where_all_have_changed_since_nothing_is_compared(accepted: Program) -> None:
    run = accepted.run("--verify", USER_FIELDS="first_name:name")
    assert (run.code, run.out) == (75, "")
    assert "nothing that the query finds is known as accepted and unchanged since" in run.err


def ten_people() -> Iterator[Person]:
    return (Person("", row, None, None, ()) for row in range(10))


@pytest.mark.parametrize("size", [3, 2000])
def test_each_person_has_the_same_chance(size: int) -> None:
    counts = dict.fromkeys(range(10), 0)
    for seed in range(3000):
        offered, chosen = choose(ten_people, size, random.Random(seed))
        rows = [person.row for person in chosen]
        assert (offered, len(rows)) == (10, min(size, 10))
        assert rows == sorted(set(rows))
        for row in rows:
            counts[row] += 1
    assert all(count == 3000 if size > 10 else 800 < count < 1000 for count in counts.values())


# Where Iterable can't be read -----------------------------------------------------------------------------------------


def test_a_jwt_key_can_not_verify(accepted: Program) -> None:
    run = accepted.run("--verify", USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SANDBOX_JWT_SECRET)
    assert (run.code, run.out) == (78, "")
    assert run.err == (
        "A client-side key (JWT-enabled, mobile or web) can't read users; a server-side key of the project can. "
        "--verify needs one.\n"
    )


def test_another_client_side_key_can_not_verify(accepted: Program, iterable: StandIn) -> None:
    iterable.project.key_type = "Mobile"
    run = accepted.run("--verify")
    assert (run.code, run.out) == (77, "")
    assert "A client-side key (JWT-enabled, mobile or web) can't read users" in run.err


def test_an_outage_ends_it_with_75_and_what_was_compared_is_shown(accepted: Program, iterable: StandIn) -> None:
    iterable.project.delete_user(email="ada@example.com")
    iterable.project.faults.append(Fault(path="/api/users/getByEmail", skip=1, status=503))
    run = accepted.run("--verify", MAX_WORKERS="1")
    assert run.code == 75
    assert "503" in run.err
    assert run.err.endswith("Try again later.\n")


def test_ctrl_c_ends_it_with_130_and_waits_for_no_retry(accepted: Program, iterable: StandIn) -> None:
    iterable.project.faults.append(Fault(path="/api/users/getByEmail", status=503, headers={"Retry-After": "60"}))
    iterable.project.request_counts.clear()
    process = accepted.start("--verify")
    wait_until(lambda: iterable.project.request_counts["/api/users/getByEmail"])
    process.send_signal(signal.SIGINT)
    finished = accepted.wait_for(process)
    assert (finished.code, finished.err) == (130, "The run was interrupted by SIGINT.\n")
    assert verified_results(accepted) == {"users": NONE, "events": NONE}


# It only looks --------------------------------------------------------------------------------------------------------


def test_it_changes_nothing_and_leaves_two_private_files(accepted: Program, iterable: StandIn, tmp_path: Path) -> None:
    iterable.project.delete_user(email="ada@example.com")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert accepted.run("--verify").code == 1
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    left = sorted(set(after) - set(before))
    ledger = accepted.folder / "iterable_ledger.sqlite3"  # which has the result
    assert {path: after[path] for path in before if path != ledger} == {
        path: content for path, content in before.items() if path != ledger
    }
    assert [re.sub(r"\d{8}_\d{6}", "*", path.name) for path in left] == ["verify_report_*.csv", "verify_results_*.json"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in left] == [0o600, 0o600]


def test_quiet_prints_only_what_differs(accepted: Program, iterable: StandIn) -> None:
    run = accepted.run("--verify", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")
    iterable.project.delete_user(email="ada@example.com")
    assert verified(accepted.run("--verify", "--quiet"), 1) == (
        "ada@example.com: not found in Iterable; accepted <then>\n\n"
    )


def test_many_users_are_read_within_iterables_limit(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    fill(tmp_path, [(f"user{n}@example.com", f"User {n}", n, None) for n in range(110)])
    use_query(program, "SELECT email, first_name FROM rows")
    program.run(PUSH_MODE="bulk")
    assert as_json(program, "110", code=0)["same"] == 110
    assert iterable.project.rate_limited["/api/users/getByEmail"] == 0


@pytest.mark.parametrize("value", ["0", "-1", "everybody"])
def test_a_number_that_is_no_count_is_a_usage_error(accepted: Program, value: str) -> None:
    assert accepted.run("--verify", value).code == 2
