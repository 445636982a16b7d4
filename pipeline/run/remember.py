"""What enters the ledger at the end of a run, so that later runs know it."""

from __future__ import annotations

import logging
import sqlite3

from iterable.answers import without_words
from pipeline.delivery import Delivered, note_omitted, note_refusals, report_rejections
from pipeline.ledger.failures import HELD_DAYS
from pipeline.ledger.ledger import Cursor, RunResult
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import ITERABLE_CODES
from pipeline.model.records import Kind, Outcome
from pipeline.model.text import counted, shortened
from pipeline.report.results import Results
from pipeline.run.id_schemes import planned_schemes
from pipeline.run.opening import Run
from pipeline.run.reading import Read
from pipeline.run.since import cursor_fingerprint, why_cursor_stays
from pipeline.transform.known_rows import enter_settled
from pipeline.transform.rules import Rules

MAX_REASON_CHARS = 300

logger = logging.getLogger("main")


def remember(run: Run, read: Read, delivered: Delivered) -> None:
    """Record in the ledger what later runs need: what can't be sent, what was shown, how ids were made, which fields
    Iterable dropped. A full disk does not change how the run ended: records that were accepted are entered already."""
    try:
        keep = not run.options.dry_run
        note_refusals(run.ledger, run.stage, run.query_path, keep=keep, window_from=read.window_from)
        note_omitted(run.ledger, run.stage, run.query_path, keep=keep, window_from=read.window_from)
        if not run.options.dry_run:
            _remember_read(run, read, delivered)
            run.ledger.commit()
    except sqlite3.Error as problem:
        logger.error("At the end, the ledger can't be written: %s", problem)


def _remember_read(run: Run, read: Read, delivered: Delivered) -> None:
    is_whole = _is_whole(run, read)
    window_from = read.window_from if not run.takes_part_of_rows else None
    has_braked = delivered.stopped is not None and delivered.stopped.code is ExitCode.BRAKE
    if is_whole and not has_braked and read.rules.person_is_guessed:
        run.ledger.queries.note_trust(run.query_path, trusts_id=read.planner.people.trusts_guess)
    elsewhere = read.planner.changes.elsewhere
    run.ledger.accepted.mark_users_seen([key for key in elsewhere if not run.stage.people.has_user(key)])
    run.ledger.refresh(
        run.stage.keys(),
        run.query_path,
        full_read=is_whole,
        window_from=window_from,
        users=None if has_braked else run.stage.count_users(),
    )
    if not has_braked:
        _remember_people(run, read)
        events = run.stage.states.count_outcomes()[Kind.EVENT]
        # The ids of these are made so. A part may be known by chance, such as the events without a field that is new.
        if is_whole and (events[Outcome.DELIVERED] or events[Outcome.UNCHANGED]):
            for scheme in planned_schemes(read.rules, read.planner):
                run.ledger.queries.add_id_scheme(run.query_path, scheme, accepted=True)
        _remember_dropped_fields(run, read, delivered)
        if is_whole:
            enter_settled(run.ledger, run.stage)


def _remember_people(run: Run, read: Read) -> None:
    """Who they are, also of those who were sent nothing. A run that braked perhaps took the wrong column for them."""
    run.ledger.accepted.people.add_persons(read.planner.changes.more_persons)
    for users in run.stage.people.unacknowledged_users():
        run.ledger.enter_unacknowledged(users)
    for users in run.stage.people.stale_users():
        run.ledger.accepted.people.restamp(users)


def is_settled(run: Run, read: Read | None, delivered: Delivered | None) -> bool:
    """Whether nothing is left that an earlier run may have sent without its being known."""
    is_part = bool(_partial_option(run)) or run.options.since is not None
    return read is not None and delivered is not None and delivered.stopped is None and not is_part


def _is_whole(run: Run, read: Read) -> bool:
    """Whether all was read that there is."""
    return read.is_full and not run.takes_part_of_rows


