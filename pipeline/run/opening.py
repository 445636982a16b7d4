"""Opens a run: settings, the lock, the log, the client. What comes out is one frozen value, `Run`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from iterable import VERSION
from iterable.pacing import rates
from iterable.redaction import Redactor
from iterable_client import IterableClient
from pipeline.config import ROOT, Settings, SettingsError, load_settings
from pipeline.delivery import Breaker, single_mode
from pipeline.ledger.ledger import Ledger, LedgerDamagedError, Project, open_ledger, read_ledger
from pipeline.model.exits import Ending, ExitCode, OutputError
from pipeline.model.ownership import owner_hint
from pipeline.report.log import LOG_NAME, Console, close_log, open_log
from pipeline.report.results import reason_of, reserved_run_id
from pipeline.report.retention import delete_old, sweep
from pipeline.run.earlier_runs import project_mark
from pipeline.run.heartbeat import Heartbeat
from pipeline.run.interrupt import Interrupt
from pipeline.run.watch import note_outage
from pipeline.stage.stage import Stage, open_stage
from pipeline.state import Keeper, StoreDownError, find_ledger, make_keeper

if TYPE_CHECKING:
    from pipeline.sandbox import StandIn  # loaded for --sandbox only

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Run:
    """All that the steps of a run work with."""

    options: argparse.Namespace
    settings: Settings
    console: Console
    interrupt: Interrupt
    heartbeat: Heartbeat
    breaker: Breaker
    started_at: datetime
    started_s: float  # of the monotonic clock
    run_id: str
    ledger: Ledger
    stage: Stage
    client: IterableClient
    stand_in: StandIn | None
    keeper: Keeper

    @property
    def query_path(self) -> str:
        """What tells one query file from another in the ledger."""
        return str(self.settings.query_file)

    def ending(self) -> Ending | None:
        """How the run has to end, or None if it may go on. For any thread, and cheap."""
        return self.interrupt.ending() or self.keeper.ending()

    @property
    def leaves_pending(self) -> bool:
        """Whether it is meant that records stay pending."""
        options = self.options
        return options.dry_run or options.before is not None or (options.baseline and options.only is not None)

    @property
    def takes_part_of_rows(self) -> bool:
        """Whether it was asked to ignore some of the rows that the query finds."""
        return self.options.limit is not None or self.options.only is not None

    @property
    def authentication(self) -> str:
        return "JWT" if self.settings.use_jwt_auth else "API key"


def open_run(options: argparse.Namespace, console: Console, interrupt: Interrupt, stack: ExitStack) -> Run:
    """Open everything; `stack` closes it. Raises RunError, and leaves no trace of a run that may not start."""
    settings, stand_in = settings_for(options, stack)
    started_at, started_s = datetime.now(timezone.utc), time.monotonic()
    interrupt.limit(settings.max_run_minutes)
    console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
    folder = settings.output_dir
    if not folder.is_dir():
        raise OutputError(f"OUTPUT_DIR names {folder}, which is not a folder; create it, or name another.")
    ledger, keeper = _ledger(options, settings, started_at, stack)
    stage = stack.enter_context(open_stage(folder))
    run_id = _begin_log(settings, console, stack)
    if not (options.sandbox or options.dry_run):  # these may not hold the lock, and so not be alone
        sweep(folder, console.warn)
        delete_old(folder, settings.keep_days, time.time(), console.warn)
        ledger.begin_run(run_id, started_at.timestamp(), settings.query_file.name)
        keeper.begin_run(run_id)
    ledger.use_query(str(settings.query_file))
    logger.info("iterable-integration %s, run %s, called with: %s", VERSION, run_id, _arguments(options, console))
    breaker = Breaker()
    client = make_client(settings, breaker, keeper)
    heartbeat = Heartbeat(None if options.dry_run else settings.heartbeat_url)
    heartbeat.start()
    for warning in (*settings.warnings, ledger.warning, ledger.note):
        if warning:
            console.warn(warning)
    return Run(
        options,
        settings,
        console,
        interrupt,
        heartbeat,
        breaker,
        started_at,
        started_s,
        run_id,
        ledger,
        stage,
        client,
        stand_in,
        keeper,
    )


def _arguments(options: argparse.Namespace, console: Console) -> str:
    """The command line, without the person whom --only names: a userId looks like nothing that is masked."""
    return console.redactor.person(str(sys.argv[1:]), options.only)


def _begin_log(settings: Settings, console: Console, stack: ExitStack) -> str:
    """The id of this run, for itself alone, and the log that has it."""
    folder = settings.output_dir
    try:
        run_id = stack.enter_context(reserved_run_id(folder))
    except OSError as error:
        hint = owner_hint(folder / "a new file") if isinstance(error, PermissionError) else "."
        raise OutputError(f"OUTPUT_DIR names {folder}, which can't be written ({reason_of(error)}){hint}") from error
    console.configure(console.redactor, log_format=settings.log_format, run_id=run_id)
    try:
        log = open_log(folder, console.redactor, log_format=settings.log_format, run_id=run_id)
    except OSError as error:
        hint = owner_hint(folder / LOG_NAME) if isinstance(error, PermissionError) else "."
        raise OutputError(f"The log can't be written to {folder} ({reason_of(error)}){hint}") from error
    stack.callback(close_log, log)
    return run_id


def project_of(settings: Settings) -> Project:
    """Tells one Iterable project from another: its data center, and its key or its name."""
    credential = settings.iterable_api_key or settings.iterable_jwt_secret or ""
    return Project(settings.iterable_base_url, credential, settings.iterable_project)


def _ledger(
    options: argparse.Namespace, settings: Settings, started_at: datetime, stack: ExitStack
) -> tuple[Ledger, Keeper]:
    """Held for a run, empty in the sandbox, and only looked at by a dry run. Only --yes sets a damaged one aside."""
    folder, project, now = settings.output_dir, project_of(settings), time.time()
    if options.sandbox:
        return stack.enter_context(open_ledger(folder, project, now=now, lasting=False)), Keeper()
    if not options.dry_run:
        try:
            return hold_ledger(settings, stack, replace_damaged=options.yes)
        except StoreDownError as problem:
            raise note_outage(problem, settings, project, started_at) from problem
    try:
        place = stack.enter_context(find_ledger(folder, settings.state_url))
        return stack.enter_context(read_ledger(place.folder, project, now=now)), Keeper()
    except LedgerDamagedError as problem:
        ledger = open_ledger(folder, project, now=now, lasting=False, damage=problem.damage)
        return stack.enter_context(ledger), Keeper()


def hold_ledger(settings: Settings, stack: ExitStack, *, replace_damaged: bool = False) -> tuple[Ledger, Keeper]:
    """The ledger, from where STATE_URL says, for somebody who may change it; `finish` its keeper, or nothing is put
    back. Raises RunError."""
    folder, project = settings.output_dir, project_of(settings)
    job = f"{project_mark(project)} {settings.query_file.name}"
    keeper = make_keeper(settings.state_url, folder, job, replaces_damaged=replace_damaged)
    ledger = open_ledger(folder, project, now=time.time(), replace_damaged=replace_damaged, fetch=keeper.fetch)
    return stack.enter_context(ledger), keeper


@contextmanager
def change_ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger for who changes it outside of a run, held as by one, and put back where STATE_URL says. Raises
    RunError."""
    with ExitStack() as stack:
        ledger, keeper = hold_ledger(settings, stack)
        if ledger.damage:
            raise LedgerDamagedError(ledger.damage)
        keeper.begin_run("")
        yield ledger
        ledger.commit()
        ending = keeper.finish(Ending(ExitCode.SUCCESS, ""), is_settled=False)
        if ending.code is not ExitCode.SUCCESS:
            raise StoreDownError(ending.reason)


