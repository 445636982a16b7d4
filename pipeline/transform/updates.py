"""What rows say of users, and what the ledger knows of them -> user updates with just the fields that differ.

Iterable starts the journeys on a field with each update that contains it, whether or not its value has changed [article
"Journey Setup: The Start Tile"]. So an update of a user whom Iterable has holds the fields that it does not have yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.people import KnownUser
from pipeline.model.keys import FIELD_NAME_BYTES, merged_fields, split_fields
from pipeline.model.records import Kind, Record, UserDetails
from pipeline.stage.known_rows import IS_FOUND, IS_KNOWN_PERSON, IS_SETTLED
from pipeline.stage.outcomes import Omitted
from pipeline.stage.people import Note
from pipeline.stage.stage import Stage
from pipeline.stage.states import LATE, PENDING, UNCHANGED
from pipeline.transform.address_changes import (
    MAX_LISTED,
    AddressChanges,
    Disagreement,
    Found,
    PeopleReport,
    SharedAddress,
    person_of,
)
from pipeline.transform.data_fields import Member
from pipeline.transform.forgotten import ForgottenUsers
from pipeline.transform.identity import guessed_person, origin_of
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

_NOTHING = Note()

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
        people: AddressChanges,
        report: PeopleReport,
        forgotten: ForgottenUsers,
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
        self._forgotten = forgotten
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
        updates = self._updates(users, fields.members, texts, fingerprints, known, set(fields.problems))
        texts_of_persons = [self._person(user.said) for user in users]
        identities = self._identities(users, texts_of_persons, known)
        records: list[Record] = []
        states: list[int] = []
        notes: list[Note] = []
        omitted = {each.place for each in fields.omitted}
        for place, (user, fingerprint, update) in enumerate(zip(users, fingerprints, updates, strict=True)):
            row = known.get(user.key)
            problem = fields.problems.get(place)
            payload = update.payload
            is_pending = row is None or self._is_full or _has_news(row, fingerprint, update.details)
            if problem is None and len(payload) > MAX_RECORD_BYTES and is_pending:
                problem = too_large(len(payload))
            if problem is not None:
                self._refuse_user(user, problem)
                payload = b""  # the user is staged all the same, as its events may be sent
            details = UserDetails(update.details.fields, update.details.sent, *identities[place])
            record = Record(Kind.USER, user.said.row, user.who, user.key, fingerprint, payload, details)
            records.append(record)
            states.append(self._state(row, is_pending=is_pending))
            notes.append(_NOTHING if row is None or is_pending else self._note(row, record, user, place in omitted))
            self._report.found += row is not None and row.query == self._ledger.accepted.query
        self._put_late_last(records, states)
        self._stage.people.stage_users(records, states, notes)
        self._count(users)
        follows_people = self._rules.person_column is not None and not self._is_new
        if follows_people or self._ledger.forgotten:
            found = list(map(self._found, records, users, texts_of_persons))
            found = [each for each, user in zip(found, users, strict=True) if not self._is_forgotten(each, user.said)]
            if follows_people:
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
        updates = list(map(self._whole_known, rows, self._names(members, len(users))))
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

    def _names(self, members: Sequence[Member], count: int) -> list[bytes]:
        """Of each user, the names of the fields that are there."""
        names = [self._ledger.hasher.field_name(member.name) for member in members]
        everything = b"".join(names)
        if not members or self._is_new:
            return [everything] * count
        return [
            everything if "" not in row else b"".join([name for name, value in zip(names, row, strict=True) if value])
            for row in zip(*(member.values for member in members), strict=True)
        ]

    def _whole_known(self, row: KnownUser | None, names: bytes) -> _Update:
        return _Update(b"", UserDetails() if row is None else UserDetails(row.fields, names))

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

    def _state(self, row: KnownUser | None, *, is_pending: bool) -> int:
        if not is_pending:
            return UNCHANGED
        if self._leaves_known and row is not None and not self._is_full:
            self._stage.left_users += 1
            return UNCHANGED
        return PENDING

    def _note(self, row: KnownUser, record: Record, user: Merged, has_omitted: bool) -> Note:
        """Of an unchanged user: whether the ledger may learn something (all fields as a whole, as the query file says
        it that found the user first, or who it is), or else knows all that there is to say."""
        person = record.details.person if record.details is not None else None
        is_of_query = row.query == self._ledger.accepted.query
        is_known_in_parts = row.fingerprint != record.fingerprint and is_of_query
        if is_known_in_parts or (person is not None and row.person is None):
            return Note(is_stale=True)
        is_special = user.said.disagreed or user.said.persons or has_omitted or row.moving_to is not None
        if is_special or row.fingerprint != record.fingerprint or person not in (None, row.person):
            return _NOTHING
        return Note(settled=IS_SETTLED | is_of_query * IS_FOUND | (person is not None) * IS_KNOWN_PERSON)

    def _put_late_last(self, records: Sequence[Record], states: list[int]) -> None:
        late = self._stage.known.failed_before([each.key for each in records])
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

    def _identities(
        self, users: Sequence[Merged], texts: Sequence[str], known: Mapping[bytes, KnownUser]
    ) -> list[tuple[bytes | None, bytes | None, bytes | None]]:
        """What the ledger is to know of each: who it is, the address where the key is not made of it, and what made
        event ids say of the person."""
        nothing: list[bytes | None] = [None] * len(users)
        if self._rules.person_column is None and not self._ledger.accepted.people.any_moved:
            return list(zip(nothing, nothing, nothing, strict=True))
        hasher = self._ledger.hasher
        addresses = nothing
        if self._ledger.accepted.people.any_moved:
            own = [self._ledger.user_key(user.who) for user in users]
            addresses = [key if key != user.key else None for key, user in zip(own, users, strict=True)]
        origins = list(nothing)
        places = [
            place
            for place, user in enumerate(users)
            if texts[place] and addresses[place] is None and not (user.key in known and known[user.key].origin)
        ]
        plain = [origin_of(users[place].who) for place in places]
        for place, origin in zip(
            places, hasher.sealed_origins([users[each].key for each in places], plain), strict=True
        ):
            origins[place] = origin
        return list(zip(self._persons(texts), addresses, origins, strict=True))

    def _persons(self, texts: Sequence[str]) -> list[bytes | None]:
        if self._rules.person_is_guessed:
            texts = [guessed_person(text, self._ledger.accepted.query) for text in texts]
        return self._ledger.hasher.persons(texts)

    def _found(self, record: Record, user: Merged, text: str) -> Found:
        previous = ""
        if self._rules.previous_column is not None:
            previous = person_of(user.said.values[len(self._rules.user_template.fields) + 1]).lower()
        details = record.details or UserDetails()
        sharing = self._persons([person_of(each) for each in sorted(user.said.persons)])
        own_key = details.address or record.key
        return Found(record, own_key, details.person, text, previous, [each for each in sharing if each is not None])

    def _is_forgotten(self, user: Found, said: MergedUser) -> bool:
        """Also somebody who was forgotten under the other ITERABLE_IDENTIFIER: a person's id here is a userId there."""
        addresses, persons = [user.own_key], [user.person, *user.sharing]
        if self._rules.by_user_id:
            addresses += filter(None, self._ledger.hasher.persons([user.record.identity]))
        else:
            names = [person_of(each) for each in sorted(said.persons)] or [user.text]
            persons += [self._ledger.user_key(each) for each in names if each]
        return self._forgotten.note(user.record.key, addresses, persons)

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


def _has_news(row: KnownUser, fingerprint: bytes, details: UserDetails) -> bool:
    """Whether Iterable lacks anything of a user: it may have all as a whole, or field by field. Where a first one may
    have arrived, nothing is known."""
    return row.fingerprint != fingerprint and (bool(details.sent) or not row.fingerprint)
