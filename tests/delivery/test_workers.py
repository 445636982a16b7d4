"""The threads that send, as the delivery's own thread sees them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence

import pytest

from pipeline.delivery.breaker import Breaker, Turn
from pipeline.delivery.bulk_answers import Settled
from pipeline.delivery.feed import Batch
from pipeline.delivery.workers import MAX_REPORTS_AT_ONCE, BatchReport, Workers
from pipeline.model.records import Kind, Record


class Echo:
    """A Sender that delivers each record by itself."""

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]:
        for record in records:
            yield Settled(delivered=[record])

    def is_answered(self) -> bool | None:
        return None


def batch_of(count: int) -> Batch:
    return Batch([Record(Kind.USER, row, f"{row}@example.com", b"", b"", b"{}") for row in range(count)])


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX")
def test_signal_whose_handler_takes_longer_than_the_wait_ends_the_wait(request: pytest.FixtureRequest) -> None:
    signals: list[int] = []

    def take_long(number: int, frame: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise TimeoutError("it waits for ever")
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass

    before = signal.signal(signal.SIGALRM, take_long)
    request.addfinalizer(lambda: signal.signal(signal.SIGALRM, before))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 5.0)
    try:
        assert list(Workers(Echo(), Breaker(), 1).reports(0.01)) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(signals) == 1


def test_more_reports_than_are_taken_at_once_are_all_taken_in_order() -> None:
    workers = Workers(Echo(), Breaker(), 1)
    batch = batch_of(MAX_REPORTS_AT_ONCE + 200)
    workers.submit(batch, 1)
    reports: list[BatchReport] = []
    while not reports or reports[-1].settled is not None:
        reports += [each for each in workers.reports(30.0) if isinstance(each, BatchReport)]
    workers.close()
    reported = [report.settled.delivered[0] for report in reports[:-1] if report.settled]
    assert reported == batch.records
