"""Users who are known by all of their rows: the same comes of a read as where each record is looked up."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FieldMap
from pipeline.model.failure_policy import EVENT_ID_CONFLICT
from pipeline.model.records import FailedRecord, Kind, Outcome, Record
from pipeline.transform.known_rows import enter_settled
from pipeline.transform.planner import Planner
from pipeline.transform.rules import Rules
from tests.opened import Opened, open_both
from tests.transform.test_planner import NOW_S, RULES

QUERY = "query.sql"
COLUMNS = ("id", "email", "first_name", "plan_type", "page", "event_time", "event_id")
DAY_S = 86_400
NESTED = (FieldMap("first_name", "name"), FieldMap("plan_type", "address.plan"), FieldMap("page", "address.page"))
Row = tuple[Any, ...]


class Side:
    """A ledger, and how its reads are planned."""

    def __init__(self, folder: Path, *, by_rows: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self._by_rows = by_rows
        self.known = 0  # rows that were known as a whole, over all reads

    @contextmanager
    def read(
        self, rules: Rules, columns: Sequence[str], rows: Sequence[Row], now: float, block: int, query: str = QUERY
    ) -> Iterator[Read]:
        with open_both(self.folder, now=now) as opened:
            opened.ledger.use_query(query)
            planner = Planner(opened.ledger, opened.stage, rules, columns, is_whole=self._by_rows)
            for start in range(0, len(rows), block):
                planner.plan(list(zip(*rows[start : start + block], strict=True)))
            planner.end_reading()
            planner.finish()
            opened.stage.finish_staging(ids_are_given=rules.id_column is not None)
            self.known += opened.stage.known_rows.totals().users
            yield Read(opened, planner, query)
            opened.ledger.commit()


class Read:
    """What came of a read, and what is done then."""

    def __init__(self, opened: Opened, planner: Planner, query: str) -> None:
        self._query = query
        self.ledger, self.stage, self.planner = opened.ledger, opened.stage, planner

    def account(self) -> dict[str, Any]:
        people = self.planner.people
        return {
            "pending": [list(self._pending(kind)) for kind in Kind],
            "counts": self.stage.states.count_outcomes(),
            "doubled": self.stage.doubled,
            "merged": self.stage.merged_users,
            "users": self.stage.count_users(),
            "people": {**vars(people), "done": dict(people.done)},
            "failed": sorted(map(_failed, self.stage.outcomes.undelivered(10_000)), key=repr),
        }

    def _pending(self, kind: Kind) -> Iterator[Record]:
        for late in (False, True):
            yield from self.stage.pending(kind, late=late)

    def deliver(self, chance: random.Random) -> bool:
        """Some are accepted, some refused, some lost; returns whether the run goes on to its end."""
        for adopted in self.stage.people.adopted():
            self.ledger.accept(adopted)
        self.ledger.accepted.people.forget_users(self.planner.changes.absorbed)
        if chance.random() < 0.1:
            return False  # killed
        is_baseline = chance.random() < 0.1
        for kind in Kind:
            for record in list(self._pending(kind)):
                what = chance.choices(["accepted", "refused", "lost", "killed"], [80, 8, 8, 1])[0]
                if is_baseline:
                    what = "accepted"
                else:
                    self.ledger.invalidate([record])
                if what == "accepted":
                    self.stage.outcomes.note_delivered([record])
                    self.ledger.accept([record])
                elif what == "killed":
                    return False
                else:
                    outcome = Outcome.REJECTED if what == "refused" else Outcome.UNACKNOWLEDGED
                    failed = FailedRecord(record.kind, record.row, record.identity, outcome, 400, "Code", "text", 1)
                    self.stage.outcomes.note([failed])
        return True

    def remember(self) -> None:
        self.ledger.refresh(self.stage.keys(), self._query, full_read=True, users=self.stage.count_users())
        self.ledger.accepted.people.add_persons(self.planner.changes.more_persons)
        for users in self.stage.people.unacknowledged_users():
            self.ledger.enter_unacknowledged(users)
        for users in self.stage.people.stale_users():
            self.ledger.accepted.people.restamp(users)
        enter_settled(self.ledger, self.stage)


def _failed(each: FailedRecord) -> FailedRecord:
    """Which row another one has the id of is not compared, as a row that is known is not looked at."""
    return each._replace(message="") if each.code == EVENT_ID_CONFLICT else each


class World:
    """A table that changes from read to read."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.people = [self._person(n) for n in range(chance.randint(3, 12))]
        self.shape = chance.choice(["by user", "by user", "any order", "twice", "two places", "two places"])
        self.next = 100
        self.past = [deepcopy(self.people)]

    def _person(self, n: int) -> dict[str, Any]:
        events = [self._event(10 * n + each) for each in range(self.chance.choice([0, 1, 2, 5]))]
        name = self.chance.choice(["Ada", "Bob", None])
        return {"id": n, "email": f"u{n}@example.com", "name": name, "plan": "pro", "events": events}

    def _event(self, n: int) -> dict[str, Any]:
        event = {"page": self.chance.choice(["a", "b", 3]), "time": f"2026-01-0{1 + n % 9} 10:00:00", "id": f"e{n}"}
        return event | self.chance.choice([{}, {}, {}, {"plan": "free"}, {"plan": None}])

    def change(self) -> None:
        """Also back to what it was before."""
        if self.chance.random() < 0.3:
            self.people = deepcopy(self.chance.choice(self.past))
            return
        self.past.append(deepcopy(self.people))
        for _ in range(self.chance.choice([0, 0, 1, 2])):
            person = self.chance.choice(self.people)
            self.next += 1
            what = self.chance.randrange(13)
            if what <= 2:
                person["events"].append(self._event(self.next))
            elif what == 3 and person["events"]:
                self.chance.choice(person["events"])["page"] = self.chance.choice(["a", "b"])
            elif what == 4 and person["events"]:
                person["events"].pop()
            elif what == 5:
                person["plan"] = self.chance.choice(["pro", "free", None])
            elif what == 6:
                person["email"] = f"u{person['id']}@example.{self.chance.choice(['com', 'org'])}"
            elif what == 7:
                person["id"] = self.chance.choice([each["id"] for each in self.people])
            elif what == 8 and person["events"]:
                person["events"].append(dict(self.chance.choice(person["events"])))
            elif what == 9 and person["events"]:
                other = self.chance.choice(self.people)
                other["events"].append(dict(self.chance.choice(person["events"])))
            elif what == 10:
                self.people.append(self._person(self.next))
            elif what == 11 and len(self.people) > 2:
                self.people.remove(person)
            elif what == 12 and person["events"]:
                self.chance.choice(person["events"])["time"] = "no time"

    def rows(self) -> list[Row]:
        rows = [
            (
                each["id"],
                each["email"],
                each["name"],
                each["plan"],
                event.get("page"),
                event.get("time"),
                event.get("id"),
            )
            for each in self.people
            for event in each["events"] or [{}]
        ]
        if self.shape == "any order":
            self.chance.shuffle(rows)
        if self.shape == "twice" and self.chance.random() < 0.5:
            rows += rows[: self.chance.randrange(len(rows) + 1)]
        if self.chance.random() < 0.1:
            rows.insert(self.chance.randrange(len(rows) + 1), (1, "no address", None, None, None, None, None))
        return rows


