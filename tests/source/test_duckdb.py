"""DuckDB: real files of its own, of CSV, JSON and Parquet, and what their values become."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from time import monotonic
from uuid import UUID

import duckdb
import pytest

from pipeline.model.records import Unreadable
from pipeline.model.text import PIP_INSTALL
from pipeline.sandbox import StandIn
from pipeline.source import SourceBusyError, SourceError
from tests.program import ROOT, Program, use_query
from tests.reading import Alarm, alarm, opened, problem, read, rows

MEMORY = "duckdb:///:memory:"
ENDLESS = "SELECT a.range AS id FROM range(100000000) AS a, range(100000000) AS b WHERE a.range * b.range = -1"
INFINITY = Unreadable("infinity", "is infinity, which can't be sent as a date")


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE TABLE users (id INTEGER, email VARCHAR)")
        database.execute("INSERT INTO users VALUES (1, 'ada@example.com'), (2, 'bob@example.com')")
    return path


# Rows and values --------------------------------------------------------------------------------------------------


def test_rows_of_a_file_come_in_the_order_of_the_query(users: Path) -> None:
    with opened("duckdb:///users.duckdb", "SELECT email, id FROM users ORDER BY id DESC", users.parent) as result:
        assert result.columns == ("email", "id")
        assert list(result.blocks) == [[("bob@example.com", 2), ("ada@example.com", 1)]]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS v; -- the end",
        "-- it's; the start\nSELECT 1 AS v -- the end",
        "/* /* */ ; */ FROM (SELECT 1 AS v)",
        "WITH a AS (SELECT 1 AS v) FROM a ORDER BY v LIMIT 1",
        "(SELECT 1 AS v)",
        'SELECT v FROM (SELECT 1 AS v) AS "a;b"',
    ],
)
def test_query_passes_to_the_letter(tmp_path: Path, sql: str) -> None:
    assert read(MEMORY, sql, tmp_path) == [{"v": 1}]


def test_query_without_rows_has_its_columns(users: Path) -> None:
    with opened("duckdb:///users.duckdb", "SELECT id, email FROM users WHERE id > 9", users.parent) as result:
        assert (result.columns, list(rows(result))) == (("id", "email"), [])


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("1::TINYINT", 1),
        ("170141183460469231731687303715884105727::HUGEINT", 2**127 - 1),
        ("19.90::DECIMAL(10, 2)", Decimal("19.90")),
        ("0.1::DOUBLE", 0.1),
        ("true", True),
        ("NULL", None),
        ("'zoë 😀'", "zoë 😀"),
        (r"'\x00\xFF'::BLOB", b"\0\xff"),
        ("DATE '2026-01-13'", date(2026, 1, 13)),
        ("TIMESTAMP '2026-01-13 08:45:12.5'", datetime(2026, 1, 13, 8, 45, 12, 500_000)),
        ("TIMESTAMP_S '2026-01-13 08:45:12'", datetime(2026, 1, 13, 8, 45, 12)),
        ("TIMESTAMP_NS '2026-01-13 08:45:12.123456789'", datetime(2026, 1, 13, 8, 45, 12, 123_456)),
        ("TIMESTAMPTZ '2026-01-13 08:45:12.5+01'", datetime(2026, 1, 13, 7, 45, 12, 500_000, timezone.utc)),
        ("TIME '08:45:12'", time(8, 45, 12)),
        ("INTERVAL '1 month 2 days'", timedelta(days=32)),
        ("'6ba7b810-9dad-11d1-80b4-00c04fd430c8'::UUID", UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
        ("'b'::ENUM('a', 'b')", "b"),
        ("'101'::BIT", "101"),
        ("[1, NULL]", [1, None]),
        ("{'tier': 'pro', 'since': DATE '2026-01-13'}", {"tier": "pro", "since": date(2026, 1, 13)}),
        ("MAP {'a': 1, 'b': NULL}", {"a": 1, "b": None}),
        ("""'{"a": [1, null, {"b": "zoë"}]}'::JSON""", {"a": [1, None, {"b": "zoë"}]}),
        ("'null'::JSON", None),
        ("37.09::FLOAT", 37.09),
        ("[37.09, NULL]::FLOAT[]", [37.09, None]),
        ("MAP {'a': 0.1::FLOAT}", {"a": 0.1}),
        ("[TIMESTAMPTZ '2026-01-13 08:45:12+01', NULL]", [datetime(2026, 1, 13, 7, 45, 12, tzinfo=timezone.utc), None]),
        (
            "{'a b': [{'at': TIMESTAMPTZ '2026-01-13 08:45:12Z', 'j': '[1]'::JSON}], 'c': 'x'}",
            {"a b": [{"at": datetime(2026, 1, 13, 8, 45, 12, tzinfo=timezone.utc), "j": [1]}], "c": "x"},
        ),
        ("[DATE '9999-12-31', NULL]", [date(9999, 12, 31), None]),
        ("DATE '9999-12-31'", date(9999, 12, 31)),
        ("TIMESTAMPTZ '9999-12-31 23:59:59.999999Z'", datetime.max.replace(tzinfo=timezone.utc)),
    ],
)
def test_value_comes_as_from_postgresql(tmp_path: Path, sql: str, value: object) -> None:
    rows = read(MEMORY, f"SELECT range AS i, CASE range WHEN 1 THEN {sql} END AS v FROM range(3)", tmp_path)
    assert rows == [{"i": 0, "v": None}, {"i": 1, "v": value}, {"i": 2, "v": None}]
    assert type(rows[1]["v"]) is type(value)


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("DATE 'infinity'", INFINITY),
        ("TIMESTAMP 'infinity'", INFINITY),
        ("TIMESTAMP_NS 'infinity'", INFINITY),
        ("TIMESTAMPTZ 'infinity'", INFINITY),
        ("DATE '-infinity'", Unreadable("-infinity", "is -infinity, which can't be sent as a date")),
        (
            "DATE '0044-03-15 (BC)'",
            Unreadable("0044-03-15 (BC)", "is before the year 1, which can't be sent as a date"),
        ),
        ("TIMESTAMP '12026-01-13 08:45:12'", Unreadable("12026-01-13 08:45:12", "is out of range")),
        ("TIMESTAMPTZ '12026-01-13 08:45:12Z'", Unreadable("12026-01-13 08:45:12+00", "is out of range")),
        ("TIME '24:00:00'", Unreadable("24:00:00", "is 24:00:00, which can't be sent as a time")),
    ],
)
def test_time_that_python_lacks_is_a_value_like_others(tmp_path: Path, sql: str, value: object) -> None:
    day = "DATE '2026-01-13' AS day"
    rows = read(MEMORY, f"SELECT {day}, CASE range WHEN 1 THEN {sql} END AS v FROM range(3)", tmp_path)
    assert [row["v"] for row in rows] == [None, value, None]
    assert {row["day"] for row in rows} == {date(2026, 1, 13)}


@pytest.mark.parametrize(
    "sql",
    [
        "[DATE 'infinity', DATE '2026-01-13']",
        "[DATE '2026-01-13', DATE '-infinity']",
        "[DATE '12026-01-13']",
        "array_value(DATE '2026-01-13', DATE 'infinity')",
        "{'tier': 'pro', 'at': TIMESTAMP 'infinity'}",
        "[union_value(at := TIMESTAMP 'infinity')]",
        "{'tier': 'pro', 'at': [TIME '24:00:00']}",
        "{'a': {'b': [{'c': TIMESTAMPTZ 'infinity'}]}}",
        "MAP {'a': DATE '2026-01-13', 'b': DATE '0044-03-15 (BC)'}",
        "MAP {DATE 'infinity': 1}",
    ],
)
def test_time_that_python_lacks_refuses_the_list_or_object_that_holds_it(tmp_path: Path, sql: str) -> None:
    rows = read(MEMORY, f"SELECT range AS i, CASE range WHEN 1 THEN {sql} END AS v FROM range(3)", tmp_path)
    problem = "holds a time that can't be sent: infinity, or not of the years 1 to 9999"
    assert [row["i"] for row in rows] == [0, 1, 2]
    assert [type(row["v"]) for row in rows] == [type(None), Unreadable, type(None)]
    assert rows[1]["v"].problem == problem


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("(repeat('[', 3000) || repeat(']', 3000))::JSON", "is nested too deep"),
        ("repeat('9', 5000)::JSON", "is JSON that can't be read"),
    ],
)
def test_json_that_python_can_not_read_is_a_value_like_others(tmp_path: Path, sql: str, problem: str) -> None:
    rows = read(MEMORY, f"SELECT range AS i, CASE range WHEN 1 THEN {sql} ELSE '[1]' END AS v FROM range(3)", tmp_path)
    assert [(row["i"], getattr(row["v"], "problem", row["v"])) for row in rows] == [(0, [1]), (1, problem), (2, [1])]


def test_times_with_a_zone_need_neither_pytz_nor_a_time_zone_database(tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_text("SELECT TIMESTAMPTZ '2026-01-13 08:45:12+01' AS v, [TIMESTAMPTZ 'epoch'] AS w")
    code = (
        "import sys; sys.modules['pytz'] = None; from pathlib import Path; from pipeline.source import *\n"
        f"url = '{MEMORY}'\n"
        "with open_query(url, read_query(Path(sys.argv[1]), url), root=Path('/')) as query:\n"
        "    print(next(query.blocks)[0][0], 'sqlalchemy' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "query.sql")]
    bare = {**os.environ, "PYTHONTZPATH": "", "TZ": "America/New_York"}
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    assert done.stdout == "2026-01-13 07:45:12+00:00 False\n"


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """All at once, they are 400 MB. In a process of its own, as DuckDB's memory is not Python's."""
    (tmp_path / "query.sql").write_text("SELECT range AS id, repeat('x', 1000) || range AS v FROM range(400000)")
    code = (
        "import sys; from pathlib import Path; from pipeline.source import *\n"
        f"url = '{MEMORY}'\n"
        "with open_query(url, read_query(Path(sys.argv[1]), url), root=Path('/')) as query:\n"
        "    print(sum(row[0] for block in query.blocks for row in block))\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "query.sql")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    total, peak_kib = map(int, done.stdout.split())
    assert total == sum(range(400_000))
    assert peak_kib < 200 * 1024


def test_rows_stay_in_the_order_that_the_query_asks_for(tmp_path: Path) -> None:
    sql = "SELECT hash(range) AS h, TIMESTAMP '2026-01-13' AS at FROM range(200000) ORDER BY h"
    hashes = [row["h"] for row in read(MEMORY, sql, tmp_path)]
    assert (len(hashes), hashes) == (200_000, sorted(hashes))


# Files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("id,email\n1,ada@example.com\n")
    (folder / "b.csv").write_text("id,email\n2,bob@example.com\n")
    (folder / "c.json").write_text('{"id": 3, "email": "cy@example.com", "plan": {"tier": "pro"}}\n')
    duckdb.execute(f"COPY (SELECT 4 AS id, 'di@example.com' AS email, ['a', 'b'] AS tags) TO '{folder}/d.parquet'")
    return tmp_path


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT * FROM 'data/a.csv'", [{"id": 1, "email": "ada@example.com"}]),
        ("SELECT id FROM 'data/*.csv' ORDER BY id", [{"id": 1}, {"id": 2}]),
        ("FROM read_json('data/c.json')", [{"id": 3, "email": "cy@example.com", "plan": {"tier": "pro"}}]),
        ("FROM 'data/d.parquet'", [{"id": 4, "email": "di@example.com", "tags": ["a", "b"]}]),
    ],
)
def test_relative_names_in_a_query_start_at_the_root(
    files: Path, sql: str, rows: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    assert read(MEMORY, sql, files) == rows


def test_run_over_parquet_files_needs_no_database(program: Program, iterable: StandIn, files: Path) -> None:
    use_query(program, f"SELECT email, tags FROM '{files}/data/*.parquet'")
    run = program.run(DATABASE_URL=MEMORY, USER_FIELDS="tags", EVENT_FIELDS="-")
    assert (run.code, run.err) == (0, "")
    assert [user["dataFields"] for user in iterable.project.users.values()] == [{"tags": ["a", "b"]}]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("duckdb:///missing.duckdb", "DATABASE_URL names the DuckDB file {0}/missing.duckdb, which does not exist."),
        ("duckdb:////{0}", "DATABASE_URL names {0}, which is not a file."),
        ("duckdb:///query.sql", "DATABASE_URL names {0}/query.sql, which is not a DuckDB file."),
        (
            "duckdb://",
            "DATABASE_URL names no file; write duckdb:///warehouse.duckdb, duckdb:////srv/warehouse.duckdb, or "
            "duckdb:///:memory: to query files.",
        ),
        (
            "duckdb://users.duckdb",
            "DATABASE_URL names no file; write duckdb:///warehouse.duckdb, duckdb:////srv/warehouse.duckdb, or "
            "duckdb:///:memory: to query files.",
        ),
    ],
)
def test_database_that_is_not_there_is_named_and_not_created(tmp_path: Path, url: str, reason: str) -> None:
    assert problem(url.format(tmp_path).replace("////", "///"), "SELECT 1 AS id", tmp_path) == reason.format(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["query.sql"]


def test_options_in_the_url_are_duckdb_s(users: Path) -> None:
    sql = "SELECT current_setting('threads') AS threads, count(*) AS n FROM users"
    assert read("duckdb:///users.duckdb?threads=1", sql, users.parent) == [{"threads": 1, "n": 2}]
    assert read(f"{MEMORY}?threads=1", "SELECT current_setting('threads') AS n", users.parent) == [{"n": 1}]
    assert problem("duckdb:///users.duckdb?thread=1", sql, users.parent) == (
        "The database can't be reached: Invalid Input Error: The following options were not recognized: thread."
    )


def test_file_of_an_old_duckdb_is_told(tmp_path: Path) -> None:
    head = "c-mvU@F;nXu%(?#sI#{=0|c-Du>!*=7zLwX6pVsVFbYP&C>RB!U=)mkQ7{UI3jhEbi"
    head += "3GC"
    (tmp_path / "old.duckdb").write_bytes(zlib.decompress(base64.b85decode(head)))  # the head of one that 0.7.1 made
    message = problem("duckdb:///old.duckdb", "SELECT 1 AS id", tmp_path)
    assert message.startswith("The database can't be reached: IO Error: Trying to read a database file with ")
    assert "version number 43" in message


@contextmanager
def held(path: Path, *, read_only: bool) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the file open, as a dbt run or a notebook has."""
    code = (
        f"import duckdb, sys; database = duckdb.connect({str(path)!r}, read_only={read_only})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.communicate()


def test_file_that_another_process_writes_to_is_busy(users: Path) -> None:
    with (
        held(users, read_only=False) as writer,
        pytest.raises(SourceBusyError) as caught,
        opened("duckdb:///users.duckdb", "FROM users", users.parent),
    ):
        pass
    assert str(caught.value) == (
        f'The database can\'t be reached: IO Error: Could not set lock on file "{users}": '
        f"Conflicting lock is held in {Path(sys.executable).resolve()} (PID {writer.pid})."
    )
    assert len(read("duckdb:///users.duckdb", "FROM users", users.parent)) == 2


def test_file_that_another_process_reads_is_read(users: Path) -> None:
    with held(users, read_only=True):
        assert len(read("duckdb:///users.duckdb", "FROM users", users.parent)) == 2


# What a query may not do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sql",
    [
        "COPY users TO 'copy.csv'",
        "COPY (SELECT 1) TO 'copy.parquet'",
        "ATTACH 'other.duckdb' AS other",
        "EXPORT DATABASE 'folder'",
        "INSTALL httpfs",
        "LOAD json",
        "PRAGMA threads = 1",
        "CREATE TABLE t (id INTEGER)",
        "CREATE TEMP TABLE t (id INTEGER)",
        "INSERT INTO users VALUES (3, 'eve@example.com') RETURNING id",
        "UPDATE users SET id = 9 RETURNING id",
        "DELETE FROM users",
        "SET threads = 1",
        "CALL pragma_version()",
        "EXPLAIN SELECT 1",
        "VACUUM",
        "CHECKPOINT",
    ],
)
@pytest.mark.parametrize("url", ["duckdb:///users.duckdb", MEMORY])
def test_all_but_a_select_is_refused_and_changes_nothing(
    users: Path, url: str, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(users.parent)  # where a file without a folder would be made
    before = users.read_bytes()
    assert problem(url, sql, users.parent) == "The query in query.sql can't be run: it must be one SELECT."
    assert users.read_bytes() == before
    assert sorted(each.name for each in users.parent.iterdir()) == ["query.sql", "users.duckdb"]


def test_select_that_writes_is_refused(users: Path) -> None:
    sql = "WITH new AS (INSERT INTO users VALUES (3, 'eve@example.com') RETURNING id) SELECT id FROM new"
    assert problem("duckdb:///users.duckdb", sql, users.parent).startswith("The query in query.sql can't be run: ")
    assert len(read("duckdb:///users.duckdb", "FROM users", users.parent)) == 2


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELEC 1", 'can\'t be run: Parser Error: syntax error at or near "SELEC".'),
        (
            "SELECT a_b FROM (SELECT 1 AS id)",
            'can\'t be run: Binder Error: Referenced column "a_b" not found in FROM clause! Candidate bindings: "id".',
        ),
        ("FROM 'data/none.csv'", 'can\'t be run: IO Error: No files found that match the pattern "data/none.csv".'),
        ("SELECT id, id FROM users", "has more than one column named id; rename them with AS."),
    ],
)
def test_broken_query_is_told_in_one_sentence(users: Path, sql: str, reason: str) -> None:
    assert problem("duckdb:///users.duckdb", sql, users.parent) == f"The query in query.sql {reason}"


