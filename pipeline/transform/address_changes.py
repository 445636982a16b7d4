"""Users of this read whom the ledger knows under another address, and what is done about them.

A query's column may say who somebody is, whatever the address. Where a known person has another address, Iterable would
make a second profile of it, subscribed to everything that the person had left. So the change is held, carried out by
Iterable (users/updateEmail), or sent as a new profile, as EMAIL_CHANGES says; in all three, what was accepted under the
old address counts as accepted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

from pipeline.ledger.ledger import Ledger
from pipeline.ledger.people import KnownUser
from pipeline.ledger.project import Hasher
from pipeline.model.keys import merged_fields, split_fields
from pipeline.model.records import Record, UserDetails
from pipeline.stage.stage import Stage
from pipeline.stage.states import LATE, PENDING, UNCHANGED
from pipeline.transform.events import id_prefix
from pipeline.transform.identity import origin_of
from pipeline.transform.rules import Rules
from pipeline.transform.users import USER_ID_FIELD

EMAIL_CHANGED = "EmailChanged"
MAX_LISTED = 1000
GUESS_HOLDS_BELOW = 0.1  # of the addresses may stand beside two ids, where `id` is taken for the person's
_IN_DOUBT = "it is not known whether Iterable carried out an earlier change; look there, and enter the result"
_SHARED = "several people have this address now, one of whom had another; give each an address of their own"
_HOW_TO_ENTER = "change it in Iterable, and then run once with --baseline --only and the new address"


class Found(NamedTuple):
    """A user of this read. key: made of the address, or where that has moved, what it leads to. person: a hash of who
    it is, None where that is not known; text: the same, as the query has it. previous: the address before this one.
    sharing: hashes of several persons, where the rows name more than one."""

    record: Record
    own_key: bytes
    person: bytes | None
    text: str
    previous: str
    sharing: Sequence[bytes] = ()


@dataclass(frozen=True)
class Move:
    """An address to be changed in Iterable before the records of this user are sent. key: the user's in the ledger.
    address: a hash of the new one. old: the old one; None: it is known by user_id. text: the person. full: the update
    with all fields, for a profile that turns out to be new."""

    key: bytes
    row: int
    address: bytes
    new: str
    old: str | None
    user_id: str | None
    text: str
    has_begun: bool
    full: Record


class EnteredAddress(NamedTuple):
    """An address that counts as changed in Iterable. user: the update, under the key in the ledger; it names the fields
    that are not known there any more. address: a hash of the present one; None: that of which the key is made."""

    user: Record
    address: bytes | None


class EmailChange(NamedTuple):
    row: int
    person: str
    done: str  # "held", "moved" or "new"


class SharedAddress(NamedTuple):
    rows: tuple[int, ...]


class Disagreement(NamedTuple):
    """A user whose rows give one field two values."""

    rows: tuple[int, ...]
    fields: tuple[str, ...]


@dataclass
class PeopleReport:
    """What a run says about people; of each list, the first MAX_LISTED.

    known: persons of this read whom the ledger knows. changed: those of them who have another address. held_before:
    those of these whom a run has reported as held. found: users of this read that the ledger knows from the same query
    file. gone: those that it knows and this read does not find, if it has read all. done: how many changes ended how.
    trusts_guess: whether the column that was taken for the person's is one.
    """

    done: Counter[str] = field(default_factory=Counter)
    known: int = 0
    changed: int = 0
    held_before: int = 0
    found: int = 0
    email_changes: list[EmailChange] = field(default_factory=list)
    shared: int = 0
    shared_addresses: list[SharedAddress] = field(default_factory=list)
    disagreements: list[Disagreement] = field(default_factory=list)
    gone: int = 0
    trusts_guess: bool = True

    def note_change(self, row: int, person: str, done: str) -> None:
        """done: "held", "moved" or "new"."""
        self.done[done] += 1
        if len(self.email_changes) < MAX_LISTED:
            self.email_changes.append(EmailChange(row, person, done))


@dataclass
class _Changed:
    """A known person with another address than before."""

    found: Found
    old: KnownUser
    own: KnownUser | None  # who is known under the new address

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """Under which the person may be staged."""
        return self.found.record.key, self.old.key


class AddressChanges:
    """Looks up the persons of a read, and settles those who have another address."""

    def __init__(
        self,
        ledger: Ledger,
        stage: Stage,
        rules: Rules,
        report: PeopleReport,
        *,
        enters: bool = False,
        enters_rest: bool = True,
        is_full: bool = False,
        trusted: bool | None = None,
    ) -> None:
        """enters: everything is entered as accepted, other addresses, too (--baseline). enters_rest: also what else the
        rows say of people with another address; else only that is entered. is_full: all fields are sent.
        trusted: whether a guessed column says who people are, where this read does not show it."""
        self._is_full = is_full
        self._trusted = trusted
        self._ledger = ledger
        self._stage = stage
        self._rules = rules
        self._report = report
        self._enters = enters
        self._enters_rest = enters_rest
        self._changed: list[_Changed] = []
        self._sharing: list[Found] = []  # who are at the address of another person now
        self._in_doubt: list[Found] = []  # who are where they were before a move whose answer was lost
        self._rejected: set[bytes] = set()
        self.moves: list[Move] = []
        self.entered: list[EnteredAddress] = []
        self.absorbed: list[bytes] = []  # keys of users who turned out to be known under other ones
        self.elsewhere: set[bytes] = set()  # keys of known users whom rows are about that have another address
        self.more_persons: list[tuple[bytes, bytes]] = []  # a person, and the key of a user who is another's already
        self.users = 0
        self.users_of_two_ids = 0

    def look_up(self, users: Sequence[Found], known: Mapping[bytes, KnownUser]) -> None:
        """Find those whom the ledger knows as the same person under another key. known: users, by their own keys."""
        unknown = []
        for user in users:
            row = known.get(user.record.key)
            if user.sharing:
                self._look_up_sharing(user)
            if user.person is None:
                continue
            if row is not None and (row.person == user.person or self._is_one_more(user.person, row)):
                self._report.known += 1
                if row.moving_to is not None:
                    self._in_doubt.append(user)
            else:
                unknown.append(user)
        by_person = self._ledger.accepted.people.users_of_persons(
            [user.person for user in unknown if user.person is not None]
        )
        for user in unknown:
            others = [each for each in by_person.get(user.person or b"", ()) if each.key != user.record.key]
            self.elsewhere.update(each.key for each in others)
            row = known.get(user.record.key)
            if not others and row is not None and row.person is not None:  # the address was another person's
                self.more_persons.append((user.person or b"", row.key))
            if len(others) == 1:  # of several, none says anything
                self._changed.append(_Changed(user, others[0], known.get(user.record.key)))

    def _is_one_more(self, person: bytes, row: KnownUser) -> bool:
        """Whether this is known as one more person at the user's address."""
        return any(
            each.key == row.key for each in self._ledger.accepted.people.users_of_more_persons([person]).get(person, ())
        )

    def _look_up_sharing(self, user: Found) -> None:
        """An address of several persons: is one of them known under another address?"""
        found = self._ledger.accepted.people.users_of_persons(user.sharing).values()
        self.elsewhere.update(each.key for known in found for each in known)
        if any(len(known) == 1 and known[0].key != user.record.key for known in found):
            self._sharing.append(user)

    def former_users(self) -> list[bytes]:
        """The keys of the users who seem to have another address now: whoever has the old one is to be staged."""
        return [each.old.key for each in self._changed]

    def settle(self) -> None:
        """Call it when all users of the read are staged."""
        if self._rules.person_is_guessed and not self._trusts_guess():
            self._stage.people.forget_persons()
            self._report.trusts_guess = False
            self._report.shared, self._report.shared_addresses = 0, []
            self._report.known = 0
            return
        several = self._stage.people.persons_of_several([each.found.person or b"" for each in self._changed])
        changed = [each for each in self._changed if each.found.person not in several]
        self._report.changed = len(changed)
        self._report.held_before = self._count_held(changed)
        self._report.known += len(changed)
        query = self._ledger.accepted.query
        moved = {
            each.old.key for each in changed if each.old.query == query and (not each.own or each.own.query != query)
        }
        self._report.found += sum(not self._stage.people.has_user(key) for key in moved)
        if self._enters:
            self._enter(changed)
            if not self._enters_rest:
                self._enter_where_they_were()
        else:
            for user, problem in [*zip(self._in_doubt, repeat(_IN_DOUBT)), *zip(self._sharing, repeat(_SHARED))]:
                self._reject(user.record.key, problem)
                self._report.note_change(user.record.row, user.text, "held")
            for each in changed:
                self._settle(each)

    def _count_held(self, changed: Sequence[_Changed]) -> int:
        past = self._ledger.failures.past_failures([key for each in changed for key in each.keys])
        held = {key for key, failure in past.items() if failure.code == EMAIL_CHANGED and failure.reasons}
        return sum(not held.isdisjoint(each.keys) for each in changed)

    def _trusts_guess(self) -> bool:
        """A part of the rows says too little, so there the last whole read counts."""
        if self._trusted is not None:
            return self._trusted
        return self.users_of_two_ids <= GUESS_HOLDS_BELOW * self.users

    def _enter(self, changed: Sequence[_Changed]) -> None:
        """Everything counts as accepted. Addresses may have been swapped: all leave their keys before any gets one."""
        for number, each in enumerate(changed):
            key = self._ledger.user_key(f"\n{number}")  # no address
            origin = id_prefix(origin_of(each.found.record.identity))
            self._stage.people.replace_user(
                each.found.record.key, each.found.record._replace(key=key), PENDING, origin, origin
            )
            each.found = each.found._replace(record=each.found.record._replace(key=key))
        for each in changed:
            if self._stage.people.has_user(each.old.key):
                self._hold(each, "another person has the old address in this read", each.found.record.key)
            else:
                known = None if self._enters_rest else self._known_by_hand(each)
                self._take_over(each, moves=False, known=known)
                self.entered.append(EnteredAddress(self._doubtful(each, known), each.found.own_key))
                self._note(each, "moved")

    def _enter_where_they_were(self) -> None:
        """People whose move is in doubt, and who have their address of before: they have not been moved."""
        for user in self._in_doubt:
            nothing = user.record._replace(details=UserDetails())
            self.entered.append(EnteredAddress(nothing, user.own_key if user.own_key != user.record.key else None))

    def _known_by_hand(self, changed: _Changed) -> bytes:
        """The fields that Iterable has of somebody whose address was changed there by hand. Where there was a profile
        at the new one, it was merged, and only what both had is known."""
        known = split_fields(changed.old.fields)
        if changed.own is not None:
            other = split_fields(changed.own.fields)
            known = {name: entry for name, entry in known.items() if other.get(name) == entry}
        return b"".join(known.values())

    def _doubtful(self, changed: _Changed, known: bytes | None) -> Record:
        kept = split_fields(changed.old.fields if known is None else known)
        names = b"".join(name for name in split_fields(changed.old.fields) if name not in kept)
        return self._known_as(changed)._replace(details=UserDetails(sent=names))

    def _settle(self, changed: _Changed) -> None:
        mode = self._rules.email_changes
        problem = self._whose_address(changed)
        if problem:
            self._hold(changed, problem, changed.found.record.key)
            if self._stage.people.has_user(changed.old.key):  # who would overwrite the profile of the one who has left
                self._reject(changed.old.key, "the address is another person's in Iterable")
            return
        if mode == "move":
            problem = self._why_not_moved(changed)
        elif mode == "hold":
            problem = f"{_HOW_TO_ENTER}, or set EMAIL_CHANGES"
        moves = mode == "move" and not problem
        self._take_over(changed, moves=moves, is_held=bool(problem))
        if problem:
            self._hold(changed, problem, changed.old.key)
        elif moves:
            self.moves.append(self._move_of(changed))
        else:
            self._note(changed, "new")

    def _whose_address(self, changed: _Changed) -> str:
        """Why one of the two addresses is not this person's alone; empty where both are."""
        if changed.own is not None and changed.own.person not in (None, changed.found.person):
            return "the new address is another person's in Iterable; change or merge them there"
        if self._ledger.accepted.people.has_more_persons(changed.old.key):
            return "several people had the old address; change or merge them in Iterable"
        if self._stage.people.has_user(changed.old.key):
            return "another person has the old address in this read; change or merge them in Iterable"
        return ""

    def _hold(self, changed: _Changed, problem: str, key: bytes) -> None:
        self._reject(key, problem)
        self._note(changed, "held")

    def _reject(self, key: bytes, problem: str) -> None:
        if key not in self._rejected:
            self._rejected.add(key)
            self._stage.people.reject_user(key, EMAIL_CHANGED, _message(problem))

    def _note(self, changed: _Changed, done: str) -> None:
        self._report.note_change(changed.found.record.row, changed.found.text, done)

    def _why_not_moved(self, changed: _Changed) -> str:
        """Why Iterable can't change the address; empty where it can."""
        previous, old = changed.found.previous, changed.old
        if changed.own is not None:
            return "the new address has a profile already; merge the two in Iterable"
        if old.moving_to not in (None, changed.found.own_key):
            return _IN_DOUBT
        if previous:
            if self._ledger.user_key(previous) != (old.address or old.key):
                return (
                    "previous_email is not the address that the ledger knows; fix it, or change it in Iterable by hand"
                )
            return ""
        name = self._ledger.hasher.field_name(USER_ID_FIELD)
        if self._rules.sends_user_id and name in split_fields(old.fields):
            return ""
        return (
            "EMAIL_CHANGES=move needs the old address, in a column previous_email, or SEND_USER_ID=true from the start"
        )

    def _take_over(self, changed: _Changed, *, moves: bool, known: bytes | None = None, is_held: bool = False) -> None:
        """The user of this read becomes the one whom the ledger knows, with the events. moves: so does the profile.
        known: the profile's fields, where it was moved by hand. is_held: in this run only; nothing is learned of who
        has which address."""
        record, old = changed.found.record, changed.old
        replaced = self._known_as(changed)
        keeps_profile = moves or known is not None
        if keeps_profile and record.payload and not self._is_full:
            replaced = changes_only(replaced, old.fields if known is None else known, self._ledger.hasher)
        own = origin_of(record.identity)
        origin = self._ledger.hasher.sealed_origin(old.key, old.origin) if old.origin else own
        sent = replaced.details.sent if replaced.details is not None else b""
        own_row = changed.own
        has_all = keeps_profile and not sent
        if not (is_held or keeps_profile) and own_row is not None:
            has_all = own_row.fingerprint == record.fingerprint or not sent
        state = UNCHANGED if has_all else LATE if moves else PENDING
        self._stage.people.replace_user(
            record.key, replaced, state, id_prefix(own), id_prefix(origin), is_late=moves, adopts=not is_held
        )
        if is_held:
            return
        if state == UNCHANGED and not keeps_profile:
            self._stage.people.adopt([replaced])
        if own_row is not None and own_row.person in (None, changed.found.person):
            self.absorbed.append(own_row.key)

    def _known_as(self, changed: _Changed) -> Record:
        """The update with all fields, under the key by which the ledger knows the person."""
        record, old = changed.found.record, changed.old
        details = (record.details or UserDetails())._replace(address=changed.found.own_key, origin=old.origin)
        return record._replace(key=old.key, details=details)

    def _move_of(self, changed: _Changed) -> Move:
        found = changed.found
        return Move(
            key=changed.old.key,
            row=found.record.row,
            address=found.own_key,
            new=found.record.identity,
            old=found.previous or None,
            user_id=None if found.previous else found.text,
            text=found.text,
            has_begun=changed.old.moving_to is not None,
            full=self._known_as(changed),
        )


def changes_only(record: Record, known: bytes, hasher: Hasher) -> Record:
    """An update with all fields -> one with just those that differ from what is known of the profile."""
    details = record.details or UserDetails()
    payload = json.loads(record.payload)
    ours, theirs = split_fields(details.fields), split_fields(known)

    def differs(name: str) -> bool:
        hashed = hasher.field_name(name)
        return ours.get(hashed) != theirs.get(hashed)

    sent = [name for name in payload["dataFields"] if differs(name)]
    payload["dataFields"] = {name: payload["dataFields"][name] for name in sent}
    if "email" in payload and "userId" in payload:
        if differs(USER_ID_FIELD):
            sent.append(USER_ID_FIELD)
        else:
            del payload["userId"]
    return record._replace(
        payload=json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode(),
        details=details._replace(
            fields=merged_fields(known, details.fields), sent=b"".join(map(hasher.field_name, sent))
        ),
    )


def _message(problem: str) -> str:
    return f"This person is known under another address, so this would make a second profile; {problem}."


def person_of(value: str) -> str:
    """A person's text out of what a row says of its user; empty where it says nothing."""
    if "\\" not in value:
        return value[1:-1]
    return str(json.loads(value))
