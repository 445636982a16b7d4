"""People, not records: what a run sends to a person, over several runs, as the stand-in then has it."""

from __future__ import annotations

import os
import pty
from pathlib import Path
from typing import Any

import pytest

from pipeline.sandbox import Fault, StandIn
from tests.job import records_in, requests_of
from tests.program import Finished, Program, make_table, use_query

ADA, BOB, CY = "ada@example.com", "bob@example.com", "cy@example.com"
COLUMNS = "user_id, email, plan, city, page, event_time"
MOVING = f"{COLUMNS}, previous_email"
GIVEN = f"{COLUMNS}, event_id"
Row = tuple[Any, ...]


@pytest.fixture
def job(program: Program, tmp_path: Path) -> Program:
    """A query of users with a plan, a city, and an event each."""
    program.settings |= {"USER_FIELDS": "plan,city", "EVENT_FIELDS": "page", "PUSH_MODE": "single"}
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    return program


def run(job: Program, rows: list[Row], *arguments: str, columns: str = COLUMNS, **settings: Any) -> Finished:
    path = job.folder.parent / "users.db"
    path.unlink(missing_ok=True)
    make_table(path, columns, rows)
    return job.run(*arguments, **settings)


def row(
    person: int | None, email: str, plan: str = "pro", city: str | None = "Paris", page: str | None = "home"
) -> Row:
    return (person, email, plan, city, page, "2026-01-13 08:45:12" if page else None)


def with_id(row: Row, columns: str) -> Row:
    """The row, with an event id made of its page where these columns have one."""
    return (*row, row[4]) if columns is GIVEN else row


def updates(iterable: StandIn, since: int = 0) -> list[dict[str, Any]]:
    """The user updates that arrived, singly or in bulk, but for the first ones."""
    paths = ("/api/users/update", "/api/users/bulkUpdate")
    bodies = [each.body for path in paths for each in requests_of(iterable, path)]
    return [record for body in bodies for record in records_in(body)][since:]


@pytest.fixture
def moving(job: Program, iterable: StandIn) -> Program:
    """An e-mail based project, whose addresses Iterable changes; the query has the address before the present one."""
    iterable.project.project_type = "email"
    job.settings["EMAIL_CHANGES"] = "move"
    use_query(job, f"SELECT {MOVING} FROM rows")
    return job


def only(run: Finished, code: int, **counts: dict[str, int]) -> None:
    assert (run.code, {kind: run.counts(kind) for kind in counts}) == (code, counts), run.err


# Only the fields that changed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_an_update_of_a_known_user_has_only_the_fields_that_changed(job: Program, iterable: StandIn, mode: str) -> None:
    run(job, [row(1, ADA)], PUSH_MODE=mode)
    only(run(job, [row(1, ADA, plan="free")], PUSH_MODE=mode), 0, users={"delivered": 1}, events={"unchanged": 1})
    assert updates(iterable) == [
        {"email": ADA, "dataFields": {"city": "Paris", "plan": "pro"}},
        {"email": ADA, "dataFields": {"plan": "free"}},
    ]
    assert iterable.project.users[ADA]["dataFields"] == {"city": "Paris", "plan": "free"}


def test_values_that_change_back_are_sent_each_time(job: Program, iterable: StandIn) -> None:
    for plan in ("a", "b", "a"):
        run(job, [row(1, ADA, plan=plan)])
    assert [each["dataFields"] for each in updates(iterable)] == [
        {"city": "Paris", "plan": "a"},
        {"plan": "b"},
        {"plan": "a"},
    ]


def test_fields_that_leave_the_mapping_and_return_unchanged_send_nothing(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    only(run(job, [row(1, ADA)], USER_FIELDS="plan"), 0, users={"unchanged": 1})
    only(run(job, [row(1, ADA)]), 0, users={"unchanged": 1})
    only(run(job, [row(1, ADA)], USER_FIELDS="plan,city,city:town"), 0, users={"delivered": 1})
    assert updates(iterable, 1) == [{"email": ADA, "dataFields": {"town": "Paris"}}]


def test_a_null_says_nothing_under_omit_and_the_known_value_stays_known(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    only(run(job, [row(1, ADA, city=None)]), 0, users={"unchanged": 1})
    only(run(job, [row(1, ADA)]), 0, users={"unchanged": 1})
    only(run(job, [row(1, ADA, city=None)], NULL_VALUES="clear"), 0, users={"delivered": 1})
    assert updates(iterable, 1) == [{"email": ADA, "dataFields": {"city": None}}]


def test_another_rule_for_objects_is_no_change(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)], USER_FIELDS="plan:a.plan,city:a.city")
    settings = {"USER_FIELDS": "plan:a.plan,city:a.city", "MERGE_NESTED": "true"}
    only(run(job, [row(1, ADA)], **settings), 0, users={"unchanged": 1})
    run(job, [row(1, ADA, plan="free")], **settings)
    assert updates(iterable, 1) == [
        {"email": ADA, "dataFields": {"a": {"city": "Paris", "plan": "free"}}, "mergeNestedObjects": True}
    ]


