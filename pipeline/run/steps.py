"""The steps of a run after it was opened. Each takes what the ones before it found, and returns what it found."""

from __future__ import annotations

import argparse
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from typing import Any

from iterable.export import Column, csv_block, write_csv
from iterable.pacing import rates
from pipeline.config.settings import ROOT, Settings
from pipeline.delivery.delivery import GRACE_S, Delivered, Delivery
from pipeline.delivery.modes import Mode, choose_mode
from pipeline.delivery.senders import BulkSender, SingleSender
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import Ending, ExitCode, OutputError, UsageError
from pipeline.model.records import Kind, Outcome, Record
from pipeline.model.text import counted
from pipeline.report.progress import DeliveryProgress
from pipeline.report.results import CSV_NAME, reason_of
from pipeline.run import dry_run as preview
from pipeline.run.brake import Pending, id_scheme_of, ids_have_changed, too_many
from pipeline.run.forgotten import reject_forgotten
from pipeline.run.opening import Run
from pipeline.run.since import ALL, Since, cursor_fingerprint, decide
from pipeline.source import Query, UndecodableText, open_query, read_query
from pipeline.stage.pages import UserRecords, pages
from pipeline.stage.stage import Stage
from pipeline.transform.payloads import Rules
from pipeline.transform.planner import Planner
from pipeline.transform.rules import make_rules

KEYS_PER_LOOKUP = 500

Rows = Sequence[tuple[Any, ...]]

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Read:
    """The rows, all of them in the CSV and with the planner."""

    csv_name: str
    rows: int
    rules: Rules
    planner: Planner
    query: Query
    since: Since | None
    started_at: datetime

    @property
    def is_full(self) -> bool:
        """Whether all was read that the query has; --limit apart."""
        return self.since is None or self.since.is_full


@dataclass(frozen=True)
class Plan:
    """How many records are to be sent, and how."""

    mode: Mode
    pending: dict[Kind, int]


def introduce(run: Run) -> None:
    """Say what has been opened."""
    say = run.console.say
    say(f"Step 1: Settings read. {run.authentication} authentication, {run.settings.iterable_base_url}")
    if run.options.sandbox:
        say("        This is a sandbox run: nothing leaves this machine, and no ledger is kept.")
    say("Step 2: Ledger opened for reading" if run.options.dry_run else "Step 2: Ledger opened; no other run is active")


def read_rows(run: Run) -> Read:
    """One pass over the rows of the query: each goes into the CSV and, planned, into the stage."""
    query = read_query(run.settings.query_file, str(run.settings.database_url))
    since = choose_since(run.options, run.settings, run.ledger, query, run.started_at)
    run.console.say(f"Step 3: Connecting to {run.settings.shown_database()}")
    if since is not None:
        run.console.say(f"        Reading from {since.shown()} UTC: {since.why}")
    try:
        read = _read_rows(run, query, since)
    except UndecodableText as problem:
        logger.warning("%s All rows are read once more, by a slower decoder that takes any bytes.", problem)
        run.stage.clear()
        read = _read_rows(run, query, since, any_bytes=True)
    run.console.say(f"Step 4.5: {read.rows:,} rows exported to {read.csv_name}")
    if read.rules.not_sent:
        columns = ", ".join(read.rules.not_sent)
        run.console.say(f"        Not sent, as neither USER_FIELDS nor EVENT_FIELDS names them: {columns}")
    return read


def choose_since(
    options: argparse.Namespace, settings: Settings, ledger: Ledger, query: Query, now: datetime
) -> Since | None:
    """From when a query with :since reads; None for one without. Raises UsageError."""
    if not query.uses_since:
        if options.since is not None:
            raise UsageError(f"--since needs a query that contains :since; {query.name} has none.")
        return None
    asked = options.since or (ALL if options.full else None)
    return decide(settings, ledger.cursor(str(settings.query_file)), cursor_fingerprint(settings, query), now, asked)


