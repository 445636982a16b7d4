"""`--forget WHO`: what OUTPUT_DIR and the ledger have of one person goes, and later runs reject the person."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import sqlite3
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.lock import hold_lock
from pipeline.sandbox import StandIn
from tests.opened import open_both
from tests.program import Finished, Program, make_table, sent, use_query

COLUMNS = "email,user_id,first_name,event_id,event_time,page"
Row = tuple[Any, ...]
ADA: list[Row] = [
    (" Ada@Example.com", "17", "Ada", "a-1", "2026-01-13 08:00:00", 'docs,\r\n"two"'),
    ("ada@example.com", "17", "Ada", "a-2", "2226-01-13 08:00:00", "docs"),
]
OTHERS: list[Row] = [
    ("bob@example.com", "18", "Bob", "b-1", "2026-01-13 08:00:00", "a\r\nb"),
    ("xada@example.com", "19", "Xada", "x-1", "2026-01-13 08:00:00", "docs"),
    ("'ada@example.com", "20", "Quote", "q-1", "2026-01-13 08:00:00", "=1+1"),
    ("ada@example.com.au", "21", "Au", "o-1", "2226-01-13 08:00:00", "docs"),
]


@pytest.fixture
def people(program: Program, tmp_path: Path) -> Program:
    """Ada, and others whose addresses are much like hers; each has an event."""
    show(program, [*ADA, *OTHERS])
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
    return program


def show(program: Program, rows: list[Row]) -> None:
    """From now on, the query finds these rows."""
    path = program.folder.parent / f"users{len(list(program.folder.parent.glob('users*')))}.db"
    make_table(path, COLUMNS, rows)
    program.settings["DATABASE_URL"] = f"sqlite:///{path}"


def forget(program: Program, who: str = "ada@example.com") -> Finished:
    return program.run("--forget", who, "--yes")


def contents(program: Program) -> dict[str, bytes]:
    """What stands in the files of runs, by the beginnings of their names."""
    paths = sorted(program.folder.glob("*_2*.*"))
    return {path.name.split("_2")[0]: path.read_bytes() for path in paths if path.is_file()}


def entries(program: Program, *tables: str) -> list[int]:
    """How many entries the ledger has."""
    with sqlite3.connect(program.folder / "iterable_ledger.sqlite3") as database:
        found = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
    database.close()
    return found


ALL_TABLES = ("users", "events", "given_events", "past_failures", "more_persons", "forgotten")


# Files and ledger -----------------------------------------------------------------------------------------------------


def test_rows_in_all_kinds_of_files_go_and_the_rest_stays_to_the_byte(people: Program, iterable: StandIn) -> None:
    assert people.run().code == 1
    iterable.project.delete_event("a-1")
    iterable.project.delete_event("b-1")
    assert people.run("--verify").code == 1
    assert people.run("--dry-run", "--full", "--yes").code == 1
    before = contents(people)
    run = forget(people)
    assert (run.code, run.err) == (0, "")
    after = contents(people)
    kept = [line for line in before["preview"].splitlines(True) if b'"ada@example.com"' not in line]
    assert after["preview"] == b"".join(kept)
    assert after["query_results"] == (
        b"email,user_id,first_name,event_id,event_time,page\r\n"
        b'bob@example.com,18,Bob,b-1,2026-01-13 08:00:00,"a\r\nb"\r\n'
        b"xada@example.com,19,Xada,x-1,2026-01-13 08:00:00,docs\r\n"
        b"'ada@example.com,20,Quote,q-1,2026-01-13 08:00:00,'=1+1\r\n"
        b"ada@example.com.au,21,Au,o-1,2226-01-13 08:00:00,docs\r\n"
    )
    assert [line.split(b",")[1] for line in after["rejected_rows"].splitlines()[1:]] == [b"ada@example.com.au"]
    assert after["verify_report"].splitlines()[1:] == [b"bob@example.com,missing,b-1,,"]
    old, new = (json.loads(each["integration_results"]) for each in (before, after))
    assert [each["email"] for each in new["failures"]] == ["ada@example.com.au"]
    assert new == {**old, "failures": new["failures"], "forgotten_entries": 1}
    assert new["failures_total"] == 2
    for path in people.folder.glob("*_2*.*"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(people.folder.glob(".*.tmp"))


def test_the_ledger_keeps_nothing_but_the_hashes(people: Program) -> None:
    assert people.run().code == 1
    before = entries(people, *ALL_TABLES)
    assert forget(people).code == 0
    after = entries(people, *ALL_TABLES)
    assert [old - new for old, new in zip(before, after, strict=True)] == [1, 0, 1, 1, 0, -2]


def test_it_says_what_it_found_what_it_did_and_what_it_does_not_do(people: Program) -> None:
    assert people.run().code == 1
    out = forget(people).out
    words = " ".join(out.split())
    assert out.startswith("ada@example.com\n")
    assert "Ledger: 1 user, 1 event and 1 failed record" in words
    assert "Deleted: 4 rows in 3 files." in words
    assert "POST /api/users/forget" in words
    assert "backups" in words


def test_nobody_is_1_and_changes_nothing(people: Program) -> None:
    assert people.run().code == 1
    before = contents(people)
    run = forget(people, "nobody@example.com")
    assert (run.code, run.err) == (
        1, "Unknown: neither the ledger nor a file of OUTPUT_DIR names this person. Nothing was deleted.\n",
    )  # fmt: skip
    assert (contents(people), entries(people, "forgotten")) == (before, [0])


def test_again_is_0_and_says_since_when(people: Program) -> None:
    assert people.run().code == 1
    assert forget(people).code == 0
    run = forget(people)
    assert run.code == 0
    assert "nothing is left to delete" in run.out


def test_who_stands_in_files_alone_and_who_in_the_ledger_alone(people: Program) -> None:
    assert people.run().code == 1
    (people.folder / "iterable_ledger.sqlite3").unlink()
    assert forget(people).code == 0
    assert entries(people, "users", "forgotten") == [0, 2]
    assert b"17,Ada" not in contents(people)["query_results"]
    for path in people.folder.glob("*_2*"):
        path.unlink()
    assert people.run("--yes").code == 1
    for path in people.folder.glob("*_2*"):
        path.unlink()
    assert "Ledger: 1 user, 1 event and 0 failed records" in " ".join(forget(people, "bob@example.com").out.split())
    assert entries(people, "users", "given_events", "forgotten") == [3, 2, 4]


def test_by_user_id(people: Program, tmp_path: Path) -> None:
    with StandIn(project_type="userId") as iterable:
        settings = {
            "ITERABLE_IDENTIFIER": "userId",
            "ITERABLE_BASE_URL": iterable.url,
            "USER_FIELDS": "email,first_name",
        }
        people.settings |= settings
        assert people.run().code == 1
        assert forget(people, "17").code == 0
        rows = contents(people)["query_results"]
        assert (b",17," in rows, b",18," in rows) == (False, True)
        run = people.run("--full", "--yes")
        assert {(each["user_id"], each["code"]) for each in run.results["failures"]} == {
            ("17", "Forgotten"), ("21", "InvalidRecord"),
        }  # fmt: skip


# Later runs -----------------------------------------------------------------------------------------------------------


def rejected(run: Finished) -> dict[tuple[int, str], str]:
    return {(each["row"], each["kind"]): each["code"] for each in run.results["failures"]}


LATER = ["", "--full --yes", "--only ADA@example.com", "--only ada@example.com --full", "--dry-run", "--baseline --yes"]


@pytest.mark.parametrize("options", LATER)
def test_later_runs_reject_the_person(people: Program, iterable: StandIn, options: str) -> None:
    assert people.run().code == 1
    assert forget(people).code == 0
    iterable.project.requests.clear()
    show(people, [(*ADA[0][:2], "Ada II", *ADA[0][3:]), ADA[1], *OTHERS])
    run = people.run(*options.split())
    assert run.code == 1
    found = {place: code for place, code in rejected(run).items() if place[0] in (1, 2)}
    assert found == {(1, "user"): "Forgotten", (1, "event"): "Forgotten", (2, "event"): "Forgotten"} or found == {
        (2, "user"): "Forgotten", (1, "event"): "Forgotten", (2, "event"): "Forgotten",
    }  # fmt: skip
    assert not [each for each in iterable.project.requests if b'"ada@example.com"' in each.body.lower()]
    assert entries(people, "past_failures") == [1]  # of another person's event


def test_they_are_known_rejections_also_with_new_events(people: Program) -> None:
    people.settings["EXIT_ON_REJECTED"] = "new"
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    for number in range(2):
        show(people, [ADA[0], (*ADA[0][:3], f"new-{number}", *ADA[0][4:]), OTHERS[0]])
        run = people.run()
        assert (run.code, run.results["status"], run.results["reasons"][0]["new"]) == (0, "partial", 0)
    assert people.run(EXIT_ON_REJECTED="always").code == 1


def test_what_can_not_be_sent_of_them_is_no_failure_of_its_own(people: Program) -> None:
    """Nothing of them enters the ledger, whatever is wrong with it."""
    bad = ("ada@example.com", "17", "Ada", "a-3", "no time", "docs")
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    show(people, [ADA[0], bad, OTHERS[0]])
    run = people.run(BAD_VALUES="omit")
    assert {each["code"] for each in run.results["failures"]} == {"Forgotten"}
    assert entries(people, "past_failures") == [0]


def test_full_and_only_and_yes_together_lift_it(people: Program, iterable: StandIn) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    run = people.run("--only", "ada@example.com", "--full", "--yes")
    assert (run.code, run.counts("users"), run.counts("events")) == (0, {"delivered": 1}, {"delivered": 1})
    assert "counts as forgotten no more" in run.err
    assert entries(people, "forgotten") == [0]
    assert people.run().code == 0


def test_the_next_address_is_rejected_too_and_an_owner_of_the_old_one_is_not_their_person(
    people: Program, iterable: StandIn
) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    iterable.project.requests.clear()
    for mode in ("hold", "move", "new"):
        show(people, [("new@example.com", *ADA[0][1:]), OTHERS[0]])
        run = people.run(EMAIL_CHANGES=mode)
        assert (run.code, {each["code"] for each in run.results["failures"]}) == (1, {"Forgotten"})
    assert sent(iterable) == []


@pytest.mark.parametrize(("person", "is_meant"), [(None, True), ("30", False)])
def test_the_address_before_tells_who_it_is_where_nothing_else_does(
    people: Program, iterable: StandIn, person: str | None, is_meant: bool
) -> None:
    """Perhaps the address is another person's since, and previous_email was never emptied."""
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    iterable.project.requests.clear()
    show(people, [("new@example.com", person, *ADA[0][2:]), OTHERS[0]])
    use_query(people, f"SELECT {COLUMNS}, 'Ada@example.com' AS previous_email FROM rows")
    run = people.run("--full", "--yes")
    assert bool(rejected(run)) == is_meant
    assert any(b"new@example.com" in each.body for each in iterable.project.requests) != is_meant


