"""How records travel in a run: one a request, or up to a thousand."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

BULK_ABOVE = 100  # pending records, for PUSH_MODE=auto
MAX_RECORDS_A_BATCH = 1000
MAX_BYTES_A_BATCH = 3_500_000  # Iterable allows 4 MB in bulk, and does not say whether that is 4,000,000 bytes or more
MOST_WORKERS = 256  # that MAX_WORKERS may ask for
OTHER_FILES = 32  # that are open beside the connections: outputs, ledger, stage, libraries
EVENTS_A_TURN = 200  # of one user, in single mode: how many a worker takes at once


@dataclass(frozen=True)
class Mode:
    """How records travel: how many together, and how many batches at once.

    workers: at most; how many are needed, the rate limits and the latency decide. is_bulk: a batch is one request,
    and may hold records of several users.
    """

    name: str  # "single" or "bulk"
    workers: int
    records_a_batch: int
    bytes_a_batch: int
    is_bulk: bool
    endpoints: tuple[str, str]

    @property
    def prefetch(self) -> int:
        """How many batches of a kind may wait for their turn to be sent, so that no turn is missed."""
        return self.workers // 16 + 1


def single_mode(workers: int | None) -> Mode:
    """One record a request. 256 workers reach 500 users and 1,200 events a second at 150 ms."""
    return Mode("single", workers or 256, EVENTS_A_TURN, MAX_BYTES_A_BATCH, False, ("users/update", "events/track"))


def bulk_mode(workers: int | None) -> Mode:
    """Up to 1,000 records and 3.5 MB a request; 16 workers reach Iterable's limits many times over."""
    endpoints = ("users/bulkUpdate", "events/trackBulk")
    return Mode("bulk", workers or 16, MAX_RECORDS_A_BATCH, MAX_BYTES_A_BATCH, True, endpoints)


def choose_mode(push_mode: str, *, pending: int, use_jwt: bool, max_workers: int | None) -> Mode:
    """The one path of a run with so many pending records. JWT-enabled keys can't call the bulk endpoints [keys].

    push_mode: "single", "bulk" or "auto". max_workers: None lets the mode decide.
    """
    wants_bulk = push_mode == "bulk" or (push_mode == "auto" and pending > BULK_ABOVE)
    make_mode = bulk_mode if wants_bulk and not use_jwt else single_mode
    mode = make_mode(max_workers)
    return replace(mode, workers=min(mode.workers, most_connections()))


def most_connections() -> int:
    """As many as the limit of open files allows (`ulimit -n`). In the sandbox, this process has both ends of each."""
    if sys.platform == "win32":
        return MOST_WORKERS
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_WORKERS if limit == resource.RLIM_INFINITY else max(1, (limit - OTHER_FILES) // 2)
