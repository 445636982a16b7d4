"""The steps of a run after it was opened. Each takes what the ones before it found, and returns what it found."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, islice
from typing import Any

from iterable.export import harmless_rows, write_csv
from iterable.pacing import rates
from pipeline.batch import BulkSender, SingleSender
from pipeline.delivery import GRACE_S, Delivered, Delivery
from pipeline.ending import OutputError
from pipeline.modes import Mode, choose_mode
from pipeline.opening import Run
from pipeline.payloads import Rules
from pipeline.plan import Planner
from pipeline.progress import DeliveryProgress
from pipeline.records import Kind, Outcome
from pipeline.results import CSV_NAME, reason_of
from pipeline.rules import make_rules
from pipeline.settings import ROOT
from pipeline.source import UndecodableText, open_query, read_query

SHOWN_IN_DRY_RUN = 3

Rows = Sequence[tuple[Any, ...]]

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Read:
    """The rows, all of them in the CSV and with the planner."""

    csv_name: str
    rows: int
    rules: Rules
    planner: Planner


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
    say("Step 2: Ledger opened; no other run is active")


def read_rows(run: Run) -> Read:
    """One pass over the rows of the query: each goes into the CSV and, planned, into the stage."""
    run.console.say(f"Step 3: Connecting to {run.settings.shown_database()}")
    try:
        read = _read_rows(run)
    except UndecodableText as problem:
        logger.warning("%s All rows are read once more, by a slower decoder that takes any bytes.", problem)
        run.stage.clear()
        read = _read_rows(run, any_bytes=True)
    run.console.say(f"Step 4.5: {read.rows:,} rows exported to {read.csv_name}")
    return read


def _read_rows(run: Run, *, any_bytes: bool = False) -> Read:
    settings = run.settings
    with open_query(
        str(settings.database_url),
        read_query(settings.query_file, str(settings.database_url)),
        root=ROOT,
        should_stop=lambda: run.interrupt.ending() is not None,
        any_bytes=any_bytes,
        since=datetime.fromtimestamp(0, timezone.utc),
    ) as query:
        if not any_bytes:
            run.console.say(f"Step 4: Running the user-event query, {settings.query_file.name}")
        rules = make_rules(query.columns, settings, run.started_at.timestamp())
        planner = Planner(run.ledger, run.stage, rules, query.columns)
        name = CSV_NAME.format(run.run_id)
        try:
            blocks = _planned(planner, _first(query.blocks, run.options.limit))
            write_csv(settings.output_dir / name, query.columns, blocks, verbatim=True)
        except (OSError, sqlite3.Error) as error:  # the CSV, or the stage beside it
            raise OutputError(f"{name} can't be written ({reason_of(error)}); nothing was sent.") from error
    return Read(name, planner.rows, rules, planner)


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


def _planned(planner: Planner, blocks: Iterable[Rows]) -> Iterator[Iterable[Sequence[Any]]]:
    """Plan the rows, and pass them on to the CSV."""
    for rows in blocks:
        by_column = list(zip(*rows, strict=True))
        planner.plan(by_column)
        yield harmless_rows(rows, by_column)


def make_plan(run: Run, read: Read) -> Plan:
    """What is to be sent, and how."""
    known = None if run.options.full else run.ledger.known
    try:
        read.planner.finish()
        run.stage.finish_staging(
            known,
            run.ledger.troubled,
            ids_are_given=read.rules.id_column is not None,
            leave_known_users=run.options.limit is not None,
        )
    except sqlite3.Error as error:
        folder = run.settings.output_dir
        raise OutputError(f"{folder} has no room for the records of this run ({error}); nothing was sent.") from error
    pending = {kind: run.stage.count_pending(kind) for kind in Kind}
    mode = choose_mode(run.settings, sum(pending.values()))
    unchanged = sum(counts[Outcome.UNCHANGED] for counts in run.stage.count_outcomes().values())
    run.console.say(
        f"Step 5: {pending[Kind.USER]:,} users and {pending[Kind.EVENT]:,} events to send ({mode.name} requests); "
        f"{unchanged:,} unchanged"
    )
    if run.options.dry_run:
        _show_plan(run)
    return Plan(mode, pending)


def _show_plan(run: Run) -> None:
    run.console.say("        Dry run: nothing is sent, and the ledger stays as it is. The first requests would be:")
    for kind in Kind:
        for record in islice(chain(*(run.stage.pending(kind, late=late) for late in (False, True))), SHOWN_IN_DRY_RUN):
            run.console.say(f"        {record.kind.value} {record.payload.decode()}", log=False)


def deliver(run: Run, plan: Plan) -> Delivered:
    """Send what is pending. From here on, what is under way is finished or accounted for."""
    if run.options.dry_run:
        return Delivered()
    run.interrupt.stop_raising(f"Stopping: waiting up to {GRACE_S:g} s for open requests; Ctrl-C again skips the wait.")
    by_user_id = run.settings.iterable_identifier == "userId"
    paces = rates(run.settings.rate_limit_percent)
    pause_s = max(1 / paces[name] for name in plan.mode.endpoints)
    progress = DeliveryProgress(run.console, run.stage.count_delivered, pause_s=pause_s)
    run.breaker.on_wait = progress.waiting
    delivery = Delivery(
        run.ledger,
        run.stage,
        BulkSender(run.client) if plan.mode.mixes_users else SingleSender(run.client, by_user_id=by_user_id),
        plan.mode,
        settle_s=run.settings.user_settle_seconds,
        breaker=run.breaker,
        interrupted=run.interrupt.ending,
        is_urgent=lambda: run.interrupt.is_urgent,
        progress=progress,
        query=str(run.settings.query_file),
    )
    return delivery.run()
