"""Batches and single records on the wire, and what each answer says of each record."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pytest
import responses
from hypothesis import given, settings
from hypothesis import strategies as st
from requests import PreparedRequest

from iterable_client import Failure, IterableClient
from pipeline.delivery.breaker import Breaker, Turn
from pipeline.delivery.bulk_answers import BulkResult, Settled, read_bulk_answer
from pipeline.delivery.patience import MAX_REFUSALS_IN_A_ROW, MAX_REQUESTS_A_BATCH, MIN_REFUSALS_IN_A_ROW
from pipeline.delivery.senders import BulkSender, Sender, SingleSender
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.sandbox import SANDBOX_KEY, Fault, StandIn
from tests.program import wait_until

ADA, BOB, CY = "ada@example.com", "bob@example.com", "cy@example.com"
UPDATE, BULK_UPDATE = "/api/users/update", "/api/users/bulkUpdate"
TRACK, TRACK_BULK = "/api/events/track", "/api/events/trackBulk"
NOT_ALONE = ". It was only sent in a batch, so another record may be to blame."

Json = dict[str, Any]


def record(kind: Kind, row: int, body: Json) -> Record:
    identity = body.get("email") or body["userId"]
    return Record(kind, row, identity, b"", b"", json.dumps(body, separators=(",", ":")).encode())


def user(row: int, email: str | None = None, **fields: Any) -> Record:
    return record(Kind.USER, row, {"email": email or f"{row}@example.com", "dataFields": fields})


def event(row: int, email: str = ADA, **changes: Any) -> Record:
    body = {"email": email, "eventName": "visit", "id": f"e{row}", "createdAt": 1768293912, "dataFields": {}}
    return record(Kind.EVENT, row, {**body, **changes})


def users(count: int) -> list[Record]:
    return [user(row) for row in range(1, count + 1)]


def a_turn(*, has_accepted: bool = True, kind: Kind = Kind.USER) -> Turn:
    """A turn with a batch, in a run in which Iterable has accepted something already, or not."""
    turn = Breaker().turn(kind)
    if has_accepted:
        turn.answered(None)
    return turn


def told(reports: Iterable[Settled]) -> dict[str, list[int]]:
    """Settleds -> the rows by what became of them; a row that is told of twice stands there twice."""
    rows: dict[str, list[int]] = {}
    for report in reports:
        for each in report.delivered:
            rows.setdefault("delivered", []).append(each.row)
        for undelivered in report.failed:
            rows.setdefault(undelivered.outcome.value, []).append(undelivered.row)
        for undelivered in report.unknown:
            rows.setdefault("unknown", []).append(undelivered.row)
        assert sorted(report.rows()) == sorted(
            [each.row for each in report.delivered] + [each.row for each in (*report.failed, *report.unknown)]
        )
    return {name: sorted(rows[name]) for name in rows}


def undelivered(reports: Iterable[Settled]) -> list[FailedRecord]:
    return [undelivered for report in reports for undelivered in (*report.failed, *report.unknown)]


# Two Iterables: the stand-in, and one that a test scripts -------------------------------------------------------------


class Connected:
    """A stand-in, and the client of it."""

    def __init__(self, **options: Any) -> None:
        self.stand_in = StandIn(**{"limits": None, **options}).start()
        self.project = self.stand_in.project
        self.client = make_client(self.stand_in.url)
        self.bulk = BulkSender(self.client)
        self.single = SingleSender(self.client)

    def close(self) -> None:
        self.client.session.close()
        self.stand_in.stop()

    def sender(self, kind: str) -> Sender:
        return self.bulk if kind == "bulk" else self.single

    def know(self, *emails: str) -> None:
        for email in emails:
            assert self.client.update_user(email)[0]
        self.project.requests.clear()

    def bodies(self) -> list[Json]:
        return [json.loads(request.body) for request in self.project.requests]

    def sent_rows(self) -> list[list[int]]:
        """Of the bulk requests for events, in order: the rows in each."""
        return [[int(each["id"][1:]) for each in body["events"]] for body in self.bodies()]


def make_client(url: str = "http://127.0.0.1:9", **options: Any) -> IterableClient:
    return IterableClient(SANDBOX_KEY, base_url=url, **{"initial_backoff": 0, "sleep": lambda _: None, **options})


@pytest.fixture
def connect() -> Iterator[Callable[..., Connected]]:
    """connect(**options of the stand-in) -> Connected"""
    running: list[Connected] = []

    def start(**options: Any) -> Connected:
        running.append(Connected(**options))
        return running[-1]

    yield start
    for each in running:
        each.close()


@pytest.fixture
def iterable(connect: Callable[..., Connected]) -> Connected:
    return connect()


def accepted(count: int, **lists: Any) -> Json:
    return {"successCount": count, "failCount": 0, **lists}


def send_to(
    server: Callable[[list[Json]], tuple[int, Any]], *batches: Sequence[Record], has_accepted: bool = True
) -> tuple[list[Settled], list[list[Json]]]:
    """Send batches to a server that is `records of a request -> (status, answer)` -> the reports, the requests."""
    requests: list[list[Json]] = []

    def answer(request: PreparedRequest) -> tuple[int, dict[str, str], str]:
        body = json.loads(cast("bytes", request.body))
        requests.append(body.get("users") or body.get("events"))
        status, content = server(requests[-1])
        return status, {}, content if isinstance(content, str) else json.dumps(content)

    with responses.RequestsMock(assert_all_requests_are_fired=False) as wire:
        for name in ("users/bulkUpdate", "events/trackBulk"):
            wire.add_callback(responses.POST, f"http://127.0.0.1:9/api/{name}", answer)
        client = make_client()
        sender = BulkSender(client)
        reports = [report for batch in batches for report in sender.send(batch, a_turn(has_accepted=has_accepted))]
        client.session.close()
    return reports, requests


def refusing(bad: Iterable[Record], status: int = 400, code: str = "RequestFieldsTypesMismatched") -> Any:
    """A server that refuses every request in which one of the bad records is, and does not say which."""
    names = {each.payload for each in bad}

    def server(records: list[Json]) -> tuple[int, Any]:
        if any(json.dumps(each, separators=(",", ":")).encode() in names for each in records):
            return status, {"msg": "no", "code": code, "params": None}
        return 200, accepted(len(records))

    return server


# What a bulk answer says ----------------------------------------------------------------------------------------------

DEPRECATED = ["invalidEmails", "invalidUserIds"]  # they stand at the top of an answer, too
REFUSED = [f"{reason}{ids}" for reason in ("invalidData", "conflict", "forgotten") for ids in ("Emails", "UserIds")]
LISTS = [("nested", name) for name in (*DEPRECATED, *REFUSED, "someFutureEmails", "someFutureUserIds")]
LISTS += [(place, name) for place in ("at the top", "in both") for name in DEPRECATED]


def read(records: Sequence[Record], answer: Json) -> dict[str, list[int]]:
    result = read_bulk_answer(records, answer)
    alone = [each.row for each in result.alone]
    return {**told([result.give_up()]), **({"alone": alone} if alone else {})}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(("place", "reason"), LISTS)
def test_listed_record_is_rejected_under_its_reason(kind: Kind, place: str, reason: str) -> None:
    key = "email" if reason.endswith("Emails") else "userId"
    records = [record(kind, row, {key: name}) for row, name in enumerate(("a@example.com", "b@example.com"), 1)]
    answer: Json = {"successCount": 1, "failCount": 1}
    answer |= {} if place == "at the top" else {"failedUpdates": {reason: ["b@example.com"]}}
    answer |= {} if place == "nested" else {reason: ["b@example.com"]}
    result = read_bulk_answer(records, answer)
    endpoint = "users/bulkUpdate" if kind is Kind.USER else "events/trackBulk"
    message = f"{endpoint} refused it and lists it under {reason}."
    refused = FailedRecord(kind, 2, "b@example.com", Outcome.REJECTED, 200, reason, message, 1)
    assert result == BulkResult(Settled(delivered=records[:1], failed=[refused], unknown=[]), [], [])


@pytest.mark.parametrize("reason", ["notFoundEmails", "notFoundUserIds"])
@pytest.mark.parametrize(("kind", "ending"), [(Kind.EVENT, "unknown"), (Kind.USER, "rejected")])
def test_not_found_is_unknown_for_events_and_a_refusal_for_users(kind: Kind, reason: str, ending: str) -> None:
    key = "email" if reason.endswith("Emails") else "userId"
    records = [record(kind, row, {key: name}) for row, name in enumerate(("a@example.com", "b@example.com"), 1)]
    answer = {"successCount": 1, "failCount": 1, "failedUpdates": {reason: ["a@example.com"]}}
    assert read(records, answer) == {"delivered": [2], ending: [1]}


def test_emails_are_compared_without_case_and_user_ids_to_the_letter() -> None:
    emails = [user(1, ADA), user(2, BOB)]
    failed = {"successCount": 1, "failCount": 1}
    assert read(emails, {**failed, "failedUpdates": {"invalidEmails": ["ADA@Example.com"]}}) == {
        "delivered": [2],
        "rejected": [1],
    }
    ids = [record(Kind.USER, row, {"userId": name}) for row, name in enumerate(("Bob", "bob"), 1)]
    assert read(ids, {**failed, "failedUpdates": {"invalidUserIds": ["Bob"]}}) == {"delivered": [2], "rejected": [1]}


NO_EVENT_FAILED = {"failedUpdates": {"invalidEmails": []}, "noOpEmails": [ADA], "unheardOf": {"of": [ADA]}}
THREE = [event(1, ADA), event(2, BOB), event(3, ADA, eventName="blocked")]
SEVERAL = [event(1, ADA), event(2, ADA), event(3, BOB), event(4, BOB), event(5, CY)]


@pytest.mark.parametrize(
    ("records", "answer", "expected"),
    [
        # all is well, whichever lists there are
        (SEVERAL, accepted(5), {"delivered": [1, 2, 3, 4, 5]}),
        (SEVERAL, accepted(5, failedUpdates=None, invalidEmails=None), {"delivered": [1, 2, 3, 4, 5]}),
        (SEVERAL, accepted(5, **NO_EVENT_FAILED), {"delivered": [1, 2, 3, 4, 5]}),
        # blocked names, whether or not they are counted as failures, or as successes
        (THREE, accepted(3, disallowedEventNames=["blocked"]), {"delivered": [1, 2], "rejected": [3]}),
        (THREE, accepted(2, disallowedEventNames=["blocked"]), {"delivered": [1, 2], "rejected": [3]}),
        (
            THREE,
            {"successCount": 2, "failCount": 1, "disallowedEventNames": ["blocked"]},
            {"delivered": [1, 2], "rejected": [3]},
        ),
        (
            THREE,
            {"successCount": 1, "failCount": 2, "disallowedEventNames": ["blocked"], "invalidEmails": [BOB]},
            {"delivered": [1], "rejected": [2, 3]},
        ),
        (
            THREE,
            {"successCount": 2, "failCount": 1, "disallowedEventNames": ["blocked"], "invalidEmails": [BOB]},
            {"delivered": [1], "rejected": [2, 3]},
        ),
        (THREE, accepted(3, disallowedEventNames=["other"]), {"delivered": [1, 2, 3]}),
        # a user with several records, listed for each, or once for all
        (
            SEVERAL,
            {"successCount": 3, "failCount": 2, "failedUpdates": {"invalidEmails": [ADA, ADA]}},
            {"delivered": [3, 4, 5], "rejected": [1, 2]},
        ),
        (
            SEVERAL,
            {"successCount": 3, "failCount": 2, "failedUpdates": {"invalidEmails": [ADA]}},
            {"delivered": [3, 4, 5], "rejected": [1, 2]},
        ),
        (
            SEVERAL,
            {"successCount": 1, "failCount": 4, "failedUpdates": {"invalidEmails": [ADA], "forgottenEmails": [BOB]}},
            {"delivered": [5], "rejected": [1, 2, 3, 4]},
        ),
        # fewer failures than records of the listed: those are asked about again, one by one
        (
            SEVERAL,
            {"successCount": 4, "failCount": 1, "failedUpdates": {"invalidEmails": [ADA]}},
            {"delivered": [3, 4, 5], "alone": [1, 2]},
        ),
        (
            SEVERAL,
            {"successCount": 2, "failCount": 3, "failedUpdates": {"invalidEmails": [ADA, BOB, BOB]}},
            {"delivered": [5], "rejected": [3, 4], "alone": [1, 2]},
        ),
        (
            SEVERAL,
            {"successCount": 3, "failCount": 2, "failedUpdates": {"invalidEmails": [ADA, CY]}},
            {"delivered": [3, 4], "rejected": [5], "alone": [1, 2]},
        ),
        # counts that don't add up: nothing that is not named is taken for delivered
        (SEVERAL, accepted(4), {"unacknowledged": [1, 2, 3, 4, 5]}),
        (SEVERAL, accepted(6), {"unacknowledged": [1, 2, 3, 4, 5]}),
        (SEVERAL, {"successCount": 4, "failCount": 1}, {"unacknowledged": [1, 2, 3, 4, 5]}),
        (SEVERAL, {"successCount": 5, "failCount": 1}, {"unacknowledged": [1, 2, 3, 4, 5]}),
        (
            SEVERAL,
            {"successCount": 3, "failCount": 2, "failedUpdates": {"invalidEmails": [CY]}},
            {"unacknowledged": [1, 2, 3, 4], "rejected": [5]},
        ),
        (
            SEVERAL,
            {"successCount": 3, "failCount": 2, "failedUpdates": {"invalidEmails": [CY, CY]}},
            {"unacknowledged": [1, 2, 3, 4], "rejected": [5]},
        ),
        (
            SEVERAL,
            {"successCount": 0, "failCount": 5, "failedUpdates": {"invalidEmails": [ADA]}},
            {"unacknowledged": [3, 4, 5], "alone": [1, 2]},
        ),
        (
            SEVERAL,
            {"successCount": 4, "failCount": 1, "failedUpdates": {"invalidEmails": ["nobody@example.com"]}},
            {"unacknowledged": [1, 2, 3, 4, 5]},
        ),
        (
            SEVERAL,
            accepted(5, failedUpdates={"invalidEmails": [CY]}),
            {"unacknowledged": [1, 2, 3, 4], "rejected": [5]},
        ),
        # lists and counts of other types
        (
            SEVERAL,
            {"successCount": 4, "failCount": 1, "failedUpdates": {"invalidEmails": CY}},
            {"unacknowledged": [1, 2, 3, 4, 5]},
        ),
        (
            SEVERAL,
            {"successCount": 4, "failCount": 1, "failedUpdates": [CY], "invalidEmails": [None, 7, CY]},
            {"delivered": [1, 2, 3, 4], "rejected": [5]},
        ),
        ([user(1), user(2)], {"successCount": "2", "failCount": 0}, {"unacknowledged": [1, 2]}),
        ([user(1), user(2)], {"successCount": 2.0, "failCount": 0}, {"unacknowledged": [1, 2]}),
        ([user(1)], {"successCount": True, "failCount": 0}, {"unacknowledged": [1]}),
        ([user(1)], {"successCount": 2, "failCount": -1}, {"unacknowledged": [1]}),
        ([user(1)], {"successCount": 1}, {"unacknowledged": [1]}),
        ([user(1)], {}, {"unacknowledged": [1]}),
    ],
)
def test_every_record_of_a_bulk_answer_finds_its_end(
    records: list[Record], answer: Json, expected: dict[str, list[int]]
) -> None:
    assert read(records, answer) == expected


def test_counts_that_do_not_add_up_are_told() -> None:
    report = read_bulk_answer(
        [user(1), user(2, BOB), user(3)],
        {"successCount": 1, "failCount": 4, "failedUpdates": {"forgottenEmails": [BOB]}},
    ).give_up()
    problem = (
        "users/bulkUpdate did not say what became of it: "
        "its answer counts 1 successes and 4 failures of 3 records, and names 1."
    )
    assert [(each.row, each.outcome, each.message) for each in report.failed] == [
        (2, Outcome.REJECTED, "users/bulkUpdate refused it and lists it under forgottenEmails."),
        (1, Outcome.UNACKNOWLEDGED, problem),
        (3, Outcome.UNACKNOWLEDGED, problem),
    ]
    assert (report.failure, report.message) == (None, "")


def test_answer_without_counts_is_unreadable() -> None:
    report = read_bulk_answer([event(1)], {"successCount": "many"}).settled
    message = "events/trackBulk did not say what became of it: its answer has no counts."
    assert report == Settled(
        failed=[FailedRecord(Kind.EVENT, 1, ADA, Outcome.UNACKNOWLEDGED, 200, None, message, 1)],
        failure=Failure.UNREADABLE,
        message=message,
    )


def test_dropped_and_created_fields_are_reported() -> None:
    answer = accepted(1, filteredOutFields=["plan", "age", 7], createdFields=["tier"])
    report = read_bulk_answer([user(1)], answer).settled
    assert report.filtered_out_fields == {"plan", "age"}
    assert report.created_fields == {"tier"}


NAMES = [ADA, BOB, CY, "Ada@Example.com", "nobody@example.com"]
MENTIONS = st.lists(st.sampled_from(NAMES) | st.none() | st.integers(), max_size=4) | st.none() | st.text(max_size=3)
NESTED = st.sampled_from([*DEPRECATED, *REFUSED, "notFoundEmails", "notFoundUserIds", "unheardOf"])
AT_THE_TOP = st.sampled_from([*DEPRECATED, "noOpEmails", "unheardOf"])
COUNTS = st.integers(-1, 9) | st.none() | st.text(max_size=2) | st.booleans() | st.floats()
ANSWERS = st.builds(
    lambda counts, nested, top, blocked: {**counts, **top, "failedUpdates": nested, "disallowedEventNames": blocked},
    st.fixed_dictionaries({}, optional={"successCount": COUNTS, "failCount": COUNTS}),
    st.dictionaries(NESTED, MENTIONS, max_size=3) | st.none() | st.just([ADA]),
    st.dictionaries(AT_THE_TOP, MENTIONS, max_size=2),
    st.lists(st.sampled_from(["visit", "blocked"]), max_size=2) | st.none() | st.text(max_size=3),
)
BATCHES = st.lists(st.tuples(st.sampled_from([ADA, BOB, CY]), st.sampled_from(["visit", "blocked"])), min_size=1).map(
    lambda rows: [event(row, email, eventName=name) for row, (email, name) in enumerate(rows, 1)]
)


def named_in(answer: Json) -> set[str]:
    """The identities that an answer names as failed."""
    nested = answer["failedUpdates"]
    lists = [*(nested.items() if isinstance(nested, dict) else ()), *((name, answer.get(name)) for name in DEPRECATED)]
    return {
        each.lower() if name.endswith("Emails") else each
        for name, mentions in lists
        if name != "unheardOf" and isinstance(mentions, list)
        for each in mentions
        if isinstance(each, str)
    }


@settings(max_examples=200)
@given(
    batch=BATCHES, answer=ANSWERS, count=st.sampled_from(["as it comes", "nobody", "each mention", "all of the named"])
)
def test_whatever_the_answer_each_record_ends_once_and_no_listed_one_is_delivered(
    batch: list[Record], answer: Json, count: str
) -> None:
    named = named_in(answer)
    failed = {"nobody": 0, "each mention": len(named)}.get(count, sum(each.identity in named for each in batch))
    if count != "as it comes":
        answer = {**answer, "successCount": max(0, len(batch) - failed), "failCount": failed}
    result = read_bulk_answer(batch, answer)
    alone, report = result.alone, result.give_up()
    ends = [each.row for each in alone] + report.rows()
    assert sorted(ends) == [each.row for each in batch]
    assert {each.identity for each in report.delivered}.isdisjoint(named)
    blocked = answer["disallowedEventNames"] if isinstance(answer["disallowedEventNames"], list) else []
    assert {json.loads(each.payload)["eventName"] for each in report.delivered}.isdisjoint(blocked)
    assert len(batch) > 1 or not alone


# Bulk: what is sent ---------------------------------------------------------------------------------------------------


def test_batch_of_users_is_one_request_with_the_payloads_as_they_are(iterable: Connected) -> None:
    batch = [user(1, plan="pro"), record(Kind.USER, 2, {"userId": "u-17", "preferUserId": True, "dataFields": {}})]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1, 2]}
    assert [(request.path, request.body) for request in iterable.project.requests] == [
        (BULK_UPDATE, b'{"users":[%s,%s]}' % (batch[0].payload, batch[1].payload))
    ]


def test_batch_of_events_is_one_request_with_the_payloads_as_they_are(iterable: Connected) -> None:
    iterable.know(ADA)
    batch = [event(1), event(2)]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1, 2]}
    assert [(request.path, request.body) for request in iterable.project.requests] == [
        (TRACK_BULK, b'{"events":[%s,%s]}' % (batch[0].payload, batch[1].payload))
    ]


def test_refused_users_are_rejected_and_the_others_delivered(connect: Callable[..., Connected]) -> None:
    iterable = connect(forgotten={"3@example.com"}, dropped_fields={"age"})
    reports = list(iterable.bulk.send([user(1, plan="pro"), user(2, "bad@"), user(3), user(4, age=7)], a_turn()))
    assert told(reports) == {"delivered": [1, 4], "rejected": [2, 3]}
    assert [undelivered.code for undelivered in undelivered(reports)] == ["invalidEmails", "forgottenEmails"]
    assert [set(report.filtered_out_fields) for report in reports] == [{"age"}]
    assert [set(report.created_fields) for report in reports] == [{"plan"}]
    assert sorted(iterable.project.users) == ["1@example.com", "4@example.com"]


def test_events_of_unknown_users_are_unknown_and_of_blocked_names_rejected(connect: Callable[..., Connected]) -> None:
    iterable = connect(blocked_events={"blocked"})
    iterable.know(ADA)
    batch = [event(1, ADA), event(2, BOB), event(3, ADA, eventName="blocked"), event(4, BOB)]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1], "rejected": [3], "unknown": [2, 4]}


def test_user_whom_an_email_project_does_not_know_by_id_is_rejected(connect: Callable[..., Connected]) -> None:
    iterable = connect(project_type="email")
    batch = [record(Kind.USER, 1, {"userId": "u-17", "dataFields": {}})]
    reports = [*iterable.bulk.send(batch, a_turn()), *iterable.single.send(batch, a_turn())]
    assert told(reports) == {"rejected": [1, 1]}
    assert [undelivered.code for undelivered in undelivered(reports)] == ["notFoundUserIds", "UnknownUserIdError"]


def test_user_listed_less_often_than_it_has_records_is_asked_about_one_by_one() -> None:
    def server(records: list[Json]) -> tuple[int, Any]:
        failed = [each["email"] for each in records if each["id"] == "e3"]
        return 200, {
            "successCount": len(records) - len(failed),
            "failCount": len(failed),
            "failedUpdates": {"invalidEmails": failed},
        }

    reports, requests = send_to(server, [event(1, BOB), event(2), event(3), event(4), event(5, CY)])
    assert told(reports) == {"delivered": [1, 2, 4, 5], "rejected": [3]}
    assert [[each["id"] for each in records] for records in requests] == [
        ["e1", "e2", "e3", "e4", "e5"], ["e2"], ["e3"], ["e4"]
    ]  # fmt: skip


def test_events_asked_about_one_by_one_go_before_later_ones_of_their_user() -> None:
    def server(records: list[Json]) -> tuple[int, Any]:
        if len(records) == 4:
            return 409, {"msg": "", "code": "Conflict"}
        if [each["id"] for each in records] == ["e1", "e2"]:
            return 200, {"successCount": 1, "failCount": 1, "failedUpdates": {"invalidEmails": [ADA]}}
        return 200, accepted(len(records))

    _, requests = send_to(server, [event(row) for row in (1, 2, 3, 4)])
    assert [[each["id"] for each in records] for records in requests] == [
        ["e1", "e2", "e3", "e4"], ["e1", "e2"], ["e1"], ["e2"], ["e3", "e4"]
    ]  # fmt: skip


# Bulk: a refused batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"createdAt": "yesterday"}, "in `params`, a text"),
        ({"eventName": None}, "in `params`, a list"),
        ({"id": "x" * 513}, "in `params`, a text"),
    ],
)
def test_records_that_a_400_names_are_rejected_and_the_rest_resent_once(
    iterable: Connected, bad: Json, reason: str
) -> None:
    iterable.know(ADA)
    batch = [event(row, **(bad if row in (2, 5) else {})) for row in range(1, 7)]
    reports = list(iterable.bulk.send(batch, a_turn()))
    assert told(reports) == {"delivered": [1, 3, 4, 6], "rejected": [2, 5]}
    error = "events/trackBulk call failed: 400 BadJsonBody: [/api/events/trackBulk] Invalid JSON body (1 attempt)"
    assert undelivered(reports) == [
        FailedRecord(Kind.EVENT, row, ADA, Outcome.REJECTED, 400, "BadJsonBody", error, 1) for row in (2, 5)
    ]
    assert [len(body["events"]) for body in iterable.bodies()] == [6, 4]
    assert list(iterable.project.events) == ["e1", "e3", "e4", "e6"]


def test_users_that_a_400_names_are_rejected_and_the_rest_resent_once(iterable: Connected) -> None:
    batch = [user(1), record(Kind.USER, 2, {"email": BOB, "dataFields": "none"}), user(3)]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1, 3], "rejected": [2]}
    assert [[each["email"] for each in body["users"]] for body in iterable.bodies()] == [
        ["1@example.com", BOB, "3@example.com"],
        ["1@example.com", "3@example.com"],
    ]


def test_batch_of_which_a_400_names_all_is_rejected_after_one_request(iterable: Connected) -> None:
    assert told(iterable.bulk.send([event(1, createdAt="x"), event(2, createdAt="y")], a_turn())) == {
        "rejected": [1, 2]
    }
    assert len(iterable.project.requests) == 1


def test_400_that_names_places_beyond_the_batch_is_split_in_halves() -> None:
    def server(records: list[Json]) -> tuple[int, Any]:
        if len(records) > 1:
            return 400, {"msg": "no", "code": "BadJsonBody", "params": {"obj.users[7].email": "x", "obj.users": []}}
        return 200, accepted(1)

    reports, requests = send_to(server, users(4))
    assert told(reports) == {"delivered": [1, 2, 3, 4]}
    assert [len(records) for records in requests] == [4, 2, 2, 1, 1, 1, 1]


REFUSALS = {
    "400 without indices": (400, "BadParams"),
    "400 type mismatch": (400, "RequestFieldsTypesMismatched"),
    "400 too large": (400, "BatchTooLarge"),
    "409": (409, "ForgottenUserError"),
    "413": (413, "BadParams"),
}


@pytest.mark.parametrize("place", [1, 400, 500, 501, 1000])
@pytest.mark.parametrize(("status", "code"), REFUSALS.values(), ids=REFUSALS)
def test_one_bad_record_in_a_thousand_is_found_by_halving_in_some_20_requests(
    status: int, code: str, place: int
) -> None:
    batch = users(1000)
    reports, requests = send_to(refusing([batch[place - 1]], status, code), batch)
    assert told(reports) == {"delivered": [row for row in range(1, 1001) if row != place], "rejected": [place]}
    assert len(requests) in (19, 21)  # 2 * log2(1000) = 19.9
    assert [(each.status_code, each.code, each.message) for each in undelivered(reports)] == [
        (status, code, f"users/bulkUpdate call failed: {status} {code}: no (1 attempt)")
    ]


JSON, HTML = '{"msg":"no","code":"Other"}', "<html>no</html>"


@pytest.mark.parametrize(
    ("status", "answer", "attempts", "outcome"),
    [
        (500, JSON, 3, "unacknowledged"),
        (502, HTML, 3, "unacknowledged"),
        (503, JSON, 3, "unacknowledged"),
        (504, HTML, 3, "unacknowledged"),
        (403, JSON, 1, "rejected"),
        (403, HTML, 1, "unacknowledged"),
        (400, HTML, 1, "unacknowledged"),
        (406, HTML, 1, "unacknowledged"),
        (406, "not acceptable", 1, "rejected"),
        (422, JSON, 1, "rejected"),
    ],
)
def test_one_bad_record_is_found_by_halving_once_anything_was_accepted(
    status: int, answer: str, attempts: int, outcome: str
) -> None:
    """The batch and the record alone get all attempts, the parts one each."""
    batch = users(1000)
    is_refused = refusing([batch[399]])
    reports, requests = send_to(
        lambda records: (status, answer) if is_refused(records)[0] == 400 else (200, accepted(len(records))), batch
    )
    assert told(reports) == {"delivered": [*range(1, 400), *range(401, 1001)], outcome: [400]}
    assert len(requests) in (19 + 2 * (attempts - 1), 21 + 2 * (attempts - 1))
    assert undelivered(reports)[0].attempts == attempts


@pytest.mark.parametrize(
    ("status", "answer"), [(401, JSON), (501, JSON), (429, JSON), (408, JSON), (200, HTML), (200, "[]")]
)
def test_failure_that_no_record_causes_does_not_split_a_batch(status: int, answer: str) -> None:
    reports, requests = send_to(lambda records: (status, answer), users(8))
    assert [len(records) for records in requests] in ([8], [8, 8, 8])
    assert len(told(reports)) == 1
    assert NOT_ALONE not in undelivered(reports)[0].message


@pytest.mark.parametrize("status", [402, 404, 405, 410, 422])
def test_refusal_does_not_split_a_batch_while_nothing_else_was_accepted(status: int) -> None:
    reports, requests = send_to(refusing(users(8), status, "Other"), users(8), has_accepted=False)
    assert told(reports) == {"rejected": list(range(1, 9))}
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("answer", "has_accepted"),
    [
        (accepted(1), True),
        ({"successCount": 0, "failCount": 1, "failedUpdates": {"invalidEmails": ["1@example.com"]}}, False),
        ({"successCount": 0, "failCount": 1}, False),
        ({"successCount": "1", "failCount": 0}, False),
    ],
)
def test_bulk_answer_that_accepts_nothing_is_no_success(answer: Json, has_accepted: bool) -> None:
    breaker = Breaker()
    with responses.RequestsMock() as wire:
        wire.add(responses.POST, "http://127.0.0.1:9/api/users/bulkUpdate", json=answer)
        client = make_client()
        list(BulkSender(client).send([user(1)], breaker.turn(Kind.USER)))
        client.session.close()
    assert breaker.has_accepted is has_accepted


def test_batch_without_an_answer_waits_for_a_success_before_it_is_split(iterable: Connected) -> None:
    breaker = Breaker()
    fault = iterable.stand_in.inject(Fault(status=503, match=b'"2@example.com"'))
    reports: list[Settled] = []

    def send() -> None:
        reports.extend(iterable.bulk.send(users(4), breaker.turn(Kind.USER)))

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: breaker.count_blocked(Kind.USER) == 1)
    assert (fault.matched, reports) == (3, [])
    breaker.turn(Kind.EVENT).answered(None)
    thread.join(timeout=30)
    assert told(reports) == {"delivered": [1, 3, 4], "unacknowledged": [2]}


TEN = {
    "at the beginning": range(1, 11),
    "in the middle": range(496, 506),
    "at the end": range(991, 1001),
    "spread": range(50, 1001, 100),
    "two in a row five times": [row + pair for row in range(100, 1000, 200) for pair in (0, 1)],
}


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("rows", TEN.values(), ids=TEN)
def test_ten_bad_records_in_a_thousand_are_rejected_and_no_other(rows: Sequence[int], status: int) -> None:
    batch = users(1000)
    reports, requests = send_to(refusing([batch[row - 1] for row in rows], status), batch)
    assert told(reports) == {
        "delivered": [row for row in range(1, 1001) if row not in rows],
        "rejected": list(rows),
    }
    assert len(requests) < 200


def test_sixty_bad_records_in_a_row_are_rejected_and_no_other() -> None:
    batch = users(1000)
    reports, _ = send_to(refusing(batch[300:360]), batch)
    assert told(reports) == {
        "delivered": [row for row in range(1, 1001) if not 300 < row <= 360],
        "rejected": list(range(301, 361)),
    }


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=40))
def test_whichever_records_are_bad_those_are_rejected_and_no_user_gets_out_of_order(
    rows: list[tuple[int, bool]],
) -> None:
    rows.sort(key=lambda each: each[0])  # grouped by user
    batch = [event(row, f"{who}@example.com") for row, (who, _) in enumerate(rows, 1)]
    bad = [each for each, (_, is_bad) in zip(batch, rows, strict=True) if is_bad]
    reports, requests = send_to(refusing(bad), batch)
    good = [each.row for each in batch if each not in bad]
    expected = {"delivered": good, "rejected": [each.row for each in bad]}
    assert told(reports) == {name: found for name, found in expected.items() if found}
    taken = [each for report in reports for each in report.delivered]
    for identity in {each.identity for each in batch}:
        in_order = [each.row for each in taken if each.identity == identity]
        assert in_order == sorted(in_order)
    assert len(requests) < 2 * len(batch)


def test_halves_end_between_two_users_also_where_one_has_most_of_the_batch() -> None:
    rows = [ADA] + [BOB] * 6 + [CY]
    batch = [event(row, email) for row, email in enumerate(rows, 1)]
    _, requests = send_to(refusing([batch[7]]), batch)
    assert [[int(each["id"][1:]) for each in records] for records in requests] == [
        [1, 2, 3, 4, 5, 6, 7, 8], [1], [2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7], [8]
    ]  # fmt: skip


@pytest.mark.parametrize("named", [True, False])
def test_events_of_one_user_stay_in_order_when_their_batch_is_taken_apart(connect: Any, named: bool) -> None:
    iterable: Connected = connect(event_field_types={"visit": {"page": "string"}})
    iterable.know(ADA)
    bad: Json = {"createdAt": "x"} if named else {"dataFields": {"page": 7}}
    batch = [event(row, **(bad if row in (3, 17) else {})) for row in range(1, 21)]
    assert told(iterable.bulk.send(batch, a_turn()))["rejected"] == [3, 17]
    assert iterable.project.event_order == [f"e{row}" for row in range(1, 21) if row not in (3, 17)]
    assert set(iterable.project.event_sends.values()) == {1}


def test_type_mismatch_of_the_stand_in_rejects_its_record_alone(connect: Callable[..., Connected]) -> None:
    iterable = connect(user_field_types={"age": "long"})
    batch = [user(row, age="old" if row == 6 else row) for row in range(1, 9)]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1, 2, 3, 4, 5, 7, 8], "rejected": [6]}
    assert {request.path for request in iterable.project.requests} == {BULK_UPDATE}


@pytest.mark.parametrize("too_large", ["413", "400"])
def test_batch_that_iterable_finds_too_large_is_split(connect: Callable[..., Connected], too_large: str) -> None:
    iterable = connect(too_large=too_large)
    batch = [user(row, notes="x" * 700_000) for row in range(1, 9)]
    assert told(iterable.bulk.send(batch, a_turn())) == {"delivered": [1, 2, 3, 4, 5, 6, 7, 8]}
    assert [len(body["users"]) for body in iterable.bodies()] == [8, 4, 4]


# Bulk: a bound on requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413])
def test_batch_of_which_everything_is_refused_takes_127_calls_and_says_what_was_not_sent_alone(
    status: int,
) -> None:
    batch = users(1000)
    reports, requests = send_to(refusing(batch, status), batch)
    assert told(reports) == {"rejected": list(range(1, 1001))}
    assert len(requests) == 2 * MAX_REFUSALS_IN_A_ROW + 1 == 127
    assert {undelivered.message.endswith(NOT_ALONE) for undelivered in undelivered(reports)} == {True}


def test_batches_after_one_that_was_all_bad_take_fewer_requests_each() -> None:
    batch = users(1000)
    counts = []
    _, requests = send_to(refusing(batch), *[batch] * 8)
    starts = [index for index, records in enumerate(requests) if len(records) == 1000]
    for start, end in zip(starts, [*starts[1:], len(requests)], strict=True):
        counts.append(end - start)
    assert counts == [127, 63, 31, 15, 7, 7, 7, 7]
    assert counts[-1] == 2 * MIN_REFUSALS_IN_A_ROW + 1


def test_first_success_gives_its_batch_and_the_next_the_full_search_again() -> None:
    all_bad, half_good, next_batch = (
        [user(row, f"{row}@example.{domain}") for row in rows]
        for domain, rows in (("com", range(1, 1001)), ("org", range(1001, 2001)), ("net", range(2001, 3001)))
    )
    bad = [*half_good[525::50], *next_batch[25::100]]
    reports, _ = send_to(refusing([*all_bad, *bad]), *[all_bad] * 6, half_good, next_batch)
    bad_rows = {each.row for each in bad}
    assert told(reports)["delivered"] == [row for row in range(1001, 3001) if row not in bad_rows]


def test_batch_with_bad_records_everywhere_takes_a_bounded_number_of_requests() -> None:
    batch = users(1000)
    bad = random.Random(7).sample(batch, 140)
    reports, requests = send_to(refusing(bad), batch)
    assert MAX_REQUESTS_A_BATCH < len(requests) < 600  # to find them all would take 687
    ends = told(reports)
    assert sorted(ends["delivered"] + ends["rejected"]) == list(range(1, 1001))
    assert not {each.row for each in bad} & set(ends["delivered"])
    good_but_not_alone = {each.row for each in undelivered(reports) if each.message.endswith(NOT_ALONE)}
    assert set(ends["rejected"]) - {each.row for each in bad} <= good_but_not_alone


# The end of the run ---------------------------------------------------------------------------------------------------

FATAL = {
    "wrong key": (
        Fault(status=401, body=b'{"msg":"Invalid API key","code":"BadApiKey","params":null}'),
        "unacknowledged",
    ),
    "redirect": (Fault(status=302, headers={"Location": "https://example.com"}), "unacknowledged"),
    "told to wait an hour": (Fault(status=429, headers={"Retry-After": "3600"}), "unacknowledged"),
}


@pytest.mark.parametrize(("fault", "outcome"), FATAL.values(), ids=FATAL)
def test_after_what_ends_the_run_no_single_record_follows(iterable: Connected, fault: Fault, outcome: str) -> None:
    fault = iterable.stand_in.inject(Fault(status=fault.status, headers=fault.headers, body=fault.body))
    assert told(iterable.single.send(users(3), a_turn())) == {outcome: [1]}
    assert fault.matched == 1


@pytest.mark.parametrize(("fault", "outcome"), FATAL.values(), ids=FATAL)
def test_after_what_ends_the_run_no_other_part_of_a_batch_follows(
    iterable: Connected, fault: Fault, outcome: str
) -> None:
    refusal = iterable.stand_in.inject(Fault(status=409, body=b'{"msg":"","code":"Conflict"}', times=1))
    fault = iterable.stand_in.inject(Fault(status=fault.status, headers=fault.headers, body=fault.body))
    reports = list(iterable.bulk.send(users(4), a_turn()))
    assert told(reports[:-1]) == {outcome: [1, 2]}
    assert told(reports[-1:]) == {"unacknowledged": [3, 4]}
    assert [undelivered.message for undelivered in reports[-1].failed] == [
        "users/bulkUpdate did not say what became of it: the run stopped before it was sent again in a smaller batch."
    ] * 2
    assert (refusal.matched, fault.matched) == (2, 1)


class Allowed(Turn):
    """A turn in a run that stops after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__(Breaker(), Kind.USER, is_probe=False)
        self._left = calls

    def may_call(self, *, is_part: bool = False) -> bool:
        self._left -= 1
        return self._left >= 0


