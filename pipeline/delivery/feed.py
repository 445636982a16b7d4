"""What may be sent next: the pending records of one pass over the stage, as batches.

Users leave in the order of their keys. The keys from one batch of users up to the next are a range, whose events may
leave as soon as that batch is settled; so no event ever overtakes its user's update, and a batch that takes long holds
back the events of its own range only. Before a record is handed out, what the ledger knows of it with another
content is void.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.delivery.modes import Mode
from pipeline.ledger.ledger import Ledger
from pipeline.model.keys import USER_BYTES
from pipeline.model.records import Kind, Record
from pipeline.stage.pages import UserRecords, records_of, size_of, take_page
from pipeline.stage.stage import Stage

MAX_PARKED = 64  # batches of events that wait for an earlier one of their user
MAX_PARKED_BYTES = 4_000_000


@dataclass(eq=False)
class Batch:
    """Records that travel together, and which of them have no outcome yet.

    is_probe: it is tried while all others wait. first, before: the range of a batch of users. settled: the rows of
    those that have an outcome.
    """

    records: list[Record]
    is_probe: bool = False
    first: bytes = b""
    before: bytes | None = None
    settled: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.size = size_of(self.records)

    @property
    def kind(self) -> Kind:
        return self.records[0].kind

    @property
    def unsettled(self) -> list[Record]:
        return [record for record in self.records if record.row not in self.settled]

    @property
    def last_identity(self) -> str:
        return self.records[-1].identity


class Packer:
    """Records of one user at a time -> batches within the mode's limits, which end between two users where they can."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._batch: list[Record] = []
        self._size = self._user_start = 0

    def pack(self, by_user: Iterable[UserRecords]) -> Iterator[list[Record]]:
        """The batches that are full; what is left waits for the next call, or for `rest`."""
        for records, size in by_user:
            if self._batch and records[0].identity != self._batch[-1].identity:
                self._user_start = len(self._batch)
                if not self._mode.is_bulk:
                    yield self.rest()
            if self._has_room(len(records), size + len(records)):
                self._batch += records
                self._size += size + len(records)
            else:
                yield from self._pack_singly(records)

    def _pack_singly(self, records: Iterable[Record]) -> Iterator[list[Record]]:
        for record in records:
            size = len(record.payload) + 1
            while self._batch and not self._has_room(1, size):
                # The user begun last moves on whole, unless the batch is all theirs.
                cut = self._user_start or len(self._batch)
                yield self._batch[:cut]
                self._batch = self._batch[cut:]
                self._size, self._user_start = size_of(self._batch) + len(self._batch), 0
            self._batch.append(record)
            self._size += size

    def _has_room(self, count: int, size: int) -> bool:
        mode = self._mode
        return len(self._batch) + count <= mode.records_a_batch and self._size + size <= mode.bytes_a_batch

    def rest(self) -> list[Record]:
        """What is left, which may be nothing."""
        batch = self._batch
        self._batch, self._size, self._user_start = [], 0, 0
        return batch


def make_batches(by_user: Iterable[UserRecords], mode: Mode) -> Iterator[list[Record]]:
    packer = Packer(mode)
    yield from packer.pack(by_user)
    if rest := packer.rest():
        yield rest


class Ranges:
    """Ranges of keys [first, before). Neighbours become one. None stands behind all keys."""

    def __init__(self) -> None:
        self._ends: dict[bytes, bytes | None] = {}
        self._starts: dict[bytes | None, bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._ends)

    def add(self, first: bytes, before: bytes | None) -> None:
        if first == before:
            return
        if first in self._starts:
            start = self._starts.pop(first)
            del self._ends[start]
            first = start
        if before is not None and before in self._ends:
            end = self._ends.pop(before)
            del self._starts[end]
            before = end
        self._ends[first] = before
        self._starts[before] = first

    def pop(self) -> tuple[bytes, bytes | None]:
        first = next(iter(self._ends))
        before = self._ends.pop(first)
        del self._starts[before]
        return first, before


