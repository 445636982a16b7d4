"""Pending records -> requests, concurrently -> one outcome for each record, noted in the ledger as the answers come in.

One thread, that of `Delivery.run`, takes batches from the feed and keeps the ledger; the workers only send. Users and
events are both under way at once: what may leave, and when, stands in `feed`; whether a call may go out in `breaker`.
Of one user there is never more than one batch of events under way, so that they keep their order.
"""

from __future__ import annotations

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
from pipeline.delivery.bulk_answers import Settled
from pipeline.delivery.commits import CommitBuffer
from pipeline.delivery.dropped_fields import DroppedFields
from pipeline.delivery.failure_history import are_known_rejections, note_failures
from pipeline.delivery.feed import Batch, Feed
from pipeline.delivery.in_flight import InFlight
from pipeline.delivery.modes import Mode
from pipeline.delivery.probe import Probes
from pipeline.delivery.senders import Sender
from pipeline.delivery.suspicions import Suspicions
from pipeline.delivery.workers import GATHER_S, BatchReport, ReadReport, Workers
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import GO_ON, POLICIES
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.model.text import counted
from pipeline.stage.stage import Stage

logger = logging.getLogger("pipeline.delivery")

GRACE_S = 5.0  # for what is under way when the run stops
TICK_S = 0.1
MOMENT_S = 0.002


