"""Pending records -> requests, concurrently -> one outcome for each record, noted in the ledger as the answers come in.

One thread, that of `Delivery.run`, takes batches from the feed and keeps the ledger; the workers only send. Users and
events are both under way at once: what may leave, and when, stands in `feed`; whether a call may go out in `breaker`.
Of one user there is never more than one batch of events under way, so that they keep their order.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from iterable_client import Failure
from pipeline.delivery.breaker import Breaker
from pipeline.delivery.failure_history import note_failures
from pipeline.delivery.feed import Batch, Feed
from pipeline.delivery.modes import Mode
from pipeline.delivery.senders import Sender, Settled
from pipeline.delivery.workers import GATHER_S, Report, Workers
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.model.text import counted
from pipeline.stage.pages import size_of
from pipeline.stage.stage import Stage

logger = logging.getLogger("pipeline.delivery")

WAITING_BATCHES = 4  # ready for the next worker that is free; more would only take memory
MAX_BYTES_UNDER_WAY = 12_000_000  # with those that wait; each is in memory three times while it is sent
MAX_BLOCKED = 5  # batches that failed while Iterable has accepted nothing yet
PROBES = 2  # before the run stops, as the first record may be a bad one, too; both take some 7 s where all is lost
RECORDS_PER_COMMIT = 2000
BYTES_PER_COMMIT = 4_000_000
SECONDS_PER_COMMIT = 0.5
GRACE_S = 5.0  # for what is under way when the run stops
TICK_S = 0.1
MOMENT_S = 0.002


class Progress(Protocol):
    """Is told how far the delivery is. `waiting` may be called from any thread."""

    def start(self, totals: dict[Kind, int]) -> None: ...
    def advance(self, kind: Kind, count: int) -> None: ...
    def finish(self) -> None: ...
    def say(self, text: str) -> None: ...
    def waiting(self, text: str) -> None: ...


def _by_kind() -> dict[Kind, frozenset[str]]:
    return dict.fromkeys(Kind, frozenset())


@dataclass(frozen=True)
class Delivered:
    """What is known of a delivery that is over.

    stopped: how the run ends, if it had to stop early. has_accepted: whether Iterable accepted anything.
    filtered_out_fields: fields that Iterable dropped. passed_fields: those of the watched fields that a bulk request
    delivered without their being dropped. entered: records that --baseline entered as accepted.
    """

    stopped: Ending | None = None
    has_accepted: bool = False
    filtered_out_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    created_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    passed_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    entered: int = field(default=0, kw_only=True)


class Delivery:
    """Sends what is pending in the stage. `run` it once."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        sender: Sender,
        mode: Mode,
        *,
        settle_s: float,
        breaker: Breaker,
        interrupted: Callable[[], Ending | None],
        is_urgent: Callable[[], bool] = lambda: False,
        progress: Progress,
        query: str = "",
        watched_fields: Mapping[Kind, Collection[str]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """settle_s: how long Iterable may take to know a user that was just updated. breaker: the client waits through
        it, too. interrupted: how the run ends if it was asked to, else None. is_urgent: whether it may not even wait
        for what is under way. query: the path of the query file, under which failures are remembered.
        watched_fields: fields that Iterable has dropped before."""
        self._ledger = ledger
        self._stage = stage
        self._mode = mode
        self._settle_s = settle_s
        self._breaker = breaker
        self._interrupted = interrupted
        self._is_urgent = is_urgent
        self._progress = progress
        self._query = query
        self._clock = clock
        self._workers = Workers(sender, breaker, mode.workers, gather_s=0.0 if mode.is_bulk else GATHER_S)
        self._fields = _Fields(watched_fields or {})
        self._stop: Ending | None = None
        self._gave_up_on_late = False
        self._deadline = math.inf
        self._feed: Feed  # of the present pass
        self._under_way: dict[Kind, list[Batch]] = {kind: [] for kind in Kind}
        self._busy: set[str] = set()  # the last user of each batch of events under way
        self._bytes_under_way = 0
        self._room = dict.fromkeys(Kind, 1)
        self._left = dict.fromkeys(Kind, 0)  # records that the progress was not told of
        self._probes = 0
        self._known_good: Record | None = None  # one that Iterable has accepted in this run
        self._accepted: list[Record] = []
        self._accepted_bytes = 0
        self._committed_at = clock()
        self._updated_users_at: float | None = None
        self._held = 0
        self._is_second_try = False

    def run(self) -> Delivered:
        """Send everything. Afterwards, what was not attempted has no outcome."""
        try:
            self._send_everything()
        except sqlite3.Error as error:
            if self._stop is None:
                problem = f"The ledger can't be written ({error}); make room and run again."
                self._begin_stop(Ending(ExitCode.TEMPORARY, f"{problem} {GO_ON}"))
        finally:
            self._wind_up()
        if self._gave_up_on_late and not any(map(self._stage.count_pending, Kind)):
            self._stop = None  # all have been tried
        return Delivered(self._stop, self._breaker.has_accepted, *self._fields.found())

    def _send_everything(self) -> None:
        self._left = {kind: self._stage.count_pending(kind) for kind in Kind}
        if any(self._left.values()):
            self._progress.start(self._left.copy())
            for late in (False, True):
                self._send(late=late)
            if self._held:
                self._send_held()

    def _send(self, *, late: bool = False) -> None:
        """One pass: submit what may leave, and take in what comes back, until all is settled or the run stops."""
        if self._stop is not None:
            return
        self._feed = Feed(self._stage, self._ledger, self._mode, late=late)
        while self._stop is None and (self._count_under_way() or self._breaker.is_open or not self._feed.is_done()):
            if self._submit_what_may_leave():
                self._take_in_reports(MOMENT_S)
            elif self._nothing_moves():
                self._probe_or_stop()
            else:
                self._take_in_reports()
        self._drain()
        self._commit()

    # What goes out --------------------------------------------------------------------------------------------

    def _submit_what_may_leave(self) -> bool:
        """Whether anything did."""
        before = self._count_under_way()
        for kind in Kind:
            for _ in range(self._mode.prefetch):  # the workers need a moment to show whether more are of use
                batch = self._feed.take(kind, self._busy) if self._has_room(kind) else None
                if batch is None:
                    break
                self._submit(batch)
        return self._count_under_way() > before

    def _has_room(self, kind: Kind) -> bool:
        """The first batch goes alone until Iterable has read it, as a wrong key then costs one request; the first one
        of each kind, too, as new fields are then created once. Then as many as the mode allows: half of them, as long
        as the other kind has some."""
        if self._breaker.is_open or self._breaker.count_blocked() >= MAX_BLOCKED or self._stop is not None:
            return False
        if self._bytes_under_way >= MAX_BYTES_UNDER_WAY or self._breaker.count_pacing(kind) >= self._mode.prefetch:
            return False
        moving = len(self._under_way[kind]) - self._breaker.count_blocked(kind)
        if max(self._room.values()) == 1:
            moving = self._count_under_way() - self._breaker.count_blocked()
        return moving < min(self._room[kind], self._share(kind))

    def _share(self, kind: Kind) -> int:
        workers = self._mode.workers
        if any(batches for other, batches in self._under_way.items() if other is not kind):
            workers = max(workers // 2, 1)
        return workers + WAITING_BATCHES

    def _submit(self, batch: Batch) -> None:
        self._under_way[batch.kind].append(batch)
        self._bytes_under_way += batch.size
        if batch.kind is Kind.EVENT:
            self._busy.add(batch.last_identity)
        try:
            if batch.is_probe:
                self._workers.submit_probe(batch)
            else:
                self._workers.submit(batch, self._count_under_way())
        except RuntimeError as error:  # so Python says it
            self._begin_stop(Ending(ExitCode.TEMPORARY, f"The system refuses to start a thread ({error}). {GO_ON}"))
            if batch.is_probe:
                self._finish(batch)

    def _count_under_way(self) -> int:
        return sum(map(len, self._under_way.values()))

    # When Iterable seems to be gone ---------------------------------------------------------------------------

    def _nothing_moves(self) -> bool:
        """Whether all that is under way waits for the breaker."""
        if self._workers.has_reports():
            return False
        waiting = self._breaker.count_blocked()
        if self._breaker.is_open or waiting >= self._workers.count():
            waiting += self._workers.count_queued()
        return waiting >= self._count_under_way() and (self._breaker.is_open or waiting > 0)

    def _probe_or_stop(self) -> None:
        """Find out whether the records are to blame for the last failures: try one that has not failed before."""
        probe = self._find_probe() if self._probes < PROBES else None
        if probe is not None:
            self._probes += 1
            self._submit(probe)
        elif (not self._probes and self._breaker.let_begun_calls_end()) or not self._nothing_moves():
            self._take_in_reports()  # what comes of them is all that can be found out
        elif self._breaker.has_accepted or not self._feed.is_late:
            self._begin_stop(self._breaker.verdict())
        else:
            self._begin_stop(self._breaker.verdict_on_late())
            self._gave_up_on_late = True

    def _find_probe(self) -> Batch | None:
        """One record: of the kind that fails if there is one, else of the other kind, else one that was accepted
        already, as to send it again changes nothing. Nothing else left: one of a failed batch, alone."""
        if not self._feed.is_late:
            for kind in sorted(Kind, key=lambda each: each is not self._breaker.failing_kind):
                batch = self._feed.take(kind, self._busy, one=True)
                if batch is not None:
                    batch.is_probe = True
                    return batch
        record = self._known_good or self._one_of_failed_batch()
        return Batch([record], is_probe=True, is_repeat=True) if record is not None else None

    def _one_of_failed_batch(self) -> Record | None:
        blocked = [batch for batches in self._under_way.values() for batch in batches if len(batch.records) > 1]
        if not blocked or not self._mode.is_bulk:
            return None
        records = blocked[0].records
        return records[self._probes * len(records) // PROBES]

    def _begin_stop(self, stop: Ending) -> None:
        if self._stop is None:
            logger.error("Stopping: %s", stop.reason)
            self._progress.waiting("open requests")
            self._stop = stop
            self._halt()

    def _halt(self) -> None:
        """From here on nothing is begun, and what is under way has GRACE_S to come to its end."""
        if not self._breaker.is_stopping:
            self._breaker.stop()
            self._deadline = self._clock() + GRACE_S
            for batch in self._workers.withdraw():
                self._finish(batch)

    # What comes back ------------------------------------------------------------------------------------------

    def _take_in_reports(self, timeout_s: float = TICK_S) -> None:
        """Take in what is reported, if something is within this time, and see whether the run has to stop."""
        for report in self._workers.reports(timeout_s):
            self._take_in(report)
        if self._is_time_to_commit():
            self._commit()
        if self._breaker.must_end_run():
            self._begin_stop(self._breaker.verdict())
        ending = self._interrupted()
        if ending is not None:
            self._begin_stop(ending)

    def _take_in(self, report: Report) -> None:
        if report.bug is not None:
            self._abandon(report.batch, "Its request was not brought to an end because of a bug.")
            raise report.bug
        if report.settled is None:
            self._finish(report.batch)
        elif report.batch.is_repeat:
            self._probes = 0 if _was_read(report.settled) else self._probes
        else:
            self._settle(report.batch, report.settled)

    def _settle(self, batch: Batch, settled: Settled) -> None:
        batch.settled.update(settled.rows())
        if settled.delivered:
            self._note_delivered(batch.kind, settled)
        if settled.failed:
            self._stage.note(settled.failed, is_blamed=settled.failure is not Failure.ABANDONED)
        if settled.unknown:
            self._note_unknown(settled.unknown)
        if _was_read(settled):
            self._probes = 0
            self._room[batch.kind] = self._mode.workers + WAITING_BATCHES
        self._advance(batch.kind, len(settled.delivered) + len(settled.failed) + len(settled.unknown))

    def _advance(self, kind: Kind, count: int) -> None:
        """What is sent twice, as its user was not known, is told once."""
        count = min(count, self._left[kind])
        if count:
            self._left[kind] -= count
            self._progress.advance(kind, count)

    def _note_delivered(self, kind: Kind, settled: Settled) -> None:
        self._accepted += settled.delivered
        self._accepted_bytes += size_of(settled.delivered)
        if self._known_good is None or (kind is Kind.USER and self._known_good.kind is Kind.EVENT):
            self._known_good = settled.delivered[0]
        if kind is Kind.USER:
            self._updated_users_at = self._clock()
        if self._mode.is_bulk:
            self._fields.take_in(kind, settled)

    def _note_unknown(self, unknown: Sequence[FailedRecord]) -> None:
        if self._is_second_try:
            self._stage.note(unknown)
        else:
            self._stage.hold(unknown)
            self._held += len(unknown)

    def _finish(self, batch: Batch) -> None:
        self._under_way[batch.kind].remove(batch)
        self._bytes_under_way -= batch.size
        if batch.is_repeat:
            return
        if batch.kind is Kind.EVENT:
            self._busy.discard(batch.last_identity)
        else:
            self._feed.settle(batch)

    def _drain(self) -> None:
        """Wait for what is under way; after a stop not longer than GRACE_S, or not at all."""
        while self._count_under_way() and (self._may_wait() or self._workers.has_reports()):
            self._take_in_reports()
        when = "before the run was stopped at once" if self._is_urgent() else f"within {GRACE_S:g} s after the stop"
        for batch in [batch for batches in self._under_way.values() for batch in batches]:
            self._abandon(batch, f"No answer came {when}.")

    def _may_wait(self) -> bool:
        return self._clock() < self._deadline and not self._is_urgent()

    def _abandon(self, batch: Batch, message: str) -> None:
        """A batch without an answer when the time is up. In single mode only its next record can be on its way."""
        self._finish(batch)
        left = [] if batch.is_repeat else batch.unsettled
        attempted = left if self._mode.is_bulk else left[:1]
        rest = (Outcome.UNACKNOWLEDGED, None, None, message, 1)
        self._stage.note(
            [FailedRecord(each.kind, each.row, each.identity, *rest) for each in attempted], is_blamed=False
        )

    def _is_time_to_commit(self) -> bool:
        return (
            len(self._accepted) >= RECORDS_PER_COMMIT
            or self._accepted_bytes >= BYTES_PER_COMMIT
            or self._clock() - self._committed_at > SECONDS_PER_COMMIT
        )

    def _commit(self) -> None:
        """Enter what was accepted, so that no later run sends it again."""
        if self._accepted:
            self._stage.note_delivered(self._accepted)
            self._ledger.accept(self._accepted)
            self._ledger.commit()
            self._accepted, self._accepted_bytes = [], 0
        self._committed_at = self._clock()

    # The end --------------------------------------------------------------------------------------------------

    def _send_held(self) -> None:
        """Try the events of users unknown to Iterable once more, when it has had time to learn of its new users."""
        if self._stop is not None:
            return
        lost = self._stage.release_users_of_held()
        if lost:
            self._progress.say(f"{counted(lost, 'unchanged user')} gone from Iterable; sending again.")
            self._send()
        since_update = self._clock() - self._updated_users_at if self._updated_users_at is not None else math.inf
        wait_s = max(0.0, self._settle_s - since_update)
        self._progress.say(
            f"{counted(self._held, 'event')} refused because Iterable does not know their user (yet); "
            f"trying once more in {wait_s:.0f} s."
        )
        self._progress.waiting(f"a second try of {counted(self._held, 'event')} in {wait_s:.0f} s")
        until = self._clock() + wait_s
        while self._stop is None and self._clock() < until:
            self._take_in_reports()
        if self._stop is None:
            self._is_second_try = True
            self._stage.release_held()
            self._send()

    def _wind_up(self) -> None:
        """Whatever has ended the run: take in what is still answered, and enter what is known."""
        self._halt()
        self._workers.close()
        while self._count_under_way():
            with suppress(Exception):  # the first one is on its way to the caller, or is the reason to stop
                self._drain()
        with suppress(sqlite3.Error):
            self._commit()
        with suppress(sqlite3.Error):
            self._stage.give_up_held()
        with suppress(sqlite3.Error):
            note_failures(self._ledger, self._stage, self._query, counts=self._breaker.has_accepted)
        self._progress.finish()


def _was_read(settled: Settled) -> bool:
    """Whether Iterable has read the request, whatever it thought of the records."""
    return settled.failure in (None, Failure.REJECTED)


class _Fields:
    """Fields that Iterable has dropped or created, and which of the watched ones got through."""

    def __init__(self, watched: Mapping[Kind, Collection[str]]) -> None:
        self._filtered_out: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._created: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._passed: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._watched = {kind: set(watched.get(kind, ())) for kind in Kind}

    def take_in(self, kind: Kind, settled: Settled) -> None:
        self._filtered_out[kind] |= settled.filtered_out_fields
        self._created[kind] |= settled.created_fields
        for name in self._watched[kind] - self._passed[kind] - settled.filtered_out_fields:
            quoted = json.dumps(name.rpartition(".")[2], ensure_ascii=False).encode() + b":"
            if any(quoted in record.payload for record in settled.delivered):
                self._passed[kind].add(name)

    def found(self) -> tuple[Mapping[Kind, frozenset[str]], ...]:
        """Filtered out, created, passed."""
        passed = {kind: self._passed[kind] - self._filtered_out[kind] for kind in Kind}
        found = (self._filtered_out, self._created, passed)
        return tuple({kind: frozenset(names) for kind, names in each.items()} for each in found)
