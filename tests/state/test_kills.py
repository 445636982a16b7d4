"""A short world of kills with machines that take turns; `python -m tests.kills 100 machines machines-bulk` has more."""

from __future__ import annotations

from pathlib import Path

from tests.kills import play


def test_machines_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    assert "people and" in play(tmp_path, "machines", 3, seed=2)
