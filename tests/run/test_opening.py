"""What a run needs before it begins."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.run.opening import settings_for


@pytest.fixture
def no_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only root and no /tmp."""

    def nothing() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nothing)


def test_where_nothing_is_temporary_output_dir_holds_what_is_written_for_a_moment(
    tmp_path: Path, no_tmp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    (tmp_path / ".env").touch(0o600)
    options = argparse.Namespace(env_file=tmp_path / ".env", sandbox=True)
    with ExitStack() as stack:
        settings, _ = settings_for(options, stack)
        assert settings.database_url is not None
        assert settings.database_url.startswith(f"sqlite:///{tmp_path}/sandbox-")
        assert [each.name for each in tmp_path.glob("sandbox-*/*")] == ["sample.db"]
    assert [each.name for each in tmp_path.iterdir()] == [".env"]
