"""What became of the records of one request -> the body of a bulk answer, with every list that Iterable's has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.sandbox.exchange import ApiError, Json

_INVALID = ("invalidEmails", "invalidUserIds")
_CONFLICTS = ("invalidDataEmails", "invalidDataUserIds", "conflictEmails", "conflictUserIds")
_NOT_FOUND = ("notFoundEmails", "notFoundUserIds")
_FORGOTTEN = ("forgottenEmails", "forgottenUserIds")


class Outcome:
    """Collects what became of the records of one bulk request. For a single call (`raises`), a failure raises."""

    def __init__(self, raises: bool = False) -> None:
        self._raises = raises
        self.fail_count = 0
        self.lists: dict[str, list[str]] = defaultdict(list)
        self.created_fields: dict[str, Any] = {}  # a dict, to keep their order
        self.filtered_fields: dict[str, Any] = {}

    def sift(self, records: Iterable[Json], take: Callable[[Json], object]) -> list[Json]:
        """The records that `take` accepted. Those that it refused with an ApiError are counted and listed."""
        taken = []
        for record in records:
            try:
                take(record)
                taken.append(record)
            except ApiError as error:
                if self._raises:
                    raise
                self._add(error)
        return taken

    def _add(self, error: ApiError) -> None:
        self.fail_count += 1
        if error.listed is not None:
            name, value = error.listed
            self.lists[name].append(value)

    def of_users(self, sent: int) -> Json:
        """The answer of users/bulkUpdate."""
        return {
            **self._counts(sent),
            **self._named(*_INVALID),
            **self._fields(),
            "noOpEmails": [],
            "noOpUserIds": [],
            "failedUpdates": self._named(*_INVALID, *_NOT_FOUND, *_CONFLICTS, *_FORGOTTEN),
        }

    def of_events(self, sent: int) -> Json:
        """The answer of events/trackBulk."""
        return {
            **self._counts(sent),
            **self._named(*_INVALID, "disallowedEventNames"),
            **self._fields(),
            "failedUpdates": self._named(*_INVALID, *_NOT_FOUND, *_FORGOTTEN),
        }

    def _counts(self, sent: int) -> Json:
        return {"successCount": sent - self.fail_count, "failCount": self.fail_count}

    def _named(self, *names: str) -> Json:
        return {name: self.lists[name] for name in names}

    def _fields(self) -> Json:
        return {"filteredOutFields": list(self.filtered_fields), "createdFields": list(self.created_fields)}


def where_listed(kind: str, record: Json) -> tuple[str, str]:
    """The list of a bulk answer that names this record: "notFound", {"userId": "7"} -> ("notFoundUserIds", "7")."""
    if record.get("email") is not None:
        return f"{kind}Emails", record["email"]
    return f"{kind}UserIds", record["userId"]


def unknown_user(record: Json) -> ApiError:
    # The text is recorded for userId, at another endpoint; for an address it is INF.
    listed = where_listed("notFound", record)
    if listed[0] == "notFoundEmails":
        return ApiError(400, "UnknownEmailError", f"No user exists with email {listed[1]}", None, listed)
    return ApiError(400, "UnknownUserIdError", f"No user exists with userId {listed[1]}", None, listed)