def test_all_addresses_that_the_ledger_knows(people: Program, iterable: StandIn) -> None:
    """Ada had another address before; either of them means her, in the files and later."""
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    show(people, [("lovelace@example.com", *ADA[0][1:]), OTHERS[0]])
    assert people.run(EMAIL_CHANGES="new").code == 0
    assert entries(people, "users") == [2]
    run = forget(people, "lovelace@example.com")
    assert run.code == 0
    assert entries(people, "users", "given_events", "forgotten") == [1, 1, 3]
    assert [path.read_text().count("17,Ada") for path in people.folder.glob("query_results_*")] == [0, 0]
    for address in ("ada@example.com", "lovelace@example.com", "third@example.com"):
        show(people, [(address, *ADA[0][1:]), OTHERS[0]])
        assert {each["code"] for each in people.run().results["failures"]} == {"Forgotten"}
    assert "Forgotten before, on" in forget(people, "lovelace@example.com").out  # with what was rejected since
    assert "nothing is left to delete" in forget(people, "ada@example.com").out


def test_an_address_that_is_held_back_means_the_person_whom_the_ledger_knows(
    people: Program, iterable: StandIn
) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    show(people, [("lovelace@example.com", *ADA[0][1:]), OTHERS[0]])
    assert people.run().code == 1
    run = forget(people, "lovelace@example.com")
    assert (run.code, "under another one, which is meant, too." in " ".join(run.out.split())) == (0, True)
    assert entries(people, "users", "given_events", "past_failures", "forgotten") == [1, 1, 0, 3]
    assert [path.read_text().count("17,Ada") for path in people.folder.glob("query_results_*")] == [0, 0]
    iterable.project.requests.clear()
    for address in ("ada@example.com", "lovelace@example.com", "third@example.com"):
        show(people, [(address, *ADA[0][1:]), OTHERS[0]])
        run = people.run(EMAIL_CHANGES="new")
        assert {each["code"] for each in run.results["failures"]} == {"Forgotten"}
    assert sent(iterable) == []


