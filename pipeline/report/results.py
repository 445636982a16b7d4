"""What a run leaves behind: the results JSON, the rejected rows, and the summary. Decides nothing about the run."""

from __future__ import annotations

import csv
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from iterable.export import guarded, new_file
from iterable.redaction import Redactor
from iterable_client import RequestCounts
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.model.text import counted
from pipeline.report.advice import advice_for

CSV_NAME = "query_results_{}.csv"
RESULTS_NAME = "integration_results_{}.json"
REJECTED_NAME = "rejected_rows_{}.csv"

RESULT_VERSION = 2
MAX_FAILURES = 1000
MAX_REASONS = 100
SHOWN_REASONS = 5
MAX_REASON_CHARS = 300


# The files' names -----------------------------------------------------------------------------------------------------


def free_run_id(folder: Path) -> str:
    """The local time to the second, which names the files of a run. A second run in that second waits for the next."""
    while True:
        run_id = f"{datetime.now():%Y%m%d_%H%M%S}"
        names = (CSV_NAME, RESULTS_NAME, REJECTED_NAME)
        if not any(os.path.lexists(folder / name.format(run_id)) for name in names):
            return run_id
        time.sleep(1.0 - time.time() % 1.0)


# The results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Why some records were not delivered: one of their messages, how many share its outcome and code, and how many of
    them were not refused before for the same reason."""

    outcome: str
    code: str | None
    message: str
    count: int
    new: int


@dataclass(frozen=True)
class Results:
    """The whole account of a run, as it stands in the results JSON."""

    result_version: int
    tool_version: str
    run_id: str
    status: str
    exit_code: int
    reason: str
    started_at: str
    finished_at: str
    duration_s: float
    host: str
    database: str
    query_file: str
    options: dict[str, bool | int | None]
    since: dict[str, str | bool] | None
    authentication: str
    push_mode: str
    base_url: str
    retry: dict[str, float]
    counts: dict[str, Any]
    requests: dict[str, dict[str, int]]
    fields: dict[str, list[str]]
    files: dict[str, str | None]
    reasons: list[Reason]
    failures_total: int
    failures: list[dict[str, Any]]


def counts_as_json(
    outcomes: Mapping[Kind, Mapping[Outcome, int]], *, rows: int = 0, duplicate_events: int = 0, merged_users: int = 0
) -> dict[str, Any]:
    by_kind = {
        f"{kind.value}s": {outcome.value: outcomes.get(kind, {}).get(outcome, 0) for outcome in Outcome}
        for kind in Kind
    }
    return {"rows": rows, "duplicate_events": duplicate_events, "merged_users": merged_users, **by_kind}


def count_failures(counts: Mapping[str, Any], *, without_not_attempted: bool) -> int:
    """Everything that is neither delivered nor unchanged."""
    outcomes = ["rejected", "unacknowledged", *([] if without_not_attempted else ["not_attempted"])]
    return sum(counts[kind][outcome] for kind in ("users", "events") for outcome in outcomes)


def requests_as_json(endpoints: Iterable[str], counts: Mapping[str, RequestCounts]) -> dict[str, dict[str, int]]:
    return {name: asdict(counts.get(name, RequestCounts())) for name in endpoints}


def as_number(value: float) -> float:
    """2.0 -> 2, for people who read it."""
    return int(value) if value == int(value) else value


def failures_as_json(
    undelivered: Iterable[FailedRecord], redactor: Redactor, *, by_user_id: bool
) -> list[dict[str, Any]]:
    return [
        {
            "row": each.row,
            "kind": each.kind.value,
            "email": None if by_user_id else each.identity,
            "user_id": each.identity if by_user_id else None,
            "outcome": each.outcome.value,
            "status_code": each.status_code,
            "code": each.code,
            "message": redactor.without_secrets(each.message),
            "attempts": each.attempts,
        }
        for each in undelivered
    ]


def as_json(results: Results) -> dict[str, Any]:
    """The results as the JSON file has them."""
    return asdict(results)


def reason_of(problem: Exception) -> str:
    """Why a file can't be written, without the path that Python puts into it."""
    return getattr(problem, "strerror", None) or str(problem)