def test_full_sends_all_fields_again(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    only(run(job, [row(1, ADA)], "--full", "users", "--yes"), 0, users={"delivered": 1}, events={"unchanged": 1})
    assert updates(iterable, 1) == [{"email": ADA, "dataFields": {"city": "Paris", "plan": "pro"}}]


def test_after_a_lost_answer_the_fields_of_that_request_are_sent_again_and_no_others(
    job: Program, iterable: StandIn
) -> None:
    run(job, [row(1, ADA)])
    iterable.inject(Fault(path="/api/users/update", disconnect=True, store=True))
    assert run(job, [row(1, ADA, plan="free")], MAX_RETRIES="1").code == 75
    iterable.clear_faults()
    only(run(job, [row(1, ADA, plan="free")]), 0, users={"delivered": 1})
    assert [each["dataFields"] for each in updates(iterable, 1)] == [{"plan": "free"}, {"plan": "free"}]


def test_two_queries_for_the_same_people_send_nothing_of_each_other(job: Program, iterable: StandIn) -> None:
    users = job.folder.parent / "users.sql"
    users.write_text("SELECT user_id, email, plan FROM rows")
    other = {"QUERY_FILE": str(users), "USER_FIELDS": "plan", "EVENT_FIELDS": "-"}
    run(job, [row(1, ADA)], USER_FIELDS="-")
    for _ in range(2):
        run(job, [row(1, ADA)], **other)
        run(job, [row(1, ADA, page="next")], USER_FIELDS="-")
    assert [each["dataFields"] for each in updates(iterable)] == [{}, {"plan": "pro"}]


# Changed addresses ----------------------------------------------------------------------------------------------------

NEW = "ada@example.org"


def test_a_changed_address_is_held_and_the_others_go_on(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA), row(2, BOB)])
    again = run(job, [row(1, NEW), row(1, NEW, page="new"), row(2, BOB, plan="free")])
    only(again, 1, users={"delivered": 1, "rejected": 1}, events={"unchanged": 2, "rejected": 1})
    assert {each["code"] for each in again.results["failures"]} == {"EmailChanged"}
    assert again.results["email_changes"] == [{"row": 1, "person": "1", "done": "held"}]
    assert set(iterable.project.users) == {ADA, BOB}
    assert "1 person held" in again.out


