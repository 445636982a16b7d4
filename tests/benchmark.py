"""How fast the whole program is, and how much memory it takes: `python -m tests.benchmark`, by hand.

Every figure is that of `python main.py` as a process of its own, from its start to its exit, against the stand-in in
another process. The column "stand-in" is the share of that time in which the stand-in was busy: far below 100 %, it is
not the bottleneck. It prints a table; nothing is asserted. Everything takes about ten minutes; choose parts by name:

    python -m tests.benchmark bulk limits single start naive
    python -m tests.benchmark bulk --rows 100000 --latency 50
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from pipeline.sandbox import SANDBOX_KEY, StandIn

ROOT = Path(__file__).resolve().parent.parent
EVENTS_A_USER = 10
UNLIMITED = "100000"  # percent of Iterable's limits
PARTS = ("bulk", "limits", "single", "start", "naive")


@dataclass(frozen=True)
class Measured:
    """One run of the program."""

    wall_s: float
    peak_mib: float
    standin_share: float
    results: dict[str, Any]


# The world around the program -----------------------------------------------------------------------------------------


def make_database(path: Path, rows: int) -> Path:
    """`rows` events of `rows / EVENTS_A_USER` users, in the tables that the default query reads."""
    users = max(1, rows // EVENTS_A_USER)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email, first_name, last_name, plan_type)")
        database.execute(
            "CREATE TABLE user_events"
            " (id INTEGER PRIMARY KEY, user_id INTEGER, page, device, browser, location, event_time)"
        )
        database.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?, 'pro')",
            ((n, f"user{n}@example.com", f"First{n % 97}", f"Last{n % 89}") for n in range(users)),
        )
        database.executemany(
            "INSERT INTO user_events VALUES (?, ?, ?, 'desktop', 'Chrome', 'San Francisco CA', ?)",
            ((n, n // EVENTS_A_USER, f"page{n % 50}", _moment(n)) for n in range(rows)),
        )
        database.execute("CREATE INDEX events_of_user ON user_events (user_id)")
    database.close()
    return path


def _moment(n: int) -> str:
    return f"2026-01-{1 + n % 28:02d} {n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}"


class StandInProcess:
    """`python -m pipeline.sandbox` in a process of its own."""

    def __init__(self, latency_ms: int, *, limits: bool) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        arguments = ["--port", str(port), "--latency-ms", str(latency_ms), "--count-only", "--unknown-users", "accept"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.sandbox", *arguments, *([] if limits else ["--no-limits"])],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        while self.process.poll() is None:
            try:
                self.state()
                break
            except OSError:
                time.sleep(0.02)

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/sandbox/state") as answer:
            loaded: dict[str, Any] = json.load(answer)
        return loaded

    def busy_s(self) -> float:
        """Processor seconds so far, from /proc; 0 where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def stand_in(latency_ms: int, *, limits: bool = False) -> Iterator[StandInProcess]:
    process = StandInProcess(latency_ms, limits=limits)
    try:
        yield process
    finally:
        process.stop()


