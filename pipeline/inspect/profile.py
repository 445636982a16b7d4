"""One person's profile and events in Iterable, read; and what it means where they can't be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iterable_client import Failure
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
    return ok, answer.get("user") or {} if ok else answer


def get_events(session: InspectionSession, identity: str) -> tuple[bool, dict[str, Any]]:
    """(True, {"events": [...]}), (True, {}) for a person whom Iterable does not know, or (False, the details)."""
    who = {"user_id" if session.by_user_id else "email": identity}
    return session.client.get_events(**who, limit=MAX_EVENTS)


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
