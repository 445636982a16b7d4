"""The files of OUTPUT_DIR that name one person: where, for `--explain WHO --files`; and without that person, for
`--forget WHO`.

These are CSVs, rejected rows, results, previews and verification reports of all runs that are still there. The log
masks addresses, and the ledger has only hashes. A row names a person where one of its cells is an address that the
ledger knows as theirs, or the one that was asked for; or where it says who the person is, whatever the address.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from iterable.export import unguarded
from pipeline.config import Settings
from pipeline.ledger.ledger import Ledger, PersonInLedger
from pipeline.model.text import text_of
from pipeline.report.results import (
    CSV_NAME,
    PREVIEW_NAME,
    REJECTED_NAME,
    RESULTS_NAME,
    VERIFY_REPORT_NAME,
    reason_of,
)
from pipeline.transform.identity import guessed_person, identity_or_none, is_meant

MAX_LINES = 1000  # of one file, that are named
MAX_ROW_CHARS = 100_000_000
MAX_NAME_CHARS = 1_000  # nobody has a longer address, person or id
REMEMBERED_TEXTS = 10_000
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error)
LINK = "it is a symbolic link, which is not followed"


@dataclass(frozen=True)
class IdentityColumn:
    """By which kind of value people are told apart."""

    by_user_id: bool

    @property
    def identity_column(self) -> str:
        return "user_id" if self.by_user_id else "email"


@dataclass(frozen=True)
class Wanted:
    """Whom files may name. ledger: by what the ledger knows them. person_column: which column of a file with these
    columns says who people are, whatever the address; whether that is guessed; None: no column. other_addresses: those
    in rows that say so, while one looks; the ledger does not know them. persons: who the rows at the person's address
    say it is, and whether that is guessed, while one looks. is_known_by_rows: by them alone does the ledger know the
    person, under another address."""

    by_user_id: bool
    identity: str | None
    ledger: PersonInLedger | None
    is_meant: Callable[[Any], bool]
    is_person: Callable[[str, bool], bool]
    stands_for: Callable[[str, bool], str]
    person_column: Callable[[list[str]], tuple[str, bool] | None]
    query_file: str
    other_addresses: set[str] = field(default_factory=set)
    persons: set[tuple[str, bool]] = field(default_factory=set)
    is_known_by_rows: bool = False


def look_for(ledger: Ledger, settings: Settings, who: str) -> tuple[Wanted, list[FoundIn]]:
    """Whom somebody has typed, and the files that name this person. Where the ledger does not say who is at the
    address, as with one that EMAIL_CHANGES=hold keeps back, the rows do."""
    wanted = _whom(ledger, settings, who)
    found = list(find_in_files(settings.output_dir, wanted))
    if wanted.ledger is None or wanted.ledger.persons or len(wanted.persons) != 1:
        return wanted, found
    ((text, is_guessed),) = wanted.persons
    (person,) = ledger.hasher.persons([wanted.stands_for(text, is_guessed)])
    if person is None:
        return wanted, found
    known = ledger.accepted.people.users_of_persons([person]).get(person, [])
    if len(known) > 1 or (is_guessed and not known):  # of several, none says anything
        return wanted, found
    wanted = replace(_whom(ledger, settings, who, person), is_known_by_rows=bool(known))
    return wanted, list(find_in_files(settings.output_dir, wanted))


def _whom(ledger: Ledger, settings: Settings, who: str, person: bytes | None = None) -> Wanted:
    rules = IdentityColumn(settings.iterable_identifier == "userId")
    identity = identity_or_none(who, rules)
    known = ledger.forgotten.find(identity, person) if identity is not None else None
    as_typed = is_meant(who, rules)
    addresses = known.addresses if known is not None else frozenset()
    persons = known.persons if known is not None else frozenset()
    query = ledger.queries.number(str(settings.query_file))

    @lru_cache(maxsize=REMEMBERED_TEXTS)
    def is_theirs(value: str) -> bool:
        found = identity_or_none(value, rules)
        return found is not None and ledger.user_key(found) in addresses

    def means(value: Any) -> bool:
        if value is None or known is None:
            return as_typed(value)
        text = _as_id(text_of(value)) if rules.by_user_id else text_of(value)
        return (rules.by_user_id or "@" in text) and len(text) <= MAX_NAME_CHARS and is_theirs(text)

    def stands_for(text: str, is_guessed: bool) -> str:
        return guessed_person(_as_id(text), query) if is_guessed else _as_id(text)

    @lru_cache(maxsize=REMEMBERED_TEXTS)
    def is_person(text: str, is_guessed: bool) -> bool:
        named = stands_for(text, is_guessed)
        return bool(persons) and len(named) <= MAX_NAME_CHARS and ledger.hasher.persons([named])[0] in persons

    named = settings.query_file.name
    return Wanted(rules.by_user_id, identity, known, means, is_person, stands_for, _person_column_of(settings), named)


def _as_id(text: str) -> str:
    """A number as a CSV has it -> as it is an id: 17.0 -> 17."""
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def _person_column_of(settings: Settings) -> Callable[[list[str]], tuple[str, bool] | None]:
    named = settings.person_column

    def person_column(columns: list[str]) -> tuple[str, bool] | None:
        if named == "-" or settings.iterable_identifier == "userId":
            return None
        for name in ("user_id", "id") if named is None else (named,):
            if name in columns:
                return name, named is None and name == "id"
        return None

    return person_column


# Where ----------------------------------------------------------------------------------------------------------------


@dataclass
class FoundIn:
    """A file that names the person. lines: 1 for the first, at most MAX_LINES; of results, failures.
    count: also of what else in results is about the person. problem: why it
    could not be looked through."""

    name: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    problem: str = ""


def find_in_files(folder: Path, wanted: Wanted) -> Iterator[FoundIn]:
    """The files that name the person, or can't be read, the oldest first of each kind."""
    for kind in KINDS:
        for path in sorted(each for each in folder.iterdir() if re.fullmatch(kind.pattern, each.name)):
            found = FoundIn(path.name)
            if path.is_symlink():
                found.problem = LINK
            elif path.is_file():
                _look_through(path, kind, wanted, found)
            if found.count or found.problem:
                yield found


