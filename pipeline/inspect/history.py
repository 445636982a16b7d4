"""`--history`: the last runs, one line each, from the ledger. Changes nothing, also while a run is active."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from iterable.redaction import Redactor
from pipeline.config import SettingsError
from pipeline.ledger.ledger import PastRun, PastVerification, RunResult, read_ledger
from pipeline.model.exits import ExitCode, RunError
from pipeline.model.records import Outcome
from pipeline.model.text import counted, iso, moment, short_duration, shortened
from pipeline.report import Console
from pipeline.run.opening import project_of, settings_for
from pipeline.state import find_ledger

HEAD = ("When", "Ended", "Rows", "From", "Took", "Records and reason")
SIGNS = {
    Outcome.DELIVERED: "+",
    Outcome.UNCHANGED: "=",
    Outcome.REJECTED: "!",
    Outcome.UNACKNOWLEDGED: "?",
    Outcome.NOT_ATTEMPTED: "-",
}
LEGEND = (
    "+ delivered  = unchanged  ! rejected  ? not acknowledged  - not attempted",
    "From: how long before the run :since began to read; all: everything was read",
)
OTHER_PROJECT = "* for another Iterable project, or with another key"
RUNNING = "running"
UNFINISHED = "did not finish"  # a bug, a crash of the machine, or SIGKILL


def run_history(options: argparse.Namespace) -> ExitCode:
    """Print the last `options.history` runs."""
    console = Console(json=options.json)
    with ExitStack() as stack:
        try:
            settings, _ = settings_for(options, stack)
            console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
            folder = settings.output_dir
            now = time.time()
            place = stack.enter_context(find_ledger(folder, settings.state_url))
            ledger = stack.enter_context(read_ledger(place.folder, project_of(settings), now=now))
            runs = ledger.runs.last(options.history)
            verified = ledger.verifications.last()
        except SettingsError as error:
            console.configure(console.redactor, log_format=error.log_format)
            for problem in error.problems:
                console.error(problem)
            return error.code
        except RunError as error:
            console.error(str(error))
            return error.code
        is_active = bool(place.holder)
    if options.json:
        console.print_json({**history_as_json(runs, is_active=is_active), "verified": verified_as_json(verified)})
    else:
        for line in history_lines(runs, settings.state_url or folder, is_active=is_active, columns=console.columns):
            console.say(line, log=False)
        if verified is not None:
            console.say(verified_line(verified), log=False)
    return ExitCode.SUCCESS


def _status(run: PastRun, *, is_last: bool, is_active: bool) -> str:
    if run.result is not None:
        return run.result.status
    return RUNNING if is_last and is_active else UNFINISHED


# As JSON --------------------------------------------------------------------------------------------------------------


def history_as_json(runs: Sequence[PastRun], *, is_active: bool) -> dict[str, Any]:
    return {"runs": [_as_json(run, _status(run, is_last=run is runs[-1], is_active=is_active)) for run in runs]}


def _as_json(run: PastRun, status: str) -> dict[str, Any]:
    result = run.result
    return {
        "run_id": run.run_id,
        "started_at": iso(run.started_at),
        "query_file": run.query_file,
        "this_project": run.is_of_this_project,
        "status": status,
        "exit_code": result and result.exit_code,
        "reason": result and result.reason,
        "duration_s": result and result.duration_s,
        "rows": result and result.rows,
        "since": result and _since_as_json(result),
        "users": result and result.users,
        "events": result and result.events,
    }


def _since_as_json(result: RunResult) -> dict[str, Any] | None:
    if result.since_from is None:
        return None
    return {"from": iso(result.since_from), "full_read": result.full_read}


def verified_as_json(found: PastVerification | None) -> dict[str, Any] | None:
    """The last --verify, as far as no run was active when it ended."""
    if found is None:
        return None
    return {
        "finished_at": iso(found.at), "exit_code": found.exit_code, "users": found.users, "events": found.events,
    }  # fmt: skip


def verified_line(found: PastVerification) -> str:
    differ = [
        f"{found.users[name] + found.events[name]:,} {name}"
        for name in ("different", "missing", "doubled")
        if found.users[name] + found.events[name]
    ]
    compared = f"{counted(found.users['compared'], 'user')} and {counted(found.events['compared'], 'event')} compared"
    return f"Last verified {moment(found.at)}: {compared}, {', '.join(differ) or 'nothing differs'}"


# As lines -------------------------------------------------------------------------------------------------------------


def history_lines(
    runs: Sequence[PastRun], where: Path | str, *, is_active: bool, columns: int | None = None
) -> list[str]:
    """A table, the oldest run first. columns: of a terminal, where a longer line is cut."""
    if not runs:
        return [f"There are no runs yet in the ledger of {where}."]
    files = dict.fromkeys(run.query_file for run in runs)
    cells: list[tuple[str, ...]] = [HEAD]
    for run in runs:
        status = _status(run, is_last=run is runs[-1], is_active=is_active)
        cells.append(_cells(run, status, Path(run.query_file).name if len(files) > 1 else ""))
    whole = [each for each in cells if len(each) == len(HEAD)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(each[0]) for each in cells)
    others = [] if all(run.is_of_this_project for run in runs) else [OTHER_PROJECT]
    lines = (_line(each, widths, columns) for each in cells)
    return [*lines, "", *LEGEND, *(f"Query file: {file}" for file in files), *others]


def _cells(run: PastRun, status: str, query: str) -> tuple[str, ...]:
    """One text for each column of HEAD; only the first two where there is no result. query: "" where all have one."""
    named = f"{query}: " if query else ""
    mark = "" if run.is_of_this_project else "*"
    when = f"{datetime.fromtimestamp(run.started_at):%Y-%m-%d %H:%M}{mark}"
    result = run.result
    if result is None:
        return (when, f"{status} ({query})" if query else status)
    return (
        when,
        f"{result.status} {result.exit_code or ''}".rstrip(),
        _short(result.rows),
        _since(run.started_at, result),
        short_duration(result.duration_s),
        f"{named}{_records_and_reason(result)}",
    )


def _line(cells: Sequence[str], widths: Sequence[int], columns: int | None) -> str:
    line = " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)).rstrip()
    return line if columns is None else shortened(line, columns)


def _records_and_reason(result: RunResult) -> str:
    """users +5 !1, events +12: 1 record was rejected"""
    kinds = (("users", result.users), ("events", result.events))
    counts = ", ".join(f"{kind} {_counts(numbers)}" for kind, numbers in kinds if numbers and any(numbers.values()))
    reason = " ".join(result.reason.split())
    return f"{counts}: {reason}" if counts else reason


def _since(started_at: int, result: RunResult) -> str:
    if result.full_read or result.since_from is None:
        return "all"
    return short_duration(started_at - result.since_from)


def _counts(numbers: Mapping[str, int]) -> str:
    """{"delivered": 5, "rejected": 1, ...} -> +5 !1"""
    return " ".join(f"{sign}{_short(numbers[each])}" for each, sign in SIGNS.items() if numbers.get(each))


def _short(number: int | None) -> str:
    """9999 -> 9999; 12345 -> 12k; 1234567 -> 1.2M"""
    if number is None:
        return "-"
    if number < 10_000:
        return str(number)
    size, unit = (1_000_000, "M") if number >= 1_000_000 else (1_000, "k")
    return f"{number / size:.{1 if number < 10 * size else 0}f}{unit}"
