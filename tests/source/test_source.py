"""Real SQLite files and a real PostgreSQL: what comes out of them, and the messages when nothing does."""

from __future__ import annotations

import gc
import itertools
import os
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from sqlalchemy import create_engine

from pipeline.model.records import Unreadable
from pipeline.model.text import PIP_INSTALL
from pipeline.source import SourceBusyError, SourceError, UndecodableText, advice_for_writers, read_query
from tests.reading import Alarm, alarm, opened, problem, read, rows

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


def create(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)
    return path


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return create(
        tmp_path / "users.db",
        "CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)",
        "INSERT INTO users VALUES (1, 'ada@example.com'), (2, 'bob@example.com')",
    )


# Rows of SQLite ---------------------------------------------------------------------------------------------------


def test_rows_come_as_dicts_in_the_order_of_the_query(users: Path) -> None:
    with opened("sqlite:///users.db", "SELECT email, id FROM users ORDER BY id DESC", users.parent) as result:
        assert result.columns == ("email", "id")
        assert list(rows(result)) == [{"email": "bob@example.com", "id": 2}, {"email": "ada@example.com", "id": 1}]


def test_query_without_rows_has_its_columns(users: Path) -> None:
    with opened("sqlite:///users.db", "SELECT id, email FROM users WHERE id > 9", users.parent) as result:
        assert (result.columns, list(rows(result))) == (("id", "email"), [])


def test_values_of_every_kind_come_through(tmp_path: Path) -> None:
    sql = (
        "SELECT NULL AS a, 9223372036854775807 AS b, 1.5 AS c, 'zoë 😀' AS d, x'00ff' AS e,"
        " 'a' || char(0) || 'b' AS f, 9e999 AS g, '' AS h, CAST(x'636166e9' AS TEXT) AS i"
    )
    create(tmp_path / "x.db")
    expected = [None, 2**63 - 1, 1.5, "zoë 😀", b"\x00\xff", "a\0b", float("inf"), "", "caf\udce9"]
    with opened("sqlite:///x.db", sql, tmp_path, any_bytes=True) as result:
        assert list(rows(result)) == [dict(zip("abcdefghi", expected, strict=True))]


def test_rows_come_in_blocks_of_tuples(users: Path) -> None:
    with opened("sqlite:///users.db", f"{NUMBERS}, 'x' AS v FROM n", users.parent) as result:
        blocks = list(result.blocks)
    assert [row for block in blocks for row in block] == [(i, "x") for i in range(1, 3001)]
    assert {type(row) for block in blocks for row in block} == {tuple}
    assert max(map(len, blocks)) == 500


def test_large_rows_are_never_all_in_memory(users: Path) -> None:
    """A thousand rows of 1 MiB; a block of a hundred of them would be 100 MiB."""
    sql = NUMBERS.replace("3000", "1000") + ", CASE WHEN i < 200 THEN 'x' ELSE hex(zeroblob(524288)) END AS v FROM n"
    tracemalloc.start()
    try:
        with opened("sqlite:///users.db", sql, users.parent) as result:
            assert sum(len(block) for block in result.blocks) == 1000
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i"


@pytest.mark.parametrize("bad", [[1], [100], [101], [2500], [3000], [1, 2, 1500, 2999]])
def test_text_that_is_no_utf8_ends_the_query_unless_any_bytes_are_taken(bad: list[int], users: Path) -> None:
    places = ", ".join(map(str, bad))
    sql = f"{NUMBERS}, CASE WHEN i IN ({places}) THEN CAST(x'636166e9' AS TEXT) ELSE 'zoë' END AS v FROM n ORDER BY i"
    taken: list[dict[str, Any]] = []
    with (
        pytest.raises(UndecodableText, match=r"^The query in query\.sql .*: a text is not valid UTF-8\.$") as caught,
        opened("sqlite:///users.db", sql, users.parent) as result,
    ):
        taken += rows(result)
    assert "caf" not in str(caught.value)
    assert len(taken) <= bad[0]
    expected = [{"i": i, "v": "caf\udce9" if i in bad else "zoë"} for i in range(1, 3001)]
    with opened("sqlite:///users.db", sql, users.parent, any_bytes=True) as result:
        assert list(rows(result)) == expected


def test_cell_of_100_000_characters_comes_whole(tmp_path: Path) -> None:
    create(tmp_path / "x.db", "CREATE TABLE t (v TEXT)", f"INSERT INTO t VALUES ('{'é' * 100_000}')")
    assert read("sqlite:///x.db", "SELECT v FROM t", tmp_path) == [{"v": "é" * 100_000}]


def test_rows_of_sqlite_are_streamed(users: Path) -> None:
    with opened("sqlite:///users.db", f"{ENDLESS} SELECT i FROM n", users.parent) as result:
        assert list(itertools.islice(rows(result), 3)) == [{"i": 1}, {"i": 2}, {"i": 3}]


