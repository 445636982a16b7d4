"""Whole deliveries to the stand-in: order, concurrency, when a run stops, and what is known of each record then."""

from __future__ import annotations

import gc
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import timezone
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import FieldMap
from pipeline.delivery.breaker import Turn
from pipeline.delivery.bulk_answers import Settled
from pipeline.delivery.delivery import (
    GRACE_S,
)
from pipeline.delivery.modes import MAX_BYTES_A_BATCH, Mode, bulk_mode, single_mode
from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind, Outcome, Record
from pipeline.sandbox import Fault, StandIn
from pipeline.transform.rules import Rules
from pipeline.transform.users import MAX_RECORD_BYTES
from tests.job import (
    MODES,
    SIGINT,
    SIGTERM,
    Clock,
    Job,
    Ran,
    Rows,
    Silence,
    assert_no_event_was_before_its_user,
    each_mode,
    make_record,
    records_in,
    requests_of,
    small_bulk,
    some_events,
    some_users,
    stage,
)
from tests.opened import Opened
from tests.processes import file_size_limit
from tests.records import count_accepted

ROOT = Path(__file__).parent.parent.parent
ADA, BOB, CY = "ada@example.com", "bob@example.com", "cy@example.com"
UPDATE, BULK_UPDATE = "/api/users/update", "/api/users/bulkUpdate"
TRACK, TRACK_BULK = "/api/events/track", "/api/events/trackBulk"
BAD_KEY = Fault(status=401, body=b'{"msg":"Invalid API key","code":"BadApiKey","params":null}')


# Delivering -----------------------------------------------------------------------------------------------------------


