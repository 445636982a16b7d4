"""A stand-in without limits, and a job that sends to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.sandbox import StandIn
from tests.job import Job


@pytest.fixture
def iterable() -> Iterator[StandIn]:
    with StandIn(limits=None) as stand_in:
        yield stand_in


@pytest.fixture
def job(tmp_path: Path, iterable: StandIn) -> Job:
    return Job(tmp_path, iterable.url)
