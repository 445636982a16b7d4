"""Pending records -> requests, concurrently -> one outcome for each record, noted in the ledger as the answers come in.

One thread, that of `Delivery.run`, reads the stage, forms batches and keeps the ledger; the workers only send. A batch
holds whole users where they fit, and of one user there is never more than one batch under way, so that their events
keep their order.
"""

from __future__ import annotations

import logging
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from iterable_client import Abandoned, Failure
from pipeline.batch import Sender, Settled
from pipeline.ending import FAILURES, GO_ON, Ending, ExitCode, stopped_by
from pipeline.ledger import Ledger
from pipeline.records import Kind, Outcome, Record, Undelivered
from pipeline.settings import Settings
from pipeline.stage import Stage

logger = logging.getLogger("pipeline.delivery")

BULK_ABOVE = 100  # pending records, for PUSH_MODE=auto
MAX_RECORDS_A_BATCH = 1000
MAX_BYTES_A_BATCH = 3_500_000  # Iterable allows 4 MB in bulk, and does not say whether that is 4,000,000 bytes or more
EVENTS_A_TURN = 20  # of one user, in single mode: how many a worker takes at once
WAITING_BATCHES = 4  # ready for the next worker that is free; more would only take memory
RECORDS_PER_COMMIT = 2000
SECONDS_PER_COMMIT = 0.5
GRACE_S = 5.0  # for what is under way when the run stops
TICK_S = 0.1


@dataclass(frozen=True)
class Mode:
    """How records travel: how many together, and how many batches at once."""

    name: str  # "single" or "bulk"
    workers: int
    records_a_batch: int
    bytes_a_batch: int
    mixes_users: bool
    endpoints: tuple[str, str]


def single_mode(workers: int | None) -> Mode:
    """One record a request. 128 workers reach Iterable's limits at 150 ms; more get in each other's way."""
    return Mode("single", workers or 128, EVENTS_A_TURN, MAX_BYTES_A_BATCH, False, ("users/update", "events/track"))


def bulk_mode(workers: int | None) -> Mode:
    """Up to 1,000 records and 3.5 MB a request; 16 workers reach Iterable's limits many times over."""
    endpoints = ("users/bulkUpdate", "events/trackBulk")
    return Mode("bulk", workers or 16, MAX_RECORDS_A_BATCH, MAX_BYTES_A_BATCH, True, endpoints)


def choose_mode(settings: Settings, pending: int) -> Mode:
    """The one path of a run with so many pending records. JWT-enabled keys can't call the bulk endpoints [keys]."""
    wants_bulk = settings.push_mode == "bulk" or (settings.push_mode == "auto" and pending > BULK_ABOVE)
    if wants_bulk and not settings.use_jwt_auth:
        return bulk_mode(settings.max_workers)
    return single_mode(settings.max_workers)


def make_batches(records: Iterable[Record], mode: Mode) -> Iterator[list[Record]]:
    """Records, grouped by user, -> batches within the mode's limits, which end between two users where they can."""
    batch: list[Record] = []
    size = user_start = 0
    for record in records:
        if batch and record.identity != batch[-1].identity:
            user_start = len(batch)
            if not mode.mixes_users:
                yield batch
                batch, size, user_start = [], 0, 0
        while batch and (len(batch) >= mode.records_a_batch or size + len(record.payload) + 1 > mode.bytes_a_batch):
            cut = user_start or len(batch)  # the user begun last moves on whole, unless the batch is all theirs
            yield batch[:cut]
            batch = batch[cut:]
            size, user_start = sum(len(each.payload) + 1 for each in batch), 0
        batch.append(record)
        size += len(record.payload) + 1
    if batch:
        yield batch


# The workers ----------------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """A batch under way, and which of its records have no outcome yet."""

    records: list[Record]
    unreported: dict[int, Record] = field(init=False)

    def __post_init__(self) -> None:
        self.unreported = {record.row: record for record in self.records}


