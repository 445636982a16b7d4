"""PostgreSQL's session, and the values of its two drivers, psycopg and psycopg2.

Neither driver may end the query for one value, and neither may make up one: what Python lacks is `Unreadable`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.source.unreadable import parse_json, unreadable_time

if TYPE_CHECKING:
    from psycopg.abc import Buffer, Loader
    from sqlalchemy import Connection

DRIVERS = ("psycopg", "psycopg2")
OPTIONS = {"client_encoding": "utf8"}
# Whatever the server, the database or the role have as their defaults, the same rows give the same values.
SETTINGS = {
    "TimeZone": "UTC",  # which is what :since is in
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "lc_time": "C",
    "lc_numeric": "C",
    "lc_monetary": "C",
    "xmlbinary": "base64",
}
_SET = """
    SELECT set_config(s.name, wanted.value, true) FROM (VALUES {}) AS wanted (name, value)
    JOIN pg_catalog.pg_settings AS s ON s.name = wanted.name
"""  # those that this server has
# Types that the drivers don't know, and so give as text: {a,b} for an array of them.
_OWN_TYPES = """
    SELECT oid::int8, typarray::int8, typname::text, typbasetype::int8 FROM pg_catalog.pg_type
    WHERE typtype IN ('b', 'd', 'e') AND typarray <> 0 AND typdelim = ','
    AND typnamespace <> 'pg_catalog'::regnamespace
"""


def prepare_postgresql(connection: Connection) -> Callable[[str], str]:
    """Read-only, in UTC, with our settings. Local to the transaction, so that a pool's next session has its own.

    Returns what makes of the query's text the one to send.
    """
    driver: str = connection.dialect.driver
    raw: Any = connection.connection.driver_connection
    keeps_any_bytes = driver in DRIVERS and raw.info.parameter_status("server_encoding") == "SQL_ASCII"
    if keeps_any_bytes:  # such a server converts nothing, but checks what is not to come as it is
        _take_letters_for_bytes(raw)
    connection.execution_options(postgresql_readonly=True)
    values = ", ".join(f"('{name}', '{value}')" for name, value in SETTINGS.items())
    connection.exec_driver_sql(_SET.format(values))
    own_types = [tuple(row) for row in connection.exec_driver_sql(_OWN_TYPES)]
    if driver in DRIVERS:
        _PREPARE[driver](raw, own_types, keeps_any_bytes)
    if keeps_any_bytes:
        return lambda sql: sql.encode().decode("latin-1")
    return lambda sql: sql


def prepare_relative(connection: Connection) -> None:
    """Redshift and CockroachDB, which have its drivers and few of its catalogs and settings."""
    if connection.dialect.name == "cockroachdb":
        connection.execution_options(postgresql_readonly=True)
    _PREPARE[connection.dialect.driver](connection.connection.driver_connection, [], False)


def _take_letters_for_bytes(connection: Any) -> None:
    if hasattr(connection, "set_client_encoding"):  # psycopg2 notes it only when asked so
        connection.set_client_encoding("LATIN1")
        return
    connection.execute("SET client_encoding TO 'LATIN1'")
    connection.commit()


# Of the one, psycopg's C code makes another number of days, of the other, psycopg2 makes midnight.
_MADE_UP = re.compile(rb"\d{7} years?|^24:")


# psycopg --------------------------------------------------------------------------------------------------------------


def _prepare_psycopg(connection: Any, own_types: list[tuple[Any, ...]], keeps_any_bytes: bool) -> None:
    from psycopg import pq
    from psycopg.types import TypeInfo
    from psycopg.types.json import set_json_loads

    set_json_loads(parse_json, connection)
    adapters = connection.adapters
    for name in ("date", "timestamp", "timestamptz", "time", "timetz", "interval"):
        oid = adapters.types[name].oid
        adapters.register_loader(oid, _lenient(adapters.get_loader(oid, pq.Format.TEXT)))
    if keeps_any_bytes:  # there, a text is whatever bytes somebody stored
        for oid in (0, *(adapters.types[name].oid for name in ("text", "varchar", "bpchar", "name"))):
            adapters.register_loader(oid, _any_text())
    for oid, array_oid, name, base_oid in own_types:
        TypeInfo(name, oid, array_oid).register(connection)
        base = adapters.get_loader(base_oid, pq.Format.TEXT) if base_oid else None
        if base is not None:
            adapters.register_loader(oid, base)


def _lenient(loader: type[Loader]) -> type[Loader]:
    """The usual loader raises for infinity and for years before 1 and after 9999."""
    from psycopg import DataError, adapt

    class Lenient(adapt.Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = loader(oid, context).load

        def load(self, data: Buffer) -> Any:
            with suppress(DataError, ValueError, OverflowError):
                if not _MADE_UP.search(bytes(data)):
                    return self._load(data)
            return unreadable_time(bytes(data).decode(errors="backslashreplace"))

    return Lenient


def _any_text() -> type[Loader]:
    from psycopg import adapt

    class AnyText(adapt.Loader):
        def load(self, data: Buffer) -> str:
            return bytes(data).decode(errors="surrogateescape")  # which refuses its row alone

    return AnyText


# psycopg2 -------------------------------------------------------------------------------------------------------------


def _prepare_psycopg2(connection: Any, own_types: list[tuple[Any, ...]], keeps_any_bytes: bool) -> None:
    """It raises for years before 1 and after 9999, and takes infinity for the last day of the year 9999."""
    extensions, extras = import_module("psycopg2.extensions"), import_module("psycopg2.extras")
    extras.register_default_json(connection, loads=parse_json)
    extras.register_default_jsonb(connection, loads=parse_json)
    for name in ("DATE", "DATETIME", "DATETIMETZ", "TIME", "INTERVAL"):
        usual, array = getattr(extensions, f"PY{name}"), getattr(extensions, f"PY{name}ARRAY")
        one = extensions.new_type(usual.values, name, partial(_lenient_cast, usual))
        extensions.register_type(one, connection)
        extensions.register_type(extensions.new_array_type(array.values, f"{name}ARRAY", one), connection)
    for oid, array_oid, name, base_oid in own_types:
        one = extensions.string_types.get(base_oid, extensions.UNICODE)
        one = extensions.new_type((oid,), name, partial(_cast_as, one))
        extensions.register_type(one, connection)
        extensions.register_type(extensions.new_array_type((array_oid,), f"{name}[]", one), connection)
    if keeps_any_bytes:
        texts = extensions.new_type(extensions.UNICODE.values, "TEXT", _any_text_cast)
        extensions.register_type(texts, connection)


def _lenient_cast(cast: Callable[[str | None, Any], Any], text: str | None, cursor: Any) -> Any:
    if text is not None and (text.endswith("infinity") or _MADE_UP.search(text.encode())):
        return unreadable_time(text)
    try:
        return cast(text, cursor)
    except (ValueError, OverflowError, import_module("psycopg2").DataError):
        return unreadable_time(str(text))


def _cast_as(cast: Callable[[str | None, Any], Any], text: str | None, cursor: Any) -> Any:
    return cast(text, cursor)


def _any_text_cast(text: str | None, _cursor: Any) -> str | None:
    return None if text is None else text.encode("latin-1").decode(errors="surrogateescape")


_PREPARE = {"psycopg": _prepare_psycopg, "psycopg2": _prepare_psycopg2}
