"""What drivers raise that no server of the tests can be made to raise: as their real packages did, or document it."""

from __future__ import annotations

import pytest

from pipeline.source.temporary import is_temporary


def raised(module: str, *arguments: object) -> Exception:
    """An error of a driver's package."""
    bases = (type("Error", (Exception,), {"__module__": module}),)
    return type("OperationalError", bases, {"__module__": module})(*arguments)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("pyodbc", ("08S01", "[08S01] [FreeTDS][SQL Server]Unable to connect: Adaptive Server is unavailable"), True),
        ("pyodbc", ("HYT00", "[HYT00] Login timeout expired (0) (SQLDriverConnect)"), True),
        ("pyodbc", ("40001", "[40001] Transaction was deadlocked (1205) (SQLExecDirectW)"), True),
        ("pyodbc", ("28000", "[28000] Login failed for user 'me'. (18456) (SQLDriverConnect)"), False),
        ("pyodbc", ("01000", "[01000] [unixODBC][Driver Manager]Can't open lib 'x' : file not found (0)"), False),
        ("pyodbc", ("42S02", "[42S02] Invalid object name 'users'. (208) (SQLExecDirectW)"), False),
        ("pymssql.exceptions", (20009, b"DB-Lib error message 20009, severity 9:\nUnable to connect"), True),
        ("pymssql.exceptions", (1205, b"Transaction was deadlocked"), True),
        ("pymssql.exceptions", (18456, b"Login failed for user 'me'"), False),
        ("pymssql.exceptions", (208, b"Invalid object name 'users'."), False),
        (
            "mssql_python.exceptions",
            ("Unable to connect; TCP Provider: Timeout error [258].",),
            True,
        ),
        ("oracledb.exceptions", ("DPY-6005: cannot connect to database. [Errno 111] Connection refused",), True),
        ("oracledb.exceptions", ("ORA-01555: snapshot too old: rollback segment number 9",), True),
        ("oracledb.exceptions", ("ORA-12514: Service name is not registered with the listener",), False),
        ("oracledb.exceptions", ("ORA-01017: invalid username/password; logon denied",), False),
        ("oracledb.exceptions", ("ORA-00942: table or view does not exist",), False),
        (
            "snowflake.connector.errors",
            ("250001 (08001): Failed to login: HTTP request failed after retries: Connection refused",),
            True,
        ),
        ("snowflake.connector.errors", ("250001 (08001): Incorrect username or password was specified.",), False),
        ("snowflake.connector.errors", ("250001 (08001): JWT token is invalid.",), False),
        ("mysql.connector.errors", (1040, "Too many connections"), True),
        ("MySQLdb", (2002, "Can't connect to server on '127.0.0.1' (115)"), True),
        ("MySQLdb", (1049, "Unknown database 'x'"), False),
    ],
)
def test_what_passes_is_known_by_the_driver_s_own_words(
    module: str, arguments: tuple[object, ...], expected: bool
) -> None:
    error = raised(module, *arguments)
    if module.startswith("snowflake"):
        error.errno = 250001  # type: ignore[attr-defined]
    assert is_temporary(error) is expected
