"""The ledger on real files: what enters it, what it forgets, and who may hold it."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger.accepted import REFRESH_DAYS, TABLES
from pipeline.ledger.file import LOCK_NAME
from pipeline.ledger.ledger import (
    FORGET_AFTER_DAYS,
    LEDGER_NAME,
    Cursor,
    IdScheme,
    LedgerBusyError,
    LedgerError,
    Project,
    open_ledger,
)
from pipeline.model.exits import OutputError
from pipeline.model.records import Kind, Outcome
from tests.opened import PROJECT, Opened
from tests.processes import child
from tests.records import (
    ADA,
    BOB,
    CY,
    DAY_S,
    TODAY,
    event,
    holder,
    opening,
    pending,
    posix_only,
    reading,
    rejected,
    run,
    shown,
    stage,
    user,
)

AT_REST = {LEDGER_NAME, LOCK_NAME}
WHILE_A_RUN_IS_ACTIVE = {*AT_REST, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm"}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with opening(tmp_path) as both:
        yield both


# What enters the ledger -----------------------------------------------------------------------------------------------


def test_second_run_over_the_same_rows_sends_nothing(tmp_path: Path) -> None:
    rows = [(ADA, "pro", "e1"), (ADA, "pro", "e2"), (BOB, "free", "e3")]
    assert run(tmp_path, *rows) == [
        "user ada@example.com row 2: pro",
        "user bob@example.com row 3: free",
        "event ada@example.com row 1: e1",
        "event ada@example.com row 2: e2",
        "event bob@example.com row 3: e3",
    ]
    assert run(tmp_path, *rows) == []


def test_user_who_changes_and_changes_back_is_sent_three_times(tmp_path: Path) -> None:
    sent = [run(tmp_path, (ADA, plan, None)) for plan in ("pro", "free", "pro", "pro")]
    assert sent == [
        ["user ada@example.com row 1: pro"],
        ["user ada@example.com row 1: free"],
        ["user ada@example.com row 1: pro"],
        [],
    ]


def test_event_is_sent_once_ever_and_a_new_one_beside_it_alone(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", "e1"))
    assert run(tmp_path, (ADA, "pro", "e1"), (ADA, "pro", "e2")) == ["event ada@example.com row 2: e2"]
    assert run(tmp_path, (ADA, "pro", "e2"), (ADA, "pro", "e1")) == []


def test_event_whose_content_changed_under_its_id_is_sent_again(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", "e1"))
    with opening(tmp_path) as opened:
        stage(opened, user(opened, 1), event(opened, 1, "e1", page="home"))
        assert shown(pending(opened)) == ["event ada@example.com row 1: e1"]


def test_full_run_sends_everything_again(tmp_path: Path) -> None:
    first = run(tmp_path, (ADA, "pro", "e1"))
    assert run(tmp_path, (ADA, "pro", "e1"), skip_unchanged=False) == first


def test_what_was_not_accepted_is_offered_again(tmp_path: Path) -> None:
    def offer(opened: Opened) -> list[str]:
        stage(opened, *[user(opened, row, f"{row}@example.com") for row in range(1, 7)])
        return sorted(record.identity for record in opened.stage.pending(Kind.USER))

    with opening(tmp_path) as opened:
        offer(opened)
        opened.accept([user(opened, 1, "1@example.com")])
        opened.stage.outcomes.note([rejected(Kind.USER, 2), rejected(Kind.USER, 3, outcome=Outcome.UNACKNOWLEDGED)])
        opened.stage.outcomes.hold([rejected(Kind.USER, 4)])
        opened.stage.outcomes.give_up_held()
        opened.stage.note_not_attempted("the run stopped")
        opened.ledger.commit()
        assert opened.stage.states.count_outcomes()[Kind.USER] == {
            Outcome.DELIVERED: 1,
            Outcome.UNCHANGED: 0,
            Outcome.REJECTED: 1,
            Outcome.UNACKNOWLEDGED: 2,
            Outcome.NOT_ATTEMPTED: 2,
        }
    with opening(tmp_path) as opened:
        assert offer(opened) == [f"{row}@example.com" for row in range(2, 7)]


def break_off(folder: Path) -> None:
    with opening(folder) as opened:
        stage(opened, user(opened, 1, ADA), user(opened, 2, BOB))
        opened.accept([user(opened, 1, ADA)])
        opened.ledger.commit()
        opened.accept([user(opened, 2, BOB)])
        raise InterruptedError


def test_run_that_breaks_off_keeps_what_was_committed_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        break_off(tmp_path)
    assert run(tmp_path, (ADA, "pro", None), (BOB, "pro", None)) == ["user bob@example.com row 2: pro"]


def test_two_projects_share_the_file_and_nothing_in_it(tmp_path: Path) -> None:
    first = run(tmp_path, (ADA, "pro", "e1"))
    assert run(tmp_path, (ADA, "pro", "e1"), project=Project("https://api.eu.iterable.com", "another-key")) == first
    assert run(tmp_path, (ADA, "pro", "e1")) == []


def test_ledger_without_a_file_lasts_for_its_run_only(tmp_path: Path) -> None:
    first = run(tmp_path, (ADA, "pro", "e1"), lasting=False)
    assert run(tmp_path, (ADA, "pro", "e1"), lasting=False) == first
    assert list(tmp_path.iterdir()) == []


def test_files_hold_hashes_only(tmp_path: Path) -> None:
    with opening(tmp_path) as opened:
        records = [user(opened, 1, ADA, "Lovelace"), event(opened, 1, "event-id-17", page="secret page")]
        stage(opened, *records)
        opened.accept(records)
        opened.stage.outcomes.note([rejected(Kind.EVENT, 2)])
        opened.ledger.commit()
        while_open = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert records[0].key in while_open
    assert {path.name for path in tmp_path.iterdir()} == AT_REST
    for content in (while_open, (tmp_path / LEDGER_NAME).read_bytes()):
        for word in (b"ada@", b"example", b"Lovelace", b"event-id-17", b"secret page", b"key-of-this", b"visit"):
            assert word not in content


def test_hashes_depend_on_the_project_so_that_addresses_cannot_be_tried_out(tmp_path: Path) -> None:
    with opening(tmp_path, Project("https://api.iterable.com", "one")) as opened:
        one = user(opened, 1)
    with opening(tmp_path, Project("https://api.iterable.com", "two")) as opened:
        two = user(opened, 1)
    assert (one.key == two.key, one.fingerprint == two.fingerprint) == (False, False)


def test_what_may_have_been_overwritten_is_known_without_a_fingerprint_until_it_is_accepted_again(
    tmp_path: Path,
) -> None:
    run(tmp_path, (ADA, "pro", "e1"), (BOB, "pro", None))
    with opening(tmp_path) as opened:
        ada, bob, cy = (user(opened, 1, who) for who in (ADA, BOB, CY))
        opened.ledger.invalidate([ada, cy])
        assert opened.ledger.known([ada.key, bob.key, cy.key]) == {ada.key: b"", bob.key: bob.fingerprint}
        assert opened.ledger.count_known() == 3
    assert run(tmp_path, (ADA, "pro", "e1"), (BOB, "pro", None)) == ["user ada@example.com row 1: pro"]
    assert run(tmp_path, (ADA, "pro", "e1"), (BOB, "pro", None)) == []


VOID = """
import os, signal, sys
from pathlib import Path
from tests.opened import open_both
from tests.records import ADA, BOB, DAY_S, TODAY, user
with open_both(Path(sys.argv[1]), now=TODAY * DAY_S) as opened:
    opened.ledger.accept([user(opened, 1, BOB, "free")])
    opened.ledger.invalidate([user(opened, 1, ADA)])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@posix_only
