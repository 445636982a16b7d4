"""What sends do to people: how often events and fields were written, who was made, who is subscribed."""

from __future__ import annotations

from typing import Any

from pipeline.sandbox import Fault
from tests.sandbox.rehearsal import (
    ADA,
    TRACK,
    UPDATE,
    UPDATE_EMAIL,
    Rehearsal,
    bulk_events,
    bulk_users,
    event,
)


def test_each_accepted_write_of_an_event_counts_also_under_a_known_id(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com", "bob@example.com")
    iterable.answer(TRACK, event())
    bulk_events(
        iterable, event(), event(id="2"), event(id="3", email="bob@example.com"), event(id="4", email="c@d.com")
    )
    iterable.project.blocked_events.add("blocked")
    iterable.answer(TRACK, event(eventName="blocked"))
    expected = {"ada@example.com": {"pv-1": 2, "2": 1}, "bob@example.com": {"3": 1}}
    assert iterable.project.effects.event_writes == expected


def test_event_that_was_stored_and_whose_answer_was_lost_counts(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.stand_in.inject(Fault(path=TRACK, store=True, status=503, times=1))
    assert [iterable.post(TRACK, event()).status_code for _ in range(2)] == [503, 200]
    assert iterable.project.effects.event_writes == {"ada@example.com": {"pv-1": 2}}


def test_events_of_unknown_users_count_under_their_own_names(rehearse: Any) -> None:
    iterable = rehearse(unknown_users="accept")
    bulk_events(iterable, event(email="Ada@example.com"), event(id="2", email=None, userId="u-1"))
    assert iterable.project.effects.event_writes == {"ada@example.com": {"pv-1": 1}, "u-1": {"2": 1}}


def test_each_field_of_an_accepted_update_counts_changed_or_not(iterable: Rehearsal) -> None:
    fields = {"plan": {"tier": "pro"}, "city": "Oslo"}
    iterable.answer(UPDATE, {**ADA, "dataFields": fields})
    bulk_users(iterable, {**ADA, "dataFields": {"city": "Oslo"}}, {"email": "bad@", "dataFields": {"city": "Rome"}})
    iterable.answer(UPDATE, {**ADA, "dataFields": {"city": None}})
    assert iterable.answer(UPDATE, {**ADA, "dataFields": {"city": 7}})[0] == 400
    iterable.project.dropped_fields.add("city")
    iterable.answer(UPDATE, {**ADA, "dataFields": {"city": "Bonn"}})
    iterable.project.edit_user({**ADA, "dataFields": {"plan": {"tier": "free"}}})
    counts = {"plan": 1, "plan.tier": 1, "city": 3}
    assert iterable.project.effects.field_writes == {"ada@example.com": counts}


def test_profiles_count_when_a_send_makes_them_in_order(iterable: Rehearsal) -> None:
    iterable.project.edit_user({"email": "cy@example.com"})
    iterable.know("bob@example.com", "ada@example.com", "bob@example.com", "cy@example.com")
    iterable.project.delete_user(email="bob@example.com")
    iterable.know("bob@example.com")
    assert iterable.project.effects.created == ["bob@example.com", "ada@example.com", "bob@example.com"]


def test_counts_go_with_the_person_to_a_new_address(rehearse: Any) -> None:
    iterable = rehearse(project_type="email")
    iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": "pro"}})
    iterable.answer(TRACK, event())
    iterable.answer(UPDATE_EMAIL, {"currentEmail": "ada@example.com", "newEmail": "al@example.com"})
    iterable.answer(TRACK, event(email="al@example.com"))
    effects = iterable.project.effects
    assert (effects.created, effects.moved) == (["ada@example.com"], [("ada@example.com", "al@example.com")])
    assert effects.event_writes == {"al@example.com": {"pv-1": 2}}
    assert effects.field_writes == {"al@example.com": {"plan": 1}}


def test_update_of_iterables_own_fields_changes_the_subscriptions(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.project.edit_user({**ADA, "dataFields": {"unsubscribedChannelIds": [7, 8], "emailListIds": [1]}})
    iterable.answer(UPDATE, {**ADA, "dataFields": {"unsubscribedChannelIds": [8], "emailListIds": None}})
    assert iterable.project.subscriptions(**ADA) == {
        **{"emailListIds": [], "subscribedMessageTypeIds": []},
        **{"unsubscribedChannelIds": [8], "unsubscribedMessageTypeIds": []},
    }


def test_counting_project_counts_no_effects(rehearse: Any) -> None:
    iterable = rehearse(keep_payloads=False)
    iterable.answer(UPDATE, {**ADA, "dataFields": {"plan": "pro"}})
    iterable.answer(TRACK, event())
    effects = iterable.project.effects
    assert (effects.created, effects.event_writes, effects.field_writes) == ([], {}, {})


def test_effects_are_counted_anew_after_they_were_cleared(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event())
    iterable.project.effects.clear()
    iterable.answer(TRACK, event())
    effects = iterable.project.effects
    assert (effects.created, effects.event_writes) == ([], {"ada@example.com": {"pv-1": 1}})
