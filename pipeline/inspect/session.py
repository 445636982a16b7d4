"""What --explain and --verify share: everything opened to be read.

Nothing is sent or logged, and nothing is locked but for `--repair`, so that both work while a run is active.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from iterable.redaction import Redactor
from iterable_client import IterableClient
from pipeline.config import Settings
from pipeline.delivery import Breaker
from pipeline.ledger.ledger import Ledger, open_ledger, read_ledger
from pipeline.model.exits import ExitCode
from pipeline.report import Console
from pipeline.report.results import reason_of
from pipeline.run.interrupt import Interrupt, catch_signals
from pipeline.run.opening import change_ledger, make_client, project_of, settings_for
from pipeline.stage.stage import Stage, open_stage
from pipeline.state import Place, find_ledger

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
    place: Place | None  # where the ledger was found, if it is only read

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
        ledger, place = _open_ledger(settings, now, options.sandbox, changes_ledger, stack)
        for warning in (*settings.warnings, ledger.warning, ledger.note):
            if warning:
                console.warn(warning)
        stage = stack.enter_context(open_stage(settings.output_dir))
        breaker = Breaker()
        yield InspectionSession(
            settings, console, interrupt, breaker, ledger, stage, make_client(settings, breaker), now, place
        )


def _open_ledger(
    settings: Settings, now: float, is_sandbox: bool, changes_ledger: bool, stack: ExitStack
) -> tuple[Ledger, Place | None]:
    """place: where it was found, if it is only read."""
    folder, project = settings.output_dir, project_of(settings)
    if is_sandbox:  # which has nothing to do with the real one
        return stack.enter_context(open_ledger(folder, project, now=now, lasting=False)), None
    if changes_ledger:
        return stack.enter_context(change_ledger(settings)), None
    place = stack.enter_context(find_ledger(folder, settings.state_url))
    return stack.enter_context(read_ledger(place.folder, project, now=now)), place


def notes_on(session: InspectionSession) -> list[str]:
    """What one should know about everything that is said of the ledger."""
    notes = []
    if session.ledger.is_new_key_for_known_host:
        notes.append(KEY_IS_NEW)
    if session.place is not None and session.place.holder:
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
