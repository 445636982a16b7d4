"""The hardened pool beneath the session: how a request leaves and how its answer is read.

requests and urllib3 do the rest. Where this differs from them:

| stock behaviour                               | ours                           | why
|-----------------------------------------------|--------------------------------|------------------------------------
| parses the certificates for each connection   | one TLS context for all        | 14 ms and 0.8 MB each
| obeys SSLKEYLOGFILE                           | ignores it                     | it would write the session keys down
| `verify=False` switches the checks off        | nothing does                   | the API key travels along
| looks up an address's pool for each request   | keeps it                       | a seventh of a request's time
| sends head and body apart                     | together                       | the stock way takes thrice the time
| lets a body leave within the connect time-out | within the answer's            | a large body on a slow line
| starts a time-out anew with each byte         | one deadline for head and body | a server that drips
| sends as soon as it has a connection          | waits for its turn then        | it leaves when its slot comes
| takes an answer cut off in its head as empty  | as an error                    | it would count as an answer
| takes 102 and 103 for final answers           | reads on                       | the final answer follows them
| parses the head as an e-mail's                | as lines with a colon          | a third of a request's time
| looks for cookies and the text's encoding     | does not                       | nobody reads them
"""

from __future__ import annotations

import functools
import http.client
import io
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH

_SEND_BYTES = 65_536
_STALE_AFTER_S = 1.0  # of waiting for a turn; the server may have closed the connection
_MAX_HEADERS = 100
_MAX_LINE_BYTES = 65_536


@dataclass(frozen=True)
class Timeouts:
    connect_s: float
    answer_s: float


class ProxyError(OSError):
    """The proxy did not connect to the server; `status` is what it answered, and `phrase` what that stands for."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the proxy answered {status}")
        self.status = status
        self.phrase = http.client.responses.get(status, "")


class ProxyRefusedError(ProxyError):
    """It never will, as it stands: another attempt would fare no better."""


def _proxy_error(error: OSError) -> OSError:
    """http.client's error for a refused CONNECT, which has its status in the text only."""
    found = re.match(r"Tunnel connection failed: (\d{3})\b", str(error))
    if found is None:
        return error
    status = int(found.group(1))
    is_final = 400 <= status < 500 and status not in (408, 429)
    return ProxyRefusedError(status) if is_final else ProxyError(status)


class Turn(threading.local):
    """What this thread's request waits for before it leaves, if for anything."""

    wait: Callable[[], None] | None = None

    def take(self) -> None:
        """Wait, once."""
        wait, self.wait = self.wait, None
        if wait is not None:
            wait()


