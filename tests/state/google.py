"""A stand-in for Google Cloud Storage's XML API, as far as STATE_URL=gs://… uses it: one bucket, `bucket`, in memory.

After https://cloud.google.com/storage/docs/xml-api/reference-headers: each write makes a new generation, and
`x-goog-if-generation-match` lets it through only over that one; 0: only where there is no object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Bucket:
    objects: dict[str, tuple[bytes, int, str]] = field(default_factory=dict)  # content, generation, written
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    generation: int = 1_700_000_000_000_000
    lock: Lock = field(default_factory=Lock)


class Handler(BaseHTTPRequestHandler):
    bucket: ClassVar[Bucket]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        _, bucket, *rest = unquote(parts.path).split("/", 2)
        self.query = parse_qs(parts.query, keep_blank_values=True)
        self.name = rest[0] if rest else ""
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.bucket.lock:
            if bucket != "bucket":
                self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif not self.name:
                self._list()
            elif self.command == "POST":
                self._multipart()
            elif self.command == "PUT":
                self._put()
            elif self.name not in self.bucket.objects:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.command == "DELETE":
                del self.bucket.objects[self.name]
                self._answer(204)
            else:
                self._get()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - of http.server

    def _put(self) -> None:
        if "uploadId" in self.query:
            number = int(self.query["partNumber"][0])
            self.bucket.parts[self.query["uploadId"][0]][number] = self.content
            self._answer(200, etag=hashlib.md5(self.content).hexdigest())
            return
        wanted = self.headers.get("x-goog-if-generation-match")
        _, generation, _ = self.bucket.objects.get(self.name, (b"", 0, ""))
        if wanted is not None and int(wanted) != generation:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self._store(self.content)

    def _store(self, content: bytes, body: bytes = b"") -> None:
        self.bucket.generation += 1
        self.bucket.objects[self.name] = (content, self.bucket.generation, formatdate(usegmt=True))
        self._answer(200, body, generation=self.bucket.generation, etag=hashlib.md5(content).hexdigest())

    def _multipart(self) -> None:
        if "uploads" in self.query:
            key = f"upload{len(self.bucket.parts)}"
            self.bucket.parts[key] = {}
            begun = f"<InitiateMultipartUploadResult><UploadId>{key}</UploadId></InitiateMultipartUploadResult>"
            self._answer(200, begun.encode())
            return
        parts = self.bucket.parts.pop(self.query["uploadId"][0])
        body = b"<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
        self._store(b"".join(parts[number] for number in sorted(parts)), body)

    def _get(self) -> None:
        content, generation, written = self.bucket.objects[self.name]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        body, span = content, ""
        if found:
            first, last = int(found[1]), min(int(found[2]), len(content) - 1)
            body, span = content[first : last + 1], f"bytes {first}-{last}/{len(content)}"
        self._answer(206 if found else 200, body, generation, hashlib.md5(content).hexdigest(), written, span)

    def _list(self) -> None:
        prefix = self.query.get("prefix", [""])[0]
        found = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(content)}</Size><ETag>e</ETag>"
            "<LastModified>2026-01-13T08:00:00.000Z</LastModified></Contents>"
            for name, (content, _, _) in self.bucket.objects.items()
            if name.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())

    def _answer(
        self, status: int, body: bytes = b"", generation: int = 0, etag: str = "", written: str = "", span: str = ""
    ) -> None:
        self.send_response(status)
        headers = {"ETag": etag and f'"{etag}"', "Last-Modified": written, "Content-Range": span}
        for name, value in {**headers, "x-goog-generation": str(generation or "")}.items():
            if value:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def run_google() -> Iterator[dict[str, str]]:
    """The environment with which `gs://bucket/…` can be used."""
    handler = type("OwnHandler", (Handler,), {"bucket": Bucket()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        account = {
            "gcs_base_url": f"http://127.0.0.1:{server.server_port}",
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        yield {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account), "GOOGLE_ALLOW_HTTP": "true"}
        server.shutdown()