@each_mode
def test_every_user_comes_before_their_events_and_a_second_run_sends_nothing(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    iterable.project.unknown_users = "accept"
    rows = some_events(60)
    ran = job.run(rows, mode)
    assert (ran.stop, ran.users, ran.events) == (None, {"delivered": 10}, {"delivered": 60})
    assert (ran.progress.totals, ran.progress.advanced) == ({"user": 10, "event": 60}, 70)
    assert {request.path for request in iterable.project.requests} == {"/api/" + name for name in mode.endpoints}
    assert_no_event_was_before_its_user(iterable)
    assert sorted(iterable.project.events) == [event_id for _, event_id in rows]
    for thread in threading.enumerate():
        if thread.name.startswith("worker-"):
            thread.join(timeout=5)
            assert not thread.is_alive()
    iterable.project.requests.clear()
    ran = job.run(rows, mode)
    assert (ran.stop, ran.users, ran.events) == (None, {"unchanged": 10}, {"unchanged": 60})
    assert iterable.project.requests == []


@each_mode
def test_nothing_to_send_is_no_request_and_no_progress(job: Job, iterable: StandIn, mode: Mode) -> None:
    ran = job.run([], mode)
    assert (ran.stop, ran.users, ran.events, ran.progress.totals) == (None, {}, {}, {})
    assert iterable.project.requests == []


def test_dropped_and_created_fields_are_known_by_kind_after_the_run_and_which_watched_ones_passed(
    job: Job, iterable: StandIn
) -> None:
    iterable.project.dropped_fields |= {"age", "seat.row"}

    def stage_ada(opened: Opened) -> None:
        fields = {"age": 7, "plan": "pro", "seat": {"row": 1, "number": 2}}
        opened.stage.people.stage_users([make_record(opened, Kind.USER, 1, ADA, {}, fields)])
        event = make_record(opened, Kind.EVENT, 1, ADA, {"eventName": "visit", "id": "e1", "createdAt": 1})
        opened.stage_events([event])
        opened.stage.finish_staging()

    watched = {Kind.USER: {"age", "plan", "seat.number", "seat.row", "city"}, Kind.EVENT: {"plan"}}
    delivered = job.run(None, MODES["bulk"], before=stage_ada, watched_fields=watched).delivered
    nothing: frozenset[str] = frozenset()
    assert delivered.filtered_out_fields == {Kind.USER: {"age", "seat.row"}, Kind.EVENT: nothing}
    assert delivered.created_fields == {Kind.USER: {"plan", "seat", "seat.number"}, Kind.EVENT: nothing}
    assert delivered.passed_fields == {Kind.USER: {"plan", "seat.number"}, Kind.EVENT: nothing}


def test_single_requests_tell_of_no_dropped_fields(job: Job, iterable: StandIn) -> None:
    iterable.project.dropped_fields.add("age")

    def stage_ada(opened: Opened) -> None:
        stage(opened, [(ADA, None)], {"age": 7})

    delivered = job.run(None, MODES["single"], before=stage_ada, watched_fields={Kind.USER: {"age"}}).delivered
    nothing = dict.fromkeys(Kind, frozenset[str]())
    assert (delivered.filtered_out_fields, delivered.passed_fields) == (nothing, nothing)


# Order and concurrency ------------------------------------------------------------------------------------------------


@each_mode
def test_events_of_one_user_stay_in_order_and_are_never_in_two_requests_at_once(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    iterable.latency_s = 0.01
    rows = [(ADA, f"a{number:04d}") for number in range(45)]
    rows += [(f"{number % 9}@example.com", f"e{number:04d}") for number in range(90)]
    ran = job.run(rows, mode)
    assert ran.events == {"delivered": 135}
    under_way: dict[str, float] = {}  # user -> when the answer of their last request left
    arrivals = []
    for request in requests_of(iterable, f"/api/{mode.endpoints[1]}"):
        arrivals.append(request.time)
        for email in {each["email"] for each in records_in(request.body)}:
            assert request.time >= under_way.get(email, 0.0)
            under_way[email] = request.time + iterable.latency_s
    assert any(later - earlier < iterable.latency_s / 2 for earlier, later in pairwise(arrivals))
    order = iterable.project.event_order
    assert len(order) == 135
    for email in {email for email, _ in rows}:
        ids = [event_id for who, event_id in rows if who == email]
        assert [event_id for event_id in order if event_id in set(ids)] == ids


@each_mode
def test_first_batch_goes_alone_until_iterable_has_answered(job: Job, iterable: StandIn, mode: Mode) -> None:
    iterable.latency_s = 0.05
    job.run(some_users(40), mode)
    first, *others = (request.time for request in iterable.project.requests)
    assert others[0] - first >= 0.05
    assert min(later - earlier for earlier, later in pairwise(others)) < 0.05


def measure_memory(folder: str, url: str, mode: str) -> None:
    """A run of 40 users and 40 events of 3 MB, in a process of its own; tells by how much its memory has grown."""

    def stage_large_records(opened: Opened) -> None:
        for row in range(1, 41):
            large = {"text": "x" * 3_000_000}
            user = make_record(opened, Kind.USER, row, f"{row}@example.com", {}, large)
            event = {"eventName": "visit", "id": f"e{row}", "createdAt": row}
            event_record = make_record(opened, Kind.EVENT, row, f"{row}@example.com", event, large)
            opened.stage.people.stage_users([user])
            opened.stage_events([event_record])
        opened.stage.finish_staging()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        memory.append(peak_mib())

    memory: list[float] = []
    mode_of_run = {"single": single_mode(None), "bulk": bulk_mode(None)}[mode]
    ran = Job(Path(folder), url).run(None, mode_of_run, before=stage_large_records)
    print(ran.users == ran.events == {"delivered": 40}, peak_mib() - memory[0])


def peak_mib() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux")
@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_memory_stays_small_where_records_are_large(job: Job, iterable: StandIn, mode: str) -> None:
    iterable.latency_s = 0.03
    iterable.project.keep_payloads = False
    iterable.project.unknown_users = "accept"
    call = f"measure_memory({str(job.folder)!r}, {job.url!r}, {mode!r})"
    script = f"from tests.delivery.test_delivery import measure_memory; {call}"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    was_delivered, growth_mib = told.split()
    assert was_delivered == "True"
    assert float(growth_mib) < 130  # their payloads alone are 240 MB


RULES = Rules(
    by_user_id=False,
    identity_column="email",
    user_fields=(FieldMap("notes", "notes"),),
    event_fields=(FieldMap("text", "text"),),
    event_name="visit",
    zone=timezone.utc,
    clear_nulls=False,
    latest_s=2e9,
)


@pytest.mark.parametrize("mode", [bulk_mode(None), single_mode(2)], ids=["bulk", "single"])
def test_record_too_large_for_any_request_is_rejected_and_its_neighbours_delivered(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    def plan(opened: Opened) -> None:
        rows = [
            {"email": email, "notes": notes, "text": text, "event_time": 1768293912}
            for email, notes, text in (
                (ADA, "short", "x" * MAX_RECORD_BYTES),
                (BOB, "x" * MAX_RECORD_BYTES, "short"),
                (CY, "x" * 3_400_000, "short"),
            )
        ]
        opened.plan(RULES, rows)
        opened.stage.finish_staging()

    iterable.project.unknown_users = "accept"
    ran = job.run(None, mode, before=plan)
    delivered_and_one_rejected = {"delivered": 2, "rejected": 1}
    assert (ran.stop, ran.users, ran.events) == (None, delivered_and_one_rejected, delivered_and_one_rejected)
    assert sorted(iterable.project.users) == [ADA, CY]
    assert sorted(event["email"] for event in iterable.project.events.values()) == [BOB, CY]
    assert {
        (undelivered.kind, undelivered.row, undelivered.code, undelivered.attempts) for undelivered in ran.undelivered
    } == {
        (Kind.EVENT, 1, "InvalidRecord", 0),
        (Kind.USER, 2, "InvalidRecord", 0),
    }
    sizes = [len(request.body) for request in iterable.project.requests]
    assert max(sizes) <= MAX_BYTES_A_BATCH


# When a run stops -----------------------------------------------------------------------------------------------------

HTML = Fault(status=200, body=b"<html>Welcome to our hotel</html>")
FORBIDDEN = Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}')


@pytest.mark.parametrize(
    ("fault", "code", "requests", "outcome", "batches"),
    [
        (BAD_KEY, ExitCode.CREDENTIALS, 1, "unacknowledged", 1),
        (FORBIDDEN, ExitCode.CREDENTIALS, 5, "unacknowledged", 3),
        (HTML, ExitCode.NOT_ITERABLE, 5, "unacknowledged", 3),
        (Fault(status=302, headers={"Location": "/"}), ExitCode.NOT_ITERABLE, 1, "unacknowledged", 1),
        (Fault(status=429, headers={"Retry-After": "3600"}), ExitCode.TEMPORARY, 1, "unacknowledged", 1),
        (Fault(status=503), ExitCode.TEMPORARY, 19, "unacknowledged", 5),
        (Fault(status=500), ExitCode.TEMPORARY, 19, "unacknowledged", 5),
        (Fault(disconnect=True), ExitCode.TEMPORARY, 19, "unacknowledged", 5),
    ],
)
@each_mode
def test_iterable_that_never_takes_anything_stops_the_run_after_few_requests(
    job: Job, iterable: StandIn, mode: Mode, fault: Fault, code: ExitCode, requests: int, outcome: str, batches: int
) -> None:
    """Where a call is not final at once, it is followed by two probes of one record each."""
    fault = iterable.inject(Fault(status=fault.status, headers=fault.headers, body=fault.body,
                                  disconnect=fault.disconnect))  # fmt: skip
    ran = job.run(some_users(500), mode)
    tried = batches * (10 if mode.is_bulk else 1) + (2 if batches > 1 else 0)
    assert ran.stop_code is code
    assert ran.users == {outcome: tried, "not_attempted": 500 - tried}
    assert fault.matched == requests


@each_mode
def test_wrong_key_costs_one_request_also_where_one_user_has_all_the_events(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    rows = [(ADA, f"e{number}") for number in range(100)]
    job.run([(ADA, None)], mode)
    iterable.project.api_key = "another key"
    iterable.project.requests.clear()
    ran = job.run(rows, mode)
    assert ran.stop_code is ExitCode.CREDENTIALS
    a_batch = 10 if mode.is_bulk else 1
    assert ran.events == {"unacknowledged": a_batch, "not_attempted": 100 - a_batch}
    assert [request.status for request in iterable.project.requests] == [401]


@pytest.mark.parametrize("status", [403, 500, 504])
def test_outage_with_a_single_batch_to_send_is_found_with_two_of_its_records(
    job: Job, iterable: StandIn, status: int
) -> None:
    fault = iterable.inject(Fault(status=status, body=b'{"msg":"","code":"GenericError"}'))
    ran = job.run(some_users(1000), bulk_mode(None))
    assert ran.stop_code is (ExitCode.CREDENTIALS if status == 403 else ExitCode.TEMPORARY)
    assert ran.users == {"unacknowledged": 1000}
    assert fault.matched == (3 if status == 403 else 9)


@pytest.mark.parametrize("status", [400, 409, 413])
def test_server_that_refuses_every_batch_gets_a_bounded_number_of_requests(
    job: Job, iterable: StandIn, status: int
) -> None:
    fault = iterable.inject(Fault(status=status, body=b'{"msg":"no","code":"BadParams"}'))
    ran = job.run(some_users(2000), small_bulk(workers=1, records_a_batch=200))
    assert (ran.stop, ran.users) == (None, {"rejected": 2000})
    assert fault.matched == 127 + 63 + 31 + 15 + 6 * 7


def test_closed_port_is_an_outage(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ran = Job(tmp_path, f"http://127.0.0.1:{port}").run(some_users(20), MODES["single"])
    assert (ran.stop_code, ran.users) == (ExitCode.TEMPORARY, {"unacknowledged": 7, "not_attempted": 13})


def test_four_failures_then_a_success_then_four_more_are_no_outage(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(status=503, skip=0, times=4))
    iterable.inject(Fault(status=503, skip=1, times=4))
    ran = job.run(some_users(12), single_mode(1), max_retries=1)
    assert (ran.stop, ran.users) == (None, {"delivered": 4, "unacknowledged": 8})


def test_what_was_delivered_before_an_outage_is_not_sent_by_the_next_run(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(status=503, skip=7, latency_s=0.05))
    first = job.run(some_users(30), single_mode(1))
    assert (first.stop_code, first.users["delivered"]) == (ExitCode.TEMPORARY, 7)
    assert first.users["unacknowledged"] == 7
    iterable.clear_faults()
    second = job.run(some_users(30), single_mode(1))
    assert (second.stop, second.users) == (None, {"unchanged": 7, "delivered": 23})
    assert set(iterable.project.user_updates.values()) == {1}


# Users that Iterable does not know yet --------------------------------------------------------------------------------


def hold_back(tmp_path: Path, mode: Mode, rows: Rows, settle_s: float, visible_after_s: float) -> tuple[Ran, StandIn]:
    """A run whose clock stands still until it waits, and an Iterable that finds new users after visible_after_s."""
    clock = Clock(0.0)
    stand_in = StandIn(limits=None, visible_after_s=visible_after_s, clock=lambda: clock.now)
    with stand_in:
        progress = Silence(on_say=clock.start)
        return Job(tmp_path, stand_in.url).run(rows, mode, settle_s=settle_s, clock=clock, progress=progress), stand_in


@each_mode
def test_events_of_new_users_wait_until_iterable_knows_them(tmp_path: Path, mode: Mode) -> None:
    ran, stand_in = hold_back(tmp_path, mode, some_events(15, 3), settle_s=60, visible_after_s=50)
    assert (ran.stop, ran.users, ran.events) == (None, {"delivered": 3}, {"delivered": 15})
    assert ran.progress.said == [
        "15 events refused because Iterable does not know their user (yet); trying once more in 60 s."
    ]
    updated = max(request.time for request in requests_of(stand_in, f"/api/{mode.endpoints[0]}"))
    times = [request.time for request in requests_of(stand_in, f"/api/{mode.endpoints[1]}")]
    second_try = times[len(times) // 2 :]
    assert updated + 60 <= min(second_try)
    for number in range(3):
        ids = [event_id for event_id in stand_in.project.event_order if int(event_id[1:]) % 3 == number]
        assert ids == sorted(ids)


@each_mode
def test_events_of_users_that_stay_unknown_are_rejected_after_a_second_try(tmp_path: Path, mode: Mode) -> None:
    ran, stand_in = hold_back(tmp_path, mode, some_events(15, 3), settle_s=60, visible_after_s=1e9)
    assert (ran.stop, ran.users, ran.events) == (None, {"delivered": 3}, {"rejected": 15})
    tried = [each["id"] for request in requests_of(stand_in, f"/api/{mode.endpoints[1]}")
             for each in records_in(request.body)]  # fmt: skip
    assert Counter(tried) == dict.fromkeys((f"e{number:04d}" for number in range(1, 16)), 2)
    assert {undelivered.code for undelivered in ran.undelivered} <= {"notFoundEmails", "UnknownEmailError"}


@each_mode
def test_nobody_waits_where_no_event_was_refused(job: Job, mode: Mode) -> None:
    ran = job.run(some_events(15, 3), mode, settle_s=3600)
    assert (ran.events, ran.progress.said) == ({"delivered": 15}, [])


def test_nobody_waits_for_users_whose_update_was_refused(tmp_path: Path) -> None:
    clock = Clock(0.0)
    with StandIn(limits=None, clock=lambda: clock.now) as stand_in:
        stand_in.inject(Fault(path="/api/users/update", match=ADA.encode(), status=400, body=b'{"code":"BadParams"}'))
        job, progress = Job(tmp_path, stand_in.url), Silence(on_say=clock.start)
        rows = [(ADA, "e1"), (BOB, "e2")]
        ran = job.run(rows, single_mode(4), settle_s=3600, clock=clock, progress=progress)
    assert (ran.users, ran.events) == ({"delivered": 1, "rejected": 1}, {"delivered": 1, "rejected": 1})
    assert progress.said == [
        "1 event refused because Iterable does not know their user (yet); trying once more in 0 s."
    ]


@each_mode
def test_unchanged_user_whom_iterable_has_lost_is_sent_again_before_the_second_try(tmp_path: Path, mode: Mode) -> None:
    clock = Clock(0.0)
    with StandIn(limits=None, visible_after_s=50, clock=lambda: clock.now) as stand_in:
        job = Job(tmp_path, stand_in.url)
        job.run([(ADA, None), (BOB, None)], mode, clock=clock)
        clock.now += 1000
        stand_in.project.delete_user(email=ADA)
        progress = Silence(on_say=clock.start)
        ran = job.run([(ADA, "e1"), (ADA, "e2"), (BOB, "e3")], mode, settle_s=60, clock=clock, progress=progress)
    assert (ran.stop, ran.users) == (None, {"delivered": 1, "unchanged": 1})
    assert ran.events == {"delivered": 3}
    assert (ran.progress.totals, ran.progress.advanced) == ({"event": 3}, 3)
    assert ran.progress.said[0] == "1 unchanged user no longer in Iterable; sending again."
    assert "2 events refused because Iterable does not know their user (yet)" in ran.progress.said[1]
    assert stand_in.project.user_updates == {ADA: 1, BOB: 1}  # since it was lost


@each_mode
def test_unchanged_user_whom_iterable_has_lost_and_does_not_take_now_is_sent_by_the_next_run(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    job.run([(ADA, None)], mode)
    iterable.project.delete_user(email=ADA)
    iterable.inject(Fault(path=f"/api/{mode.endpoints[0]}", status=503))
    ran = job.run([(ADA, "e1")], mode)
    assert (ran.stop, ran.users, ran.events) == (None, {"unacknowledged": 1}, {"rejected": 1})
    iterable.clear_faults()
    ran = job.run([(ADA, "e1")], mode)
    assert (ran.users, ran.events) == ({"delivered": 1}, {"delivered": 1})


@each_mode
def test_run_interrupted_while_events_are_held_leaves_them_to_the_next_run(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    iterable.project.visible_after_s = 1e9
    progress = Silence()
    rows = some_events(15, 3)
    ran = job.run(rows, mode, settle_s=3600, progress=progress, interrupted=lambda: SIGTERM if progress.said else None)
    assert (ran.stop_code, ran.users, ran.events) == (
        ExitCode.SIGTERM,
        {"delivered": 3},
        {"unacknowledged": 15},
    )
    iterable.project.visible_after_s = 0
    iterable.project.visible_at.clear()
    assert job.run(rows, mode).events == {"delivered": 15}


# Interruption ---------------------------------------------------------------------------------------------------------


@each_mode
def test_interrupted_run_takes_in_what_is_under_way_and_begins_nothing_new(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    iterable.latency_s = 0.1
    rows = some_users(200)
    ran = job.run(rows, mode, interrupted=lambda: SIGINT if len(iterable.project.requests) > 4 else None)
    assert ran.stop == SIGINT
    reached = len(iterable.project.users)
    assert 4 < reached < 200
    assert ran.users == {"delivered": reached, "not_attempted": 200 - reached}
    iterable.latency_s = 0.0
    assert job.run(rows, mode).users == {"unchanged": reached, "delivered": 200 - reached}
    assert set(iterable.project.user_updates.values()) == {1}


@pytest.mark.parametrize(("mode", "sent"), [(single_mode(2), 2), (small_bulk(2), 20)], ids=["single", "bulk"])
def test_interrupted_run_ends_within_its_grace_where_no_answer_comes(
    job: Job, iterable: StandIn, mode: Mode, sent: int
) -> None:
    fault = iterable.inject(Fault(skip=1, latency_s=3600))
    before = time.monotonic()
    ran = job.run(some_users(100), mode, clock=Clock(1.0), interrupted=lambda: SIGTERM if fault.matched == 3 else None)
    assert time.monotonic() - before < GRACE_S
    assert ran.stop == SIGTERM
    first = sent // 2
    assert ran.users == {"delivered": first, "unacknowledged": sent, "not_attempted": 100 - first - sent}
    assert ran.messages(Outcome.UNACKNOWLEDGED) == {"No answer came within 5 s after the stop."}
    assert fault.matched == 3


def test_interrupted_run_in_a_hurry_waits_for_no_answer(job: Job, iterable: StandIn) -> None:
    fault = iterable.inject(Fault(skip=1, latency_s=3600))

    def is_interrupted() -> bool:
        return fault.matched == 3

    ran = job.run(
        some_users(100),
        single_mode(2),
        clock=Clock(0.0),  # so that no grace ever ends
        interrupted=lambda: SIGINT if is_interrupted() else None,
        is_urgent=is_interrupted,
    )
    assert (ran.stop, ran.users) == (SIGINT, {"delivered": 1, "unacknowledged": 2, "not_attempted": 97})
    assert ran.messages(Outcome.UNACKNOWLEDGED) == {"No answer came before the run was stopped at once."}


def test_interrupted_run_leaves_the_later_events_of_a_turn_unattempted(job: Job, iterable: StandIn) -> None:
    fault = iterable.inject(Fault(path=TRACK, skip=2, latency_s=3600))
    rows = [(ADA, f"e{number}") for number in range(10)]
    ran = job.run(rows, single_mode(2), clock=Clock(1.0), interrupted=lambda: SIGTERM if fault.matched == 3 else None)
    assert ran.events == {"delivered": 2, "unacknowledged": 1, "not_attempted": 7}


# Bugs, and a ledger that can't be written -----------------------------------------------------------------------------


class Bug(Exception):
    pass


class Scripted:
    """A Sender that delivers everything; with a bug, all but its third batch."""

    def __init__(self, *, has_bug: bool) -> None:
        self.batches = self.delivered = 0
        self._has_bug = has_bug
        self._lock = threading.Lock()

    def send(self, records: Sequence[Record], turn: Turn) -> Iterator[Settled]:
        with self._lock:
            self.batches += 1
            if self._has_bug and self.batches == 3:
                raise Bug
            self.delivered += len(records)
        yield Settled(delivered=records)

    def is_answered(self) -> bool | None:
        return None


@each_mode
def test_bug_in_a_sender_reaches_the_caller_and_what_was_delivered_is_known(job: Job, mode: Mode) -> None:
    buggy = Scripted(has_bug=True)
    a_batch = 10 if mode.is_bulk else 1
    before = time.monotonic()
    with pytest.raises(Bug):
        job.run(some_users(100), mode, sender=lambda client: buggy)
    assert time.monotonic() - before < GRACE_S
    assert job.breaker.is_stopping
    assert buggy.delivered >= 2 * a_batch
    assert job.users == {"delivered": buggy.delivered, "unacknowledged": a_batch}
    gc.collect()  # the traceback holds a cursor, and so the ledger
    ran = job.run(some_users(100), mode, sender=lambda client: Scripted(has_bug=False))
    assert ran.users == {"unchanged": buggy.delivered, "delivered": 100 - buggy.delivered}


@pytest.mark.parametrize("allowed", [1, 2])
@each_mode
def test_where_the_system_gives_no_more_threads_fewer_do_the_work(
    job: Job, iterable: StandIn, mode: Mode, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterable.latency_s = 0.002
    workers = limit_workers(monkeypatch, allowed)
    ran = job.run(some_events(60), mode)
    assert (ran.stop, ran.users, ran.events) == (None, {"delivered": 10}, {"delivered": 60})
    assert len(workers) == allowed


@each_mode
def test_where_the_system_gives_no_thread_at_all_the_run_ends_as_temporary(
    job: Job, iterable: StandIn, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_workers(monkeypatch, 0)
    ran = job.run(some_events(60), mode)
    reason = "The system refuses to start a thread (can't start new thread)."
    assert ran.stop == Ending(ExitCode.TEMPORARY, f"{reason} The next run continues where this one stopped.")
    assert (ran.users, ran.events) == ({"not_attempted": 10}, {"not_attempted": 60})


@pytest.mark.parametrize("allowed", [1, 2, 5])
@each_mode
def test_where_no_thread_is_left_for_a_probe_the_run_stops(
    job: Job, iterable: StandIn, mode: Mode, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterable.inject(Fault(status=503))
    limit_workers(monkeypatch, allowed)
    ran = job.run(some_users(100), mode)
    assert ran.stop_code is ExitCode.TEMPORARY
    assert ran.users["not_attempted"] >= 50


def limit_workers(monkeypatch: pytest.MonkeyPatch, allowed: int) -> list[str]:
    """As many as the system lets start: their names."""
    started: list[str] = []
    start = threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if thread.name.startswith("worker-"):
            if len(started) == allowed:
                raise RuntimeError("can't start new thread")
            started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    return started


@each_mode
def test_ledger_that_cannot_be_written_stops_the_run_and_loses_nothing_that_is_known(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    iterable.latency_s = 0.005
    rows = some_users(400)
    clock = Clock(1.0)  # so that it commits at each look, until it stops
    with file_size_limit(120_000):
        ran = job.run(rows, mode, clock=lambda: clock.now if job.breaker.is_stopping else clock())
    reached = len(iterable.project.users)
    assert ran.stop_code is ExitCode.TEMPORARY
    assert ran.stop is not None
    assert ran.stop.reason.startswith("The ledger can't be written (")
    assert 0 < reached < 400
    assert ran.users == {"delivered": reached, "not_attempted": 400 - reached}
    iterable.latency_s = 0.0
    ran = job.run(rows, mode)
    assert (ran.stop, sum(ran.users.values())) == (None, 400)
    assert ran.users["unchanged"] > 0


def test_ledger_that_cannot_be_written_at_the_end_leaves_the_reason_for_which_the_run_stopped(
    job: Job, iterable: StandIn
) -> None:
    def fill_the_disk(opened: Opened) -> None:
        opened.ledger.commit()
        limit.enter_context(file_size_limit((job.folder / f"{LEDGER_NAME}-wal").stat().st_size))

    with ExitStack() as limit:
        ran = job.run(
            some_users(50),
            MODES["bulk"],
            before=fill_the_disk,
            interrupted=lambda: SIGINT if iterable.project.users else None,
        )
    assert ran.stop_code is ExitCode.SIGINT
    assert ran.users["delivered"] == len(iterable.project.users)
    assert job.run(some_users(50), MODES["bulk"]).users == {"delivered": 50}


# A run that is killed -------------------------------------------------------------------------------------------------

KILLED_ROWS = some_events(600, 40)


def child_main(folder: str, url: str, mode: str) -> None:
    """A run that commits at each step, and tells on stdout how many records each one was."""
    progress = Silence(on_advance=lambda count: print(count, flush=True))
    Job(Path(folder), url).run(KILLED_ROWS, MODES[mode], clock=Clock(1.0), progress=progress)


def committed(folder: Path) -> int:
    with closing(sqlite3.connect(folder / LEDGER_NAME)) as database:
        return count_accepted(database)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_run_after_a_kill_completes_it_without_sending_what_was_committed(
    job: Job, iterable: StandIn, mode: str, share: float
) -> None:
    script = (
        f"from tests.delivery.test_delivery import child_main; child_main({str(job.folder)!r}, {job.url!r}, {mode!r})"
    )
    iterable.latency_s = 0.002
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        steps: list[int] = []
        while sum(steps) < share * 640:
            steps.append(int(process.stdout.readline()))
        process.kill()
    iterable.latency_s = 0.0
    sent_before = iterable.project.event_sends.copy()
    known = committed(job.folder)
    assert 0 < known < 640
    ran = job.run(KILLED_ROWS, MODES[mode])
    everything = Counter(ran.users) + Counter(ran.events)
    assert (ran.stop, everything) == (None, {"unchanged": known, "delivered": 640 - known})
    ids = [str(event_id) for _, event_id in KILLED_ROWS]
    assert sorted(iterable.project.events) == ids
    assert sorted(iterable.project.event_order) == ids
    again = [event_id for event_id in ids if iterable.project.event_sends[event_id] > sent_before[event_id]]
    assert len(again) == ran.events["delivered"]
    assert max(iterable.project.event_sends.values()) <= 2