def test_a_held_address_that_changes_back_is_sent_as_before(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    run(job, [row(1, NEW)])
    only(run(job, [row(1, ADA, page="new")]), 0, users={"unchanged": 1}, events={"delivered": 1})


def test_a_new_profile_keeps_what_was_accepted_under_the_old_address(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    for _ in range(2):
        again = run(job, [row(1, NEW), row(1, NEW, page="new")], EMAIL_CHANGES="new")
    only(again, 0, users={"unchanged": 1}, events={"unchanged": 2})
    assert set(iterable.project.users) == {ADA, NEW}
    assert sorted(each["email"] for each in iterable.project.events.values()) == [ADA, NEW]


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_an_address_is_moved_in_iterable_and_no_old_event_is_tracked_again(
    moving: Program, iterable: StandIn, mode: str
) -> None:
    run(moving, [(*row(1, ADA), None), (*row(2, BOB), None)], columns=MOVING, PUSH_MODE=mode)
    rows = [(*row(1, NEW, plan="free"), ADA), (*row(1, NEW, plan="free", page="new"), ADA), (*row(2, BOB), None)]
    again = run(moving, [rows[0], rows[2]], columns=MOVING, PUSH_MODE=mode)
    only(again, 0, users={"delivered": 1, "unchanged": 1}, events={"unchanged": 2})
    assert again.results["email_changes"] == [{"row": 1, "person": "1", "done": "moved"}]
    assert set(iterable.project.users) == {NEW, BOB}
    assert iterable.project.users[NEW]["dataFields"] == {"city": "Paris", "plan": "free"}
    assert updates(iterable, 2) == [{"email": NEW, "dataFields": {"plan": "free"}}]
    third = run(moving, rows, columns=MOVING, PUSH_MODE=mode)
    only(third, 0, users={"unchanged": 2}, events={"delivered": 1, "unchanged": 2})
    assert third.results["email_changes"] == []
    assert len(iterable.project.events) == 3


def test_after_a_move_an_event_that_is_sent_again_keeps_its_id(moving: Program, iterable: StandIn) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    run(moving, [(*row(1, NEW), ADA)], columns=MOVING)
    run(moving, [(*row(1, NEW), ADA)], "--full", "events", "--yes", columns=MOVING)
    assert len(iterable.project.events) == 1


@pytest.mark.parametrize("arrives", [True, False])
def test_a_lost_answer_to_a_move_is_told_from_a_refusal_by_reading_back(
    moving: Program, iterable: StandIn, arrives: bool
) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    fault = {"disconnect": True, "store": True} if arrives else {"status": 503}
    iterable.inject(Fault(path="/api/users/updateEmail", **fault))
    moved = run(moving, [(*row(1, NEW), ADA)], columns=MOVING, MAX_RETRIES="1")
    assert moved.code == (0 if arrives else 75), moved.err
    iterable.clear_faults()
    only(run(moving, [(*row(1, NEW), ADA)], columns=MOVING), 0, users={"unchanged": 1})
    assert set(iterable.project.users) == {NEW}


def test_an_address_that_iterable_does_not_know_makes_a_new_profile_with_all_fields(
    moving: Program, iterable: StandIn
) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    iterable.project.users.pop(ADA)
    found = run(moving, [(*row(1, NEW), ADA)], columns=MOVING)
    only(found, 0, users={"delivered": 1}, events={"unchanged": 1})
    assert [each["done"] for each in found.results["email_changes"]] == ["new"]
    assert iterable.project.users[NEW]["dataFields"] == {"city": "Paris", "plan": "pro"}


def test_an_address_that_exists_already_is_held(moving: Program, iterable: StandIn) -> None:
    run(moving, [(*row(1, ADA), None), (*row(2, NEW), None)], columns=MOVING)
    held = run(moving, [(*row(1, NEW), ADA)], columns=MOVING)
    assert held.code == 1
    assert [each["done"] for each in held.results["email_changes"]] == ["held"]
    assert set(iterable.project.users) == {ADA, NEW}


def test_a_previous_address_that_the_ledger_does_not_know_is_held(moving: Program, iterable: StandIn) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    held = run(moving, [(*row(1, NEW), BOB)], columns=MOVING)
    assert (held.code, [each["done"] for each in held.results["email_changes"]]) == (1, ["held"])
    assert iterable.project.request_counts["/api/users/updateEmail"] == 0


def test_people_who_are_known_by_user_id_move_without_their_old_address(moving: Program, iterable: StandIn) -> None:
    use_query(moving, f"SELECT {COLUMNS} FROM rows")
    moving.settings["SEND_USER_ID"] = "true"
    run(moving, [row(1, ADA)])
    assert updates(iterable) == [{"email": ADA, "userId": "1", "dataFields": {"city": "Paris", "plan": "pro"}}]
    only(run(moving, [row(1, NEW, plan="free")]), 0, users={"delivered": 1}, events={"unchanged": 1})
    assert updates(iterable, 1) == [{"email": NEW, "dataFields": {"plan": "free"}}]
    assert set(iterable.project.users) == {NEW}


def test_users_that_are_known_without_their_id_are_sent_it_alone(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    only(run(job, [row(1, ADA)], SEND_USER_ID="true"), 0, users={"delivered": 1}, events={"unchanged": 1})
    assert updates(iterable, 1) == [{"email": ADA, "userId": "1", "dataFields": {}}]
    only(run(job, [row(1, ADA)], SEND_USER_ID="true"), 0, users={"unchanged": 1})


def test_an_address_that_becomes_another_persons_is_held_for_both(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA), row(2, BOB)])
    held = run(job, [row(1, NEW), row(2, ADA)])
    only(held, 1, users={"rejected": 2})
    assert iterable.project.users[ADA]["dataFields"] == {"city": "Paris", "plan": "pro"}


def test_a_row_number_is_no_person(job: Program, iterable: StandIn) -> None:
    use_query(job, "SELECT row_number() OVER () AS id, email, plan, city, page, event_time FROM rows")
    rows = [row(None, f"u{number % 10}@example.com", page=f"p{number}") for number in range(30)]
    only(run(job, rows), 0, users={"delivered": 10}, events={"delivered": 30})
    only(run(job, rows[1:] + rows[:1]), 0, users={"unchanged": 10}, events={"unchanged": 30})


def test_two_people_at_one_address_are_named_and_stay_one_user(job: Program, iterable: StandIn) -> None:
    shared = run(job, [row(1, ADA), row(2, ADA, page="other"), row(3, BOB)])
    assert shared.results["shared_addresses"] == [{"rows": [1, 2]}]
    assert "1 address with more than one person" in shared.out
    assert set(iterable.project.users) == {ADA, BOB}


def test_rows_that_disagree_are_listed(job: Program, iterable: StandIn) -> None:
    found = run(job, [row(1, ADA), row(1, ADA, plan="free", page="other")])
    assert found.results["merged_users_rows"] == [{"rows": [1, 2], "fields": ["plan"]}]


# Event ids ------------------------------------------------------------------------------------------------------------

WITH_IDS = "email, event_id, event_name, page, event_time"
FIRST, SECOND = "2026-01-13 08:45:12", "2026-01-13 09:00:00"


@pytest.fixture
def events(job: Program) -> Program:
    use_query(job, f"SELECT {WITH_IDS} FROM rows")
    job.settings["USER_FIELDS"] = "-"
    return job


@pytest.mark.parametrize(
    "other",
    [(BOB, "e1", "visit", "home", FIRST), (ADA, "e1", "leave", "home", FIRST), (ADA, "e1", "visit", "home", SECOND)],
)
def test_events_of_one_id_that_can_not_both_be_meant_are_rejected(
    events: Program, iterable: StandIn, other: Row
) -> None:
    rows = [(ADA, "e1", "visit", "home", FIRST), other, (BOB, "e2", "visit", "home", FIRST)]
    found = run(events, rows, columns=WITH_IDS)
    assert found.counts("events") == {"delivered": 1, "rejected": 2}
    assert [(each["row"], each["code"]) for each in found.results["failures"]] == [
        (1, "EventIdConflict"),
        (2, "EventIdConflict"),
    ]
    assert set(iterable.project.events) == {"e2"}


def test_what_was_accepted_stays_unchanged_in_a_conflict(events: Program, iterable: StandIn) -> None:
    run(events, [(ADA, "e1", "visit", "home", FIRST)], columns=WITH_IDS)
    rows = [(ADA, "e1", "visit", "home", FIRST), (BOB, "e1", "visit", "home", FIRST)]
    assert run(events, rows, columns=WITH_IDS, PERSON_COLUMN="email").counts("events") == {
        "unchanged": 1,
        "rejected": 1,
    }


def test_an_id_of_another_person_in_a_later_run_is_rejected(events: Program, iterable: StandIn) -> None:
    run(events, [(ADA, "e1", "visit", "home", FIRST)], columns=WITH_IDS)
    found = run(events, [(BOB, "e1", "visit", "other", SECOND)], columns=WITH_IDS)
    assert found.counts("events") == {"rejected": 1}
    assert iterable.project.events["e1"]["email"] == ADA


def test_the_same_event_at_another_time_is_an_update_in_a_later_run(events: Program, iterable: StandIn) -> None:
    run(events, [(ADA, "e1", "visit", "home", FIRST)], columns=WITH_IDS)
    assert run(events, [(ADA, "e1", "visit", "home", SECOND)], columns=WITH_IDS).counts("events") == {"delivered": 1}


def test_where_nobody_says_who_it_is_the_same_event_under_another_address_is_unchanged(
    events: Program, iterable: StandIn
) -> None:
    run(events, [(ADA, "e1", "visit", "home", FIRST)], columns=WITH_IDS)
    assert run(events, [(NEW, "e1", "visit", "home", FIRST)], columns=WITH_IDS).counts("events") == {"unchanged": 1}


def test_of_rows_that_differ_in_fields_the_last_one_counts_as_a_correction(events: Program, iterable: StandIn) -> None:
    rows = [
        (ADA, "e1", "visit", "home", FIRST),
        (ADA, "e1", "visit", "shop", FIRST),
        (ADA, "e1", "visit", "shop", FIRST),
    ]
    found = run(events, rows, columns=WITH_IDS)
    assert (found.results["counts"]["corrected_events"], found.results["counts"]["duplicate_events"]) == (1, 1)
    assert iterable.project.events["e1"]["dataFields"] == {"page": "shop"}


# userId projects, bad values, who is gone -----------------------------------------------------------------------------


def test_a_project_by_user_id_gets_the_addresses(job: Program, iterable: StandIn) -> None:
    del job.settings["USER_FIELDS"]
    use_query(job, "SELECT user_id, email, plan AS plan_type, page, event_time FROM rows")
    rows = [row(1, ADA), row(2, "not an address"), (3, None, "pro", None, None, None)]
    found = run(job, rows, ITERABLE_IDENTIFIER="userId", NULL_VALUES="clear")
    assert found.counts("users") == {"delivered": 3}
    assert [each["dataFields"] for each in sorted(updates(iterable), key=lambda each: each["userId"])] == [
        {"email": ADA, "plan_type": "pro"},
        {"plan_type": "pro"},
        {"plan_type": "pro"},
    ]
    assert found.results["omitted_values"] == [
        {"field": "email", "reason": "email is not a valid email address", "count": 1, "rows": [2]}
    ]


def test_a_bad_value_is_left_out_and_the_rest_is_sent(job: Program, iterable: StandIn) -> None:
    fields = {"USER_FIELDS": "plan,city:city:integer", "BAD_VALUES": "omit", "EXIT_ON_REJECTED": "new"}
    found = run(job, [row(1, ADA, city="many"), row(2, BOB, city="7")], **fields)
    only(found, 1, users={"delivered": 2}, events={"delivered": 2})
    assert [(each["field"], each["count"], each["rows"]) for each in found.results["omitted_values"]] == [
        ("city", 1, [1])
    ]
    assert iterable.project.users[ADA]["dataFields"] == {"plan": "pro"}
    assert run(job, [row(1, ADA, city="many"), row(2, BOB, city="7")], **fields).code == 0


def test_who_is_gone_is_counted_after_a_full_read(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA), row(2, BOB), row(3, CY)])
    found = run(job, [row(1, ADA), row(3, CY)])
    assert found.results["counts"]["gone_users"] == 1
    assert "1 user known from earlier runs no longer found" in found.out
    assert run(job, [row(1, ADA)], "--limit", "1").results["counts"]["gone_users"] is None


