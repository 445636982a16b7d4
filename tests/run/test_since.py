"""From when a run reads, why, and when the cursor moves."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.config import Settings, load_settings
from pipeline.ledger.ledger import Cursor
from pipeline.model.exits import ExitCode
from pipeline.run.since import ALL, Since, cursor_fingerprint, decide, why_cursor_stays
from pipeline.source import Query

NOW = datetime(2026, 1, 20, 12, 0, tzinfo=timezone.utc)
START = datetime(1970, 1, 1, tzinfo=timezone.utc)
SAME, OTHER = b"same", b"other"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    values = {"ITERABLE_API_KEY": "a-key-of-ours", "DATABASE_URL": "sqlite:///users.db"}
    return load_settings(tmp_path / "none.env", values)


def cursor(*, hours_ago: float = 1, full_days_ago: float = 1, holds_for: bytes = SAME) -> Cursor:
    at = (NOW - timedelta(hours=hours_ago)).timestamp()
    return Cursor(at=int(at), holds_for=holds_for, last_full_at=int((NOW - timedelta(days=full_days_ago)).timestamp()))


def test_the_first_run_reads_everything(settings: Settings) -> None:
    assert decide(settings, None, SAME, NOW, None) == Since(START, True, "no complete run is known", True)


def test_a_later_run_reads_from_the_mark_less_the_overlap(settings: Settings) -> None:
    found = decide(settings, cursor(), SAME, NOW, None)
    assert (found.shown(), found.is_full, found.may_move_cursor) == ("2026-01-19 11:00:00", False, True)
    assert found.why == "the last complete run began at 2026-01-20 11:00:00 UTC"


def test_the_overlap_is_set_in_hours_and_ends_at_since_start(settings: Settings) -> None:
    assert (
        decide(replace(settings, since_overlap_hours=0.5), cursor(), SAME, NOW, None).shown() == "2026-01-20 10:30:00"
    )
    late = datetime(2026, 1, 20, 10, 45, tzinfo=timezone.utc)
    found = decide(replace(settings, since_start=late), cursor(), SAME, NOW, None)
    assert (found.start, found.is_full) == (late, True)


@pytest.mark.parametrize(("days", "is_full"), [(6.9, False), (7, True), (400, True)])
def test_a_full_read_comes_after_so_many_days(settings: Settings, days: float, is_full: bool) -> None:
    assert decide(settings, cursor(full_days_ago=days), SAME, NOW, None).is_full is is_full
    assert not decide(replace(settings, full_read_days=0), cursor(full_days_ago=days), SAME, NOW, None).is_full


def test_what_has_changed_is_read_fully(settings: Settings) -> None:
    found = decide(settings, cursor(), OTHER, NOW, None)
    assert (found.start, found.is_full, found.may_move_cursor) == (START, True, True)
    assert "have changed" in found.why


@pytest.mark.parametrize("of_future", [cursor(hours_ago=-48), cursor(full_days_ago=-2)])
def test_after_a_run_whose_clock_was_ahead_everything_is_read(settings: Settings, of_future: Cursor) -> None:
    found = decide(settings, of_future, SAME, NOW, None)
    assert (found.start, found.is_full, found.may_move_cursor) == (START, True, True)
    assert "a clock was wrong" in found.why


@pytest.mark.parametrize(
    ("hours_ago", "holds_for", "may_move"),
    [(2, SAME, True), (1, SAME, True), (0.5, SAME, False), (2, OTHER, False)],
)
def test_since_moves_the_mark_only_where_it_leaves_no_gap(
    settings: Settings, hours_ago: float, holds_for: bytes, may_move: bool
) -> None:
    asked = NOW - timedelta(hours=hours_ago)
    found = decide(settings, cursor(holds_for=holds_for), SAME, NOW, asked)
    assert (found.start, found.is_full, found.may_move_cursor) == (asked, False, may_move)


def test_since_without_a_mark_moves_none(settings: Settings) -> None:
    assert not decide(settings, None, SAME, NOW, NOW).may_move_cursor


@pytest.mark.parametrize("asked", [ALL, START])
def test_since_all_is_a_full_read(settings: Settings, asked: datetime | str) -> None:
    found = decide(settings, cursor(), SAME, NOW, asked)
    assert (found.start, found.is_full, found.may_move_cursor) == (START, True, True)


@pytest.mark.parametrize(
    "change",
    [
        {"event_name": "visit"},
        {"null_values": "clear"},
        {"merge_nested": True},
        {"iterable_identifier": "userId"},
        {"user_fields": ()},
        {"event_fields": ()},
        {"database_url": "sqlite:///other.db"},
        {"since_start": NOW},
    ],
)
def test_circumstances_change_with_all_that_a_mark_depends_on(settings: Settings, change: dict[str, object]) -> None:
    query = Query("q.sql", "SELECT :since", "sqlite")
    other = replace(settings, **change)  # type: ignore[arg-type]
    assert cursor_fingerprint(settings, query) == cursor_fingerprint(settings, query)
    assert cursor_fingerprint(settings, query) != cursor_fingerprint(other, query)
    assert cursor_fingerprint(settings, query) != cursor_fingerprint(settings, replace(query, text="SELECT 1, :since"))


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("postgresql://ada:rotated@host/name?options=a", True),
        ("postgresql://ada:secret@host/name?options=a&sslpassword=rotated", True),
        ("postgresql://bob:secret@host/name?options=a", False),
        ("postgresql://ada:secret@host/other?options=a", False),
        ("postgresql://ada:secret@host/name?options=b", False),
        ("mysql://ada:secret@host/name?options=a", False),
    ],
)
def test_circumstances_hold_no_password(settings: Settings, other: str, is_same: bool) -> None:
    query = Query("q.sql", "SELECT :since", "postgresql")
    found = [
        cursor_fingerprint(replace(settings, database_url=url), query)
        for url in ("postgresql://ada:secret@host/name?options=a", other)
    ]
    assert (found[0] == found[1]) is is_same


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (ExitCode.SUCCESS, ""),
        (ExitCode.REJECTED, ""),
        (ExitCode.TEMPORARY, "the run ended with exit code 75, so not all that it read is settled"),
        (ExitCode.SIGTERM, "the run ended with exit code 143, so not all that it read is settled"),
        (ExitCode.BRAKE, "the run ended with exit code 65, so not all that it read is settled"),
    ],
)
def test_cursor_moves_after_complete_runs_and_else_says_why_it_stays(code: ExitCode, why: str) -> None:
    since = Since(START, True, "", True)
    assert why_cursor_stays(since, code) == why
    assert why_cursor_stays(since, code, partial="--limit") == "--limit was given"
    assert why_cursor_stays(replace(since, may_move_cursor=False), code).startswith("--since was given with a time")


@pytest.mark.parametrize(("hours_ago", "starts"), [(24, "2026-01-19 11:00:00"), (60, "2026-01-18 00:00:00")])
def test_a_held_window_is_read_again(settings: Settings, hours_ago: float, starts: str) -> None:
    held_from = int((NOW - timedelta(hours=hours_ago)).timestamp())
    found = decide(settings, cursor(), SAME, NOW, None, held_from=held_from)
    assert (found.shown(), found.is_full, found.may_move_cursor) == (starts, False, True)
    assert ("may still be accepted" in found.why) is (hours_ago == 60)


def test_a_window_that_held_everything_is_a_full_read(settings: Settings) -> None:
    found = decide(settings, cursor(), SAME, NOW, None, held_from=int(START.timestamp()))
    assert (found.start, found.is_full, found.may_move_cursor) == (START, True, True)
