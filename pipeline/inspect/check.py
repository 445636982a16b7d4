"""`--check`: looks at everything that a run needs, and at what the query's columns become; sends no user and no event.

In: settings. Out: `Finding`s, one line each with what to do, and the mapping. Its exit code is the one that a run would
end with, as far as that can be seen from the first rows. Locks and writes nothing, and works while a run is active.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from iterable.redaction import Redactor
from iterable_client import Failure, IterableClient
from pipeline.config import Settings, SettingsError
from pipeline.delivery import Breaker
from pipeline.inspect import mapping
from pipeline.inspect.findings import Area, Finding, Mark, about_dropped, about_fields, bad, good, note
from pipeline.inspect.first_rows import FirstRows
from pipeline.inspect.mapping import Mapped
from pipeline.inspect.session import print_json
from pipeline.ledger.ledger import (
    LEDGER_NAME,
    Ledger,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    open_ledger,
    read_ledger,
)
from pipeline.model.exits import ExitCode, RunError
from pipeline.model.failure_policy import CHECK_ADDRESS, CHECK_KEY, POLICIES
from pipeline.model.ownership import owner_hint
from pipeline.report import Console
from pipeline.report.retention import disk_space_warning
from pipeline.run.conclusion import refuse
from pipeline.run.heartbeat import takes_suffix
from pipeline.run.interrupt import Interrupt, Interrupted, catch_signals
from pipeline.run.journeys import journeys_in_words
from pipeline.run.opening import make_client, project_of, settings_for
from pipeline.run.since import Since
from pipeline.state import Place, find_ledger


@dataclass
class Report:
    """All that was found. looked_at: rows; None where the query could not be run. is_all: there are no other rows."""

    findings: list[Finding] = field(default_factory=list)
    mapping: Sequence[Mapped] = ()
    since: Since | None = None
    looked_at: int | None = None
    is_all: bool = True
    bad_rows: int = 0

    @property
    def code(self) -> ExitCode:
        """That of the first finding which keeps a run from sending; else 1 where records would be refused."""
        codes = [each.code for each in self.findings if each.code is not ExitCode.SUCCESS]
        return next((code for code in codes if code is not ExitCode.REJECTED), min(codes, default=ExitCode.SUCCESS))


def run_check(options: argparse.Namespace) -> ExitCode:
    """Show what is found, as it is found; or all of it as JSON."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    report = Report()
    try:
        with ExitStack() as stack:
            interrupt = stack.enter_context(catch_signals())
            for finding in _findings(options, console, interrupt, report, stack):
                report.findings.append(finding)
                if not options.json:
                    _show(console, finding)
    except Interrupted as problem:
        return refuse(problem, console)
    if options.json:
        return print_json(console, as_json(report, console.redactor), report.code)
    for line in mapping.as_lines(report.mapping):
        console.say(line)
    console.say(_last_line(report))
    return report.code


def _show(console: Console, finding: Finding) -> None:
    if finding.code is not ExitCode.SUCCESS and console.quiet:
        console.error(finding.line())
        return
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    for line in finding.lines() if is_terminal else [finding.line()]:
        console.say(line)


def _last_line(report: Report) -> str:
    ready = "Ready to run" if report.is_all else f"Ready to run, as far as the first {report.looked_at:,} rows show"
    if report.code is ExitCode.SUCCESS:
        return f"{ready}."
    if report.code is ExitCode.REJECTED and all(each.mark is not Mark.BAD for each in report.findings):
        return f"{ready}. Exit code 1, as some records can't be sent or would be refused."
    return f"Fix what is marked BAD, and check again. A run would end with exit code {report.code:d}."


def as_json(report: Report, redactor: Redactor) -> dict[str, Any]:
    since = report.since
    return {
        "exit_code": int(report.code),
        "findings": [
            {
                "mark": each.mark.value,
                "area": each.area.value,
                "text": redactor.line(each.text),
                "remedy": redactor.line(each.remedy),
                "code": int(each.code),
            }
            for each in report.findings
        ],
        "rows": None if report.looked_at is None else {"looked_at": report.looked_at, "bad": report.bad_rows},
        "since": {"from": since.shown(), "full_read": since.is_full, "why": since.why} if since else None,
        "mapping": mapping.as_json(report.mapping),
    }


