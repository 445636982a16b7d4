"""The endpoints that read: one user, the fields of users, who is forgotten. For server-side keys only.

Known from the Swagger file of August 2026, and from recordings: `{}` for an unknown address (2021), the plain text for
an unknown userId (2017).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote

from pipeline.sandbox.exchange import Answer, ApiError, Json, json_answer
from pipeline.sandbox.fields import date_text, read_back
from pipeline.sandbox.rules import is_email

if TYPE_CHECKING:
    from pipeline.sandbox.project import Project

GET_FIELDS = "/api/users/getFields"
GET_BY_EMAIL = "/api/users/getByEmail"
BY_USER_ID = "/api/users/byUserId"
FORGOTTEN = "/api/users/forgotten"
FORGOTTEN_USER_IDS = "/api/users/forgottenUserIds"

Reader = Callable[["Project", str], Answer]

_NO_SUCH_ID = Answer(400, b"No user with that id exists!", {"Content-Type": "text/plain; charset=utf-8"})


def endpoint_of(path: str) -> str:
    """The endpoint that a path belongs to: "/api/users/byUserId/u-17" -> "/api/users/byUserId"."""
    if path.startswith(f"{BY_USER_ID}/"):
        user_id = path[len(BY_USER_ID) + 1 :]
        return BY_USER_ID if user_id and "/" not in user_id else path
    return path


# --- Each endpoint: the project and the target of the request, query included -> the answer


def _get_fields(project: Project, target: str) -> Answer:
    return json_answer({"fields": project.user_field_types})


def _get_by_email(project: Project, target: str) -> Answer:
    email = _parameter(target, "email")
    if not is_email(email):
        raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {email}")  # INF
    key = project.find(email=email)
    return json_answer({} if key is None else {"user": _profile(project, key)})


def _by_user_id(project: Project, target: str) -> Answer:
    in_path = unquote(target.partition("?")[0][len(BY_USER_ID) + 1 :])
    key = project.find(user_id=in_path or _parameter(target, "userId"))
    if key is not None:
        return json_answer({"user": _profile(project, key)})
    return _NO_SUCH_ID if project.unknown_user_id == "400" else json_answer({})


def _forgotten(project: Project, target: str) -> Answer:
    _refuse_in(project, "userId")
    return json_answer({"hashedEmails": _hashes(each for each in project.forgotten if not _is_user_id(project, each))})


def _forgotten_user_ids(project: Project, target: str) -> Answer:
    _refuse_in(project, "email")
    return json_answer({"hashedUserIds": _hashes(each for each in project.forgotten if _is_user_id(project, each))})


READERS: dict[str, Reader] = {
    GET_FIELDS: _get_fields,
    GET_BY_EMAIL: _get_by_email,
    BY_USER_ID: _by_user_id,
    FORGOTTEN: _forgotten,
    FORGOTTEN_USER_IDS: _forgotten_user_ids,
}


# --- What they share


def _parameter(target: str, name: str) -> str:
    values = parse_qs(target.partition("?")[2], keep_blank_values=True).get(name)
    if not values:
        raise ApiError(400, "BadParams", f"Missing parameter: {name}")  # INF
    return values[0]


def _profile(project: Project, key: str) -> Json:
    """A user with what Iterable adds itself; a field of the same name that was sent stays (`signupDate`, recorded)."""
    user = project.users[key]
    added: Json = {name: user[name] for name in ("email", "userId") if user[name] is not None}
    if key in project.created_at:  # not in a project that only counts
        added["signupDate"] = _date(project.created_at[key])
        added["profileUpdatedAt"] = _date(project.updated_at[key])
    return {**user, "dataFields": {**added, **read_back(user["dataFields"], project.user_field_types)}}


def _date(unix_time: float) -> str:
    return date_text(datetime.fromtimestamp(unix_time, timezone.utc))


def _refuse_in(project: Project, project_type: str) -> None:
    if project.project_type == project_type:
        # That there is an error is documented; its status and text are INF.
        raise ApiError(400, "BadParams", f"Not available in projects of type {project_type}")


def _is_user_id(project: Project, identity: str) -> bool:
    if project.project_type == "hybrid":
        return not is_email(identity)
    return project.project_type == "userId"


def _hashes(identities: Iterable[str]) -> list[str]:
    return sorted(hashlib.sha256(each.strip().lower().encode()).hexdigest() for each in identities)