def _read_rows(run: Run, query: Query, since: Since | None, *, any_bytes: bool = False) -> Read:
    settings = run.settings
    started_at = datetime.now(timezone.utc)
    with open_query(
        str(settings.database_url),
        query,
        root=ROOT,
        should_stop=lambda: run.interrupt.ending() is not None,
        any_bytes=any_bytes,
        since=since.start if since is not None else None,
    ) as result:
        if not any_bytes:
            run.console.say(f"Step 4: Running the user-event query, {query.name}")
        rules = make_rules(result.columns, settings, run.started_at.timestamp())
        planner = Planner(
            run.ledger,
            run.stage,
            rules,
            result.columns,
            full=run.options.full,
            leave_known_users=run.options.limit is not None,
        )
        name = CSV_NAME.format(run.run_id)
        try:
            blocks = _planned(planner, _first(result.blocks, run.options.limit))
            write_csv(settings.output_dir / name, result.columns, blocks, verbatim=True)
        except (OSError, sqlite3.Error) as error:  # the CSV, or the stage beside it
            raise OutputError(f"{name} can't be written ({reason_of(error)}); nothing was sent.") from error
    return Read(name, planner.rows, rules, planner, query, since, started_at)


def _first(blocks: Iterable[Rows], limit: int | None) -> Iterator[Rows]:
    """The first `limit` rows; None: all."""
    if limit is None:
        yield from blocks
        return
    for rows in blocks:
        yield rows[:limit]
        limit -= len(rows)
        if limit <= 0:  # and the rest is never read
            return


def _planned(planner: Planner, blocks: Iterable[Rows]) -> Iterator[str | Iterable[Sequence[Any]]]:
    """Plan the rows, and pass them on to the CSV."""
    for rows in blocks:
        by_column = list(map(Column, zip(*rows, strict=True)))
        planner.plan(by_column)
        yield csv_block(rows, by_column)
    planner.end_reading()


def make_plan(run: Run, read: Read) -> Plan:
    """What is to be sent, and how."""
    try:
        read.planner.finish()
        run.stage.finish_staging(ids_are_given=read.rules.id_column is not None)
        _reject_forgotten(run)
    except sqlite3.Error as error:
        folder = run.settings.output_dir
        raise OutputError(f"{folder} has no room for the records of this run ({error}); nothing was sent.") from error
    pending = {kind: run.stage.count_pending(kind) for kind in Kind}
    mode = choose_mode(run.settings, sum(pending.values()))
    unchanged = sum(counts[Outcome.UNCHANGED] for counts in run.stage.count_outcomes().values())
    run.console.say(
        f"Step 5: {counted(pending[Kind.USER], 'user')} and {counted(pending[Kind.EVENT], 'event')} to send "
        f"({mode.name} requests); "
        f"{unchanged:,} unchanged"
    )
    if run.options.dry_run:
        _show_plan(run)
    return Plan(mode, pending)


def _reject_forgotten(run: Run) -> None:
    if not run.settings.skip_forgotten or not any(run.stage.count_pending(kind) for kind in Kind):
        return
    if run.options.dry_run:
        run.console.say("        Dry run: whom Iterable has forgotten (SKIP_FORGOTTEN) is not looked up.")
        return
    reject_forgotten(run.client, run.stage, by_user_id=run.settings.iterable_identifier == "userId")


def _show_plan(run: Run) -> None:
    say = run.console.say
    say("        Dry run: nothing is sent, and the ledger stays as it is.")
    outcomes = run.stage.count_outcomes()
    for kind in Kind:
        say(f"        {preview.counts(kind, outcomes[kind], run.stage.count_pending(kind))}")
    first = [record for kind in Kind for record in islice(_pending(run.stage, kind), preview.SHOWN_OF_EACH_KIND)]
    if first:
        say("        The first requests would be:")
        say(f"        ({preview.RULE})")
    for record in first:
        for line in preview.first_lines(record):
            say(f"        {line}", log=False)


def _pending(stage: Stage, kind: Kind) -> Iterator[Record]:
    return chain(*(stage.pending(kind, late=late) for late in (False, True)))


def _pending_by_user(stage: Stage, kind: Kind) -> Iterator[UserRecords]:
    return chain(*(stage.pending_by_user(kind, late=late) for late in (False, True)))


def brake(run: Run, read: Read) -> Delivered | None:
    """Stop a run that would send something large and probably unwanted; None lets it go on."""
    if run.options.yes or run.options.baseline or run.options.sandbox:
        return None
    stopped = look_at_brake(run.settings, read.rules, run.ledger, run.stage)
    return None if stopped is None else Delivered(stopped=stopped)


