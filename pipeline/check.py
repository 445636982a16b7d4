"""`--check`: looks at everything that a run needs, and at what the query's columns become; sends no user and no event.

In: settings. Out: `Finding`s, one line each with what to do, and the mapping. Its exit code is the one that a run would
end with, as far as that can be seen from the first rows. Locks and writes nothing, and works while a run is active.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from iterable.redaction import Redactor
from iterable_client import Failure, IterableClient
from pipeline import mapping
from pipeline.account import refuse
from pipeline.breaker import Breaker
from pipeline.ending import CHECK_ADDRESS, CHECK_KEY, FAILURES, ExitCode, UsageError
from pipeline.failures import note_refusals
from pipeline.findings import Area, Finding, about_dropped, about_fields, bad, good, note
from pipeline.forgotten import ForgottenListError, read_forgotten
from pipeline.interrupt import Interrupt, Interrupted, catch_signals
from pipeline.ledger import (
    LEDGER_NAME,
    Ledger,
    LedgerBusyError,
    LedgerDamagedError,
    LedgerError,
    is_run_active,
    open_ledger,
    read_ledger,
)
from pipeline.log import Console
from pipeline.look import print_json
from pipeline.mapping import Mapped, Sample, Sampler
from pipeline.opening import about_new_key, make_client, settings_for
from pipeline.payloads import Rules
from pipeline.plan import Planner
from pipeline.records import Kind, Outcome, counted
from pipeline.retention import crowding
from pipeline.rules import ColumnsError, make_rules
from pipeline.settings import ROOT, Settings, SettingsError
from pipeline.since import Since
from pipeline.source import Query, SourceBusyError, SourceError, open_query, read_query, sqlite_blocks_writers
from pipeline.stage import Stage, open_stage
from pipeline.steps import choose_since, look_at_brake

SAMPLED_ROWS = 10_000
SHOWN_BAD_ROWS = 3


@dataclass
class Report:
    """All that was found. looked_at: rows; None where the query could not be run."""

    findings: list[Finding] = field(default_factory=list)
    mapping: Sequence[Mapped] = ()
    since: Since | None = None
    looked_at: int | None = None
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
                    _tell(console, finding)
    except Interrupted as problem:
        return refuse(problem, console)
    if options.json:
        return print_json(console, as_json(report, console.redactor), report.code)
    for line in mapping.as_lines(report.mapping):
        console.say(line)
    console.say(_last_line(report))
    return report.code


def _tell(console: Console, finding: Finding) -> None:
    if finding.code is not ExitCode.SUCCESS and console.quiet:
        console.error(finding.line())
        return
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    for line in finding.lines() if is_terminal else [finding.line()]:
        console.say(line)


def _last_line(report: Report) -> str:
    if report.code is ExitCode.SUCCESS:
        return "Ready to run."
    if report.code is ExitCode.REJECTED:
        return "Ready to run. It would end with exit code 1, as some records can't be sent or would be refused."
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
    console.redactor = Redactor(settings.secrets())
    yield good(Area.SETTINGS, "all settings can be read")
    yield from (note(Area.SETTINGS, warning) for warning in settings.warnings)
    yield from look_at_output(settings)
    looked = look_at_ledger(settings, options, stack)
    yield from looked.findings
    source = _Source(settings, options, looked.ledger, interrupt, report)
    yield from source.look()
    types: dict[str, str] | None = None
    for found in look_at_iterable(client, settings):
        if isinstance(found, Finding):
            yield found
        else:
            types = mapping.with_parents(found)
    if source.rules is not None:
        yield from about_fields(source.rules, source.samples, types)
        yield from about_dropped(source.rules, looked.ledger.dropped_fields())
        report.mapping = mapping.make_mapping(source.rules, source.samples, types)


# The output folder and the ledger -------------------------------------------------------------------------------------


def look_at_output(settings: Settings) -> Iterator[Finding]:
    folder = settings.output_dir
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-"):
            free_bytes = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    except OSError as error:
        yield bad(
            Area.OUTPUT,
            f"{folder} can't be written ({error.strerror})",
            "create it or fix its permissions, or name another one with OUTPUT_DIR",
            ExitCode.NO_OUTPUT,
        )
        return
    yield good(Area.OUTPUT, f"{folder} can be written, {free_bytes // 2**20:,} MiB are free")
    crowded = crowding(folder, free_bytes) if settings.keep_days == 0 else None
    if crowded is not None:
        yield note(Area.OUTPUT, crowded)


@dataclass(frozen=True)
class LookedAtLedger:
    """ledger: an empty one where there is none that can be read."""

    ledger: Ledger
    findings: Sequence[Finding]


def look_at_ledger(settings: Settings, options: argparse.Namespace, stack: ExitStack) -> LookedAtLedger:
    folder, project, now = settings.output_dir, settings.project(), time.time()
    if not options.sandbox:
        try:
            ledger = stack.enter_context(read_ledger(folder, project, now=now))
            return LookedAtLedger(ledger, list(_about_ledger(ledger, settings, options)))
        except LedgerError as problem:
            finding = bad(Area.LEDGER, str(problem), _ledger_remedy(problem), problem.code)
        except LedgerBusyError as problem:
            finding = bad(Area.LEDGER, str(problem), "wait until that program has ended", problem.code)
        except sqlite3.Error as problem:
            text = f"the ledger {folder / LEDGER_NAME} can't be read ({problem})"
            finding = bad(Area.LEDGER, text, "bring it back from a backup, or move it away", ExitCode.NO_OUTPUT)
    else:
        finding = good(Area.LEDGER, "a sandbox run keeps none")
    ledger = stack.enter_context(open_ledger(folder, project, now=now, lasting=False))
    return LookedAtLedger(ledger, [finding])


def _ledger_remedy(problem: LedgerError) -> str:
    if isinstance(problem, LedgerDamagedError):
        return "bring it back from a backup, or let the next run go on"
    return "fix its permissions, or move it away"


def _about_ledger(ledger: Ledger, settings: Settings, options: argparse.Namespace) -> Iterator[Finding]:
    if is_run_active(settings.output_dir):
        text = f"another run is active; it holds {settings.output_dir / LEDGER_NAME}"
        yield bad(Area.LEDGER, text, "wait until that run has ended", ExitCode.TEMPORARY)
    else:
        yield good(Area.LEDGER, f"{ledger.count_known():,} records are known to be in Iterable; no other run is active")
    for warning in (ledger.note, about_new_key(settings, ledger, options)):
        if warning:
            yield note(Area.LEDGER, warning)


# The database and its rows --------------------------------------------------------------------------------------------


class _Source:
    """The query's first rows, planned as a run would plan them. rules: None where the query can't be run."""

    def __init__(
        self, settings: Settings, options: argparse.Namespace, ledger: Ledger, interrupt: Interrupt, report: Report
    ) -> None:
        self.rules: Rules | None = None
        self.samples: Sequence[Sample] = ()
        self._settings = settings
        self._options = options
        self._ledger = ledger
        self._interrupt = interrupt
        self._report = report
        self._is_all = False  # whether all rows were looked at
        self._columns: Sequence[str] = ()

    def look(self) -> Iterator[Finding]:
        try:
            with open_stage(_folder_for_stage(self._settings.output_dir)) as stage:
                yield from self._look(stage)
        except ColumnsError as problem:
            remedy = "" if problem.remedy in str(problem) else problem.remedy
            yield bad(Area.SOURCE, str(problem), remedy, problem.code)
        except UsageError as problem:
            yield bad(Area.SETTINGS, str(problem), "leave --since out, or add :since to the query", problem.code)
        except SourceError as problem:
            if (asked := self._interrupt.ending()) is not None:  # which is why the query ended
                raise Interrupted(asked) from problem
            is_busy = isinstance(problem, SourceBusyError)
            yield bad(
                Area.SOURCE,
                str(problem),
                "try again later" if is_busy else "fix DATABASE_URL or the query",
                problem.code,
            )
        except (LedgerError, sqlite3.Error) as problem:
            text = f"there is no room for the rows, which are kept in OUTPUT_DIR meanwhile ({problem})"
            yield bad(Area.OUTPUT, text, "make room, or name another folder with OUTPUT_DIR", ExitCode.NO_OUTPUT)

    def _look(self, stage: Stage) -> Iterator[Finding]:
        settings, path = self._settings, str(self._settings.query_file)
        query = read_query(settings.query_file, str(settings.database_url))
        since = choose_since(self._options, settings, self._ledger, query, datetime.now(timezone.utc))
        self._report.since = since
        rules = self._read(query, since.start if since else None, stage)
        yield good(Area.SOURCE, f"the query runs; its columns are {', '.join(self._columns)}")
        if since is not None:
            yield good(Area.SOURCE, f"the next run would read from {since.shown()} UTC: {since.why}")
        if sqlite_blocks_writers(str(settings.database_url), ROOT):
            text = "while a run reads this SQLite file, other programs can't write to it"
            yield note(Area.SOURCE, text, "PRAGMA journal_mode=WAL, run once on it, changes that")
        if not self._report.looked_at:
            yield note(Area.ROWS, "the query finds no rows", "nothing would be sent")
            if since is not None and not since.is_full:  # the mapping shows older ones
                self._read(query, settings.since_start, None)
            return
        note_refusals(self._ledger, stage, path, keep=False)
        yield from self._about_rows(stage)
        yield from self._about_brake(rules, stage)

    def _read(self, query: Query, start: datetime | None, stage: Stage | None) -> Rules:
        """Sample the first rows, and plan them where there is a stage for that."""
        with open_query(
            str(self._settings.database_url),
            query,
            root=ROOT,
            should_stop=lambda: self._interrupt.ending() is not None,
            any_bytes=True,
            since=start,
        ) as result:
            rules = make_rules(result.columns, self._settings, time.time())
            self.rules, self._columns, sampler = rules, result.columns, Sampler(rules)
            planner = Planner(self._ledger, stage, rules, result.columns) if stage is not None else None
            read = 0
            for block in result.blocks:
                rows = block[: SAMPLED_ROWS - read]
                if not rows:
                    break
                by_column = list(zip(*rows, strict=True))
                sampler.look(dict(zip(result.columns, by_column, strict=True)), len(rows), read + 1)
                if planner is not None:
                    planner.plan(by_column)
                read += len(rows)
            else:
                self._is_all = True
        self.samples = sampler.samples
        if planner is not None and stage is not None:
            self._report.looked_at = read
            planner.finish()
            known = None if self._options.full else self._ledger.known
            stage.finish_staging(known, self._ledger.troubled, ids_are_given=rules.id_column is not None)
        return rules

    @property
    def _rows_told(self) -> str:
        read = self._report.looked_at or 0
        return counted(read, "row") if self._is_all else f"the first {read:,} rows"

    def _about_rows(self, stage: Stage) -> Iterator[Finding]:
        users, events = (stage.count_pending(kind) for kind in Kind)
        unchanged = sum(counts[Outcome.UNCHANGED] for counts in stage.count_outcomes().values())
        told = f"{counted(users, 'user')} and {counted(events, 'event')} to send, {unchanged:,} unchanged"
        yield good(Area.ROWS, f"in {self._rows_told}: {told}")
        reasons: dict[str, int] = {}  # each with the first row that has it
        rows = set()
        for each in stage.undelivered(with_not_attempted=False):
            reasons.setdefault(each.message.rstrip("."), each.row)
            rows.add(each.row)
        if rows:
            self._report.bad_rows = len(rows)
            yield self._about_bad_rows(len(rows), reasons, is_any_new=_is_any_new(stage))

    def _about_bad_rows(self, count: int, reasons: Mapping[str, int], *, is_any_new: bool) -> Finding:
        read = self._report.looked_at or 1
        shown = list(reasons.items())[:SHOWN_BAD_ROWS]
        examples = "; ".join(f"row {row}: {reason}" for reason, row in shown)
        more = f"; and {len(reasons) - len(shown)} more reasons" if len(reasons) > len(shown) else ""
        text = f"{count:,} of {self._rows_told} can't be sent ({count / read:.2%}): {examples}{more}"
        remedy = "fix them in the source, or leave them out of the query; a run sends all others"
        if self._settings.exit_on_rejected == "new" and not is_any_new:
            return note(Area.ROWS, f"{text}; all are known from earlier runs (EXIT_ON_REJECTED=new)", remedy)
        return note(Area.ROWS, text, remedy, ExitCode.REJECTED)

    def _about_brake(self, rules: Rules, stage: Stage) -> Iterator[Finding]:
        if self._options.yes or self._options.sandbox:
            return
        stopped = look_at_brake(self._settings, rules, self._ledger, stage)
        if stopped is not None:
            yield bad(Area.BRAKE, f"a run would stop after {self._rows_told}. {stopped.reason}", "", stopped.code)


def _folder_for_stage(output_dir: Path) -> Path:
    return output_dir if os.access(output_dir, os.W_OK) else Path(tempfile.gettempdir())


def _is_any_new(stage: Stage) -> bool:
    return any(new for *_, new in stage.count_reasons(-1))


# Iterable -------------------------------------------------------------------------------------------------------------


def look_at_iterable(client: IterableClient, settings: Settings) -> Iterator[Finding | Mapping[str, Any]]:
    """That Iterable answers and takes the key; and, where the key may read them, the types of the project's fields."""
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
    if settings.skip_forgotten:
        yield _check_forgotten(client, settings)


