"""`--repair`: what --verify found to differ is marked as not accepted, and nothing else, so that a run sends just that.

Of a user, these are the fields that differ; of a person who is missing, everything. Doubled events stay as they are:
to send them again takes no copy away. So do those of people who have a second profile (EMAIL_CHANGES=new): the first
one may have them, and they would start journeys again.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.inspect.event_readback import EventState
from pipeline.inspect.readback import differing
from pipeline.inspect.session import InspectionSession
from pipeline.inspect.verification import Compared, Marked, PersonState
from pipeline.model.records import Record, UserDetails
from pipeline.run.journeys import PendingEvents, count_by_name, journeys_in_words
from pipeline.source import read_query
from pipeline.transform.users import USER_ID_FIELD

SINCE = "The query has :since, so the next run must read these rows: run it with --since all."


class Repair:
    """Marks as people are compared. Needs a session that holds the ledger."""

    def __init__(self, session: InspectionSession) -> None:
        self.marked = Marked()
        self._session = session
        self._by_name: dict[str, PendingEvents] = {}

    def mark(self, each: Compared) -> None:
        records = [*self._user(each), *_events(each)]
        if not records:
            return
        users = sum(record.details is not None for record in records)
        self.marked.users += users
        self.marked.events += len(records) - users
        for name, count in count_by_name(iter(records[users:])).items():
            total = self._by_name.setdefault(name, PendingEvents())
            total.events, total.people = total.events + count.events, total.people + count.people
        self._session.ledger.accepted.invalidate(records)

    def finish(self) -> None:
        """Make it last, and say what the next run would start."""
        self._session.ledger.commit()
        if not (self.marked.users or self.marked.events):
            return
        self.marked.advice += journeys_in_words(self._session.client, self._by_name, is_jwt=False)
        settings = self._session.settings
        if read_query(settings.query_file, str(settings.database_url)).uses_since:
            self.marked.advice.append(SINCE)

    def _user(self, each: Compared) -> Iterator[Record]:
        """The update, whose details name the fields that are to be sent."""
        user = each.person.user
        if user is None or not each.user_differs:
            return
        details = user.details or UserDetails()
        if each.state is PersonState.DIFFERENT:
            names = dict.fromkeys(field.name.partition(".")[0] for field in differing(each.fields))
            hashed = self._session.ledger.hasher.field_name
            is_beside = b'"userId":' in user.payload and not self._session.by_user_id
            sent = [hashed(USER_ID_FIELD if name == "userId" and is_beside else name) for name in names]
            details = details._replace(sent=b"".join(sent))
        yield user._replace(details=details)


def _events(each: Compared) -> list[Record]:
    if each.person.has_new_profile:
        return []
    marked = (EventState.DIFFERENT, EventState.MISSING)
    return [each.person.events[event.place].record for event in each.events if event.state in marked]
