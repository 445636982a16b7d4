"""The state of each record: one byte for each row and kind, in memory. A table of this would cost more than the rest of
the stage."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.model.records import Kind, Outcome

# A record's state: its outcome's code, or one of those before it.
NO_RECORD = 0
PENDING = 1
LATE = 2  # pending, too, but sent after all others: it, or its user, failed in an earlier run, or has to wait
HELD = 3  # refused, and to be tried once more in this run
CODES = {outcome: code for code, outcome in enumerate(Outcome, start=4)}
DELIVERED = CODES[Outcome.DELIVERED]
UNCHANGED = CODES[Outcome.UNCHANGED]
REJECTED = CODES[Outcome.REJECTED]


class States:
    """Those of all records, by kind and row."""

    def __init__(self) -> None:
        self._states: dict[Kind, bytearray] = {kind: bytearray() for kind in Kind}

    def __getitem__(self, kind: Kind) -> bytearray:
        return self._states[kind]

    def clear(self, kind: Kind | None = None) -> None:
        for each in Kind if kind is None else [kind]:
            self._states[each] = bytearray()

    def set(self, kind: Kind, row: int, state: int) -> None:
        states = self._states[kind]
        if row >= len(states):
            states.extend(bytes(row + 1 - len(states)))
        states[row] = state

    def set_all(self, kind: Kind, rows: Sequence[int], states: bytes) -> None:
        is_run = (
            rows and rows[-1] - rows[0] == len(rows) - 1 and (isinstance(rows, range) or list(rows) == sorted(rows))
        )
        if is_run and kind is Kind.EVENT:  # in the order of their rows, without gaps
            self.set(kind, rows[-1], states[-1])
            self._states[kind][rows[0] : rows[-1] + 1] = states
        else:
            found = self._states[kind]
            found.extend(bytes(max(0, max(rows, default=-1) + 1 - len(found))))
            for row, state in zip(rows, states, strict=True):
                found[row] = state

    def set_groups(self, groups: Sequence[tuple[int, int]], state: int) -> None:
        """Of groups of rows, each given by its first row and how many events it has: a user in the first row, and the
        events from there on."""
        users, events = self._states[Kind.USER], self._states[Kind.EVENT]
        end = max(first + count for first, count in groups) + 1
        for states in (users, events):
            if end > len(states):
                states.extend(bytes(end - len(states)))
        one = bytes([state])
        for first, count in groups:
            users[first] = state
            events[first : first + count] = one * count

    def replace(self, old: int, new: int) -> None:
        for kind, states in self._states.items():
            if old in states:  # it makes a copy
                self._states[kind] = states.replace(bytes([old]), bytes([new]))

    def count_pending(self, kind: Kind) -> int:
        """Staged records without an outcome."""
        states = self._states[kind]
        return states.count(PENDING) + states.count(LATE)

    def count_outcomes(self) -> dict[Kind, dict[Outcome, int]]:
        """How many records of each kind ended how, so far."""
        return {
            kind: {outcome: states.count(code) for outcome, code in CODES.items()}
            for kind, states in self._states.items()
        }
