"""`--explain WHO`, as a user runs it: what it says of one person, and that it changes nothing."""

from __future__ import annotations

import json
import re
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_settings
from pipeline.ledger.ledger import FailureEntry, Ledger, open_ledger
from pipeline.model.records import Kind, Outcome, Record, UserDetails
from pipeline.run.opening import project_of
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from tests.program import Finished, Program, make_table, use_query, wait_until

COLUMNS = "email,first_name,plan_type,page,event_time"
ADA = [
    ("Ada@Example.com", "Ada", "free", "home", "2026-01-13 08:00:00"),
    ("ada@example.com", "Ada", "pro", "pricing", "2026-01-13 09:00:00"),
]
BOB = [("bob@example.com", "Bob", "pro", "docs", "2026-01-13 10:00:00")]


@pytest.fixture
def people(program: Program, tmp_path: Path) -> Program:
    """Ada has two rows, in different spelling; Bob has one."""
    fill(tmp_path, [ADA[0], *BOB, ADA[1]])
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    return program


def fill(tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    (tmp_path / "users.db").unlink(missing_ok=True)
    make_table(tmp_path / "users.db", COLUMNS, rows)


def explained(run: Finished) -> str:
    """What was printed, without the moments of acceptance."""
    assert run.err == ""
    text = re.sub(r"\b(accepted|from|to|on) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", r"\1 <then>", run.out)
    text = re.sub(r"\bin run \d{8}_\d{6}", "in <run>", text)
    return re.sub(r"\bue2-[0-9a-f-]+", "<id>", text)


def as_json(program: Program, who: str, code: int = 0) -> dict[str, Any]:
    run = program.run("--explain", who, "--json")
    assert (run.code, run.err) == (code, "")
    found: dict[str, Any] = json.loads(run.out)
    assert found["exit_code"] == code
    return found


def states(found: dict[str, Any]) -> list[str]:
    return [event["state"] for event in found["events"]["shown"]]


# What it says ---------------------------------------------------------------------------------------------------------


WHOLE_TEXT = """\
ada@example.com

Rows: 2 of the 3 rows of query.sql
    in each of them
        first_name  Ada
    row  email            plan_type  page     event_time
    1    Ada@Example.com  free       home     2026-01-13 08:00:00
    3    ada@example.com  pro        pricing  2026-01-13 09:00:00

User: accepted <then>, unchanged since
    last accepted in <run>

Events: 2 accepted
    2026-01-13 08:00:00 UTC  page_view: accepted <then>
        event_id <id>
        last accepted in <run>
        page home
    2026-01-13 09:00:00 UTC  page_view: accepted <then>
        event_id <id>
        last accepted in <run>
        page pricing

Iterable's copy: the same in all 3 fields
      field       ours             Iterable's
      email       ada@example.com  ada@example.com
      first_name  Ada              Ada
      plan_type   pro              pro
"""


def test_a_person_whose_records_were_accepted(people: Program) -> None:
    assert people.run().code == 0
    run = people.run("--explain", "ADA@example.COM")
    assert run.code == 0
    assert explained(run) == WHOLE_TEXT


def test_which_run_sent_each_record(people: Program, tmp_path: Path) -> None:
    first = people.run().results["run_id"]
    fill(tmp_path, [*ADA, ("ada@example.com", "Ada", "team", "late", "2026-01-14 09:00:00")])
    second = people.run().results["run_id"]
    found = as_json(people, "ada@example.com")
    assert found["user"]["run_id"] == second
    assert [event["run_id"] for event in found["events"]["shown"]] == [first, first, second]
    lines = people.run("--explain", "ada@example.com").out.splitlines()
    assert [line.strip() for line in lines if "in run" in line] == [
        f"last accepted in run {run_id}" for run_id in (second, first, first, second)
    ]


def test_headings_that_would_look_the_same_are_not_cut(people: Program, tmp_path: Path) -> None:
    columns = "email,event_id,event_name,event_time,one,two,three,four"
    rows = [
        ("ada@example.com", f"id-{n}" * 5, f"name {n}" * 3, f"2026-01-13 0{n}:00:00", *[f"{n}" * 20] * 4)
        for n in (1, 2)
    ]
    make_table(tmp_path / "wide.db", columns, rows)
    use_query(people, f"SELECT {columns} FROM rows")
    people.settings |= {"DATABASE_URL": f"sqlite:///{tmp_path}/wide.db", "USER_FIELDS": "-", "EVENT_FIELDS": "*"}
    text = people.run("--explain", "ada@example.com").out
    assert "event…" not in text
    assert "    row 1: event_id id-1id-1id-1id-1id-1, event_name name 1name 1name 1," in text


def test_a_person_of_whom_nothing_was_sent_yet(people: Program) -> None:
    found = as_json(people, "bob@example.com")
    assert found == {
        "who": "bob@example.com",
        "identifier": "email",
        "is_known": True,
        "notes": [],
        "query": {
            "file": "query.sql", "rows_read": 3, "rows_found": 1,
            "rows": [
                {
                    "row": 2,
                    "values": {
                        "email": "bob@example.com", "first_name": "Bob", "plan_type": "pro", "page": "docs",
                        "event_time": "2026-01-13 10:00:00",
                    },
                }
            ],
        },
        "user": {
            "row": 2, "state": "new", "reason": None, "accepted_at": None, "run_id": None, "before": None,
            "fields_to_send": None,
            "payload": {"email": "bob@example.com", "dataFields": {"first_name": "Bob", "plan_type": "pro"}},
        },
        "events": {
            "counts": {"new": 1, "changed": 0, "unchanged": 0, "unsure": 0, "rejected": 0},
            "repeated": 0,
            "shown": [
                {
                    "row": 2, "state": "new", "reason": None, "accepted_at": None, "run_id": None, "before": None,
                    "fields_to_send": None,
                    "payload": {
                        "email": "bob@example.com", "eventName": "page_view", "createdAt": 1768298400,
                        "id": found["events"]["shown"][0]["payload"]["id"], "dataFields": {"page": "docs"},
                    },
                }
            ],
        },
        "ledger": {
            "user_accepted_at": None, "events": 0, "events_not_in_query": 0,
            "first_of_them_accepted_at": None, "last_of_them_accepted_at": None, "forgotten_on": None,
        },
        "iterable": {"state": "not_found", "problem": None, "fields": [], "profile": None},
        "files": None,
        "exit_code": 0,
    }  # fmt: skip


def test_rows_that_changed_since_and_a_row_that_can_not_be_sent(people: Program, tmp_path: Path) -> None:
    people.run()
    rows = [*ADA, ("ada@example.com", "Ada", "team", "late", "2226-01-13 09:00:00"),
            ("ada@example.com", "Ada", "team", "new", "2026-01-14 09:00:00")]  # fmt: skip
    fill(tmp_path, rows)
    found = as_json(people, "ada@example.com")
    assert (found["user"]["state"], found["user"]["accepted_at"] is not None) == ("changed", True)
    assert states(found) == ["unchanged", "unchanged", "rejected", "new"]
    assert found["events"]["shown"][2]["reason"] == "event_time is more than a day in the future."
    assert found["iterable"]["fields"][-1] == {
        "name": "plan_type", "ours": "team", "iterable": "pro", "match": "different",
    }  # fmt: skip
    text = people.run("--explain", "ada@example.com").out
    assert "Events: 1 to be sent, 2 accepted, 1 can't be sent" in text
    assert "User: to be sent; changed since accepted " in text
    assert "    row 3: can't be sent: event_time is more than a day in the future." in text
    assert "--full" not in text


def test_nobody_knows_the_person(people: Program) -> None:
    people.run()
    run = people.run("--explain", "eve@example.com")
    assert (run.code, run.err) == (1, "")
    assert run.out.splitlines() == [
        "eve@example.com",
        "Unknown: neither in the 3 rows of query.sql, nor in the ledger, nor in Iterable.",
    ]
    assert as_json(people, "eve@example.com", code=1)["is_known"] is False


def test_only_the_ledger_and_iterable_know_a_person_whose_rows_are_gone(
    people: Program, iterable: StandIn, tmp_path: Path
) -> None:
    people.run()
    fill(tmp_path, BOB)
    run = people.run("--explain", "ada@example.com")
    assert run.code == 0
    assert explained(run).splitlines()[:8] == [
        "ada@example.com",
        "",
        "Rows: 0 of the 1 row of query.sql",
        "",
        "User: accepted <then>; without a row, nothing is sent",
        "",
        "Events: none, as there is no row",
        "",
    ]
    assert "The ledger also knows 2 events of this person that the query no longer finds," in run.out
    assert re.search(r"Iterable's copy:\n    email +ada@example.com\n", run.out)
    iterable.project.delete_user(email="ada@example.com")
    found = as_json(people, "ada@example.com")
    assert (found["ledger"]["events_not_in_query"], found["iterable"]["state"]) == (2, "not_found")


def test_only_iterable_knows_the_person(people: Program, iterable: StandIn) -> None:
    iterable.project.edit_user({"email": "eve@example.com", "dataFields": {"plan": {"tier": "pro"}}})
    found = as_json(people, "eve@example.com")
    assert (found["iterable"]["state"], found["iterable"]["profile"]["dataFields"]["plan"]) == (
        "uncompared", {"tier": "pro"},
    )  # fmt: skip


CHANGED_COPY = """\
Iterable's copy: 2 of 3 fields differ
       field       ours             Iterable's
       email       ada@example.com  ada@example.com
    !  first_name  Ada              (missing)
    !  plan_type   pro              free
The next run does not send what was accepted and is unchanged. With --verify
--repair it sends what differs. A field that is missing may have been dropped: a
project can be set to ignore unknown fields.
"""


def test_a_copy_that_was_changed_by_hand_and_one_that_was_deleted(people: Program, iterable: StandIn) -> None:
    people.run()
    iterable.project.edit_user({"email": "ada@example.com", "dataFields": {"plan_type": "free", "first_name": None}})
    iterable.project.delete_user(email="bob@example.com")
    text = people.run("--explain", "ada@example.com").out
    assert text[text.index("Iterable's copy") :] == CHANGED_COPY
    text = people.run("--explain", "bob@example.com").out
    assert "Iterable's copy: none; Iterable does not know this person\nThe next run does not send" in text


def test_only_rejected_rows(people: Program, iterable: StandIn, tmp_path: Path) -> None:
    fill(tmp_path, [*BOB, (" Ada@example ", "Ada", "pro", "home", "2026-01-13 09:00:00")])
    found = as_json(people, "ada@EXAMPLE")
    assert found["user"]["reason"] == "email is not a valid email address."
    assert (states(found), found["iterable"]["state"]) == (["rejected"], "not_read")
    assert found["notes"] == ["This is not an e-mail address, by which ITERABLE_IDENTIFIER tells people apart."]
    assert not iterable.project.request_counts


def test_of_many_rows_the_last_thousand_are_shown_and_all_count(people: Program, tmp_path: Path) -> None:
    many = [("ada@example.com", f"Ada {n}", None, f"p{n}", "2026-01-13 09:00:00") for n in range(3000)]
    fill(tmp_path, [("ada@example.com", None, "pro", "home", "2026-01-13 08:00:00"), *BOB, *many])
    found = as_json(people, "ada@example.com")
    assert (found["query"]["rows_found"], found["query"]["rows"][0]["row"]) == (3001, 2003)
    assert len(found["query"]["rows"]) == len(found["events"]["shown"]) == 1000
    assert found["events"]["counts"]["new"] == 3001
    assert found["user"]["payload"]["dataFields"] == {"first_name": "Ada 2999", "plan_type": "pro"}
    text = people.run("--explain", "ada@example.com").out
    assert "Rows: 3,001 of the 3,002 rows of query.sql; the last 1,000:" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_moves_the_cursor_is_escaped(people: Program, tmp_path: Path) -> None:
    fill(tmp_path, [("ada@example.com", "A\x1b[2Jda\nfake: line", "pro", "\u202ehome", "2026-01-13 09:00:00")])
    text = people.run("--explain", "ada@example.com").out
    assert "\x1b" not in text
    assert "first_name  A\\x1b[2Jda\\nfake: line" in text
    assert "page \\u202ehome" in text


def test_rows_of_many_columns_are_paragraphs(people: Program, tmp_path: Path) -> None:
    names = [f"column{n}" for n in range(20)]
    database = tmp_path / "wide.db"
    rows = [("ada@example.com", *map(str, range(first, first + 20))) for first in (0, 1)]
    make_table(database, ",".join(["email", *names]), rows)
    use_query(people, "SELECT * FROM rows")
    run = people.run("--explain", "ada@example.com", DATABASE_URL=f"sqlite:///{database}", USER_FIELDS="*")
    assert "    row 2: column0 1, column1 2, " in run.out
    assert max(map(len, run.out.splitlines())) <= 80


def test_where_two_long_texts_differ_is_shown(people: Program, iterable: StandIn, tmp_path: Path) -> None:
    long = "x" * 200
    fill(tmp_path, [("ada@example.com", f"{long} ours", "pro", "home", "2026-01-13 09:00:00")])
    people.run()
    iterable.project.edit_user({"email": "ada@example.com", "dataFields": {"first_name": f"{long} theirs"}})
    assert re.search(r"! +first_name +…xxxx ours +…xxxx theirs", people.run("--explain", "ada@example.com").out)


def test_a_record_that_iterable_refused_before(people: Program, iterable: StandIn) -> None:
    iterable.project.user_field_types["plan_type"] = "boolean"
    people.run()
    note_trouble(people, "ada@example.com")
    found = as_json(people, "ada@example.com")["user"]["before"]
    assert {**found, "noted_at": "then"} == {
        "outcome": "rejected", "status_code": 400, "code": "RequestFieldsTypesMismatched", "runs_in_a_row": 0,
        "noted_at": "then", "is_same": False,
    }  # fmt: skip
    text = explained(people.run("--explain", "ada@example.com"))
    assert "An earlier version was rejected (400 RequestFieldsTypesMismatched), last" in text


def held_ledger(program: Program) -> AbstractContextManager[Ledger]:
    """The ledger, as a run of January 2026 holds it."""
    settings = load_settings(program.env_file, program.settings)
    return open_ledger(program.folder, project_of(settings), now=1768298400)


def note_trouble(program: Program, who: str) -> None:
    query = str(load_settings(program.env_file, program.settings).query_file)
    with held_ledger(program) as ledger:
        failed = FailureEntry(
            ledger.user_key(who), b"x", Outcome.REJECTED, 400, "RequestFieldsTypesMismatched", "no", False
        )
        ledger.failures.note([failed], query, counts=True)
        ledger.commit()


def test_a_record_that_was_sent_again_without_an_answer(people: Program) -> None:
    people.run()
    with held_ledger(people) as ledger:
        hasher = ledger.hasher
        sent = UserDetails(sent=hasher.field_name("first_name") + hasher.field_name("plan_type"))
        ledger.invalidate([Record(Kind.USER, 1, ADA[0][0], ledger.user_key("ada@example.com"), b"", b"", sent)])
    text = explained(people.run("--explain", "ada@example.com"))
    assert "User: to be sent; accepted <then>, and sent again later" in text


def test_user_ids_are_meant_to_the_letter(people: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(tmp_path / "ids.db", "id,first_name", [(17, "Ada"), ("U-1", "Bob")])
    use_query(people, "SELECT id, first_name FROM rows")
    people.settings |= {"ITERABLE_IDENTIFIER": "userId", "DATABASE_URL": f"sqlite:///{tmp_path}/ids.db"}
    people.run()
    found = as_json(people, "17")
    assert (found["user"]["state"], found["iterable"]["state"]) == ("unchanged", "same")
    assert as_json(people, "U-1")["iterable"]["state"] == "same"
    assert as_json(people, "u-1", code=1)["is_known"] is False


def test_an_event_id_that_belongs_to_another_person_too(people: Program, tmp_path: Path) -> None:
    rows = [(f"{name}@example.com", "2026-01-13 09:00:00", "same") for name in ("bob", "ada", "eve")]
    make_table(tmp_path / "ids.db", "email,event_time,event_id", rows)
    use_query(people, "SELECT email, event_time, event_id FROM rows")
    people.settings["DATABASE_URL"] = f"sqlite:///{tmp_path}/ids.db"
    found = as_json(people, "ada@example.com")
    assert found["events"]["shown"][0] == {
        "row": 2, "state": "rejected",
        "reason": "event_id is also that of row 1, which has another name, person or time.",
        "accepted_at": None, "run_id": None, "before": None, "fields_to_send": None, "payload": None,
    }  # fmt: skip
    assert (states(as_json(people, "bob@example.com")), found["events"]["repeated"]) == (["rejected"], None)


def test_rows_that_repeat_an_event(people: Program, tmp_path: Path) -> None:
    fill(tmp_path, [*BOB, *BOB, *BOB])
    text = people.run("--explain", "bob@example.com").out
    assert "    alike: rows 1, 2, 3\n" in text
    assert "Events: 1 to be sent\n    2 more rows repeat an event, which is sent once\n" in text


def test_a_query_with_since_is_read_from_the_start(people: Program) -> None:
    use_query(people, f"SELECT {COLUMNS} FROM rows WHERE event_time >= :since")
    people.run()
    assert as_json(people, "ada@example.com")["query"]["rows_found"] == 2


def test_forgotten_people_would_be_kept_back(people: Program, iterable: StandIn) -> None:
    iterable.project.forget_user(email="ada@example.com")
    people.settings["SKIP_FORGOTTEN"] = "true"
    found = as_json(people, "ada@example.com")
    assert (found["user"]["state"], states(found)) == ("rejected", ["rejected", "rejected"])
    assert found["user"]["reason"].startswith("This person asked Iterable to be forgotten")
    assert as_json(people, "bob@example.com")["user"]["state"] == "new"


# Where Iterable can't be read -----------------------------------------------------------------------------------------


def test_a_jwt_key_can_not_read_and_the_rest_is_shown(people: Program, tmp_path: Path) -> None:
    with StandIn(key_type="Mobile", jwt_secret=SANDBOX_JWT_SECRET) as iterable:
        people.settings |= {
            "ITERABLE_BASE_URL": iterable.url, "USE_JWT_AUTH": "true", "ITERABLE_JWT_SECRET": SANDBOX_JWT_SECRET,
        }  # fmt: skip
        people.run()
        iterable.project.request_counts.clear()
        run = people.run("--explain", "ada@example.com")
        assert (run.code, run.err) == (0, "")
        assert "Iterable's copy: not read. A client-side key" in run.out
        assert "first_name  Ada" in run.out
        assert not iterable.project.request_counts


def test_another_client_side_key_can_not_read_either(people: Program) -> None:
    with StandIn(key_type="Mobile") as iterable:
        people.settings["ITERABLE_BASE_URL"] = iterable.url
        found = as_json(people, "ada@example.com")
    assert (found["iterable"]["state"], found["user"]["state"]) == ("not_read", "new")
    assert found["iterable"]["problem"].startswith("A client-side key")


@pytest.mark.parametrize(
    ("settings", "fault", "code", "advice"),
    [
        ({"ITERABLE_API_KEY": "wrong-key"}, None, 77, "Check ITERABLE_API_KEY"),
        ({}, Fault(path="/api/users/getByEmail", status=503), 75, "Try again later."),
        ({}, Fault(path="/api/users/getByEmail", body=b"<html>", status=200), 76, "Check ITERABLE_BASE_URL"),
    ],
)
def test_what_is_known_is_shown_although_iterable_can_not_be_read(
    people: Program, iterable: StandIn, settings: dict[str, Any], fault: Fault | None, code: int, advice: str
) -> None:
    if fault is not None:
        iterable.project.faults.append(fault)
    run = people.run("--explain", "ada@example.com", **settings)
    assert (run.code, run.err) == (code, "")
    assert "User: to be sent; never accepted so far" in run.out
    assert "Iterable's copy: not read. " in run.out
    assert advice in " ".join(run.out.split())


def test_whom_nobody_else_knows_may_be_in_iterable_all_the_same(people: Program, iterable: StandIn) -> None:
    iterable.project.faults.append(Fault(path="/api/users/getByEmail", status=503))
    run = people.run("--explain", "eve@example.com")
    assert (run.code, run.err) == (75, "")
    assert "Unknown" not in run.out
    assert "User: not in the ledger; without a row, nothing is sent" in run.out


# It only looks --------------------------------------------------------------------------------------------------------


def test_it_writes_no_file_and_no_log_line_and_leaves_the_ledger_as_it_is(people: Program, tmp_path: Path) -> None:
    people.run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert people.run("--explain", "ada@example.com", "--verbose").code == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_it_makes_nothing_in_an_empty_folder(people: Program) -> None:
    assert people.run("--explain", "ada@example.com").code == 0
    assert people.run("--explain", "ada@example.com").files("*") == []


def test_the_log_on_stderr_has_nobodys_data(people: Program) -> None:
    run = people.run("--explain", "ada@example.com", "--verbose")
    assert "users/getByEmail" in run.err
    assert "ada@example.com" not in run.err


def test_it_works_while_a_run_is_active_and_sees_what_was_committed(people: Program, iterable: StandIn) -> None:
    iterable.project.faults.append(Fault(path="/api/events/track", latency_s=30, match=b"docs"))
    process = people.start(MAX_WORKERS="1")
    try:
        wait_until(lambda: as_json_now(people)["user"]["state"] == "unchanged")
        found = as_json_now(people)
        assert found["notes"] == ["A run is active; this is what it has committed so far."]
    finally:
        process.kill()
        process.communicate()


def as_json_now(program: Program) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(program.run("--explain", "ada@example.com", "--json").out)
    return found


def test_quiet_prints_nothing(people: Program) -> None:
    run = people.run("--explain", "ada@example.com", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")


def test_a_query_that_fails_ends_it_with_66(people: Program) -> None:
    use_query(people, "SELECT email FROM nowhere")
    run = people.run("--explain", "ada@example.com")
    assert (run.code, run.out) == (66, "")
    assert "nowhere" in run.err


def test_settings_that_are_missing_end_it_with_78(people: Program) -> None:
    assert people.run("--explain", "ada@example.com", DATABASE_URL=None).code == 78


def test_a_damaged_ledger_ends_it_with_65_and_stays(people: Program) -> None:
    people.run()
    ledger = people.folder / "iterable_ledger.sqlite3"
    ledger.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    run = people.run("--explain", "ada@example.com")
    assert run.code == 65
    assert "is damaged" in run.err
    assert ledger.read_bytes().endswith(b"x")


def test_the_sandbox_has_its_sample_people(program: Program) -> None:
    run = program.run("--sandbox", "--explain", "alex.moreau@example.com", DATABASE_URL=None, ITERABLE_API_KEY=None)
    assert (run.code, run.err) == (0, "")
    assert "User: to be sent" in run.out


def test_the_sandbox_has_nothing_to_do_with_the_real_ledger(people: Program) -> None:
    (people.folder / "iterable_ledger.sqlite3").write_bytes(b"x" * 5000)
    run = people.run("--sandbox", "--explain", "ada@example.com")
    assert (run.code, run.err) == (0, "")


def test_a_new_key_is_named_as_the_reason_why_the_ledger_knows_nothing(people: Program) -> None:
    people.run()
    run = people.run("--explain", "ada@example.com", ITERABLE_API_KEY="another-key")
    assert "The API key is new to the ledger, which knows other projects only" in run.out


def test_ctrl_c_ends_it_with_130(people: Program, iterable: StandIn) -> None:
    iterable.project.faults.append(Fault(path="/api/users/getByEmail", latency_s=30))
    process = people.start("--explain", "ada@example.com")
    wait_until(lambda: iterable.project.request_counts["/api/users/getByEmail"])
    process.send_signal(signal.SIGINT)
    finished = people.wait_for(process)
    assert (finished.code, finished.out) == (130, "")
    assert finished.err == "The run was interrupted by SIGINT.\n"


def test_a_reader_that_leaves_early_is_no_error(people: Program) -> None:
    with people.start("--explain", "ada@example.com") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, "")


def test_json_that_can_not_be_printed_ends_it_with_73(people: Program) -> None:
    with people.start("--explain", "ada@example.com", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 73
        assert process.stderr.read() == "The answer could not be printed (Broken pipe).\n"


def test_a_key_that_may_not_read_users_still_shows_rows_and_ledger(people: Program, iterable: StandIn) -> None:
    iterable.inject(Fault(path="/api/users/getByEmail", status=403, body=b'{"msg": "no", "code": "Forbidden"}'))
    run = people.run("--explain", "ada@example.com")
    assert (run.code, run.err) == (0, "")
    assert "Iterable's copy: not read." in run.out
    assert "Rows: " in run.out