def test_query_at_work_ends_when_asked_to_stop(users: Path) -> None:
    sql = f"{ENDLESS} SELECT count(*) AS i FROM n"
    with (
        pytest.raises(SourceError, match=r"^The query in query\.sql can't be run: interrupted\.$"),
        opened("sqlite:///users.db", sql, users.parent, should_stop=lambda: True),
    ):
        pass


def test_signal_ends_a_query_of_sqlite_at_work(users: Path) -> None:
    """An exception in SQLite's callback is lost, and ends the query."""
    sql = f"{ENDLESS} SELECT count(*) AS i FROM n"
    with (
        pytest.raises(SourceError, match=r"^The query in query\.sql can't be run: interrupted\.$"),
        alarm(),
        opened("sqlite:///users.db", sql, users.parent),
    ):
        pass


def test_failure_in_a_later_row_is_explained(users: Path) -> None:
    sql = "SELECT CASE id WHEN 1 THEN 1 ELSE abs(-9223372036854775807 - 1) END AS v FROM users"
    assert problem("sqlite:///users.db", sql, users.parent) == (
        "The query in query.sql failed while its rows were read: integer overflow."
    )


def test_sqlite_is_read_without_the_import_of_sqlalchemy(users: Path) -> None:
    (users.parent / "query.sql").write_text("SELECT * FROM users")
    code = (
        "import sys, main; from pathlib import Path; from pipeline.source import open_query, read_query\n"
        "url = 'sqlite:///users.db'\n"
        "with open_query(url, read_query(Path(sys.argv[1], 'query.sql'), url), root=Path(sys.argv[1])) as query:\n"
        "    print(len([row for block in query.blocks for row in block]), 'sqlalchemy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(users.parent)]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"


def test_rows_can_not_be_read_after_the_block(users: Path) -> None:
    with opened("sqlite:///users.db", "SELECT id FROM users", users.parent) as result:
        pass
    with pytest.raises(SourceError, match=r"^The query in query\.sql failed while its rows were read: "):
        next(rows(result))


def test_error_of_the_reader_passes_through_unchanged(users: Path) -> None:
    def divide() -> None:
        with opened("sqlite:///users.db", "SELECT 0 AS zero FROM users", users.parent) as result:
            for row in rows(result):
                row["zero"] /= 0

    with pytest.raises(ZeroDivisionError):
        divide()


# Where SQLite's file is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["with space.db", "what?.db", "a#b.db", "100%.db", "%20.db", "é😀.db", "it's;--.db", "a&b=c?d=e"]
)
def test_odd_characters_in_the_path_are_taken_to_the_letter(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "odd ?#%é"
    folder.mkdir()
    create(folder / name, "CREATE TABLE t (v)", "INSERT INTO t VALUES (1)")
    assert read(f"sqlite:///{folder / name}", "SELECT v FROM t", tmp_path) == [{"v": 1}]
    assert read(f"sqlite:///odd ?#%é/{name}", "SELECT v FROM t", tmp_path) == [{"v": 1}]
    if "?" not in name:
        assert read(f"sqlite:///{quote(f'odd ?#%é/{name}')}", "SELECT v FROM t", tmp_path) == [{"v": 1}]


def test_options_after_the_path_are_no_part_of_it(users: Path) -> None:
    assert read("sqlite:///users.db?timeout=1", "SELECT max(id) AS id FROM users", users.parent) == [{"id": 2}]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///missing.db", "DATABASE_URL names the SQLite file {0}/missing.db, which does not exist."),
        ("sqlite:///missing?.db", "DATABASE_URL names the SQLite file {0}/missing, which does not exist."),
        (
            "sqlite:///no/such/folder/x.db",
            "DATABASE_URL names the SQLite file {0}/no/such/folder/x.db, which does not exist.",
        ),
        ("sqlite:////{0}", "DATABASE_URL names {0}, which is not a file."),
        ("sqlite://", "DATABASE_URL names no file; write sqlite:///users.db, or sqlite:////srv/data/users.db."),
        ("sqlite:///", "DATABASE_URL names no file; write sqlite:///users.db, or sqlite:////srv/data/users.db."),
        ("sqlite://users.db", "DATABASE_URL names no file; write sqlite:///users.db, or sqlite:////srv/data/users.db."),
        (
            "sqlite:///:memory:",
            "DATABASE_URL names no file; write sqlite:///users.db, or sqlite:////srv/data/users.db.",
        ),
    ],
)
def test_database_that_is_not_there_is_named_and_not_created(tmp_path: Path, url: str, reason: str) -> None:
    assert problem(url.format(tmp_path).replace("////", "///"), "SELECT 1 AS id", tmp_path) == reason.format(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["query.sql"]


def test_name_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    assert "x" * 300 in problem("sqlite:///" + "x" * 300, "SELECT 1 AS id", tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "The query in query.sql can't be run: no such table: users."),
        (b"id,email\n1,ada@example.com\n" * 100, "The query in query.sql can't be run: file is not a database."),
        (b"SQLite format 3\0" + b"\xff" * 4080, "The query in query.sql can't be run: file is not a database."),
    ],
)
def test_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "users.db"
    path.write_bytes(content)
    assert problem("sqlite:///users.db", "SELECT id FROM users", tmp_path) == reason
    assert path.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["query.sql", "users.db"]