def test_whom_only_files_know_is_rejected_under_another_address_too(people: Program, iterable: StandIn) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run("--dry-run").code == 0
    assert forget(people).code == 0
    show(people, [("lovelace@example.com", *ADA[0][1:]), OTHERS[0]])
    run = people.run()
    assert {(each["email"], each["code"]) for each in run.results["failures"]} == {
        ("lovelace@example.com", "Forgotten")
    }


def test_an_id_of_several_addresses_says_nothing_of_an_address_that_the_ledger_does_not_know(people: Program) -> None:
    colleagues = [(f"{name}@example.com", "5", name, f"{name}-1", *ADA[0][4:]) for name in ("una", "duo")]
    show(people, [*colleagues, OTHERS[0]])
    assert people.run().code == 0
    show(people, [("tre@example.com", "5", "tre", "t-1", *ADA[0][4:]), *colleagues, OTHERS[0]])
    people.run("--dry-run")
    assert forget(people, "tre@example.com").code == 0
    assert entries(people, "users", "given_events", "forgotten") == [3, 3, 1]
    run = forget(people, "una@example.com")
    assert (run.code, "The ledger has 2 users of this person" in " ".join(run.out.split())) == (0, True)
    assert entries(people, "users", "given_events", "forgotten") == [1, 1, 4]


