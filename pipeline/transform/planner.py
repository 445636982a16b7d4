"""Rows -> pending records in the stage, block by block, while they pass on their way to the CSV.

Decides what each row becomes: at most one user update and one event. What can't be sent is rejected with its reason.
Of a user whom Iterable has, only the fields are sent that differ. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from operator import itemgetter
from typing import Any, NamedTuple

from iterable.export import Column, types_of
from pipeline.ledger.forgotten import later_owner
from pipeline.ledger.ledger import Ledger
from pipeline.model.failure_policy import EVENT_ID_CONFLICT
from pipeline.model.keys import MADE, USER_BYTES, is_given
from pipeline.model.records import FailedRecord, Kind, Outcome
from pipeline.stage.outcomes import KeyedFailure, Omitted
from pipeline.stage.stage import Stage, UserRow
from pipeline.stage.states import UNCHANGED
from pipeline.transform import events
from pipeline.transform.address_changes import AddressChanges, PeopleReport
from pipeline.transform.forgotten import ForgottenUsers
from pipeline.transform.identity import identity, origin_of
from pipeline.transform.known_rows import KnownRows, NewRows, Planned
from pipeline.transform.row_changes import RowChanges
from pipeline.transform.row_groups import Row
from pipeline.transform.rules import Columns, Rules
from pipeline.transform.updates import Merged, Updates, omitted_of
from pipeline.transform.users import MergedUser, merge, user_values
from pipeline.transform.values import InvalidRecord, canonical, cell_text

RECORDS_PER_STAGING = 2_000
BYTES_PER_STAGING = 2**20
REMEMBERED_USERS = 40_000
BETWEEN_VALUES = "\n"  # JSON has none


@dataclass
class _Waiting:
    """What is to be staged, in the order of its rows."""

    user_rows: list[UserRow] = field(default_factory=list)
    refusals: list[KeyedFailure] = field(default_factory=list)
    omitted: list[Omitted] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # of events, as all that follows
    keys: list[bytes] = field(default_factory=list)
    fingerprints: list[bytes] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    states: bytearray = field(default_factory=bytearray)
    size: int = 0  # in bytes

    @property
    def is_enough(self) -> bool:
        count = len(self.user_rows) + len(self.rows) + len(self.refusals)
        return count >= RECORDS_PER_STAGING or self.size >= BYTES_PER_STAGING


class _Person(NamedTuple):
    """How the ledger knows somebody: the user's key, and what made event ids say of them."""

    key: bytes
    origin: bytes | None


