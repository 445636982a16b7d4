"""What servers do to a run, and a run to servers: outages, cut connections, stops, sessions. On the real thing."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from pipeline.model.text import PIP_INSTALL
from pipeline.sandbox import StandIn
from pipeline.source import SourceBusyError, SourceError, open_query, read_query
from tests.program import Finished, Program, use_query
from tests.reading import Alarm, alarm, opened, problem, read, rows

DRIVERS = ["psycopg", "psycopg2"]


@pytest.fixture(params=["psycopg", "psycopg2", "pymysql"])
def server(request: pytest.FixtureRequest) -> str:
    """The URL of a real server, by each of the drivers."""
    pytest.importorskip(request.param)
    if request.param == "pymysql":
        return str(request.getfixturevalue("mysql_url"))
    url = str(request.getfixturevalue("postgresql_url"))
    return url.replace("psycopg", request.param)


def is_mysql(url: str) -> bool:
    return url.startswith("mysql")


def tell(url: str, *statements: str) -> list[Any]:
    """What the last statement finds, by a connection beside the job's."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            results = [connection.exec_driver_sql(statement) for statement in statements]
            return list(results[-1]) if results and results[-1].returns_rows else []
    finally:
        engine.dispose()


# Temporary or permanent -------------------------------------------------------------------------------------------


def is_busy(url: str, sql: str, folder: Path) -> bool:
    with pytest.raises(SourceError) as caught:
        read(url, sql, folder)
    assert "\n" not in str(caught.value)
    return isinstance(caught.value, SourceBusyError)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "mysql+pymysql"])
@pytest.mark.parametrize("place", ["127.0.0.1:9", "nowhere.invalid"])
def test_server_that_is_not_there_is_for_later(tmp_path: Path, driver: str, place: str) -> None:
    pytest.importorskip(driver.partition("+")[2])
    assert is_busy(f"{driver}://user:secret@{place}/name", "SELECT 1 AS id", tmp_path)


def test_server_that_never_answers_is_for_later(tmp_path: Path, server: str) -> None:
    query_file = tmp_path / "query.sql"
    query_file.write_text("SELECT 1 AS id")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{server.partition('://')[0]}://user:secret@127.0.0.1:{silent.getsockname()[1]}/name"
        begun = time.monotonic()
        with (
            pytest.raises(SourceBusyError, match=r"^The database can't be reached: no answer within 0\.2 s\.$"),
            open_query(url, read_query(query_file, url), root=tmp_path, connect_limit_s=0.2),
        ):
            pass
    assert time.monotonic() - begun < LIMIT_S


def test_unknown_database_and_bad_sql_are_for_good(tmp_path: Path, server: str) -> None:
    name = "/test" if is_mysql(server) else "/postgres?"
    assert not is_busy(server.replace(name, f"/nothing{name[9:]}"), "SELECT 1 AS id", tmp_path)
    assert not is_busy(server, "SELECT timed_out, connection_lost FROM nothing", tmp_path)


def test_wrong_password_is_for_good(tmp_path: Path, mysql_url: str) -> None:
    assert not is_busy(mysql_url.replace("root@", "root:wrong@"), "SELECT 1 AS id", tmp_path)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("state", "busy"),
    [
        *[("08006", True), ("40001", True), ("40P01", True), ("53200", True), ("55P03", True), ("57P01", True)],
        *[("22012", False), ("42P01", False), ("28P01", False), ("XX000", False)],
    ],
)
def test_sqlstate_says_what_is_for_later(
    tmp_path: Path, postgresql_url: str, driver: str, state: str, busy: bool
) -> None:
    pytest.importorskip(driver)
    url = postgresql_url.replace("psycopg", driver)
    function = f"""CREATE OR REPLACE FUNCTION fail_with_{state.lower()}() RETURNS integer LANGUAGE plpgsql AS
        $$BEGIN RAISE EXCEPTION 'timed out' USING ERRCODE = '{state}'; END$$"""
    tell(postgresql_url, function)
    assert is_busy(url, f"SELECT fail_with_{state.lower()}() AS id", tmp_path) is busy


