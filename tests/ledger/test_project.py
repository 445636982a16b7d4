"""Which project of the ledger the settings mean: by key, by name, and what happens when one of them changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pipeline.ledger.ledger import LEDGER_NAME, Ledger, Project, open_ledger, read_ledger
from pipeline.ledger.project import Hasher
from pipeline.model.records import Kind, Record

URL = "https://api.iterable.com"
ADA, BOB = "ada@example.com", "bob@example.com"


def project(key: str, name: str | None = None, url: str = URL) -> Project:
    return Project(url, key, name)


def knows(ledger: Ledger, who: str) -> bool:
    return bool(ledger.known([ledger.user_key(who)]))


def send(folder: Path, project: Project, who: str = ADA) -> str:
    """A run that has this user updated -> `sent`, or `unchanged` where that was known."""
    with open_ledger(folder, project, now=0) as ledger:
        if knows(ledger, who):
            return "unchanged"
        ledger.accept([Record(Kind.USER, 1, who, ledger.user_key(who), b"content", b"{}")])
        ledger.commit()
        return "sent"


def note(folder: Path, project: Project) -> str:
    """What a run would be told about its key and name; read-only, so that nothing changes."""
    with read_ledger(folder, project, now=0) as ledger:
        return ledger.note


# By key ---------------------------------------------------------------------------------------------------------------


def test_without_a_name_the_key_and_the_base_url_tell_projects_apart(tmp_path: Path) -> None:
    runs = [project("one"), project("one"), project("two"), project("one", url="https://api.eu.iterable.com")]
    assert [send(tmp_path, each) for each in (*runs, *runs)] == ["sent", "unchanged", "sent", "sent"] + [
        "unchanged"
    ] * 4


def test_other_keys_of_this_base_url_are_known_of_until_something_is_known_of_this_one(tmp_path: Path) -> None:
    def told(project: Project) -> bool:
        with open_ledger(tmp_path, project, now=0) as ledger:
            return ledger.is_new_key_for_known_host

    assert told(project("one")) is False
    send(tmp_path, project("one"))
    assert [told(project("two")), told(project("two")), told(project("one"))] == [True, True, False]
    assert told(project("two", url="https://api.eu.iterable.com")) is False
    with read_ledger(tmp_path, project("three"), now=0) as ledger:
        assert ledger.is_new_key_for_known_host is True
    send(tmp_path, project("two"), BOB)
    assert told(project("two")) is False


# By name --------------------------------------------------------------------------------------------------------------


def test_name_takes_over_what_the_key_knows_and_a_new_key_changes_nothing(tmp_path: Path) -> None:
    runs = [project("one"), project("one", "shop"), project("two", "shop"), project("three", "shop")]
    assert [send(tmp_path, each) for each in runs] == ["sent", "unchanged", "unchanged", "unchanged"]


def test_name_from_the_first_run_on_survives_a_new_key(tmp_path: Path) -> None:
    assert [send(tmp_path, project(key, "shop")) for key in ("one", "two")] == ["sent", "unchanged"]


def test_new_key_under_a_name_is_told_once(tmp_path: Path) -> None:
    send(tmp_path, project("one", "shop"))
    assert note(tmp_path, project("one", "shop")) == ""
    assert note(tmp_path, project("two", "shop")) == (
        "The key is new for ITERABLE_PROJECT=shop; what was sent under this name counts as sent. If the key belongs to "
        "another Iterable project, give that one a name of its own."
    )
    send(tmp_path, project("two", "shop"))
    assert note(tmp_path, project("two", "shop")) == ""


def test_name_of_another_base_url_is_another_name(tmp_path: Path) -> None:
    send(tmp_path, project("one", "shop"))
    assert send(tmp_path, project("one", "shop", url="https://api.eu.iterable.com")) == "sent"


@pytest.mark.parametrize("key", ["one", "two"])
def test_name_that_is_removed_leaves_what_its_last_key_knows(tmp_path: Path, key: str) -> None:
    send(tmp_path, project("one", "shop"))
    send(tmp_path, project(key, "shop"))
    assert send(tmp_path, project(key)) == "unchanged"
    assert send(tmp_path, project(key, "shop")) == "unchanged"


def test_renamed_project_keeps_what_its_first_key_knows(tmp_path: Path) -> None:
    send(tmp_path, project("one", "shop"))
    assert send(tmp_path, project("one", "store")) == "unchanged"
    assert send(tmp_path, project("two", "store")) == "unchanged"
    assert send(tmp_path, project("three", "shop")) == "sent"


def test_new_name_with_a_key_that_came_by_another_name_starts_anew_and_says_so(tmp_path: Path) -> None:
    """It may be a second project, whose settings were copied from the first one's with the name in them."""
    send(tmp_path, project("one", "shop"))
    send(tmp_path, project("two", "shop"))
    assert note(tmp_path, project("two", "test")) == (
        "Nothing is known under ITERABLE_PROJECT=test, and this key was last used under another name. If both mean the "
        "same Iterable project, put that name back; else everything is sent again."
    )
    with open_ledger(tmp_path, project("two", "test"), now=0) as ledger:
        assert not knows(ledger, ADA)  # and the user stops it, as nothing was sent
    assert send(tmp_path, project("two", "shop")) == "unchanged"
    assert send(tmp_path, project("two", "test")) == "sent"
    assert send(tmp_path, project("one", "shop")) == "unchanged"


