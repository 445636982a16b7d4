"""The account that a run leaves: outcomes of all records, results JSON, rejected rows, summary, and the last heartbeat.

`Account` holds what the steps found out, as far as they came; `report` writes everything down.
"""

from __future__ import annotations

import logging
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from iterable import VERSION
from pipeline.config import Settings
from pipeline.delivery import Delivered
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.report import results
from pipeline.report.log import LOG_NAME
from pipeline.report.retention import disk_space_warning
from pipeline.report.summary import NOT_ATTEMPTED, SHOWN_REASONS, summary
from pipeline.run.conclusion import DRY_RUN_REASON, reasons_of, status_of
from pipeline.run.earlier_runs import project_mark
from pipeline.run.heartbeat import account_of
from pipeline.run.opening import Run, project_of
from pipeline.run.people_report import gone_users, people_as_json, people_lines
from pipeline.run.reading import Read
from pipeline.run.remember import close_books, is_settled, let_go_note, moves_cursor
from pipeline.run.steps import Plan, mode_for
from pipeline.run.watch import raise_alarm, update_metrics

logger = logging.getLogger("main")


@dataclass
class Account:
    """What each step found out; None for those that the run did not reach. Only `main.run` fills it in."""

    read: Read | None = None
    plan: Plan | None = None
    delivered: Delivered | None = None


@dataclass(frozen=True)
class _Left:
    """What is left behind beside the results. mark_moved: of :since. rejected: the name of the rejected rows' file."""

    mark_moved: bool = False
    rejected: str | None = None
    failures: Sequence[FailedRecord] = ()


def report(run: Run, account: Account, ending: Ending) -> ExitCode:
    """The results JSON, the rejected rows, the summary, the last ping, the history, and the log's last line."""
    run.interrupt.stop_raising()
    ending = run.keeper.confirm(ending)
    counts = _count_all(run, account, ending)
    ending = raise_alarm(run, ending, counts)
    try:
        mark_moved = moves_cursor(run, account.read, ending)
        left = _Left(mark_moved, _write_rejected_rows(run, account), list(_undelivered(run, results.MAX_FAILURES)))
        written = _results(run, account, ending, counts, left)
        results.write_results(run.settings.output_dir / results.RESULTS_NAME.format(run.run_id), written)
    except (OSError, sqlite3.Error) as problem:
        ending = _without_results(ending, "written", problem)
        written = _results(run, account, ending, counts, _Left())
    _show(run, account, ending, written)
    written, ending = _corrected(run, written, ending, _print_json(run, ending, written))
    pinged = None
    if ending.code is not ExitCode.SUCCESS:  # what it has found counts as known once the ledger is closed
        _ping(run, ending, written)
        pinged = ending.code
    if not (run.options.dry_run or run.options.sandbox):
        closed = close_books(run, account.read, account.delivered, ending, written)
        if closed is not ending:
            run.console.error(closed.reason)
        finished = run.keeper.finish(closed, is_settled=is_settled(run, account.read, account.delivered))
        if finished is not closed:
            run.console.error(finished.reason.removeprefix(closed.reason).lstrip())  # that has been said
        written, ending = _corrected(run, written, ending, finished)
        update_metrics(run, written)
    if ending.code is not pinged:
        _ping(run, ending, written)
    logger.info("Finished with exit code %d (%s): %s", ending.code, written.status, ending.reason)
    return ending.code


def _ping(run: Run, ending: Ending, written: results.Results) -> None:
    if warning := run.heartbeat.finish(ending.code, account_of(written, ending, run.console.redactor)):
        run.console.warn(warning)


def _corrected(run: Run, written: results.Results, before: Ending, ending: Ending) -> tuple[results.Results, Ending]:
    """The results of a run that ended otherwise than they say, as they could not be printed or the ledger not be
    closed; the file says so, too, where it was written and can be again. Then :since does not move."""
    if ending is before:
        return written, ending
    since = {**written.since, "mark_moved": False} if written.since is not None else None
    status = status_of(run, ending, written.counts)
    reason = run.console.redactor.without_secrets(ending.reason)
    written = replace(written, exit_code=int(ending.code), status=status, reason=reason, since=since)
    path = run.settings.output_dir / results.RESULTS_NAME.format(run.run_id)
    with suppress(OSError):
        if path.is_file():
            results.rewrite_results(path, written)
    return written, ending


def _count_all(run: Run, account: Account, ending: Ending) -> dict[str, Any]:
    """Give every record its outcome and count them. Without a complete CSV there are none."""
    if account.read is None:
        return results.counts_as_json({})
    try:
        ran_dry = run.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED)
        run.stage.note_not_attempted(f"{NOT_ATTEMPTED}{DRY_RUN_REASON if ran_dry else ending.happened}")
    except sqlite3.Error as problem:
        logger.error("At the end, the list of failures can't be written: %s", problem)
    if any(run.stage.states.count_pending(kind) for kind in Kind):
        raise AssertionError("some records have no outcome")
    return results.counts_as_json(
        run.stage.states.count_outcomes(),
        rows=account.read.rows,
        duplicate_events=run.stage.doubled.repeated,
        corrected_events=run.stage.doubled.corrected,
        merged_users=run.stage.merged_users,
        gone_users=gone_users(run, account.read),
    )