def test_run_that_stops_before_the_first_request_leaves_all_without_an_end(iterable: Connected) -> None:
    assert list(iterable.single.send(users(3), Allowed(0))) == []
    assert list(iterable.bulk.send(users(3), Allowed(0))) == []
    assert iterable.project.requests == []


def test_run_that_stops_between_two_records_leaves_the_later_ones_without_an_end(iterable: Connected) -> None:
    assert told(iterable.single.send(users(3), Allowed(2))) == {"delivered": [1, 2]}


def test_run_that_stops_within_a_refused_batch_leaves_its_rest_unacknowledged(iterable: Connected) -> None:
    iterable.stand_in.inject(Fault(status=409, body=b'{"msg":"","code":"Conflict"}', times=1))
    reports = iterable.bulk.send(users(4), Allowed(2))
    assert told(reports) == {"delivered": [1, 2], "unacknowledged": [3, 4]}


class Stopping:
    """A run that stops as soon as its client waits for something."""

    def __init__(self, url: str, **rates: float) -> None:
        self.breaker = Breaker()
        self.client = make_client(url, rates={name.replace("_", "/"): rate for name, rate in rates.items()},
                                  sleep=self.sleep)  # fmt: skip

    def sleep(self, seconds: float) -> None:
        self.breaker.stop()
        self.breaker.sleep(seconds)

    def turn(self) -> Turn:
        return self.breaker.turn(Kind.USER)


