"""`python -m pipeline.sandbox`: the stand-in alone, for rehearsals with your own settings and data."""

# ruff: noqa: T201 - a command line prints

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from pipeline.sandbox.endpoints import DOCUMENTED_LIMITS
from pipeline.sandbox.exchange import Json
from pipeline.sandbox.server import StandIn
from pipeline.sandbox.store import SANDBOX_JWT_SECRET, SANDBOX_KEY


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C or SIGTERM, then prints what it holds. 1 if the port can't be used."""
    options = _parser().parse_args(arguments)
    stand_in = _stand_in(options)
    try:
        stand_in.listen()
    except (OSError, OverflowError) as error:  # the second for ports above 65535
        print(f"Port {options.port} of 127.0.0.1 can't be used ({error}); choose another with --port.", file=sys.stderr)
        return 1
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stand_in.stop())
    print(_introduction(stand_in), flush=True)
    stand_in.serve()
    print(_farewell(stand_in.project.state()), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.sandbox", description="A stand-in Iterable on 127.0.0.1, for rehearsals."
    )
    add = parser.add_argument
    add("--port", type=int, default=8080, help="0: any free port (default: %(default)s)")
    add("--latency-ms", type=float, default=0, metavar="N", help="milliseconds per answer (default: %(default)s)")
    add("--no-limits", action="store_true", help="do not enforce Iterable's rate limits")
    add("--jwt", action="store_true", help="use a JWT-enabled API key")
    add("--key", default=SANDBOX_KEY, help="the API key (default: %(default)s)")
    add("--jwt-secret", metavar="S", help="the secret of the JWT-enabled key; implies --jwt")
    add("--count-only", action="store_true", help="keep only ids and counts; for millions of events")
    add(
        "--unknown-users",
        choices=("accept", "not_found"),
        default="not_found",
        help="how to answer events of users that were never updated (default: %(default)s)",
    )
    kinds = ("hybrid", "email", "userId")
    add(
        "--project-type",
        choices=kinds,
        default="hybrid",
        help="how the project identifies users (default: %(default)s)",
    )
    add("--visible-after", type=float, default=0, metavar="S", help="seconds before events find a new user")
    add(
        "--event-times",
        choices=("text", "iso", "seconds", "milliseconds"),
        default="text",
        help="how createdAt is written in events that are read (default: %(default)s)",
    )
    add("--own-event-ids", action="store_true", help="_id of events that are read is not the id that was sent")
    return parser


def _stand_in(options: argparse.Namespace) -> StandIn:
    secret = options.jwt_secret or (SANDBOX_JWT_SECRET if options.jwt else None)
    return StandIn(
        port=options.port,
        latency_s=options.latency_ms / 1000,
        api_key=options.key,
        jwt_secret=secret,
        limits=None if options.no_limits else DOCUMENTED_LIMITS.copy(),
        project_type=options.project_type,
        unknown_users=options.unknown_users,
        visible_after_s=options.visible_after,
        event_times=options.event_times,
        own_event_ids=options.own_event_ids,
        record_requests=False,  # nobody could ask this process for them
        keep_payloads=not options.count_only,
    )


def _introduction(stand_in: StandIn) -> str:
    url, key, secret = stand_in.url, stand_in.project.api_key, stand_in.project.jwt_secret
    jwt_lines = f"\n    USE_JWT_AUTH=true\n    ITERABLE_JWT_SECRET={secret}" if secret else ""
    return f"""\
A stand-in Iterable is running at {url}. Nothing sent to it leaves this machine. It forgets everything when it stops.

To use it, put into .env:
    ITERABLE_API_KEY={key}
    ITERABLE_BASE_URL={url}{jwt_lines}
To see what it holds, in numbers and in full:
    curl {url}/sandbox/state
    curl {url}/sandbox/users
To see how often what was sent may have started a journey, person by person:
    curl {url}/sandbox/effects
To make three requests fail, and to stop all failures:
    curl {url}/sandbox/faults -d '{{"path": "/api/users/update", "status": 503, "times": 3}}'
    curl {url}/sandbox/faults -X DELETE
To change a user by hand, as someone might in Iterable, and to delete one:
    curl {url}/sandbox/users -d '{{"email": "ada@example.com", "dataFields": {{"plan_type": "pro"}}}}'
    curl '{url}/sandbox/users?email=ada@example.com' -X DELETE
To add a journey that page_view starts:
    curl {url}/sandbox/journeys -d '{{"name": "Welcome", "triggerEventNames": ["page_view"]}}'
To let the project drop a field, block an event or forget a person:
    curl {url}/sandbox/dropped_fields -d '{{"name": "plan_type"}}'
    curl {url}/sandbox/blocked_events -d '{{"name": "page_view"}}'
    curl {url}/sandbox/forgotten -d '{{"email": "ada@example.com"}}'
To stop it, press Ctrl-C."""


def _farewell(state: Json) -> str:
    return (
        f"\nStopped. It held {state['users']} users and {state['events']} events, accepted {state['event_sends']} "
        f"times in all; the most often accepted event {state['most_sends_of_one_event']} times."
    )


if __name__ == "__main__":
    sys.exit(main())
