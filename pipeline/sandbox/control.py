"""`/sandbox/...`: what the stand-in holds, faults, and changes made by hand. No key is needed, and nothing is counted.

A request and the project in, a JSON answer out. What can't be done is a 400 with {"error": "..."}, an unknown user a
404. `pipeline/sandbox/__init__.py` lists them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from pipeline.sandbox.events import person_of
from pipeline.sandbox.exchange import Answer, ApiError, Fault, Json, json_answer
from pipeline.sandbox.project import NOT_FOUND, Project
from pipeline.sandbox.rules import EVENT_CHANGES, USER_SHAPE, parse_record

Query = dict[str, str]
Control = Callable[[Project, Query, bytes], Any]


def answer_control(project: Project, method: str, target: str, body: bytes) -> Answer:
    """`target`: the path with its query."""
    path, _, query = target.partition("?")
    control = CONTROLS.get((method, path))
    if control is None:
        return NOT_FOUND
    try:
        return json_answer(control(project, dict(parse_qsl(query)), body))
    except LookupError as error:
        return json_answer({"error": str(error.args[0])}, 404)
    except (ApiError, TypeError, ValueError) as error:
        return json_answer({"error": str(error)}, 400)


def _state(project: Project, query: Query, body: bytes) -> Json:
    return project.state()


def _effects(project: Project, query: Query, body: bytes) -> Json:
    if not query:
        return project.effects.as_json(project.users)
    return project.effects.as_json(project.users, project.find(**_identity(query)) or person_of(query))


def _clear_effects(project: Project, query: Query, body: bytes) -> Json:
    project.effects.clear()
    return _effects(project, {}, body)


# --- Users


def _users(project: Project, query: Query, body: bytes) -> Json:
    if not query:
        return project.users
    key = _known(project, query)
    return {key: project.users[key]}


def _edit_user(project: Project, query: Query, body: bytes) -> Json:
    key = project.edit_user(parse_record("/sandbox/users", body, USER_SHAPE))
    return {key: project.users[key]}


def _delete_user(project: Project, query: Query, body: bytes) -> Json:
    key = _known(project, query)
    project.delete_user(**_identity(query))
    return {"deleted": key}


def _known(project: Project, query: Query) -> str:
    key = project.find(**_identity(query))
    if key is None:
        raise LookupError("no such user")
    return key


def _identity(names: Mapping[str, Any]) -> dict[str, str | None]:
    identity = {"email": names.get("email"), "user_id": names.get("userId")}
    if not all(each is None or type(each) is str for each in identity.values()) or not any(identity.values()):
        raise ValueError('expected "email" or "userId"')
    return identity


# --- Events


def _events(project: Project, query: Query, body: bytes) -> Json:
    return project.events


def _edit_event(project: Project, query: Query, body: bytes) -> Json:
    changes = parse_record("/sandbox/events", body, EVENT_CHANGES)
    project.edit_event(_event_id(changes), changes)
    return {changes["id"]: project.events[changes["id"]]}


def _delete_event(project: Project, query: Query, body: bytes) -> Json:
    event_id = _event_id(query)
    project.delete_event(event_id)
    return {"deleted": event_id}


def _double_event(project: Project, query: Query, body: bytes) -> Json:
    event_id = project.double_event(_event_id(_object(body)))
    return {event_id: project.events[event_id]}


def _event_id(names: Mapping[str, Any]) -> str:
    event_id = names.get("id")
    if type(event_id) is not str:
        raise ValueError('expected "id"')
    return event_id


# --- Journeys


def _journeys(project: Project, query: Query, body: bytes) -> Json:
    return {"journeys": project.journeys}


def _add_journey(project: Project, query: Query, body: bytes) -> Json:
    journey = _object(body)
    name, events = journey.pop("name", None), journey.pop("triggerEventNames", None)
    if type(name) is not str or not isinstance(events, (list, type(None))):
        raise ValueError('expected {"name": "...", "triggerEventNames": [...]}')
    return project.add_journey(name, events, **journey)


def _remove_journeys(project: Project, query: Query, body: bytes) -> Json:
    project.journeys = [each for each in project.journeys if "name" in query and each["name"] != query["name"]]
    return _journeys(project, query, body)


# --- Names: forgotten users, dropped fields, blocked events


def _forgotten(project: Project, query: Query, body: bytes) -> Json:
    return {"forgotten": sorted(project.forgotten)}


def _forget_user(project: Project, query: Query, body: bytes) -> Json:
    project.forget_user(**_identity(_object(body)))
    return _forgotten(project, query, body)


def _unforget_user(project: Project, query: Query, body: bytes) -> Json:
    project.unforget_user(**_identity(query))
    return _forgotten(project, query, body)


def _controls_of_names(attribute: str) -> dict[tuple[str, str], Control]:
    """GET, POST {"name": "..."} and DELETE ?name=... (all, without a name) for one of the project's sets of names."""

    def show(project: Project, query: Query, body: bytes) -> Json:
        return {attribute: sorted(getattr(project, attribute))}

    def add(project: Project, query: Query, body: bytes) -> Json:
        name = _object(body).get("name")
        if type(name) is not str:
            raise ValueError('expected {"name": "..."}')
        getattr(project, attribute).add(name)
        return show(project, query, body)

    def remove(project: Project, query: Query, body: bytes) -> Json:
        names: set[str] = getattr(project, attribute)
        names -= {query["name"]} if "name" in query else set(names)
        return show(project, query, body)

    path = f"/sandbox/{attribute}"
    return {("GET", path): show, ("POST", path): add, ("DELETE", path): remove}


# --- Faults


def _add_fault(project: Project, query: Query, body: bytes) -> Json:
    options = _object(body)
    for name in ("body", "raw", "match", "prefix"):
        if isinstance(options.get(name), str):
            options[name] = options[name].encode()
    project.faults.append(Fault(**options))
    return {"faults": len(project.faults)}


def _clear_faults(project: Project, query: Query, body: bytes) -> Json:
    project.faults.clear()
    return {"faults": 0}


def _object(body: bytes) -> Json:
    content = json.loads(body)
    if type(content) is not dict:
        raise ValueError("expected a JSON object")
    return content


CONTROLS: dict[tuple[str, str], Control] = {
    ("GET", "/sandbox/state"): _state,
    ("GET", "/sandbox/effects"): _effects,
    ("DELETE", "/sandbox/effects"): _clear_effects,
    ("GET", "/sandbox/events"): _events,
    ("POST", "/sandbox/events"): _edit_event,
    ("DELETE", "/sandbox/events"): _delete_event,
    ("POST", "/sandbox/doubled_events"): _double_event,
    ("GET", "/sandbox/users"): _users,
    ("POST", "/sandbox/users"): _edit_user,
    ("DELETE", "/sandbox/users"): _delete_user,
    ("GET", "/sandbox/forgotten"): _forgotten,
    ("POST", "/sandbox/forgotten"): _forget_user,
    ("DELETE", "/sandbox/forgotten"): _unforget_user,
    **_controls_of_names("dropped_fields"),
    **_controls_of_names("blocked_events"),
    ("GET", "/sandbox/journeys"): _journeys,
    ("POST", "/sandbox/journeys"): _add_journey,
    ("DELETE", "/sandbox/journeys"): _remove_journeys,
    ("POST", "/sandbox/faults"): _add_fault,
    ("DELETE", "/sandbox/faults"): _clear_faults,
}
