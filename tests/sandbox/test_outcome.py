"""What a bulk answer says. The bodies are copied from recordings and fixtures where there are any."""

from __future__ import annotations

from typing import Any

from tests.sandbox.rehearsal import ADA, Rehearsal, bulk_events, bulk_users, event, failures


def empty(*names: str) -> dict[str, list[str]]:
    return {name: [] for name in names}


INVALID = ("invalidEmails", "invalidUserIds")
NOT_FOUND = ("notFoundEmails", "notFoundUserIds")
BAD_OR_CLASHING = ("invalidDataEmails", "invalidDataUserIds", "conflictEmails", "conflictUserIds")
FORGOTTEN = ("forgottenEmails", "forgottenUserIds")
NOTHING_FAILED_USERS: dict[str, Any] = {
    "successCount": 0,
    "failCount": 0,
    **empty(*INVALID, "filteredOutFields", "createdFields", "noOpEmails", "noOpUserIds"),
    "failedUpdates": empty(*INVALID, *NOT_FOUND, *BAD_OR_CLASHING, *FORGOTTEN),
}
NOTHING_FAILED_EVENTS: dict[str, Any] = {
    "successCount": 0,
    "failCount": 0,
    **empty(*INVALID, "disallowedEventNames", "filteredOutFields", "createdFields"),
    "failedUpdates": empty(*INVALID, *NOT_FOUND, *FORGOTTEN),
}


def test_bulk_with_one_bad_address_names_it_and_keeps_the_other(iterable: Rehearsal) -> None:
    answer = bulk_users(iterable, {"email": "ada@example.com", "dataFields": {"age": 36}}, {"email": "bad@"})
    failed = {**NOTHING_FAILED_USERS["failedUpdates"], "invalidEmails": ["bad@"]}
    counts = {"successCount": 1, "failCount": 1, "invalidEmails": ["bad@"], "createdFields": ["age"]}
    assert answer == (200, {**NOTHING_FAILED_USERS, **counts, "failedUpdates": failed})
    assert list(iterable.project.users) == ["ada@example.com"]


def test_bulk_events_all_taken_is_answered_with_all_lists_empty(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    answer = bulk_events(iterable, event(id="1"), event(id="2", email="ADA@example.com"))
    assert answer == (200, {**NOTHING_FAILED_EVENTS, "successCount": 2})
    assert iterable.project.event_order == ["1", "2"]


def test_record_without_identity_is_counted_and_not_named_in_bulk(iterable: Rehearsal) -> None:
    status, answer = bulk_users(iterable, ADA, {"dataFields": {}})
    assert (status, answer["successCount"], failures(answer)) == (200, 1, {"failCount": 1})


def test_empty_batch_of_users_is_400_and_of_events_200_as_recorded(iterable: Rehearsal) -> None:
    expected = {"msg": "Emails invalid: ", "code": "InvalidEmailAddressError", "params": None}
    assert bulk_users(iterable) == (400, expected)
    assert bulk_events(iterable) == (200, NOTHING_FAILED_EVENTS)