class _Workers:
    """Threads that send batches and put what became of them into `results`. Daemons, so that no hung socket keeps a
    finished run alive."""

    def __init__(self, sender: Sender, count: int, stopping: threading.Event) -> None:
        self.results: queue.SimpleQueue[tuple[_Batch, Settled | BaseException | None]] = queue.SimpleQueue()
        self._sender = sender
        self._count = count
        self._stopping = stopping
        self._threads: list[threading.Thread] = []
        self._tasks: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()

    def submit(self, batch: _Batch, under_way: int) -> None:
        """Hand over a batch; a new thread only where the others have work already."""
        self._tasks.put(batch)
        if len(self._threads) < min(self._count, under_way):
            thread = threading.Thread(target=self._work, name=f"worker-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def withdraw(self) -> list[_Batch]:
        """The batches that no worker has begun, and none will."""
        batches = []
        with suppress(queue.Empty):
            while True:
                if (batch := self._tasks.get_nowait()) is not None:
                    batches.append(batch)
        return batches

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (batch := self._tasks.get()) is not None:
            try:
                for settled in self._sender.send(batch.records, self._stopping.is_set):
                    self.results.put((batch, settled))
                self.results.put((batch, None))
            except BaseException as bug:  # raised again by the main thread, which then ends the run
                self.results.put((batch, bug))


# The breaker ----------------------------------------------------------------------------------------------------------


class Breaker:
    """Decides from the failures in a row whether going on makes sense."""

    def __init__(self) -> None:
        self._last: Failure | None = None
        self._in_a_row = 0

    def judge(self, failure: Failure | None, message: str) -> Ending | None:
        """One more answer, or none: `failure` is None for a success. Returns how the run ends, if it has to."""
        if failure is Failure.ABANDONED:
            return None
        self._in_a_row = self._in_a_row + 1 if failure is self._last else 1
        self._last = failure
        if failure is not None and 0 < FAILURES[failure].ends_run_after <= self._in_a_row:
            return stopped_by(failure, message)
        return None


# The run --------------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """Is told how far the delivery is."""

    def start(self, kind: Kind, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def finish(self) -> None: ...
    def say(self, text: str) -> None: ...


def pause_until(stopping: threading.Event) -> Callable[[float], None]:
    """A `sleep` for the client: it raises Abandoned as soon as the run is stopping."""

    def sleep(seconds: float) -> None:
        if stopping.wait(seconds):
            raise Abandoned

    return sleep


@dataclass(frozen=True)
class Delivered:
    """What is known of a delivery that is over. stopped: how the run ends, if it had to stop early."""

    stopped: Ending | None = None
    filtered_out_fields: frozenset[str] = frozenset()
    created_fields: frozenset[str] = frozenset()


class Delivery:
    """Sends what is pending in the stage: users first, then events. `run` it once."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        sender: Sender,
        mode: Mode,
        *,
        settle_s: float,
        stopping: threading.Event,
        interrupted: Callable[[], Ending | None],
        is_urgent: Callable[[], bool] = lambda: False,
        progress: Progress,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """settle_s: how long Iterable may take to know a user that was just updated. stopping: set here when the run
        stops; the client's sleep obeys it. interrupted: how the run is to end, if it was
        asked to. is_urgent: whether it may not even wait for what is under way."""
        self._filtered_out_fields: set[str] = set()
        self._created_fields: set[str] = set()
        self._ledger = ledger
        self._stage = stage
        self._mode = mode
        self._settle_s = settle_s
        self._stopping = stopping
        self._interrupted = interrupted
        self._is_urgent = is_urgent
        self._progress = progress
        self._clock = clock
        self._workers = _Workers(sender, mode.workers, stopping)
        self._breaker = Breaker()
        self._stop: Ending | None = None
        self._deadline = math.inf
        self._under_way: dict[int, _Batch] = {}
        self._busy: set[str] = set()  # the last user of each batch under way
        self._room = 1
        self._accepted: list[Record] = []
        self._committed_at = clock()
        self._updated_users_at: float | None = None
        self._held = 0
        self._is_second_try = False

    def run(self) -> Delivered:
        """Send everything. Afterwards, what was not attempted has no outcome."""
        try:
            self._send(Kind.USER, self._stage.pending(Kind.USER))
            self._send(Kind.EVENT, self._stage.pending(Kind.EVENT))
            if self._held and self._stop is None:
                self._send_held()
        except sqlite3.Error as error:
            if self._stop is None:
                problem = f"The ledger can't be written ({error}); make room and run again."
                self._begin_stop(Ending(ExitCode.TEMPORARY, f"{problem} {GO_ON}"))
        finally:
            self._wind_up()
        return Delivered(self._stop, frozenset(self._filtered_out_fields), frozenset(self._created_fields))

    def _wind_up(self) -> None:
        """Whatever has ended the run: take in what is still answered, and enter what was accepted."""
        self._halt()
        self._workers.close()
        while self._under_way:
            with suppress(Exception):  # the first one is on its way to the caller, or is the reason to stop
                self._drain()
        with suppress(sqlite3.Error):
            self._commit()
        with suppress(sqlite3.Error):
            self._stage.give_up_held()

    def _send(self, kind: Kind, records: Iterator[Record]) -> None:
        """All records of a kind: one batch alone until Iterable has read one, then as many at once as the mode allows.

        The first one alone shows a wrong key at the cost of one request, and lets Iterable create new fields once.
        """
        total = self._stage.count_pending(kind)
        if not total or self._stop is not None:
            return
        self._progress.start(kind, total)
        self._room = 1
        for batch in make_batches(records, self._mode):
            while self._stop is None and not self._has_room(batch):
                self._settle_one()
            if self._stop is not None:
                break
            self._submit(_Batch(batch))
        self._drain()
        self._commit()
        if kind is Kind.USER:
            self._updated_users_at = self._clock()
        self._progress.finish()

    def _has_room(self, batch: list[Record]) -> bool:
        return len(self._under_way) < self._room and batch[0].identity not in self._busy

    def _submit(self, batch: _Batch) -> None:
        self._under_way[id(batch)] = batch
        self._busy.add(batch.records[-1].identity)
        self._workers.submit(batch, len(self._under_way))

    def _drain(self) -> None:
        """Wait for what is under way; after a stop not longer than GRACE_S, or not at all."""
        while self._under_way and (self._may_wait() or not self._workers.results.empty()):
            self._settle_one()
        when = "before the run was stopped at once" if self._is_urgent() else f"within {GRACE_S:g} s after the stop"
        for batch in list(self._under_way.values()):
            self._abandon(batch, f"No answer came {when}.")

    def _may_wait(self) -> bool:
        return self._clock() < self._deadline and not self._is_urgent()

    def _settle_one(self) -> None:
        """Take in one report, if there is one within TICK_S, and see whether the run was interrupted."""
        with suppress(queue.Empty):
            batch, settled = self._workers.results.get(timeout=TICK_S)
            if isinstance(settled, BaseException):
                self._abandon(batch, "Its request was not brought to an end because of a bug.")
                raise settled
            if settled is None:
                self._finish(batch)
            else:
                self._take_in(batch, settled)
        if len(self._accepted) >= RECORDS_PER_COMMIT or self._clock() - self._committed_at > SECONDS_PER_COMMIT:
            self._commit()
        ending = self._interrupted()
        if ending is not None and self._stop is None:
            self._begin_stop(ending)

    def _take_in(self, batch: _Batch, settled: Settled) -> None:
        for row in settled.rows():
            batch.unreported.pop(row, None)
        self._accepted += settled.delivered
        self._stage.note(settled.failed)
        if self._is_second_try:
            self._stage.note(settled.unknown)
        else:
            self._stage.hold(settled.unknown)
            self._held += len(settled.unknown)
        self._filtered_out_fields |= settled.filtered_out_fields
        self._created_fields |= settled.created_fields
        self._progress.advance(len(settled.delivered) + len(settled.failed) + len(settled.unknown))
        if settled.failure in (None, Failure.REJECTED):
            self._room = self._mode.workers + WAITING_BATCHES
        stop = self._breaker.judge(settled.failure, settled.message)
        if stop is not None and self._stop is None:
            self._begin_stop(stop)

    def _begin_stop(self, stop: Ending) -> None:
        logger.error("Stopping: %s", stop.reason)
        self._stop = stop
        self._halt()

    def _halt(self) -> None:
        """From here on nothing is begun, and what is under way has GRACE_S to come to its end."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._deadline = self._clock() + GRACE_S
            for batch in self._workers.withdraw():
                self._finish(batch)

    def _finish(self, batch: _Batch) -> None:
        del self._under_way[id(batch)]
        self._busy.discard(batch.records[-1].identity)

    def _abandon(self, batch: _Batch, message: str) -> None:
        """A batch without an answer when the time is up. In single mode only its next record can be on its way."""
        self._finish(batch)
        left = list(batch.unreported.values())
        attempted = left if self._mode.mixes_users else left[:1]
        self._stage.note(
            [
                Undelivered(each.kind, each.row, each.identity, Outcome.UNACKNOWLEDGED, None, None, message, 1)
                for each in attempted
            ]
        )

    def _commit(self) -> None:
        """Enter what was accepted, so that no later run sends it again."""
        if self._accepted:
            self._stage.note_delivered(self._accepted)
            self._ledger.accept(self._accepted)
            self._ledger.commit()
            self._accepted = []
        self._committed_at = self._clock()

    def _send_held(self) -> None:
        """Try the events of users unknown to Iterable once more, when it has had time to learn of its new users."""
        since_update = self._clock() - self._updated_users_at if self._updated_users_at is not None else math.inf
        wait_s = max(0.0, self._settle_s - since_update)
        self._progress.say(
            f"{self._held} events were refused because Iterable does not know their user (yet); "
            f"they are tried once more in {wait_s:.0f} s."
        )
        until = self._clock() + wait_s
        while self._stop is None and self._clock() < until:
            self._settle_one()
        if self._stop is None:
            self._is_second_try = True
            self._stage.release_held()
            self._send(Kind.EVENT, self._stage.pending(Kind.EVENT))
