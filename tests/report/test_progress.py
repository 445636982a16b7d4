"""What is said while records are sent: lines for each kind, the live line of a terminal, and a line in the log."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iterable.redaction import Redactor
from pipeline.model.records import Kind
from pipeline.model.text import counted
from pipeline.report.log import Console
from pipeline.report.progress import SECONDS_PER_LINE, DeliveryProgress, Display, ReadingProgress, State
from pipeline.sandbox import Fault, StandIn
from tests.program import ROOT, Program, make_table, use_query, wait_until

USER, EVENT = Kind.USER, Kind.EVENT


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_progress(clock: Clock, users: int = 0, events: int = 0) -> DeliveryProgress:
    return DeliveryProgress(Console(), lambda: {USER: users, EVENT: events}, clock=clock)


@pytest.mark.parametrize(("number", "shown"), [(0, "0 users"), (1, "1 user"), (2, "2 users"), (1000, "1,000 users")])
def test_singular_and_plural(number: int, shown: str) -> None:
    assert counted(number, "user") == shown


def test_each_kind_is_told_at_the_beginning_and_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(clock, users=1, events=2900)
    progress.start({USER: 1, EVENT: 3000})
    clock.now += 0.5
    progress.advance(USER, 1)
    clock.now += 19.5
    progress.advance(EVENT, 3000)
    clock.now += 60.0
    progress.finish()
    progress.finish()
    assert capsys.readouterr().out.splitlines() == [
        "Step 6: Updating 1 user",
        "Step 7: Tracking 3,000 events",
        "        1 of 1 user delivered in 0.5 s",
        "        2,900 of 3,000 events delivered, 100 not delivered, in 20.0 s, 145/s",
    ]


def test_a_kind_without_records_is_not_told_unless_some_are_sent_all_the_same(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = make_progress(clock, users=1, events=3)
    progress.start({USER: 0, EVENT: 3})
    progress.advance(EVENT, 2)
    assert progress.state() == State(2, 3, "2/3 events, 10/s, 0 s left")
    progress.advance(USER, 1)  # whom Iterable had lost
    progress.advance(EVENT, 1)
    progress.finish()
    assert capsys.readouterr().out.splitlines() == [
        "Step 7: Tracking 3 events",
        "        1 of 1 user delivered in 0.0 s",
        "        3 of 3 events delivered in 0.0 s",
    ]


def test_nothing_to_send_is_nothing_to_say(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress(clock)
    progress.start({USER: 0, EVENT: 0})
    progress.finish()
    assert capsys.readouterr().out == ""


def test_the_state_tells_how_far_how_fast_and_how_long(clock: Clock) -> None:
    progress = make_progress(clock)
    progress.start({USER: 5000, EVENT: 20_000})
    assert progress.state() == State(0, 25_000, "0/5,000 users, 0/20,000 events")
    clock.now += 1.0
    progress.advance(USER, 1000)
    assert progress.state() == State(1000, 25_000, "1,000/5,000 users, 0/20,000 events, 1,000/s, 24 s left")
    clock.now += 49.0
    progress.advance(USER, 4000)
    assert progress.state() == State(5000, 25_000, "0/20,000 events, 100/s, 3 min left")
    clock.now += 950.0
    progress.advance(EVENT, 5000)
    assert progress.state() == State(10_000, 25_000, "5,000/20,000 events, 10/s, 25 min left")


def test_the_state_tells_what_is_waited_for_until_the_next_record_is_done(clock: Clock) -> None:
    progress = make_progress(clock)
    progress.start({USER: 3, EVENT: 0})
    clock.now += 2.0
    progress.waiting("503 from users/update, attempt 2 of 3")
    assert progress.state() == State(0, 3, "waiting: 503 from users/update, attempt 2 of 3 (2 s)")
    progress.advance(USER, 1)
    assert progress.state() == State(1, 3, "1/3 users, 0.5/s, 4 s left")
    clock.now += 3.0
    assert progress.state() == State(1, 3, "1/3 users, no answer for 3 s")


def test_the_state_tells_that_the_rate_limit_leaves_long_pauses(clock: Clock) -> None:
    progress = DeliveryProgress(Console(), dict, pause_s=20.0, clock=clock)
    progress.start({USER: 3, EVENT: 0})
    progress.advance(USER, 1)
    clock.now += 10.0
    assert progress.state() == State(1, 3, "1/3 users, waiting for the rate limit (10 s)")
    clock.now += 30.0
    assert progress.state() == State(1, 3, "1/3 users, no answer for 40 s")


def test_what_is_waited_for_is_redacted(clock: Clock) -> None:
    progress = DeliveryProgress(console := Console(), dict, clock=clock)
    console.redactor = Redactor(["hidden-secret"])
    progress.start({USER: 3, EVENT: 0})
    progress.waiting("hidden-secret of ada@example.com\x1b[31m")
    assert progress.state().text == r"waiting: *** of a***@example.com\x1b[31m (0 s)"


class Steps:
    """A state that has moved on each time somebody looks at it."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> State:
        self.number += 1
        return State(self.number, 9, f"step {self.number}")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What `main` logs, as it comes."""
    logger = logging.getLogger("main")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "main"):
        yield caplog.messages
    logger.removeHandler(caplog.handler)


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then_and_none_after_the_end(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, logged: list[str]
) -> None:
    display = Display(Console(), steps := Steps(), pause_s=0.01)
    wait_until(lambda: steps.number >= 3)
    display.close()
    seen = steps.number
    expected = [f"        step {number + 1}" for number in range(seen)]
    assert capsys.readouterr().out.splitlines() == expected
    assert caplog.messages == expected
    assert steps.number == seen


def test_a_quiet_run_has_these_lines_in_its_log_only(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, logged: list[str]
) -> None:
    display = Display(Console(quiet=True), steps := Steps(), pause_s=0.01)
    wait_until(lambda: steps.number >= 2)
    display.close()
    assert caplog.messages[:2] == ["        step 1", "        step 2"]
    assert capsys.readouterr() == ("", "")


def test_a_line_comes_every_half_minute() -> None:
    assert SECONDS_PER_LINE == 30.0


def test_reading_tells_how_long_the_database_takes_and_then_how_many_rows_have_come(clock: Clock) -> None:
    with ReadingProgress(Console(), clock=clock) as progress:
        clock.now += 12.0
        assert progress.state() == State(0, 0, "Waiting for the database (12 s)")
        blocks = progress.passing([[(1,)] * 100, [(1,)] * 1100])
        assert len(next(blocks)) == 100
        clock.now += 2.0
        assert len(next(blocks)) == 1100
        assert progress.state() == State(1200, 0, "1,200 rows read, 600/s")


def test_where_iterable_is_down_nothing_is_called_delivered(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [("ada@example.com", None)])
    use_query(program, "SELECT email, event_time FROM rows")
    run = program.run(ITERABLE_BASE_URL="http://127.0.0.1:1", INITIAL_BACKOFF="0")
    assert run.code == 75
    lines = [re.sub(r"\d+\.\d s", "* s", line) for line in run.out.splitlines()]
    assert lines[6:8] == ["Step 6: Updating 1 user", "        0 of 1 user delivered, 1 not delivered, in * s"]


# On a terminal --------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal of 80 columns in which the program runs."""

    def __init__(self, program: Program, *arguments: str, **settings: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "--env-file", str(program.env_file), *arguments],
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **program.settings, **settings},
            stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )  # fmt: skip
        os.close(slave)
        self.written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # so does a terminal end
            while some := os.read(self._master, 4096):
                self.written += some

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text.encode() in self.written)

    def end(self) -> int:
        code = self.process.wait(30)
        self._reader.join(30)
        os.close(self._master)
        return code

    def screen(self) -> list[str]:
        """What can be read at the end, below "Step 5". Of control characters, only line breaks and returns may come."""
        lines = []
        for line in self.written.decode().split("\r\n"):
            shown: list[str] = []
            for part in line.split("\r"):
                shown[: len(part)] = part
            assert all(each.isprintable() for each in shown), line
            lines.append(re.sub(r"\d+\.\d s\b", "* s", "".join(shown).rstrip()))
        return lines[6:]


