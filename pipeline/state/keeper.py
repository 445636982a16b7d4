"""Who keeps the ledger of a run: the folder alone, or a store that several machines share.

A run asks its keeper whether it may still send, tells it what it is about to do, and leaves the ledger to it at the
end. `Keeper` is that of a run without STATE_URL, where the folder's lock is all there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.model.exits import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.ledger.file import Fetch
    from pipeline.state.record import Resend


class Keeper:
    """Keeps the ledger in its folder."""

    is_remote = False
    resend: Resend | None = None  # what an earlier run may have sent, and no ledger knows

    before_request: Callable[[], None] | None = None  # raises Abandoned where it may not leave; None: all may
    fetch: Fetch | None = None  # brings the ledger into its folder; None: it is there

    def begin_run(self, run_id: str) -> None:
        """The ledger is open, and has the run. Raises RunError."""

    def ending(self) -> Ending | None:
        """How the run has to end because it may not send any more; None: it may. For any thread, and cheap."""
        return None

    def begin_sending(self, records: int, *, is_part: bool) -> None:
        """So many records are about to be sent, and of those that the ledger knew nothing counts any more. is_part:
        of what is to be sent.

        Raises RunError where the ledger can't be put back; then nothing may be sent.
        """

    def note_accepted(self, records: int) -> None:
        """So many more are committed to the ledger."""

    def confirm(self, ending: Ending) -> Ending:
        """How the run ends, before that is told to anybody."""
        return ending

    def finish(self, ending: Ending, *, is_settled: bool) -> Ending:
        """The run is over, and all of it is in the ledger. is_settled: nothing is left that it, or an earlier run, may
        have sent and the ledger does not know."""
        return ending
