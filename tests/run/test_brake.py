"""The brake, the baseline, and :since, through the whole program over several runs."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import MaxChanges
from pipeline.ledger.ledger import IdScheme
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind
from pipeline.run.brake import Pending, too_many
from pipeline.run.id_schemes import ids_have_changed
from pipeline.sandbox import Fault, StandIn
from tests.program import Program, make_table, sent, use_query, wait_until
from tests.records import count_accepted

EVENTS_QUERY = "SELECT email, plan_type, page, event_time FROM users JOIN user_events ON user_id = users.id"
FIELDS = {"USER_FIELDS": "plan_type", "EVENT_FIELDS": "page"}


# Decisions ------------------------------------------------------------------------------------------------------------


def pending(new: int, changed: int, known: int) -> Pending:
    nothing = dict.fromkeys(Kind, 0)
    return Pending({**nothing, Kind.EVENT: new}, {**nothing, Kind.USER: changed}, nothing, known)


@pytest.mark.parametrize(
    ("limit", "is_percent", "new", "changed", "known", "stops"),
    [
        (10, False, 5, 5, 0, False),
        (10, False, 6, 5, 0, True),
        (0, False, 0, 0, 100, False),
        (0, False, 1, 0, 100, True),
        (20, True, 20, 0, 100, False),
        (20, True, 20, 1, 100, True),
        (20, True, 1000, 0, 0, False),  # nothing is known yet
    ],
)
def test_more_than_max_changes_stops(
    limit: float, is_percent: bool, new: int, changed: int, known: int, stops: bool
) -> None:
    ending = too_many(MaxChanges(limit, is_percent), pending(new, changed, known), [])
    assert (ending is not None) is stops
    assert ending is None or ending.code is ExitCode.BRAKE
    assert too_many(None, pending(new, changed, known), []) is None


def test_the_sentence_says_how_many_are_new_and_changed_the_limit_and_the_likely_cause() -> None:
    ending = too_many(MaxChanges(5, True), pending(1200, 1, 100), ["the query is new"])
    assert ending is not None
    assert ending.happened == (
        "1 user (0 new, 1 changed), 1,200 events (1,200 new, 0 changed) would be sent, more than MAX_CHANGES allows "
        "(5 % of 100 known records). Nothing was sent. Likely cause: the query is new."
    )
    assert ending.ways_on == ("Look at it with --dry-run.", "To send it all the same: run once with --yes.")
    assert ending.reason == " ".join([ending.happened, *ending.ways_on])


OLD = json.dumps({"identifier": "email", "ids": "made from the event", "event name": "a; b", "fields": "page"})
NEW = json.dumps({"identifier": "email", "ids": "made from the event", "event name": "a; b", "fields": "device, page"})


@pytest.mark.parametrize(
    ("used", "events", "knows_records", "stops"),
    [
        ([IdScheme(OLD, True)], 1, True, True),
        ([IdScheme(OLD, True)], 0, True, False),
        ([IdScheme(OLD, False)], 1, False, False),
        ([IdScheme(OLD, False)], 1, True, True),  # a killed run may have had events accepted
        ([], 1, True, False),
        ([IdScheme(OLD, True), IdScheme(NEW, True)], 1, True, False),
        ([IdScheme(NEW, False), IdScheme(OLD, True)], 1, True, False),
    ],
)
def test_ids_made_in_a_way_not_used_before_stop(
    used: list[IdScheme], events: int, knows_records: bool, stops: bool
) -> None:
    ending = ids_have_changed({NEW: events} if events else {}, used, knows_records=knows_records, is_told=True)
    assert (ending is not None) is stops
    assert ending is None or "EVENT_FIELDS: page -> device, page" in ending.reason
    # --baseline alone would enter also what is new since the last run, and so never send it.
    assert ending is None or "run once so that nothing new is left, and then run with the change" in ending.reason


# Through the program --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"EVENT_NAME": "visit"}, "EVENT_NAME: page_view -> visit"),
        ({"EVENT_FIELDS": "page:view"}, "EVENT_FIELDS: page -> view"),
        ({"EVENT_TIMEZONE": "Europe/Berlin"}, "EVENT_TIMEZONE: UTC -> Europe/Berlin"),
    ],
)
def test_changed_ids_stop_the_run_before_anything_is_sent_until_yes(
    program: Program, iterable: StandIn, sample: Path, change: dict[str, str], told: str
) -> None:
    use_query(program, EVENTS_QUERY)
    program.settings |= FIELDS
    assert program.run().code == 0
    iterable.project.requests.clear()
    program.settings |= change
    run = program.run()
    assert (run.code, run.results["status"], run.results["exit_code"]) == (65, "failed", 65)
    assert told in run.err
    assert "36 events would be tracked again as new ones" in run.err
    assert run.counts("events") == {"not_attempted": 36}
    assert program.run("--dry-run").code == 65
    assert sent(iterable) == []
    assert program.run("--yes").code == 0  # once, and from then on it is a way that was used before
    assert len(iterable.project.events) == 72
    with sqlite3.connect(sample) as database:
        database.execute("INSERT INTO user_events VALUES (NULL, 1, 'new', '', '', '', '2026-02-01 00:00:00')")
    database.close()
    assert program.run().counts("events") == {"delivered": 1, "unchanged": 36}


def test_the_brake_names_a_lost_column_of_ids_alone(program: Program, iterable: StandIn, sample: Path) -> None:
    query = "SELECT email, page, e.id AS event_id, event_time FROM users JOIN user_events AS e ON user_id = users.id"
    use_query(program, query)
    program.settings |= {"USER_FIELDS": "-", "EVENT_FIELDS": "page", "EVENT_NAME": "seen; again"}
    assert program.run().code == 0
    use_query(program, query.replace("e.id AS event_id, ", ""))
    run = program.run()
    assert run.code == 65
    assert "has changed (event ids: column event_id -> made from the event), so 36 events" in run.err


def test_a_run_that_the_brake_stopped_makes_its_way_no_known_one(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    use_query(program, EVENTS_QUERY)
    program.settings |= FIELDS
    with sqlite3.connect(sample) as database:  # an event whose id is the same in both zones
        database.execute("UPDATE user_events SET event_time = '2026-01-05T17:02:10Z' WHERE id = 1")
    database.close()
    assert program.run().code == 0
    for _ in range(2):
        run = program.run(EVENT_TIMEZONE="Europe/Berlin")
        assert (run.code, run.counts("events")) == (65, {"unchanged": 1, "not_attempted": 35})


def test_a_limited_run_over_known_events_makes_its_way_no_known_one(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    rows = [("ada@example.com", "home", device, f"2026-01-13 08:00:0{i}") for i, device in enumerate([None, "phone"])]
    make_table(tmp_path / "rows.db", "email, page, device, event_time", rows)
    use_query(program, "SELECT email, page, device, event_time FROM rows ORDER BY event_time")
    program.settings |= {"DATABASE_URL": f"sqlite:///{tmp_path}/rows.db", "USER_FIELDS": "-", "EVENT_FIELDS": "page"}
    assert program.run().code == 0
    program.settings["EVENT_FIELDS"] = "page,device"
    assert program.run("--limit", "1").counts("events") == {"unchanged": 1}  # without the new field, its id is the same
    run = program.run()
    assert (run.code, run.counts("events")) == (65, {"unchanged": 1, "not_attempted": 1})


def test_a_killed_run_leaves_its_way_of_making_ids_behind(program: Program, iterable: StandIn, sample: Path) -> None:
    use_query(program, EVENTS_QUERY)
    program.settings |= FIELDS
    iterable.inject(Fault(path="/api/events/track", skip=5, latency_s=600))
    process = program.start()
    wait_until(lambda: iterable.project.request_counts["/api/events/track"] > 5)
    wait_until(lambda: known_records(program) > 0)
    process.kill()
    program.wait_for(process)
    iterable.clear_faults()
    assert program.run(EVENT_NAME="visit").code == 65
    assert program.run().code == 0


def known_records(program: Program) -> int:
    with closing(sqlite3.connect(f"file:{program.folder}/iterable_ledger.sqlite3?mode=ro", uri=True)) as database:
        return count_accepted(database)


def test_the_order_of_fields_and_new_events_are_no_change(program: Program, iterable: StandIn, sample: Path) -> None:
    use_query(program, "SELECT email, page, device, event_time FROM users JOIN user_events ON user_id = users.id")
    assert program.run(EVENT_FIELDS="page,device").code == 0
    with sqlite3.connect(sample) as database:
        database.execute("INSERT INTO user_events VALUES (NULL, 1, 'new', '', '', '', '2026-02-01 00:00:00')")
    database.close()
    assert program.run(EVENT_FIELDS="device,page").counts("events") == {"delivered": 1, "unchanged": 36}


def test_max_changes_holds_with_limit_and_full_and_lets_pass_once_with_yes(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    run = program.run(MAX_CHANGES="47")
    assert (run.code, sent(iterable)) == (65, [])
    assert "12 users (12 new, 0 changed), 36 events (36 new, 0 changed) would be sent" in run.err
    assert program.run("--limit", "10", MAX_CHANGES="3").code == 65
    assert program.run(MAX_CHANGES="50%").code == 0  # nothing is known yet
    assert program.run("--full", MAX_CHANGES="50%").code == 65
    assert program.run("--full", "--yes", MAX_CHANGES="50%").code == 0


def test_baseline_enters_everything_and_sends_nothing(program: Program, iterable: StandIn, sample: Path) -> None:
    run = program.run("--baseline", "--yes")
    assert (run.code, run.results["status"], iterable.project.requests) == (0, "baseline", [])
    assert (run.counts("users"), run.counts("events")) == ({"unchanged": 12}, {"unchanged": 36})
    assert run.results["options"]["baseline"] is True
    assert len(run.files("query_results*")) == 1
    with sqlite3.connect(sample) as database:
        database.execute("INSERT INTO user_events VALUES (NULL, 1, 'new', '', '', '', '2026-02-01 00:00:00')")
    database.close()
    iterable.project.unknown_users = "accept"
    run = program.run()
    assert (run.counts("users"), run.counts("events")) == ({"unchanged": 12}, {"delivered": 1, "unchanged": 36})


@pytest.mark.parametrize("other", ["--sandbox", "--dry-run", "--full"])
def test_baseline_is_refused_with_what_makes_no_sense(program: Program, sample: Path, other: str) -> None:
    assert program.run("--baseline", "--yes", other).code == 2


def test_baseline_needs_yes_where_stdin_is_closed(program: Program, sample: Path) -> None:
    run = program.wait_for(program.start("--baseline", preexec_fn=lambda: os.close(0)))
    assert run.code == 2
    assert run.err.endswith("--baseline asks before it records anything; without a terminal, add --yes\n")


def test_baseline_needs_yes_without_a_terminal(program: Program, sample: Path) -> None:
    run = program.run("--baseline")
    assert run.code == 2
    assert "add --yes" in run.err


@pytest.mark.parametrize(("answer", "code", "entered"), [(b"yes\n", 0, 48), (b"y\n", 65, 0), (b"\n", 65, 0)])
def test_baseline_asks_on_a_terminal(
    program: Program, iterable: StandIn, sample: Path, answer: bytes, code: int, entered: int
) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    process = program.start("--baseline", stdin=theirs)
    run = program.wait_for(process)
    os.close(theirs)
    os.close(ours)
    assert run.code == code
    assert "Enter 12 users and 36 events as accepted, without sending anything? Type yes: " in run.err
    unchanged = sum(run.counts(kind).get("unchanged", 0) for kind in ("users", "events"))
    assert (unchanged, iterable.project.requests) == (entered, [])


def test_baseline_before_enters_only_older_events_and_the_next_run_sends_the_rest(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    times = ("2025-12-31 23:59:59", "2026-01-01 00:00:00", "2026-01-13 08:00:00")
    make_table(tmp_path / "users.db", "email,page,event_time", [("ada@example.com", each, each) for each in times])
    use_query(program, "SELECT email, page, event_time FROM rows WHERE event_time >= :since")
    run = program.run("--baseline", "--before", "2026-01-01", "--yes")
    assert (run.code, run.results["status"], iterable.project.requests) == (0, "baseline", [])
    assert (run.counts("users"), run.counts("events")) == ({"not_attempted": 1}, {"not_attempted": 2, "unchanged": 1})
    assert "1 user and 2 events left to the next run" in run.results["reason"]
    assert (run.results["failures_total"], run.results["failures"], run.results["reasons"]) == (0, [], [])
    assert run.results["since"]["mark_moved"] is False
    run = program.run()
    assert (run.code, run.counts("users"), run.counts("events")) == (
        0, {"delivered": 1}, {"delivered": 2, "unchanged": 1},
    )  # fmt: skip


def test_before_needs_baseline(program: Program, sample: Path) -> None:
    run = program.run("--before", "2026-01-01")
    assert (run.code, "needs --baseline" in run.err) == (2, True)


# :since ---------------------------------------------------------------------------------------------------------------

SINCE_QUERY = (
    "SELECT u.email, u.plan_type, e.page, e.event_time FROM users AS u"
    " LEFT JOIN user_events AS e ON e.user_id = u.id AND e.event_time >= :since"
    " WHERE u.updated_at >= :since OR e.id IS NOT NULL"
)


@pytest.fixture
def changing(program: Program, sample: Path) -> sqlite3.Connection:
    """The sample's database, whose users say when they changed."""
    database = sqlite3.connect(sample, isolation_level=None)
    database.execute("ALTER TABLE users ADD COLUMN updated_at DEFAULT '2026-01-01 00:00:00'")
    use_query(program, SINCE_QUERY)
    program.settings |= FIELDS
    return database


