"""SKIP_FORGOTTEN: the records of people who asked Iterable to forget them are rejected before they leave this machine.

Iterable refuses such records itself (409 `ForgottenUserError`), but by then the data has left. It lists the forgotten
as SHA-256 of the trimmed, lower-cased address or id, in one list for e-mails and one for userIds [swagger]. The list
that fits ITERABLE_IDENTIFIER is enough, as a record names its person by nothing else; so the other one is not read.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from typing import Any

from iterable_client import Failure, IterableClient
from pipeline.model.exits import ExitCode, RunError
from pipeline.model.failure_policy import POLICIES
from pipeline.stage.stage import Stage

HASH_BYTES = hashlib.sha256().digest_size
CODE = "ForgottenUserError"  # Iterable's own
MESSAGE = "This person asked Iterable to be forgotten, and SKIP_FORGOTTEN is set."
NO_LIST = "Nothing was sent, as SKIP_FORGOTTEN=true needs Iterable's list of forgotten people."
CHECK_IDENTIFIER = "Check ITERABLE_IDENTIFIER: only projects that tell people apart in this way have the list."

logger = logging.getLogger("main")


class ForgottenListError(RunError):
    """Iterable's list of forgotten people can't be read. Its exit code is that of the failure."""

    def __init__(self, code: ExitCode, reason: str) -> None:
        super().__init__(f"{NO_LIST} {reason}")
        self.code, self.reason = code, reason


class ForgottenPeople:
    """The hashes of those who asked to be forgotten, in one piece: a set of a million takes four times as much."""

    def __init__(self, hashes: list[bytes]) -> None:
        hashes.sort()
        self._sorted = bytearray()
        for each in hashes:  # b"".join would take 80 bytes for each while it works
            self._sorted += each

    def __len__(self) -> int:
        return len(self._sorted) // HASH_BYTES

    def __contains__(self, identity: str) -> bool:
        """Whether they list this address or id."""
        wanted = hash_of(identity)
        place = bisect_left(range(len(self)), wanted, key=self._at)
        return place < len(self) and self._at(place) == wanted

    def _at(self, place: int) -> bytes:
        return bytes(self._sorted[place * HASH_BYTES : (place + 1) * HASH_BYTES])


def reject_forgotten(client: IterableClient, stage: Stage, *, by_user_id: bool) -> int:
    """Reject what is pending of forgotten people; returns how many people Iterable lists. Raises ForgottenListError."""
    forgotten = read_forgotten(client, by_user_id=by_user_id)
    rejected = stage.people.reject_people(forgotten.__contains__, CODE, MESSAGE) if len(forgotten) else 0
    logger.info("Iterable lists %d forgotten people; %d pending records are theirs.", len(forgotten), rejected)
    return len(forgotten)


def read_forgotten(client: IterableClient, *, by_user_id: bool) -> ForgottenPeople:
    """Raises ForgottenListError."""
    ok, answer = client.get_forgotten_user_ids() if by_user_id else client.get_forgotten_emails()
    if not ok:
        raise _explained(answer)
    return ForgottenPeople(_hashes(answer.get("hashedUserIds" if by_user_id else "hashedEmails")))


def hash_of(identity: str) -> bytes:
    return hashlib.sha256(identity.strip().lower().encode("utf-8")).digest()


def _hashes(listed: Any) -> list[bytes]:
    """Hexadecimal texts -> bytes, in the same list, so that a text is gone when its hash is there."""
    try:
        for place, each in enumerate(listed):
            listed[place] = bytes.fromhex(each)
    except (TypeError, ValueError):
        listed = [b"no hash"]
    if any(len(each) != HASH_BYTES for each in listed):  # whom it means is not known
        reason = "Iterable's answer is not a list of SHA-256 hashes."
        raise ForgottenListError(POLICIES[Failure.UNREADABLE].code, reason)
    hashes: list[bytes] = listed
    return hashes


def _explained(details: dict[str, Any]) -> ForgottenListError:
    failure = details["failure"]
    code, advice = POLICIES[failure].code, POLICIES[failure].advice
    if failure is Failure.REJECTED:  # e-mail-based projects have no forgotten ids, userID-based ones no e-mails
        code, advice = ExitCode.SETTINGS, CHECK_IDENTIFIER
    return ForgottenListError(code, f"{str(details['error']).rstrip('.')}. {advice}")
