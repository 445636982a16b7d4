"""Who is to blame: a wrong key, a stranger that answers, a proxy, or the records; and that a run always ends."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from iterable.answers import Failure
from iterable_client import IterableClient
from pipeline.delivery.modes import Mode, bulk_mode
from pipeline.model.exits import ExitCode
from pipeline.sandbox import SANDBOX_KEY, Fault, StandIn
from tests.job import Job, Rows, each_mode, records_in, some_users
from tests.wire import Peer, last

FORBIDDEN = Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}')
HTML = Fault(status=200, body=b"<html>Welcome</html>")
HTML_404 = Fault(status=404, body=b"<html>Not Found</html>")
OF_PROXY = Fault(status=407, body=b"<html>Proxy Authentication Required</html>")
STRANGERS = {
    "403": ([FORBIDDEN], ExitCode.CREDENTIALS),
    "HTML": ([HTML], ExitCode.NOT_ITERABLE),
    "404 HTML": ([HTML_404], ExitCode.NOT_ITERABLE),
    "407": ([OF_PROXY], ExitCode.NOT_ITERABLE),
}
each_stranger = pytest.mark.parametrize("name", STRANGERS)


def inject(iterable: StandIn, *faults: Fault, match: bytes | None = None) -> None:
    for each in faults:
        iterable.inject(Fault(status=each.status, body=each.body, every=each.every, match=match))


@each_mode
@each_stranger
@pytest.mark.parametrize("count", [2, 3, 9, 40])
def test_run_that_gets_nothing_but_such_answers_ends_for_them_each_time(
    job: Job, iterable: StandIn, mode: Mode, name: str, count: int
) -> None:
    faults, code = STRANGERS[name]
    inject(iterable, *faults)
    for _ in range(4):
        ran = job.run(some_users(count), mode)
        assert ran.stop_code is code
        assert set(ran.users) <= {"unacknowledged", "not_attempted"}
    iterable.clear_faults()
    ran = job.run(some_users(count), mode)
    assert (ran.stop, ran.users) == (None, {"delivered": count})


@each_mode
@each_stranger
def test_one_record_is_enough(job: Job, iterable: StandIn, mode: Mode, name: str) -> None:
    faults, code = STRANGERS[name]
    inject(iterable, *faults)
    for _ in range(4):
        ran = job.run(some_users(1), mode)
        assert (ran.stop_code, ran.users) == (code, {"unacknowledged": 1})


@each_mode
@each_stranger
def test_late_records_are_enough(job: Job, iterable: StandIn, mode: Mode, name: str) -> None:
    rows = some_users(30)
    inject(iterable, Fault(status=503))
    job.run(rows, mode)
    iterable.clear_faults()
    faults, code = STRANGERS[name]
    inject(iterable, *faults)
    for _ in range(3):
        assert job.run(rows, mode).stop_code is code
    iterable.clear_faults()
    assert job.run(rows, mode).users == {"delivered": 30}


@each_mode
@pytest.mark.parametrize("first", [FORBIDDEN, HTML], ids=["403 first", "HTML first"])
def test_where_both_fit_it_is_the_key(job: Job, iterable: StandIn, mode: Mode, first: Fault) -> None:
    iterable.inject(Fault(status=first.status, body=first.body, times=1))
    inject(iterable, HTML if first is FORBIDDEN else FORBIDDEN)
    assert job.run(some_users(40), mode).stop_code is ExitCode.CREDENTIALS


@each_mode
@pytest.mark.parametrize("fault", [FORBIDDEN, HTML], ids=["403", "HTML"])
@pytest.mark.parametrize("bad", [1, 3, 5])
def test_record_that_fails_so_alone_is_its_own_fault_where_others_are_accepted(
    job: Job, iterable: StandIn, mode: Mode, fault: Fault, bad: int
) -> None:
    good: Rows = [(f"good{number}@example.com", None) for number in range(20)]
    inject(iterable, fault, match=b"bad")
    ran = job.run([*good, *((f"bad{number}@example.com", None) for number in range(bad))], mode)
    if fault is HTML and mode.is_bulk:  # 200 does not divide a batch
        assert ran.stop is None
    else:
        ending = "rejected" if fault is FORBIDDEN else "unacknowledged"
        assert (ran.stop, ran.users) == (None, {"delivered": 20, ending: bad})


@each_mode
def test_refusal_for_another_reason_shows_that_the_key_is_good(job: Job, iterable: StandIn, mode: Mode) -> None:
    inject(iterable, FORBIDDEN, match=b'"1@example.com"')
    inject(iterable, Fault(status=400, body=b'{"msg":"no","code":"BadParams"}'))
    ran = job.run(some_users(2), mode)
    assert ran.stop_code is not ExitCode.NOT_ITERABLE
    assert ran.users.get("delivered", 0) == 0


@each_mode
def test_outage_beside_refusals_of_the_key_is_an_outage(job: Job, iterable: StandIn, mode: Mode) -> None:
    inject(iterable, FORBIDDEN, match=b'"1@example.com"')
    inject(iterable, Fault(status=503))
    ran = job.run([("1@example.com", None)], mode)
    assert ran.stop_code is ExitCode.CREDENTIALS
    ran = job.run(some_users(2), mode)
    assert ran.stop_code in (None, ExitCode.TEMPORARY)
    assert set(ran.users) == {"unacknowledged"}


# A proxy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "failure", "problem"),
    [
        ("407 Proxy Authentication Required", Failure.PROXY_REFUSED, "the proxy refused to connect: 407 Proxy Auth"),
        ("403 Blocked by policy", Failure.PROXY_REFUSED, "the proxy refused to connect: 403 Forbidden"),
        ("502 Bad Gateway", Failure.UNACKNOWLEDGED, "the proxy could not connect: 502 Bad Gateway"),
        ("504 Gateway Timeout", Failure.UNACKNOWLEDGED, "the proxy could not connect: 504 Gateway Timeout"),
    ],
)
def test_proxy_that_does_not_connect_is_named_with_its_status(status: str, failure: Failure, problem: str) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    with Peer(last(answer)) as proxy:
        client = IterableClient(SANDBOX_KEY, proxy=proxy.url, sleep=lambda _: None, max_retries=2)
        ok, details = client.update_user("ada@example.com")
        client.session.close()
    assert (ok, details["failure"]) == (False, failure)
    assert problem in details["error"]
    assert details["attempts"] == (1 if failure is Failure.PROXY_REFUSED else 2)


# A run always ends ----------------------------------------------------------------------------------------------------


def test_batch_in_which_one_record_draws_500_and_all_others_400_ends(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(match=b'"7@example.com"', status=500))
    iterable.inject(Fault(status=400, body=b'{"msg":"no","code":"BadParams"}'))
    ran = job.run(some_users(20), bulk_mode(None))
    assert (ran.stop, ran.users) == (None, {"rejected": 19, "unacknowledged": 1})


@pytest.mark.parametrize("fault", [Fault(status=500), FORBIDDEN, HTML_404, Fault(disconnect=True)])
def test_batch_of_which_one_record_fails_and_nothing_else_was_accepted_yet_is_divided(
    job: Job, iterable: StandIn, fault: Fault
) -> None:
    iterable.inject(
        Fault(match=b'"150@example.com"', status=fault.status, body=fault.body, disconnect=fault.disconnect)
    )
    ran = job.run(some_users(300), bulk_mode(None))
    assert ran.stop is None
    assert ran.users["delivered"] == 299


# Accepted records are not sent again ----------------------------------------------------------------------------------


def sends(iterable: StandIn) -> Counter[str]:
    """How often each user was accepted."""
    return Counter(iterable.project.user_updates)


@each_mode
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(disconnect=True), FORBIDDEN, HTML_404])
def test_no_accepted_record_is_sent_again_to_find_out_who_is_to_blame(
    job: Job, iterable: StandIn, mode: Mode, fault: Fault
) -> None:
    bad = [f"bad{number}@example.com" for number in range(12)]
    good: Rows = [(f"{number}@example.com", None) for number in range(40)]
    iterable.inject(Fault(match=b"bad", status=fault.status, body=fault.body, disconnect=fault.disconnect))
    for number in range(3):
        rows = [*good, *((who, None) for who in bad), (f"new{number}@example.com", None)]
        job.run(rows, mode)
        assert max(sends(iterable).values()) == 1
    posted = Counter(
        each["email"]
        for request in iterable.project.requests
        if request.status == 200 and request.path.startswith("/api/users/") and request.body
        for each in records_in(request.body)
        if not re.match("bad", each["email"])
    )
    assert max(posted.values()) == 1