def test_rows_that_name_several_people_at_an_address_say_nothing_of_one(people: Program) -> None:
    una = ("una@example.com", "40", "Una", "u-1", "2026-01-13 08:00:00", "docs")
    show(people, [una, OTHERS[0]])
    assert people.run().code == 0
    at_home = [("family@example.com", person, "Una", *una[3:]) for person in ("40", "41")]
    show(people, [*at_home, OTHERS[0]])
    assert people.run("--dry-run").code == 1
    assert forget(people, "family@example.com").code == 0
    assert entries(people, "users", "given_events", "forgotten") == [2, 2, 1]


def test_who_has_the_address_now_is_meant_and_not_who_had_it(people: Program) -> None:
    show(people, [("info@example.com", *ADA[0][1:]), OTHERS[0]])
    assert people.run().code == 0
    show(people, [ADA[0], OTHERS[0]])
    assert people.run(EMAIL_CHANGES="new").code == 0
    eve = ("info@example.com", "30", "Eve", "e-1", "2026-01-13 09:00:00", "docs")
    show(people, [ADA[0], eve, OTHERS[0]])
    assert people.run(EMAIL_CHANGES="new").code == 0
    assert entries(people, "users", "given_events") == [3, 3]
    assert forget(people).code == 0
    assert entries(people, "users", "given_events") == [2, 2]
    run = people.run()
    assert {each["email"] for each in run.results["failures"]} == {"ada@example.com"}
    assert forget(people, "info@example.com").code == 0
    assert entries(people, "users", "given_events") == [1, 1]


def test_an_address_of_several_people(people: Program, iterable: StandIn) -> None:
    """It is kept back for all of them, and the others are nobody's elsewhere."""
    family = "family@example.com"
    first = (family, "40", "Una", "u-1", "2026-01-13 08:00:00", "docs")
    second = (family, "41", "Duo", "d-1", "2026-01-13 09:00:00", "docs")
    show(people, [first, OTHERS[0]])
    assert people.run().code == 0
    show(people, [second, OTHERS[0]])
    assert people.run().code == 0
    assert entries(people, "more_persons") == [1]
    run = forget(people, family)
    assert (run.code, "Several people" in run.out) == (0, True)
    assert entries(people, "users", "more_persons", "forgotten") == [1, 0, 1]
    show(people, [first, second, OTHERS[0], ("una@example.com", *first[1:3], "u-2", *first[4:])])
    run = people.run()
    assert {each["email"] for each in run.results["failures"]} == {family}


def test_who_shares_a_row_with_a_forgotten_person_waits(people: Program, iterable: StandIn) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    iterable.project.requests.clear()
    show(people, [("family@example.com", *ADA[0][1:]), ("family@example.com", "50", *OTHERS[0][2:])])
    run = people.run("--yes")
    assert {each["code"] for each in run.results["failures"]} == {"Forgotten"}
    assert sent(iterable) == []


