"""The wire: what goes out, and all that a server, a proxy or the environment can do to a request.

The stand-in where HTTP will do, and `Peer` for what no HTTP server would do.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from iterable.answers import Failure
from iterable_client import RequestCounts
from pipeline.sandbox import Fault, StandIn
from tests.program import wait_until
from tests.wire import (
    ADA,
    HTML,
    KEY,
    MARGIN_S,
    NOW,
    OK,
    SHORT_S,
    SUCCESS,
    UPDATE,
    URL,
    Action,
    Peer,
    Result,
    client_of,
    drip,
    failed,
    http_answer,
    last,
    open_client,
    read_request,
)

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def iterable() -> Iterator[StandIn]:
    with StandIn(limits=None, unknown_users="accept") as stand_in:
        yield stand_in


@pytest.mark.parametrize(("size", "pieces"), [(100, 1), (60_000, 1), (200_000, 4)])
def test_head_and_body_leave_together_in_pieces_of_64_kib(
    iterable: StandIn, monkeypatch: pytest.MonkeyPatch, size: int, pieces: int
) -> None:
    sent: list[bytes] = []
    sendall = socket.socket.sendall

    def spy(self: socket.socket, data: bytes) -> None:
        sent.append(data)
        sendall(self, data)

    monkeypatch.setattr(socket.socket, "sendall", spy)
    assert client_of(iterable).update_user(ADA, {"x": "x" * size})[0] is True
    assert (len(sent), max(map(len, sent)) <= 65_536) == (pieces, True)
    assert sent[0].startswith(b"POST /api/users/update HTTP/1.1\r\n")
    assert b"".join(sent).endswith(b'x"}}')


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (Fault(disconnect=True), "ConnectionError (Connection reset by peer)"),
        (Fault(truncate_at=0), "ConnectionError"),
        (Fault(truncate_at=30), "ConnectionError"),  # in the head
        (Fault(truncate_at=80), "IncompleteRead"),  # in the body
        (Fault(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "ConnectionError"),
        (Fault(raw=b"\x00" * 100_000), "ConnectionError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "ConnectionError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n12345"), "ConnectionError"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), "IncompleteRead"),
        (Fault(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), "IncompleteRead"),
        (Fault(status=200, headers={"Content-Length": "999"}, body=b"{}", truncate_at=10_000), "IncompleteRead"),
    ],
)
def test_broken_exchange_is_tried_three_times(iterable: StandIn, fault: Fault, problem: str) -> None:
    iterable.inject(fault)
    waits: list[float] = []
    result = client_of(iterable, sleep=waits.append).update_user(ADA)
    assert result == failed(f"{problem} (3 attempts)", Failure.UNACKNOWLEDGED, attempts=3)
    assert (fault.matched, waits) == (3, [1.0, 2.0])


def test_content_length_that_is_too_small_gives_an_unreadable_answer(iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=UPDATE, status=200, headers={"Content-Length": "5"}, body=b'{"code":"Success"}'))
    assert client_of(iterable).update_user(ADA)[1]["failure"] is Failure.UNREADABLE
    iterable.clear_faults()
    assert client_of(iterable).update_user(ADA) == (True, SUCCESS)  # what was left over is not taken for an answer
    assert fault.matched == 1


def test_keep_alive_that_the_server_closed_in_between_costs_no_attempt(iterable: StandIn) -> None:
    iterable.inject(Fault(path=UPDATE, close_after=True))
    client = client_of(iterable)
    for _ in range(5):
        assert client.update_user(ADA) == (True, SUCCESS)
        while iterable.connections:  # until the end of the connection has arrived
            threading.Event().wait(0.001)
    assert client.request_counts == {"users/update": RequestCounts(sent=5)}


def test_keep_alive_that_the_server_closes_at_the_next_request_is_tried_again() -> None:
    waits: list[float] = []
    with Peer(OK, lambda connection: None, OK) as peer:
        client = open_client(peer.url, sleep=waits.append)
        assert [client.update_user(ADA) for _ in range(2)] == [(True, SUCCESS)] * 2
    assert (waits, len(peer.requests), peer.connections) == ([1.0], 3, 2)


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        http_answer(b'{"msg":"no","code":"BadParams"}', "400 Bad Request"),
        http_answer(HTML, "404 Not Found"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n12\r\n" + b'{"code":"Success"}' + b"\r\n0\r\n\r\n",
    ],
)
def test_one_connection_serves_many_calls(answer: bytes) -> None:
    with Peer(answer) as peer:
        client = open_client(peer.url)
        for _ in range(5):
            client.update_user(ADA)
    assert (peer.connections, len(peer.requests)) == (1, 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 2_000_000,  # of which 1 MiB is read
        http_answer(b"{}", "200 OK", "Connection: close"),
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"junk\r\n\r\n",
    ],
)
def test_connection_is_not_used_again_after_an_answer_that_did_not_end_well(answer: bytes) -> None:
    with Peer(answer, OK) as peer:
        client = open_client(peer.url, max_retries=1)
        assert [client.update_user(ADA)[0] for _ in range(3)] == [False, True, True]
    assert peer.connections == 2


def test_closed_session_drops_its_connections_and_opens_again() -> None:
    with Peer(OK) as peer:
        client = open_client(peer.url)
        assert client.update_user(ADA) == (True, SUCCESS)
        client.session.close()
        assert client.update_user(ADA) == (True, SUCCESS)
    assert peer.connections == 2


def test_refusal_before_the_whole_request_has_arrived_is_read() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(http_answer(b"too large", "413 Request Entity Too Large", "Connection: close"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1_000_000):
            pass

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener.accept()[0] as connection:
            refuse(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    _, details = client.bulk_update_users([b'{"x":"' + b"x" * 3_500_000 + b'"}'])
    assert (details["status_code"], details["failure"]) == (413, Failure.REJECTED)
    client.session.close()
    thread.join(5)
    listener.close()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_redirect_is_not_followed_and_its_body_is_not_read(status: int, elsewhere: bool) -> None:
    endless = f"HTTP/1.1 {status} Found\r\nContent-Length: 999999999\r\nLocation: %s/\r\n\r\n"
    with Peer(OK) as other, Peer(lambda connection: None) as peer:
        peer.answers = ((endless % (other if elsewhere else peer).url).encode(),)
        result = open_client(peer.url).update_user(ADA)
        error = f"{status} it redirects to another address (1 attempt)"
        assert result == failed(error, Failure.REDIRECTED, status=status)
        assert (len(peer.requests), other.connections) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"HTTP/1.1 200 OK\r\n" * 1000),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        lambda connection: (connection.sendall(http_answer(b" " * 1000)[:-1000]), drip(b" " * 1000)(connection)),
        lambda connection: (
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
            drip(b"1\r\nx\r\n" * 1000)(connection),
        ),
    ],
    ids=["status line", "100 Continue", "body", "chunks"],
)
def test_dripping_answer_is_ended_by_the_total_deadline(answer: Action) -> None:
    with Peer(answer) as peer:
        started = time.monotonic()
        ok, details = open_client(peer.url, timeout_s=SHORT_S, max_retries=1).update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"], details["status_code"]) == (False, Failure.UNACKNOWLEDGED, None)
    assert re.fullmatch(r"users/update call failed: ReadTimeout \(1 attempt\)", details["error"])


def test_server_that_takes_no_bytes_is_given_up_after_the_time_out() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.bulk_update_users([b'{"x":"' + b"x" * 8_000_000 + b'"}'])
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)


def test_sending_may_take_longer_than_connecting() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            threading.Event().wait(SHORT_S)
            with connection:
                read_request(connection)
                connection.sendall(http_answer(b'{"successCount":1,"failCount":0}'))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = open_client(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=SHORT_S / 4)
        ok, _ = client.bulk_update_users([b'{"x":"' + b"x" * 8_000_000 + b'"}'])
        thread.join(5)
    assert ok is True


def measure_memory(call: Callable[[], Result]) -> tuple[Result, int]:
    """The result of a call, and how many bytes more than before were in use at its peak."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak - before


