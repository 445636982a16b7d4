"""Runs over data that changes back and forth are killed, and answers get lost: what the ledger says stays true.

By hand, with more kills: `python -m tests.test_changing_data 100`.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import pytest

from pipeline.model.records import Kind, Record
from pipeline.sandbox import Fault, StandIn
from tests.job import MODES, Job, make_record
from tests.opened import Opened, open_both

ROOT = Path(__file__).parent.parent
USERS, EVENTS, VERSIONS = 40, 160, "ABC"
KILLS = 12
LONGEST_S = {"single": 0.25, "bulk": 0.1}  # about as long as a run takes


def records_of(opened: Opened, seed: int) -> list[Record]:
    """Users and events, each in one of three versions."""
    chance = random.Random(seed)

    def fields() -> dict[str, str]:
        return {"version": chance.choice(VERSIONS)}

    users = [make_record(opened, Kind.USER, row, f"{row}@example.com", {}, fields()) for row in range(1, USERS + 1)]
    events = [
        make_record(
            opened,
            Kind.EVENT,
            row,
            f"{row % USERS + 1}@example.com",
            {"eventName": "visit", "id": f"e{row}", "createdAt": row},
            fields(),
        )
        for row in range(1, EVENTS + 1)
    ]
    return users + events


def run(folder: Path, url: str, mode: str, seed: int) -> dict[str, int]:
    """One run over the data of this seed -> how many records ended how."""

    def stage(opened: Opened) -> None:
        records = records_of(opened, seed)
        opened.stage.people.stage_users([each for each in records if each.kind is Kind.USER])
        events = [each for each in records if each.kind is Kind.EVENT]
        opened.stage_events(events)
        opened.stage.finish_staging()

    ran = Job(folder, url).run(None, MODES[mode], before=stage, max_retries=2)
    return {name: ran.users.get(name, 0) + ran.events.get(name, 0) for name in {*ran.users, *ran.events}}


def serve(folder: str, url: str) -> None:
    """Forks a run for each line `mode seed seconds` of the input, and says how it ended.

    After so many seconds the kernel ends it, as SIGKILL would: nobody handles that alarm. 0: never.
    """
    logging.disable()
    for line in sys.stdin:
        mode, seed, seconds = line.split()
        child = os.fork()
        if not child:
            signal.setitimer(signal.ITIMER_REAL, float(seconds))
            run(Path(folder), url, mode, int(seed))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "finished", flush=True)


class Runs:
    """Runs in processes of their own, which cost no start of Python each."""

    def __init__(self, commands: IO[str], answers: IO[str]) -> None:
        self._commands, self._answers = commands, answers

    def run(self, mode: str, seed: int, seconds: float) -> str:
        print(mode, seed, seconds, file=self._commands, flush=True)
        return self._answers.readline().strip()


@contextmanager
def open_runs(folder: Path, url: str) -> Iterator[Runs]:
    script = f"from tests.test_changing_data import serve; serve({str(folder)!r}, {url!r})"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Runs(process.stdin, process.stdout)
        process.stdin.close()


def stale_records(folder: Path, iterable: StandIn) -> list[str]:
    """What the ledger says is in Iterable, and is not, or with another content."""
    stale = []
    with open_both(folder, now=0) as opened:
        for seed, _ in enumerate(VERSIONS):
            for record in all_in_one_version(opened, VERSIONS[seed]):
                if opened.ledger.known([record.key]).get(record.key) == record.fingerprint:
                    held = iterable.project.users if record.kind is Kind.USER else iterable.project.events
                    name = record.identity if record.kind is Kind.USER else f"e{record.row}"
                    if name not in held or held[name]["dataFields"]["version"] != VERSIONS[seed]:
                        stale.append(f"{name} {VERSIONS[seed]}")
    return stale


def all_in_one_version(opened: Opened, version: str) -> Iterator[Record]:
    for each in records_of(opened, 0):
        event = {"eventName": "visit", "id": f"e{each.row}", "createdAt": each.row}
        content = {} if each.kind is Kind.USER else event
        yield make_record(opened, each.kind, each.row, each.identity, content, {"version": version})


def kill_runs(folder: Path, mode: str, kills: int, seed: int) -> str:
    """Kills so many runs, each at some moment, and lets some finish. Raises where the ledger is wrong."""
    chance = random.Random(seed)
    ends = Counter[str]()
    with StandIn(limits=None, latency_s=0.002) as iterable, open_runs(folder, iterable.url) as runs:
        iterable.inject(Fault(store=True, disconnect=True, every=10))
        while ends["killed"] < kills:
            seed += 1
            ends[runs.run(mode, seed, chance.choice((0, *[chance.uniform(0.001, LONGEST_S[mode])] * 4)))] += 1
            assert stale_records(folder, iterable) == [], f"after run {seed}"
        iterable.clear_faults()
        assert set(run(folder, iterable.url, mode, seed)) <= {"delivered", "unchanged"}
        with open_both(folder, now=0) as opened:
            records = records_of(opened, seed)
            known = opened.ledger.known([each.key for each in records])
            assert known == {each.key: each.fingerprint for each in records}
        assert stale_records(folder, iterable) == []
        assert (len(iterable.project.users), len(iterable.project.events)) == (USERS, EVENTS)
    return f"{mode}: {dict(ends)}, nothing stale"


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("mode", MODES)
def test_what_the_ledger_says_is_true_after_each_kill_and_a_last_run_repairs_the_rest(
    tmp_path: Path, mode: str
) -> None:
    kill_runs(tmp_path, mode, KILLS, seed=1)


if __name__ == "__main__":
    for each_mode_name in MODES:
        with TemporaryDirectory(prefix="kills-") as each_folder:
            print(kill_runs(Path(each_folder), each_mode_name, int(sys.argv[1]), seed=1000), flush=True)
