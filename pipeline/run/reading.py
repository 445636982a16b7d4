"""The rows of the query, planned as they pass: the one loop of a run, of `--check`, `--explain` and `--verify`.

`read_rows` is the step of a run, in which each row goes into the CSV, too; `planned` is the loop alone.
"""

from __future__ import annotations

import argparse
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, TypeVar

from iterable.export import Column, csv_block, write_csv
from pipeline.config import ROOT, Settings
from pipeline.config.fields import find_own_field
from pipeline.ledger.ledger import Ledger
from pipeline.model.exits import OutputError, UsageError
from pipeline.model.records import Kind
from pipeline.report.progress import ReadingProgress
from pipeline.report.results import CSV_NAME, reason_of
from pipeline.run.interrupt import Interrupt
from pipeline.run.opening import Run
from pipeline.run.since import ALL, Since, cursor_fingerprint, decide
from pipeline.source import Query, UndecodableText, open_query, read_query
from pipeline.stage.stage import Stage
from pipeline.transform.identity import is_meant
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules, make_rules

Rows = Sequence[tuple[Any, ...]]
_T = TypeVar("_T")

logger = logging.getLogger("main")


@dataclass(frozen=True)
class Read:
    """The rows, all of them in the CSV and with the planner."""

    csv_name: str
    rows: int
    rules: Rules
    planner: Planner
    query: Query
    since: Since | None
    started_at: datetime

    @property
    def is_full(self) -> bool:
        """Whether all was read that the query has; --limit apart."""
        return self.since is None or self.since.is_full

    @property
    def window_from(self) -> int | None:
        """Where the window of :since starts, in Unix seconds; None without :since."""
        return int(self.since.start.timestamp()) if self.since is not None else None


def read_rows(run: Run) -> Read:
    """One pass over the rows of the query: each goes into the CSV and, planned, into the stage."""
    query = read_query(run.settings.query_file, str(run.settings.database_url))
    since = choose_since(run.options, run.settings, run.ledger, query, run.started_at)
    run.console.say(f"Step 3: Connecting to {run.settings.shown_database()}")
    if since is not None:
        run.console.say(f"        Reading from {since.shown()} UTC: {since.why}")
    read = with_slower_decoder(
        run.stage, lambda any_bytes: _read_rows(run, query, since, any_bytes=any_bytes), on_retry=logger.warning
    )
    run.console.say(f"Step 4.5: {read.rows:,} rows exported to {read.csv_name}")
    for sentence in about_columns_not_sent(read.rules):
        run.console.say(f"        Not sent{sentence}")
    return read


def about_columns_not_sent(rules: Rules) -> Iterator[str]:
    """The rest of a sentence about the columns that neither setting names, and that are not asked to."""
    own = [column for column in rules.not_sent if find_own_field(column)]
    others = [column for column in rules.not_sent if column not in own]
    if others:
        yield f", as neither USER_FIELDS nor EVENT_FIELDS names them: {', '.join(others)}"
    if own:
        yield f", as Iterable keeps these fields itself: {', '.join(own)}"


def choose_since(
    options: argparse.Namespace, settings: Settings, ledger: Ledger, query: Query, now: datetime
) -> Since | None:
    """From when a query with :since reads; None for one without. Raises UsageError."""
    if not query.uses_since:
        if options.since is not None:
            raise UsageError(f"--since needs a query that contains :since; {query.name} has none.")
        return None
    asked = options.since or (ALL if options.full or options.only else None)
    path = str(settings.query_file)
    fingerprint = cursor_fingerprint(settings, query)
    return decide(
        settings, ledger.queries.cursor(path), fingerprint, now, asked, held_from=ledger.failures.held_from(path)
    )


def resent(options: argparse.Namespace) -> list[Kind]:
    """The kinds of which --full sends all, also what was accepted."""
    return [kind for kind in Kind if options.full in (True, f"{kind.value}s")]