def write_results(path: Path, results: Results) -> None:
    """Whole or not at all, private, never over another file. OSError where that fails."""
    with new_file(path) as file:
        json.dump(as_json(results), file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_rejected_rows(path: Path, csv_path: Path, rejected: Iterable[FailedRecord], redactor: Redactor) -> None:
    """The rows of rejected records, in the order of the CSV: their number, their cells exactly as there, then what
    happened and why."""
    csv.field_size_limit(sys.maxsize)
    with csv_path.open(encoding="utf-8", newline="") as source, new_file(path) as target:
        lines = csv.reader(source)
        columns = next(lines)
        writer = csv.writer(target)
        added = [_unused(name, columns) for name in ("row", "kind", "outcome", "code", "message")]
        writer.writerow([added[0], *columns, *added[1:]])
        writer.writerows(_rejected_rows(lines, rejected, redactor))


def _rejected_rows(
    lines: Iterator[list[str]], rejected: Iterable[FailedRecord], redactor: Redactor
) -> Iterator[list[object]]:
    number, line = 0, [""]
    for each in rejected:
        while number < each.row:
            number, line = number + 1, next(lines)
        message = guarded(redactor.without_secrets(each.message))
        yield [each.row, *line, each.kind.value, each.outcome.value, guarded(each.code or ""), message]


def _unused(name: str, columns: list[str]) -> str:
    while name in columns:
        name += "_"
    return name


# The summary ----------------------------------------------------------------------------------------------------------


def summary(results: Results, reasons: Sequence[Reason], *, left_users: int = 0) -> list[str]:
    """What a person wants to know at the end, on less than one screen: a list of lines.

    left_users: known users whom --limit kept from being updated.
    """
    counts, retry = results.counts, results.retry
    lines = ["", f"Summary of run {results.run_id}: {results.status}", f"  rows     {counts['rows']:>10,}"]
    for kind in ("users", "events"):
        told = [f"{number:,} {name.replace('_', ' ')}" for name, number in counts[kind].items() if number]
        lines.append(f"  {kind:<8} {sum(counts[kind].values()):>10,}   {', '.join(told)}".rstrip())
    if counts["duplicate_events"]:
        lines.append(f"  {counts['duplicate_events']:,} events stood in more than one row; each was sent once")
    if counts["merged_users"]:
        who = "1 user has" if counts["merged_users"] == 1 else f"{counts['merged_users']:,} users have"
        lines.append(f"  {who} rows with different values; the last ones were used")
    if left_users:
        people = counted(left_users, "known user")
        lines += _wrapped(f"{people} not updated, as --limit may have seen only some of their rows")
    for reason in reasons:
        lines += _wrapped(f"{reason.count:,} {reason.outcome.replace('_', ' ')}{_news(reason)}: {_first_of(reason)}")
        lines += _wrapped(f"-> {advice_for(Outcome(reason.outcome), reason.code)}", indent=4)
    if left := results.failures_total - sum(reason.count for reason in reasons):
        lines.append(f"  and {left:,} more, for other reasons; see the results")
    for name, what in (("filtered_out", "fields that Iterable dropped"), ("created", "fields new in Iterable")):
        if results.fields[name]:
            lines += _wrapped(f"{what}: {', '.join(results.fields[name])}")
    lines += [f"  {name:<8} {path}" for name, path in results.files.items() if path]
    return [
        *lines,
        f"  authentication: {results.authentication}; push mode: {results.push_mode}",
        f"  retry configuration: {retry['max_retries']:g} attempts, back-off {retry['initial_backoff']:g} s, "
        f"times {retry['backoff_factor']:g} after each",
        f"  duration: {results.duration_s:.1f} s",
    ]


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, 79, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _news(reason: Reason) -> str:
    """How many of them earlier runs did not know, where some are known."""
    if reason.new == reason.count or reason.outcome == Outcome.NOT_ATTEMPTED.value:
        return ""
    return f" ({reason.new:,} new)" if reason.new else " (all known from earlier runs)"


def _first_of(reason: Reason) -> str:
    lead = "for example: " if reason.count > 1 and reason.code != "InvalidRecord" else ""
    return f"{lead}{reason.message}"[:MAX_REASON_CHARS]