@pytest.mark.parametrize("kind", ["single", "bulk"])
def test_run_that_stops_while_waiting_for_its_turn_leaves_what_was_never_sent_without_an_end(
    iterable: Connected, kind: str
) -> None:
    run = Stopping(iterable.stand_in.url, users_update=0.01, users_bulkUpdate=0.01)
    sender = SingleSender(run.client) if kind == "single" else BulkSender(run.client)
    assert told(sender.send([user(1)], run.turn())) == {"delivered": [1]}
    assert list(sender.send([user(2), user(3)], run.turn())) == []
    run.client.session.close()


@pytest.mark.parametrize(("kind", "rows"), [("single", [1]), ("bulk", [1, 2, 3])])
def test_run_that_stops_while_waiting_for_a_second_try_leaves_what_was_sent_unacknowledged(
    iterable: Connected, kind: str, rows: list[int]
) -> None:
    iterable.stand_in.inject(Fault(status=503))
    run = Stopping(iterable.stand_in.url)
    sender = SingleSender(run.client) if kind == "single" else BulkSender(run.client)
    reports = list(sender.send(users(3), run.turn()))
    assert told(reports) == {"unacknowledged": rows}
    assert {report.failure for report in reports} == {Failure.UNACKNOWLEDGED}
    run.client.session.close()