@pytest.mark.parametrize("driver", DRIVERS)
def test_too_many_connections_are_for_later(tmp_path: Path, postgresql_url: str, driver: str) -> None:
    pytest.importorskip(driver)
    tell(postgresql_url, "DROP ROLE IF EXISTS crowd", "CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    url = postgresql_url.replace("psycopg", driver).replace("postgres:@", "crowd:@").replace("postgres@", "crowd@")
    assert is_busy(url, "SELECT 1 AS id", tmp_path)


def endless(url: str) -> str:
    if is_mysql(url):
        return "SELECT a.seq AS id FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b WHERE 'job_mark' <> ''"
    return "SELECT generate_series(1, 100000000) AS id WHERE 'job_mark' <> ''"


def sessions(url: str, *, at_work: bool = False) -> list[int]:
    """The job's own, by the server's list. On PostgreSQL, the query of a cursor is not in it."""
    if is_mysql(url):
        sql = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info LIKE '%%job_mark%%'"
    else:
        sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        sql += " AND state = 'active' AND wait_event = 'PgSleep'" if at_work else ""
    return [number for (number,) in tell(url.replace("psycopg2", "psycopg"), sql)]


def is_alone(url: str) -> bool:
    """Whether the job's session ends on the server within a moment."""
    deadline = time.monotonic() + LIMIT_S
    while sessions(url) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not sessions(url)


def kill(url: str, numbers: list[int]) -> None:
    statement = "KILL {}" if is_mysql(url) else "SELECT pg_terminate_backend({})"
    tell(url.replace("psycopg2", "psycopg"), *map(statement.format, numbers))


def test_session_killed_in_mid_read_is_for_later(tmp_path: Path, server: str) -> None:
    with opened(server, endless(server), tmp_path) as result:
        next(result.blocks)
        kill(server, sessions(server))
        with pytest.raises(SourceBusyError, match=r"^The query in query\.sql failed while its rows were read: "):
            list(result.blocks)


def test_session_killed_at_work_ends_a_run_with_75(program: Program, server: str) -> None:
    use_query(program, sleeping(server).replace("SELECT", "SELECT 1 AS user_id,"))
    process = program.start(DATABASE_URL=server, USER_FIELDS="-", EVENT_FIELDS="-", ITERABLE_IDENTIFIER="userId")
    kill(server, wait_until_at_work(server))
    run = program.wait_for(process)
    assert (run.code, len(run.err.splitlines())) == (75, 1), run.err


def wait_until_at_work(url: str) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := sessions(url, at_work=True):
            return found
        time.sleep(0.02)
    raise AssertionError("the query never ran")


LIMIT_S = 5  # two seconds, on a machine that has nothing else to do


# Drivers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "mysql+mysqlconnector://user:secret@db/name",
            "The driver mysqlconnector in DATABASE_URL loads all rows into memory before it gives the first one; write "
            f"mysql+pymysql:// instead, and run: {PIP_INSTALL} pymysql",
        ),
        (
            "mariadb+mariadbconnector://user:secret@db/name",
            "The driver mariadbconnector in DATABASE_URL may end the query for one odd value; write mysql+pymysql:// "
            f"instead, and run: {PIP_INSTALL} pymysql",
        ),
        (
            "postgresql+pg8000://user:secret@db/name",
            "The driver pg8000 in DATABASE_URL may end the query for one odd value; write postgresql+psycopg:// "
            f"instead, and run: {PIP_INSTALL} 'psycopg[binary]'",
        ),
        (
            "redshift+redshift_connector://user:secret@db/name",
            "The driver redshift_connector in DATABASE_URL loads all rows into memory before it gives the first one; "
            f"write redshift+psycopg2:// instead, and run: {PIP_INSTALL} sqlalchemy-redshift psycopg2-binary",
        ),
        (
            "postgresql+asyncpg://user:secret@db/name",
            "The driver asyncpg in DATABASE_URL is for asynchronous programs; write the URL of another driver, such as "
            "postgresql+psycopg:// or mysql+pymysql://.",
        ),
    ],
)
def test_driver_that_can_not_do_this_job_is_refused_before_it_is_installed(
    tmp_path: Path, url: str, reason: str
) -> None:
    assert problem(url, "SELECT 1 AS id", tmp_path) == reason


