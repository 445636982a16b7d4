"""What the tests of the client share: a client that never waits, and a peer at the level of bytes."""

from __future__ import annotations

import json
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from iterable.answers import Failure
from iterable_client import IterableClient
from pipeline.sandbox import SANDBOX_KEY, StandIn

URL = "https://api.iterable.com"
UPDATE, TRACK = "/api/users/update", "/api/events/track"
BULK_UPDATE, TRACK_BULK = "/api/users/bulkUpdate", "/api/events/trackBulk"
KEY = "0123456789abcdef0123456789abcdef"
SECRET = "2EB6A2F34691492F81A819AEDA32427F"  # the one of Iterable's article "JWT-Enabled API Keys"
NOW = 1_768_293_912.75
ADA = "ada@example.com"
ADA_AS_JSON = b'{"email":"ada@example.com","dataFields":{}}'
SUCCESS = {"msg": "", "code": "Success", "params": None}
HTML = b"<!DOCTYPE html>\n<html><body><h1>Action not found</h1></body></html>"
SHORT_S = 0.2  # the time-out where a test lets real time pass
MARGIN_S = 5.0  # for a busy machine; what those tests are about would take minutes, or for ever


def never_sleep(seconds: float) -> None:
    raise AssertionError(f"slept for {seconds} s")


def open_client(base_url: str = URL, api_key: str | None = KEY, **options: Any) -> IterableClient:
    """A client whose jitter is 0, which never waits, and which a broken test can't hang."""
    defaults = {"sleep": never_sleep, "clock": lambda: NOW, "uniform": lambda: 0.0, "timeout_s": 5.0}
    return IterableClient(api_key, base_url=base_url, **{**defaults, **options})


Result = tuple[bool, dict[str, Any]]


def failed(
    error: str,
    failure: Failure,
    *,
    status: int | None = None,
    code: str | None = None,
    attempts: int = 1,
    answer: dict[str, Any] | None = None,
    disallowed: bool = False,
) -> Result:
    """The whole result of a call that failed."""
    details = {"error": f"users/update call failed: {error}", "status_code": status, "code": code}
    return False, {**details, "attempts": attempts, "failure": failure, "disallowed": disallowed, "answer": answer}


def client_of(iterable: StandIn, **options: Any) -> IterableClient:
    return open_client(iterable.url, SANDBOX_KEY, **options)


class Clock:
    """A clock that stands still until a test moves it, or somebody sleeps by it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


# A peer at the level of bytes -----------------------------------------------------------------------------------------

Action = Callable[[socket.socket], object]


class Peer:
    """A server that answers the first request with the first of `answers`, and so on; the last one serves all others.

    An answer is bytes, after which the connection stays open, or what to do with the connection, which then ends.
    """

    def __init__(self, *answers: bytes | Action, tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{self.port}"
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Peer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for each in (self._listener, *self._open):
            end(each)
        for thread in list(self._threads):
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):  # the client has gone, or the test is over
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection:
                while request := read_request(connection):
                    self.requests.append(request)
                    answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
                    if callable(answer):
                        answer(connection)
                        return
                    connection.sendall(answer)


def end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    missing = (int(length.group(1)) if length else 0) - len(body)
    while missing > 0:
        piece = connection.recv(65_536)
        if not piece:
            return b""
        data += piece
        missing -= len(piece)
    return data


def http_answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def last(data: bytes) -> Action:
    """An answer after which the connection ends."""
    return lambda connection: connection.sendall(data)


def drip(data: bytes) -> Action:
    """An answer that comes a byte at a time, without an end within a test's time."""

    def send(connection: socket.socket) -> None:
        for each in data:
            connection.sendall(bytes([each]))
            threading.Event().wait(0.05)

    return send


OK = http_answer(json.dumps(SUCCESS).encode())


@contextmanager
def eager_threads() -> Iterator[None]:
    """Threads that interrupt each other as often as they can."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
