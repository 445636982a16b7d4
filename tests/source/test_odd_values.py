"""Odd values of each type, one in each row: only its own record may be rejected, and every other one is sent.

One run of the whole job for each driver: row i has the i-th value in column v<i>, and NULL in all others.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence

import pytest

from tests.program import Program, use_query

POSTGRESQL_REJECTED = [
    "'infinity'::date", "'-infinity'::date", "'0044-03-15 BC'::date", "'12026-01-13'::date", "'infinity'::timestamp",
    "'0001-01-01 BC'::timestamp", "'294276-12-31'::timestamp", "'-infinity'::timestamptz",
    "'4713-01-01 BC'::timestamptz", "'9999-12-31 23:59:59.999999-15'::timestamptz", "'24:00:00'::time",
    "'24:00:00+05'::timetz", "'178000000 years'::interval", "'-178000000 years'::interval", "'NaN'::numeric",
    "'Infinity'::numeric", "repeat('9', 5000)::numeric", "'NaN'::float8", "'-Infinity'::float4", r"'\x00ff'::bytea",
    "ARRAY['infinity'::date]", "ARRAY['NaN'::numeric]", "'[2026-01-13,infinity)'::daterange", "'empty'::int4range",
    "'[1,)'::int8range", "'(,)'::numrange",
    "'[0044-03-15 BC,2026-01-13)'::daterange", "ARRAY['[1,2]'::int4range]",
    "(repeat('[', 3000) || repeat(']', 3000))::json", "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "(repeat('9', 5000))::json", "(repeat('9', 5000))::jsonb", "('1e400')::json", "('1e400')::jsonb",
    "('[1.0, 100000000000000000000]')::json", "('[1.0, 100000000000000000000]')::jsonb",
]  # fmt: skip
POSTGRESQL_SENT = [
    "'9999-12-31'::date", "'0001-01-01'::timestamp", "'00:00:00-15:59:59'::timetz", "'23:59:59.999999'::time",
    "'1 mon -1 day'::interval", "'-00:00:01'::interval", "('0.' || repeat('1', 5000))::numeric", "1e308::float8",
    "1e-320::float8", "37.09::float4", "9223372036854775807", "B'101'", "B''::varbit",
    "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid", "'192.0.2.0/24'::cidr", "'::1'::inet",
    "'08:00:2b:01:02:03'::macaddr", "''::bytea", "'a & b'::tsquery", "'a:1'::tsvector", "'$1,000.00'::money",
    "'(1,2)'::point", "'<(1,2),3>'::circle", "ROW(1, 'a')", "'{}'::int[]", "'{{1,2},{3,NULL}}'::int[]",
    "'[0:1]={1,2}'::int[]", "ARRAY[NULL]::text[]", "'1 day'::interval::text", "chr(1)", "chr(1114111)",
    "repeat('x', 100000)", '\'x\'::"char"', "'pg_class'::regclass", "('-0')::json", "('-0')::jsonb",
    "('1e-400')::json", "('1e-400')::jsonb", "('null')::json", "('null')::jsonb", """('{"a": 1, "a": 2}')::json""",
    """('{"a": 1, "a": 2}')::jsonb""", """('{"": {"": [[[]]]}}')::json""", """('{"": {"": [[[]]]}}')::jsonb""",
    r"""('"\ud83e\udd8a"')::json""", r"""('"\ud83e\udd8a"')::jsonb""",
]  # fmt: skip
MYSQL_REJECTED = [
    "CAST('0000-00-00' AS DATE)", "DATE('2026-00-00')", "b'111111111'", "x'00ff'", "18446744073709551615",
    "99999999999999999999999999999999999999999999999999999999999999999", "ST_GeomFromText('POINT(1 2)')",
]  # fmt: skip
MYSQL_SENT = [
    "STR_TO_DATE('0000-00-00', '%%Y-%%m-%%d')", "DATE '9999-12-31'", "CAST('838:59:59' AS TIME)",
    "CAST('-838:59:59.5' AS TIME(1))", "TIMESTAMP '0001-01-01 00:00:00'", "MAKEDATE(1, 1)", "b'1'", "x''", "1e308",
    "0.1e0", "1/3", "CAST(1 AS DECIMAL(65, 30))", "NULL", "REPEAT('x', 100000)", "CHAR(0)", "_latin1 x'e9'",
    "CONVERT(x'e9' USING latin1)", "CAST('a' AS BINARY(3))", "YEAR('2026-01-13')", "FROM_UNIXTIME(0)",
    "SEC_TO_TIME(-1)", "TRUE", "JSON_EXTRACT(CONCAT('[', repeat('9', 5000), ']'), '$')",
    "JSON_EXTRACT(CONCAT('[', '1e400', ']'), '$')", "JSON_EXTRACT(CONCAT('[', '-0', ']'), '$')",
    "JSON_EXTRACT(CONCAT('[', '1e-400', ']'), '$')", "JSON_EXTRACT(CONCAT('[', 'null', ']'), '$')",
    """JSON_EXTRACT(CONCAT('[', '{"a": 1, "a": 2}', ']'), '$')""",
    """JSON_EXTRACT(CONCAT('[', '{"": {"": [[[]]]}}', ']'), '$')""",
    r"""JSON_EXTRACT(CONCAT('[', '"\ud83e\udd8a"', ']'), '$')""",
    "JSON_EXTRACT(CONCAT('[', '[1.0, 100000000000000000000]', ']'), '$')",
]  # fmt: skip
DUCKDB_REJECTED = [
    "DATE 'infinity'", "DATE '-infinity'", "DATE '0044-03-15 (BC)'", "DATE '12026-01-13'", "TIMESTAMP '290000-01-01'",
    "TIMESTAMPTZ 'infinity'", "TIMESTAMP_S '12026-01-13'", "TIME '24:00:00'", "INTERVAL '178000000 years'",
    "'nan'::FLOAT", "'inf'::DOUBLE", "'-inf'::FLOAT", "170141183460469231731687303715884105727::HUGEINT",
    r"'\x00\xFF'::BLOB", "99999999999999999999999999999999999999::DECIMAL(38, 0)", "[DATE 'infinity']",
    "MAP {DATE 'infinity': 1}", "{'a': [TIMESTAMP 'infinity']}", "union_value(at := DATE 'infinity')",
    "['nan'::DOUBLE]", "340282366920938463463374607431768211455::UHUGEINT",
    "(repeat('[', 3000) || repeat(']', 3000))::JSON", "(repeat('9', 5000))::JSON", "('1e400')::JSON",
    "('[1.0, 100000000000000000000]')::JSON",
]  # fmt: skip
DUCKDB_SENT = [
    "TIMESTAMP_NS '1677-09-22'", "TIMETZ '24:00:00+05'", "TIMETZ '08:45:12-15:59:59'", "INTERVAL '-1 month 1 day'",
    "1e38::FLOAT", "'101'::BIT", "0.1::DECIMAL(38, 38)", "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::UUID",
    "MAP {[1]: 2}", "MAP {{'a': 1}: 2}", "[NULL]", "[]", "{'a': NULL}", "MAP {}", "repeat('x', 100000)",
    "'a'::ENUM('a')", "array_value(1.5::FLOAT, NULL)", "chr(1)", "('-0')::JSON", "('1e-400')::JSON", "('null')::JSON",
    """('{"a": 1, "a": 2}')::JSON""", """('{"": {"": [[[]]]}}')::JSON""", r"""('"\ud83e\udd8a"')::JSON""",
]  # fmt: skip
SQLITE_REJECTED = [
    "9e999", "-9e999", "x'00ff'", "CAST(x'636166e9' AS TEXT)", "CAST(x'eda080' AS TEXT)",
]  # fmt: skip
SQLITE_SENT = [
    "1e-320", "9223372036854775807", "x''", "char(0)", "char(1)", "char(1114111)",
    "replace(hex(zeroblob(3000)), '0', '[')", "replace(hex(zeroblob(3000)), '0', '9')", "''", "'0000-00-00'",
    "'24:00:00'", "2460324.5", "zeroblob(100000)", "'infinity'",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """As SQL of PostgreSQL, MySQL and DuckDB: odd characters, the same in each run."""
    chance = random.Random(22)
    alphabet = '\t\n\r\x0b\x7f\x85\u2028\u200b\ufeff\ufffd😀é0aZ"{}[],:;%_@.-+/$`'
    return [f"'{''.join(chance.choices(alphabet, k=chance.randint(1, 12)))}'" for _ in range(count)]


def query_of(values: Sequence[str], numbers: str) -> str:
    columns = ", ".join(f"CASE i WHEN {place} THEN {value} END AS v{place}" for place, value in enumerate(values))
    return f"SELECT i AS user_id, {columns} FROM {numbers}"


def rejected_in_a_run(program: Program, url: str, values: Sequence[str], numbers: str) -> set[str]:
    """The values that are rejected; all others are delivered, and so is the last row, which has none of them."""
    use_query(program, query_of(values, numbers.format(len(values))))
    fields = ",".join(f"v{place}" for place in range(len(values)))
    settings = {"DATABASE_URL": url, "USER_FIELDS": fields, "EVENT_FIELDS": "-", "ITERABLE_IDENTIFIER": "userId"}
    run = program.run(**settings)  # type: ignore[arg-type]
    (path,) = run.files("rejected_rows_*.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rejected = {values[int(row["user_id"])] for row in csv.DictReader(file)}
    delivered = len(values) + 1 - len(rejected)
    assert (run.code, run.counts("users")) == (
        1,
        {"delivered": delivered, "rejected": len(rejected)},
    )
    return rejected


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_odd_values_of_postgresql(program: Program, postgresql_url: str, driver: str) -> None:
    pytest.importorskip(driver)
    values = [*POSTGRESQL_REJECTED, *POSTGRESQL_SENT, *random_texts(40)]
    url = postgresql_url.replace("psycopg", driver)
    assert rejected_in_a_run(program, url, values, "generate_series(0, {}) AS i") == set(POSTGRESQL_REJECTED)


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb"])
def test_odd_values_of_mysql(program: Program, mysql_url: str, driver: str) -> None:
    pytest.importorskip({"mysqldb": "MySQLdb"}.get(driver, driver))
    values = [*MYSQL_REJECTED, *MYSQL_SENT, *random_texts(40)]
    url, numbers = mysql_url.replace("pymysql", driver), "(SELECT seq AS i FROM seq_0_to_{}) AS numbers"
    assert rejected_in_a_run(program, url, values, numbers) == set(MYSQL_REJECTED)


def test_odd_values_of_duckdb(program: Program) -> None:
    values = [*DUCKDB_REJECTED, *DUCKDB_SENT, *random_texts(40)]
    numbers = "range({} + 1) AS numbers (i)"
    assert rejected_in_a_run(program, "duckdb:///:memory:", values, numbers) == set(DUCKDB_REJECTED)


def test_odd_values_of_sqlite(program: Program, sample: object) -> None:
    values = [*SQLITE_REJECTED, *SQLITE_SENT, *random_texts(40)]
    numbers = "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n)"
    assert rejected_in_a_run(program, program.settings["DATABASE_URL"], values, numbers) == set(SQLITE_REJECTED)
