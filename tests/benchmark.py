"""How fast the whole program is, and how much memory it takes: `python -m tests.benchmark`, by hand.

Every figure is that of `python main.py` as a process of its own, against the stand-in in another process. --against
compares: runs of this tree and of another revision take turns, on the same data and against this tree's stand-in. It
prints each tree's median and range, and those of the ratio within each pair of runs; n/a where the other revision
can't do it. Nothing is asserted. Machines differ by half from day to day, so trust the ratios. Everything takes about
ten minutes; choose parts by name:

    python -m tests.benchmark bulk limits overlap single plan no_news one_field_changed order wide start naive
    python -m tests.benchmark plan no_news --rows 1000000 --pairs 3 --against 211aa74
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import requests

from pipeline.sandbox import SANDBOX_KEY

ROOT = Path(__file__).resolve().parent.parent
EVENTS_A_USER = 10
WIDE_BYTES = 50_000
NO_LIMITS = {"RATE_LIMIT_PERCENT": "100000"}
ALL_OF_THE_LIMITS = {"RATE_LIMIT_PERCENT": "100"}
# One row for each event, in the order of the events: the users take turns.
IN_TURN = """
SELECT u.email, u.first_name, u.last_name, u.plan_type, u.first_name || ' ' || u.last_name AS candidate,
    e.page, e.device, e.browser, e.location, e.event_time
FROM user_events AS e JOIN users AS u ON u.id = e.user_id ORDER BY e.id"""
# A process of its own, since a child's ru_maxrss starts from its parent's memory.
LAUNCHER = """
import json, os, sys, time
began = time.monotonic()
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
print(child, flush=True)
_, status, usage = os.wait4(child, 0)
ended = time.monotonic()
cpu_s = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), began, ended, cpu_s, usage.ru_maxrss]))
"""


@dataclass(frozen=True)
class Tree:
    """A checkout whose main.py is run."""

    name: str
    root: Path


@dataclass(frozen=True)
class Job:
    """What is run, and against which stand-in.

    again: what is measured are later runs, over data that the ledger knows. before: it is a second run, after one over
    this database.
    ends_with_first_request: it is killed then, so that what is measured is all that comes before.
    """

    name: str
    database: Path
    settings: Mapping[str, str] = field(default_factory=lambda: NO_LIMITS)
    latency_ms: int = 0
    limits: bool = False
    again: bool = False
    before: Path | None = None
    ends_with_first_request: bool = False


@dataclass(frozen=True)
class Measured:
    """One run of the program. `state` is what the stand-in then told."""

    exit_code: int
    error: str
    began: float  # monotonic, which all processes of a machine share
    ended: float
    cpu_s: float
    peak_mib: float
    standin_cpu_s: float
    state: dict[str, Any]

    @property
    def wall_s(self) -> float:
        return self.ended - self.began

    @property
    def sending_s(self) -> float:
        """From the first request to the last answer, as the stand-in saw them."""
        return float(self.state["last_answer_at"] - self.state["first_request_at"])

    @property
    def requests(self) -> int:
        return sum(self.state["requests"].values())


@dataclass(frozen=True)
class Figure:
    """Something to read from a run."""

    name: str
    of: Callable[[Measured], float]


WALL = Figure("wall s", lambda run: run.wall_s)
CPU = Figure("processor s", lambda run: run.cpu_s)
PEAK = Figure("peak MiB", lambda run: run.peak_mib)
REQUESTS = Figure("requests", lambda run: run.requests)
BYTES = Figure("bytes sent", lambda run: sum(run.state["request_bytes"].values()))
REFUSED = Figure("429s", lambda run: sum(run.state["rate_limited"].values()))
# Far below 1, the stand-in is not the bottleneck.
STAND_IN = Figure("busy share of the stand-in", lambda run: run.standin_cpu_s / run.wall_s)


def per_second(what: str, count: int) -> Figure:
    return Figure(f"{what}/s", lambda run: count / run.wall_s)


def times_floor(floor_s: float) -> Figure:
    """The sending as a multiple of the shortest time that Iterable's limits allow."""
    return Figure(f"first request to last answer, times {floor_s:g} s", lambda run: run.sending_s / floor_s)


