"""How a run ended, and the account that it leaves: each record's outcome, the results JSON, the summary, the last ping.

`Account` holds what the steps found out, as far as they came. `conclude` and `conclude_after` say how the run ended,
`report` writes everything down.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pipeline import results
from pipeline.delivery import Delivered
from pipeline.ending import Ending, ExitCode, RunError
from pipeline.interrupt import Interrupted
from pipeline.log import LOG_NAME, Console
from pipeline.modes import choose_mode
from pipeline.opening import Run
from pipeline.records import Kind, Outcome, Undelivered
from pipeline.settings import SettingsError
from pipeline.steps import Plan, Read

DRY_RUN_REASON = "Dry run: nothing was sent."

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
        left = f"{numbers[Outcome.UNACKNOWLEDGED]:,} records were not acknowledged; the next run sends them again."
        return Ending(ExitCode.TEMPORARY, f"{left} {_example(run, Outcome.UNACKNOWLEDGED)}".rstrip())
    if numbers[Outcome.REJECTED]:
        path = run.settings.output_dir / results.REJECTED_NAME.format(run.run_id)
        return Ending(ExitCode.REJECTED, f"{numbers[Outcome.REJECTED]:,} records were rejected; see {path}.")
    if run.options.dry_run:
        return Ending(ExitCode.SUCCESS, DRY_RUN_REASON)
    if account.read is None or not account.read.rows:
        return Ending(ExitCode.SUCCESS, "The query found no rows.")
    told = [f"{numbers[each]:,} {each.value}" for each in (Outcome.DELIVERED, Outcome.UNCHANGED) if numbers[each]]
    return Ending(ExitCode.SUCCESS, f"All records are in Iterable: {', '.join(told)}.")


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


# The account ----------------------------------------------------------------------------------------------------------


def report(run: Run, account: Account, ending: Ending) -> ExitCode:
    """The results JSON, the rejected rows, the summary, the log's last line, and the last ping."""
    run.interrupt.stop_raising()
    counts = _count_all(run, account, ending)
    try:
        rejected = _write_rejected_rows(run, account)
        written = _results(run, account, ending, counts, rejected, list(_undelivered(run, results.MAX_FAILURES)))
        results.write_results(run.settings.output_dir / results.RESULTS_NAME.format(run.run_id), written)
    except (OSError, sqlite3.Error) as problem:
        ending = _without_results(ending, "written", problem)
        written = _results(run, account, ending, counts, None, [])
    _show(run, ending, written)
    ending = _print_json(run, ending, written)
    logger.info("Finished with exit code %d (%s): %s", ending.code, written.status, ending.reason)
    run.heartbeat.finish(ending.code)
    return ending.code


def _count_all(run: Run, account: Account, ending: Ending) -> dict[str, Any]:
    """Give every record its outcome and count them. Without a complete CSV there are none."""
    if account.read is None:
        return results.counts_as_json(0, 0, {})
    try:
        ran_dry = run.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED)
        run.stage.note_not_attempted(f"Not attempted: {DRY_RUN_REASON if ran_dry else ending.reason}")
        if not run.options.dry_run:
            run.ledger.refresh(run.stage.keys(), str(run.settings.query_file), full_read=run.options.limit is None)
            run.ledger.commit()
    except sqlite3.Error as problem:
        logger.error("At the end, the ledger or the list of failures can't be written: %s", problem)
    if any(run.stage.count_pending(kind) for kind in Kind):
        raise AssertionError("some records have no outcome")
    return results.counts_as_json(account.read.rows, run.stage.duplicate_events, run.stage.count_outcomes())


def _write_rejected_rows(run: Run, account: Account) -> str | None:
    """A CSV of all rows that have a record not in Iterable, if there is one; returns its name."""
    if account.read is None or next(_undelivered(run, 1), None) is None:
        return None
    name = results.REJECTED_NAME.format(run.run_id)
    folder = run.settings.output_dir
    results.write_rejected_rows(folder / name, folder / account.read.csv_name, _undelivered(run), run.console.redactor)
    return name


def _undelivered(run: Run, limit: int = -1) -> Iterator[Undelivered]:
    return run.stage.undelivered(limit, with_not_attempted=not run.options.dry_run)


def _without_results(ending: Ending, what: str, problem: Exception) -> Ending:
    code = ExitCode.TEMPORARY if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED) else ending.code
    return Ending(code, f"{ending.reason} The results could not be {what}: {results.reason_of(problem)}.")


def _reasons(run: Run) -> list[results.Reason]:
    try:
        reasons = [results.Reason(*each) for each in run.stage.count_reasons(results.SHOWN_REASONS)]
    except sqlite3.Error:
        return []
    planned_only = Outcome.NOT_ATTEMPTED.value if run.options.dry_run else None
    return [reason for reason in reasons if reason.outcome != planned_only]


def _results(
    run: Run,
    account: Account,
    ending: Ending,
    counts: dict[str, Any],
    rejected: str | None,
    failures: list[Undelivered],
) -> results.Results:
    settings = run.settings
    finished_at = datetime.now(timezone.utc)
    delivered = account.delivered or Delivered()
    mode = account.plan.mode if account.plan is not None else choose_mode(settings, pending=0)
    return results.Results(
        result_version=results.RESULT_VERSION,
        run_id=run.run_id,
        status=_status(run, ending, counts),
        exit_code=int(ending.code),
        reason=run.console.redactor.without_secrets(ending.reason),
        started_at=run.started_at.isoformat(timespec="seconds"),
        finished_at=finished_at.isoformat(timespec="seconds"),
        duration_s=round((finished_at - run.started_at).total_seconds(), 3),
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
        },
        files={"csv": account.read.csv_name if account.read else None, "log": LOG_NAME, "rejected": rejected},
        failures=results.failures_as_json(
            failures, run.console.redactor, by_user_id=settings.iterable_identifier == "userId"
        ),
    )


def _status(run: Run, ending: Ending, counts: dict[str, Any]) -> str:
    if ending.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
        return "interrupted"
    if run.options.dry_run and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED):
        return "dry_run"
    if ending.code is ExitCode.SUCCESS:
        return "success"
    done = sum(counts[kind][each] for kind in ("users", "events") for each in ("delivered", "unchanged"))
    return "partial" if done and ending.code in (ExitCode.REJECTED, ExitCode.TEMPORARY) else "failed"


def _show(run: Run, ending: Ending, written: results.Results) -> None:
    console = run.console
    if ending.code is not ExitCode.SUCCESS:
        console.error(ending.reason)
    for line in results.summary(written, _reasons(run)):
        console.say(line)
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
