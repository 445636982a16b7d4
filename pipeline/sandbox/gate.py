"""What every request must pass before its content is looked at: its key, its token, the rate limit, its size.

A store and a request in; nothing out, or an ApiError.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from pipeline.sandbox.endpoints import BULK, SERVER_SIDE, WITH_LIMIT_PARAMS
from pipeline.sandbox.exchange import ApiError, Json
from pipeline.sandbox.rules import names_same_user, read_claims
from pipeline.sandbox.store import Store

# "Max size of request body: 4MB" (Swagger). It does not say which megabyte; this is the smaller one.
MAX_BULK_BYTES = 4_000_000


def check_request(store: Store, endpoint: str, headers: Mapping[str, str], body: bytes) -> None:
    """`headers` with names in lower case. The order of the checks is INF."""
    _check_key(store, endpoint, headers)
    _check_jwt(store, endpoint, headers.get("authorization"), body)
    _check_rate(store, endpoint)
    _check_size(store, endpoint, body)


def _check_key(store: Store, path: str, headers: Mapping[str, str]) -> None:
    # Api-Key or Api_Key, "not case sensitive"; a key in the query is for legacy projects only (API Keys).
    params = {"ip": "127.0.0.1", "endpoint": path}
    if headers.get("api-key", headers.get("api_key")) != store.api_key:
        raise ApiError(401, "BadApiKey", "Invalid API key", params)
    if store.key_type != "ServerSide" and path in SERVER_SIDE:
        params["apiKeyIdentifier"] = hashlib.sha256(store.api_key.encode()).hexdigest()[:8]
        params["apiKeyType"] = store.key_type
        raise ApiError(401, "BadApiKey", "Disabled API key or insufficient privileges", params)


def _check_jwt(store: Store, path: str, authorization: str | None, body: bytes) -> None:
    if store.jwt_secret is None:
        return
    params = {"endpoint": path}
    if authorization is None:
        raise ApiError(401, "BadAuthorizationHeader", "JWT Authorization header is not set", params)
    try:
        claims = read_claims(authorization, store.jwt_secret, store.strict_claims)
    except ValueError as error:
        raise ApiError(401, "InvalidJwtPayload", str(error), params) from None
    if not names_same_user(claims, body):
        msg = "JWT user identifiers do not match the request"
        raise ApiError(401, "JwtUserIdentifiersMismatched", msg, params)


def _check_rate(store: Store, path: str) -> None:
    """At most the limit in any one second. Refused requests do not count."""
    limit = None if store.limits is None else store.limits.get(path)
    if limit is None:
        return
    recent, now = store.recent_requests[path], store.clock()
    while recent and recent[0] <= now - 1:
        recent.popleft()
    if len(recent) >= limit:
        store.rate_limited[path] += 1
        msg = f"Exceeded rate limit of {float(limit)} per second for endpoint: {path}, project: 1 "
        reset_s = recent[0] + 1 - now if recent else 1.0
        raise ApiError(429, "RateLimitExceeded", msg, _limit_params(store, path, int(limit), reset_s))
    recent.append(now)


def _limit_params(store: Store, path: str, limit: int, reset_s: float) -> Json:
    if store.rate_limit_params == "absent" or path not in WITH_LIMIT_PARAMS:
        return {}
    numbers = {"rateLimitLimit": limit, "rateLimitRemaining": 0, "rateLimitReset": math.ceil(reset_s)}
    return numbers if store.rate_limit_params == "numbers" else {name: str(each) for name, each in numbers.items()}


def _check_size(store: Store, path: str, body: bytes) -> None:
    # No real body of either answer was found; BatchTooLarge is one of the codes in the Swagger file.
    if len(body) <= MAX_BULK_BYTES or path not in BULK:
        return
    if store.too_large == "400":
        raise ApiError(400, "BatchTooLarge", f"Batch too large for endpoint: {path}")
    raise ApiError(413, "BadParams", "Request entity too large")
