"""A query file -> `Query`: one SELECT, checked as far as its text goes, with `:since` where the query has it.

Knows how each kind of database writes comments and quotes, and connects to none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pipeline.source.errors import SourceError

MYSQL = ("mysql", "mariadb")


@dataclass(frozen=True)
class Query:
    """A query as its file has it, without blanks around it, and without a ; at its end and what follows that.

    name: the file's. backend: what the database URL begins with, such as postgresql.
    """

    name: str
    text: str
    backend: str

    @property
    def uses_since(self) -> bool:
        """Whether the query asks for what changed only, by :since or :since_unix."""
        return _PLACEHOLDER.search(code_of(self.text, self.backend)) is not None

    def sql(self, since: datetime | None) -> str:
        """The text for the database: each placeholder replaced by a literal of `since`, which must have an offset."""
        places = list(_PLACEHOLDER.finditer(code_of(self.text, self.backend)))
        if not places:
            return self.text
        if since is None or since.tzinfo is None:
            raise ValueError(f"{self.name} uses :since, so a time with an offset is needed, not {since!r}")
        parts, end = [], 0
        for place in places:
            parts += [self.text[end : place.start()], _literal(place[0], since)]
            end = place.end()
        return "".join([*parts, self.text[end:]])


def read_query(query_file: Path, database_url: str) -> Query:
    """Raises SourceError where the file can't be read, or holds anything but one statement."""
    backend = re.split(r"[+:]", database_url, maxsplit=1)[0]
    try:
        text = query_file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The query file {query_file} can't be read ({type(error).__name__}).") from error
    code = code_of(text, backend)
    statement = code.rstrip(" \t\r\n;")
    if not statement.strip(" \t\r\n;"):
        raise SourceError(f"The query file {query_file} holds no query.")
    if ";" in statement:
        raise SourceError(f"The query file {query_file} holds more than one statement; leave just one SELECT in it.")
    if backend in MYSQL and "||" in statement:
        raise SourceError(
            f"The query file {query_file} has ||, which means OR in MySQL; write CONCAT_WS(' ', a, b) instead, as in "
            "examples/mysql.sql."
        )
    if ";" in code[len(statement) :]:
        text = text[: len(statement)]
    return Query(query_file.name, text, backend)


# :since ---------------------------------------------------------------------------------------------------------------

# Not the cast ::since, the slices [:since] and [1:since], nor Snowflake's paths src:since, "src":since, src[0]:since.
_PLACEHOLDER = re.compile(r"(?<![:\w\"\[\])}$]):since(?:_unix)?(?![\w$])")


def _literal(placeholder: str, since: datetime) -> str:
    """Not a bound parameter: drivers bind times with a type, which finds nothing in columns of dates or texts."""
    if placeholder == ":since_unix":
        return str(int(since.timestamp() // 1))
    return f"'{since.astimezone(timezone.utc).isoformat(' ')[:19]}'"  # strftime writes the year 999 with three digits


# Comments and quotes --------------------------------------------------------------------------------------------------

_NAMES = r"\"[^\"]*\"|`[^`]*`"  # a doubled quote looks like two names in a row
_BACKSLASHES = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`"  # in texts, which stand in both kinds of quotes
_DOLLARS = r"(?<![\w$])(?P<dollars>\$(?:[^\W\d]\w*)?\$).*?(?P=dollars)"  # $tag$text$tag$
_STANDARD = rf"(?P<comment>--[^\n]*|/\*)|\b[eE]'(?:[^'\\]|\\.)*'|'[^']*'|{_NAMES}|{_DOLLARS}"
_QUOTES = {
    "": _STANDARD,
    "sqlite": rf"(?P<comment>--[^\n]*|/\*)|'[^']*'|{_NAMES}|\[[^\]]*\]",
    "mssql": rf"(?P<comment>--[^\n]*|/\*)|'[^']*'|{_NAMES}|\[[^\]]*\]",
    "mysql": rf"(?P<comment>--(?=\s|\Z)[^\n]*|\#[^\n]*|/\*(?!M?!))|{_BACKSLASHES}",  # /*! is no comment there
    "bigquery": rf"(?P<comment>(?:--|\#)[^\n]*|/\*)|'''(?:[^\\]|\\.)*?'''|\"\"\"(?:[^\\]|\\.)*?\"\"\"|{_BACKSLASHES}",
    "databricks": rf"(?P<comment>--[^\n]*|/\*)|{_BACKSLASHES}",
    "snowflake": rf"(?P<comment>(?:--|//)[^\n]*|/\*)|'(?:[^'\\]|\\.)*'|\"[^\"]*\"|{_DOLLARS}",
}
_QUOTES["mariadb"] = _QUOTES["mysql"]
for _name in ("hive", "impala", "spark", "clickhouse", "clickhousedb"):
    _QUOTES[_name] = _QUOTES["databricks"]
_NESTING = ("postgresql", "duckdb", "redshift", "cockroachdb", "mssql")  # their comments: /* one /* in */ another */
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def code_of(sql: str, backend: str) -> str:
    """The query in as many characters, with blanks for comments and " for whatever stands in quotes.

    `SELECT 'a;b' -- two` -> `SELECT \"\"\"\"\"       `
    """
    special = re.compile(_QUOTES.get(backend, _STANDARD), re.DOTALL)
    parts, end = [], 0
    while found := special.search(sql, end):
        start, stop = found.span()
        if sql.startswith("/*", start):
            stop = _end_of_comment(sql, start, nesting=backend in _NESTING)
        parts += [sql[end:start], (" " if found["comment"] else '"') * (stop - start)]
        end = stop
    return "".join([*parts, sql[end:]])


def _end_of_comment(sql: str, start: int, *, nesting: bool) -> int:
    """Where the comment ends that begins at `start`; one without an end goes on to the end of the text."""
    if not nesting:
        end = sql.find("*/", start + 2)
        return end + 2 if end >= 0 else len(sql)
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)
