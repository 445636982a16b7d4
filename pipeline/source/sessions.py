"""The databases beside SQLite, DuckDB, PostgreSQL and MySQL: what is said to each before the query, and to its driver.

A session of our own making: in UTC, which is what :since is in, and with the settings that change values, so that the
same rows give the same payloads and event ids whatever the account's or the server's defaults are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.source.errors import SourceError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# By the name of the dialect. Alternatives stand in a row: the first that the server takes is enough.
STATEMENTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "impala": (
        ("SET TIME ZONE 'UTC'", "SET TIMEZONE='UTC'"),  # of Spark and Hive; of Impala
    ),
    "hive": (("SET TIME ZONE 'UTC'",),),
    "databricks": (("SET TIME ZONE 'UTC'",),),
    "redshift": (
        ("SET TimeZone TO 'UTC'",),
        ("SET DateStyle TO 'ISO, MDY'",),
        ("SET extra_float_digits TO 2",),
    ),
    "snowflake": (
        (
            "ALTER SESSION SET TIMEZONE = 'UTC', TIMESTAMP_TYPE_MAPPING = 'TIMESTAMP_NTZ', WEEK_START = 0, "
            "WEEK_OF_YEAR_POLICY = 0, ROWS_PER_RESULTSET = 0, DATE_OUTPUT_FORMAT = 'YYYY-MM-DD', "
            "TIMESTAMP_OUTPUT_FORMAT = 'YYYY-MM-DD HH24:MI:SS.FF3 TZHTZM', TIMESTAMP_NTZ_OUTPUT_FORMAT = "
            "'YYYY-MM-DD HH24:MI:SS.FF3', BINARY_OUTPUT_FORMAT = 'HEX'",
        ),
    ),
    "oracle": (
        (
            "ALTER SESSION SET TIME_ZONE = 'UTC' NLS_TERRITORY = 'AMERICA' NLS_LANGUAGE = 'AMERICAN' "
            "NLS_DATE_FORMAT = 'YYYY-MM-DD HH24:MI:SS' NLS_TIMESTAMP_FORMAT = 'YYYY-MM-DD HH24:MI:SS.FF' "
            "NLS_TIMESTAMP_TZ_FORMAT = 'YYYY-MM-DD HH24:MI:SS.FF TZH:TZM' NLS_NUMERIC_CHARACTERS = '.,' "
            "NLS_SORT = 'BINARY' NLS_COMP = 'BINARY'",
        ),
        ("SET TRANSACTION READ ONLY",),
    ),
    "mssql": (
        (
            "SET LANGUAGE us_english; SET DATEFIRST 7; SET TEXTSIZE 2147483647; SET ROWCOUNT 0; SET ANSI_NULLS ON; "
            "SET QUOTED_IDENTIFIER ON; SET CONCAT_NULL_YIELDS_NULL ON; SET DEADLOCK_PRIORITY LOW",
        ),
    ),
}
# What SQLAlchemy hands to the driver, beside DATABASE_OPTIONS.
OPTIONS: Mapping[str, Mapping[str, Any]] = {"trino": {"timezone": "UTC"}}

# By what the driver loads: all rows, before it gives the first.
LOAD_EVERYTHING = {
    "mysqlconnector": "write mysql+pymysql:// in DATABASE_URL, and run: pip install pymysql",
    "clickhouse": "export the rows to Parquet files, and read these with DATABASE_URL=duckdb:///:memory:",
}


def refuse_what_loads_everything(engine: Engine) -> None:
    """Raises SourceError for drivers with which the memory of a run would grow with its rows."""
    for name in (engine.dialect.driver, "clickhouse" if engine.dialect.name.startswith("clickhouse") else ""):
        if name in LOAD_EVERYTHING:
            raise SourceError(
                f"The driver in DATABASE_URL ({name}) loads all rows into memory before it gives the first one; "
                f"{LOAD_EVERYTHING[name]}."
            )


def prepare_session(connection: Connection) -> None:
    """Raises what the server says where it takes none of the alternatives of a statement."""
    for alternatives in STATEMENTS.get(connection.dialect.name, ()):
        _first_that_works(connection, alternatives)


def _first_that_works(connection: Connection, alternatives: tuple[str, ...]) -> None:
    *others, last = alternatives
    for statement in others:
        with suppress(Exception):  # the next one is another server's word for it
            connection.exec_driver_sql(statement)
            return
    connection.exec_driver_sql(last)


def prepare_driver(engine: Engine) -> None:
    """What a driver is told as a whole."""
    if engine.dialect.driver == "oracledb":
        import_module("oracledb").defaults.fetch_lobs = False  # texts and bytes, not things to read them from
