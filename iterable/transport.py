"""The hardened session: no redirects, no cookies, no environment, one deadline for each answer, one TLS context.

In: time-outs, the number of connections, certificates. Out: a `requests.Session` that turns one HTTP request into an
`Answer`, whatever goes wrong with it.
"""

from __future__ import annotations

import functools
import http.client
import io
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from iterable import __version__
from iterable.answers import Answer, Failure, read_answer

MAX_ANSWER_BYTES = 1024 * 1024
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

_FIXED_HEADERS = {
    "User-Agent": f"iterable-integration/{__version__}",
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # no compressed answer can grow beyond what was read
    "Content-Type": "application/json",
}


def check_base_url(base_url: str) -> None:
    """ValueError for one that is malformed, has a user or a password in it, or is http:// and not this machine."""
    parts = urlsplit(base_url)
    if "@" in parts.netloc:
        raise ValueError("base_url must not hold a user name or a password.")
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ValueError("base_url must begin with https://, since the key travels with each request.")


class _NoCookies(RequestsCookieJar):
    """Stays empty."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class Session(requests.Session):
    """A session that follows no redirect, keeps no cookies, and takes nothing from the environment or `.netrc`."""

    def __init__(
        self,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        max_connections: int,
        proxy: str | None = None,
        ca_bundle: str | None = None,
    ) -> None:
        """timeout_s: for sending, and for the whole answer. OSError for a ca_bundle that can't be loaded."""
        super().__init__()
        self.trust_env = False
        self.cookies = _NoCookies()
        self._named_proxies = {"http": proxy, "https": proxy} if proxy else {}
        adapter = _Adapter(_Timeouts(connect_timeout_s, timeout_s), max_connections, _tls_context(ca_bundle))
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None

    def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        clock: Callable[[], float],
        turn: Callable[[], None] | None = None,
        max_bytes: int = MAX_ANSWER_BYTES,
    ) -> Answer:
        """One HTTP request and its answer; every way in which it can go wrong becomes an `Answer`.

        max_bytes: of the answer's body.
        turn: waits for this request's turn. Called when the connection is open, so that nothing keeps the request from
        leaving afterwards; what it raises passes through.
        """
        try:
            prepared = _prepare(method, url, body, headers, turn)
            response = self.send(prepared, stream=True, allow_redirects=False, verify=True, proxies=self._named_proxies)
            _take_turn(prepared.headers)  # where something else than our own pool has answered, as in a test
        except _TRANSPORT_ERRORS as error:
            return _unanswered(error)
        try:
            return _read(response, clock, max_bytes)
        except _TRANSPORT_ERRORS as error:
            return Answer(None, problem=_problem_of(error))
        finally:
            response.close()


class _Headers(CaseInsensitiveDict[str]):
    """Brings `turn` to our pool: requests hands the headers on as they are, and nothing else of ours."""

    turn: Callable[[], None] | None = None


def _take_turn(headers: Any) -> None:
    turn = getattr(headers, "turn", None)
    if turn is not None:
        headers.turn = None
        turn()


def _prepare(
    method: str, url: str, body: bytes | None, headers: Mapping[str, str], turn: Callable[[], None] | None
) -> requests.PreparedRequest:
    """What `requests.Request(...).prepare()` would give, without what costs time and is not wanted: authentication
    by the address or `.netrc`, cookies, and checks of headers that our pool makes."""
    prepared = requests.PreparedRequest()
    prepared.method = method.upper()
    prepared.url = _normalize_url(url)
    given = _Headers({**_FIXED_HEADERS, **headers})
    given.turn = turn
    if body is not None:
        prepared.body = body
        given["Content-Length"] = str(len(body))
    prepared.headers = cast(Any, given)
    return prepared


@functools.lru_cache(maxsize=16)
def _normalize_url(url: str) -> str:
    """The address as requests would write it. Its errors are ValueErrors."""
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, None)
    return str(prepared.url)


def _read(response: requests.Response, clock: Callable[[], float], max_bytes: int) -> Answer:
    status_code = response.status_code
    if 300 <= status_code < 400:
        return Answer(status_code, text="it redirects to another address", failure=Failure.REDIRECTED)
    content: bytes = response.raw.read(max_bytes + 1, decode_content=False) or b""
    if len(content) > max_bytes:
        content = b"more than %d bytes" % max_bytes
    elif (response.raw.length_remaining or 0) > 0:  # urllib3 hands over a cut answer as if it were whole
        raise http.client.IncompleteRead(content, response.raw.length_remaining)
    return read_answer(status_code, content, response.headers.get("Retry-After"), clock())