# The world around the program -----------------------------------------------------------------------------------------


def make_database(path: Path, users: int, events: int, *, in_turn: bool, page_bytes: int) -> None:
    """The tables of examples/schema.sql. in_turn: neighbouring events are those of different users."""
    with sqlite3.connect(path) as database:
        database.executescript((ROOT / "examples" / "schema.sql").read_text().partition("INSERT")[0])
        database.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?, 'pro', '2026-01-01 00:00:00')",
            ((n, f"user{n}@example.com", f"First{n % 97}", f"Last{n % 89}") for n in range(users)),
        )
        database.executemany(
            "INSERT INTO user_events VALUES (?, ?, ?, 'desktop', 'Chrome', 'San Francisco CA', ?)",
            (
                (n, n % users if in_turn else n * users // events, f"page{n % 50}".ljust(page_bytes, "."), _moment(n))
                for n in range(events)
            ),
        )
    database.close()


def _moment(n: int) -> str:
    return f"2026-01-{1 + n % 28:02d} {n // 3600 % 24:02d}:{n // 60 % 60:02d}:{n % 60:02d}"


class StandInProcess:
    """`python -m pipeline.sandbox` of this tree, in a process of its own."""

    def __init__(self, port: int, latency_ms: int, *, limits: bool) -> None:
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

    def cpu_s(self) -> float:
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
def stand_in(port: int, latency_ms: int, *, limits: bool = False) -> Iterator[StandInProcess]:
    process = StandInProcess(port, latency_ms, limits=limits)
    try:
        yield process
    finally:
        process.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def check_out(revision: str, folder: Path) -> Tree:
    subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach", revision], cwd=folder, check=True)
    return Tree(revision, folder)


# Runs -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where the runs take place, and the choices of the command line. All runs use one port: the ledger knows a
    project by its address."""

    work: Path
    trees: list[Tree]
    pairs: int
    rows: list[int]
    latencies: list[int]
    in_turn: bool
    port: int = field(default_factory=free_port)

    def database(self, users: int, events: int, *, in_turn: bool = False, page_bytes: int = 0) -> Path:
        path = self.work / f"{users}-{events}-{in_turn}-{page_bytes}.db"
        if not path.exists():
            make_database(path, users, events, in_turn=in_turn, page_bytes=page_bytes)
        return path

    def users_of_eight_fields(self, users: int, plan: str) -> Path:
        path = self.work / f"{users}-users-{plan}.db"
        if not path.exists():
            with sqlite3.connect(path) as database:
                columns = [f"field_{n}" for n in range(7)]
                database.execute(f"CREATE TABLE u (email TEXT, plan TEXT, {', '.join(columns)})")
                database.executemany(
                    f"INSERT INTO u VALUES (?, ?{', ?' * len(columns)})",
                    ((f"user{n}@example.com", plan, *(f"value {n} of {c}" for c in columns)) for n in range(users)),
                )
            database.close()
        return path

    def query(self, name: str, text: str) -> dict[str, str]:
        """The settings for a query of our own."""
        path = self.work / f"{name}.sql"
        path.write_text(text)
        return {"QUERY_FILE": str(path)}

    def compare(self, job: Job, *figures: Figure) -> None:
        """Run every tree in turn, and show the figures."""
        show(job.name, *(tree.name for tree in self.trees), *["ratio"][: len(self.trees) - 1])
        if job.again:  # the first read without news is apart, as it makes what the others live on
            for tree in self.trees:
                self._run(tree, job)
                self._run(tree, job)
        rounds = [[self._run(tree, job) for tree in self.trees] for _ in range(self.pairs)]
        for tree in self.trees:
            shutil.rmtree(self._folder(tree, job), ignore_errors=True)
        if rounds[0][0].exit_code != 0:
            sys.exit(f"The program ended with {rounds[0][0].exit_code}: {rounds[0][0].error}")
        for figure in figures:
            show(f"  {figure.name}", *_cells(rounds, figure))
        print()

    def _folder(self, tree: Tree, job: Job) -> Path:
        return self.work / f"{job.database.stem}-{tree.name.replace('/', '_')}"

    def _run(self, tree: Tree, job: Job) -> Measured:
        folder = self._folder(tree, job)
        folder.mkdir(exist_ok=True)
        if job.before is not None:
            with stand_in(self.port, 0) as iterable:
                launch(tree, replace(job, database=job.before), folder, iterable)
        with stand_in(self.port, job.latency_ms, limits=job.limits) as iterable:
            measured = launch(tree, job, folder, iterable)
        for csv in folder.glob("query_results_*.csv"):
            csv.unlink()
        if not job.again:
            shutil.rmtree(folder)
        return measured


def launch(tree: Tree, job: Job, folder: Path, iterable: StandInProcess) -> Measured:
    """Run the program once, with its outputs in `folder`."""
    env_file = folder / "empty.env"
    env_file.touch(0o600)
    environment = {
        "PATH": os.environ["PATH"],
        "OUTPUT_DIR": str(folder),
        "ITERABLE_API_KEY": SANDBOX_KEY,
        "ITERABLE_BASE_URL": iterable.url,
        "DATABASE_URL": f"sqlite:///{job.database}",
        **job.settings,
    }
    program = [sys.executable, str(tree.root / "main.py"), "--quiet", "--env-file", str(env_file)]
    busy_before = iterable.cpu_s()
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, *program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        if job.ends_with_first_request:
            _kill_at_first_request(launcher, iterable)
        told, errors = launcher.communicate()
    exit_code, began, ended, cpu_s, peak_kib = json.loads(told.splitlines()[-1])
    if job.ends_with_first_request and exit_code == -signal.SIGKILL:
        exit_code = 0
    state, standin_cpu_s = iterable.state(), iterable.cpu_s() - busy_before
    return Measured(exit_code, errors.decode().strip(), began, ended, cpu_s, peak_kib / 1024, standin_cpu_s, state)


def _kill_at_first_request(launcher: subprocess.Popen[bytes], iterable: StandInProcess) -> None:
    assert launcher.stdout is not None
    program = int(launcher.stdout.readline())
    while iterable.state()["first_request_at"] is None:
        if launcher.poll() is not None:
            return
        time.sleep(0.02)
    os.kill(program, signal.SIGKILL)


def _cells(rounds: list[list[Measured]], figure: Figure) -> Iterator[str]:
    """Median and range of each tree, and of the ratio within each round of two."""
    columns = list(zip(*rounds, strict=True))
    failed = [next((run.exit_code for run in runs if run.exit_code != 0), 0) for runs in columns]
    for runs, exit_code in zip(columns, failed, strict=True):
        yield f"n/a (exit {exit_code})" if exit_code else _spread(map(figure.of, runs))
    if len(columns) == 2 and not any(failed):
        pairs = [(figure.of(this), figure.of(other)) for this, other in rounds]
        yield _spread(this / other for this, other in pairs) if all(other for _, other in pairs) else "-"


def _spread(values: Iterable[float]) -> str:
    ordered = sorted(values)
    return f"{_number(statistics.median(ordered))} ({_number(ordered[0])}-{_number(ordered[-1])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def show(*cells: str) -> None:
    widths = (50, 26, 26, 26)
    print("".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip(), flush=True)


# The parts ------------------------------------------------------------------------------------------------------------


def bulk(bench: Bench) -> None:
    """Without limits: what the program itself can do."""
    for rows in bench.rows:
        for latency in bench.latencies:
            job = Job(f"BULK, {rows:,} rows, {latency} ms", _default_data(bench, rows), latency_ms=latency)
            bench.compare(job, per_second("rows", rows), WALL, CPU, PEAK, STAND_IN)


def limits(bench: Bench) -> None:
    """As fast as Iterable allows, with ten events for each user."""
    rows = bench.rows[0]
    users = rows // EVENTS_A_USER
    for latency in bench.latencies:
        name = f"LIMITS, bulk, {users:,} users, {rows:,} events, {latency} ms"
        job = Job(name, _default_data(bench, rows), ALL_OF_THE_LIMITS, latency_ms=latency, limits=True)
        bench.compare(job, times_floor(max(users / 5000, rows / 10_000)), REFUSED, WALL, CPU)


def overlap(bench: Bench) -> None:
    """As fast as Iterable allows, with as many users as events; only both endpoints at once come near."""
    many, few = bench.rows[0] // 5, bench.rows[0] // 20
    for latency in bench.latencies:
        name = f"OVERLAP, bulk, {many:,} users and events, {latency} ms"
        job = Job(name, bench.database(many, many), ALL_OF_THE_LIMITS, latency_ms=latency, limits=True)
        bench.compare(job, times_floor(many / 5000), REFUSED, WALL, CPU)
        name = f"OVERLAP, single, {few:,} users and events, {latency} ms"
        settings = {**ALL_OF_THE_LIMITS, "PUSH_MODE": "single"}
        job = Job(name, bench.database(few, few), settings, latency_ms=latency, limits=True)
        bench.compare(job, times_floor(few / 500), REFUSED, WALL, CPU, STAND_IN)


def single(bench: Bench) -> None:
    """Without limits: what a request costs."""
    rows = bench.rows[0] // 10
    milliseconds = Figure("processor ms a request, of the whole run", lambda run: 1000 * run.cpu_s / run.requests)
    for latency in bench.latencies:
        name = f"SINGLE, {rows:,} rows, {latency} ms"
        job = Job(name, _default_data(bench, rows), {**NO_LIMITS, "PUSH_MODE": "single"}, latency_ms=latency)
        sent = rows + rows // EVENTS_A_USER
        bench.compare(job, per_second("requests", sent), milliseconds, CPU, PEAK, STAND_IN)


def plan(bench: Bench) -> None:
    """What a run does before its first request, which nobody answers: start, read, CSV, plan, stage."""
    for rows in bench.rows:
        database, settings, how = _data_in_order(bench, rows)
        name = f"PLAN, start to first request, {rows:,} rows{how}"
        job = Job(name, database, settings, latency_ms=60_000, ends_with_first_request=True)
        bench.compare(job, CPU, WALL, PEAK)


def no_news(bench: Bench) -> None:
    """A second run over the same data, without and with `:since`."""
    changed_only = {**NO_LIMITS, "QUERY_FILE": str(ROOT / "examples" / "changed_only.sql")}
    for rows in bench.rows:
        database, settings, how = _data_in_order(bench, rows)
        bench.compare(Job(f"NO NEWS, {rows:,} rows{how}", database, settings, again=True), CPU, WALL, PEAK, REQUESTS)
        job = Job(f"NO NEWS, :since, {rows:,} rows", database, changed_only, again=True)
        bench.compare(job, WALL, CPU, PEAK, REQUESTS)


def one_field_changed(bench: Bench) -> None:
    """Every user has another value in one of eight fields, since the run before; there are no events."""
    users = bench.rows[0]
    before, after = (bench.users_of_eight_fields(users, plan) for plan in ("pro", "free"))
    settings = {**NO_LIMITS, "EVENT_FIELDS": "-", "USER_FIELDS": "*", **bench.query("eight_fields", "SELECT * FROM u")}
    job = Job(f"ONE FIELD OF EIGHT CHANGED, {users:,} users", after, settings, before=before)
    bench.compare(job, BYTES, REQUESTS, CPU, WALL)


def ten_million(bench: Bench) -> None:
    """Growth: ten million rows beside a million, first all of it new, then none. Takes 12 minutes a tree."""
    for rows in (1_000_000, 10_000_000):
        database = _default_data(bench, rows)
        a_row = Figure("processor us a row", lambda run, rows=rows: 1e6 * run.cpu_s / rows)  # type: ignore[misc]
        bench.compare(Job(f"GROWTH, {rows:,} rows, all new", database), a_row, CPU, WALL, PEAK)
        bench.compare(Job(f"GROWTH, {rows:,} rows, no news", database, again=True), a_row, CPU, WALL, PEAK)


def order(bench: Bench) -> None:
    """Users in turn: no two neighbouring rows are those of one user."""
    for rows in bench.rows:
        job = Job(f"ORDER, {rows // EVENTS_A_USER:,} users in turn, {rows:,} rows", *_data_in_turn(bench, rows))
        bench.compare(job, per_second("rows", rows), WALL, CPU, PEAK)


def wide(bench: Bench) -> None:
    """Rows of 50 kB."""
    rows = bench.rows[0] // 50
    database = bench.database(rows // EVENTS_A_USER, rows, page_bytes=WIDE_BYTES)
    bench.compare(Job(f"WIDE, {rows:,} rows of {WIDE_BYTES // 1000} kB", database), WALL, CPU, PEAK)


def start(bench: Bench) -> None:
    """How long a small run takes."""
    first = Figure("start to first request, s", lambda run: float(run.state["first_request_at"] - run.began))
    bench.compare(Job("START, 12 rows", bench.database(5, 12)), first, WALL, CPU, PEAK)


def naive(bench: Bench) -> None:
    """What a user would write instead: two `requests.post` for each row."""
    headers = {"Api-Key": SANDBOX_KEY}
    for latency in bench.latencies:
        rows = 2000 if latency == 0 else 100
        with stand_in(bench.port, latency) as iterable:
            began = time.monotonic()
            for n in range(rows):
                who = f"user{n // EVENTS_A_USER}@example.com"
                user: dict[str, Any] = {"email": who, "dataFields": {"first_name": "Ada"}}
                requests.post(f"{iterable.url}/api/users/update", json=user, headers=headers, timeout=30)
                event: dict[str, Any] = {"email": who, "eventName": "page_view", "id": f"e{n}", "dataFields": {}}
                requests.post(f"{iterable.url}/api/events/track", json=event, headers=headers, timeout=30)
            show(f"NAIVE, requests.post for each row, {latency} ms", f"{rows / (time.monotonic() - began):,.1f} rows/s")


def _default_data(bench: Bench, rows: int) -> Path:
    return bench.database(max(1, rows // EVENTS_A_USER), rows)


def _data_in_turn(bench: Bench, rows: int) -> tuple[Path, dict[str, str]]:
    database = bench.database(max(1, rows // EVENTS_A_USER), rows, in_turn=True)
    return database, {**NO_LIMITS, **bench.query("in_turn", IN_TURN)}


def _data_in_order(bench: Bench, rows: int) -> tuple[Path, dict[str, str], str]:
    """User by user, or in turn with --in-turn; and how the figure's name tells it."""
    if bench.in_turn:
        return *_data_in_turn(bench, rows), ", users in turn"
    return _default_data(bench, rows), NO_LIMITS, ""


ORDINARY = (bulk, limits, overlap, single, plan, no_news, one_field_changed, order, wide, start, naive)
PARTS = {part.__name__: part for part in (*ORDINARY, ten_million)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all but ten_million)")
    parser.add_argument("--against", metavar="REV", help="compare with this revision")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each tree (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="parts with other counts derive them")
    parser.add_argument("--latency", type=int, nargs="+", default=[50], help="in milliseconds (default: 50)")
    parser.add_argument("--in-turn", action="store_true", help="plan and no_news: no two rows in a row are one user's")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        work = Path(folder)
        trees = [Tree("this tree", ROOT)]
        if options.against:
            trees.append(check_out(options.against, work / "against"))
        for tree in trees:  # so that no run compiles
            for pattern in ("*.py", "iterable/**/*.py", "pipeline/**/*.py"):
                for source in tree.root.glob(pattern):
                    compileall.compile_file(source, quiet=1)
        bench = Bench(work, trees, options.pairs, options.rows, options.latency, options.in_turn)
        for name in options.parts or [part.__name__ for part in ORDINARY]:
            PARTS[name](bench)


if __name__ == "__main__":
    main()
