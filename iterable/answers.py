"""What an answer of Iterable means: an HTTP answer -> success or `Failure`, and the lists of a bulk answer.

Pure functions; nothing here sends or logs. [swagger] is Iterable's own API description (version 1.8).
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

RETRYABLE_STATUS_CODES = frozenset({408, 429, 500, 502, 503, 504})
MAX_WAIT_S = 60.0

# Where a call's answer is no {"msg", "code", "params"} object, the key that it has instead [swagger].
_ANSWER_KEYS = {
    "users/bulkUpdate": "successCount",
    "events/trackBulk": "successCount",
    "users/getFields": "fields",
    "users/getByEmail": "user",
    "users/byUserId": "user",
    "users/forgotten": "hashedEmails",
    "users/forgottenUserIds": "hashedUserIds",
    "events/byEmail": "events",
    "events/byUserId": "events",
    "journeys": "journeys",
}
_KEYS_OF_ONE_USER = ("user", "events")  # {} instead: there is no such user
_NO_SUCH_USER = "No user with that id exists!"  # 400 as plain text; recorded in 2017
_DISALLOWED = "is disallowed from tracking"
_ECHO = re.compile(r"\bbody:.*", re.IGNORECASE | re.DOTALL)  # Iterable has quoted a request's body and headers after it


class Failure(str, Enum):
    """Why a call failed, as far as it decides what to do next."""

    REJECTED = "rejected"  # Iterable refuses it, or it can't be sent at all; the same request would fare no better
    UNACKNOWLEDGED = "unacknowledged"  # out of attempts: it may or may not have arrived
    UNREADABLE = "unreadable"  # an answer that is not Iterable's, such as a page of HTML
    BAD_API_KEY = "bad_api_key"  # every later call would fail the same way
    UNAUTHORIZED = "unauthorized"  # another 401 or 403; may concern this record alone
    REDIRECTED = "redirected"  # not followed: it would carry the key to another address
    BAD_CERTIFICATE = "bad_certificate"
    PROXY_REFUSED = "proxy_refused"  # a proxy on the way lets nothing through
    THROTTLED = "throttled"  # asked to wait longer than MAX_WAIT_S
    ABANDONED = "abandoned"  # `sleep` raised Abandoned; with 0 attempts, nothing was sent


@dataclass(frozen=True)
class Answer:
    """What one attempt brought back. No status_code: nothing came back, and `problem` says why."""

    status_code: int | None
    body: dict[str, Any] | None = None
    text: str = ""
    retry_after_s: float = 0.0  # how long it asks to wait
    problem: str = ""
    failure: Failure | None = None


# Bytes -> Answer ------------------------------------------------------------------------------------------------------


def read_answer(status_code: int, content: bytes, retry_after: str | None, now: float) -> Answer:
    """Never raises for what is in the bytes. `retry_after`: that header."""
    text = content.decode("utf-8-sig", errors="replace")
    del content  # which may be large
    body = parse_object(text)
    wait_s = _parse_retry_after(retry_after, now)
    if status_code == 429:
        wait_s = max(wait_s, _rate_limit_reset(body))
    return Answer(status_code, body, text, wait_s)


def parse_object(text: str) -> dict[str, Any] | None:
    """JSON text -> its object; None for anything else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _rate_limit_reset(body: Mapping[str, Any] | None) -> float:
    """`params.rateLimitReset` of a 429, in seconds [swagger, since August 2026]; 0 if missing or not a number."""
    params = (body or {}).get("params")
    value = params.get("rateLimitReset") if isinstance(params, dict) else None
    try:
        seconds = float(value) if isinstance(value, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def rewrite(answer: Answer, change: Callable[[str], str]) -> Answer:
    """The answer with its text changed. JSON is changed in its decoded form, where no escapes can hide anything."""
    if answer.body is None:
        return replace(answer, text=change(answer.text))
    try:
        text = change(json.dumps(answer.body, ensure_ascii=False))
    except RecursionError:
        text = ""
    return replace(answer, text=text, body=parse_object(text))


def _parse_retry_after(value: str | None, now: float) -> float:
    """`Retry-After`, as seconds or as an HTTP date -> seconds from now; 0 if missing, malformed or past."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def is_success(answer: Answer, name: str) -> bool:
    """200 is not success: the code must say so, and only `msg` shows that an event is blocked."""
    own_key = _ANSWER_KEYS.get(name)
    if own_key in _KEYS_OF_ONE_USER and ((_is_ok(answer) and answer.body == {}) or _says_no_such_user(answer)):
        return True
    if not _is_ok(answer) or answer.body is None:
        return False
    if own_key is not None:
        return own_key in answer.body
    return answer.body.get("code") == "Success" and not is_disallowed(answer.body)


def _is_ok(answer: Answer) -> bool:
    return answer.status_code is not None and 200 <= answer.status_code < 300


def _says_no_such_user(answer: Answer) -> bool:
    return answer.status_code == 400 and answer.text.strip() == _NO_SUCH_USER


def is_disallowed(body: Mapping[str, Any] | None) -> bool:
    """The event's name is blocked in the project, and nothing was stored (block/iterable-go looks for it, too)."""
    return _DISALLOWED in str((body or {}).get("msg"))


@dataclass(frozen=True)
class BulkFailures:
    """What a bulk answer says of its failures; Iterable lists ids, not positions, and may count more than it lists.

    listed: id -> (reason, how often it is listed), for example {"bad@": ("invalidEmails", 1)}. E-mails in lower case.
    """

    success_count: int
    fail_count: int
    listed: dict[str, tuple[str, int]]
    disallowed_event_names: frozenset[str]
    filtered_out_fields: frozenset[str]
    created_fields: frozenset[str]


def read_failures(answer: Mapping[str, Any]) -> BulkFailures | None:
    """The answer of a bulk call -> its failures; None where its counts are no numbers.

    Every list is optional, and unknown keys are ignored [swagger]. The deprecated lists at the top repeat
    those in `failedUpdates`.
    """
    counts = answer.get("successCount"), answer.get("failCount")
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    nested = answer.get("failedUpdates")
    deprecated = [(reason, answer.get(reason)) for reason in ("invalidEmails", "invalidUserIds")]
    listed: dict[str, tuple[str, int]] = {}
    for reason, names in [*(nested.items() if isinstance(nested, dict) else ()), *deprecated]:
        if reason.endswith(("Emails", "UserIds")):
            is_email = reason.endswith("Emails")
            for name, times in Counter(each.lower() if is_email else each for each in _strings(names)).items():
                if name not in listed or listed[name][1] < times:
                    listed[name] = (reason, times)
    return BulkFailures(
        success_count=answer["successCount"],
        fail_count=answer["failCount"],
        listed=listed,
        disallowed_event_names=frozenset(_strings(answer.get("disallowedEventNames"))),
        filtered_out_fields=frozenset(_strings(answer.get("filteredOutFields"))),
        created_fields=frozenset(_strings(answer.get("createdFields"))),
    )


def failed_in(answer: Mapping[str, Any]) -> dict[str, str]:
    """What a bulk call refused although it went well: {"bad@": "invalidEmails"}. Empty where all was accepted.

    The keys are e-mail addresses (in lower case), user ids, and the names of events that the project blocks. Where
    Iterable counts more failures than it names, "?" has their number: {"?": "2 more"}.
    """
    failures = read_failures(answer)
    if failures is None:
        return {"?": "its answer has no counts"}
    named = {identity: reason for identity, (reason, _) in failures.listed.items()}
    named |= dict.fromkeys(sorted(failures.disallowed_event_names), "disallowedEventNames")
    more = failures.fail_count - sum(times for _, times in failures.listed.values())
    if more > 0 and not failures.disallowed_event_names:  # it does not name which of its events were blocked
        named["?"] = f"{more} more"
    return named


def read_indices(answer: Mapping[str, Any] | None) -> frozenset[int]:
    """The positions that a refused batch names in `params`: {"obj.events[3].createdAt": ...} -> {3}."""
    params = (answer or {}).get("params")
    names = params if isinstance(params, dict) else {}
    found = (re.match(r"obj\.(?:users|events)[\[(](\d{1,9})[\])]", str(name)) for name in names)
    return frozenset(int(match.group(1)) for match in found if match)


def _strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def classify(answer: Answer, attempts: int) -> Failure:
    """Status first, then code: error bodies have been seen with code Success."""
    status_code, body = answer.status_code, answer.body or {}
    code = body.get("code")
    if answer.failure is not None:
        return answer.failure
    if status_code is None:
        return Failure.UNACKNOWLEDGED if attempts else Failure.REJECTED
    if status_code in RETRYABLE_STATUS_CODES:
        return Failure.THROTTLED if answer.retry_after_s > MAX_WAIT_S else Failure.UNACKNOWLEDGED
    if status_code == 401 and (code == "BadApiKey" or "Invalid API key" in str(body.get("msg"))):
        return Failure.BAD_API_KEY
    if status_code == 407:  # only a proxy says so
        return Failure.PROXY_REFUSED
    if status_code == 413:  # a gateway may say it, too, and a smaller request passes it
        return Failure.REJECTED
    if code == "JwtUserIdentifiersMismatched":  # 401 or 400: the record's own identifiers differ from the token's
        return Failure.REJECTED
    if answer.body is None and (status_code < 300 or _is_page_or_nothing(answer.text)):
        return Failure.UNREADABLE
    if status_code < 300 and (not isinstance(code, str) or (code == "Success" and not is_disallowed(body))):
        return Failure.UNREADABLE
    if status_code in (401, 403):
        return Failure.UNAUTHORIZED
    return Failure.UNACKNOWLEDGED if status_code >= 500 else Failure.REJECTED


def _is_page_or_nothing(text: str) -> bool:
    return text.lstrip()[:1] in ("<", "")


def what_it_says(answer: Answer) -> str:
    """The answer's own words, without an echo of the request, which holds personal data.

    Iterable has errors as {msg, code} and as {error, message, code} [swagger].
    """
    if answer.status_code is None:
        return answer.problem
    if answer.body is None:
        return _ECHO.sub("body: ...", answer.text)
    body = answer.body
    said = (body.get("code"), body.get("msg") or body.get("message") or body.get("error"))
    text = ": ".join(str(each) for each in said if each)
    return _ECHO.sub("body: ...", text) or "an answer not in Iterable's form"


def describe_success(body: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether some records of a batch failed, and what the log says after `call successful: `."""
    failures = read_failures(body) if "failCount" in body else None
    if failures is None:
        return False, "Success"
    return failures.fail_count > 0, f"{failures.success_count} accepted, {failures.fail_count} failed"


def describe(answer: Answer, said: str, attempts: int) -> str:
    """How a failed call is described, after its name: `call failed: 400 BadParams: ... (1 attempt)`.

    said: what may be shown of the answer's own words.
    """
    status = "" if answer.status_code is None else f"{answer.status_code} "
    tries = f"{attempts} attempt{'' if attempts == 1 else 's'}"
    wait = f"; told to wait {answer.retry_after_s:.0f} s" if answer.retry_after_s > MAX_WAIT_S else ""
    return f"call failed: {status}{said or 'an empty answer'} ({tries}{wait})"


_DESCRIBED = re.compile(r"(call failed: \d{3} )(.*)(?= \(\d+ attempts?[;)])", re.DOTALL)


def without_words(sentence: str, *, known_codes: Container[str]) -> str:
    """A sentence with such a description, of whose words only a known code is left: the others may quote a person.

    `... call failed: 400 BadParams: Bob is odd (1 attempt).` -> `... call failed: 400 BadParams (1 attempt).`
    """

    def code_of(match: re.Match[str]) -> str:
        code = match[2].partition(":")[0]
        return match[1] + (code if code in known_codes else "in words only the log has")

    return _DESCRIBED.sub(code_of, sentence)
