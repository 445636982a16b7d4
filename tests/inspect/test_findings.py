"""What is told about fields, by table."""

from __future__ import annotations

from dataclasses import replace
from datetime import timezone

import pytest

from pipeline.config import FieldMap
from pipeline.config.fields import FieldType
from pipeline.inspect.findings import Mark, about_dropped, about_fields
from pipeline.inspect.mapping import Sample
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind
from pipeline.transform.rules import Rules

FIELDS = (FieldMap("x", "x"),)
RULES = Rules(False, "email", FIELDS, FIELDS, "visit", timezone.utc, False, 0)


def sample(type_: str, row: int, kind: Kind = Kind.USER, name: str = "x", source: str = "number") -> Sample:
    return Sample(kind, name, name, type_, source, row)


def told(samples: list[Sample], types: dict[str, str] | None, rules: Rules = RULES) -> list[str]:
    found = about_fields(rules, samples, types)
    return [finding.text for finding in found if finding.mark is not Mark.GOOD]


@pytest.mark.parametrize("types", [None, {}])
def test_numbers_of_two_kinds_are_noted(types: dict[str, str] | None) -> None:
    assert told([sample("long", 1), sample("double", 2)], types) == [
        "x is a long in row 1, and a double in row 2; Iterable does not say whether it takes that"
    ]


def test_a_double_for_a_long_of_the_project_is_noted() -> None:
    assert told([sample("double", 2)], {"x": "long"}) == [
        "x is a long in the project, and a double in row 2; Iterable does not say whether it takes that"
    ]


def test_dates_and_other_text_in_one_new_field_are_noted() -> None:
    found = list(about_fields(RULES, [sample("date", 1), sample("string", 2)], None))
    assert [(each.mark, each.code, each.remedy) for each in found] == [
        (Mark.NOTE, ExitCode.SUCCESS, "make all of them dates, and declare its type in USER_FIELDS: x:x:date")
    ]


def test_types_that_differ_are_bad_in_events_of_one_name_only() -> None:
    samples = [sample("long", 1, Kind.EVENT), sample("string", 2, Kind.EVENT)]
    assert len(told(samples, {})) == 1
    assert told(samples, {}, replace(RULES, name_column="event_name")) == []


def test_an_event_field_is_not_compared_with_the_users_field_of_its_name() -> None:
    assert told([sample("string", 1, Kind.EVENT)], {"x": "long"}) == []


def test_two_of_our_own_names_that_are_nearly_one_are_noted() -> None:
    assert told([sample("long", 1, name="planType"), sample("long", 1, name="plan_type")], {}) == [
        "planType and plan_type are two user fields with nearly one name"
    ]


def test_types_that_are_not_known_are_let_pass() -> None:
    assert told([sample("object", 1)], {"x": "geo_location"}) == []


def test_fields_that_iterable_dropped_are_noted_while_they_are_sent() -> None:
    (found,) = about_dropped(RULES, {(Kind.USER, "x"), (Kind.EVENT, "gone")})
    assert found.text == "Iterable dropped x of users in earlier runs"
    assert "run once with --full users --yes" in found.remedy


def test_what_is_within_a_json_column_is_to_be_converted_in_the_query() -> None:
    rules = replace(RULES, user_fields=(FieldMap("prefs", "prefs", FieldType.JSON),))
    samples = [
        Sample(Kind.USER, "prefs", "prefs.score", kind, "object", row) for row, kind in ((1, "long"), (2, "string"))
    ]
    (finding,) = (each for each in about_fields(rules, samples, None) if each.mark is Mark.BAD)
    assert finding.remedy == "convert prefs.score within prefs in the query"
