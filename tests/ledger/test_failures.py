"""What the ledger remembers of records that failed: which, why, and how often in a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.ledger import failures as past_failures
from pipeline.ledger.failures import reason_text
from pipeline.ledger.ledger import LEDGER_NAME, FailureEntry, Ledger, PastFailure, Project, open_ledger, read_ledger
from pipeline.model.records import Kind, Outcome, Record
from tests.opened import PROJECT

DAY_S = 86_400
TODAY = 20_000
QUERY = "/srv/query.sql"
ADA, BOB = b"key of ada", b"key of bob"
REFUSED = FailureEntry(
    ADA, b"content", Outcome.REJECTED, 400, "BadParams", "users/update refused it (1 attempt).", False
)
LOST = FailureEntry(ADA, b"content", Outcome.UNACKNOWLEDGED, 504, None, "No answer came (3 attempts).", True)


@contextmanager
def opening(folder: Path, project: Project = PROJECT, *, day: int = TODAY) -> Iterator[Ledger]:
    with open_ledger(folder, project, now=day * DAY_S) as ledger:
        ledger.begin_run("run", day * DAY_S, "query.sql")
        yield ledger
        ledger.commit()


def note(
    folder: Path,
    *failed: FailureEntry,
    counts: bool = True,
    day: int = TODAY,
    reports: bool = True,
    window_from: int | None = None,
) -> list[bool]:
    """A run in which these failed, and which reports them or not -> which of them are new."""
    with opening(folder, day=day) as ledger:
        news = ledger.failures.note(failed, QUERY, counts=counts, window_from=window_from)
        if reports:
            ledger.failures.report(failed)
        return news


def streak(folder: Path) -> int:
    with read_ledger(folder, PROJECT, now=0) as ledger:
        return ledger.failures.past_failures([ADA])[ADA].streak


def known(folder: Path) -> set[bytes]:
    with read_ledger(folder, PROJECT, now=0) as ledger:
        return ledger.failures.failed_before([ADA, BOB])


def record(key: bytes) -> Record:
    return Record(Kind.USER, 1, "ada@example.com", key, b"content", b"{}")


# New or known ---------------------------------------------------------------------------------------------------------


def test_refusal_is_new_once(tmp_path: Path) -> None:
    assert [note(tmp_path, REFUSED) for _ in range(3)] == [[True], [False], [False]]


def test_refusal_is_new_until_a_run_has_reported_it(tmp_path: Path) -> None:
    news = [note(tmp_path, REFUSED, reports=number == 2) for number in range(4)]
    assert news == [[True], [True], [True], [False]]


def test_reasons_that_were_reported_stay_known_where_another_one_was_not(tmp_path: Path) -> None:
    other = replace(REFUSED, code="Forbidden")
    note(tmp_path, REFUSED)
    note(tmp_path, other, reports=False)
    assert note(tmp_path, REFUSED, other, reports=False) == [False, True]


def test_code_that_iterable_does_not_document_is_kept_as_a_hash(tmp_path: Path) -> None:
    codes = [None, "BadParams", "notFoundEmails", "KeepsFailing", "bob@example.com is odd"]
    kept = []
    for code in codes:
        note(tmp_path, replace(REFUSED, code=code))
        with read_ledger(tmp_path, PROJECT, now=0) as ledger:
            kept.append(ledger.failures.past_failures([ADA])[ADA].code)
    assert kept[:-1] == codes[:-1]
    assert str(kept[-1]).startswith("#")
    assert len(str(kept[-1])) == 17
    assert b"bob" not in (tmp_path / LEDGER_NAME).read_bytes()


def test_nothing_fails_where_nothing_failed(tmp_path: Path) -> None:
    with opening(tmp_path) as ledger:
        assert (ledger.failures.exist, ledger.failures.failed_before([ADA]), ledger.failures.past_failures([ADA])) == (
            False,
            set(),
            {},
        )
        ledger.failures.note([REFUSED], QUERY, counts=True)
        assert (ledger.failures.exist, ledger.failures.failed_before([ADA, BOB])) == (True, {ADA})
    with opening(tmp_path) as ledger:
        assert ledger.failures.exist


def test_what_is_remembered_says_when_and_why_without_the_message(tmp_path: Path) -> None:
    note(tmp_path, REFUSED)
    with read_ledger(tmp_path, PROJECT, now=0) as ledger:
        (found,) = ledger.failures.past_failures([ADA, BOB]).values()
    then = TODAY * DAY_S
    assert found == PastFailure(b"content", found.reasons, 0, Outcome.REJECTED, 400, "BadParams", then, then, None)
    assert len(found.reasons) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": b"other content"},
        {"status_code": 409},
        {"code": None},
        {"message": "users/update refused it for another reason."},
        {"outcome": Outcome.UNACKNOWLEDGED},
        {"key": BOB},
    ],
    ids=lambda change: next(iter(change)),
)
def test_refusal_is_new_where_it_differs(tmp_path: Path, change: dict[str, object]) -> None:
    note(tmp_path, REFUSED)
    assert note(tmp_path, replace(REFUSED, **change)) == [True]  # type: ignore[arg-type]


def test_numbers_in_a_message_make_no_new_reason(tmp_path: Path) -> None:
    messages = ["row 7 is odd (1 attempt).", "row 12,345 is odd (3 attempts).", "row 8/9 is odd (2 attempts)."]
    news = [note(tmp_path, replace(REFUSED, message=message)) for message in messages]
    assert news == [[True], [False], [False]]


def test_reason_of_a_hostile_message_is_found_in_linear_time() -> None:
    assert reason_text(replace(REFUSED, message="x" * 3_000_000)).endswith("\nxxx" + "x" * 2_999_997)


def test_reason_that_comes_and_goes_with_the_mode_is_new_once(tmp_path: Path) -> None:
    in_bulk = replace(REFUSED, code="invalidEmails", message="users/bulkUpdate lists it under invalidEmails.")
    news = [note(tmp_path, each) for each in (REFUSED, in_bulk, REFUSED, in_bulk)]
    assert news == [[True], [True], [False], [False]]


def test_changed_content_forgets_the_reasons_of_the_old_one(tmp_path: Path) -> None:
    changed = replace(REFUSED, fingerprint=b"other content")
    assert [note(tmp_path, each) for each in (REFUSED, changed, REFUSED)] == [[True], [True], [True]]


def test_of_many_reasons_the_last_four_are_kept(tmp_path: Path) -> None:
    reasons = [replace(REFUSED, code=code) for code in "abcde"]
    assert [note(tmp_path, each) for each in reasons] == [[True]] * 5
    assert [note(tmp_path, each) for each in (reasons[4], reasons[1], reasons[0])] == [[False], [False], [True]]


def test_which_are_new_can_be_asked_without_noting_it(tmp_path: Path) -> None:
    note(tmp_path, REFUSED)
    with read_ledger(tmp_path, PROJECT, now=0) as ledger:
        assert ledger.failures.are_new([REFUSED, replace(REFUSED, key=BOB)]) == [False, True]
    assert known(tmp_path) == {ADA}


def test_failures_of_another_project_are_not_ours(tmp_path: Path) -> None:
    note(tmp_path, REFUSED)
    with opening(tmp_path, Project(PROJECT.base_url, "another-key")) as ledger:
        assert (ledger.failures.exist, ledger.failures.are_new([REFUSED])) == (False, [True])


# Runs in a row --------------------------------------------------------------------------------------------------------


def test_streak_counts_the_runs_in_a_row_in_which_others_were_accepted(tmp_path: Path) -> None:
    streaks = []
    for counts in (True, False, True, True):
        note(tmp_path, LOST, counts=counts)
        streaks.append(streak(tmp_path))
    assert streaks == [1, 1, 2, 3]


def test_streak_goes_on_while_the_content_changes_and_when_it_is_rejected_for_it(tmp_path: Path) -> None:
    note(tmp_path, LOST)
    note(tmp_path, replace(LOST, fingerprint=b"other content"))
    assert note(tmp_path, replace(LOST, outcome=Outcome.REJECTED, code="KeepsFailing")) == [True]
    assert streak(tmp_path) == 3
    assert note(tmp_path, replace(LOST, outcome=Outcome.REJECTED, code="KeepsFailing")) == [False]


def test_streak_ends_with_a_refusal(tmp_path: Path) -> None:
    note(tmp_path, LOST)
    note(tmp_path, REFUSED)
    assert streak(tmp_path) == 0


# The window of :since -------------------------------------------------------------------------------------------------


def held(folder: Path, *, day: int = TODAY, query: str = QUERY) -> tuple[int | None, int]:
    with read_ledger(folder, PROJECT, now=day * DAY_S) as ledger:
        return ledger.failures.held_from(query), ledger.failures.count_let_go(query)


def test_record_that_may_still_be_accepted_holds_the_window_that_first_read_it(tmp_path: Path) -> None:
    assert held(tmp_path) == (None, 0)
    note(tmp_path, replace(REFUSED, key=BOB), window_from=700)
    for number, window in enumerate((900, 500, 800)):
        note(tmp_path, REFUSED, window_from=window, day=TODAY + number)
    assert held(tmp_path) == (500, 0)
    assert held(tmp_path, query="/srv/another.sql") == (None, 0)


@pytest.mark.parametrize(
    ("code", "message", "is_held"),
    [
        ("InvalidRecord", "email is empty.", False),
        ("InvalidRecord", "event_time is more than a day in the future.", True),
        ("invalidEmails", "no", False),
        ("disallowedEventNames", "no", True),
        ("RequestFieldsTypesMismatched", "no", True),
        ("ForgottenUserError", "no", True),
        ("KeepsFailing", "no", True),
        ("EmailChanged", "no", True),
        (None, "no", True),
    ],
)
def test_window_is_held_unless_the_row_itself_is_wrong(
    tmp_path: Path, code: str | None, message: str, is_held: bool
) -> None:
    note(tmp_path, replace(REFUSED, code=code, message=message), window_from=500)
    assert held(tmp_path) == (500 if is_held else None, 0)


def test_window_is_let_go_after_30_days(tmp_path: Path) -> None:
    note(tmp_path, REFUSED, window_from=500)
    note(tmp_path, REFUSED, window_from=900, day=TODAY + 29)
    assert held(tmp_path, day=TODAY + 29) == (500, 0)
    assert held(tmp_path, day=TODAY + 30) == (None, 1)


def test_changed_content_holds_the_window_that_first_read_it(tmp_path: Path) -> None:
    note(tmp_path, REFUSED, window_from=500)
    note(tmp_path, replace(REFUSED, fingerprint=b"other content"), window_from=900, day=TODAY + 29)
    assert held(tmp_path, day=TODAY + 58) == (900, 0)


@pytest.mark.parametrize(("window_from", "is_held"), [(499, False), (500, False), (501, True), (None, True)])
def test_window_is_let_go_when_a_run_that_reads_it_no_longer_finds_the_record(
    tmp_path: Path, window_from: int | None, is_held: bool
) -> None:
    note(tmp_path, REFUSED, window_from=500)
    with opening(tmp_path) as ledger:
        ledger.refresh([BOB], QUERY, full_read=False, window_from=window_from)
    assert held(tmp_path) == (500 if is_held else None, 0)


# Forgetting -----------------------------------------------------------------------------------------------------------


def test_record_that_is_accepted_is_trouble_no_more(tmp_path: Path) -> None:
    note(tmp_path, REFUSED, replace(REFUSED, key=BOB))
    with opening(tmp_path) as ledger:
        ledger.accept([record(ADA)])
    assert known(tmp_path) == {BOB}
    assert note(tmp_path, REFUSED) == [True]


def end_reading(folder: Path, *shown: bytes, query: str = QUERY, full_read: bool = True) -> None:
    """A run that reads these, and sends nothing."""
    with opening(folder) as ledger:
        ledger.refresh(shown, query, full_read=full_read)


def test_failure_that_a_full_read_no_longer_shows_is_forgotten(tmp_path: Path) -> None:
    note(tmp_path, REFUSED, replace(REFUSED, key=BOB))
    end_reading(tmp_path, BOB)
    assert known(tmp_path) == {BOB}


def test_full_read_that_shows_nothing_forgets_all(tmp_path: Path) -> None:
    note(tmp_path, REFUSED)
    end_reading(tmp_path)
    assert known(tmp_path) == set()


@pytest.mark.parametrize(("query", "full_read"), [(QUERY, False), ("/srv/another.sql", True)])
def test_failure_that_a_partial_read_or_another_query_does_not_show_is_kept(
    tmp_path: Path, query: str, full_read: bool
) -> None:
    note(tmp_path, REFUSED)
    end_reading(tmp_path, BOB, query=query, full_read=full_read)
    assert known(tmp_path) == {ADA}


def test_failure_noted_in_this_run_is_kept_also_where_its_row_has_no_key_to_show(tmp_path: Path) -> None:
    for _ in range(2):
        with opening(tmp_path) as ledger:
            ledger.mark_seen([BOB])
            ledger.failures.note([REFUSED], QUERY, counts=True)
            ledger.end_reading(QUERY, full_read=True)
        assert known(tmp_path) == {ADA}


def test_of_more_failures_than_memory_is_given_to_none_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(tmp_path, REFUSED, replace(REFUSED, key=BOB))
    monkeypatch.setattr(past_failures, "MAX_GONE", 1)
    end_reading(tmp_path)
    assert known(tmp_path) == {ADA, BOB}


@pytest.mark.parametrize(("days_later", "kept"), [(400, {ADA}), (401, set())])
def test_failure_that_did_not_happen_again_is_forgotten_after_400_days(
    tmp_path: Path, days_later: int, kept: set[bytes]
) -> None:
    note(tmp_path, REFUSED)
    note(tmp_path, day=TODAY + days_later)
    assert known(tmp_path) == kept


def test_two_queries_for_the_same_people_have_a_history_each(tmp_path: Path) -> None:
    with opening(tmp_path) as ledger:
        for query in ("a.sql", "b.sql"):
            ledger.use_query(query)
            assert ledger.failures.note([REFUSED], query, counts=True, window_from=5) == [True]
            ledger.failures.report([REFUSED])
        ledger.accept([record(ADA)])
        assert (ledger.failures.held_from("a.sql"), ledger.failures.held_from("b.sql")) == (5, None)
        ledger.use_query("a.sql")
        assert ledger.failures.note([REFUSED], "a.sql", counts=True) == [False]
