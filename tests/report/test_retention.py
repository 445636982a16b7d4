"""What is deleted from OUTPUT_DIR, and what is said of the room that is left."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from iterable.export import new_file
from pipeline.report.results import PAGE_NAME, RUN_NAMES, VERIFY_NAMES, reserved_run_id
from pipeline.report.retention import delete_old, disk_space_warning, sweep
from pipeline.sandbox import StandIn
from tests.program import Program

NOW = datetime(2026, 3, 31, 12, 0, 0).timestamp()
OLD, RECENT = "20260301_115959", "20260301_120000"  # for 30 days
DAY = 86_400


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def no_warning(text: str) -> None:
    raise AssertionError(text)


def test_outputs_older_than_the_days_to_keep_are_deleted_by_the_stamp_in_their_names(tmp_path: Path) -> None:
    of_runs = ["query_results_{}.csv", "integration_results_{}.json", "rejected_rows_{}.csv", "preview_{}.ndjson"]
    outputs = [*of_runs, "verify_results_{}.json", "verify_report_{}.csv"]
    for stamp in (OLD, RECENT, "20260331_120000", "20270101_000000"):
        make(tmp_path, *(name.format(stamp) for name in outputs))
    recent = {path.name for path in tmp_path.iterdir() if OLD not in path.name}
    assert delete_old(tmp_path, 30, NOW, no_warning) == 6
    assert names_in(tmp_path) == recent
    assert delete_old(tmp_path, 30, NOW, no_warning) == 0


def test_0_days_keep_everything(tmp_path: Path) -> None:
    make(tmp_path, "query_results_19990101_000000.csv")
    assert delete_old(tmp_path, 0, NOW, no_warning) == 0
    assert names_in(tmp_path) == {"query_results_19990101_000000.csv"}


def test_rotated_logs_are_deleted_by_their_age_and_the_log_itself_never(tmp_path: Path) -> None:
    log = "iterable_integration.log"
    for name, age_days in ((log, 99), (f"{log}.1", 29), (f"{log}.2", 31), (f"{log}.10", 31), (f"{log}.old", 31)):
        make(tmp_path, name)
        os.utime(tmp_path / name, (NOW, NOW - age_days * DAY))
    assert delete_old(tmp_path, 30, NOW, no_warning) == 2
    assert names_in(tmp_path) == {log, f"{log}.1", f"{log}.old"}


@pytest.mark.parametrize(("age_days", "deleted"), [(29, 0), (31, 1)])
def test_the_page_is_deleted_by_its_age(tmp_path: Path, age_days: int, deleted: int) -> None:
    make(tmp_path, "report.html")
    os.utime(tmp_path / "report.html", (NOW, NOW - age_days * DAY))
    assert delete_old(tmp_path, 30, NOW, no_warning) == deleted


def test_git_ignores_what_is_deleted() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    ignored = (root / ".gitignore").read_text().splitlines()
    names = [*RUN_NAMES, *VERIFY_NAMES, PAGE_NAME]
    assert [name for name in names if name.replace("{}", "*") not in ignored] == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    foreign = [
        f"query_results_{OLD}.csv.bak",
        f"my_query_results_{OLD}.csv",
        f"query_results_{OLD}.json",
        f"QUERY_RESULTS_{OLD}.CSV",
        f"query_results_{OLD}x.csv",
        f"query_results_{OLD}.csv\n",
        "query_results_20261332_250000.csv",
        "query_results_٢٠٢٥٠١٠١_000000.csv",
        "iterable_integration.log.0",
        "iterable_ledger.sqlite3",
        "users.db",
    ]
    make(tmp_path, *foreign)
    for name in foreign:
        os.utime(tmp_path / name, (0, 0))
    assert delete_old(tmp_path, 30, NOW, no_warning) == 0
    assert names_in(tmp_path) == set(foreign)


def test_links_and_folders_stay_and_so_does_what_is_behind_them(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    make(elsewhere, f"query_results_{OLD}.csv")
    (folder / f"query_results_{OLD}.csv").symlink_to(elsewhere / f"query_results_{OLD}.csv")
    (folder / f"rejected_rows_{OLD}.csv").mkdir()
    (folder / "link").symlink_to(elsewhere)
    before = names_in(folder)
    assert delete_old(folder, 30, NOW, no_warning) == 0
    assert (names_in(folder), names_in(elsewhere)) == (before, {f"query_results_{OLD}.csv"})


@contextmanager
def undeletable(folder: Path) -> Iterator[None]:
    """A folder whose files can't be deleted. Root may delete anything but what is immutable."""
    if os.geteuid():
        folder.chmod(0o500)
    elif subprocess.run(["chattr", "+i", *folder.iterdir()], capture_output=True, check=False).returncode:
        pytest.skip("needs a file system that knows chattr, or another user than root")
    try:
        yield
    finally:
        folder.chmod(0o700)
        if not os.geteuid():
            subprocess.run(["chattr", "-i", *folder.iterdir()], check=True)


def test_what_cannot_be_deleted_is_one_warning(tmp_path: Path) -> None:
    make(tmp_path, f"query_results_{OLD}.csv", f"rejected_rows_{OLD}.csv")
    warnings: list[str] = []
    with undeletable(tmp_path):
        assert delete_old(tmp_path, 30, NOW, warnings.append) == 0
    (warning,) = warnings
    start = "2 files older than KEEP_DAYS=30 can't be deleted, for example "
    assert re.fullmatch(rf"{start}\w+_{OLD}\.csv \(\w+ (not permitted|denied)\)\.", warning)
    assert len(names_in(tmp_path)) == 2


