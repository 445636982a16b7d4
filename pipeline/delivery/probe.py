"""Probes: what is tried while the breaker holds back all calls, to see whether Iterable or the records are to blame.

No record that was accepted is ever sent again for this. A probe is a record that has not failed before; else one of a
batch that failed, alone; else a call that reads. A call that reads well shows that Iterable answers, and nothing about
whether it lets this key write.
"""

from __future__ import annotations

from pipeline.delivery.breaker import Breaker
from pipeline.delivery.feed import Batch, Feed
from pipeline.delivery.in_flight import InFlight
from pipeline.delivery.workers import Workers
from pipeline.model.exits import ExitCode
from pipeline.model.failure_policy import POLICIES
from pipeline.model.records import Kind

PROBES = 2  # before the run stops, as the first record may be a bad one, too; both take some 7 s where all is lost


class Probes:
    """Those of one delivery; only its own thread uses it."""

    def __init__(self, in_flight: InFlight, workers: Workers, breaker: Breaker) -> None:
        self.is_reading = False
        self._in_flight = in_flight
        self._workers = workers
        self._breaker = breaker
        self._may_read = True
        self._is_gone = False  # the last call that reads was not answered
        self._sent = self._reads = self._unasked = 0  # since Iterable has last read anything of ours

    @property
    def have_been_sent(self) -> bool:
        return self._sent > 0

    def note_read(self) -> None:
        """Iterable has read a request, whatever it thought of the records."""
        self._sent = self._reads = self._unasked = 0
        self._is_gone = False

    def one_that_has_not_failed(self, feed: Feed) -> Batch | None:
        """Of the kind that fails if there is one, else of the other kind."""
        if feed.is_late or self._sent >= PROBES:
            return None
        for kind in sorted(Kind, key=lambda each: each is not self._breaker.last.kind):
            batch = feed.take(kind, self._in_flight.busy, one=True)
            if batch is not None:
                batch.is_probe = True
                self._sent += 1
                return batch
        return None

    def try_one_of_a_batch(self) -> bool:
        """While nothing was accepted, have one record of a failed batch sent alone. Whether there is any."""
        if self._breaker.has_accepted or self._sent >= PROBES or not self._breaker.let_one_try():
            return False
        self._sent += 1
        return True

    def ask_or_acquit(self) -> bool:
        """Where no record is left to try: find out by a call that reads, or take the failures for the records' own.

        False: neither is justified. A refusal of the key is a record's own only where others were accepted.
        """
        if self._sent >= PROBES or self._is_gone:
            return False
        if POLICIES[self._breaker.last.failure].code is ExitCode.CREDENTIALS:
            return self._acquit_unasked()
        if self._may_read and (self._breaker.has_accepted or self._reads < PROBES):
            return self._ask()
        self._unasked += 1
        return self._unasked <= PROBES and self._acquit_unasked()

    def _acquit_unasked(self) -> bool:
        if not self._breaker.has_accepted:
            return False
        self._breaker.acquit()
        return True

    def _ask(self) -> bool:
        try:
            self._workers.submit_reading(self._breaker.last.kind)
        except RuntimeError:  # raised when no thread can be started
            return False
        self._reads += 1
        self.is_reading = True
        return True

    def take_in(self, is_answered: bool | None) -> None:
        """What came of a call that reads."""
        self.is_reading = False
        self._may_read = is_answered is not None
        self._is_gone = is_answered is False
        if is_answered:
            self._breaker.acquit(has_answered=True)
