"""What --explain and --verify share: everything opened to be read, the plan of a run, and one user's copy in Iterable.

Nothing is sent, locked, logged or written, so that both work while a run is active.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from iterable.redaction import Redactor
from iterable_client import Failure, IterableClient
from pipeline.config.settings import ROOT, Settings
from pipeline.delivery.breaker import Breaker
from pipeline.inspect.explanation import MAX_SHOWN, QueriedRow
from pipeline.ledger.ledger import Ledger, is_run_active, open_ledger, read_ledger
from pipeline.model.exits import Ending, ExitCode, OutputError
from pipeline.model.failure_policy import POLICIES
from pipeline.report.log import Console
from pipeline.report.results import reason_of
from pipeline.run.interrupt import Interrupt, catch_signals
from pipeline.run.opening import make_client, project_of, settings_for
from pipeline.source import UndecodableText, open_query, read_query
from pipeline.stage.stage import Stage, open_stage
from pipeline.transform.payloads import Rules
from pipeline.transform.planner import Planner
from pipeline.transform.rules import make_rules

KEY_IS_NEW = (
    "The API key is new to the ledger, which knows other projects only "
    "(ITERABLE_PROJECT keeps what it knows when a key is rotated)."
)
CLIENT_SIDE = "A client-side key (JWT-enabled, mobile or web) can't read users; a server-side key of the project can."


@dataclass(frozen=True)
class Look:
    """All that looking works with."""

    settings: Settings
    console: Console
    interrupt: Interrupt
    breaker: Breaker  # ends the client's waits
    ledger: Ledger
    stage: Stage
    client: IterableClient
    now: float  # Unix seconds

    @property
    def by_user_id(self) -> bool:
        return self.settings.iterable_identifier == "userId"


@contextmanager
def open_look(options: argparse.Namespace, console: Console) -> Iterator[Look]:
    """Raises RunError and Interrupted."""
    with ExitStack() as stack:
        interrupt = stack.enter_context(catch_signals())
        settings, _ = settings_for(options, stack)
        console.redactor = Redactor(settings.secrets())
        now = time.time()
        ledger = stack.enter_context(_open_ledger(settings, now, is_sandbox=options.sandbox))
        for warning in (*settings.warnings, ledger.note):
            if warning:
                console.warn(warning)
        stage = stack.enter_context(open_stage(settings.output_dir))
        breaker = Breaker()
        yield Look(settings, console, interrupt, breaker, ledger, stage, make_client(settings, breaker), now)


def _open_ledger(settings: Settings, now: float, *, is_sandbox: bool) -> AbstractContextManager[Ledger]:
    if is_sandbox:  # which has nothing to do with the real one
        return open_ledger(settings.output_dir, project_of(settings), now=now, lasting=False)
    return read_ledger(settings.output_dir, project_of(settings), now=now)


def notes_on(look: Look) -> list[str]:
    """What one should know about everything that is said of the ledger."""
    notes = []
    if look.ledger.is_new_key_for_known_host:
        notes.append(KEY_IS_NEW)
    if is_run_active(look.settings.output_dir):
        notes.append("A run is active; this is what it has committed so far.")
    return notes


def print_json(console: Console, found: object, code: ExitCode) -> ExitCode:
    """For --json. The exit code tells where it could not be printed."""
    try:
        console.print_json(found)
    except OSError as problem:
        console.error(f"The answer could not be printed ({reason_of(problem)}).")
        return ExitCode.NO_OUTPUT
    return code


# Reading and planning -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What was read. read: rows of everybody. numbers: where the rows that were asked for stand in the query, 1 for the
    first. last: the last of them. all_staged: the stage holds everybody's records."""

    rules: Rules
    columns: Sequence[str]
    read: int
    numbers: Sequence[int]
    last: Sequence[QueriedRow]
    all_staged: bool

    def number(self, row: int) -> int:
        """A staged record's row -> where it stands in the query."""
        return row if self.all_staged else self.numbers[row - 1]

    def is_asked_for(self, row: int) -> bool:
        """Whether a staged record's row is one of those that were asked for."""
        if not self.all_staged:
            return True
        place = bisect_left(self.numbers, row)
        return place < len(self.numbers) and self.numbers[place] == row


