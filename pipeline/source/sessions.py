"""The databases beside SQLite, DuckDB, PostgreSQL and MySQL: what is said to each before the query, and to its driver.

A session of our own making: in UTC, which is what :since is in, and with the settings that change values, so that the
same rows give the same payloads and event ids whatever the account's or the server's defaults are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.model.text import PIP_INSTALL
from pipeline.source.errors import BETTER_URLS, SourceError
from pipeline.source.unreadable import keep_odd_values

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect, Engine
    from sqlalchemy.engine import URL

# By the name of the dialect. Alternatives stand in a row: the first that the server takes is enough.
STATEMENTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "impala": (
        ("SET TIME ZONE 'UTC'", "SET TIMEZONE='UTC'"),  # of Spark and Hive; of Impala
    ),
    "databricks": (("SET TIME ZONE 'UTC'",),),
    "cockroachdb": (("SET TIME ZONE 'UTC'",), ("SET DateStyle TO 'ISO, MDY'",), ("SET IntervalStyle TO 'postgres'",)),
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
    # These connect with the first statement only, so that a server that never answers would hold the query.
    "trino": (("SELECT 1",),),
    "awsathena": (("SELECT 1",),),
    "bigquery": (("SELECT 1",),),
    "mssql": (
        (
            "SET LANGUAGE us_english; SET DATEFIRST 7; SET TEXTSIZE 2147483647; SET ROWCOUNT 0; SET ANSI_NULLS ON; "
            "SET QUOTED_IDENTIFIER ON; SET CONCAT_NULL_YIELDS_NULL ON; SET DEADLOCK_PRIORITY LOW",
        ),
    ),
}
CURSORS_WITH_SESSIONS = ("impala",)
ROWS_PER_FETCH = 1000  # at most; each fetch is a round trip to the server
# What SQLAlchemy hands to the driver, beside DATABASE_OPTIONS.
OPTIONS: Mapping[str, Mapping[str, Any]] = {"trino": {"timezone": "UTC"}}

# Drivers that can't do this job, by the name in the URL, and the beginning of a URL that can.
LOADS_ALL = "loads all rows into memory before it gives the first one; write {0} instead, and run: {1}"
NOT_OURS = "may end the query for one odd value; write {0} instead, and run: {1}"
BAD_DRIVERS = {
    "mariadbconnector": NOT_OURS.format("mysql+pymysql://", f"{PIP_INSTALL} pymysql"),
    "mysqlconnector": LOADS_ALL.format("mysql+pymysql://", f"{PIP_INSTALL} pymysql"),
    "pg8000": NOT_OURS.format("postgresql+psycopg://", f"{PIP_INSTALL} 'psycopg[binary]'"),
    "redshift_connector": LOADS_ALL.format(
        "redshift+psycopg2://", f"{PIP_INSTALL} sqlalchemy-redshift psycopg2-binary"
    ),
}


def refuse_bad_drivers(url: URL) -> None:
    """Raises SourceError for a driver that can't do this job, before anybody is told to install it."""
    backend, _, driver = url.drivername.partition("+")
    name = "clickhouse" if backend.startswith("clickhouse") else backend
    if name in BETTER_URLS:
        raise SourceError(f"{name}:// in DATABASE_URL {BETTER_URLS[name]}.")
    if driver in BAD_DRIVERS:
        raise SourceError(f"The driver {driver} in DATABASE_URL {BAD_DRIVERS[driver]}")
    if url.get_dialect().is_async:
        raise SourceError(
            f"The driver {driver} in DATABASE_URL is for asynchronous programs; write the URL of another driver, such "
            "as postgresql+psycopg:// or mysql+pymysql://."
        )


def prepare_session(connection: Connection) -> None:
    """Raises what the server says where it takes none of the alternatives of a statement."""
    if connection.dialect.driver in CURSORS_WITH_SESSIONS:
        return
    for alternatives in STATEMENTS.get(connection.dialect.name, ()):
        _first_that_works(lambda statement: connection.exec_driver_sql(statement).close(), alternatives)


def prepare_cursor(dialect: Dialect, cursor: Any) -> None:
    """The same for a driver each of whose cursors has a session of its own."""
    if dialect.driver in CURSORS_WITH_SESSIONS:
        cursor.set_arraysize(ROWS_PER_FETCH)  # by itself, it takes 10,240 rows at a time, however large
        for alternatives in STATEMENTS.get(dialect.name, ()):
            _first_that_works(cursor.execute, alternatives)


def _first_that_works(execute: Callable[[str], object], alternatives: tuple[str, ...]) -> None:
    *others, last = alternatives
    for statement in others:
        with suppress(Exception):  # the next one is another server's word for it
            execute(statement)
            return
    execute(last)


# Where drivers make values of what the server sends, and would end the query for one of the year 12026: the module, the
# function in it, and the place of the server's text among what the function is given.
VALUES = {
    "impala": (("impala.hiveserver2", "_parse_timestamp", 0), ("impala.hiveserver2", "_parse_date", 0)),
    "trino": (("trino.mapper", "RowMapper._map_value", 1),),
    "awsathena": (("pyathena.converter", "DefaultTypeConverter.convert", 2),),
}


def prepare_driver(engine: Engine) -> None:
    """Settings of a driver that hold for all its connections."""
    if engine.dialect.driver == "oracledb":
        import_module("oracledb").defaults.fetch_lobs = False  # texts and bytes, not things to read them from
    for module, function, place in VALUES.get(engine.dialect.name, ()):
        if module in sys.modules:
            keep_odd_values(sys.modules[module], function, place)
