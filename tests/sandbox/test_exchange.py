"""Faults: which requests they apply to, and what goes out instead."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from pipeline.sandbox import Fault
from tests.sandbox.rehearsal import (
    ADA,
    BULK_UPDATE,
    BY_USER_ID,
    GET_FIELDS,
    TRACK,
    UPDATE,
    UPDATE_OF_ADA,
    Rehearsal,
    event,
)


def test_fault_skips_then_strikes_so_many_times(iterable: Rehearsal) -> None:
    body = b'{"msg":"x","code":"GenericError","params":null}'
    fault = iterable.stand_in.inject(Fault(path=UPDATE, skip=1, times=2, status=500, body=body))
    assert iterable.post(TRACK, event()).status_code == 400
    responses = [iterable.post(UPDATE, {"email": f"u{n}@example.com"}) for n in range(4)]
    assert [response.status_code for response in responses] == [200, 500, 500, 200]
    assert (responses[1].content, responses[1].headers["Content-Type"]) == (body, "application/json")
    assert list(iterable.project.users) == ["u0@example.com", "u3@example.com"]
    assert [received.status for received in iterable.project.requests] == [400, 200, 500, 500, 200]
    assert fault.matched == 4


def test_faults_strike_one_after_the_other_in_the_order_of_injection(iterable: Rehearsal) -> None:
    for status in (503, 504):
        iterable.stand_in.inject(Fault(status=status, times=1))
    assert [iterable.post(UPDATE, ADA).status_code for _ in range(3)] == [503, 504, 200]


def test_cleared_faults_strike_no_more(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503))
    iterable.stand_in.clear_faults()
    assert iterable.post(UPDATE, ADA).status_code == 200


def test_fault_for_one_record_applies_to_it_alone_and_in_a_batch(iterable: Rehearsal) -> None:
    fault = iterable.stand_in.inject(Fault(match=b"ada@example.com", status=500))
    bob = {"email": "bob@example.com"}
    requests = [(UPDATE, ADA), (UPDATE, bob), (BULK_UPDATE, {"users": [bob, ADA]}), (TRACK, event())]
    assert [iterable.post(path, body).status_code for path, body in requests] == [500, 200, 500, 500]
    assert (list(iterable.project.users), fault.matched) == (["bob@example.com"], 3)


def test_fault_applies_to_every_nth_match_after_those_skipped(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, skip=1, every=3, times=2, status=500, store=True))
    statuses = [iterable.post(UPDATE, {"email": f"u{n}@example.com"}).status_code for n in range(12)]
    assert statuses == [200, 200, 200, 500, 200, 200, 500, 200, 200, 200, 200, 200]
    assert len(iterable.project.users) == 12


def test_fault_by_endpoint_includes_ids_in_the_path(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=BY_USER_ID, status=503))
    assert [iterable.get(BY_USER_ID + rest).status_code for rest in ("/u-1", "?userId=u-1")] == [503, 503]
    assert iterable.get(f"{BY_USER_ID}/u/1").status_code == 404


@pytest.mark.parametrize("options", [{}, {"status": 503}])
def test_interim_answer_goes_out_before_the_real_one(iterable: Rehearsal, options: dict[str, Any]) -> None:
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
    iterable.stand_in.inject(Fault(prefix=interim, close_after=True, **options))
    answer = iterable.talk(UPDATE_OF_ADA)
    assert answer.startswith(interim + b"HTTP/1.1 %d " % options.get("status", 200))


def test_html_and_headers_of_a_fault_go_out_as_given(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503, body=b"<html>down</html>", headers={"Retry-After": "3"}))
    response = iterable.post(UPDATE, ADA)
    assert (response.text, response.headers["Retry-After"]) == ("<html>down</html>", "3")
    assert response.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("store", [True, False])
def test_reset_connection_keeps_the_request_only_if_stored_first(iterable: Rehearsal, store: bool) -> None:
    iterable.stand_in.inject(Fault(disconnect=True, store=store))
    with pytest.raises(ConnectionResetError):
        iterable.talk(UPDATE_OF_ADA)
    assert list(iterable.project.users) == (["ada@example.com"] if store else [])
    assert [received.status for received in iterable.project.requests] == [0]


def test_stored_request_with_a_500_is_a_lost_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=500, store=True))
    assert iterable.post(UPDATE, ADA).status_code == 500
    assert list(iterable.project.users) == ["ada@example.com"]


def test_raw_bytes_go_out_instead_of_an_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(raw=b"SSH-2.0-OpenSSH\r\n"))
    assert iterable.talk(UPDATE_OF_ADA) == b"SSH-2.0-OpenSSH\r\n"


def test_truncated_answer_ends_within_its_body(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(truncate_at=100))
    answer = iterable.talk(UPDATE_OF_ADA)
    assert (len(answer), answer[-20:]) == (100, b',"code":"Success","p')
    assert list(iterable.project.users) == ["ada@example.com"]


def test_connection_closed_after_a_good_answer(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(close_after=True))
    answer = iterable.talk(UPDATE_OF_ADA + UPDATE_OF_ADA)  # the second is not answered any more
    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert b"connection: close" not in answer.lower()


def test_fault_without_path_strikes_the_api_only(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(status=503))
    assert [iterable.get(path).status_code for path in (GET_FIELDS, "/heartbeat", "/sandbox/state")] == [503, 404, 200]


@pytest.mark.parametrize("options", [{"latency_s": 0.06}, {"fault": Fault(latency_s=0.06)}])
def test_latency_delays_api_answers_only(rehearse: Any, options: dict[str, Any]) -> None:
    fault = options.pop("fault", None)
    iterable = rehearse(**options)
    if fault is not None:
        iterable.stand_in.inject(fault)
    iterable.get("/sandbox/state")
    started = time.monotonic()
    iterable.get("/sandbox/state")
    assert time.monotonic() - started < 0.06
    started = time.monotonic()
    assert iterable.post(UPDATE, ADA).status_code == 200
    assert time.monotonic() - started >= 0.06


def test_dripped_answer_comes_whole_and_slowly(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(drip_s=0.001))
    started = time.monotonic()
    assert iterable.post(UPDATE, ADA).json()["code"] == "Success"
    assert time.monotonic() - started > 0.1  # it has over a hundred bytes


def test_slow_answers_do_not_hold_up_other_connections(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(path=UPDATE, latency_s=5))
    with socket.create_connection(("127.0.0.1", iterable.stand_in.port)) as slow:
        slow.sendall(UPDATE_OF_ADA)
        started = time.monotonic()
        assert iterable.get(GET_FIELDS).status_code == 200
        assert time.monotonic() - started < 1


def test_fault_of_a_request_without_a_body_matches_its_path_and_query(iterable: Rehearsal) -> None:
    iterable.stand_in.inject(Fault(match=b"bob", status=503))
    targets = (
        "/api/events/bob@example.com",
        "/api/users/getByEmail?email=bob@example.com",
        "/api/events/ada@example.com",
    )
    assert [iterable.get(target).status_code for target in targets] == [503, 503, 200]