def test_failure_in_a_later_row_is_explained(users: Path) -> None:
    sql = "SELECT repeat('x', 1000) || CASE range WHEN 50000 THEN error('late') ELSE '' END AS v FROM range(100000)"
    message = problem("duckdb:///users.duckdb?threads=1", sql, users.parent)
    assert message.startswith("The query in query.sql failed while its rows were read: Invalid Input Error: ")
    assert message.endswith("late.")


def test_extension_is_not_installed_without_being_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SourceError) as caught:
        read(MEMORY, "FROM 's3://bucket/users.parquet'", tmp_path)
    assert str(caught.value) == (
        "The query in query.sql can't be run: DuckDB's extension httpfs is not installed; run: "
        "python -c \"import duckdb; duckdb.install_extension('httpfs')\""
    )
    assert caught.value.remedy == ""  # neither DATABASE_URL nor the query is wrong
    assert [each.name for each in tmp_path.iterdir()] == ["query.sql"]


def test_motherduck_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where its extension is not installed
    message = problem("duckdb:///md:shop?motherduck_token=secret", "SELECT 1 AS id", tmp_path)
    assert message == (
        "The database can't be reached: DuckDB's extension motherduck is not installed; run: "
        "python -c \"import duckdb; duckdb.install_extension('motherduck')\""
    )


