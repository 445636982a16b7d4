"""What the summary says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program import Program, make_table, use_query


@pytest.mark.parametrize(("more", "words"), [(1, "1 row repeats an event"), (2, "2 rows repeat an event")])
def test_rows_that_repeat_an_event_are_counted_as_rows(program: Program, tmp_path: Path, more: int, words: str) -> None:
    row = ("ada@example.com", "pricing", "2026-01-13 08:00:00")
    make_table(tmp_path / "users.db", "email,page,event_time", [row] * (1 + more))
    use_query(program, "SELECT email, page, event_time FROM rows")
    run = program.run()
    assert f"  {words} of another row; each event was sent once\n" in run.out
