"""The lock on real files and between real processes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.ledger.lock import Locked, hold_lock, is_locked

ROOT = Path(__file__).parent.parent.parent

posix_only = pytest.mark.skipif(os.name == "nt", reason="modes, links and signals are POSIX")

HOLD = """
import sys
from pathlib import Path
from pipeline.ledger.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

TRY = """
import sys, time
from pathlib import Path
from pipeline.ledger.lock import Locked, hold_lock
before = time.monotonic()
try:
    with hold_lock(Path(sys.argv[1])):
        print("held")
except Locked:
    print("locked, and known within a second:", time.monotonic() - before < 1)
"""


def child(script: str, path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with child(HOLD, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def can_be_held(path: Path) -> bool:
    try:
        with hold_lock(path):
            return True
    except Locked:
        return False


def test_held_lock_is_refused_to_another_process_within_a_second(path: Path) -> None:
    with hold_lock(path), child(TRY, path) as process:
        assert process.communicate(timeout=10)[0] == "locked, and known within a second: True\n"
    with child(TRY, path) as process:
        assert process.communicate(timeout=10)[0] == "held\n"


def test_held_lock_is_refused_in_the_same_process_and_kept(path: Path) -> None:
    with hold_lock(path):
        assert not can_be_held(path)
        with child(TRY, path) as process:  # closing a second descriptor of the file has freed nothing
            assert process.communicate(timeout=10)[0].startswith("locked")
    assert can_be_held(path)


@posix_only
def test_lock_is_free_when_its_holder_is_killed(path: Path) -> None:
    with holder(path) as process:
        assert not can_be_held(path)
        process.kill()
        process.wait()
        assert can_be_held(path)


def test_whether_it_is_locked_can_be_seen_without_keeping_anybody_out(path: Path) -> None:
    assert (is_locked(path), path.exists()) == (False, False)
    with holder(path):
        assert is_locked(path)
    assert not is_locked(path)
    assert can_be_held(path)


def test_run_that_begins_while_somebody_looks_waits_for_the_look(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    path.touch()
    with path.open("r+b") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr("pipeline.ledger.lock.time.sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))
        assert can_be_held(path)


@posix_only
def test_file_is_private_whatever_the_umask_and_stays(path: Path) -> None:
    before = os.umask(0)
    try:
        with hold_lock(path):
            pass
    finally:
        os.umask(before)
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (0o600, b"")


@posix_only
@pytest.mark.parametrize("exists", [True, False])
def test_planted_symbolic_link_is_not_followed(path: Path, exists: bool) -> None:
    target = path.with_name("target")
    if exists:
        target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)), hold_lock(path):
        pass
    assert (target.exists(), exists and target.read_bytes()) == (exists, exists and b"precious")
    assert is_locked(path) is False


@posix_only
def test_lock_does_not_pass_to_a_child(path: Path) -> None:
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with hold_lock(path):
        process = subprocess.Popen(waits, stdin=subprocess.PIPE)
    with process:
        assert can_be_held(path)


RACE = """
import sys
from pathlib import Path
from pipeline.ledger.ledger import LedgerBusyError, open_ledger
from tests.opened import PROJECT
sys.stdin.readline()
try:
    with open_ledger(Path(sys.argv[1]), PROJECT, now=0) as ledger:
        ledger.begin_run("run", 0, "query.sql")
        print("held", flush=True)
        sys.stdin.read()
except LedgerBusyError:
    print("busy", flush=True)
"""


def test_of_processes_that_race_to_make_the_ledger_one_holds_it(tmp_path: Path) -> None:
    racers = [child(RACE, tmp_path) for _ in range(4)]
    for each in racers:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    told = []
    for each in racers:
        assert each.stdout is not None
        told.append(each.stdout.readline().strip())
    for each in racers:
        each.communicate(timeout=10)
    assert sorted(told) == ["busy", "busy", "busy", "held"]
