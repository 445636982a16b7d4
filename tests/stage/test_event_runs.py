"""The packing of events in the stage, against a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.keys import MADE, USER_BYTES
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.stage.event_runs import packed
from pipeline.stage.stage import open_stage
from pipeline.stage.states import LATE, PENDING, UNCHANGED

USERS = [b"AAAAAAAA", b"BBBBBBBB", b"CCCCCCCC"]


@pytest.fixture(autouse=True, scope="module", params=["as it is", "compressed"])
def payloads_in_the_stage(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests are run with both ways of keeping payloads."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param == "compressed":
            monkeypatch.setattr("pipeline.stage.event_runs.PLAIN_PAYLOAD_BYTES", 0)
        yield


class Event(NamedTuple):
    row: int
    key: bytes
    fingerprint: bytes
    payload: bytes
    state: int


@st.composite
def events(draw: st.DrawFn, *, made_only: bool = False) -> list[Event]:
    """Events of three users, in the order of their rows, with gaps and without."""
    found = []
    row = 0
    for gap, user, is_made, state, payload in draw(
        st.lists(
            st.tuples(
                st.integers(1, 2),
                st.sampled_from(USERS),
                st.booleans(),
                st.sampled_from([PENDING, LATE, UNCHANGED]),
                st.binary(max_size=3).map(lambda each: b"{" + each.replace(b"\n", b"n")),  # as JSON begins
            ),
            max_size=12,
        )
    ):
        row += gap
        mark, fingerprint = (b"\0", MADE) if is_made or made_only else (b"\1", b"%016d" % row)
        found.append(Event(row, user + mark + b"%011d" % row, fingerprint, payload, state))
    return found


def runs_of(events: Sequence[Event]) -> list[list[Event]]:
    """Neighbours of one user, the plain way."""
    runs: list[list[Event]] = []
    for event in events:
        before = runs[-1][-1] if runs else None
        if before is None or before.key[:USER_BYTES] != event.key[:USER_BYTES] or before.row + 1 != event.row:
            runs.append([])
        runs[-1].append(event)
    return runs


@given(events().filter(bool))
def test_neighbours_of_one_user_are_packed_into_one_row(found: list[Event]) -> None:
    rows, keys, fingerprints, payloads, _ = zip(*found, strict=True)
    assert packed(rows, keys, fingerprints, payloads) == [
        (
            run[0].row,
            b"".join(each.key + each.fingerprint for each in run),
            b"\n".join(each.payload for each in run),
        )
        for run in runs_of(found)
    ]


@pytest.mark.parametrize("made_only", [True, False])
@given(data=st.data())
def test_events_come_out_of_their_runs_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, made_only: bool, data: st.DataObject
) -> None:
    found = data.draw(events(made_only=made_only))
    cut = data.draw(st.integers(0, len(found)))
    with open_stage(tmp_path_factory.getbasetemp()) as stage:
        stage.begin(None, made_ids_only=made_only)
        stage.people.stage_users([Record(Kind.USER, 99, user.decode(), user + bytes(8), b"", b"") for user in USERS])
        for part in (found[:cut], found[cut:]):
            if part:
                rows, keys, fingerprints, payloads, states = zip(*part, strict=True)
                stage.stage_events(rows, keys, fingerprints, payloads, bytes(states))
        stage.finish_staging()
        assert sorted(stage._runs.all()) == [each[:3] for each in found]
        assert sorted(stage.keys()) == sorted([*(user + bytes(8) for user in USERS), *(each.key for each in found)])
        by_user = sorted(found, key=lambda each: (each.key[:USER_BYTES], each.row))
        for late, state in ((False, PENDING), (True, LATE)):
            assert list(stage.pending(Kind.EVENT, late=late)) == [
                Record(
                    Kind.EVENT, each.row, each.key[:USER_BYTES].decode(), each.key, each.fingerprint, each.payload
                )
                for each in by_user
                if each.state == state
            ]  # fmt: skip
        for user in USERS:
            expected = [each[:3] for each in found if each.key[:USER_BYTES] == user]
            assert list(stage._runs.of_user(user + bytes(8))) == expected


@given(found=events())
def test_failures_have_the_fingerprints_that_were_staged(
    tmp_path_factory: pytest.TempPathFactory, found: list[Event]
) -> None:
    """By them, another run knows an event again."""
    with open_stage(tmp_path_factory.getbasetemp()) as stage:
        stage.begin(None)
        if found:
            rows, keys, fingerprints, payloads, states = zip(*found, strict=True)
            stage.stage_events(rows, keys, fingerprints, payloads, bytes(states))
        stage.outcomes.note(
            [FailedRecord(Kind.EVENT, each.row, None, Outcome.REJECTED, 400, "Bad", "refused", 1) for each in found]
        )
        of_failures = [
            (each.undelivered.row, each.key, each.fingerprint) for page in stage.outcomes.failures() for each in page
        ]
        assert sorted(of_failures, key=itemgetter(0)) == [each[:3] for each in found]


def test_events_of_one_user_become_those_of_another(tmp_path: Path) -> None:
    old, new = USERS[1] + bytes(8), USERS[0] + bytes(8)
    ids = [b"ue2-old-1", b"ue2-old-2", b"given-ue2-old-"]
    rows = (1, 2, 4)
    keys = [USERS[1] + mark + b"%011d" % row for row, mark in zip(rows, (b"\0", b"\0", b"\1"), strict=True)]
    fingerprints = [MADE, MADE, b"f" * 16]
    payloads = [b'{"id":"' + each + b'","name":"ue2-old-"}' for each in ids]
    with open_stage(tmp_path) as stage:
        stage.begin(None)
        stage.stage_events([*rows, 5], [*keys, USERS[2] + b"\0" + bytes(11)], [*fingerprints, MADE], [*payloads, b"{}"])
        moved = stage._runs.rekey(old, new, b"ue2-old-", b"ue2-new-")
        in_new_hands = [USERS[0] + key[USER_BYTES:] for key in keys]
        assert moved == list(zip(rows, in_new_hands, fingerprints, strict=True))
        stage.people.stage_users(
            [Record(Kind.USER, 9, "ada", new, b"", b""), Record(Kind.USER, 10, "cy", USERS[2] + bytes(8), b"", b"")]
        )
        stage.finish_staging()
        assert [(each.identity, each.row, each.payload) for each in stage.pending(Kind.EVENT)] == [
            ("ada", 1, b'{"id":"ue2-new-1","name":"ue2-old-"}'),
            ("ada", 2, b'{"id":"ue2-new-2","name":"ue2-old-"}'),
            ("ada", 4, b'{"id":"given-ue2-old-","name":"ue2-old-"}'),
            ("cy", 5, b"{}"),
        ]


def test_events_of_a_large_read_take_less_room(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    payloads = [b'{"email":"ada@example.com","eventName":"page_view","id":"%032x"}' % (n * 7919) for n in range(100)]
    with open_stage(tmp_path) as stage:
        stage.begin(None, made_ids_only=True)
        for n, payload in enumerate(payloads, start=1):
            stage.stage_events([n], [USERS[0] + b"\0" + b"%011d" % n], [MADE], [payload])
        (size,) = stage._database.execute("SELECT sum(length(payloads)) FROM events").fetchone()
    is_compressed = "compressed" in request.node.callspec.id
    assert (size < sum(map(len, payloads)) / 1.5) == is_compressed