def _findings(
    options: argparse.Namespace, console: Console, interrupt: Interrupt, report: Report, stack: ExitStack
) -> Iterator[Finding]:
    try:
        settings, _ = settings_for(options, stack)
        client = make_client(settings, Breaker())
    except SettingsError as error:
        for problem in error.problems:
            yield bad(Area.SETTINGS, problem, "", ExitCode.SETTINGS)
        return
    console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
    yield good(Area.SETTINGS, "all settings can be read")
    yield from (note(Area.SETTINGS, warning) for warning in settings.warnings)
    if settings.heartbeat_url and not takes_suffix(settings.heartbeat_url):
        yield note(
            Area.SETTINGS,
            "the query of HEARTBEAT_URL says how things are, so it is called after successes only",
            "let the monitor alert when no call comes",
        )
    yield from check_output(settings)
    checked = check_ledger(settings, options, stack)
    yield from checked.findings
    rows = FirstRows(settings, options, checked.ledger, interrupt, client)
    yield from rows.findings()
    report.since, report.looked_at, report.bad_rows = rows.since, rows.looked_at, rows.bad_rows
    report.is_all = rows.is_all
    types: dict[str, str] | None = None
    answers = True
    for found in check_iterable(client, settings):
        if isinstance(found, Finding):
            answers = answers and found.mark is not Mark.BAD
            yield found
        else:
            types = mapping.with_parents(found)
    if answers:
        sentences = journeys_in_words(client, rows.pending_events, is_jwt=settings.use_jwt_auth)
        yield from (note(Area.JOURNEYS, sentence) for sentence in sentences)
    if rows.rules is not None:
        yield from rows.event_columns.findings(rows.rules)
        yield from about_fields(rows.rules, rows.samples, types)
        yield from about_dropped(rows.rules, checked.ledger.dropped_fields.all())
        report.mapping = mapping.make_mapping(rows.rules, rows.samples, types)


# The output folder and the ledger -------------------------------------------------------------------------------------


def check_output(settings: Settings) -> Iterator[Finding]:
    folder = settings.output_dir
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-"):
            free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        hint = owner_hint(folder / "a new file") if isinstance(error, PermissionError) else "."
        yield bad(
            Area.OUTPUT,
            f"{folder} can't be written ({error.strerror}){hint.removesuffix('.')}",
            "create it or fix its permissions, or name another one with OUTPUT_DIR",
            ExitCode.NO_OUTPUT,
        )
        return
    yield good(Area.OUTPUT, f"{folder} can be written, {free_bytes // 2**20:,} MiB are free")
    metrics = settings.metrics_file
    if metrics is not None and not os.access(metrics.parent, os.W_OK):
        yield note(
            Area.OUTPUT,
            f"METRICS_FILE can't be written: {metrics.parent} is not a folder that this user may write to",
            "create the folder, or give it to the user of the job",
        )
    crowded = disk_space_warning(folder, free_bytes) if settings.keep_days == 0 else None
    if crowded is not None:
        yield note(Area.OUTPUT, crowded)


@dataclass(frozen=True)
class CheckedLedger:
    """ledger: an empty one where there is none that can be read; its `damage` says why."""

    ledger: Ledger
    findings: Sequence[Finding]


def check_ledger(settings: Settings, options: argparse.Namespace, stack: ExitStack) -> CheckedLedger:
    folder, project, now, damage = settings.output_dir, project_of(settings), time.time(), ""
    if not options.sandbox:
        try:
            place = stack.enter_context(find_ledger(folder, settings.state_url))
            ledger = stack.enter_context(read_ledger(place.folder, project, now=now))
            return CheckedLedger(ledger, list(_about_ledger(ledger, place, settings)))
        except LedgerDamagedError as problem:
            damage = problem.damage
            finding = _about_damage(damage, is_overridden=options.yes)
        except LedgerError as problem:
            finding = bad(Area.LEDGER, str(problem), _remedy(problem), problem.code)
        except LedgerBusyError as problem:
            finding = bad(Area.LEDGER, str(problem), "wait until that program has ended", problem.code)
        except RunError as problem:  # of the store
            finding = bad(Area.LEDGER, str(problem), "see docs/state.md", problem.code)
        except sqlite3.Error as problem:
            text = f"the ledger {folder / LEDGER_NAME} can't be read ({problem})"
            finding = bad(Area.LEDGER, text, "bring it back from a backup", ExitCode.NO_OUTPUT)
        damage = damage or finding.text
    else:
        finding = good(Area.LEDGER, "a sandbox run keeps none")
    ledger = stack.enter_context(open_ledger(folder, project, now=now, lasting=False, damage=damage))
    return CheckedLedger(ledger, [finding])


