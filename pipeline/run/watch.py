"""For whoever watches the schedule: outages that last (ALERT_AFTER), and METRICS_FILE.

From ALERT_AFTER runs in a row on that ended with 75 and had nothing accepted, the exit code is 69, so that a schedule
which ignores 75 speaks up.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pipeline.config import Settings
from pipeline.ledger.ledger import Project, RunResult, open_ledger
from pipeline.ledger.runs import Fruitless
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.records import Kind
from pipeline.model.text import counted
from pipeline.report.metrics import Standing, metrics_text, write_metrics
from pipeline.report.results import Results, reason_of
from pipeline.state import StoreDownError

if TYPE_CHECKING:
    from pipeline.run.opening import Run


def update_metrics(run: Run, written: Results) -> None:
    """Write METRICS_FILE, if it is set. A file that can't be written is a warning; it never changes a run."""
    path = run.settings.metrics_file
    if path is None:
        return
    query_file = run.settings.query_file.name
    try:
        standing = Standing(
            run.ledger.runs.last_success(query_file),
            run.ledger.runs.fruitless(query_file).count,
            {kind: run.ledger.count_known(kind) for kind in Kind},
        )
        write_metrics(path, metrics_text(written, standing))
    except (OSError, sqlite3.Error) as problem:
        run.console.warn(f"METRICS_FILE can't be written ({reason_of(problem)}): {path}")


def raise_alarm(run: Run, ending: Ending, counts: Mapping[str, Any]) -> Ending:
    """`ending`, or 69 in the place of a 75 that has lasted for too long."""
    limit = run.settings.alert_after
    if ending.code is not ExitCode.TEMPORARY or not limit or run.options.dry_run or run.options.sandbox:
        return ending
    if any(counts[kind]["delivered"] for kind in ("users", "events")):
        return ending
    try:
        earlier = run.ledger.runs.fruitless(run.settings.query_file.name)
    except sqlite3.Error:  # such as the full disk that ended the run
        return ending
    return _with_alarm(ending, earlier, run.started_at, limit)


def _with_alarm(ending: Ending, earlier: Fruitless, started_at: datetime, limit: int) -> Ending:
    count = earlier.count + 1
    if count < limit:
        return ending
    began_at = started_at.timestamp() if earlier.since is None else earlier.since
    since = datetime.fromtimestamp(began_at, timezone.utc)
    lasting = f"Since {since:%Y-%m-%d %H:%M} UTC nothing has been accepted, in {counted(count, 'run')} in a row."
    return Ending(ExitCode.UNAVAILABLE, f"{ending.reason} {lasting}")


def note_outage(problem: StoreDownError, settings: Settings, project: Project, started_at: datetime) -> RunError:
    """STATE_URL can't be reached, so that the run can't begin: enter it into the copy of the ledger that is here, if
    there is one. Returns `problem`, or what it becomes where it has lasted for too long."""
    from pipeline.state.local import keep_growing

    ending = Ending(problem.code, f"{problem} Nothing was read or sent.")
    query_file = settings.query_file.name
    run_id = f"{started_at.astimezone():%Y%m%d_%H%M%S}"
    with suppress(RunError, OSError, sqlite3.Error), ExitStack() as stack:
        fetch = keep_growing(settings.output_dir, settings.state_url or "")
        ledger = stack.enter_context(open_ledger(settings.output_dir, project, now=time.time(), fetch=fetch))
        if settings.alert_after:
            ending = _with_alarm(ending, ledger.runs.fruitless(query_file), started_at, settings.alert_after)
        ledger.begin_run(run_id, started_at.timestamp(), query_file)
        duration_s = time.time() - started_at.timestamp()
        ledger.end_run(RunResult("failed", int(ending.code), ending.reason, duration_s, full_read=False))
    return OutageError(ending)


class OutageError(RunError):
    """A run that could not begin; see `note_outage`."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.code = ending.code
