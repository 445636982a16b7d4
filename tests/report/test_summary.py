"""What the summary says."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.results import Reason
from pipeline.report.summary import fitted, reason_lines
from tests.program import Program, make_table, use_query


@pytest.mark.parametrize(("more", "words"), [(1, "1 row repeats an event"), (2, "2 rows repeat an event")])
def test_rows_that_repeat_an_event_are_counted_as_rows(program: Program, tmp_path: Path, more: int, words: str) -> None:
    row = ("ada@example.com", "pricing", "2026-01-13 08:00:00")
    make_table(tmp_path / "users.db", "email,page,event_time", [row] * (1 + more))
    use_query(program, "SELECT email, page, event_time FROM rows")
    run = program.run()
    assert f"  {words} of another row; each event counts once\n" in run.out


def test_a_person_in_several_rejected_rows_is_one_user_and_a_row_of_nobody_is_one_each(
    program: Program, tmp_path: Path
) -> None:
    bob = [("bob@example", 7, f"page {number}", "2026-01-13 08:00:00") for number in range(3)]
    known_by_id = [(None, 8, page, "2026-01-13 08:00:00") for page in ("home", "cart")]
    nobody = [(address, None, page, None) for address, page in ((None, "a"), ("", "b"), (" ", "b"))]
    make_table(tmp_path / "users.db", "email,user_id,page,event_time", [*bob, *known_by_id, *nobody])
    use_query(program, "SELECT email, user_id, page, event_time FROM rows")
    run = program.run(EVENT_FIELDS="page")
    assert run.counts("users") == {"rejected": 5}
    assert run.counts("events") == {"rejected": 5}
    assert [(each["row"], each["message"]) for each in run.results["failures"] if each["kind"] == "user"] == [
        (1, "email is not a valid email address."),
        (4, "email is empty."),
        (6, "email is empty."),
        (7, "email is empty."),
        (8, "email is empty."),
    ]
    use_query(program, "SELECT email, user_id, page, event_time FROM rows ORDER BY page DESC")
    assert [each["new"] for each in program.run(EVENT_FIELDS="page").results["reasons"]] == [0, 0]


@pytest.mark.parametrize(
    ("message", "code", "count", "line"),
    [
        ("email is empty.", "InvalidRecord", 2, "2 rejected: email is empty."),
        ("it has 5,000,000 bytes as JSON.", "InvalidRecord", 2, "2 rejected: for example: it has 5,000,000 bytes"),
        ("it has 5,000,000 bytes as JSON.", "InvalidRecord", 1, "1 rejected: it has 5,000,000 bytes"),
        ("users/update refused it.", "BadParams", 2, "2 rejected: for example: users/update refused it."),
    ],
)
def test_a_message_that_stands_for_others_is_called_an_example(message: str, code: str, count: int, line: str) -> None:
    reason = Reason("rejected", code, message, count, count)
    assert f"  {line}" in "\n".join(reason_lines([reason]))


def test_an_outage_is_no_records_fault(program: Program, sample: Path) -> None:
    run = program.run(ITERABLE_BASE_URL="http://127.0.0.1:9", PUSH_MODE="bulk", MAX_RETRIES="1")
    assert run.code == 75
    messages = {each["message"] for each in run.results["failures"] if each["outcome"] == "unacknowledged"}
    assert messages == {"users/bulkUpdate call failed: ConnectionError (Connection refused) (1 attempt)"}
    assert "  36 not attempted: users/bulkUpdate call failed: " in run.out


def test_what_the_brake_has_stopped_is_not_promised_to_the_next_run(program: Program, sample: Path) -> None:
    run = program.run(MAX_CHANGES="1")
    assert run.code == 65
    assert "-> choose one of the ways to go on; until then, each run stops here\n" in run.out
    assert "-> the next run sends them" not in run.out
    assert not any("--yes" in each["message"] for each in run.results["failures"])


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_ends_within_a_word_at_any_width(width: int) -> None:
    sentence = "    -> change the address in Iterable, then run with --baseline --only, or set EMAIL_CHANGES to move it"
    found = fitted(sentence, width)
    assert max(map(len, found)) <= width
    assert " ".join(line.strip() for line in found) == sentence.strip()
    assert [line[: len(line) - len(line.lstrip())] for line in found] == [" " * 4, *[" " * 6] * (len(found) - 1)]
