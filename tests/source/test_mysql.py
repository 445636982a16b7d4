"""The job on a real MySQL or MariaDB: the distribution's MariaDB where it is installed, or one of yours.

TEST_DATABASE_URL='mysql+pymysql://user:password@127.0.0.1/test' python -m pytest tests/source/test_mysql.py
"""

from __future__ import annotations

import csv
import tracemalloc
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine

from pipeline.model.records import Unreadable
from pipeline.sandbox import StandIn
from pipeline.source import open_query, read_query
from tests.program import ROOT, Program, use_query
from tests.reading import problem, read, rows

TABLE = """
    CREATE TABLE job_rows (
        id BIGINT UNSIGNED PRIMARY KEY, email VARCHAR(200), first_name VARCHAR(200), price DECIMAL(10, 2),
        flag TINYINT(1), bits BIT(1), tags JSON, born DATE, clock TIME, page VARCHAR(100), event_time DATETIME(3)
    ) CHARACTER SET utf8mb4
"""
QUERY = "SELECT id, email, first_name, price, flag, tags, born, page, event_time FROM job_rows ORDER BY id"


@pytest.fixture
def server(mysql_url: str) -> Iterator[Engine]:
    engine = create_engine(mysql_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS job_rows")
        connection.exec_driver_sql(TABLE)
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE job_rows")
    engine.dispose()


@pytest.fixture
def filled(server: Engine) -> Engine:
    values = """
        (1, 'ada@example.com', 'Ada 🦊 Žižek', 19.90, 1, b'1', '{"a": [1, 2]}', '1815-12-10', '08:45:12', 'home',
         '2026-01-13 08:45:12.500'),
        (2, 'grace@example.com', NULL, NULL, 0, b'0', NULL, NULL, NULL, NULL, NULL)
    """
    with server.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO job_rows VALUES {values}")
    return server


def test_the_types_of_mysql_arrive_as_json_and_in_the_csv(
    program: Program, iterable: StandIn, filled: Engine, mysql_url: str
) -> None:
    use_query(program, QUERY)
    run = program.run(DATABASE_URL=mysql_url, USER_FIELDS="first_name,price,flag,tags,born", EVENT_FIELDS="page")
    assert (run.code, run.err) == (0, "")
    assert {email: user["dataFields"] for email, user in iterable.project.users.items()} == {
        "ada@example.com": {
            "first_name": "Ada 🦊 Žižek", "price": 19.9, "flag": 1, "tags": '{"a": [1, 2]}',
            "born": "1815-12-10 00:00:00 +00:00",
        },
        "grace@example.com": {"flag": 0},
    }  # fmt: skip
    (event,) = iterable.project.events.values()
    assert (event["createdAt"], event["dataFields"]) == (1768293912, {"page": "home"})
    (path,) = run.files("query_results_*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        _, ada, grace = csv.reader(file)
    assert ada[:5] == ["1", "ada@example.com", "Ada 🦊 Žižek", "19.90", "1"]
    assert grace == ["2", "grace@example.com", "", "", "0", "", "", "", ""]


def test_a_bit_is_a_boolean_and_bits_are_a_number(server: Engine, tmp_path: Path, mysql_url: str) -> None:
    sql = "SELECT b'1' AS a, bits, flags FROM job_rows JOIN job_flags ORDER BY id"
    with server.begin() as connection:
        connection.exec_driver_sql("CREATE OR REPLACE TABLE job_flags (flags BIT(12))")
        connection.exec_driver_sql("INSERT INTO job_flags VALUES (b'100000000001')")
        connection.exec_driver_sql("INSERT INTO job_rows (id, bits) VALUES (1, b'1'), (2, b'0'), (3, NULL)")
    try:
        found = [(row["bits"], row["flags"]) for row in read(mysql_url, sql, tmp_path)]
    finally:
        with server.begin() as connection:
            connection.exec_driver_sql("DROP TABLE job_flags")
    assert found == [(True, 2049), (False, 2049), (None, 2049)]
    assert [type(bit) for bit, _ in found] == [bool, bool, type(None)]


def test_a_bit_plus_0_arrives_as_a_number_and_a_time_as_seconds(
    program: Program, iterable: StandIn, filled: Engine, mysql_url: str
) -> None:
    use_query(program, "SELECT email, bits + 0 AS bits, clock FROM job_rows ORDER BY id")
    run = program.run(DATABASE_URL=mysql_url, USER_FIELDS="bits,clock", EVENT_FIELDS="-")
    assert (run.code, run.err) == (0, "")
    assert {email: user["dataFields"] for email, user in iterable.project.users.items()} == {
        "ada@example.com": {"bits": 1, "clock": 31512.0},
        "grace@example.com": {"bits": 0},
    }


def test_the_session_can_write_nothing(filled: Engine, tmp_path: Path, mysql_url: str) -> None:
    """A SELECT that writes: the text can't tell, the session can."""
    with filled.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS forget")
        connection.exec_driver_sql("CREATE FUNCTION forget() RETURNS INT BEGIN DELETE FROM job_rows; RETURN 1; END")
    assert "READ ONLY" in problem(mysql_url, "SELECT forget() AS id", tmp_path)
    with filled.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION forget")
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM job_rows").scalar() == 2


def test_a_percent_sign_in_the_query_is_a_percent_sign(filled: Engine, tmp_path: Path, mysql_url: str) -> None:
    query = tmp_path / "query.sql"
    query.write_text("SELECT email FROM job_rows WHERE email LIKE 'ada%' # the first")
    with open_query(mysql_url, read_query(query, mysql_url), root=tmp_path) as result:
        assert list(rows(result)) == [{"email": "ada@example.com"}]


def test_rows_are_streamed(server: Engine, tmp_path: Path, mysql_url: str) -> None:
    """All at once, 64 MiB of rows would need that much; the server sends them as they are taken."""
    query = tmp_path / "query.sql"
    query.write_text("SELECT seq AS id, REPEAT('x', 8192) AS text FROM seq_1_to_8192")
    with server.connect() as connection:
        if "MariaDB" not in str(connection.exec_driver_sql("SELECT VERSION()").scalar()):
            pytest.skip("only MariaDB has sequences as tables")
    tracemalloc.start()
    try:
        with open_query(mysql_url, read_query(query, mysql_url), root=tmp_path) as result:
            assert sum(1 for _ in rows(result)) == 8192
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SET @a = 1", "is not a query; it must be one SELECT."),
        ("DELETE FROM job_rows", "is DELETE; it must be one SELECT."),
        (
            "SELECT * FROM job_rows FOR UPDATE",
            "locks the rows that it reads (FOR UPDATE or FOR SHARE); it must be one SELECT.",
        ),
        ("SELECT 1 /*!50000 INTO OUTFILE '/tmp/x' */", "has a comment that MySQL executes, /*! … */; leave it out."),
        (
            "SELECT 1 INTO OUTFILE '/tmp/x'",
            "can't be read as the SQL of mysql (line 1, column 30), so nothing says that it changes no data; correct "
            "it, or put it into a view and select from that.",
        ),
    ],
)
def test_all_but_a_select_is_refused(filled: Engine, tmp_path: Path, mysql_url: str, sql: str, reason: str) -> None:
    assert problem(mysql_url, sql, tmp_path) == f"The query in query.sql {reason}"


