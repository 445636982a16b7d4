"""Files that another user left in OUTPUT_DIR. Only root can play this, by becoming somebody else for one run."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pipeline.sandbox import StandIn, create_sample_database
from tests.program import ROOT, Finished, Program

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can start runs as another user"
)
NOBODY = pwd.getpwnam("nobody").pw_uid


@pytest.fixture
def shared(iterable: StandIn) -> Iterator[Program]:
    """A job whose OUTPUT_DIR belongs to `nobody`. Not in pytest's folder, which each start of pytest locks others out
    of."""
    with TemporaryDirectory(prefix="shared-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        program = Program(folder / "out", iterable.url)
        create_sample_database(folder / "users.db")
        program.settings["DATABASE_URL"] = f"sqlite:///{folder}/users.db"
        for path in (program.folder, folder / "users.db", program.env_file):
            os.chown(path, NOBODY, -1)
        yield program


def run_as_nobody(program: Program, *arguments: str) -> Finished:
    return program.wait_for(program.start(*arguments, script=ROOT / "tests/as_nobody.py"))


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    """Who owns each file, and when it was changed."""
    return {each.name: (each.stat().st_uid, each.stat().st_mtime_ns) for each in folder.iterdir()}


def test_after_a_run_as_root_the_service_is_told_whose_files_stand_in_its_way(shared: Program) -> None:
    folder = shared.folder
    assert shared.run().code == 0
    run = run_as_nobody(shared, "--quiet")
    assert (run.code, run.err) == (
        73,
        f"The ledger's lock {folder}/iterable_ledger.lock can't be opened (Permission denied): it belongs to root, and "
        f"this run is nobody; run: sudo chown nobody {folder}/iterable_*\n",
    )
    for path in folder.glob("iterable_*"):  # what that command does
        os.chown(path, NOBODY, -1)
    assert run_as_nobody(shared, "--quiet").code == 0


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("iterable_ledger.sqlite3", "The ledger {folder}/{name} can't be opened (unable to open database file)"),
        ("iterable_integration.log", "The log can't be written to {folder} (Permission denied)"),
    ],
)
def test_each_file_that_every_run_opens_is_told_in_this_way(shared: Program, name: str, sentence: str) -> None:
    assert run_as_nobody(shared, "--quiet").code == 0
    os.chown(shared.folder / name, 0, -1)
    run = run_as_nobody(shared, "--quiet")
    assert (run.code, run.err) == (
        73,
        f"{sentence.format(folder=shared.folder, name=name)}: it belongs to root, and this run is nobody; run: "
        f"sudo chown nobody {shared.folder}/iterable_*\n",
    )


def test_a_folder_of_somebody_else_is_told(shared: Program) -> None:
    os.chown(shared.folder, 0, -1)
    run = run_as_nobody(shared, "--quiet")
    assert run.code == 73
    assert run.err.endswith(
        f"can't be opened (Permission denied): {shared.folder} belongs to root, and this run is nobody; "
        f"run: sudo chown nobody {shared.folder}\n"
    )


LOOKS = [["--check"], ["--history"], ["--explain", "ada@example.com"], ["--verify"], ["--dry-run"]]


@pytest.mark.parametrize("arguments", LOOKS)
def test_a_ledger_of_somebody_else_is_told_by_all_who_look(shared: Program, arguments: list[str]) -> None:
    assert run_as_nobody(shared, "--quiet").code == 0
    os.chown(shared.folder / "iterable_ledger.sqlite3", 0, -1)
    run = run_as_nobody(shared, *arguments)
    sentence = (
        f"The ledger {shared.folder}/iterable_ledger.sqlite3 can't be opened (Permission denied): it belongs to root, "
        f"and this run is nobody; run: sudo chown nobody {shared.folder}/iterable_*\n"
    )
    assert run.code == 73
    assert sentence in (f"{run.out}" if arguments == ["--check"] else run.err)
    assert "away" not in run.out + run.err
    assert "[BAD ] brake" not in run.out


def test_a_ledger_that_is_closed_to_its_own_user_is_to_be_opened_again(shared: Program) -> None:
    assert run_as_nobody(shared, "--quiet").code == 0
    (shared.folder / "iterable_ledger.sqlite3").chmod(0)
    run = run_as_nobody(shared, "--check")
    sentence = "can't be opened (Permission denied). -> let the user of the job read and write it\n"
    assert (run.code, sentence in run.out) == (73, True)


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--sandbox"], ["--verify"], ["--check"]])
def test_a_folder_of_somebody_else_is_told_by_those_who_hold_no_lock(shared: Program, arguments: list[str]) -> None:
    os.chown(shared.folder, 0, -1)
    run = run_as_nobody(shared, *arguments)
    cause = "can't be written (Permission denied)"
    if arguments != ["--check"]:
        cause = "can't hold the records of this run (not a writable directory)"
    hint = f": {shared.folder} belongs to root, and this run is nobody; run: sudo chown nobody {shared.folder}"
    assert run.code == 73
    assert f"{shared.folder} {cause}{hint}" in run.out + run.err


def test_a_folder_that_is_closed_to_its_own_user_is_to_be_opened_again(shared: Program) -> None:
    shared.folder.chmod(0o500)
    run = run_as_nobody(shared, "--dry-run", "--quiet")
    sentence = (
        "(not a writable directory); let the user of the job write there, or name another folder with OUTPUT_DIR.\n"
    )
    assert (run.code, run.err.endswith(sentence)) == (73, True)


def test_a_settings_file_of_somebody_else_is_told_and_nothing_is_said_of_what_it_sets(shared: Program) -> None:
    os.chown(shared.env_file, 0, -1)
    del shared.settings["ITERABLE_API_KEY"]
    run = run_as_nobody(shared, "--quiet")
    assert (run.code, run.err.splitlines()) == (
        78,
        [
            f"{shared.env_file} can't be read (Permission denied); let the user of the job read it.",
            f"Fix this in {shared.env_file}, which begins as a copy of .env.example; or try the job without a key: "
            "main.py --sandbox",
        ],
    )


@pytest.mark.parametrize("arguments", [["--check"], ["--history"], ["--explain", "ada@example.com"], ["--verify"]])
def test_a_look_as_root_leaves_nothing_behind_but_the_files_of_verify(shared: Program, arguments: list[str]) -> None:
    assert run_as_nobody(shared, "--quiet").code == 0
    before = owners(shared.folder)
    shared.run(*arguments)
    after = owners(shared.folder)
    rest = {name: owner for name, (owner, _) in after.items() if not name.startswith("verify_")}
    assert rest == {name: owner for name, (owner, _) in before.items()}
    assert arguments == ["--verify"] or after == before
    assert run_as_nobody(shared, "--quiet").code == 0
