"""What --explain and --verify share: everything opened to be read.

Nothing is sent or logged, and nothing is locked but for `--repair`, so that both work while a run is active.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from iterable.redaction import Redactor
from iterable_client import IterableClient
from pipeline.config import Settings
from pipeline.delivery import Breaker
from pipeline.ledger.ledger import Ledger, LedgerDamagedError, is_run_active, open_ledger, read_ledger
from pipeline.model.exits import ExitCode
from pipeline.report import Console
from pipeline.report.results import reason_of
from pipeline.run.interrupt import Interrupt, catch_signals
from pipeline.run.opening import make_client, project_of, settings_for
from pipeline.stage.stage import Stage, open_stage

KEY_IS_NEW = (
    "The API key is new to the ledger, which knows other projects only "
    "(ITERABLE_PROJECT keeps what it knows when a key is rotated)."
)


@dataclass(frozen=True)
class InspectionSession:
    """All that they work with."""

    settings: Settings
    console: Console
    interrupt: Interrupt
    breaker: Breaker  # ends the client's waits
    ledger: Ledger
    stage: Stage
    client: IterableClient
    now: float  # Unix seconds

    @property
    def by_user_id(self) -> bool:
        return self.settings.iterable_identifier == "userId"


@contextmanager
def open_session(
    options: argparse.Namespace, console: Console, *, changes_ledger: bool = False
) -> Iterator[InspectionSession]:
    """changes_ledger: the ledger is held as by a run, so that no run is active meanwhile.

    Raises RunError and Interrupted.
    """
    with ExitStack() as stack:
        interrupt = stack.enter_context(catch_signals())
        settings, _ = settings_for(options, stack)
        console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
        now = time.time()
        ledger = stack.enter_context(_open_ledger(settings, now, options.sandbox, changes_ledger))
        if ledger.damage:
            raise LedgerDamagedError(ledger.damage)
        for warning in (*settings.warnings, ledger.note):
            if warning:
                console.warn(warning)
        stage = stack.enter_context(open_stage(settings.output_dir))
        breaker = Breaker()
        yield InspectionSession(
            settings, console, interrupt, breaker, ledger, stage, make_client(settings, breaker), now
        )


def _open_ledger(
    settings: Settings, now: float, is_sandbox: bool, changes_ledger: bool
) -> AbstractContextManager[Ledger]:
    if is_sandbox or changes_ledger:  # the sandbox has nothing to do with the real one
        return open_ledger(settings.output_dir, project_of(settings), now=now, lasting=not is_sandbox)
    return read_ledger(settings.output_dir, project_of(settings), now=now)


def notes_on(session: InspectionSession) -> list[str]:
    """What one should know about everything that is said of the ledger."""
    notes = []
    if session.ledger.is_new_key_for_known_host:
        notes.append(KEY_IS_NEW)
    if session.ledger.is_read_only and is_run_active(session.settings.output_dir):
        notes.append("A run is active; this is what it has committed so far.")
    return notes


def print_json(console: Console, found: object, code: ExitCode) -> ExitCode:
    """For --json. The exit code tells where it could not be printed."""
    try:
        console.print_json(found)
    except OSError as problem:
        console.error(f"The answer could not be printed ({reason_of(problem)}).")
        return ExitCode.NO_OUTPUT
    return code
