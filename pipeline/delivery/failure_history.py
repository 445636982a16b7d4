"""What was refused or not acknowledged in this run -> the ledger, so that later runs try it after all others.

A record that was not acknowledged in several runs in a row is rejected: a silent 75 each night would hide it. A
rejection counts as known only when a run has reported it, as its last act: see `report_rejections`.
"""

from __future__ import annotations

from itertools import chain

from pipeline.ledger.ledger import FailureEntry, Ledger
from pipeline.model.failure_policy import EVENT_ID_CONFLICT, FORGOTTEN, KEEPS_FAILING
from pipeline.model.records import Outcome
from pipeline.stage.outcomes import KeyedFailure, Omitted
from pipeline.stage.stage import Stage

OMITTED_VALUE = "OmittedValue"  # our code for a value that is left out
MAX_STREAK = 3  # runs in a row, each of which had something else accepted


def note_failures(ledger: Ledger, stage: Stage, query: str, *, counts: bool, window_from: int | None = None) -> None:
    """Called once, when each record that was tried has its outcome. counts: whether anything was accepted in this run;
    the failures of other runs may be the project's, and count neither for a record nor against it. window_from: where
    the window of :since starts, in Unix seconds."""
    for failures in stage.outcomes.failures():
        hopeless = _keep_failing(ledger, failures, counts)
        stage.outcomes.reject([each for each in failures if each.key in hopeless], KEEPS_FAILING)
        failed = [_failed(each, hopeless) for each in failures]
        is_new = ledger.failures.note(failed, query, counts=counts, window_from=window_from)
        stage.outcomes.mark_known([each for each, new in zip(failures, is_new, strict=True) if not new])
    ledger.commit()


def note_refusals(ledger: Ledger, stage: Stage, query: str, *, keep: bool, window_from: int | None = None) -> None:
    """The same for records that can't be sent. keep=False only looks which of them are known, as a dry run does.

    What is rejected of people whom --forget has forgotten is known, and nothing of it is kept.
    """
    for failures in stage.outcomes.refusals():  # all are looked at before the first is noted, as rows may be alike
        is_new = ledger.failures.are_new([_failed(each, set()) for each in failures])
        known = [each for each, new in zip(failures, is_new, strict=True) if not new or _is_of_forgotten(each)]
        stage.outcomes.mark_known(known)
    if keep:
        for failures in stage.outcomes.refusals():
            failed = [_failed(each, set()) for each in failures if not _is_of_forgotten(each)]
            ledger.failures.note(failed, query, counts=False, window_from=window_from)


def report_rejections(ledger: Ledger, stage: Stage) -> None:
    """The run has written down all rejections, and will end with 1: later runs know them. Committed by the caller."""
    for failures in chain(stage.outcomes.failures(), stage.outcomes.refusals()):
        rejected = [each for each in failures if each.undelivered.outcome is Outcome.REJECTED]
        ledger.failures.report([_failed(each, set()) for each in rejected])
    for values in stage.outcomes.omitted():
        ledger.failures.report([_left_out(each) for each in values])


def note_omitted(ledger: Ledger, stage: Stage, query: str, *, keep: bool, window_from: int | None = None) -> None:
    """As `note_refusals`, for values that are left out of records which are sent all the same."""
    for values in stage.outcomes.omitted():
        is_new = ledger.failures.are_new([_left_out(each) for each in values])
        stage.outcomes.mark_omitted_known([each for each, new in zip(values, is_new, strict=True) if not new])
    if keep:
        for values in stage.outcomes.omitted():
            ledger.failures.note([_left_out(each) for each in values], query, counts=False, window_from=window_from)


def are_known_rejections(ledger: Ledger, stage: Stage) -> bool:
    """Whether all that has failed was rejected, as it is, in earlier runs, which have reported it."""
    for failures in stage.outcomes.failures():
        past_failures = ledger.failures.past_failures([each.key for each in failures])
        for each in failures:
            past = past_failures.get(each.key)
            if past is None or past.outcome is not Outcome.REJECTED or not past.reasons:
                return False
            if past.fingerprint != each.fingerprint or each.undelivered.outcome is not Outcome.REJECTED:
                return False
    return True


def _is_of_forgotten(failure: KeyedFailure) -> bool:
    return failure.undelivered.code == FORGOTTEN


def _left_out(value: Omitted) -> FailureEntry:
    return FailureEntry(value.key, value.fingerprint, Outcome.REJECTED, None, OMITTED_VALUE, value.reason, False)


def _keep_failing(ledger: Ledger, failures: list[KeyedFailure], counts: bool) -> set[bytes]:
    keys = [each.key for each in failures if each.undelivered.outcome is Outcome.UNACKNOWLEDGED]
    past_failures = ledger.failures.past_failures(keys)
    return {key for key, past_failure in past_failures.items() if past_failure.streak + counts >= MAX_STREAK}


def _failed(failure: KeyedFailure, hopeless: set[bytes]) -> FailureEntry:
    key, fingerprint, undelivered = failure
    is_unacknowledged = undelivered.outcome is Outcome.UNACKNOWLEDGED
    outcome, code = undelivered.outcome, undelivered.code
    if code == EVENT_ID_CONFLICT:  # several records have this key, and each of them has failed
        key += fingerprint
    if key in hopeless:
        outcome, code = Outcome.REJECTED, KEEPS_FAILING
    return FailureEntry(
        key, fingerprint, outcome, undelivered.status_code, code, undelivered.message, is_unacknowledged
    )
