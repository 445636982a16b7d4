"""One person's profile and events in Iterable, read; and what it means where they can't be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iterable_client import MAX_PERSON_BYTES, Failure
from pipeline.inspect.event_readback import MAX_EVENTS
from pipeline.inspect.session import InspectionSession
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.failure_policy import POLICIES

CLIENT_SIDE = "A client-side key (JWT-enabled, mobile or web) can't read users; a server-side key of the project can."


class ClientSideKeyError(RunError):
    """The key can't read what was asked for."""

    code = ExitCode.SETTINGS


def get_user(session: InspectionSession, identity: str) -> tuple[bool, dict[str, Any]]:
    """(True, Iterable's profile, {} for a person whom it does not know), or (False, the details of the failure)."""
    ok, answer = (
        session.client.get_user(user_id=identity) if session.by_user_id else session.client.get_user(email=identity)
    )
    if not ok or not answer:
        return ok, answer if ok else _of_one_person(answer)
    profile = answer.get("user")
    if not (isinstance(profile, dict) and profile and isinstance(profile.get("dataFields", {}), (dict, type(None)))):
        return False, _no_answer("a profile")
    name = profile.get("userId" if session.by_user_id else "email", identity)
    if name != identity and (session.by_user_id or str(name).lower() != identity):
        return False, _no_answer("this person's profile")
    return True, profile


def get_events(session: InspectionSession, identity: str) -> tuple[bool, dict[str, Any]]:
    """(True, {"events": [...]}), (True, {}) for a person whom Iterable does not know, or (False, the details)."""
    who = {"user_id" if session.by_user_id else "email": identity}
    ok, answer = session.client.get_events(**who, limit=MAX_EVENTS)
    if not ok:
        return False, _of_one_person(answer)
    events = answer.get("events", [])
    if answer and (
        "events" not in answer or not isinstance(events, list) or not all(type(each) is dict for each in events)
    ):
        return False, _no_answer("a list of events")
    return True, answer


def _of_one_person(details: dict[str, Any]) -> dict[str, Any]:
    """An answer that is too long concerns this person alone, and not the line."""
    if f"more than {MAX_PERSON_BYTES} bytes" in details["error"]:
        return {**details, "failure": Failure.REJECTED}
    return details


def _no_answer(what: str) -> dict[str, Any]:
    """Details like those of a refusal: what Iterable has is not known, and so it is not missing."""
    return {"error": f"Iterable's answer is not {what}", "failure": Failure.REJECTED, "answer": None}


def is_client_side(details: Mapping[str, Any]) -> bool:
    """Whether Iterable refused a call as the key is for apps and web pages. It names the key's type [recorded]."""
    params = (details.get("answer") or {}).get("params")
    kind = params.get("apiKeyType") if isinstance(params, dict) else None
    return details["failure"] is Failure.BAD_API_KEY and kind not in (None, "ServerSide")


def why_not_read(details: Mapping[str, Any]) -> Ending:
    """What a failure to read means for the whole, in a sentence and an exit code."""
    policy = POLICIES[details["failure"]]
    advice = "Try again later." if policy.code is ExitCode.TEMPORARY else policy.advice
    if is_client_side(details):
        advice = CLIENT_SIDE
    return Ending(policy.code, f"{str(details['error']).rstrip('.')}. {advice}")
