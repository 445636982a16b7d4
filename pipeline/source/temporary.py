"""Whether what a database or its driver raised passes with time: the one table for all of them.

Told by the servers' own numbers first, then by SQLSTATE, by the error's class, and last, as some drivers give nothing
else, by its words. What is not known here is permanent, so that somebody looks.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator

# SQLSTATE: 08 connection, 40 rolled back (deadlock, serialization), 53 resources, 57 operator intervention (shutdown,
# cancelled, starting up); time-outs of ODBC; a lock that was not available; a transaction that idled too long.
_CLASSES = ("08", "40", "53", "57")
_STATES = ("HYT00", "HYT01", "55P03", "25P03")
_NO_STATES = ("00000", "HY000")  # "no error" and "general error", which say nothing

# fmt: off
_MYSQL = frozenset({
    0, 2002, 2003, 2005, 2006, 2013, 2026, 2055,  # the client's: no connection, or lost; 0: PyMySQL's, closed
    1040, 1203, 1226,  # too many connections, or queries in an hour
    1053, 1077, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184,  # shutdown; network
    1205, 1213, 1614, 3572,  # lock wait, deadlock
    1317, 1927, 1969, 3024, 3168, 3169, 4031,  # killed, or out of time
    1047, 1290, 1836, 3032, 3100,  # a cluster's node that is not ready, or being switched over
})
_SQL_SERVER = frozenset({
    64, 121, 233, 10053, 10054, 10060, 10061, 11001, 20002, 20003, 20004, 20006, 20009, 20047,  # no connection
    701, 802, 8645, 8651, 10928, 10929,  # resources
    1204, 1205, 1222, 3960, 3961,  # locks, deadlock, snapshot conflict
    40143, 40197, 40501, 40540, 40613, 42108, 42109, 49918, 49919, 49920,  # Azure: failover, throttling, resuming
    596, 922, 976, 983, 6005, 17142,  # killed; recovering, failing over, shutting down
})
# fmt: on
# By the package of the error's class.
_NUMBERS = {
    "pymysql": _MYSQL,
    "MySQLdb": _MYSQL,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "pymssql": _SQL_SERVER,
    "snowflake": frozenset({250002, 250003, 250005, 250006, 290403, 290429, 290500, 290502, 290503, 290504}),
}
_NO_LOGIN = 250001  # Snowflake's, for an outage as for a wrong password: only its words tell
_ORACLE = re.compile(
    r"\b(?:ORA-(?:00018|00020|00028|00051|00054|00060|00257|01012|01033|01034|01089|01090|01092|01555|03113|03114|03135"
    r"|08177|12153|12170|12518|12519|12520|12516|12528|12537|12541|12543|12545|12547|12571|25408)"
    r"|DPY-(?:1001|4005|4011|4024|6005))\b"
)
_ORACLE_CODE = re.compile(r"\b(?:ORA|DPY)-\d{4,5}\b")

# What no waiting changes, though some drivers give it a code of a lost connection.
_PERMANENT = re.compile(
    r"certificate|password authentication failed|no password supplied|access denied|login failed|logon denied"
    r"|incorrect username or password|authentication failed|authenticat\w+ (?:fail|error)|unauthorized|not authorized"
    r"|invalid (?:jwt|credential|username|password|access token)|does not support SSL|invalid port|unknown database",
    re.IGNORECASE,
)
_TEMPORARY = re.compile(
    r"connection refused|is the server running|can't connect|unable to connect|could not connect|connection failed"
    r"|timed? ?out\b|timeout expired|no answer within|translate host name|name or service not known"
    r"|name resolution|nodename nor servname|resolve (?:host|address)|getaddrinfo|no route to host"
    r"|network is (?:down|unreachable)|host is down"
    r"|connection (?:\w+ ){0,2}(?:reset|lost|closed|killed|aborted|terminated)"
    r"|failed after retries|closed the connection|closed unexpectedly|broken pipe|lost connection|gone away"
    r"|unexpected eof|bytes read"
    r"|too many (?:clients|connections|requests)|connection slots|(?:starting|shutting) (?:up|down)|recovery mode"
    r"|not (?:yet )?accepting|terminating connection|deadlock|could not serialize|conflict with recovery"
    r"|(?:temporarily|currently|service) unavailable|try again|throttl|rate limit|queue is full"
    r"|job aborted due to stage",
    re.IGNORECASE,
)
_ANSWERED = re.compile(r"\bFATAL\b")  # by PostgreSQL, when it refuses a connection

_PERMANENT_CLASSES = frozenset({"ProgrammingError", "DataError", "IntegrityError", "NotSupportedError"})
_TEMPORARY_CLASSES = frozenset(
    {
        *("ConnectTimeout", "ReadTimeout", "ConnectTimeoutError", "ReadTimeoutError", "MaxRetryError"),
        *("NewConnectionError", "ProtocolError", "EndpointConnectionError", "ConnectionClosedError"),
        *("ServiceUnavailable", "TooManyRequests", "GatewayTimeout", "BadGateway", "InternalServerError"),
        *("Http502Error", "Http503Error", "Http504Error", "TrinoConnectionError", "TTransportException"),
        *("MaxRetryDurationError", "NoAnswer"),
    }
)


def is_temporary(error: BaseException) -> bool:
    """Whether a later run may not meet this error."""
    causes = list(_causes(error))
    if any(_PERMANENT.search(str(each)) for each in causes):
        return False
    return any(_judge(each) for each in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what it was raised from; SQLAlchemy's errors have the driver's own as `orig`."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return iter(seen)


def _judge(error: BaseException) -> bool:
    text, kind = str(error), type(error)
    package = kind.__module__.partition(".")[0]
    if package == "sqlalchemy":  # its text has the driver's in it, and the whole query
        return False
    if package == "sqlite3" or isinstance(error, sqlite3.Error):
        return text.endswith("is locked")
    if package in ("duckdb", "_duckdb"):
        return "Conflicting lock" in text
    if package in _NUMBERS and (number := _number(error)) is not None:
        if number == _NO_LOGIN:
            return _TEMPORARY.search(text) is not None
        return number in _NUMBERS[package]
    if _ORACLE_CODE.search(text):
        return _ORACLE.search(text) is not None
    state = _state(error)
    if state not in _NO_STATES:
        return state.startswith(_CLASSES) or state in _STATES
    names = {each.__name__ for each in kind.__mro__}
    if names & _PERMANENT_CLASSES:
        return False
    if isinstance(error, (ConnectionError, TimeoutError, EOFError)) or names & (_TEMPORARY_CLASSES | {"gaierror"}):
        return True
    words = _TEMPORARY.search(text)
    if _ANSWERED.search(text):  # "connection failed: FATAL: …", where the first words say nothing
        words = _TEMPORARY.search(text.partition("FATAL")[2])
    return words is not None


def _number(error: BaseException) -> int | None:
    numbers = [getattr(error, "errno", None), *error.args[:1]]
    return next((each for each in numbers if isinstance(each, int)), None)


def _state(error: BaseException) -> str:
    """The SQLSTATE; 00000 for none."""
    given = (getattr(error, name, None) for name in ("sqlstate", "pgcode"))
    text = str(error)
    found = next((each for each in given if isinstance(each, str) and len(each) == 5), None)
    if found is None and type(error).__module__.startswith(("pyodbc", "mssql_python", "ibm_db")) and error.args:
        found = str(error.args[0]) if len(str(error.args[0])) == 5 else None
    if found is None and (written := re.search(r"SQLSTATE[:=]? ?\[?([0-9A-Z]{5})\b", text)):  # Spark's
        found = written[1]
    return found or "00000"
