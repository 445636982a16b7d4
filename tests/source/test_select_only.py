"""What is no query is refused before the database is connected to: none of these servers is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.source.errors import SourceError
from pipeline.source.select_only import refuse_all_but_select
from tests.reading import problem


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("postgresql", "SELECT 1"),
        ("postgresql", "((SELECT 1) UNION (SELECT 2))"),
        ("postgresql", "VALUES (1), (2)"),
        ("postgresql", "WITH a AS (SELECT 1 AS v) SELECT v FROM a EXCEPT SELECT 2"),
        ("postgresql", "SELECT (ARRAY[1, 2, 3])[1:2], a -> 'b' ->> 'c', E'\\'; DROP TABLE x' FROM t"),
        ("postgresql", "SELECT * FROM t WHERE a %% some_new_operator @@@ b"),  # what it can't read, its session holds
        ("mysql", r"SELECT '\'; DROP TABLE x; -- '"),
        ("impala", r"SELECT 'it\'s; ok' FROM t LATERAL VIEW explode(tags) x AS tag"),
        ("hive", "FROM (SELECT 1 AS v) a SELECT v"),
        ("databricks", "SELECT a:b.c::string FROM t QUALIFY row_number() OVER (ORDER BY 1) = 1"),
        ("bigquery", "SELECT * EXCEPT (a) FROM `p.d.t`"),
        ("snowflake", "SELECT src:a.b::string FROM t, LATERAL FLATTEN(input => x)"),
        ("trino", "SELECT * FROM t WHERE a >= TIMESTAMP '2026-01-13 08:45:12'"),
        ("redshift", "SELECT TOP 3 a FROM t"),
        ("mssql", "SELECT TOP 3 [a b] FROM t WITH (NOLOCK)"),
        ("oracle", "SELECT a FROM t FETCH FIRST 3 ROWS ONLY"),
        ("awsathena", "SELECT a FROM t TABLESAMPLE BERNOULLI (10)"),
        ("exotic", "SELECT a FROM t"),
    ],
)
def test_query_passes(backend: str, sql: str) -> None:
    refuse_all_but_select(sql, backend, "query.sql")


@pytest.mark.parametrize("backend", ["postgresql", "mysql", "impala", "hive", "databricks", "trino", "mssql", "exotic"])
@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("DROP TABLE victim", "is DROP"),
        ("DELETE FROM victim", "is DELETE"),
        ("INSERT INTO victim SELECT 1", "is INSERT"),
        ("UPDATE victim SET a = 1", "is UPDATE"),
        ("CREATE TABLE more AS SELECT 1 AS a", "is CREATE"),
        ("TRUNCATE TABLE victim", "is TRUNCATE TABLE"),
        ("WITH a AS (SELECT 1 AS v) INSERT INTO victim SELECT v FROM a", "is INSERT"),
        ("SELECT a INTO victim FROM t", "has SELECT INTO, which writes"),
        ("SELECT 1; DROP TABLE victim", "holds more than one statement"),
    ],
)
def test_all_else_is_refused_whatever_the_database(backend: str, sql: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        refuse_all_but_select(sql, backend, "query.sql")
    assert str(caught.value) == f"The query in query.sql {reason}; it must be one SELECT."


@pytest.mark.parametrize(
    ("backend", "sql", "reason"),
    [
        ("impala", "CACHE TABLE t", "is not a query"),
        ("impala", "SELECT TRANSFORM(a) USING 'rm' FROM t", "runs a program (TRANSFORM)"),
        ("postgresql", "WITH gone AS (DELETE FROM t RETURNING 1) SELECT 1", "has DELETE in it"),
        ("postgresql", "EXPLAIN ANALYZE DELETE FROM t", "is not a query"),
        ("snowflake", "CALL clean_up()", "is not a query"),
        ("mssql", "EXEC clean_up", "is not a query"),
        ("mysql", "SHOW TABLES", "is not a query"),
        ("mysql", "SELECT 1 FROM t LOCK IN SHARE MODE", "locks the rows that it reads (FOR UPDATE or FOR SHARE)"),
        ("oracle", "SELECT 1 FROM t FOR UPDATE", "locks the rows that it reads (FOR UPDATE or FOR SHARE)"),
    ],
)
def test_what_one_database_alone_has_is_refused(backend: str, sql: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        refuse_all_but_select(sql, backend, "query.sql")
    assert str(caught.value) == f"The query in query.sql {reason}; it must be one SELECT."


@pytest.mark.parametrize(
    ("backend", "sql", "place"),
    [
        ("impala", "SELECT a b c FROM t", "line 1, column 12"),
        ("mysql", "SELECT 1 INTO OUTFILE '/tmp/x'", "line 1, column 30"),
        ("postgresql", "HANDLER t OPEN", "line 1, column 14"),
        ("trino", "SELECT (((1)", "line 1, column 12"),
        ("trino", "SELECT 'a", "it has an unclosed quote or bracket"),
        ("trino", "SELECT " + "(" * 5000 + "1" + ")" * 5000, "it is nested too deep"),
    ],
)
def test_what_nothing_can_vouch_for_is_refused_with_the_way_out(backend: str, sql: str, place: str) -> None:
    with pytest.raises(SourceError) as caught:
        refuse_all_but_select(sql, backend, "query.sql")
    assert str(caught.value) == (
        f"The query in query.sql can't be read as the SQL of {backend} ({place}), so nothing says that it changes no "
        "data; correct it, or put it into a view and select from that."
    )


def test_an_insert_that_begins_with_from_is_refused() -> None:
    with pytest.raises(SourceError):  # older parsers can't read it
        refuse_all_but_select("FROM t INSERT INTO victim SELECT *", "impala", "query.sql")


@pytest.mark.parametrize("url", ["impala://127.0.0.1:9/default", "databricks://token:x@127.0.0.1?http_path=/x"])
def test_refusal_comes_before_the_connection(tmp_path: Path, url: str) -> None:
    assert problem(url, "DROP TABLE victim", tmp_path) == "The query in query.sql is DROP; it must be one SELECT."


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("mssql", "SELECT 1\nDELETE FROM victim"),
        ("mssql", "SELECT a FROM b\nEXEC('drop table victim')"),
        ("mssql", "SELECT a FROM b\nSHUTDOWN"),
        ("mssql", "SELECT a FROM b /* x */ UPDATE victim SET a = 1"),
        ("mssql", "SELECT * FROM OPENQUERY(s, 'drop table victim')"),
        ("mssql", "SELECT * FROM victim WITH (UPDLOCK)"),
        ("mssql", "SELECT NEXT VALUE FOR s"),
        ("cockroachdb", "SELECT * FROM [DELETE FROM victim RETURNING a]"),
        ("cockroachdb", "SELECT * FROM t WHERE a some_new_operator @@@ b"),
    ],
)
def test_what_the_parser_takes_for_something_else_is_refused(backend: str, sql: str) -> None:
    with pytest.raises(SourceError):
        refuse_all_but_select(sql, backend, "query.sql")


@pytest.mark.parametrize(
    ("backend", "sql"),
    [
        ("mssql", "SELECT [delete], 'exec' AS a, \"use\" FROM [set] /* update */ -- drop"),
        (
            "mssql",
            "SELECT deleted, last_update, is_set FROM t",
        ),
        ("cockroachdb", "SELECT tags[1], ARRAY[a, b] FROM t"),
    ],
)
def test_names_and_texts_are_no_statements(backend: str, sql: str) -> None:
    refuse_all_but_select(sql, backend, "query.sql")