def test_a_terminal_shows_how_far_it_is_and_why_it_waits_and_nothing_stays(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/users/update", status=503, times=1))
    terminal = Terminal(program, INITIAL_BACKOFF="0.4")
    terminal.wait_for("  0% |          ")
    terminal.wait_for("| waiting: 503 from users/update, attempt 2 of 3 (")
    assert terminal.end() == 0
    assert terminal.screen()[:5] == [
        "Step 6: Updating 12 users",
        "Step 7: Tracking 36 events",
        "        12 of 12 users delivered in * s",
        "        36 of 36 events delivered in * s",
        "",
    ]


def test_a_terminal_shows_that_the_database_is_waited_for(program: Program, tmp_path: Path) -> None:
    make_table(tmp_path / "users.db", "email,event_time", [("ada@example.com", None)])
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS email FROM n"
    use_query(program, endless)
    terminal = Terminal(program)
    terminal.wait_for("Waiting for the database (0 s)")
    terminal.wait_for("Waiting for the database (1 s)")
    terminal.press_ctrl_c()
    assert terminal.end() == 130


def test_ctrl_c_leaves_nothing_of_the_live_line(program: Program, iterable: StandIn, sample: Path) -> None:
    iterable.inject(Fault(latency_s=600.0))
    terminal = Terminal(program, REQUEST_TIMEOUT="600")
    terminal.wait_for("| 0/12 users, 0/36 events")
    terminal.press_ctrl_c()
    terminal.wait_for("| waiting: open requests (")
    terminal.press_ctrl_c()
    assert terminal.end() == 130
    assert terminal.screen()[:6] == [
        "Step 6: Updating 12 users",
        "Step 7: Tracking 36 events",
        "Stopping: waiting up to 5 s for open requests; Ctrl-C again skips the wait.",
        "        0 of 12 users delivered, 12 not delivered",
        "        0 of 36 events delivered, 36 not delivered",
        "The run was interrupted by SIGINT.",
    ]


def test_verbose_on_a_terminal_keeps_its_lines_apart_from_the_live_line(
    program: Program, iterable: StandIn, sample: Path
) -> None:
    iterable.inject(Fault(path="/api/users/update", status=503, times=2))
    terminal = Terminal(program, "--verbose", INITIAL_BACKOFF="0.25")
    assert terminal.end() == 0
    assert b"| waiting: 503" in terminal.written
    assert [line for line in terminal.screen() if "%" in line or "|" in line] == []


def test_a_quiet_run_shows_nothing_on_a_terminal(program: Program, sample: Path) -> None:
    terminal = Terminal(program, "--quiet")
    assert (terminal.end(), terminal.written) == (0, b"")
