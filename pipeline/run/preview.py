"""The whole preview of `--dry-run`: every payload that a run would send, as it is, one a line.

    {"kind": "user", "row": 1, "payload": {"email": "ada@example.com", "dataFields": {"plan": "pro"}}}

In the order of sending: users before events, each kind in its own order, and last what failed in earlier runs. Private,
as it is personal data. The console shows masked examples (`dry_run`).
"""

from __future__ import annotations

from itertools import product

from iterable.export import new_file
from pipeline.model.exits import OutputError
from pipeline.model.records import Kind
from pipeline.report.results import PREVIEW_NAME, reason_of
from pipeline.run.opening import Run


def write_preview(run: Run) -> str:
    """Its name in OUTPUT_DIR. Raises OutputError."""
    name = PREVIEW_NAME.format(run.run_id)
    try:
        with new_file(run.settings.output_dir / name) as file:
            for late, kind in product((False, True), Kind):
                for record in run.stage.pending(kind, late=late):
                    payload = record.payload.decode("utf-8")
                    file.write(f'{{"kind": "{kind.value}", "row": {record.row}, "payload": {payload}}}\n')
    except OSError as error:
        raise OutputError(f"{name} can't be written ({reason_of(error)}); nothing was sent.") from error
    return name
