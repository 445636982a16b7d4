"""Who a row is about, and which person is behind an address."""

from __future__ import annotations

import hashlib
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given

from pipeline.model.records import Unreadable
from pipeline.transform.identity import email_address, id_text, identity, origin_of, person_text
from pipeline.transform.values import InvalidRecord
from tests.transform.rows import BY_USER_ID, RULES, anything

# By e-mail ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "email"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.LOVELACE@Example.COM", "ada.lovelace@example.com"),
        (" ada@example.com\r\n", "ada@example.com"),
        (b"ada@example.com", "ada@example.com"),
        (bytearray(b"ada@example.com"), "ada@example.com"),
        (memoryview(b"ada@example.com"), "ada@example.com"),
        ("o'brien+news@example.co.uk", "o'brien+news@example.co.uk"),
        ("!#$%&*+-/=?^_`{|}~@example.com", "!#$%&*+-/=?^_`{|}~@example.com"),
        ('"joe blow"@example.com', '"joe blow"@example.com'),
        ('"a@b".c@example.com', '"a@b".c@example.com'),
        ('"a\\"b"@example.com', '"a\\"b"@example.com'),
        ("joe\\@blow@example.com", "joe\\@blow@example.com"),
        ("jörg@example.com", "jörg@example.com"),
        ("ada@bücher.example", "ada@bücher.example"),
        ("ada@डेटामेल.भारत", "ada@डेटामेल.भारत"),
        ("ada@xn--bcher-kva.xn--p1ai", "ada@xn--bcher-kva.xn--p1ai"),
        ("ada@a-b.c--d.museum", "ada@a-b.c--d.museum"),
        ("ada@1.com", "ada@1.com"),
        (f"{'a' * 64}@example.com", f"{'a' * 64}@example.com"),
        (f"a@{'b' * 63}.com", f"a@{'b' * 63}.com"),
    ],
)
def test_good_email_is_taken_in_lower_case(value: Any, email: str) -> None:
    assert identity(value, RULES) == email


@pytest.mark.parametrize("value", [None, "", "   ", b"", "\u00a0"])
def test_missing_email_names_nobody(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^email is empty$"):
        identity(value, RULES)


@pytest.mark.parametrize(
    "value",
    [
        "ada",
        "000",
        "ada@",
        "@example.com",
        "ada@example",
        "ada@localhost",
        "ada@example.c",
        "ada@example.123",
        "ada@.com",
        "ada@example..com",
        "ada@example.com.",
        "ada@-example.com",
        "ada@example-.com",
        "ada@exam_ple.com",
        "ada@exam ple.com",
        "ada@[127.0.0.1]",
        ".ada@example.com",
        "ada.@example.com",
        "a..da@example.com",
        "a da@example.com",
        "ada@x@example.com",
        "ada,bob@example.com",
        "ada@example.com,bob@example.com",
        "ada;bob@example.com",
        "Ada <ada@example.com>",
        "(ada)@example.com",
        'a"d"a@example.com',
        '"ada@example.com',
        "ada\\@example.com",
        "mailto:ada@example.com",
        "ada\x00@example.com",
        "ada\n@example.com",
        "a\u200bda@example.com",
        "ada\udce9@example.com",
        "ada@ex\udce9ample.com",
        f"a@{'b' * 64}.com",
        f"a@{'ü' * 60}.com",
        f"a@{'b.' * 126}com",
        17,
        UUID(int=5),
    ],
)
def test_malformed_email_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^email is not a valid email address$"):
        identity(value, RULES)


def test_email_with_65_characters_before_the_at_is_refused() -> None:
    with pytest.raises(InvalidRecord, match=r"^email has more than 64 characters before the @$"):
        identity(f"{'a' * 65}@example.com", RULES)


def test_address_is_refused_under_the_name_of_its_column() -> None:
    assert email_address(" Ada@Example.com\n", "previous_email") == "ada@example.com"
    with pytest.raises(InvalidRecord, match=r"^previous_email is not a valid email address$"):
        email_address("ada", "previous_email")


# By userId ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", b""])
def test_missing_user_id_names_nobody(value: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"^id is empty$"):
        identity(value, BY_USER_ID)


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        ("u-17", "u-17"),
        ("MiXeD", "MiXeD"),
        (" leading", " leading"),
        ("with space!~", "with space!~"),
        ("a" * 52, "a" * 52),
        (17, "17"),
        (0, "0"),
        (-5, "-5"),
        (17.0, "17"),
        (Decimal("17.00"), "17"),
        (Decimal("1E+3"), "1000"),
        (10**51, "1" + 51 * "0"),
        (UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        (b"u-17", "u-17"),
        (memoryview(b"u-17"), "u-17"),
    ],
)
def test_good_user_id_is_taken_to_the_letter(value: Any, user_id: str) -> None:
    assert identity(value, BY_USER_ID) == user_id