def test_locked_database_is_told_after_the_time_that_the_url_allows(users: Path) -> None:
    with closing(sqlite3.connect(users, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(SourceBusyError, match=r"^The query in query\.sql can't be run: database is locked\.$"),
            opened("sqlite:///users.db?timeout=0.01", "SELECT id FROM users", users.parent),
        ):
            pass
    assert len(read("sqlite:///users.db", "SELECT id FROM users", users.parent)) == 2


@pytest.mark.parametrize(("mode", "blocks"), [("delete", True), ("wal", False)])
def test_only_a_wal_lets_others_write_while_rows_are_read(users: Path, mode: str, blocks: bool) -> None:
    with closing(sqlite3.connect(users, isolation_level=None, timeout=0)) as other:
        other.execute(f"PRAGMA journal_mode = {mode}")
        assert (advice_for_writers("sqlite:///users.db", users.parent) is not None) is blocks
        with opened("sqlite:///users.db", f"{NUMBERS} FROM n, users", users.parent) as result:
            next(rows(result))
            if blocks:
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    other.execute("DELETE FROM users")
            else:
                other.execute("DELETE FROM users")


def test_writers_of_other_databases_are_not_asked_about(tmp_path: Path) -> None:
    assert advice_for_writers("postgresql+psycopg://host/name", tmp_path) is None


# What reading leaves behind ---------------------------------------------------------------------------------------


@pytest.fixture(params=["ours", "another user's"])
def wal(users: Path, request: pytest.FixtureRequest) -> Path:
    """A file in WAL mode that nobody has open, in a folder of its own."""
    folder = users.parent / "app"
    folder.mkdir()
    path = users.rename(folder / "users.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as owner:
        owner.execute("PRAGMA journal_mode = wal")
    if request.param != "ours":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 65534, 65534)
        os.chown(folder, 65534, 65534)
    return path


def names(path: Path) -> set[str]:
    return {each.name for each in path.parent.iterdir()}


def found(path: Path) -> list[dict[str, Any]]:
    return read("sqlite:///app/users.db", "SELECT count(*) AS n FROM users", path.parent.parent)


def test_reading_a_wal_that_nobody_has_open_leaves_no_trace(wal: Path) -> None:
    before = wal.read_bytes()
    assert found(wal) == [{"n": 2}]
    assert names(wal) == {"users.db"}
    assert wal.read_bytes() == before


def test_reading_a_wal_that_is_open_finds_all_and_leaves_the_files_alone(wal: Path) -> None:
    with closing(sqlite3.connect(wal, isolation_level=None)) as owner:
        owner.execute("INSERT INTO users VALUES (3, 'eve@example.com')")
        assert found(wal) == [{"n": 3}]
        assert names(wal) == {"users.db", "users.db-wal", "users.db-shm"}
        owner.execute("INSERT INTO users VALUES (4, 'fay@example.com')")
    assert names(wal) == {"users.db"}


@pytest.mark.parametrize("wal", ["another user's"], indirect=True)
def test_changes_that_can_not_be_read_without_writing_are_told(wal: Path) -> None:
    with closing(sqlite3.connect(wal, isolation_level=None)) as owner:
        owner.execute("INSERT INTO users VALUES (3, 'eve@example.com')")
        left = Path(f"{wal}-wal").read_bytes()
    Path(f"{wal}-wal").write_bytes(left)  # as after a crash, without the index
    message = problem("sqlite:///app/users.db", "SELECT id FROM users", wal.parent.parent)
    assert message == (
        f"{wal} has changes in users.db-wal that can't be read without writing beside it; open it once with the "
        "program that it belongs to, or run this job as the file's owner."
    )
    assert names(wal) == {"users.db", "users.db-wal"}


@pytest.mark.parametrize("wal", ["another user's"], indirect=True)
@pytest.mark.parametrize("blocks_first", [1, 1000])
def test_file_that_changes_while_it_is_read_without_a_lock_is_for_later(wal: Path, blocks_first: int) -> None:
    with opened("sqlite:///app/users.db", f"{NUMBERS} FROM n, users", wal.parent.parent) as result:
        for _ in itertools.islice(result.blocks, blocks_first if blocks_first == 1 else 11):
            pass
        with closing(sqlite3.connect(wal)) as owner, owner:
            owner.execute("INSERT INTO users VALUES (3, 'eve@example.com')")
        with pytest.raises(
            SourceBusyError, match=r"^users\.db was written to while it was read, so its rows may not fit"
        ):
            list(result.blocks)


def test_advice_is_no_wal_for_a_file_of_another_user(users: Path) -> None:
    assert advice_for_writers("sqlite:///users.db", users.parent) == (
        "PRAGMA journal_mode=WAL, run once on it, changes that"
    )
    if os.geteuid() == 0:
        os.chown(users, 65534, 65534)
        assert advice_for_writers("sqlite:///users.db", users.parent) == (
            "let a run read a copy of it, or run when nobody writes"
        )


def test_full_text_search_and_a_look_at_a_table_are_reading(users: Path) -> None:
    with closing(sqlite3.connect(users)) as database, database:
        database.execute("CREATE VIRTUAL TABLE notes USING fts5(note)")
        database.execute("INSERT INTO notes VALUES ('a red fox'), ('a blue fox')")
    sql = "SELECT note FROM notes WHERE notes MATCH 'red' UNION SELECT name FROM pragma_table_info('users') ORDER BY 1"
    assert [row["note"] for row in read("sqlite:///users.db", sql, users.parent)] == ["a red fox", "email", "id"]


def test_option_that_is_no_number_is_told(users: Path) -> None:
    assert problem("sqlite:///users.db?timeout=soon", "SELECT id FROM users", users.parent) == (
        "The database can't be reached: ValueError: could not convert string to float: 'soon'."
    )


# What a query may not do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO users VALUES (3, 'eve@example.com')",
        "INSERT INTO users VALUES (3, 'eve@example.com') RETURNING id",
        "UPDATE users SET email = 'eve@example.com' RETURNING id, email",
        "DELETE FROM users",
        "DROP TABLE users",
        "CREATE TABLE more (id)",
        "PRAGMA user_version = 7",
        "VACUUM",
        "VACUUM INTO 'copy.db'",
        "ATTACH 'other.db' AS other",
        "ATTACH 'file:other.db?mode=rwc' AS other",
    ],
)
def test_query_that_writes_is_refused_and_changes_nothing(
    users: Path, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(users.parent)  # where a file without a folder would be made
    before = users.read_bytes()
    message = problem("sqlite:///users.db", sql, users.parent)
    assert message.startswith("The query in query.sql ")
    assert users.read_bytes() == before
    assert sorted(each.name for each in users.parent.iterdir()) == ["query.sql", "users.db"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS id; SELECT 2 AS id",
        "SELECT 1 AS id; DELETE FROM users",
        "SELECT 1 AS id;; SELECT 2 AS id",
        "SELECT ';' AS id /* ; */; SELECT 2 AS id",
        "SELECT 1 AS id -- one\n; SELECT 2 AS id",
    ],
)
def test_two_statements_are_refused(users: Path, sql: str) -> None:
    assert problem("sqlite:///users.db", sql, users.parent) == (
        f"The query file {users.parent}/query.sql holds more than one statement; leave just one SELECT in it."
    )
    assert len(read("sqlite:///users.db", "SELECT id FROM users", users.parent)) == 2


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT 'a;b' AS v", "a;b"),
        ("SELECT '--a' AS v", "--a"),
        ("SELECT 'it''s; -- ''' AS v", "it's; -- '"),
        ("SELECT ';\"' AS v", ';"'),
        ("SELECT '/*' AS v, '*/' AS w", "/*"),
        ("SELECT 1 AS v;", 1),
        ("  SELECT 1 AS v ; \n;\n", 1),
        ("SELECT 1 AS v; -- the end; really", 1),
        ("-- it's; the start\nSELECT 1 AS v /* ; ' */", 1),
        ('SELECT v FROM (SELECT 1 AS v) AS "a;b"', 1),
        ("SELECT 1 AS v FROM (SELECT 1) AS `a;b`", 1),
        ("SELECT '100%' AS v", "100%"),
        ("SELECT '%s %(name)s %%' AS v", "%s %(name)s %%"),
        ("SELECT ':name ? $1' AS v", ":name ? $1"),
        ("SELECT\r\n1 AS v\r\n", 1),
        ("VALUES (1)", None),
        ("WITH a AS (SELECT 1 AS v) SELECT v FROM a", 1),
    ],
)
def test_query_passes_to_the_letter(users: Path, sql: str | bytes, value: object) -> None:
    assert [row.get("v") for row in read("sqlite:///users.db", sql, users.parent)] == [value]


