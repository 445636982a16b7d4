"""Times that Python has no value for: one of them must refuse its own record, and not keep all other rows back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.model.records import Unreadable

if TYPE_CHECKING:
    from psycopg.abc import Buffer, Loader
    from sqlalchemy import Connection, Engine


def unreadable_time(text: str) -> Unreadable:
    """text: a date, time or interval as the database writes it."""
    return Unreadable(text, _problem(text))


def _problem(text: str) -> str:
    if text.endswith("infinity"):
        return f"is {text}, which can't be sent as a date"
    if text.startswith("0000-") or "-00" in text[4:10]:
        return "is a zero date, which can't be sent"
    if "BC" in text:
        return "is before the year 1, which can't be sent as a date"
    if text.startswith("24:"):
        return "is 24:00:00, which can't be sent as a time"
    return "is out of range"


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def keep_times_of_postgresql(connection: Connection) -> None:
    keep = {"psycopg": _keep_times_of_psycopg, "psycopg2": _keep_times_of_psycopg2}.get(connection.dialect.driver)
    if keep is not None:
        keep(connection.connection.driver_connection)


def _keep_times_of_psycopg(connection: Any) -> None:
    """Its loaders raise for infinity and for years before 1 and after 9999."""
    from psycopg import DataError, adapt, pq

    def lenient(loader: type[Loader]) -> type[Loader]:
        class Lenient(adapt.Loader):
            def __init__(self, oid: int, context: Any = None) -> None:
                super().__init__(oid, context)
                self._load = loader(oid, context).load

            def load(self, data: Buffer) -> Any:
                try:
                    return self._load(data)
                except DataError:
                    return unreadable_time(bytes(data).decode())

        return Lenient

    for name in ("date", "timestamp", "timestamptz", "time", "timetz", "interval"):
        oid = connection.adapters.types[name].oid
        connection.adapters.register_loader(oid, lenient(connection.adapters.get_loader(oid, pq.Format.TEXT)))


def _keep_times_of_psycopg2(connection: Any) -> None:
    """It raises for years before 1 and after 9999, and takes infinity for the last day of the year 9999."""
    extensions = import_module("psycopg2.extensions")
    data_error = import_module("psycopg2").DataError

    def lenient(cast: Callable[[str | None, Any], Any], text: str | None, cursor: Any) -> Any:
        if text is not None and text.endswith("infinity"):
            return unreadable_time(text)
        try:
            return cast(text, cursor)
        except (ValueError, OverflowError, data_error):
            return unreadable_time(str(text))

    for name in ("DATE", "DATETIME", "DATETIMETZ", "TIME", "INTERVAL"):
        usual, array = getattr(extensions, f"PY{name}"), getattr(extensions, f"PY{name}ARRAY")
        one = extensions.new_type(usual.values, name, partial(lenient, usual))
        extensions.register_type(one, connection)
        extensions.register_type(extensions.new_array_type(array.values, f"{name}ARRAY", one), connection)


# MySQL ----------------------------------------------------------------------------------------------------------------


def keep_times_of_mysql(engine: Engine) -> None:
    """Of a zero date, such as 0000-00-00, PyMySQL makes text and mysqlclient None."""
    from sqlalchemy import event

    if engine.dialect.driver in ("pymysql", "mysqldb"):
        event.listen(engine, "do_connect", _convert_leniently)


def _convert_leniently(dialect: Any, _record: object, _arguments: object, options: dict[str, Any]) -> None:
    module = dialect.dbapi.__name__
    usual = import_module(f"{module}.converters").conversions
    types = import_module(f"{module}.constants.FIELD_TYPE")

    def lenient(convert: Callable[[Any], Any], raw: Any) -> Any:
        value = convert(raw)
        if value is None or isinstance(value, (str, bytes)):
            return unreadable_time(raw.decode() if isinstance(raw, bytes) else raw)
        return value

    dates = (types.DATE, types.DATETIME, types.TIMESTAMP)
    options["conv"] = {**usual, **{each: partial(lenient, usual[each]) for each in dates}}
