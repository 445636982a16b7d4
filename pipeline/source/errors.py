"""What can go wrong between a database URL and its rows, each in one sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.ending import ExitCode, RunError

MAX_QUOTED_CHARS = 500
PACKAGES = {"MySQLdb": "mysqlclient", "psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}  # by module
DIALECTS = {"snowflake": "snowflake-sqlalchemy", "bigquery": "sqlalchemy-bigquery"}  # by the URL's beginning


class SourceError(RunError):
    """The database or the query can't be read; the text says which and why."""

    code = ExitCode.NO_INPUT


class SourceBusyError(SourceError):
    """The database can't be read now, but later: another process holds it."""

    code = ExitCode.TEMPORARY


class UndecodableText(SourceError):
    """A text in SQLite is not valid UTF-8. The query can be run again with `any_bytes`."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever a driver or SQLAlchemy raises into a SourceError of one line, without a copy of the whole query."""
    try:
        yield
    except SourceError:
        raise
    except sqlite3.Error as error:
        raise _sqlite_error(what, error) from error
    except ModuleNotFoundError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise SourceError(f"{what}: its driver is not installed; run: pip install {package}") from error
    except Exception as error:  # drivers raise TypeError for options they don't know, ValueError for odd dates
        raise SourceError(f"{what}: {_reason(error)}") from error


def _sqlite_error(what: str, error: sqlite3.Error) -> SourceError:
    if "Could not decode to UTF-8" in str(error):  # and the text itself, which has no place in a log
        return UndecodableText(f"{what}: a text is not valid UTF-8.")
    kind = SourceBusyError if str(error).endswith("is locked") else SourceError
    return kind(f"{what}: {_one_line(error)}.")


def _reason(error: Exception) -> str:
    from sqlalchemy.exc import DBAPIError, NoSuchModuleError

    if isinstance(error, DBAPIError):
        return f"{_one_line(error.orig)}."
    if not isinstance(error, NoSuchModuleError):
        return f"{type(error).__name__}: {_one_line(error)}."
    package = DIALECTS.get(str(error).rpartition(":")[2].partition(".")[0])
    if package is not None:
        return f"its driver is not installed; run: pip install {package}"
    return (
        "DATABASE_URL names an unknown kind of database; it begins, for example, with sqlite:///, "
        "postgresql+psycopg:// or mysql+pymysql://."
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:MAX_QUOTED_CHARS].rstrip(".")