# What went wrong ------------------------------------------------------------------------------------------------------

# requests wraps most of what urllib3, http.client and the socket raise, but not all; its own errors are OSErrors.
_TRANSPORT_ERRORS = (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)


def _unanswered(error: Exception) -> Answer:
    """An exception from sending -> an Answer that says whether another attempt can help."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = f"certificate check failed ({cause.verify_message})"
            return Answer(None, problem=problem, failure=Failure.BAD_CERTIFICATE)
    if isinstance(error, ValueError):
        # requests' InvalidURL, InvalidSchema and so on are ValueErrors, and so is what a head can't carry.
        problem = f"can't be sent: its address or a header is malformed ({type(error).__name__})"
        return Answer(None, problem=problem, failure=Failure.REJECTED)
    return Answer(None, problem=_problem_of(error))


def _problem_of(error: Exception) -> str:
    """`ConnectionError (Connection refused)`. No more of an exception's text: it may quote a header, and so the key."""
    reasons = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    name = "ReadTimeout" if isinstance(error, TimeoutError) else type(error).__name__
    return name + (f" ({reasons[-1]})" if reasons else "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it wraps, also in the id_schemes of urllib3 (`reason`, nested arguments)."""
    seen: set[int] = set()
    pending = [error]
    while pending:
        cause = pending.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        pending += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


# Below the session ----------------------------------------------------------------------------------------------------


class _Adapter(HTTPAdapter):
    """One TLS context for all connections, and pools of the kind below.

    requests would parse the certificate bundle for each new connection (14 ms and 0.8 MB).
    """

    def __init__(self, timeouts: _Timeouts, max_connections: int, tls: ssl.SSLContext) -> None:
        self._timeouts = timeouts
        self._tls = tls
        self._pools: dict[str, Any] = {}
        super().__init__(pool_connections=4, pool_maxsize=max_connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._tls, **pool_kwargs)
        _set_pools(self.poolmanager, self._timeouts)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, **proxy_kwargs)
        if is_new:
            _set_pools(manager, self._timeouts)
        return manager

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
def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
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

_SEND_BYTES = 65_536
_STALE_AFTER_S = 1.0  # of waiting for a turn; the server may have closed the connection
_MAX_HEADERS = 100
_MAX_LINE_BYTES = 65_536


@dataclass(frozen=True)
class _Timeouts:
    connect_s: float
    answer_s: float


def _set_pools(manager: Any, timeouts: _Timeouts) -> None:
    """Make a urllib3 pool manager use our pools and responses, whichever kinds of connections it makes."""
    manager.pool_classes_by_scheme = {
        scheme: type(
            pool.__name__,
            (_Pool, pool),
            {
                "timeouts": timeouts,
                "ConnectionCls": type(
                    pool.ConnectionCls.__name__, (pool.ConnectionCls,), {"response_class": _Response}
                ),
            },
        )
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


class _Pool(urllib3.HTTPConnectionPool):
    """Connects as urllib3 does, sends head and body together within the time-out, and reads as http.client does.

    urllib3's own way through a pool takes thrice the time, sends the two apart, and allows the sending as long as the
    connecting.
    """

    timeouts: _Timeouts

    def urlopen(  # type: ignore[override]
        self, method: str, url: str, body: Any = None, headers: Any = None, **_: Any
    ) -> _Response:
        """Its exceptions are those that requests makes its own of."""
        try:
            message = self._head(method, url, headers or {}) + _as_bytes(body)
            return self._exchange(method, message, lambda: _take_turn(headers))
        except TimeoutError as error:
            raise urllib3.exceptions.ReadTimeoutError(self, url, "the time is up") from error
        except ssl.SSLError as error:
            raise urllib3.exceptions.SSLError(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise urllib3.exceptions.MaxRetryError(self, url, error) from error
        except http.client.HTTPException as error:
            raise urllib3.exceptions.ProtocolError("the answer is no HTTP", error) from error

    def _exchange(self, method: str, message: bytes, take_turn: Callable[[], None]) -> _Response:
        connection: Any = self._get_conn()
        try:
            self._connect(connection)
            began = time.monotonic()
            take_turn()
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
                self._prepare_proxy(connection)
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
            raise http.client.RemoteDisconnected("the answer breaks off in its head")
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
    raise http.client.HTTPException("its head is too long")


def _length_of(header: str | None) -> int | None:
    lengths = {each.strip() for each in header.split(",")} if header is not None else {""}
    length = lengths.pop()
    if lengths or not ((length.isascii() and length.isdigit() and len(length) < 19) or header is None):
        raise http.client.HTTPException("its length can't be told")
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
