"""The file that a database URL names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from pipeline.source.errors import SourceError


@dataclass(frozen=True)
class DatabaseFile:
    """Where it is, and what stands after the ? in the URL."""

    path: Path
    options: dict[str, str]


def find_file(database_url: str, root: Path, kind: str, examples: str) -> DatabaseFile:
    """root: what a relative path starts from. A missing file is an error, though the databases would make one."""
    name = database_url.partition(":///")[2]
    database, _, options = name.partition("?")
    if not database or database == ":memory:":
        raise SourceError(f"DATABASE_URL names no file; write {examples}.")
    spellings = (name, database, unquote(database))  # a ? or a % may be a part of the name
    path = next((path for each in spellings if (path := root / each).exists()), root / database)
    if not path.exists():
        raise SourceError(f"DATABASE_URL names the {kind} file {path}, which does not exist.")
    if not path.is_file():
        raise SourceError(f"DATABASE_URL names {path}, which is not a file.")
    return DatabaseFile(path, dict(parse_qsl(options)))
