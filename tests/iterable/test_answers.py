"""What the lists of a bulk answer say. What single answers mean is tested through the client."""

from __future__ import annotations

import json
from typing import Any

import pytest
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable.answers import BulkFailures, Failure, failed_in, read_failures, read_indices, without_words
from tests.wire import URL, open_client

SCALARS = st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=6) | st.just("Success")
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=6), SCALARS, max_size=3)
ANSWER_KEYS = [
    *("msg", "code", "params", "error", "message", "successCount", "failCount", "failedUpdates", "invalidEmails"),
    *("invalidUserIds", "disallowedEventNames", "filteredOutFields", "createdFields", "notFoundEmails", "noOpEmails"),
]
LISTS = st.dictionaries(st.sampled_from(ANSWER_KEYS), JSON, max_size=6)
ANSWERS = st.dictionaries(st.sampled_from(ANSWER_KEYS), JSON | LISTS, max_size=8)


@settings(max_examples=150)
@given(ANSWERS)
def test_no_bulk_answer_raises(answer: dict[str, Any]) -> None:
    failures = read_failures(answer)
    if failures is not None:
        assert failures.success_count >= 0
        assert all(times >= 1 for _, times in failures.listed.values())
    assert all(index >= 0 for index in read_indices(answer))


@pytest.mark.parametrize(
    "counts",
    [
        {},
        {"successCount": 1},
        {"failCount": 1},
        {"successCount": "1", "failCount": 0},
        {"successCount": True, "failCount": 0},
        {"successCount": 1.0, "failCount": 0},
        {"successCount": None, "failCount": 0},
        {"successCount": 1, "failCount": -1},
    ],
)
def test_counts_that_are_no_numbers_are_unreadable(counts: dict[str, Any]) -> None:
    assert read_failures(counts) is None


def test_failures_are_gathered_from_all_lists_once() -> None:
    answer = {
        "successCount": 1,
        "failCount": 5,
        "invalidEmails": ["Bad@", "bad@", "old@"],
        "invalidUserIds": [],
        "noOpEmails": ["same@example.com"],
        "disallowedEventNames": ["blocked"],
        "filteredOutFields": ["a", 5],
        "createdFields": ["b"],
        "futureEmails": ["not@a.failure"],
        "failedUpdates": {
            "invalidEmails": ["Bad@"],
            "notFoundEmails": ["new@example.com", "NEW@example.com"],
            "forgottenUserIds": ["U-1"],
            "conflictUserIds": [None, 7],
            "futureReasonEmails": ["later@example.com"],
            "count": 5,
        },
    }
    listed = {
        "bad@": ("invalidEmails", 2),
        "old@": ("invalidEmails", 1),
        "new@example.com": ("notFoundEmails", 2),
        "U-1": ("forgottenUserIds", 1),
        "later@example.com": ("futureReasonEmails", 1),
    }
    blocked, filtered, created = frozenset({"blocked"}), frozenset({"a"}), frozenset({"b"})
    assert read_failures(answer) == BulkFailures(1, 5, listed, blocked, filtered, created)


@pytest.mark.parametrize("lists", [{}, {"failedUpdates": None}, {"failedUpdates": [], "invalidEmails": "bad@"}])
def test_lists_are_optional(lists: dict[str, Any]) -> None:
    empty: frozenset[str] = frozenset()
    expected = BulkFailures(2, 0, {}, empty, empty, empty)
    assert read_failures({"successCount": 2, "failCount": 0, **lists}) == expected


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ({"successCount": 2, "failCount": 0}, {}),
        ({"successCount": 1, "failCount": 1, "invalidEmails": ["Bad@"]}, {"bad@": "invalidEmails"}),
        ({"successCount": 1, "failCount": 2, "invalidEmails": ["bad@", "bad@"]}, {"bad@": "invalidEmails"}),
        ({"successCount": 1, "failCount": 3, "invalidEmails": ["bad@"]}, {"bad@": "invalidEmails", "?": "2 more"}),
        (
            {"successCount": 1, "failCount": 2, "disallowedEventNames": ["b", "a"]},
            {"a": "disallowedEventNames", "b": "disallowedEventNames"},
        ),
        ({"successCount": 2, "failCount": 0, "disallowedEventNames": ["a"]}, {"a": "disallowedEventNames"}),
        ({"code": "Success"}, {"?": "its answer has no counts"}),
    ],
)
def test_failed_in_names_what_was_refused(answer: dict[str, Any], failed: dict[str, str]) -> None:
    assert failed_in(answer) == failed


@pytest.mark.parametrize(
    ("answer", "indices"),
    [
        ({"params": {"obj.events[1].createdAt": "Number value expected"}}, {1}),
        ({"params": {"obj.users[0]": [], "obj.users[12].email": [{"msg": ["x"], "args": []}]}}, {0, 12}),
        ({"params": {"obj.events(3).id": "x"}}, {3}),
        ({"params": {"obj.events": "x", "obj.eventName": "x", "events[1]": "x", "obj.events[-1]": "x"}}, set()),
        ({"params": {"obj.events[99999999999].id": "x"}}, set()),
        ({"params": {"ip": "203.0.113.5"}}, set()),
        ({"params": ["obj.events[1]"]}, set()),
        ({"params": None}, set()),
        ({}, set()),
        (None, set()),
    ],
)
def test_positions_are_read_from_the_names_of_params(answer: dict[str, Any] | None, indices: set[int]) -> None:
    assert read_indices(answer) == indices


@settings(max_examples=150)
@given(ANSWERS, st.sampled_from([200, 400, 401, 429, 503]), st.sampled_from(["users/update", "users/bulkUpdate"]))
def test_no_json_on_earth_raises(answer: dict[str, Any], status: int, name: str) -> None:
    with responses.RequestsMock() as api:
        api.post(URL, status=status, body=json.dumps(answer))
        ok, details = open_client(max_retries=1)._make_request_with_retry("POST", URL, {}, name)
    if ok:
        assert status == 200
        assert (details.get("code") == "Success") if name == "users/update" else ("successCount" in details)
    else:
        assert isinstance(details["error"], str)
        assert isinstance(details["failure"], Failure)


@pytest.mark.parametrize(
    ("sentence", "left"),
    [
        (
            "users/update call failed: 400 BadParams: Bob (1 attempt) is odd (1 attempt). Check it.",
            "users/update call failed: 400 BadParams (1 attempt). Check it.",
        ),
        (
            "users/update call failed: 404 <html>Bob</html> (3 attempts; told to wait 90 s).",
            "users/update call failed: 404 in words only the log has (3 attempts; told to wait 90 s).",
        ),
        (
            "1 record was not acknowledged. For example: events/track call failed: 503 Bob: BadParams (3 attempts).",
            "1 record was not acknowledged. For example: events/track call failed: 503 in words only the log has"
            " (3 attempts).",
        ),
        ("users/update call failed: ReadTimeout (3 attempts).", "users/update call failed: ReadTimeout (3 attempts)."),
        ("All records are in Iterable: 5 delivered.", "All records are in Iterable: 5 delivered."),
    ],
)
def test_of_the_words_of_an_answer_only_a_known_code_is_left(sentence: str, left: str) -> None:
    assert without_words(sentence, known_codes={"BadParams"}) == left