@pytest.mark.parametrize("changes", ["hold", "new"])
def test_who_has_another_address_is_not_gone(job: Program, changes: str) -> None:
    run(job, [row(1, ADA), row(2, BOB)])
    for _ in range(2):
        found = run(job, [row(1, ADA), row(2, CY)], EMAIL_CHANGES=changes)
        assert found.results["counts"]["gone_users"] == 0


def test_who_takes_the_address_of_somebody_who_has_another_one_counts_once(job: Program) -> None:
    run(job, [row(1, ADA), row(2, BOB), row(3, CY)])
    assert run(job, [row(1, NEW), row(4, ADA), row(2, BOB)]).results["counts"]["gone_users"] == 1


# One person -----------------------------------------------------------------------------------------------------------


def test_only_takes_the_rows_of_one_person(job: Program, iterable: StandIn) -> None:
    found = run(job, [row(1, ADA), row(2, "Bob@example.com"), row(3, CY)], "--only", BOB)
    only(found, 0, users={"delivered": 1}, events={"delivered": 1})
    assert (found.results["counts"]["rows"], set(iterable.project.users)) == (1, {BOB})
    assert run(job, [row(1, ADA)], "--only", "nobody@example.com").code == 1


def test_a_change_that_was_made_by_hand_is_entered_for_one_person(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA), row(2, BOB)])
    moved_by_hand(iterable)
    rows = [row(1, NEW), row(1, NEW, page="new"), row(2, "bob@example.org")]
    assert run(job, rows, "--baseline", "--only", NEW, "--yes").code == 0
    again = run(job, rows)
    only(again, 1, users={"unchanged": 1, "rejected": 1}, events={"unchanged": 2, "delivered": 1})
    assert again.results["email_changes"] == [{"row": 3, "person": "2", "done": "held"}]


