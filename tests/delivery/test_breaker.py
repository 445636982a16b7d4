"""When calls wait and when a run stops: the breaker alone, and what a server that is gone costs in requests."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from iterable.pacing import rates
from iterable_client import Abandoned, Failure
from pipeline.delivery.breaker import Breaker, Division, Turn
from pipeline.delivery.modes import Mode, bulk_mode, single_mode
from pipeline.model.exits import ExitCode
from pipeline.model.failure_policy import POLICIES
from pipeline.model.records import Kind
from pipeline.sandbox import Fault, StandIn
from tests.job import Job, Rows, each_mode
from tests.program import wait_until

OUT, NO_AUTH, NO_JSON = Failure.UNACKNOWLEDGED, Failure.UNAUTHORIZED, Failure.UNREADABLE


def tell(breaker: Breaker, *failures: Failure | None, is_probe: bool = False) -> Turn:
    """Calls one after another, each with its end."""
    turn = breaker.turn(Kind.USER, is_probe=is_probe)
    for failure in failures:
        if not breaker.is_open or is_probe:
            turn.may_call()
        turn.answered(failure, "why.")
    return turn


# Alone ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([OUT] * 4, None),
        ([OUT] * 5, ExitCode.TEMPORARY),
        ([OUT] * 4 + [None] + [OUT] * 4, None),
        ([OUT] * 4 + [Failure.REJECTED] + [OUT] * 4, None),
        ([OUT] * 4 + [Failure.ABANDONED, OUT], ExitCode.TEMPORARY),
        ([NO_AUTH] * 2, None),
        ([NO_AUTH] * 3, ExitCode.CREDENTIALS),
        ([NO_AUTH, None] * 3, None),
        ([NO_JSON] * 2, None),
        ([NO_JSON] * 3, ExitCode.NOT_ITERABLE),
        ([OUT, NO_JSON] * 2, ExitCode.NOT_ITERABLE),
        ([NO_JSON, OUT, NO_AUTH, OUT], ExitCode.TEMPORARY),
        ([NO_AUTH, NO_JSON, OUT], None),
        ([Failure.REJECTED] * 1000, None),
        ([Failure.ABANDONED] * 10, None),
    ],
)
def test_breaker_opens_at_the_last_failure_and_not_before(
    failures: list[Failure | None], code: ExitCode | None
) -> None:
    breaker = Breaker()
    *before, last = failures
    tell(breaker, *before)
    assert not breaker.is_open
    tell(breaker, last)
    assert breaker.is_open is (code is not None)
    assert not breaker.must_end_run()
    if code is not None:
        count = sum(failure is not Failure.ABANDONED for failure in failures)
        assert breaker.verdict().code is code
        assert breaker.verdict().reason.startswith(f"why. Stopped after {count} consecutive failures.")


@pytest.mark.parametrize("failure", [failure for failure in Failure if POLICIES[failure].ends_run_at_once])
def test_failure_that_leaves_no_doubt_ends_the_run_also_after_a_success(failure: Failure) -> None:
    breaker = Breaker()
    tell(breaker, None, OUT, failure, None, OUT)
    assert breaker.is_open
    assert breaker.must_end_run()
    assert breaker.verdict().code is POLICIES[failure].code
    assert "consecutive" not in breaker.verdict().reason


def test_wrong_key_ends_the_run_also_in_a_later_attempt_of_a_call() -> None:
    breaker = Breaker()
    turn = breaker.turn(Kind.USER)
    turn.may_call()
    breaker.before_retry("503, attempt 2 of 3")
    turn.answered(Failure.BAD_API_KEY, "why.")
    assert breaker.must_end_run()


def test_parts_of_a_batch_that_has_failed_count_less() -> None:
    breaker = Breaker()
    turn = tell(breaker, OUT)
    for _ in range(16):
        assert not breaker.is_open
        turn.may_call(is_part=True)
        turn.answered(OUT, "why.")
    assert breaker.is_open


def test_accepted_probe_closes_it_and_doubles_the_patience_until_anything_else_is_accepted() -> None:
    breaker = Breaker()
    for patience in (1, 2, 4):
        tell(breaker, *[OUT] * (5 * patience - 1))
        assert not breaker.is_open
        tell(breaker, OUT)
        assert breaker.is_open
        tell(breaker, None, is_probe=True)
        assert not breaker.is_open
    tell(breaker, OUT, None, *[OUT] * 5)
    assert breaker.is_open


def test_while_it_is_open_new_calls_wait() -> None:
    breaker = Breaker()
    tell(breaker, *[OUT] * 5)
    went_on: list[bool] = []
    thread = threading.Thread(target=lambda: went_on.append(breaker.turn(Kind.USER).may_call()), daemon=True)
    thread.start()
    wait_until(lambda: breaker.count_blocked(Kind.USER) == 1)
    breaker.turn(Kind.USER, is_probe=True).answered(None)
    thread.join(timeout=30)
    assert (went_on, breaker.count_blocked()) == ([True], 0)


class FailingCall:
    """A call whose every attempt fails, in a thread of its own."""

    def __init__(self, breaker: Breaker, *, wait_s: float = 0.0) -> None:
        self.attempts = 1
        self.may_fail, self.is_next = threading.Semaphore(0), threading.Semaphore(0)
        self._breaker, self._wait_s = breaker, wait_s
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self._breaker.turn(Kind.USER).may_call()
        for attempt in (2, 3):
            self.may_fail.acquire()
            self._breaker.before_retry(f"503, attempt {attempt} of 3")
            self._breaker.sleep(self._wait_s)
            self.attempts = attempt
            self.is_next.release()


def test_while_it_is_open_no_attempt_of_a_call_that_has_begun_leaves_either() -> None:
    breaker = Breaker()
    call = FailingCall(breaker)
    for _ in range(2):
        tell(breaker, *[OUT] * 10)
        assert breaker.is_open
        attempts = call.attempts
        call.may_fail.release()
        wait_until(lambda: breaker.count_blocked() == 1)
        assert call.attempts == attempts
        tell(breaker, None, is_probe=True)
        wait_until(lambda: breaker.count_blocked() == 0)
        call.is_next.acquire(timeout=30)
        assert call.attempts == attempts + 1


def test_a_call_that_waits_for_its_next_attempt_is_held_at_once_when_it_opens() -> None:
    breaker = Breaker()
    call = FailingCall(breaker, wait_s=1.5)
    began = time.monotonic()
    call.may_fail.release()
    wait_until(lambda: breaker.in_a_row == 1)
    tell(breaker, *[OUT] * 4)
    wait_until(lambda: breaker.count_blocked() == 1)
    assert time.monotonic() < began + 1.5
    tell(breaker, None, is_probe=True)
    wait_until(lambda: call.attempts == 2)
    assert time.monotonic() >= began + 1.5


def test_calls_that_have_begun_may_end_where_nothing_else_can_be_tried() -> None:
    breaker = Breaker()
    tell(breaker, *[OUT] * 5)
    assert not breaker.let_begun_calls_end()
    breaker = Breaker()
    call = FailingCall(breaker)
    tell(breaker, *[OUT] * 5)
    call.may_fail.release()
    wait_until(lambda: breaker.count_blocked() == 1)
    assert breaker.let_begun_calls_end()
    wait_until(lambda: call.attempts == 2)
    call.may_fail.release()
    wait_until(lambda: call.attempts == 3)
    assert breaker.is_open


def test_call_that_waits_for_its_slot_is_called_back_when_it_opens_and_a_probe_is_not() -> None:
    breaker = Breaker()
    tell(breaker, *[OUT] * 5)
    breaker.turn(Kind.USER)
    with pytest.raises(Abandoned):
        breaker.sleep(0)
    breaker.turn(Kind.USER, is_probe=True)
    breaker.sleep(0)


def test_stopping_ends_every_wait() -> None:
    breaker = Breaker()
    tell(breaker, *[OUT] * 5)
    answers: list[bool | Division] = []
    threads = [
        threading.Thread(target=lambda: answers.append(breaker.turn(Kind.USER).may_call())),
        threading.Thread(target=lambda: answers.append(breaker.turn(Kind.USER).may_divide(OUT))),
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: breaker.count_blocked() == 2)
    breaker.stop()
    for thread in threads:
        thread.join(timeout=30)
    assert set(answers) == {False, Division.NO}
    with pytest.raises(Abandoned):
        breaker.sleep(3600)


# What a server that is gone costs -------------------------------------------------------------------------------------

HTML = b"<html>502 Bad Gateway</html>"
GONE = {
    "503": [Fault(status=503)],
    "500": [Fault(status=500, body=b'{"msg":"","code":"GenericError"}')],
    "no answer": [Fault(disconnect=True)],
    "HTML": [Fault(status=200, body=HTML)],
    "403": [Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}')],
    "now this, now that": [
        Fault(status=503, every=3),
        Fault(status=403, body=HTML, every=2),
        Fault(disconnect=True),
    ],
}
SINGLE, BULK = single_mode(None), replace(bulk_mode(None), records_a_batch=50)


def make_gone(stand_in: StandIn, name: str, skip: int = 0) -> None:
    for each in GONE[name]:
        stand_in.inject(
            Fault(status=each.status, body=each.body, disconnect=each.disconnect, every=each.every, skip=skip)
        )


def some_rows() -> Rows:
    return [(f"{number % 750}@example.com", f"e{number}") for number in range(1500)]


@pytest.mark.parametrize(("mode", "most"), [(SINGLE, 40), (BULK, 25)], ids=["single", "bulk"])
@pytest.mark.parametrize("name", GONE)
def test_server_that_is_gone_from_the_start_costs_few_requests(
    job: Job, iterable: StandIn, mode: Mode, most: int, name: str
) -> None:
    make_gone(iterable, name)
    ran = job.run(some_rows(), mode)
    assert ran.stop is not None
    assert len(iterable.project.requests) <= most
    assert ran.users.get("delivered", 0) == ran.events.get("delivered", 0) == 0
    assert ran.events["not_attempted"] > 1000


# How many are under way is the rate times the latency: about 15 singly here.
@pytest.mark.parametrize(
    ("mode", "percent", "latency_s", "skip", "most"),
    [(SINGLE, 30, 0.02, 200, 60), (BULK, 1000, 0.005, 5, 50)],
    ids=["single", "bulk"],
)
@pytest.mark.parametrize("name", GONE)
def test_server_that_is_gone_in_mid_run_costs_few_requests_beside_those_under_way(
    job: Job, iterable: StandIn, mode: Mode, percent: float, latency_s: float, skip: int, most: int, name: str
) -> None:
    iterable.latency_s = latency_s
    make_gone(iterable, name, skip)
    ran = job.run(some_rows(), mode, rates=rates(percent), initial_backoff=0.05)
    assert ran.stop is not None
    assert len(iterable.project.requests) - skip <= most


def test_where_nothing_else_can_be_tried_each_record_gets_all_of_its_attempts(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(status=503))
    ran = job.run([(f"{number}@example.com", None) for number in range(5)], SINGLE)
    assert (ran.stop_code, ran.users) == (ExitCode.TEMPORARY, {"unacknowledged": 5})
    assert len(iterable.project.requests) == 15


def test_bulk_answers_without_counts_are_not_from_iterable(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(status=200, body=b'{"successCount":"many"}'))
    ran = job.run(some_rows(), BULK)
    assert ran.stop_code is ExitCode.NOT_ITERABLE
    assert len(iterable.project.requests) == 5
    assert ran.users.get("delivered", 0) == 0


@each_mode
def test_wrong_key_costs_one_request_also_where_users_and_events_are_ready_at_once(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    known = [(f"{number}@example.com", f"e{number}") for number in range(150)]
    job.run([(who, None) for who, _ in known], mode)
    iterable.project.api_key = "another key"
    iterable.project.requests.clear()
    iterable.latency_s = 0.05
    ran = job.run([*known, ("new1@example.com", None), ("new2@example.com", None)], mode)
    assert ran.stop_code is ExitCode.CREDENTIALS
    assert [request.status for request in iterable.project.requests] == [401]


@each_mode
def test_server_that_is_gone_when_only_late_records_are_left_costs_few_requests(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    rows: Rows = [(f"{number}@example.com", None) for number in range(200)]
    iterable.inject(Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}', match=b"5@example.com"))
    assert job.run(rows, mode).users["rejected"] == 20
    iterable.clear_faults()
    iterable.project.requests.clear()
    make_gone(iterable, "503", skip=1)
    ran = job.run([*rows, ("ada@example.com", None)], mode)
    assert ran.stop_code is ExitCode.TEMPORARY
    assert len(iterable.project.requests) <= (60 if not mode.is_bulk else 50)
    assert iterable.project.user_updates["ada@example.com"] == 1


def test_outage_that_ends_while_probes_are_tried_is_outlived(job: Job, iterable: StandIn) -> None:
    def recover() -> None:
        wait_until(lambda: fault.matched > 40)
        time.sleep(0.45)  # a record has its three attempts within 0.36 s
        iterable.clear_faults()

    iterable.latency_s = 0.02
    fault = iterable.inject(Fault(status=503, skip=40))
    thread = threading.Thread(target=recover)
    thread.start()
    ran = job.run(some_rows(), SINGLE, rates=rates(50), initial_backoff=0.1)
    thread.join()
    assert ran.stop is None
    assert ran.users["delivered"] >= 745


def test_what_failed_before_a_stop_is_offered_last_by_the_next_run(job: Job, iterable: StandIn) -> None:
    rows: Rows = [(f"{number}@example.com", None) for number in range(200)]
    iterable.latency_s = 0.02
    fault = iterable.inject(Fault(status=503, skip=50))
    assert job.run(rows, SINGLE, rates=rates(50)).stop_code is ExitCode.TEMPORARY
    failed = {request.body for request in iterable.project.requests if request.status == 503}
    assert 5 < len(failed) < 100
    fault.times = 0
    iterable.project.requests.clear()
    assert job.run(rows, SINGLE, rates=rates(50)).stop is None
    late = [request.body in failed for request in iterable.project.requests]
    assert sum(late) == len(failed)
    assert late == sorted(late)


@each_mode
def test_short_outage_under_five_records_is_outlived(job: Job, iterable: StandIn, mode: Mode) -> None:
    iterable.inject(Fault(status=503, skip=3, times=12))
    ran = job.run([(f"{number}@example.com", f"e{number}") for number in range(100)], mode)
    assert ran.stop is None
    assert ran.users["delivered"] >= 96
