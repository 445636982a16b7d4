"""A stand-in Iterable on 127.0.0.1: for a first run, for rehearsals, for tests and for measuring.

It answers POST users/update, users/bulkUpdate, events/track, events/trackBulk and GET users/getFields the way Iterable
does, and keeps what it was sent, so that one can ask what Iterable would now hold. It sends nothing anywhere, and it
forgets all when it ends. What it does follows Iterable's Swagger file, its help articles and recorded exchanges; where
those are silent, the comment says INF: inferred.

    with StandIn() as iterable:                      # in a thread of this process, on any free port
        IterableClient(SANDBOX_KEY, base_url=iterable.url).update_user("ada@example.com")
        iterable.project.users["ada@example.com"]    # {"email": "ada@example.com", "userId": None, "dataFields": {}}
        iterable.inject(Fault(path="/api/users/update", status=503, times=2))

    python -m pipeline.sandbox --port 8080           # alone, for your own rehearsals

A stand-in in another process is asked and steered over HTTP. It listens on the loopback address only; no key needed:

    GET    /sandbox/state     {"users", "events", "event_sends", "most_sends_of_one_event", "requests", "rate_limited"}
    GET    /sandbox/users     every user, by e-mail address (or userId)
    GET    /sandbox/events    every event, by id
    POST   /sandbox/faults    one Fault as JSON: {"path": "/api/users/update", "status": 503, "body": "...", "times": 3}
    DELETE /sandbox/faults    all is well again

In reading order: exchange.py has what passes between client and stand-in, faults among it; rules.py what Iterable
takes and refuses; project.py the state and the endpoints; server.py bytes and connections; sample.py the sample
people; __main__.py the command line.
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
