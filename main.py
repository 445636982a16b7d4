"""The command line: runs the user-event query, exports its rows to a CSV, and makes an Iterable project agree.

    python main.py --help

`run` shows the steps, `Job` holds them, and `ExitCode` is the one table of exit codes.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import IntEnum
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from iterable_client import IterableClient, export_results_to_csv
from pipeline import check, heartbeat, report
from pipeline.delivery import Delivery, Mode, Stop, StopKind, bulk_mode, pause_until, single_mode
from pipeline.interrupt import Interrupt, Interrupted, catch_signals
from pipeline.ledger import Kind, Ledger, LedgerBusyError, LedgerError, Outcome, Verdict, open_ledger
from pipeline.plan import ColumnsError, Planner, make_rules
from pipeline.sending import BulkSender, SingleSender
from pipeline.settings import Settings, SettingsError, load_settings
from pipeline.source import SourceError, UndecodableText, open_query

if TYPE_CHECKING:
    from pipeline.sandbox import StandIn  # loaded for --sandbox only

__version__ = "1.0.0"

ROOT = Path(__file__).resolve().parent
BULK_ABOVE = 100  # pending records, for PUSH_MODE=auto
SHOWN_IN_DRY_RUN = 3
MOST_WORKERS = 128
# Requests a second that Iterable allows each project, from its API description; and the most of it that can be used, as
# requests arrive less evenly than they leave, large ones even less, and some would come too early.
LIMITS = {
    "users/update": (500, 0.99),
    "users/bulkUpdate": (5, 0.97),
    "events/track": (2000, 0.99),
    "events/trackBulk": (10, 0.97),
}

logger = logging.getLogger("main")


class ExitCode(IntEnum):
    """How a run ends. Cron and the results JSON see it; the README explains it."""

    SUCCESS = 0
    REJECTED = 1
    USAGE = 2  # argparse's own
    NO_INPUT = 66
    BUG = 70
    NO_OUTPUT = 73
    TEMPORARY = 75
    NOT_ITERABLE = 76
    CREDENTIALS = 77
    SETTINGS = 78
    SIGINT = 130
    SIGTERM = 143


STOP_CODES = {
    StopKind.CREDENTIALS: ExitCode.CREDENTIALS,
    StopKind.NOT_ITERABLE: ExitCode.NOT_ITERABLE,
    StopKind.OUTAGE: ExitCode.TEMPORARY,
}
STOP_ADVICE = {
    StopKind.CREDENTIALS: "Check ITERABLE_API_KEY (with USE_JWT_AUTH, ITERABLE_JWT_SECRET, too), and that "
    "ITERABLE_BASE_URL is its data centre.",
    StopKind.NOT_ITERABLE: "Check ITERABLE_BASE_URL and, behind a proxy, ITERABLE_PROXY and ITERABLE_CA_BUNDLE.",
    StopKind.OUTAGE: "The next run goes on where this one stopped.",
}
DRY_RUN_REASON = "Dry run: nothing was sent."


class OutputError(Exception):
    """A file of this run can't be written, before anything was sent."""


ERROR_CODES: dict[type[BaseException], ExitCode] = {
    SourceError: ExitCode.NO_INPUT,
    ColumnsError: ExitCode.NO_INPUT,
    OutputError: ExitCode.NO_OUTPUT,
    LedgerError: ExitCode.NO_OUTPUT,
    LedgerBusyError: ExitCode.TEMPORARY,
    SettingsError: ExitCode.SETTINGS,
}


@dataclass(frozen=True)
class Ending:
    """The exit code, and the sentence for it."""

    code: ExitCode
    reason: str


def run(options: argparse.Namespace) -> ExitCode:
    """The whole job, step by step. What it learns ends in the results JSON, also after a failure."""
    console = report.Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    with ExitStack() as stack:
        try:
            interrupt = stack.enter_context(catch_signals())
            job = Job(options, console, interrupt, stack)
            job.open_outputs(stack)
        except (Exception, Interrupted) as problem:
            return refuse(problem, console)
        try:
            job.connect()
            job.query_and_export()
            job.plan()
            job.deliver()
            ending = job.ending()
        except (Exception, Interrupted) as problem:
            ending = job.ending_after(problem)
        return job.finish(ending)
    raise AssertionError("unreachable: no context here swallows an exception")