def moved_by_hand(iterable: StandIn) -> None:
    iterable.project.users[NEW] = {**iterable.project.users.pop(ADA), "email": NEW}


@pytest.mark.parametrize("columns", [COLUMNS, GIVEN], ids=["made ids", "given ids"])
@pytest.mark.parametrize("changes", ["hold", "move", "new"])
def test_what_a_held_person_has_that_is_new_is_sent_after_the_address_is_entered(
    job: Program, iterable: StandIn, columns: str, changes: str
) -> None:
    use_query(job, f"SELECT {columns} FROM rows")
    run(job, [with_id(row(1, ADA), columns)], columns=columns)
    rows = [with_id(row(1, NEW, "free", page=page), columns) for page in ("home", "new")]
    assert run(job, rows, columns=columns).code == 1
    moved_by_hand(iterable)
    iterable.project.requests.clear()
    entered = run(job, rows, "--baseline", "--only", NEW, "--yes", columns=columns, EMAIL_CHANGES=changes)
    only(entered, 0, users={"not_attempted": 1}, events={"not_attempted": 1, "unchanged": 1})
    assert (entered.results["status"], iterable.project.requests) == ("baseline", [])
    assert entered.results["reason"] == (
        "The new address was recorded, and nothing else; nothing was sent. 1 user and 1 event left to the next run."
    )
    assert entered.results["email_changes"] == [{"row": 1, "person": "1", "done": "moved"}]
    assert entered.results["failures_total"] == 0
    only(run(job, rows, columns=columns), 0, users={"delivered": 1}, events={"delivered": 1, "unchanged": 1})
    assert updates(iterable) == [{"email": NEW, "dataFields": {"plan": "free"}}]
    assert [each["dataFields"] for each in iterable.project.events.values()] == [{"page": "home"}, {"page": "new"}]
    only(run(job, rows, columns=columns), 0, users={"unchanged": 1}, events={"unchanged": 2})


