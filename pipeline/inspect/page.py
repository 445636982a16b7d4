"""`--report`: one page about this project's runs, `report.html` in OUTPUT_DIR, for a browser, a wall or paper.

It shows what runs have left: the ledger's lines, the newest results, the last verification, and the files themselves.
It makes no requests and holds no personal data, loads nothing from elsewhere, and works while a run is active. Jinja2
and matplotlib make it; only here are they loaded, so only here are they missed.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from iterable import VERSION
from iterable.export import replacing_file
from iterable.redaction import Redactor
from pipeline.config import Settings, SettingsError
from pipeline.inspect.page_account import FoundResults, ResultsFiles, RunAccount, account_from_ledger
from pipeline.inspect.page_days import DAYS, History, history_of
from pipeline.inspect.page_disk import Disk, disk_of
from pipeline.ledger.ledger import LedgerDamagedError, PastRun, PastVerification, read_ledger
from pipeline.model.exits import ExitCode, OutputError, RunError
from pipeline.model.text import iso, shown, to_install
from pipeline.report import Console
from pipeline.report.results import PAGE_NAME, reason_of
from pipeline.run.opening import project_of, settings_for
from pipeline.state import find_ledger

if TYPE_CHECKING:
    from pipeline.inspect.page_charts import Chart

REQUIREMENTS = "requirements-report.txt"
DAY_S = 86_400


class PackageMissingError(RunError):
    """What makes the page is not installed."""

    code = ExitCode.SETTINGS


@dataclass(frozen=True)
class Remembered:
    """What the ledger says. active_since: when the run began that is active, if one is. damage: why it says nothing."""

    runs: Sequence[PastRun] = ()
    active_since: float | None = None
    verified: PastVerification | None = None
    damage: str = ""

    @property
    def finished(self) -> Sequence[PastRun]:
        """Those that are over, as far as they came."""
        return self.runs[:-1] if self.active_since is not None else self.runs


@dataclass(frozen=True)
class Page:
    """All that is on it. last: the run that the page opens with, a dry one where there was no other."""

    made_at: float
    version: str
    project: str
    last: RunAccount | None
    last_dry_run: RunAccount | None
    remembered: Remembered
    damaged_results: Sequence[str]
    history: History
    disk: Disk

    @property
    def later_dry_run(self) -> RunAccount | None:
        """A dry run that came after the last run."""
        dry = self.last_dry_run
        return dry if dry is not None and self.last is not None and dry.run_id > self.last.run_id else None


def run_report(options: argparse.Namespace) -> ExitCode:
    """Write the page. 73 where it can't be written; 65 where the ledger is damaged, which the page says as well."""
    console = Console(quiet=options.quiet, json=options.json)
    try:
        with ExitStack() as stack:
            settings, _ = settings_for(options, stack)
            console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
            page = read_page(settings, console.redactor, time.time())
            write_page(settings.output_dir / PAGE_NAME, rendered(page))
    except SettingsError as error:
        console.configure(console.redactor, log_format=error.log_format)
        for problem in error.problems:
            console.error(problem)
        return error.code
    except RunError as error:
        console.error(str(error))
        return error.code
    if page.remembered.damage:
        console.error(f"{page.remembered.damage} {PAGE_NAME} has what the results files say.")
    code = LedgerDamagedError.code if page.remembered.damage else ExitCode.SUCCESS
    return _say(console, settings.output_dir / PAGE_NAME, page, code, as_json=options.json)


def _say(console: Console, path: Path, page: Page, code: ExitCode, *, as_json: bool) -> ExitCode:
    if not as_json:
        console.say(f"Wrote {path}.", log=False)
        return code
    try:
        console.print_json(
            {"page": path.name, "made_at": iso(page.made_at), "exit_code": code, "runs": page.history.runs}
        )
    except OSError as problem:
        console.error(f"The answer could not be printed ({reason_of(problem)}).")
        return ExitCode.NO_OUTPUT
    return code


# What is on it --------------------------------------------------------------------------------------------------------


def read_page(settings: Settings, redactor: Redactor, now: float) -> Page:
    """Raises LedgerBusyError, LedgerError. now: Unix seconds."""
    folder = settings.output_dir
    files = ResultsFiles(folder, project_of(settings), redactor)
    found = files.newest()
    remembered = _remembered(settings, now)
    last = _last_run(remembered, found, files)
    return Page(
        made_at=now,
        version=VERSION,
        project=shown(settings.iterable_project or settings.iterable_base_url.partition("://")[2]),
        last=last or found.dry,
        last_dry_run=found.dry,
        remembered=remembered,
        damaged_results=found.damaged,
        history=history_of(remembered.runs, now),
        disk=disk_of(folder, settings.keep_days, now),
    )


def _remembered(settings: Settings, now: float) -> Remembered:
    try:
        with (
            find_ledger(settings.output_dir, settings.state_url) as place,
            read_ledger(place.folder, project_of(settings), now=now) as ledger,
        ):
            runs = ledger.runs.of_project(since=now - (DAYS + 1) * DAY_S)
            newest = ledger.runs.last(1)
            verified = ledger.verifications.last()
    except LedgerDamagedError as problem:
        return Remembered(damage=str(problem))
    except (sqlite3.Error, ValueError) as problem:
        return Remembered(damage=f"The ledger is damaged ({problem}).")
    may_be_active = bool(newest) and newest[0].is_of_this_project and newest[0].result is None
    is_active = may_be_active and bool(place.holder)
    return Remembered(runs, newest[0].started_at if is_active else None, verified)


def _last_run(remembered: Remembered, found: FoundResults, files: ResultsFiles) -> RunAccount | None:
    """The last one that is over. The ledger says which, and the results file why."""
    if not remembered.finished:
        return found.real if not remembered.runs else None
    account = account_from_ledger(remembered.finished[-1])
    results = files.of_run(account.run_id)
    if results is None:
        return account
    return replace(account, reasons=results.reasons, not_sent=results.not_sent, dropped=results.dropped)


# The page -------------------------------------------------------------------------------------------------------------


def rendered(page: Page) -> str:
    """Raises PackageMissingError."""
    try:
        from pipeline.inspect import page_charts, page_template
    except ImportError as error:
        raise PackageMissingError(
            f"--report needs Jinja2 and matplotlib ({error}); run: {to_install(REQUIREMENTS)}"
        ) from error
    charts = page_charts.charts_of(page.history.days) if page.history.runs else []
    drawn: Iterator[tuple[Chart, str]] = ((chart, page_charts.svg_of(chart, page.history.days)) for chart in charts)
    return page_template.render(page, list(drawn))


def write_page(path: Path, text: str) -> None:
    """In the place of the last one, whole, for its owner alone. Raises OutputError."""
    try:
        with replacing_file(path) as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"{path} can't be written ({reason_of(error)}).") from error