def since_of(run: Any) -> tuple[bool, bool]:
    return (run.results["since"]["full_read"], run.results["since"]["mark_moved"])


def test_only_what_changed_is_read_and_sent(program: Program, iterable: StandIn, changing: sqlite3.Connection) -> None:
    run = program.run()
    assert (since_of(run), run.results["since"]["from"], run.counts("users")) == (
        (True, True), "1970-01-01 00:00:00", {"delivered": 12},
    )  # fmt: skip
    run = program.run()
    assert (since_of(run), run.results["counts"]["rows"]) == ((False, True), 0)
    changing.execute("UPDATE users SET plan_type = 'gold', updated_at = datetime('now') WHERE id = 3")
    run = program.run()
    assert (since_of(run), run.results["counts"]["rows"], run.counts("users")) == ((False, True), 1, {"delivered": 1})
    changing.execute("UPDATE users SET plan_type = 'late', updated_at = datetime('now', '-20 hours') WHERE id = 4")
    assert program.run().counts("users") == {"delivered": 1, "unchanged": 1}  # within the overlap
    changing.execute("UPDATE users SET plan_type = 'later', updated_at = datetime('now', '-3 days') WHERE id = 5")
    assert program.run().counts("users") == {"unchanged": 2}
    assert program.run("--since", "all").counts("users") == {"delivered": 1, "unchanged": 11}
    changing.close()


