"""The steps of a run after it was opened. Each takes what the ones before it found, and returns what it found."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from iterable.pacing import rates
from pipeline.config.settings import Settings
from pipeline.delivery import GRACE_S, BulkSender, Delivered, Delivery, Mode, SingleSender, choose_mode
from pipeline.model.exits import OutputError
from pipeline.model.records import Kind, Outcome
from pipeline.model.text import counted
from pipeline.report import DeliveryProgress
from pipeline.run import dry_run
from pipeline.run.baseline import enter_baseline, refuse_baseline
from pipeline.run.brake import Brake, pending_records
from pipeline.run.forgotten import ForgottenListError, reject_forgotten
from pipeline.run.id_schemes import pending_by_scheme
from pipeline.run.journeys import FoundJourneys, count_by_name, find_journeys
from pipeline.run.moves import Mover, move_addresses
from pipeline.run.opening import Run
from pipeline.run.preview import write_preview
from pipeline.run.reading import Read, finish_plan

KEYS_PER_LOOKUP = 500

Rows = Sequence[tuple[Any, ...]]

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Plan:
    """How many records are to be sent, and how. events_by_scheme: events, by how their ids are made.

    Of a dry run: the name of the file that it leaves, and the journeys that the events would start.
    """

    mode: Mode
    pending: dict[Kind, int]
    events_by_scheme: dict[str, int]
    preview: str | None = None
    journeys: FoundJourneys | None = None


def mode_for(settings: Settings, pending: int) -> Mode:
    return choose_mode(
        settings.push_mode, pending=pending, use_jwt=settings.use_jwt_auth, max_workers=settings.max_workers
    )


def introduce(run: Run) -> None:
    """Say what has been opened."""
    say = run.console.say
    say(f"Step 1: Settings read. {run.authentication} authentication, {run.settings.iterable_base_url}")
    if run.options.sandbox:
        say("        This is a sandbox run: nothing leaves this machine, and no ledger is kept.")
    where = f" from {run.settings.state_url}" if run.settings.state_url else ""
    say(f"Step 2: Ledger opened{where}{' for reading' if run.options.dry_run else '; no other run is active'}")


def make_plan(run: Run, read: Read) -> Plan:
    """What is to be sent, and how."""
    try:
        finish_plan(read.planner, run.stage, read.rules)
        _reject_forgotten(run)
    except sqlite3.IntegrityError:  # a bug, and no lack of room
        raise
    except (OSError, sqlite3.Error) as error:
        folder = run.settings.output_dir
        raise OutputError(f"{folder} has no room for the records of this run ({error}); nothing was sent.") from error
    pending = {kind: run.stage.states.count_pending(kind) for kind in Kind}
    mode = mode_for(run.settings, sum(pending.values()))
    unchanged = sum(counts[Outcome.UNCHANGED] for counts in run.stage.states.count_outcomes().values())
    run.console.say(
        f"Step 5: {counted(pending[Kind.USER], 'user')} and {counted(pending[Kind.EVENT], 'event')} to send "
        f"({mode.name} requests); "
        f"{unchanged:,} unchanged"
    )
    _say_what_may_be_sent_again(run, sum(pending.values()))
    plan = Plan(mode, pending, pending_by_scheme(read.rules, read.planner, run.stage))
    return _show_plan(run, read, plan) if run.options.dry_run else plan


def _say_what_may_be_sent_again(run: Run, pending: int) -> None:
    resend = run.keeper.resend
    if resend is not None and pending and not run.options.baseline:
        at_most = counted(min(resend.records, pending), "record")
        run.console.warn(f"Earlier, {resend}: at most {at_most} that it may have sent will be sent again.")


def _reject_forgotten(run: Run) -> None:
    if not run.settings.skip_forgotten or not any(run.stage.states.count_pending(kind) for kind in Kind):
        return
    try:
        reject_forgotten(run.client, run.stage, by_user_id=run.settings.iterable_identifier == "userId")
    except ForgottenListError as problem:
        if not run.options.dry_run:
            raise
        run.console.warn(f"Whom Iterable has forgotten is not known, so a run may reject more: {problem.reason}")


def _show_moves(run: Run, read: Read) -> None:
    """Addresses that Iterable would change first."""
    people = read.planner.people
    for move in read.planner.changes.moves:
        people.note_change(move.row, move.text, "moved")
    if read.planner.changes.moves:
        run.console.say(f"        Addresses that Iterable would change first: {len(read.planner.changes.moves):,}")


def _show_plan(run: Run, read: Read, plan: Plan) -> Plan:
    """Show what a dry run would do, and leave its preview."""
    _show_moves(run, read)
    say = run.console.say
    say("        Dry run: nothing is sent, and the ledger stays as it is.")
    outcomes = run.stage.states.count_outcomes()
    for kind in Kind:
        say(f"        {dry_run.counts(kind, outcomes[kind], run.stage.states.count_pending(kind))}")
    journeys = _journeys(run)
    for sentence in journeys.in_words():
        say(f"        {sentence}")
    first = [record for kind in Kind for record in islice(pending_records(run.stage, kind), dry_run.SHOWN_OF_EACH_KIND)]
    if first:
        say("        The first requests would be:")
        say(f"        ({dry_run.RULE})")
    for record in first:
        for line in dry_run.first_lines(record):
            say(f"        {line}", log=False)
    name = write_preview(run)
    if first:
        say(f"        All of them, unmasked: {name}")
    return replace(plan, preview=name, journeys=journeys)


def brake(run: Run, read: Read, plan: Plan) -> Delivered | None:
    """Stop a run that would send something large and probably unwanted; None lets it go on."""
    if run.options.yes or run.options.sandbox or (run.options.baseline and not run.ledger.damage):
        return None
    ending = Brake(
        run.options,
        run.settings,
        read.rules,
        run.ledger,
        run.stage,
        run.started_at.timestamp(),
        read.planner.people,
        is_whole=read.is_full and not run.takes_part_of_rows,
        events_by_scheme=plan.events_by_scheme,
        resend=str(run.keeper.resend or ""),
    ).ending()
    if ending is None:
        return None
    if not run.options.dry_run:  # which has named them before
        ending = replace(ending, happened=" ".join([ending.happened, *_journeys(run).in_words()]))
    return Delivered(stopped=ending)


def _journeys(run: Run) -> FoundJourneys:
    counts = count_by_name(pending_records(run.stage, Kind.EVENT))
    return find_journeys(run.client, counts, is_jwt=run.settings.use_jwt_auth)


def deliver(run: Run, read: Read, plan: Plan) -> Delivered:
    """Send what is pending. From here on, what is under way is finished or accounted for."""
    if run.options.dry_run:
        return Delivered()
    addresses = read.planner.changes.entered
    if run.options.baseline and (refused := refuse_baseline(run, addresses)) is not None:
        return refused
    _lift_forgotten(run, read)
    for records in run.stage.people.adopted():
        run.ledger.accept(records)
    run.ledger.accepted.people.forget_users(read.planner.changes.absorbed)
    run.ledger.commit()
    if run.options.baseline:
        return enter_baseline(run, addresses)
    for scheme in plan.events_by_scheme:
        run.ledger.queries.add_id_scheme(run.query_path, scheme, accepted=False)
    run.ledger.commit()
    run.interrupt.stop_raising(f"Stopping: waiting up to {GRACE_S:g} s for open requests; Ctrl-C again skips the wait.")
    if run.keeper.is_remote and (any(plan.pending.values()) or read.planner.changes.moves):
        _put_back_first(run, read, plan)
    mover = Mover(run.client, run.ledger, run.stage, read.planner.people, interrupted=run.ending)
    moved = move_addresses(mover, read.planner.changes.moves, run.console)
    if moved.stopped is not None:
        return Delivered(stopped=moved.stopped, has_accepted=moved.moved > 0)
    return _make_delivery(run, read, plan.mode, has_moved=moved.moved > 0).run()


def _lift_forgotten(run: Run, read: Read) -> None:
    """Somebody who was forgotten is sent again, as --only, --full and --yes say so together."""
    if read.planner.forgotten.lifted:
        run.console.warn(
            "This person was forgotten (--forget), and counts as forgotten no more: --full --yes was given."
        )
        run.ledger.forgotten.lift(read.planner.forgotten.lifted)
        run.ledger.commit()


def _put_back_first(run: Run, read: Read, plan: Plan) -> None:
    """Have whoever goes on after this run, should it die, know what may have been sent by then. Raises RunError."""
    for kind in Kind:
        records = pending_records(run.stage, kind)
        while chunk := list(islice(records, KEYS_PER_LOOKUP)):
            known = run.ledger.known([each.key for each in chunk])
            run.ledger.invalidate([each for each in chunk if known.get(each.key, each.fingerprint) != each.fingerprint])
    for move in read.planner.changes.moves:
        run.ledger.begin_move(move.key, move.address)
    run.ledger.commit()
    is_part = run.takes_part_of_rows or run.options.since is not None
    run.keeper.begin_sending(sum(plan.pending.values()), is_part=is_part)


def _make_delivery(run: Run, read: Read, mode: Mode, *, has_moved: bool) -> Delivery:
    settle_s = run.settings.user_settle_seconds
    by_user_id = run.settings.iterable_identifier == "userId"
    paces = rates(run.settings.rate_limit_percent)
    progress = DeliveryProgress(
        run.console, run.stage.outcomes.count_delivered, pause_s=max(1 / paces[name] for name in mode.endpoints)
    )
    run.breaker.on_wait = progress.waiting
    remembered = run.ledger.dropped_fields.all()
    return Delivery(
        run.ledger,
        run.stage,
        BulkSender(run.client) if mode.is_bulk else SingleSender(run.client, by_user_id=by_user_id),
        mode,
        settle_s=settle_s,
        late_from=time.monotonic() + settle_s if has_moved else -math.inf,
        breaker=run.breaker,
        interrupted=run.ending,
        is_urgent=lambda: run.interrupt.is_urgent,
        progress=progress,
        query=run.query_path,
        window_from=read.window_from,
        on_commit=run.keeper.note_accepted,
        watched_fields={kind: {name for each, name in remembered if each is kind} for kind in Kind},
    )