def test_answer_above_a_mebibyte_is_not_read_on() -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"[" * 1_000_000)
            sent.append(1_000_000)

    with Peer(flood) as peer:
        result, peak = measure_memory(lambda: open_client(peer.url).update_user(ADA))
    assert result == failed("200 more than 1048576 bytes (1 attempt)", Failure.UNREADABLE, status=200)
    assert sum(sent) < 20_000_000  # the rest of what the two sockets hold
    assert peak < 8_000_000


def test_answer_of_just_a_mebibyte_is_read(iterable: StandIn) -> None:
    body = json.dumps({**SUCCESS, "msg": "x" * (1024 * 1024 - len(json.dumps(SUCCESS)))}).encode()
    assert len(body) == 1024 * 1024
    iterable.inject(Fault(path=UPDATE, status=200, body=body))
    assert client_of(iterable).update_user(ADA) == (True, json.loads(body))


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 3,
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n",
        b"HTTP/1.1 199 Odd\r\nContent-Length: 5\r\n\r\n",
    ],
)
def test_interim_answer_is_skipped(interim: bytes) -> None:
    with Peer(interim + OK) as peer:
        client = open_client(peer.url)
        assert [client.update_user(ADA) for _ in range(2)] == [(True, SUCCESS)] * 2
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("lengths", "is_read"),
    [
        (["59", "59"], True),
        (["59, 59"], True),
        (["59", "60"], False),
        (["+59"], False),
        (["-1"], False),
        (["x"], False),
    ],
)
def test_length_that_is_told_twice_must_be_the_same(lengths: list[str], is_read: bool) -> None:
    body = json.dumps({**SUCCESS, "msg": "x" * 13}).encode()
    assert len(body) == 59
    head = "".join(f"Content-Length: {length}\r\n" for length in lengths)
    with Peer(last(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body)) as peer:
        ok, details = open_client(peer.url, max_retries=1).update_user(ADA)
    assert ok is is_read
    assert is_read or details["error"] == "users/update call failed: ConnectionError (1 attempt)"


