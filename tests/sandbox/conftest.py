"""A stand-in and its client, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from pipeline.sandbox import StandIn
from tests.sandbox.rehearsal import Rehearsal


@pytest.fixture
def rehearse() -> Iterator[Any]:
    """rehearse(**options) -> Rehearsal, without rate limits unless asked for."""
    running: list[Rehearsal] = []

    def start(**options: Any) -> Rehearsal:
        session = requests.Session()
        session.trust_env = False
        running.append(Rehearsal(StandIn(**{"limits": None, **options}).start(), session))
        return running[-1]

    yield start
    for rehearsal in running:
        rehearsal.session.close()
        rehearsal.stand_in.stop()


@pytest.fixture
def iterable(rehearse: Any) -> Rehearsal:
    rehearsal: Rehearsal = rehearse()
    return rehearsal
