"""The journeys that pending events would start: read with care, named, and never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run import journeys
from pipeline.run.journeys import PendingEvents, Unreadable, journeys_in_words, read_journeys
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from tests.program import Program, make_table, sent, use_query
from tests.wire import client_of

PAGE_VIEWS = (
    "36 events of page_view (11 people) would start: Browse abandonment (1 at a time, no lifetime limit), "
    "Welcome (any number at a time, 1 in a lifetime)."
)
UNKNOWN = "Which journeys these events would start is not known: "


@pytest.fixture
def listening(iterable: StandIn) -> StandIn:
    """Two journeys listen to page views, and others do not."""
    add = iterable.project.add_journey
    add("Browse abandonment", ["visit", "page_view"], simultaneousLimit=1)
    add("Welcome", ["page_view"], lifetimeLimit=1)
    add("Winback", ["purchase"])
    add("Off", ["page_view"], enabled=False)
    add("Old", ["page_view"], isArchived=True)
    add("Profile update")
    return iterable


def test_a_dry_run_names_the_journeys_and_sends_nothing(program: Program, listening: StandIn, sample: Path) -> None:
    run = program.run("--dry-run")
    assert (run.code, sent(listening)) == (0, [])
    assert f"        {PAGE_VIEWS}\n" in run.out
    browse = {"name": "Browse abandonment", "simultaneous": 1, "lifetime": None}
    welcome = {"name": "Welcome", "simultaneous": None, "lifetime": 1}
    started = {"event_name": "page_view", "events": 36, "people": 11, "journeys": [browse, welcome]}
    assert run.results["journeys"] == {"problem": None, "started": [started]}


def test_check_names_the_journeys(program: Program, listening: StandIn, sample: Path) -> None:
    run = program.run("--check")
    assert run.code == 0
    assert f"[note] journeys: {PAGE_VIEWS}\n" in run.out


def test_the_sentence_of_the_brake_names_the_journeys(program: Program, listening: StandIn, sample: Path) -> None:
    run = program.run(MAX_CHANGES="1")
    assert (run.code, sent(listening)) == (65, [])
    assert f" {PAGE_VIEWS} Look at it" in run.results["reason"]


def test_a_plain_run_asks_for_no_journeys(program: Program, listening: StandIn, sample: Path) -> None:
    run = program.run()
    assert (run.code, run.results["journeys"]) == (0, None)
    assert "/api/journeys" not in listening.project.request_counts


def test_names_of_the_query_are_counted_each(program: Program, listening: StandIn, tmp_path: Path) -> None:
    rows = [("ada@example.com", "visit", f"2026-01-13 08:00:0{n}") for n in range(3)]
    rows += [("bob@example.com", name, "2026-01-13 08:00:00") for name in ("visit", "purchase")]
    make_table(tmp_path / "users.db", "email, event_name, event_time", rows)
    use_query(program, "SELECT * FROM rows")
    run = program.run("--dry-run")
    assert "        4 events of visit (2 people) would start: Browse abandonment (1 at a time, no" in run.out
    assert "        1 event of purchase (1 person) would start: Winback (any number at a time, no" in run.out


@pytest.mark.parametrize("status", [401, 403, 404, 500, 200, 302])
@pytest.mark.parametrize("option", ["--dry-run", "--check"])
def test_what_can_not_be_read_is_a_note(
    program: Program, listening: StandIn, sample: Path, status: int, option: str
) -> None:
    listening.inject(Fault(path="/api/journeys", status=status, body=b"<html>"))
    run = program.run(option)
    assert (run.code, UNKNOWN in run.out) == (0, True)


def test_a_key_for_apps_can_not_read_them(program: Program, iterable: StandIn, sample: Path) -> None:
    run = program.run("--dry-run", USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SANDBOX_JWT_SECRET)
    assert (run.code, f"{UNKNOWN}a client-side key (JWT) can't read them." in run.out) == (0, True)
    assert iterable.project.requests == []


# Reading --------------------------------------------------------------------------------------------------------------


def test_all_pages_are_read_by_their_numbers(iterable: StandIn) -> None:
    for number in range(120):
        iterable.project.add_journey(f"Journey {number}", ["visit"])
    assert len(read_journeys(client_of(iterable))) == 120
    queries = [each.query for each in iterable.project.requests]
    assert queries == [f"page={page}&pageSize=50" for page in (1, 2, 3)]


@pytest.mark.parametrize("body", [b"{}", b'{"journeys": {}}'])
def test_an_answer_without_a_list_is_unreadable(iterable: StandIn, body: bytes) -> None:
    iterable.inject(Fault(path="/api/journeys", status=200, body=body))
    with pytest.raises(Unreadable, match=r"not in Iterable's form|has no list of journeys"):
        read_journeys(client_of(iterable))


def test_odd_journeys_and_limits_are_passed_over(iterable: StandIn) -> None:
    body = (
        b'{"journeys": [7, {"enabled": true}, {"name": "A", "enabled": true, "triggerEventNames": ["e", 1], '
        b'"simultaneousLimit": "many", "lifetimeLimit": 0}]}'
    )
    iterable.inject(Fault(path="/api/journeys", status=200, body=body))
    found = journeys_in_words(client_of(iterable), {"e": PendingEvents(1, 1)}, is_jwt=False)
    assert found == ["1 event of e (1 person) would start: A (any number at a time, no lifetime limit)."]


def test_twenty_pages_are_read_and_no_address_of_an_answer_is_followed(iterable: StandIn) -> None:
    body = b'{"journeys": [{"name": "A", "enabled": true}], "nextPageUrl": "https://elsewhere.example/"}'
    iterable.inject(Fault(path="/api/journeys", status=200, body=body))
    with pytest.raises(Unreadable, match="more than 20 pages"):
        read_journeys(client_of(iterable))
    assert len(iterable.project.requests) == journeys.MOST_PAGES


def test_one_deadline_holds_for_all_pages(iterable: StandIn) -> None:
    iterable.inject(Fault(path="/api/journeys", latency_s=600))
    with pytest.raises(Unreadable, match=r"did not list them within 0\.05 s"):
        read_journeys(client_of(iterable), deadline_s=0.05)


def test_without_events_nothing_is_asked_for(iterable: StandIn) -> None:
    assert journeys_in_words(client_of(iterable), {}, is_jwt=False) == []
    assert iterable.project.requests == []
