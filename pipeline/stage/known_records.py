"""What earlier runs know of the records that are staged, and so in which state each of them begins."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from pipeline.stage.states import LATE, PENDING, UNCHANGED

Known = Callable[[Sequence[bytes]], Mapping[bytes, bytes]]  # keys -> the fingerprints last accepted, of those known
FailedBefore = Callable[[Sequence[bytes]], Container[bytes]]  # keys -> those that failed in an earlier run


class KnownRecords:
    """Knows nothing until `set` is called; then each record begins as pending."""

    def __init__(self) -> None:
        self._known: Known | None = None
        self._late: FailedBefore | None = None

    def set(self, known: Known | None, late: FailedBefore | None) -> None:
        """known: what Iterable has accepted; None sends it all the same. late: what failed before."""
        self._known, self._late = known, late

    def first_states(self, keys: Sequence[bytes], fingerprints: Sequence[bytes]) -> bytes:
        """The states that records begin with."""
        accepted, failed_before = self._look_up(keys)
        if not accepted and not failed_before:
            return bytes([PENDING]) * len(keys)
        if len(accepted) == len(keys) and list(map(accepted.get, keys)) == list(fingerprints):
            return bytes([UNCHANGED]) * len(keys)
        return bytes(
            UNCHANGED if accepted.get(key) == fingerprint else LATE if key in failed_before else PENDING
            for key, fingerprint in zip(keys, fingerprints, strict=True)
        )

    def failed_before(self, keys: Sequence[bytes]) -> Container[bytes]:
        """Those of these that failed in an earlier run, and so are sent after all others."""
        return self._late(sorted(keys)) if self._late is not None else ()

    def _look_up(self, keys: Sequence[bytes]) -> tuple[Mapping[bytes, bytes], Container[bytes]]:
        """The fingerprints accepted, and the keys of what failed before."""
        if self._known is None and self._late is None:
            return {}, ()
        in_order = sorted(keys)  # in which the ledger has them
        accepted = self._known(in_order) if self._known is not None else {}
        return accepted, self._late(in_order) if self._late is not None else ()