def rules_of(chance: random.Random) -> Rules:
    return replace(
        RULES,
        user_fields=chance.choice([RULES.user_fields, RULES.user_fields, NESTED]),
        event_fields=chance.choice([(FieldMap("page", "page"),), ()]),
        latest_s=NOW_S + 10_000 * DAY_S,
        clear_nulls=chance.random() < 0.3,
        person_column=chance.choice([None, "id", "id"]),
        person_is_guessed=False,
        id_column=chance.choice([None, "event_id"]),
        email_changes=chance.choice(["hold", "new"]),
    )


@pytest.mark.parametrize(
    "seed", [*range(4, 10), *range(11, 14), 51, 101, 212]
)  # the last three find what is not forgotten
def test_read_by_rows_is_as_a_read_by_records(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_worlds(tmp_path, seed, monkeypatch) > 0


def compare_worlds(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """One world in several reads. Returns how many users were known by their rows."""
    chance = random.Random(seed)
    monkeypatch.setattr("pipeline.transform.known_rows.GROUPS_BEFORE_JUDGING", chance.choice([3, 5_000, 5_000]))
    world, rules = World(chance), rules_of(chance)
    sides = Side(folder / "rows", by_rows=True), Side(folder / "records", by_rows=False)
    now, block = NOW_S, chance.choice([1, 2, 5, 100])
    for _ in range(8):
        rows, deliveries = world.rows(), chance.randrange(2**32)
        with ExitStack() as stack:
            reads = [stack.enter_context(side.read(rules, COLUMNS, rows, now, block)) for side in sides]
            ours, plain = (read.account() for read in reads)
            assert ours == plain
            for read in reads:
                if read.deliver(random.Random(deliveries)):
                    read.remember()
        world.change()
        now += chance.choice([0, 0, 1, 1, 20, 31]) * DAY_S
    return sides[0].known


# One by one -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "side", by_rows=True)


ADA = (1, "ada@example.com", "Ada", "pro", "a", "2026-01-01 10:00:00", "e1")
BOB = (2, "bob@example.com", "Bob", "pro", "a", "2026-01-01 10:00:00", "e2")
BY_ID = replace(RULES, id_column="event_id", person_column="id")


def read(
    side: Side, rows: Sequence[Row], *, now: float = NOW_S, rules: Rules = BY_ID, query: str = QUERY, block: int = 500
) -> dict[str, Any]:
    """A run in which everything is accepted."""
    with side.read(rules, COLUMNS, rows, now, block, query) as found:
        account = found.account()
        for kind in Kind:
            for record in list(found._pending(kind)):
                found.stage.outcomes.note_delivered([record])
                found.ledger.accept([record])
        found.remember()
    return account | {"known": side.known}


NEWS, MORE_NEWS = (*ADA[:3], "free", "b", ADA[5], "e8"), (*ADA[:3], "free", "c", ADA[5], "e9")
PARIS, ZIP = (*ADA[:3], "Paris", None, *ADA[5:]), (None, *ADA[1:3], None, "75001", "no time", "e3")
ANOTHERS = (*BOB[:6], ADA[6])
CASES: dict[str, tuple[Rules, list[list[Row]]]] = {
    "known rows between news": (
        replace(BY_ID, id_column=None),
        [[ADA, BOB], [ADA, BOB], *[[NEWS, BOB, ADA, BOB, MORE_NEWS]] * 3],
    ),
    "news between known rows": (BY_ID, [[ADA], [ADA], [ADA, BOB, MORE_NEWS, BOB, ADA]]),
    "other rows of the user vanish": (
        replace(BY_ID, user_fields=NESTED, event_fields=()),
        [[PARIS, BOB, ZIP], [PARIS, BOB, ZIP], [PARIS, BOB]],
    ),
    "an id that is another's": (
        replace(BY_ID, person_column=None),
        [[ADA], [ADA, ANOTHERS], [ADA, ANOTHERS], [(*ADA[:4], "b", *ADA[5:]), ANOTHERS]],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [1, 2, 500])
def test_it_is_as_if_each_record_were_looked_at(tmp_path: Path, name: str, block: int) -> None:
    rules, reads = CASES[name]
    accounts = []
    for by_rows in (True, False):
        side = Side(tmp_path / str(by_rows), by_rows=by_rows)
        accounts.append([read(side, rows, rules=rules, block=block) | {"known": 0} for rows in reads])
    assert accounts[0] == accounts[1]


def test_records_of_known_rows_do_not_expire(side: Side, tmp_path: Path) -> None:
    """Not even where another query file is read in full long after."""
    rules = replace(BY_ID, latest_s=NOW_S + 10_000 * DAY_S)
    for day in (0, 29, 58):
        read(side, [ADA], now=NOW_S + day * DAY_S, rules=rules, query="a.sql")
    for day in (58, 425):
        read(side, [BOB], now=NOW_S + day * DAY_S, rules=rules, query="b.sql")
    assert read(side, [ADA], now=NOW_S + 426 * DAY_S, rules=rules, query="a.sql")["pending"] == [[], []]


def full_disk(**_: Any) -> Any:
    return Path("/dev/full").open("w+b")


def test_a_disk_that_is_full_for_known_rows_ends_the_reading(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        read(side, [ADA, BOB])
    monkeypatch.setattr("pipeline.stage.known_rows.TemporaryFile", full_disk)
    with pytest.raises(OSError, match="No space left"):
        read(side, [ADA, BOB])


def test_known_rows_are_put_down_anew_when_the_read_begins_anew(side: Side) -> None:
    for _ in range(2):
        read(side, [ADA, BOB])
    with open_both(side.folder, now=NOW_S) as opened:
        opened.ledger.use_query(QUERY)
        for _ in range(2):
            opened.stage.clear()
            planner = Planner(opened.ledger, opened.stage, BY_ID, COLUMNS, is_whole=True)
            for row in (ADA, BOB, MORE_NEWS):
                planner.plan(list(zip(row, strict=True)))
            planner.end_reading()
        planner.finish()
        opened.stage.finish_staging(ids_are_given=True)
        assert [each.payload for each in opened.stage.pending(Kind.USER)] == [
            b'{"email":"ada@example.com","dataFields":{"plan_type":"free"}}'
        ]


def test_user_without_news_is_known_by_the_rows_from_the_third_read_on(side: Side) -> None:
    assert [read(side, [ADA, BOB])["known"] for _ in range(3)] == [0, 0, 2]


def test_rows_are_looked_at_one_by_one_after_a_month_and_under_other_rules(side: Side) -> None:
    for _ in range(3):
        read(side, [ADA])
    assert side.known == 1
    assert read(side, [ADA], rules=replace(BY_ID, email_changes="new"))["known"] == 1
    assert read(side, [ADA], now=NOW_S + 31 * DAY_S)["known"] == 1
    assert read(side, [ADA], now=NOW_S + 32 * DAY_S)["known"] == 2


def test_cells_that_cannot_be_compared_are_looked_at_one_by_one(side: Side) -> None:
    odd = (*ADA[:4], memoryview(b"a"), *ADA[5:])
    for _ in range(3):
        account = read(side, [odd, BOB])
    assert account["known"] == 1
    assert account["counts"][Kind.USER][Outcome.UNCHANGED] == 2


def test_rows_of_users_that_are_apart_are_no_longer_compared(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.transform.known_rows.GROUPS_BEFORE_JUDGING", 4)
    rows = [(*each[:6], f"{each[6]}-{n}") for n in range(10) for each in (ADA, BOB)]
    read(side, rows)
    with side.read(BY_ID, COLUMNS, rows, NOW_S, 4) as found:
        assert not found.planner._known_rows or not found.planner._known_rows.pays
        assert found.account()["counts"][Kind.EVENT][Outcome.UNCHANGED] == 20


def test_known_users_are_unchanged_although_the_run_breaks_off(side: Side) -> None:
    for _ in range(2):
        read(side, [ADA, BOB])
    with open_both(side.folder, now=NOW_S) as opened:
        opened.ledger.use_query(QUERY)
        planner = Planner(opened.ledger, opened.stage, BY_ID, COLUMNS, is_whole=True)
        planner.plan(list(zip(ADA, BOB, (*BOB[:1], "c@example.com", *BOB[2:]), strict=True)))
        planner.end_reading()
        opened.stage.note_not_attempted("It was stopped.")
        users = opened.stage.states.count_outcomes()[Kind.USER]
    assert {each: count for each, count in users.items() if count} == {Outcome.UNCHANGED: 2, Outcome.NOT_ATTEMPTED: 1}


def test_forgotten_person_is_not_known_by_rows_of_before(side: Side) -> None:
    for _ in range(3):
        read(side, [ADA, BOB])
    with open_both(side.folder, now=NOW_S) as opened:
        opened.ledger.forgotten.forget(opened.ledger.forgotten.find("ada@example.com"))
        opened.ledger.commit()
    counts = read(side, [ADA, BOB])["counts"]
    assert [counts[kind][Outcome.REJECTED] for kind in Kind] == [1, 1]
    assert [counts[kind][Outcome.UNCHANGED] for kind in Kind] == [1, 1]


def test_known_rows_lie_in_no_file_that_has_a_name(side: Side) -> None:
    for _ in range(2):
        read(side, [ADA])
    with side.read(BY_ID, COLUMNS, [ADA], NOW_S, 500):
        assert side.known == 1
        assert sorted(each.name.partition(".sqlite3")[2] for each in side.folder.iterdir()) == ["", "", "-shm", "-wal"]
