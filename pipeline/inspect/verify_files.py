"""What --verify leaves in OUTPUT_DIR: the report, a CSV with a line for each difference, and the results in JSON.

Both are private. There is no report without differences.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from iterable.export import guarded, new_file
from pipeline.inspect.readback import Field, differing
from pipeline.inspect.verification import Compared, PersonState, Verification, body_of, results_as_json
from pipeline.model.exits import OutputError
from pipeline.report.results import VERIFY_NAMES, VERIFY_REPORT_NAME, VERIFY_RESULTS_NAME, reason_of, reserved_run_id

COLUMNS = ("person", "what", "field", "ours", "theirs")


class VerifyFiles:
    """The report, which grows as people are compared; and the results, written at the end."""

    def __init__(self, folder: Path, stamp: str) -> None:
        self._folder = folder
        self._stamp = stamp
        self._stack = ExitStack()
        self._writer: Any = None

    def add(self, each: Compared) -> None:
        for line in lines_of(each):
            if self._writer is None:
                file = self._stack.enter_context(new_file(self._folder / VERIFY_REPORT_NAME.format(self._stamp)))
                self._writer = csv.writer(file)
                self._writer.writerow(COLUMNS)
            self._writer.writerow(map(guarded, line))

    def close(self, found: Verification) -> Mapping[str, str | None]:
        """The names of the files."""
        report = VERIFY_REPORT_NAME.format(self._stamp) if self._writer is not None else None
        self._stack.close()
        results = VERIFY_RESULTS_NAME.format(self._stamp)
        with new_file(self._folder / results) as file:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            json.dump(results_as_json(found, now), file, indent=2)
            file.write("\n")
        return {"report": report, "results": results}

    def abandon(self, problem: BaseException) -> None:
        """Leave no unfinished file."""
        self._stack.__exit__(type(problem), problem, problem.__traceback__)


@contextmanager
def open_files(folder: Path) -> Iterator[VerifyFiles]:
    """Raises OutputError."""
    with ExitStack() as stack:
        try:
            stamp = stack.enter_context(reserved_run_id(folder, VERIFY_NAMES))
        except OSError as error:
            raise OutputError(f"OUTPUT_DIR names {folder}, which can't be written ({reason_of(error)}).") from error
        files = VerifyFiles(folder, stamp)
        try:
            yield files
        except BaseException as problem:
            files.abandon(problem)
            raise


def lines_of(each: Compared) -> Iterator[tuple[str, str, str, str, str]]:
    """One for each field that differs, and for each record that is missing or doubled."""
    who = each.person.identity
    if each.user_differs and each.state is PersonState.MISSING:
        yield who, "missing", "", "", ""
    elif each.user_differs:
        for field in differing(each.fields):
            yield who, "different", field.name, *_values(field)
    for event in each.differing_events:
        event_id = body_of(each, event)["id"]
        if event.fields:
            for field in event.fields:
                yield who, event.state.value, f"{event_id}.{field.name}", *_values(field)
        else:
            yield who, event.state.value, event_id, "", ", ".join(event.doubles)


def _values(field: Field) -> tuple[str, str]:
    return _text(field.sent), _text(field.held)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