class Adapter(HTTPAdapter):
    """One TLS context for all connections, and pools of the kind below.

    requests would parse the certificate bundle for each new connection (14 ms and 0.8 MB).
    """

    def __init__(self, timeouts: Timeouts, max_connections: int, tls: ssl.SSLContext) -> None:
        self.turn = Turn()
        self._timeouts = timeouts
        self._tls = tls
        self._pools: dict[str, Any] = {}
        super().__init__(pool_connections=4, pool_maxsize=max_connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._tls, **pool_kwargs)
        self._use_our_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, **proxy_kwargs)
        if is_new:
            self._use_our_pools(manager)
        return manager

    def _use_our_pools(self, manager: Any) -> None:
        """Make a urllib3 pool manager use our pools and responses, whichever kinds of connections it makes."""
        manager.pool_classes_by_scheme = {
            scheme: type(
                pool.__name__,
                (_Pool, pool),
                {
                    "timeouts": self._timeouts,
                    "turn": self.turn,
                    "ConnectionCls": _with_our_response(pool.ConnectionCls),
                },
            )
            for scheme, pool in manager.pool_classes_by_scheme.items()
        }

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The pool for a server, of which a client has few. To look it up anew takes a seventh of each request."""
        server = "/".join(str(request.url).split("/", 3)[:3])
        pool = self._pools.get(server)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
            self._pools[server] = pool
        return pool

    def close(self) -> None:
        self._pools.clear()
        super().close()

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        return super().request_url(request, proxies) if proxies else request.path_url

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        """As in requests, but without looking for cookies and for the encoding of the text."""
        response = requests.Response()
        response.status_code = resp.status
        response.headers = resp.headers
        response.raw = resp
        response.reason = resp.reason
        response.url = str(req.url)
        response.request = req
        return response

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # against what the TLS context trusts; there is no way to switch it off


@functools.lru_cache(maxsize=4)
def tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer, as Iterable demands. Made by hand: create_default_context() obeys SSLKEYLOGFILE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    location = Path(ca_bundle or DEFAULT_CA_BUNDLE_PATH)
    if location.is_dir():
        context.load_verify_locations(capath=location)
    else:
        context.load_verify_locations(cafile=location)
    return context


# Below urllib3's pools ------------------------------------------------------------------------------------------------


def _with_our_response(connection: Any) -> type:
    return type(connection.__name__, (connection,), {"response_class": _Response})


class _Pool(urllib3.HTTPConnectionPool):
    """Connects as urllib3 does, sends head and body together within the time-out, and reads as http.client does.

    urllib3's own way through a pool takes thrice the time, sends the two apart, and allows the sending as long as the
    connecting.
    """

    timeouts: Timeouts
    turn: Turn

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any
    ) -> _Response:
        """Its exceptions are those that requests makes its own of."""
        try:
            message = self._head(method, url, headers or {}) + _as_bytes(body)
            return self._exchange(method, message)
        except TimeoutError as error:
            raise urllib3.exceptions.ReadTimeoutError(self, url, "the time is up") from error
        except ssl.SSLError as error:
            raise urllib3.exceptions.SSLError(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise urllib3.exceptions.MaxRetryError(self, url, error) from error
        except http.client.HTTPException as error:
            raise urllib3.exceptions.ProtocolError("the answer is not HTTP", error) from error

    def _exchange(self, method: str, message: bytes) -> _Response:
        connection: Any = self._get_conn()
        try:
            self._connect(connection)
            began = time.monotonic()
            self.turn.take()
            if time.monotonic() - began > _STALE_AFTER_S and not connection.is_connected:
                connection.close()
                self._connect(connection)
            is_sent = self._send(connection.sock, message)
            response = _Response(connection.sock, method=method)
            response.begin()
        except BaseException:
            connection.close()
            self._put_conn(connection)
            raise
        response.will_close |= not is_sent
        response.lease = (connection, self)
        return response

    def _connect(self, connection: Any) -> None:
        if connection.is_closed:
            connection.timeout = self.timeouts.connect_s
            if self.proxy is not None and self.scheme == "https":
                try:
                    self._prepare_proxy(connection)
                except OSError as error:
                    raise _proxy_error(error) from error
            else:
                connection.connect()
        connection.sock.settimeout(self.timeouts.answer_s)

    def _head(self, method: str, url: str, headers: Mapping[str, str]) -> bytes:
        """A request up to its body. ValueError for what no head can carry, without quoting it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port not in (None, self.ConnectionCls.default_port):
            host += f":{self.port}"
        if self.proxy is not None and self.scheme == "http":  # this pool's host is the proxy's
            host = urlsplit(url).netloc.rpartition("@")[2]
            headers = {**headers, **self.proxy_headers}
        lines = [f"{method} {url} HTTP/1.1", f"Host: {host}", *[f"{name}: {value}" for name, value in headers.items()]]
        head = "\r\n".join(lines)
        if not head.count("\r") == head.count("\n") == len(lines) - 1:
            raise ValueError("a header has a line break in it")
        return f"{head}\r\n\r\n".encode("latin-1")

    def _send(self, sock: Any, message: bytes) -> bool:
        """In pieces, as a TLS socket starts its time-out anew with each record of 16 KiB.

        False where the server stopped reading; what it says of that is still to be read.
        """
        deadline = time.monotonic() + self.timeouts.answer_s
        try:
            for start in range(0, len(message), _SEND_BYTES):
                if start:
                    sock.settimeout(_left_until(deadline))
                sock.sendall(message[start : start + _SEND_BYTES])
        except (BrokenPipeError, ConnectionResetError):
            return False
        finally:
            if len(message) > _SEND_BYTES:
                sock.settimeout(self.timeouts.answer_s)
        return True


