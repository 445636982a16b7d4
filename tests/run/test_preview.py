"""The file that `--dry-run` leaves: every payload of the run that would follow."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from pipeline.sandbox import StandIn
from tests.program import Finished, Program, make_table, use_query

COLUMNS = "email,first_name,plan_type,event_id,event_time,page"
ROWS: list[tuple[Any, ...]] = [
    ("ada@example.com", "Ada", "pro", "a-1", "2026-01-13 08:00:00", "docs"),
    ("ada@example.com", "Ada", "pro", "a-2", "2026-01-13 09:00:00", "ü \N{PILE OF POO}"),
    ("bob@example.com", "Bob", "free", None, None, None),
]


def prepare(program: Program, tmp_path: Path, rows: list[tuple[Any, ...]]) -> None:
    (tmp_path / "users.db").unlink(missing_ok=True)
    make_table(tmp_path / "users.db", COLUMNS, rows)
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name,plan_type", "EVENT_FIELDS": "page", "PUSH_MODE": "single"}


def preview(run: Finished) -> list[dict[str, Any]]:
    path = run.folder / run.results["files"]["preview"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bodies(iterable: StandIn, kind: str) -> list[dict[str, Any]]:
    path = {"user": "/api/users/update", "event": "/api/events/track"}[kind]
    return [json.loads(each.body) for each in iterable.project.requests if each.path == path]


def test_it_holds_what_the_run_then_sends_in_its_order(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    prepare(program, tmp_path, ROWS)
    dry = program.run("--dry-run", MAX_WORKERS="1")
    lines = preview(dry)
    assert f"All of them, unmasked: {dry.results['files']['preview']}\n" in dry.out
    assert [(line["kind"], list(line)) for line in lines] == [
        (kind, ["kind", "row", "payload"]) for kind in ("user", "user", "event", "event")
    ]
    assert program.run(MAX_WORKERS="1").results["files"]["preview"] is None
    for kind in ("user", "event"):
        assert [line["payload"] for line in lines if line["kind"] == kind] == bodies(iterable, kind)
    assert [line["row"] for line in lines if line["kind"] == "event"] == [1, 2]


def test_users_have_only_the_fields_that_would_leave(program: Program, tmp_path: Path) -> None:
    prepare(program, tmp_path, ROWS)
    assert program.run().code == 0
    prepare(program, tmp_path, [*ROWS[:2], ("bob@example.com", "Bob", "pro", None, None, None)])
    assert preview(program.run("--dry-run")) == [
        {"kind": "user", "row": 3, "payload": {"email": "bob@example.com", "dataFields": {"plan_type": "pro"}}}
    ]


def test_it_is_written_where_the_brake_stops_and_where_nothing_is_pending(program: Program, tmp_path: Path) -> None:
    prepare(program, tmp_path, ROWS)
    run = program.run("--dry-run", MAX_CHANGES="1")
    assert (run.code, len(preview(run))) == (65, 4)
    assert program.run().code == 0
    assert preview(program.run("--dry-run")) == []


def test_what_can_not_be_sent_is_not_in_it(program: Program, tmp_path: Path) -> None:
    prepare(program, tmp_path, [("bad address", "Ada", "pro", None, None, None)])
    run = program.run("--dry-run")
    assert (run.code, preview(run)) == (1, [])
