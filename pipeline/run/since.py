"""From when a query with `:since` reads, and whether the cursor moves afterwards. Decides; reads and writes nothing.

The cursor is the time at which the last complete run started its query. A run reads from the cursor less an overlap,
which costs only reading, as the ledger knows what was accepted; it covers clock skew, time zones and transactions that
commit late. To read everything is to read from SINCE_START, by the same comparison in the query.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.config import Settings
from pipeline.ledger.ledger import Cursor
from pipeline.model.exits import ExitCode
from pipeline.model.failure_policy import FIXED_BY_EDITING_ROW
from pipeline.model.text import utc
from pipeline.source import Query

ALL = "all"  # of --since: everything


@dataclass(frozen=True)
class Since:
    """From when this run reads, why, and whether a complete run may move the cursor.

    is_full: everything is read, so that what is no longer there can be forgotten.
    """

    start: datetime
    is_full: bool
    why: str
    may_move_cursor: bool

    def shown(self) -> str:
        """As it stands in the query, UTC."""
        return f"{self.start:%Y-%m-%d %H:%M:%S}"


def decide(
    settings: Settings, cursor: Cursor | None, circumstances: bytes, now: datetime, asked: datetime | str | None
) -> Since:
    """From when to read. asked: --since, an aware time or ALL; None where it was not given."""
    if asked == ALL:
        return Since(settings.since_start, True, "--full or --since all was given", True)
    reason = _reason_to_read_all(settings, cursor, circumstances, now)
    if isinstance(asked, datetime):
        start = max(asked, settings.since_start)
        # From a later time than the cursor, or with a cursor for other circumstances, something would stay unread.
        is_whole = start <= settings.since_start
        continues = cursor is not None and cursor.holds_for == circumstances and start <= utc(cursor.at)
        return Since(start, is_whole, "--since was given", is_whole or continues)
    if cursor is None or reason:
        return Since(settings.since_start, True, reason, True)
    start = utc(cursor.at) - timedelta(hours=settings.since_overlap_hours)
    why = f"the last complete run began at {utc(cursor.at):%Y-%m-%d %H:%M:%S} UTC"
    return Since(max(start, settings.since_start), start <= settings.since_start, why, True)


def _reason_to_read_all(settings: Settings, cursor: Cursor | None, circumstances: bytes, now: datetime) -> str:
    if cursor is None:
        return "no complete run is known"
    if cursor.holds_for != circumstances:
        return "the query, the database or the settings of what is sent have changed"
    if max(cursor.at, cursor.last_full_at) > now.timestamp():
        return "the last complete run is dated later than this one, so a clock was wrong"
    if settings.full_read_days and now - utc(cursor.last_full_at) >= timedelta(days=settings.full_read_days):
        return f"the last full read is {settings.full_read_days:g} days ago or more (FULL_READ_DAYS)"
    return ""


def cursor_fingerprint(settings: Settings, query: Query) -> bytes:
    """A hash of all that a cursor depends on. Where one of these changes, rows that did not change may be needed.

    Without the database's password: who has the ledger could try passwords against the hash.
    """
    told = [
        settings.database_without_password(),
        query.text,
        [repr(each) for each in (settings.user_fields, settings.event_fields)],
        settings.event_name,
        str(settings.event_timezone),
        settings.null_values,
        settings.merge_nested,
        settings.iterable_identifier,
        settings.since_start.isoformat(),
    ]
    return hashlib.sha256(json.dumps(told).encode()).digest()


def moves_cursor(since: Since, code: ExitCode, rejected_codes: Iterable[str | None], *, is_partial: bool) -> bool:
    """Whether nothing is left that only a later read can bring. is_partial: not all rows were looked at or sent.

    Rejected records keep the cursor where their reason lies in the project, such as the type of a field: once that is
    fixed, their rows must be read again although they did not change.
    """
    if is_partial or not since.may_move_cursor or code not in (ExitCode.SUCCESS, ExitCode.REJECTED):
        return False
    return all(code in FIXED_BY_EDITING_ROW for code in rejected_codes)
