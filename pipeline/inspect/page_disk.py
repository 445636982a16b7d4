"""What the outputs and the ledger take on the disk, by kind, and what KEEP_DAYS does about it, for `--report`."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.report.log import LOG_NAME
from pipeline.report.results import (
    CSV_NAME,
    PAGE_NAME,
    PREVIEW_NAME,
    REJECTED_NAME,
    RESULTS_NAME,
    VERIFY_NAMES,
)
from pipeline.report.retention import files_in, time_of

KINDS = {  # what the page calls them, and how their names begin
    "Rows of queries (CSV)": (CSV_NAME,),
    "Results of runs (JSON)": (RESULTS_NAME,),
    "Rejected rows (CSV)": (REJECTED_NAME,),
    "Previews of dry runs": (PREVIEW_NAME,),
    "Verification reports": VERIFY_NAMES,
    "Logs": (LOG_NAME,),
    "This page": (PAGE_NAME,),
    "Ledger": (Path(LEDGER_NAME).stem,),
}
EXAMPLE_DAYS = 30  # what is shown where KEEP_DAYS keeps everything
DAY_S = 86_400


@dataclass(frozen=True)
class KindOnDisk:
    """oldest: Unix seconds, by the time in the name; None where that is not known."""

    name: str
    files: int
    size: int
    oldest: float | None


@dataclass(frozen=True)
class Disk:
    """free: bytes; None where the system does not say. keep_days: the setting. old_files, old_size: what would go after
    `would_keep` days."""

    kinds: Sequence[KindOnDisk]
    free: int | None
    keep_days: float
    would_keep: float
    old_files: int
    old_size: int
    problem: str = ""

    @property
    def files(self) -> int:
        return sum(kind.files for kind in self.kinds)

    @property
    def size(self) -> int:
        return sum(kind.size for kind in self.kinds)

    @property
    def most(self) -> int:
        return max((kind.size for kind in self.kinds), default=0)


@dataclass
class _Sum:
    files: int = 0
    size: int = 0
    oldest: float = math.inf


def disk_of(folder: Path, keep_days: float, now: float) -> Disk:
    """now: Unix seconds."""
    would_keep = keep_days or EXAMPLE_DAYS
    sums = {name: _Sum() for name in KINDS}
    old = _Sum()
    problems: list[str] = []
    for entry in files_in(folder, problems.append):
        kind = kind_of(entry.name)
        size = _size_of(entry)
        if kind is None or size is None:
            continue
        _add(sums[kind], size, time_of(entry))
        if time_of(entry) < now - would_keep * DAY_S:
            _add(old, size, math.inf)
    kinds = [KindOnDisk(name, each.files, each.size, _known(each.oldest)) for name, each in sums.items() if each.files]
    return Disk(kinds, _free(folder), keep_days, would_keep, old.files, old.size, "".join(problems[:1]))


def kind_of(name: str) -> str | None:
    """None for a file that is not ours. Unfinished files count with what they would become."""
    shown = name[1:] if name.endswith(".tmp") else name
    for kind, patterns in KINDS.items():
        if any(_matches(pattern, shown) for pattern in patterns):
            return kind
    return None


def _matches(pattern: str, name: str) -> bool:
    return re.match(re.escape(pattern).replace(r"\{\}", r"\d{8}_\d{6}") + r"(?![\w])", name, re.ASCII) is not None


def _add(total: _Sum, size: int, time: float) -> None:
    total.files += 1
    total.size += size
    total.oldest = min(total.oldest, time)


def _size_of(entry: os.DirEntry[str]) -> int | None:
    with suppress(OSError):  # gone meanwhile
        return entry.stat(follow_symlinks=False).st_size
    return None


def _free(folder: Path) -> int | None:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _known(time: float) -> float | None:
    return None if math.isinf(time) else time
