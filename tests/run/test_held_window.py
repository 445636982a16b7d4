"""With :since, whatever is neither delivered nor wrong for ever is read again, without a full read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.sandbox import Fault, StandIn
from tests.endings import WAYS
from tests.program import Finished, Program, make_table, use_query

QUERY = "SELECT email, page, event_time FROM rows WHERE updated_at >= :since"
LATE = [f"{number}@example.com" for number in range(4, 8)]
THEN = "2026-01-13 08:00:00"


@pytest.fixture
def program(tmp_path: Path, iterable: StandIn) -> Program:
    """Four people were read an hour ago, by a full read; four others have come since."""
    program = Program(tmp_path / "out", iterable.url)
    rows = [(f"{number}@example.com", "p", THEN, moment(hours=-48)) for number in range(4)]
    make_table(tmp_path / "users.db", "email,page,event_time,updated_at", rows)
    use_query(program, QUERY)
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "SINCE_OVERLAP_HOURS": "0", "FULL_READ_DAYS": "0"}
    program.settings |= {**settings, "MAX_WORKERS": "1", "ALERT_AFTER": "0"}
    assert program.run().code == 0
    an_hour_passes(program)
    for who in LATE:
        add_row(program, who)
    return program


def moment(**since_now: float) -> str:
    return f"{datetime.now(timezone.utc) + timedelta(**since_now):%Y-%m-%d %H:%M:%S}"


def add_row(program: Program, who: str, *, event_time: str = THEN) -> None:
    with closing(sqlite3.connect(program.folder.parent / "users.db")) as database, database:
        database.execute("INSERT INTO rows VALUES (?, 'p', ?, ?)", (who, event_time, moment(minutes=-30)))


def an_hour_passes(program: Program) -> None:
    """As the ledger sees it."""
    with closing(sqlite3.connect(program.folder / LEDGER_NAME)) as ledger, ledger:
        ledger.execute("UPDATE queries SET cursor_at = cursor_at - 3600, last_full_at = last_full_at - 3600")


def rows_read(run: Finished) -> int:
    return int(run.results["counts"]["rows"])


@pytest.mark.parametrize("name", WAYS)
def test_what_a_run_did_not_settle_is_settled_by_the_next_one(name: str, program: Program, iterable: StandIn) -> None:
    way, code = WAYS[name]
    assert way(program, iterable) == (0 if code == 1 else code)  # nothing is rejected here
    iterable.clear_faults()
    assert program.run().code == 0
    assert set(LATE) <= set(iterable.project.users)
    assert {each["email"] for each in iterable.project.events.values()} >= set(LATE)


FORGOTTEN = b'{"msg":"no","code":"ForgottenUserError","params":null}'
MISMATCH = b'{"msg":"no","code":"RequestFieldsTypesMismatched","params":null}'
DISALLOWED = b'{"msg":"Event is disallowed from tracking","code":"Success","params":null}'
REASONS = {
    "forgotten": (400, FORGOTTEN, "ForgottenUserError"),
    "a field's type": (400, MISMATCH, "RequestFieldsTypesMismatched"),
    "not found": (404, b'{"msg":"no","code":"NotFound","params":null}', "NotFound"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_rejection_that_may_pass_is_offered_again_until_it_does(
    reason: str, program: Program, iterable: StandIn
) -> None:
    status, body, code = REASONS[reason]
    iterable.inject(Fault(match=b'"7@example.com"', status=status, body=body))
    for _ in range(3):
        run = program.run()
        assert (run.code, run.results["since"]["mark_moved"]) == (1, True)
        assert code in {each["code"] for each in run.results["reasons"]}
        assert (rows_read(run), run.results["since"]["full_read"]) == (4, False)
    iterable.clear_faults()
    assert (program.run().code, "7@example.com" in iterable.project.users) == (0, True)
    assert rows_read(program.run()) == 0


def test_disallowed_event_name_does_not_switch_since_off(program: Program, iterable: StandIn) -> None:
    iterable.inject(Fault(match=b'"7@example.com"', path="/api/events/track", status=200, body=DISALLOWED))
    run = program.run()
    assert (run.code, run.results["since"]["mark_moved"]) == (1, True)
    run = program.run()
    assert (run.code, rows_read(run), run.results["since"]["full_read"]) == (1, 4, False)
    assert "records that may still be accepted were first read from then on" in run.out


def test_record_that_keeps_failing_is_offered_again(program: Program, iterable: StandIn) -> None:
    iterable.inject(Fault(match=b'"7@example.com"', status=503))
    codes = []
    for number in range(5):
        add_row(program, f"new{number}@example.com")
        codes.append(program.run().code)
    assert codes == [75, 75, 1, 1, 1]
    iterable.clear_faults()
    assert program.run().code == 0
    assert "7@example.com" in iterable.project.users


def test_event_dated_ahead_is_read_again(program: Program, iterable: StandIn) -> None:
    add_row(program, "7@example.com", event_time=moment(days=5))
    for _ in range(3):
        run = program.run()
        assert (run.code, rows_read(run), run.results["since"]["full_read"]) == (1, 5, False)


def test_row_that_is_wrong_itself_is_not_read_again(program: Program, iterable: StandIn) -> None:
    add_row(program, "no address")
    assert (program.run().code, program.run().code) == (1, 0)


def test_after_30_days_only_a_full_read_is_left_and_the_summary_says_so(program: Program, iterable: StandIn) -> None:
    iterable.inject(Fault(match=b'"7@example.com"', status=400, body=MISMATCH))
    assert program.run().code == 1
    with closing(sqlite3.connect(program.folder / LEDGER_NAME)) as ledger, ledger:
        ledger.execute("UPDATE past_failures SET first_at = first_at - 30 * 86400")
    run = program.run()
    assert (run.code, rows_read(run)) == (0, 0)
    assert "2 records that may still be accepted failed first 30 days ago or more; only full reads" in run.out
    assert program.run("--since", "all").code == 1


def test_full_read_whose_cursor_stays_is_remembered_all_the_same(program: Program, iterable: StandIn) -> None:
    with closing(sqlite3.connect(program.folder / LEDGER_NAME)) as ledger, ledger:
        ledger.execute("UPDATE queries SET last_full_at = last_full_at - 8 * 86400")
    iterable.inject(Fault(match=b'"7@example.com"', status=503))
    program.settings["FULL_READ_DAYS"] = "7"
    run = program.run()
    assert (run.code, run.results["since"]["full_read"], run.results["since"]["mark_moved"]) == (75, True, False)
    assert "The next run reads from the same time again: the run ended with exit code 75" in run.out
    iterable.clear_faults()
    run = program.run()
    assert "the last full read is" not in run.out


def test_events_that_share_an_id_are_reported_once_and_all_read_again_when_one_of_them_was_fixed(
    tmp_path: Path, iterable: StandIn
) -> None:
    program = Program(tmp_path / "out", iterable.url)
    rows = [
        ("ada@example.com", "e1", "p", "2026-01-13 08:00:00", moment(hours=-2)),
        ("ada@example.com", "e1", "p", "2026-01-13 09:00:00", moment(hours=-2)),
        ("bob@example.com", "e1", "p", "2026-01-13 10:00:00", moment(hours=-2)),
    ]
    make_table(tmp_path / "users.db", "email,event_id,page,event_time,updated_at", rows)
    use_query(program, "SELECT email, event_id, page, event_time FROM rows WHERE updated_at >= :since")
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "SINCE_OVERLAP_HOURS": "0", "FULL_READ_DAYS": "0"}
    program.settings |= {**settings, "EXIT_ON_REJECTED": "new", "SINCE_START": moment(hours=-3)}
    assert [program.run().code for _ in range(3)] == [1, 0, 0]
    assert iterable.project.events == {}
    with closing(sqlite3.connect(tmp_path / "users.db")) as database, database:
        for number, hour in ((2, "09"), (3, "10")):
            database.execute(
                "UPDATE rows SET event_id = ?, updated_at = ? WHERE event_time = ?",
                (f"e{number}", moment(), f"2026-01-13 {hour}:00:00"),
            )
    assert program.run().code == 0
    assert sorted(iterable.project.events) == ["e1", "e2", "e3"]
    assert program.run().results["counts"]["rows"] <= 2  # nothing is held any more


def test_what_waited_for_an_address_that_was_entered_is_read_and_sent_by_the_next_run(
    tmp_path: Path, iterable: StandIn
) -> None:
    program = Program(tmp_path / "out", iterable.url)
    columns = "user_id, email, page, event_time"
    make_table(tmp_path / "users.db", f"{columns},updated_at", [(1, "old@example.com", "p", THEN, moment(hours=-48))])
    use_query(program, f"SELECT {columns} FROM rows WHERE updated_at >= :since")
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/users.db", "SINCE_OVERLAP_HOURS": "0", "FULL_READ_DAYS": "0"}
    program.settings |= settings
    assert program.run().code == 0
    an_hour_passes(program)
    with closing(sqlite3.connect(tmp_path / "users.db")) as database, database:
        database.execute("INSERT INTO rows VALUES (1, 'new@example.com', 'q', ?, ?)", (THEN, moment(minutes=-30)))
        database.execute("UPDATE rows SET email = 'new@example.com'")
    assert [program.run().code for _ in range(2)] == [1, 1]
    iterable.project.users["new@example.com"] = iterable.project.users.pop("old@example.com")
    assert program.run("--baseline", "--only", "new@example.com", "--yes").code == 0
    run = program.run()
    assert (run.code, run.counts("events")) == (0, {"delivered": 1})
    assert rows_read(program.run()) == 0
