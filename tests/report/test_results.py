"""What a run leaves behind, and files that can't be written."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.results import reserved_run_id
from pipeline.sandbox import Fault, StandIn
from tests.program import Program, make_table, use_query


def test_a_run_keeps_its_id_for_itself_also_before_it_writes(tmp_path: Path) -> None:
    with reserved_run_id(tmp_path) as first, reserved_run_id(tmp_path) as second:
        assert second > first
        (tmp_path / f"query_results_{second}.csv").touch()
    with reserved_run_id(tmp_path) as third:
        assert third > second
    assert [path.name for path in tmp_path.iterdir()] == [f"query_results_{second}.csv"]


def test_a_dry_run_and_a_run_in_the_same_second_both_get_to_their_end(program: Program, sample: Path) -> None:
    program.settings["TZ"] = "UTC"
    started = [program.start(*arguments) for arguments in ([], ["--dry-run"], ["--dry-run"])]
    ended = [program.wait_for(process) for process in started]
    assert [run.code for run in ended] == [0, 0, 0]
    assert len(ended[0].files("integration_results_*.json")) == 3


def test_a_pipe_in_the_place_of_the_log_is_refused(program: Program, sample: Path) -> None:
    os.mkfifo(program.folder / "iterable_integration.log")
    run = program.run()
    assert (run.code, "The log can't be written" in run.err, "not a regular file" in run.err) == (73, True, True)


# Files that can't be written ------------------------------------------------------------------------------------------


def test_an_output_folder_that_is_missing_is_73_and_nothing_is_sent(program: Program, iterable: StandIn) -> None:
    run = program.run(OUTPUT_DIR=str(program.folder / "missing"))
    assert run.code == 73
    assert "create it" in run.err
    assert not iterable.project.request_counts


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_at_the_csv_is_73_and_nothing_is_sent(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(
        tmp_path / "users.db",
        "email,page,event_time",
        [(f"u{n}@example.com", "x" * 900, "2026-01-13 08:00:00") for n in range(300)],
    )
    use_query(program, "SELECT email, page, event_time FROM rows")
    run = run_with_file_limit(program, 100_000)
    assert run.code == 73
    assert "can't be written" in run.err
    assert not iterable.project.request_counts
    assert run.files("query_results*") == []
    assert run.files(".*.tmp") == []


def run_with_file_limit(program: Program, most_bytes: int) -> Any:
    """A run whose files can't grow beyond a size, which is how a full disk shows to a program."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return program.wait_for(program.start(preexec_fn=limit))


def test_a_bug_is_70_with_a_traceback_in_the_log_and_one_line_on_stderr(
    program: Program, iterable: StandIn, sample: Path, tmp_path: Path
) -> None:
    # A program file that breaks one of our own functions before it runs main.
    broken = tmp_path / "broken.py"
    root = Path(__file__).resolve().parent.parent.parent
    broken.write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import main, pipeline.delivery.senders\n"
        "def broken(*_): raise RuntimeError('canary-key is broken')\n"
        "pipeline.delivery.senders.SingleSender._call = broken\n"
        "sys.exit(main.main())\n"
    )
    run = program.run(script=broken)
    assert run.code == 70
    assert len(run.err.splitlines()) == 1
    assert "A bug: RuntimeError" in run.err
    assert "    | RuntimeError: canary-key is broken" in run.log
    assert (run.results["status"], run.results["exit_code"]) == ("failed", 70)
    assert sum(run.results["counts"]["users"].values()) == 12


def test_secrets_and_addresses_are_in_no_output_also_when_the_server_echoes_them(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [("canary.person@example.com", "2026-01-13 08:00:00")])
    use_query(program, "SELECT email, event_time FROM rows")
    echo = json.dumps(
        {"code": "BadParams", "msg": f"Request (Api-Key,{iterable.project.api_key}) for canary.person@example.com"}
    )
    iterable.inject(Fault(status=400, body=echo.encode()))
    run = program.run("--verbose")
    assert run.code == 1
    everything = run.out + run.err + run.log + json.dumps(run.results)
    assert iterable.project.api_key not in everything
    assert "canary.person@" not in run.out + run.err + run.log
    for path in run.files("*"):
        assert iterable.project.api_key.encode() not in path.read_bytes()
