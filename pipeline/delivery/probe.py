"""A probe: one record that is tried while the breaker holds back all others, to see whether Iterable or they are to
blame."""

from __future__ import annotations

from pipeline.delivery.breaker import Breaker
from pipeline.delivery.feed import Batch, Feed
from pipeline.delivery.in_flight import InFlight
from pipeline.delivery.modes import Mode
from pipeline.model.records import Kind, Record

PROBES = 2  # before the run stops, as the first record may be a bad one, too; both take some 7 s where all is lost


class Probes:
    """Those of one delivery; only its own thread uses it."""

    def __init__(self, in_flight: InFlight, breaker: Breaker, mode: Mode) -> None:
        self._in_flight = in_flight
        self._breaker = breaker
        self._mode = mode
        self._known_good: Record | None = None  # one that Iterable has accepted in this run
        self._used = 0  # since Iterable has last read anything

    @property
    def have_been_used(self) -> bool:
        return self._used > 0

    def note_accepted(self, record: Record) -> None:
        if self._known_good is None or (record.kind is Kind.USER and self._known_good.kind is Kind.EVENT):
            self._known_good = record

    def note_read(self) -> None:
        """Iterable has read a request, whatever it thought of the records."""
        self._used = 0

    def next(self, feed: Feed) -> Batch | None:
        """The next probe; None: there is none, or enough were tried."""
        if self._used >= PROBES:
            return None
        probe = self._one_that_has_not_failed(feed) or self._one_to_repeat()
        if probe is not None:
            self._used += 1
        return probe

    def _one_that_has_not_failed(self, feed: Feed) -> Batch | None:
        """Of the kind that fails if there is one, else of the other kind."""
        if feed.is_late:
            return None
        for kind in sorted(Kind, key=lambda each: each is not self._breaker.failing_kind):
            batch = feed.take(kind, self._in_flight.busy, one=True)
            if batch is not None:
                batch.is_probe = True
                return batch
        return None

    def _one_to_repeat(self) -> Batch | None:
        """One that was accepted already, as to send it again changes nothing; else one of a failed batch, alone."""
        record = self._known_good or self._one_of_failed_batch()
        return Batch([record], is_probe=True, is_repeat=True) if record is not None else None

    def _one_of_failed_batch(self) -> Record | None:
        blocked = [batch for batch in self._in_flight if len(batch.records) > 1]
        if not blocked or not self._mode.is_bulk:
            return None
        records = blocked[0].records
        return records[self._used * len(records) // PROBES]
