"""Text for a terminal: nothing in it moves the cursor, columns are aligned, and lines fit."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.text import WIDTH, counted, moment, shortened, shown, table, wrapped


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Ada", "Ada"),
        ("Zoë Ångström", "Zoë Ångström"),
        (None, "NULL"),
        (True, "true"),
        (5.0, "5.0"),
        ({"a": [1, "é"]}, '{"a": [1, "é"]}'),
        (b"caf\xc3\xa9", "café"),
        (b"\xff", "\\xff"),
        ("a\x1b[2Jb\r\nc\td", "a\\x1b[2Jb\\r\\nc\\td"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("\udce9", "\\udce9"),
    ],
)
def test_a_value_on_one_line(value: Any, expected: str) -> None:
    assert shown(value) == expected


def test_columns_are_aligned() -> None:
    assert table([["row", "page"], ["1", "pricing"], ["12", "home"]], "  ") == [
        "  row  page",
        "  1    pricing",
        "  12   home",
    ]


def test_the_widest_columns_are_cut_until_a_line_fits() -> None:
    lines = table([["a", "b" * 100, "c" * 50]])
    assert lines == [f"a  {'b' * 36}…  {'c' * 37}…"]
    assert len(lines[0]) == WIDTH


def test_wide_characters_take_two_columns() -> None:
    assert table([["美咲", "x"], ["abcde", "x"], ["e\u0301", "x"]]) == ["美咲   x", "abcde  x", "e\u0301      x"]
    assert table([["新" * 50]]) == ["新" * 39 + "…"]


def test_too_many_columns_are_no_table() -> None:
    assert table([["123456"] * 10]) == ["  ".join(["123456"] * 10)]
    assert table([["123456"] * 11]) is None


def test_sentences_are_wrapped_and_indented() -> None:
    assert wrapped("word " * 20, "  ", "      ") == ["  " + "word " * 14 + "word", "      " + "word " * 4 + "word"]


PIECES = st.lists(st.sampled_from(["a" * 7, "b" * 90, "c-d", "é", " ", "  ", " " * 90, "\t", "\n"]), max_size=12)


@given(PIECES, st.sampled_from(["", "    "]), st.sampled_from([None, "", "       "]))
def test_wrapping_is_that_of_the_standard_library(pieces: list[str], indent: str, hanging: str | None) -> None:
    text = "".join(["word", *pieces])
    others = indent if hanging is None else hanging
    expected = textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=others, break_on_hyphens=False)
    assert wrapped(text, indent, hanging) == [line.rstrip() for line in expected]  # which leaves spaces at times


def test_a_long_word_takes_a_time_in_proportion_to_its_length() -> None:
    """By lines of Python, which no other program on this machine slows down."""
    assert count_steps(lambda: wrapped("x" * 200_000)) < 11 * count_steps(lambda: wrapped("x" * 20_000))
    assert count_steps(lambda: table([["x" * 200_000]])) < 2 * count_steps(lambda: table([["x" * 20_000]]))


def count_steps(work: Callable[[], object]) -> int:
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def test_times_are_in_utc() -> None:
    assert moment(1768293912) == "2026-01-13 08:45:12 UTC"


def test_what_is_counted() -> None:
    assert [counted(number, "row") for number in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]
    assert [counted(number, "known person") for number in (1, 2)] == ["1 known person", "2 known people"]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("all 12 records", 14, "all 12 records"),
        ("all 12 records", 13, "all 12..."),
        ("all 12 records", 9, "all 12..."),
        ("all 12 records", 8, "all..."),
        ("records", 6, "rec..."),
    ],
)
def test_a_text_is_cut_between_words(text: str, most: int, expected: str) -> None:
    assert shortened(text, most) == expected
