"""The HTTP server: bytes to requests, and answers to bytes, with the fault that applies to them.

It is written by hand on an asyncio.Protocol because faults need control of single bytes and connections (a reset, half
an answer, a byte a second), and because a benchmark must never wait for the stand-in. It runs in one thread; latency is
a timer, never a sleep. Pipelined requests of one client are answered one after the other.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from pipeline.sandbox.control import answer_control
from pipeline.sandbox.exchange import Answer, Fault
from pipeline.sandbox.project import Project

_MAX_HEAD_BYTES = 65_536
_NOT_HTTP = Answer(400, b"Bad Request", {"Content-Type": "text/plain", "Connection": "close"})
_NO_FAULT = Fault()


class BadRequestError(Exception):
    """The bytes are not HTTP/1.1 as this reader understands it."""


@dataclass
class Request:
    method: str
    target: str  # the path and the query
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    keep_alive: bool = True


class RequestReader:
    """Bytes in, whole requests out, however the network split them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._request: Request | None = None  # its head has been read, its body has not

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next request, or None until more bytes have come. Raises BadRequestError."""
        if self._request is None:
            self._request = self._take_head()
        if self._request is None:
            return None
        body = self._take_body(self._request.headers)
        if body is None:
            return None
        request, self._request = self._request, None
        request.body = body
        return request

    def _take_head(self) -> Request | None:
        buffer = self._buffer
        if buffer and not buffer[:1].isupper():  # a TLS handshake, say
            raise BadRequestError
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _MAX_HEAD_BYTES:
                raise BadRequestError
            return None
        head = buffer[:end].decode("latin-1")
        del buffer[: end + 4]
        return _parse_head(head)

    def _take_body(self, headers: Mapping[str, str]) -> bytes | None:
        if "transfer-encoding" in headers:
            return self._take_chunks()
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise BadRequestError
        return self._take(int(length)) if len(self._buffer) >= int(length) else None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _take_chunks(self) -> bytes | None:
        body, position = bytearray(), 0
        while True:
            line_end = self._buffer.find(b"\r\n", position)
            if line_end < 0:
                return None
            size = _chunk_size(self._buffer[position:line_end])
            end = line_end + 2 + size
            if len(self._buffer) < end + 2:
                return None
            body += self._buffer[line_end + 2 : end]
            position = end + 2
            if size == 0:
                del self._buffer[:position]
                return bytes(body)


def _parse_head(head: str) -> Request:
    request_line, *lines = head.split("\r\n")
    try:
        method, target, version = request_line.split(" ")
    except ValueError:
        raise BadRequestError from None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError
        headers[name.lower()] = value.strip()
    if not version.startswith("HTTP/1."):
        raise BadRequestError
    keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    return Request(method, target, headers, keep_alive=keep_alive)


def _chunk_size(line: bytearray) -> int:
    digits = bytes(line).partition(b";")[0].strip()
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
        raise BadRequestError
    return int(digits, 16)


class Connection(asyncio.Protocol):
    """One client's connection: requests in, answers out, one after the other, each with its fault if it has one."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._reader = RequestReader()
        self._busy = False  # a request is being answered; the next one waits in the reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._stand_in.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stand_in.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._serve()

    def abort(self) -> None:
        self._transport.abort()

    def _serve(self) -> None:
        try:
            while not self._busy and (request := self._reader.next_request()) is not None:
                self._busy = True
                self._answer(request)
        except BadRequestError:
            self._busy = True
            self._transport.write(_NOT_HTTP.to_bytes())
            self._transport.close()

    def _answer(self, request: Request) -> None:
        project = self._stand_in.project
        if request.target.startswith("/sandbox/"):
            answer = answer_control(project, request.method, request.target, request.body)
        else:
            answer = project.handle(request.method, request.target, request.headers, request.body)
        fault = answer.fault or _NO_FAULT
        wait_s = fault.latency_s
        if request.target.startswith("/api/"):
            wait_s += self._stand_in.latency_s
            project.last_answer_at = max(project.last_answer_at or 0.0, project.clock() + wait_s)
        if wait_s > 0:
            self._later(wait_s, lambda: self._send(answer, fault, request.keep_alive))
        else:
            self._send(answer, fault, request.keep_alive)

    def _later(self, wait_s: float, step: Callable[[], None]) -> None:
        def step_and_go_on() -> None:
            if not self._transport.is_closing():
                step()
                self._serve()

        asyncio.get_running_loop().call_later(wait_s, step_and_go_on)

    def _send(self, answer: Answer, fault: Fault, keep_alive: bool) -> None:
        if fault.disconnect:
            self._reset()
            return
        data = fault.prefix + (answer.to_bytes() if fault.raw is None else fault.raw)
        closes = not keep_alive or fault.close_after or fault.raw is not None or fault.truncate_at is not None
        data = data[: fault.truncate_at]
        if fault.drip_s is not None:
            self._drip(data, fault.drip_s, closes)
        else:
            self._transport.write(data)
            self._finish(closes)

    def _drip(self, data: bytes, drip_s: float, closes: bool) -> None:
        self._transport.write(data[:1])
        if len(data) > 1:
            self._later(drip_s, lambda: self._drip(data[1:], drip_s, closes))
        else:
            self._finish(closes)

    def _finish(self, closes: bool) -> None:
        if closes:
            self._transport.close()
        else:
            self._busy = False

    def _reset(self) -> None:
        # SO_LINGER with a time-out of 0: closing sends RST instead of FIN.
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()


class StandIn:
    """A Project behind an HTTP server on 127.0.0.1.

    `port` 0 is any free one; `url` is known after start(). `latency_s` is the time until each API answer. `ssl_context`
    makes it https; `host_name` must then be the name in the certificate ("localhost"). All other options are those of
    Project: `StandIn(limits=None, unknown_users="accept")`.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        latency_s: float = 0.0,
        ssl_context: ssl.SSLContext | None = None,
        host_name: str = "127.0.0.1",
        **project_options: Any,
    ) -> None:
        self.project = Project(**project_options)
        self.port = port
        self.latency_s = latency_s
        self.connections: set[Connection] = set()
        self._ssl_context = ssl_context
        self._host_name = host_name
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        scheme = "http" if self._ssl_context is None else "https"
        return f"{scheme}://{self._host_name}:{self.port}"

    def start(self) -> StandIn:
        """Serves in a new thread until stop(). Raises OSError if the port is in use."""
        self.listen()
        self._thread = threading.Thread(target=self.serve, name="stand-in Iterable", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops serving and drops all connections. Started again, it has the same port and project."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def inject(self, fault: Fault) -> Fault:
        """Adds a fault. `fault.matched` then counts the requests that matched it."""
        self.project.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        self.project.faults.clear()

    def listen(self) -> None:
        """Opens the port: clients may connect from now on, and get answers once serve() runs."""
        self._socket = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def serve(self) -> None:
        """Serves in this thread, after listen(), until stop()."""
        if self._loop is None:
            raise RuntimeError("serve() comes after listen()")
        with closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), sock=self._socket, ssl=self._ssl_context, backlog=1024
        )
        await self._stopping.wait()
        server.close()
        # A connection that was accepted just now starts in a task of its own; it must be dropped, too.
        for _ in range(200):
            for connection in list(self.connections):
                connection.abort()
            if not self.connections and asyncio.all_tasks() == {asyncio.current_task()}:
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)  # lets the aborted connections close their sockets
