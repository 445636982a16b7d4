"""What a run leaves behind: the results JSON and the rejected rows. Decides nothing about the run."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from iterable.export import guarded, new_file, replacing_file, reserved
from iterable.redaction import Redactor
from iterable_client import RequestCounts
from pipeline.model.records import FailedRecord, Kind, Outcome

CSV_NAME = "query_results_{}.csv"
RESULTS_NAME = "integration_results_{}.json"
REJECTED_NAME = "rejected_rows_{}.csv"
PREVIEW_NAME = "preview_{}.ndjson"
VERIFY_RESULTS_NAME = "verify_results_{}.json"
VERIFY_REPORT_NAME = "verify_report_{}.csv"
PAGE_NAME = "report.html"
RUN_NAMES = (RESULTS_NAME, CSV_NAME, REJECTED_NAME, PREVIEW_NAME)
VERIFY_NAMES = (VERIFY_RESULTS_NAME, VERIFY_REPORT_NAME)

RESULT_VERSION = 3
MAX_FAILURES = 1000
MAX_REASONS = 100


# The files' names -----------------------------------------------------------------------------------------------------


@contextmanager
def reserved_run_id(folder: Path, names: Sequence[str] = RUN_NAMES) -> Iterator[str]:
    """The local time to the second, which names the files of a run, kept for this run until the block ends.

    A second run in that second waits for the next.
    """
    while True:
        run_id = f"{datetime.now():%Y%m%d_%H%M%S}"
        with ExitStack() as stack, suppress(FileExistsError):
            stack.enter_context(reserved(folder / f".{names[0].format(run_id)}.0.tmp"))
            if not any(os.path.lexists(folder / name.format(run_id)) for name in names):
                stack = stack.pop_all()
                break
        time.sleep(1.0 - time.time() % 1.0)
    with stack:
        yield run_id


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
    """The whole account of a run, as it stands in the results JSON.

    project_mark: the same in all results of one Iterable project. delivered_total: users and events that were
    delivered, or entered by --baseline. journeys: which ones the events of a dry run would start; else None.
    """

    result_version: int
    tool_version: str
    project_mark: str
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
    options: dict[str, bool | int | str | None]
    since: dict[str, str | bool] | None
    authentication: str
    push_mode: str
    base_url: str
    retry: dict[str, float]
    counts: dict[str, Any]
    delivered_total: int
    requests: dict[str, dict[str, int]]
    fields: dict[str, list[str]]
    files: dict[str, str | None]
    reasons: list[Reason]
    journeys: dict[str, Any] | None
    failures_total: int
    failures: list[dict[str, Any]]
    email_changes: list[dict[str, Any]]
    shared_addresses: list[dict[str, Any]]
    merged_users_rows: list[dict[str, Any]]
    omitted_values: list[dict[str, Any]]


def counts_as_json(
    outcomes: Mapping[Kind, Mapping[Outcome, int]],
    *,
    rows: int = 0,
    duplicate_events: int = 0,
    corrected_events: int = 0,
    merged_users: int = 0,
    gone_users: int | None = None,
) -> dict[str, Any]:
    """gone_users: None where not all was read."""
    by_kind = {
        f"{kind.value}s": {outcome.value: outcomes.get(kind, {}).get(outcome, 0) for outcome in Outcome}
        for kind in Kind
    }
    return {
        "rows": rows,
        "duplicate_events": duplicate_events,
        "corrected_events": corrected_events,
        "merged_users": merged_users,
        "gone_users": gone_users,
        **by_kind,
    }


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
        _dump(results, file)


def rewrite_results(path: Path, results: Results) -> None:
    """In the place of those of the same run."""
    with replacing_file(path, errors="backslashreplace") as file:
        _dump(results, file)


def _dump(results: Results, file: TextIO) -> None:
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
