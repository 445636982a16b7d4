"""How many failures in a row are enough: for the run, which the breaker then holds; and for taking one batch apart.

Pure: outcomes in, a yes or a no out. `tests/delivery/test_patience.py` has both in ten plain lines.
"""

from __future__ import annotations

MOST_PATIENCE = 64
ALMOST_ONE = 0.999  # thirds and fifths do not always add up to 1

MAX_REFUSALS_IN_A_ROW = 63  # the batch and all its parts, down to a 32nd: 1 + 2 + 4 + 8 + 16 + 32
MIN_REFUSALS_IN_A_ROW = 3  # the batch and its halves
MAX_REQUESTS_A_BATCH = 400


class RunPatience:
    """How many failed calls in a row open the breaker.

    Each failure weighs its part of what its policy allows: a fifth where five in a row open it. A weight of 1 is
    enough; after a probe that was accepted 2 is, after the next one 4, and so on up to 64, until anything but a probe
    is accepted. So 10,000 bad records in a row, each of them out of attempts, cost 36 probes instead of 2,000.
    """

    def __init__(self) -> None:
        self._strain = 0.0
        self._patience = 1

    @property
    def is_calm(self) -> bool:
        """Whether a success would change nothing."""
        return self._strain == 0 and self._patience == 1

    def fail(self, weight: float) -> None:
        self._strain += weight

    @property
    def is_over(self) -> bool:
        return self._strain >= self._patience * ALMOST_ONE

    def succeed(self, *, is_probe: bool) -> None:
        self._patience = min(self._patience * 2, MOST_PATIENCE) if is_probe else 1
        self._strain = 0.0

    def begin_anew(self) -> None:
        """Nothing was accepted, but Iterable has answered."""
        self._strain = 0.0


class SplitPatience:
    """How many refusals in a row a batch may draw before its parts are sent as they are, not divided any more.

    One bad record in a thousand takes 10 refusals and 21 requests to find. A batch without a success leaves half the
    patience, down to the least, to the batches after it; a success restores it. So a million users who are all refused
    cost 7,200 requests instead of 127,000, and a batch never more than MAX_REQUESTS_A_BATCH and its undivided parts.
    Shared by the workers; whose value wins does not matter.
    """

    def __init__(self) -> None:
        self.allowed = MAX_REFUSALS_IN_A_ROW


class BatchPatience:
    """One batch's share of it, from its first request to its last."""

    def __init__(self, shared: SplitPatience) -> None:
        self._shared = shared
        self._allowed = shared.allowed
        self._refusals = 0
        self._requests = 0

    @property
    def has_begun(self) -> bool:
        return self._requests > 0

    def count_request(self) -> None:
        self._requests += 1

    @property
    def may_divide(self) -> bool:
        return self._refusals < self._allowed and self._requests < MAX_REQUESTS_A_BATCH

    def refuse(self) -> None:
        """The request was refused, and its records are divided."""
        self._refusals += 1

    def succeed(self) -> None:
        self._refusals = 0
        self._allowed = self._shared.allowed = MAX_REFUSALS_IN_A_ROW

    def end(self) -> None:
        if self._refusals >= self._allowed:
            self._shared.allowed = max(self._allowed // 2, MIN_REFUSALS_IN_A_ROW)
