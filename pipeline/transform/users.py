"""Rows -> what they say of their users, put together for each user -> the fields that Iterable is to have. Pure.

{"email": "ada@example.com", "plan_type": "pro"}  ->  {"email": "ada@example.com", "dataFields": {"plan_type": "pro"}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import tzinfo
from typing import Any, NamedTuple

from pipeline.config.fields import FieldMap
from pipeline.transform.data_fields import Member
from pipeline.transform.identity import email_address, person_text
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.values import InvalidRecord, cell_text, json_column, quote

MAX_RECORD_BYTES = 3_499_000  # so that a request of 3.5 MB holds at least one; Iterable allows 4 MB in bulk
MAX_ROWS = 100  # of one user, that are remembered for a report

# What a row says of its user, in the order of Rules.user_template and then of Rules.person_columns: each value in JSON,
# "" for NULL, or the reason why it can't be sent, which begins like no JSON.
UserValues = Sequence[str]
PROBLEM = "!"
USER_ID = (
    "userId"  # beside the e-mail in an update, where SEND_USER_ID asks for it; among hashes of fields, with a space
)
USER_ID_FIELD = "userId "


# Rows -----------------------------------------------------------------------------------------------------------------


def user_values(columns: Columns, count: int, rules: Rules) -> list[UserValues]:
    """What each of `count` rows says about its user."""
    by_field: list[Sequence[str]] = [
        _addresses(columns[field.column], field.column)
        if rules.by_user_id and field.column == "email"
        else _field_values(columns[field.column], field, rules.zone)
        for field in rules.user_template.fields
    ]
    for column in rules.person_columns:
        by_field.append(
            [quote(text) if text else "" for text in (person_text(each, column) for each in columns[column])]
        )
    return list(zip(*by_field, strict=True)) if by_field else [()] * count


def _field_values(values: Sequence[Any], field: FieldMap, zone: tzinfo) -> list[str]:
    try:
        return json_column(values, field, zone)
    except InvalidRecord:
        return [_json_or_problem(value, field, zone) for value in values]


def _json_or_problem(value: Any, field: FieldMap, zone: tzinfo) -> str:
    try:
        return json_column([value], field, zone)[0]
    except InvalidRecord as problem:
        return _problem(value, str(problem))


def _problem(value: Any, reason: str) -> str:
    """It has a hash of the cell, so that a cell that is wrong in another way is another problem."""
    cell = hashlib.blake2b(cell_text(value).encode(errors="backslashreplace"), digest_size=8).hexdigest()
    return f"{PROBLEM}{cell} {' '.join(reason.splitlines())}"


def _addresses(values: Sequence[Any], column: str) -> list[str]:
    """In a project that knows people by userId, the address is a field like others, but must be one."""
    found = []
    for value in values:
        try:
            text = value if isinstance(value, str) else person_text(value, column)
            found.append(quote(email_address(text, column)) if text.strip() else "")
        except InvalidRecord as problem:
            found.append(_problem(value, str(problem)))
    return found


class MergedUser(NamedTuple):
    """What the rows of one user say together.

    row: the last one that changed it. rows: those that said something new. disagreed: the places of values that two
    rows give differently. persons: who the rows say it is, where that is more than one.
    """

    row: int
    values: UserValues
    rows: tuple[int, ...] = ()
    disagreed: frozenset[int] = frozenset()
    persons: frozenset[str] = frozenset()


def merge(user: MergedUser, row: int, later: UserValues, rules: Rules) -> MergedUser:
    """The user with one more row: field by field, the later value counts.

    A NULL says nothing, unless NULLs clear fields. A value that can't be sent says something, so that an earlier one is
    not sent in its place.
    """
    fields = len(rules.user_template.fields)
    nulls_count = rules.clear_nulls
    values = [
        new if new or (nulls_count and place < fields) else old
        for place, (old, new) in enumerate(zip(user.values, later, strict=True))
    ]
    changed = [place for place, (old, new) in enumerate(zip(user.values, values, strict=True)) if old != new]
    if not changed:
        return user
    disagreed = {place for place in changed if place < fields and (nulls_count or user.values[place])}
    persons = user.persons
    if rules.person_column is not None and fields in changed and user.values[fields]:
        persons = persons | {user.values[fields], values[fields]}
    rows = (*user.rows, row)[:MAX_ROWS]
    return MergedUser(row, values, rows, user.disagreed | disagreed, persons)


# Users ----------------------------------------------------------------------------------------------------------------


class OmittedValue(NamedTuple):
    """A value that can't be sent, and is left out (BAD_VALUES=omit). place: of the user, among others. cell: a hash of
    what the value was."""

    place: int
    field: str
    reason: str
    cell: str


class UserFields(NamedTuple):
    """The fields of some users, as Iterable is to have them.

    members: by the field; "" where a user does not have it. problems: why a user can't be sent, by place.
    """

    members: list[Member]
    problems: dict[int, InvalidRecord]
    omitted: list[OmittedValue]


def user_fields(users: Sequence[UserValues], rules: Rules) -> UserFields:
    """What can't be sent refuses its user, or is left out."""
    fields = rules.user_template.fields
    by_field: list[Sequence[str | None]] = list(zip(*users, strict=True)) or [()] * len(fields)
    problems: dict[int, InvalidRecord] = {}
    omitted: list[OmittedValue] = []
    for number, field in enumerate(fields):
        column = by_field[number]
        bad = []
        if PROBLEM in {value[:1] for value in column if value}:
            bad = [place for place, value in enumerate(column) if value is not None and value[:1] == PROBLEM]
        is_address = rules.by_user_id and field.column == "email"
        for place in bad:
            cell, _, reason = str(column[place])[1:].partition(" ")
            if rules.omits_bad_values or is_address:
                omitted.append(OmittedValue(place, field.name, reason, cell))
            else:
                problems.setdefault(place, InvalidRecord(reason))
        if bad or is_address:  # a NULL would delete the address
            drops = {place for place, value in enumerate(column) if is_address and not value} | set(bad)
            by_field[number] = [None if place in drops else value for place, value in enumerate(column)]
    # Iterable replaces a nested object as a whole, so a field that is left out of it is cleared. Where it merges, only
    # a null clears one, and null for the whole object would clear what others keep there.
    nulls, nulls_in_objects = rules.clear_nulls, rules.clear_nulls and rules.merge_nested
    members = rules.user_template.members(by_field[: len(fields)], nulls=nulls, nulls_in_objects=nulls_in_objects)
    if not rules.merge_nested:  # an object is replaced as a whole, so one with a gap would delete what is there
        for value in omitted:
            name, _, inside = value.field.partition(".")
            member = next(each for each in members if each.name == name)
            member.values[value.place] = member.values[value.place] if not inside else ""
    if rules.sends_user_id and rules.person_column is not None:
        members.append(Member(USER_ID_FIELD, [value or "" for value in by_field[len(fields)]]))
    return UserFields(members, problems, omitted)


