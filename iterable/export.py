"""Rows -> a CSV of harmless cells, in a new private file that appears whole or not at all.

The format is that of RFC 4180 in UTF-8, with a header. Blocks of rows are looked at by the column, which takes half
the time that looking at each cell would.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

# Those of the default query.
DEFAULT_COLUMNS = (
    *("id", "email", "first_name", "last_name", "plan_type", "candidate"),
    *("page", "device", "browser", "location", "event_time"),
)
ROWS_PER_BLOCK = 100  # of more, the processor's cache would forget the first before the last are written

_PLAIN_TYPES = frozenset({str, int, float, Decimal, type(None)})
_FORMULA_SIGNS = "=+-@＝＋－＠"  # the wide ones, too, which spreadsheets in East Asia take for the others
_SIGNS_OF_CELLS = f"{_FORMULA_SIGNS}\t"
_FORMULA_STARTS = frozenset(f"{_FORMULA_SIGNS}\t\r\n")
_PLAIN_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?\Z")
# A spreadsheet whose separator is not the comma takes no notice of quotes within a line, and begins cells at these.
_OTHER_SEPARATORS = ";\t\r\n"
_FORMULA_WITHIN = re.compile(
    rf"""([{_OTHER_SEPARATORS}]"*)(?=[{re.escape(_FORMULA_SIGNS)}])(?![+-]?\d+(?:[.,]\d+)?(?:[{_OTHER_SEPARATORS}]|\Z))"""
)


class Column(tuple[Any, ...]):
    """Some values of one column. Their types are computed once and cached."""

    @cached_property
    def types(self) -> frozenset[type]:
        return frozenset(map(type, self))


def types_of(values: Sequence[Any]) -> frozenset[type]:
    return values.types if type(values) is Column else frozenset(map(type, values))


# Blocks of rows -------------------------------------------------------------------------------------------------------


def write_csv(
    path: Path, columns: Sequence[str], blocks: Iterable[str | Iterable[Sequence[Any]]], *, verbatim: bool = False
) -> None:
    """Write a header and blocks of rows, each row with a value for each column. Blocks are taken one by one.

    A block of text is CSV already, as `csv_block` makes it.

    verbatim: the rows are harmless already, or cells of such a CSV; they are written as they are.
    FileExistsError where the file exists; an exception from `blocks` passes through and leaves no file.
    """
    with new_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([_cell(column) for column in columns])  # which leaves a guarded one as it is
        for block in blocks:
            if isinstance(block, str):
                file.write(block)
            else:
                writer.writerows(block if verbatim else _harmless_block(block))


def csv_block(rows: Sequence[tuple[Any, ...]], by_column: Sequence[tuple[Any, ...]]) -> str | Iterable[Sequence[Any]]:
    """A block of rows, given by the row and by the column -> their text, or rows for `csv.writer`.

    Where no cell needs quotes or a guard, as in most blocks, the text takes a third of the time of `csv.writer`.
    """
    text = _plain_text(by_column)
    needed = (len(by_column) - 1) * len(rows), len(rows), len(rows)
    if text is None or (text.count(","), text.count("\r"), text.count("\n")) != needed or not _is_plain(text):
        return harmless_rows(rows, by_column)
    return text


def _plain_text(by_column: Sequence[tuple[Any, ...]]) -> str | None:
    """Cells with nothing but commas between them; None where some need more than that."""
    if len(by_column) < 2:
        return None  # an empty cell that is alone needs quotes
    columns: list[Sequence[str]] = []
    for column in by_column:
        types = types_of(column)
        if not types <= _PLAIN_TYPES:
            return None
        columns.append(column if types == {str} else ["" if value is None else str(value) for value in column])
    return "\r\n".join(map(",".join, zip(*columns, strict=True))) + "\r\n"


def _is_plain(text: str) -> bool:
    """Whether no cell has quotes or a NUL, or begins as a formula does, with whatever separator."""
    cells = f",{text}".replace("\n", ",")
    if '"' in text or "\0" in text or any(sign in text and f",{sign}" in cells for sign in _SIGNS_OF_CELLS):
        return False
    return not ((";" in text or "\t" in text) and _FORMULA_WITHIN.search(cells))


def harmless_rows(rows: Sequence[tuple[Any, ...]], by_column: Sequence[tuple[Any, ...]]) -> Iterable[Sequence[Any]]:
    """A block of rows, given by the row and by the column -> rows for `csv.writer`, with cells that do no harm.

    by_column: `list(zip(*rows))`. Where every cell is harmless, as nearly always, these are the `rows` themselves.
    None is an empty cell; a text that a spreadsheet would run as a formula gets a leading `'`.
    """
    cells = [_harmless(column) for column in by_column]
    if all(mine is given for mine, given in zip(cells, by_column, strict=True)):
        return rows
    return zip(*cells, strict=True)


def _harmless_block(block: Iterable[Sequence[Any]]) -> Iterable[Sequence[Any]]:
    rows = [tuple(row) for row in block]
    return harmless_rows(rows, list(zip(*rows, strict=True)))


