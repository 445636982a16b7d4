"""`--explain WHO --files`: where a person stands in the files that runs have left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.sandbox import StandIn
from tests.program import Program, make_table, use_query

COLUMNS = "email,first_name,event_id,event_time,page"
ROWS: list[tuple[Any, ...]] = [
    ("bob@example.com", "Bob", "b-1", "2026-01-13 08:00:00", "docs"),
    (" Ada@Example.com", "Ada", "a-1", "2026-01-13 08:00:00", "docs"),
    ("ada@example.com", "Ada", "a-2", "2226-01-13 08:00:00", "docs"),
]


def test_every_kind_of_file_that_names_the_person(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", COLUMNS, ROWS)
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
    assert program.run().code == 1
    iterable.project.delete_event("a-1")
    assert program.run("--verify").code == 1
    for path in program.folder.glob("query_results_*"):
        assert path.read_text().count("\n") == 4
    text = program.run("--explain", "ada@example.com", "--files").out
    files = text[text.index("Files:") :].splitlines()
    stamps = {path.name for path in program.folder.glob("*_*_*.*") if path.suffix in (".csv", ".json")}
    named = {line.split(":")[0].strip(): line.partition(": ")[2] for line in files[1:]}
    assert named.keys() <= stamps
    assert {name.split("_2")[0]: lines for name, lines in named.items()} == {
        "query_results": "lines 3, 4",
        "rejected_rows": "line 2",
        "integration_results": "failure 1",
        "verify_report": "line 2",
    }
    assert program.run("--dry-run").code == 1
    run = program.run("--explain", "bob@example.com", "--files", "--json")
    assert {each["name"].split("_2")[0] for each in json.loads(run.out)["files"]} == {"query_results"}


def test_lines_are_those_of_an_editor_where_cells_have_line_breaks(program: Program, tmp_path: Path) -> None:
    bob = ("bob@example.com", "Bob", "b-1", "2026-01-13 08:00:00", "two\r\nmore\nlines")
    make_table(tmp_path / "users.db", COLUMNS, [bob, *ROWS])
    use_query(program, f"SELECT {COLUMNS} FROM rows")
    program.settings |= {"USER_FIELDS": "first_name", "EVENT_FIELDS": "page"}
    assert program.run().code == 1
    (path,) = program.folder.glob("query_results_*")
    lines = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if b"da@" in line]
    run = program.run("--explain", "ada@example.com", "--files")
    assert f"{path.name}: lines {', '.join(map(str, lines))}\n" in run.out


def test_ids_are_looked_for_where_ids_are(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "user_id,seats", [("1", "2"), ("2", "1")])
    use_query(program, "SELECT * FROM rows")
    program.settings |= {"ITERABLE_IDENTIFIER": "userId", "USER_FIELDS": "seats"}
    assert program.run("--dry-run").code == 0
    run = program.run("--explain", "2", "--files", "--json")
    files = json.loads(run.out)["files"]
    assert [(each["name"].split("_2")[0], each["lines"]) for each in files[:1]] == [("query_results", [3])]
    assert [each["count"] for each in files] == [1, 1]


def test_a_file_that_can_not_be_read_is_named(program: Program, sample: Path) -> None:
    (program.folder / "preview_20260113_080000.ndjson").write_text("[]")
    run = program.run("--explain", "ada@example.com", "--files")
    assert "preview_20260113_080000.ndjson: can't be read" in run.out


def test_nobody_and_a_wrong_command_line(program: Program, sample: Path) -> None:
    assert "Files:" not in program.run("--explain", "nobody@example.com", "--files").out
    run = program.run("--files")
    assert (run.code, "--files looks for the person of --explain" in run.err) == (2, True)