def _look_through(path: Path, kind: FileKind, wanted: Wanted, found: FoundIn) -> None:
    try:
        with open_text(path) as file:
            for line in kind.find(file, path, wanted):
                found.count += 1
                if line and found.count <= MAX_LINES:
                    found.lines.append(line)
    except UNREADABLE as error:
        found.problem = reason_of(error)


def open_text(path: Path) -> TextIO:
    """As it is, also what is not UTF-8 and however its lines end."""
    return path.open(encoding="utf-8", errors="surrogateescape", newline="")


# Rows -----------------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a file, and those that were taken since one looked last: of a CSV, the text of one row."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._taken: list[str] = []
        self._size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        self._taken.append(line)
        self._size += len(line)
        if self._size > MAX_ROW_CHARS:  # a quote that nothing closes would take in all the rest
            raise csv.Error(f"a row has more than {MAX_ROW_CHARS:,} characters")
        return line

    def taken(self) -> str:
        text = "".join(self._taken)
        self._taken.clear()
        self._size = 0
        return text


def _rows(file: TextIO, path: Path, wanted: Wanted) -> Iterator[tuple[str, bool]]:
    """The text of each row, and whether it names the person; the head first. An address may stand in any column; an
    id, or what is no address, is looked for only where it says who the row is about."""
    csv.field_size_limit(sys.maxsize)
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    head = [unguarded(name.removeprefix("\ufeff")) for name in next(reader, [])]
    yield lines.taken(), False
    is_anywhere = not wanted.by_user_id and wanted.identity is not None
    place = None if is_anywhere else _place_of_identity(head, path, wanted)
    person = wanted.person_column(head)
    if person is not None and person[1] and _query_file_of(path) != wanted.query_file:
        person = None  # an `id` of another query
    person_place = head.index(person[0]) if person is not None else None
    email_place = head.index("email") if "email" in head else None
    for cells in reader:
        if is_anywhere:
            texts = [cell for cell in cells if "@" in cell]
        else:
            texts = cells[place : place + 1] if place is not None else []
        named = bool(texts) and any(map(wanted.is_meant, map(unguarded, texts)))
        if person is not None and person_place is not None and person_place < len(cells):
            who = unguarded(cells[person_place]).strip()
            has_address = email_place is not None and email_place < len(cells)
            address = unguarded(cells[email_place]) if has_address and email_place is not None else ""
            if not named and wanted.is_person(who, person[1]):
                named = True
                wanted.other_addresses.add(address.strip().lower())
            elif named and who and wanted.is_meant(address):
                wanted.persons.add((who, person[1]))
        yield lines.taken(), named
    rest = lines.taken()
    if rest:
        yield rest, False