def _harmless(column: tuple[Any, ...]) -> Sequence[Any]:
    """A part of a column as CSV cells; the column itself, where nothing in it can do harm."""
    types = types_of(column)
    if types <= _PLAIN_TYPES:
        texts = set(column) if types == {str} else {value for value in column if type(value) is str}
        if _FORMULA_STARTS.isdisjoint([text[:1] for text in texts]) and _is_harmless_within("".join(texts)):
            return column
    return [_cell(value) for value in column]


def _is_harmless_within(texts: str) -> bool:
    has_separators = any(each in texts for each in _OTHER_SEPARATORS)
    return "\0" not in texts and not (has_separators and _FORMULA_WITHIN.search(texts))


def _cell(value: Any) -> Any:
    """A value as a CSV cell: numbers as they are, times without a `T`, everything else as guarded text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        return value
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = bytes(value).decode("utf-8", errors="backslashreplace")
    elif isinstance(value, (dict, list)):
        value = json_text(value)
    return guarded(str(value).replace("\0", "\\x00"))  # a NUL makes many CSV readers give up


def json_text(value: Any) -> str:
    return json.dumps(_with_text_keys(value), ensure_ascii=False, default=str)


def _with_text_keys(value: Any) -> Any:
    """A map may have keys that JSON can't hold, such as a Decimal or a date."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _with_text_keys(each) for key, each in value.items()}
    return [_with_text_keys(each) for each in value] if isinstance(value, list) else value


def guarded(text: str) -> str:
    """What a spreadsheet would run gets a `'`: a text, or a part of it that another separator makes a cell of.

    A plain number with a sign is no formula. `=1+1` -> `'=1+1`, `x;=1+1` -> `x;'=1+1`
    """
    if any(each in text for each in _OTHER_SEPARATORS):
        text = _FORMULA_WITHIN.sub(r"\1'", text)
    if text[:1] in _FORMULA_STARTS and text and not _PLAIN_NUMBER.match(text):
        return "'" + text
    return text


def unguarded(text: str) -> str:
    """The text that `guarded` has made this cell of."""
    return text[1:] if text[:1] == "'" and guarded(text[1:]) == text else text


# Records --------------------------------------------------------------------------------------------------------------


def chain_first(first: Mapping[str, Any] | None, rest: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The first record, which was taken to see its keys, and the rest."""
    if first is not None:
        yield first
    yield from rest


def blocks_of(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """Records -> blocks of rows with the values of `columns`. Each record is read before the next one is taken.

    ValueError for a record with a key that is no column.
    """
    header = tuple(columns)
    numbered = enumerate(records, start=1)
    while rows := [
        tuple(record.values()) if tuple(record) == header else _row_of(record, number, header)
        for number, record in islice(numbered, ROWS_PER_BLOCK)
    ]:
        yield rows


def _row_of(record: Mapping[str, Any], number: int, header: tuple[str, ...]) -> tuple[Any, ...]:
    """A record whose keys are not those of the header, in its order."""
    if unknown := record.keys() - set(header):
        named = ", ".join(sorted(map(repr, unknown)))
        raise ValueError(f"Record {number} has {named}, for which the CSV has no column.")
    return tuple(map(record.get, header))


# Files ----------------------------------------------------------------------------------------------------------------


def free_csv_path() -> Path:
    """`query_results_YYYYMMDD_HHMMSS.csv` (local time). A second export within a second waits for the next one."""
    while True:
        path = Path(f"query_results_{datetime.now():%Y%m%d_%H%M%S}.csv")
        if not os.path.lexists(path):
            return path
        time.sleep(1.0 - time.time() % 1.0)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A new private text file, which appears under its name only when the block ends without an exception.

    FileExistsError where the name is taken, also by a symbolic link; it is never followed or replaced.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "the file exists already", str(path))
    unfinished = _unfinished(path)
    try:
        descriptor = _create_held(unfinished)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                _move_without_replacing(unfinished, path)
        if fcntl is None:  # Windows does not move a file that is open
            _move_without_replacing(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replacing_file(path: Path, *, mode: int = 0o600, errors: str = "strict") -> Iterator[TextIO]:
    """A text file that takes the place of the last one of this name, whole, when the block ends without an exception.

    A symbolic link there is replaced, never followed.
    """
    unfinished = _unfinished(path)
    try:
        with os.fdopen(_create_held(unfinished), "w", encoding="utf-8", errors=errors, newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode != 0o600:
            unfinished.chmod(mode)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def rewritten(path: Path) -> Iterator[TextIO]:
    """The same for a new text of a file, which keeps its mode, owner and date. Bytes that are not UTF-8 pass as
    surrogates."""
    before = path.lstat()
    with replacing_file(path, mode=stat.S_IMODE(before.st_mode), errors="surrogateescape") as file:
        yield file
        if sys.platform != "win32":
            with suppress(PermissionError):  # only root may give a file away
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if sys.platform != "win32":
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a change of names last, also if the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reserved(path: Path) -> Iterator[None]:
    """Have an empty private file until the block ends. FileExistsError where there is one."""
    descriptor = _create_held(path)
    try:
        yield
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _create_held(path: Path) -> int:
    """A new private file that this process holds as long as it is open, so that `is_held` says so."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o600)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a living process holds this file; True where that can't be known."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _move_without_replacing(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # the target exists, or the file system has no hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the file exists already", str(target)) from None
        source.rename(target)
