"""The log file and the console."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iterable.redaction import Redactor
from pipeline.model.failure_policy import POLICIES
from pipeline.report.advice import CODE_ADVICE, OUTCOME_ADVICE
from pipeline.report.log import LOG_NAME, close_log, open_log
from pipeline.sandbox import StandIn
from tests.program import ROOT, Program, make_table, use_query, wait_until

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
    monkeypatch.setattr("pipeline.report.log.LOG_MAX_BYTES", 1000)
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


def test_where_no_thread_can_be_started_lines_wait_for_the_next_other_line_and_no_longer(tmp_path: Path) -> None:
    client = logging.getLogger("iterable_client")
    handler = open_log(tmp_path, Redactor())
    before = threading.stack_size(2**46)  # more than there is
    try:
        client.info("call 0")
        client.warning("retry")
        threading.stack_size(before)
        client.info("call 1")
        wait_until(lambda: (tmp_path / LOG_NAME).read_text().endswith(" - call 1\n"))
        assert len((tmp_path / LOG_NAME).read_text().splitlines()) == 3
    finally:
        threading.stack_size(before)
        close_log(handler)


def test_no_advice_looks_like_a_secret() -> None:
    advice = [*CODE_ADVICE.values(), *OUTCOME_ADVICE.values(), *(each.advice for each in POLICIES.values())]
    assert [Redactor().line(text) for text in advice] == advice


def test_a_planted_link_in_the_logs_place_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / LOG_NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        open_log(tmp_path, Redactor())
    assert target.read_text() == "untouched"


# The console ----------------------------------------------------------------------------------------------------------


def run_in_shell(program: Program, options: str, redirection: str) -> subprocess.CompletedProcess[str]:
    command = f"exec {sys.executable} main.py --env-file {program.env_file} {options} {redirection}"
    return subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **program.settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_prints_the_results_and_nothing_else_on_stdout(program: Program, sample: Path) -> None:
    run = program.run("--json")
    assert run.code == 0
    assert json.loads(run.out) == run.results
    assert "Step 4.5" in run.err


def test_json_with_quiet_prints_the_results_alone(program: Program, sample: Path) -> None:
    run = program.run("--json", "--quiet")
    assert (run.code, run.err) == (0, "")
    assert json.loads(run.out)["status"] == "success"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_json_that_cannot_be_printed_is_75_and_the_records_are_delivered(
    program: Program, iterable: StandIn, sample: Path, redirection: str, reason: str
) -> None:
    process = run_in_shell(program, "--json --quiet", redirection)
    assert (process.returncode, process.stderr) == (75, f"The results could not be printed: {reason}.\n")
    assert len(iterable.project.events) == 36
    (path,) = program.folder.glob("integration_results_*.json")
    written = json.loads(path.read_text())
    assert (written["exit_code"], written["status"]) == (75, "partial")
    assert written["reason"].endswith(f"The results could not be printed: {reason}.")
    last = (program.folder / "iterable_integration.log").read_text().splitlines()[-1]
    assert f"Finished with exit code 75 (partial): {written['reason']}" in last


def test_a_closed_stdout_does_not_stop_the_run(program: Program, iterable: StandIn, sample: Path) -> None:
    process = run_in_shell(program, "", ">&-")
    assert (process.returncode, process.stderr) == (0, "")
    assert len(iterable.project.events) == 36


def test_a_warning_is_shown_under_quiet_too(program: Program, sample: Path) -> None:
    program.env_file.write_text("NULL_VALUE=clear\n")
    run = program.run("--quiet")
    text = f"Line 1 of {program.env_file}: unknown setting; did you mean NULL_VALUES?"
    assert (run.code, run.out, run.err) == (0, "", f"Warning: {text}\n")
    assert f" - main - WARNING - {text}\n" in run.log


def test_a_reader_that_leaves_does_not_stop_the_run(program: Program, iterable: StandIn, sample: Path) -> None:
    with program.start() as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert len(iterable.project.events) == 36


def test_crons_bare_environment_is_enough(program: Program, iterable: StandIn, sample: Path) -> None:
    process = subprocess.run(
        [
            sys.executable,
            str(ROOT / "main.py"),
            "--env-file",
            str(program.env_file),
        ],
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