@pytest.mark.parametrize("beginning", ["clickhouse", "clickhouse+native", "clickhousedb", "clickhousedb+connect"])
def test_clickhouse_is_refused_with_the_way_out(tmp_path: Path, beginning: str) -> None:
    assert problem(f"{beginning}://user:secret@db/name", "SELECT 1 AS id", tmp_path) == (
        "clickhouse:// in DATABASE_URL is not supported, as its drivers load all rows into memory; export the rows to "
        "Parquet files, and read these with DATABASE_URL=duckdb:///:memory:."
    )


def test_library_of_the_system_that_a_driver_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    text = "libodbc.so.2: cannot open shared object file: No such file or directory"
    (folder / "pyodbc.py").write_text(f"raise ImportError({text!r})")
    monkeypatch.delitem(sys.modules, "pyodbc", raising=False)
    monkeypatch.syspath_prepend(folder)
    assert problem("mssql+pyodbc://user:secret@db/name?driver=x", "SELECT 1 AS id", tmp_path) == (
        "The database can't be opened: its driver needs libodbc.so.2, a library of the system; install the package "
        "unixodbc."
    )


@pytest.mark.parametrize("driver", DRIVERS)
def test_options_reach_the_driver_and_their_values_no_output(
    program: Program, iterable: StandIn, postgresql_url: str, driver: str
) -> None:
    pytest.importorskip(driver)
    use_query(
        program, "SELECT 'ada@example.com' AS email, current_setting('application_name') AS app FROM pg_class LIMIT 1"
    )
    options = {"application_name": "sync-of-users", "password": "s3cr3t"}
    settings: dict[str, Any] = {
        "DATABASE_URL": postgresql_url.replace("psycopg", driver),
        "DATABASE_OPTIONS": json.dumps(options),
    }
    run = program.run(**settings, USER_FIELDS="app", EVENT_FIELDS="-")
    assert (run.code, run.err) == (0, "")
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"app": "sync-of-users"}
    use_query(program, "SELECT CAST('sync-of-users s3cr3t' AS integer) AS email")
    run = program.run(**settings, USER_FIELDS="-", EVENT_FIELDS="-")
    assert (run.code, "sync-of-users" in everything(run), "s3cr3t" in everything(run)) == (66, False, False)


def test_options_reach_pymysql(tmp_path: Path, mysql_url: str) -> None:
    query_file = tmp_path / "query.sql"
    query_file.write_text("SELECT @told AS told")
    options = {"init_command": "SET @told = 'by the driver'"}
    with open_query(mysql_url, read_query(query_file, mysql_url), root=tmp_path, options=options) as result:
        assert list(rows(result)) == [{"told": "by the driver"}]


def everything(run: Finished) -> str:
    """Whatever a run says, but for the CSV's own data."""
    return run.out + run.err + run.log + "".join(path.read_text() for path in run.files("*.json"))


@pytest.mark.parametrize(("name", "driver"), [("redshift", "psycopg2"), ("cockroachdb", "psycopg")])
def test_relatives_of_postgresql_have_its_values(tmp_path: Path, postgresql_url: str, name: str, driver: str) -> None:
    """By their own packages, on PostgreSQL."""
    pytest.importorskip(f"sqlalchemy_{name}")
    url = postgresql_url.replace("postgresql+psycopg", f"{name}+{driver}")
    sql = """SELECT current_setting('TimeZone') AS a, 'infinity'::date AS b, '[1]'::json AS c, '24:00'::time AS d,
        '2026-01-13 08:45:12+01'::timestamptz AS e FROM generate_series(1, 3000)"""
    instant = datetime(2026, 1, 13, 7, 45, 12, tzinfo=timezone.utc)
    first, *others = read(url, sql, tmp_path)
    assert first["b"].problem == "is infinity, which can't be sent as a date"
    assert first["d"].problem == "is 24:00:00, which can't be sent as a time"
    assert (first["a"], first["c"], first["e"], len(others)) == ("UTC", [1], instant, 2999)


