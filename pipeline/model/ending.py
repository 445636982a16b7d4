"""How a run ends: the exit codes, and the one table of what each failure of a request means.

A new failure is one line in FAILURES. A new error that ends a run before it sends anything is a subclass of RunError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from iterable_client import Failure
from pipeline.model.records import Outcome


class ExitCode(IntEnum):
    """How a run ends. Cron and the results JSON see it; the README explains it."""

    SUCCESS = 0
    REJECTED = 1
    USAGE = 2  # argparse's own
    BRAKE = 65
    NO_INPUT = 66
    BUG = 70
    NO_OUTPUT = 73
    TEMPORARY = 75
    NOT_ITERABLE = 76
    CREDENTIALS = 77
    SETTINGS = 78
    SIGINT = 130
    SIGTERM = 143


@dataclass(frozen=True)
class Ending:
    """The exit code, and the sentence for it."""

    code: ExitCode
    reason: str


class RunError(Exception):
    """What keeps a run from sending anything. The text is the whole message; each subclass has its exit code."""

    code: ExitCode = ExitCode.BUG


class UsageError(RunError):
    """The command line asks for what can't be."""

    code = ExitCode.USAGE


class OutputError(RunError):
    """A file of this run can't be written."""

    code = ExitCode.NO_OUTPUT


CHECK_KEY = (
    "Check ITERABLE_API_KEY (with USE_JWT_AUTH=true, ITERABLE_JWT_SECRET, too), and that ITERABLE_BASE_URL is its data "
    "center."
)
CHECK_ADDRESS = "Check ITERABLE_BASE_URL and, behind a proxy, ITERABLE_PROXY and ITERABLE_CA_BUNDLE."
GO_ON = "The next run continues where this one stopped."


@dataclass(frozen=True)
class Meaning:
    """What a failure means for its records, for their batch, and for the run.

    outcome: what its records become. ends_run_after: after so many failed calls in a row, no other begins until it is
    known whether the records are to blame; 1: the run ends at once; 0: they always are. code, advice: how the run ends
    where they are not. divided_for: the statuses for which a smaller batch may fare better (None: no answer).
    divided_once_accepted: those for which this is so once Iterable has accepted anything else in this run.
    """

    outcome: Outcome
    ends_run_after: int = 0
    code: ExitCode = ExitCode.TEMPORARY
    advice: str = GO_ON
    divided_for: frozenset[int | None] = frozenset()
    divided_once_accepted: frozenset[int | None] = frozenset()

    @property
    def ends_run_at_once(self) -> bool:
        return self.ends_run_after == 1


_ANY_4XX = frozenset(range(400, 500))
_NO_ANSWER_OR_5XX = frozenset({None, 500, 502, 503, 504})

# Of Iterable's 500s, too, some are recorded for bad input [iterable-api-client, 2017].
FAILURES: dict[Failure, Meaning] = {
    Failure.REJECTED: Meaning(Outcome.REJECTED, divided_for=frozenset({400, 409, 413}), divided_once_accepted=_ANY_4XX),
    Failure.UNACKNOWLEDGED: Meaning(Outcome.UNACKNOWLEDGED, 5, divided_once_accepted=_NO_ANSWER_OR_5XX),
    Failure.UNREADABLE: Meaning(
        Outcome.UNACKNOWLEDGED, 3, ExitCode.NOT_ITERABLE, CHECK_ADDRESS, divided_once_accepted=_ANY_4XX
    ),
    Failure.UNAUTHORIZED: Meaning(
        Outcome.REJECTED, 3, ExitCode.CREDENTIALS, CHECK_KEY, divided_once_accepted=frozenset({403})
    ),
    Failure.BAD_API_KEY: Meaning(Outcome.REJECTED, 1, ExitCode.CREDENTIALS, CHECK_KEY),
    Failure.REDIRECTED: Meaning(Outcome.UNACKNOWLEDGED, 1, ExitCode.NOT_ITERABLE, CHECK_ADDRESS),
    Failure.BAD_CERTIFICATE: Meaning(Outcome.UNACKNOWLEDGED, 1, ExitCode.NOT_ITERABLE, CHECK_ADDRESS),
    Failure.THROTTLED: Meaning(Outcome.UNACKNOWLEDGED, 1),
    Failure.ABANDONED: Meaning(Outcome.UNACKNOWLEDGED),
}


