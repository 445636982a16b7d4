"""What whoever watches the schedule is told: an outage that lasts (ALERT_AFTER), and METRICS_FILE.

From ALERT_AFTER runs in a row on that ended with 75 and had nothing accepted, the exit code is 69, so that a schedule
which ignores 75 speaks up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import counted
from pipeline.report.metrics import Standing, metrics_text, write_metrics
from pipeline.report.results import Results, reason_of
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
    count = earlier.count + 1
    if count < limit:
        return ending
    began_at = run.started_at.timestamp() if earlier.since is None else earlier.since
    since = datetime.fromtimestamp(began_at, timezone.utc)
    lasting = f"Since {since:%Y-%m-%d %H:%M} UTC nothing has been accepted, in {counted(count, 'run')} in a row."
    return Ending(ExitCode.UNAVAILABLE, f"{ending.reason} {lasting}")
