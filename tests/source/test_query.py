"""Query files: what counts as one statement, and where :since stands for a time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pipeline.source import SourceError, read_query

SINCE = datetime(2026, 1, 13, 9, 45, 12, 900_000, tzinfo=timezone(timedelta(hours=1)))
TEXT = "'2026-01-13 08:45:12'"


def written(folder: Path, sql: str) -> Path:
    path = folder / "query.sql"
    path.write_text(sql, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("backend", "sql", "expected"),
    [
        ("sqlite", "SELECT 1 WHERE a >= :since", f"SELECT 1 WHERE a >= {TEXT}"),
        ("sqlite", "SELECT 1 WHERE a >= :since_unix", "SELECT 1 WHERE a >= 1768293912"),
        ("sqlite", "SELECT :since,:since_unix,(:since)", f"SELECT {TEXT},1768293912,({TEXT})"),
        ("sqlite", "SELECT 1 /* :since */ >=:since", f"SELECT 1 /* :since */ >={TEXT}"),
        ("postgresql", "SELECT TIMESTAMP :since, :since::date", f"SELECT TIMESTAMP {TEXT}, {TEXT}::date"),
        ("postgresql", "SELECT f(a := :since, b=>:since)", f"SELECT f(a := {TEXT}, b=>{TEXT})"),
        ("postgresql", "SELECT a -- it's\n>= :since", f"SELECT a -- it's\n>= {TEXT}"),
        ("postgresql", r"SELECT E'\'' >= :since", rf"SELECT E'\'' >= {TEXT}"),
        ("postgresql", r"SELECT '\' >= :since", rf"SELECT '\' >= {TEXT}"),
        ("mysql", r"SELECT '\'' >= :since, 'a'", rf"SELECT '\'' >= {TEXT}, 'a'"),
        ("mysql", "SELECT 5--:since", f"SELECT 5--{TEXT}"),
        ("bigquery", r'SELECT """a"b""" >= :since # "', rf'SELECT """a"b""" >= {TEXT} # "'),
        (
            "snowflake",
            "SELECT src:since, t.src[0]:since // '\n>= :since",
            f"SELECT src:since, t.src[0]:since // '\n>= {TEXT}",
        ),
    ],
)
def test_since_becomes_a_literal_in_utc(tmp_path: Path, backend: str, sql: str, expected: str) -> None:
    query = read_query(written(tmp_path, sql), f"{backend}://host/name")
    assert (query.uses_since, query.sql(SINCE)) == (True, expected)


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("sqlite", "SELECT 1"),
        ("sqlite", "SELECT :sincere, :since1, :since_unixtime, :SINCE, :Since"),
        ("sqlite", "SELECT ':since', \":since\", `:since`, [:since]"),
        ("sqlite", "SELECT 'it''s :since'"),
        ("sqlite", "SELECT 1 -- :since"),
        ("sqlite", "SELECT 1 /* :since"),
        ("postgresql", "SELECT a::since, a[:since], a[1:since], a[b[1]:since]"),
        ("postgresql", "SELECT $$:since$$, $tag$ $$ :since $tag$"),
        ("postgresql", r"SELECT E'\' :since', e'\\\' :since'"),
        ("postgresql", "SELECT 1 /* /* */ :since */"),
        ("duckdb", "SELECT {'a':since}, {a:since}, list[:since], since:since"),
        ("mysql", r"SELECT '\' :since', "r'"\" :since"'),
        ("mysql", "SELECT 1 # it's :since"),
        ("mariadb", "SELECT 1 # it's :since"),
        ("mysql", "SELECT @a:=since"),
        ("bigquery", r"SELECT r'\' :since', '''it's :since''', "r'"""a"b :since"""'),
        ("databricks", r"SELECT '\' :since'"),
        ("snowflake", "SELECT src:since, src:since.x, \"src\":since, f(x):since, $$:since$$ // :since"),
        ("snowflake", r"SELECT '\' :since'"),
        ("trino", "SELECT ':since', \":since\""),
    ],
)  # fmt: skip
def test_what_only_looks_like_since_stays(tmp_path: Path, backend: str, sql: str) -> None:
    query = read_query(written(tmp_path, sql), f"{backend}://host/name")
    assert (query.uses_since, query.sql(None)) == (False, sql)


