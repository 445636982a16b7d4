"""From when a query with `:since` reads, and whether the cursor moves afterwards. Decides; reads and writes nothing.

The cursor is the time at which the last complete run started its query. A run reads from the cursor less an overlap,
which costs only reading, as the ledger knows what was accepted; it covers clock skew, time zones and transactions that
commit late. To read everything is to read from SINCE_START, by the same comparison in the query.

A record that may be accepted later, although its row does not change, holds the window open: no run starts to read
after the window that first read it, until it is accepted, or 30 days have passed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.config import Settings
from pipeline.ledger.ledger import Cursor
from pipeline.model.exits import ExitCode
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
        return self.start.replace(tzinfo=None).isoformat(" ", "seconds")


def decide(
    settings: Settings,
    cursor: Cursor | None,
    fingerprint: bytes,
    now: datetime,
    asked: datetime | str | None,
    *,
    held_from: int | None = None,
) -> Since:
    """From when to read. asked: --since, an aware time or ALL; None where it was not given. held_from: where the
    earliest window starts that first read a record which may still be accepted, in Unix seconds."""
    if asked == ALL:
        return Since(settings.since_start, True, "--full or --since all was given", True)
    reason = _reason_to_read_all(settings, cursor, fingerprint, now)
    if isinstance(asked, datetime):
        start = max(asked, settings.since_start)
        # From a later time than the cursor, or with a cursor for other circumstances, something would stay unread.
        is_whole = start <= settings.since_start
        continues = cursor is not None and cursor.holds_for == fingerprint and start <= utc(cursor.at)
        return Since(start, is_whole, "--since was given", is_whole or continues)
    if cursor is None or reason:
        return Since(settings.since_start, True, reason, True)
    start = utc(cursor.at) - timedelta(hours=settings.since_overlap_hours)
    why = f"the last complete run began at {utc(cursor.at):%Y-%m-%d %H:%M:%S} UTC"
    if held_from is not None and held_from < start.timestamp():
        start = utc(held_from)
        why = "records that may still be accepted were first read from then on; see the last results"
    return Since(max(start, settings.since_start), start <= settings.since_start, why, True)


def _reason_to_read_all(settings: Settings, cursor: Cursor | None, fingerprint: bytes, now: datetime) -> str:
    if cursor is None:
        return "no complete run is known"
    if cursor.holds_for != fingerprint:
        return "the query, the database or the settings of what is sent have changed"
    if max(cursor.at, cursor.last_full_at) > now.timestamp():
        return "the last complete run is dated later than this one, so a clock was wrong"
    if settings.full_read_days and now - utc(cursor.last_full_at) >= timedelta(days=settings.full_read_days):
        return f"the last full read was {settings.full_read_days:g} days ago or more (FULL_READ_DAYS)"
    return ""


def cursor_fingerprint(settings: Settings, query: Query) -> bytes:
    """A hash of all that a cursor depends on. Where one of these changes, rows that did not change may be needed.

    Without the database's password: who has the ledger could try passwords against the hash.
    """
    parts = [
        settings.database_without_password(),
        query.text,
        [repr(each) for each in (settings.user_fields, settings.event_fields)],
        settings.event_name,
        str(settings.event_timezone),
        settings.null_values,
        settings.merge_nested,
        settings.bad_values,
        settings.person_column,
        settings.email_changes,
        settings.send_user_id,
        settings.iterable_identifier,
        settings.since_start.isoformat(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def why_cursor_stays(since: Since, code: ExitCode, *, partial: str = "") -> str:
    """Why the cursor does not move after a run that ended so; empty: it moves.

    partial: the option for which not all rows were read or sent. Records that were rejected don't keep it: what may be
    accepted later holds the window open by itself, see `decide`.
    """
    if partial:
        return f"{partial} was given"
    if not since.may_move_cursor:
        return "--since was given with a time after the cursor, so what changed in between was not read"
    if code not in (ExitCode.SUCCESS, ExitCode.REJECTED):
        return f"the run ended with exit code {code:d}, so not all that it read is settled"
    return ""
