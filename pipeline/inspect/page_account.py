"""One run's account for `--report`, from the ledger's line and, where its results file is still there, from that.

A results file may have been edited by hand, or be another project's: what is not of the form that runs write is not
believed. Of the texts in it, only those pass that can't be about a person: our own codes and Iterable's documented
ones, our own sentences about columns, and names of columns and fields.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from iterable.answers import without_words
from iterable.redaction import Redactor
from pipeline.ledger.ledger import PastRun, Project
from pipeline.model.exits import MEANINGS, ExitCode
from pipeline.model.failure_policy import EVENT_ID_CONFLICT, ITERABLE_CODES, OUR_CODES
from pipeline.model.records import Outcome
from pipeline.model.text import shown
from pipeline.report.advice import BRAKED, advice_for
from pipeline.report.results import RESULTS_NAME
from pipeline.run.earlier_runs import HEAD_BYTES, project_mark, results_files, results_of_project

MOST_REASONS = 20
MOST_NAMES = 50
MOST_JOURNEYS = 50
MAX_TEXT_CHARS = 300
MAX_RESULTS_BYTES = 100_000_000
MAX_COUNT = 10**15
DRY_RUN = b'"dry_run": true'  # as it stands in the head of a results file
_NOT_BELIEVED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
WAYS_ON = "main.py --history 1 names them"
LEFT_OUT = "left out"  # a value that BAD_VALUES=omit left out, beside the outcomes of records
STATUSES = ("success", "partial", "failed", "interrupted", "dry_run", "baseline")
_OF_A_RUN = re.compile(r"\d{8}_\d{6}", re.ASCII)
_SAYS_NOTHING_PERSONAL = frozenset(
    {"InvalidRecord", EVENT_ID_CONFLICT}
)  # their messages are ours, and name columns only


@dataclass(frozen=True)
class ReasonLine:
    """Why some records were not delivered. new: not refused before for that reason; None where this is not counted."""

    outcome: str
    code: str
    text: str
    advice: str
    count: int
    new: int | None


@dataclass(frozen=True)
class Reasons:
    """The most frequent ones. hidden: how many others there are."""

    lines: Sequence[ReasonLine]
    hidden: int

    @property
    def most(self) -> int:
        return max((line.count for line in self.lines), default=0)


@dataclass(frozen=True)
class Names:
    """Columns or fields. hidden: how many more there are than are named."""

    names: Sequence[str]
    hidden: int = 0


@dataclass(frozen=True)
class JourneyLine:
    """A journey that events of one name would start. limits: how often a person may be in it."""

    event_name: str
    events: int
    people: int
    journey: str
    limits: str


@dataclass(frozen=True)
class Journeys:
    """What the events of a dry run would start. is_known: Iterable has listed its journeys. hidden: how many lines more
    there are."""

    is_known: bool
    lines: Sequence[JourneyLine] = ()
    hidden: int = 0


@dataclass(frozen=True)
class RunAccount:
    """How a run ended. status: as in the results; `did not finish` where nothing tells. reasons: None where the
    results file is gone, or can't be believed. started_at: Unix seconds."""

    run_id: str
    started_at: float
    query_file: str
    status: str
    exit_code: int | None = None
    duration_s: float | None = None
    rows: int | None = None
    users: Mapping[str, int] | None = None
    events: Mapping[str, int] | None = None
    is_dry_run: bool = False
    reasons: Reasons | None = None
    not_sent: Names = Names(())
    dropped: Names = Names(())
    journeys: Journeys | None = None

    @property
    def meaning(self) -> str:
        """What the exit code says, in the words of --help."""
        code = None if self.exit_code is None else ExitCode(self.exit_code)
        return "" if code is None else MEANINGS[code]

    @property
    def records(self) -> int | None:
        """All users and events."""
        return None if self.users is None or self.events is None else sum((*self.users.values(), *self.events.values()))


def account_from_ledger(run: PastRun) -> RunAccount:
    result = run.result
    known = RunAccount(run.run_id, run.started_at, shown(run.query_file), "did not finish")
    if result is None or result.status not in STATUSES or result.exit_code not in set(ExitCode):
        return known
    return replace(
        known,
        status=result.status,
        exit_code=result.exit_code,
        duration_s=result.duration_s,
        rows=result.rows,
        users=result.users,
        events=result.events,
    )


# From results files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundResults:
    """The results of this project's runs. real, dry: the newest of either kind. damaged: names of files that can't be
    believed and are newer than the real one."""

    real: RunAccount | None = None
    dry: RunAccount | None = None
    damaged: Sequence[str] = ()


class ResultsFiles:
    """Reads results files of one project."""

    def __init__(self, folder: Path, project: Project, redactor: Redactor) -> None:
        self._folder = folder
        self._mark = project_mark(project)
        self._redactor = redactor

    def newest(self) -> FoundResults:
        found = FoundResults()
        for run_id, path in results_files(self._folder):
            if found.real is not None and found.dry is not None:
                break
            try:
                account = self._read(run_id, path) if found.real is None or _is_dry_run(path) else None
            except _NOT_BELIEVED:
                if found.real is None:
                    found = replace(found, damaged=[*found.damaged, shown(path.name)])
                continue
            if account is not None and account.is_dry_run:
                found = replace(found, dry=found.dry or account)
            elif account is not None:
                found = replace(found, real=found.real or account)
        return found

    def of_run(self, run_id: str) -> RunAccount | None:
        """None where there is none, or none that can be believed."""
        if not _OF_A_RUN.fullmatch(run_id):
            return None
        try:
            return self._read(run_id, self._folder / RESULTS_NAME.format(run_id))
        except _NOT_BELIEVED:
            return None

    def _read(self, run_id: str, path: Path) -> RunAccount | None:
        """None for another project's. Raises much where it is not what a run writes."""
        if not _OF_A_RUN.fullmatch(run_id) or path.is_symlink() or not path.is_file():
            return None
        if path.stat().st_size > MAX_RESULTS_BYTES:
            raise ValueError("it is too large")
        results = results_of_project(path, self._mark)
        return None if results is None else _account(run_id, results, self._redactor)