def look_at_brake(settings: Settings, rules: Rules, ledger: Ledger, stage: Stage) -> Ending | None:
    """What stops a run that has this much pending; None: nothing."""
    query_path = str(settings.query_file)
    way, used = id_scheme_of(rules), ledger.id_schemes(query_path)
    knows_records = ledger.count_known() > 0
    stopped = ids_have_changed(way, used, stage.count_pending(Kind.EVENT), knows_records=knows_records)
    if stopped is None and settings.max_changes is not None:
        stopped = too_many(settings.max_changes, _look_at_pending(ledger, stage), _likely_causes(ledger, query_path))
    return stopped


def _look_at_pending(ledger: Ledger, stage: Stage) -> Pending:
    """How many pending records are new to the ledger, and how many changed."""
    changed = dict.fromkeys(Kind, 0)
    for kind in Kind:
        keys = (record.key for record in _pending(stage, kind))
        while chunk := list(islice(keys, KEYS_PER_LOOKUP)):
            changed[kind] += len(ledger.known(chunk))
    new = {kind: stage.count_pending(kind) - changed[kind] for kind in Kind}
    return Pending(new, changed, ledger.count_known())


def fields_of(rules: Rules, kind: Kind) -> set[str]:
    """The names of the fields that are sent."""
    return {field.name for field in (rules.user_fields if kind is Kind.USER else rules.event_fields)}


def _likely_causes(ledger: Ledger, query_path: str) -> list[str]:
    causes = []
    if ledger.is_new_key_for_known_host:
        causes.append("the API key is new to the ledger (ITERABLE_PROJECT keeps what it knows when a key is rotated)")
    elif not ledger.id_schemes(query_path):
        causes.append(f"{query_path} is new to the ledger")
    return causes


def enter_baseline(run: Run, plan: Plan) -> Delivered:
    """Enter all pending records as accepted, after asking. Nothing is sent."""
    users, events = (plan.pending[kind] for kind in Kind)
    if not run.options.yes:
        question = f"Enter {users:,} users and {events:,} events as accepted, without sending them? Type yes: "
        if run.console.ask(question) != "yes":
            return Delivered(stopped=Ending(ExitCode.BRAKE, "Nothing was entered and nothing was sent."))
    run.interrupt.stop_raising()
    for kind in Kind:
        for page in pages(_pending_by_user(run.stage, kind)):
            run.ledger.accept(page)
            run.ledger.commit()
            run.stage.note_unchanged(page)
    return Delivered()


def deliver(run: Run, read: Read, plan: Plan) -> Delivered:
    """Send what is pending. From here on, what is under way is finished or accounted for."""
    if run.options.dry_run:
        return Delivered()
    if run.options.baseline:
        return enter_baseline(run, plan)
    if plan.pending[Kind.EVENT]:
        run.ledger.add_id_scheme(run.query_path, id_scheme_of(read.rules), accepted=False)
        run.ledger.commit()
    run.interrupt.stop_raising(f"Stopping: waiting up to {GRACE_S:g} s for open requests; Ctrl-C again skips the wait.")
    by_user_id = run.settings.iterable_identifier == "userId"
    paces = rates(run.settings.rate_limit_percent)
    pause_s = max(1 / paces[name] for name in plan.mode.endpoints)
    progress = DeliveryProgress(run.console, run.stage.count_delivered, pause_s=pause_s)
    run.breaker.on_wait = progress.waiting
    remembered = run.ledger.dropped_fields()
    watched = {kind: {name for each, name in remembered if each is kind} for kind in Kind}
    delivery = Delivery(
        run.ledger,
        run.stage,
        BulkSender(run.client) if plan.mode.is_bulk else SingleSender(run.client, by_user_id=by_user_id),
        plan.mode,
        settle_s=run.settings.user_settle_seconds,
        breaker=run.breaker,
        interrupted=run.interrupt.ending,
        is_urgent=lambda: run.interrupt.is_urgent,
        progress=progress,
        query=run.query_path,
        watched_fields=watched,
    )
    return delivery.run()
