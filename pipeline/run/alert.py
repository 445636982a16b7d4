"""An outage that lasts: from ALERT_AFTER runs in a row on that ended with 75 and sent nothing, the exit code is 69, so
that a schedule which ignores 75 speaks up."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pipeline.ledger.runs import Fruitless
from pipeline.model.exits import Ending, ExitCode
from pipeline.run.opening import Run


def fruitless_runs(run: Run, ending: Ending, counts: Mapping[str, Any]) -> Fruitless:
    """How many runs of this query file in a row ended with 75 and had nothing accepted, with this one, and since when.

    Dry runs and runs that found the lock held don't count. sqlite3.Error if the ledger can't be read.
    """
    if ending.code not in (ExitCode.TEMPORARY, ExitCode.UNAVAILABLE):
        return Fruitless(0)
    if any(counts[kind]["delivered"] for kind in ("users", "events")):
        return Fruitless(0)
    earlier = run.ledger.fruitless_runs(run.settings.query_file.name)
    since = run.started_at.timestamp() if earlier.since is None else earlier.since
    return Fruitless(earlier.count + 1, since)


def raise_alarm(run: Run, ending: Ending, counts: Mapping[str, Any]) -> Ending:
    """`ending`, or 69 in the place of a 75 that has lasted for too long."""
    limit = run.settings.alert_after
    if ending.code is not ExitCode.TEMPORARY or not limit or run.options.dry_run or run.options.sandbox:
        return ending
    try:
        fruitless = fruitless_runs(run, ending, counts)
    except sqlite3.Error:  # such as the full disk that ended the run
        return ending
    if fruitless.count < limit or fruitless.since is None:
        return ending
    since = datetime.fromtimestamp(fruitless.since, timezone.utc)
    lasting = f"Since {since:%Y-%m-%d %H:%M} UTC nothing has been accepted, in {fruitless.count} runs in a row."
    return Ending(ExitCode.UNAVAILABLE, f"{ending.reason} {lasting}")