def test_name_of_a_table_never_means_a_variable_of_this_program(tmp_path: Path) -> None:
    connection = duckdb.sql("SELECT 1 AS id")  # noqa: F841 - what DuckDB by itself would find
    assert "Table with name connection does not exist" in problem(MEMORY, "FROM connection", tmp_path)


def test_duckdb_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert problem(MEMORY, "SELECT 1 AS id", tmp_path) == (
        f"The database can't be reached: its driver is not installed; run: {PIP_INSTALL} duckdb"
    )


# Stopping ---------------------------------------------------------------------------------------------------------


def test_query_at_work_ends_when_asked_to_stop(tmp_path: Path) -> None:
    begun = monotonic()
    with (
        pytest.raises(SourceError, match=r"^The query in query\.sql can't be run: interrupted\.$"),
        opened(MEMORY, ENDLESS, tmp_path, should_stop=lambda: monotonic() > begun + 0.5),
    ):
        pass


def test_reading_ends_when_asked_to_stop_though_rows_come_at_once(tmp_path: Path) -> None:
    asked: list[bool] = []
    with opened(MEMORY, "FROM range(100000000)", tmp_path, should_stop=lambda: bool(asked)) as result:
        next(result.blocks)
        asked.append(True)
        with pytest.raises(
            SourceError, match=r"^The query in query\.sql failed while its rows were read: interrupted\.$"
        ):
            next(result.blocks)


