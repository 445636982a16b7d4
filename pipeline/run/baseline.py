"""`--baseline`: everything that is pending enters the ledger as accepted, after asking; nothing is sent.

With `--before`, only events that happened before then: users and newer events are left to the next run. With `--only`,
of somebody whose address has changed, only that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain

from pipeline.delivery import Delivered
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Record
from pipeline.model.text import counted
from pipeline.run.opening import Run
from pipeline.stage.pages import pages
from pipeline.stage.stage import Stage
from pipeline.transform.address_changes import EnteredAddress


def refuse_baseline(run: Run, addresses: Sequence[EnteredAddress]) -> Delivered | None:
    """Ask whether to enter it; None goes on. addresses: those that count as changed."""
    if run.options.yes:
        return None
    if _enters_addresses_alone(run, addresses):
        left = _in_words({kind: run.stage.states.count_pending(kind) for kind in Kind})
        question = f"Enter the new address, and leave {left or 'nothing'} to the next run"
    else:
        before = run.options.before
        found = {kind: sum(map(len, _to_enter(run.stage, kind, before))) for kind in Kind}
        question = f"Enter {_in_words(found, with_none=before is None) or 'nothing'} as accepted"
    if run.console.ask(f"{question}, without sending anything? Type yes: ") == "yes":
        return None
    return Delivered(stopped=Ending(ExitCode.BRAKE, "Nothing was recorded and nothing was sent."))


def enter_baseline(run: Run, addresses: Sequence[EnteredAddress]) -> Delivered:
    """addresses: those that count as changed."""
    before = run.options.before
    run.interrupt.stop_raising()
    for each in addresses if before is None else ():
        if each.user.details is not None and each.user.details.sent:
            run.ledger.accepted.invalidate([each.user])
        run.ledger.accepted.people.end_move(each.user.key, each.address)
    if _enters_addresses_alone(run, addresses):
        left = {each.key for kind in Kind for page in _to_enter(run.stage, kind, None) for each in page}
        run.ledger.failures.forget(sorted({*run.stage.keys()} - left))  # nothing of this waits any more
        run.ledger.commit()
        return Delivered(entered_addresses=len(addresses))
    entered = 0
    for kind in Kind:
        for records in _to_enter(run.stage, kind, before):
            run.ledger.accept(records)
            run.ledger.commit()
            run.stage.outcomes.note_unchanged(records)
            entered += len(records)
    return Delivered(entered=entered)


def _enters_addresses_alone(run: Run, addresses: Sequence[EnteredAddress]) -> bool:
    """Whether it is about one person, whose address was changed by hand: what else is new of them is to be sent."""
    return bool(addresses) and run.options.only is not None and run.options.before is None


def _in_words(found: Mapping[Kind, int], *, with_none: bool = False) -> str:
    return " and ".join(counted(count, kind.value) for kind, count in found.items() if count or with_none)


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
