"""Users of this read who were forgotten (`--forget`): they and their events are rejected, whatever else is known.

Somebody is known again by the address (or userId), or by who it is, whatever the address; and an address is kept back
where one of several people at it was forgotten, as their rows make one profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from pipeline.ledger.forgotten import Forgotten
from pipeline.model.failure_policy import FORGOTTEN
from pipeline.stage.stage import Stage


class ForgottenUsers:
    """Collects them while users are staged. lifts: they are sent all the same, and will not count as forgotten."""

    def __init__(self, forgotten: Forgotten, stage: Stage, *, lifts: bool = False) -> None:
        self._forgotten = forgotten
        self._stage = stage
        self._lifts = lifts
        self._by_address: dict[bytes, date] = {}
        self._by_person: dict[bytes, date] = {}
        self.lifted: set[bytes] = set()  # hashes by which they were known

    def note(self, key: bytes, addresses: Sequence[bytes], persons: Sequence[bytes | None]) -> bool:
        """Whether this user was forgotten. key: in the stage. addresses: what names the user. persons: who the rows say
        it is; several where they share the address."""
        found = False
        for known, hashes in ((self._by_address, addresses), (self._by_person, [each for each in persons if each])):
            day = self._forgotten.day_of(hashes)
            if day is not None:
                found = True
                if self._lifts:
                    self.lifted.update(hashes)
                else:
                    known[key] = day
        return found and not self._lifts

    def reject(self, *, trusts_persons: bool) -> None:
        """Call it when all users are staged. trusts_persons: the column that says who people are does so."""
        found = {**(self._by_person if trusts_persons else {}), **self._by_address}
        for key, day in found.items():
            message = f"This person was forgotten on {day} (--forget); leave them out of the query."
            self._stage.people.reject_forgotten(key, FORGOTTEN, message)

    def __len__(self) -> int:
        """How many people."""
        return len({*self._by_address, *self._by_person})
