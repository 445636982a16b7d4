"""A stand-in Iterable on 127.0.0.1: for a first run, for rehearsals, for tests and for benchmarks.

It answers the endpoints below as Iterable does and keeps what it was sent, so you can see what Iterable would now hold.
It sends nothing anywhere, and it forgets everything when it stops. Its behaviour follows Iterable's Swagger file, help
articles and recorded exchanges. Where those are silent, a comment says INF: inferred.

    POST users/update, users/bulkUpdate, events/track, events/trackBulk
    GET  users/getFields, users/getByEmail, users/byUserId, users/forgotten, users/forgottenUserIds

    with StandIn() as iterable:                      # in a thread of this process, on any free port
        IterableClient(SANDBOX_KEY, base_url=iterable.url).update_user("ada@example.com")
        iterable.project.users["ada@example.com"]    # {"email": "ada@example.com", "userId": None, "dataFields": {}}
        iterable.inject(Fault(path="/api/users/update", status=503, times=2))
        iterable.inject(Fault(match=b'"ada@example.com"', status=500))   # this user always fails, also in a batch
        iterable.inject(Fault(store=True, disconnect=True, every=10))    # every tenth answer is lost
        iterable.project.edit_user({"email": "ada@example.com", "dataFields": {"plan": "pro"}})
        iterable.project.delete_user(email="ada@example.com")            # or user_id=...; also forget_user
        iterable.project.dropped_fields.add("plan.tier")
        iterable.project.blocked_events.add("page_view")

    python -m pipeline.sandbox --port 8080           # alone, for your own rehearsals

A stand-in in another process is read and changed over HTTP. It listens on the loopback address only; no key is needed:

    GET    /sandbox/state     counts ("users", "events", "event_sends", "most_sends_of_one_event", "requests",
                              "rate_limited"), monotonic seconds ("first_request_at", "last_answer_at") and field types
                              ("fields" of users, "event_fields" by event name)
    GET    /sandbox/events    every event, by id
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
    POST   /sandbox/faults    one Fault as JSON: {"path": "/api/users/update", "status": 503, "body": "...", "times": 3}
    DELETE /sandbox/faults    no more faults

GET shows forgotten, dropped_fields and blocked_events as well.

In reading order: exchange.py has what passes between client and stand-in, including faults; rules.py what Iterable
accepts and refuses; fields.py the fields of users and events; outcome.py the answers of the bulk endpoints; project.py
the state and the endpoints that write; reading.py the endpoints that read; control.py /sandbox/...; server.py bytes and
connections; sample.py the sample people; __main__.py the command line.
"""

from pipeline.sandbox.exchange import Answer, ApiError, Fault, Received
from pipeline.sandbox.project import DOCUMENTED_LIMITS, SANDBOX_JWT_SECRET, SANDBOX_KEY, Project
from pipeline.sandbox.sample import create_sample_database
from pipeline.sandbox.server import StandIn

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