def refuse(problem: BaseException, console: report.Console) -> ExitCode:
    """A run that can't even begin: nothing is written, and the reason goes to stderr."""
    if isinstance(problem, SettingsError):
        for sentence in problem.problems:
            console.error(sentence)
        console.error(
            "Mend this in .env (to begin with: cp .env.example .env), or try the job without a key: "
            "python main.py --sandbox"
        )
    elif code_of(problem) is ExitCode.BUG:
        logger.error("This is a bug.", exc_info=problem)
        console.error(f"A bug: {type(problem).__name__}: {problem}. Nothing was sent. Please report it.")
    elif not isinstance(problem, Interrupted):
        console.error(str(problem))
    return code_of(problem)


def code_of(problem: BaseException) -> ExitCode:
    for kind, code in ERROR_CODES.items():
        if isinstance(problem, kind):
            return code
    if isinstance(problem, Interrupted):
        return ExitCode[problem.args[0]]
    return ExitCode.BUG


class Job:
    """One run: its steps in order, and what they found out."""

    def __init__(
        self, options: argparse.Namespace, console: report.Console, interrupt: Interrupt, stack: ExitStack
    ) -> None:
        self.options = options
        self.settings = read_settings(options)
        self.stand_in: StandIn | None = None
        if options.sandbox:
            self.stand_in, self.settings = enter_sandbox(self.settings, stack)
        self.console = console
        self.interrupt = interrupt
        self.started_at = datetime.now(timezone.utc)
        self.stopping = threading.Event()
        self.csv_name: str | None = None
        self.stop: Stop | None = None
        self.mode = self.choose_mode(pending=0)
        self.delivery: Delivery | None = None
        console.redactor = report.Redactor(self.settings.secrets())

    def open_outputs(self, stack: ExitStack) -> None:
        """The lock first, so that a second run leaves without a trace, then the log."""
        folder = self.settings.output_dir
        if not folder.is_dir():
            raise OutputError(f"OUTPUT_DIR names {folder}, which is not a folder; create it, or name another.")
        self.ledger: Ledger = stack.enter_context(
            open_ledger(
                folder,
                self.settings.project(),
                now=time.time(),
                lasting=not self.options.sandbox,
                read_only=self.options.dry_run,
            )
        )
        try:
            stack.callback(report.close_log, report.open_log(folder, self.console.redactor))
        except OSError as error:
            raise OutputError(f"The log can't be written to {folder} ({reason_of(error)}).") from error
        if not (self.options.sandbox or self.options.dry_run):  # these may not hold the lock, and so not be alone
            report.sweep(folder)
        self.run_id = report.free_run_id(folder)
        logger.info("iterable-integration %s, run %s, called with: %s", __version__, self.run_id, sys.argv[1:])
        self.client = make_client(self.settings, pause_until(self.stopping))
        if not self.options.dry_run:
            heartbeat.ping(self.settings.heartbeat_url, "start")
        for warning in (*self.settings.warnings, self.ledger.warning):
            if warning:
                self.console.error(f"Warning: {warning}")

    def connect(self) -> None:
        settings = self.settings
        self.say(f"Step 1: Settings read. {self.authentication} authentication, {settings.iterable_base_url}")
        if self.options.sandbox:
            self.say("        This is a sandbox run: nothing leaves this machine, and no ledger is kept.")
        self.say("Step 2: Ledger opened; no other run is active")

    def query_and_export(self) -> None:
        """One pass over the rows: each goes into the CSV and, planned, into the ledger's stage."""
        self.say(f"Step 3: Connecting to {self.settings.shown_database()}")
        try:
            self.read_rows()
        except UndecodableText as problem:
            logger.warning("%s All rows are read once more, by a slower decoder that takes any bytes.", problem)
            self.ledger.clear_stage()
            self.read_rows(any_bytes=True)
        self.say(f"Step 4.5: {self.rows:,} rows exported to {self.csv_name}")

    def read_rows(self, *, any_bytes: bool = False) -> None:
        settings = self.settings
        with open_query(
            str(settings.database_url),
            settings.query_file,
            root=ROOT,
            should_stop=lambda: bool(self.interrupt.name),
            any_bytes=any_bytes,
        ) as query:
            if not any_bytes:
                self.say(f"Step 4: Running the user-event query, {settings.query_file.name}")
            self.rules = make_rules(query.columns, settings, self.started_at.timestamp())
            planner = Planner(self.ledger, self.rules)
            name = report.CSV_NAME.format(self.run_id)
            try:
                rows = planner.watch(islice(query.rows, self.options.limit))
                export_results_to_csv(rows, str(settings.output_dir / name), columns=query.columns)
            except (OSError, sqlite3.Error) as error:  # the CSV, or the stage beside it
                raise OutputError(f"{name} can't be written ({reason_of(error)}); nothing was sent.") from error
        self.csv_name, self.rows = name, planner.rows

    def plan(self) -> None:
        """What is to be sent, and how."""
        try:
            self.ledger.finish_staging(
                skip_unchanged=not self.options.full, ids_are_given=self.rules.id_column is not None
            )
        except sqlite3.Error as error:
            folder = self.settings.output_dir
            raise OutputError(
                f"{folder} has no room for the records of this run ({error}); nothing was sent."
            ) from error
        users, events = (self.ledger.count_pending(kind) for kind in Kind)
        self.mode = self.choose_mode(users + events)
        counts = self.ledger.count_outcomes().values()
        unchanged = sum(each[Outcome.UNCHANGED] for each in counts)
        self.say(
            f"Step 5: {users:,} users and {events:,} events to send ({self.mode.name} requests); "
            f"{unchanged:,} unchanged"
        )
        if self.options.dry_run:
            self.show_plan()

    def choose_mode(self, pending: int) -> Mode:
        settings = self.settings
        wants_bulk = settings.push_mode == "bulk" or (settings.push_mode == "auto" and pending > BULK_ABOVE)
        if wants_bulk and not settings.use_jwt_auth:
            return bulk_mode(settings.max_workers)
        return single_mode(settings.max_workers)

    def show_plan(self) -> None:
        self.say("        Dry run: nothing is sent, and the ledger stays as it is. The first requests would be:")
        for records in (self.ledger.pending_users(), self.ledger.pending_events()):
            for record in islice(records, SHOWN_IN_DRY_RUN):
                self.console.say(f"        {record.kind.value} {record.payload.decode()}", log=False)

    def deliver(self) -> None:
        if self.options.dry_run:
            return
        self.interrupt.raises = False  # from here on, what is under way is finished or accounted for
        sender = BulkSender(self.client) if self.mode.mixes_users else SingleSender(self.client)
        self.delivery = Delivery(
            self.ledger,
            sender,
            self.mode,
            settle_s=self.settings.user_settle_seconds,
            stopping=self.stopping,
            interrupted=lambda: self.interrupt.name,
            progress=report.DeliveryProgress(self.console),
        )
        self.stop = self.delivery.run()

    # The end ----------------------------------------------------------------------------------------------------

    def ending(self) -> Ending:
        """How a run ended that got through its steps: the gravest thing counts."""
        if self.stop is not None and self.stop.kind is StopKind.INTERRUPTED:
            return Ending(ExitCode[str(self.interrupt.name)], self.stop.message)
        if self.stop is not None:
            advice = STOP_ADVICE[self.stop.kind]
            return Ending(STOP_CODES[self.stop.kind], f"{self.stop.message.rstrip('.')}. {advice}")
        by_kind = self.ledger.count_outcomes().values()
        numbers = {outcome: sum(counts[outcome] for counts in by_kind) for outcome in Outcome}
        if numbers[Outcome.UNACKNOWLEDGED]:
            left = f"{numbers[Outcome.UNACKNOWLEDGED]:,} records were not acknowledged; the next run sends them again."
            return Ending(ExitCode.TEMPORARY, f"{left} {self.first_message(Outcome.UNACKNOWLEDGED)}".rstrip())
        if numbers[Outcome.REJECTED]:
            path = self.settings.output_dir / report.REJECTED_NAME.format(self.run_id)
            return Ending(ExitCode.REJECTED, f"{numbers[Outcome.REJECTED]:,} records were rejected; see {path}.")
        if self.options.dry_run:
            return Ending(ExitCode.SUCCESS, DRY_RUN_REASON)
        if not self.rows:
            return Ending(ExitCode.SUCCESS, "The query found no rows.")
        told = [f"{numbers[each]:,} {each.value}" for each in (Outcome.DELIVERED, Outcome.UNCHANGED) if numbers[each]]
        return Ending(ExitCode.SUCCESS, f"All records are in Iterable: {', '.join(told)}.")

    def ending_after(self, problem: BaseException) -> Ending:
        """How a run ended that broke off. A bug's traceback goes to the log only."""
        if self.interrupt.name is not None:
            return Ending(ExitCode[self.interrupt.name], f"The run was interrupted by {self.interrupt.name}.")
        code = code_of(problem)
        if code is not ExitCode.BUG:
            return Ending(code, str(problem))
        logger.error("This is a bug.", exc_info=problem)
        where = self.settings.output_dir / report.LOG_NAME
        return Ending(code, f"A bug: {type(problem).__name__}. Please report it with the traceback in {where}.")

    def finish(self, ending: Ending) -> ExitCode:
        """The results JSON, the rejected rows, the summary, and the log's last line."""
        self.interrupt.raises = False
        counts = self.account_for_all(ending)
        try:
            results = self.results(ending, counts, self.write_rejected_rows(), list(self.verdicts(report.MAX_FAILURES)))
            report.write_results(self.settings.output_dir / report.RESULTS_NAME.format(self.run_id), results)
        except (OSError, sqlite3.Error) as problem:
            ending = self.ending_without_results(ending, problem)
            results = self.results(ending, counts, None, [])
        self.show(ending, results)
        logger.info("Finished with exit code %d (%s): %s", ending.code, results.status, ending.reason)
        if not self.options.dry_run:
            suffix = "" if ending.code is ExitCode.SUCCESS else str(int(ending.code))
            heartbeat.ping(self.settings.heartbeat_url, suffix).join(heartbeat.TIMEOUT_S)
        return ending.code

    def show(self, ending: Ending, results: report.Results) -> None:
        if ending.code is not ExitCode.SUCCESS:
            self.console.error(ending.reason)
        self.say(report.summary(results, self.reasons()))
        if self.stand_in is not None:
            held = self.stand_in.project.state()
            self.say(f"The stand-in now holds {held['users']:,} users and {held['events']:,} events.")
            self.say("This was a sandbox run: nothing left this machine.")
        if self.options.json:
            self.console.print_json(results)

    def ending_without_results(self, ending: Ending, problem: Exception) -> Ending:
        code = ExitCode.TEMPORARY if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED) else ending.code
        return Ending(code, f"{ending.reason} The results could not be written: {reason_of(problem)}.")

    def first_message(self, outcome: Outcome) -> str:
        messages = [reason.message for reason in self.reasons() if reason.outcome == outcome.value]
        return f"For example: {messages[0].rstrip('.')}." if messages else ""

    def reasons(self) -> list[report.Reason]:
        try:
            reasons = [report.Reason(*each) for each in self.ledger.count_reasons(report.SHOWN_REASONS)]
        except sqlite3.Error:
            return []
        planned_only = Outcome.NOT_ATTEMPTED.value if self.options.dry_run else None
        return [reason for reason in reasons if reason.outcome != planned_only]

    def account_for_all(self, ending: Ending) -> dict[str, Any]:
        """Give every record its outcome and count them. Without a complete CSV there are none."""
        if self.csv_name is None:
            return report.counts_as_json(0, 0, {})
        try:
            ran_dry = self.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED)
            self.ledger.note_not_attempted(f"Not attempted: {DRY_RUN_REASON if ran_dry else ending.reason}")
            if not self.options.dry_run:
                self.ledger.refresh()
                self.ledger.commit()
        except sqlite3.Error as problem:
            logger.error("At the end, the ledger or the list of failures can't be written: %s", problem)
        if any(self.ledger.count_pending(kind) for kind in Kind):
            raise AssertionError("some records have no outcome")
        return report.counts_as_json(self.rows, self.ledger.duplicate_events, self.ledger.count_outcomes())

    def results(
        self, ending: Ending, counts: dict[str, Any], rejected: str | None, failures: list[Verdict]
    ) -> report.Results:
        settings = self.settings
        finished_at = datetime.now(timezone.utc)
        delivery = self.delivery
        return report.Results(
            result_version=report.RESULT_VERSION,
            run_id=self.run_id,
            status=self.status(ending, counts),
            exit_code=int(ending.code),
            reason=self.console.redactor.without_secrets(ending.reason),
            started_at=self.started_at.isoformat(timespec="seconds"),
            finished_at=finished_at.isoformat(timespec="seconds"),
            duration_s=round((finished_at - self.started_at).total_seconds(), 3),
            authentication=self.authentication,
            push_mode=self.mode.name,
            base_url=settings.iterable_base_url,
            retry={
                name: report.as_number(getattr(settings, name))
                for name in ("max_retries", "backoff_factor", "initial_backoff")
            },
            counts=counts,
            requests=report.requests_as_json(self.mode.endpoints, self.client.request_counts),
            fields={
                "filtered_out": sorted(delivery.filtered_out_fields if delivery else ()),
                "created": sorted(delivery.created_fields if delivery else ()),
            },
            files={"csv": self.csv_name, "log": report.LOG_NAME, "rejected": rejected},
            failures=report.failures_as_json(
                failures,
                self.console.redactor,
                by_user_id=settings.iterable_identifier == "userId",
            ),
        )

    def status(self, ending: Ending, counts: dict[str, Any]) -> str:
        if ending.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
            return "interrupted"
        if self.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED):
            return "dry_run"
        if ending.code is ExitCode.SUCCESS:
            return "success"
        done = sum(counts[kind][each] for kind in ("users", "events") for each in ("delivered", "unchanged"))
        return "partial" if done and ending.code in (ExitCode.REJECTED, ExitCode.TEMPORARY) else "failed"

    def write_rejected_rows(self) -> str | None:
        """A CSV of all rows that have a record not in Iterable, if there is one; returns its name."""
        if self.csv_name is None or next(self.verdicts(1), None) is None:
            return None
        name = report.REJECTED_NAME.format(self.run_id)
        folder = self.settings.output_dir
        report.write_rejected_rows(folder / name, folder / self.csv_name, self.verdicts(), self.console.redactor)
        return name

    def verdicts(self, limit: int = -1) -> Iterator[Verdict]:
        return self.ledger.verdicts(limit, with_not_attempted=not self.options.dry_run)

    @property
    def authentication(self) -> str:
        return "JWT" if self.settings.use_jwt_auth else "API key"

    def say(self, text: str) -> None:
        self.console.say(text)


