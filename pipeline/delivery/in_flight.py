"""The batches that were handed to the workers and have not come to their end: how many there may be, and whose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from pipeline.delivery.breaker import Breaker
from pipeline.delivery.feed import Batch
from pipeline.delivery.modes import Mode
from pipeline.model.records import Kind

WAITING_BATCHES = 4  # ready for the next worker that is free; more would only take memory
MAX_BYTES_IN_FLIGHT = 12_000_000  # with those that wait; each is in memory three times while it is sent
MAX_BLOCKED = 5  # batches that failed while Iterable has accepted nothing yet


class InFlight:
    """By kind. Only the delivery's thread uses it."""

    def __init__(self, mode: Mode, breaker: Breaker) -> None:
        self.busy: set[str] = set()  # the last user of each batch of events
        self._mode = mode
        self._breaker = breaker
        self._batches: dict[Kind, list[Batch]] = {kind: [] for kind in Kind}
        self._bytes = 0
        self._most = dict.fromkeys(Kind, 1)

    def __iter__(self) -> Iterator[Batch]:
        return chain(*self._batches.values())

    def __len__(self) -> int:
        return sum(map(len, self._batches.values()))

    def add(self, batch: Batch) -> None:
        self._batches[batch.kind].append(batch)
        self._bytes += batch.size
        if batch.kind is Kind.EVENT:
            self.busy.add(batch.last_identity)

    def remove(self, batch: Batch) -> None:
        self._batches[batch.kind].remove(batch)
        self._bytes -= batch.size
        if batch.kind is Kind.EVENT:
            self.busy.discard(batch.last_identity)

    def allow_many(self, kind: Kind) -> None:
        """Iterable has read a batch of this kind."""
        self._most[kind] = self._mode.workers + WAITING_BATCHES

    def has_room(self, kind: Kind) -> bool:
        """The first batch goes alone until Iterable has read it, as a wrong key then costs one request; the first one
        of each kind, too, as new fields are then created once. Then as many as the mode allows: half of them, as long
        as the other kind has some."""
        if self._breaker.is_open or self._breaker.is_stopping or self._breaker.count_blocked() >= MAX_BLOCKED:
            return False
        if self._bytes >= MAX_BYTES_IN_FLIGHT or self._breaker.pacing.count(kind) >= self._mode.prefetch:
            return False
        moving = len(self._batches[kind]) - self._breaker.count_blocked(kind)
        if max(self._most.values()) == 1:
            moving = len(self) - self._breaker.count_blocked()
        return moving < min(self._most[kind], self._share(kind))

    def _share(self, kind: Kind) -> int:
        workers = self._mode.workers
        if any(batches for other, batches in self._batches.items() if other is not kind):
            workers = max(workers // 2, 1)
        return workers + WAITING_BATCHES