class Planner:
    """Takes the rows, and leaves what became of them in the stage."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        rules: Rules,
        columns: Sequence[str],
        *,
        full: Collection[Kind] = (),
        leave_known_users: bool = False,
        enters: bool = False,
        enters_rest: bool = True,
        trusts_guess: bool | None = None,
        lifts_forgotten: bool = False,
        is_whole: bool = False,
    ) -> None:
        """full: the kinds of records that are sent although Iterable has them. leave_known_users: users that the ledger
        knows are not updated. enters: everything will be entered as accepted (--baseline); enters_rest: also of people
        with another address, and not only that.
        trusts_guess: whether a guessed PERSON_COLUMN says who people are; None: this read shows it.
        lifts_forgotten: people whom --forget has forgotten are sent all the same. is_whole: these are all rows of a
        query file, so that the ledger may know users by all that is said of them."""
        stage.begin(
            None if Kind.EVENT in full or ledger.is_empty else self._known_events,
            ledger.failures.failed_before if ledger.failures.exist else None,
            made_ids_only=rules.id_column is None,
        )
        self.rows = 0
        self.gives_ids = self.makes_ids = False  # whether rows that were planned have events with, and without, an id
        self.people = PeopleReport()
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._columns = columns
        self._waiting = _Waiting()
        self.changes = AddressChanges(
            ledger, stage, rules, self.people,
            enters=enters, enters_rest=enters_rest, is_full=Kind.USER in full, trusted=trusts_guess,
        )  # fmt: skip
        self.forgotten = ForgottenUsers(ledger.forgotten, stage, lifts=lifts_forgotten)
        self._updates = Updates(
            ledger, stage, rules, self.changes, self.people, self.forgotten,
            is_full=Kind.USER in full, leave_known=leave_known_users, refuse=self._refuse,
        )  # fmt: skip
        self._keys: dict[str, bytes] = {}  # of users, by identity
        self._origins: dict[str, bytes] = {}  # of those whose address has changed
        self._unidentified: set[bytes] = set()  # keys of those whose address or id can't be sent
        self._row_changes = RowChanges(rules)
        self._known_rows: KnownRows | None = None
        if is_whole and not (full or ledger.is_empty):
            self._known_rows = KnownRows(
                ledger, stage, rules, columns, self._user_keys, lambda people: self._row_changes.forget(people)
            )

    def plan(self, by_column: Sequence[Sequence[Any]], rows: Sequence[Row] | None = None) -> None:
        """Plan some rows, given by the column. rows: the same by the row, where they are at hand."""
        numbers = range(self.rows + 1, self.rows + 1 + len(by_column[0]))
        self.rows += len(numbers)
        if self._known_rows is not None and self._known_rows.pays:
            block = list(zip(*by_column, strict=True)) if rows is None else rows
            self._plan_new(self._known_rows, self._known_rows.take(block))
        else:
            self._plan_columns(dict(zip(self._columns, by_column, strict=True)), numbers)
            self._flush_enough()

    def end_reading(self) -> None:
        """From here on, every record has a place in the account."""
        if self._known_rows is not None:
            self._plan_new(self._known_rows, self._known_rows.end())
        self._flush()
        self._stage.end_reading()

    def finish(self) -> None:
        """All rows are staged: put together what those of each user say, and see who has another address."""
        if self._known_rows is not None:
            self._plan_again(self._known_rows, self._known_rows.mixed())
        self._stage_users()
        former_users = self.changes.former_users()
        if self._known_rows is not None and former_users:
            self._stage.forget_user_rows()
            self._plan_again(self._known_rows, self._known_rows.of_users(former_users))
            self._stage_users()
        known = self._stage.known_rows.totals()
        self.changes.users += known.users
        self.people.found += known.found
        self.people.known += known.known_persons
        if self._rules.person_column is not None:
            self.changes.settle()
        self.forgotten.reject(trusts_persons=self.people.trusts_guess)
        if self._rules.id_column is not None and not self._ledger.is_empty:
            self._reject_ids_of_others()
        self.people.gone = max(0, self._ledger.accepted.count_users_of_query() - self.people.found)

    # Rows -----------------------------------------------------------------------------------------------------

    def _plan_new(self, known: KnownRows, new: Sequence[NewRows]) -> None:
        for each in new:
            known.note_planned(each, self._plan_rows(known, each))
            self._flush_enough()
        if not known.pays:
            self._plan_again(known, known.end())

    def _plan_again(self, known: KnownRows, rows: Iterable[NewRows]) -> None:
        for each in rows:
            self._plan_rows(known, each, anew=True)
            self._flush_enough()
        self._flush()

    def _plan_rows(self, known: KnownRows, new: NewRows, *, anew: bool = False) -> Planned:
        by_column = map(Column, zip(*new.rows, strict=True))
        return self._plan_columns(dict(zip(known.columns, by_column, strict=True)), new.numbers, anew=anew)

    def _plan_columns(self, columns: Columns, numbers: Sequence[int], *, anew: bool = False) -> Planned:
        """Plan rows that have these numbers. anew: rows between those of their users were planned before."""
        names = columns[self._rules.identity_column]
        people = self._identify(columns, names, numbers)
        if None in people:
            places = [place for place, who in enumerate(people) if who is not None]
            columns, numbers = events.selected(columns, places), [numbers[place] for place in places]
        named = [who for who in people if who is not None]
        user_keys = self._user_keys(named)
        if anew:
            self._row_changes.forget(set(named))
        staged = self._plan_users(columns, numbers, named, user_keys)
        return Planned(*self._plan_events(columns, numbers, named, user_keys), staged)

    # Users ----------------------------------------------------------------------------------------------------

    def _identify(self, columns: Columns, names: Sequence[Any], numbers: Sequence[int]) -> Sequence[str | None]:
        known = self._keys
        if types_of(names) == {str}:
            distinct = set(names)
            self._learn(distinct.difference(known))
            if known.keys() >= distinct:  # as nearly always, all are written as Iterable has them
                return names
        people: list[str | None] = []
        for place, name in enumerate(names):
            if type(name) is str and name in known:
                people.append(name)
                continue
            try:
                people.append(identity(name, self._rules))
            except InvalidRecord as problem:
                people.append(None)
                self._reject_unidentified_row(columns, place, numbers[place], problem)
        return people

    def _learn(self, names: Iterable[str]) -> None:
        """Remember those users who are written as Iterable has them."""
        found = []
        for name in names:
            try:
                if identity(name, self._rules) == name:
                    found.append(name)
            except InvalidRecord:
                continue
        self._remember(found)

    def _remember(self, people: Sequence[str]) -> Mapping[str, bytes]:
        """Returns the keys of all that are remembered now."""
        if len(self._keys) + len(people) > REMEMBERED_USERS:
            self._keys.clear()
            self._origins.clear()
        self._keys.update(zip(people, map(self._ledger.user_key, people), strict=True))
        if people and self._ledger.accepted.people.any_moved:
            for who, person in followed_moves(self._ledger, people).items():
                self._keys[who] = person.key
                if person.origin is not None:
                    self._origins[who] = person.origin
        return self._keys

    def _user_keys(self, people: Sequence[str]) -> list[bytes]:
        unknown = [who for who in dict.fromkeys(people) if who not in self._keys]
        if unknown:
            self._remember(unknown)
        try:
            return [self._keys[who] for who in people]
        except KeyError:  # one block has more people than are remembered
            return [self._remember([who])[who] for who in people]

    def _plan_users(
        self, columns: Columns, numbers: Sequence[int], people: Sequence[str], keys: Sequence[bytes]
    ) -> int:
        """Stages what each row says about its user, unless the user's row before said the same; returns how many do
        not repeat it."""
        places = self._row_changes.places(columns, people)
        if len(places) < len(people):
            columns = events.selected(columns, places)
        values = user_values(columns, len(places), self._rules)
        for place, each in zip(places, values, strict=True):
            content = BETWEEN_VALUES.join(each)
            self._waiting.user_rows.append((keys[place], numbers[place], people[place], content))
            self._waiting.size += len(content)
        return len(places)

    def _stage_users(self) -> None:
        """Put together what the rows of each user say, and stage what is to be sent of it."""
        self._keys, self._row_changes = {}, RowChanges(self._rules)
        users: list[Merged] = []
        size = 0
        for user in self._merged_users():
            users.append(user)
            size += sum(map(len, user.said.values))
            if len(users) >= RECORDS_PER_STAGING or size >= BYTES_PER_STAGING:
                self._stage_merged(users)
                users, size = [], 0
        self._stage_merged(users)

    def _merged_users(self) -> Iterator[Merged]:
        """What the rows of each user say together."""
        for key, rows in groupby(self._stage.user_rows(), key=itemgetter(0)):
            _, row, who, content = next(rows)
            said = MergedUser(row, content.split(BETWEEN_VALUES), (row,))
            for _, row, _, later in rows:  # noqa: B031 (it goes on behind the first)
                said = merge(said, row, later.split(BETWEEN_VALUES), self._rules)
            self._stage.merged_users += bool(said.disagreed)
            yield Merged(key, who, said)

    def _stage_merged(self, users: Sequence[Merged]) -> None:
        if users:
            self._flush()
            self._waiting.omitted += self._updates.stage(users)
            self._flush()

    # Events ---------------------------------------------------------------------------------------------------

    def _plan_events(
        self, columns: Columns, numbers: Sequence[int], people: Sequence[str], user_keys: Sequence[bytes]
    ) -> tuple[events.Events, bytes]:
        """Stages their events; returns them, with their states."""
        found = events.events(columns, people, self._rules)
        for place, problem in found.problems:
            self._refuse_event(columns, place, numbers[place], people[place], user_keys[place], problem)
        self.gives_ids = self.gives_ids or (self._rules.id_column is not None and any(found.given_ids))
        self.makes_ids = self.makes_ids or "" in found.given_ids
        keys, fingerprints = self._keys_of_events(found, [user_keys[place] for place in found.places])
        states = self._stage.known.first_states(keys, fingerprints)
        contents = _payloads_of_news(found, states, self._rules, self._origins)
        waiting = self._waiting
        waiting.rows.extend([numbers[place] for place in found.places])
        waiting.keys.extend(keys)
        waiting.fingerprints.extend(fingerprints)
        waiting.payloads.extend(contents)
        waiting.states.extend(states)
        waiting.size += sum(map(len, contents))
        for each in found.omitted:
            place = each.place
            waiting.omitted.append(omitted_of(self._ledger, Kind.EVENT, numbers[place], user_keys[place], each))
        return found, states

    def _keys_of_events(self, found: events.Events, user_keys: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Keys and fingerprints. A key that stands for all that the event says tells its content from any other."""
        ledger = self._ledger
        if self._rules.id_column is None:
            return ledger.event_keys(user_keys, found.contents), [MADE] * len(found.contents)
        made = ledger.event_keys(user_keys, found.contents)
        given = ledger.hasher.given_event_keys(user_keys, found.given_ids)
        prints = ledger.hasher.given_fingerprints(events.given_heads(found), found.fields)
        return (
            [its if event_id else other for event_id, its, other in zip(found.given_ids, given, made, strict=True)],
            [its if event_id else MADE for event_id, its in zip(found.given_ids, prints, strict=True)],
        )

    def _known_events(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """What Iterable has accepted of these, where an id is not that of another person's event."""
        accepted = self._ledger.accepted
        if self._rules.id_column is None:
            return accepted.known_made(keys)
        known = accepted.known_made([key for key in keys if not is_given(key)])
        given = accepted.known_given([key for key in keys if is_given(key)])
        nobody_says = self._rules.person_column is None and not self._rules.by_user_id
        for key, each in given.items():
            is_own = each.person == key[:USER_BYTES]
            if is_own or nobody_says:
                known[key] = each.fingerprint
            if nobody_says and not is_own and self._known_rows is not None:
                self._known_rows.stop()  # whose event it is shows only where both people's rows are looked at
        return known

    def _reject_ids_of_others(self) -> None:
        """Events whose given id is that of another person's event, which they would overwrite."""
        text = "event_id is that of an event of another person, which Iterable has accepted."
        rest = (Outcome.REJECTED, None, EVENT_ID_CONFLICT, text, 0)
        for page in self._stage.pending_given():
            known = self._ledger.accepted.known_given([key for _, key, _ in page])
            others = [event for event in page if known.get(event[1], event[1])[0] != event[1][:USER_BYTES]]
            self._stage.outcomes.note(
                [FailedRecord(Kind.EVENT, row, None, *rest) for row, key, _ in others if key in known]
            )

    # What can't be sent ---------------------------------------------------------------------------------------

    # Each refusal has a key and a fingerprint, by which another run knows it again.

    def _reject_unidentified_row(self, columns: Columns, place: int, number: int, problem: InvalidRecord) -> None:
        """Somebody in several rows, by what stands there for the person, is one user; a row of nobody is one each."""
        rules = self._rules
        names = [name for name in (rules.identity_column, rules.person_column) if name is not None]
        is_somebody = any(_says_something(columns[name][place]) for name in names)
        if not is_somebody:
            names = [rules.identity_column, *(field.column for field in rules.user_fields)]
        cells = _cells(columns, place, names)
        key = self._ledger.user_key(cells)
        if not is_somebody or key not in self._unidentified:
            (fingerprint,) = self._ledger.fingerprints([cells.encode()])
            self._refuse(Kind.USER, number, None, problem, key, fingerprint)
        if is_somebody and len(self._unidentified) < REMEMBERED_USERS:  # beyond that, each row counts
            self._unidentified.add(key)
        if events.has_event(columns, place, rules):
            self._refuse_event(columns, place, number, None, key, problem)

    def _refuse_event(
        self, columns: Columns, place: int, number: int, who: str | None, user_key: bytes, problem: InvalidRecord
    ) -> None:
        rules = self._rules
        columns_of_ours = (rules.identity_column, rules.time_column, rules.name_column, rules.id_column)
        names = [*filter(None, columns_of_ours), *(field.column for field in rules.event_fields)]
        cells = _cells(columns, place, names)
        (key,) = self._ledger.event_keys([user_key], [cells])
        (fingerprint,) = self._ledger.fingerprints([cells.encode()])
        self._refuse(Kind.EVENT, number, who, problem, key, fingerprint)

    def _refuse(
        self, kind: Kind, number: int, who: str | None, problem: InvalidRecord, key: bytes, fingerprint: bytes
    ) -> None:
        undelivered = FailedRecord(kind, number, who, Outcome.REJECTED, None, "InvalidRecord", f"{problem}.", 0)
        self._waiting.refusals.append(KeyedFailure(key, fingerprint, undelivered))

    def _flush_enough(self) -> None:
        if self._waiting.is_enough:
            self._flush()

    def _flush(self) -> None:
        waiting = self._waiting
        self._stage.stage_user_rows(waiting.user_rows)
        self._stage.stage_events(
            waiting.rows, waiting.keys, waiting.fingerprints, waiting.payloads, states=bytes(waiting.states)
        )
        self._stage.outcomes.note_refusals(waiting.refusals)
        self._stage.outcomes.note_omitted(waiting.omitted)
        self._waiting = _Waiting()


def _payloads_of_news(found: events.Events, states: bytes, rules: Rules, origins: Mapping[str, bytes]) -> list[bytes]:
    """What is unchanged needs no payload."""
    if UNCHANGED not in states:
        return events.event_payloads(found, rules, origins)
    news = [at for at, state in enumerate(states) if state != UNCHANGED]
    contents = [b""] * len(states)
    payloads = events.event_payloads(found.take(news), rules, origins)
    for at, payload in zip(news, payloads, strict=True):
        contents[at] = payload
    return contents


def followed_moves(ledger: Ledger, people: Sequence[str]) -> dict[str, _Person]:
    """People whom the ledger first knew under another address, or who have an address that was somebody else's."""
    own = {who: ledger.user_key(who) for who in people}
    here = ledger.accepted.people.users_at(list(own.values()))
    left = ledger.accepted.known_users(list(own.values()))
    found = {}
    for who, key in own.items():
        user = here.get(key)
        if user is not None:
            origin = ledger.hasher.sealed_origin(user.key, user.origin) if user.origin is not None else None
            found[who] = _Person(user.key, origin)
        elif key in left and left[key].address is not None:  # whose user has moved on
            found[who] = _next_owner(ledger, who)
    return found


def _next_owner(ledger: Ledger, who: str) -> _Person:
    """A new owner of an address whose earlier owners have moved on: a key that none of them has."""
    for number in count(2):
        name = later_owner(who, number)
        key = ledger.user_key(name)
        if key not in ledger.accepted.known_users([key]):
            return _Person(key, origin_of(name))
    raise AssertionError("unreachable: some number is free")


def _says_something(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _cells(columns: Columns, place: int, names: Sequence[str]) -> str:
    """What a row says in these columns; unlike any e-mail, user id or event id, it begins with a bracket."""
    texts = [[name, cell_text(columns[name][place])] for name in names]
    return canonical(texts).encode(errors="backslashreplace").decode()