def test_run_that_stops_while_a_half_waits_for_its_turn_leaves_it_unacknowledged(iterable: Connected) -> None:
    iterable.stand_in.inject(Fault(status=409, body=b'{"msg":"","code":"Conflict"}', times=1))
    run = Stopping(iterable.stand_in.url, users_bulkUpdate=0.01)
    assert told(BulkSender(run.client).send(users(4), run.turn())) == {"unacknowledged": [1, 2, 3, 4]}
    assert len(iterable.project.requests) == 1
    run.client.session.close()


# Single ---------------------------------------------------------------------------------------------------------------

PAYLOADS: dict[str, list[Json]] = {
    UPDATE: [
        {"email": ADA, "dataFields": {"plan": "pro", "city": None, "näme": "Zoë", "tags": [1, "x"]}},
        {"userId": "u-17", "preferUserId": True, "dataFields": {}},
    ],
    TRACK: [
        {"email": ADA, "eventName": "visit", "id": "e1", "createdAt": 1768293912, "dataFields": {"page": "pricing"}},
        {"userId": "u-17", "eventName": "visit", "id": "e2", "createdAt": 0, "dataFields": {}},
    ],
}


@pytest.mark.parametrize("path", PAYLOADS)
def test_single_request_has_the_payload_of_its_record(connect: Callable[..., Connected], path: str) -> None:
    iterable = connect(unknown_users="accept")
    kind = Kind.USER if path == UPDATE else Kind.EVENT
    records = [record(kind, row, body) for row, body in enumerate(PAYLOADS[path], 1)]
    assert told(iterable.single.send(records, a_turn())) == {"delivered": [1, 2]}
    assert {request.path for request in iterable.project.requests} == {path}
    assert iterable.bodies() == PAYLOADS[path]