def _check_jwt_key(client: IterableClient) -> Iterable[Finding]:
    """A client-side key may not ask for fields. An update that names nobody changes nothing, and is refused."""
    ok, answer = client.update_user(None)
    if not (ok or answer["failure"] in (Failure.REJECTED, Failure.UNAUTHORIZED)):
        return [_explain(answer)]
    text = "whether the JWT secret is right shows with the first user only, and a client-side key can't list fields"
    return [good(Area.KEY, "Iterable answers and knows the key"), note(Area.KEY, text)]


def _check_forgotten(client: IterableClient, settings: Settings) -> Finding:
    try:
        hashes = read_forgotten(client, by_user_id=settings.iterable_identifier == "userId")
    except ForgottenListError as problem:
        return bad(Area.KEY, str(problem), "", problem.code)
    return good(Area.KEY, f"Iterable lists {len(hashes):,} forgotten people (SKIP_FORGOTTEN)")


def _explain(details: Mapping[str, Any]) -> Finding:
    failure, error = details["failure"], str(details["error"])
    code = FAILURES[failure].code
    if failure in (Failure.BAD_API_KEY, Failure.UNAUTHORIZED):
        return bad(Area.KEY, error, CHECK_KEY, code)
    if failure in (Failure.UNREADABLE, Failure.REDIRECTED, Failure.BAD_CERTIFICATE):
        return bad(Area.ANSWER, error, CHECK_ADDRESS, code)
    return bad(Area.CONNECTION, error, "check the network, or try again later", code)
