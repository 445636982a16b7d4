"""What asks a run to end: signals, and the time limit."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from pipeline.model.exits import Ending, ExitCode
from pipeline.run.interrupt import Interrupt, Interrupted, catch_signals
from pipeline.sandbox import Fault, StandIn
from tests.program import Program, has_logged, use_query, wait_until

ENDLESS_QUERY = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT 'a@example.com' AS email, max(i) AS page, NULL AS event_time FROM n"
)
ENDINGS = {
    signal.SIGINT: Ending(ExitCode.SIGINT, "The run was interrupted by SIGINT."),
    signal.SIGTERM: Ending(ExitCode.SIGTERM, "The run was interrupted by SIGTERM."),
    signal.SIGHUP: Ending(ExitCode.SIGTERM, "The run was interrupted by SIGHUP."),
}


def time_limit(minutes: str) -> str:
    limit = f"MAX_RUN_MINUTES={minutes}"
    return f"The run reached its time limit ({limit}). The next run continues where this one stopped."


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_raises_once_and_says_how_the_run_ends(number: signal.Signals) -> None:
    with catch_signals() as interrupt:
        assert interrupt.ending() is None
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(number)
        signal.raise_signal(number)
        assert (caught.value.ending, interrupt.ending()) == (ENDINGS[number], ENDINGS[number])


@pytest.mark.parametrize("number", ENDINGS)
def test_a_signal_is_only_noted_where_the_run_asked_for_it(number: signal.Signals) -> None:
    with catch_signals() as interrupt:
        interrupt.stop_raising()
        signal.raise_signal(number)
        assert (interrupt.ending(), interrupt.is_urgent) == (ENDINGS[number], False)


def test_a_second_signal_is_urgent_and_a_third_would_kill() -> None:
    with catch_signals() as interrupt:
        interrupt.stop_raising()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert (interrupt.ending(), interrupt.is_urgent) == (ENDINGS[signal.SIGINT], True)
        assert {signal.getsignal(each) for each in ENDINGS} == {signal.SIG_DFL}


def test_the_handlers_of_before_come_back() -> None:
    caught = [*ENDINGS, signal.SIGALRM]
    before = [signal.getsignal(each) for each in caught]
    with catch_signals():
        assert [signal.getsignal(each) for each in caught] != before
    assert [signal.getsignal(each) for each in caught] == before


def test_a_hangup_that_is_ignored_from_outside_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as interrupt:
            signal.raise_signal(signal.SIGHUP)
            assert interrupt.ending() is None
    finally:
        signal.signal(signal.SIGHUP, before)


# The time limit -------------------------------------------------------------------------------------------------------


def test_the_time_limit_raises_where_the_main_thread_waits() -> None:
    with catch_signals() as interrupt:
        interrupt.limit(0.001)
        with pytest.raises(Interrupted) as caught:
            threading.Event().wait(30)
    assert caught.value.ending == Ending(ExitCode.TEMPORARY, time_limit("0.001"))


def test_the_time_limit_is_told_by_the_clock_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")  # where there is no timer to wake the main thread
    times = iter([100.0, 189.9, 190.0])
    interrupt = Interrupt(clock=lambda: next(times))
    interrupt.limit(1.5)
    assert interrupt.ending() is None
    assert interrupt.ending() == Ending(ExitCode.TEMPORARY, time_limit("1.5"))


def test_without_a_time_limit_there_is_none() -> None:
    with catch_signals() as interrupt:
        interrupt.limit(None)
        assert interrupt.ending() is None
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_time_limit_ends_a_run_in_its_query(program: Program, iterable: StandIn, sample: Path) -> None:
    use_query(program, ENDLESS_QUERY)
    run = program.run(MAX_RUN_MINUTES="0.005")
    assert (run.code, run.err) == (75, time_limit("0.005") + "\n")
    assert not iterable.project.request_counts


def test_the_time_limit_ends_a_run_in_its_delivery_and_the_next_run_goes_on(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/events/track", status=503, skip=3))
    run = program.run(MAX_RUN_MINUTES="0.015", INITIAL_BACKOFF="60", MAX_WORKERS="2")
    assert (run.code, run.err) == (75, time_limit("0.015") + "\n")
    assert run.results["status"] == "partial"
    assert run.counts("users")["delivered"] >= 1
    assert run.counts("events")["not_attempted"] > 0
    iterable.clear_faults()
    assert program.run(MAX_RUN_MINUTES="60").code == 0
    assert len(iterable.project.events) == 36


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


def test_ctrl_c_says_at_once_that_it_waits_and_a_second_one_ends_the_wait_with_all_answers_saved(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/events/track", latency_s=600.0, skip=5))
    process = program.start("--quiet", REQUEST_TIMEOUT="600", MAX_WORKERS="2")
    assert process.stderr is not None
    wait_until(lambda: iterable.project.request_counts["/api/events/track"] > 5)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        "Stopping: waiting up to 5 s for open requests; Ctrl-C again skips the wait.\n"
    )
    wait_until(lambda: has_logged(program, "Stopping: "))
    process.send_signal(signal.SIGINT)
    run = program.wait_for(process)
    assert (run.code, run.results["status"]) == (130, "interrupted")
    assert run.err == "The run was interrupted by SIGINT.\n"
    delivered = {kind: run.counts(kind)["delivered"] for kind in ("users", "events")}
    assert delivered["events"] == 5
    messages = [each["message"] for each in run.results["failures"] if each["outcome"] == "unacknowledged"]
    assert set(messages) == {"No answer came before the run was stopped at once."}
    iterable.clear_faults()
    after = program.run()
    assert {kind: after.counts(kind)["unchanged"] for kind in ("users", "events")} == delivered


def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_traceback(program: Program, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "requests.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(600)\n")
    process = program.start(PYTHONPATH=str(slow))
    wait_until((tmp_path / "begun").exists)
    process.send_signal(signal.SIGINT)
    run = program.wait_for(process)
    assert (run.code, run.out, run.err) == (130, "", "")


def test_ctrl_c_in_a_check_ends_it_without_a_traceback(program: Program, iterable: StandIn, sample: Path) -> None:
    iterable.inject(Fault(latency_s=600.0))
    process = program.start("--check", "--quiet", REQUEST_TIMEOUT="600")
    wait_until(lambda: iterable.project.request_counts)
    process.send_signal(signal.SIGINT)
    run = program.wait_for(process)
    assert (run.code, run.out, run.err) == (130, "", "The run was interrupted by SIGINT.\n")
