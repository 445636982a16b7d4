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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection

from iterable.answers import Answer, Failure, read_answer

MAX_ANSWER_BYTES = 1024 * 1024

_FIXED_HEADERS = {
    "User-Agent": "iterable-integration/1.0",
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # no compressed answer can grow beyond what was read
    "Content-Type": "application/json",
}


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
        """timeout_s: for sending, and for the whole answer. OSError for a ca_bundle that is none."""
        super().__init__()
        self.trust_env = False
        self.cookies = _NoCookies()
        self._timeouts = (connect_timeout_s, timeout_s)
        self._named_proxies = {"http": proxy, "https": proxy} if proxy else {}
        adapter = _Adapter(timeout_s, max_connections, _tls_context(ca_bundle))
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None

    def exchange(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], *, now: float) -> Answer:
        """One HTTP request and its answer; every way in which it can go wrong becomes an `Answer`."""
        try:
            response = self.send(
                _prepare(method, url, body, headers),
                stream=True,
                allow_redirects=False,
                timeout=self._timeouts,
                verify=True,
                proxies=self._named_proxies,
            )
        except _TRANSPORT_ERRORS as error:
            return _unanswered(error)
        try:
            return _read(response, now)
        except _TRANSPORT_ERRORS as error:
            return Answer(None, problem=_problem_of(error))
        finally:
            response.close()


def _prepare(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> requests.PreparedRequest:
    """What `requests.Request(...).prepare()` would give, without what costs time and is not wanted: authentication
    by the address or `.netrc`, cookies, and checks of headers that http.client checks again."""
    prepared = requests.PreparedRequest()
    prepared.method = method.upper()
    prepared.url = _normalize_url(url)
    prepared.headers = CaseInsensitiveDict({**_FIXED_HEADERS, **headers})
    if body is not None:
        prepared.body = body
        prepared.headers["Content-Length"] = str(len(body))
    return prepared


@functools.lru_cache(maxsize=16)
def _normalize_url(url: str) -> str:
    """The address as requests would write it. Its errors are ValueErrors."""
    prepared = requests.PreparedRequest()
    prepared.prepare_url(url, None)
    return str(prepared.url)


def _read(response: requests.Response, now: float) -> Answer:
    """At most MAX_ANSWER_BYTES of it."""
    status_code = response.status_code
    if 300 <= status_code < 400:
        return Answer(status_code, text="it redirects to another address", failure=Failure.REDIRECTED)
    content: bytes = response.raw.read(MAX_ANSWER_BYTES + 1, decode_content=False) or b""
    if len(content) > MAX_ANSWER_BYTES:
        content = b"more than %d bytes" % MAX_ANSWER_BYTES
    elif (response.raw.length_remaining or 0) > 0:  # urllib3 hands over a cut answer as if it were whole
        raise http.client.IncompleteRead(content, response.raw.length_remaining)
    return read_answer(status_code, content, response.headers.get("Retry-After"), now)


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
    is_in_answer = any(isinstance(cause, urllib3.exceptions.InvalidHeader) for cause in causes)
    if isinstance(error, ValueError) and not is_in_answer:
        # requests' InvalidURL, InvalidSchema and so on are ValueErrors, and so is what http.client says of a header.
        problem = f"can't be sent: its address or a header is malformed ({type(error).__name__})"
        return Answer(None, problem=problem, failure=Failure.REJECTED)
    return Answer(None, problem=_problem_of(error))


def _problem_of(error: Exception) -> str:
    """`ConnectionError (Connection refused)`. No more of an exception's text: it may quote a header, and so the key."""
    reasons = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    return type(error).__name__ + (f" ({reasons[-1]})" if reasons else "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that it wraps, also in the ways of urllib3 (`reason`, nested arguments)."""
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
    """One TLS context for all connections, and connections of the kind below.

    requests would parse the certificate bundle for each new connection (14 ms and 0.8 MB).
    """

    def __init__(self, timeout_s: float, max_connections: int, tls: ssl.SSLContext) -> None:
        self._timeout_s = timeout_s
        self._tls = tls
        self._pools: dict[str, Any] = {}
        super().__init__(pool_connections=4, pool_maxsize=max_connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block=block, ssl_context=self._tls, **pool_kwargs)
        _set_connections(self.poolmanager, self._timeout_s)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, ssl_context=self._tls, proxy_ssl_context=self._tls, **proxy_kwargs)
        if is_new:
            _set_connections(manager, self._timeout_s)
        return manager

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """The pool for an address, of which a client has few. To look it up anew takes a seventh of each request."""
        url = str(request.url)
        pool = self._pools.get(url)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
            self._pools[url] = pool
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
        response.headers = CaseInsensitiveDict(resp.headers)
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


def _set_connections(manager: Any, timeout_s: float) -> None:
    """Give a urllib3 pool manager, whichever kinds of connections it makes, the manners of `_Connection`."""
    manager.pool_classes_by_scheme = {
        scheme: type(pool.__name__, (pool,), {"ConnectionCls": _with_manners(pool.ConnectionCls, timeout_s)})
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


def _with_manners(connection: Any, timeout_s: float) -> type:
    return type(connection.__name__, (_Connection, connection), {"timeout_s": timeout_s})


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
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = time.monotonic() + sock.gettimeout()
        self._has_read = False
        self.is_in_head = True

    def makefile(self, mode: str) -> io.BufferedReader:
        """All that http.client wants of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._has_read:  # to set it the first time would only let another thread in
            self._sock.settimeout(_left_until(self._deadline))
        self._has_read = True
        count: int | None = self._raw.readinto(buffer)
        if count == 0 and self.is_in_head:
            raise http.client.RemoteDisconnected("the answer breaks off amidst its head")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer for which the time-out counts as a whole, head and body, and whose head must be whole.

    The time-out of urllib3 starts again with every byte that arrives, and http.client takes an answer that breaks off
    amidst its head for one without a body.
    """

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        self._input = _TimedInput(sock)
        super().__init__(cast(Any, self._input), *args, **kwargs)

    def begin(self) -> None:
        super().begin()
        self._input.is_in_head = False


_SEND_BYTES = 65_536  # a TLS socket starts its time-out anew with each record of 16 KiB


class _Connection(HTTPConnection):
    """Sends head and body together, and a large body within `timeout_s`.

    urllib3 would send the two apart, and allow the sending as long as the connecting.
    """

    response_class = _Response
    timeout_s: float
    _held_back: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held_back = []
        super().request(*args, **kwargs)
        message, self._held_back = b"".join(self._held_back), None
        deadline = time.monotonic() + self.timeout_s
        for start in range(0, len(message), _SEND_BYTES):
            if start:  # the first piece connects, if need be
                self.sock.settimeout(_left_until(deadline))
            self.send(message[start : start + _SEND_BYTES])

    def send(self, data: Any) -> None:
        if self._held_back is None:
            super().send(data)
        else:
            self._held_back.append(data)
