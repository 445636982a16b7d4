"""The paths of Iterable's API that the stand-in answers, and what is documented of each. Values only."""

from __future__ import annotations

from urllib.parse import unquote

UPDATE = "/api/users/update"
BULK_UPDATE = "/api/users/bulkUpdate"
UPDATE_EMAIL = "/api/users/updateEmail"
TRACK = "/api/events/track"
TRACK_BULK = "/api/events/trackBulk"
GET_FIELDS = "/api/users/getFields"
GET_BY_EMAIL = "/api/users/getByEmail"
BY_USER_ID = "/api/users/byUserId"
FORGOTTEN = "/api/users/forgotten"
FORGOTTEN_USER_IDS = "/api/users/forgottenUserIds"
EVENTS_BY_EMAIL = "/api/events/byEmail"  # our name for /api/events/{email}
EVENTS_BY_USER_ID = "/api/events/byUserId"
JOURNEYS = "/api/journeys"

# Requests per second, for each project (Swagger). None is stated for updateEmail and for journeys.
DOCUMENTED_LIMITS: dict[str, float] = {
    UPDATE: 500,
    BULK_UPDATE: 5,
    TRACK: 2000,
    TRACK_BULK: 10,
    GET_FIELDS: 3,
    GET_BY_EMAIL: 100,
    BY_USER_ID: 100,
    FORGOTTEN: 3,
    FORGOTTEN_USER_IDS: 3,
    EVENTS_BY_EMAIL: 100,
    EVENTS_BY_USER_ID: 100,
}
BULK = frozenset({BULK_UPDATE, TRACK_BULK})
# Mobile, web and JWT-enabled keys reach users/update, users/updateEmail and events/track (API Keys); that journeys are
# not for them is INF.
SERVER_SIDE = BULK | {
    *(GET_FIELDS, GET_BY_EMAIL, BY_USER_ID, FORGOTTEN, FORGOTTEN_USER_IDS),
    *(EVENTS_BY_EMAIL, EVENTS_BY_USER_ID, JOURNEYS),
}
# Since August 2026 their 429s say how long to wait (Swagger); it declares no 429 for the events endpoints.
WITH_LIMIT_PARAMS = frozenset({UPDATE, BULK_UPDATE})


def endpoint_of(path: str) -> str:
    """The endpoint that a path belongs to: "/api/users/byUserId/u-17" -> "/api/users/byUserId"."""
    for endpoint in (BY_USER_ID, EVENTS_BY_USER_ID):
        if path.startswith(f"{endpoint}/"):
            return endpoint if _is_one_segment(path[len(endpoint) + 1 :]) else path
    if path.startswith("/api/events/") and ("@" in path or "%40" in path):
        return EVENTS_BY_EMAIL if _is_one_segment(path[len("/api/events/") :]) else path
    return path


def identity_in(target: str, above: str) -> str:
    """The address or id that stands in the path below `above`, decoded; "" if there is none."""
    return unquote(target.partition("?")[0][len(above) + 1 :])


def _is_one_segment(text: str) -> bool:
    return bool(text) and "/" not in text