class Progress(Protocol):
    """Shows how far the delivery is. `waiting` may be called from any thread."""

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
    delivered without their being dropped. entered: records that --baseline entered as accepted. entered_addresses: of
    people of whom it entered nothing else.
    """

    stopped: Ending | None = None
    has_accepted: bool = False
    filtered_out_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    created_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    passed_fields: Mapping[Kind, frozenset[str]] = field(default_factory=_by_kind)
    entered: int = field(default=0, kw_only=True)
    entered_addresses: int = field(default=0, kw_only=True)


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
        window_from: int | None = None,
        watched_fields: Mapping[Kind, Collection[str]] | None = None,
        late_from: float = -math.inf,
        on_commit: Callable[[int], None] = lambda records: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """settle_s: how long Iterable may take to know a user that was just updated. breaker: the client waits through
        it, too. interrupted: how the run ends if it was asked to, else None. is_urgent: whether it may not even wait
        for what is under way. query: the path of the query file, under which failures are remembered.
        window_from: where the window of :since starts, in Unix seconds.
        watched_fields: fields that Iterable has dropped before. on_commit: called with how many records the ledger has
        stored."""
        self._ledger = ledger
        self._stage = stage
        self._mode = mode
        self._settle_s = settle_s
        self._breaker = breaker
        self._interrupted = interrupted
        self._is_urgent = is_urgent
        self._progress = progress
        self._query = query
        self._window_from = window_from
        self._late_from = late_from
        self._clock = clock
        self._workers = Workers(sender, breaker, mode.workers, gather_s=0.0 if mode.is_bulk else GATHER_S)
        self._fields = DroppedFields(watched_fields or {})
        self._stop: Ending | None = None
        self._is_verdict = False  # the breaker has stopped the run, and not a signal or a full disk;
        self._is_in_doubt = False  # and the records may be to blame all the same
        self._deadline = math.inf
        self._feed: Feed  # of the present pass
        self._in_flight = InFlight(mode, breaker)
        self._probes = Probes(self._in_flight, self._workers, breaker)
        self._suspicions = Suspicions(stage, lambda: are_known_rejections(ledger, stage))
        self._commits = CommitBuffer(ledger, stage, clock, on_commit)
        self._left = dict.fromkeys(Kind, 0)  # records that the progress does not count yet
        self._updated_users_at: float | None = None
        self._held = 0
        self._is_second_try = False

    def run(self) -> Delivered:
        """Send everything. Afterwards, what was not attempted has no outcome."""
        try:
            self._send_everything()
        except sqlite3.Error as error:
            self._begin_stop(_full_disk(error))
        finally:
            self._wind_up()
        return Delivered(self._stop, self._breaker.has_accepted, *self._fields.found())

    def _send_everything(self) -> None:
        self._left = {kind: self._stage.states.count_pending(kind) for kind in Kind}
        if any(self._left.values()):
            self._progress.start(self._left.copy())
            self._send()
            self._wait_until(self._late_from)
            self._send(late=True)
            if self._held:
                self._send_held()

    def _send(self, *, late: bool = False) -> None:
        """One pass: submit what may leave, and take in what comes back, until all is settled or the run stops."""
        if self._stop is not None:
            return
        self._feed = Feed(self._stage, self._ledger, self._mode, late=late)
        while self._stop is None and (self._in_flight or self._breaker.is_open or not self._feed.is_done()):
            if self._submit_what_may_leave():
                self._take_in_reports(MOMENT_S)
            elif self._nothing_moves():
                self._probe_or_stop()
            else:
                self._take_in_reports()
        self._drain()
        self._commits.commit()

    # What goes out --------------------------------------------------------------------------------------------

    def _submit_what_may_leave(self) -> bool:
        """Whether anything did."""
        before = len(self._in_flight)
        for kind in Kind:
            for _ in range(self._mode.prefetch):  # the workers need a moment to show whether more are of use
                batch = self._feed.take(kind, self._in_flight.busy) if self._in_flight.has_room(kind) else None
                if batch is None:
                    break
                self._submit(batch)
        return len(self._in_flight) > before

    def _submit(self, batch: Batch) -> None:
        self._in_flight.add(batch)
        try:
            if batch.is_probe:
                self._workers.submit_probe(batch)
            else:
                self._workers.submit(batch, len(self._in_flight))
        except RuntimeError as error:  # raised when no thread can be started
            self._begin_stop(Ending(ExitCode.TEMPORARY, f"The system refuses to start a thread ({error}). {GO_ON}"))
            if batch.is_probe:
                self._finish(batch)

    # When Iterable seems to be gone ---------------------------------------------------------------------------

    def _nothing_moves(self) -> bool:
        """Whether all that is under way waits for the breaker."""
        if self._workers.has_reports() or self._probes.is_reading:
            return False
        waiting = self._breaker.count_blocked()
        if self._breaker.is_open or waiting >= self._workers.count():
            waiting += self._workers.count_queued()
        return waiting >= len(self._in_flight) and (self._breaker.is_open or waiting > 0)

    def _probe_or_stop(self) -> None:
        """Find out whether the records are to blame for the last failures."""
        probe = self._probes.one_that_has_not_failed(self._feed)
        if probe is not None:
            self._submit(probe)
        elif (
            self._probes.try_one_of_a_batch()
            or (not self._probes.have_been_sent and self._breaker.let_begun_calls_end())
            or not self._nothing_moves()
            or self._may_go_on()
        ):
            self._take_in_reports()  # what comes of them is all that can be found out
        elif self._breaker.has_accepted or not self._feed.is_late:
            self._is_in_doubt = self._breaker.has_accepted and POLICIES[self._breaker.last.failure].is_suspect
            self._stop_by(self._breaker.verdict())
        else:
            self._is_in_doubt = True
            self._stop_by(self._breaker.verdict_on_late())

    def _may_go_on(self) -> bool:
        """Where no record is left to try: whether anything speaks for it that Iterable is there."""
        is_worth_asking = self._breaker.has_accepted or self._in_flight or not self._feed.is_done()
        return bool(is_worth_asking) and self._probes.ask_or_acquit()

    def _stop_by(self, verdict: Ending) -> None:
        self._is_verdict = self._stop is None
        self._begin_stop(verdict)

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
        if self._commits.is_due():
            self._commits.commit()
        if self._breaker.must_end_run():
            self._stop_by(self._breaker.verdict())
        ending = self._interrupted()
        if ending is not None:
            self._begin_stop(ending)

    def _take_in(self, report: BatchReport | ReadReport) -> None:
        if report.bug is not None:
            if isinstance(report, BatchReport):
                self._abandon(report.batch, "Its request did not finish because of a bug.")
            raise report.bug
        if isinstance(report, ReadReport):
            self._probes.take_in(report.is_answered)
        elif report.settled is None:
            self._finish(report.batch)
        else:
            self._settle(report.batch, report.settled)

    def _settle(self, batch: Batch, settled: Settled) -> None:
        batch.settled.update(settled.rows())
        if settled.delivered:
            self._note_delivered(batch.kind, settled)
        self._suspicions.take_in(settled)
        if settled.unknown:
            self._note_unknown(settled.unknown)
        if _was_read(settled):
            self._probes.note_read()
            self._in_flight.allow_many(batch.kind)
        self._advance(batch.kind, len(settled.delivered) + len(settled.failed) + len(settled.unknown))

    def _advance(self, kind: Kind, count: int) -> None:
        """What is sent twice, as its user was not known, counts once."""
        count = min(count, self._left[kind])
        if count:
            self._left[kind] -= count
            self._progress.advance(kind, count)

    def _note_delivered(self, kind: Kind, settled: Settled) -> None:
        self._commits.add(settled.delivered)
        if kind is Kind.USER:
            self._updated_users_at = self._clock()
        if self._mode.is_bulk:
            self._fields.take_in(kind, settled)

    def _note_unknown(self, unknown: Sequence[FailedRecord]) -> None:
        if self._is_second_try:
            self._stage.outcomes.note(unknown)
        else:
            self._stage.outcomes.hold(unknown)
            self._held += len(unknown)

    def _finish(self, batch: Batch) -> None:
        self._in_flight.remove(batch)
        if batch.kind is Kind.USER:
            self._feed.settle(batch)

    def _drain(self) -> None:
        """Wait for what is under way; after a stop not longer than GRACE_S, or not at all."""
        while self._in_flight:
            is_over = self._clock() >= self._deadline or self._is_urgent()
            if is_over and not self._workers.has_reports():
                break
            self._take_in_reports()
        when = "before the run was stopped at once" if self._is_urgent() else f"within {GRACE_S:g} s after the stop"
        for batch in list(self._in_flight):
            self._abandon(batch, f"No answer came {when}.")

    def _abandon(self, batch: Batch, message: str) -> None:
        """A batch without an answer when the time is up. In single mode only its next record can be on its way."""
        self._finish(batch)
        attempted = batch.unsettled if self._mode.is_bulk else batch.unsettled[:1]
        rest = (Outcome.UNACKNOWLEDGED, None, None, message, 1)
        self._stage.outcomes.note(
            [FailedRecord(each.kind, each.row, each.identity, *rest) for each in attempted], is_blamed=False
        )

    # The end --------------------------------------------------------------------------------------------------

    def _send_held(self) -> None:
        """Try the events of users unknown to Iterable once more, when it has had time to learn of its new users."""
        if self._stop is not None:
            return
        lost = self._stage.outcomes.release_users_of_held()
        if lost:
            self._progress.say(f"{counted(lost, 'unchanged user')} no longer in Iterable; sending again.")
            self._send()
        wait_s = 0.0
        if self._updated_users_at is not None and self._stage.outcomes.may_know_users_of_held():
            wait_s = max(0.0, self._settle_s - (self._clock() - self._updated_users_at))
        self._progress.say(
            f"{counted(self._held, 'event')} refused because Iterable does not know their user (yet); "
            f"trying once more in {wait_s:.0f} s."
        )
        self._progress.waiting(f"a second try of {counted(self._held, 'event')} in {wait_s:.0f} s")
        self._wait_until(self._clock() + wait_s)
        if self._stop is None:
            self._is_second_try = True
            self._stage.outcomes.release_held()
            self._send()

    def _decide(self) -> None:
        """What the breaker's verdict is worth, now that all is known."""
        suspected = self._suspicions.conclude()
        if suspected is not None and (self._stop is None or self._is_verdict):
            self._stop = suspected
        elif (
            self._is_verdict
            and (self._is_in_doubt or self._suspicions.were_known)
            and not any(map(self._stage.states.count_pending, Kind))
        ):
            self._stop = None  # all have been tried

    def _wait_until(self, moment: float) -> None:
        while self._stop is None and self._clock() < moment:
            self._take_in_reports()

    def _wind_up(self) -> None:
        """Whatever has ended the run: take in what is still answered, and enter what is known."""
        self._halt()
        self._workers.close()
        while self._in_flight:
            with suppress(Exception):  # the first one is on its way to the caller, or is the reason to stop
                self._drain()
        with suppress(sqlite3.Error):
            self._commits.commit()
        with suppress(sqlite3.Error):
            self._decide()
        with suppress(sqlite3.Error):
            self._stage.outcomes.give_up_held()
        try:
            counts = self._breaker.has_accepted
            note_failures(self._ledger, self._stage, self._query, counts=counts, window_from=self._window_from)
        except sqlite3.Error as error:  # the cursor must not move past what is not noted
            self._stop = self._stop or _full_disk(error)
        self._progress.finish()


def _full_disk(error: sqlite3.Error) -> Ending:
    problem = f"The ledger can't be written ({error}); make room and run again."
    return Ending(ExitCode.TEMPORARY, f"{problem} {GO_ON}")


def _was_read(settled: Settled) -> bool:
    """Whether Iterable has read the request, whatever it thought of the records."""
    return settled.failure in (None, Failure.REJECTED)
