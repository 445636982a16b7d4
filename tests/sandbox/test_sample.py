"""The sample people."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.sandbox import create_sample_database
from tests.sandbox.rehearsal import Rehearsal, bulk_events, bulk_users, event, failures


@pytest.fixture
def sample(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    create_sample_database(tmp_path / "sample.db")
    with closing(sqlite3.connect(tmp_path / "sample.db")) as database:
        database.row_factory = sqlite3.Row
        return {
            "users": [dict(row) for row in database.execute("SELECT * FROM users")],
            "events": [dict(row) for row in database.execute("SELECT * FROM user_events")],
        }


def test_sample_database_holds_what_a_real_one_would(sample: dict[str, list[dict[str, Any]]]) -> None:
    users, events = sample["users"], sample["events"]
    assert list(users[0]) == ["id", "email", "first_name", "last_name", "plan_type"]
    assert list(events[0]) == ["id", "user_id", "page", "device", "browser", "location", "event_time"]
    assert len({user["email"] for user in users}) == 12
    assert 30 <= len(events) <= 40
    assert len({visit["user_id"] for visit in events}) == 11
    assert any(not user["first_name"].isascii() for user in users)
    assert any(user["plan_type"] is None for user in users)
    assert any(visit["location"] is None for visit in events)
    assert all(datetime.strptime(visit["event_time"], "%Y-%m-%d %H:%M:%S").month == 1 for visit in events)


def test_sample_database_is_accepted_as_a_whole(iterable: Rehearsal, sample: dict[str, list[dict[str, Any]]]) -> None:
    emails = {user["id"]: user.pop("email") for user in sample["users"]}
    users = [{"email": emails[user["id"]], "dataFields": user} for user in sample["users"]]
    assert failures(bulk_users(iterable, *users)[1]) == {"failCount": 0}
    events = [event(id=str(row["id"]), email=emails[row["user_id"]], dataFields=row) for row in sample["events"]]
    assert failures(bulk_events(iterable, *events)[1]) == {"failCount": 0}
    assert len(iterable.project.events) == len(events)