def settings_for(options: argparse.Namespace, stack: ExitStack) -> tuple[Settings, StandIn | None]:
    """The settings, and the stand-in Iterable that --sandbox puts in the place of the real one."""
    env_file = options.env_file or ROOT / ".env"
    settings = load_settings(env_file, os.environ, sandbox=options.sandbox, must_exist=options.env_file is not None)
    _choose_scratch_folder(settings.output_dir)
    if not options.sandbox:
        return settings, None
    from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, StandIn, create_sample_database

    secret = SANDBOX_JWT_SECRET if settings.use_jwt_auth else None
    stand_in = stack.enter_context(StandIn(key_type="Mobile" if secret else "ServerSide", jwt_secret=secret))
    database_url = settings.database_url
    if database_url is None:
        folder = stack.enter_context(TemporaryDirectory(prefix="sandbox-"))
        create_sample_database(Path(folder) / "sample.db")
        database_url = f"sqlite:///{folder}/sample.db"
    settings = replace(
        settings,
        iterable_api_key=SANDBOX_KEY,
        iterable_jwt_secret=secret,
        iterable_base_url=stand_in.url,
        database_url=database_url,
    )
    return settings, stand_in


def _choose_scratch_folder(output_dir: Path) -> None:
    """OUTPUT_DIR takes what is written for a moment, where a container has no /tmp and a root that can't be written."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(output_dir)


def make_client(settings: Settings, breaker: Breaker | None = None, keeper: Keeper | None = None) -> IterableClient:
    """The client of this Iterable project, whose calls wait through `breaker` and ask `keeper` before they leave.

    Raises SettingsError.
    """
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
            max_connections=settings.max_workers or single_mode(None).workers,
            rates=rates(settings.rate_limit_percent),
            proxy=settings.iterable_proxy,
            ca_bundle=str(settings.iterable_ca_bundle) if settings.iterable_ca_bundle else None,
            sleep=breaker.sleep if breaker is not None else None,
            on_wait=breaker.before_retry if breaker is not None else None,
            before_request=keeper.before_request if keeper is not None else None,
        )
    except OSError as error:  # ssl.SSLError is one
        problem = f"ITERABLE_CA_BUNDLE names {settings.iterable_ca_bundle}, which is not a certificate store ({error})."
        raise SettingsError([problem], settings.log_format) from error