# Around the job -------------------------------------------------------------------------------------------------------


def read_settings(options: argparse.Namespace) -> Settings:
    env_file = options.env_file or ROOT / ".env"
    return load_settings(env_file, os.environ, sandbox=options.sandbox, must_exist=options.env_file is not None)


def enter_sandbox(settings: Settings, stack: ExitStack) -> tuple[StandIn, Settings]:
    """Start a stand-in Iterable in the place of the real one, and give it sample data if there is no database."""
    from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, StandIn, create_sample_database

    secret = SANDBOX_JWT_SECRET if settings.use_jwt_auth else None
    stand_in = stack.enter_context(StandIn(key_type="Mobile" if secret else "ServerSide", jwt_secret=secret))
    database_url = settings.database_url
    if database_url is None:
        folder = stack.enter_context(TemporaryDirectory(prefix="sandbox-"))
        create_sample_database(Path(folder) / "sample.db")
        database_url = f"sqlite:///{folder}/sample.db"
    return stand_in, replace(
        settings,
        iterable_api_key=SANDBOX_KEY,
        iterable_jwt_secret=secret,
        iterable_base_url=stand_in.url,
        database_url=database_url,
    )


def rates(percent: float) -> dict[str, float]:
    """Requests a second, by endpoint. More than 100 % is for projects whose limits Iterable has raised."""
    share = percent / 100
    return {name: limit * (min(share, most) if share <= 1 else share) for name, (limit, most) in LIMITS.items()}


