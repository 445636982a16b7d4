"""What rows say of users, and what the ledger knows of them -> user updates with just the fields that differ.

Iterable starts the journeys on a field with each update that contains it, whether or not its value has changed [article
"Journey Setup: The Start Tile"]. So an update of a user whom Iterable has holds the fields that it does not have yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
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
    """What is to leave. fields, sent: as in `UserDetails`."""

    payload: bytes
    fields: bytes
    sent: bytes


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
        rows = [known.get(user.key) for user in users] if known else [None] * len(users)
        updates = self._updates(users, fields.members, texts, fingerprints, rows, fields.problems)
        texts_of_persons = [self._person(user.said) for user in users]
        identities = self._identities(users, texts_of_persons, known)
        pending = [
            row is None or self._is_full or _has_news(row, fingerprint, update)
            for row, fingerprint, update in zip(rows, fingerprints, updates, strict=True)
        ]
        payloads = self._payloads(users, updates, pending, fields.problems)
        _, all_fields, sent = zip(*updates, strict=True)
        details = map(UserDetails, all_fields, sent, *identities)
        keys, people, said = zip(*users, strict=True)
        numbers = [each.row for each in said]
        records = list(map(Record, repeat(Kind.USER), numbers, people, keys, fingerprints, payloads, details))
        states = list(map(self._state, rows, pending))
        self._put_late_last(records, states)
        notes = None if all(pending) else self._notes(users, records, rows, pending, fields.omitted)
        self._stage.people.stage_users(records, states, notes)
        self._count(users, rows)
        follows_people = self._rules.person_column is not None and not self._is_new
        if follows_people or self._ledger.forgotten:
            found = list(map(self._found, records, users, texts_of_persons))
            found = [each for each, user in zip(found, users, strict=True) if not self._is_forgotten(each, user.said)]
            if follows_people:
                self._people.look_up(found, known)
        return [self._omitted(users[each.place], each) for each in fields.omitted]

    def _payloads(
        self,
        users: Sequence[Merged],
        updates: Sequence[_Update],
        pending: Sequence[bool],
        problems: Mapping[int, InvalidRecord],
    ) -> list[bytes]:
        """Those who can't be sent are refused; they are staged all the same, as their events may be sent."""
        payloads = [update.payload for update in updates]
        too_long = [
            place for place, payload in enumerate(payloads) if len(payload) > MAX_RECORD_BYTES and pending[place]
        ]
        for place in sorted({*problems, *too_long}):
            self._refuse_user(users[place], problems.get(place) or too_large(len(payloads[place])))
            payloads[place] = b""
        return payloads

    # Fields ---------------------------------------------------------------------------------------------------

    def _updates(
        self,
        users: Sequence[Merged],
        members: Sequence[Member],
        texts: Sequence[str],
        fingerprints: Sequence[bytes],
        rows: Sequence[KnownUser | None],
        refused: Collection[int],
    ) -> list[_Update]:
        """For each user, the fields that Iterable does not have; where it has them all, all of them, which are sent if
        it turns out to have lost the profile."""
        changed = [
            place
            for place, (row, fingerprint) in enumerate(zip(rows, fingerprints, strict=True))
            if (row is None or row.fingerprint != fingerprint or self._is_full) and place not in refused
        ]
        hashes = self._hashes(members, changed)
        names = self._names(members, len(users))
        full = self._full_payloads(users, members, texts)
        updates = list(map(_whole_known, rows, names, full))
        for place, entries in zip(changed, hashes, strict=True):
            row = rows[place]
            if row is None:
                updates[place] = _Update(full[place], b"".join(entries), names[place])
            elif self._is_full:
                updates[place] = _Update(full[place], merged_fields(row.fields, b"".join(entries)), names[place])
            else:
                updates[place] = self._difference(users[place].who, members, place, entries, row, full[place])
        return updates

    def _full_payloads(self, users: Sequence[Merged], members: Sequence[Member], texts: Sequence[str]) -> list[bytes]:
        people = [user.who for user in users]
        if not self._rules.sends_user_id:
            return full_payloads(people, texts, self._rules)
        return [
            user_payload(who, [(each.name, each.values[place]) for each in members if each.values[place]], self._rules)
            for place, who in enumerate(people)
        ]

    def _hashes(self, members: Sequence[Member], places: Sequence[int]) -> Iterable[tuple[bytes, ...]]:
        """Of these users: a hash for each field, empty for those that they do not have."""
        columns = []
        for member in members:
            values = [member.values[place] for place in places]
            columns.append(self._ledger.hasher.field_hashes(member.name, values))
        return zip(*columns, strict=True) if columns else [()] * len(places)

    def _names(self, members: Sequence[Member], count: int) -> list[bytes]:
        """Of each user, the names of the fields that are there."""
        names = [self._ledger.hasher.field_name(member.name) for member in members]
        everything = b"".join(names)
        if not any("" in member.values for member in members):
            return [everything] * count
        return [
            everything if "" not in row else b"".join([name for name, value in zip(names, row, strict=True) if value])
            for row in zip(*(member.values for member in members), strict=True)
        ]

    def _difference(
        self, who: str, members: Sequence[Member], place: int, entries: Sequence[bytes], row: KnownUser, full: bytes
    ) -> _Update:
        has = split_fields(row.fields)
        new = [
            (member, entry)
            for member, entry in zip(members, entries, strict=True)
            if entry and has.get(entry[:FIELD_NAME_BYTES]) != entry
        ]
        if not new:
            return _Update(full, row.fields, b"")
        entries_sent = {entry[:FIELD_NAME_BYTES]: entry for _, entry in new}
        payload = user_payload(who, [(member.name, member.values[place]) for member, _ in new], self._rules)
        return _Update(payload, b"".join({**has, **entries_sent}.values()), b"".join(entries_sent))

    # States ---------------------------------------------------------------------------------------------------

    def _state(self, row: KnownUser | None, is_pending: bool) -> int:
        if not is_pending:
            return UNCHANGED
        if self._leaves_known and row is not None and not self._is_full:
            self._stage.left_users += 1
            return UNCHANGED
        return PENDING

    def _notes(
        self,
        users: Sequence[Merged],
        records: Sequence[Record],
        rows: Sequence[KnownUser | None],
        pending: Sequence[bool],
        omitted: Sequence[OmittedValue],
    ) -> list[Note]:
        places = {each.place for each in omitted}
        return [
            _NOTHING if row is None or is_pending else self._note(row, record, user, place in places)
            for place, (row, is_pending, record, user) in enumerate(zip(rows, pending, records, users, strict=True))
        ]

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
    ) -> tuple[Sequence[bytes | None], ...]:
        """What the ledger is to know of each: who it is, the address where the key is not made of it, and what made
        event ids say of the person. Each for all users."""
        nothing = [None] * len(users)
        addresses: list[bytes | None] = list(nothing)
        if self._ledger.accepted.people.any_moved:
            own = [self._ledger.user_key(user.who) for user in users]
            addresses = [key if key != user.key else None for key, user in zip(own, users, strict=True)]
        elif self._rules.person_column is None:
            return nothing, nothing, nothing
        origins: list[bytes | None] = list(nothing)
        places = [
            place
            for place, user in enumerate(users)
            if texts[place] and addresses[place] is None and not (user.key in known and known[user.key].origin)
        ]
        plain = [origin_of(users[place].who) for place in places]
        sealed = self._ledger.hasher.sealed_origins([users[each].key for each in places], plain)
        for place, origin in zip(places, sealed, strict=True):
            origins[place] = origin
        return self._persons(texts), addresses, origins

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
        """Also somebody who was forgotten under the other ITERABLE_IDENTIFIER: a person's id here is a userId there.
        Where nothing else says who it is, the address before does."""
        addresses, persons = [user.own_key], [user.person, *user.sharing]
        if user.previous and not any(persons):
            addresses.append(self._ledger.user_key(user.previous))
        if self._rules.by_user_id:
            addresses += filter(None, self._ledger.hasher.persons([user.record.identity]))
        else:
            names = [person_of(each) for each in sorted(said.persons)] or [user.text]
            persons += [self._ledger.user_key(each) for each in names if each]
        return self._forgotten.note(user.record.key, addresses, persons)

    def _count(self, users: Sequence[Merged], rows: Sequence[KnownUser | None]) -> None:
        fields = self._rules.user_template.fields
        report = self._report
        special = [user.said for user in users if user.said.disagreed or user.said.persons]
        for said in special:
            if said.disagreed and len(report.disagreements) < MAX_LISTED:
                names = sorted({fields[place].name for place in said.disagreed})
                report.disagreements.append(Disagreement(said.rows, tuple(names)))
            if said.persons:
                report.shared += 1
                if len(report.shared_addresses) < MAX_LISTED:
                    report.shared_addresses.append(SharedAddress(said.rows))
        report.found += sum(row is not None and row.query == self._ledger.accepted.query for row in rows)
        self._people.users += len(users)
        self._people.users_of_two_ids += sum(bool(said.persons) for said in special)

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


def _whole_known(row: KnownUser | None, names: bytes, full: bytes) -> _Update:
    return _Update(full, b"", b"") if row is None else _Update(full, row.fields, names)


def _has_news(row: KnownUser, fingerprint: bytes, update: _Update) -> bool:
    """Whether Iterable lacks anything of a user: it may have all as a whole, or field by field. Where nothing is known
    of a profile, a first update may have arrived or not."""
    is_unknown = not row.fingerprint and not row.fields
    return row.fingerprint != fingerprint and (bool(update.sent) or is_unknown)
