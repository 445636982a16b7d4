"""Whether a query only reads: asked before the database is connected to, as few databases can be held to reading.

In: the SQL as it would be run. Out: nothing, or SourceError. SQLite and DuckDB are held to reading by their own
readers, which need no parser.
"""

from __future__ import annotations

import logging
import re

from pipeline.source.errors import SourceError
from pipeline.source.query import MYSQL, code_of

# sqlglot's name for the SQL of each backend, where it is not the backend's own.
DIALECTS = {
    "awsathena": "athena",
    "cockroachdb": "postgres",
    "hive": "spark",  # most of what listens there is Spark; its SQL is Hive's and more
    "impala": "spark",
    "mariadb": "mysql",
    "mssql": "tsql",
    "postgresql": "postgres",
}
# A session that is read-only refuses what the parser can't read and the check below can't judge.
READ_ONLY_SESSIONS = ("postgresql", *MYSQL)

_BEGINS_AS_QUERY = re.compile(r"[\s(]*(?:SELECT|WITH|VALUES|FROM|TABLE)\b", re.IGNORECASE)
_INTO = re.compile(r"\bINTO\b", re.IGNORECASE)
# SQL Server needs no ; between statements, and the parser takes the next one's first word for an alias. No name may be
# one of these there without quotes.
_BEGINS_IN_TSQL = re.compile(
    r"\b(?:ALTER|BACKUP|BULK|CHECKPOINT|COMMIT|CREATE|DBCC|DECLARE|DELETE|DENY|DROP|EXEC|EXECUTE|GRANT|IF|INSERT|KILL"
    r"|OPENDATASOURCE|OPENQUERY|OPENROWSET|PRINT|RAISERROR|RECONFIGURE|RESTORE|REVERT|REVOKE|ROLLBACK|SAVE|SET|SHUTDOWN"
    r"|TRUNCATE|UPDATE|USE|WAITFOR|WHILE)\b",
    re.IGNORECASE,
)
_CHANGES_IN_TSQL = re.compile(r"\b(?:UPDLOCK|XLOCK|TABLOCKX|TABLOCK|HOLDLOCK|NEXT\s+VALUE\s+FOR)\b", re.IGNORECASE)
_IN_BRACKETS = re.compile(r"\[[^\]]*\]")
_CHANGES_IN_COCKROACHDB = re.compile(r"\[\s*(?!SHOW\b)[A-Z]+\s", re.IGNORECASE)  # SELECT * FROM [DELETE FROM …]
_RUN_BY_MYSQL = re.compile(r"/\*M?!")


def refuse_all_but_select(sql: str, backend: str, query_name: str) -> None:
    """Raises SourceError unless the SQL is one SELECT, WITH … SELECT, VALUES or FROM that changes and locks nothing."""
    if backend in MYSQL and _RUN_BY_MYSQL.search(code_of(sql, backend)):
        raise SourceError(f"The query in {query_name} has a comment that MySQL executes, /*! … */; leave it out.")
    problem, is_readable = _parse(sql, backend)
    if is_readable:
        problem = problem or _beyond_the_parser(code_of(sql, backend), backend)
    if is_readable and problem:
        raise SourceError(f"The query in {query_name} {problem}; it must be one SELECT.")
    if is_readable:
        return
    code = code_of(sql, backend)
    if backend not in READ_ONLY_SESSIONS or not _BEGINS_AS_QUERY.match(code) or _INTO.search(code):
        raise SourceError(
            f"The query in {query_name} can't be read as the SQL of {backend} ({problem}), so nothing says that it "
            "changes no data; correct it, or put it into a view and select from that."
        )


def _beyond_the_parser(code: str, backend: str) -> str:
    """What it has that changes or locks something, and that the parser takes for something else; "": nothing."""
    if backend == "mssql":
        code = _IN_BRACKETS.sub(" ", code)
        found = _BEGINS_IN_TSQL.search(code) or _CHANGES_IN_TSQL.search(code)
    elif backend == "cockroachdb":
        found = _CHANGES_IN_COCKROACHDB.search(code)
    else:
        found = None
    return f"has {found[0].strip('[ ').upper()} in it" if found else ""


def _parse(sql: str, backend: str) -> tuple[str, bool]:
    """What is wrong with it ("": nothing), and whether the parser could read it."""
    import sqlglot  # a tenth of a second, which SQLite and DuckDB need not spend
    from sqlglot.errors import SqlglotError

    logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # it warns of what it does not know
    dialect = DIALECTS.get(backend, backend)
    if dialect not in sqlglot.Dialect.classes and sqlglot.Dialect.get(dialect) is None:
        dialect = ""
    try:
        statements = [each for each in sqlglot.parse(sql, dialect=dialect) if each is not None]
    except SqlglotError as error:
        return _place(error), False
    except RecursionError:
        return "it is nested too deep", False
    if len(statements) != 1:
        return "holds more than one statement", True
    return _what_it_changes(statements[0]), True


def _place(error: Exception) -> str:
    details = getattr(error, "errors", None) or [{}]
    line, column = details[0].get("line"), details[0].get("col")
    return f"line {line}, column {column}" if line else "it has an unclosed quote or bracket"


def _what_it_changes(statement: object) -> str:
    from sqlglot import exp

    changing = (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Alter, exp.TruncateTable)
    if isinstance(statement, changing):
        return f"is {_name(statement)}"
    if not isinstance(statement, (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)):
        return "is not a query"
    for node in statement.walk():
        if isinstance(node, (*changing, exp.Command)):
            return f"has {_name(node)} in it"
        if isinstance(node, exp.Into):
            return "has SELECT INTO, which writes"
        if isinstance(node, exp.Lock):
            return "locks the rows that it reads (FOR UPDATE or FOR SHARE)"
        if isinstance(node, exp.QueryTransform):
            return "runs a program (TRANSFORM)"
    return ""


def _name(node: object) -> str:
    """Insert -> INSERT, TruncateTable -> TRUNCATE TABLE"""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).upper()
