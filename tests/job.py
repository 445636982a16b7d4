"""A delivery to the stand-in as tests of several modules need it: rows in, each record's outcome out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from iterable_client import IterableClient
from pipeline.delivery.breaker import Breaker
from pipeline.delivery.delivery import Delivered, Delivery
from pipeline.delivery.modes import MAX_BYTES_A_BATCH, Mode, single_mode
from pipeline.delivery.senders import BulkSender, Sender, SingleSender
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import FailedRecord, Kind, Outcome, Record, UserDetails
from pipeline.sandbox import SANDBOX_KEY, StandIn
from tests.opened import Opened, open_both

Rows = Sequence[tuple[str, str | None]]  # (e-mail, event id or None)


def small_bulk(workers: int = 4, records_a_batch: int = 10) -> Mode:
    """Bulk requests of few records, so that a test needs no thousands."""
    endpoints = ("users/bulkUpdate", "events/trackBulk")
    return Mode("bulk", workers, records_a_batch, MAX_BYTES_A_BATCH, True, endpoints)


MODES = {"single": single_mode(4), "bulk": small_bulk()}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


class Silence:
    """A Progress that remembers what it was told."""

    def __init__(
        self, on_advance: Callable[[int], None] = lambda count: None, on_say: Callable[[], None] = lambda: None
    ) -> None:
        self.said: list[str] = []
        self.totals: dict[str, int] = {}
        self.advanced = 0
        self._on_advance = on_advance
        self._on_say = on_say

    def start(self, totals: dict[Kind, int]) -> None:
        self.totals = {kind.value: total for kind, total in totals.items() if total}

    def advance(self, kind: Kind, count: int) -> None:
        self.advanced += count
        self._on_advance(count)

    def finish(self) -> None:
        pass

    def waiting(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)
        self._on_say()


SIGINT = Ending(ExitCode.SIGINT, "The run was interrupted by SIGINT.")
SIGTERM = Ending(ExitCode.SIGTERM, "The run was interrupted by SIGTERM.")


class Clock:
    """A clock that goes on by `step` each time the delivery looks at it; `now` is for whoever only reads it."""

    def __init__(self, step: float) -> None:
        self.now = 1000.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now

    def start(self) -> None:
        self.step = 10.0


@dataclass
class Ran:
    """A delivery that is over, every record with its outcome."""

    stop: Ending | None
    users: dict[str, int]
    events: dict[str, int]
    undelivered: list[FailedRecord]
    progress: Silence
    delivered: Delivered

    @property
    def stop_code(self) -> ExitCode | None:
        return self.stop.code if self.stop else None

    @property
    def codes(self) -> dict[str, str | None]:
        """Who was not delivered -> the code."""
        return {f"{each.kind.value} {each.identity}": each.code for each in self.undelivered}

    def messages(self, outcome: Outcome) -> set[str]:
        return {undelivered.message for undelivered in self.undelivered if undelivered.outcome is outcome}


@dataclass
class Job:
    """A folder with a ledger, and the address of an Iterable."""

    folder: Path
    url: str
    breaker: Breaker = field(default_factory=Breaker)
    users: dict[str, int] = field(default_factory=dict)  # their outcomes as the last delivery left them

    def run(self, rows: Rows | None, mode: Mode, *, sender: Callable[[IterableClient], Sender] | None = None,
            settle_s: float = 0.0, interrupted: Callable[[], Ending | None] = lambda: None,
            is_urgent: Callable[[], bool] = lambda: False,
            clock: Callable[[], float] = time.monotonic, progress: Silence | None = None,
            before: Callable[[Opened], None] = lambda ledger: None, max_retries: int = 3,
            watched_fields: dict[Kind, set[str]] | None = None, version: str | None = None,
            rates: dict[str, float] | None = None, initial_backoff: float = 0.0,
            sends_all: bool = False) -> Ran:  # fmt: skip
        """One whole run over these rows, or over what `before`, called when all is staged, stages itself.

        version: a field of every record.
        """
        self.breaker = Breaker()
        progress = progress or Silence()
        client = IterableClient(
            SANDBOX_KEY,
            base_url=self.url,
            max_retries=max_retries,
            initial_backoff=initial_backoff,
            max_connections=mode.workers,
            rates=rates,
            sleep=self.breaker.sleep,
            on_wait=self.breaker.before_retry,
        )
        make_sender = sender or (BulkSender if mode.is_bulk else SingleSender)
        try:
            with open_both(self.folder, now=0) as opened:
                if rows is not None:
                    stage(opened, rows, {} if version is None else {"version": version}, skip_unchanged=not sends_all)
                before(opened)
                delivery = Delivery(
                    opened.ledger,
                    opened.stage,
                    make_sender(client),
                    mode,
                    settle_s=settle_s,
                    breaker=self.breaker,
                    interrupted=interrupted,
                    is_urgent=is_urgent,
                    progress=progress,
                    watched_fields=watched_fields,
                    clock=clock,
                )
                try:
                    delivered = delivery.run()
                finally:
                    self.users = shown(opened.stage.states.count_outcomes()[Kind.USER])
                opened.stage.note_not_attempted("not attempted")
                opened.ledger.commit()
                users, events = (shown(opened.stage.states.count_outcomes()[kind]) for kind in Kind)
                return Ran(
                    delivered.stopped, users, events, list(opened.stage.outcomes.undelivered()), progress, delivered
                )
        finally:
            client.session.close()


def stage(opened: Opened, rows: Rows, fields: dict[str, Any] | None = None, *, skip_unchanged: bool = True) -> None:
    users = [make_record(opened, Kind.USER, row, email, {}, fields) for row, (email, _) in enumerate(rows, 1)]
    events = [
        make_record(opened, Kind.EVENT, row, email, {"eventName": "visit", "id": event_id, "createdAt": row}, fields)
        for row, (email, event_id) in enumerate(rows, 1)
        if event_id is not None
    ]
    opened.begin(skip_unchanged=skip_unchanged)
    opened.stage.people.stage_users(list({each.key: each for each in users}.values()))
    opened.stage_events(events)
    opened.stage.finish_staging()


def make_record(
    opened: Opened, kind: Kind, row: int, email: str, content: dict[str, Any], fields: dict[str, Any] | None = None
) -> Record:
    fields = fields or {}
    payload = json.dumps({"email": email, **content, "dataFields": fields}).encode()
    hasher = opened.ledger.hasher
    key = hasher.user_key(email)
    if kind is Kind.EVENT:
        (key,) = hasher.given_event_keys([key], [content["id"]])
        head = f"{content['createdAt']},{json.dumps(content['eventName'])}"
        (fingerprint,) = hasher.given_fingerprints([head], [json.dumps(fields)])
        return Record(kind, row, email, key, fingerprint, payload)
    (fingerprint,) = hasher.fingerprints([json.dumps(fields).encode()])
    hashes = [hasher.field_hashes(name, [json.dumps(value)])[0] for name, value in fields.items()]
    details = UserDetails(b"".join(hashes), b"".join(map(hasher.field_name, fields)))
    return Record(kind, row, email, key, fingerprint, payload, details)


def shown(counts: dict[Outcome, int]) -> dict[str, int]:
    return {outcome.value: count for outcome, count in counts.items() if count}


def some_users(count: int) -> Rows:
    return [(f"{number}@example.com", None) for number in range(1, count + 1)]


def some_events(count: int, users: int = 10) -> Rows:
    """Events of some users in turn, with ids in the order of rows."""
    return [(f"{number % users}@example.com", f"e{number:04d}") for number in range(1, count + 1)]


def requests_of(stand_in: StandIn, path: str) -> list[Any]:
    return [request for request in stand_in.project.requests if request.path == path]


def records_in(body: bytes) -> list[dict[str, Any]]:
    content = json.loads(body)
    records: list[dict[str, Any]] = content.get("users") or content.get("events") or [content]
    return records


def assert_no_event_was_before_its_user(stand_in: StandIn) -> None:
    users, events = stand_in.project.user_accepted_seq, stand_in.project.event_accepted_seq
    assert [
        event_id
        for event_id, event in stand_in.project.events.items()
        if events[event_id] < users.get(event["email"], 0)
    ] == []