def _remedy(problem: LedgerError) -> str:
    """What its own sentence does not say."""
    return "let the user of the job read and write it" if str(problem).endswith(").") else ""


def _about_damage(damage: str, *, is_overridden: bool) -> Finding:
    if is_overridden:
        return note(Area.LEDGER, damage, "with --yes, a run sets it aside and sends everything")
    ways_on = (
        "Put it back from a backup.",
        "Run with --baseline --yes, which records everything as accepted, and sets the damaged file aside.",
        "Run with --yes, which sends everything, and sets the damaged file aside.",
    )
    return Finding(Mark.BAD, Area.LEDGER, damage, ways_on, ExitCode.BRAKE)


def _about_ledger(ledger: Ledger, place: Place, settings: Settings) -> Iterator[Finding]:
    if place.holder:
        yield bad(Area.LEDGER, place.holder, "wait until that run has ended", ExitCode.TEMPORARY)
    else:
        where = f", by the ledger at {place.shown}" if settings.state_url else ""
        known = f"{ledger.count_known():,} records are known to be in Iterable{where}"
        yield good(Area.LEDGER, f"{known}; no other run is active")
    if ledger.note:
        yield note(Area.LEDGER, ledger.note)


# Iterable -------------------------------------------------------------------------------------------------------------


def check_iterable(client: IterableClient, settings: Settings) -> Iterator[Finding | Mapping[str, Any]]:
    """Whether Iterable accepts the key; and, where the key may read them, the types of the project's fields."""
    if settings.use_jwt_auth:
        yield from _check_jwt_key(client)
        return
    ok, answer = client.get_user_fields()
    if not ok:
        yield _explain(answer)
        return
    fields = answer["fields"] if isinstance(answer.get("fields"), dict) else {}
    yield good(Area.KEY, f"Iterable accepted the key; the project has {len(fields):,} user fields")
    yield fields
    yield from _check_writing(client)


def _check_jwt_key(client: IterableClient) -> Iterable[Finding]:
    """A client-side key may not ask for fields. An update that names nobody changes nothing, and is refused."""
    ok, answer = client.update_user(None)
    if not (ok or answer["failure"] in (Failure.REJECTED, Failure.UNAUTHORIZED)):
        return [_explain(answer)]
    text = "a client-side key can't list fields, and only the first user shows whether the JWT secret is right"
    return [good(Area.KEY, "Iterable answers and knows the key"), note(Area.KEY, text)]


def _check_writing(client: IterableClient) -> Iterator[Finding]:
    """Whether the key may write: an update that names nobody changes nothing, and is refused for that."""
    ok, answer = client.update_user(None)
    if ok or answer["failure"] is Failure.REJECTED:
        return
    found = _explain(answer)
    if found.area is Area.KEY:
        yield bad(Area.KEY, f"the key may read, and not write: {found.text}", found.remedy, found.code)
    else:
        yield note(Area.KEY, f"whether the key may write is not known: {found.text}", found.remedy)


def _explain(details: Mapping[str, Any]) -> Finding:
    failure, error = details["failure"], str(details["error"])
    code = POLICIES[failure].code
    if code is ExitCode.CREDENTIALS:
        return bad(Area.KEY, error, CHECK_KEY, code)
    if code is ExitCode.NOT_ITERABLE:
        return bad(Area.ANSWER, error, CHECK_ADDRESS, code)
    return bad(Area.CONNECTION, error, "check the network, or try again later", code)