def test_answer_that_is_no_more_than_http_1_0_is_read() -> None:
    body = json.dumps(SUCCESS).encode()
    with Peer(last(b"HTTP/1.0 200 OK\r\nodd\r\n\r\n" + body)) as peer:
        client = open_client(peer.url)
        assert [client.update_user(ADA) for _ in range(2)] == [(True, SUCCESS)] * 2
    assert peer.connections == 2


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_without_file_descriptors_a_call_is_unanswered_and_the_next_one_is_well() -> None:
    """In a new process, so that nothing has been loaded that a first request needs."""
    program = (
        "import os, resource, sys\n"
        "from iterable_client import IterableClient\n"
        "client = IterableClient('0123456789abcdef', base_url=sys.argv[1], sleep=lambda seconds: None)\n"
        "least = os.open('/dev/null', os.O_RDONLY)\n"
        "limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (least, limits[1]))\n"
        "ok, details = client.update_user('ada@example.com')\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, limits)\n"
        "print(ok, details['failure'].value, details['error'], client.update_user('ada@example.com')[0], sep='|')\n"
    )
    with Peer(OK) as peer:
        for url in (peer.url, peer.url.replace("127.0.0.1", "localhost")):
            done = subprocess.run(
                [sys.executable, "-c", program, url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
            )
            ok, failure, error, next_ok = done.stdout.rstrip().split("|")
            assert (ok, failure, next_ok) == ("False", "unacknowledged", "True")
            assert re.fullmatch(r"users/update call failed: ConnectionError \(.+\) \(3 attempts\)", error)


def test_a_request_waits_for_its_turn_when_its_connection_is_open() -> None:
    """Else those that connect would leave later than others, and some seconds be too full at Iterable's end."""
    connections: list[int] = []
    with Peer(OK) as peer:
        client = open_client(peer.url)
        headers = {"Api-Key": KEY}

        def turn() -> None:
            wait_until(lambda: peer.connections == 1)
            connections.append(len(peer.requests))

        for _ in range(2):
            answer = client.session.exchange("POST", peer.url, b"{}", headers, clock=lambda: NOW, turn=turn)
            assert answer.status_code == 200
    assert connections == [0, 1]


def test_connection_that_the_server_closes_while_a_request_waits_long_costs_no_attempt() -> None:
    closed = threading.Event()

    def answer_and_close_when_told(connection: socket.socket) -> None:
        connection.sendall(OK)
        closed.wait(5)

    with Peer(answer_and_close_when_told, OK) as peer:
        client = open_client(peer.url)
        assert client.update_user(ADA) == (True, SUCCESS)

        def turn() -> None:
            closed.set()
            threading.Event().wait(1.1)

        answer = client.session.exchange("POST", peer.url, b"{}", {}, clock=lambda: NOW, turn=turn)
        assert (answer.status_code, answer.problem) == (200, "")
    assert (peer.connections, len(peer.requests)) == (2, 2)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bomb_is_not_unpacked(iterable: StandIn, encoding: str) -> None:
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    bomb = b"".join(packer.compress(b" " * 1_000_000) for _ in range(200)) + packer.flush()
    assert len(bomb) < 1_000_000
    iterable.inject(Fault(path=UPDATE, status=200, headers={"Content-Encoding": encoding}, body=bomb))
    client = client_of(iterable)
    (_, details), peak = measure_memory(lambda: client.update_user(ADA))
    assert details["failure"] is Failure.UNREADABLE
    assert peak < 10_000_000


def test_cookies_are_never_sent_back(iterable: StandIn) -> None:
    iterable.inject(Fault(path=UPDATE, status=503, headers={"Set-Cookie": "session=1; Path=/"}, times=2))
    client = client_of(iterable, sleep=lambda _: None)
    assert client.update_user(ADA) == (True, SUCCESS)
    assert [each.headers.get("cookie") for each in iterable.project.requests] == [None] * 3
    assert list(client.session.cookies) == []


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: "]))
def test_no_bytes_on_the_wire_raise(garbage: bytes, start: bytes) -> None:
    with Peer(last(start + garbage)) as peer:
        ok, details = open_client(peer.url, max_retries=1).update_user(ADA)
    assert (ok, details["attempts"]) == (False, 1)


def test_credentials_in_an_address_become_no_header(iterable: StandIn) -> None:
    url = f"http://user:pw@127.0.0.1:{iterable.port}{UPDATE}"
    assert client_of(iterable)._make_request_with_retry("POST", url, {"email": ADA}, "users/update") == (True, SUCCESS)
    (request,) = iterable.project.requests
    assert (request.headers.get("authorization"), request.headers["host"]) == (None, f"127.0.0.1:{iterable.port}")


# The environment ------------------------------------------------------------------------------------------------------


def test_environment_adds_no_credentials_and_no_proxy(
    iterable: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with Peer(OK) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        client = client_of(iterable)
        assert client.update_user(ADA) == (True, SUCCESS)
        client.session.post(iterable.url + UPDATE, json={}, timeout=5)
        assert proxy.connections == 0
    assert ["authorization" in each.headers for each in iterable.project.requests] == [False, False]


def test_proxy_is_used_where_it_is_named_and_gets_its_own_credentials() -> None:
    with Peer(OK) as proxy:
        client = open_client("http://localhost:81", proxy=f"http://user:pw@127.0.0.1:{proxy.port}")
        assert client.update_user(ADA) == (True, SUCCESS)
    (request,) = proxy.requests
    assert request.startswith(b"POST http://localhost:81/api/users/update HTTP/1.1\r\nHost: localhost:81\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwdw==\r\n" in request


def test_proxy_that_drips_its_answer_is_ended_by_the_time_out_for_connecting() -> None:
    with Peer(drip(b"HTTP/1.1 200 Connection established\r\n" * 1000)) as proxy:
        client = open_client(URL, proxy=proxy.url, connect_timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)
    assert proxy.requests[0].startswith(b"CONNECT api.iterable.com:443 HTTP/1.")
    assert KEY.encode() not in proxy.requests[0]


# Certificates ---------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority, made with openssl, and what it signs: for `localhost`, for another host, and by none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = folder / "authority.pem"
        self._create("authority", "/CN=Test authority", "basicConstraints=critical,CA:TRUE")
        for name, host in (("good", "localhost"), ("other", "elsewhere.example.com")):
            self._create(name, f"/CN={host}", f"subjectAltName=DNS:{host}", "-CA", "authority")
        self._create("selfmade", "/CN=localhost", "subjectAltName=DNS:localhost")

    def _create(self, name: str, subject: str, extension: str, *signer: str) -> None:
        path = self.folder / name
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", subject, "-addext", extension, "-out", f"{path}.pem", "-keyout", f"{path}.key"]
        if signer:
            command += ["-CA", str(self.authority), "-CAkey", f"{self.folder / 'authority'}.key"]
            command += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(command, check=True, capture_output=True)

    def serve(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def fresh_authority(certificates: Certificates, tmp_path: Path) -> str:
    """The authority's certificate under a name that no client has read before."""
    path = tmp_path / "fresh.pem"
    path.write_bytes(certificates.authority.read_bytes())
    return str(path)


def test_certificate_of_a_named_authority_is_accepted(certificates: Certificates) -> None:
    with Peer(OK, tls=certificates.serve("good")) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority))
        assert [client.update_user(ADA) for _ in range(3)] == [(True, SUCCESS)] * 3
    assert (len(peer.requests), peer.connections) == (3, 1)


def test_folder_of_certificates_is_accepted(certificates: Certificates, tmp_path: Path) -> None:
    (tmp_path / "authority.pem").write_bytes(certificates.authority.read_bytes())
    subprocess.run(["openssl", "rehash", str(tmp_path)], check=True, capture_output=True)
    with Peer(OK, tls=certificates.serve("good")) as peer:
        assert open_client(peer.url, ca_bundle=str(tmp_path)).update_user(ADA) == (True, SUCCESS)


@pytest.mark.parametrize(
    ("name", "has_authority", "reason"),
    [
        ("selfmade", True, "self.signed certificate"),
        ("other", True, "Hostname mismatch, certificate is not valid for 'localhost'."),
        ("good", False, "unable to get local issuer certificate"),
    ],
)
def test_certificate_that_fails_is_not_tried_again_and_gets_no_request(
    certificates: Certificates, name: str, has_authority: bool, reason: str
) -> None:
    with Peer(OK, tls=certificates.serve(name)) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority) if has_authority else None)
        ok, details = client.update_user(ADA)
    assert (peer.requests, peer.connections) == ([], 1)
    error = rf"users/update call failed: certificate check failed \({reason}\) \(1 attempt\)"
    assert re.fullmatch(error, details["error"])
    assert (ok, details["failure"], details["attempts"]) == (False, Failure.BAD_CERTIFICATE, 1)