def _read_rows(run: Run, query: Query, since: Since | None, *, any_bytes: bool) -> Read:
    settings, options = run.settings, run.options
    started_at = datetime.now(timezone.utc)
    start = since.start if since is not None else None
    is_whole = (since is None or since.is_full) and not run.takes_part_of_rows
    with (
        ReadingProgress(run.console) as progress,
        open_rows(settings, query, run.interrupt, since=start, any_bytes=any_bytes, limit=options.limit) as found,
    ):
        if not any_bytes:
            run.console.say(f"Step 4: Running the user-event query, {query.name}")
        rules = make_rules(found.columns, settings, run.started_at.timestamp())
        planner = Planner(
            run.ledger,
            run.stage,
            rules,
            found.columns,
            full=resent(options),
            leave_known_users=options.limit is not None,
            enters=options.baseline,
            enters_rest=options.only is None or options.before is not None,
            trusts_guess=None if is_whole else run.ledger.queries.trusts_id(run.query_path),
            lifts_forgotten=bool(options.only and options.full is True and options.yes),
            is_whole=is_whole and not options.baseline,
        )
        name = CSV_NAME.format(run.run_id)
        try:
            chosen = _chosen(progress.passing(found.blocks), found.columns, rules, options.only)
            blocks = (csv_block(rows, by_column) for rows, by_column in planned(planner, chosen))
            write_csv(settings.output_dir / name, found.columns, blocks, verbatim=True)
        except (OSError, sqlite3.Error) as error:  # the CSV, or the stage beside it
            raise OutputError(f"{name} can't be written ({reason_of(error)}); nothing was sent.") from error
    return Read(name, planner.rows, rules, planner, query, since, started_at)


# The loop -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FoundRows:
    """What the query finds: its columns, and its rows in blocks, to be taken once."""

    columns: tuple[str, ...]
    blocks: Iterable[Rows]


@contextmanager
def open_rows(
    settings: Settings,
    query: Query,
    interrupt: Interrupt,
    *,
    since: datetime | None,
    any_bytes: bool,
    limit: int | None = None,
) -> Iterator[FoundRows]:
    """The first `limit` rows of the query, or all. any_bytes: by a slower decoder that takes text which is no UTF-8."""
    with open_query(
        str(settings.database_url),
        query,
        root=ROOT,
        should_stop=lambda: interrupt.ending() is not None,
        any_bytes=any_bytes,
        since=since,
        options=settings.database_options,
    ) as result:
        yield FoundRows(result.columns, _first(result.blocks, limit))


def with_slower_decoder(
    stage: Stage, read: Callable[[bool], _T], *, on_retry: Callable[[str], object] = lambda text: None
) -> _T:
    """`read(False)`; where that finds text that is not UTF-8, `read(True)`, which takes any bytes."""
    try:
        return read(False)
    except UndecodableText as problem:
        on_retry(f"{problem} All rows are read once more, by a slower decoder that takes any bytes.")
        stage.clear()
        return read(True)


def planned(planner: Planner | None, blocks: Iterable[Rows]) -> Iterator[tuple[Rows, list[Column]]]:
    """Plan the rows, and pass them on, by the row and by the column. At the end, all of them are staged.

    planner=None: only pass them on.
    """
    for rows in blocks:
        by_column = list(map(Column, zip(*rows, strict=True)))
        if planner is not None:
            planner.plan(by_column, rows)
        yield rows, by_column
    if planner is not None:
        planner.end_reading()


def finish_plan(planner: Planner, stage: Stage, rules: Rules) -> None:
    """All rows were read: put together what those of each user say, and drop what stands in more than one row."""
    planner.finish()
    stage.finish_staging(ids_are_given=rules.id_column is not None)


def _chosen(blocks: Iterable[Rows], columns: Sequence[str], rules: Rules, who: str | None) -> Iterator[Rows]:
    """The rows of one person; None: all."""
    if who is None:
        yield from blocks
        return
    place, meant = columns.index(rules.identity_column), is_meant(who, rules)
    for rows in blocks:
        if chosen := [row for row in rows if meant(row[place])]:
            yield chosen


def _first(blocks: Iterable[Rows], limit: int | None) -> Iterator[Rows]:
    """The first `limit` rows; None: all."""
    if limit is None:
        yield from blocks
        return
    for rows in blocks:
        yield rows[:limit]
        limit -= len(rows)
        if limit <= 0:  # and the rest is never read
            return