def _remember_dropped_fields(run: Run, read: Read, delivered: Delivered) -> None:
    """Until a run delivers a field without its being dropped, or it is not sent any more, each run warns of it."""
    dropped = {(kind, name) for kind, names in delivered.filtered_out_fields.items() for name in names}
    passed = {(kind, name) for kind, names in delivered.passed_fields.items() for name in names}
    gone = {(kind, name) for kind, name in run.ledger.dropped_fields.all() if name not in _fields_of(read.rules, kind)}
    run.ledger.dropped_fields.forget((passed - dropped) | gone)
    run.ledger.dropped_fields.remember(dropped)
    for kind in Kind:
        names = sorted(name for each, name in run.ledger.dropped_fields.all() if each is kind)
        if names:
            run.console.warn(
                f"Iterable drops these fields of {kind.value}s: {', '.join(names)}. Allow them in the project's "
                f"settings, then run once with --full {kind.value}s --yes; or stop sending them."
            )


def _fields_of(rules: Rules, kind: Kind) -> set[str]:
    """The names of the fields that are sent."""
    return {field.name for field in (rules.user_fields if kind is Kind.USER else rules.event_fields)}


def moves_cursor(run: Run, read: Read | None, ending: Ending) -> bool:
    """Whether the cursor of :since moves after a run that ended so; the console says why not."""
    if read is None or read.since is None:
        return False
    stays = why_cursor_stays(read.since, ending.code, partial=_partial_option(run))
    if stays:
        run.console.say(f"        The next run reads from the same time again: {stays}.")
    return not stays


def let_go_note(run: Run, read: Read | None) -> str:
    """What to say of records that no window of :since goes back to any more."""
    count = run.ledger.failures.count_let_go(run.query_path) if read is not None and read.since is not None else 0
    if not count:
        return ""
    return (
        f"{counted(count, 'record')} that may still be accepted failed first {HELD_DAYS} days ago or more; "
        "only full reads try them again (FULL_READ_DAYS, or --since all)."
    )


def _partial_option(run: Run) -> str:
    """The option for which this run reads or sends only a part, if any."""
    for name in ("limit", "only", "sandbox", "dry_run", "before"):
        if getattr(run.options, name):
            return f"--{name.replace('_', '-')}"
    return ""


def close_books(run: Run, read: Read | None, delivered: Delivered | None, ending: Ending, written: Results) -> Ending:
    """The last act of a run, when all is written and shown: in one commit, the cursor moves, the rejections that were
    reported become known, and the history gets its line. Returns how the run ends."""
    try:
        if ending.code is ExitCode.REJECTED:
            report_rejections(run.ledger, run.stage)
        if read is not None and read.since is not None:
            _note_reading(run, read, delivered, ending, has_moved=bool((written.since or {}).get("mark_moved")))
        _enter_history(run, read, ending, written)
    except sqlite3.Error as problem:
        logger.error("At the end, the ledger can't be written: %s", problem)
        if ending.code is ExitCode.REJECTED:  # the next run reports them again
            return Ending(ExitCode.TEMPORARY, f"{ending.reason} The ledger can't be written ({problem}).")
    return ending


def _note_reading(run: Run, read: Read, delivered: Delivered | None, ending: Ending, *, has_moved: bool) -> None:
    started_at = int(read.started_at.timestamp())
    before = run.ledger.queries.cursor(run.query_path)
    if has_moved and ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED):
        full_at = started_at if read.is_full or before is None else before.last_full_at
        run.ledger.queries.set_cursor(
            run.query_path, Cursor(started_at, cursor_fingerprint(run.settings, read.query), full_at)
        )
    elif read.is_full and not _partial_option(run) and delivered is not None and delivered.stopped is None:
        run.ledger.queries.note_full_read(run.query_path, started_at)


def _enter_history(run: Run, read: Read | None, ending: Ending, written: Results) -> None:
    """One line for the run, without personal data."""
    run.ledger.end_run(
        RunResult(
            status=written.status,
            exit_code=int(ending.code),
            reason=shortened(
                run.console.redactor.line(without_words(ending.reason, known_codes=ITERABLE_CODES)), MAX_REASON_CHARS
            ),
            duration_s=written.duration_s,
            rows=read.rows if read else None,
            since_from=read.window_from if read else None,
            full_read=read is not None and _is_whole(run, read) and run.options.before is None,
            users=written.counts["users"],
            events=written.counts["events"],
        )
    )