class Feed:
    """One pass over what is pending, late records or all others."""

    def __init__(self, stage: Stage, ledger: Ledger, mode: Mode, *, late: bool) -> None:
        self.is_late = late
        self._stage = stage
        self._ledger = ledger
        self._knew_any = not ledger.is_empty  # before this pass, whose own records it then learns
        self._mode = mode
        self._users = make_batches(self._cleared(stage.pending_by_user(Kind.USER, late=late)), mode)
        self._next_users = next(self._users, [])
        self._unsettled = 0  # batches of users
        self._ranges = Ranges()  # whose events may leave, and are not read yet
        self._ranges.add(b"", self._start_of_next())
        self._reading: Iterator[UserRecords] = iter(())
        self._packer = Packer(mode)
        self._events: deque[list[Record]] = deque()  # may leave
        self._parked: deque[list[Record]] = deque()  # may, too, but an earlier batch of their first user is under way
        self._parked_bytes = 0

    def take(self, kind: Kind, busy: set[str], *, one: bool = False) -> Batch | None:
        """The next batch that may leave, if there is one. busy: users whose events may not, for now.

        one: only its first record.
        """
        if kind is Kind.USER:
            return self._take_users(one)
        records = self._take_events(busy)
        if one and len(records) > 1:
            self._events.appendleft(records[1:])
            records = records[:1]
        return Batch(records) if records else None

    def settle(self, batch: Batch) -> None:
        """A batch of users that was taken here has come to its end: their events may leave."""
        self._unsettled -= 1
        self._ranges.add(batch.first, batch.before)

    def is_done(self) -> bool:
        """Whether nothing is left to be taken, now or later."""
        if self._next_users or self._unsettled or self._parked:
            return False
        self._read_events()
        return not self._events

    # Users ----------------------------------------------------------------------------------------------------

    def _take_users(self, one: bool) -> Batch | None:
        if not self._next_users:
            return None
        records = self._next_users[:1] if one else self._next_users
        self._next_users = self._next_users[len(records) :] or next(self._users, [])
        self._unsettled += 1
        return Batch(records, first=_user_of(records[0]), before=self._start_of_next())

    def _start_of_next(self) -> bytes | None:
        return _user_of(self._next_users[0]) if self._next_users else None

    # Events ---------------------------------------------------------------------------------------------------

    def _take_events(self, busy: set[str]) -> list[Record]:
        return self._unpark(busy) or self._take_or_park(busy)

    def _unpark(self, busy: set[str]) -> list[Record]:
        for index, records in enumerate(self._parked):
            if records[0].identity not in busy:
                del self._parked[index]
                self._parked_bytes -= size_of(records)
                return records
        return []

    def _take_or_park(self, busy: set[str]) -> list[Record]:
        """The next batch; on the way to it, those of busy users stay behind."""
        busy = busy | {records[0].identity for records in self._parked}
        while len(self._parked) < MAX_PARKED and self._parked_bytes < MAX_PARKED_BYTES:
            self._read_events()
            if not self._events:
                break
            records = self._events.popleft()
            if records[0].identity not in busy:
                return records
            self._parked.append(records)
            self._parked_bytes += size_of(records)
            busy.add(records[0].identity)
        return []

    def _read_events(self) -> None:
        """Have a batch ready, if there is one. A request that is not full waits, as long as users are unsettled."""
        while not self._events:
            page = self._read_page()
            if not page:
                break
            self._events.extend(self._packer.pack(page))
        waits = self._mode.is_bulk and (self._unsettled or self._next_users)
        if not self._events and not waits and (rest := self._packer.rest()):
            self._events.append(rest)

    def _read_page(self) -> list[UserRecords]:
        """Some of the events that may leave, by user; none: there are no more, for now."""
        page = take_page(self._reading)
        while not page and self._ranges:
            first, before = self._ranges.pop()
            self._reading = self._stage.pending_by_user(Kind.EVENT, late=self.is_late, first=first, before=before)
            page = take_page(self._reading)
        self._clear(page)
        return page

    # The ledger -----------------------------------------------------------------------------------------------

    def _cleared(self, by_user: Iterator[UserRecords]) -> Iterator[UserRecords]:
        while page := take_page(by_user):
            self._clear(page)
            yield from page

    def _clear(self, page: Iterable[UserRecords]) -> None:
        """What the ledger knows of these with another content is no longer so, once a request may have left."""
        if not self._knew_any:
            return
        records = list(records_of(page))
        known = self._ledger.known([each.key for each in records])
        changed = [each for each in records if known.get(each.key, each.fingerprint) != each.fingerprint]
        if changed:
            self._ledger.invalidate(changed)


def _user_of(record: Record) -> bytes:
    return record.key[:USER_BYTES]