def _place_of_identity(head: list[str], path: Path, wanted: Wanted) -> int | None:
    names = ("user_id", "id") if wanted.by_user_id else ("email",)
    if re.fullmatch(_pattern(VERIFY_REPORT_NAME), path.name):
        names = ("person",)
    column = next((name for name in names if name in head), None)
    return None if column is None else head.index(column)


def _query_file_of(path: Path) -> str | None:
    """The query file of the run that has written a CSV; None where its results are gone."""
    stamp = path.stem[-len("YYYYMMDD_HHMMSS") :]
    try:
        results = json.loads((path.parent / RESULTS_NAME.format(stamp)).read_text(encoding="utf-8"))
        return str(results["query_file"])
    except UNREADABLE:
        return None


def _payloads(file: TextIO, path: Path, wanted: Wanted) -> Iterator[tuple[str, bool]]:
    """The lines of a preview, and whether they name the person."""
    for line in file:
        payload = json.loads(line)["payload"]
        if wanted.by_user_id or wanted.identity is None:
            yield line, wanted.is_meant(payload.get("userId" if wanted.by_user_id else "email"))
        else:
            person = str(payload.get("userId") or "")
            yield line, any(map(wanted.is_meant, _texts(payload))) or bool(person and wanted.is_person(person, False))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


# Results --------------------------------------------------------------------------------------------------------------


def _failures(file: TextIO, path: Path, wanted: Wanted) -> Iterator[int]:
    """The numbers of the failures that name the person; 0 for each changed address that does."""
    results = json.load(file)
    for number, failure in enumerate(results["failures"], start=1):
        if _names(failure, wanted):
            yield number
    for change in results.get("email_changes", []):
        if _is_change_of(change, results, wanted):
            yield 0


def _results_without(file: TextIO, path: Path, wanted: Wanted) -> Iterator[str]:
    """`failures_total` and the counts say what they said; `forgotten_entries`, how many entries have gone since."""
    results = json.load(file)
    left = [each for each in results["failures"] if not _names(each, wanted)]
    changes = [each for each in results.get("email_changes", []) if not _is_change_of(each, results, wanted)]
    gone = len(results["failures"]) - len(left) + len(results.get("email_changes", [])) - len(changes)
    results["failures"] = left
    if "email_changes" in results:
        results["email_changes"] = changes
    results["forgotten_entries"] = results.get("forgotten_entries", 0) + gone
    yield json.dumps(results, ensure_ascii=False, indent=2) + "\n"


def _is_change_of(change: dict[str, Any], results: dict[str, Any], wanted: Wanted) -> bool:
    is_guessed = (False, True) if results.get("query_file") == wanted.query_file else (False,)
    return any(wanted.is_person(str(change["person"]), guessed) for guessed in is_guessed)


def _names(failure: dict[str, Any], wanted: Wanted) -> bool:
    return wanted.is_meant(failure["user_id" if wanted.by_user_id else "email"])


# Kinds of files -------------------------------------------------------------------------------------------------------

_Units = Callable[[TextIO, Path, Wanted], Iterator[tuple[str, bool]]]


class FileKind(NamedTuple):
    """pattern: of the names. find: the lines in which what names the person begins. without: the text of the rest."""

    pattern: str
    find: Callable[[TextIO, Path, Wanted], Iterator[int]]
    without: Callable[[TextIO, Path, Wanted], Iterator[str]]


def _pattern(name: str) -> str:
    return re.escape(name).replace(re.escape("{}"), r"\d{8}_\d{6}")


def _kind(name: str, units: _Units) -> FileKind:
    def find(file: TextIO, path: Path, wanted: Wanted) -> Iterator[int]:
        line = 1
        for text, named in units(file, path, wanted):
            if named:
                yield line
            line += text.count("\n")  # a row may have several

    def without(file: TextIO, path: Path, wanted: Wanted) -> Iterator[str]:
        return (text for text, named in units(file, path, wanted) if not named)

    return FileKind(_pattern(name), find, without)


KINDS = (
    _kind(CSV_NAME, _rows),
    _kind(REJECTED_NAME, _rows),
    FileKind(_pattern(RESULTS_NAME), _failures, _results_without),
    _kind(PREVIEW_NAME, _payloads),
    _kind(VERIFY_REPORT_NAME, _rows),
)


def kind_of(name: str) -> FileKind:
    return next(kind for kind in KINDS if re.fullmatch(kind.pattern, name))
