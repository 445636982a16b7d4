from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.sandbox import StandIn
from tests.state.emulators import AZURITE, run_azure, run_s3
from tests.state.google import run_google
from tests.state.machines import Machines


@pytest.fixture
def machines(tmp_path: Path, iterable: StandIn) -> Machines:
    machines = Machines(tmp_path, iterable)
    machines.use_people(20)
    return machines


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """The environment in which `s3://bucket/…` is there."""
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    with run_s3() as environment:
        yield environment


@pytest.fixture(scope="session")
def google() -> Iterator[dict[str, str]]:
    """The environment in which `gs://bucket/…` is there."""
    pytest.importorskip("obstore")
    with run_google() as environment:
        yield environment


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `az://container/…` is there."""
    pytest.importorskip("obstore")
    if AZURITE is None:
        pytest.skip("azurite is not installed (npm install --global azurite)")
    with run_azure(tmp_path_factory.mktemp("azure")) as environment:
        yield environment
