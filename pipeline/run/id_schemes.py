"""What event ids are made of, and whether that has changed, so that every event would be tracked again as a new one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.ledger.ledger import IdScheme
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.text import counted
from pipeline.run.resends import OVERRIDE_HINT
from pipeline.transform.rules import Rules

_SETTINGS = {  # which of them says this part
    "identifier": "ITERABLE_IDENTIFIER",
    "ids": "event ids",
    "event name": "EVENT_NAME",
    "fields": "EVENT_FIELDS",
    "time zone": "EVENT_TIMEZONE",
}


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


def ids_have_changed(
    scheme: str, used: Sequence[IdScheme], pending_events: int, *, knows_records: bool
) -> Ending | None:
    """Stops where all events would be tracked again as new ones, as their ids are made in a way not used before.

    knows_records: the ledger knows some. Then events may have been accepted under each way that was used, also by a run
    that was killed before it could say so.
    """
    before = [each for each in used if each.accepted or knows_records]
    if not pending_events or not before or scheme in [each.description for each in used]:
        return None
    change = _difference(before[-1].description, scheme)
    events = counted(pending_events, "event")
    return Ending(
        ExitCode.BRAKE,
        f"What event ids are made of has changed ({change}), so {events} would be tracked again as new ones. Nothing "
        "was sent.",
        (
            "If that was a mistake: put it back.",
            "To keep the change: put it back, run once so that nothing new is left, and then run with the change and "
            "--baseline, which records everything as accepted.",
            OVERRIDE_HINT,
        ),
    )


def _difference(old: str, new: str) -> str:
    """`EVENT_FIELDS: page -> page, device`: the parts that differ. Where ids are given now, or were, nothing else
    matters."""
    before, after = json.loads(old), json.loads(new)
    names = ["ids"] if before["ids"] != after["ids"] else [name for name in after if before[name] != after[name]]
    return "; ".join(f"{_SETTINGS[name]}: {before[name]} -> {after[name]}" for name in names)
