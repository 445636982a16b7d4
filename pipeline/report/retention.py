"""What earlier runs have left in OUTPUT_DIR: what is deleted when a run begins, and whether there is room for more.

Only regular files whose whole name is one of ours are deleted, and only for a run that holds the lock.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from iterable.export import is_held
from pipeline.model.text import counted
from pipeline.report.log import LOG_NAME
from pipeline.report.results import PAGE_NAME, RUN_NAMES, VERIFY_NAMES, reason_of

MUCH_BYTES = 2**30
MOST_STAGED = 2  # times the outputs of a run: what its records take on the disk until it ends
FEW_RUNS = 10

logger = logging.getLogger("pipeline.retention")

_STAMP = "([0-9]{8}_[0-9]{6})"


def _named(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name.format("*")) for name in names).replace(re.escape("*"), _STAMP))


_OUTPUT_OF_RUN = _named(RUN_NAMES)
_OUTPUT = _named((*RUN_NAMES, *VERIFY_NAMES))
_UNFINISHED = re.compile(rf"\.(?:{_OUTPUT.pattern}|{re.escape(PAGE_NAME)})\.[0-9a-f]+\.tmp")
_DATED_BY_CONTENT = re.compile(rf"{re.escape(LOG_NAME)}\.[1-9][0-9]*|{re.escape(PAGE_NAME)}")


# What goes ------------------------------------------------------------------------------------------------------------


def sweep(folder: Path, warn: Callable[[str], None]) -> None:
    """Delete the unfinished files that a killed run left behind: they hold personal data. Those of live runs, which
    may be dry ones, are held and stay."""
    dead = [
        each for each in files_in(folder, warn) if _UNFINISHED.fullmatch(each.name) and not is_held(Path(each.path))
    ]
    _delete(dead, "left unfinished by a killed run", warn)


def being_written(folder: Path, warn: Callable[[str], None]) -> list[str]:
    """The names of the unfinished files of live runs."""
    unfinished = (each for each in files_in(folder, warn) if _UNFINISHED.fullmatch(each.name))
    return sorted(each.name for each in unfinished if is_held(Path(each.path)))


def delete_old(folder: Path, keep_days: float, now: float, warn: Callable[[str], None]) -> int:
    """Delete the outputs of runs that began more than `keep_days` ago, by the local time in their names, and rotated
    logs and a page as old as that. Returns how many. 0 days: keep everything. now: Unix seconds. warn: told what can't
    be deleted.
    """
    if not keep_days:
        return 0
    oldest = now - keep_days * 86_400
    old = [entry for entry in files_in(folder, warn) if time_of(entry) < oldest]
    count = _delete(old, f"older than KEEP_DAYS={keep_days:g}", warn)
    if count:
        logger.info("Deleted %s older than KEEP_DAYS=%g.", counted(count, "file"), keep_days)
    return count


def files_in(folder: Path, warn: Callable[[str], None]) -> Iterator[os.DirEntry[str]]:
    """The regular files. What is behind a symbolic link is none."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError as error:
        warn(f"{folder} can't be listed ({reason_of(error)}).")


def time_of(entry: os.DirEntry[str]) -> float:
    """When an output's run began, or when a rotated log or the page was last written. What is not ours is never old."""
    with suppress(ValueError, OverflowError, OSError):  # it looks like one of our stamps, or is gone meanwhile
        if match := _OUTPUT.fullmatch(entry.name):
            return datetime.strptime(_stamp(match), "%Y%m%d_%H%M%S").timestamp()
        if _DATED_BY_CONTENT.fullmatch(entry.name):
            return entry.stat(follow_symlinks=False).st_mtime
    return math.inf


def _stamp(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)


def _delete(entries: Iterable[os.DirEntry[str]], what: str, warn: Callable[[str], None]) -> int:
    count = 0
    failed = []
    for entry in entries:
        try:
            Path(entry.path).unlink()
            count += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            failed.append(f"{entry.name} ({reason_of(error)})")
    if failed:
        warn(f"{counted(len(failed), 'file')} {what} can't be deleted, for example {failed[0]}.")
    return count


# Whether there is room ------------------------------------------------------------------------------------------------


def disk_space_warning(folder: Path, free_bytes: int) -> str | None:
    """A sentence where the outputs take much room, or the disk has little for more runs like the newest; else None."""
    bytes_by_run: Counter[str] = Counter()
    for entry in files_in(folder, logger.warning):
        if match := _OUTPUT_OF_RUN.fullmatch(entry.name):
            with suppress(OSError):  # gone meanwhile
                bytes_by_run[_stamp(match)] += entry.stat(follow_symlinks=False).st_size
    if not bytes_by_run:
        return None
    held = bytes_by_run.total()
    newest = max(1, bytes_by_run[max(bytes_by_run)])
    room = max(0, free_bytes - MOST_STAGED * newest) // newest
    if held <= MUCH_BYTES and room >= FEW_RUNS:
        return None
    return (
        f"OUTPUT_DIR holds {size_text(held)} from {counted(len(bytes_by_run), 'run')}; there is room for about "
        f"{_roughly(room)} more; set KEEP_DAYS to delete old files."
    )


def size_text(number_of_bytes: int) -> str:
    """`12.3 GB`, `345 MB`, `7 kB`"""
    if number_of_bytes >= 1_000_000_000:
        return f"{number_of_bytes / 1_000_000_000:,.1f} GB"
    if number_of_bytes < 1_000_000:
        return f"{math.ceil(number_of_bytes / 1_000)} kB"
    return f"{number_of_bytes / 1_000_000:,.0f} MB"


def _roughly(number: int) -> str:
    """Two digits are enough: 1234 -> `1,200`."""
    return f"{round(number, 2 - len(str(number))):,}"