def _as_bytes(body: str | bytes | None) -> bytes:
    return body.encode("utf-8") if isinstance(body, str) else body or b""


def _left_until(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the time is up")
    return left_s


class _TimedInput(io.RawIOBase):
    """A socket's input until a point in time: each read waits for what is left until then, not anew."""

    def __init__(self, sock: Any) -> None:
        """The socket's time-out has just been set, and counts from here."""
        super().__init__()
        self._sock = sock
        self._deadline = time.monotonic() + sock.gettimeout()
        self._has_read = False
        self.is_in_head = True

    def makefile(self, mode: str) -> io.BufferedReader:
        """All that http.client wants of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._has_read:  # to set it the first time would only let another thread in
            self._sock.settimeout(_left_until(self._deadline))
        self._has_read = True
        count: int = self._sock.recv_into(buffer)
        if count == 0 and self.is_in_head:
            raise http.client.RemoteDisconnected("the answer ends within its headers")
        return count


def _read_headers(file: Any) -> CaseInsensitiveDict[str]:
    """The header lines up to the empty one. Lines without a colon are ignored; values of repeated names are joined."""
    headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for _ in range(_MAX_HEADERS):
        line = file.readline(_MAX_LINE_BYTES)
        if len(line) == _MAX_LINE_BYTES:
            break
        if line in (b"\r\n", b"\n"):
            return headers
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
    raise http.client.HTTPException("its headers are too long")


def _length_of(header: str | None) -> int | None:
    lengths = {each.strip() for each in header.split(",")} if header is not None else {""}
    length = lengths.pop()
    if lengths or not ((length.isascii() and length.isdigit() and len(length) < 19) or header is None):
        raise http.client.HTTPException("its length is unclear")
    return int(length) if length else None


class _Response(http.client.HTTPResponse):
    """An answer for which the time-out counts as a whole, head and body, and whose head must be whole.

    http.client's time-out starts again with every byte that arrives, and it takes an answer that breaks off in its
    head for one without a body, and 102 and 103 for final ones. When closed, it gives its connection back to the pool.
    """

    lease: tuple[Any, _Pool] | None = None

    def __init__(self, sock: Any, debuglevel: int = 0, method: str | None = None, url: str | None = None) -> None:
        self._input = _TimedInput(sock)
        self._is_head = method == "HEAD"
        super().__init__(cast(Any, self._input), debuglevel, method, url)

    def begin(self) -> None:
        """As in http.client, but for the headers: to read them as an e-mail's takes a third of a request's time."""
        version, self.status, self.reason = self._read_final_status()
        self.version = 10 if version in ("HTTP/0.9", "HTTP/1.0") else 11
        self.headers = self.msg = cast(Any, _read_headers(self.fp))
        self._input.is_in_head = False
        self.chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.chunk_left = None
        self.length = None if self.chunked else _length_of(self.headers.get("Content-Length"))
        if self.status in (204, 304) or self._is_head:
            self.length = 0
        keeps = self.headers.get("Connection", "").lower()
        self.will_close = "close" in keeps if self.version == 11 else "keep-alive" not in keeps
        self.will_close |= self.length is None and not self.chunked

    def _read_final_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
            if not version.startswith("HTTP/1."):
                raise http.client.UnknownProtocol(version)
            if status >= 200 or status == 101:
                return version, status, reason.strip()
            _read_headers(self.fp)

    def read(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        try:
            return super().read(amt)
        except BaseException:
            self.will_close = True  # http.client takes an answer with a bad chunk for one that is over
            raise

    @property
    def length_remaining(self) -> int | None:
        return self.length

    def close(self) -> None:
        if self.lease is not None:
            connection, pool = self.lease
            self.lease = None
            if self.will_close or self.length or not self.isclosed():
                connection.close()
            pool._put_conn(connection)
        super().close()
