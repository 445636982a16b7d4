"""What earlier runs have left in OUTPUT_DIR that shows a lost ledger, or one that is older than they are."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.ledger.ledger import Ledger, Project
from pipeline.report.results import RESULTS_NAME

MARK_BYTES = 16
HEAD_BYTES = 4096  # of a results file; the mark stands at its top


def project_mark(project: Project) -> str:
    """The same in all results of one Iterable project: from ITERABLE_PROJECT, so that a key may be rotated; else from
    the key. Neither can be read from it."""
    name = f"name\n{project.name}" if project.name is not None else f"key\n{project.credential}"
    return hmac.digest(name.encode(), project.base_url.encode(), hashlib.sha256)[:MARK_BYTES].hex()


def unknown_delivery(folder: Path, project: Project, ledger: Ledger, *, before: float = math.inf) -> str | None:
    """The id of the newest run that delivered to this project, or entered a baseline, and that the ledger should know
    and does not; None where there is none.

    A ledger that knows nothing of the project should know all of them, another one those since the last run that read
    everything: one that took a part of it, with --yes and --limit, say, leaves the others unknown.
    before: only results that were written by then count, in Unix seconds; others are those of a run beside this one.
    """
    after = "" if ledger.is_empty else max(ledger.runs.last_whole_delivery(), _id_of(ledger.remembers_runs_from))
    known = set() if ledger.is_empty else ledger.runs.ids_after(after)
    mark = project_mark(project)
    return next((run_id for run_id, path in _results(folder, after, known) if _delivered(path, mark, before)), None)


def _id_of(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s):%Y%m%d_%H%M%S}"


def _results(folder: Path, after: str, known: set[str]) -> Iterator[tuple[str, Path]]:
    """The results files that are later than a run, the newest first, but for those of known runs."""
    for run_id, path in results_files(folder):
        if run_id > after and run_id not in known:
            yield run_id, path


def results_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All results files by their run's id, the newest first."""
    before, behind = RESULTS_NAME.split("{}")
    found = {path.name[len(before) : -len(behind)]: path for path in folder.glob(RESULTS_NAME.format("*"))}
    yield from sorted(found.items(), reverse=True)


def _delivered(path: Path, mark: str, before: float) -> bool:
    """Whether a run delivered anything to this project."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        results = results_of_project(path, mark, before=before)
        return results is not None and bool(results["delivered_total"] > 0)
    return False


def results_of_project(path: Path, mark: str, *, before: float = math.inf) -> dict[str, Any] | None:
    """What a results file holds; None where it is another project's, of which only the head is read, or was written
    later than `before`. OSError, ValueError, KeyError or TypeError where it is damaged."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mtime > before or mark.encode() not in file.read(HEAD_BYTES):
            return None
    results: dict[str, Any] = json.loads(path.read_bytes())
    return results if results["project_mark"] == mark else None
