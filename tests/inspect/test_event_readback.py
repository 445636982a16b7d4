"""Our events against what Iterable shows of a person: what is the same, missing, doubled, different, or not told."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.inspect.event_readback import ComparedEvent, EventState, compare_events
from pipeline.inspect.readback import Field, Match

AT = 1768293912  # 2026-01-13 08:45:12 UTC
TEXT = "2026-01-13 08:45:12 +00:00"


def our(event_id: str, at: int = AT, **fields: Any) -> dict[str, Any]:
    return {"id": event_id, "eventName": "page_view", "createdAt": at, "dataFields": fields}


def their(event_id: str | None, at: Any = TEXT, **fields: Any) -> dict[str, Any]:
    return {"_id": event_id, "eventName": "page_view", "createdAt": at, "dataFields": fields}


def states(ours: list[Any], theirs: list[Any], accepted: list[bool] | None = None) -> list[str]:
    accepted = accepted or [True] * len(ours)
    return [each.state.value for each in compare_events(ours, accepted, theirs)]


@pytest.mark.parametrize(
    "at", [TEXT, AT, AT * 1000, float(AT), "2026-01-13T08:45:12.000000.000Z", "2026-01-13T08:45:12.134105.000Z"]
)
@pytest.mark.parametrize("event_id", ["a", "foreign", None])
def test_the_same_event_by_its_id_or_by_what_it_says(at: Any, event_id: str | None) -> None:
    assert states([our("a", page="docs")], [their(event_id, at, page="docs", added="by Iterable")]) == ["same"]


def test_an_event_that_is_not_there_is_missing() -> None:
    assert states([our("a"), our("b", AT + 1)], [their("a")]) == ["same", "missing"]
    assert states([our("a")], [their("x", "2026-01-13 08:45:13 +00:00")]) == ["missing"]
    assert states([our("a")], []) == ["missing"]


def test_each_field_that_differs() -> None:
    held = {**their("a", "2026-01-13 08:45:13 +00:00", page="home"), "eventName": "other"}
    (found,) = compare_events([our("a", page="docs", n=1)], [True], [held])
    assert found == ComparedEvent(
        0,
        EventState.DIFFERENT,
        [
            Field("eventName", "page_view", "other", Match.DIFFERENT),
            Field("createdAt", AT, "2026-01-13 08:45:13 +00:00", Match.DIFFERENT),
            Field("page", "docs", "home", Match.DIFFERENT),
            Field("n", 1, None, Match.MISSING),
        ],
    )


def test_without_ids_an_event_of_the_same_second_is_the_one_that_differs() -> None:
    assert states([our("a", page="docs")], [their("x", page="home")]) == ["different"]
    # Where Iterable shows our ids, it is another event.
    assert states([our("a", page="docs"), our("b")], [their("x", page="home"), their("b")]) == ["missing", "same"]


def test_the_event_with_more_fields_is_not_taken_for_the_one_with_fewer() -> None:
    ours = [our("a", page="docs"), our("b", page="docs", device="phone")]
    assert states(ours, [their("x", page="docs", device="phone"), their("y", page="docs")]) == ["same", "same"]


def test_the_same_event_under_two_ids_is_doubled() -> None:
    copies = [their("a", page="docs"), their("a-2", page="docs"), their("a-3", page="docs")]
    assert compare_events([our("a", page="docs")], [True], copies) == [
        ComparedEvent(0, EventState.DOUBLED, (), ["a-2", "a-3"])
    ]
    assert states([our("a", page="docs")], [their("x", page="docs"), their("y", page="docs")]) == ["doubled"]


def test_two_events_of_ours_that_say_the_same_are_no_double() -> None:
    assert states([our("a"), our("b")], [their("a"), their("b")]) == ["same", "same"]
    assert states([our("a"), our("b")], [their("x"), their("y")]) == ["same", "same"]
    assert states([our("a"), our("b")], [their("x"), their("y")], [True, False]) == ["same"]


def test_messages_that_iterable_sent_are_no_events_of_ours() -> None:
    assert states([our("a")], [{"_id": "a", "eventType": "emailSend", "createdAt": TEXT}]) == ["missing"]


def latest(count: int) -> list[dict[str, Any]]:
    """The newest first, one a second."""
    return [their(f"e{n}", AT + 1000 - n) for n in range(count)]


def test_what_is_older_than_all_that_iterable_shows_can_not_be_told() -> None:
    ours = [our("old", AT), our("new", AT + 1001)]
    assert states(ours, [*latest(200)]) == ["unknown", "missing"]
    assert states(ours, latest(199)) == ["missing", "missing"]


def test_where_iterable_does_not_show_the_latest_by_their_time_nothing_is_called_missing() -> None:
    shuffled = [*latest(200)[100:], *latest(200)[:100]]
    assert states([our("new", AT + 1001)], shuffled) == ["unknown"]
    assert states([our("new", AT + 1001)], [*latest(199), their("x", "no time")]) == ["unknown"]
