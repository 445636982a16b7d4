"""What event ids are made of, where the query gives the ids of all events, of some, or of none, over several runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.sandbox import StandIn
from tests.program import Finished, Program, make_table, use_query

ALL, SOME, NONE = range(20), range(1), range(0)  # of 20 events, these have an id


@pytest.fixture
def job(program: Program, tmp_path: Path) -> Program:
    program.settings |= {"USER_FIELDS": "-", "EVENT_FIELDS": "page"}
    return program


def run(job: Program, ids: range | None, *arguments: str, count: int = 20, **settings: Any) -> Finished:
    """ids: of the events that have one; None: without the column."""
    path = job.folder.parent / "users.db"
    path.unlink(missing_ok=True)
    rows = [
        (f"u{i}@example.com", f"p{i}", "x", f"2026-01-13 08:00:{i:02}", f"e{i}" if ids and i in ids else None)
        for i in range(count)
    ]
    make_table(path, "email, page, x, event_time, event_id", rows)
    use_query(job, f"SELECT email, page, x, event_time{', event_id' if ids is not None else ''} FROM rows")
    return job.run(*arguments, **settings)


def stops(found: Finished, told: str, events: int) -> None:
    assert found.code == 65, found.err
    what = "1 event" if events == 1 else f"{events} events"
    assert f"has changed ({told}), so {what} would be tracked again" in found.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"EVENT_FIELDS": "page,x"}, "EVENT_FIELDS: page -> page, x"),
        ({"EVENT_NAME": "visit"}, "EVENT_NAME: page_view -> visit"),
        ({"EVENT_TIMEZONE": "Europe/Berlin"}, "EVENT_TIMEZONE: UTC -> Europe/Berlin"),
    ],
)
def test_events_without_an_id_are_under_the_brake_beside_others_that_have_one(
    job: Program, iterable: StandIn, change: dict[str, Any], told: str
) -> None:
    assert run(job, SOME).code == 0
    for _ in range(2):  # a run that was stopped teaches nothing
        stops(run(job, SOME, **change), told, 19)
    for look in ("--dry-run", "--check"):
        assert run(job, SOME, look, **change).code == 65
    assert len(iterable.project.events) == 20
    assert run(job, SOME).counts("events") == {"unchanged": 20}
    assert run(job, SOME, "--yes", **change).counts("events")["delivered"] >= 19
    assert run(job, SOME, **change).counts("events") == {"unchanged": 20}


def test_events_that_all_have_an_id_are_corrected_when_the_fields_change(job: Program, iterable: StandIn) -> None:
    assert run(job, ALL).code == 0
    assert run(job, ALL, EVENT_FIELDS="page,x").counts("events") == {"delivered": 20}
    assert len(iterable.project.events) == 20


@pytest.mark.parametrize(
    ("before", "after", "told", "events"),
    [
        (ALL, SOME, "event ids: column event_id -> made from the event where there is none in event_id", 19),
        (ALL, NONE, "event ids: column event_id -> made from the event where there is none in event_id", 20),
        (ALL, None, "event ids: column event_id -> made from the event", 20),
        (SOME, ALL, "", 0),
        (SOME, None, "event ids: column event_id -> made from the event", 1),
        (NONE, ALL, "event ids: made from the event where there is none in event_id -> column event_id", 20),
        (NONE, None, "", 0),
        (None, ALL, "event ids: made from the event -> column event_id", 20),
        (None, SOME, "event ids: made from the event -> column event_id", 1),
        (None, NONE, "", 0),
    ],
)
def test_a_column_of_ids_that_comes_fills_empties_or_goes(
    job: Program, iterable: StandIn, before: range | None, after: range | None, told: str, events: int
) -> None:
    assert run(job, before).code == 0
    found = run(job, after)
    if told:
        stops(found, told, events)
        assert len(iterable.project.events) == 20
    else:
        assert found.code == 0


def test_the_first_event_without_an_id_stops_once(job: Program, iterable: StandIn) -> None:
    assert run(job, ALL).code == 0
    told = "event ids: column event_id -> made from the event where there is none in event_id"
    stops(run(job, ALL, count=21), told, 1)
    assert run(job, ALL, "--yes", count=21).counts("events") == {"delivered": 1, "unchanged": 20}
    assert run(job, ALL, count=22).counts("events") == {"delivered": 1, "unchanged": 21}


def test_a_baseline_notes_how_ids_are_made(job: Program, iterable: StandIn) -> None:
    assert run(job, SOME, "--baseline", "--yes").code == 0
    stops(run(job, SOME, EVENT_FIELDS="page,x"), "EVENT_FIELDS: page -> page, x", 19)


def test_a_ledger_that_names_the_column_alone_stops_nobody_and_learns_the_rest(job: Program, iterable: StandIn) -> None:
    assert run(job, SOME).code == 0
    with closing(sqlite3.connect(job.folder / "iterable_ledger.sqlite3")) as ledger, ledger:
        ledger.execute("DELETE FROM id_schemes WHERE description NOT LIKE '%\"column event_id\"%'")
        ledger.execute("DELETE FROM row_digests")  # another version's say nothing
    assert run(job, SOME, count=21).counts("events") == {"delivered": 1, "unchanged": 20}
    stops(run(job, SOME, count=21, EVENT_FIELDS="page,x"), "EVENT_FIELDS: page -> page, x", 20)