def texts_of(members: Sequence[Member], count: int) -> list[str]:
    """The members of `dataFields` of each user, as one text: what two updates of a user are compared by."""
    if not members:
        return [""] * count
    rows = list(zip(*(member.values for member in members), strict=True))
    openings = [f"{quote(member.name)}:" for member in members]
    template = ",".join(f"{opening.replace('%', '%%')}%s" for opening in openings)
    return [template % row if "" not in row else _joined(openings, row) for row in rows]


def _joined(openings: Sequence[str], values: Sequence[str]) -> str:
    return ",".join([opening + value for opening, value in zip(openings, values, strict=True) if value])


def full_payloads(people: Sequence[str], texts: Sequence[str], rules: Rules) -> list[bytes]:
    """The bodies of users/update with all fields, given by `texts_of`."""
    opening, more = ('{"userId":', ',"preferUserId":true') if rules.by_user_id else ('{"email":', "")
    merged = ',"mergeNestedObjects":true' if rules.merge_nested else ""
    return [
        f'{opening}{person}{more},"dataFields":{{{text}}}{merged}}}'.encode()
        for person, text in zip(map(quote, people), texts, strict=True)
    ]


def user_payload(who: str, fields: Sequence[tuple[str, str]], rules: Rules) -> bytes:
    """The body of users/update, which is also an element of users/bulkUpdate. fields: names, and values in JSON."""
    parts = [f'"userId":{quote(who)},"preferUserId":true' if rules.by_user_id else f'"email":{quote(who)}']
    parts += [f'"userId":{value}' for name, value in fields if name == USER_ID_FIELD]
    inside = ",".join([f"{quote(name)}:{value}" for name, value in fields if name != USER_ID_FIELD])
    parts.append(f'"dataFields":{{{inside}}}')
    if rules.merge_nested:
        parts.append('"mergeNestedObjects":true')
    return f"{{{','.join(parts)}}}".encode()


def too_large(size: int) -> InvalidRecord:
    return InvalidRecord(f"it has {size:,} bytes as JSON, more than the {MAX_RECORD_BYTES:,} of one request")
