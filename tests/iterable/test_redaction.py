"""Redaction: what a log, a console or a message shows of a text, and that no text makes it slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iterable.redaction import Redactor

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "canary-Kx81+/=&%41zQ"  # with what JSON, URLs and repr() write in other ways
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJlbWFpbCI6ImEifQ.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key {SECRET} refused", "key *** refused"),
        (json.dumps({"key": SECRET}), '{"key": "***"}'),
        (repr({"key": SECRET}), "{'key': '***'}"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("(Api-Key,0123456789abcdef)", "(Api-Key,***)"),
        ('{"Api_Key": "0123456789abcdef"}', '{"Api_Key": "***"}'),
        ("api-key=0123456789abcdef", "api-key=***"),
        ("There is no API key: pass api_key, or use_jwt=True.", "There is no API key: pass api_key, or use_jwt=True."),
        (f"token {TOKEN} end", "token *** end"),
        (f"token {TOKEN[:20]}", "token ***"),  # cut off
        ("\\n" + TOKEN, "\\n***"),
        ("keyJson and eyJ", "keyJson and eyJ"),
        ("plain", "plain"),
    ],
)
def test_secrets_and_what_looks_like_one_are_not_shown(text: str, shown: str) -> None:
    assert Redactor([SECRET]).without_secrets(text) == shown
    assert Redactor([SECRET]).line(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Invalid email: ada.lovelace@example.com", "Invalid email: a***@example.com"),
        ("Name <ada@example.com>, bob@example.com", "Name <a***@example.com>, b***@example.com"),
        ("{'email': 'ada@example.com'}", "{'email': 'a***@example.com'}"),
        ('{"email":"ada@example.com"}', '{"email":"a***@example.com"}'),
        ("a@example.com", "a***@example.com"),
        ('Invalid email: "john doe"@example.com', 'Invalid email: "***@example.com'),
        (r'{"msg":"Invalid email: \"john doe\"@example.com"}', '{"msg":"***@example.com"}'),
        ('name "John", "a\\"b c"@example.com', 'name "John", "***@example.com'),
        ("Invalid email: john=doe@example.com", "Invalid email: j***@example.com"),
        ("email=john.doe@example.com", "e***@example.com"),
        ("'o'brien@example.com'", "'o***@example.com'"),
        ("john/doe@example.com", "j***@example.com"),
        ("/users/john.doe%40example.com", "/***%40example.com"),
        (r"john.doe\u0040example.com", r"j***\u0040example.com"),
        ("no address @ all", "no address @ all"),
        ("@@", "@@"),
        # what begins with one in JSON, after a name or another text
        ('{"note": "@SUM(A1)", "more": ["a","@b"]}', '{"note": "@SUM(A1)", "more": ["a","@b"]}'),
        (r"{\"note\": \"@SUM(A1)\"}", r"{\"note\": \"@SUM(A1)\"}"),
        # of a URL, user and password
        ("postgresql://ada:pw@db.example.com/x", "postgresql://a***@db.example.com/x"),
        ("postgresql://ada:p/w@db.example.com/x", "postgresql://a***@db.example.com/x"),
        # our own example
        (
            "such as postgresql+psycopg://user:password@host/name.",
            "such as postgresql+psycopg://user:password@host/name.",
        ),
        ("postgresql://user:password@hostile.example.com", "postgresql://u***@hostile.example.com"),
    ],
)
def test_addresses_keep_their_first_letter_and_their_domain(text: str, shown: str) -> None:
    line = Redactor().line(text)
    assert line == shown
    assert Redactor().line(line) == shown


def test_a_line_has_no_control_characters() -> None:
    assert Redactor().line("one\ntwo\r\x1b[31mred\x00\u2028") == r"one\ntwo\r\x1b[31mred\x00\u2028"


def test_a_secret_within_another_leaves_nothing_of_it() -> None:
    assert Redactor(["secret", "secret-and-more"]).line("it is secret-and-more") == "it is ***"


def test_what_is_too_short_for_a_secret_is_shown() -> None:
    assert Redactor(["key", "", None]).line("Invalid API key") == "Invalid API key"
    assert Redactor(["four"]).line("four") == "***"


@pytest.mark.parametrize(
    ("text", "identity", "shown"),
    [
        ("Invalid email: Ada@Example.com", "ada@example.com", "Invalid email: a***@example.com"),
        ('"ada lovelace"@example.com', '"ada lovelace"@example.com', '"***@example.com'),
        ("no user u-17, but u-171", "u-17", "no user u***, but u-171"),
        ("id 7", "7", "id 7"),  # all that would be left is its first letter
        ("ada lovelace@x is no address", "ada lovelace@x", "a***@x is no address"),
        ("/users/zo%C3%AB%40example.com", "zoë@example.com", "/users/z***@example.com"),
        ('{"id": "zo\\u00eb-1"}', "zoë-1", '{"id": "z***"}'),
        ("nobody", None, "nobody"),
        ("nobody", "", "nobody"),
    ],
)
def test_a_persons_identity_is_masked_literally(text: str, identity: str | None, shown: str) -> None:
    assert Redactor().person(text, identity) == shown


@pytest.mark.parametrize("padding", range(480, 501, 4))
def test_a_cut_leaves_no_half_of_what_is_not_shown(padding: int) -> None:
    for tail in (SECRET, f"{TOKEN}", "ada.lovelace@example.com"):
        text = f"{'x' * padding} {tail} {'y ' * 1000}"
        for shown in (Redactor([SECRET]).quote(text), Redactor([SECRET]).line(text, max_chars=500)):
            assert len(shown) <= 500
            assert not any(half in shown for half in ("can", "eyJ", "ad"))


def test_quote_is_on_one_line_and_cut() -> None:
    assert Redactor().quote("  one\n two\x1b[2J\u2028 ") == "one two [2J"
    assert Redactor().quote("x" * 10_000) == "x" * 500
    assert Redactor().quote("x" * 600) == "x" * 500


HOSTILE = [
    *("eyJ", "eyJ-", "eyJaaaaaa.", "bearer ", "api_key ", "api_key: ", "a@", "@", "%40"),
    *("a", " ", "/", "a'", '"', '\\"', "\n"),
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_makes_it_slow(piece: str) -> None:
    """A megabyte takes a fraction of a second; what took the square of that would take hours."""
    program = (
        "from iterable.redaction import Redactor\n"
        f"text = {piece!r} * (1_000_000 // {len(piece)}) + '@'\n"
        "redactor = Redactor(['canary-secret'])\n"
        "redactor.line(text), redactor.quote(text, 'ada@example.com'), redactor.line(text, max_chars=200)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)
