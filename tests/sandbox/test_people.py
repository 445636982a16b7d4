"""Another address for a user: users/updateEmail, and the field `email` in the other types of projects."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault
from tests.sandbox.rehearsal import (
    ADA,
    GET_BY_EMAIL,
    TRACK,
    UPDATE,
    UPDATE_EMAIL,
    Clock,
    Rehearsal,
    bearer,
    bulk_users,
    event,
)

AL = "al@example.com"
SUCCESS = (200, {"msg": "", "code": "Success", "params": None})


@pytest.fixture
def iterable(rehearse: Any) -> Rehearsal:
    rehearsal: Rehearsal = rehearse(project_type="email")
    return rehearsal


@pytest.mark.parametrize(
    "who",
    [
        {"currentEmail": "ADA@example.com"},
        {"currentUserId": "u-1"},
        {"currentEmail": "ada@example.com", "currentUserId": "u-2"},
    ],
)
def test_profile_events_and_subscriptions_move_to_the_new_address(iterable: Rehearsal, who: dict[str, str]) -> None:
    bulk_users(iterable, {"email": "bob@example.com", "userId": "u-2"})
    iterable.answer(UPDATE, {**ADA, "userId": "u-1", "dataFields": {"plan": "pro"}})
    iterable.answer(TRACK, event())
    iterable.project.edit_user({**ADA, "dataFields": {"unsubscribedChannelIds": [7]}})
    assert iterable.answer(UPDATE_EMAIL, {**who, "newEmail": "Al@example.com"}) == SUCCESS
    fields = {"plan": "pro", "unsubscribedChannelIds": [7]}
    assert iterable.project.users[AL] == {"email": AL, "userId": "u-1", "dataFields": fields}
    assert list(iterable.project.users) == ["bob@example.com", AL]
    assert iterable.project.subscriptions(email=AL)["unsubscribedChannelIds"] == [7]
    (read,) = iterable.get(f"/api/events/{AL}").json()["events"]
    assert (read["_id"], read["email"]) == ("pv-1", AL)
    assert iterable.get("/api/events/ada@example.com").json() == {"events": []}
    assert iterable.get(f"{GET_BY_EMAIL}?email=ada@example.com").json() == {}
    assert iterable.get("/api/users/byUserId/u-1").json()["user"]["email"] == AL
    assert iterable.answer(TRACK, event(id="2"))[0] == 400
    assert iterable.answer(TRACK, event(id="2", email=AL))[0] == 200


def test_user_under_a_new_address_without_update_email_is_a_second_one_who_is_subscribed(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.project.edit_user({**ADA, "dataFields": {"unsubscribedChannelIds": [7]}})
    iterable.know(AL)
    assert iterable.project.subscriptions(email=AL)["unsubscribedChannelIds"] == []
    assert iterable.project.effects.created == ["ada@example.com", AL]


@pytest.mark.parametrize("who", [{"currentEmail": "ada@example.com"}, {"currentUserId": "u-1"}])
def test_unknown_old_address_is_refused(iterable: Rehearsal, who: dict[str, str]) -> None:
    (named,) = who.values()
    msg = f"Cannot change user {named} to {AL}. User does not exist"
    answer = iterable.answer(UPDATE_EMAIL, {**who, "newEmail": AL})
    assert answer == (400, {"msg": msg, "code": "BadParams", "params": None})


@pytest.mark.parametrize(("switch", "status"), [("400", 400), ("409", 409)])
def test_new_address_that_exists_or_is_forgotten_is_refused(rehearse: Any, switch: str, status: int) -> None:
    iterable = rehearse(project_type="email", email_exists=switch)
    iterable.know("ada@example.com", "bob@example.com")
    iterable.project.forget_user(email=AL)
    for email in ("Bob@example.com", AL, "ada@example.com"):
        answer = iterable.answer(UPDATE_EMAIL, {"currentEmail": "ada@example.com", "newEmail": email})
        code = "EmailAlreadyExists"
        assert answer == (status, {"msg": f"Email already exists: {email}", "code": code, "params": None})
    assert list(iterable.project.users) == ["ada@example.com", "bob@example.com"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"currentEmail": "ada@example.com"}, "BadJsonBody"),
        ({"currentEmail": 7, "newEmail": AL}, "BadJsonBody"),
        ({"newEmail": AL}, "BadParams"),
        ({"currentEmail": "ada@example.com", "newEmail": "000"}, "InvalidEmailAddressError"),
    ],
)
def test_impossible_change_of_address_is_400(iterable: Rehearsal, body: dict[str, Any], code: str) -> None:
    iterable.know("ada@example.com")
    status, answer = iterable.answer(UPDATE_EMAIL, body)
    assert (status, answer["code"], list(iterable.project.users)) == (400, code, ["ada@example.com"])


@pytest.mark.parametrize("project_type", ["hybrid", "userId"])
def test_update_email_is_for_email_based_projects(rehearse: Any, project_type: str) -> None:
    iterable = rehearse(project_type=project_type)
    iterable.answer(UPDATE, {**ADA, "userId": "u-1"})
    status, answer = iterable.answer(UPDATE_EMAIL, {"currentUserId": "u-1", "newEmail": AL})
    assert (status, answer["code"]) == (400, "BadParams")


def test_client_side_keys_may_change_addresses(rehearse: Any) -> None:
    iterable = rehearse(project_type="email", jwt_secret=SANDBOX_JWT_SECRET)
    iterable.answer(UPDATE, ADA, bearer(ADA))
    change = {"currentEmail": "ada@example.com", "newEmail": AL}
    assert iterable.answer(UPDATE_EMAIL, change, bearer({"email": AL}))[0] == 401
    assert iterable.answer(UPDATE_EMAIL, change, bearer(ADA)) == SUCCESS


def test_lost_answer_to_a_change_that_was_made(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.stand_in.inject(Fault(path=UPDATE_EMAIL, match=b'"ada@example.com"', store=True, status=503, times=1))
    change = {"currentEmail": "ada@example.com", "newEmail": AL}
    assert iterable.post(UPDATE_EMAIL, change).status_code == 503
    assert list(iterable.project.users) == [AL]
    assert iterable.answer(UPDATE_EMAIL, change)[1]["code"] == "BadParams"


def test_new_address_is_found_by_events_only_after_a_while(rehearse: Any) -> None:
    clock = Clock()
    iterable = rehearse(project_type="email", visible_after_s=60, clock=clock)
    iterable.know("ada@example.com")
    clock.now += 100
    iterable.answer(UPDATE_EMAIL, {"currentEmail": "ada@example.com", "newEmail": AL})
    assert iterable.answer(TRACK, event(email=AL))[0] == 400
    clock.now += 60
    assert iterable.answer(TRACK, event(email=AL))[0] == 200


def test_field_email_changes_the_address_in_a_hybrid_project(rehearse: Any) -> None:
    iterable = rehearse()
    iterable.answer(UPDATE, {**ADA, "userId": "u-1", "dataFields": {"plan": "pro"}})
    iterable.know("bob@example.com")
    iterable.answer(TRACK, event())
    assert iterable.answer(UPDATE, {"userId": "u-1", "dataFields": {"email": "Al@example.com"}}) == SUCCESS
    assert list(iterable.project.users) == ["bob@example.com", AL]
    assert iterable.get(f"{GET_BY_EMAIL}?email={AL}").json()["user"]["dataFields"]["email"] == AL
    assert len(iterable.get(f"/api/events/{AL}").json()["events"]) == 1
    assert iterable.project.effects.moved == [("ada@example.com", AL)]
    for email, code in (("bob@example.com", "EmailAlreadyExists"), ("000", "InvalidEmailAddressError")):
        status, answer = iterable.answer(UPDATE, {"userId": "u-1", "dataFields": {"email": email}})
        assert (status, answer["code"]) == (400, code)


def test_field_email_changes_the_address_in_a_user_id_based_project(rehearse: Any) -> None:
    iterable = rehearse(project_type="userId")
    for email in ("ada@example.com", "Al@example.com"):
        iterable.answer(UPDATE, {"userId": "u-1", "dataFields": {"email": email}})
    kept = {"email": AL, "userId": "u-1", "dataFields": {"email": "Al@example.com"}}
    assert iterable.project.users == {"u-1": kept}
    assert iterable.get(f"{GET_BY_EMAIL}?email={AL}").json()["user"]["dataFields"]["email"] == AL
    assert iterable.project.effects.moved == [("ada@example.com", AL)]
