"""What event ids are made of, and whether that has changed, so that every event would be tracked again as a new one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pipeline.ledger.ledger import IdScheme, Ledger
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import counted
from pipeline.run.resends import OVERRIDE_HINT
from pipeline.stage.stage import Stage
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules

_MADE = "made from the event"
_MADE_WHERE = f"{_MADE} where there is none in"

_SETTINGS = {  # which of them says this part
    "identifier": "ITERABLE_IDENTIFIER",
    "ids": "event ids",
    "event name": "EVENT_NAME",
    "fields": "EVENT_FIELDS",
    "time zone": "EVENT_TIMEZONE",
}


def given_scheme_of(rules: Rules) -> str:
    """Where the ids come from that the query gives, as a JSON object. Neither names nor fields are part of them."""
    return json.dumps({**_identifier(rules), "ids": f"column {rules.id_column}"}, sort_keys=True)


def made_scheme_of(rules: Rules) -> str:
    """What ids are made of where the query gives none, as a JSON object; the same for any order of the fields.

    Where it gives those of other events, that is another scheme: without the column, theirs would change.
    """
    typed = [f"{each.name}:{each.type.value}" if each.type else each.name for each in rules.event_fields]
    parts = {
        **_identifier(rules),
        "ids": _MADE if rules.id_column is None else f"{_MADE_WHERE} {rules.id_column}",
        "event name": f"column {rules.name_column}" if rules.name_column is not None else rules.event_name,
        "fields": ", ".join(sorted(typed)) or "none",
        "time zone": str(rules.zone),
    }
    return json.dumps(parts, sort_keys=True)


def _identifier(rules: Rules) -> dict[str, str]:
    return {"identifier": "userId" if rules.by_user_id else "email"}


def pending_by_scheme(rules: Rules, planner: Planner, stage: Stage) -> dict[str, int]:
    """How many events are pending whose ids are made so. A query may give the ids of some events alone."""
    pending = stage.states.count_pending(Kind.EVENT)
    if planner.gives_ids and planner.makes_ids:
        given = sum(map(len, stage.pending_given()))
    else:
        given = pending if planner.gives_ids else 0
    found = {made_scheme_of(rules): pending - given, given_scheme_of(rules): given}
    return {scheme: events for scheme, events in found.items() if events}


def planned_schemes(rules: Rules, planner: Planner) -> list[str]:
    """How the ids of a read's events are made, but for rows that were known as a whole: the read that planned them has
    noted it."""
    schemes = [made_scheme_of(rules)] if planner.makes_ids else []
    return [*schemes, given_scheme_of(rules)] if planner.gives_ids else schemes


def ids_have_changed(
    pending: Mapping[str, int], used: Sequence[IdScheme], *, knows_records: bool, is_told: bool
) -> Ending | None:
    """Stops where events would be tracked again as new ones, as their ids are made in a way not used before.

    pending: events, by the scheme of their ids. knows_records: the ledger knows some. Then events may have been
    accepted under each way that was used, also by a run that was killed before it could say so. is_told: as below.
    """
    before = [each for each in used if each.accepted or knows_records]
    seen = {each.description for each in used}
    new = [each for each in pending if each not in seen and (is_told or not _ids(each).startswith(_MADE_WHERE))]
    if not before or not new:
        return None
    alike = [each for each in before if _ids(each.description) == _ids(new[0])]
    change = _difference((alike or before)[-1].description, new[0])
    events = counted(sum(pending[each] for each in new), "event")
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


def is_told(used: Sequence[IdScheme], rules: Rules, ledger: Ledger) -> bool:
    """Whether it was noted what the ids are made of where the query's column has none. Earlier versions noted the
    column alone."""
    is_noted = any(_ids(each.description).startswith(_MADE_WHERE) for each in used)
    return is_noted or rules.id_column is None or not ledger.accepted.knows_made


def _ids(scheme: str) -> str:
    return str(json.loads(scheme)["ids"])


def _difference(old: str, new: str) -> str:
    """`EVENT_FIELDS: page -> page, device`: the parts that differ. Where ids are given now, or were, nothing else
    matters."""
    before, after = json.loads(old), json.loads(new)
    names = ["ids"] if before["ids"] != after["ids"] else [name for name in after if before[name] != after[name]]
    return "; ".join(f"{_SETTINGS[name]}: {before[name]} -> {after[name]}" for name in names)
