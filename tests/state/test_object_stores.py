"""Whole runs whose ledger lives in S3 and in Azure, against emulators that speak the real wire."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.sandbox import StandIn
from tests.program import Finished
from tests.state.emulators import ACCOUNT_KEY, SCHEMES, SECRETS
from tests.state.machines import Machine, Machines
from tests.state.test_runs import KILLED, begin, delivered, kill

AT_ONCE = {"lasts_s": 0.0, "margin_s": 0.0}  # a lease is over as soon as another run wants it


class InBucket(Machines):
    """Machines with the environment of an object store."""

    environment: dict[str, str]

    def machine(self, name: str, **times: float) -> Machine:
        machine = super().machine(name, **times)
        machine.settings |= self.environment
        return machine


@pytest.fixture(params=list(SCHEMES))
def machines(request: pytest.FixtureRequest, tmp_path: Path, iterable: StandIn) -> InBucket:
    machines = InBucket(tmp_path, iterable, f"{SCHEMES[request.param]}/{uuid4().hex}")
    machines.environment = request.getfixturevalue(request.param)
    machines.use_people(20)
    return machines


def has_secrets(run: Finished) -> bool:
    texts = [run.out, run.err, *(path.read_bytes().decode("latin-1") for path in run.folder.iterdir())]
    return any(secret in text for text in texts for secret in (ACCOUNT_KEY, *SECRETS.values()))


def test_machines_take_turns_and_no_secret_stands_anywhere(machines: InBucket) -> None:
    runs = [machines.machine(name).run("--verbose") for name in ("a", "b", "a")]
    assert [(each.code, delivered(each)) for each in runs] == [(0, 40), (0, 0), (0, 0)]
    assert machines.sends() == 40
    check = machines.machine("c").run("--check")
    assert (
        f"40 records are known to be in Iterable, by the ledger at {machines.url}; no other run is active" in check.out
    )
    assert not any(map(has_secrets, (*runs, check)))


def test_second_run_leaves_and_a_later_one_takes_over(machines: InBucket) -> None:
    first = begin(machines, machines.machine("a"))
    second = machines.machine("b").run()
    kill(first)
    assert (second.code, second.err.startswith("Another run is active: process ")) == (75, True)
    third = machines.machine("c", **AT_ONCE).run()
    assert (third.code, KILLED in third.err) == (0, True)
    assert len(machines.iterable.project.events) == 20
    assert machines.machine("d").run().err == ""


def test_store_that_is_down_is_75_and_sends_nothing(machines: InBucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT")
    away: Any = {name: f"http://127.0.0.1:{port}" for name in names if name in machines.environment}
    for name, value in machines.environment.items():
        if name == "GOOGLE_SERVICE_ACCOUNT_KEY":
            away[name] = json.dumps(json.loads(value) | {"gcs_base_url": f"http://127.0.0.1:{port}"})
    run = machines.machine("a").run(**away)
    assert (run.code, machines.requests()) == (75, 0)
    assert run.err == (
        f"STATE_URL names {machines.url}, which does not answer now (no answer). Nothing was read or sent.\n"
    )
