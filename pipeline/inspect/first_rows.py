"""The query's first rows, planned as a run would plan them, for `--check`: can they be sent, and would a run go on?

In: settings and the ledger, which is only read. Out: `Finding`s, and the samples for the mapping. Sends nothing.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

from iterable_client import IterableClient
from pipeline.config import ROOT, Settings
from pipeline.delivery import note_refusals
from pipeline.inspect.event_columns import EventColumns
from pipeline.inspect.findings import Area, Finding, Mark, bad, good, note
from pipeline.inspect.mapping import Sample, Sampler
from pipeline.inspect.people_findings import about_people
from pipeline.ledger.ledger import Ledger, LedgerError
from pipeline.model.exits import ExitCode, UsageError
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.model.text import counted, generalized
from pipeline.report.advice import advice_for
from pipeline.run.brake import KEYS_PER_LOOKUP, Brake, pending_records
from pipeline.run.forgotten import ForgottenListError, reject_forgotten
from pipeline.run.id_schemes import pending_by_scheme
from pipeline.run.interrupt import Interrupt, Interrupted
from pipeline.run.journeys import PendingEvents, count_by_name
from pipeline.run.reading import Rows, choose_since, finish_plan, open_rows, planned, resent
from pipeline.run.since import Since
from pipeline.source import Query, SourceError, advice_for_writers, read_query
from pipeline.stage.stage import Stage, open_stage
from pipeline.transform.address_changes import PeopleReport
from pipeline.transform.planner import Planner
from pipeline.transform.rules import ColumnsError, Rules, make_rules

SAMPLED_ROWS = 10_000
SHOWN_REASONS = 3


class FirstRows:
    """What is known once `findings` has been through. rules, looked_at: None where the query can't be run. is_all:
    whether all rows were looked at."""

    def __init__(
        self,
        settings: Settings,
        options: argparse.Namespace,
        ledger: Ledger,
        interrupt: Interrupt,
        client: IterableClient,
    ) -> None:
        self.rules: Rules | None = None
        self.samples: Sequence[Sample] = ()
        self.since: Since | None = None
        self.looked_at: int | None = None
        self.is_all = True
        self.bad_rows = 0
        self.pending_events: Mapping[str, PendingEvents] = {}  # by name
        self._settings = settings
        self._options = options
        self._ledger = ledger
        self._interrupt = interrupt
        self._client = client
        self._people = PeopleReport()
        self.event_columns = EventColumns()
        self._moves = 0  # of addresses
        self._events_by_scheme: Mapping[str, int] = {}  # those pending
        self._columns: Sequence[str] = ()

    def findings(self) -> Iterator[Finding]:
        try:
            with open_stage(_folder_for_stage(self._settings.output_dir)) as stage:
                yield from self._findings(stage)
        except ColumnsError as problem:
            remedy = "" if problem.remedy in str(problem) else problem.remedy
            yield bad(Area.SOURCE, str(problem), remedy, problem.code)
        except UsageError as problem:
            yield bad(Area.SETTINGS, str(problem), "leave --since out, or add :since to the query", problem.code)
        except SourceError as problem:
            if (asked := self._interrupt.ending()) is not None:  # which is why the query ended
                raise Interrupted(asked) from problem
            yield bad(Area.SOURCE, str(problem), problem.remedy, problem.code)
        except (LedgerError, sqlite3.Error) as problem:
            text = f"OUTPUT_DIR has no room for the rows while they are checked ({problem})"
            yield bad(Area.OUTPUT, text, "make room, or name another folder with OUTPUT_DIR", ExitCode.NO_OUTPUT)

    def _findings(self, stage: Stage) -> Iterator[Finding]:
        settings, path = self._settings, str(self._settings.query_file)
        query = read_query(settings.query_file, str(settings.database_url))
        since = choose_since(self._options, settings, self._ledger, query, datetime.now(timezone.utc))
        self.since = since
        rules = self._read(query, since.start if since else None, stage)
        yield good(Area.SOURCE, f"the query runs; its columns are {', '.join(self._columns)}")
        if since is not None:
            yield good(Area.SOURCE, f"the next run would read from {since.shown()} UTC: {since.why}")
        if (advice := advice_for_writers(str(settings.database_url), ROOT)) is not None:
            yield note(Area.SOURCE, "while a run reads this SQLite file, other programs can't write to it", advice)
        if not self.looked_at:
            yield note(Area.ROWS, "the query finds no rows", "nothing would be sent")
            yield from self._about_brake(rules, stage)
            if since is not None and not since.is_full:  # the mapping shows older ones
                self._read(query, settings.since_start, None)
            return
        yield from self._reject_forgotten(stage)
        note_refusals(self._ledger, stage, path, keep=False)
        yield from self._about_rows(stage)
        yield from self._about_known_failures(stage)
        yield from about_people(self._people, rules, self._moves)
        yield from self._about_brake(rules, stage)
        yield from self._about_the_rest()
        self.pending_events = count_by_name(pending_records(stage, Kind.EVENT))

    def _read(self, query: Query, start: datetime | None, stage: Stage | None) -> Rules:
        """Sample the first rows, and plan them where there is a stage for that."""
        settings, read = self._settings, 0
        limit = SAMPLED_ROWS + 1  # one more shows that there are more
        with open_rows(settings, query, self._interrupt, since=start, any_bytes=True, limit=limit) as found:
            rules = make_rules(found.columns, settings, time.time())
            self.rules, self._columns, sampler = rules, found.columns, Sampler(rules)
            planner = None
            if stage is not None:
                path = str(settings.query_file)
                self._ledger.use_query(path)
                trusted = self._ledger.queries.trusts_id(path) if start else None
                planner = Planner(
                    self._ledger, stage, rules, found.columns, full=resent(self._options), trusts_guess=trusted
                )
                self._people = planner.people
            for rows, by_column in planned(planner, self._at_most(found.blocks)):
                columns = dict(zip(found.columns, by_column, strict=True))
                sampler.add(columns, len(rows), read + 1)
                self.event_columns.add(columns, rules, read + 1)
                read += len(rows)
        self.samples = sampler.samples
        if planner is not None and stage is not None:
            self.looked_at = read
            finish_plan(planner, stage, rules)
            self._moves = len(planner.changes.moves)
            self._events_by_scheme = pending_by_scheme(rules, planner, stage)
        return rules

    def _at_most(self, blocks: Iterable[Rows]) -> Iterator[Rows]:
        """SAMPLED_ROWS rows; and note whether those are all."""
        left = SAMPLED_ROWS
        for rows in blocks:
            self.is_all = len(rows) <= left
            if left:
                yield rows[:left]
            left -= min(left, len(rows))

    @property
    def _rows_phrase(self) -> str:
        read = self.looked_at or 0
        return counted(read, "row") if self.is_all else f"the first {read:,} rows"

    def _reject_forgotten(self, stage: Stage) -> Iterator[Finding]:
        if not self._settings.skip_forgotten or self._settings.use_jwt_auth:
            return
        try:
            listed = reject_forgotten(self._client, stage, by_user_id=self._settings.iterable_identifier == "userId")
        except ForgottenListError as problem:
            yield bad(Area.KEY, str(problem), "", problem.code)
        else:
            yield good(Area.KEY, f"Iterable lists {listed:,} forgotten people (SKIP_FORGOTTEN)")

    def _about_known_failures(self, stage: Stage) -> Iterator[Finding]:
        """What a run would send, and Iterable has refused as it is in earlier runs."""
        counts: Counter[str] = Counter()
        for kind in Kind:
            records = stage.pending(kind, late=True)
            while chunk := list(islice(records, KEYS_PER_LOOKUP)):
                before = self._ledger.failures.past_failures([record.key for record in chunk])
                for record in chunk:
                    past = before.get(record.key)
                    if past and past.outcome is Outcome.REJECTED and past.fingerprint == record.fingerprint:
                        counts[past.code or f"status {past.status_code}"] += 1
        if not counts:
            return
        reasons = ", ".join(f"{code} ({count:,})" for code, count in counts.most_common())
        records_were = "record to send was" if counts.total() == 1 else "records to send were"
        ends_with_1 = self._settings.exit_on_rejected != "new"
        yield note(
            Area.ROWS,
            f"{counts.total():,} {records_were} refused in earlier runs, unchanged: {reasons}",
            advice_for(Outcome.REJECTED, counts.most_common(1)[0][0]),
            ExitCode.REJECTED if ends_with_1 else ExitCode.SUCCESS,
        )

    def _about_rows(self, stage: Stage) -> Iterator[Finding]:
        users, events = (stage.states.count_pending(kind) for kind in Kind)
        unchanged = sum(counts[Outcome.UNCHANGED] for counts in stage.states.count_outcomes().values())
        plan = f"{counted(users, 'user')} and {counted(events, 'event')} to send, {unchanged:,} unchanged"
        yield good(Area.ROWS, f"in {self._rows_phrase}: {plan}")
        reasons: dict[str, list[FailedRecord]] = {}  # those that differ only in what they name are one
        for each in stage.outcomes.undelivered(with_not_attempted=False):
            reasons.setdefault(generalized(each.message), []).append(each)
        if reasons:
            self.bad_rows = len({each.row for alike in reasons.values() for each in alike})
            is_new = self._settings.exit_on_rejected != "new" or _is_any_new(stage)
            hopeless = [kind for kind in Kind if _are_all_rejected(stage, kind)]
            yield self._about_rejected(list(reasons.values()), users + events + unchanged, hopeless, is_new=is_new)

    def _about_rejected(
        self, reasons: Sequence[Sequence[FailedRecord]], others: int, hopeless: Sequence[Kind], *, is_new: bool
    ) -> Finding:
        """reasons: the rejected records that have each. others: how many records can be sent, or are there already.
        hopeless: the kinds of which none can."""
        count = sum(map(len, reasons))
        found = "; ".join(map(_reason, reasons[:SHOWN_REASONS]))
        more = f"; and {len(reasons) - SHOWN_REASONS} more reasons" if len(reasons) > SHOWN_REASONS else ""
        share = f"{count:,} of {counted(count + others, 'record')} can't be sent ({count / (count + others):.2%})"
        remedy = "fix them in the source, or leave them out of the query; a run sends all others"
        if not is_new:
            text = f"{share}: {found}{more}; all are known from earlier runs (EXIT_ON_REJECTED=new)"
            return note(Area.ROWS, text, remedy)
        if hopeless:
            remedy = (
                f"fix the query or the settings: no {' and no '.join(each.value for each in hopeless)} could be sent"
            )
            return bad(Area.ROWS, f"{share}: {found}{more}", remedy, ExitCode.REJECTED)
        return note(Area.ROWS, f"{share}: {found}{more}", remedy, ExitCode.REJECTED)

    def _about_brake(self, rules: Rules, stage: Stage) -> Iterator[Finding]:
        if self._options.yes or self._options.sandbox or self._ledger.damage:  # which has a finding of its own
            return
        is_whole = self.is_all and (self.since is None or self.since.is_full)
        stopped = Brake(
            self._options,
            self._settings,
            rules,
            self._ledger,
            stage,
            time.time(),
            self._people,
            is_whole=is_whole,
            events_by_scheme=self._events_by_scheme,
        ).ending()
        if stopped is not None:
            text = f"a run would stop after {self._rows_phrase}. {stopped.happened}"
            yield Finding(Mark.BAD, Area.BRAKE, text, stopped.ways_on, stopped.code)

    def _about_the_rest(self) -> Iterator[Finding]:
        if not self.is_all:
            text = (
                f"only {self._rows_phrase} were read, and all that is said here, also of the brake, is by these alone"
            )
            yield note(Area.ROWS, text, "--dry-run reads all rows, and ends with 65 where the brake would stop a run")


def _folder_for_stage(output_dir: Path) -> Path:
    return output_dir if os.access(output_dir, os.W_OK) else Path(tempfile.gettempdir())


def _are_all_rejected(stage: Stage, kind: Kind) -> bool:
    outcomes = stage.states.count_outcomes()[kind]
    rejected = outcomes[Outcome.REJECTED]
    return 0 < rejected == sum(outcomes.values()) + stage.states.count_pending(kind)


def _reason(alike: Sequence[FailedRecord]) -> str:
    """`email is empty (row 4)`, `email is empty (2 records, the first in row 4)`"""
    first = alike[0]
    where = f"row {first.row}" if len(alike) == 1 else f"{len(alike):,} records, the first in row {first.row}"
    return f"{first.message.rstrip('.')} ({where})"


def _is_any_new(stage: Stage) -> bool:
    return any(new for *_, new in stage.outcomes.count_reasons(-1))
