"""What the ledger is told at the end of a run, so that later runs know it."""

from __future__ import annotations

import logging
import sqlite3

from pipeline.delivery import Delivered, note_refusals
from pipeline.ledger.ledger import Cursor, RunResult
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Outcome
from pipeline.report.results import Results
from pipeline.run.brake import id_scheme_of
from pipeline.run.opening import Run
from pipeline.run.reading import Read
from pipeline.run.since import cursor_fingerprint, moves_cursor
from pipeline.transform.payloads import Rules

MAX_REASON_CHARS = 300

logger = logging.getLogger("main")


def remember(run: Run, read: Read, delivered: Delivered) -> None:
    """Tell the ledger what later runs need to know: what can't be sent, what was shown, how ids were made, which fields
    Iterable dropped. A full disk does not change how the run ended: records that were accepted are entered already."""
    try:
        note_refusals(run.ledger, run.stage, run.query_path, keep=not run.options.dry_run)
        if not run.options.dry_run:
            _remember_read(run, read, delivered)
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
    gone = {(kind, name) for kind, name in run.ledger.dropped_fields() if name not in _fields_of(read.rules, kind)}
    run.ledger.forget_dropped((passed - dropped) | gone)
    run.ledger.remember_dropped(dropped)
    for kind in Kind:
        names = sorted(name for each, name in run.ledger.dropped_fields() if each is kind)
        if names:
            run.console.warn(
                f"Iterable drops these fields of {kind.value}s: {', '.join(names)}. Allow them in the project's "
                "settings, then run once with --full; or stop sending them."
            )


def _fields_of(rules: Rules, kind: Kind) -> set[str]:
    """The names of the fields that are sent."""
    return {field.name for field in (rules.user_fields if kind is Kind.USER else rules.event_fields)}


def move_cursor(run: Run, read: Read | None, ending: Ending) -> bool:
    """Move the cursor of :since, where nothing is left that only a later read can bring; returns whether it moved."""
    if read is None or read.since is None:
        return False
    is_partial = run.leaves_pending or run.options.sandbox or run.options.limit is not None
    if not moves_cursor(read.since, ending.code, run.stage.rejected_codes(), is_partial=is_partial):
        return False
    before = run.ledger.cursor(run.query_path)
    started_at = int(read.started_at.timestamp())
    full_at = started_at if read.since.is_full or before is None else before.last_full_at
    run.ledger.set_cursor(run.query_path, Cursor(started_at, cursor_fingerprint(run.settings, read.query), full_at))
    run.ledger.commit()
    return True


def enter_history(run: Run, read: Read | None, ending: Ending, written: Results) -> None:
    """One line for the run, without personal data."""
    since = read.since if read else None
    try:
        run.ledger.end_run(
            RunResult(
                status=written.status,
                exit_code=int(ending.code),
                reason=run.console.redactor.line(ending.reason, max_chars=MAX_REASON_CHARS),
                duration_s=written.duration_s,
                rows=read.rows if read else None,
                since_from=int(since.start.timestamp()) if since else None,
                full_read=read.is_full if read else False,
                users=written.counts["users"],
                events=written.counts["events"],
            )
        )
    except sqlite3.Error as problem:
        logger.error("The run can't be entered into the history: %s", problem)
