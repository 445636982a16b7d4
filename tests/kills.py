"""Whole runs over data that changes are killed, again and again: `python -m tests.kills 200`, by hand.

`python -m tests.kills 100 machines machines-bulk` has machines that come and go take turns, over a ledger that
STATE_URL names: some with a folder that they had before, some with a fresh one, some that are stopped, overtaken, and
woken up again.

In each world people change, come, and are refused, with :since and EXIT_ON_REJECTED=new; every tenth answer is lost.
Each run is killed at some moment, or ends by itself. At the end Iterable must hold what the database holds, each event
once, nothing may be left to send, and each rejection must have been new in exactly one run that ended with 1. What
can't be told apart from outside is counted: a run that was killed between its last commit and its end has written its
results, and its rejections are known, although its exit code was never seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.sandbox import Fault, StandIn
from pipeline.state.record import RECORD_NAME, StateRecord, parse_record
from tests.program import Finished, Program, make_table, use_query, wait_until
from tests.state.machines import QUICK_MAIN, Machine

PEOPLE = 30
REFUSED = b'{"msg":"no","code":"BadParams","params":null}'
QUERY = (
    "SELECT p.email, p.plan, e.page, e.event_time FROM people AS p LEFT JOIN events AS e ON e.email = p.email"
    " AND e.updated_at >= :since WHERE p.updated_at >= :since OR e.email IS NOT NULL"
)


class World:
    """A database, an Iterable, and a folder in which runs follow each other."""

    def __init__(self, folder: Path, iterable: StandIn, mode: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.iterable = iterable
        self.program = Program(folder / "out", iterable.url)
        self.path = folder / "people.db"
        make_table(self.path, "email,plan,updated_at", [])
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute("ALTER TABLE rows RENAME TO people")
            database.execute("CREATE TABLE events (email, page, event_time, updated_at)")
        use_query(self.program, QUERY)
        settings = {"DATABASE_URL": f"sqlite:///{self.path}", "EXIT_ON_REJECTED": "new", "PUSH_MODE": mode}
        fields = {"USER_FIELDS": "plan", "EVENT_FIELDS": "page", "SINCE_OVERLAP_HOURS": "0", "ALERT_AFTER": "0"}
        self.program.settings |= {
            **settings,
            **fields,
            "MAX_WORKERS": "4",
            "INITIAL_BACKOFF": "0.001",
            "RATE_LIMIT_PERCENT": "100000",
        }
        self.plans: dict[str, str] = {}
        self.events = self.refused = 0
        self.ends = Counter[str]()
        self.reported = 0  # rejections that were new in a run that ended with 1
        self.lasts = 0.5  # seconds that a run takes
        for number in range(PEOPLE):
            self.change(f"{number}@example.com")

    def change(self, who: str, *, events: int = 1) -> None:
        plan = f"plan{self.chance.randrange(4)}"
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S}"
        with closing(sqlite3.connect(self.path)) as database, database:
            if who in self.plans:
                database.execute("UPDATE people SET plan = ?, updated_at = ? WHERE email = ?", (plan, now, who))
            else:
                database.execute("INSERT INTO people VALUES (?, ?, ?)", (who, plan, now))
            for _ in range(events):
                self.events += 1
                row = (who, f"page{self.events}", "2026-01-13 08:00:00", now)
                database.execute("INSERT INTO events VALUES (?, ?, ?, ?)", row)
        self.plans[who] = plan

    def go_on(self) -> None:
        """Some people change, and now and then somebody comes whom Iterable refuses."""
        for number in self.chance.sample(range(PEOPLE), self.chance.randrange(6)):
            self.change(f"{number}@example.com", events=self.chance.randrange(3))
        if self.chance.random() < 0.3:
            self.refused += 2  # the person and the event
            who = f"refused{self.refused}@example.com" if self.chance.random() < 0.5 else f"no address {self.refused}"
            self.change(who)

    @property
    def allowed(self) -> int:
        """How many sends more than one each may be, by what was lost."""
        return sum(self.iterable.project.event_sends.values())

    def settle(self) -> None:
        """Before the last runs."""

    def run(self, seconds: float) -> Finished:
        """One run, which is killed after so many seconds; 0: it ends by itself."""
        known = results_of(self.program)
        began = time.monotonic()
        run = self.program.run(KILLED_AFTER_S=str(seconds))
        if run.code >= 0:
            self.lasts += (min(time.monotonic() - began, 2 * self.lasts) - self.lasts) / 4
        self.count(run.code, results_of(self.program) - known)
        return run

    def count(self, code: int, written: set[Path]) -> None:
        """written: the results that it has left."""
        if code == 1:
            self.reported += sum(news_in(json.loads(path.read_text())) for path in written)
        self.ends["killed" if code < 0 else str(code)] += 1
        self.ends["killed with results"] += code < 0 and bool(written)


class MachinesWorld(World):
    """The same with machines of their own, whose ledger lives in a store."""

    def __init__(self, folder: Path, iterable: StandIn, mode: str, seed: int) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.number = 0
        self.left = 0  # records that killed runs may have sent, and that no ledger knows
        super().__init__(folder, iterable, mode, seed)
        self.settings = {**self.program.settings, "STATE_URL": f"file://{self.state}"}
        self.folder = folder
        self.names = [f"machine{each}" for each in range(3)]

    @property
    def allowed(self) -> int:
        return self.left

    def choose(self) -> Machine:
        """A machine that was there before, or a new one, with a fresh folder."""
        if self.chance.random() < 0.2:
            self.names[self.chance.randrange(3)] = f"machine{self.folder.stat().st_nlink}"
        folder = self.folder / self.chance.choice(self.names)
        folder.mkdir(exist_ok=True)
        machine = Machine(folder / "out", self.iterable.url)
        machine.starts = sum(self.ends.values())  # no two runs have one id
        machine.times = {"put_back_every_s": 0.05, "renewed_every_s": 0.1, "stops_after_s": 1.0}
        machine.settings = {**self.settings, "OUTPUT_DIR": str(machine.folder)}
        return machine

    def settle(self) -> None:
        self.expire()

    def expire(self) -> None:
        """As if two minutes had passed."""
        os.utime(self.state / RECORD_NAME, (0, 0))

    def run(self, seconds: float) -> Finished:
        self.program = self.choose()
        if self.chance.random() < 0.1 and seconds:
            self.overtake(seconds)
        run = super().run(seconds)
        record = self.record()
        number = record.snapshot.number if record.snapshot is not None else 0
        assert number >= self.number, "an older copy has taken the place of a newer one"
        self.number = number
        if run.code < 0:
            if record.holder is not None and record.holder.sending:
                self.left += record.holder.sending
            if self.chance.random() < 0.5:
                self.expire()
        return run

    def overtake(self, seconds: float) -> None:
        """A run is stopped, another one takes its lease over, and the first one wakes up: it may not send any more."""
        first = self.choose()
        known = results_of(first)
        process = first.start(script=QUICK_MAIN, **first.with_times({"RATE_LIMIT_PERCENT": "4"}))
        wait_until(lambda: self.is_sending(process.pid) or process.poll() is not None)
        time.sleep(seconds / 4)
        process.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        record = self.record()
        if record.holder is not None and record.holder.sending:
            self.left += record.holder.sending
        self.expire()
        while self.program.folder == first.folder:  # whose lock the first one holds
            self.program = self.choose()
        second = super().run(0)
        time.sleep(max(0.0, stopped_at + 1.1 - time.monotonic()))
        sends = self.sends()
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)
        self.count(process.returncode, results_of(first) - known)
        if second.code in (0, 1) and process.returncode != 0:
            self.ends["overtaken"] += 1
            assert self.sends() == sends, "it has sent something after it was overtaken"

    def record(self) -> StateRecord:
        return parse_record((self.state / RECORD_NAME).read_bytes(), "")

    def is_sending(self, process: int) -> bool:
        holder = self.record().holder
        return holder is not None and holder.process == process and bool(holder.sending)

    def sends(self) -> int:
        project = self.iterable.project
        return sum(project.user_updates.values()) + sum(project.event_sends.values())


def results_of(program: Program) -> set[Path]:
    return set(program.folder.glob("integration_results_*.json"))


def news_in(results: dict[str, Any]) -> int:
    return sum(each["new"] for each in results["reasons"] if each["outcome"] == "rejected")


def play(folder: Path, mode: str, kills: int, seed: int) -> str:
    """One world until so many runs were killed -> its figures. Raises where anything is wrong."""
    with StandIn(limits=None, latency_s=0.002) as iterable:
        push_mode = "bulk" if mode.endswith("bulk") else "single"
        world = (MachinesWorld if mode.startswith("machines") else World)(folder, iterable, push_mode, seed)
        iterable.inject(Fault(match=b"refused", status=400, body=REFUSED))
        lost = iterable.inject(Fault(store=True, disconnect=True, every=10))
        began = time.monotonic()
        world.run(0)
        while world.ends["killed"] < kills:
            world.go_on()
            world.run(world.chance.choice((0, *[world.chance.uniform(0.01, world.lasts)] * 5)))
        lost.times = 0
        world.settle()
        codes = [world.run(0).code for _ in range(3)]
        assert codes[1:] == [0, 0], codes
        last = world.run(0).results["counts"]
        assert not any(last[kind].get("delivered") for kind in ("users", "events")), last
        good = {who: plan for who, plan in world.plans.items() if "@" in who and "refused" not in who}
        held = {who: user["dataFields"]["plan"] for who, user in iterable.project.users.items()}
        assert held == good
        pages = Counter(each["dataFields"]["page"] for each in iterable.project.events.values())
        assert len(pages) == world.events - world.refused // 2
        assert max(pages.values()) == 1
        assert world.reported <= world.refused
        unseen = world.refused - world.reported
        assert unseen == 0 or world.ends["killed with results"]
        sends = iterable.project.event_sends
        more = sum(sends.values()) - len(sends)
        assert more <= world.allowed + lost.matched // 10 * (1 if push_mode == "single" else 1000)
        return (
            f"{mode}: {dict(world.ends)} in {time.monotonic() - began:.0f} s; {len(good)} people and"
            f" {len(pages)} events right; {lost.matched // 10} answers lost, {more} events written again; of"
            f" {world.refused} rejections {world.reported} new in one exit 1 each, {unseen} in runs killed at their end"
        )


if __name__ == "__main__":
    for each_mode in sys.argv[2:] or ("single", "bulk"):
        with TemporaryDirectory(prefix="kills-") as each_folder:
            print(play(Path(each_folder), each_mode, int(sys.argv[1]), seed=1), flush=True)