def test_single_refusals_are_told_with_what_iterable_said(connect: Callable[..., Connected]) -> None:
    iterable = connect(forgotten={CY}, blocked_events={"blocked"})
    reports = list(iterable.single.send([user(1, ADA), user(2, "bad@"), user(3, CY)], a_turn()))
    reports += iterable.single.send([event(4, ADA), event(5, BOB), event(6, ADA, eventName="blocked")], a_turn())
    assert told(reports) == {"delivered": [1, 4], "rejected": [2, 3, 6], "unknown": [5]}
    assert [(each.row, each.status_code, each.message) for each in undelivered(reports)] == [
        (2, 400, "users/update call failed: 400 InvalidEmailAddressError: Invalid email: b***@ (1 attempt)"),
        (3, 409, "users/update call failed: 409 ForgottenUserError: User is forgotten (1 attempt)"),
        (
            5,
            400,
            "events/track call failed: 400 UnknownEmailError: No user exists with email b***@example.com (1 attempt)",
        ),
        (
            6,
            200,
            "events/track call failed: 200 Success: Event blocked is disallowed from tracking. (1 attempt)",
        ),
    ]


@pytest.mark.parametrize("kind", ["single", "bulk"])
def test_400_that_calls_itself_a_success_is_no_blocked_event(iterable: Connected, kind: str) -> None:
    iterable.stand_in.inject(Fault(status=400, body=b'{"msg":"no","code":"Success"}'))
    for each in (user(1), event(2)):
        reports = list(iterable.sender(kind).send([each], a_turn()))
        assert [(each.outcome, each.code) for each in undelivered(reports)] == [(Outcome.REJECTED, "Success")]


