"""The query's columns and the settings: the rules that they make, and the mistakes that are named."""

from __future__ import annotations

import logging
from datetime import timezone
from pathlib import Path

import pytest

from pipeline.config import FieldMap, FieldType, Settings, load_settings
from pipeline.transform.rules import ColumnsError, Rules, make_rules

NOW_S = 1_768_293_912.0  # 2026-01-13 08:45:12 in UTC
COLUMNS = ["id", "email", "first_name", "last_name", "plan_type", "candidate", "page", "device", "browser", "location"]
COLUMNS += ["event_time"]


def settings(**changes: str) -> Settings:
    needed = {"ITERABLE_API_KEY": "key", "DATABASE_URL": "sqlite:///users.db"}
    return load_settings(Path("/nonexistent/.env"), needed | changes)


def test_default_query_gives_the_default_rules() -> None:
    assert make_rules(COLUMNS, settings(), NOW_S) == Rules(
        by_user_id=False,
        identity_column="email",
        user_fields=tuple(FieldMap(name, name) for name in ("first_name", "last_name", "plan_type", "candidate")),
        event_fields=tuple(FieldMap(name, name) for name in ("page", "device", "browser", "location")),
        event_name="page_view",
        zone=timezone.utc,
        clear_nulls=False,
        latest_s=NOW_S + 86_400,
        time_column="event_time",
        name_column=None,
        id_column=None,
        person_column="id",
        person_is_guessed=True,
    )


def test_settings_and_further_columns_shape_the_rules() -> None:
    changes = {
        "ITERABLE_IDENTIFIER": "userId",
        "USER_FIELDS": "plan_type:plan",
        "EVENT_FIELDS": "-",
        "EVENT_NAME": "visit",
        "NULL_VALUES": "clear",
    }
    found = make_rules([*COLUMNS, "event_name", "event_id"], settings(**changes), NOW_S)
    assert found == Rules(
        by_user_id=True,
        identity_column="id",
        user_fields=(FieldMap("plan_type", "plan"),),
        event_fields=(),
        event_name="visit",
        zone=timezone.utc,
        clear_nulls=True,
        latest_s=NOW_S + 86_400,
        time_column="event_time",
        name_column="event_name",
        id_column="event_id",
        not_sent=("email", "first_name", "last_name", "candidate", "page", "device", "browser", "location"),
    )


def test_user_id_column_goes_before_id() -> None:
    by_user_id = settings(ITERABLE_IDENTIFIER="userId")
    assert make_rules(["id", "user_id"], by_user_id, NOW_S).identity_column == "user_id"
    assert make_rules(["id", "email"], by_user_id, NOW_S).identity_column == "id"


def test_default_fields_that_the_query_lacks_are_ignored() -> None:
    found = make_rules(["email", "last_name", "page", "event_time"], settings(), NOW_S)
    assert (found.user_fields, found.event_fields) == (
        (FieldMap("last_name", "last_name"),),
        (FieldMap("page", "page"),),
    )


def test_query_of_users_only_has_no_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = make_rules(["email", "first_name"], settings(), NOW_S)
    assert (found.time_column, found.event_fields) == (None, ())
    assert caplog.messages == ["The query has no column event_time: users are updated, and no events are tracked."]


# Columns that no setting names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "remedy"),
    [
        (
            ["full_name", "phone"],
            "write USER_FIELDS=full_name,phone (or USER_FIELDS=*) into .env, or name some of them in EVENT_FIELDS",
        ),
        (
            ["last_name", "page", "first_name", "phone"],
            "write USER_FIELDS=first_name,last_name,phone (or USER_FIELDS=*) into .env, or name some of them in "
            "EVENT_FIELDS",
        ),
        (
            ["phone", "net, gross"],
            "write USER_FIELDS=* into .env, or give the columns other names in the query (AS): one with a comma, a "
            "colon or a quote can't be written in USER_FIELDS",
        ),
    ],
)
def test_nothing_set_and_a_column_without_use_is_an_error_that_gives_the_setting(
    columns: list[str], remedy: str
) -> None:
    with pytest.raises(ColumnsError) as caught:
        make_rules(["id", "user_id", "email", *columns, "event_time", "event_name", "event_id"], settings(), NOW_S)
    dropped = ", ".join(each for each in columns if each not in COLUMNS)
    told = f"The query's columns {dropped} would not be sent, as neither USER_FIELDS nor EVENT_FIELDS is set; {remedy}."
    assert (str(caught.value), caught.value.remedy) == (told, remedy)


@pytest.mark.parametrize(
    ("changes", "not_sent"),
    [
        ({"USER_FIELDS": "plan_type"}, ("first_name", "phone")),
        ({"EVENT_FIELDS": "page"}, ("phone",)),
        ({"USER_FIELDS": "first_name,plan_type"}, ("phone",)),
        ({"USER_FIELDS": "-", "EVENT_FIELDS": "-"}, ("first_name", "plan_type", "page", "phone")),
        ({"USER_FIELDS": "*"}, ()),
        ({"EVENT_FIELDS": "*"}, ()),
    ],
)
def test_with_a_setting_given_the_columns_that_are_not_sent_are_listed(
    changes: dict[str, str], not_sent: tuple[str, ...]
) -> None:
    columns = ["id", "email", "first_name", "plan_type", "page", "phone", "event_time"]
    assert make_rules(columns, settings(**changes), NOW_S).not_sent == not_sent


