"""The queries that come with the project, over the schema that comes with it."""

from __future__ import annotations

import ast
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest

from main import ExitCode
from pipeline.config import SETTINGS
from pipeline.config.settings import SECRET_FILES
from tests.program import ROOT
from tests.reading import read

SCHEMA = (ROOT / "examples/schema.sql").read_text()
DEFAULT_QUERY = (ROOT / "pipeline/user_events.sql").read_text()
CHANGED_ONLY = (ROOT / "examples/changed_only.sql").read_text()

ADA = (1, "ada@example.com", "Ada", "Lovelace", "pro", "Ada Lovelace")
GRACE = (2, "grace@example.com", "Grace", None, "free", "Grace")
NOBODY = (3, "nobody@example.com", None, "", None, None)
HOME = ("home", "desktop", "Chrome", "London", "2026-01-12 09:05:00")
PRICING = ("pricing", "desktop", "Chrome", "London", "2026-01-13 08:45:12")
NOTHING = (None, None, None, None, None)


@pytest.fixture(params=["sqlite", "duckdb", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the schema."""
    path = tmp_path / "users.db"
    if request.param == "sqlite":
        with closing(sqlite3.connect(path)) as database:
            database.executescript(SCHEMA)
        yield f"sqlite:///{path}"
    elif request.param == "duckdb":
        with duckdb.connect(str(path)) as database:
            database.execute(SCHEMA)
        yield f"duckdb:///{path}"
    else:
        url = request.getfixturevalue("postgresql_url")
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as database:
            database.execute(SCHEMA)
            yield url
            database.execute("DROP TABLE user_events, users")


def found(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Times as text, which is how SQLite has them."""
    return [tuple(str(value) if isinstance(value, datetime) else value for value in row.values()) for row in rows]


def test_default_query_runs_on_each_database(url: str, tmp_path: Path) -> None:
    assert found(read(url, DEFAULT_QUERY, tmp_path)) == [ADA + HOME, ADA + PRICING, GRACE + NOTHING, NOBODY + NOTHING]


@pytest.mark.parametrize(
    ("since", "rows"),
    [
        ("1970-01-01 00:00:00", [ADA + HOME, ADA + PRICING, GRACE + NOTHING, NOBODY + NOTHING]),
        ("2026-01-13 08:45:12", [ADA + PRICING, GRACE + NOTHING]),
        ("2026-01-13 10:00:00", [GRACE + NOTHING]),
        ("2026-01-13 10:00:01", []),
    ],
)
def test_changed_only_finds_changed_users_and_new_events(
    url: str, tmp_path: Path, since: str, rows: list[tuple[Any, ...]]
) -> None:
    moment = datetime.fromisoformat(since).replace(tzinfo=timezone.utc)
    assert found(read(url, CHANGED_ONLY, tmp_path, moment)) == rows


def test_lines_that_the_default_query_suggests_are_those_of_changed_only() -> None:
    join = "LEFT JOIN user_events AS e ON e.user_id = u.id\n"
    body = DEFAULT_QUERY[DEFAULT_QUERY.index("SELECT") :]
    suggested = [line.removeprefix("--     ") for line in DEFAULT_QUERY.splitlines() if line.startswith("--     ")]
    assert body.replace(join, "\n".join(suggested) + "\n") == CHANGED_ONLY[CHANGED_ONLY.index("SELECT") :]


# Schedules and containers ---------------------------------------------------------------------------------------------

KUBERNETES = (ROOT / "examples/kubernetes.yaml").read_text()
NOT_SETTINGS = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_ROOT_USER_ACTION"}
NOT_SETTINGS |= {"DRIVER"}


def test_kubernetes_fails_a_job_at_once_for_what_another_try_would_not_change() -> None:
    (values,) = re.findall(r"values: \[([\d, ]+)\]", KUBERNETES)
    tried_again = {ExitCode.SUCCESS, ExitCode.TEMPORARY, ExitCode.SIGINT, ExitCode.SIGTERM}
    assert [int(each) for each in values.split(",")] == [each for each in ExitCode if each not in tried_again]


@pytest.mark.parametrize(
    ("name", "pattern", "fewest"),
    [
        ("examples/kubernetes.yaml", r"\{ name: ([A-Z_]+), value: ", 9),
        ("examples/github-actions.yaml", r"^ {10}([A-Z_]+): ", 6),
        ("examples/airflow.py", r'^ {12}"([A-Z_]+)": ', 5),
        ("Containerfile", r"\b([A-Z_]+)=", 1),
    ],
)
def test_the_examples_set_what_is_a_setting(name: str, pattern: str, fewest: int) -> None:
    named = set(re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)) - NOT_SETTINGS
    assert len(named) >= fewest
    assert named - SETTINGS.keys() - SECRET_FILES.keys() == set()


def test_the_dag_takes_the_temporary_code_for_no_failure() -> None:
    tree = ast.parse((ROOT / "examples/airflow.py").read_text())
    keywords = (each for each in ast.walk(tree) if isinstance(each, ast.keyword))
    (skipped,) = (each.value for each in keywords if each.arg == "skip_on_exit_code")
    assert ast.literal_eval(skipped) == [ExitCode.TEMPORARY]


def test_the_container_copies_what_the_program_consists_of() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert sorted(names) == ["iterable", "iterable_client.py", "main.py", "pipeline", "requirements.lock"]
    assert [name for name in names if not (ROOT / name).exists()] == []
    kept = {line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(names)
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".containerignore").read_text()