@pytest.mark.parametrize(("answer", "code", "left"), [(b"yes\n", 0, 0), (b"no\n", 65, 1)])
def test_before_an_address_is_entered_it_says_what_is_left_to_the_next_run(
    job: Program, iterable: StandIn, answer: bytes, code: int, left: int
) -> None:
    run(job, [row(1, ADA)])
    rows = [row(1, NEW, "free", page=page) for page in ("home", "new")]
    assert run(job, rows).code == 1
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    asked = job.wait_for(job.start("--baseline", "--only", NEW, stdin=theirs))
    os.close(theirs)
    os.close(ours)
    question = "Enter the new address, and leave 1 user and 1 event to the next run, without sending anything? "
    assert (asked.code, question in asked.err) == (code, True)
    moved_by_hand(iterable)
    assert run(job, rows).results["counts"]["users"]["rejected"] == left


def test_ids_keep_the_address_of_before_after_it_is_entered(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    run(job, [row(1, NEW)], "--baseline", "--only", NEW, "--yes")
    run(job, [row(1, NEW), row(1, NEW, page="new")])
    assert len({event_id.rpartition("-")[0] for event_id in iterable.project.events}) == 1
    assert len(iterable.project.events) == 2


def test_of_two_profiles_that_were_merged_by_hand_only_what_both_had_is_known(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA), row(None, NEW, city="Rome", page="shop")])
    rows = [row(1, NEW), row(1, NEW, page="shop")]
    assert run(job, rows).code == 1
    moved_by_hand(iterable)
    assert run(job, rows, "--baseline", "--only", NEW, "--yes").code == 0
    iterable.project.requests.clear()
    only(run(job, rows), 0, users={"delivered": 1}, events={"unchanged": 2})
    assert updates(iterable) == [{"email": NEW, "dataFields": {"city": "Paris"}}]


