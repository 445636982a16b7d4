"""`--check`: looks at everything that a run needs, and sends no user and no event.

In: settings. Out: `Finding`s, one line each with what to do. The types of the project's fields come from
`GET /api/users/getFields`, which only server-side keys may call.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from iterable.redaction import Redactor
from iterable_client import Failure, IterableClient
from pipeline import payloads
from pipeline.ending import CHECK_ADDRESS, CHECK_KEY, ExitCode
from pipeline.ledger import (
    LEDGER_NAME,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    Project,
    is_run_active,
    read_ledger,
)
from pipeline.log import Console
from pipeline.opening import make_client, settings_for
from pipeline.payloads import Rules
from pipeline.rules import ColumnsError, make_rules
from pipeline.settings import ROOT, Settings, SettingsError
from pipeline.source import Row, SourceError, open_query, read_query
from pipeline.values import InvalidRecord

SAMPLED_ROWS = 10_000


class Area(str, Enum):
    """What a finding is about."""

    SETTINGS = "settings"
    OUTPUT = "output folder"
    LEDGER = "ledger"
    SOURCE = "database"
    KEY = "key"
    ANSWER = "Iterable"
    CONNECTION = "connection"
    FIELDS = "fields"


CODES = {
    Area.SETTINGS: ExitCode.SETTINGS,
    Area.OUTPUT: ExitCode.NO_OUTPUT,
    Area.LEDGER: ExitCode.TEMPORARY,
    Area.SOURCE: ExitCode.NO_INPUT,
    Area.KEY: ExitCode.CREDENTIALS,
    Area.ANSWER: ExitCode.NOT_ITERABLE,
    Area.CONNECTION: ExitCode.TEMPORARY,
    Area.FIELDS: ExitCode.REJECTED,
}


class Mark(str, Enum):
    """How bad a finding is."""

    GOOD = "ok"
    NOTE = "note"  # worth knowing; a run would start
    BAD = "BAD"  # a run would not start, or some records would be refused


@dataclass(frozen=True)
class Finding:
    """One line: `[BAD]  ledger: ... -> remedy`."""

    mark: Mark
    area: Area
    text: str
    remedy: str = ""

    def line(self) -> str:
        arrow = f" -> {self.remedy}" if self.remedy else ""
        return f"[{self.mark.value:^4}] {self.area.value}: {self.text}{arrow}"


@dataclass(frozen=True)
class Sample:
    """A field as our rows have it: its type in Iterable's words, and a row of the CSV where it has that type."""

    name: str
    type: str
    row: int


def check_output(folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-"):
            free_mib = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize // 2**20
    except OSError as error:
        return Finding(
            Mark.BAD,
            Area.OUTPUT,
            f"{folder} can't be written ({error.strerror})",
            "create it or mend its permissions, or name another one with OUTPUT_DIR",
        )
    return Finding(Mark.GOOD, Area.OUTPUT, f"{folder} can be written, {free_mib:,} MiB are free")


def check_ledger(folder: Path, project: Project) -> Finding:
    try:
        with read_ledger(folder, project, now=time.time()) as ledger:
            entries = ledger.count_entries()
    except LedgerBusyError as problem:
        return Finding(Mark.BAD, Area.LEDGER, str(problem), "wait until that program has ended")
    except LedgerDamagedError as problem:
        return Finding(Mark.BAD, Area.LEDGER, str(problem), "bring it back from a backup, or let the next run go on")
    except LedgerError as problem:
        return Finding(Mark.BAD, Area.LEDGER, str(problem), "mend its permissions, or move it away")
    if is_run_active(folder):
        text = f"another run is active; it holds {folder / LEDGER_NAME}"
        return Finding(Mark.BAD, Area.LEDGER, text, "wait until that run has ended")
    return Finding(Mark.GOOD, Area.LEDGER, f"{entries:,} records are known to be in Iterable; no other run is active")


def check_source(settings: Settings, root: Path) -> tuple[list[Finding], list[Sample]]:
    """The database, the query and its first rows; and the user fields that they would send."""
    try:
        url = str(settings.database_url)
        since = datetime.fromtimestamp(0, timezone.utc)
        with open_query(url, read_query(settings.query_file, url), root=root, any_bytes=True, since=since) as query:
            rules = make_rules(query.columns, settings, time.time())
            good, bad, samples = _sample(islice(query.rows, SAMPLED_ROWS), rules)
    except ColumnsError as problem:
        return [Finding(Mark.BAD, Area.SOURCE, str(problem), problem.remedy)], []
    except SourceError as problem:
        return [Finding(Mark.BAD, Area.SOURCE, str(problem), "fix DATABASE_URL or the query")], []
    columns = ", ".join(query.columns)
    found = [Finding(Mark.GOOD, Area.SOURCE, f"the query runs; its columns are {columns}")]
    if not good and not bad:
        found.append(Finding(Mark.NOTE, Area.SOURCE, "the query finds no rows", "nothing would be sent"))
    if good:
        found.append(Finding(Mark.GOOD, Area.SOURCE, f"{good:,} of the first {good + len(bad):,} rows can be sent"))
    if bad:
        number, reason = bad[0]
        text = f"{len(bad):,} of the first {good + len(bad):,} rows can't be sent, such as row {number}: {reason}"
        found.append(Finding(Mark.BAD, Area.SOURCE, text, "mend the row, or leave it out in the query"))
    return found, samples


def _sample(rows: Iterable[Row], rules: Rules) -> tuple[int, list[tuple[int, str]], list[Sample]]:
    """How many rows can be sent, (number, problem) of those that can't, and each type that a user field has."""
    good = 0
    bad: list[tuple[int, str]] = []
    samples: dict[tuple[str, str], Sample] = {}
    for number, row in enumerate(rows, start=1):
        try:
            who = payloads.identity(row[rules.identity_column], rules)
            update = payloads.user_update(row, who, rules)
            payloads.event(row, who, rules)
        except InvalidRecord as problem:
            bad.append((number, str(problem)))
            continue
        good += 1
        for name, value in update["dataFields"].items():
            if value is not None:
                samples.setdefault((name, iterable_type(value)), Sample(name, iterable_type(value), number))
    return good, bad, list(samples.values())


# The forms that Iterable takes for a date; a text of one of these may have made a field a date field.
_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d:\d\d(\.\d{3})?( ?([+-]\d\d:?\d\d|Z))?)?")


