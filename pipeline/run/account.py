"""How a run ended, and the account that it leaves: each record's outcome, the results JSON, the summary, the last ping.

`Account` holds what the steps found out, as far as they came. `conclude` and `conclude_after` say how the run ended,
`report` writes everything down.
"""

from __future__ import annotations

import logging
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import chain
from typing import Any

from iterable import VERSION
from pipeline.config.settings import SettingsError
from pipeline.delivery.delivery import Delivered
from pipeline.delivery.failure_history import note_refusals
from pipeline.delivery.modes import choose_mode
from pipeline.ledger.ledger import Cursor, RunResult
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.report import results
from pipeline.report.log import LOG_NAME, Console
from pipeline.report.retention import disk_space_warning
from pipeline.run.brake import id_scheme_of
from pipeline.run.interrupt import Interrupted
from pipeline.run.opening import Run
from pipeline.run.since import cursor_fingerprint, moves_cursor
from pipeline.run.steps import Plan, Read, fields_of

DRY_RUN_REASON = "Dry run: nothing was sent."
MAX_REASON_CHARS = 300

logger = logging.getLogger("main")


@dataclass
class Account:
    """What each step found out; None for those that the run did not reach. Only `main.run` fills it in."""

    read: Read | None = None
    plan: Plan | None = None
    delivered: Delivered | None = None


# How it ended ---------------------------------------------------------------------------------------------------------


def refuse(problem: BaseException, console: Console) -> ExitCode:
    """A run that can't even begin: nothing is written, and the reason goes to stderr."""
    if isinstance(problem, SettingsError):
        for sentence in problem.problems:
            console.error(sentence)
        console.error(
            "Fix this in .env (to begin with: cp .env.example .env), or try the job without a key: "
            "python main.py --sandbox"
        )
    elif code_of(problem) is ExitCode.BUG:
        logger.error("This is a bug.", exc_info=problem)
        console.error(f"A bug: {type(problem).__name__}: {problem}. Nothing was sent. Please report it.")
    else:
        console.error(str(problem))
    return code_of(problem)


def code_of(problem: BaseException) -> ExitCode:
    """The exit code of a run that this ended before it sent anything."""
    if isinstance(problem, Interrupted):
        return problem.ending.code
    return problem.code if isinstance(problem, RunError) else ExitCode.BUG


def conclude(run: Run, account: Account) -> Ending:
    """How a run ended that got through its steps: the gravest thing counts."""
    if account.delivered is not None and account.delivered.stopped is not None:
        return account.delivered.stopped
    by_kind = run.stage.count_outcomes().values()
    numbers = {outcome: sum(counts[outcome] for counts in by_kind) for outcome in Outcome}
    if numbers[Outcome.UNACKNOWLEDGED]:
        left = f"{_records(numbers[Outcome.UNACKNOWLEDGED])} not acknowledged; the next run tries again."
        return Ending(ExitCode.TEMPORARY, f"{left} {_example(run, Outcome.UNACKNOWLEDGED)}".rstrip())
    if numbers[Outcome.REJECTED]:
        return _conclude_rejected(run, numbers[Outcome.REJECTED])
    if run.options.dry_run:
        return Ending(ExitCode.SUCCESS, DRY_RUN_REASON)
    if account.read is None or not account.read.rows:
        return Ending(ExitCode.SUCCESS, "The query found no rows.")
    if run.options.baseline:
        return Ending(ExitCode.SUCCESS, f"{_records(numbers[Outcome.UNCHANGED])} known as accepted; nothing was sent.")
    told = [f"{numbers[each]:,} {each.value}" for each in (Outcome.DELIVERED, Outcome.UNCHANGED) if numbers[each]]
    return Ending(ExitCode.SUCCESS, f"All records are in Iterable: {', '.join(told)}.")


