"""HTTP: requests however they come in, connections however they end."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.sandbox import SANDBOX_KEY, Fault
from tests.sandbox.rehearsal import ADA, GET_FIELDS, TRACK, UPDATE, UPDATE_OF_ADA, Rehearsal, event


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/nothing"), ("GET", UPDATE), ("POST", GET_FIELDS), ("GET", "/sandbox/nothing")]
)
def test_unknown_path_or_method_is_an_html_404(iterable: Rehearsal, method: str, path: str) -> None:
    headers = {"Api-Key": SANDBOX_KEY}
    response = iterable.session.request(method, iterable.stand_in.url + path, headers=headers, timeout=5)
    assert (response.status_code, response.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "Action not found" in response.text


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"hello there\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"A" * 70_000,
    ],
)
def test_garbage_is_a_plain_400_and_the_end(iterable: Rehearsal, garbage: bytes) -> None:
    answer = iterable.talk(garbage)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n")
    assert answer.endswith(b"\r\n\r\nBad Request")


def test_chunked_body_is_put_together(iterable: Rehearsal) -> None:
    response = iterable.post(UPDATE, data=iter([b'{"email":', b'"ada@exa', b'mple.com"}']))
    assert response.status_code == 200
    assert iterable.project.requests[0].body == b'{"email":"ada@example.com"}'


def test_request_cut_into_single_bytes_is_understood(iterable: Rehearsal) -> None:
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in UPDATE_OF_ADA:
            connection.send(bytes([byte]))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("latency_s", [0.0, 0.02])
def test_requests_sent_at_once_are_answered_in_order(iterable: Rehearsal, latency_s: float) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, latency_s=latency_s))
    last = b"GET /sandbox/state HTTP/1.1\r\nConnection: close\r\n\r\n"
    answer = iterable.talk(UPDATE_OF_ADA + b"GET /nothing HTTP/1.1\r\n\r\n" + UPDATE_OF_ADA + last)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"200"]


@pytest.mark.parametrize(("version", "header"), [(b"1.0", b""), (b"1.1", b"Connection: close\r\n")])
def test_connection_ends_when_the_client_asks_for_it(iterable: Rehearsal, version: bytes, header: bytes) -> None:
    answer = iterable.talk(b"GET /sandbox/state HTTP/" + version + b"\r\n" + header + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_request_is_recorded_as_it_came(iterable: Rehearsal) -> None:
    before = time.monotonic()
    iterable.post(UPDATE + "?a=b", ADA)
    (received,) = iterable.project.requests
    assert before <= received.time <= time.monotonic()
    assert (received.path, received.status, json.loads(received.body)) == (UPDATE, 200, ADA)
    assert received.headers["api-key"] == SANDBOX_KEY
    assert received.headers["content-type"] == "application/json"


def test_stopped_stand_in_refuses_and_started_again_goes_on(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.stand_in.stop()
    with pytest.raises(requests.ConnectionError):
        iterable.post(UPDATE, ADA)
    iterable.stand_in.start()
    assert iterable.answer(TRACK, event())[0] == 200


def test_stop_drops_connections_and_leaves_no_thread(rehearse: Any) -> None:
    threads = threading.active_count()
    iterable = rehearse(latency_s=30)
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port), timeout=5) as connection:
        connection.sendall(b"GET /api/users/getFields HTTP/1.1\r\n\r\n")
        while not iterable.project.requests:
            pass
        iterable.stand_in.stop()
        assert connection.recv(1000) == b""
    iterable.stand_in.stop()  # a second time does no harm
    assert threading.active_count() == threads


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
def test_https_is_served_with_a_context(rehearse: Any, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += [
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-out",
        certificate,
        "-keyout",
        key,
    ]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    iterable = rehearse(ssl_context=context, host_name="localhost")
    assert iterable.stand_in.url.startswith("https://localhost:")
    assert iterable.post(UPDATE, ADA, verify=certificate).status_code == 200
    iterable.stand_in.inject(Fault(disconnect=True))
    with pytest.raises(requests.ConnectionError):
        iterable.post(UPDATE, ADA, verify=certificate)