def iterable_type(value: Any) -> str:
    """A JSON value -> the name that Iterable gives its type."""
    if isinstance(value, list):
        return iterable_type(value[0]) if value else "array"
    names = {bool: "boolean", int: "long", float: "double", dict: "object"}
    if type(value) in names:
        return names[type(value)]
    return "date" if _DATE.fullmatch(str(value)) else "string"


def check_iterable(client: IterableClient, settings: Settings, samples: list[Sample]) -> Iterator[Finding]:
    """That Iterable answers and takes the key, and that our fields fit those of the project."""
    if settings.use_jwt_auth:
        yield from _check_jwt_key(client)
        return
    ok, answer = client.get_user_fields()
    if not ok:
        yield _explain(answer)
        return
    fields = answer["fields"] if isinstance(answer["fields"], dict) else {}
    yield Finding(Mark.GOOD, Area.KEY, f"Iterable accepted the key; the project has {len(fields):,} user fields")
    yield from compare_fields(fields, samples)


def _check_jwt_key(client: IterableClient) -> Iterator[Finding]:
    """A client-side key may not ask for fields. An update that names nobody changes nothing, and is refused."""
    ok, answer = client.update_user(None)
    if ok or answer["failure"] in (Failure.REJECTED, Failure.UNAUTHORIZED):
        yield Finding(Mark.GOOD, Area.KEY, "Iterable answers and knows the key")
        yield Finding(
            Mark.NOTE,
            Area.KEY,
            "whether the JWT secret is right shows with the first user only, and a client-side key can't list fields",
        )
    else:
        yield _explain(answer)


def _explain(details: Mapping[str, Any]) -> Finding:
    failure, error = details["failure"], str(details["error"])
    if failure in (Failure.BAD_API_KEY, Failure.UNAUTHORIZED):
        return Finding(Mark.BAD, Area.KEY, error, CHECK_KEY)
    if failure in (Failure.UNREADABLE, Failure.REDIRECTED, Failure.BAD_CERTIFICATE):
        return Finding(Mark.BAD, Area.ANSWER, error, CHECK_ADDRESS)
    return Finding(Mark.BAD, Area.CONNECTION, error, "check the network, or try again later")


def compare_fields(fields: Mapping[str, Any], samples: Iterable[Sample]) -> Iterator[Finding]:
    """Our fields against the project's: types that clash, and names that differ in writing only."""
    alike = {_folded(name): name for name in fields}
    clashes = news = 0
    for sample in samples:
        expected = fields.get(sample.name)
        if expected is not None and not _fits(sample.type, str(expected)):
            clashes += 1
            text = f"{sample.name} is a {expected} in the project, and a {sample.type} in row {sample.row}"
            yield Finding(Mark.BAD, Area.FIELDS, text, "convert it in the query; Iterable never changes a field's type")
        elif expected is None:
            news += 1
            other = alike.get(_folded(sample.name))
            if other is not None:
                text = f"{sample.name} would be a new field beside {other}"
                yield Finding(Mark.NOTE, Area.FIELDS, text, f"map it in USER_FIELDS, as {sample.name}:{other}")
    if not clashes:
        yield Finding(Mark.GOOD, Area.FIELDS, f"no user field clashes with the project's types; {news} would be new")


def _folded(name: str) -> str:
    return re.sub(r"[_\s-]", "", name).casefold()


def _fits(found: str, expected: str) -> bool:
    """Whether a value of one type may go into a field of another. Unknown types are let pass."""
    if {found, expected} <= {"long", "double"} or found == "array":
        return True
    if expected not in ("string", "date", "long", "double", "boolean", "object"):
        return True
    return found == expected or (found, expected) == ("date", "string")


# The whole check ------------------------------------------------------------------------------------------------------


def run_check(options: argparse.Namespace) -> ExitCode:
    """Show each finding; the exit code is that of the first bad one, 0 only where a run would start and go through."""
    console = Console(quiet=options.quiet, verbose=options.verbose)
    code = ExitCode.SUCCESS
    for finding in _findings(options, console):
        if finding.mark is Mark.BAD:
            code = code or CODES[finding.area]
        if finding.mark is Mark.BAD and console.quiet:
            console.error(finding.line())
        else:
            console.say(finding.line())
    console.say("Ready to run." if code is ExitCode.SUCCESS else "Fix what is marked BAD, and check again.")
    return code


def _findings(options: argparse.Namespace, console: Console) -> Iterator[Finding]:
    with ExitStack() as stack:
        try:
            settings, _ = settings_for(options, stack)
            client = make_client(settings)
        except SettingsError as error:
            for problem in error.problems:
                yield Finding(Mark.BAD, Area.SETTINGS, problem)
            return
        console.redactor = Redactor(settings.secrets())
        yield Finding(Mark.GOOD, Area.SETTINGS, "all settings can be read")
        for warning in settings.warnings:
            yield Finding(Mark.NOTE, Area.SETTINGS, warning)
        yield check_output(settings.output_dir)
        yield check_ledger(settings.output_dir, settings.project())
        found, samples = check_source(settings, ROOT)
        yield from found
        yield from check_iterable(client, settings, samples)