@pytest.mark.parametrize(
    ("who", "before", "after"), [("ada@example.com", "email", "userId"), ("17", "userId", "email")]
)
def test_the_other_identifier_sends_nothing_of_them(
    people: Program, iterable: StandIn, who: str, before: str, after: str
) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run(ITERABLE_IDENTIFIER=before).code == 0
    people.settings["ITERABLE_IDENTIFIER"] = before
    assert forget(people, who).code == 0
    iterable.project.requests.clear()
    run = people.run("--full", "--yes", ITERABLE_IDENTIFIER=after)
    assert {(each["row"], each["kind"]) for each in run.results["failures"] if each["code"] == "Forgotten"} == {
        (1, "user"), (1, "event"),
    }  # fmt: skip
    bodies = b"".join(each.body for each in iterable.project.requests)
    assert (b"Ada" in bodies, b"Bob" in bodies) == (False, True)


@pytest.mark.parametrize(
    ("identifier", "other", "who"), [("email", "userId", "17"), ("userId", "email", "ada@example.com")]
)
def test_the_other_identifier_also_where_the_rows_were_known_as_a_whole(
    people: Program, iterable: StandIn, identifier: str, other: str, who: str
) -> None:
    show(people, [("ada@example.com", *ADA[0][1:]), OTHERS[0]])
    for _ in range(2):
        assert people.run(ITERABLE_IDENTIFIER=identifier).code == 0
    assert entries(people, "row_digests") == [2]
    assert people.run("--forget", who, "--yes", ITERABLE_IDENTIFIER=other).code == 0
    run = people.run(ITERABLE_IDENTIFIER=identifier)
    assert (run.code, rejected(run)) == (1, {(1, "user"): "Forgotten"})  # Iterable has the event


def test_an_address_is_no_user_id_and_it_says_so(people: Program) -> None:
    assert people.run(ITERABLE_IDENTIFIER="userId").code == 1
    people.settings["ITERABLE_IDENTIFIER"] = "userId"
    run = forget(people)
    assert (run.code, "by their user id and not by their address" in run.err) == (1, True)


def test_another_key_knows_nobody_and_a_name_keeps_them(people: Program) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    key, other = people.settings["ITERABLE_API_KEY"], "another-key-0123456789abcdef0123456"
    people.settings["ITERABLE_API_KEY"] = other
    run = forget(people)
    assert "The ledger also knows 1 other project" in " ".join(run.out.split())
    assert entries(people, "users") == [2]
    people.settings |= {"ITERABLE_API_KEY": key, "ITERABLE_PROJECT": "shop"}
    assert forget(people).code == 0
    assert entries(people, "users") == [1]
    people.settings["ITERABLE_API_KEY"] = other
    run = people.run("--dry-run")
    assert {each["code"] for each in run.results["failures"]} == {"Forgotten"}


# How ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "code"), [(b"yes\n", 0), (b"y\n", 65), (b"\n", 65)])
def test_it_asks_on_a_terminal(people: Program, answer: bytes, code: int) -> None:
    assert people.run().code == 1
    before = contents(people)
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    run = people.wait_for(people.start("--forget", "ada@example.com", stdin=theirs))
    os.close(theirs)
    os.close(ours)
    assert run.code == code
    assert "query_results" in run.out
    assert (contents(people) == before, entries(people, "users")) == (code == 65, [5 if code == 65 else 4])


def test_the_command_line(people: Program) -> None:
    run = people.run("--forget", "ada@example.com")
    assert (run.code, "without a terminal, add --yes" in run.err) == (2, True)
    for option in (["--dry-run"], ["--full"], ["--only", "x"], ["--limit", "1"], ["--since", "all"], ["--sandbox"]):
        run = people.run("--forget", "ada@example.com", "--yes", *option)
        assert (run.code, f"can't be used with {option[0]}" in run.err) == (2, True)
    assert not people.folder.joinpath("iterable_ledger.sqlite3").exists()


def test_json(people: Program) -> None:
    assert people.run().code == 1
    run = people.run("--forget", "ada@example.com", "--yes", "--json")
    found = json.loads(run.out)
    assert [(each["name"].split("_2")[0], each["count"], each["problem"]) for each in found["files"]] == [
        ("query_results", 2, None), ("rejected_rows", 1, None), ("integration_results", 1, None),
    ]  # fmt: skip
    assert found["ledger"] == {"users": 1, "events": 1, "failures": 1, "forgotten_on": None}
    assert (found["who"], found["is_done"], found["exit_code"]) == ("ada@example.com", True, 0)
    assert people.run("--forget", "ada@example.com", "--yes", "--quiet").out == ""


