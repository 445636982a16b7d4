"""The log, the console's edges, the heartbeat, and files that can't be written."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iterable.redaction import Redactor
from pipeline.ending import CODE_ADVICE, FAILURES, OUTCOME_ADVICE
from pipeline.log import LOG_NAME, close_log, open_log
from pipeline.results import free_run_id
from pipeline.sandbox import Fault, StandIn
from tests.program import Program, make_table, use_query, wait_until

SECRET = "canary-Kx81+/=&%41zQ"  # with what JSON, URLs and repr() write in other ways


# The log --------------------------------------------------------------------------------------------------------------


def test_the_log_keeps_its_format_hides_secrets_and_marks_tracebacks(tmp_path: Path) -> None:
    handler = open_log(tmp_path, Redactor([SECRET]))
    try:
        try:
            raise ValueError(f"bad {SECRET}\n2026-01-13 14:31:22 - main - INFO - forged")
        except ValueError:
            logging.getLogger("main").exception("It broke for ada@example.com\nforged")
    finally:
        close_log(handler)
    first, *rest = (tmp_path / LOG_NAME).read_text().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - main - ERROR - It broke for a\*\*\*@example\.com\\nforged", first
    )
    assert all(line.startswith("    | ") for line in rest)
    assert SECRET not in "".join(rest)
    assert rest


def test_the_log_rotates_and_stays_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.log.LOG_MAX_BYTES", 1000)
    handler = open_log(tmp_path, Redactor())
    try:
        for number in range(100):
            logging.getLogger("main").info("line %d of many", number)
    finally:
        close_log(handler)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [LOG_NAME, *(f"{LOG_NAME}.{number}" for number in range(1, 5))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_lines_about_calls_that_went_well_come_with_the_next_other_line_or_a_little_later(tmp_path: Path) -> None:
    client, main = logging.getLogger("iterable_client"), logging.getLogger("main")

    def written() -> list[str]:
        return [line.rpartition(" - ")[2] for line in (tmp_path / LOG_NAME).read_text().splitlines()]

    handler = open_log(tmp_path, Redactor())
    try:
        for number in range(3):
            client.info("call %d", number)
        main.info("step")
        assert written() == ["call 0", "call 1", "call 2", "step"]
        client.debug("call 3")
        client.warning("retry")
        assert written()[4:] == ["call 3", "retry"]
        client.info("call 4")
        wait_until(lambda: written()[6:] == ["call 4"])
        client.info("call 5")
    finally:
        close_log(handler)
    assert written()[7:] == ["call 5"]


def test_no_advice_looks_like_a_secret() -> None:
    advice = [*CODE_ADVICE.values(), *OUTCOME_ADVICE.values(), *(each.advice for each in FAILURES.values())]
    assert [Redactor().line(text) for text in advice] == advice


def test_a_planted_link_in_the_logs_place_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / LOG_NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        open_log(tmp_path, Redactor())
    assert target.read_text() == "untouched"


def test_two_runs_in_one_second_get_names_of_their_own(tmp_path: Path) -> None:
    first = free_run_id(tmp_path)
    (tmp_path / f"query_results_{first}.csv").touch()
    assert free_run_id(tmp_path) > first


# The console ----------------------------------------------------------------------------------------------------------


def test_json_prints_the_results_and_nothing_else_on_stdout(program: Program, sample: Path) -> None:
    run = program.run("--json")
    assert run.code == 0
    assert json.loads(run.out) == run.results
    assert "Step 4.5" in run.err


def test_json_with_quiet_prints_the_results_alone(program: Program, sample: Path) -> None:
    run = program.run("--json", "--quiet")
    assert (run.code, run.err) == (0, "")
    assert json.loads(run.out)["status"] == "success"


def test_a_closed_stdout_does_not_stop_the_run(program: Program, iterable: StandIn, sample: Path) -> None:
    command = f"exec {sys.executable} main.py --env-file {program.env_file} >&-"
    process = subprocess.run(
        ["sh", "-c", command],
        cwd=Path(__file__).resolve().parent.parent,
        env={"PATH": os.environ["PATH"], **program.settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert len(iterable.project.events) == 36


def test_a_reader_that_leaves_does_not_stop_the_run(program: Program, iterable: StandIn, sample: Path) -> None:
    with program.start() as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert len(iterable.project.events) == 36


def test_crons_bare_environment_is_enough(program: Program, iterable: StandIn, sample: Path) -> None:
    process = subprocess.run(
        [sys.executable, str(Path(__file__).resolve().parent.parent / "main.py"), "--env-file", str(program.env_file)],
        cwd="/",
        env=program.settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_line_breaks_and_escapes_in_data_forge_no_line(program: Program, tmp_path: Path) -> None:
    evil = "x\n2026-01-13 14:31:22 - main - INFO - forged\x1b[31m"
    make_table(tmp_path / "users.db", "email,event_time", [(evil, "2026-01-13 08:00:00")])
    use_query(program, "SELECT email, event_time FROM rows")
    run = program.run("--verbose")
    assert run.code == 1
    shown = run.out + run.err + run.log
    assert "\x1b" not in shown
    assert not any(line.startswith("2026-01-13 14:31:22") for line in shown.splitlines())


# The heartbeat --------------------------------------------------------------------------------------------------------


def pings(iterable: StandIn) -> list[str]:
    return [request.path for request in iterable.project.requests if request.path.startswith("/ping")]


def test_the_heartbeat_tells_start_and_success(program: Program, iterable: StandIn, sample: Path) -> None:
    assert program.run(HEARTBEAT_URL=f"{iterable.url}/ping/uuid").code == 0
    assert pings(iterable) == ["/ping/uuid/start", "/ping/uuid"]


def test_the_heartbeat_tells_the_exit_code_of_a_failure(program: Program, iterable: StandIn) -> None:
    run = program.run(HEARTBEAT_URL=f"{iterable.url}/ping/uuid")
    assert run.code == 66
    assert pings(iterable) == ["/ping/uuid/start", "/ping/uuid/66"]


def test_a_heartbeat_that_fails_changes_nothing_but_the_log(program: Program, sample: Path) -> None:
    run = program.run(HEARTBEAT_URL="http://127.0.0.1:1/secret-uuid")
    assert (run.code, run.err) == (0, "")
    assert "The heartbeat could not be sent" in run.log
    assert "secret-uuid" not in run.log


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
    root = Path(__file__).resolve().parent.parent
    broken.write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import main, pipeline.batch\n"
        "def broken(*_): raise RuntimeError('canary-key is broken')\n"
        "pipeline.batch.SingleSender._call = broken\n"
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
