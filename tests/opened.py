"""A ledger and a stage that are open, as tests of several modules need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.ledger.ledger import Ledger, Project, open_ledger, read_ledger
from pipeline.model.keys import KEY_BYTES, USER_BYTES, is_given
from pipeline.model.records import Record
from pipeline.stage.stage import Stage, open_stage
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules


class Opened(NamedTuple):
    ledger: Ledger
    stage: Stage

    def plan(self, rules: Rules, rows: Sequence[dict[str, Any]], *, rows_per_block: int = 100, **options: Any) -> None:
        """Plan rows that have the same columns."""
        planner = Planner(self.ledger, self.stage, rules, list(rows[0]) if rows else [], **options)
        for start in range(0, len(rows), rows_per_block):
            planner.plan(list(zip(*(row.values() for row in rows[start : start + rows_per_block]), strict=True)))
        planner.end_reading()
        planner.finish()
        assert planner.rows == len(rows)

    def accept(self, records: Sequence[Record]) -> None:
        """Iterable has accepted these."""
        self.stage.outcomes.note_delivered(records)
        self.ledger.accept(records)

    def stage_events(self, events: Sequence[Record]) -> None:
        self.stage.stage_events(
            [each.row for each in events],
            [each.key for each in events],
            [each.fingerprint for each in events],
            [each.payload for each in events],
        )

    def begin(self, *, skip_unchanged: bool = True) -> None:
        self.stage.begin(self._known if skip_unchanged else None, self.ledger.failures.failed_before)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """As the planner looks records up where a column says who a person is."""
        given = self.ledger.accepted.known_given([key for key in keys if len(key) == KEY_BYTES and is_given(key)])
        of_others = {key for key, each in given.items() if each.person != key[:USER_BYTES]}
        return {key: each for key, each in self.ledger.known(keys).items() if key not in of_others}

    def refresh(self, query: str = "query.sql", *, full_read: bool = True) -> None:
        self.ledger.refresh(self.stage.keys(), query, full_read=full_read)


PROJECT = Project("https://api.iterable.com", "key-of-this-project")


@contextmanager
def open_both(folder: Path, project: Project = PROJECT, *, now: float, lasting: bool = True) -> Iterator[Opened]:
    """As for a run."""
    with open_ledger(folder, project, now=now, lasting=lasting) as ledger, open_stage(folder) as stage:
        opened = Opened(ledger, stage)
        opened.begin()
        yield opened


@contextmanager
def read_both(folder: Path, project: Project = PROJECT, *, now: float) -> Iterator[Opened]:
    """As for a dry run."""
    with read_ledger(folder, project, now=now) as ledger, open_stage(folder) as stage:
        opened = Opened(ledger, stage)
        opened.begin()
        yield opened
