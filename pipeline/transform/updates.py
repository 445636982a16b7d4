"""What rows say of users, and what the ledger knows of them -> user updates with just the fields that differ.

Iterable starts the journeys on a field with each update that contains it, whether or not its value has changed [article
"Journey Setup: The Start Tile"]. So an update of a user whom Iterable has holds the fields that it does not have yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.ledger.accepted import KnownUser
from pipeline.ledger.ledger import Ledger
from pipeline.model.keys import FIELD_NAME_BYTES, merged_fields, split_fields
from pipeline.model.records import Kind, Record, UserDetails
from pipeline.stage.outcomes import Omitted
from pipeline.stage.stage import Stage
from pipeline.stage.states import LATE, PENDING, UNCHANGED
from pipeline.transform.data_fields import Member
from pipeline.transform.identity import origin_of
from pipeline.transform.people import MAX_LISTED, Disagreement, Found, People, PeopleReport, SharedAddress, person_of
from pipeline.transform.rules import Rules
from pipeline.transform.users import (
    MAX_RECORD_BYTES,
    MergedUser,
    OmittedValue,
    full_payloads,
    texts_of,
    too_large,
    user_fields,
    user_payload,
)
from pipeline.transform.values import InvalidRecord

BETWEEN_VALUES = "\n"

Refuse = Callable[[Kind, int, str, InvalidRecord, bytes, bytes], None]


class Merged(NamedTuple):
    """A user, and what all rows say of it."""

    key: bytes
    who: str
    said: MergedUser


class _Update(NamedTuple):
    """What is to leave. An empty payload: nothing."""

    payload: bytes
    details: UserDetails


class Updates:
    """Makes the updates of some users at a time, and stages them."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        rules: Rules,
        people: People,
        report: PeopleReport,
        *,
        is_full: bool,
        leave_known: bool,
        refuse: Refuse,
    ) -> None:
        """is_full: all fields are sent, although Iterable has them. leave_known: users that the ledger knows are not
        updated. refuse: is told of users that can't be sent."""
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._people = people
        self._report = report
        self._is_full = is_full
        self._leaves_known = leave_known
        self._refuse = refuse
        self._is_new = ledger.is_empty

    def stage(self, users: Sequence[Merged]) -> list[Omitted]:
        """Stage the update of each of these. Returns the values that were left out."""
        fields = user_fields([user.said.values for user in users], self._rules)
        texts = texts_of(fields.members, len(users))
        fingerprints = self._ledger.fingerprints([text.encode() for text in texts])
        known = {} if self._is_new else self._ledger.accepted.known_users([user.key for user in users])
        persons = [self._person(user.said) for user in users]
        updates = self._updates(users, fields.members, texts, fingerprints, known, set(fields.problems))
        records: list[Record] = []
        states: list[int] = []
        stale: list[bool] = []  # what the ledger is to learn of users that are not sent
        found = []
        for place, (user, fingerprint, update) in enumerate(zip(users, fingerprints, updates, strict=True)):
            row = known.get(user.key)
            problem = fields.problems.get(place)
            payload = update.payload
            if problem is None and len(payload) > MAX_RECORD_BYTES:
                problem = too_large(len(payload))
            if problem is not None:
                self._refuse_user(user, problem)
                payload = b""  # the user is staged all the same, as its events may be sent
            details = self._with_person(update.details, user, persons[place], row)
            record = Record(Kind.USER, user.said.row, user.who, user.key, fingerprint, payload, details)
            records.append(record)
            states.append(self._state(row, record))
            stale.append(states[-1] == UNCHANGED and row is not None and _is_stale(row, record))
            self._report.found += row is not None and row.query == self._ledger.accepted.query
            found.append(self._found(record, user, persons[place]))
        self._put_late_last(records, states)
        self._stage.stage_users(records, states, stale)
        self._count(users)
        if self._rules.person_column is not None:
            self._people.look_up(found, known)
        return [self._omitted(users[each.place], each) for each in fields.omitted]

    # Fields ---------------------------------------------------------------------------------------------------

    def _updates(
        self,
        users: Sequence[Merged],
        members: Sequence[Member],
        texts: Sequence[str],
        fingerprints: Sequence[bytes],
        known: Mapping[bytes, KnownUser],
        refused: set[int],
    ) -> list[_Update]:
        """For each user, the fields that Iterable does not have; where it has them all, all of them, which are sent if
        it turns out to have lost the profile."""
        rows = [known.get(user.key) for user in users]
        changed = [
            place
            for place, (row, fingerprint) in enumerate(zip(rows, fingerprints, strict=True))
            if (row is None or row.fingerprint != fingerprint or self._is_full) and place not in refused
        ]
        hashes = self._hashes(members, changed)
        updates = [self._whole_known(row) for row in rows]
        full = self._full_payloads(users, members, texts)
        for place, entries in zip(changed, hashes, strict=True):
            row = rows[place]
            if row is None or self._is_full:
                whole = b"".join(entries)
                fields = whole if row is None else merged_fields(row.fields, whole)
                updates[place] = _Update(full[place], UserDetails(fields, _names_of(entries)))
            else:
                updates[place] = self._difference(users[place].who, members, place, entries, row, full[place])
        return [
            update if update.payload else update._replace(payload=payload)
            for update, payload in zip(updates, full, strict=True)
        ]

    def _full_payloads(self, users: Sequence[Merged], members: Sequence[Member], texts: Sequence[str]) -> list[bytes]:
        people = [user.who for user in users]
        if not self._rules.sends_user_id:
            return full_payloads(people, texts, self._rules)
        return [
            user_payload(who, [(each.name, each.values[place]) for each in members if each.values[place]], self._rules)
            for place, who in enumerate(people)
        ]

    def _hashes(self, members: Sequence[Member], places: Sequence[int]) -> list[list[bytes]]:
        """Of these users: a hash for each field that they have."""
        columns = []
        for member in members:
            values = [member.values[place] for place in places]
            columns.append(self._ledger.hasher.field_hashes(member.name, values))
        if not columns:
            return [[] for _ in places]
        return [[each for each in entries if each] for entries in zip(*columns, strict=True)]

    def _whole_known(self, row: KnownUser | None) -> _Update:
        if row is None:
            return _Update(b"", UserDetails())
        return _Update(b"", UserDetails(row.fields, b"".join(split_fields(row.fields)), row.person, row.address))

    def _difference(
        self, who: str, members: Sequence[Member], place: int, entries: Sequence[bytes], row: KnownUser, full: bytes
    ) -> _Update:
        has = split_fields(row.fields)
        new = {entry for entry in entries if has.get(entry[:FIELD_NAME_BYTES]) != entry}
        present = [member for member in members if member.values[place]]
        sent = [
            (member.name, member.values[place]) for member, entry in zip(present, entries, strict=True) if entry in new
        ]
        details = UserDetails(merged_fields(row.fields, b"".join(entries)), _names_of(list(new)))
        return _Update(user_payload(who, sent, self._rules) if sent else full, details)

    # States ---------------------------------------------------------------------------------------------------

    def _state(self, row: KnownUser | None, record: Record) -> int:
        if row is None or self._is_full:
            return PENDING
        if row.fingerprint == record.fingerprint or record.details is None or not record.details.sent:
            return UNCHANGED  # as a whole, or field by field
        if self._leaves_known:
            self._stage.left_users += 1
            return UNCHANGED
        return PENDING

    def _put_late_last(self, records: Sequence[Record], states: list[int]) -> None:
        late = self._stage.failed_before([each.key for each in records])
        if late:
            for place, record in enumerate(records):
                if states[place] == PENDING and record.key in late:
                    states[place] = LATE

    # People ---------------------------------------------------------------------------------------------------

    def _person(self, said: MergedUser) -> str:
        """Who the rows say it is; empty where they say nothing, or disagree."""
        if self._rules.person_column is None or said.persons:
            return ""
        return person_of(said.values[len(self._rules.user_template.fields)])

    def _with_person(self, details: UserDetails, user: Merged, text: str, row: KnownUser | None) -> UserDetails:
        """With what the ledger is to know of the person: who it is, and which address the ids of events are made of."""
        address = origin = None
        if self._ledger.accepted.any_moved:
            own = self._ledger.user_key(user.who)
            address = own if own != user.key else None
        if text and address is None and (row is None or row.origin is None):
            origin = self._ledger.hasher.sealed_origin(user.key, origin_of(user.who))
        person = self._ledger.hasher.person(text) if text else None
        return details._replace(person=person, address=address, origin=origin)

    def _found(self, record: Record, user: Merged, text: str) -> Found:
        previous = ""
        if self._rules.previous_column is not None:
            previous = person_of(user.said.values[len(self._rules.user_template.fields) + 1]).lower()
        details = record.details or UserDetails()
        return Found(record, details.address or record.key, details.person, text, previous)

    def _count(self, users: Sequence[Merged]) -> None:
        fields = self._rules.user_template.fields
        report = self._report
        for user in users:
            said = user.said
            if said.disagreed and len(report.disagreements) < MAX_LISTED:
                names = sorted({fields[place].name for place in said.disagreed})
                report.disagreements.append(Disagreement(said.rows, tuple(names)))
            if said.persons:
                report.shared += 1
                if len(report.shared_addresses) < MAX_LISTED:
                    report.shared_addresses.append(SharedAddress(said.rows))
        self._people.users += len(users)
        self._people.users_of_two_ids += sum(bool(user.said.persons) for user in users)

    # What can't be sent ---------------------------------------------------------------------------------------

    def _refuse_user(self, user: Merged, problem: InvalidRecord) -> None:
        values = user.said.values[: len(self._rules.user_template.fields)]
        (fingerprint,) = self._ledger.fingerprints([BETWEEN_VALUES.join(values).encode()])
        self._refuse(Kind.USER, user.said.row, user.who, problem, user.key, fingerprint)

    def _omitted(self, user: Merged, value: OmittedValue) -> Omitted:
        return omitted_of(self._ledger, Kind.USER, user.said.row, user.key, value)


def omitted_of(ledger: Ledger, kind: Kind, row: int, user_key: bytes, value: OmittedValue) -> Omitted:
    """With a key and a fingerprint, by which another run knows it again."""
    (key,) = ledger.event_keys([user_key], [f"omitted\n{kind.value}\n{value.field}"])
    (fingerprint,) = ledger.fingerprints([value.cell.encode()])
    return Omitted(kind, row, value.field, value.reason, key, fingerprint)


def _names_of(entries: Sequence[bytes]) -> bytes:
    return b"".join([entry[:FIELD_NAME_BYTES] for entry in entries])


def _is_stale(row: KnownUser, record: Record) -> bool:
    """Whether the ledger may learn something of a user without an update: that all fields are known as a whole, too, or
    who it is."""
    person = record.details.person if record.details is not None else None
    return row.fingerprint != record.fingerprint or (person is not None and person != row.person)