def _is_dry_run(path: Path) -> bool:
    """By its head alone, as there may be thousands of others."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return DRY_RUN in file.read(HEAD_BYTES)


def _account(run_id: str, results: Mapping[str, Any], redactor: Redactor) -> RunAccount:
    if results["run_id"] != run_id or results["status"] not in STATUSES:
        raise ValueError("it is not what a run writes")
    counts, fields = results["counts"], results["fields"]
    return RunAccount(
        run_id=run_id,
        started_at=datetime.fromisoformat(_text(results["started_at"])).timestamp(),
        query_file=shown(_text(results["query_file"])),
        status=results["status"],
        exit_code=int(ExitCode(_count(results["exit_code"]))),
        duration_s=_seconds(results["duration_s"]),
        rows=_count(counts["rows"]),
        users=_outcomes(counts["users"]),
        events=_outcomes(counts["events"]),
        is_dry_run=results["options"]["dry_run"] is True,
        reasons=_reasons(results, redactor),
        not_sent=_names(fields["not_sent"]),
        dropped=_names([_text(each).partition(".")[0] for each in fields["filtered_out"]]),
        journeys=_journeys(results.get("journeys")),
    )


def _reasons(results: Mapping[str, Any], redactor: Redactor) -> Reasons:
    is_braked = results["exit_code"] == ExitCode.BRAKE
    lines = [*_of_records(results["reasons"], redactor, is_braked), *_of_values(results["omitted_values"], redactor)]
    lines.sort(key=lambda line: -line.count)
    return Reasons(lines[:MOST_REASONS], max(0, len(lines) - MOST_REASONS))


def _of_records(reasons: Sequence[Mapping[str, Any]], redactor: Redactor, is_braked: bool) -> Iterator[ReasonLine]:
    for each in reasons:
        outcome, code = Outcome(each["outcome"]), each["code"]
        is_known = code in ITERABLE_CODES or code in OUR_CODES
        text = _text(each["message"]) if code in _SAYS_NOTHING_PERSONAL else ""
        advice = advice_for(outcome, code if is_known else None, is_braked=is_braked)
        yield ReasonLine(
            outcome=outcome.value.replace("_", " "),
            code=code if is_known else "another code" if code else "no code",
            text=_sentence(text, redactor),
            advice=f"{advice} ({WAYS_ON})" if advice == BRAKED else advice,
            count=_count(each["count"]),
            new=_count(each["new"]) if outcome is Outcome.REJECTED else None,
        )


def _of_values(omitted: Sequence[Mapping[str, Any]], redactor: Redactor) -> Iterator[ReasonLine]:
    for each in omitted:
        field = _text(each["field"]).partition(".")[0]
        yield ReasonLine(LEFT_OUT, "OmittedValue", _sentence(field, redactor), "", _count(each["count"]), None)


def _journeys(found: Mapping[str, Any] | None) -> Journeys | None:
    """Names of events are shown only where a journey of Iterable's has that name, which makes it nobody's data."""
    if found is None:
        return None
    lines = [_journey_line(each, journey) for each in found["started"] for journey in each["journeys"]]
    return Journeys(found["problem"] is None, lines[:MOST_JOURNEYS], max(0, len(lines) - MOST_JOURNEYS))


def _journey_line(started: Mapping[str, Any], journey: Mapping[str, Any]) -> JourneyLine:
    simultaneous, lifetime = journey["simultaneous"], journey["lifetime"]
    at_once = "any number at a time" if simultaneous is None else f"{_count(simultaneous):,} at a time"
    ever = "no lifetime limit" if lifetime is None else f"{_count(lifetime):,} in a lifetime"
    name, event_name = (shown(_text(each))[:MAX_TEXT_CHARS] for each in (journey["name"], started["event_name"]))
    return JourneyLine(event_name, _count(started["events"]), _count(started["people"]), name, f"{at_once}, {ever}")


def _sentence(text: str, redactor: Redactor) -> str:
    """On one line, without what is invisible. Should the text be Iterable's after all, with one of our codes, its words
    are left out."""
    return shown(redactor.line(without_words(text, known_codes=ITERABLE_CODES), max_chars=MAX_TEXT_CHARS))


def _names(listed: Sequence[Any]) -> Names:
    names = list(dict.fromkeys(shown(_text(each))[:MAX_TEXT_CHARS] for each in listed))
    return Names(names[:MOST_NAMES], max(0, len(names) - MOST_NAMES))


def _outcomes(counts: Mapping[str, Any]) -> dict[str, int]:
    return {outcome.value: _count(counts[outcome.value]) for outcome in Outcome}


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise ValueError("it is not a count")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT:
        raise ValueError("it is not a duration")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("it is not a text")
    return value
