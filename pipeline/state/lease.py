"""The lease on the ledger: taken, renewed and given back by compare-and-swap on the one record.

No two machines' clocks are compared. The holder counts from before the request with which it last renewed, on a clock
that goes on while the machine sleeps; who wants to take it over asks the store how old the record is, by the store's
own clock. So a holder stops before anybody else can begin.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.ledger.file import LedgerBusyError
from pipeline.model.exits import ExitCode, RunError
from pipeline.state.record import RECORD_NAME, Holder, Resend, StateRecord, parse_record
from pipeline.state.store import ConflictError, Store, StoreDownError, StoreRefusedError, Version

_TRIES = 5


@dataclass(frozen=True)
class Times:
    """In seconds. stops_after_s leaves the requests that are under way then their time to arrive; margin_s: what the
    store's times may be off by."""

    lasts_s: float = 120.0
    renewed_every_s: float = 30.0
    stops_after_s: float = 100.0
    margin_s: float = 5.0
    tried_again_after_s: float = 5.0
    put_back_every_s: float = 50.0  # so that less than 60 s pass until it is there


TIMES = Times()


class LeaseHeldError(LedgerBusyError):
    """Another run has the ledger."""


class LeaseLostError(RunError):
    """Another run has taken the ledger over."""

    code = ExitCode.TEMPORARY


class AwakeClock:
    """Seconds since some moment, also those in which this process was stopped or the machine asleep. For any thread.

    It never goes back: a clock that is set ahead, and back after the lease was renewed, must not make it last longer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = self._read()
        self._passed = 0.0

    def __call__(self) -> float:
        with self._lock:
            now = self._read()
            self._passed += max(0.0, *(new - old for new, old in zip(now, self._seen, strict=True)))
            self._seen = now
            return self._passed

    def _read(self) -> list[float]:
        """time.monotonic() stands still on Linux while the machine sleeps; a clock that is set ahead ends a lease too
        early, which does no harm."""
        clocks = [time.monotonic(), time.time()]
        if hasattr(time, "CLOCK_BOOTTIME"):
            clocks.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        return clocks


class Lease:
    """That of one run. `take` it first. For any thread."""

    def __init__(
        self, store: Store, holder: Holder, *, times: Times | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._store = store
        self._holder = holder
        self.times = times or TIMES
        self._clock = clock or AwakeClock()
        self._lock = threading.Lock()
        self._version: Version = {}
        self._writes: deque[str] = deque(maxlen=100)
        self._renewed_at = 0.0
        self.record = StateRecord()
        self.is_lost = False

    def take(self) -> Holder | None:
        """Take it. Returns a run that had it and did not give it back. Raises LeaseHeldError, and what the store
        raises."""
        for _ in range(_TRIES):
            begun = self._clock()
            found = self._store.read(RECORD_NAME)
            before = parse_record(found.content, self._store.url) if found is not None else StateRecord()
            if before.holder is not None and not self._may_take_over(before.holder):
                raise LeaseHeldError(self._held_by(before.holder))
            new = replace(before, holder=self._holder, write=secrets.token_hex(8))
            if before.holder is not None and before.holder.sending:
                new = new.with_resend(before.holder.job, resend_of(before.holder))
            version = self._written(new, found.version if found is not None else None)
            if version is None:
                continue  # somebody was faster: look who
            if found is None:
                version = self._try_out(new, version)
            self.record, self._version, self._renewed_at = new, version, begun
            return before.holder
        raise LeaseHeldError(f"Other runs are taking {self._store.url}. Nothing was read, written or sent.")

    def _try_out(self, new: StateRecord, version: Version) -> Version:
        """Where nothing was stored yet: whether the store compares before it replaces; some take no notice of it."""
        newer = self._written(replace(new, write=secrets.token_hex(8)), version)
        for stale in (None, version):
            if newer is not None and self._written(replace(new, write=secrets.token_hex(8)), stale) is not None:
                self._store.delete(RECORD_NAME)  # so that the next run tries again
                raise StoreRefusedError(
                    f"STATE_URL names {self._store.url}, a store that replaces objects whatever they were, so two runs "
                    "could not be kept apart there; name one that knows If-Match and If-None-Match."
                )
        return newer or version

    def _may_take_over(self, holder: Holder) -> bool:
        """Whether that run is over: it was in the folder that only we hold now, or has not renewed for too long."""
        if holder.place == self._holder.place:
            return True
        age_s = self._store.age_s(RECORD_NAME)
        return age_s is not None and age_s >= self.times.lasts_s + self.times.margin_s

    def _held_by(self, holder: Holder) -> str:
        return (
            f"Another run is active: process {holder.process} on {holder.host} (run {holder.run or 'not named yet'}) "
            f"holds {self._store.url}, until {self.times.lasts_s:g} s after it was seen last. Nothing was read, "
            "written or sent."
        )

    def is_valid(self) -> bool:
        """Whether nobody else can have it, for as long as requests that leave now may take."""
        return not self.is_lost and self._clock() - self._renewed_at < self.times.stops_after_s

    def renew(self) -> None:
        self.change(lambda record: record)

    def change(self, changed: Callable[[StateRecord], StateRecord]) -> StateRecord:
        """Replace the record, which renews the lease; the record as it was before. Nothing, once it was given back.

        Raises LeaseLostError, and what the store raises; then it is as before, or will be found changed.
        """
        with self._lock:
            if self.is_lost:
                raise self._lost()
            for _ in range(_TRIES):
                before, begun = self.record, self._clock()
                if before.holder is None:
                    return before
                new = replace(changed(before), write=secrets.token_hex(8))
                version = self._written(new, self._version)
                if version is not None:
                    self.record, self._version, self._renewed_at = new, version, begun
                    return before
                self._adopt_our_own()
        raise StoreDownError(f"{self._store.url} gives no clear answers.")

    def name_run(self, run_id: str) -> None:
        """What the record calls this run from its next write on."""
        with self._lock:
            if self.record.holder is not None:
                self.record = replace(self.record, holder=replace(self.record.holder, run=run_id))

    def _written(self, new: StateRecord, expected: Version | None) -> Version | None:
        """The version that it has now, also where the answer was lost; None: something else is there."""
        self._writes.append(new.write)
        try:
            return self._store.write(RECORD_NAME, new.as_bytes(), expected)
        except ConflictError:
            found = self._store.read(RECORD_NAME)
            if found is not None and parse_record(found.content, self._store.url).write == new.write:
                return found.version
            return None

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"Another run has taken {self._store.url} over.")

    def _adopt_our_own(self) -> None:
        """Go on from what is there, an earlier write of ours whose answer was lost. Raises LeaseLostError."""
        found = self._store.read(RECORD_NAME)
        record = parse_record(found.content, self._store.url) if found is not None else StateRecord()
        if found is None or record.write not in self._writes:
            self.is_lost = True
            raise self._lost()
        self.record, self._version = record, found.version


def resend_of(holder: Holder) -> Resend:
    """What is to be known of a run that has begun to send, and is over without having put its ledger back."""
    return Resend(holder.job, holder.run, holder.host, holder.token, holder.sending or 0)