def _write_rejected_rows(run: Run, account: Account) -> str | None:
    """A CSV of the rows of rejected records, if there are some; returns its name."""
    rejected = (each for each in run.stage.outcomes.undelivered() if each.outcome is Outcome.REJECTED)
    first = next(rejected, None)
    if account.read is None or first is None:
        return None
    name = results.REJECTED_NAME.format(run.run_id)
    folder = run.settings.output_dir
    rows = chain([first], rejected)
    results.write_rejected_rows(folder / name, folder / account.read.csv_name, rows, run.console.redactor)
    return name


def _undelivered(run: Run, limit: int = -1) -> Iterator[FailedRecord]:
    return run.stage.outcomes.undelivered(limit, with_not_attempted=not run.leaves_pending)


def _without_results(ending: Ending, what: str, problem: Exception) -> Ending:
    code = ExitCode.TEMPORARY if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED) else ending.code
    return Ending(code, f"{ending.reason} The results could not be {what}: {results.reason_of(problem)}.")


def _results(run: Run, account: Account, ending: Ending, counts: dict[str, Any], left: _Left) -> results.Results:
    settings, read = run.settings, account.read
    delivered = account.delivered or Delivered()
    mode = account.plan.mode if account.plan is not None else mode_for(settings, pending=0)
    return results.Results(
        result_version=results.RESULT_VERSION,
        tool_version=VERSION,
        project_mark=project_mark(project_of(settings)),
        run_id=run.run_id,
        status=status_of(run, ending, counts),
        exit_code=int(ending.code),
        reason=run.console.redactor.without_secrets(ending.reason),
        started_at=run.started_at.isoformat(timespec="seconds"),
        finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - run.started_s, 3),
        host=socket.gethostname(),
        database=settings.shown_database(),
        query_file=settings.query_file.name,
        options={name: getattr(run.options, name) for name in ("sandbox", "dry_run", "full", "limit", "baseline")},
        since=_since_as_json(read, left.mark_moved),
        authentication=run.authentication,
        push_mode=mode.name,
        base_url=settings.iterable_base_url,
        retry=_retry_as_json(settings),
        counts=counts,
        delivered_total=sum(counts[kind]["delivered"] for kind in ("users", "events")) + delivered.entered,
        requests=results.requests_as_json(mode.endpoints, run.client.request_counts),
        fields=_fields_as_json(read, delivered),
        files=_files_as_json(run, account, left.rejected),
        reasons=reasons_of(run),
        journeys=account.plan.journeys.as_json() if account.plan and account.plan.journeys else None,
        failures_total=results.count_failures(counts, without_not_attempted=run.leaves_pending),
        failures=results.failures_as_json(
            left.failures, run.console.redactor, by_user_id=settings.iterable_identifier == "userId"
        ),
        **people_as_json(read, run.stage),
    )


def _retry_as_json(settings: Settings) -> dict[str, float]:
    names = ("max_retries", "backoff_factor", "initial_backoff")
    return {name: results.as_number(getattr(settings, name)) for name in names}


def _fields_as_json(read: Read | None, delivered: Delivered) -> dict[str, list[str]]:
    return {
        "filtered_out": sorted(frozenset().union(*delivered.filtered_out_fields.values())),
        "created": sorted(frozenset().union(*delivered.created_fields.values())),
        "not_sent": list(read.rules.not_sent) if read else [],
    }


def _files_as_json(run: Run, account: Account, rejected: str | None) -> dict[str, str | None]:
    return {
        "results": results.RESULTS_NAME.format(run.run_id),
        "csv": account.read.csv_name if account.read else None,
        "log": LOG_NAME,
        "rejected": rejected,
        "preview": account.plan.preview if account.plan else None,
    }


def _since_as_json(read: Read | None, mark_moved: bool) -> dict[str, str | bool] | None:
    if read is None or read.since is None:
        return None
    return {"from": read.since.shown(), "full_read": read.since.is_full, "mark_moved": mark_moved}


def _show(run: Run, account: Account, ending: Ending, written: results.Results) -> None:
    console = run.console
    if ending.code is not ExitCode.SUCCESS:
        console.error(ending.happened, ending.ways_on)
    reasons = reasons_of(run, SHOWN_REASONS)
    people = list(people_lines(run, account.read))
    for line in summary(written, reasons, left_users=run.stage.left_users, people=people, columns=console.columns):
        console.say(line)
    if note := let_go_note(run, account.read):
        console.say(note)
    if not (run.settings.keep_days or run.options.dry_run or run.options.sandbox):
        folder = run.settings.output_dir
        with suppress(OSError):  # no figures, no sentence
            if crowded := disk_space_warning(folder, shutil.disk_usage(folder).free):
                console.say(crowded)
    if run.stand_in is not None:
        held = run.stand_in.project.state()
        console.say(f"The stand-in now holds {held['users']:,} users and {held['events']:,} events.")
        console.say("This was a sandbox run: nothing left this machine.")


def _print_json(run: Run, ending: Ending, written: results.Results) -> Ending:
    """For --json. Whoever reads it must learn where it does not come whole."""
    if not run.options.json:
        return ending
    try:
        run.console.print_json(results.as_json(written))
    except OSError as problem:
        run.console.error(f"The results could not be printed: {results.reason_of(problem)}.")
        return _without_results(ending, "printed", problem)
    return ending
