"""The values of fields -> `dataFields` of a payload, with dots in the fields' names as nested objects. Pure.

A value comes as JSON, as "" for NULL, or as None where it is left out whatever NULLs mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Union

from pipeline.config.fields import FieldMap
from pipeline.transform.values import quote

Node = Union[int, "list[tuple[str, Node]]"]  # the place of a value, or an object's members: (name and colon, node)


class Member(NamedTuple):
    """A field of `dataFields` itself, with all that is nested in it. values: of some users, in JSON; "": it is left
    out."""

    name: str
    values: list[str]


class FieldTemplate:
    """Where each field's value stands. In the order of their names, so that neither the order of a setting nor that of
    the query's columns changes what is sent."""

    def __init__(self, fields: Sequence[FieldMap]) -> None:
        self.fields = tuple(sorted(fields, key=attrgetter("path")))
        self._members = _members([field.path for field in self.fields], range(len(self.fields)))
        self._names = list(dict.fromkeys(field.path[0] for field in self.fields))
        self._template = _template(self._members)

    def members(self, by_field: Sequence[Sequence[str | None]], *, nulls: bool, nulls_in_objects: bool) -> list[Member]:
        """What `fill` puts together, each field of `dataFields` for itself, for several objects."""
        found = []
        for (_, node), name in zip(self._members, self._names, strict=True):
            if isinstance(node, int):
                null = "null" if nulls else ""
                values = ["" if value is None else value or null for value in by_field[node]]
            else:
                rows = zip(*by_field, strict=True)
                values = [_object(node, row, nulls, nulls_in_objects) for row in rows]
            found.append(Member(name, values))
        return found

    def fill_all(
        self,
        by_field: Sequence[Sequence[str | None]],
        count: int,
        *,
        nulls: bool = False,
        nulls_in_objects: bool = False,
    ) -> list[str]:
        """`fill` for `count` objects, whose values are given by the field."""
        if not by_field:
            return [""] * count
        values = zip(*by_field, strict=True)
        if any("" in each or None in each for each in by_field):
            return [self.fill(each, nulls=nulls, nulls_in_objects=nulls_in_objects) for each in values]
        return list(map(self._template.__mod__, values))

    def fill(self, values: Sequence[str | None], *, nulls: bool = False, nulls_in_objects: bool = False) -> str:
        """Values in JSON, in the order of `fields`, "" for NULL -> what stands within the braces of `dataFields`.

        nulls: whether a NULL, or an object of nothing but NULLs, is null or left out. nulls_in_objects: the same for
        what is in an object of `dataFields`; what lies deeper is left out in any case.
        """
        if "" not in values and None not in values:
            return self._template % tuple(values)
        return _fill(self._members, values, nulls, nulls_in_objects)


def _members(paths: Sequence[tuple[str, ...]], places: Iterable[int], depth: int = 0) -> list[tuple[str, Node]]:
    members: list[tuple[str, Node]] = []
    for name, group in groupby(places, key=lambda place: paths[place][depth]):
        inside = list(group)
        is_value = len(paths[inside[0]]) == depth + 1
        members.append((f"{quote(name)}:", inside[0] if is_value else _members(paths, inside, depth + 1)))
    return members


def _template(members: Iterable[tuple[str, Node]]) -> str:
    """`"page":%s,"plan":{"since":%s,"tier":%s}`: an object without NULLs is filled in by one operation."""
    parts = []
    for opening, node in members:
        inside = "%s" if isinstance(node, int) else f"{{{_template(node)}}}"
        parts.append(opening.replace("%", "%%") + inside)
    return ",".join(parts)


def _fill(
    members: Iterable[tuple[str, Node]], values: Sequence[str | None], nulls: bool, nulls_in_objects: bool
) -> str:
    parts = []
    for opening, node in members:
        if isinstance(node, int):
            value = values[node]
            text = "" if value is None else value or ("null" if nulls else "")
        else:
            text = _object(node, values, nulls, nulls_in_objects)
        if text:
            parts.append(opening + text)
    return ",".join(parts)


def _object(
    members: Iterable[tuple[str, Node]], values: Sequence[str | None], nulls: bool, nulls_in_objects: bool
) -> str:
    """A nested object; of nothing but NULLs, it is null itself where NULLs are sent."""
    inside = _fill(members, values, nulls_in_objects, False)
    return f"{{{inside}}}" if inside else "null" if nulls else ""
