"""The ledger for those who only look: from the folder, or from where STATE_URL says, without a lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.ledger.file import LEDGER_NAME, LedgerDamagedError, is_run_active

if TYPE_CHECKING:
    from pipeline.state.record import Holder


@dataclass(frozen=True)
class Place:
    """folder: where the ledger lies, or a copy of it; none there: nothing is known yet. shown: what to call it.
    holder: the run that has it, in words; "": none."""

    folder: Path
    shown: str
    holder: str = ""

    @property
    def is_run_active(self) -> bool:
        return bool(self.holder)


@contextmanager
def find_ledger(folder: Path, url: str | None) -> Iterator[Place]:
    """folder: OUTPUT_DIR. url: STATE_URL. Raises LedgerDamagedError, and what the store raises."""
    with ExitStack() as stack:
        is_active = is_run_active(folder)
        if url is None:
            path = folder / LEDGER_NAME
            yield Place(folder, str(path), f"another run is active; it holds {path}" if is_active else "")
        else:
            yield _find_in_store(folder, url, is_active, stack)


def _find_in_store(folder: Path, url: str, is_active: bool, stack: ExitStack) -> Place:
    from pipeline.state.local import LocalCopy, damage_of
    from pipeline.state.record import RECORD_NAME, StateRecord, parse_record
    from pipeline.state.store import open_store

    local, store = LocalCopy(folder), open_store(url)
    note = local.note()
    while True:
        found = store.read(RECORD_NAME)
        record = parse_record(found.content, url) if found is not None else StateRecord()
        words = _holder_in_words(record.holder, url, is_over=not is_active and local.is_own(note, record.holder))
        snapshot = record.snapshot
        if is_active and local.is_own(note, record.holder):
            return Place(folder, url, words)  # what a run here has committed
        if note.url == url and note.snapshot == (snapshot.name if snapshot is not None else ""):
            if note.looks is None or local.is_untouched(note):
                return Place(folder, url, words)
        elif snapshot is None and not note.url:
            return Place(folder, url, words)  # the next run stores what is there
        target = Path(stack.enter_context(TemporaryDirectory(prefix="state-"))) / LEDGER_NAME
        if snapshot is None:
            return Place(target.parent, url, words)
        target.touch(0o600)
        if store.download(snapshot.name, target):
            damage = damage_of(target, snapshot)
            if damage is not None:
                raise LedgerDamagedError(f"The ledger at {url} is damaged ({damage.reason}).")
            return Place(target.parent, url, words)
        again = store.read(RECORD_NAME)
        if again is None or again.version == (found.version if found is not None else None):
            raise LedgerDamagedError(f"The ledger at {url} is damaged ({snapshot.name} is gone).")


def _holder_in_words(holder: Holder | None, url: str, *, is_over: bool) -> str:
    if holder is None or is_over:
        return ""
    return f"another run is active, or was killed: process {holder.process} on {holder.host} holds {url}"
