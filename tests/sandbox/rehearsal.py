"""What the tests of the stand-in share: a client that speaks real HTTP to it, and records to send."""

from __future__ import annotations

import socket
import time
from typing import Any

import jwt
import requests

from pipeline.sandbox import SANDBOX_JWT_SECRET, SANDBOX_KEY, StandIn

UPDATE = "/api/users/update"
BULK_UPDATE = "/api/users/bulkUpdate"
TRACK = "/api/events/track"
TRACK_BULK = "/api/events/trackBulk"
GET_FIELDS = "/api/users/getFields"
GET_BY_EMAIL = "/api/users/getByEmail"
BY_USER_ID = "/api/users/byUserId"
FORGOTTEN_EMAILS = "/api/users/forgotten"
FORGOTTEN_USER_IDS = "/api/users/forgottenUserIds"
UPDATE_EMAIL = "/api/users/updateEmail"
EVENTS_BY_EMAIL = "/api/events/byEmail"  # the stand-in's name for /api/events/{email}
EVENTS_BY_USER_ID = "/api/events/byUserId"
JOURNEYS = "/api/journeys"
ADA = {"email": "ada@example.com"}
UPDATE_OF_ADA = (
    b"POST /api/users/update HTTP/1.1\r\nApi-Key: sandbox-api-key\r\nContent-Length: 27\r\n\r\n"
    b'{"email":"ada@example.com"}'
)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rehearsal:
    """A stand-in and a client of it."""

    def __init__(self, stand_in: StandIn, session: requests.Session) -> None:
        self.stand_in = stand_in
        self.project = stand_in.project
        self.session = session

    def post(self, path: str, body: Any = None, headers: dict[str, str] | None = None, **options: Any) -> Any:
        headers = {"Api-Key": SANDBOX_KEY} if headers is None else headers
        return self.session.post(self.stand_in.url + path, json=body, headers=headers, timeout=5, **options)

    def get(self, path: str) -> Any:
        return self.session.get(self.stand_in.url + path, headers={"Api-Key": SANDBOX_KEY}, timeout=5)

    def answer(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        response = self.post(path, body, headers)
        return response.status_code, response.json()

    def know(self, *emails: str) -> None:
        for email in emails:
            assert self.answer(UPDATE, {"email": email})[0] == 200

    def talk(self, data: bytes) -> bytes:
        """Sends bytes on a new connection; all that comes back until the stand-in ends it."""
        with socket.create_connection(("127.0.0.1", self.stand_in.port), timeout=5) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))


def event(**changes: Any) -> dict[str, Any]:
    return {"email": "ada@example.com", "eventName": "pageView", "id": "pv-1", "createdAt": 1709285400, **changes}


def bulk_users(iterable: Rehearsal, *users: dict[str, Any]) -> Any:
    return iterable.answer(BULK_UPDATE, {"users": list(users)})


def bulk_events(iterable: Rehearsal, *events: dict[str, Any]) -> Any:
    return iterable.answer(TRACK_BULK, {"events": list(events)})


def failures(answer: Any) -> dict[str, Any]:
    """What in a bulk answer tells of failures: the count, and the lists that are not empty."""
    listed = {**answer["failedUpdates"], "disallowedEventNames": answer.get("disallowedEventNames")}
    return {"failCount": answer["failCount"], **{name: values for name, values in listed.items() if values}}


def bearer(
    claims: dict[str, Any], secret: str = SANDBOX_JWT_SECRET, algorithm: str = "HS256", **times: Any
) -> dict[str, str]:
    now = int(time.time())
    token = jwt.encode({**claims, "iat": now, "exp": now + 3600, **times}, secret, algorithm)
    return {"Api-Key": SANDBOX_KEY, "Authorization": f"Bearer {token}"}