def make_client(settings: Settings, sleep: Callable[[float], None]) -> IterableClient:
    try:
        return IterableClient(
            settings.iterable_api_key,
            settings.iterable_jwt_secret,
            settings.use_jwt_auth,
            settings.iterable_base_url,
            jwt_issuer=settings.iterable_jwt_issuer,
            timeout_s=settings.request_timeout,
            max_retries=settings.max_retries,
            backoff_factor=settings.backoff_factor,
            initial_backoff=settings.initial_backoff,
            max_connections=settings.max_workers or MOST_WORKERS,
            rates=rates(settings.rate_limit_percent),
            proxy=settings.iterable_proxy,
            ca_bundle=str(settings.iterable_ca_bundle) if settings.iterable_ca_bundle else None,
            sleep=sleep,
        )
    except OSError as error:  # ssl.SSLError is one
        problem = f"ITERABLE_CA_BUNDLE names {settings.iterable_ca_bundle}, which is no certificate store ({error})."
        raise SettingsError([problem]) from error


def reason_of(problem: Exception) -> str:
    """Why a file can't be written, without the path that Python puts into it."""
    return getattr(problem, "strerror", None) or str(problem)


# --check --------------------------------------------------------------------------------------------------------------

CHECK_CODES = {
    check.Area.SETTINGS: ExitCode.SETTINGS,
    check.Area.OUTPUT: ExitCode.NO_OUTPUT,
    check.Area.LEDGER: ExitCode.TEMPORARY,
    check.Area.SOURCE: ExitCode.NO_INPUT,
    check.Area.KEY: ExitCode.CREDENTIALS,
    check.Area.ANSWER: ExitCode.NOT_ITERABLE,
    check.Area.CONNECTION: ExitCode.TEMPORARY,
    check.Area.FIELDS: ExitCode.REJECTED,
}


