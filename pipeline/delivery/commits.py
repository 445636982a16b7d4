"""What Iterable has accepted, entered into the ledger some thousand records, or half a second, at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.ledger.ledger import Ledger
from pipeline.model.records import Record
from pipeline.stage.pages import size_of
from pipeline.stage.stage import Stage

RECORDS_PER_COMMIT = 2000
BYTES_PER_COMMIT = 4_000_000
SECONDS_PER_COMMIT = 0.5


class CommitBuffer:
    """Killed with some in it, they are sent again by the next run."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        clock: Callable[[], float],
        on_commit: Callable[[int], None] = lambda records: None,
    ) -> None:
        """on_commit: called with how many records the ledger has stored."""
        self._on_commit = on_commit
        self._ledger = ledger
        self._stage = stage
        self._clock = clock
        self._accepted: list[Record] = []
        self._bytes = 0
        self._committed_at = clock()

    def add(self, accepted: Sequence[Record]) -> None:
        self._accepted += accepted
        self._bytes += size_of(accepted)

    def is_due(self) -> bool:
        return (
            len(self._accepted) >= RECORDS_PER_COMMIT
            or self._bytes >= BYTES_PER_COMMIT
            or self._clock() - self._committed_at > SECONDS_PER_COMMIT
        )

    def commit(self) -> None:
        """Enter what was accepted, so that no later run sends it again."""
        if self._accepted:
            self._stage.outcomes.note_delivered(self._accepted)
            self._ledger.accept(self._accepted)
            self._ledger.commit()
            self._on_commit(len(self._accepted))
            self._accepted, self._bytes = [], 0
        self._committed_at = self._clock()
