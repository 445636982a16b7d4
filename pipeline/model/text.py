"""Text for a terminal of 80 columns: aligned tables, wrapped lines, and values that can't do anything there. Pure."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unicodedata import combining, east_asian_width

from iterable.export import json_text

WIDTH = 80
NARROWEST = 6  # columns are cut down to this, and no further
GAP = "  "
_FOLDER = Path(__file__).resolve().parents[2]  # of main.py
# With the Python that runs: what another one installs helps nobody.
PIP_INSTALL = f"{shlex.quote(sys.executable) if os.name != 'nt' else sys.executable} -m pip install"
_SPACES = dict.fromkeys(map(ord, "\t\n\x0b\x0c\r"), " ")


def to_install(requirements: str) -> str:
    """The command for a file that stands beside main.py."""
    path = str(_FOLDER / requirements)
    return f"{PIP_INSTALL} -r {shlex.quote(path) if os.name != 'nt' else path}"


def shown(value: Any) -> str:
    """A value on one line; what is invisible or moves the cursor is escaped."""
    text = "NULL" if value is None else text_of(value)
    return text if text.isprintable() else "".join(map(_escaped, text))


def text_of(value: Any) -> str:
    """Text as it is, bytes as UTF-8, objects and lists as JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", errors="backslashreplace")
    if isinstance(value, (dict, list, bool)):
        return json_text(value)
    return str(value)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def utc(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, timezone.utc)


def moment(unix_s: float) -> str:
    """`2026-01-13 14:31:22 UTC`"""
    return f"{utc(unix_s):%Y-%m-%d %H:%M:%S} UTC"


def iso(unix_s: float | None) -> str | None:
    """`2026-01-13T14:31:22+00:00`"""
    return None if unix_s is None else utc(unix_s).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """`99 s`, `3 min`, `1.7 h`"""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def short_duration(seconds: float) -> str:
    """In the largest unit that leaves two digits: 12s, 4m, 26h, 7d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def counted(number: int, what: str) -> str:
    """`1 row`, `1,000 rows`, `2 known people`"""
    several = f"{what.removesuffix('person')}people" if what.endswith("person") else f"{what}s"
    return f"{number:,} {what if number == 1 else several}"


def wrapped(text: str, indent: str = "", hanging: str | None = None, width: int = WIDTH) -> list[str]:
    """A sentence, in as many lines as it needs. hanging: the indent of the second line and those after it.

    As `textwrap.wrap` does it, which copies what is left of a long word for each of its lines: 0.8 MB took 20 s.
    """
    lines: list[str] = []
    line, indents = "", (indent, indent if hanging is None else hanging)
    for chunk in filter(None, re.split("( +)", text.expandtabs().translate(_SPACES))):
        start = 0
        while start < len(chunk):
            room = width - len(indents[bool(lines)])
            if lines and not line and chunk[0] == " ":
                break  # a line that goes on begins with a word
            if len(chunk) - start <= room - len(line):
                line += chunk[start:]
                break
            if len(chunk) - start > room:  # longer than any line
                start, line = start + room - len(line), line + chunk[start : start + room - len(line)]
            if line.strip(" "):
                lines.append(indents[bool(lines)] + line.rstrip(" "))
            line = ""
    return [*lines, indents[bool(lines)] + line.rstrip(" ")] if line.strip(" ") else lines


def generalized(message: str) -> str:
    """A message without what differs from record to record, so that alike ones can be counted: row 7 is odd -> row # is
    odd"""
    return " ".join("#" if "@" in word or any(map(str.isdigit, word)) else word for word in message.split())


def shortened(text: str, most: int) -> str:
    """At most so many characters, cut between two words where there are some."""
    if len(text) <= most:
        return text
    head = text[: most - 3]
    words = head if text[most - 3] == " " else head.rpartition(" ")[0]
    return f"{(words or head).rstrip()}..."


def table(rows: Sequence[Sequence[str]], indent: str = "") -> list[str] | None:
    """Aligned columns; the widest are cut, with `…`, until a line fits. None where there are too many columns for that.

    rows: at least one, all of the same length. The first may be a header.
    """
    widths = [min(WIDTH, max(map(width_of, column))) for column in zip(*rows, strict=True)]
    room = WIDTH - len(indent) - len(GAP) * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            return None
        widths[widest] -= 1
    return [(indent + GAP.join(map(_cell, row, widths))).rstrip() for row in rows]


def _cell(text: str, width: int) -> str:
    if width_of(text[: 2 * WIDTH]) > width or len(text) > 2 * WIDTH:
        text = text[: 2 * WIDTH]
        while width_of(text) >= width:
            text = text[:-1]
        text += "…"
    return text + " " * (width - width_of(text))


def width_of(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)