def test_since_of_an_early_year_has_four_digits(tmp_path: Path) -> None:
    query = read_query(written(tmp_path, "SELECT 1 WHERE a >= :since"), "sqlite:///users.db")
    assert query.sql(datetime(999, 1, 2, tzinfo=timezone.utc)) == "SELECT 1 WHERE a >= '0999-01-02 00:00:00'"


def test_query_with_since_needs_a_time_with_an_offset(tmp_path: Path) -> None:
    query = read_query(written(tmp_path, "SELECT 1 WHERE a >= :since"), "sqlite:///users.db")
    with pytest.raises(ValueError, match=r"^query\.sql uses :since, so a time with an offset is needed, not None$"):
        query.sql(None)
    with pytest.raises(ValueError, match="an offset is needed"):
        query.sql(datetime(2026, 1, 13))


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("sqlite", "SELECT 1 AS [a;b]"),
        ("mssql+pyodbc", "SELECT 1 AS [a;b]"),
        ("mssql+pyodbc", "SELECT 1 /* /* */ ; */"),
        ("postgresql+psycopg", "SELECT 1 /* /* */ ; */"),
        ("postgresql+psycopg", "/* /* /* */ ; */ ' */ SELECT 1"),
        ("duckdb", "SELECT 1 /* /* */ ; */"),
        ("postgresql+psycopg", "SELECT a$b$ FROM t -- $b$ ; c"),
        ("sqlite", "SELECT 1 /* ; c"),
    ],
)
def test_semicolon_outside_the_code_is_no_second_statement(tmp_path: Path, backend: str, sql: str) -> None:
    assert read_query(written(tmp_path, sql), f"{backend}://host/name").text == sql


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("sqlite", "SELECT 1 /* /* */ ; SELECT 2 /* */ */"),
        ("mysql+pymysql", "SELECT 1 /* /* */ ; SELECT 2 /* */ */"),
        ("mysql+pymysql", "SELECT 5--1; SELECT 2"),
        ("postgresql+psycopg", "SELECT a[1]; SELECT b[1]"),
        ("postgresql+psycopg", "SELECT a$b$ FROM t; SELECT a$b$ FROM t"),
        ("sqlite", "SELECT $a$; SELECT $a$"),
        ("mysql+pymysql", "SELECT 1 /*! ; SELECT 2 */"),
    ],
)
def test_second_statement_is_refused_where_the_database_would_see_one(tmp_path: Path, backend: str, sql: str) -> None:
    path = written(tmp_path, sql)
    with pytest.raises(SourceError) as caught:
        read_query(path, f"{backend}://host/name")
    assert str(caught.value) == f"The query file {path} holds more than one statement; leave just one SELECT in it."


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("\n SELECT 1 ; \n;\n", "SELECT 1"),
        ("SELECT 1; -- the end; really", "SELECT 1"),
        ("SELECT 1 /* one */; /* ; */", "SELECT 1"),
        ("SELECT 1 -- the end", "SELECT 1 -- the end"),
        ("SELECT ';'", "SELECT ';'"),
        ("SELECT 1 /* not closed;", "SELECT 1 /* not closed;"),
    ],
)
def test_semicolon_at_the_end_is_left_out(tmp_path: Path, sql: str, text: str) -> None:
    assert read_query(written(tmp_path, sql), "sqlite:///users.db").text == text


def test_query_has_its_file_s_name_its_text_and_the_kind_of_its_database(tmp_path: Path) -> None:
    query = read_query(written(tmp_path, "\ufeff\nSELECT 1; \n;"), "postgresql+psycopg://host/name")
    assert (query.name, query.text, query.backend) == ("query.sql", "SELECT 1", "postgresql")