def _conclude_rejected(run: Run, rejected: int) -> Ending:
    new = run.stage.count_new_rejections()
    path = run.settings.output_dir / results.REJECTED_NAME.format(run.run_id)
    known = "" if new == rejected else f", {new:,} of them new" if new else ", all known from earlier runs"
    code = ExitCode.SUCCESS if run.settings.exit_on_rejected == "new" and not new else ExitCode.REJECTED
    return Ending(code, f"{_records(rejected)} rejected{known}; see {path}.")


def _records(number: int) -> str:
    return f"{number:,} record was" if number == 1 else f"{number:,} records were"


def _example(run: Run, outcome: Outcome) -> str:
    messages = [reason.message for reason in _reasons(run) if reason.outcome == outcome.value]
    return f"For example: {messages[0].rstrip('.')}." if messages else ""


def conclude_after(run: Run, problem: BaseException) -> Ending:
    """How a run ended that broke off. A bug's traceback goes to the log only."""
    if (asked := run.interrupt.ending()) is not None:
        return asked
    code = code_of(problem)
    if code is not ExitCode.BUG:
        return Ending(code, str(problem))
    logger.error("This is a bug.", exc_info=problem)
    where = run.settings.output_dir / LOG_NAME
    return Ending(code, f"A bug: {type(problem).__name__}. Please report it with the traceback in {where}.")


# What the ledger is told ----------------------------------------------------------------------------------------------


def remember(run: Run, account: Account) -> None:
    """Tell the ledger what later runs need to know: what can't be sent, what was shown, how ids were made, which fields
    Iterable dropped. A full disk does not change how the run ended: records that were accepted are entered already."""
    if account.read is None or account.delivered is None:
        return
    try:
        note_refusals(run.ledger, run.stage, run.query_path, keep=not run.options.dry_run)
        if not run.options.dry_run:
            _remember_read(run, account.read, account.delivered)
            run.ledger.commit()
    except sqlite3.Error as problem:
        logger.error("At the end, the ledger can't be written: %s", problem)


def _remember_read(run: Run, read: Read, delivered: Delivered) -> None:
    is_whole = read.is_full and run.options.limit is None
    run.ledger.refresh(run.stage.keys(), run.query_path, full_read=is_whole)
    if delivered.stopped is None or delivered.stopped.code is not ExitCode.BRAKE:
        events = run.stage.count_outcomes()[Kind.EVENT]
        # The ids of these are made so. A part may be known by chance, such as the events without a field that is new.
        if events[Outcome.DELIVERED] or (events[Outcome.UNCHANGED] and is_whole):
            run.ledger.add_id_scheme(run.query_path, id_scheme_of(read.rules), accepted=True)
        _remember_dropped_fields(run, read, delivered)


def _remember_dropped_fields(run: Run, read: Read, delivered: Delivered) -> None:
    """Until a run delivers a field without its being dropped, or it is not sent any more, each run warns of it."""
    dropped = {(kind, name) for kind, names in delivered.filtered_out_fields.items() for name in names}
    passed = {(kind, name) for kind, names in delivered.passed_fields.items() for name in names}
    gone = {(kind, name) for kind, name in run.ledger.dropped_fields() if name not in fields_of(read.rules, kind)}
    run.ledger.forget_dropped((passed - dropped) | gone)
    run.ledger.remember_dropped(dropped)
    for kind in Kind:
        names = sorted(name for each, name in run.ledger.dropped_fields() if each is kind)
        if names:
            run.console.warn(
                f"Iterable drops these fields of {kind.value}s: {', '.join(names)}. Allow them in the project's "
                "settings, then run once with --full; or stop sending them."
            )


def _move_cursor(run: Run, account: Account, ending: Ending) -> bool:
    """Move the cursor of :since, where nothing is left that only a later read can bring; returns whether it moved."""
    read = account.read
    if read is None or read.since is None:
        return False
    is_partial = run.options.dry_run or run.options.sandbox or run.options.limit is not None
    if not moves_cursor(read.since, ending.code, run.stage.rejected_codes(), is_partial=is_partial):
        return False
    before = run.ledger.cursor(run.query_path)
    started_at = int(read.started_at.timestamp())
    full_at = started_at if read.since.is_full or before is None else before.last_full_at
    run.ledger.set_cursor(run.query_path, Cursor(started_at, cursor_fingerprint(run.settings, read.query), full_at))
    run.ledger.commit()
    return True