def test_key_that_knows_records_of_its_own_counts_for_more_than_a_name(tmp_path: Path) -> None:
    send(tmp_path, project("one", "shop"), ADA)
    send(tmp_path, project("two"), BOB)
    assert note(tmp_path, project("two", "shop")) == (
        "ITERABLE_PROJECT=shop was used with another key; from now on it stands for what was sent with this one. If "
        "that key belongs to another Iterable project, give each a name of its own."
    )
    assert [send(tmp_path, project("two", "shop"), who) for who in (BOB, ADA)] == ["unchanged", "sent"]
    assert send(tmp_path, project("three", "shop"), BOB) == "unchanged"


def test_reader_knows_a_project_by_its_name_and_gives_none(tmp_path: Path) -> None:
    send(tmp_path, project("one"))
    with read_ledger(tmp_path, project("one", "shop"), now=0) as ledger:
        assert knows(ledger, ADA)
    with read_ledger(tmp_path, project("two", "shop"), now=0) as ledger:
        assert not knows(ledger, ADA)
        assert ledger.is_new_key_for_known_host


# Hashes ---------------------------------------------------------------------------------------------------------------


def test_neither_key_nor_name_nor_secret_is_in_the_file(tmp_path: Path) -> None:
    named = project("one-key", "shop-name")
    send(tmp_path, named)
    content = (tmp_path / LEDGER_NAME).read_bytes()
    words = (b"one-key", b"shop-name", b"api.iterable.com", b"ada@", named.first_secret)
    assert [word for word in words if word in content] == []


def test_without_a_name_the_file_alone_gives_no_secret_and_with_one_the_name_does(tmp_path: Path) -> None:
    send(tmp_path, project("one"))
    send(tmp_path, project("two", "shop"))
    with sqlite3.connect(tmp_path / LEDGER_NAME) as database:
        sealed = database.execute("SELECT secret_by_name FROM projects ORDER BY id").fetchall()
    database.close()
    assert sealed[0] == (None,)
    assert project("unknown", "shop").sealed_by_name(sealed[1][0]) == project("two").first_secret
    assert project("unknown", "store").sealed_by_name(sealed[1][0]) != project("two").first_secret


def test_credentials_are_not_in_the_repr() -> None:
    assert repr(project("one-key", "shop")) == f"Project(base_url='{URL}', name='shop')"


def test_keys_and_fingerprints_stay_what_they_are_as_every_ledger_holds_them() -> None:
    """A change of them would send everything again."""
    hasher = Hasher(project("key-of-this-project").first_secret)
    key = hasher.user_key(ADA)
    assert key.hex() == "9e5b2f6943190cafe424e5dd17e996c4"
    assert hasher.event_keys([key], ["e1"])[0].hex() == "9e5b2f6943190caf0033740b37da1ee32bd4edf3"
    assert hasher.given_event_keys([key], ["e1"])[0].hex() == "9e5b2f6943190caf0133740b37da1ee32bd4edf3"
    assert hasher.fingerprints([b"{}"])[0].hex() == "5eaa1d979121833b946a59bb83110cb7"
    given = hasher.given_fingerprints(['1,"visit"', '2,"visit"'], ['"page":"home"'] * 2)
    assert [each.hex() for each in given] == ["249d68ac6fff46286d14024fe7d4e753", "3877c47c73a6436c6d14024fe7d4e753"]
    assert [each.hex() for each in hasher.field_hashes("plan", ['"pro"', '"pro"'])] == ["ea751681c4ce24d70677"] * 2
    assert (hasher.field_name("plan").hex(), (hasher.persons(["17"])[0] or b"").hex()) == (
        "ea751681",
        "43a978e7db85af18b077",
    )
    assert hasher.sealed_origin(key, b"0123456789").hex() == "12aed318e18b8cbe3e4f"
    assert hasher.sealed_origin(key, bytes.fromhex("12aed318e18b8cbe3e4f")) == b"0123456789"
    assert hasher.text("/srv/query.sql").hex() == "5af943ef0d5232833372cc103308c4a9"


def test_hashes_by_which_a_project_is_found_stay_what_they_are() -> None:
    named = project("key-of-this-project", "shop")
    assert named.server_hash.hex() == "b0b49bca32284fcc1bcfb3d7548e9455"
    assert named.key_hash.hex() == "93555a0924949c7b2754ce826660469e"
    assert named.name_hash.hex() == "d16987fe330ca201bd15b1af8fcbcc30"
    assert named.sealed_by_key(bytes(32)).hex() == "8649d9b92fac2156af8a2f553f0f7f014bbe044c74a6b1a4c16399c078ae0d16"
    assert named.sealed_by_name(bytes(32)).hex() == "88ec89c73df9cb0c99502944e4ee20fe73a14216dcf74da789c0aa9faa252710"