def test_a_zero_date_is_a_value_like_others(server: Engine, tmp_path: Path, mysql_url: str) -> None:
    with server.begin() as connection:
        connection.exec_driver_sql("SET SESSION sql_mode = ''")
        connection.exec_driver_sql(
            "INSERT INTO job_rows (id, born, event_time) VALUES (1, '0000-00-00', '2026-00-00'),"
            " (2, '1815-12-10', '0000-00-00'), (3, NULL, '2026-01-13 08:45:12')"
        )
    zero = "is a zero date, which can't be sent"
    assert [
        tuple(row.values()) for row in read(mysql_url, "SELECT born, event_time FROM job_rows ORDER BY id", tmp_path)
    ] == [
        (Unreadable("0000-00-00", zero), Unreadable("2026-00-00 00:00:00.000", zero)),
        (date(1815, 12, 10), Unreadable("0000-00-00 00:00:00.000", zero)),
        (None, datetime(2026, 1, 13, 8, 45, 12)),
    ]


@pytest.mark.parametrize("condition", ["event_time >= :since", "event_time >= FROM_UNIXTIME(:since_unix)"])
def test_since_is_a_literal(filled: Engine, tmp_path: Path, condition: str, mysql_url: str) -> None:
    sql = f"SELECT id FROM job_rows WHERE {condition} # :since"
    moment = datetime(2026, 1, 13, 8, 45, 12, tzinfo=timezone.utc)
    assert read(mysql_url, sql, tmp_path, moment) == [{"id": 1}]
    assert read(mysql_url, sql, tmp_path, moment + timedelta(seconds=1)) == []


def test_example_for_mysql_finds_what_the_default_query_finds_elsewhere(
    server: Engine, tmp_path: Path, mysql_url: str
) -> None:
    schema = (ROOT / "examples/schema.sql").read_text()
    with server.begin() as connection:
        for statement in schema.strip().removesuffix(";").split(";\n"):
            connection.exec_driver_sql(statement)
    try:
        rows = read(mysql_url, (ROOT / "examples/mysql.sql").read_text(), tmp_path)
    finally:
        with server.begin() as connection:
            connection.exec_driver_sql("DROP TABLE user_events")
            connection.exec_driver_sql("DROP TABLE users")
    assert [(row["email"], row["candidate"], row["page"]) for row in rows] == [
        ("ada@example.com", "Ada Lovelace", "home"),
        ("ada@example.com", "Ada Lovelace", "pricing"),
        ("grace@example.com", "Grace", None),
        ("nobody@example.com", None, None),
    ]


def test_a_wrong_password_is_told_and_not_shown(program: Program, server: Engine) -> None:
    url = server.url.set(password="wrong-pass").render_as_string(hide_password=False)
    use_query(program, "SELECT 1 AS id")
    run = program.run(DATABASE_URL=url)
    assert run.code == 66
    assert run.err.startswith("The database can't be reached: ")
    assert "Access denied" in run.err
    assert "wrong-pass" not in run.err + run.out + run.log
