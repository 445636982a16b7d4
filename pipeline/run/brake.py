"""Stops a run that would send something large and probably unwanted, after the plan and before the first request.

Decides from what is pending and from what the ledger knows; sends and stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from pipeline.config import MaxChanges, Settings
from pipeline.ledger.ledger import IdScheme, Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Record
from pipeline.model.text import counted
from pipeline.stage.stage import Stage
from pipeline.transform.payloads import Rules

KEYS_PER_LOOKUP = 500
OVERRIDE_HINT = "To go on all the same, once, run with --yes."


@dataclass(frozen=True)
class Pending:
    """What a run would send. new: not known to the ledger; changed: known with other content. known: all that the
    ledger knows for this project."""

    new: Mapping[Kind, int]
    changed: Mapping[Kind, int]
    known: int

    def total(self, kind: Kind) -> int:
        return self.new[kind] + self.changed[kind]

    @property
    def records(self) -> int:
        return sum(self.total(kind) for kind in Kind)


def brake_ending(settings: Settings, rules: Rules, ledger: Ledger, stage: Stage) -> Ending | None:
    """What stops a run that has this much pending; None: nothing."""
    query_path = str(settings.query_file)
    way, used = id_scheme_of(rules), ledger.id_schemes(query_path)
    knows_records = ledger.count_known() > 0
    stopped = ids_have_changed(way, used, stage.count_pending(Kind.EVENT), knows_records=knows_records)
    if stopped is None and settings.max_changes is not None:
        stopped = too_many(settings.max_changes, _count_pending(ledger, stage), _likely_causes(ledger, query_path))
    return stopped


def _count_pending(ledger: Ledger, stage: Stage) -> Pending:
    """How many pending records are new to the ledger, and how many changed."""
    changed = dict.fromkeys(Kind, 0)
    for kind in Kind:
        keys = (record.key for record in pending_records(stage, kind))
        while chunk := list(islice(keys, KEYS_PER_LOOKUP)):
            changed[kind] += len(ledger.known(chunk))
    new = {kind: stage.count_pending(kind) - changed[kind] for kind in Kind}
    return Pending(new, changed, ledger.count_known())


def _likely_causes(ledger: Ledger, query_path: str) -> list[str]:
    causes = []
    if ledger.is_new_key_for_known_host:
        causes.append("the API key is new to the ledger (ITERABLE_PROJECT keeps what it knows when a key is rotated)")
    elif not ledger.id_schemes(query_path):
        causes.append(f"{query_path} is new to the ledger")
    return causes


def pending_records(stage: Stage, kind: Kind) -> Iterator[Record]:
    """All of a kind; those whose like failed in an earlier run come last."""
    return chain(*(stage.pending(kind, late=late) for late in (False, True)))


# Changed ids ----------------------------------------------------------------------------------------------------------


def id_scheme_of(rules: Rules) -> str:
    """What this run's event ids are made of, as a JSON object; the same for any order of the fields.

    While the query gives ids of its own, neither names nor fields are part of them.
    """
    parts = {"identifier": "userId" if rules.by_user_id else "email"}
    if rules.id_column is not None:
        parts["ids"] = f"column {rules.id_column}"
    else:
        typed = [f"{each.name}:{each.type.value}" if each.type else each.name for each in rules.event_fields]
        parts["ids"] = "made from the event"
        parts["event name"] = f"column {rules.name_column}" if rules.name_column is not None else rules.event_name
        parts["fields"] = ", ".join(sorted(typed)) or "none"
        parts["time zone"] = str(rules.zone)
    return json.dumps(parts, sort_keys=True)


def ids_have_changed(way: str, used: Sequence[IdScheme], pending_events: int, *, knows_records: bool) -> Ending | None:
    """Stops where all events would be tracked again as new ones, as their ids are made in a way not used before.

    knows_records: the ledger knows some. Then events may have been accepted under each way that was used, also by a run
    that was killed before it could say so.
    """
    before = [each for each in used if each.accepted or knows_records]
    if not pending_events or not before or way in [each.description for each in used]:
        return None
    change = _difference(before[-1].description, way)
    events = counted(pending_events, "event")
    return Ending(
        ExitCode.BRAKE,
        f"What event ids are made of has changed ({change}), so {events} would be tracked again as new ones. Nothing "
        "was sent. Put it back. To keep the change, put it back, run once so that nothing new is left, and then run "
        f"with the change and --baseline, which enters everything as accepted. {OVERRIDE_HINT}",
    )


def _difference(old: str, new: str) -> str:
    """`fields: page -> page, device`: the parts that differ. Where ids are given now, or were, nothing else matters."""
    before, after = json.loads(old), json.loads(new)
    names = ["ids"] if before["ids"] != after["ids"] else [name for name in after if before[name] != after[name]]
    return "; ".join(f"{name}: {before[name]} -> {after[name]}" for name in names)


# Too many changes -----------------------------------------------------------------------------------------------------


def too_many(limit: MaxChanges | None, pending: Pending, causes: Sequence[str]) -> Ending | None:
    """Stops where more records are pending than MAX_CHANGES allows. causes: why that may be, where it can be seen."""
    if limit is None or (limit.is_percent and not pending.known):
        return None
    most = limit.limit * pending.known / 100 if limit.is_percent else limit.limit
    if pending.records <= most:
        return None
    allowed = f"{limit.limit:g} % of {pending.known:,} known records" if limit.is_percent else f"{limit.limit:,.0f}"
    told = ", ".join(
        f"{counted(pending.total(kind), kind.value)} ({pending.new[kind]:,} new, {pending.changed[kind]:,} changed)"
        for kind in Kind
        if pending.total(kind)
    )
    likely = f" Likely cause: {'; '.join(causes)}." if causes else ""
    return Ending(
        ExitCode.BRAKE,
        f"{told} would be sent, more than MAX_CHANGES allows ({allowed}). Nothing was sent.{likely} {OVERRIDE_HINT}",
    )
