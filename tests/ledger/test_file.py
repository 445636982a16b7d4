"""The ledger's file: who may read it and when, its modes, its helpers, full disks, and kills at any moment."""

from __future__ import annotations

import errno
import os
import random
import signal
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.ledger import lock
from pipeline.ledger.file import LOCK_NAME
from pipeline.ledger.ledger import (
    LEDGER_NAME,
    Ledger,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    is_run_active,
    open_ledger,
    read_ledger,
)
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind, Record
from tests.opened import PROJECT
from tests.processes import child, file_size_limit

ROOT = Path(__file__).parent.parent.parent
AT_REST = {LEDGER_NAME, LOCK_NAME}
HELPERS = {f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm"}

posix_only = pytest.mark.skipif(os.name == "nt", reason="modes, links and SIGKILL are POSIX")


def records(count: int, first: int = 0) -> list[Record]:
    numbers = range(first, first + count)
    return [Record(Kind.USER, 1, "ada@example.com", b"%016d" % each, b"f" * 16, b"{}") for each in numbers]


def fill(folder: Path, count: int, first: int = 0) -> None:
    with open_ledger(folder, PROJECT, now=0) as ledger:
        ledger.accept(records(count, first))
        ledger.commit()


def count(folder: Path) -> int:
    with read_ledger(folder, PROJECT, now=0) as ledger:
        return ledger.count_known()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The format -----------------------------------------------------------------------------------------------------------


def test_schema_stays_what_it_is_as_every_ledger_has_it(tmp_path: Path) -> None:
    """Another one needs another FORMAT, and a way to take over the ledgers of this one."""
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        columns = {
            table: [f"{name} {kind}{' NOT NULL' * not_null}" for _, name, kind, not_null, *_ in rows]
            for (table,) in tables
            for rows in [database.execute(f"PRAGMA table_info({table})").fetchall()]
        }
    assert version == 3
    assert columns == {
        "users": [
            "project INTEGER NOT NULL",
            "key BLOB NOT NULL",
            "fingerprint BLOB NOT NULL",
            "fields BLOB NOT NULL",
            "person BLOB",
            "address BLOB",
            "origin BLOB",
            "moving_to BLOB",
            "query INTEGER NOT NULL",
            "accepted_at INTEGER NOT NULL",
            "run INTEGER NOT NULL",
            "seen_day INTEGER NOT NULL",
        ],
        "events": [
            "project INTEGER NOT NULL",
            "key BLOB NOT NULL",
            "fingerprint BLOB NOT NULL",
            "accepted_at INTEGER NOT NULL",
            "run INTEGER NOT NULL",
            "seen_day INTEGER NOT NULL",
        ],
        "more_persons": ["project INTEGER NOT NULL", "person BLOB NOT NULL", "key BLOB NOT NULL"],
        "given_events": [
            "project INTEGER NOT NULL",
            "key BLOB NOT NULL",
            "person BLOB NOT NULL",
            "fingerprint BLOB NOT NULL",
            "accepted_at INTEGER NOT NULL",
            "run INTEGER NOT NULL",
            "seen_day INTEGER NOT NULL",
        ],
        "forgotten": [
            "project INTEGER NOT NULL",
            "hash BLOB NOT NULL",
            "number INTEGER NOT NULL",
            "day INTEGER NOT NULL",
        ],
        "dropped_fields": ["project INTEGER NOT NULL", "kind TEXT NOT NULL", "name TEXT NOT NULL"],
        "projects": [
            "id INTEGER",
            "server BLOB NOT NULL",
            "first_key BLOB NOT NULL",
            "name BLOB",
            "secret_by_name BLOB",
            "last_key BLOB NOT NULL",
            "secret_by_last_key BLOB NOT NULL",
        ],
        "queries": [
            "id INTEGER",
            "project INTEGER NOT NULL",
            "query BLOB NOT NULL",
            "used_day INTEGER NOT NULL",
            "full_day INTEGER",
            "full_users INTEGER",
            "trusts_id INTEGER",
            "cursor_at INTEGER",
            "holds_for BLOB",
            "last_full_at INTEGER",
        ],
        "row_digests": [
            "project INTEGER NOT NULL",
            "key BLOB NOT NULL",
            "query INTEGER NOT NULL",
            "digest BLOB NOT NULL",
            "events INTEGER NOT NULL",
            "is_found INTEGER NOT NULL",
            "is_known_person INTEGER NOT NULL",
            "day INTEGER NOT NULL",
        ],
        "runs": [
            "id INTEGER",
            "project INTEGER NOT NULL",
            "run_id TEXT NOT NULL",
            "started_at INTEGER NOT NULL",
            "query_file TEXT NOT NULL",
            "status TEXT",
            "exit_code INTEGER",
            "reason TEXT",
            "duration_s REAL",
            "rows INTEGER",
            "since_from INTEGER",
            "full_read INTEGER",
            "users TEXT",
            "events TEXT",
        ],
        "past_failures": [
            "project INTEGER NOT NULL",
            "key BLOB NOT NULL",
            "query BLOB NOT NULL",
            "fingerprint BLOB NOT NULL",
            "reasons BLOB NOT NULL",
            "outcome TEXT NOT NULL",
            "status_code INTEGER",
            "code TEXT",
            "streak INTEGER NOT NULL",
            "noted_at INTEGER NOT NULL",
            "first_at INTEGER NOT NULL",
            "window_from INTEGER",
        ],
        "verifications": [
            "project INTEGER",
            "at INTEGER NOT NULL",
            "exit_code INTEGER NOT NULL",
            "users TEXT NOT NULL",
            "events TEXT NOT NULL",
        ],
        "id_schemes": [
            "id INTEGER",
            "project INTEGER NOT NULL",
            "query BLOB NOT NULL",
            "description TEXT NOT NULL",
            "accepted INTEGER NOT NULL",
        ],
    }


def test_ledger_of_version_1_is_refused_and_kept_by_runs_and_readers(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE accepted (key BLOB PRIMARY KEY, fingerprint BLOB, seen_day INTEGER)")
        database.execute("PRAGMA user_version = 1")
    before = (tmp_path / LEDGER_NAME).read_bytes()
    for opening in (open_ledger, read_ledger):
        with pytest.raises(LedgerError) as caught, opening(tmp_path, PROJECT, now=0):
            pass
        assert str(caught.value) == (
            "The ledger was written by another version of this program (format 1); go on with that version, or move "
            "the ledger away and run with --baseline, which records everything as accepted."
        )
        assert content(tmp_path).items() <= {LEDGER_NAME: before, LOCK_NAME: b""}.items()


# Readers --------------------------------------------------------------------------------------------------------------


def test_reader_sees_what_a_run_has_committed_and_nothing_else(tmp_path: Path) -> None:
    with open_ledger(tmp_path, PROJECT, now=0) as ledger, read_ledger(tmp_path, PROJECT, now=0) as early:
        ledger.accept(records(3))
        assert count(tmp_path) == 0
        ledger.commit()
        assert (count(tmp_path), is_run_active(tmp_path)) == (3, True)
        assert early.count_known() == 3
    assert (count(tmp_path), is_run_active(tmp_path)) == (3, False)


def test_reader_that_is_there_first_keeps_no_run_out_and_sees_it_commit(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with read_ledger(tmp_path, PROJECT, now=0) as reader:
        assert reader.count_known() == 3
        with open_ledger(tmp_path, PROJECT, now=0) as ledger:
            ledger.accept(records(2, first=3))
            ledger.commit()
            assert reader.count_known() == 5
        assert reader.count_known() == 5
        fill(tmp_path, 1, first=5)
        assert reader.count_known() == 6
    fill(tmp_path, 1, first=6)
    assert ({path.name for path in tmp_path.iterdir()}, count(tmp_path)) == (AT_REST, 7)


def test_reader_can_write_nothing(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    before = content(tmp_path)
    with read_ledger(tmp_path, PROJECT, now=0) as ledger:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            ledger.accept(records(1))
        with pytest.raises(LedgerError, match="readonly"):
            ledger.begin_run("run", 0, "query.sql")
    assert content(tmp_path) == before


@posix_only
def test_reader_works_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    fill(tmp_path, 3)
    tmp_path.chmod(0o500)
    try:
        assert count(tmp_path) == 3
        with pytest.raises(LedgerError, match="can't be opened"), open_ledger(tmp_path, PROJECT, now=0):
            pass
    finally:
        tmp_path.chmod(0o700)


LEAVE = """
import os, signal, sys
from pathlib import Path
from pipeline.ledger.ledger import open_ledger
from tests.opened import PROJECT
from tests.ledger.test_file import records
with open_ledger(Path(sys.argv[1]), PROJECT, now=0) as ledger:
    ledger.accept(records(3))
    ledger.commit()
    ledger.accept(records(2, first=3))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave_behind(folder: Path) -> None:
    """A run that is killed with three records committed, and two not."""
    with child(LEAVE, folder) as process:
        assert process.wait() == -signal.SIGKILL


@posix_only
def test_killed_run_leaves_what_it_committed_to_readers_who_leave_it_to_the_next_run(tmp_path: Path) -> None:
    leave_behind(tmp_path)
    before = content(tmp_path)
    assert before.keys() == AT_REST | HELPERS
    assert (count(tmp_path), is_run_active(tmp_path)) == (3, False)
    after = content(tmp_path)
    assert {name: after[name] for name in before if not name.endswith("-shm")} == {
        name: before[name] for name in before if not name.endswith("-shm")
    }
    fill(tmp_path, 1, first=3)
    assert ({path.name for path in tmp_path.iterdir()}, count(tmp_path)) == (AT_REST, 4)


@posix_only
@pytest.mark.parametrize(("lost", "known"), [(["-shm"], 3), (["-shm", "-wal"], 0)])
def test_reader_of_a_killed_runs_files_elsewhere_makes_none_of_those_that_were_not_taken_along(
    tmp_path: Path, lost: list[str], known: int
) -> None:
    leave_behind(tmp_path)
    for ending in lost:
        (tmp_path / f"{LEDGER_NAME}{ending}").unlink()
    before = content(tmp_path)
    assert count(tmp_path) == known
    assert content(tmp_path) == before


CUT_OFF = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 5")  # pages; so that most of the change is in the file before it is committed
database.execute("BEGIN")
database.execute("UPDATE users SET fingerprint = x'00'")
os.kill(os.getpid(), signal.SIGKILL)
"""


@posix_only
def test_change_of_the_resting_file_that_was_cut_off_is_taken_back_for_readers_without_touching_it(
    tmp_path: Path,
) -> None:
    fill(tmp_path, 3000)
    with child(CUT_OFF, tmp_path / LEDGER_NAME) as process:
        process.wait()
    before = content(tmp_path)
    assert before.keys() == {*AT_REST, f"{LEDGER_NAME}-journal"}
    with read_ledger(tmp_path, PROJECT, now=0) as ledger:
        assert ledger.known([b"%016d" % each for each in range(3000)]) == {
            each.key: b"f" * 16 for each in records(3000)
        }
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            ledger.accept(records(1))
    assert content(tmp_path) == before
    fill(tmp_path, 1, first=3000)
    assert ({path.name for path in tmp_path.iterdir()}, count(tmp_path)) == (AT_REST, 3001)


DAMAGES = {
    "nothing": lambda content: b"",
    "garbage": lambda content: b"this is no database, whoever wrote it here; " * 1000,
    "half of it": lambda content: content[: len(content) // 2],
    "its middle": lambda content: content[:8192] + b"\xff" * (len(content) - 8192),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_reader_says_that_a_ledger_is_damaged_and_touches_nothing(tmp_path: Path, damage: Any) -> None:
    fill(tmp_path, 2000)
    path = tmp_path / LEDGER_NAME
    path.write_bytes(damage(path.read_bytes()))
    before = content(tmp_path)
    with pytest.raises(LedgerDamagedError) as caught, read_ledger(tmp_path, PROJECT, now=0):
        pass
    assert str(caught.value).startswith(f"The ledger {path} is damaged (")
    assert str(caught.value).endswith("). Put it back from a backup.")
    assert (caught.value.code, content(tmp_path)) == (ExitCode.BRAKE, before)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_run_gets_an_empty_ledger_in_the_place_of_a_damaged_one_which_stays(tmp_path: Path, damage: Any) -> None:
    fill(tmp_path, 2000)
    path = tmp_path / LEDGER_NAME
    path.write_bytes(damage(path.read_bytes()))
    before = content(tmp_path)
    with open_ledger(tmp_path, PROJECT, now=0) as ledger:
        assert ledger.damage.startswith(f"The ledger {path} is damaged (")
        assert is_run_active(tmp_path)
        ledger.begin_run("20260113_143122", 0, "query.sql")
        ledger.accept(records(1))
        ledger.commit()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("statement", "lacks"),
    [("DROP TABLE runs", "runs.duration_s"), ("ALTER TABLE queries DROP COLUMN full_day", "queries.full_day")],
)
def test_ledger_without_a_table_or_a_column_is_damaged(tmp_path: Path, statement: str, lacks: str) -> None:
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / LEDGER_NAME)) as database:
        database.execute(statement)
    with open_ledger(tmp_path, PROJECT, now=0) as ledger:
        assert f"is damaged (it has no {lacks})" in ledger.damage


def test_new_ledger_that_a_kill_cut_off_is_made_anew(tmp_path: Path) -> None:
    for ending in (".new", ".new-journal"):
        (tmp_path / f"{LEDGER_NAME}{ending}").write_bytes(b"half of it")
    fill(tmp_path, 1)
    assert (count(tmp_path), {path.name for path in tmp_path.iterdir()}) == (1, AT_REST)


@posix_only
@pytest.mark.parametrize("name", [LEDGER_NAME, f"{LEDGER_NAME}-wal", f"{LEDGER_NAME}-shm", LOCK_NAME])
def test_planted_symbolic_link_is_refused_to_runs_and_readers(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(LedgerError, match="symbolic link"), open_ledger(folder, PROJECT, now=0):
        pass
    if name != LOCK_NAME:  # which readers do not open
        with pytest.raises(LedgerError, match="symbolic link"), read_ledger(folder, PROJECT, now=0):
            pass
    assert target.read_bytes() == b"precious"


def test_folder_with_signs_that_mean_something_in_an_address_is_as_good_as_any(tmp_path: Path) -> None:
    folder = tmp_path / "100%25 of #1? & mode=rw"
    folder.mkdir()
    fill(folder, 3)
    assert count(folder) == 3


# Files ----------------------------------------------------------------------------------------------------------------


@posix_only
def test_all_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_ledger(tmp_path, PROJECT, now=0) as ledger, read_ledger(tmp_path, PROJECT, now=0):
            ledger.accept(records(1))
            ledger.commit()
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(AT_REST | HELPERS, 0o600)


def test_another_program_that_holds_the_database_is_named_and_not_taken_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 1)
    monkeypatch.setattr("pipeline.ledger.file.READERS_WAIT_S", 0)
    with closing(sqlite3.connect(tmp_path / LEDGER_NAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for opening in (open_ledger, read_ledger):
            with pytest.raises(LedgerBusyError) as caught, opening(tmp_path, PROJECT, now=0):
                pass
            problem = f"Another program holds {tmp_path / LEDGER_NAME} (database is locked)."
            assert str(caught.value) == f"{problem} Nothing was read, written or sent."


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerError) as caught, open_ledger(tmp_path, PROJECT, now=0):
        pass
    assert str(caught.value) == (
        f"{tmp_path} is on a file system that can't lock files ({os.strerror(code)}), so two runs could not be kept "
        "apart; name a folder on a local disk with OUTPUT_DIR."
    )
    assert not (tmp_path / LEDGER_NAME).exists()
    assert lock.is_locked(tmp_path / LOCK_NAME) is False


def begin_run(folder: Path) -> None:
    with open_ledger(folder, PROJECT, now=0) as ledger:
        ledger.begin_run("run", 0, "query.sql")


@pytest.mark.parametrize("size", [0, 4096, 20_000, 40_000])
def test_disk_that_is_full_at_the_start_is_told_and_leaves_a_folder_for_the_next_run(tmp_path: Path, size: int) -> None:
    with file_size_limit(size), pytest.raises(LedgerError, match=r"can't be (opened|written)"):
        begin_run(tmp_path)
    fill(tmp_path, 3)
    assert ({path.name for path in tmp_path.iterdir()}, count(tmp_path)) == (AT_REST, 3)


def fill_a_thousand_each(ledger: Ledger) -> Iterator[int]:
    """How many are committed, after each commit."""
    for thousand in range(1_000):
        ledger.accept(records(1000, first=1000 * thousand))
        ledger.commit()
        yield 1000 * (thousand + 1)


def test_disk_that_is_full_in_mid_run_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    committed: list[int] = []
    is_full = pytest.raises(sqlite3.OperationalError, match=r"full|disk I/O")
    with open_ledger(tmp_path, PROJECT, now=0) as ledger, file_size_limit(200_000), is_full:
        committed.extend(fill_a_thousand_each(ledger))
    assert count(tmp_path) == committed[-1]
    fill(tmp_path, 1000, first=committed[-1])
    assert count(tmp_path) == committed[-1] + 1000


# Kills ----------------------------------------------------------------------------------------------------------------

RUNS = """
import sys
from pathlib import Path
from pipeline.ledger.ledger import open_ledger
from tests.opened import PROJECT
from tests.ledger.test_file import records
first = int(sys.argv[2])
while True:
    with open_ledger(Path(sys.argv[1]), PROJECT, now=0) as ledger:
        ledger.begin_run("run", 0, "query.sql")
        for _ in range(5):
            ledger.accept(records(40, first))
            ledger.commit()
            first += 40
            print(first, flush=True)
        ledger.invalidate(records(40, first - 40))
        print(f"void {first}", flush=True)
"""


@posix_only
def test_kills_at_any_moment_lose_nothing_that_was_committed(tmp_path: Path) -> None:
    chance = random.Random(17)
    lines: list[str] = []
    for _ in range(8):
        first = count(tmp_path)
        with child(RUNS, tmp_path, first) as process:
            assert process.stdout is not None
            lines += [process.stdout.readline() for _ in range(chance.randrange(1, 30))]
            process.kill()
            lines += process.stdout.readlines()
        last = max(int(line.removeprefix("void ")) for line in lines if line.endswith("\n"))
        known = count(tmp_path)
        assert known in (last, last + 40)
        with read_ledger(tmp_path, PROJECT, now=0) as ledger:
            voided = [int(line.removeprefix("void ")) for line in lines if line.startswith("void") and "\n" in line]
            keys = [b"%016d" % (number - 1) for number in voided]
            assert ledger.known(keys) == dict.fromkeys(keys, b"")
    fill(tmp_path, 1, first=count(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == AT_REST
