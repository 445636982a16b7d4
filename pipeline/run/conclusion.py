"""How a run ended: its exit code, and the sentence for it. The gravest thing counts."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from typing import Any

from pipeline.config import ROOT, SettingsError
from pipeline.delivery import Delivered
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.records import Kind, Outcome
from pipeline.model.text import counted
from pipeline.report import results
from pipeline.report.log import LOG_NAME, Console
from pipeline.run.interrupt import Interrupted
from pipeline.run.opening import Run
from pipeline.run.reading import Read

DRY_RUN_REASON = "Dry run: nothing was sent."

logger = logging.getLogger("main")


def refuse(problem: BaseException, console: Console) -> ExitCode:
    """A run that can't even begin: nothing is written, and the reason goes to stderr."""
    if isinstance(problem, SettingsError):
        console.configure(console.redactor, log_format=problem.log_format)
        for sentence in problem.problems:
            console.error(sentence)
        file = ".env" if problem.env_file in (None, ROOT / ".env") else problem.env_file
        console.error(
            f"Fix this in {file}, which begins as a copy of .env.example; or try the job without a key: main.py "
            "--sandbox"
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


def conclude(run: Run, read: Read, delivered: Delivered) -> Ending:
    """How a run ended that got through its steps."""
    if delivered.stopped is not None:
        return delivered.stopped
    by_kind = run.stage.states.count_outcomes().values()
    numbers = {outcome: sum(counts[outcome] for counts in by_kind) for outcome in Outcome}
    if numbers[Outcome.UNACKNOWLEDGED]:
        left = f"{_records(numbers[Outcome.UNACKNOWLEDGED])} not acknowledged; the next run tries again."
        return Ending(ExitCode.TEMPORARY, f"{left} {_example(run, Outcome.UNACKNOWLEDGED)}".rstrip())
    if numbers[Outcome.REJECTED]:
        return _conclude_rejected(run, numbers[Outcome.REJECTED])
    if omitted := run.stage.outcomes.count_omitted():
        return _conclude_omitted(run, *omitted)
    if not read.rows and run.options.only:
        where = f"first {counted(run.options.limit, 'row')} of the query hold" if run.options.limit else "query finds"
        return Ending(ExitCode.REJECTED, f"The {where} no rows of the person that --only names.")
    if run.options.dry_run:
        return Ending(ExitCode.SUCCESS, DRY_RUN_REASON)
    if not read.rows:
        return Ending(ExitCode.SUCCESS, "The query found no rows.")
    if run.options.baseline:
        return _conclude_baseline(run, delivered, numbers[Outcome.UNCHANGED])
    done = [f"{numbers[each]:,} {each.value}" for each in (Outcome.DELIVERED, Outcome.UNCHANGED) if numbers[each]]
    return Ending(ExitCode.SUCCESS, f"All records are in Iterable: {', '.join(done)}.")


def _conclude_baseline(run: Run, delivered: Delivered, known: int) -> Ending:
    left = [counted(count, kind.value) for kind in Kind if (count := run.stage.states.count_pending(kind))]
    if delivered.entered_addresses:
        more = f"{' and '.join(left) or 'Nothing'} left to the next run."
        return Ending(ExitCode.SUCCESS, f"The new address was recorded, and nothing else; nothing was sent. {more}")
    more = f" {' and '.join(left)} left to the next run, as --before was given." if left else ""
    return Ending(ExitCode.SUCCESS, f"{_records(known)} recorded as accepted; nothing was sent.{more}")


def _conclude_rejected(run: Run, rejected: int) -> Ending:
    new = run.stage.outcomes.count_new_rejections()
    path = run.settings.output_dir / results.REJECTED_NAME.format(run.run_id)
    known = "" if new == rejected else f", {new:,} of them new" if new else ", all known from earlier runs"
    code = ExitCode.SUCCESS if run.settings.exit_on_rejected == "new" and not new else ExitCode.REJECTED
    return Ending(code, f"{_records(rejected)} rejected{known}; see {path}.")


def _conclude_omitted(run: Run, values: int, new: int) -> Ending:
    """Values that were left out (BAD_VALUES=omit) end a run as rejected records do."""
    known = "" if new == values else f", {new:,} of them new" if new else ", all known from earlier runs"
    code = ExitCode.SUCCESS if run.settings.exit_on_rejected == "new" and not new else ExitCode.REJECTED
    left = "1 value was left out, as it" if values == 1 else f"{values:,} values were left out, as they"
    return Ending(code, f"{left} can't be sent{known}; see omitted_values in the results.")


def _records(number: int) -> str:
    return f"{number:,} record was" if number == 1 else f"{number:,} records were"


def _example(run: Run, outcome: Outcome) -> str:
    messages = [reason.message for reason in reasons_of(run) if reason.outcome == outcome.value]
    return f"For example: {messages[0].rstrip('.')}." if messages else ""


def reasons_of(run: Run, limit: int = results.MAX_REASONS) -> list[results.Reason]:
    try:
        reasons = [results.Reason(*each) for each in run.stage.outcomes.count_reasons(limit)]
    except sqlite3.Error:
        return []
    planned_only = Outcome.NOT_ATTEMPTED.value if run.leaves_pending else None
    clean = run.console.redactor.without_secrets
    return [replace(each, message=clean(each.message)) for each in reasons if each.outcome != planned_only]


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


def status_of(run: Run, ending: Ending, counts: dict[str, Any]) -> str:
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
    can_be_partial = (ExitCode.REJECTED, ExitCode.TEMPORARY, ExitCode.UNAVAILABLE)
    return "partial" if done and ending.code in can_be_partial else "failed"