def test_statement_without_rows_is_refused(users: Path) -> None:
    assert problem("sqlite:///users.db", "CREATE TEMPORARY TABLE t (id)", users.parent) == (
        "The query in query.sql can't be run: it must be one SELECT."
    )


@pytest.mark.parametrize("sql", ["", " \n", ";", "-- nothing", "/* nothing */ ;"])
def test_file_without_a_query_is_told(users: Path, sql: str) -> None:
    assert (
        problem("sqlite:///users.db", sql, users.parent) == f"The query file {users.parent}/query.sql holds no query."
    )


def test_query_file_that_is_missing_or_no_text_is_told(users: Path) -> None:
    assert problem("sqlite:///users.db", b"SELECT '\xff' AS v", users.parent) == (
        f"The query file {users.parent}/query.sql can't be read (UnicodeDecodeError)."
    )
    missing = users.parent / "missing.sql"
    with pytest.raises(SourceError, match=r"^The query file .*/missing\.sql can't be read \(FileNotFoundError\)\.$"):
        read_query(missing, "sqlite:///users.db")


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT a_b FROM users", "can't be run: no such column: a_b."),
        ("SELEC 1", 'can\'t be run: near "SELEC": syntax error.'),
        ("SELECT id, id FROM users", "has more than one column named id; rename them with AS."),
        (
            "SELECT u.*, u.* FROM users AS u",
            "has more than one column named email, id; rename them with AS.",
        ),
        ('SELECT 1 AS "a.id", 2 AS "a.id"', "has more than one column named a.id; rename them with AS."),
    ],
)
def test_broken_query_is_told_in_one_sentence(users: Path, sql: str, reason: str) -> None:
    assert problem("sqlite:///users.db", sql, users.parent) == f"The query in query.sql {reason}"


