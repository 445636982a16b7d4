"""Runs -> what happened on each of the last 90 days, for the charts of `--report`. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from statistics import median

from pipeline.ledger.ledger import PastRun
from pipeline.model.exits import ExitCode

DAYS = 90
COMPLETE, WITH_REJECTIONS, BROKEN_OFF = ENDINGS = ("complete", "with rejections", "stopped or failed")


@dataclass
class Day:
    """A day in local time, by when its runs began. Counts are of records, but for `endings`, which are of runs."""

    date: date
    users: int = 0
    events: int = 0
    rejected_users: int = 0
    rejected_events: int = 0
    rows: int = 0
    endings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    durations_s: list[float] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return sum(self.endings.values())

    @property
    def longest_s(self) -> float | None:
        return max(self.durations_s, default=None)

    @property
    def median_s(self) -> float | None:
        return median(self.durations_s) if self.durations_s else None


@dataclass(frozen=True)
class History:
    """days: DAYS of them, today the last. ahead: how many runs began later than now, by a clock that was set back."""

    days: Sequence[Day]
    ahead: int

    @property
    def runs(self) -> int:
        return sum(day.runs for day in self.days)

    @property
    def days_with_runs(self) -> int:
        return sum(bool(day.runs) for day in self.days)


def history_of(runs: Iterable[PastRun], now: float) -> History:
    """now: Unix seconds. A run without a result, as it is active or was killed, counts as one that broke off."""
    today = datetime.fromtimestamp(now).date()
    days = {day: Day(day) for day in (today - timedelta(days=back) for back in reversed(range(DAYS)))}
    by_day: dict[date, list[PastRun]] = defaultdict(list)
    ahead = 0
    for run in runs:
        if run.started_at > now:
            ahead += 1
        else:
            by_day[datetime.fromtimestamp(run.started_at).date()].append(run)
    for each, of_day in by_day.items():
        for run in of_day if each in days else ():
            _add(days[each], run)
    return History(list(days.values()), ahead)


def _add(day: Day, run: PastRun) -> None:
    result = run.result
    day.endings[_ending(None if result is None else result.exit_code)] += 1
    if result is None:
        return
    users, events = _counts(result.users), _counts(result.events)
    day.users += users.get("delivered", 0)
    day.events += events.get("delivered", 0)
    day.rejected_users += users.get("rejected", 0)
    day.rejected_events += events.get("rejected", 0)
    day.rows += result.rows or 0
    day.durations_s.append(result.duration_s)


def _counts(outcomes: Mapping[str, int] | None) -> Mapping[str, int]:
    return outcomes or {}


def _ending(exit_code: int | None) -> str:
    if exit_code == ExitCode.SUCCESS:
        return COMPLETE
    return WITH_REJECTIONS if exit_code == ExitCode.REJECTED else BROKEN_OFF
