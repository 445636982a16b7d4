"""What a run says about people: changed and shared addresses, rows that disagree, values left out, who is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.model.text import counted
from pipeline.run.opening import Run
from pipeline.run.reading import Read
from pipeline.stage.stage import Stage

MAX_ROWS_OF_REASON = 10


@dataclass
class _Left:
    count: int = 0
    rows: list[int] = field(default_factory=list)


def people_as_json(read: Read | None, stage: Stage) -> dict[str, list[dict[str, Any]]]:
    """The lists of the results JSON, of each the first 1,000 entries."""
    if read is None:
        return {"email_changes": [], "shared_addresses": [], "merged_users_rows": [], "omitted_values": []}
    report = read.planner.people
    return {
        "email_changes": [each._asdict() for each in report.email_changes],
        "shared_addresses": [{"rows": list(each.rows)} for each in report.shared_addresses],
        "merged_users_rows": [{"rows": list(each.rows), "fields": list(each.fields)} for each in report.disagreements],
        "omitted_values": omitted_values(stage),
    }


def omitted_values(stage: Stage) -> list[dict[str, Any]]:
    """Values that were left out (BAD_VALUES=omit), by field and reason."""
    found: dict[tuple[str, str], _Left] = {}
    for page in stage.outcomes.omitted():
        for each in page:
            left = found.setdefault((each.field, each.reason), _Left())
            left.count += 1
            if len(left.rows) < MAX_ROWS_OF_REASON:
                left.rows.append(each.row)
    return [
        {"field": name, "reason": reason, "count": left.count, "rows": left.rows}
        for (name, reason), left in found.items()
    ]


def gone_users(run: Run, read: Read | None) -> int | None:
    """Users whom the ledger knows from this query file, and the query no longer finds; None after a partial read."""
    if read is None or not read.is_full or run.takes_part_of_rows:
        return None
    return read.planner.people.gone


def people_lines(run: Run, read: Read | None) -> Iterator[str]:
    """For the summary."""
    if read is None:
        return
    report = read.planner.people
    if held := report.done["held"]:
        yield (
            f"{counted(held, 'person')} held, as the address has changed: change it in Iterable and run with "
            "--baseline --only and the new address, or set EMAIL_CHANGES"
        )
    if moved := report.done["moved"]:
        yield f"{counted(moved, 'person')} moved to a new address"
    if new := report.done["new"]:
        yield f"{counted(new, 'person')} with a new address: a new profile was made, subscribed to everything"
    if report.shared:
        addresses = "1 address" if report.shared == 1 else f"{report.shared:,} addresses"
        yield f"{addresses} with more than one person; see shared_addresses in the results"
    if left := sum(each["count"] for each in omitted_values(run.stage)):
        values = counted(left, "value")
        yield f"{values} left out that can't be sent (BAD_VALUES=omit); see omitted_values in the results"
    if gone := gone_users(run, read):
        yield f"{counted(gone, 'user')} known from earlier runs no longer found by the query"