Choice = Callable[[Rules], Callable[[Any], bool]]  # the rules -> whether a value of the identity's column is meant


def plan_rows(look: Look, choose: Choice | None = None, *, without_events: bool = False) -> Planned:
    """Read everything that the query finds, and stage it as a run with --full would. Raises RunError.

    choose: which rows are asked for; None for no particular ones. The others are read, and staged only where they
    matter for these: two people may share an event's id by mistake.
    """
    try:
        try:
            planned = _plan_rows(look, choose, without_events)
        except UndecodableText:
            look.stage.clear()
            planned = _plan_rows(look, choose, without_events, any_bytes=True)
        look.stage.finish_staging(ids_are_given=planned.rules.id_column is not None)
    except sqlite3.Error as error:
        folder = look.settings.output_dir
        raise OutputError(f"{folder} has no room for the rows, which are kept there meanwhile ({error}).") from error
    return planned


def _plan_rows(look: Look, choose: Choice | None, without_events: bool, *, any_bytes: bool = False) -> Planned:
    settings = look.settings
    read, numbers, last = 0, array("q"), deque[QueriedRow](maxlen=MAX_SHOWN)
    with open_query(
        str(settings.database_url),
        read_query(settings.query_file, str(settings.database_url)),
        root=ROOT,
        should_stop=lambda: look.interrupt.ending() is not None,
        any_bytes=any_bytes,
        since=settings.since_start,
    ) as query:
        rules = make_rules(query.columns, settings, look.now)
        rules = replace(rules, time_column=None) if without_events else rules
        planner = Planner(look.ledger, look.stage, rules, query.columns, full=True)
        look.stage.begin(None)  # so that nothing is put last, either
        all_staged = choose is None or rules.id_column is not None
        is_meant = choose(rules) if choose is not None else None
        place = query.columns.index(rules.identity_column)
        for block in query.blocks:
            if is_meant is not None:
                found = [QueriedRow(n, row) for n, row in enumerate(block, start=read + 1) if is_meant(row[place])]
                numbers.extend(each.number for each in found)
                last.extend(found)
            read += len(block)
            staged = block if all_staged else [each.cells for each in found]
            if staged:
                planner.plan(list(zip(*staged, strict=True)))
        planner.end_reading()
        planner.finish()
    return Planned(rules, query.columns, read, numbers, last, all_staged)


# Iterable's copy ------------------------------------------------------------------------------------------------------


def get_user(look: Look, identity: str) -> tuple[bool, dict[str, Any]]:
    """(True, Iterable's profile, {} for a person whom it does not know), or (False, the details of the failure)."""
    ok, answer = look.client.get_user(user_id=identity) if look.by_user_id else look.client.get_user(email=identity)
    return ok, answer.get("user") or {} if ok else answer


def is_client_side(details: Mapping[str, Any]) -> bool:
    """Whether Iterable refused a call as the key is for apps and web pages. It names the key's type [recorded]."""
    params = (details.get("answer") or {}).get("params")
    kind = params.get("apiKeyType") if isinstance(params, dict) else None
    return details["failure"] is Failure.BAD_API_KEY and kind not in (None, "ServerSide")


def why_not_read(details: Mapping[str, Any]) -> Ending:
    """What a failure to read means for the whole, in a sentence and an exit code."""
    policy = POLICIES[details["failure"]]
    advice = "Try again later." if policy.code is ExitCode.TEMPORARY else policy.advice
    if is_client_side(details):
        advice = CLIENT_SIDE
    return Ending(policy.code, f"{str(details['error']).rstrip('.')}. {advice}")