def test_explain_says_when_and_in_which_file(people: Program) -> None:
    assert people.run().code == 1
    assert forget(people).code == 0
    show(people, [OTHERS[0]])
    run = people.run("--explain", "ada@example.com", "--json")
    found = json.loads(run.out)
    assert (run.code, found["is_known"]) == (0, True)
    assert str(people.folder / "iterable_ledger.sqlite3") in found["notes"][0]
    assert found["notes"][0].startswith(f"Forgotten on {found['ledger']['forgotten_on']} (--forget)")


def test_verify_counts_them_as_forgotten(people: Program) -> None:
    assert people.run().code == 1
    assert forget(people).code == 0
    run = people.run("--verify", "all", "--json")
    counts = json.loads(run.out)["counts"]
    assert (run.code, counts["users"]["forgotten"], counts["events"]["forgotten"]) == (0, 1, 2)
    assert (counts["users"]["same"], counts["users"]["missing"]) == (4, 0)
    run = people.run("--verify", "--only", "ada@example.com")
    assert (run.code, "by Iterable or by --forget" in run.err) == (75, True)


@pytest.mark.parametrize("identifier", ["email", "userId"])
def test_the_log_knows_nobody(people: Program, identifier: str) -> None:
    ada = ("ada@example.com", "user-17", *ADA[0][2:])
    show(people, [ada, ("ada@example.com", "user-17", *ADA[1][2:]), OTHERS[0]])
    with StandIn(project_type=identifier) as iterable:
        people.settings |= {"ITERABLE_IDENTIFIER": identifier, "ITERABLE_BASE_URL": iterable.url}
        who = ada[0] if identifier == "email" else ada[1]
        for options in ((), ("--only", who), (f"--only={who}", "--full")):
            assert people.run(*options).code in (1, 65)
        assert forget(people, who).code == 0
        assert people.run().code == 1
    log = (people.folder / "iterable_integration.log").read_text().lower()
    assert (ada[0] in log, ada[1] in log, "called with: ['--" in log) == (False, False, True)


def test_nothing_of_them_is_left_in_the_file_of_the_ledger(people: Program) -> None:
    """Nor in free pages, nor beside it."""
    show(people, [ADA[0]])
    assert people.run().code == 0
    path = people.folder / "iterable_ledger.sqlite3"
    with sqlite3.connect(path) as database:
        ((fields,),) = database.execute("SELECT fields FROM users").fetchall()
        ((key, fingerprint),) = database.execute("SELECT key, fingerprint FROM given_events").fetchall()
    database.close()
    show(people, [ADA[0], *OTHERS])
    assert people.run().code == 1
    before = path.read_bytes()
    assert all(each in before for each in (fields, key, fingerprint))
    assert forget(people).code == 0
    after = path.read_bytes()
    assert not any(each in after for each in (fields, key, fingerprint))
    assert list(people.folder.glob("iterable_ledger*")) in (
        [path.with_suffix(".lock"), path],
        [path, path.with_suffix(".lock")],
    )


# Faults ---------------------------------------------------------------------------------------------------------------


def test_killed_before_all_files_were_written_it_goes_on(people: Program) -> None:
    """The ledger has forgotten; a file is unfinished, and another was not begun. Another address is known again."""
    show(people, [ADA[0], *OTHERS])
    assert people.run().code == 1
    show(people, [("lovelace@example.com", *ADA[0][1:]), *OTHERS])
    assert people.run(EMAIL_CHANGES="new").code == 1
    before = {path: path.read_bytes() for path in people.folder.glob("*_2*")}
    assert forget(people, "lovelace@example.com").code == 0
    done = {path: path.read_bytes() for path in before}
    csv = people_files(people, "query_results_*")[0]
    for path, content in before.items():
        path.write_bytes(content)
    unfinished = csv.with_name(f".{csv.name}.0123abcd.tmp")
    unfinished.write_bytes(before[csv][:100])
    run = forget(people, "lovelace@example.com")
    assert run.code == 0
    assert "Forgotten before, on" in run.out
    assert {path: path.read_bytes() for path in before} == done
    assert not unfinished.exists()


def people_files(program: Program, pattern: str) -> list[Path]:
    return sorted(program.folder.glob(pattern))