def test_the_mark_stays_where_something_is_left_to_do(
    program: Program, iterable: StandIn, changing: sqlite3.Connection
) -> None:
    assert since_of(program.run("--limit", "5")) == (True, False)
    assert since_of(program.run("--dry-run")) == (True, False)
    fault = iterable.inject(Fault(path="/api/users/update", status=503))
    run = program.run()
    assert (run.code, since_of(run)) == (75, (True, False))
    iterable.clear_faults()
    assert fault.matched > 0
    assert since_of(program.run()) == (True, True)
    assert since_of(program.run()) == (False, True)
    assert since_of(program.run(EVENT_FIELDS="page:view", MAX_CHANGES="0")) == (True, False)  # the brake
    assert since_of(program.run()) == (False, True)
    assert since_of(program.run("--full", "--yes")) == (True, True)
    (program.folder / "iterable_ledger.sqlite3").unlink()
    assert since_of(program.run("--yes")) == (True, True)
    changing.close()


def test_since_with_a_query_without_it_is_a_wrong_command_line(program: Program, sample: Path) -> None:
    run = program.run("--since", "2026-01-12")
    assert run.code == 2
    assert "--since needs a query that contains :since; user_events.sql has none." in run.err


def test_refusals_that_are_known_end_with_0_if_only_new_ones_count(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    with sqlite3.connect(sample) as database:
        database.execute("UPDATE users SET email = 'nobody' WHERE id = 12")
    database.close()
    first = program.run(EXIT_ON_REJECTED="new")
    assert (first.code, first.results["status"]) == (1, "partial")
    assert [(each["code"], each["count"], each["new"]) for each in first.results["reasons"]] == [
        ("InvalidRecord", 1, 1)
    ]
    second = program.run(EXIT_ON_REJECTED="new")
    assert (second.code, second.results["status"], second.results["failures_total"]) == (0, "partial", 1)
    assert second.results["reasons"][0]["new"] == 0
    assert "all known from earlier runs" in second.results["reason"]
    assert program.run().code == 1
    with sqlite3.connect(sample) as database:
        database.execute("UPDATE users SET email = 'somebody' WHERE id = 12")
    database.close()
    assert program.run(EXIT_ON_REJECTED="new").code == 1


def test_fields_that_iterable_drops_are_warned_of_until_they_are_delivered(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.project.dropped_fields.add("plan_type")
    run = program.run("--quiet", PUSH_MODE="bulk")
    assert run.code == 0
    warning = (
        "Warning: Iterable drops these fields of users: plan_type. Allow them in the project's settings, then run once "
        "with --full users --yes"
    )
    assert warning in run.err
    assert warning in program.run("--quiet", PUSH_MODE="bulk").err
    iterable.project.dropped_fields.clear()
    assert warning not in program.run("--quiet", "--full", "users", "--yes", PUSH_MODE="bulk").err
    assert program.run("--quiet", PUSH_MODE="bulk").err == ""


def test_a_run_is_in_the_history(program: Program, iterable: StandIn, sample: Path) -> None:
    assert program.run().code == 0
    run = program.run("--history", "--json")
    assert run.code == 0
    (entry,) = json.loads(run.out)["runs"]
    assert (entry["status"], entry["exit_code"], entry["rows"]) == ("success", 0, 37)


def test_a_long_reason_is_cut_between_words_in_the_history(program: Program, iterable: StandIn, sample: Path) -> None:
    assert program.run().code == 0
    reason = program.run(EVENT_NAME="visit").results["reason"]
    kept = json.loads(program.run("--history", "--json").out)["runs"][-1]["reason"]
    beginning = kept.removesuffix("...")
    assert (len(kept) <= 300, len(reason) > 300, beginning != kept) == (True, True, True)
    assert " ".join(reason.split()).startswith(f"{beginning} ")