# Stops ------------------------------------------------------------------------------------------------------------


@contextmanager
def within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def sleeping(url: str) -> str:
    return "SELECT SLEEP(600) AS job_mark" if is_mysql(url) else "SELECT pg_sleep(600), 'job_mark' AS mark"


def test_signal_ends_a_query_at_work_here_and_on_the_server(tmp_path: Path, server: str) -> None:
    with within(LIMIT_S), pytest.raises(Alarm), alarm(), opened(server, sleeping(server), tmp_path):
        pass
    assert is_alone(server)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_wait_for_a_server_that_never_answers(
    program: Program, server: str, sign: signal.Signals
) -> None:
    use_query(program, "SELECT 1 AS email")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{server.partition('://')[0]}://user:s3cr3t@127.0.0.1:{silent.getsockname()[1]}/name"
        process = program.start("--quiet", DATABASE_URL=url, USER_FIELDS="-", EVENT_FIELDS="-")
        silent.settimeout(30)
        with silent.accept()[0]:
            process.send_signal(sign)
            with within(LIMIT_S):
                run = program.wait_for(process)
    assert (run.code, run.out, run.err) == (128 + sign, "", f"The run was interrupted by {sign.name}.\n")


def test_driver_that_hangs_changes_no_exit_code(program: Program, tmp_path: Path) -> None:
    """One such as mssql-python's, whose clean-up waits for the call that hangs."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "pymssql.py").write_text(
        "import atexit, threading\nnever = threading.Event()\natexit.register(never.wait, 60)\n"
        "Error, __version__, paramstyle = type('Error', (Exception,), {}), '2.4.6', 'pyformat'\n"
        "def connect(*args, **options): print('waits', flush=True); never.wait()\n"
    )
    use_query(program, "SELECT 1 AS email")
    settings: dict[str, Any] = {"DATABASE_URL": "mssql+pymssql://user:s3cr3t@db/name", "PYTHONPATH": str(folder)}
    process = program.start("--quiet", **settings, USER_FIELDS="-", EVENT_FIELDS="-")
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    with within(LIMIT_S):
        run = program.wait_for(process)
    assert (run.code, run.err) == (143, "The run was interrupted by SIGTERM.\n")


def test_query_at_work_ends_when_asked_to_stop(tmp_path: Path, server: str) -> None:
    begun = time.monotonic()
    with (
        within(LIMIT_S),
        pytest.raises(SourceError, match=r"^The query in query\.sql can't be run: interrupted\.$"),
        opened(server, sleeping(server), tmp_path, should_stop=lambda: time.monotonic() > begun + 1),
    ):
        pass


def test_sigterm_ends_a_quiet_run_without_a_word_of_the_driver(program: Program, server: str) -> None:
    use_query(program, sleeping(server).replace("SELECT", "SELECT 1 AS email,"))
    process = program.start("--quiet", DATABASE_URL=server, USER_FIELDS="-", EVENT_FIELDS="-")
    wait_until_at_work(server)
    process.send_signal(signal.SIGTERM)
    with within(LIMIT_S):
        run = program.wait_for(process)
    assert (run.code, run.out, run.err) == (143, "", "The run was interrupted by SIGTERM.\n")


def test_first_rows_are_all_that_is_read(tmp_path: Path, server: str) -> None:
    with within(LIMIT_S), opened(server, endless(server), tmp_path) as result:
        assert len(list(islice(rows(result), 3))) == 3
    assert is_alone(server)


# A session of our own making --------------------------------------------------------------------------------------

POSTGRESQL_DEFAULTS = {
    "TimeZone": "America/New_York",
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-5",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "transform_null_equals": "on",
}
POSTGRESQL_VALUES = r"""
    SELECT '2026-01-13 08:45:12+00'::timestamptz AS a, '02/01/2026'::date AS b, interval '-1 day 2 hours' AS c,
    0.1::float8 + 0.2 AS d, '\x00ff'::bytea AS e, 'Žižek' AS f, NULL = NULL AS g, '2026-01-13'::date::text AS h,
    interval '-1 day 2 hours'::text AS i, (0.1::float8 + 0.2)::text AS j, '\x00ff'::bytea::text AS k, E'\\'::text AS l,
    '2026-01-13 08:45:12+00'::timestamptz::text AS m