def test_a_baseline_of_one_person_with_the_same_address_enters_everything(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    rows = [row(1, ADA, "free"), row(1, ADA, page="new")]
    only(run(job, rows, "--baseline", "--only", ADA, "--yes"), 0, users={"unchanged": 1}, events={"unchanged": 2})
    only(run(job, rows), 0, users={"unchanged": 1}, events={"unchanged": 2})


# What a reviewer broke ------------------------------------------------------------------------------------------------


def test_a_user_left_alone_by_limit_is_updated_by_the_next_run(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    only(run(job, [row(1, ADA, plan="free")], "--limit", "1"), 0, users={"unchanged": 1})
    only(run(job, [row(1, ADA, plan="free")]), 0, users={"delivered": 1})
    assert iterable.project.users[ADA]["dataFields"]["plan"] == "free"


def test_each_owner_of_an_address_is_a_user_of_their_own(job: Program, iterable: StandIn) -> None:
    job.settings["EMAIL_CHANGES"] = "new"
    run(job, [row(1, ADA)])
    run(job, [row(1, BOB)])
    run(job, [row(1, BOB), row(2, ADA)])
    run(job, [row(1, BOB), row(2, CY)])
    rows = [row(1, BOB), row(2, CY), row(3, ADA, city="Rome")]
    assert run(job, rows).code == 0
    assert {who: user["dataFields"]["city"] for who, user in iterable.project.users.items()} == {
        ADA: "Rome",
        BOB: "Paris",
        CY: "Paris",
    }
    only(run(job, rows), 0, users={"unchanged": 3}, events={"unchanged": 3})


def test_an_id_of_another_person_on_two_rows_that_conflict_is_rejected_once(job: Program, iterable: StandIn) -> None:
    columns = f"user_id, {WITH_IDS}"
    job.settings["USER_FIELDS"] = "-"
    use_query(job, f"SELECT {columns} FROM rows")
    run(job, [(1, ADA, "e1", "visit", "home", FIRST)], columns=columns)
    rows = [(2, BOB, "e1", "visit", "home", FIRST), (2, BOB, "e1", "visit", "home", SECOND)]
    assert run(job, rows, columns=columns).counts("events") == {"rejected": 2}


@pytest.mark.parametrize(
    "rows", [[row(1, BOB), row(2, ADA)], [row(1, BOB), row(2, CY)], [row(2, CY), row(1, BOB)]], ids=["swap", "a", "b"]
)
def test_addresses_that_were_changed_by_hand_in_turn_are_entered(
    job: Program, iterable: StandIn, rows: list[Row]
) -> None:
    run(job, [row(1, ADA), row(2, BOB)])
    assert run(job, rows, "--baseline", "--yes").code == 0
    only(run(job, rows), 0, users={"unchanged": 2}, events={"unchanged": 2})


def test_what_iterable_has_under_the_new_address_is_not_sent_again(job: Program, iterable: StandIn) -> None:
    job.settings["EMAIL_CHANGES"] = "new"
    run(job, [row(None, BOB), row(1, ADA, page="shop")])
    for _ in range(2):
        only(run(job, [row(1, BOB)]), 0, users={"unchanged": 1}, events={"unchanged": 1})
    assert len(iterable.project.events) == 2


def test_the_id_of_an_event_is_never_sent_as_a_user_id(job: Program, iterable: StandIn) -> None:
    use_query(job, "SELECT user_id AS id, email, plan, city, page, event_time FROM rows")
    refused = run(job, [row(1, ADA)], SEND_USER_ID="true")
    assert refused.code == 66
    assert "PERSON_COLUMN=id" in refused.err
    assert run(job, [row(1, ADA)], SEND_USER_ID="true", PERSON_COLUMN="id").code == 0


@pytest.mark.parametrize("address", [CY, ADA], ids=["another one", "back"])
def test_a_move_whose_end_is_not_known_holds_the_person_until_it_is(
    moving: Program, iterable: StandIn, address: str
) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    iterable.inject(Fault(path="/api/users/updateEmail", disconnect=True, store=True))
    iterable.inject(Fault(path="/api/users/getByEmail", status=503))
    assert run(moving, [(*row(1, NEW), ADA)], columns=MOVING, MAX_RETRIES="1").code == 75
    iterable.clear_faults()
    held = run(moving, [(*row(1, address, plan="free"), ADA)], columns=MOVING)
    assert (held.code, [each["done"] for each in held.results["email_changes"]]) == (1, ["held"])
    assert set(iterable.project.users) == {NEW}


@pytest.mark.parametrize("address", [NEW, ADA], ids=["moved", "not moved"])
def test_how_a_move_ended_is_entered_for_one_person_and_the_rest_is_sent(
    moving: Program, iterable: StandIn, address: str
) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    iterable.inject(Fault(path="/api/users/updateEmail", disconnect=True, store=address == NEW))
    iterable.inject(Fault(path="/api/users/getByEmail", status=503))
    assert run(moving, [(*row(1, NEW), ADA)], columns=MOVING, MAX_RETRIES="1").code == 75
    iterable.clear_faults()
    iterable.project.requests.clear()
    rows = [(*row(1, address, plan="free"), None), (*row(1, address, plan="free", page="new"), None)]
    entered = run(moving, rows, "--baseline", "--only", address, "--yes", columns=MOVING)
    only(entered, 0, users={"not_attempted": 1}, events={"not_attempted": 1, "unchanged": 1})
    only(run(moving, rows, columns=MOVING), 0, users={"delivered": 1}, events={"delivered": 1, "unchanged": 1})
    assert updates(iterable) == [{"email": address, "dataFields": {"plan": "free"}}]
    assert set(iterable.project.users) == {address}


def test_ids_of_two_queries_are_not_mistaken_for_each_other(job: Program, iterable: StandIn) -> None:
    users = job.folder.parent / "users.sql"
    users.write_text("SELECT user_id AS id, email, plan FROM rows")
    run(job, [row(n, f"u{n}@example.com") for n in (1, 2, 3)], QUERY_FILE=str(users), USER_FIELDS="plan")
    use_query(job, "SELECT user_id AS id, email, page, event_time FROM rows")
    settings = {"USER_FIELDS": "-", "EVENT_FIELDS": "page"}
    only(run(job, [row(1, "u2@example.com"), row(2, "u3@example.com")], **settings), 0, events={"delivered": 2})


def test_a_known_person_who_comes_to_share_an_address_is_held(job: Program, iterable: StandIn) -> None:
    run(job, [row(4, ADA), row(5, BOB, page="five")])
    held = run(job, [row(5, ADA, page="five"), row(1, ADA, page="one")])
    assert held.code == 1
    assert len(iterable.project.events) == 2


def test_a_dry_run_says_which_addresses_would_be_changed(moving: Program, iterable: StandIn) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    dry = run(moving, [(*row(1, NEW), ADA)], "--dry-run", columns=MOVING)
    assert dry.results["email_changes"] == [{"row": 1, "person": "1", "done": "moved"}]
    assert "Addresses that Iterable would change first: 1" in dry.out
    assert "1 person with a new address" in run(moving, [(*row(1, NEW), ADA)], "--check", columns=MOVING).out
    shown = run(moving, [(*row(1, NEW, plan="free"), ADA)], "--explain", NEW, columns=MOVING).out
    assert "these are sent: plan" in shown
    assert set(iterable.project.users) == {ADA}


def test_a_first_update_whose_answer_was_lost_still_says_where_the_person_is(job: Program, iterable: StandIn) -> None:
    job.settings["MAX_RETRIES"] = "1"
    iterable.inject(Fault(path="/api/users/update", disconnect=True, store=True, times=1))
    assert run(job, [row(1, ADA)]).code == 75
    assert run(job, [row(1, BOB)]).code == 1
    assert (set(iterable.project.users), len(iterable.project.events)) == ({ADA}, 1)
    only(run(job, [row(1, ADA)]), 0, users={"delivered": 1}, events={"unchanged": 1})


def test_whose_an_address_was_first_stays_known(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    run(job, [row(2, ADA)])
    assert run(job, [row(1, BOB)]).code == 1
    assert (set(iterable.project.users), len(iterable.project.events)) == ({ADA}, 1)


def test_of_a_profile_that_iterable_has_lost_only_what_is_sent_again_is_known(job: Program, iterable: StandIn) -> None:
    run(job, [row(1, ADA)])
    iterable.project.delete_user(email=ADA)
    run(job, [row(1, ADA, page="shop")], USER_FIELDS="plan")
    run(job, [row(1, ADA, page="shop")])
    assert iterable.project.users[ADA]["dataFields"] == {"plan": "pro", "city": "Paris"}


def test_an_unchanged_user_is_not_too_large(job: Program, iterable: StandIn) -> None:
    large = "x" * 2_000_000
    run(job, [row(1, ADA, plan=large, city=None)])
    for _ in range(2):
        assert run(job, [row(1, ADA, plan=large, city=large)]).counts("users") in ({"delivered": 1}, {"unchanged": 1})


@pytest.mark.parametrize(("merges", "sent"), [("false", {}), ("true", {"o": {"plan": "free"}})])
def test_a_bad_value_within_an_object_never_deletes_the_good_one(
    job: Program, iterable: StandIn, merges: str, sent: dict[str, Any]
) -> None:
    settings = {"USER_FIELDS": "plan:o.plan,city:o.city", "BAD_VALUES": "omit", "MERGE_NESTED": merges}
    run(job, [row(1, ADA)], **settings)
    run(job, [(1, ADA, "free", float("inf"), "home", "2026-01-13 08:45:12")], **settings)
    assert [each["dataFields"] for each in updates(iterable, 1)] == ([sent] if sent else [])
    assert iterable.project.users[ADA]["dataFields"]["o"]["city"] == "Paris"


def test_an_old_address_that_is_gone_says_nothing_of_who_has_the_new_one(moving: Program, iterable: StandIn) -> None:
    run(moving, [(*row(1, ADA), None)], columns=MOVING)
    iterable.project.delete_user(email=ADA)
    iterable.project.edit_user({"email": NEW, "dataFields": {"plan": "other"}})
    run(moving, [(*row(1, NEW), ADA)], columns=MOVING)
    assert iterable.project.users[NEW]["dataFields"] == {"plan": "pro", "city": "Paris"}


@pytest.mark.parametrize("columns", [COLUMNS, GIVEN], ids=["made ids", "given ids"])
def test_who_is_held_takes_nothing_over_from_the_address(job: Program, iterable: StandIn, columns: str) -> None:
    use_query(job, f"SELECT {columns} FROM rows")
    first = [with_id(row(None, BOB, page="shop"), columns), with_id(row(1, ADA), columns)]
    run(job, first, columns=columns)
    assert run(job, [with_id(row(1, BOB, page="shop"), columns)], columns=columns).code == 1
    iterable.project.effects.clear()
    only(run(job, first, columns=columns), 0, users={"unchanged": 2}, events={"unchanged": 2})
    assert not iterable.project.effects.event_writes
    assert not iterable.project.effects.field_writes


def test_a_first_run_with_a_wrong_key_knows_nobody(job: Program) -> None:
    assert run(job, [row(1, ADA)], ITERABLE_API_KEY="another-key").code == 77
    only(run(job, [row(1, ADA)]), 0, users={"delivered": 1}, events={"delivered": 1})
