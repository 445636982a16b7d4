"""What each failure of a request does to its records, to their batch and to the run: one table.

`iterable.answers.Failure` says what an answer means; a new one is one line in POLICIES.
"""

from __future__ import annotations

from dataclasses import dataclass

from iterable.answers import Failure
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.records import Outcome

CHECK_KEY = (
    "Check ITERABLE_API_KEY (with USE_JWT_AUTH=true, ITERABLE_JWT_SECRET, too), and that ITERABLE_BASE_URL is its data "
    "center."
)
CHECK_ADDRESS = "Check ITERABLE_BASE_URL and, behind a proxy, ITERABLE_PROXY and ITERABLE_CA_BUNDLE."
GO_ON = "The next run continues where this one stopped."


@dataclass(frozen=True)
class FailurePolicy:
    """What a failure means for its records, for their batch, and for the run.

    outcome: what its records become. ends_run_after: after so many failed calls in a row, no other begins until it is
    known whether the records are to blame; 1: the run ends at once; 0: they always are. code, advice: how the run ends
    where they are not. divided_for: the statuses for which a smaller batch may fare better (None: no answer).
    divided_once_accepted: those for which this is so once Iterable has accepted anything else in this run, or
    answered at all, where the failure is that it did not.
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

    @property
    def is_suspect(self) -> bool:
        """Whether the key, the address or a proxy may be to blame, and not the record."""
        return self.code in (ExitCode.CREDENTIALS, ExitCode.NOT_ITERABLE)


_ANY_4XX = frozenset(range(400, 500))
_NO_ANSWER_OR_5XX = frozenset({None, 500, 502, 503, 504})

# Of Iterable's 500s, too, some are recorded for bad input [iterable-api-client, 2017].
POLICIES: dict[Failure, FailurePolicy] = {
    Failure.REJECTED: FailurePolicy(
        Outcome.REJECTED, divided_for=frozenset({400, 409, 413}), divided_once_accepted=_ANY_4XX
    ),
    Failure.UNACKNOWLEDGED: FailurePolicy(Outcome.UNACKNOWLEDGED, 5, divided_once_accepted=_NO_ANSWER_OR_5XX),
    Failure.UNREADABLE: FailurePolicy(
        Outcome.UNACKNOWLEDGED, 3, ExitCode.NOT_ITERABLE, CHECK_ADDRESS, divided_once_accepted=_ANY_4XX
    ),
    Failure.UNAUTHORIZED: FailurePolicy(
        Outcome.REJECTED, 3, ExitCode.CREDENTIALS, CHECK_KEY, divided_once_accepted=frozenset({403})
    ),
    Failure.BAD_API_KEY: FailurePolicy(Outcome.UNACKNOWLEDGED, 1, ExitCode.CREDENTIALS, CHECK_KEY),
    Failure.REDIRECTED: FailurePolicy(Outcome.UNACKNOWLEDGED, 1, ExitCode.NOT_ITERABLE, CHECK_ADDRESS),
    Failure.BAD_CERTIFICATE: FailurePolicy(Outcome.UNACKNOWLEDGED, 1, ExitCode.NOT_ITERABLE, CHECK_ADDRESS),
    Failure.PROXY_REFUSED: FailurePolicy(Outcome.UNACKNOWLEDGED, 1, ExitCode.NOT_ITERABLE, CHECK_ADDRESS),
    Failure.THROTTLED: FailurePolicy(Outcome.UNACKNOWLEDGED, 1),
    Failure.ABANDONED: FailurePolicy(Outcome.UNACKNOWLEDGED),
}


def stopped_by(failure: Failure, message: str, in_a_row: int) -> Ending:
    """How a run ends that this failure has stopped. message: its description. in_a_row: how many came together."""
    policy = POLICIES[failure]
    has_counted = in_a_row > 1 and not policy.ends_run_at_once
    count = f" Stopped after {in_a_row} consecutive failures." if has_counted else ""
    return Ending(policy.code, f"{message.rstrip('.')}.{count} {policy.advice}")


EVENT_ID_CONFLICT = "EventIdConflict"  # our code for events that share an id
FORGOTTEN = "Forgotten"  # our code for people who were forgotten by --forget
KEEPS_FAILING = "KeepsFailing"  # our code for a record that was not acknowledged in three runs in a row

# That Iterable does not know the user of an event, in single answers and in bulk ones.
UNKNOWN_USER_CODES = frozenset({"UnknownEmailError", "UnknownUserIdError", "notFoundEmails", "notFoundUserIds"})

# Codes of rejections whose reason lies in the row itself: once that is fixed, the row has changed, and will be read.
FIXED_BY_EDITING_ROW = frozenset(
    {"InvalidRecord", "InvalidEmailAddressError", "invalidEmails", "InvalidUserIdError", "invalidUserIds"}
    | {"OmittedValue"}
)
IN_THE_FUTURE = "is more than a day in the future"  # an InvalidRecord that time makes valid


def may_pass(code: str | None, message: str) -> bool:
    """Whether the same record may be accepted later, although its row does not change: once the project's settings are
    fixed, the person has returned, or time has passed."""
    return code not in FIXED_BY_EDITING_ROW or IN_THE_FUTURE in message


_DOCUMENTED_CODES = """
    Success BadApiKey BadAuthorizationHeader BadJsonBody BadParams BatchTooLarge DatabaseError EmailAlreadyExists
    ExternalKeyConflict Forbidden ForbiddenParamsError ForgottenUserError GenericError InvalidEmailAddressError
    InvalidJwtPayload InvalidUserIdError JwtUserIdentifiersMismatched NotFound QueueEmailError RateLimitExceeded
    RequestFieldsTypesMismatched Unauthorized UniqueFieldsLimitExceeded UnknownEmailError UnknownUserIdError
    UserIdAlreadyExists invalidEmails invalidUserIds notFoundEmails notFoundUserIds invalidDataEmails
    invalidDataUserIds conflictEmails conflictUserIds forgottenEmails forgottenUserIds disallowedEventNames
"""
ITERABLE_CODES = frozenset(_DOCUMENTED_CODES.split())  # [swagger]; any other text may quote a person
OUR_CODES = frozenset({"InvalidRecord", KEEPS_FAILING, "EmailChanged", EVENT_ID_CONFLICT, "OmittedValue", FORGOTTEN})
