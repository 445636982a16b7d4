"""The grammar of USER_FIELDS and EVENT_FIELDS."""

from __future__ import annotations

import pytest

from pipeline.config.fields import EVERY_OTHER, FieldMap, FieldType, expand, find_clash, is_writable, parse_fields

NOT_A_LIST = (
    "must be a list of column, column:fieldName or column:fieldName:type, such as page,device:deviceType (* for every "
    "other column, - for none); a column whose own name has a comma or a colon needs another one in the query (AS)"
)
DOTS = "has a field name that begins or ends with a dot, or has two in a row; a dot nests a field"
TYPES = "has an unknown type; the types are text, integer, number, boolean, date, json (column:fieldName:type)"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("-", ()),
        ("page", (FieldMap("page", "page"),)),
        (" page , device : deviceType", (FieldMap("page", "page"), FieldMap("device", "deviceType"))),
        ("page,page:copy", (FieldMap("page", "page"), FieldMap("page", "copy"))),
        ("zip:zip: Text ", (FieldMap("zip", "zip", FieldType.TEXT),)),
        ("*", (EVERY_OTHER,)),
        ("ltv:value:number, *", (FieldMap("ltv", "value", FieldType.NUMBER), EVERY_OTHER)),
        (
            "plan:plan.tier,since:plan.since:date",
            (FieldMap("plan", "plan.tier"), FieldMap("since", "plan.since", FieldType.DATE)),
        ),
        ("full name:fullName", (FieldMap("full name", "fullName"),)),
    ],
)
def test_a_list_becomes_columns_fields_and_types(text: str, fields: tuple[FieldMap, ...]) -> None:
    assert parse_fields(text) == fields


@pytest.mark.parametrize("each", FieldType)
def test_each_type_has_its_name(each: FieldType) -> None:
    assert parse_fields(f"a:b:{each.value.upper()}") == (FieldMap("a", "b", each),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,,b", NOT_A_LIST),
        ("a:", NOT_A_LIST),
        (":a", NOT_A_LIST),
        ("a::text", NOT_A_LIST),
        ("a:b:text:c", NOT_A_LIST),
        ("a,-", NOT_A_LIST),
        ("*:all", NOT_A_LIST),
        ("a:b:string", TYPES),
        ("a.,b", DOTS),
        ("a:.b", DOTS),
        ("a:b..c", DOTS),
        ("*,a,*", "has * twice"),
        ("a,b:a", "names the field a twice"),
        ("plan,tier:plan.tier", "has plan both as a value and as an object that holds plan.tier"),
        ("a:x.y.z,b:x.y-,c:x.y", "has x.y both as a value and as an object that holds x.y.z"),
    ],
)
def test_a_wrong_list_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its text is compared)
        parse_fields(text)
    assert str(caught.value) == problem


def test_fields_beside_each_other_in_one_object_do_not_clash() -> None:
    assert find_clash(parse_fields("a:plan.tier,b:plan.since,c:planned,d:plan-b")) is None


def test_star_gives_way_to_the_other_columns_where_it_stands() -> None:
    fields = (FieldMap("b", "b"), EVERY_OTHER, FieldMap("a", "first"))
    expanded = (FieldMap("b", "b"), FieldMap("c", "c"), FieldMap("d.e", "d.e"), FieldMap("a", "first"))
    assert expand(fields, ["c", "d.e"]) == expanded


@pytest.mark.parametrize(
    ("column", "writable"),
    [
        *[(column, True) for column in ("phone", "full name", "a.b", "größe")],
        *[(column, False) for column in ("a,b", "a:b", " a", "", "*", "-", "a #1", "a\nb", "'a'")],
    ],
)
def test_columns_that_can_stand_in_a_setting(column: str, writable: bool) -> None:
    assert is_writable(column) == writable
