"""The hardened session: no redirects, no cookies, no environment; and one table of what can go wrong with a request.

In: time-outs, the number of connections, certificates. Out: a `requests.Session` that turns one HTTP request into an
`Answer`, whatever goes wrong with it. How the bytes travel stands in `connection`.
"""

from __future__ import annotations

import functools
import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict

from iterable import __version__
from iterable.answers import Answer, Failure, read_answer
from iterable.connection import Adapter, ProxyError, ProxyRefusedError, Timeouts, tls_context

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
        adapter = Adapter(Timeouts(connect_timeout_s, timeout_s), max_connections, tls_context(ca_bundle))
        self._turn = adapter.turn
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
            prepared = _prepare(method, url, body, headers)
            self._turn.wait = turn
            response = self.send(prepared, stream=True, allow_redirects=False, verify=True, proxies=self._named_proxies)
            self._turn.take()  # where something else than our own pool has answered, as in a test
        except _TRANSPORT_ERRORS as error:
            return _unanswered(error)
        try:
            return _read(response, clock, max_bytes)
        except _TRANSPORT_ERRORS as error:
            return Answer(None, problem=_problem_of(error))
        finally:
            response.close()


def _prepare(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> requests.PreparedRequest:
    """What `requests.Request(...).prepare()` would give, without what costs time and is not wanted: authentication
    by the address or `.netrc`, cookies, and checks of headers that our pool makes."""
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


def _read(response: requests.Response, clock: Callable[[], float], max_bytes: int) -> Answer:
    status_code = response.status_code
    if 300 <= status_code < 400:
        return Answer(status_code, text="it redirects to another address", failure=Failure.REDIRECTED)
    # Not kept here, so that a large body is gone when it has become text.
    return read_answer(status_code, _content(response, max_bytes), response.headers.get("Retry-After"), clock())


def _content(response: requests.Response, max_bytes: int) -> bytes:
    content: bytes = response.raw.read(max_bytes + 1, decode_content=False) or b""
    if len(content) > max_bytes:
        return b"more than %d bytes" % max_bytes
    if (response.raw.length_remaining or 0) > 0:  # urllib3 hands over a cut answer as if it were whole
        raise http.client.IncompleteRead(content, response.raw.length_remaining)
    return content


# What went wrong ------------------------------------------------------------------------------------------------------

# requests wraps most of what urllib3, http.client and the socket raise, but not all; its own errors are OSErrors.
_TRANSPORT_ERRORS = (OSError, ValueError, http.client.HTTPException, urllib3.exceptions.HTTPError)


class _Meaning(NamedTuple):
    """What an error says about its request. is_wrapped: it may lie within others; else it is the outermost one.
    failure: None where another attempt may help."""

    error: type[BaseException]
    is_wrapped: bool
    problem: str
    failure: Failure | None


# The first line that fits decides. Where none does, another attempt may help, and the error is called by its name.
_MEANINGS = (
    _Meaning(
        ssl.SSLCertVerificationError,
        True,
        "certificate check failed ({0.verify_message})",
        Failure.BAD_CERTIFICATE,
    ),
    _Meaning(ProxyRefusedError, True, "the proxy refused to connect: {0.status} {0.phrase}", Failure.PROXY_REFUSED),
    _Meaning(ProxyError, True, "the proxy could not connect: {0.status} {0.phrase}", None),
    # requests' InvalidURL, InvalidSchema and so on are ValueErrors, and so is what a head can't carry.
    _Meaning(
        ValueError,
        False,
        "can't be sent: its address or a header is malformed ({0.__class__.__name__})",
        Failure.REJECTED,
    ),
)


def _unanswered(error: Exception) -> Answer:
    """An exception from sending -> an Answer that says whether another attempt can help."""
    for meaning in _MEANINGS:
        for each in _causes(error) if meaning.is_wrapped else (error,):
            if isinstance(each, meaning.error):
                return Answer(None, problem=meaning.problem.format(each), failure=meaning.failure)
    return Answer(None, problem=_problem_of(error))


def _problem_of(error: Exception) -> str:
    """`ConnectionError (Connection refused)`. No more of an exception's text: it may quote a header, and so the key."""
    reasons = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError) and cause.strerror]
    name = "ReadTimeout" if isinstance(error, TimeoutError) else type(error).__name__
    return name + (f" ({reasons[-1]})" if reasons else "")


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