def stopped_by(failure: Failure, message: str, in_a_row: int) -> Ending:
    """How a run ends that this failure, told by `message`, has stopped; it was not the first one in a row."""
    meaning = FAILURES[failure]
    has_counted = in_a_row > 1 and not meaning.ends_run_at_once
    count = f" Stopped after {in_a_row} consecutive failures." if has_counted else ""
    return Ending(meaning.code, f"{message.rstrip('.')}.{count} {meaning.advice}")


KEEPS_FAILING = "KeepsFailing"  # our code for a record that was not acknowledged in three runs in a row

# That Iterable does not know the user of an event, in single answers and in bulk ones.
UNKNOWN_USER_CODES = frozenset({"UnknownEmailError", "UnknownUserIdError", "notFoundEmails", "notFoundUserIds"})

# What to do about a record: by Iterable's code, the list of a bulk answer, or a code of ours; else by its outcome.
_FIX_ADDRESS = "fix the addresses, or leave these people out of the query"
_FIX_USER_ID = "fix the user ids: 1 to 52 printable ASCII characters"
_FIX_TYPE = "python main.py --check names the fields whose types clash"
_FORGOTTEN = "these people asked to be forgotten; leave them out of the query"
_UNKNOWN_USER = "see why the update of these users was refused, and fix that first"
CODE_ADVICE = {
    "InvalidRecord": "fix these rows in the source, or leave them out of the query",
    **dict.fromkeys(("InvalidEmailAddressError", "invalidEmails"), _FIX_ADDRESS),
    **dict.fromkeys(("InvalidUserIdError", "invalidUserIds"), _FIX_USER_ID),
    **dict.fromkeys(("RequestFieldsTypesMismatched", "invalidDataEmails", "invalidDataUserIds"), _FIX_TYPE),
    **dict.fromkeys(("ForgottenUserError", "forgottenEmails", "forgottenUserIds"), _FORGOTTEN),
    **dict.fromkeys(UNKNOWN_USER_CODES, _UNKNOWN_USER),
    "disallowedEventNames": "allow the event's name in the project's settings, or send another one (EVENT_NAME)",
    "UniqueFieldsLimitExceeded": "the project has as many fields as it may; send fewer (USER_FIELDS, EVENT_FIELDS)",
    "BadApiKey": CHECK_KEY[0].lower() + CHECK_KEY[1:].rstrip("."),
    KEEPS_FAILING: "see what the message says; each run offers them again, after all others",
    "JwtUserIdentifiersMismatched": "check that these people are in the project under this address or id",
    "InvalidJwtPayload": "check ITERABLE_JWT_SECRET, this machine's clock, and that these people are in the project",
}
OUTCOME_ADVICE = {
    Outcome.UNACKNOWLEDGED: "the next run sends them again; nothing doubles",
    Outcome.NOT_ATTEMPTED: "the next run sends them",
    Outcome.REJECTED: "fix what the message names; until then, each run offers them again",
}


# Codes of rejections whose reason lies in the row itself: once that is fixed, the row has changed, and will be read.
LIES_IN_THE_ROW = frozenset(
    {
        "InvalidRecord",
        "InvalidEmailAddressError",
        "invalidEmails",
        "InvalidUserIdError",
        "invalidUserIds",
        KEEPS_FAILING,
    }
    | {"ForgottenUserError", "forgottenEmails", "forgottenUserIds"}
)


def advice_for(outcome: Outcome, code: str | None) -> str:
    """What to do about records that ended so."""
    if outcome is Outcome.REJECTED and code in CODE_ADVICE:
        return CODE_ADVICE[code]
    return OUTCOME_ADVICE[outcome]