# The account ----------------------------------------------------------------------------------------------------------


def report(run: Run, account: Account, ending: Ending) -> ExitCode:
    """The results JSON, the rejected rows, the summary, the log's last line, the history, and the last ping."""
    run.interrupt.stop_raising()
    counts = _count_all(run, account, ending)
    mark_moved = False
    try:
        mark_moved = _move_cursor(run, account, ending)
        rejected = _write_rejected_rows(run, account)
        failures = list(_undelivered(run, results.MAX_FAILURES))
        written = _results(run, account, ending, counts, mark_moved, rejected, failures)
        results.write_results(run.settings.output_dir / results.RESULTS_NAME.format(run.run_id), written)
    except (OSError, sqlite3.Error) as problem:
        ending = _without_results(ending, "written", problem)
        written = _results(run, account, ending, counts, mark_moved, None, [])
    _show(run, account, ending, written)
    ending = _print_json(run, ending, written)
    logger.info("Finished with exit code %d (%s): %s", ending.code, written.status, ending.reason)
    if not (run.options.dry_run or run.options.sandbox):
        _enter_history(run, account, ending, written)
    run.heartbeat.finish(ending.code)
    return ending.code


def _enter_history(run: Run, account: Account, ending: Ending, written: results.Results) -> None:
    since = account.read.since if account.read else None
    try:
        run.ledger.end_run(
            RunResult(
                status=written.status,
                exit_code=int(ending.code),
                reason=run.console.redactor.line(ending.reason, max_chars=MAX_REASON_CHARS),
                duration_s=written.duration_s,
                rows=account.read.rows if account.read else None,
                since_from=int(since.start.timestamp()) if since else None,
                full_read=account.read.is_full if account.read else False,
                users=written.counts["users"],
                events=written.counts["events"],
            )
        )
    except sqlite3.Error as problem:
        logger.error("The run can't be entered into the history: %s", problem)


def _count_all(run: Run, account: Account, ending: Ending) -> dict[str, Any]:
    """Give every record its outcome and count them. Without a complete CSV there are none."""
    if account.read is None:
        return results.counts_as_json({})
    try:
        ran_dry = run.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED)
        run.stage.note_not_attempted(f"Not attempted: {DRY_RUN_REASON if ran_dry else ending.reason}")
    except sqlite3.Error as problem:
        logger.error("At the end, the list of failures can't be written: %s", problem)
    if any(run.stage.count_pending(kind) for kind in Kind):
        raise AssertionError("some records have no outcome")
    return results.counts_as_json(
        run.stage.count_outcomes(),
        rows=account.read.rows,
        duplicate_events=run.stage.duplicate_events,
        merged_users=run.stage.merged_users,
    )


def _write_rejected_rows(run: Run, account: Account) -> str | None:
    """A CSV of the rows of rejected records, if there are some; returns its name."""
    rejected = (each for each in run.stage.undelivered() if each.outcome is Outcome.REJECTED)
    first = next(rejected, None)
    if account.read is None or first is None:
        return None
    name = results.REJECTED_NAME.format(run.run_id)
    folder = run.settings.output_dir
    rows = chain([first], rejected)
    results.write_rejected_rows(folder / name, folder / account.read.csv_name, rows, run.console.redactor)
    return name


def _undelivered(run: Run, limit: int = -1) -> Iterator[FailedRecord]:
    return run.stage.undelivered(limit, with_not_attempted=not run.options.dry_run)