def prepare(url: str, folder: Path, database: Path, **settings: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a run that writes to `folder`."""
    folder.mkdir(exist_ok=True)
    env_file = folder / "empty.env"
    env_file.touch(0o600)
    environment = {
        "PATH": os.environ["PATH"],
        "OUTPUT_DIR": str(folder),
        "ITERABLE_API_KEY": SANDBOX_KEY,
        "ITERABLE_BASE_URL": url,
        "DATABASE_URL": f"sqlite:///{database}",
        **settings,
    }
    return [sys.executable, str(ROOT / "main.py"), "--quiet", "--env-file", str(env_file)], environment


def measure(iterable: StandInProcess, folder: Path, database: Path, **settings: str) -> Measured:
    """Run the program once, with its outputs in `folder`."""
    command, environment = prepare(iterable.url, folder, database, **settings)
    busy_before, started = iterable.busy_s(), time.monotonic()
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"The program ended with {os.waitstatus_to_exitcode(status)}.")
    results = json.loads(max(folder.glob("integration_results_*.json")).read_text())
    share = (iterable.busy_s() - busy_before) / wall_s
    return Measured(wall_s, usage.ru_maxrss / 1024, share, results)


def show(*cells: object) -> None:
    widths = (46, 14, 12, 12, 12)
    print("".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip(), flush=True)


# The parts ------------------------------------------------------------------------------------------------------------


def bulk(work: Path, rows_list: list[int], latencies: list[int]) -> None:
    show("BULK, stand-in without limits", "rows/s", "wall s", "peak MiB", "stand-in")
    for rows in rows_list:
        database = make_database(work / f"bulk{rows}.db", rows)
        for latency in latencies:
            with stand_in(latency) as iterable:
                folder = work / f"bulk-{rows}-{latency}"
                first = measure(iterable, folder, database, RATE_LIMIT_PERCENT=UNLIMITED)
                before = iterable.state()["requests"]
                second = measure(iterable, folder, database, RATE_LIMIT_PERCENT=UNLIMITED)
                again = sum(iterable.state()["requests"].values()) - sum(before.values())
            for name, run in ((f"{rows:,} rows, {latency} ms", first), (f"  run again: {again} requests", second)):
                show(name, f"{rows / run.wall_s:,.0f}", f"{run.wall_s:.2f}", f"{run.peak_mib:.0f}", _share(run))


def limits(work: Path, rows_list: list[int], latencies: list[int]) -> None:
    rows = rows_list[0]
    users = rows // EVENTS_A_USER
    floor_s = users / 5000 + rows / 10000
    show("BULK, Iterable's limits on", "wall s", "floor s", "ratio", "429s")
    database = make_database(work / "limits.db", rows)
    for latency in latencies:
        for percent in ("90", "100"):
            with stand_in(latency, limits=True) as iterable:
                run = measure(iterable, work / f"limits-{latency}-{percent}", database, RATE_LIMIT_PERCENT=percent)
                refused = sum(iterable.state()["rate_limited"].values())
            name = f"{rows:,} rows, {latency} ms, {percent} % of the limits"
            show(name, f"{run.wall_s:.1f}", f"{floor_s:.1f}", f"{run.wall_s / floor_s:.2f}", refused)


def single(work: Path, rows_list: list[int], latencies: list[int]) -> None:
    del rows_list
    show("SINGLE, 100 % of Iterable's limits", "requests/s", "limit", "peak MiB", "stand-in")
    users_query = work / "users.sql"
    users_query.write_text("SELECT email, first_name FROM users")
    events_query = work / "events.sql"
    events_query.write_text(
        "SELECT u.email, u.first_name, e.page, e.event_time FROM users u JOIN user_events e ON e.user_id = u.id"
    )
    many_users = make_database(work / "users.db", 150_000)
    database = make_database(work / "single.db", 50_000)
    common = {"PUSH_MODE": "single", "RATE_LIMIT_PERCENT": "100"}
    for latency in latencies:
        with stand_in(latency) as iterable:
            folder = work / f"single-{latency}"
            run = measure(iterable, folder, many_users, QUERY_FILE=str(users_query), **common)
            _show_single("users/update", 15_000, 500, latency, run)
            run = measure(iterable, folder, database, QUERY_FILE=str(events_query), **common)
            _show_single("events/track", 50_000, 2000, latency, run)


def _show_single(endpoint: str, count: int, limit: int, latency: int, run: Measured) -> None:
    assert run.results["requests"][endpoint]["sent"] == count
    show(f"{endpoint}, {latency} ms", f"{count / run.wall_s:,.0f}", limit, f"{run.peak_mib:.0f}", _share(run))


def start(work: Path, rows_list: list[int], latencies: list[int]) -> None:
    del rows_list, latencies
    show("START, 12 rows", "first request s", "exit s")
    database = make_database(work / "start.db", 12)
    for attempt in range(5):
        with StandIn() as iterable:
            command, environment = prepare(iterable.url, work / f"start-{attempt}", database)
            began = time.monotonic()
            subprocess.run(command, env=environment, check=True)
            ended = time.monotonic()
            show(f"run {attempt + 1}", f"{iterable.project.requests[0].time - began:.2f}", f"{ended - began:.2f}")


def naive(work: Path, rows_list: list[int], latencies: list[int]) -> None:
    """What a user would write instead: two `requests.post` for each row."""
    del work, rows_list
    show("NAIVE LOOP, requests.post for each row", "rows/s")
    headers = {"Api-Key": SANDBOX_KEY}
    for latency in latencies:
        rows = 2000 if latency == 0 else 100
        with stand_in(latency) as iterable:
            began = time.monotonic()
            for n in range(rows):
                who = f"user{n // EVENTS_A_USER}@example.com"
                user: dict[str, Any] = {"email": who, "dataFields": {"first_name": "Ada"}}
                requests.post(f"{iterable.url}/api/users/update", json=user, headers=headers, timeout=30)
                event: dict[str, Any] = {"email": who, "eventName": "page_view", "id": f"e{n}", "dataFields": {}}
                requests.post(f"{iterable.url}/api/events/track", json=event, headers=headers, timeout=30)
            show(f"{latency} ms", f"{rows / (time.monotonic() - began):,.1f}")


def _share(run: Measured) -> str:
    return f"{run.standin_share:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 50, 150], help="in milliseconds")
    options = parser.parse_args()
    measures = {"bulk": bulk, "limits": limits, "single": single, "start": start, "naive": naive}
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        for part in options.parts or PARTS:
            measures[part](Path(folder), options.rows, options.latency)
            print()


if __name__ == "__main__":
    main()
