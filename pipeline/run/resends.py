"""Whether a run would send again what Iterable has accepted, by what the ledger knows and what it should know.

Iterable acts on what arrives, also where it has it already: an event starts journeys again, and so does a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Kind
from pipeline.model.text import counted

OVERRIDE_HINT = "To send it all the same: run once with --yes."
BASELINE = "If Iterable has all of it: run with --baseline, which records everything as accepted."


@dataclass(frozen=True)
class KnownRuns:
    """What is known of earlier runs. damage: why the ledger can't be used. is_empty: it knows nothing of the project.
    unknown_run: one that delivered, and that the ledger should know. is_new_key: it knows others for this host."""

    damage: str = ""
    is_empty: bool = False
    unknown_run: str | None = None
    is_new_key: bool = False


def sent_again(known: KnownRuns, pending: Mapping[Kind, int], base_url: str, *, requires_ledger: bool) -> Ending | None:
    """Stops where the ledger does not know what was accepted."""
    what = records_in_words(pending)
    if known.damage:
        return _stop(
            f"{what} would be sent, accepted or not: {known.damage}",
            "Put it back from a backup.",
            "If Iterable has all of it: run with --baseline --yes, which records everything as accepted. It sets the "
            "damaged file aside.",
        )
    if known.unknown_run is not None and known.is_empty:
        return _stop(
            f"{what} would be sent, accepted or not: the ledger knows nothing of this project, to which run "
            f"{known.unknown_run} delivered.",
            f"Put {LEDGER_NAME} back.",
            BASELINE,
        )
    if known.unknown_run is not None:
        return _stop(
            f"{what} would be sent, some of them again: the ledger is older than run {known.unknown_run}, which it "
            "does not know.",
            f"Put {LEDGER_NAME} back as that run left it.",
            BASELINE,
        )
    if known.is_new_key:
        return _stop(
            f"{what} would be sent, accepted or not: the API key is new to the ledger, which knows others for "
            f"{base_url}.",
            "If the key was only rotated: run once with the old key and ITERABLE_PROJECT=name, and keep that name.",
            BASELINE,
        )
    if requires_ledger and known.is_empty:
        return _stop(
            f"{what} would be sent, accepted or not: the ledger knows nothing of this project, and "
            "REQUIRE_LEDGER=true.",
            f"Put {LEDGER_NAME} back.",
            BASELINE,
        )
    return None


def full_over_accepted(again: Mapping[Kind, int]) -> Ending | None:
    """Stops where --full would send what was accepted as it is. again: how many records that are."""
    if not any(again.values()):
        return None
    starts = " and ".join(text for kind, text in ((Kind.USER, "fields"), (Kind.EVENT, "events")) if again[kind])
    return _stop(
        f"--full would send {records_in_words(again)} again that Iterable has accepted as they are, and {starts} start "
        "journeys again."
    )


def records_in_words(numbers: Mapping[Kind, int]) -> str:
    """`12 users and 1 event`"""
    return " and ".join(counted(numbers[kind], kind.value) for kind in Kind if numbers[kind])


def _stop(text: str, *ways_on: str) -> Ending:
    return Ending(ExitCode.BRAKE, f"{text} Nothing was sent.", (*ways_on, OVERRIDE_HINT))