def test_user_who_changes_and_changes_back_is_sent_again_also_where_the_change_was_never_answered(
    tmp_path: Path,
) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    with child(VOID, tmp_path) as process:
        process.wait()
    assert run(tmp_path, (ADA, "pro", None), (BOB, "free", None)) == ["user ada@example.com row 1: pro"]


def test_nothing_is_written_where_nothing_that_is_known_may_be_overwritten(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    with opening(tmp_path) as opened:
        opened.ledger.commit()
        unknown = [user(opened, 1, who) for who in (BOB, CY)]
        before = (tmp_path / f"{LEDGER_NAME}-wal").read_bytes()
        opened.ledger.invalidate(unknown)
        opened.ledger.invalidate([])
        assert (tmp_path / f"{LEDGER_NAME}-wal").read_bytes() == before


def test_it_is_known_when_each_record_was_accepted_last(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    run(tmp_path, (ADA, "free", None), (BOB, "pro", None), day=TODAY + 3)
    with reading(tmp_path) as opened:
        keys = [opened.ledger.user_key(who) for who in (ADA, BOB, CY)]
        accepted_on = {key: at // DAY_S for key, at in opened.ledger.accepted_at(keys).items()}
    assert accepted_on == {keys[0]: TODAY + 3, keys[1]: TODAY}


def test_more_keys_than_a_statement_takes_are_no_matter(opened: Opened) -> None:
    users = [user(opened, row, f"{row}@example.com") for row in range(1, 1202)]
    keys = [each.key for each in users]
    opened.ledger.accept(users)
    opened.ledger.invalidate(users[:1100])
    assert opened.ledger.known(keys) == {
        each.key: b"" if number < 1100 else each.fingerprint for number, each in enumerate(users)
    }
    assert (len(opened.ledger.accepted_at(keys)), opened.ledger.count_known()) == (1201, 1201)


def test_records_are_counted_by_project(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", "e1"))
    run(tmp_path, (BOB, "pro", None), project=Project("https://api.iterable.com", "another-key"))
    with reading(tmp_path) as opened:
        assert opened.ledger.count_known() == 2


# What else one run leaves to the next ---------------------------------------------------------------------------------


def test_mark_is_that_of_its_query_and_project(tmp_path: Path) -> None:
    first, second = Cursor(1_000, b"circumstances", 900), Cursor(2_000, b"others", 900)
    with opening(tmp_path) as opened:
        assert opened.ledger.queries.cursor("/srv/a.sql") is None
        opened.refresh("/srv/a.sql", full_read=False)
        assert opened.ledger.queries.cursor("/srv/a.sql") is None
        opened.ledger.queries.set_cursor("/srv/a.sql", first)
        opened.ledger.queries.set_cursor("/srv/b.sql", first)
        opened.ledger.queries.set_cursor("/srv/a.sql", second)
        opened.refresh("/srv/a.sql")
        opened.ledger.commit()
    with reading(tmp_path) as opened:
        assert [opened.ledger.queries.cursor(f"/srv/{name}.sql") for name in "abc"] == [second, first, None]
    with reading(tmp_path, Project("https://api.iterable.com", "another-key")) as opened:
        assert opened.ledger.queries.cursor("/srv/a.sql") is None


def test_ways_of_making_ids_are_kept_in_the_order_of_their_first_use(tmp_path: Path) -> None:
    with opening(tmp_path) as opened:
        opened.ledger.queries.add_id_scheme("/srv/a.sql", "zone: UTC", accepted=False)
        opened.ledger.queries.add_id_scheme("/srv/a.sql", "zone: Europe/Berlin", accepted=True)
        opened.ledger.queries.add_id_scheme("/srv/a.sql", "zone: Europe/Berlin", accepted=False)
        opened.ledger.queries.add_id_scheme("/srv/b.sql", "zone: UTC", accepted=False)
        opened.ledger.queries.add_id_scheme("/srv/b.sql", "zone: UTC", accepted=True)
        opened.ledger.commit()
    with reading(tmp_path) as opened:
        assert [opened.ledger.queries.id_schemes(f"/srv/{name}.sql") for name in "abc"] == [
            [IdScheme("zone: UTC", False), IdScheme("zone: Europe/Berlin", True)],
            [IdScheme("zone: UTC", True)],
            [],
        ]


def test_dropped_fields_are_remembered_until_they_are_forgotten(tmp_path: Path) -> None:
    for fields in ([(Kind.USER, "plan"), (Kind.EVENT, "plan")], [(Kind.USER, "plan"), (Kind.USER, "tier")]):
        with opening(tmp_path) as opened:
            opened.ledger.dropped_fields.remember(fields)
            opened.ledger.commit()
    with opening(tmp_path) as opened:
        opened.ledger.dropped_fields.forget([(Kind.USER, "plan"), (Kind.EVENT, "unknown")])
        opened.ledger.commit()
    with reading(tmp_path) as opened:
        assert opened.ledger.dropped_fields.all() == {(Kind.EVENT, "plan"), (Kind.USER, "tier")}
    with reading(tmp_path, Project("https://api.iterable.com", "another-key")) as opened:
        assert opened.ledger.dropped_fields.all() == set()


# Keys -----------------------------------------------------------------------------------------------------------------


def test_keys_and_fingerprints_stay_what_they_are_as_every_ledger_holds_them(opened: Opened) -> None:
    """A change of them would send everything again."""
    key = opened.ledger.user_key(ADA)
    assert key.hex() == "9e5b2f6943190cafe424e5dd17e996c4"
    assert opened.ledger.event_keys([key], ["e1"])[0].hex() == "9e5b2f6943190caf0033740b37da1ee32bd4edf3"
    assert opened.ledger.fingerprints([b"{}"])[0].hex() == "5eaa1d979121833b946a59bb83110cb7"


# Forgetting -----------------------------------------------------------------------------------------------------------


def known_days(folder: Path) -> list[int]:
    with sqlite3.connect(folder / LEDGER_NAME) as database:
        days = [database.execute(f"SELECT seen_day FROM {table}").fetchall() for table in TABLES]
    database.close()
    return [day for of_table in days for (day,) in of_table]


@pytest.mark.parametrize(("days_later", "is_kept"), [(FORGET_AFTER_DAYS, True), (FORGET_AFTER_DAYS + 1, False)])
def test_entry_that_no_query_shows_is_dropped_after_400_days(tmp_path: Path, days_later: int, is_kept: bool) -> None:
    run(tmp_path, (ADA, "pro", None))
    run(tmp_path, (BOB, "pro", None), day=TODAY + days_later)
    assert run(tmp_path, (ADA, "pro", None), day=TODAY + days_later) == (
        [] if is_kept else ["user ada@example.com row 1: pro"]
    )


@pytest.mark.parametrize(("days_later", "seen_day"), [(REFRESH_DAYS, TODAY), (REFRESH_DAYS + 1, TODAY + 31)])
def test_entry_still_shown_is_refreshed_when_its_day_lags_by_more_than_30(
    tmp_path: Path, days_later: int, seen_day: int
) -> None:
    run(tmp_path, (ADA, "pro", "e1"))
    assert run(tmp_path, (ADA, "pro", "e1"), day=TODAY + days_later) == []
    assert known_days(tmp_path) == [seen_day, seen_day]


def test_entry_shown_each_month_is_never_dropped(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", "e1"))
    sent = [run(tmp_path, (ADA, "pro", "e1"), day=TODAY + 40 * month) for month in range(1, 25)]
    assert sent == [[]] * 24


def read(folder: Path, day: int, query: str, *people: str, full_read: bool = True) -> None:
    """A run of a query that shows these people and sends nothing."""
    with opening(folder, day=TODAY + day) as opened:
        opened.ledger.refresh([opened.ledger.user_key(who) for who in people], query, full_read=full_read)
        opened.ledger.commit()


def known(folder: Path, *people: str) -> list[str]:
    with reading(folder) as opened:
        return [who for who in people if opened.ledger.known([opened.ledger.user_key(who)])]


def test_only_a_full_read_drops_entries(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    read(tmp_path, 401, "query.sql", BOB, full_read=False)
    assert known(tmp_path, ADA, BOB) == [ADA, BOB]
    read(tmp_path, 401, "query.sql", BOB)
    assert known(tmp_path, ADA, BOB) == [BOB]


def test_entry_of_a_query_that_reads_what_changed_outlives_the_full_reads_of_another(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    read(tmp_path, 0, "ada.sql", ADA)
    for day in range(0, 1200, 100):
        read(tmp_path, day, "ada.sql", full_read=False)
        read(tmp_path, day, "bob.sql", BOB)
        assert known(tmp_path, ADA, BOB) == [ADA, BOB]
    read(tmp_path, 1200, "ada.sql")
    assert known(tmp_path, ADA, BOB) == [BOB]


def test_query_that_was_never_read_in_full_keeps_all_entries(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    read(tmp_path, 500, "ada.sql", full_read=False)
    read(tmp_path, 500, "bob.sql", BOB)
    assert known(tmp_path, ADA, BOB) == [ADA, BOB]


@pytest.mark.parametrize(("days_later", "kept"), [(400, [ADA, BOB]), (401, [BOB])])
def test_query_that_was_not_used_for_400_days_keeps_nothing(tmp_path: Path, days_later: int, kept: list[str]) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None))
    read(tmp_path, 100, "ada.sql", full_read=False)
    read(tmp_path, 100 + days_later, "bob.sql", BOB)
    assert known(tmp_path, ADA, BOB) == kept


def test_full_read_of_one_project_drops_nothing_of_another(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    another = Project("https://api.iterable.com", "another-key")
    run(tmp_path, (BOB, "pro", None), project=another, day=TODAY + 500)
    assert known(tmp_path, ADA) == [ADA]


def test_what_is_shown_block_by_block_is_kept_as_well(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None), (BOB, "pro", None), (CY, "pro", None))
    with opening(tmp_path, day=TODAY + 500) as opened:
        opened.ledger.mark_seen([opened.ledger.user_key(ADA)])
        opened.ledger.mark_seen([opened.ledger.user_key(CY)])
        opened.ledger.end_reading("query.sql", full_read=True)
        opened.ledger.commit()
    assert known(tmp_path, ADA, BOB, CY) == [ADA, CY]


# One at a time --------------------------------------------------------------------------------------------------------

OPEN = """
import sys, time
from pathlib import Path
from pipeline.ledger.ledger import LedgerBusyError
from tests.opened import open_both
before = time.monotonic()
try:
    with open_both(Path(sys.argv[1]), now=0):
        print("opened")
except LedgerBusyError as error:
    print(f"busy within a second: {time.monotonic() - before < 1}; {error}")
"""


def test_second_process_finds_the_ledger_busy_within_a_second_and_free_after_the_first(tmp_path: Path) -> None:
    with opening(tmp_path), child(OPEN, tmp_path) as process:
        told, _ = process.communicate(timeout=10)
    path = tmp_path / LEDGER_NAME
    assert told == (
        f"busy within a second: True; Another run is active: it holds {path}. Nothing was read, written or sent.\n"
    )
    with child(OPEN, tmp_path) as process:
        assert process.communicate(timeout=10)[0] == "opened\n"


def test_ledger_held_elsewhere_can_be_read_here_and_nothing_more(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    with holder(tmp_path):
        with pytest.raises(LedgerBusyError), opening(tmp_path):
            pass
        with reading(tmp_path) as opened:
            assert opened.ledger.count_known() == 1
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                opened.ledger.accept([user(opened, 1, BOB)])


@posix_only
def test_killed_holder_leaves_the_ledger_free_and_nothing_of_the_stage(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        while_on = {path.name for path in tmp_path.iterdir()}
        process.kill()
    after = {path.name for path in tmp_path.iterdir()}
    assert while_on == after == WHILE_A_RUN_IS_ACTIVE
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000  # the stage had 30 MB
    assert run(tmp_path, (ADA, "pro", None)) == ["user ada@example.com row 1: pro"]


# Files ----------------------------------------------------------------------------------------------------------------


@posix_only
def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with opening(tmp_path) as opened:
            stage(opened, user(opened, 1))
            opened.accept([user(opened, 1)])
            opened.ledger.commit()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(WHILE_A_RUN_IS_ACTIVE, 0o600)


@posix_only
@pytest.mark.parametrize("name", [LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-journal"])
@pytest.mark.parametrize("exists", [True, False])
def test_planted_symbolic_link_is_refused_and_its_target_untouched(tmp_path: Path, name: str, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        target.write_bytes(b"precious")
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(LedgerError, match="symbolic link"), opening(folder):
        pass
    assert (target.exists(), exists and target.read_bytes()) == (exists, exists and b"precious")


def test_dry_run_in_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't hold the records"), reading(tmp_path / "gone"):
        pass


def test_folder_with_a_quote_in_its_name_is_as_good_as_any(tmp_path: Path) -> None:
    folder = tmp_path / 'Ada\'s "outputs"'
    folder.mkdir()
    assert run(folder, (ADA, "pro", None)) == ["user ada@example.com row 1: pro"]


def test_folder_in_the_ledgers_place_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).mkdir()
    with pytest.raises(LedgerError, match="can't be opened"), opening(tmp_path):
        pass


def many_entries(folder: Path) -> bytes:
    """A ledger of many pages -> its bytes."""
    run(folder, *[(f"{number}@example.com", "pro", None) for number in range(2000)])
    return (folder / LEDGER_NAME).read_bytes()


DAMAGES = {
    "garbage": lambda content: b"this is no database, whoever wrote it here; " * 1000,
    "a few words": lambda content: b"not a database",
    "half of it": lambda content: content[: len(content) // 2],
    "half a page": lambda content: content[:2048],
    "its head overwritten": lambda content: b"\xff" * 100 + content[100:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_ledger_is_set_aside_where_that_is_asked_for(tmp_path: Path, damage: Any) -> None:
    content = damage(many_entries(tmp_path))
    (tmp_path / LEDGER_NAME).write_bytes(content)
    aside = tmp_path / f"{LEDGER_NAME}.damaged-{TODAY * DAY_S}"
    with open_ledger(tmp_path, PROJECT, now=TODAY * DAY_S, replace_damaged=True) as ledger:
        warning = ledger.warning
    assert warning.startswith("The ledger was damaged (")
    assert warning.endswith(f"). It is now {aside.name}, and a new one has begun.")
    run(tmp_path, (ADA, "pro", None))
    assert aside.read_bytes() == content
    assert run(tmp_path, (ADA, "pro", None), (BOB, "pro", None)) == ["user bob@example.com row 2: pro"]


def test_ledger_damaged_in_its_middle_is_damaged_too(tmp_path: Path) -> None:
    content = bytearray(many_entries(tmp_path))
    content[8192 : len(content) - 4096] = os.urandom(len(content) - 12288)
    (tmp_path / LEDGER_NAME).write_bytes(content)
    with opening(tmp_path) as opened:
        assert "is damaged" in opened.ledger.damage


def test_helper_file_of_garbage_is_let_be(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    (tmp_path / f"{LEDGER_NAME}-wal").write_bytes(b"garbage" * 1000)
    assert run(tmp_path, (ADA, "pro", None)) == []


def test_ledger_of_another_version_is_refused_and_kept(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    with sqlite3.connect(tmp_path / LEDGER_NAME) as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(LedgerError, match=r"another version of this program \(format 7\)"), opening(tmp_path):
        pass
    assert known_days(tmp_path) == [TODAY]


def test_read_only_without_a_file_makes_none(tmp_path: Path) -> None:
    with reading(tmp_path) as opened:
        stage(opened, user(opened, 1))
        assert shown(pending(opened)) == ["user ada@example.com row 1: pro"]
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_read_only_knows_what_was_accepted_and_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, (ADA, "pro", None))
    before = (tmp_path / LEDGER_NAME).read_bytes()
    with reading(tmp_path, day=TODAY + 1000) as opened:
        stage(opened, user(opened, 1), user(opened, 2, BOB))
        opened.stage.note_not_attempted("a dry run")
        assert opened.stage.states.count_outcomes()[Kind.USER][Outcome.UNCHANGED] == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {LEDGER_NAME: before, LOCK_NAME: b""}
