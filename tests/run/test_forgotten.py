"""SKIP_FORGOTTEN: the records of forgotten people stay on this machine, and without Iterable's list all records do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.keys import MADE
from pipeline.model.records import Kind, Record
from pipeline.run.forgotten import CODE, MESSAGE, ForgottenPeople, hash_of
from pipeline.sandbox import SANDBOX_JWT_SECRET, Fault, StandIn
from tests.opened import open_both
from tests.program import Program, make_table, sent, use_query

NAMES = ["ada", "bob", "eve"]
SENDING = {"/api/users/update", "/api/events/track", "/api/users/bulkUpdate", "/api/events/trackBulk"}


@pytest.fixture
def people(program: Program, tmp_path: Path) -> Program:
    """Three people with two events each. Ada is written in capitals."""
    rows = [
        (name.title(), f"{name}@example.com".replace("ada", "ADA"), f"2026-01-13 0{hour}:00:00")
        for name in NAMES
        for hour in (8, 9)
    ]
    make_table(tmp_path / "users.db", "id,email,event_time", rows)
    use_query(program, "SELECT id, email, event_time FROM rows")
    program.settings["SKIP_FORGOTTEN"] = "true"
    return program


def sent_by(iterable: StandIn) -> str:
    return "\n".join(each.body.decode().lower() for each in iterable.project.requests if each.path in SENDING)


@pytest.mark.parametrize("mode", ["single", "bulk"])
def test_nothing_of_forgotten_people_leaves(people: Program, iterable: StandIn, mode: str) -> None:
    iterable.project.forget_user(email="ada@example.com")
    iterable.project.forget_user(email="nobody@example.com")
    run = people.run(PUSH_MODE=mode)
    assert run.code == 1
    assert (run.counts("users"), run.counts("events")) == (
        {"delivered": 2, "rejected": 1}, {"delivered": 4, "rejected": 2},
    )  # fmt: skip
    assert "ada@example.com" not in sent_by(iterable)
    failures = run.results["failures"]
    assert [(each["row"], each["kind"], each["email"]) for each in failures] == [
        (1, "user", "ada@example.com"), (1, "event", "ada@example.com"), (2, "event", "ada@example.com"),
    ]  # fmt: skip
    assert {(each["code"], each["message"]) for each in failures} == {
        ("ForgottenUserError", "This person asked Iterable to be forgotten, and SKIP_FORGOTTEN is set.")
    }
    assert iterable.project.requests[0].path == "/api/users/forgotten"


def test_without_the_setting_the_list_is_not_read(people: Program, iterable: StandIn) -> None:
    assert people.run(SKIP_FORGOTTEN="false").code == 0
    assert set(iterable.project.request_counts) == {"/api/users/update", "/api/events/track"}


def test_new_events_of_an_unchanged_user_stay_too(people: Program, iterable: StandIn, tmp_path: Path) -> None:
    assert people.run().code == 0
    iterable.project.forget_user(email="eve@example.com")
    make_table(tmp_path / "more.db", "id,email,event_time", [("eve", "eve@example.com", "2026-01-14 08:00:00")])
    run = people.run(DATABASE_URL=f"sqlite:///{tmp_path}/more.db")
    assert (run.code, run.counts("users"), run.counts("events")) == (1, {"unchanged": 1}, {"rejected": 1})


def test_a_person_is_known_by_user_id_in_any_case(people: Program, tmp_path: Path) -> None:
    with StandIn(project_type="userId") as iterable:
        iterable.project.forget_user(user_id="ADA")
        run = people.run(ITERABLE_IDENTIFIER="userId", ITERABLE_BASE_URL=iterable.url)
        assert run.counts("users") == {"delivered": 2, "rejected": 1}
        assert iterable.project.requests[0].path == "/api/users/forgottenUserIds"
        assert "/api/users/forgotten" not in iterable.project.request_counts  # a project of this type refuses it


def test_a_long_list_is_read_to_its_end(people: Program, iterable: StandIn) -> None:
    iterable.project.forgotten.update(f"user{n}@example.com" for n in range(50_000))
    iterable.project.forget_user(email="bob@example.com")
    assert people.run().counts("users") == {"delivered": 2, "rejected": 1}


def test_another_run_knows_these_rejections_again(tmp_path: Path) -> None:
    with open_both(tmp_path, now=1768298400) as opened:
        key = opened.ledger.user_key("ada@example.com")
        (event_key,) = opened.ledger.event_keys([key], ["e1"])
        opened.stage.people.stage_users([Record(Kind.USER, 1, "ada@example.com", key, b"f1", b"{}")])
        opened.stage.stage_events([2], [event_key], [MADE], [b"{}"])
        opened.stage.finish_staging()
        assert opened.stage.people.reject_people(lambda identity: identity == "bob@example.com", CODE, MESSAGE) == 0
        assert opened.stage.people.reject_people(lambda identity: identity == "ada@example.com", CODE, MESSAGE) == 2
        (refusals,) = opened.stage.outcomes.refusals()
        assert [(each.key, each.fingerprint) for each in refusals] == [(event_key, MADE), (key, b"f1")]
        assert [opened.stage.states.count_pending(kind) for kind in Kind] == [0, 0]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(status=503), 75, "503"),
        (Fault(status=200, body=b"<html>"), 76, "ITERABLE_BASE_URL"),
        (Fault(status=200, body=b'{"hashedEmails": null}'), 76, "not a list of SHA-256 hashes"),
        (Fault(status=200, body=b'{"hashedEmails": ["abc"]}'), 76, "not a list of SHA-256 hashes"),
        (Fault(status=200, body=b'{"hashedEmails": [5]}'), 76, "not a list of SHA-256 hashes"),
        (Fault(status=401, body=b'{"code": "BadApiKey", "msg": "no"}'), 77, "Check ITERABLE_API_KEY"),
        (Fault(status=400, body=b'{"code": "BadParams", "msg": "no"}'), 78, "Check ITERABLE_IDENTIFIER"),
    ],
)
def test_without_the_list_nothing_is_sent(
    people: Program, iterable: StandIn, fault: Fault, code: int, words: str
) -> None:
    fault.path = "/api/users/forgotten"
    iterable.project.faults.append(fault)
    run = people.run(RATE_LIMIT_PERCENT="1000")
    assert run.code == code
    assert "Nothing was sent, as SKIP_FORGOTTEN=true needs Iterable's list" in run.err
    assert words in run.err
    assert run.counts("users") == {"not_attempted": 3}
    assert not SENDING & set(iterable.project.request_counts)


def test_the_hashes_are_those_that_iterable_documents(people: Program, iterable: StandIn) -> None:
    digest = hashlib.sha256(b"ada@example.com").hexdigest()
    for written in (digest, digest.upper()):
        body = json.dumps({"hashedEmails": [written]}).encode()
        iterable.project.faults[:] = [Fault(path="/api/users/forgotten", status=200, body=body)]
        run = people.run("--full", "--yes")
        assert run.counts("users") == {"delivered": 2, "rejected": 1}


def test_a_run_without_news_reads_no_list(people: Program, iterable: StandIn) -> None:
    assert people.run().code == 0
    iterable.project.request_counts.clear()
    assert people.run().code == 0
    assert not iterable.project.request_counts


def test_a_dry_run_counts_as_the_run_does(people: Program, iterable: StandIn) -> None:
    iterable.project.forget_user(email="ada@example.com")
    dry, run = people.run("--dry-run"), people.run()
    assert (dry.code, run.code) == (1, 1)
    rejected = {"rejected": 1}, {"rejected": 2}
    assert ({"rejected": dry.counts("users")["rejected"]}, {"rejected": dry.counts("events")["rejected"]}) == rejected
    assert ({"rejected": run.counts("users")["rejected"]}, {"rejected": run.counts("events")["rejected"]}) == rejected


def test_a_dry_run_goes_on_without_the_list_and_says_so(people: Program, iterable: StandIn) -> None:
    iterable.project.faults.append(Fault(path="/api/users/forgotten", status=400, body=b'{"code": "BadParams"}'))
    run = people.run("--dry-run")
    assert (run.code, sent(iterable)) == (0, ["/api/users/forgotten"])
    assert "Whom Iterable has forgotten is not known, so a run may reject more: " in run.err


def test_a_jwt_key_can_not_read_the_list_and_is_refused_at_start(people: Program, iterable: StandIn) -> None:
    run = people.run(USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SANDBOX_JWT_SECRET)
    assert run.code == 78
    assert "SKIP_FORGOTTEN=true can't be used with USE_JWT_AUTH=true" in run.err
    assert run.files("*") == []


# The list -------------------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 300)))
def test_the_list_is_as_good_as_a_set(numbers: set[int]) -> None:
    people = {f"U{number}@example.com " for number in numbers}
    forgotten = ForgottenPeople([hash_of(each) for each in people])
    assert len(forgotten) == len(people)
    asked = [f"u{number}@example.com" for number in range(301)]
    assert [each in forgotten for each in asked] == [number in numbers for number in range(301)]