def test_placeholder_in_a_query_is_told(users: Path) -> None:
    message = problem("sqlite:///users.db", "SELECT id FROM users WHERE id = :id", users.parent)
    assert message.startswith("The query in query.sql can't be run: ")
    assert "binding" in message


def test_column_named_with_a_dot_keeps_its_name(users: Path) -> None:
    rows = read("sqlite:///users.db", 'SELECT 1 AS "u.id", 2 AS "e.id" FROM users LIMIT 1', users.parent)
    assert rows == [{"u.id": 1, "e.id": 2}]


# Other databases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "postgres://user:secret@host/name",
            "postgres:// in DATABASE_URL is not known to SQLAlchemy; write postgresql+psycopg:// instead.",
        ),
        (
            "clickhouse+native://user:secret@host/name",
            "clickhouse:// in DATABASE_URL is not supported, as its drivers load all "
            "rows into memory; export the rows to Parquet files, and read these with DATABASE_URL=duckdb:///:memory:.",
        ),
        (
            "hive://user:secret@host/name",
            "hive:// in DATABASE_URL is PyHive's, which can't be stopped; write "
            f"impala:// instead, and run: {PIP_INSTALL} impyla.",
        ),
        (
            "oracle+oracledb://user:secret@host/?service_name=x",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} oracledb",
        ),
        (
            "awsathena+rest://user:secret@host/name",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} 'PyAthena[SQLAlchemy]'",
        ),
        (
            "exotic://user:secret@host/name",
            "The database can't be opened: DATABASE_URL starts with an unknown kind of database; expected, for "
            "example, sqlite:///, duckdb:///, postgresql+psycopg:// or mysql+pymysql://.",
        ),
        (
            "mssql+pyodbc://user:secret@host/name",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} pyodbc",
        ),
        (
            "mysql+mysqldb://user:secret@host/name",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} mysqlclient",
        ),
        (
            "trino://user:secret@host:443/catalog/schema",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} 'trino[sqlalchemy]'",
        ),
        (
            "databricks://token:secret@host?http_path=/sql/1.0/warehouses/x",
            f"The database can't be opened: its driver is not installed; run: {PIP_INSTALL} databricks-sqlalchemy",
        ),
        (
            "user:secret@host",
            "DATABASE_URL is not a valid URL; expected, for example, sqlite:///users.db or "
            "postgresql+psycopg://user:password@host/name.",
        ),
        (
            "postgresql+psycopg://user:p@host:secret/name",
            "DATABASE_URL is not a valid URL; expected, for example, sqlite:///users.db or "
            "postgresql+psycopg://user:password@host/name.",
        ),
        (
            "postgresql+psycopg://user:secret@localhost/name?no_option=1",
            'The database can\'t be reached: invalid connection option "no_option".',
        ),
    ],
)
def test_database_that_cannot_be_opened_is_told_without_its_password(
    tmp_path: Path, url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in ("MySQLdb", "pyodbc", "oracledb"):  # whether it is installed or not
        monkeypatch.setitem(sys.modules, driver, None)
    message = problem(url, "SELECT 1 AS id", tmp_path)
    assert message == reason
    assert "secret" not in message


def test_server_that_does_not_answer_is_told_without_the_password(tmp_path: Path) -> None:
    message = problem(f"postgresql+psycopg://user:secret@/name?host={tmp_path}", "SELECT 1 AS id", tmp_path)
    assert message.startswith("The database can't be reached: connection ")  # psycopg: failed, or is bad
    assert message.endswith(
        f': connection to server on socket "{tmp_path}/.s.PGSQL.5432" failed: No such file or directory.'
    )


# PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture
def people(postgresql_url: str) -> Iterator[str]:
    """The URL of a database with a table of two people."""
    engine = create_engine(postgresql_url)
    with engine.begin() as database:
        database.exec_driver_sql("CREATE TABLE people (id integer PRIMARY KEY, email text)")
        database.exec_driver_sql("INSERT INTO people VALUES (1, 'ada@example.com'), (2, 'bob@example.com')")
        database.exec_driver_sql(
            "CREATE FUNCTION add_person() RETURNS integer LANGUAGE sql AS"
            " $$INSERT INTO people VALUES (3, 'eve@example.com') RETURNING id$$"
        )
    yield postgresql_url
    with engine.begin() as database:
        database.exec_driver_sql("DROP FUNCTION add_person")
        database.exec_driver_sql("DROP TABLE people")
    engine.dispose()


def test_values_of_postgresql_come_as_python_has_them(postgresql_url: str, tmp_path: Path) -> None:
    sql = """SELECT 1::int AS a, 19.90::numeric(10, 2) AS b, 'NaN'::numeric AS c, 1.5::float8 AS d, true AS e,
        '2026-01-13 08:45:12.5+01'::timestamptz AT TIME ZONE 'UTC' AS f, '2026-01-13 08:45:12+01'::timestamptz AS g,
        '2026-01-13'::date AS h, '{"a": [1, null, {"b": "zoë"}]}'::jsonb AS i, '[1.5, "x"]'::json AS j,
        ARRAY[1, 2]::int[] AS k, ARRAY['a', NULL] AS l, ARRAY[1.5, 2]::numeric[] AS m, '192.0.2.1'::inet AS n,
        '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid AS o, '\\xff00'::bytea AS p, interval '90 s' AS q, NULL AS r,
        'zoë 😀' AS s"""
    expected = [
        1,
        Decimal("19.90"),
        Decimal("NaN"),
        1.5,
        True,
        datetime(2026, 1, 13, 7, 45, 12, 500_000),
        datetime(2026, 1, 13, 7, 45, 12, tzinfo=timezone.utc),
        date(2026, 1, 13),
        {"a": [1, None, {"b": "zoë"}]},
        [1.5, "x"],
        [1, 2],
        ["a", None],
        [Decimal("1.5"), Decimal(2)],
        ip_address("192.0.2.1"),
        UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        b"\xff\0",
        timedelta(seconds=90),
        None,
        "zoë 😀",
    ]
    (row,) = read(postgresql_url, sql, tmp_path)
    assert str(row.pop("c")) == str(expected.pop(2))  # NaN equals nothing
    assert list(row.values()) == expected


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT '5'::int AS v", 5),
        ("SELECT '100%' AS v", "100%"),
        ("SELECT 7 % 4 AS v", 3),
        ("SELECT 'ada' LIKE 'a%' AS v", True),
        ("SELECT '%s %(name)s %%' AS v", "%s %(name)s %%"),
        ("SELECT ':name ? $1' AS v", ":name ? $1"),
        ("""SELECT '{"a": 1}'::jsonb ? 'a' AS v""", True),
        ("SELECT (ARRAY[1, 2, 3])[1:2] AS v", [1, 2]),
        ("SELECT $$it's; -- fine$$ AS v", "it's; -- fine"),
        ("SELECT $a$ $$ ; $a$ AS v", " $$ ; "),
        (r"SELECT E'\'; ' AS v", "'; "),
        (r"SELECT '\' AS v -- ';", "\\"),
        ("SELECT 5 # 1 AS v -- ;", 4),
        ("SELECT 1 AS v; -- the end", 1),
        ("\ufeffSELECT 'after a byte order mark' AS v", "after a byte order mark"),
    ],
)
def test_query_passes_to_postgresql_to_the_letter(postgresql_url: str, tmp_path: Path, sql: str, value: object) -> None:
    assert read(postgresql_url, sql, tmp_path) == [{"v": value}]


