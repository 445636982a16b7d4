"""Fields with dots in their names, and the columns of their values, as nested objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FieldMap
from pipeline.config.fields import find_clash
from pipeline.transform.data_fields import FieldTemplate
from pipeline.transform.users import texts_of
from tests.transform.rows import CLEARED, CLEARED_AND_MERGED, NESTED, user_of

SEEN = {"page": "pricing", "device": "desktop"}


@pytest.mark.parametrize(
    ("values", "omitted", "cleared", "cleared_and_merged"),
    [
        ({}, *[{"name": "Ada", "plan": {"tier": "pro", "seen": SEEN}}] * 3),
        (
            {"plan_type": None},
            {"name": "Ada", "plan": {"seen": SEEN}},
            {"name": "Ada", "plan": {"seen": SEEN}},
            {"name": "Ada", "plan": {"tier": None, "seen": SEEN}},
        ),
        (
            {"page": None, "first_name": None},
            {"plan": {"tier": "pro", "seen": {"device": "desktop"}}},
            {"name": None, "plan": {"tier": "pro", "seen": {"device": "desktop"}}},
            {"name": None, "plan": {"tier": "pro", "seen": {"device": "desktop"}}},
        ),
        (
            {"page": None, "device": None},
            {"name": "Ada", "plan": {"tier": "pro"}},
            {"name": "Ada", "plan": {"tier": "pro"}},
            {"name": "Ada", "plan": {"tier": "pro", "seen": None}},
        ),
        (
            {"plan_type": None, "page": None, "device": None},
            {"name": "Ada"},
            {"name": "Ada", "plan": None},
            {"name": "Ada", "plan": {"tier": None, "seen": None}},
        ),
    ],
)
def test_dots_nest_fields_and_nulls_clear_what_iterable_would_keep(
    values: dict[str, Any],
    omitted: dict[str, Any],
    cleared: dict[str, Any],
    cleared_and_merged: dict[str, Any],
) -> None:
    """Iterable replaces an object as a whole, so what is left out of it is gone; merged, only a null clears a field."""
    found = [user_of(rules, **values)["dataFields"] for rules in (NESTED, CLEARED, CLEARED_AND_MERGED)]
    assert found == [omitted, cleared, cleared_and_merged]


# Against objects ------------------------------------------------------------------------------------------------------

Path = tuple[str, ...]
names = st.sampled_from(["a", "b", 'the "c"', "100%s"])
field_maps = st.lists(st.lists(names, min_size=1, max_size=3).map(".".join), max_size=5, unique=True).map(
    lambda found: [FieldMap(f"column {number}", name) for number, name in enumerate(found)]
)
values_in_json = st.sampled_from(["1", '"x"', "null", "{}", '["%s"]', "", "", None])


def plainly(fields: Sequence[tuple[Path, str | None]], *nulls: bool) -> dict[str, Any]:
    """Paths and values, in order. nulls: for each depth, whether NULLs are sent there; below, they are not."""
    sends_nulls, *deeper = nulls or (False,)
    found: dict[str, Any] = {}
    for name, group in groupby(fields, key=lambda field: field[0][0]):
        inside = [(path[1:], value) for path, value in group]
        if inside[0][0]:
            content = plainly(inside, *deeper)
            if content or sends_nulls:
                found[name] = content or None
        elif inside[0][1] is not None and (inside[0][1] or sends_nulls):
            found[name] = json.loads(inside[0][1] or "null")
    return found


def decoded(text: str) -> Any:
    """With the members in their order, which counts."""
    return json.dumps(json.loads(f"{{{text}}}"))


@given(field_maps.filter(lambda found: not find_clash(found)), st.booleans(), st.booleans(), st.data())
def test_columns_become_what_each_row_becomes_on_its_own(
    fields: list[FieldMap], nulls: bool, nulls_in_objects: bool, data: st.DataObject
) -> None:
    template = FieldTemplate(fields)
    count = data.draw(st.integers(0, 4))
    by_field = [data.draw(st.lists(values_in_json, min_size=count, max_size=count)) for _ in fields]
    expected = [
        plainly(
            [(field.path, column[place]) for field, column in zip(template.fields, by_field, strict=True)],
            nulls,
            nulls_in_objects,
        )
        for place in range(count)
    ]
    texts = template.fill_all(by_field, count, nulls=nulls, nulls_in_objects=nulls_in_objects)
    assert list(map(decoded, texts)) == list(map(json.dumps, expected))
    members = template.members(by_field, nulls=nulls, nulls_in_objects=nulls_in_objects)
    assert texts_of(members, count) == texts
    assert [
        {each.name: json.loads(each.values[place]) for each in members if each.values[place]} for place in range(count)
    ] == expected


@pytest.mark.parametrize("count", [0, 3])
def test_without_fields_there_is_nothing_to_say(count: int) -> None:
    template = FieldTemplate(())
    assert template.members([], nulls=True, nulls_in_objects=True) == []
    assert texts_of([], count) == template.fill_all([], count) == [""] * count
