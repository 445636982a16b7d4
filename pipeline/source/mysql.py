"""The session and the values of MySQL and MariaDB, and how a query there is ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.source.unreadable import unreadable_time

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# Whatever the server's defaults are, the same rows give the same values. The one mode of SQL that is kept decides
# whether a query is refused, and not what it finds.
SETTINGS = {
    "time_zone": "'+00:00'",
    "sql_mode": "IF(FIND_IN_SET('ONLY_FULL_GROUP_BY', @@SESSION.sql_mode), 'ONLY_FULL_GROUP_BY', '')",
    "group_concat_max_len": "1073741824",  # by itself, MySQL cuts a list after 1,024 bytes
    "lc_time_names": "'en_US'",
    "div_precision_increment": "4",
    "default_week_format": "0",
    "sql_select_limit": "18446744073709551615",
    "sql_auto_is_null": "0",
    "sql_big_selects": "1",
    "net_write_timeout": "600",  # for a run that is slow to take its rows
}
_BIT = 16  # the number of the type on the wire


def prepare_mysql(connection: Connection) -> None:
    """Read-only, in UTC, with our settings. REPEATABLE READ is InnoDB's own, and the one that makes no writer wait."""
    connection.exec_driver_sql("SET NAMES utf8mb4")
    connection.exec_driver_sql("SET " + ", ".join(f"SESSION {name} = {value}" for name, value in SETTINGS.items()))
    connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
    connection.rollback()


# Values ---------------------------------------------------------------------------------------------------------------


def keep_times_of_mysql(engine: Engine) -> None:
    """A TIMESTAMP is an instant, in UTC. Of a zero date (0000-00-00), PyMySQL makes text and mysqlclient None."""
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

    def instant(convert: Callable[[Any], Any], raw: Any) -> Any:
        value = lenient(convert, raw)
        return value.replace(tzinfo=timezone.utc) if isinstance(value, datetime) else value

    converters = {each: partial(lenient, usual[each]) for each in (types.DATE, types.DATETIME)}
    converters[types.TIMESTAMP] = partial(instant, usual[types.TIMESTAMP])
    options["conv"] = {**usual, **converters, **options.get("conv", {})}
    options.setdefault("charset", "utf8mb4")


def bit_converters(description: Sequence[Sequence[Any]]) -> dict[int, Callable[[Any], Any]]:
    """For each column of the type BIT what makes of its bytes a boolean, where it is one bit, or else a number."""
    return {
        index: _bit_value if column[3] == 1 else _bits_value
        for index, column in enumerate(description)
        if column[1] == _BIT
    }


def _bits_value(value: Any) -> Any:
    return int.from_bytes(value, "big") if isinstance(value, bytes) else value


def _bit_value(value: Any) -> Any:
    return None if value is None else bool(_bits_value(value))


# Ending a query -------------------------------------------------------------------------------------------------------


def identify(connection: Connection) -> tuple[str, int]:
    """The server and the number of this connection there, for `kill_query`."""
    server, number = connection.exec_driver_sql("SELECT CONCAT(@@hostname, ' ', @@port), CONNECTION_ID()").one()
    return str(server), int(number)


def kill_query(engine: Engine, server: str, number: int) -> None:
    """From a second connection, as closing the first one does not end what the server computes for it.

    Behind a balancer, it may reach another server, where the number is another connection's.
    """
    with closing(engine.connect()) as other:
        if identify(other)[0] == server:
            other.exec_driver_sql(f"KILL QUERY {number}")


def forget_rows(cursor: Any, connection: Any) -> None:
    """Closing a cursor of PyMySQL reads all rows that are left, and prints a traceback where it can't."""
    result = getattr(cursor, "_result", None)
    cursor.connection = None
    if result is not None:
        result.unbuffered_active, result.connection = False, None
    connection._force_close()
