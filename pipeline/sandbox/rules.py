"""What Iterable takes and what it refuses: addresses, ids, the shape of a request, field types, JWTs.

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
    """True if Iterable would take this address; one at a made-up top-level domain like `.invalid` it would not."""
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
# "Number value expected" is in an answer of 2024; the others are made like it (INF).
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
    """The records of a bulk call. One wrong type in one of them, `obj.events[1].createdAt`, and none is taken."""
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
    if shape is EVENT_SHAPE and record.get("eventName") is None:
        yield f"{where}.eventName", _MISSING
    for name, value in record.items():
        expected = shape.get(name)
        if expected is None or value is None:
            continue
        if type(value) is not expected or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            yield f"{where}.{name}", _EXPECTED[expected]
        elif name == "id" and len(str(value).encode("utf-8", "surrogatepass")) > MAX_EVENT_ID_BYTES:
            yield f"{where}.{name}", f"Length must be at most {MAX_EVENT_ID_BYTES} bytes"


# --- Field types

# The date forms that block/iterable-go takes from Iterable's article on field types: a fraction only after a T.
_DATE = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"(?: \d\d:\d\d:\d\d(?: [+-]\d\d:\d\d)?|T\d\d:\d\d:\d\d\.\d{3}(?:Z|[+-]\d\d:\d\d))?"
)
_TYPE_NAMES = {bool: "boolean", int: "long", float: "double", dict: "object"}
# "string" with "keyword" is recorded; that a date may be text as well is INF.
_POSSIBLE_TYPES = {"string": ["string", "keyword"], "date": ["date", "string", "keyword"]}


def value_type(value: Any) -> str | None:
    """The type that this value gives to a new field; None where it tells nothing (null, an empty list).

    "2026-01-13" -> "date", "pro" -> "string", 5 -> "long". A list has the type of its elements: ["a"] -> "string".
    """
    if type(value) is str:
        return "date" if _DATE.fullmatch(value) else "string"
    if type(value) is list:
        return next((kind for kind in map(value_type, value) if kind), None)
    return _TYPE_NAMES.get(type(value))


class FieldCheck:
    """The fields of one request against the types known so far: "The first value sets the type for ever" (Field Data
    Types). It changes nothing; what is new stands in `fresh`, by category ("user", or the event's name).
    """

    def __init__(self, strict_numbers: bool) -> None:
        self._strict_numbers = strict_numbers
        self._errors: dict[str, Json] = {}
        self.fresh: dict[str, dict[str, str]] = {}

    def look_at(self, category: str, known: Mapping[str, str], data_fields: Json) -> None:
        fresh = self.fresh.setdefault(category, {})
        for name, value in data_fields.items():
            kind = value_type(value)
            expected = known.get(name) or fresh.get(name)
            if kind == expected or kind is None:
                continue
            if expected is None:
                fresh[name] = kind
            elif not self._fits(kind, expected):
                self._errors.setdefault(name, _type_error(category, value, kind, expected))

    def raise_errors(self) -> None:
        """Raises what was recorded for users/update in 2021; for events, and for several fields, it is INF."""
        if not self._errors:
            return
        msg = "Project 1: The request does not have the same data types as the data previously submitted."
        for name, error in self._errors.items():
            msg += (
                f" Field '{name}' already exists for type '{error['category']}' and has a data type of "
                f"'{error['expectedType']}' but possible types '{', '.join(error['incomingTypes'])}' in the request."
            )
        raise ApiError(400, "RequestFieldsTypesMismatched", msg, {"validationErrors": self._errors})

    def _fits(self, kind: str, expected: str) -> bool:
        if kind == "date":
            return expected == "string"
        # No source says whether 5 may follow 5.5.
        return {kind, expected} == {"long", "double"} and not self._strict_numbers


def _type_error(category: str, value: Any, kind: str, expected: str) -> Json:
    return {
        "incomingTypes": _POSSIBLE_TYPES.get(kind, [kind]),
        "expectedType": expected,
        "_type": "UnexpectedType",
        "offendingValue": value,
        "category": category,
    }


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
    """True if the request is about the token's user; also if it can't be read, which is for parse_record to say."""
    try:
        record = json.loads(body)
    except ValueError:
        return True
    if not isinstance(record, dict):
        return True
    if claims.get("userId") is not None:
        return bool(record.get("userId") == claims["userId"])
    return str(record.get("email", "")).lower() == str(claims["email"]).lower()
