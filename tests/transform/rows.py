"""Rows, and what they become one by one; any rows at all, for what must hold for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from pipeline.config import FieldMap, FieldType
from pipeline.transform import events
from pipeline.transform.identity import identity
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.users import UserFields, full_payloads, texts_of, user_fields, user_values

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
NEW_YORK = ZoneInfo("America/New_York")
NOW_S = 1_768_293_912  # 2026-01-13 08:45:12 in UTC
RULES = Rules(
    by_user_id=False,
    identity_column="email",
    user_fields=(FieldMap("first_name", "first_name"), FieldMap("plan_type", "planType")),
    event_fields=(FieldMap("page", "page"), FieldMap("device", "deviceType")),
    event_name="page_view",
    zone=UTC,
    clear_nulls=False,
    latest_s=NOW_S + 86_400,
)
BY_USER_ID = replace(RULES, by_user_id=True, identity_column="id")
PERSONAL = replace(RULES, person_column="id")
ROW: dict[str, Any] = {
    "id": 1,
    "email": "ada@example.com",
    "first_name": "Ada",
    "plan_type": "pro",
    "page": "pricing",
    "device": "desktop",
    "event_time": "2026-01-13 08:45:12",
}
NO_FORM = "event_time is not a valid time; expected 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00"
NESTED = replace(
    RULES,
    user_fields=(
        FieldMap("plan_type", "plan.tier"),
        FieldMap("first_name", "name"),
        FieldMap("page", "plan.seen.page"),
        FieldMap("device", "plan.seen.device"),
    ),
    event_fields=(
        FieldMap("device", "client.device"),
        FieldMap("page", "page"),
        FieldMap("id", "client.n", FieldType.TEXT),
    ),
)
CLEARED = replace(NESTED, clear_nulls=True)
MERGED = replace(NESTED, merge_nested=True)
CLEARED_AND_MERGED = replace(CLEARED, merge_nested=True)


def of_rows(*rows: Mapping[str, Any]) -> Columns:
    """The rows by the column."""
    return {column: [row[column] for row in rows] for column in ROW | dict(*rows[:1])}


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


# Users ----------------------------------------------------------------------------------------------------------------


def fields_of(rules: Rules, *rows: Mapping[str, Any]) -> UserFields:
    """Of users with one row each."""
    return user_fields(user_values(of_rows(*rows), len(rows), rules), rules)


def user_update(row: Mapping[str, Any], who: str, rules: Rules) -> dict[str, Any]:
    """The payload of one row alone, with all fields."""
    found = fields_of(rules, row)
    for problem in found.problems.values():
        raise problem
    (body,) = full_payloads([who], texts_of(found.members, 1), rules)
    payload: dict[str, Any] = json.loads(body)
    return payload


def user_of(rules: Rules = RULES, **values: Any) -> dict[str, Any]:
    row = ROW | values
    return user_update(row, identity(row[rules.identity_column], rules), rules)


# Events ---------------------------------------------------------------------------------------------------------------


def events_of(rows: Sequence[Mapping[str, Any]], people: Sequence[str], rules: Rules) -> list[Any]:
    """For each row its id and payload, or the reason why there can't be one, or None."""
    found = events.events(of_rows(*rows), people, rules)
    by_place = dict(zip(found.places, ids_and_payloads(found, rules), strict=True))
    problems = {place: str(problem) for place, problem in found.problems}
    assert not by_place.keys() & problems.keys()
    return [by_place.get(place) or problems.get(place) for place in range(len(rows))]


def event(row: Mapping[str, Any], who: str, rules: Rules) -> tuple[str, bytes] | None:
    """The id and the payload of one row; None: there is no event."""
    found = events.events(of_rows(row), [who], rules)
    for _, problem in found.problems:
        raise problem
    return ids_and_payloads(found, rules)[0] if found.places else None


def ids_and_payloads(found: events.Events, rules: Rules) -> list[tuple[str, bytes]]:
    bodies = events.event_payloads(found, rules)
    return [(json.loads(body)["id"], body) for body in bodies]


def has_event(row: Mapping[str, Any], rules: Rules) -> bool:
    return events.has_event(of_rows(row), 0, rules)


def event_of(rules: Rules = RULES, **values: Any) -> dict[str, Any] | None:
    row = ROW | values
    return decoded(event(row, identity(row[rules.identity_column], rules), rules))


def decoded(event: tuple[str, bytes] | None) -> dict[str, Any] | None:
    """The payload as an object; its id is the one that the event is known by."""
    if event is None:
        return None
    event_id, encoded = event
    payload: dict[str, Any] = json.loads(encoded.decode("utf-8"), parse_constant=refuse_constant)
    assert payload["id"] == event_id
    return payload


def sent_event(rules: Rules = RULES, **values: Any) -> dict[str, Any]:
    event = event_of(rules, **values)
    assert event is not None
    return event


# Any rows at all ------------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()))  # with lone surrogates, which undecodable bytes become


def moments(earliest: datetime, latest: datetime) -> st.SearchStrategy[datetime]:
    return st.datetimes(earliest, latest) | st.datetimes(earliest, latest, timezones=st.timezones())


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.decimals(),
    st.sampled_from([Decimal("sNaN"), Decimal("1E+999999"), Decimal("-1E-999999"), 1j, object()]),
    any_text,
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(lambda each: memoryview(each)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    moments(datetime.min, datetime.max),
    st.uuids(),
    st.ip_addresses(),
)
anything = st.recursive(
    scalars,
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.lists(each, max_size=3).map(tuple),
        st.dictionaries(any_text | st.integers(), each, max_size=3),
        st.sets(st.integers() | any_text, max_size=3),
    ),
    max_leaves=6,
)
COLUMNS = ["id", "email", "first_name", "plan_type", "page", "device", "event_time", "event_name", "event_id"]
good_rows = st.fixed_dictionaries(
    {
        "id": st.integers(1, 99),
        "email": st.sampled_from(["ada@example.com", "Zoë@Bücher.example"]),
        "event_time": moments(datetime(1970, 1, 3), datetime(2026, 1, 12)),
        "event_name": st.just("page_view"),
        "event_id": st.none() | st.uuids(),
    }
)
any_rows = st.builds(
    lambda good, wild, kept: wild | {column: good[column] for column in kept},
    good_rows,
    st.fixed_dictionaries(dict.fromkeys(COLUMNS, anything)),
    st.sets(st.sampled_from(["id", "email", "event_time", "event_name", "event_id"])),
)
any_rules = st.builds(
    Rules,
    by_user_id=st.booleans(),
    identity_column=st.sampled_from(["id", "email"]),
    user_fields=st.sampled_from(
        [RULES.user_fields, NESTED.user_fields, (FieldMap("email", "email"), *RULES.user_fields), ()]
    ),
    event_fields=st.sampled_from([RULES.event_fields, NESTED.event_fields, ()]),
    event_name=st.just("page_view"),
    zone=st.sampled_from([UTC, BERLIN, NEW_YORK]),
    clear_nulls=st.booleans(),
    latest_s=st.just(RULES.latest_s),
    name_column=st.sampled_from([None, "event_name"]),
    id_column=st.sampled_from([None, "event_id"]),
    merge_nested=st.booleans(),
    person_column=st.sampled_from([None, "id"]),
    omits_bad_values=st.booleans(),
)
