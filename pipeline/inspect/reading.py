"""The rows of one person or of everybody, planned as a run with --full would, for --explain and --verify."""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.inspect.explanation import MAX_SHOWN, QueriedRow
from pipeline.inspect.session import InspectionSession
from pipeline.model.exits import OutputError
from pipeline.model.records import Kind
from pipeline.report.progress import ReadingProgress
from pipeline.run.reading import Rows, finish_plan, open_rows, planned, with_slower_decoder
from pipeline.source import read_query
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules, make_rules


@dataclass(frozen=True)
class Planned:
    """What was read. read: rows of everybody. numbers: where the rows that were asked for stand in the query, 1 for the
    first. last: the last of them. all_staged: the stage holds everybody's records."""

    rules: Rules
    columns: Sequence[str]
    read: int
    numbers: Sequence[int]
    last: Sequence[QueriedRow]
    all_staged: bool

    def number(self, row: int) -> int:
        """A staged record's row -> where it stands in the query."""
        return row if self.all_staged else self.numbers[row - 1]

    def is_asked_for(self, row: int) -> bool:
        """Whether a staged record's row is one of those that were asked for."""
        if not self.all_staged:
            return True
        place = bisect_left(self.numbers, row)
        return place < len(self.numbers) and self.numbers[place] == row


Choice = Callable[[Rules], Callable[[Any], bool]]  # the rules -> whether a value of the identity's column is meant


def plan_rows(session: InspectionSession, choose: Choice | None = None, *, without_events: bool = False) -> Planned:
    """Read everything that the query finds, and stage it as a run with --full would. Raises RunError.

    choose: which rows are asked for; None for no particular ones. The others are read, and staged only where they
    matter for these: two people may share an event's id by mistake.
    """
    try:
        return with_slower_decoder(
            session.stage, lambda any_bytes: _plan_rows(session, choose, without_events, any_bytes=any_bytes)
        )
    except sqlite3.Error as error:
        folder = session.settings.output_dir
        raise OutputError(f"{folder} has no room for the rows, which are kept there for a moment ({error}).") from error


def _plan_rows(session: InspectionSession, choose: Choice | None, without_events: bool, *, any_bytes: bool) -> Planned:
    settings = session.settings
    query = read_query(settings.query_file, str(settings.database_url))
    with (
        ReadingProgress(session.console) as progress,
        open_rows(settings, query, session.interrupt, since=settings.since_start, any_bytes=any_bytes) as found,
    ):
        rules = make_rules(found.columns, settings, session.now)
        rules = replace(rules, time_column=None) if without_events else rules
        session.ledger.use_query(str(settings.query_file))
        trusted = session.ledger.queries.trusts_id(str(settings.query_file))
        planner = Planner(session.ledger, session.stage, rules, found.columns, full=list(Kind), trusts_guess=trusted)
        session.stage.begin(None)  # so that nothing is put last, either
        all_staged = choose is None or rules.id_column is not None
        chosen = _Chosen(choose(rules) if choose is not None else None, found.columns.index(rules.identity_column))
        for _ in planned(planner, chosen.staged(progress.passing(found.blocks), all_staged=all_staged)):
            pass
    finish_plan(planner, session.stage, rules)
    return Planned(rules, found.columns, chosen.read, chosen.numbers, chosen.last, all_staged)


@dataclass
class _Chosen:
    """The rows that were asked for, kept while all rows pass. is_meant: whether a value at `place` means them."""

    is_meant: Callable[[Any], bool] | None
    place: int
    read: int = 0
    numbers: array[int] = field(default_factory=lambda: array("q"))
    last: deque[QueriedRow] = field(default_factory=lambda: deque(maxlen=MAX_SHOWN))

    def staged(self, blocks: Iterable[Rows], *, all_staged: bool) -> Iterator[Rows]:
        """Those rows that are to be staged: all, or those that were asked for."""
        for block in blocks:
            meant = self._meant(block)
            self.read += len(block)
            if all_staged:
                yield block
            elif meant:
                yield [each.cells for each in meant]

    def _meant(self, block: Rows) -> list[QueriedRow]:
        if self.is_meant is None:
            return []
        rows = enumerate(block, start=self.read + 1)
        meant = [QueriedRow(number, row) for number, row in rows if self.is_meant(row[self.place])]
        self.numbers.extend(each.number for each in meant)
        self.last.extend(meant)
        return meant
