"""The job on a distributed engine: Spark's Thrift server with two workers, in a session zone that is not UTC.

Needs Java 17, and `pip install pyspark impyla`, which loads half a gigabyte; skipped where one of them is missing.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.sandbox import StandIn
from pipeline.source import SourceBusyError, SourceError
from tests.program import Program, use_query
from tests.reading import Alarm, alarm, opened, problem, read

pytestmark = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pyspark") is None or find_spec("impala") is None,
    reason="Java, pyspark or impyla is not installed",
)

STARTS_WITHIN_S = 180
ROWS = 20_000
INSTANT = datetime(2026, 1, 13, 14, 0, tzinfo=timezone.utc)
CROSS_JOIN = "SELECT count(*) AS id FROM range(10000000) a CROSS JOIN range(10000000) b WHERE a.id * b.id = -1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server(NamedTuple):
    url: str
    group: int  # of its processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a Parquet table: an event a second, the first at INSTANT."""
    home = Path(str(import_module("pyspark").__file__)).parent
    folder, port = tmp_path_factory.mktemp("spark"), free_port()
    settings = {
        "spark.sql.session.timeZone": "America/New_York",
        "spark.sql.thriftServer.incrementalCollect": "true",
        "spark.hadoop.hive.server2.thrift.port": port,
        "spark.hadoop.hive.server2.thrift.bind.host": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={folder}/derby",
        "spark.sql.warehouse.dir": f"{folder}/warehouse",
        "spark.sql.shuffle.partitions": 4,
        "spark.ui.enabled": "false",
        "spark.executor.memory": "512m",
    }
    command = [f"{home}/bin/spark-submit", "--master", "local-cluster[2,1,1024]", "--driver-memory", "1g"]
    command += [part for name, value in settings.items() for part in ("--conf", f"{name}={value}")]
    command += ["--class", "org.apache.spark.sql.hive.thriftserver.HiveThriftServer2", "spark-internal"]
    environment = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.5)
        with closing(import_module("impala.dbapi").connect("127.0.0.1", port, auth_mechanism="PLAIN")) as connection:
            cursor = connection.cursor()
            cursor.execute(
                "CREATE TABLE events USING parquet AS SELECT id, concat('u', id, '@example.com') AS email, "
                f"timestamp_seconds({int(INSTANT.timestamp())} + id) AS event_time, CAST(37.09 AS FLOAT) AS price "
                f"FROM range(0, {ROWS}, 1, 4)"
            )
            cursor.close()
        yield Server(f"impala://127.0.0.1:{port}/default?auth_mechanism=PLAIN", process.pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def spark(server: Server) -> str:
    return server.url


def test_types_of_spark_come_in_utc_whatever_the_session_s_zone(spark: str, tmp_path: Path) -> None:
    sql = """SELECT current_timezone() AS zone, TIMESTAMP '2026-01-13 14:00:00Z' AS at, DATE '2026-01-13' AS day,
        37.09f AS f, CAST(19.90 AS DECIMAL(10, 2)) AS d, true AS b, CAST(NULL AS INT) AS n, X'00ff' AS bin,
        'zoë' AS s"""
    expected = {"zone": "UTC", "at": INSTANT.replace(tzinfo=None), "day": date(2026, 1, 13), "f": 37.09}
    expected |= {"d": Decimal("19.90"), "b": True, "n": None, "bin": b"\0\xff", "s": "zoë"}
    assert read(spark, sql, tmp_path) == [expected]


def test_time_that_python_lacks_refuses_its_row_alone(spark: str, tmp_path: Path) -> None:
    sql = """SELECT id, CASE id WHEN 1 THEN timestamp_seconds(317337000000) END AS at,
        CASE id WHEN 1 THEN date_add(DATE '2026-01-13', 3652500) END AS day FROM range(3) ORDER BY id"""
    found = read(spark, sql, tmp_path)
    assert [
        (row["id"], getattr(row["at"], "problem", None), getattr(row["day"], "problem", None)) for row in found
    ] == [*((0, None, None), (1, "is out of range", "is out of range"), (2, None, None))]


def test_memory_does_not_grow_with_the_rows(spark: str, tmp_path: Path) -> None:
    """All at once, they are 80 MB."""
    tracemalloc.start()
    try:
        with opened(spark, "SELECT id, repeat('x', 4096) AS v FROM events", tmp_path) as result:
            assert sum(len(block) for block in result.blocks) == ROWS
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def test_since_is_in_utc(spark: str, tmp_path: Path) -> None:
    sql = "SELECT count(*) AS n FROM events WHERE event_time >= :since"
    assert read(spark, sql, tmp_path, INSTANT) == [{"n": ROWS}]
    assert read(spark, sql, tmp_path, INSTANT + timedelta(seconds=100)) == [{"n": ROWS - 100}]


def test_the_whole_job_reads_each_row_once(spark: str, program: Program, iterable: StandIn) -> None:
    use_query(program, f"SELECT email, event_time, price FROM events WHERE id >= {ROWS - 2000} ORDER BY id")
    run = program.run(DATABASE_URL=spark, USER_FIELDS="-", EVENT_FIELDS="price", RATE_LIMIT_PERCENT="100000")
    assert (run.code, run.err) == (0, "")
    times = sorted(event["createdAt"] for event in iterable.project.events.values())
    assert times == [int(INSTANT.timestamp()) + ROWS - 2000 + second for second in range(2000)]
    assert {event["dataFields"]["price"] for event in iterable.project.events.values()} == {37.09}


@pytest.mark.parametrize(
    "sql", ["DROP TABLE events", "INSERT INTO events SELECT * FROM events", "FROM events INSERT INTO events SELECT *"]
)
def test_what_writes_is_refused(spark: str, tmp_path: Path, sql: str) -> None:
    assert problem(spark, sql, tmp_path).startswith("The query in query.sql ")
    assert read(spark, "SELECT count(*) AS n FROM events", tmp_path) == [{"n": ROWS}]


def test_missing_table_is_for_good(spark: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="TABLE_OR_VIEW_NOT_FOUND") as caught, opened(spark, "FROM none", tmp_path):
        pass
    assert not isinstance(caught.value, SourceBusyError)


def test_signal_ends_a_query_at_work_in_a_moment(spark: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(Alarm), alarm(after_s=4), opened(spark, CROSS_JOIN, tmp_path):
        pass
    assert time.monotonic() - begun < 4 + 3
    assert len(read(spark, "SELECT id FROM events LIMIT 3", tmp_path)) == 3  # the workers are free again


def test_rows_are_all_there_after_an_executor_was_killed_in_mid_read(server: Server, tmp_path: Path) -> None:
    command = ["pgrep", "-g", str(server.group), "-f", "CoarseGrainedExecutorBackend"]
    with opened(server.url, "SELECT id FROM events", tmp_path) as result:
        ids = [row[0] for row in next(result.blocks)]
        executors = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(executors[0]), signal.SIGKILL)
        ids += [row[0] for block in result.blocks for row in block]
    assert sorted(ids) == list(range(ROWS))


def test_server_that_is_gone_is_for_later(tmp_path: Path) -> None:
    with (
        pytest.raises(SourceBusyError),
        opened(f"impala://127.0.0.1:{free_port()}/default?auth_mechanism=PLAIN", "SELECT 1 AS id", tmp_path),
    ):
        pass


def test_server_killed_in_mid_read_is_for_later(server: Server, tmp_path: Path) -> None:
    """The last test, as it leaves no server."""
    with opened(server.url, "SELECT id, repeat('x', 4096) AS v FROM events", tmp_path) as result:
        next(result.blocks)
        os.killpg(server.group, signal.SIGKILL)
        with pytest.raises(SourceBusyError, match=r"^The query in query\.sql failed while its rows were read: [^\n]+$"):
            list(result.blocks)