def test_star_takes_what_has_no_other_use_in_the_order_of_the_query() -> None:
    columns = ["zip", *COLUMNS, "user_id", "event_name", "event_id", "phone", "mobile"]
    found = make_rules(columns, settings(USER_FIELDS="phone:tel:text,*"), NOW_S)
    names = ["zip", "first_name", "last_name", "plan_type", "candidate", "mobile"]
    assert found.user_fields == (FieldMap("phone", "tel", FieldType.TEXT), *(FieldMap(each, each) for each in names))
    assert found.event_fields == tuple(FieldMap(name, name) for name in ("page", "device", "browser", "location"))
    assert (found.swept, found.not_sent) == (frozenset(names), ())


def test_star_for_events_leaves_the_users_fields_to_the_users() -> None:
    found = make_rules(["email", "plan_type", "page", "ltv", "event_time"], settings(EVENT_FIELDS="*"), NOW_S)
    assert found.user_fields == (FieldMap("plan_type", "plan_type"),)
    assert found.event_fields == (FieldMap("page", "page"), FieldMap("ltv", "ltv"))


def test_column_that_star_brought_in_does_not_say_that_there_was_an_event() -> None:
    found = make_rules(["email", "tier", "page", "event_time"], settings(EVENT_FIELDS="page,*"), NOW_S)
    assert found.columns_of_events == ("page",)


def test_merge_nested_reaches_the_rules() -> None:
    assert make_rules(["email"], settings(MERGE_NESTED="true"), NOW_S).merge_nested


@pytest.mark.parametrize(
    ("columns", "changes", "problem"),
    [
        (
            ["id", "first_name"],
            {},
            "The query has no column email, by which ITERABLE_IDENTIFIER=email tells people apart; its columns are "
            "id, first_name.",
        ),
        (
            ["EMAIL"],
            {},
            "The query has no column email, by which ITERABLE_IDENTIFIER=email tells people apart; its columns are "
            "EMAIL.",
        ),
        (
            ["email", "first_name"],
            {"ITERABLE_IDENTIFIER": "userId"},
            "The query has no column user_id or id, by which ITERABLE_IDENTIFIER=userId tells people apart; its "
            "columns are email, first_name.",
        ),
        (
            ["email", "plan_type"],
            {"USER_FIELDS": "plan_type,nick,phone:mobile"},
            "USER_FIELDS names nick, phone, which the query does not have; its columns are email, plan_type.",
        ),
        (
            ["email", "event_time"],
            {"EVENT_FIELDS": "page"},
            "EVENT_FIELDS names page, which the query does not have; its columns are email, event_time.",
        ),
        (
            ["email", "page"],
            {},
            "The query has no column event_time, although page belongs to events; its columns are email, page. Add "
            "event_time, or set EVENT_FIELDS=- to send users only.",
        ),
        (
            ["email", "event_id"],
            {},
            "The query has no column event_time, although event_id belongs to events; its columns are email, event_id. "
            "Add event_time, or set EVENT_FIELDS=- to send users only.",
        ),
    ],
)
def test_missing_column_is_named(columns: list[str], changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ColumnsError) as caught:
        make_rules(columns, settings(**changes), NOW_S)
    assert str(caught.value) == problem
    assert caught.value.remedy


def test_clash_that_star_brings_in_is_named() -> None:
    with pytest.raises(ColumnsError) as caught:
        make_rules(["email", "plan", "tier"], settings(USER_FIELDS="tier:plan.tier,*"), NOW_S)
    assert str(caught.value) == "USER_FIELDS has plan both as a value and as an object that holds plan.tier."
    assert caught.value.remedy == "fix USER_FIELDS: give one of the two another field name (column:fieldName)"


# Iterable's own fields ------------------------------------------------------------------------------------------------

OWN = ("emailListIds", "SubscribedMessageTypeIDs", "itblInternal")


@pytest.mark.parametrize("setting", ["USER_FIELDS", "EVENT_FIELDS"])
def test_a_star_leaves_the_fields_out_that_iterable_keeps_itself(setting: str) -> None:
    changes = {"USER_FIELDS": "plan_type", "EVENT_FIELDS": "page"} | {setting: "*"}
    found = make_rules(["email", "plan_type", "page", "event_time", "city", *OWN], settings(**changes), NOW_S)
    fields = found.user_fields if setting == "USER_FIELDS" else found.event_fields
    assert "city" in [field.name for field in fields]
    assert [field.name for field in fields if field.name in OWN] == []
    assert (found.not_sent, found.swept & set(OWN)) == (OWN, frozenset())


def test_a_suggested_line_has_none_of_them() -> None:
    with pytest.raises(ColumnsError) as caught:
        make_rules(["email", "city", *OWN], settings(), NOW_S)
    assert "columns city would not be sent" in str(caught.value)
    assert "write USER_FIELDS=city (or" in caught.value.remedy


def test_they_alone_are_no_mistake() -> None:
    found = make_rules([*COLUMNS, *OWN], settings(), NOW_S)
    assert (found.not_sent, [field.name for field in found.user_fields if field.name in OWN]) == (OWN, [])
