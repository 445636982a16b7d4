"""Several runs with records that fail in each: they come last, starve no others, and are rejected in the third run."""

from __future__ import annotations

import pytest

from pipeline.delivery.modes import Mode, bulk_mode, single_mode
from pipeline.model.exits import ExitCode
from pipeline.model.records import Kind
from pipeline.sandbox import Fault, StandIn
from tests.job import SIGTERM, Job, Rows, assert_no_event_was_before_its_user, each_mode, records_in

FORBIDDEN_JSON = Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}')
FORBIDDEN_HTML = Fault(status=403, body=b"<html>firewall</html>")
BAD_HTML = Fault(status=400, body=b"<html>firewall</html>")
MISMATCHED = Fault(status=401, body=b'{"msg":"no","code":"JwtUserIdentifiersMismatched"}')
BAD = [f"bad{number}@example.com" for number in range(5)]


def fail(iterable: StandIn, fault: Fault, people: list[str]) -> None:
    """Every request in which one of these people is."""
    for who in people:
        iterable.inject(
            Fault(status=fault.status, body=fault.body, disconnect=fault.disconnect, match=f'"{who}"'.encode())
        )


def rows_of_run(number: int, bad: list[str]) -> Rows:
    """300 users, of whom some are bad, and in each run 20 new events."""
    people = [f"{number}@example.com" for number in range(300 - len(bad))] + bad
    new = [(people[place], f"run{number}-{place}") for place in range(20)]
    return [(who, None) for who in people] + new


@pytest.mark.parametrize("mode", [single_mode(None), bulk_mode(None)], ids=["single", "bulk"])
@pytest.mark.parametrize(
    ("fault", "how_many", "endings"),
    [
        (Fault(status=500), 5, ["unacknowledged", "unacknowledged", "rejected", "rejected"]),
        (Fault(status=504), 5, ["unacknowledged", "unacknowledged", "rejected", "rejected"]),
        (Fault(disconnect=True), 5, ["unacknowledged", "unacknowledged", "rejected", "rejected"]),
        (FORBIDDEN_HTML, 3, ["unacknowledged", "unacknowledged", "rejected", "rejected"]),
        (BAD_HTML, 3, ["unacknowledged", "unacknowledged", "rejected", "rejected"]),
        (FORBIDDEN_JSON, 3, ["rejected"] * 4),
        (MISMATCHED, 3, ["rejected"] * 4),
    ],
    ids=["500", "504", "no answer", "403 HTML", "400 HTML", "403 JSON", "401 mismatched"],
)
def test_records_that_fail_in_each_run_keep_no_others_from_being_sent(
    job: Job, iterable: StandIn, mode: Mode, fault: Fault, how_many: int, endings: list[str]
) -> None:
    if mode.is_bulk and fault is MISMATCHED:
        pytest.skip("tokens are for single requests")
    bad = BAD[:how_many]
    fail(iterable, fault, bad)
    for number, ending in enumerate(endings):
        ran = job.run(rows_of_run(number, bad), mode)
        unchanged = {"unchanged": 300 - how_many} if number else {"delivered": 300 - how_many}
        assert (ran.stop, ran.users) == (None, {**unchanged, ending: how_many})
        assert ran.events["delivered"] == 20
        assert {f"user {who}" for who in bad} == set(ran.codes)
    if "unacknowledged" in endings:
        assert set(ran.codes.values()) == {"KeepsFailing"}
    iterable.clear_faults()
    ran = job.run(rows_of_run(9, bad), mode)
    assert ran.users == {"unchanged": 300 - how_many, "delivered": how_many}
    assert job.run(rows_of_run(9, bad), mode).users == {"unchanged": 300}


@each_mode
def test_late_user_and_its_events_come_after_all_others_and_in_order(job: Job, iterable: StandIn, mode: Mode) -> None:
    fault = iterable.inject(Fault(status=503, match=b"bad0@example.com", path=f"/api/{mode.endpoints[0]}"))
    others = [(f"{number}@example.com", f"e{number}") for number in range(30)]
    ran = job.run([(BAD[0], "first"), *others], mode)
    assert (ran.users, ran.events) == ({"delivered": 30, "unacknowledged": 1}, {"delivered": 30, "rejected": 1})
    assert ran.codes[f"event {BAD[0]}"] in ("UnknownEmailError", "notFoundEmails")
    iterable.clear_faults()
    iterable.project.requests.clear()
    del fault
    more = [(f"{number}@example.com", f"f{number}") for number in range(60)]
    ran = job.run([(BAD[0], "first"), (BAD[0], "second"), *more], mode)
    assert ran.stop is None
    sent = [each.get("id", each["email"]) for request in iterable.project.requests for each in records_in(request.body)]
    assert sorted(sent[-3:-2]) == [BAD[0]]
    assert sent[-2:] == ["first", "second"]
    assert_no_event_was_before_its_user(iterable)