def _without_results(ending: Ending, what: str, problem: Exception) -> Ending:
    code = ExitCode.TEMPORARY if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED) else ending.code
    return Ending(code, f"{ending.reason} The results could not be {what}: {results.reason_of(problem)}.")


def _reasons(run: Run, limit: int = results.MAX_REASONS) -> list[results.Reason]:
    try:
        reasons = [results.Reason(*each) for each in run.stage.count_reasons(limit)]
    except sqlite3.Error:
        return []
    planned_only = Outcome.NOT_ATTEMPTED.value if run.options.dry_run else None
    clean = run.console.redactor.without_secrets
    return [replace(each, message=clean(each.message)) for each in reasons if each.outcome != planned_only]


def _results(
    run: Run,
    account: Account,
    ending: Ending,
    counts: dict[str, Any],
    mark_moved: bool,
    rejected: str | None,
    failures: list[FailedRecord],
) -> results.Results:
    settings, read = run.settings, account.read
    finished_at = datetime.now(timezone.utc)
    delivered = account.delivered or Delivered()
    mode = account.plan.mode if account.plan is not None else choose_mode(settings, pending=0)
    return results.Results(
        result_version=results.RESULT_VERSION,
        tool_version=VERSION,
        run_id=run.run_id,
        status=_status(run, ending, counts),
        exit_code=int(ending.code),
        reason=run.console.redactor.without_secrets(ending.reason),
        started_at=run.started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        duration_s=round((finished_at - run.started_at).total_seconds(), 3),
        host=socket.gethostname(),
        database=settings.shown_database(),
        query_file=settings.query_file.name,
        options={name: getattr(run.options, name) for name in ("sandbox", "dry_run", "full", "limit", "baseline")},
        since=_since_as_json(read, mark_moved),
        authentication=run.authentication,
        push_mode=mode.name,
        base_url=settings.iterable_base_url,
        retry={
            name: results.as_number(getattr(settings, name))
            for name in ("max_retries", "backoff_factor", "initial_backoff")
        },
        counts=counts,
        requests=results.requests_as_json(mode.endpoints, run.client.request_counts),
        fields={
            "filtered_out": sorted(frozenset().union(*delivered.filtered_out_fields.values())),
            "created": sorted(frozenset().union(*delivered.created_fields.values())),
            "not_sent": list(read.rules.not_sent) if read else [],
        },
        files={
            "results": results.RESULTS_NAME.format(run.run_id),
            "csv": read.csv_name if read else None,
            "log": LOG_NAME,
            "rejected": rejected,
        },
        reasons=_reasons(run),
        failures_total=results.count_failures(counts, without_not_attempted=run.options.dry_run),
        failures=results.failures_as_json(
            failures, run.console.redactor, by_user_id=settings.iterable_identifier == "userId"
        ),
    )


def _since_as_json(read: Read | None, mark_moved: bool) -> dict[str, str | bool] | None:
    if read is None or read.since is None:
        return None
    return {"from": read.since.shown(), "full_read": read.since.is_full, "mark_moved": mark_moved}


def _status(run: Run, ending: Ending, counts: dict[str, Any]) -> str:
    if ending.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
        return "interrupted"
    if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED):
        if run.options.dry_run:
            return "dry_run"
        if run.options.baseline:
            return "baseline"
    if ending.code is ExitCode.SUCCESS:
        return "partial" if any(counts[kind]["rejected"] for kind in ("users", "events")) else "success"
    done = sum(counts[kind][each] for kind in ("users", "events") for each in ("delivered", "unchanged"))
    return "partial" if done and ending.code in (ExitCode.REJECTED, ExitCode.TEMPORARY) else "failed"


def _show(run: Run, account: Account, ending: Ending, written: results.Results) -> None:
    console = run.console
    if ending.code is not ExitCode.SUCCESS:
        console.error(ending.reason)
    reasons = _reasons(run, results.SHOWN_REASONS)
    for line in results.summary(written, reasons, left_users=run.stage.left_users):
        console.say(line)
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