ODD_CHARACTER = "id has a character that a user id may not have, or a space at its end"
NO_WHOLE_NUMBER = "id is not a whole number, or has more than 52 digits"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a" * 53, "id has more than 52 characters"),
        ("trailing ", ODD_CHARACTER),
        (" ", ODD_CHARACTER),
        ("ünicode", ODD_CHARACTER),
        ("tab\tin", ODD_CHARACTER),
        ("line\n", ODD_CHARACTER),
        ("nul\x00", ODD_CHARACTER),
        ("del\x7f", ODD_CHARACTER),
        ("\udce9", ODD_CHARACTER),
        (b"\xe9", "id is not valid UTF-8"),
        (17.5, NO_WHOLE_NUMBER),
        (Decimal("17.5"), NO_WHOLE_NUMBER),
        (10**52, NO_WHOLE_NUMBER),
        pytest.param(10**5000, NO_WHOLE_NUMBER, id="huge"),
        (Decimal("1E+999999"), NO_WHOLE_NUMBER),
        (Decimal("1E-999999"), NO_WHOLE_NUMBER),
        (float("nan"), NO_WHOLE_NUMBER),
        (float("inf"), NO_WHOLE_NUMBER),
        (Decimal("NaN"), NO_WHOLE_NUMBER),
        (Decimal("sNaN"), NO_WHOLE_NUMBER),
        (Decimal("-Infinity"), NO_WHOLE_NUMBER),
        (True, "id has the type bool, which can't be an id"),
        ([1], "id has the type list, which can't be an id"),
        (date(2026, 1, 13), "id has the type date, which can't be an id"),
    ],
)
def test_bad_user_id_is_refused_with_its_reason(value: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        identity(value, BY_USER_ID)
    assert str(caught.value) == reason


# The person behind it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "person"),
    [
        (17, "17"),
        (17.0, "17"),
        (Decimal("17.00"), "17"),
        (b"17", "17"),
        (" 17\n", "17"),
        ("MiXeD", "MiXeD"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (None, ""),
        ("", ""),
        ("  ", ""),
        (17.5, ""),
        (True, ""),
        (b"\xff", ""),
        (date(2026, 1, 13), ""),
        (float("nan"), ""),
        (Unreadable("infinity", "is infinity"), ""),
    ],
)
def test_person_is_told_by_an_id_and_by_nothing_else(value: Any, person: str) -> None:
    assert person_text(value, "id") == person


@given(anything)
def test_whatever_a_column_holds_it_says_who_somebody_is_or_nothing(value: Any) -> None:
    found = person_text(value, "id")
    assert found == found.strip()
    if found:
        assert id_text(value, "id").strip() == found


def test_event_ids_know_a_person_by_a_hash_of_the_address() -> None:
    """A change of it would send every event of every project again, as another event."""
    assert origin_of("ada@example.com").hex() == "b5fc85e55755f9e0d030"
    assert origin_of("zoë@example.com") == hashlib.sha256("zoë@example.com".encode()).digest()[:10]
