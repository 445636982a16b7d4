"""`--baseline`: everything that is pending enters the ledger as accepted, after asking; nothing is sent.

With `--before`, only events that happened before then: users and newer events are left to the next run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain

from pipeline.delivery import Delivered
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Record
from pipeline.model.text import counted
from pipeline.run.opening import Run
from pipeline.stage.pages import pages
from pipeline.stage.stage import Stage


def enter_baseline(run: Run, moved: Sequence[tuple[bytes, bytes]]) -> Delivered:
    """moved: users whose address has changed, and a hash of the present one."""
    before = run.options.before
    found = {kind: sum(map(len, _to_enter(run.stage, kind, before))) for kind in Kind}
    if not run.options.yes:
        parts = [counted(count, kind.value) for kind, count in found.items() if count or before is None]
        what = " and ".join(parts) or "nothing"
        if run.console.ask(f"Enter {what} as accepted, without sending them? Type yes: ") != "yes":
            return Delivered(stopped=Ending(ExitCode.BRAKE, "Nothing was recorded and nothing was sent."))
    run.interrupt.stop_raising()
    for key, address in moved if before is None else ():
        run.ledger.accepted.people.end_move(key, address)
    for kind in Kind:
        for records in _to_enter(run.stage, kind, before):
            run.ledger.accept(records)
            run.ledger.commit()
            run.stage.outcomes.note_unchanged(records)
    return Delivered(entered=sum(found.values()))


def _to_enter(stage: Stage, kind: Kind, before: datetime | None) -> Iterator[list[Record]]:
    """The pending records that are entered, page by page."""
    if before is not None and kind is Kind.USER:
        return
    for page in pages(chain(*(stage.pending_by_user(kind, late=late) for late in (False, True)))):
        records = page if before is None else [each for each in page if happened_at(each) < before.timestamp()]
        if records:
            yield records


def happened_at(event: Record) -> int:
    """When an event happened, in Unix seconds, as it is sent."""
    return int(json.loads(event.payload)["createdAt"])
