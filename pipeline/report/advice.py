"""What to do about records that were not delivered: by Iterable's code, or by one of ours."""

from __future__ import annotations

from pipeline.model.failure_policy import CHECK_KEY, FORGOTTEN, KEEPS_FAILING, UNKNOWN_USER_CODES
from pipeline.model.records import Outcome

# What to do about a record: by Iterable's code, the list of a bulk answer, or a code of ours; else by its outcome.
_FIX_ADDRESS = "fix the addresses, or leave these people out of the query"
_FIX_USER_ID = "fix the user ids: 1 to 52 printable ASCII characters"
_FIX_TYPE = "main.py --check names the fields whose types clash"
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
    "EmailChanged": "change the address in Iterable, then run with --baseline --only; or set EMAIL_CHANGES",
    "EventIdConflict": "give each event an id of its own, as ids are unique in the whole project",
    FORGOTTEN: "--forget has forgotten these people; leave them out of the query",
    KEEPS_FAILING: "see what the message says; each run tries them again, after all others",
    "JwtUserIdentifiersMismatched": "check that these people are in the project under this address or id",
    "InvalidJwtPayload": "check ITERABLE_JWT_SECRET, this machine's clock, and that these people are in the project",
}
OUTCOME_ADVICE = {
    Outcome.UNACKNOWLEDGED: "the next run sends them again, and no event is doubled",
    Outcome.NOT_ATTEMPTED: "the next run sends them",
    Outcome.REJECTED: "fix what the message names; until then, each run that reads them tries them again",
}


BRAKED = "choose one of the ways to go on; until then, each run stops here"


def advice_for(outcome: Outcome, code: str | None, *, is_braked: bool = False) -> str:
    """What to do about records that ended so. is_braked: so that the next run would stop, too."""
    if is_braked and outcome is Outcome.NOT_ATTEMPTED:
        return BRAKED
    if outcome is Outcome.REJECTED and code in CODE_ADVICE:
        return CODE_ADVICE[code]
    return OUTCOME_ADVICE[outcome]
