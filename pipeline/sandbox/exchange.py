"""What passes between a client and the stand-in: recorded requests, answers, refusals, and faults on demand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple

Json = dict[str, Any]


@dataclass
class Fault:
    """Something that goes wrong. The first fault that applies to a request is the only one for that request.

    Which requests match: those to `path`, such as "/api/users/update" (None: any path of the API; "/api/users/byUserId"
    includes those with the id in the path; "/api/events/byEmail" is /api/events/{email}), whose body, or without one
    whose path and query, contains `match`. With an address or an event's id, quotes included, that record always fails,
    alone and in a batch.
    To which of these it applies: after the first `skip`, to every `every`-th one, `times` times (None: for ever).

    Instead of the answer: `status` with `headers` and `body`; or `raw`, bytes that need not be HTTP, and then the end
    of the connection; or `disconnect`, a reset without any answer. The request is then not processed, unless `store`
    is set: it is processed, and only its answer is lost.

    Whichever answer goes out: `latency_s` is an extra wait before it; `prefix` is sent before it, such as the bytes of
    an interim answer (103 Early Hints); `close_after` then ends the keep-alive connection without announcing it;
    `truncate_at` sends only so many bytes and ends the connection; `drip_s` sends one byte every so many seconds.
    """

    path: str | None = None
    match: bytes | None = None
    skip: int = 0
    every: int = 1
    times: int | None = None
    latency_s: float = 0.0
    store: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None
    disconnect: bool = False
    prefix: bytes = b""
    close_after: bool = False
    truncate_at: int | None = None
    drip_s: float | None = None
    matched: int = field(default=0, init=False)  # requests that matched, including those it did not apply to

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be at least 1, not {self.every}")

    @property
    def replaces_answer(self) -> bool:
        return self.disconnect or self.raw is not None or self.status is not None

    def takes_next(self, path: str, content: bytes) -> bool:
        """Counts a request if it matches, and returns whether this fault applies to it."""
        if not self._matches(path, content):
            return False
        self.matched += 1
        nth = self.matched - self.skip
        return nth > 0 and nth % self.every == 0 and (self.times is None or nth // self.every <= self.times)

    def _matches(self, path: str, content: bytes) -> bool:
        if self.match is not None and self.match not in content:
            return False
        return path.startswith("/api/") if self.path is None else path == self.path

    def answer(self) -> Answer:
        """What goes out instead of Iterable's answer; status 0 if that is not an HTTP answer."""
        headers = {"Content-Type": _guess_content_type(self.body), **self.headers}
        return Answer(self.status or 0, self.body, headers, self)


@dataclass(frozen=True)
class Answer:
    """The project's answer to one request, and the fault that applies to it on the way out."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    fault: Fault | None = None

    def to_bytes(self) -> bytes:
        """The answer as it is sent. A Content-Length among `headers` is kept, however wrong."""
        return _head(self.status, tuple(self.headers.items()), len(self.body)) + self.body


@lru_cache
def _head(status: int, headers: tuple[tuple[str, str], ...], length: int) -> bytes:
    head = [f"HTTP/1.1 {status} {_reason(status)}", *(f"{name}: {value}" for name, value in headers)]
    if not any(name.lower() == "content-length" for name, _ in headers):
        head.append(f"Content-Length: {length}")
    return "\r\n".join([*head, "", ""]).encode("latin-1")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


class Received(NamedTuple):  # a dataclass takes three times as long to make
    """One request as it came in. `status` is what the client was answered, 0 if it got no HTTP answer."""

    time: float  # monotonic
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    body: bytes
    status: int
    query: str = ""  # as it came in, without the question mark


class ApiError(Exception):
    """A request or a record that Iterable refuses. A bulk answer names the record: `listed` = (list, value)."""

    def __init__(
        self, status: int, code: str, msg: str, params: Json | None = None, listed: tuple[str, str] | None = None
    ) -> None:
        super().__init__(msg)
        self.status = status
        self.code = code
        self.params = params
        self.listed = listed

    def answer(self) -> Answer:
        return json_answer({"msg": str(self), "code": self.code, "params": self.params}, self.status)


def json_answer(content: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(content, separators=(",", ":")).encode())


def _guess_content_type(body: bytes) -> str:
    return {b"{": "application/json", b"<": "text/html; charset=utf-8"}.get(body[:1], "text/plain; charset=utf-8")