def test_signal_while_duckdb_is_imported_ends_the_run_by_it(tmp_path: Path) -> None:
    """What a handler raises in the middle of this import aborts the process, or is dropped."""
    (tmp_path / "query.sql").write_text(ENDLESS)
    code = (
        "import os, signal, sys, threading; from pathlib import Path; from pipeline.source import *\n"
        "class Asked(BaseException): pass\n"
        "def ask(*_): raise Asked\n"
        "signal.signal(signal.SIGTERM, ask)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == '_duckdb':\n"
        "            print(threading.current_thread().name, flush=True)\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"url = '{MEMORY}'\n"
        "try:\n"
        "    with open_query(url, read_query(Path(sys.argv[1]), url), root=Path('/')): pass\n"
        "except Asked: print('asked', flush=True)\n"
        "os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "query.sql")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "duckdb\nasked\n", "")


def test_signal_ends_a_query_at_work(tmp_path: Path) -> None:
    with pytest.raises(Alarm), alarm(), opened(MEMORY, ENDLESS, tmp_path):
        pass


def test_signal_ends_the_wait_for_the_next_rows(tmp_path: Path) -> None:
    sql = f"SELECT range AS id FROM range(10000) UNION ALL ({ENDLESS})"
    with pytest.raises(Alarm), alarm(), opened(MEMORY, sql, tmp_path) as result:
        list(result.blocks)


# :since -----------------------------------------------------------------------------------------------------------

SINCE = datetime(2026, 1, 13, 8, 45, 12, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("type_", "before", "value"),
    [
        ("TIMESTAMP", "2026-01-13 08:45:11", datetime(2026, 1, 13, 8, 45, 12)),
        ("TIMESTAMPTZ", "2026-01-13 08:45:11Z", SINCE),
        ("DATE", "2026-01-12", date(2026, 1, 13)),
        ("VARCHAR", "2026-01-13 08:45:11", "2026-01-13 08:45:12"),
    ],
)
def test_since_is_in_utc_whatever_the_machine_s_time_zone(
    tmp_path: Path, type_: str, before: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    sql = f"SELECT v FROM (VALUES ('{before}'::{type_}), ('{value}'::{type_})) AS t (v) WHERE v >= :since"
    assert read(MEMORY, sql, tmp_path, SINCE) == [{"v": value}]