def test_what_can_not_be_written_stays_as_it_is_and_is_named(people: Program) -> None:
    """The disk has no room for the larger files."""
    others: list[Row] = [(f"{n}@example.com", str(n), "x" * 400, f"e{n}", *ADA[0][4:]) for n in range(100, 2000)]
    show(people, [ADA[0], *others])
    assert people.run("--dry-run").code == 0
    (csv,) = people_files(people, "query_results_*")
    before = csv.read_bytes()
    run = people.wait_for(
        people.start("--forget", "ada@example.com", "--yes", preexec_fn=lambda: limit_files(len(before) // 2))
    )
    assert run.code == 73
    assert f"{csv.name} stays as it is (File too large); look after it, and run --forget again." in run.err
    assert csv.read_bytes() == before
    assert not list(people.folder.glob(".*.tmp"))
    run = forget(people)
    assert (run.code, b"Ada@Example.com" in csv.read_bytes()) == (0, False)
    assert len(csv.read_bytes().split(b"@example.com")) == 1901


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_links_are_not_followed_and_a_second_name_is_told(people: Program, tmp_path: Path) -> None:
    assert people.run().code == 1
    (csv,) = people_files(people, "query_results_*")
    elsewhere = tmp_path / "elsewhere.csv"
    elsewhere.write_bytes(csv.read_bytes())
    link = people.folder / "query_results_20200101_000000.csv"
    link.symlink_to(elsewhere)
    second = people.folder / "copy of results.csv"
    os.link(csv, second)
    before = elsewhere.read_bytes()
    run = forget(people)
    assert run.code == 73
    assert "query_results_20200101_000000.csv stays as it is (it is a symbolic link, which is not followed)" in run.err
    assert f"{csv.name} has a second name (a hard link)" in " ".join(run.out.split())
    assert (elsewhere.read_bytes(), link.is_symlink()) == (before, True)
    assert b"17,Ada" in second.read_bytes()
    assert b"17,Ada" not in csv.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("query_results_20200101_000000.csv", b'email\nada@example.com,"no end\n', "unexpected end of data"),
        ("integration_results_20200101_000000.json", b"[]", "list indices"),
        ("preview_20200101_000000.ndjson", b"{", "Expecting property name"),
    ],
)
def test_a_file_that_is_not_as_ours_stays(people: Program, name: str, content: bytes, problem: str) -> None:
    assert people.run().code == 1
    (people.folder / name).write_bytes(content)
    people.settings["TZ"] = "UTC"  # so that the last results are those of the run
    run = people.wait_for(people.start("--forget", "ada@example.com", "--yes"))
    assert run.code == 73
    assert f"{name} stays as it is ({problem}" in run.err
    assert (people.folder / name).read_bytes() == content
    assert entries(people, "users") == [4]


def test_bytes_that_are_not_utf_8_and_line_breaks_of_others_stay(people: Program) -> None:
    csv = people.folder / "query_results_20200101_000000.csv"
    rest = b'\xef\xbb\xbfpage,email\n"a\rb\n\xff,""x""",bob@example.com\nc,x\r\n'
    csv.write_bytes(rest + b'"two\nlines",ada@example.com\n,"last@example.com"')
    csv.chmod(0o640)
    assert forget(people).code == 0
    assert csv.read_bytes() == rest + b',"last@example.com"'
    assert csv.stat().st_mode & 0o777 == 0o640


def test_a_damaged_ledger_is_left_alone(people: Program) -> None:
    assert people.run().code == 1
    path = people.folder / "iterable_ledger.sqlite3"
    path.write_bytes(b"damaged")
    before = contents(people)
    run = forget(people)
    assert (run.code, "is damaged" in run.err) == (65, True)
    assert (contents(people), path.read_bytes()) == (before, b"damaged")


