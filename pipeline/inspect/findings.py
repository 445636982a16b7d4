"""What `--check` finds, and what it finds about fields: samples of our rows against the project's types. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.config.fields import FieldMap, FieldType, find_own_field
from pipeline.inspect.mapping import NUMBERS, Sample, disagree, fits, folded
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import wrapped
from pipeline.transform.rules import Rules

INDENT = " " * len("[BAD ] ")


class Area(str, Enum):
    """What a finding is about."""

    SETTINGS = "settings"
    OUTPUT = "output folder"
    LEDGER = "ledger"
    SOURCE = "database"
    ROWS = "rows"
    EVENTS = "events"
    BRAKE = "brake"
    KEY = "key"
    ANSWER = "Iterable"
    CONNECTION = "connection"
    FIELDS = "fields"
    JOURNEYS = "journeys"


class Mark(str, Enum):
    """How bad a finding is."""

    GOOD = "ok"
    NOTE = "note"  # worth knowing; a run is possible
    BAD = "BAD"  # a run would not start, or some records would be refused


@dataclass(frozen=True)
class Finding:
    """One line: `[BAD]  ledger: ... -> remedy`. remedies: more than one where one of several will do. code: how a run
    would end because of this."""

    mark: Mark
    area: Area
    text: str
    remedies: tuple[str, ...] = ()
    code: ExitCode = ExitCode.SUCCESS

    @property
    def remedy(self) -> str:
        """All of them in one text."""
        return " ".join(self.remedies)

    def line(self) -> str:
        arrow = f" -> {self.remedy}" if self.remedies else ""
        return f"[{self.mark.value:^4}] {self.area.value}: {self.text}{arrow}"

    def lines(self) -> list[str]:
        """The same for a terminal of 80 columns."""
        lines = wrapped(f"[{self.mark.value:^4}] {self.area.value}: {self.text}", hanging=INDENT)
        return lines + [line for each in self.remedies for line in wrapped(f"-> {each}", INDENT, f"{INDENT}   ")]


def bad(area: Area, text: str, remedy: str, code: ExitCode) -> Finding:
    return Finding(Mark.BAD, area, text, (remedy,) if remedy else (), code)


def note(area: Area, text: str, remedy: str = "", code: ExitCode = ExitCode.SUCCESS) -> Finding:
    return Finding(Mark.NOTE, area, text, (remedy,) if remedy else (), code)


def good(area: Area, text: str) -> Finding:
    return Finding(Mark.GOOD, area, text)


# Fields ---------------------------------------------------------------------------------------------------------------

CONVERT = "convert it in the query; Iterable never changes a field's type"
_DECLARED = {"date": "date", "string": "text", "long": "integer", "double": "number", "boolean": "boolean"}


def about_fields(rules: Rules, samples: Sequence[Sample], types: Mapping[str, str] | None) -> Iterator[Finding]:
    """types: the project's, with the parents of what is nested; None where they are not known."""
    clashes = new = 0
    fields = [(kind, each) for kind in Kind for each in _fields_of(kind, rules)]
    declared = {(kind, each.name) for kind, each in fields if each.type not in (None, FieldType.JSON)}
    for found in _by_name(samples):
        kind, name = found[0].kind, found[0].name
        expected = types.get(name) if types is not None and kind is Kind.USER else None
        if expected is not None:
            misfits = [each for each in found if not fits(each.type, expected)]
            clashes += bool(misfits)
            yield from (_clash(each, expected, rules) for each in misfits[:1])
            yield from _odd_numbers(found, expected, rules) if not misfits else ()
        else:
            new += kind is Kind.USER and types is not None and found[0].type != "object"
            if (kind, name) not in declared:
                yield from _about_new_field(found, rules)
    yield from _near_duplicates(samples, types or {})
    if types is not None and not clashes:
        yield good(Area.FIELDS, f"no user field clashes with the project's types; {new} would be new")
    own = [column for column in rules.not_sent if find_own_field(column)]
    others = [column for column in rules.not_sent if column not in own]
    if others:
        text = f"not sent: {', '.join(others)}"
        yield note(Area.FIELDS, text, "add them to USER_FIELDS or EVENT_FIELDS if they should be")
    if own:
        yield note(Area.FIELDS, f"not sent, as Iterable keeps these fields itself: {', '.join(own)}")


def about_dropped(rules: Rules, dropped: Collection[tuple[Kind, str]]) -> Iterator[Finding]:
    """dropped: the fields that Iterable has dropped in earlier runs."""
    sent = {(kind, each.name) for kind in Kind for each in _fields_of(kind, rules)}
    for kind in Kind:
        names = sorted(name for each, name in dropped if each is kind and (each, name) in sent)
        if names:
            yield note(
                Area.FIELDS,
                f"Iterable dropped {', '.join(names)} of {kind.value}s in earlier runs",
                f"allow them in the project's settings, then run once with --full {kind.value}s --yes; or stop sending "
                "them",
            )


def _fields_of(kind: Kind, rules: Rules) -> tuple[FieldMap, ...]:
    return rules.user_fields if kind is Kind.USER else rules.event_fields