def test_rows_of_postgresql_are_fetched_as_they_are_taken(postgresql_url: str, tmp_path: Path) -> None:
    sql = "SELECT i, 1 / (i - 5000) AS v FROM (SELECT generate_series(1, 10000000) AS i) AS numbers"
    begun = time.monotonic()
    with opened(postgresql_url, sql, tmp_path) as result:
        assert list(itertools.islice(rows(result), 2)) == [{"i": 1, "v": 0}, {"i": 2, "v": 0}]
        # Row 5,000 divides by zero: it is not computed before it is asked for.
        with pytest.raises(
            SourceError, match=r"^The query in query\.sql failed while its rows were read: division by zero\.$"
        ):
            list(rows(result))
    with opened(postgresql_url, "SELECT generate_series(1, 10000000) AS i", tmp_path) as result:
        assert list(itertools.islice(rows(result), 2)) == [{"i": 1}, {"i": 2}]
    assert time.monotonic() - begun < 5


@pytest.mark.filterwarnings("ignore:.*ServerCursor")  # which says, when collected, that nobody closed it
def test_signal_ends_a_query_of_postgresql_at_work(postgresql_url: str, tmp_path: Path) -> None:
    with pytest.raises(Alarm), alarm(), opened(postgresql_url, "SELECT pg_sleep(600)", tmp_path):
        pass
    gc.collect()


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT add_person() AS id", "cannot execute INSERT in a read-only transaction"),
        ("INSERT INTO people VALUES (3, 'eve@example.com') RETURNING id", "is INSERT; it must be one SELECT"),
        ("DELETE FROM people", "is DELETE; it must be one SELECT"),
        (
            "WITH gone AS (DELETE FROM people RETURNING id) SELECT id FROM gone",
            "has DELETE in it; it must be one SELECT",
        ),
        ("SELECT nextval(pg_get_serial_sequence('people', 'id')) AS id, 1 AS id", "has more than one column named id"),
        ("SELECT 1 AS id FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT 'x'::integer AS id", "invalid input syntax for type integer"),
    ],
)
def test_query_that_postgresql_refuses_is_told_and_changes_nothing(
    people: str, tmp_path: Path, sql: str, reason: str
) -> None:
    message = problem(people, sql, tmp_path)
    assert message.startswith("The query in query.sql ")
    assert reason in message
    assert "\n" not in message
    assert read(people, "SELECT count(*) AS n FROM people", tmp_path) == [{"n": 2}]