def test_with_a_store_they_are_forgotten_on_every_machine(people: Program, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    store = tmp_path / "store"
    store.mkdir()
    people.settings["STATE_URL"] = f"file://{store}"
    assert people.run().code == 1
    assert forget(people).code == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = people.run("--dry-run", OUTPUT_DIR=str(elsewhere))
    (path,) = elsewhere.glob("integration_results_*.json")
    codes = [each["code"] for each in json.loads(path.read_text())["failures"]]
    assert (run.code, sorted(codes)) == (1, ["Forgotten"] * 3 + ["InvalidRecord"])


@pytest.mark.parametrize("who", ["docs", "17", "2026-01-13 08:00:00"])
def test_what_is_no_address_means_no_other_cells(people: Program, who: str) -> None:
    assert people.run().code == 1
    before = contents(people)
    assert forget(people, who).code == 1
    assert contents(people) == before


def test_nobody_at_all_is_2(people: Program) -> None:
    run = people.run("--forget", " ", "--yes")
    assert (run.code, "--forget: must be an e-mail address, or a userId" in run.err) == (2, True)


def test_rows_whose_address_is_none(people: Program) -> None:
    """The ledger can't know them, and no run sends them."""
    show(people, [("ada@", "17", *ADA[0][2:]), OTHERS[0]])
    assert people.run().code == 1
    run = forget(people, "ADA@")
    assert (run.code, "This is not an e-mail address" in run.out) == (0, True)
    assert b"ada@" not in contents(people)["query_results"] + contents(people)["rejected_rows"]
    assert entries(people, "users", "forgotten") == [1, 0]


def test_a_user_id_is_not_looked_for_among_ids_of_rows(program: Program, tmp_path: Path) -> None:
    with StandIn(project_type="userId") as iterable:
        make_table(tmp_path / "users.db", "id,user_id,first_name", [("2", "1", "Una"), ("1", "2", "Duo")])
        use_query(program, "SELECT * FROM rows")
        program.settings |= {
            "ITERABLE_IDENTIFIER": "userId", "ITERABLE_BASE_URL": iterable.url, "USER_FIELDS": "first_name",
            "DATABASE_URL": f"sqlite:///{tmp_path}/users.db",
        }  # fmt: skip
        assert program.run("--dry-run").code == 0
        assert forget(program, "2").code == 0
        assert contents(program)["query_results"] == b"id,user_id,first_name\r\n2,1,Una\r\n"
        assert b"Duo" not in contents(program)["preview"]


def test_the_person_is_found_by_id_in_files_of_the_same_query_alone(people: Program) -> None:
    """`id` is guessed to say who somebody is, and that of another query is another kind of id."""
    use_query(people, "SELECT email, user_id AS id, first_name, event_id, event_time, page FROM rows")
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    show(people, [("held@example.com", *ADA[0][1:]), OTHERS[0]])
    assert people.run().code == 1
    (people.folder / "query_results_20200101_000000.csv").write_bytes(b"email,id\r\nother@example.com,17\r\n")
    run = forget(people)
    assert (run.code, "repeat this with held@example.com" in " ".join(run.out.split())) == (0, True)
    left = [path.read_bytes() for path in people_files(people, "query_results_*")]
    assert [b",17" in each for each in left] == [True, False, False]
    assert b"held@" not in left[2]
    results = [json.loads(path.read_text()) for path in people_files(people, "integration_results_*")]
    assert [each["email_changes"] for each in results] == [[], []]
    assert results[1]["forgotten_entries"] == 1


def test_a_new_key_is_told_of_those_whom_it_does_not_know(people: Program) -> None:
    show(people, [ADA[0], OTHERS[0]])
    assert people.run().code == 0
    assert forget(people).code == 0
    assert "does not know" not in people.run("--dry-run").err
    run = people.run("--dry-run", ITERABLE_API_KEY="another-key-0123456789abcdef0123456")
    assert (run.code, "does not know 1 person whom --forget has forgotten under another one" in run.err) == (65, True)


def test_while_a_run_is_active_it_is_75(people: Program) -> None:
    assert people.run().code == 1
    before = contents(people)
    with hold_lock(people.folder / "iterable_ledger.lock"):
        run = forget(people)
    assert (run.code, "Another run is active" in run.err) == (75, True)
    assert (contents(people), entries(people, "users")) == (before, [5])


def test_the_hash_outlives_all_other_entries(tmp_path: Path) -> None:
    with open_both(tmp_path, now=1768298400) as opened:
        opened.ledger.forget(opened.ledger.forgotten.find("ada@example.com"))
    with open_both(tmp_path, now=1768298400 + 5000 * 86_400) as opened:
        opened.ledger.begin_run("20390101_000000", 1768298400 + 5000 * 86_400, "query.sql")
        opened.refresh()
        opened.ledger.commit()
        assert opened.ledger.forgotten.find("ada@example.com").forgotten_on == date(2026, 1, 13)