def _by_name(samples: Iterable[Sample]) -> list[list[Sample]]:
    by_name: defaultdict[tuple[Kind, str], list[Sample]] = defaultdict(list)
    for each in samples:
        by_name[each.kind, each.name].append(each)
    return list(by_name.values())


def _clash(sample: Sample, expected: str, rules: Rules) -> Finding:
    text = f"{sample.name} is {_a(expected)} in the project, and {_a(sample.type)} in row {sample.row}"
    if expected == "date" and sample.is_time:
        text += ", as its text is a time in a form that Iterable does not take for one"
        return bad(Area.FIELDS, text, _declare(sample, "date", rules), ExitCode.REJECTED)
    remedy = CONVERT
    if expected == "string":
        remedy = f"{_declare(sample, 'text', rules)}; Iterable never changes a field's type"
    return bad(Area.FIELDS, text, remedy, ExitCode.REJECTED)


def _a(type_: str) -> str:
    return f"{'an' if type_[0] in 'aeiou' else 'a'} {type_}"


def _declare(sample: Sample, type_: str, rules: Rules) -> str:
    """How to send it as another type; what is within a JSON column has none of its own."""
    if all((each.column, each.name) != (sample.column, sample.name) for each in _fields_of(sample.kind, rules)):
        return f"convert {sample.name} within {sample.column} in the query"
    setting = "USER_FIELDS" if sample.kind is Kind.USER else "EVENT_FIELDS"
    declared = f"declare its type in {setting}: {sample.column}:{sample.name}:{type_}"
    return f"{declared}, or convert it in the query" if type_ == "text" else declared


def _odd_numbers(found: Sequence[Sample], expected: str, rules: Rules) -> Iterator[Finding]:
    odd = next((each for each in found if {each.type, expected} == NUMBERS), None)
    if odd is not None:
        text = (
            f"{odd.name} is {_a(expected)} in the project, and {_a(odd.type)} in row {odd.row}; Iterable does not say "
            "whether it takes that"
        )
        yield note(Area.FIELDS, text, _declare(odd, _DECLARED[expected], rules))


def _about_new_field(found: Sequence[Sample], rules: Rules) -> Iterator[Finding]:
    is_one_field = found[0].kind is Kind.USER or rules.name_column is None  # events of each name have their own
    first = {each.type: each for each in reversed(found) if each.type != "array"}
    if len(first) > 1 and is_one_field:
        yield _mixed(found[0].name, rules, sorted(first.values(), key=lambda each: each.row))
    elif "date" in first and first["date"].source == "text":
        sample = first["date"]
        text = f"Iterable takes the text of {sample.name} for dates (row {sample.row}) and makes a date field of it"
        yield note(Area.FIELDS, text, f"if that is right, {_declare(sample, 'date', rules)}")
    elif any(each.is_time and each.type == "string" for each in found):
        sample = next(each for each in found if each.is_time and each.type == "string")
        text = (
            f"the text of {sample.name} is a time in a form that Iterable does not take for one (row {sample.row}), so "
            "it makes a text field of it"
        )
        yield note(Area.FIELDS, text, _declare(sample, "date", rules))


def _mixed(name: str, rules: Rules, samples: Sequence[Sample]) -> Finding:
    one, other = samples[:2]
    text = f"{name} is {_a(one.type)} in row {one.row}, and {_a(other.type)} in row {other.row}"
    if {each.type for each in samples} == NUMBERS:
        return note(Area.FIELDS, f"{text}; Iterable does not say whether it takes that", _declare(one, "number", rules))
    if not disagree(each.type for each in samples):  # dates and text
        text += "; the first value makes a date or a text field, and a date field refuses other text"
        return note(Area.FIELDS, text, f"make all of them dates, and {_declare(one, 'date', rules)}")
    text += "; Iterable takes the type of the first value and refuses others"
    return bad(Area.FIELDS, text, _declare(one, "text", rules), ExitCode.REJECTED)


def _near_duplicates(samples: Iterable[Sample], types: Mapping[str, str]) -> Iterator[Finding]:
    """Names that differ in case, spaces, underscores or hyphens only, from the project's or from each other."""
    alike = {folded(name): name for name in types}
    seen = set()
    for sample in samples:
        if sample.name in seen or (sample.kind is Kind.USER and sample.name in types):
            continue
        seen.add(sample.name)
        if sample.kind is Kind.USER and folded(sample.name) in alike:
            other = alike[folded(sample.name)]
            text = f"{sample.name} would be a new field beside {other}"
            yield note(Area.FIELDS, text, f"map it in USER_FIELDS, as {sample.column}:{other}")
    for kind in Kind:
        ours: defaultdict[str, set[str]] = defaultdict(set)
        for sample in samples:
            if sample.kind is kind:
                ours[folded(sample.name)].add(sample.name)
        for names in ours.values():
            if len(names) > 1:
                text = f"{' and '.join(sorted(names))} are two {kind.value} fields with nearly one name"
                yield note(Area.FIELDS, text, "send one of them, if they mean the same")