@pytest.mark.parametrize(
    "sql", ["SELECT 1 AS id; DELETE FROM people", r"SELECT E'\''; COMMIT; DELETE FROM people; SELECT '1'"]
)
def test_second_statement_does_not_reach_postgresql(people: str, tmp_path: Path, sql: str) -> None:
    assert problem(people, sql, tmp_path).endswith("holds more than one statement; leave just one SELECT in it.")
    assert read(people, "SELECT count(*) AS n FROM people", tmp_path) == [{"n": 2}]


INFINITY = Unreadable("infinity", "is infinity, which can't be sent as a date")


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("'infinity'::timestamptz", INFINITY),
        ("'infinity'::timestamp", INFINITY),
        ("'infinity'::date", INFINITY),
        ("'-infinity'::date", Unreadable("-infinity", "is -infinity, which can't be sent as a date")),
        ("'0044-03-15 BC'::date", Unreadable("0044-03-15 BC", "is before the year 1, which can't be sent as a date")),
        (
            "'0044-03-15 BC'::timestamptz",
            Unreadable("0044-03-15 00:00:00+00 BC", "is before the year 1, which can't be sent as a date"),
        ),
        ("'12026-01-13'::date", Unreadable("12026-01-13", "is out of range")),
        ("'12026-01-13'::timestamp", Unreadable("12026-01-13 00:00:00", "is out of range")),
        ("'24:00:00'::time", Unreadable("24:00:00", "is 24:00:00, which can't be sent as a time")),
        ("'24:00:00'::timetz", Unreadable("24:00:00+00", "is 24:00:00, which can't be sent as a time")),
        ("'3000000 years'::interval", Unreadable("3000000 years", "is out of range")),
        ("ARRAY['infinity', '2026-01-13']::date[]", [INFINITY, date(2026, 1, 13)]),
        ("upper(daterange('2026-01-13', 'infinity'))", INFINITY),
        ("'9999-12-31'::date", date(9999, 12, 31)),
    ],
)
def test_time_that_python_lacks_is_a_value_like_others(
    postgresql_url: str, tmp_path: Path, sql: str, value: object
) -> None:
    rows = read(
        postgresql_url, f"SELECT i, CASE i WHEN 2 THEN {sql} END AS v FROM generate_series(1, 3) AS i", tmp_path
    )
    assert rows == [{"i": 1, "v": None}, {"i": 2, "v": value}, {"i": 3, "v": None}]