"""


@pytest.mark.parametrize("driver", DRIVERS)
def test_values_of_postgresql_are_the_same_whatever_the_role_s_defaults(
    tmp_path: Path, postgresql_url: str, driver: str
) -> None:
    pytest.importorskip(driver)
    url = postgresql_url.replace("psycopg", driver).replace("postgres:@", "odd:@").replace("postgres@", "odd@")
    tell(postgresql_url, "DROP ROLE IF EXISTS odd", "CREATE ROLE odd LOGIN")
    usual = read(url, POSTGRESQL_VALUES, tmp_path)
    tell(postgresql_url, *(f"ALTER ROLE odd SET {name} = '{value}'" for name, value in POSTGRESQL_DEFAULTS.items()))
    assert read(url, POSTGRESQL_VALUES, tmp_path) == usual
    assert (usual[0]["a"].astimezone(timezone.utc).hour, usual[0]["g"], usual[0]["f"]) == (8, None, "Žižek")


MYSQL_DEFAULTS = {
    "time_zone": "'-05:00'",
    "sql_mode": "'ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,HIGH_NOT_PRECEDENCE'",
    "group_concat_max_len": "4",
    "lc_time_names": "'de_DE'",
    "div_precision_increment": "9",
    "default_week_format": "3",
    "sql_select_limit": "1",
}
MYSQL_VALUES = r"""
    SELECT "text" AS a, 1 OR 0 AS b, '\'' AS c, GROUP_CONCAT(seq ORDER BY seq) AS d, MONTHNAME('2026-05-01') AS e,
    1 / 3 AS f, WEEK('2026-01-01') AS g, FROM_UNIXTIME(1768293912) AS h, MAX(at) AS i, NOT 1 BETWEEN -5 AND 5 AS j
    FROM seq_1_to_10, job_instants UNION ALL SELECT NULL, 1, 2, 3, 4, 5, 6, 7, NULL, 8
"""


def test_values_of_mysql_are_the_same_whatever_the_server_s_defaults(tmp_path: Path, mysql_url: str) -> None:
    names = ", ".join(f"@@GLOBAL.{name}" for name in MYSQL_DEFAULTS)
    tell(
        mysql_url,
        "SET time_zone = '+00:00'",
        "CREATE OR REPLACE TABLE job_instants (at TIMESTAMP NOT NULL, wall DATETIME NOT NULL)",
        "INSERT INTO job_instants VALUES (FROM_UNIXTIME(1768293912), '2026-01-13 08:45:12')",
    )
    (before,) = tell(mysql_url, f"SELECT {names}")
    usual = read(mysql_url, MYSQL_VALUES, tmp_path)
    tell(mysql_url, *(f"SET GLOBAL {name} = {value}" for name, value in MYSQL_DEFAULTS.items()))
    try:
        assert read(mysql_url, MYSQL_VALUES, tmp_path) == usual
        times = read(mysql_url, "SELECT at, wall FROM job_instants WHERE at >= :since", tmp_path, since=INSTANT)
    finally:
        values = zip(MYSQL_DEFAULTS, before, strict=True)
        tell(mysql_url, *(f"SET GLOBAL {name} = {value!r}" for name, value in values), "DROP TABLE job_instants")
    assert (len(usual), usual[0]["d"], usual[0]["e"]) == (2, "1,2,3,4,5,6,7,8,9,10", "May")
    assert times == [{"at": INSTANT, "wall": INSTANT.replace(tzinfo=None)}]  # an instant, and a wall's clock


INSTANT = datetime(2026, 1, 13, 8, 45, 12, tzinfo=timezone.utc)
