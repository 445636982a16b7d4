"""Machines that share what STATE_URL names: each a folder of its own, as on a pod that comes and goes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sandbox import StandIn
from pipeline.state.record import RECORD_NAME
from tests.program import Finished, Program, make_table, sent, use_query

QUICK_MAIN = Path(__file__).parent / "quick_main.py"
SLOWLY = {"PUSH_MODE": "single", "RATE_LIMIT_PERCENT": "1"}  # five users a second


class Machine(Program):
    """Runs with the times of `quick_main`."""

    times: dict[str, float]

    def run(self, *arguments: str, script: Path = QUICK_MAIN, **settings: str | None) -> Finished:
        return super().run(*arguments, script=script, QUICK_TIMES=json.dumps(self.times), **settings)

    def begin(self, **settings: str) -> subprocess.Popen[str]:
        """A run that sends slowly."""
        return self.start(script=QUICK_MAIN, **self.with_times(SLOWLY | settings))

    def with_times(self, settings: dict[str, str]) -> Any:
        return {"QUICK_TIMES": json.dumps(self.times), **settings}


@dataclass
class Machines:
    """A database, an Iterable, a store in a folder, and the machines. url: STATE_URL, where it is not that folder."""

    folder: Path
    iterable: StandIn
    url: str = ""

    def __post_init__(self) -> None:
        self.state = self.folder / "state"
        self.state.mkdir()
        self.database = self.folder / "users.db"

    def use_people(self, count: int, plan: str = "free") -> None:
        self.database.unlink(missing_ok=True)
        rows = [(f"user{each}@example.com", plan, "2026-01-13 08:00:00", f"page{each}") for each in range(count)]
        make_table(self.database, "email,plan,event_time,page", rows)

    def machine(self, name: str, **times: float) -> Machine:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        machine = Machine(folder / "out", self.iterable.url)
        machine.times = times
        machine.settings |= {
            "DATABASE_URL": f"sqlite:///{self.database}",
            "STATE_URL": self.url or f"file://{self.state}",
            "USER_FIELDS": "plan",
            "EVENT_FIELDS": "page",
        }
        use_query(machine, "SELECT email, plan, event_time, page FROM rows")
        return machine

    # What is stored -------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / RECORD_NAME).read_bytes())
        return found

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.state.glob("iterable_ledger.*.sqlite3"))

    def let_lease_expire(self) -> None:
        """As if two minutes had passed since it was renewed."""
        then = time.time() - 200
        os.utime(self.state / RECORD_NAME, (then, then))

    # What Iterable has been sent ------------------------------------------------------------------------------

    def sends(self) -> int:
        project = self.iterable.project
        return sum(project.user_updates.values()) + sum(project.event_sends.values())

    def requests(self) -> int:
        return len(sent(self.iterable))
