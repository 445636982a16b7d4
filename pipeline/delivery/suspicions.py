"""Failures that may be due to the key, the address or a proxy, and not to their records.

A run that was accepted nothing, and got nothing but such answers, ends for them, however few they were: with 77 where
one refused the key, else with 76. Their records are then unacknowledged, and nothing is remembered against them. Once
Iterable has accepted anything, or refused it for another reason, such a failure is its record's own; so it is where
all that failed had been rejected in earlier runs that accepted others.
"""

from __future__ import annotations

from collections.abc import Callable

from iterable.answers import Failure
from pipeline.delivery.bulk_answers import Settled
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.failure_policy import POLICIES, stopped_by
from pipeline.model.records import FailedRecord
from pipeline.stage.stage import Stage


class Suspicions:
    """Notes in the stage what failed, suspected failures as soon as it is known who is to blame."""

    def __init__(self, stage: Stage, are_known: Callable[[], bool]) -> None:
        """are_known: whether all that the stage has noted as failed was rejected before, see `failure_history`."""
        self._stage = stage
        self._are_known = are_known
        self._undecided: list[FailedRecord] = []  # few, as the breaker opens after three such calls
        self._ending: Ending | None = None  # how the run ends if Iterable answers nothing else
        self._is_acquitted = False
        self.were_known = False  # all that failed had been rejected before
        self._is_outage = False  # an answer said that Iterable has a problem of its own

    def take_in(self, settled: Settled) -> None:
        """What came of a call; notes those of its records that failed."""
        failure = settled.failure
        if failure is None or failure is Failure.REJECTED:
            self._acquit()
            if settled.failed:
                self._stage.outcomes.note(settled.failed)
        elif not POLICIES[failure].is_suspect:
            self._is_outage |= failure is not Failure.ABANDONED and settled.was_answered
            self._stage.outcomes.note(settled.failed, is_blamed=failure is not Failure.ABANDONED)
        elif POLICIES[failure].ends_run_at_once:
            self._suspect(failure, settled.message)
            self._stage.outcomes.note(settled.failed, is_blamed=False)
        elif self._is_acquitted:
            self._stage.outcomes.note(settled.failed)
        else:
            self._suspect(failure, settled.message)
            self._undecided += settled.failed

    def _suspect(self, failure: Failure, message: str) -> None:
        if self._ending is None or self._ending.code is not ExitCode.CREDENTIALS:
            self._ending = stopped_by(failure, message, in_a_row=1)

    def _acquit(self) -> None:
        self._is_acquitted = True
        if self._undecided:
            self._stage.outcomes.note(self._undecided)
            self._undecided = []

    def conclude(self) -> Ending | None:
        """Nothing more comes: how the run ends for them, if it does."""
        undecided, self._undecided = self._undecided, []
        self._stage.outcomes.note(undecided)
        if undecided and self._are_known():
            self.were_known = True
            return None
        self._stage.outcomes.pardon(undecided)
        return None if self._is_acquitted or self._is_outage else self._ending