@each_mode
def test_only_runs_in_which_something_was_accepted_count(job: Job, iterable: StandIn, mode: Mode) -> None:
    fail(iterable, Fault(status=503), BAD[:1])
    outcomes = []
    for new in (None, "e1", None, "e2", None, "e3"):
        rows: list[tuple[str, str | None]] = [(BAD[0], None)]
        ran = job.run([*rows, ("ada@example.com", new)] if new else rows, mode)
        outcomes.append((dict(ran.users).get("rejected", 0), ran.codes[f"user {BAD[0]}"]))
    assert outcomes == [(0, None)] * 5 + [(1, "KeepsFailing")]


@each_mode
def test_success_in_between_makes_the_count_begin_anew(job: Job, iterable: StandIn, mode: Mode) -> None:
    for number in range(5):
        iterable.clear_faults()
        if number != 2:
            fail(iterable, Fault(status=503), BAD[:1])
        ran = job.run([(BAD[0], None), ("ada@example.com", f"e{number}")], mode, version=str(number))
        assert ran.users == ({"delivered": 2} if number == 2 else {"delivered": 1, "unacknowledged": 1})


def test_record_that_only_the_end_of_the_run_cut_off_is_not_late(job: Job, iterable: StandIn) -> None:
    iterable.inject(Fault(status=503, match=b"bad0@example.com"))
    fault = iterable.inject(Fault(latency_s=3600, match=b"bad1@example.com"))
    mode = single_mode(4)
    rows: Rows = [(who, None) for who in ("ada@example.com", *BAD[:2])]
    ran = job.run(rows, mode, interrupted=lambda: SIGTERM if fault.matched else None, is_urgent=lambda: True)
    assert ran.stop_code is ExitCode.SIGTERM
    late: dict[str, bool] = {}

    def look(opened: object) -> None:
        stage = opened.stage  # type: ignore[attr-defined]
        late.update({each.identity: is_late for is_late in (True, False)
                     for each in stage.pending(Kind.USER, late=is_late)})  # fmt: skip

    iterable.clear_faults()
    job.run(rows, mode, before=look)
    assert late.get(BAD[1]) is False


@each_mode
def test_late_records_of_which_each_is_refused_by_the_key_end_the_run_unless_others_are_accepted(
    job: Job, iterable: StandIn, mode: Mode
) -> None:
    bad = [f"{number}@example.com" for number in range(0, 80, 4)]
    rows: Rows = [(f"{number}@example.com", None) for number in range(80)]
    fail(iterable, FORBIDDEN_JSON, bad)
    assert job.run(rows, mode).users == {"delivered": 60, "rejected": 20}
    ran = job.run(rows, mode)
    assert ran.stop_code is ExitCode.CREDENTIALS
    assert set(ran.users) <= {"unchanged", "unacknowledged", "not_attempted"}
    ran = job.run([*rows, ("new@example.com", None)], mode)
    assert (ran.stop, ran.users) == (None, {"unchanged": 60, "delivered": 1, "rejected": 20})


@each_mode
def test_failures_of_late_records_alone_end_the_run_as_temporary(job: Job, iterable: StandIn, mode: Mode) -> None:
    """Nothing tells whether they or the project are to blame, but they failed before when it was not."""
    bad = [f"{number}@example.com" for number in range(0, 400, 4)]
    rows: Rows = [(f"{number}@example.com", None) for number in range(400)]
    fail(iterable, Fault(status=503), bad)
    iterable.inject(Fault(path="/api/users/getFields", status=503))
    job.run(rows, mode)
    ran = job.run(rows, mode)
    assert ran.stop is not None
    assert ran.stop.code is ExitCode.TEMPORARY
    assert "These records failed in earlier runs, too" in ran.stop.reason
    assert ran.users["not_attempted"] >= 50
