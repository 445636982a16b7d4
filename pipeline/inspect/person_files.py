"""`--explain WHO --files`: where one person stands in the files of OUTPUT_DIR.

Looked through are CSVs, rejected rows, results, previews and verification reports of all runs that are still there. The
log masks addresses, and the ledger has only hashes.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.report.results import (
    CSV_NAME,
    PREVIEW_NAME,
    REJECTED_NAME,
    RESULTS_NAME,
    VERIFY_REPORT_NAME,
    reason_of,
)

MAX_LINES = 1000  # of one file, that are named

IsMeant = Callable[[Any], bool]


@dataclass
class FoundIn:
    """A file that names the person. lines: 1 for the first, at most MAX_LINES; of results, failures. problem: why it
    could not be looked through."""

    name: str
    count: int = 0
    lines: list[int] = field(default_factory=list)
    problem: str = ""


def find_in_files(folder: Path, is_meant: IsMeant, *, by_user_id: bool) -> Iterator[FoundIn]:
    """The files that name the person, or can't be read, the oldest first of each kind."""
    for pattern, search in _SEARCHES.items():
        for path in sorted(each for each in folder.iterdir() if re.fullmatch(pattern, each.name)):
            if path.is_symlink() or not path.is_file():
                continue
            found = FoundIn(path.name)
            try:
                for line in search(path, is_meant, by_user_id):
                    found.count += 1
                    if found.count <= MAX_LINES:
                        found.lines.append(line)
            except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
                found.problem = reason_of(error)
            if found.count or found.problem:
                yield found


def _in_rows(path: Path, is_meant: IsMeant, by_user_id: bool) -> Iterator[int]:
    """An address may stand in any column; a short id is looked for only where ids are."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        head = next(lines, [])
        columns = ("person", "user_id", "id") if by_user_id else head
        places = [place for place, name in enumerate(head) if name in columns]
        for number, cells in enumerate(lines, start=2):
            if any(is_meant(cells[place].removeprefix("'")) for place in places if place < len(cells)):
                yield number


def _in_results(path: Path, is_meant: IsMeant, by_user_id: bool) -> Iterator[int]:
    failures = json.loads(path.read_text(encoding="utf-8"))["failures"]
    for number, failure in enumerate(failures, start=1):
        if is_meant(failure["user_id" if by_user_id else "email"]):
            yield number


def _in_preview(path: Path, is_meant: IsMeant, by_user_id: bool) -> Iterator[int]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if is_meant(json.loads(line)["payload"].get("userId" if by_user_id else "email")):
                yield number


def _pattern(name: str) -> str:
    return re.escape(name).replace(re.escape("{}"), r"\d{8}_\d{6}")


_SEARCHES: dict[str, Callable[[Path, IsMeant, bool], Iterator[int]]] = {
    _pattern(CSV_NAME): _in_rows,
    _pattern(REJECTED_NAME): _in_rows,
    _pattern(RESULTS_NAME): _in_results,
    _pattern(PREVIEW_NAME): _in_preview,
    _pattern(VERIFY_REPORT_NAME): _in_rows,
}