def test_a_folder_that_cannot_be_listed_is_a_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    assert delete_old(tmp_path / "missing", 30, NOW, warnings.append) == 0
    assert warnings == [f"{tmp_path}/missing can't be listed (No such file or directory)."]


def test_a_run_deletes_what_is_old_before_it_writes_and_says_so_in_the_log(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    make(program.folder, f"query_results_{OLD}.csv")
    run = program.run("--quiet", KEEP_DAYS="30")
    assert (run.code, run.err) == (0, "")
    assert not (program.folder / f"query_results_{OLD}.csv").exists()
    assert "Deleted 1 file older than KEEP_DAYS=30." in run.log
    assert len(run.files("query_results_*")) == 1


@pytest.mark.parametrize("option", ["--dry-run", "--sandbox"])
def test_a_run_that_may_not_hold_the_lock_deletes_nothing(program: Program, sample: Path, option: str) -> None:
    make(program.folder, f"query_results_{OLD}.csv")
    assert program.run(option, KEEP_DAYS="30").code == 0
    assert (program.folder / f"query_results_{OLD}.csv").exists()


# Unfinished files -----------------------------------------------------------------------------------------------------


def test_unfinished_files_are_swept_away_but_for_those_that_a_live_run_holds(tmp_path: Path) -> None:
    """Without asking for processes: in a container each of them is number 1."""
    outputs = ("query_results_{}.csv", "integration_results_{}.json", "rejected_rows_{}.csv")
    unfinished = [f".{name.format(OLD)}.0a1b2c3d.tmp" for name in outputs]
    kept = {f".notes_{OLD}.csv.0a1b2c3d.tmp", f"query_results_{OLD}.csv", ".notes.tmp"}
    make(tmp_path, *unfinished, *kept)
    with new_file(tmp_path / f"query_results_{RECENT}.csv") as live, reserved_run_id(tmp_path) as run_id:
        sweep(tmp_path, no_warning)
        (written,) = names_in(tmp_path) - kept - {f".integration_results_{run_id}.json.0.tmp"}
        assert written.startswith(f".query_results_{RECENT}.csv.")
        live.write("id")
    assert names_in(tmp_path) == kept | {f"query_results_{RECENT}.csv"}


# The room that is left ------------------------------------------------------------------------------------------------


def make_sparse(path: Path, size: int) -> None:
    """A file that is as long as that, and takes no room on the disk."""
    path.touch()
    os.truncate(path, size)


GIB = 2**30
MORE = "set KEEP_DAYS to delete old files."


def test_outputs_of_more_than_a_gibibyte_are_told_with_the_room_that_is_left(tmp_path: Path) -> None:
    make_sparse(tmp_path / f"query_results_{OLD}.csv", GIB - 2_000_000)
    make_sparse(tmp_path / f"query_results_{RECENT}.csv", 1_500_000)
    make_sparse(tmp_path / f"rejected_rows_{RECENT}.csv", 500_000)
    make_sparse(tmp_path / "users.db", GIB)
    assert disk_space_warning(tmp_path, free_bytes=2_469_000_000) is None
    make_sparse(tmp_path / f"integration_results_{OLD}.json", 1)
    assert disk_space_warning(tmp_path, free_bytes=2_469_000_000) == (
        f"OUTPUT_DIR holds 1.1 GB from 2 runs; there is room for about 1,200 more; {MORE}"
    )


def test_room_for_fewer_than_ten_runs_like_the_newest_is_told(tmp_path: Path) -> None:
    make_sparse(tmp_path / f"query_results_{OLD}.csv", 1_000_000)
    make_sparse(tmp_path / f"query_results_{RECENT}.csv", 3_400_000)
    assert disk_space_warning(tmp_path, free_bytes=12 * 3_400_000) is None
    text = f"OUTPUT_DIR holds 4 MB from 2 runs; there is room for about 9 more; {MORE}"
    assert disk_space_warning(tmp_path, free_bytes=12 * 3_400_000 - 1) == text
    (tmp_path / f"query_results_{OLD}.csv").unlink()
    text = f"OUTPUT_DIR holds 3 MB from 1 run; there is room for about 0 more; {MORE}"
    assert disk_space_warning(tmp_path, free_bytes=0) == text


def test_a_folder_without_outputs_is_not_crowded(tmp_path: Path) -> None:
    assert disk_space_warning(tmp_path, free_bytes=0) is None
    make(tmp_path, f"query_results_{OLD}.csv")  # an empty one
    assert disk_space_warning(tmp_path, free_bytes=GIB) is None


def test_the_summary_says_when_outputs_fill_the_disk_unless_old_ones_are_deleted(
    program: Program, sample: Path
) -> None:
    with (program.folder / "query_results_20260101_000000.csv").open("wb") as file:
        file.truncate(2 * 2**30)  # a hole, which takes no room
    assert "OUTPUT_DIR holds 2.1 GB from 2 runs" in program.run().out
    assert "OUTPUT_DIR holds" not in program.run(KEEP_DAYS="36500").out
