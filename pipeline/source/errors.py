"""What can go wrong between a database URL and its rows, each in one sentence."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.model.exits import ExitCode, RunError
from pipeline.model.text import PIP_INSTALL
from pipeline.source.temporary import is_temporary
from pipeline.source.worker import NoAnswer, QueryStopped

MAX_QUOTED_CHARS = 500
# What to install, by the module that a driver is, and by the beginning of a URL that SQLAlchemy alone does not know.
PACKAGES = {
    "MySQLdb": "mysqlclient",
    "mssql_python": "mssql-python",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
}
DIALECTS = {
    "awsathena": "'PyAthena[SQLAlchemy]'",
    "bigquery": "sqlalchemy-bigquery",
    "cockroachdb": "sqlalchemy-cockroachdb 'psycopg[binary]'",
    "databricks": "databricks-sqlalchemy",
    "impala": "impyla",
    "redshift": "sqlalchemy-redshift psycopg2-binary",
    "snowflake": "snowflake-sqlalchemy",
    "trino": "'trino[sqlalchemy]'",
}
# How the beginning of a URL is better written.
BETTER_URLS = {
    "clickhouse": "is not supported, as its drivers load all rows into memory; export the rows to Parquet files, and "
    "read these with DATABASE_URL=duckdb:///:memory:",
    "hive": f"is PyHive's, which can't be stopped; write impala:// instead, and run: {PIP_INSTALL} impyla",
    "postgres": "is not known to SQLAlchemy; write postgresql+psycopg:// instead",
    "spark": f"is not known to SQLAlchemy; write impala:// instead, and run: {PIP_INSTALL} impyla",
}
SYSTEM_PACKAGES = {"libodbc.so.2": "unixodbc", "libmariadb.so.3": "libmariadb3", "libpq.so.5": "libpq5"}
_SYSTEM_LIBRARY = re.compile(r"^(\S+\.so[.\d]*): cannot open shared object file")
_DUCKDB_EXTENSION = re.compile(r'Install it first using "INSTALL (\w+)"')
_QUERY_QUOTED = re.compile(r"\n\n|\nLINE \d+: ")  # by PostgreSQL and DuckDB, with a line that points at the place
_GUESS_OF_LIBPQ = re.compile(r"\n\t.*")  # Is the server running on that host and accepting TCP/IP connections?


class SourceError(RunError):
    """The database or the query can't be read; the text says which and why."""

    code = ExitCode.NO_INPUT
    remedy = "fix DATABASE_URL or the query"  # for --check, where the text does not say it


class SourceBusyError(SourceError):
    """The database can't be read now, but perhaps later: it can't be reached, is busy, or cut the connection."""

    code = ExitCode.TEMPORARY
    remedy = "try again later"


class DriverMissingError(SourceError):
    """The text says what to install."""

    remedy = ""


class UndecodableText(SourceError):
    """A text in SQLite is not valid UTF-8. The query can be run again with `any_bytes`."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a driver or SQLAlchemy raises into a SourceError of one line, without a copy of the whole query."""
    try:
        yield
    except SourceError:
        raise
    except ModuleNotFoundError as error:
        raise DriverMissingError(f"{what}: {_to_install(PACKAGES.get(str(error.name), str(error.name)))}") from error
    except ImportError as error:
        raise DriverMissingError(f"{what}: {_to_load(error)}") from error
    except Exception as error:  # drivers raise TypeError for options they don't know, ValueError for odd dates
        raise _kind(error)(f"{what}: {_reason(error)}") from error


def _kind(error: Exception) -> type[SourceError]:
    text = str(error)
    if isinstance(error, sqlite3.Error) and "Could not decode to UTF-8" in text:
        return UndecodableText
    if _is_of_duckdb(error) and _DUCKDB_EXTENSION.search(text):
        return DriverMissingError
    return SourceBusyError if is_temporary(error) else SourceError


def _reason(error: Exception) -> str:
    if type(error).__name__ == "NoSuchModuleError":  # SQLAlchemy's; imported here, it would slow down those without it
        return _unknown_url(str(error).rpartition(":")[2].partition(".")[0])
    cause = getattr(error, "orig", None) or error  # the driver's own, in SQLAlchemy's
    text = str(cause)
    if isinstance(cause, sqlite3.Error) and "Could not decode to UTF-8" in text:
        return "a text is not valid UTF-8."  # without the text itself, which has no place in a log
    if isinstance(cause, sqlite3.Error) and text == "not authorized":
        return "it must be one SELECT."
    if isinstance(cause, (QueryStopped, NoAnswer)):
        return f"{text}."
    if _is_of_duckdb(cause):
        return _duckdb_reason(text)
    name = "" if _is_a_driver_s(cause) else f"{type(cause).__name__}: "
    return name + _sentence(_GUESS_OF_LIBPQ.sub("", _text_of(cause)))


def _text_of(error: Exception) -> str:
    """Some drivers give a number or a state, and a text, perhaps as bytes: (2003, "It's off") -> It's off (2003)"""
    if len(error.args) != 2 or str(error) != str(error.args):
        return str(error)
    code, text = error.args
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    lines = list(dict.fromkeys(text.splitlines()))  # DB-Lib says each twice
    return "\n".join(lines) if str(code) in text else f"{' '.join(lines).rstrip('.')} ({code})"


def _unknown_url(beginning: str) -> str:
    if beginning in DIALECTS:
        return _to_install(DIALECTS[beginning])
    return (
        "DATABASE_URL starts with an unknown kind of database; expected, for example, sqlite:///, duckdb:///, "
        "postgresql+psycopg:// or mysql+pymysql://."
    )


def _duckdb_reason(text: str) -> str:
    """DuckDB's extensions would be downloaded by themselves; here that is left to the user."""
    missing = _DUCKDB_EXTENSION.search(text)
    if missing:
        name = "motherduck" if missing[1] == "md" else missing[1]
        command = f"python -c \"import duckdb; duckdb.install_extension('{name}')\""
        return f"DuckDB's extension {name} is not installed; run: {command}"
    if "INTERRUPT Error" in text:
        return "interrupted."
    return _sentence(text.partition(" See also https://")[0])


def _is_of_duckdb(error: Exception) -> bool:
    return type(error).__module__ in ("duckdb", "_duckdb", "duckdb.duckdb")


def _is_a_driver_s(error: Exception) -> bool:
    """Whether a driver raised it on purpose: the errors of each have one named Error as their base (PEP 249)."""
    return any(each.__name__ == "Error" for each in type(error).__mro__)


def _to_install(packages: str) -> str:
    return f"its driver is not installed; run: {PIP_INSTALL} {packages}"


def _to_load(error: ImportError) -> str:
    missing = _SYSTEM_LIBRARY.search(str(error))
    if missing is None:
        return f"its driver can't be loaded: {_sentence(str(error))}"
    package = SYSTEM_PACKAGES.get(missing[1], "that has it")
    return f"its driver needs {missing[1]}, a library of the system; install the package {package}."


def _sentence(text: str) -> str:
    words = " ".join(_QUERY_QUOTED.split(text, maxsplit=1)[0].split())[:MAX_QUOTED_CHARS].rstrip(".")
    return words if words.endswith(("?", "!")) else f"{words}."
