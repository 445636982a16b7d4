"""Threads that send batches. In: batches. Out: reports of what became of their records, in a queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pipeline.delivery.breaker import Breaker
from pipeline.delivery.bulk_answers import Settled
from pipeline.delivery.feed import Batch
from pipeline.delivery.senders import Sender
from pipeline.model.records import Kind

MAX_REPORTS_AT_ONCE = 1000
GATHER_S = 0.003  # singly, taking in each report as it comes would cost a tenth of the whole work


@dataclass(frozen=True)
class BatchReport:
    """What became of some records of a batch, or the bug that came up; neither: the batch is at its end."""

    batch: Batch
    settled: Settled | None = None
    bug: BaseException | None = None


@dataclass(frozen=True)
class ReadReport:
    """Whether Iterable answers a call that reads; None: this key may not read. Or the bug that came up."""

    is_answered: bool | None = None
    bug: BaseException | None = None


class Workers:
    """At most `count` that are at work at a time. Daemons, so that no hung socket keeps a finished run alive."""

    def __init__(self, sender: Sender, breaker: Breaker, count: int, *, gather_s: float = 0.0) -> None:
        """gather_s: how long to wait for more reports when one has come."""
        self._sender = sender
        self._gather_s = gather_s
        self._breaker = breaker
        self._count = count
        self._started = 0
        self._tasks: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        # Not a SimpleQueue: its get() waits for ever where a signal comes as a short time-out ends (CPython 3.11).
        self._reports: queue.Queue[BatchReport | ReadReport] = queue.Queue()

    def submit(self, batch: Batch, under_way: int) -> None:
        """Hand over a batch; a new thread only where the others have work already, or wait.

        RuntimeError where no thread can be started and there is none yet.
        """
        self._tasks.put(batch)
        if self._started < min(self._count + self._breaker.count_blocked(), under_way):
            try:
                self._start(None)
            except RuntimeError:
                if not self._started:
                    raise
                self._count = self._started  # the system has no more for us

    def submit_probe(self, batch: Batch) -> None:
        """Have a batch sent at once, as all workers may be waiting. RuntimeError where no thread can be started."""
        self._start(batch)

    def submit_reading(self, kind: Kind) -> None:
        """Find out whether Iterable answers at all. RuntimeError where no thread can be started."""
        threading.Thread(target=self._read, args=(kind,), name="reader", daemon=True).start()

    def _read(self, kind: Kind) -> None:
        try:
            self._breaker.turn(kind, is_probe=True)
            self._reports.put(ReadReport(self._sender.is_answered()))
        except BaseException as bug:  # raised again by the main thread
            self._reports.put(ReadReport(bug=bug))

    def _start(self, only: Batch | None) -> None:
        threading.Thread(target=self._work, args=(only,), name=f"worker-{self._started + 1}", daemon=True).start()
        self._started += only is None

    def count(self) -> int:
        """Workers that were started."""
        return self._started

    def count_queued(self) -> int:
        """Batches that no worker has begun."""
        return self._tasks.qsize()

    def reports(self, timeout_s: float) -> Iterator[BatchReport | ReadReport]:
        """What has been reported; waits for the first one, but not longer than this, and a moment for more."""
        with suppress(queue.Empty):
            yield self._reports.get(timeout=timeout_s)
            time.sleep(self._gather_s)
            for _ in range(MAX_REPORTS_AT_ONCE):
                yield self._reports.get_nowait()

    def has_reports(self) -> bool:
        return not self._reports.empty()

    def withdraw(self) -> list[Batch]:
        """The batches that no worker has begun, and none will."""
        batches = []
        with suppress(queue.Empty):
            while True:
                if (batch := self._tasks.get_nowait()) is not None:
                    batches.append(batch)
        return batches

    def close(self) -> None:
        for _ in range(self._started):
            self._tasks.put(None)

    def _work(self, only: Batch | None) -> None:
        if only is not None:
            self._send(only)
        while only is None and self._send_next():
            pass

    def _send_next(self) -> bool:
        """In a function of its own, so that a worker without work holds no batch in memory."""
        batch = self._tasks.get()
        if batch is not None:
            self._send(batch)
        return batch is not None

    def _send(self, batch: Batch) -> None:
        try:
            turn = self._breaker.turn(batch.kind, is_probe=batch.is_probe)
            for settled in self._sender.send(batch.records, turn):
                self._reports.put(BatchReport(batch, settled))
            self._reports.put(BatchReport(batch))
        except BaseException as bug:  # raised again by the main thread, which then ends the run
            self._reports.put(BatchReport(batch, bug=bug))