@pytest.fixture
def moods(postgresql_url: str) -> Iterator[str]:
    """The URL of a database with types of its own."""
    names = ("TYPE mood AS ENUM ('sad', 'ok')", "DOMAIN age AS integer", "TYPE pair AS (a integer, b text)")
    engine = create_engine(postgresql_url)
    with engine.begin() as database:
        for name in names:
            database.exec_driver_sql(f"CREATE {name}")
    yield postgresql_url
    with engine.begin() as database:
        for name in names:
            database.exec_driver_sql(f"DROP {' '.join(name.split()[:2])}")
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_types_of_the_database_s_own_come_as_values_and_lists(moods: str, tmp_path: Path, driver: str) -> None:
    pytest.importorskip(driver)
    sql = "SELECT 'sad'::mood AS a, '{sad,ok,NULL}'::mood[] AS b, 7::age AS c, ARRAY[1, 2]::age[] AS d"
    expected = {"a": "sad", "b": ["sad", "ok", None], "c": 7, "d": [1, 2]}
    assert read(moods.replace("psycopg", driver), sql, tmp_path) == [expected]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("(repeat('[', 3000) || repeat(']', 3000))::json", "is nested too deep"),
        ("(repeat('[', 3000) || repeat(']', 3000))::jsonb", "is nested too deep"),
        ("repeat('9', 5000)::json", "is JSON that can't be read"),
        ("repeat('9', 5000)::jsonb", "is JSON that can't be read"),
        ("'infinity'::date", "is infinity, which can't be sent as a date"),
    ],
)
def test_value_that_python_can_not_read_keeps_no_other_row_back(
    postgresql_url: str, tmp_path: Path, driver: str, sql: str, problem: str
) -> None:
    pytest.importorskip(driver)
    rows = read(
        postgresql_url.replace("psycopg", driver),
        f"SELECT i, CASE i WHEN 2 THEN {sql} END AS v FROM generate_series(1, 3) AS i",
        tmp_path,
    )
    assert [(row["i"], getattr(row["v"], "problem", row["v"])) for row in rows] == [(1, None), (2, problem), (3, None)]


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_text_of_any_bytes_in_an_sql_ascii_database_refuses_its_row_alone(
    postgresql_url: str, tmp_path: Path, driver: str
) -> None:
    pytest.importorskip(driver)
    engine = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as database:
        database.exec_driver_sql(
            "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    url = postgresql_url.replace("/postgres?", "/ascii?").replace("psycopg", driver)
    try:
        sql = (
            r"SELECT convert_from('\x636166e9'::bytea, 'SQL_ASCII') AS v, 'zoë'::varchar AS w, '2026-01-13'::date AS d"
        )
        expected = {"v": "caf\udce9", "w": "zoë", "d": date(2026, 1, 13)}
        assert read(url, sql, tmp_path) == [expected]
    finally:
        with engine.connect() as database:
            database.exec_driver_sql("DROP DATABASE ascii WITH (FORCE)")
        engine.dispose()


def test_text_of_an_unreadable_value_is_what_stands_in_the_csv() -> None:
    assert str(INFINITY) == "infinity"


def test_mysqls_two_bars_are_refused_before_they_turn_names_into_numbers(tmp_path: Path) -> None:
    query = tmp_path / "query.sql"
    query.write_text("SELECT email, first_name || last_name AS candidate FROM users -- || '||'")
    with pytest.raises(SourceError, match="means OR in MySQL; write CONCAT_WS"):
        read_query(query, "mysql+pymysql://u@127.0.0.1:1/x")


# :since -----------------------------------------------------------------------------------------------------------

SINCE = datetime(2026, 1, 13, 8, 45, 12, tzinfo=timezone.utc)


def test_since_is_compared_as_text_or_as_seconds_in_sqlite(tmp_path: Path) -> None:
    create(
        tmp_path / "x.db",
        "CREATE TABLE t (text, unix)",
        "INSERT INTO t VALUES ('2026-01-13 08:45:11', 1768293911), ('2026-01-13 08:45:12', 1768293912)",
    )
    found = [{"text": "2026-01-13 08:45:12"}]
    assert read("sqlite:///x.db", "SELECT text FROM t WHERE text >= :since", tmp_path, SINCE) == found
    assert read("sqlite:///x.db", "SELECT text FROM t WHERE unix >= :since_unix", tmp_path, SINCE) == found


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize(
    ("type_", "before", "value"),
    [
        ("timestamp", "2026-01-13 08:45:11", datetime(2026, 1, 13, 8, 45, 12)),
        ("timestamptz", "2026-01-13 08:45:11Z", SINCE),
        ("date", "2026-01-12", date(2026, 1, 13)),
        ("text", "2026-01-13 08:45:11", "2026-01-13 08:45:12"),
    ],
)
def test_since_is_in_utc_whatever_the_server_s_time_zone(
    postgresql_url: str, tmp_path: Path, zone: str, type_: str, before: str, value: object
) -> None:
    url = f"{postgresql_url}&options=-c%20timezone%3D{zone}"
    sql = f"SELECT v FROM (VALUES ('{before}'::{type_}), ('{value}'::{type_})) AS t (v) WHERE v >= :since"
    assert read(url, sql, tmp_path, SINCE) == [{"v": value}]
