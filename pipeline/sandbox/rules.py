"""What Iterable accepts and refuses: addresses, ids, the shape of a request, JWTs.

Values in, a verdict or an ApiError out. Nothing here knows what the project holds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import jwt

from pipeline.sandbox.exchange import ApiError, Json

MAX_JWT_LIFETIME_S = 31_536_000  # "no more than one year/31536000 seconds after iat" (JWT-Enabled API Keys)
MAX_EVENT_ID_BYTES = 512  # as Tealium's connector documents it

# --- Identities

# After Apache Commons EmailValidator, which Iterable names as its check (Email Validation in Iterable).
_ATOM = r"[^\s\x00-\x1f\x7f()<>@,;:\\\".\[\]]+"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_TLD = r"[A-Za-z]{2,63}|xn--[A-Za-z0-9-]{2,59}"
_EMAIL = re.compile(rf"(?P<local>{_ATOM}(?:\.{_ATOM})*)@(?:{_LABEL}\.)+(?P<tld>{_TLD})")
_MADE_UP_TLDS = frozenset({"example", "invalid", "local", "localhost", "test"})
# "empty, too long, or containing non-ASCII or non-printable characters or a trailing space" (Swagger); at most 52
# characters (Project Types and Unique Identifiers).
_USER_ID = re.compile(r"[ -~]{0,51}[!-~]")


@lru_cache(maxsize=65_536)
def is_email(text: str) -> bool:
    """True if Iterable would accept this address. It refuses made-up top-level domains like `.invalid`."""
    match = _EMAIL.fullmatch(text)
    return match is not None and len(match["local"]) <= 64 and match["tld"].lower() not in _MADE_UP_TLDS


def is_user_id(text: str) -> bool:
    return _USER_ID.fullmatch(text) is not None


# --- The shape of a request

USER_SHAPE: Mapping[str, type] = {
    "email": str,
    "userId": str,
    "dataFields": dict,
    "preferUserId": bool,
    "mergeNestedObjects": bool,
    "createNewFields": bool,
}
EVENT_SHAPE: Mapping[str, type] = {
    "email": str,
    "userId": str,
    "eventName": str,
    "id": str,
    "createdAt": int,
    "dataFields": dict,
    "campaignId": int,
    "templateId": int,
    "createNewFields": bool,
}
EVENT_CHANGES = dict(EVENT_SHAPE)  # made by hand; the name may be missing
EMAIL_SHAPE: Mapping[str, type] = {"currentEmail": str, "currentUserId": str, "newEmail": str}  # of updateEmail
# "Number value expected" is in an answer of 2024; the others are modelled on it (INF).
_EXPECTED = {
    bool: "Boolean value expected",
    dict: "Object value expected",
    int: "Number value expected",
    list: "Array value expected",
    str: "String value expected",
}
_MISSING = [{"msg": "error.path.missing", "args": []}]  # recorded in 2017, for an event without eventName


def parse_record(path: str, body: bytes, shape: Mapping[str, type]) -> Json:
    """The one record of a single call. Raises BadJsonBody."""
    record = _parse(path, body)
    _refuse_problems(path, dict(_shape_problems(record, shape, "obj")))
    return record  # type: ignore[no-any-return]  # _shape_problems has seen that it is an object


def parse_records(path: str, body: bytes, name: str, shape: Mapping[str, type]) -> list[Json]:
    """The records of a bulk call. One wrong type in one of them, `obj.events[1].createdAt`, and all are refused."""
    request = _parse(path, body)
    if type(request) is not dict:
        _refuse_problems(path, {"obj": _EXPECTED[dict]})
    records = request.get(name)
    if type(records) is not list:
        _refuse_problems(path, {f"obj.{name}": _MISSING if records is None else _EXPECTED[list]})
    problems: Json = {}
    for index, record in enumerate(records):
        problems.update(_shape_problems(record, shape, f"obj.{name}[{index}]"))
    _refuse_problems(path, problems)
    return records  # type: ignore[no-any-return]


def _parse(path: str, body: bytes) -> Any:
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ApiError(400, "BadJsonBody", f"[{path}] Invalid JSON body", {}) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # NaN and Infinity, which Python's json would take


def _refuse_problems(path: str, problems: Json) -> None:
    if problems:
        raise ApiError(400, "BadJsonBody", f"[{path}] Invalid JSON body", problems)


def _shape_problems(record: Any, shape: Mapping[str, type], where: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(record, dict):
        yield where, _EXPECTED[dict]
        return
    required = "eventName" if shape is EVENT_SHAPE else "newEmail" if shape is EMAIL_SHAPE else None
    if required is not None and record.get(required) is None:
        yield f"{where}.{required}", _MISSING
    for name, value in record.items():
        expected = shape.get(name)
        if expected is None or value is None:
            continue
        if type(value) is not expected or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            yield f"{where}.{name}", _EXPECTED[expected]
        elif name == "id" and len(str(value).encode("utf-8", "surrogatepass")) > MAX_EVENT_ID_BYTES:
            yield f"{where}.{name}", f"Length must be at most {MAX_EVENT_ID_BYTES} bytes"


# --- JWTs


def read_claims(authorization: str, secret: str, strict: bool) -> Json:
    """The claims of a `Bearer` token. A bad one is a ValueError in Iterable's words, which its mobile SDKs compare."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise ValueError("JWT format is invalid")
    try:
        payload = jwt.PyJWS().decode(token, secret, algorithms=["HS256"])
    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
        raise ValueError("JWT is invalid") from None
    except jwt.InvalidTokenError:
        raise ValueError("JWT format is invalid") from None
    try:
        claims = json.loads(payload)
    except ValueError:
        raise ValueError("Invalid payload") from None
    _check_claims(claims, strict)
    return claims  # type: ignore[no-any-return]


def _check_claims(claims: Any, strict: bool) -> None:
    if not isinstance(claims, dict) or type(claims.get("iat")) is not int or type(claims.get("exp")) is not int:
        raise ValueError("Invalid payload")  # "must be a number (integer), not a string" (JWT-Enabled API Keys)
    if strict and set(claims) - {"email", "userId", "iat", "exp"}:
        raise ValueError("Invalid payload")
    if (claims.get("email") is None) == (claims.get("userId") is None):
        raise ValueError("JWT payload requires a value for userId or email")
    if claims["exp"] - claims["iat"] > MAX_JWT_LIFETIME_S:
        raise ValueError("Exp must be less than 1 year from iat")
    if claims["exp"] <= time.time():
        raise ValueError("JWT token is expired")


def names_same_user(claims: Json, body: bytes) -> bool:
    """True if the request is about the token's user, or if it can't be read, which parse_record reports."""
    try:
        record = json.loads(body)
    except ValueError:
        return True
    if not isinstance(record, dict):
        return True
    if claims.get("userId") is not None:
        return bool(record.get("userId", record.get("currentUserId")) == claims["userId"])
    return str(record.get("email", record.get("currentEmail", ""))).lower() == str(claims["email"]).lower()
