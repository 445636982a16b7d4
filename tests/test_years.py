"""What a job meets that runs each night for years. Time passes by moving all dates of its past back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.report.results import RESULTS_NAME
from pipeline.sandbox import Fault, StandIn
from tests.job import records_in, requests_of
from tests.program import Finished, Program, make_table, sent, use_query

DAY_S = 86_400
DAYS = (
    *((table, "seen_day") for table in ("users", "events", "given_events")),
    *(("queries", column) for column in ("used_day", "full_day")),
    ("row_digests", "day"),
    ("forgotten", "day"),
)
SECONDS = (
    *((table, "accepted_at") for table in ("users", "events", "given_events")),
    *(("queries", column) for column in ("cursor_at", "last_full_at")),
    *(("past_failures", column) for column in ("noted_at", "first_at", "window_from")),
    ("runs", "started_at"),
    ("runs", "since_from"),
)
COLUMNS = "user_id, email, plan, page, event_time"
ADA, BOB, CY = "ada@example.com", "bob@example.com", "cy@example.com"
Row = tuple[Any, ...]


@pytest.fixture
def job(program: Program) -> Program:
    program.settings |= {"USER_FIELDS": "plan", "EVENT_FIELDS": "page", "EXIT_ON_REJECTED": "new"}
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    return program


def run(job: Program, rows: list[Row]) -> Finished:
    path = job.folder.parent / "users.db"
    path.unlink(missing_ok=True)
    make_table(path, COLUMNS, rows)
    return job.run(DATABASE_URL=f"sqlite:///{path}")


def row(person: int, email: str, plan: str = "pro", page: str | None = "home") -> Row:
    return (person, email, plan, page, "2026-01-13 08:45:12" if page else None)


def pass_days(job: Program, days: int) -> None:
    """All that is known of the past happened so many days earlier."""
    with closing(sqlite3.connect(job.folder / LEDGER_NAME, isolation_level=None)) as ledger:
        for table, column in DAYS:
            ledger.execute(f"UPDATE {table} SET {column} = {column} - {days}")
        for table, column in SECONDS:
            ledger.execute(f"UPDATE {table} SET {column} = {column} - {days * DAY_S}")
        for number, run_id in ledger.execute("SELECT id, run_id FROM runs").fetchall():
            ledger.execute("UPDATE runs SET run_id = ? WHERE id = ?", (_earlier(run_id, days), number))
    before, behind = RESULTS_NAME.split("{}")
    for path in job.folder.glob(RESULTS_NAME.format("*")):
        run_id = path.name.removeprefix(before).removesuffix(behind)
        path.rename(path.with_name(f"{before}{_earlier(run_id, days)}{behind}"))


def _earlier(run_id: str, days: int) -> str:
    return f"{datetime.strptime(run_id, '%Y%m%d_%H%M%S') - timedelta(days=days):%Y%m%d_%H%M%S}"


def live_on(job: Program, rows: list[Row], days: int) -> list[int]:
    """One run each 45 days; how they ended."""
    codes = []
    for _ in range(0, days, 45):
        pass_days(job, 45)
        codes.append(run(job, rows).code)
    return codes


def updates(iterable: StandIn) -> list[dict[str, Any]]:
    paths = ("/api/users/update", "/api/users/bulkUpdate")
    return [record for path in paths for each in requests_of(iterable, path) for record in records_in(each.body)]


@pytest.mark.parametrize("mode", ["hold", "move"])
def test_who_is_held_at_a_shared_address_stays_known(job: Program, iterable: StandIn, mode: str) -> None:
    job.settings["EMAIL_CHANGES"] = mode
    assert run(job, [row(1, ADA), row(2, BOB, plan="free"), row(3, CY)]).code == 0
    shared = [row(1, ADA), row(2, ADA, plan="free"), row(3, CY)]
    assert run(job, shared).code == 1
    iterable.project.requests.clear()
    assert live_on(job, shared, 450) == [0] * 10
    assert run(job, [row(1, ADA), row(2, BOB, plan="free"), row(3, CY)]).code == 0
    assert sent(iterable) == []


def test_who_is_held_because_the_address_is_taken_stays_known(job: Program, iterable: StandIn) -> None:
    assert run(job, [row(1, ADA), row(2, BOB), row(3, CY)]).code == 0
    taken = [row(2, ADA), row(3, CY)]
    assert run(job, taken).code == 1
    iterable.project.requests.clear()
    assert live_on(job, taken, 450) == [0] * 10
    assert run(job, [row(1, ADA), row(2, BOB), row(3, CY)]).code == 0
    assert sent(iterable) == []


def test_what_no_row_was_about_for_so_long_is_new_again(job: Program, iterable: StandIn) -> None:
    assert run(job, [row(1, ADA), row(2, BOB)]).code == 0
    assert live_on(job, [row(1, ADA)], 540) == [0] * 12
    iterable.project.requests.clear()
    assert run(job, [row(1, ADA), row(2, BOB)]).code == 0
    assert [each["email"] for each in updates(iterable)] == [BOB]


def test_results_of_runs_that_are_too_old_to_be_known_are_no_sign_of_a_lost_ledger(job: Program) -> None:
    """A job with :since whose full reads have no news; the results files are kept for ever."""
    use_query(job, f"SELECT {COLUMNS} FROM rows WHERE event_time >= :since")
    job.settings |= {"FULL_READ_DAYS": "0"}
    rows = [row(1, ADA)]
    assert run(job, rows).code == 0
    codes = []
    for number in range(10):
        pass_days(job, 45)
        rows.append((1, ADA, "pro", f"page {number}", f"{datetime.now():%Y-%m-%d %H:%M:%S}"))
        codes.append(run(job, rows).code)
    assert codes == [0] * 10
    assert len(list(job.folder.glob(RESULTS_NAME.format("*")))) == 11


@pytest.mark.parametrize("days", [401, 800])
def test_after_a_pause_or_with_a_clock_that_is_ahead_nothing_is_dropped(
    job: Program, iterable: StandIn, days: int
) -> None:
    """Bob is missing that day."""
    everybody = [row(1, ADA), row(2, BOB)]
    for _ in range(2):
        assert run(job, everybody).code == 0
    pass_days(job, days)
    assert run(job, [row(1, ADA)]).code == 0
    pass_days(job, -days)  # the clock is set right
    iterable.project.requests.clear()
    assert run(job, everybody).code == 0
    assert sent(iterable) == []


def test_a_ledger_that_is_older_than_a_run_is_noticed_after_a_pause(job: Program, tmp_path: Path) -> None:
    assert run(job, [row(1, ADA)]).code == 0
    kept = (job.folder / LEDGER_NAME).read_bytes()
    assert run(job, [row(1, ADA), row(2, BOB)]).code == 0
    (job.folder / LEDGER_NAME).write_bytes(kept)
    pass_days(job, 300)
    assert run(job, [row(1, ADA), row(2, BOB)]).code == 65


def test_a_few_changed_addresses_a_day_never_add_up_to_a_brake(job: Program, iterable: StandIn) -> None:
    people = [row(n, f"user{n}@example.com", page=None) for n in range(70)]
    assert run(job, people).code == 0
    for start in range(0, 40, 10):
        people[start : start + 10] = [row(n, f"new{n}@example.com", page=None) for n in range(start, start + 10)]
        people[-1] = row(69, "user69@example.com", plan=f"plan {start}", page=None)
        ended = run(job, people)
        assert (ended.code, ended.counts("users").get("rejected"), ended.counts("users").get("delivered")) == (
            1, start + 10, 1,
        )  # fmt: skip
    people = [row(n, f"other{n}@example.com", page=None) for n in range(70)]
    stopped = run(job, people)
    assert (stopped.code, "another address than before" in stopped.err) == (65, True)
    assert run(job, people).code == 65  # as long as no run has reported them


@pytest.mark.parametrize("fault", [Fault(status=500, store=True), Fault(status=401, body=b'{"code":"BadApiKey"}')])
def test_a_value_that_is_gone_again_after_its_update_failed_sends_no_other_field(
    job: Program, iterable: StandIn, fault: Fault
) -> None:
    path = job.folder.parent / "people.db"
    use_query(job, "SELECT user_id, email, plan, city, NULL AS event_time FROM rows")
    job.settings |= {"DATABASE_URL": f"sqlite:///{path}", "USER_FIELDS": "plan,city", "EVENT_FIELDS": "-"}

    def city(value: str | None) -> None:
        path.unlink(missing_ok=True)
        make_table(path, "user_id, email, plan, city", [(1, ADA, "pro", value), (2, BOB, "pro", "Rome")])

    city(None)
    assert job.run().code == 0
    city("Paris")
    iterable.inject(fault)
    assert job.run(MAX_RETRIES="1").code in (75, 77)
    iterable.clear_faults()
    city(None)
    iterable.project.requests.clear()
    for _ in range(2):
        ended = job.run()
        assert (ended.code, ended.counts("users")) == (0, {"unchanged": 2})
    assert updates(iterable) == []
