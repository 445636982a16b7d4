"""LOG_FORMAT=json: the log and stderr of whole runs, and the redaction of single lines."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from iterable.redaction import Redactor
from pipeline.report.log import LOG_NAME, close_log, open_log
from tests.program import ROOT, Program

KEYS = ["timestamp", "level", "logger", "message", "run_id"]


def objects(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    assert [list(each) for each in found] == [KEYS] * len(found)
    for each in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?\+00:00", each["timestamp"])
    return found


def test_each_line_of_the_log_is_an_object_with_the_run(program: Program, sample: Path) -> None:
    run = program.run(LOG_FORMAT="json")
    found = objects(run.log)
    assert {each["run_id"] for each in found} == {run.results["run_id"]}
    assert {each["logger"] for each in found} >= {"main", "iterable_client"}
    assert {each["level"] for each in found} == {"INFO"}
    assert found[-1]["message"].startswith("Finished with exit code 0 (success): ")


def test_stdout_stays_as_it_is(program: Program, sample: Path) -> None:
    as_text, as_json = program.run("--dry-run"), program.run("--dry-run", LOG_FORMAT="json")
    steps = [re.sub(r"\d{8}_\d{6}|[\d.]+ s\b", "*", each.out) for each in (as_text, as_json)]
    assert steps[0] == steps[1]


def test_errors_and_warnings_on_stderr_are_objects(program: Program, sample: Path) -> None:
    program.env_file.chmod(0o644)
    run = program.run("--quiet", LOG_FORMAT="json", DATABASE_URL="sqlite:////nonexistent")
    program.env_file.chmod(0o600)
    warning, error = objects(run.err)
    assert (warning["level"], warning["logger"], warning["run_id"]) == ("WARNING", "main", run.results["run_id"])
    assert warning["message"].startswith(f"{program.env_file} can be read by other users")
    assert (error["level"], error["message"]) == ("ERROR", run.results["reason"])


def test_settings_problems_are_objects_too(program: Program) -> None:
    run = program.run(LOG_FORMAT="json", MAX_RETRIES="0", DATABASE_URL=None)
    found = objects(run.err)
    assert run.code == 78
    assert [each["message"] for each in found[:2]] == [
        "MAX_RETRIES must be a whole number of attempts from 1 to 20, not '0'.",
        "DATABASE_URL is not set; it says where the query runs, for example sqlite:///users.db.",
    ]
    assert {each["run_id"] for each in found} == {None}


@pytest.mark.parametrize("option", ["--json", "--verbose"])
def test_what_these_options_show_on_stderr_is_objects(program: Program, sample: Path, option: str) -> None:
    run = program.run(option, LOG_FORMAT="json")
    assert run.code == 0
    assert len(objects(run.err)) > 5


def test_a_line_is_redacted_and_a_traceback_is_a_list_of_lines(tmp_path: Path) -> None:
    handler = open_log(tmp_path, Redactor(["s3cr3t-key"]), log_format="json", run_id="20260113_143122")
    try:
        logging.getLogger("main").info("key s3cr3t-key of ada@example.com\nforged", extra={"key": "s3cr3t-key"})
        try:
            raise ValueError("s3cr3t-key")
        except ValueError:
            logging.getLogger("main").exception("This is a bug.")
    finally:
        close_log(handler)
    text = (tmp_path / LOG_NAME).read_text()
    line, bug = map(json.loads, text.splitlines())
    assert "s3cr3t" not in text
    assert (list(line), line["message"]) == (KEYS, "key *** of a***@example.com\\nforged")
    assert (bug["exc_info"][0], bug["exc_info"][-1]) == ("Traceback (most recent call last):", "ValueError: ***")


def test_the_library_is_loaded_for_json_only() -> None:
    code = "import main, sys; print([name for name in ('pythonjsonlogger', 'sqlglot') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
