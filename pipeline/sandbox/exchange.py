"""What passes between a client and the stand-in: requests kept, answers, refusals, and faults on demand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]


@dataclass
class Fault:
    """What goes wrong with the requests it matches. The first fault that applies to a request is its only one.

    `path`: "/api/users/update", say; None is any path of the API. `skip`: so many matching requests get through first.
    `times`: for how many it then applies; None is for ever. `latency_s`: extra wait before the answer.

    Instead of the answer: `status` with `headers` and `body`; or `raw`, bytes that need not be HTTP, and then the end
    of the connection; or `disconnect`, a reset without any answer. The request is then not handled, unless `store`:
    handled and kept first, its answer lost.

    To whichever answer goes out: `close_after` ends the keep-alive connection without announcing it, `truncate_at`
    sends only so many bytes and then ends it, `drip_s` sends one byte each so many seconds.
    """

    path: str | None = None
    skip: int = 0
    times: int | None = None
    latency_s: float = 0.0
    store: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None
    disconnect: bool = False
    close_after: bool = False
    truncate_at: int | None = None
    drip_s: float | None = None
    matched: int = field(default=0, init=False)  # requests that reached it, those let through included

    @property
    def replaces_answer(self) -> bool:
        return self.disconnect or self.raw is not None or self.status is not None

    def takes_next(self, path: str) -> bool:
        """Counts a request to `path`, and tells whether this fault befalls it."""
        matches = path.startswith("/api/") if self.path is None else path == self.path
        if not matches:
            return False
        self.matched += 1
        return self.matched > self.skip and (self.times is None or self.matched <= self.skip + self.times)

    def answer(self) -> Answer:
        """What goes out instead of Iterable's answer; status 0 if that is not an HTTP answer."""
        headers = {"Content-Type": _guess_content_type(self.body), **self.headers}
        return Answer(self.status or 0, self.body, headers, self)


@dataclass(frozen=True)
class Answer:
    """What the project says to one request, and the fault that befalls it on the way out."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    fault: Fault | None = None

    def to_bytes(self) -> bytes:
        """The answer on the wire. A Content-Length among `headers` stays, however wrong."""
        head = [f"HTTP/1.1 {self.status} {_reason(self.status)}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        if not any(name.lower() == "content-length" for name in self.headers):
            head.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*head, "", ""]).encode("latin-1") + self.body


@dataclass(frozen=True)
class Received:
    """One request as it came in. `status` is what the client was answered, 0 if it got no HTTP answer."""

    time: float  # monotonic
    path: str  # without the query
    headers: dict[str, str]  # names in lower case
    body: bytes
    status: int


class ApiError(Exception):
    """A request or a record that Iterable does not take. A bulk answer names the record: `listed` = (list, value)."""

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


@lru_cache
def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
