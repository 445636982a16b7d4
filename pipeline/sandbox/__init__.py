"""A stand-in Iterable on 127.0.0.1: for a first run, for rehearsals, for tests and for benchmarks.

It answers the endpoints below as Iterable does and keeps what it was sent, so you can see what Iterable would now hold.
It sends nothing anywhere, and it forgets everything when it stops. Its behaviour follows Iterable's Swagger file, help
articles and recorded exchanges. Where those are silent, a comment says INF: inferred.

    POST users/update, users/bulkUpdate, users/updateEmail (in email-based projects), events/track, events/trackBulk
    GET  users/getFields, users/getByEmail, users/byUserId, users/forgotten, users/forgottenUserIds,
         events/{email}, events/byUserId/{id}, journeys

    with StandIn() as iterable:                      # in a thread of this process, on any free port
        IterableClient(SANDBOX_KEY, base_url=iterable.url).update_user("ada@example.com")
        iterable.project.users["ada@example.com"]    # {"email": "ada@example.com", "userId": None, "dataFields": {}}
        iterable.inject(Fault(path="/api/users/update", status=503, times=2))
        iterable.inject(Fault(match=b'"ada@example.com"', status=500))   # this user always fails, also in a batch
        iterable.inject(Fault(store=True, disconnect=True, every=10))    # every tenth answer is lost
        iterable.project.edit_user({"email": "ada@example.com", "dataFields": {"plan": "pro"}})
        iterable.project.delete_user(email="ada@example.com")            # or user_id=...; also (un)forget_user
        iterable.project.delete_event("pv-1")                            # also edit_event, double_event
        iterable.project.add_journey("Welcome", ["page_view"], lifetimeLimit=1)
        iterable.project.dropped_fields.add("plan.tier")
        iterable.project.blocked_events.add("page_view")

What a send does to a person beyond what is stored, since Iterable acts on each arrival (effects.py):

        effects = iterable.project.effects
        effects.event_writes["ada@example.com"]      # {"pv-1": 2}: added once, updated once
        effects.field_writes["ada@example.com"]      # {"plan": 3, "plan.tier": 3}: in three accepted updates
        effects.created                              # profiles that updates made, in order: they start subscribed
        effects.moved                                # [("ada@example.com", "al@example.com")]
        iterable.project.subscriptions(email="al@example.com")   # what updates of Iterable's own fields overwrite
        effects.clear()                              # for the next run

    python -m pipeline.sandbox --port 8080           # alone, for your own rehearsals

A stand-in in another process is read and changed over HTTP. It listens on the loopback address only; no key is needed:

    GET    /sandbox/state     counts ("users", "events", "event_sends", "most_sends_of_one_event", "requests",
                              "request_bytes", "rate_limited"), monotonic seconds ("first_request_at",
                              "last_answer_at") and field types
                              ("fields" of users, "event_fields" by event name)
    GET    /sandbox/effects   what sends did: "created" and "moved" profiles, in order, and for each of the "people"
                              "event_writes", "field_writes" and "subscriptions"; ?email=... or ?userId=...: this one
    DELETE /sandbox/effects   start to count anew
    GET    /sandbox/events    every event, by id
    POST   /sandbox/events    {"id": "...", "dataFields": {...}}: change an event by hand; null removes a field
    DELETE /sandbox/events    ?id=...: delete an event
    POST   /sandbox/doubled_events  {"id": "..."}: store the event once more, under an id of its own
    GET    /sandbox/users     every user with all fields as they were sent, by e-mail address (or userId);
                              ?email=... or ?userId=...: this one
    POST   /sandbox/users     {"email": "...", "dataFields": {...}}: change a user by hand (or "userId"); null removes
    DELETE /sandbox/users     ?email=... or ?userId=...: delete a user; later events are "not found"
    POST   /sandbox/forgotten {"email": "..."} or {"userId": "..."}: delete a user and refuse all later writes
    DELETE /sandbox/forgotten ?email=... or ?userId=...: accept this user again
    POST   /sandbox/dropped_fields  {"name": "plan"}: the project drops this field ("plan.tier": one inside an object)
    DELETE /sandbox/dropped_fields  ?name=plan: no longer; without a name: all
    POST   /sandbox/blocked_events  {"name": "page_view"}: the project refuses this event
    DELETE /sandbox/blocked_events  ?name=page_view: no longer; without a name: all
    GET    /sandbox/journeys  every journey
    POST   /sandbox/journeys  {"name": "Welcome", "triggerEventNames": ["page_view"], "lifetimeLimit": 1}: add one;
                              "enabled" unless you say false, "isArchived" if you say true
    DELETE /sandbox/journeys  ?name=...: remove it; without a name: all
    POST   /sandbox/faults    one Fault as JSON: {"path": "/api/users/update", "status": 503, "body": "...", "times": 3}
    DELETE /sandbox/faults    no more faults

GET shows forgotten, dropped_fields and blocked_events as well.

In reading order, each importing only those before it: endpoints.py has the paths and limits; exchange.py what passes
between client and stand-in, including faults; rules.py what Iterable accepts and refuses; fields.py the fields of users
and events; outcome.py the answers of the bulk endpoints; effects.py what sends do to people; store.py all settings and
all that is held; people.py and events.py how that changes; gate.py keys, tokens and rate limits; writing.py and
reading.py the endpoints; project.py puts them together; control.py is /sandbox/...; server.py bytes and connections;
sample.py the sample people; __main__.py the command line.
"""

from pipeline.sandbox.endpoints import DOCUMENTED_LIMITS
from pipeline.sandbox.exchange import Answer, ApiError, Fault, Received
from pipeline.sandbox.project import Project
from pipeline.sandbox.sample import create_sample_database
from pipeline.sandbox.server import StandIn
from pipeline.sandbox.store import SANDBOX_JWT_SECRET, SANDBOX_KEY

__all__ = [
    "DOCUMENTED_LIMITS",
    "SANDBOX_JWT_SECRET",
    "SANDBOX_KEY",
    "Answer",
    "ApiError",
    "Fault",
    "Project",
    "Received",
    "StandIn",
    "create_sample_database",
]
