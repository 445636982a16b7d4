"""Where the ledger lives between runs, if STATE_URL says so: a lease, so that one run at a time has it, and copies of
it that are put back by compare-and-swap.

In: an address, and the folder with the local copy. Out: a `Keeper`, which a run asks whether it may still send. May
import `ledger`. Nothing here is loaded where STATE_URL is not set, but for `keeper`.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.state.keeper import Keeper
from pipeline.state.reading import Place, find_ledger
from pipeline.state.store import StoreDownError

__all__ = ["Keeper", "Place", "StoreDownError", "find_ledger", "make_keeper"]


def make_keeper(url: str | None, folder: Path, job: str, *, replaces_damaged: bool) -> Keeper:
    """url: STATE_URL. folder: OUTPUT_DIR. Raises StoreRefusedError."""
    if url is None:
        return Keeper()
    from pipeline.state.remote import RemoteKeeper
    from pipeline.state.store import open_store

    return RemoteKeeper(open_store(url), folder, job, replaces_damaged=replaces_damaged)
