"""Values by the type that their field is declared to have; those by their own type are in test_users.py."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap, FieldType
from pipeline.model.records import Unreadable
from pipeline.transform.values import InvalidRecord, canonical, cell_text, field_value, json_column
from tests.transform.rows import anything

UTC = timezone.utc
BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2026, 7, 1, 12)


def convert(value: Any, kind: FieldType | None, zone: Any = UTC) -> Any:
    return field_value(value, FieldMap("age", "age", kind), zone)


# Each line: what is sent, and how databases give it: SQLite has neither booleans nor dates nor decimals, MySQL gives a
# BIT(1) as a byte and JSON as text, PostgreSQL and DuckDB give JSON or structs as objects.
@pytest.mark.parametrize(
    ("kind", "sent", "values"),
    [
        (FieldType.TEXT, "00021", ["00021", b"00021"]),
        (FieldType.TEXT, "21", [21, 21.0, Decimal("21.00"), "21"]),
        (FieldType.TEXT, "19.9", [19.9, Decimal("19.90"), "19.9"]),
        (FieldType.TEXT, "0.0000001", [1e-07, Decimal("1E-7")]),
        (FieldType.TEXT, "9007199254740993", [2**53 + 1, Decimal(2**53 + 1), str(2**53 + 1)]),
        (FieldType.TEXT, "10000000000000000000000", [1e22, Decimal("1E+22"), 10**22]),
        (FieldType.TEXT, "true", [True, b"\1", "true"]),
        (FieldType.TEXT, "", [""]),
        (FieldType.TEXT, "2026-07-01 12:00:00", [NOON, "2026-07-01 12:00:00"]),
        (FieldType.TEXT, "2026-07-01 12:00:00+00:00", [NOON.replace(tzinfo=UTC)]),
        (FieldType.TEXT, "2026-07-01", [date(2026, 7, 1), "2026-07-01"]),
        (FieldType.TEXT, "12:00:00", [time(12), "12:00:00"]),
        (FieldType.TEXT, "90.5", [timedelta(seconds=90.5)]),
        (FieldType.TEXT, "00000000-0000-0000-0000-000000000001", [UUID(int=1)]),
        (FieldType.TEXT, '{"a":[1,2]}', [{"a": [1, 2]}]),
        (FieldType.INTEGER, 21, [21, 21.0, Decimal("21.00"), "21", " 021 ", "+21", "21.0", b"21"]),
        (FieldType.INTEGER, 1, [1, True, b"\1", "1"]),
        (FieldType.INTEGER, -(2**63), [-(2**63), str(-(2**63)), Decimal(-(2**63))]),
        (FieldType.NUMBER, 5.0, [5, 5.0, Decimal("5.00"), "5", "5.", "+5.00", " 50e-1 ", b"5"]),
        (FieldType.NUMBER, 0.5, [0.5, Decimal("0.50"), ".5", "0.5"]),
        (FieldType.NUMBER, 1.0, [True, b"\1"]),
        (FieldType.BOOLEAN, True, [True, 1, 1.0, Decimal(1), b"\1", "true", "T", "Yes", "1", " TRUE ", b"t"]),
        (FieldType.BOOLEAN, False, [False, 0, 0.0, Decimal("0.0"), b"\0", "False", "f", "NO", "0"]),
        (
            FieldType.DATE,
            "2026-07-01 12:00:00 +00:00",
            ["2026-07-01 12:00:00", "2026-07-01 12:00", "2026-07-01T12:00:00.999Z", "2026-07-01T14:00+02", 1782907200,
             1782907200.5, Decimal(1782907200), NOON, NOON.replace(tzinfo=UTC), NOON.replace(hour=14, tzinfo=BERLIN)],
        ),
        (FieldType.DATE, "1815-12-10 00:00:00 +00:00", [date(1815, 12, 10), "1815-12-10", " 1815-12-10\n"]),
        (FieldType.DATE, "1969-12-31 23:59:59 +00:00", [-1, "1969-12-31 23:59:59"]),
        (FieldType.JSON, {"a": [1, 2.5], "b": "é"}, ['{"b": "é", "a": [1, 2.5]}', {"a": [1, 2.5], "b": "é"}]),
        (FieldType.JSON, [1, "x"], ['[1,"x"]', [1, "x"], (1, "x"), b'[1,"x"]']),
        (FieldType.JSON, {}, ["{}", {}]),
        *[(kind, None, [None, "", "  ", b""]) for kind in FieldType if kind is not FieldType.TEXT],
        (FieldType.TEXT, None, [None]),
        (FieldType.JSON, None, ["null"]),
    ],
)  # fmt: skip
def test_one_value_is_sent_alike_however_a_database_gives_it(kind: FieldType, sent: Any, values: list[Any]) -> None:
    for value in values:
        found = convert(value, kind)
        assert (found, type(found)) == (sent, type(sent)), repr(value)


def test_times_without_offset_are_in_the_zone_and_days_stay_the_days_that_they_are() -> None:
    times, days = [NOON, "2026-07-01 12:00:00"], [date(2026, 7, 1), "2026-07-01"]
    assert [convert(value, FieldType.DATE, BERLIN) for value in times] == ["2026-07-01 10:00:00 +00:00"] * 2
    assert [convert(value, FieldType.DATE, BERLIN) for value in days] == ["2026-07-01 00:00:00 +00:00"] * 2


BOOLEAN = "a boolean (true/false, t/f, yes/no or 1/0)"
JSON = "JSON (an object or a list)"
FORMS = "is not a valid time; expected 2026-01-13 08:45:12 or 2026-01-13T08:45:12+01:00"


@pytest.mark.parametrize(
    ("kind", "value", "problem"),
    [
        (FieldType.INTEGER, "5.5", "is text that can't be sent as an integer"),
        (FieldType.INTEGER, 5.5, "is a number with a fraction that can't be sent as an integer"),
        (FieldType.INTEGER, Decimal("5.5"), "is a number with a fraction that can't be sent as an integer"),
        (FieldType.INTEGER, "1,000", "is text that can't be sent as an integer"),
        (FieldType.INTEGER, "1e3", "is text that can't be sent as an integer"),
        (FieldType.INTEGER, "٣", "is text that can't be sent as an integer"),
        (FieldType.INTEGER, float("nan"), "is NaN or infinity that can't be sent as an integer"),
        (FieldType.INTEGER, 2**63, "is a number beyond 64 bits"),
        (FieldType.INTEGER, str(2**63), "is a number beyond 64 bits"),
        (FieldType.INTEGER, NOON, "is a time that can't be sent as an integer"),
        (FieldType.INTEGER, [1], "is a list that can't be sent as an integer"),
        (FieldType.INTEGER, b"\xff", "is not valid UTF-8"),
        (FieldType.NUMBER, "5,5", "is text that can't be sent as a number"),
        (FieldType.NUMBER, "NaN", "is text that can't be sent as a number"),
        (FieldType.NUMBER, "infinity", "is text that can't be sent as a number"),
        (FieldType.NUMBER, "1e400", "is text that can't be sent as a number"),
        (FieldType.NUMBER, float("inf"), "is inf, which JSON can't hold"),
        (FieldType.NUMBER, Decimal("sNaN"), "is NaN or infinity that can't be sent as a number"),
        (FieldType.NUMBER, date(2026, 7, 1), "is a date that can't be sent as a number"),
        *[
            (FieldType.NUMBER, value, "is a whole number that a double can't hold exactly; cast it to text or bigint "
             "in the query")
            for value in (2**53 + 1, Decimal(2**53 + 1), str(2**53 + 1))
        ],
        (FieldType.BOOLEAN, "maybe", f"is text that can't be sent as {BOOLEAN}"),
        (FieldType.BOOLEAN, 2, f"is a whole number that can't be sent as {BOOLEAN}"),
        (FieldType.BOOLEAN, 2.0, f"is a number that can't be sent as {BOOLEAN}"),
        (FieldType.BOOLEAN, Decimal("NaN"), f"is NaN or infinity that can't be sent as {BOOLEAN}"),
        (FieldType.DATE, "13/01/2026", FORMS),
        (FieldType.DATE, "2026-02-30", "is a day or a time that does not exist"),
        (FieldType.DATE, True, "is a boolean that can't be sent as a date"),
        (FieldType.DATE, {}, "is an object that can't be sent as a date"),
        (
            FieldType.DATE,
            1782907200000,
            "is a number outside the years that a date can have; perhaps it is in milliseconds",
        ),
        (FieldType.DATE, float("inf"), "is a number that is not a valid time"),
        (FieldType.DATE, Unreadable("infinity", "is infinity, which can't be sent as a date"),
         "is infinity, which can't be sent as a date"),
        (FieldType.JSON, "{'a': 1}", f"is text that can't be sent as {JSON}"),
        (FieldType.JSON, "5", f"is text that can't be sent as {JSON}"),
        (FieldType.JSON, "[" * 100_000, f"is text that can't be sent as {JSON}"),
        (FieldType.JSON, 5, f"is a whole number that can't be sent as {JSON}"),
        (FieldType.JSON, "[NaN]", "is nan, which JSON can't hold"),
        (FieldType.JSON, '["\\ud800"]', "is not valid UTF-8"),
        (FieldType.TEXT, "caf\udce9", "is not valid UTF-8"),
        (FieldType.TEXT, float("nan"), "is NaN or infinity that can't be sent as text"),
        (FieldType.TEXT, Decimal("1E-999999"), "is a number with a fraction that can't be sent as text"),
        (FieldType.TEXT, object(), "has the type object, which can't be sent"),
        (None, Decimal(2**53 + 1),
         "is a whole number that a double can't hold exactly; cast it to text or bigint in the query"),
        (None, [Decimal(-(2**53) - 1)],
         "is a whole number that a double can't hold exactly; cast it to text or bigint in the query"),
        (None, Unreadable("0000-00-00", "is a zero date, which can't be sent"), "is a zero date, which can't be sent"),
        (None, {"at": [Unreadable("x", "is out of range")]}, "is out of range"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_column_and_its_kind(
    kind: FieldType | None, value: Any, problem: str
) -> None:
    with pytest.raises(InvalidRecord) as caught:
        convert(value, kind)
    assert str(caught.value) == f"age {problem}"


@pytest.mark.parametrize(
    ("value", "sent"),
    [(Decimal(2**53), float(2**53)), (Decimal("1E+22"), 1e22), (Decimal("12345678901234568.5"), 12345678901234568.0)],
)
def test_a_decimal_that_a_double_holds_or_that_has_a_fraction_is_sent(value: Decimal, sent: float) -> None:
    assert convert(value, None) == sent


@pytest.mark.parametrize("text", ["12345678901234567.5", "90071992547409931.25", "-9007199254740993.5"])
def test_a_decimal_whose_whole_digits_would_change_is_refused(text: str) -> None:
    for kind in (None, FieldType.NUMBER):
        with pytest.raises(InvalidRecord, match=r"^age is a number that a double can't hold exactly; cast it to text"):
            convert(Decimal(text), kind)


def json_or_problem(values: list[Any], field: FieldMap) -> list[str] | str:
    try:
        return json_column(values, field, BERLIN)
    except InvalidRecord as problem:
        return str(problem)


columns = st.lists(anything | st.text() | st.none(), max_size=5)


@given(columns | st.lists(st.text() | st.none()) | st.lists(st.integers()), st.sampled_from([None, *FieldType]))
def test_a_column_becomes_the_same_together_as_each_value_alone(values: list[Any], kind: FieldType | None) -> None:
    field = FieldMap("age", "age", kind)
    alone = [json_or_problem([value], field) for value in values]
    problems = [each for each in alone if isinstance(each, str)]
    assert json_or_problem(values, field) == (problems[0] if problems else [each[0] for each in alone])


@given(columns | st.lists(st.text() | st.none()) | st.lists(st.integers()), st.sampled_from([None, *FieldType]))
def test_a_column_becomes_what_its_values_are_one_by_one(values: list[Any], kind: FieldType | None) -> None:
    """Columns of text and of whole numbers are converted at once; this is the plain way."""
    field = FieldMap("age", "age", kind)
    expected: list[str] | str = []
    try:
        converted = [field_value(value, field, BERLIN) for value in values]
        expected = ["" if each is None else canonical(each) for each in converted]
    except InvalidRecord as problem:
        expected = str(problem)
    assert json_or_problem(values, field) == expected


@given(anything, st.sampled_from([None, *FieldType]))
def test_whatever_a_value_is_it_becomes_json_or_a_reason(value: Any, kind: FieldType | None) -> None:
    cell_text(value)
    found = json_or_problem([value], FieldMap("age", "age", kind))
    if isinstance(found, str):
        assert found.startswith("age ")
    elif found != [""]:
        json.loads(found[0].encode(), parse_constant=pytest.fail)