def test_certificate_check_of_the_session_can_not_be_switched_off(certificates: Certificates) -> None:
    with Peer(OK, tls=certificates.serve("good")) as peer:
        session = open_client(peer.url).session
        session.verify = False
        with pytest.raises(requests.exceptions.SSLError):
            session.get(peer.url, verify=False, timeout=5)
    assert peer.requests == []


def test_environment_changes_no_certificate_check_and_records_no_keys(
    certificates: Certificates, fresh_authority: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, fresh_authority)
    with Peer(OK, tls=certificates.serve("good")) as peer:
        assert open_client(peer.url).update_user(ADA)[1]["failure"] is Failure.BAD_CERTIFICATE
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "nothing.pem"))
        assert open_client(peer.url, ca_bundle=fresh_authority).update_user(ADA) == (True, SUCCESS)
    assert not key_log.exists()


def test_https_proxy_is_checked_and_its_keys_are_not_recorded(
    certificates: Certificates, fresh_authority: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_log = tmp_path / "keys.log"
    monkeypatch.setenv("SSLKEYLOGFILE", str(key_log))
    forbidden = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
    with Peer(last(forbidden), tls=certificates.serve("good")) as proxy:
        trusting = open_client(URL, proxy=proxy.url, ca_bundle=fresh_authority, max_retries=1)
        assert trusting.update_user(ADA)[1]["failure"] is Failure.PROXY_REFUSED
        assert open_client(URL, proxy=proxy.url).update_user(ADA)[1]["failure"] is Failure.BAD_CERTIFICATE
    assert [each.partition(b" HTTP")[0] for each in proxy.requests] == [b"CONNECT api.iterable.com:443"]
    assert not key_log.exists()


def test_dripping_answer_over_tls_is_ended_by_the_total_deadline(certificates: Certificates) -> None:
    with Peer(drip(b"HTTP/1.1 200 OK\r\n" * 1000), tls=certificates.serve("good")) as peer:
        client = open_client(peer.url, ca_bundle=str(certificates.authority), timeout_s=SHORT_S, max_retries=1)
        started = time.monotonic()
        ok, details = client.update_user(ADA)
        assert SHORT_S <= time.monotonic() - started < SHORT_S + MARGIN_S
    assert (ok, details["failure"]) == (False, Failure.UNACKNOWLEDGED)


def test_old_tls_is_refused(certificates: Certificates) -> None:
    client = open_client("https://localhost", ca_bundle=str(certificates.authority))
    adapter: Any = client.session.get_adapter("https://localhost")
    context = adapter.poolmanager.connection_pool_kw["ssl_context"]
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