def test_token_for_another_user_is_the_matter_of_its_record(iterable: Connected) -> None:
    body = b'{"msg":"no","code":"JwtUserIdentifiersMismatched"}'
    for status in (400, 401):
        iterable.stand_in.inject(Fault(status=status, body=body, times=1))
        assert [each.failure for each in iterable.single.send(users(1), a_turn())] == [Failure.REJECTED]
        iterable.stand_in.clear_faults()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("kind", ["single", "bulk"])
def test_record_out_of_attempts_is_unacknowledged(iterable: Connected, kind: str, status: int) -> None:
    fault = iterable.stand_in.inject(Fault(status=status, body=b'{"msg":"busy","code":"GenericError"}'))
    reports = list(iterable.sender(kind).send([user(1)], a_turn()))
    name = "users/update" if kind == "single" else "users/bulkUpdate"
    message = f"{name} call failed: {status} GenericError: busy (3 attempts)"
    unacknowledged = FailedRecord(
        Kind.USER, 1, "1@example.com", Outcome.UNACKNOWLEDGED, status, "GenericError", message, 3
    )
    assert reports == [Settled(failed=[unacknowledged], failure=Failure.UNACKNOWLEDGED, message=message)]
    assert fault.matched == 3


@pytest.mark.parametrize("kind", ["single", "bulk"])
def test_unknown_user_told_with_a_500_is_unacknowledged(iterable: Connected, kind: str) -> None:
    iterable.stand_in.inject(Fault(status=500, body=b'{"msg":"","code":"UnknownEmailError"}'))
    assert told(iterable.sender(kind).send([event(1)], a_turn())) == {"unacknowledged": [1]}


