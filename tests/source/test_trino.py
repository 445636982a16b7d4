"""Trino's own package against a stand-in that speaks its protocol; skipped where `trino[sqlalchemy]` is missing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.source import SourceBusyError, SourceError
from tests.reading import opened, problem, read, rows

pytest.importorskip("trino")

COLUMNS = {
    "id": "bigint",
    "at": "timestamp",
    "seen": "timestamp with time zone",
    "born": "date",
    "price": "decimal",
    "bin": "varbinary",
}
ROW = ["2026-01-13 08:45:12.500", "2026-01-13 08:45:12.500 UTC", "1815-12-10", "19.90", "AP8="]
PAGES, ROWS_PER_PAGE = 20, 500


class Trino(ThreadingHTTPServer):
    """Knows SELECT 1, a table `events` in pages, `slow`, and `broken`, which fails in mid-read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.requests: list[tuple[str, str]] = []
        self.zones: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Trino

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, **answer: Any) -> None:
        body = json.dumps({"id": "q", "infoUri": "", "stats": {"state": "RUNNING"}, "warnings": [], **answer}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        sql = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append(("POST", sql))
        self.server.zones.add(self.headers["X-Trino-Time-Zone"])
        self._send(200, nextUri=f"{self.server.url}/v1/{sql.split()[-1]}/0")

    def do_DELETE(self) -> None:
        self.server.requests.append(("DELETE", self.path))
        self._send(200)

    def do_GET(self) -> None:
        _, _, name, page = self.path.split("/")
        self.server.requests.append(("GET", self.path))
        if name == "1":
            self._send(200, columns=[_column("one", "bigint")], data=[[1]])
        elif name == "slow":
            threading.Event().wait(0.05)
            self._send(200, nextUri=f"{self.server.url}/v1/slow/0")
        elif name == "broken" and int(page) == PAGES // 2:
            self._send(504)
        elif name in ("events", "broken"):
            first = int(page) * ROWS_PER_PAGE
            data = [[number, *ROW] for number in range(first, first + ROWS_PER_PAGE)]
            data[7][3] = "12026-01-13"
            more = {"nextUri": f"{self.server.url}/v1/{name}/{int(page) + 1}"} if int(page) < PAGES - 1 else {}
            self._send(200, columns=[_column(*each) for each in COLUMNS.items()], data=data, **more)
        else:
            error = {"message": f"Table {name} does not exist", "errorCode": 46, "errorName": "TABLE_NOT_FOUND"}
            self._send(200, error={**error, "errorType": "USER_ERROR"})


def _column(name: str, kind: str) -> dict[str, Any]:
    sizes = {"decimal": [10, 2], "timestamp": [3], "timestamp with time zone": [3]}.get(kind, [])
    signature = {"rawType": kind, "arguments": [{"kind": "LONG", "value": size} for size in sizes]}
    return {"name": name, "type": kind, "typeSignature": signature}


@pytest.fixture
def trino() -> Iterator[Trino]:
    server = Trino()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def url_of(trino: Trino) -> str:
    return f"trino://user@127.0.0.1:{trino.server_port}/catalog/schema"


def test_all_rows_come_by_the_page_and_one_odd_value_keeps_none_back(trino: Trino, tmp_path: Path) -> None:
    found = read(url_of(trino), "SELECT * FROM events", tmp_path)
    instant = datetime(2026, 1, 13, 8, 45, 12, 500_000)
    assert found[0] == {
        "id": 0,
        "at": instant,
        "seen": instant.replace(tzinfo=timezone.utc),
        "born": date(1815, 12, 10),
        "price": Decimal("19.90"),
        "bin": b"\0\xff",
    }
    assert [row["id"] for row in found] == list(range(PAGES * ROWS_PER_PAGE))
    assert [row["id"] for row in found if getattr(row["born"], "problem", "") == "is out of range"] == [
        ROWS_PER_PAGE * page + 7 for page in range(PAGES)
    ]
    assert trino.zones == {"UTC"}
    assert [sql for method, sql in trino.requests if method == "POST"] == ["SELECT 1", "SELECT * FROM events"]


def test_first_rows_are_all_that_is_read(trino: Trino, tmp_path: Path) -> None:
    with opened(url_of(trino), "SELECT * FROM events", tmp_path) as result:
        assert len(list(islice(rows(result), 3))) == 3
    assert trino.requests[-1][0] == "DELETE"
    assert sum(method == "GET" for method, _ in trino.requests) < PAGES


def test_stop_ends_the_query_on_the_server(trino: Trino, tmp_path: Path) -> None:
    def is_at_work() -> bool:
        return ("GET", "/v1/slow/0") in trino.requests

    with (
        pytest.raises(SourceError, match=r"^The query in query\.sql can't be run: interrupted\.$"),
        opened(url_of(trino), "SELECT * FROM slow", tmp_path, should_stop=is_at_work),
    ):
        pass
    assert "DELETE" in [method for method, _ in trino.requests]


def test_outage_in_mid_read_is_for_later_and_a_missing_table_for_good(trino: Trino, tmp_path: Path) -> None:
    with (
        pytest.raises(SourceBusyError, match=r" failed while its rows were read: error 504: gateway timeout\.$"),
        opened(url_of(trino), "SELECT * FROM broken", tmp_path) as result,
    ):
        list(result.blocks)
    assert "TABLE_NOT_FOUND" in problem(url_of(trino), "SELECT * FROM nowhere", tmp_path)
