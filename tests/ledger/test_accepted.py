"""What the ledger knows of users, field by field, of their addresses, and of events by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.model.keys import MADE, USER_BYTES
from pipeline.model.records import Kind, Record, UserDetails
from tests.opened import Opened
from tests.records import ADA, BOB, CY, event, opening, user


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    with opening(tmp_path) as both:
        yield both


def update(opened: Opened, known: dict[str, str], *sent: str, who: str = ADA) -> Record:
    """An update that sends some of the fields that Iterable then has."""
    hasher = opened.ledger.hasher
    fields = b"".join(hasher.field_hashes(name, [value])[0] for name, value in known.items())
    details = UserDetails(fields, b"".join(map(hasher.field_name, sent)))
    (fingerprint,) = hasher.fingerprints([str(known).encode()])
    return Record(Kind.USER, 1, who, hasher.user_key(who), fingerprint, b"{}", details)


def fields_known(opened: Opened, *fields: tuple[str, str], who: str = ADA) -> list[bool]:
    """Whether the ledger knows these fields with these values."""
    hasher = opened.ledger.hasher
    found = opened.ledger.accepted.known_users([hasher.user_key(who)])[hasher.user_key(who)].fields
    entries = {found[start : start + 10] for start in range(0, len(found), 10)}
    return [hasher.field_hashes(name, [value])[0] in entries for name, value in fields]


PLAN, CITY = ("plan", "1"), ("city", "1")


def test_a_request_that_may_have_left_voids_the_fields_that_it_contains_and_no_others(opened: Opened) -> None:
    opened.ledger.accept([update(opened, dict([PLAN, CITY]), "plan", "city")])
    assert fields_known(opened, PLAN, CITY) == [True, True]
    opened.ledger.invalidate([update(opened, {"plan": "2", "city": "1"}, "plan")])
    assert fields_known(opened, PLAN, CITY) == [False, True]
    assert set(opened.ledger.known([opened.ledger.user_key(ADA)]).values()) == {b""}


def test_a_second_request_of_a_user_who_is_void_already_voids_its_fields_too(opened: Opened) -> None:
    opened.ledger.accept([update(opened, dict([PLAN, CITY]), "plan", "city")])
    opened.ledger.invalidate([update(opened, {"plan": "2", "city": "1"}, "plan")])
    opened.ledger.invalidate([update(opened, {"plan": "2", "city": "2"}, "plan", "city")])
    assert fields_known(opened, PLAN, CITY) == [False, False]


def test_a_user_who_is_accepted_again_is_known_with_all_fields(opened: Opened) -> None:
    first, second = update(opened, dict([PLAN]), "plan"), update(opened, dict([PLAN, CITY]), "city")
    opened.ledger.accept([first])
    opened.ledger.invalidate([second])
    opened.ledger.accept([second])
    assert fields_known(opened, PLAN, CITY) == [True, True]
    assert opened.ledger.known([first.key]) == {first.key: second.fingerprint}


def test_users_who_need_no_update_are_known_as_a_whole_and_by_their_person(opened: Opened) -> None:
    opened.ledger.accept([update(opened, dict([PLAN]), "plan")])
    found = update(opened, dict([PLAN, CITY]))
    [person] = opened.ledger.hasher.persons(["17"])
    assert person is not None
    details = UserDetails(person=person, origin=b"0123456789")
    opened.ledger.accepted.people.restamp([found._replace(details=details)])
    opened.ledger.accepted.people.restamp([found._replace(details=UserDetails())])
    known = opened.ledger.accepted.known_users([found.key])[found.key]
    assert (known.fingerprint, known.person, known.origin) == (found.fingerprint, person, b"0123456789")
    assert opened.ledger.accepted.people.users_of_persons([person, b"nobody"]) == {person: [known]}
    assert fields_known(opened, PLAN, CITY) == [True, False]


def test_an_id_of_the_query_is_known_whoever_it_is_about(opened: Opened) -> None:
    adas, bobs = event(opened, 1, "e1", ADA), event(opened, 1, "e1", BOB)
    opened.ledger.accept([adas])
    known = opened.ledger.accepted.known_given([adas.key, bobs.key, event(opened, 1, "e2").key])
    assert known == dict.fromkeys([adas.key, bobs.key], (adas.key[:USER_BYTES], adas.fingerprint))
    opened.ledger.accept([bobs])
    assert opened.ledger.accepted.known_given([adas.key])[adas.key].person == bobs.key[:USER_BYTES]
    assert opened.ledger.count_known() == 1


def test_ids_that_are_made_are_known_for_their_person_alone(opened: Opened) -> None:
    keys = opened.ledger.event_keys([opened.ledger.user_key(who) for who in (ADA, BOB)], ["content"] * 2)
    record = Record(Kind.EVENT, 1, ADA, keys[0], MADE, b"{}")
    opened.ledger.accept([record])
    assert opened.ledger.accepted.known_made(keys) == {keys[0]: MADE}
    assert opened.ledger.accepted.known_given(keys) == {}
    opened.ledger.invalidate([record])
    assert opened.ledger.known(keys) == {keys[0]: b""}


def test_all_that_was_accepted_of_a_user_is_found_with_its_run(opened: Opened) -> None:
    (made,) = opened.ledger.event_keys([opened.ledger.user_key(ADA)], ["content"])
    records = [user(opened, 1), event(opened, 1, "e1"), Record(Kind.EVENT, 2, ADA, made, MADE, b"{}")]
    opened.ledger.begin_run("run", 0, "query.sql")
    opened.ledger.accept([*records, user(opened, 2, BOB), event(opened, 2, "e2", BOB)])
    found = opened.ledger.accepted.accepted_of(opened.ledger.user_key(ADA))
    assert found.keys() == {each.key for each in records}
    assert {run for _, run in found.values()} == {opened.ledger.accepted.run} != {0}


def test_a_user_is_found_at_the_present_address(opened: Opened) -> None:
    accepted = opened.ledger.accepted
    people = accepted.people
    ada, new = opened.ledger.user_key(ADA), opened.ledger.user_key(CY)
    opened.ledger.accept([user(opened, 1), user(opened, 2, BOB)])
    assert (people.any_moved, people.users_at([ada, new])) == (False, {})
    opened.ledger.begin_move(ada, new)
    assert accepted.known_users([ada])[ada].moving_to == new
    people.end_move(ada, new)
    assert people.any_moved
    moved = people.users_at([ada, new])
    assert {address: (each.key, each.moving_to) for address, each in moved.items()} == {new: (ada, None)}
    people.end_move(ada, None)
    assert people.users_at([ada, new]) == {}


def test_users_are_counted_by_the_query_that_found_them_first(opened: Opened) -> None:
    opened.ledger.use_query("/srv/a.sql")
    opened.ledger.accept([user(opened, 1), user(opened, 2, BOB)])
    opened.ledger.use_query("/srv/b.sql")
    opened.ledger.accept([user(opened, 1), user(opened, 2, CY)])
    assert opened.ledger.accepted.count_users_of_query() == 1
    opened.ledger.use_query("/srv/a.sql")
    assert opened.ledger.accepted.count_users_of_query() == 2


def test_users_are_looked_up_by_an_index(opened: Opened) -> None:
    opened.ledger.accept([user(opened, 1)])
    people, statements = opened.ledger.accepted.people, list[str]()
    database = people._database
    database.set_trace_callback(statements.append)
    people.users_of_persons([b"somebody"])
    people.users_at([b"somewhere"])
    database.set_trace_callback(None)
    steps = [[each[3] for each in database.execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in statements]
    assert [next(step for step in each if " users " in step).split(" USING ")[1].split(" (")[0] for each in steps] == [
        "INDEX users_by_person",
        "INDEX users_by_address",
    ]
