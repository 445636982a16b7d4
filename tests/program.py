"""`python main.py` as tests run it: a process of its own, with a folder of its own for what it writes."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jsonschema import Draft202012Validator

from pipeline.sandbox import SANDBOX_KEY, StandIn
from tests.loaded import run_loaded

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Finished:
    """A run that is over."""

    code: int
    out: str
    err: str
    folder: Path
    results: dict[str, Any]

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.folder.glob(pattern))

    @property
    def log(self) -> str:
        return (self.folder / "iterable_integration.log").read_text()

    def counts(self, kind: str) -> dict[str, int]:
        return {name: number for name, number in self.results["counts"][kind].items() if number}


class Program:
    """`python main.py` with a folder of its own for what it writes.

    In local time, each run is a second ahead of the one before, so that none waits for a file name of its own. With
    `TZ` among the settings, they share one time.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.env_file = folder.parent / "empty.env"  # so that a developer's own .env is not read
        self.env_file.touch(0o600)
        self.starts = 0
        self.settings = {
            "OUTPUT_DIR": str(folder),
            "ITERABLE_API_KEY": SANDBOX_KEY,
            "ITERABLE_BASE_URL": url,
            "INITIAL_BACKOFF": "0.01",
            "USER_SETTLE_SECONDS": "0",
        }

    def start(
        self,
        *arguments: str,
        script: Path = ROOT / "main.py",
        preexec_fn: Callable[[], None] | None = None,
        stdin: int | None = None,
        **settings: str | None,
    ) -> subprocess.Popen[str]:
        """A start of Python, for signals and limits; `wait_for` waits for its end."""
        return subprocess.Popen(
            [sys.executable, str(script), "--env-file", str(self.env_file), *arguments],
            env=self._environment(settings),
            cwd=self.folder.parent,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec_fn,
        )

    def run(self, *arguments: str, script: Path = ROOT / "main.py", **settings: str | None) -> Finished:
        """A whole run, in a process of its own that has the program loaded; `PYTHONPATH` comes too late for it."""
        if not hasattr(os, "fork"):
            return self.wait_for(self.start(*arguments, script=script, preexec_fn=None, stdin=None, **settings))
        environment = self._environment(settings)
        command = [str(script), "--env-file", str(self.env_file), *arguments]
        with TemporaryDirectory() as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            out.touch()
            err.touch()
            code = run_loaded(command, environment, self.folder.parent, [Path(os.devnull), out, err])
            return self._finished(code, out.read_text(), err.read_text())

    def wait_for(self, process: subprocess.Popen[str]) -> Finished:
        out, err = process.communicate(timeout=60)
        return self._finished(process.returncode, out, err)

    def _environment(self, settings: dict[str, str | None]) -> dict[str, str]:
        ahead = timedelta(seconds=self.starts)
        self.starts += 1
        local_time = f"UTC-{ahead}"  # minus is east of UTC
        chosen = {"PATH": os.environ["PATH"], "TZ": local_time, **self.settings, **settings}
        return {name: value for name, value in chosen.items() if value is not None}

    def _finished(self, code: int, out: str, err: str) -> Finished:
        written = sorted(self.folder.glob("integration_results_*.json"))
        results = json.loads(written[-1].read_text()) if written else {}
        if results:
            results_validator().validate(results)
        return Finished(code, out, err, self.folder, results)


@cache
def results_validator() -> Draft202012Validator:
    """Of what stands in results files, by the schema that is published."""
    schema = json.loads((ROOT / "docs/results.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def sent(stand_in: StandIn) -> list[str]:
    """The paths of all requests but those that read which journeys there are."""
    return [each.path for each in stand_in.project.requests if each.path != "/api/journeys"]


def make_table(path: Path, columns: str, rows: list[tuple[Any, ...]]) -> None:
    """A database with one table, `rows`, for queries of our own."""
    with sqlite3.connect(path) as database:
        database.execute(f"CREATE TABLE rows ({columns})")
        places = ",".join("?" * len(columns.split(",")))
        database.executemany(f"INSERT INTO rows VALUES ({places})", rows)
    database.close()


def use_query(program: Program, sql: str) -> None:
    path = program.folder.parent / "query.sql"
    path.write_text(sql)
    program.settings["QUERY_FILE"] = str(path)


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def has_logged(program: Program, words: str) -> bool:
    log = program.folder / "iterable_integration.log"
    return log.exists() and words in log.read_text()