@pytest.mark.parametrize("kind", ["single", "bulk"])
def test_lost_answer_is_sent_again_and_stored_once(iterable: Connected, kind: str) -> None:
    iterable.know(ADA)
    iterable.stand_in.inject(Fault(store=True, disconnect=True, times=1))
    assert told(iterable.sender(kind).send([event(1)], a_turn())) == {"delivered": [1]}
    assert iterable.project.event_sends == Counter({"e1": 2})
    assert len(iterable.project.events) == 1


@pytest.mark.parametrize("kind", ["single", "bulk"])
@pytest.mark.parametrize(
    ("fault", "outcome", "failure"),
    [
        (Fault(status=200, body=b"<html>welcome</html>"), "unacknowledged", Failure.UNREADABLE),
        (Fault(status=404, body=b"<html>not here</html>"), "unacknowledged", Failure.UNREADABLE),
        (Fault(status=401, body=b'{"msg":"no","code":"Unauthorized"}'), "rejected", Failure.UNAUTHORIZED),
        (Fault(status=403, body=b'{"msg":"no","code":"Forbidden"}'), "rejected", Failure.UNAUTHORIZED),
        (Fault(status=200, body=b"[]"), "unacknowledged", Failure.UNREADABLE),
    ],
)
def test_answer_that_is_about_no_record_leaves_the_next_batch_to_the_breaker(
    iterable: Connected, kind: str, fault: Fault, outcome: str, failure: Failure
) -> None:
    fault = iterable.stand_in.inject(Fault(status=fault.status, body=fault.body))
    reports = list(iterable.sender(kind).send([user(1)], a_turn()))
    assert told(reports) == {outcome: [1]}
    assert [report.failure for report in reports] == [failure]
    assert fault.matched == 1