def run_check(options: argparse.Namespace) -> ExitCode:
    """Show each finding; the exit code is that of the first bad one, 0 only where a run would start and go through."""
    console = report.Console(quiet=options.quiet, verbose=options.verbose)
    code = ExitCode.SUCCESS
    for finding in findings(options, console):
        if finding.mark is check.Mark.BAD:
            code = code or CHECK_CODES[finding.area]
        if finding.mark is check.Mark.BAD and console.quiet:
            console.error(finding.line())
        else:
            console.say(finding.line())
    console.say("A run would start." if code is ExitCode.SUCCESS else "Mend what is marked BAD, and check again.")
    return code


def findings(options: argparse.Namespace, console: report.Console) -> Iterator[check.Finding]:
    with ExitStack() as stack:
        try:
            settings = read_settings(options)
            if options.sandbox:
                _, settings = enter_sandbox(settings, stack)
            client = make_client(settings, time.sleep)
        except SettingsError as error:
            for problem in error.problems:
                yield check.Finding(check.Mark.BAD, check.Area.SETTINGS, problem)
            return
        console.redactor = report.Redactor(settings.secrets())
        yield check.Finding(check.Mark.GOOD, check.Area.SETTINGS, "all settings can be read")
        for warning in settings.warnings:
            yield check.Finding(check.Mark.NOTE, check.Area.SETTINGS, warning)
        yield check.check_output(settings.output_dir)
        yield check.check_ledger(settings.output_dir, settings.project())
        found, samples = check.check_source(settings, ROOT)
        yield from found
        yield from check.check_iterable(client, settings, samples)


# The command line -----------------------------------------------------------------------------------------------------


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Takes the people and events that a SQL query finds and makes an Iterable project agree with them.",
        epilog="Settings are read from .env beside main.py and from the environment; see .env.example.",
    )
    add = parser.add_argument
    add(
        "--sandbox",
        action="store_true",
        help="the whole job against a stand-in Iterable on this machine; no key needed",
    )
    add("--dry-run", action="store_true", help="query, CSV and plan; show what would be sent, and send nothing")
    add("--full", action="store_true", help="send everything again, also what Iterable has accepted unchanged")
    add("--limit", type=_positive, metavar="N", help="take only the first N rows of the query")
    add("--env-file", type=Path, metavar="PATH", help="read the settings from PATH instead of .env beside main.py")
    add("--check", action="store_true", help="look at everything that a run needs, and at field types; send nothing")
    add("--json", action="store_true", help="print the results JSON on stdout, and nothing else there")
    add("--quiet", action="store_true", help="print nothing unless something is wrong, for cron")
    add("--verbose", action="store_true", help="show the log on stderr, too")
    add("--version", action="version", version=f"iterable-integration {__version__}")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    # Rows and records come and go by the million and hold no cycles; looking for some would take a quarter of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(run_check(options) if options.check else run(options))
    except Exception as bug:  # Python's own exit code would be 1, which says that some records were rejected
        traceback.print_tb(bug.__traceback__)  # without the bug's text, which may quote anything
        sys.stderr.write(f"A bug: {type(bug).__name__}. Please report it with the lines above.\n")
        return int(ExitCode.BUG)


if __name__ == "__main__":
    sys.exit(main())
