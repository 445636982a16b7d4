"""The users of a project: how one is made, updated, given another address, deleted and forgotten.

A store and a user in, the store changed, or an ApiError.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.sandbox.exchange import ApiError, Json
from pipeline.sandbox.fields import update_fields
from pipeline.sandbox.outcome import unknown_user, where_listed
from pipeline.sandbox.rules import is_email, is_user_id
from pipeline.sandbox.store import Store


def check_identity(store: Store, record: Json) -> None:
    """Raises what Iterable answers to a user or an event whose address or id it does not take."""
    email, user_id = record.get("email"), record.get("userId")
    if email is None and user_id is None:
        raise ApiError(400, "BadParams", "email or userId is required")  # INF; a bulk answer can't name it
    if email is not None and not is_email(email):
        raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {email}", None, ("invalidEmails", email))
    if user_id is not None and not is_user_id(user_id):
        raise ApiError(400, "InvalidUserIdError", f"Invalid userId: {user_id}", None, ("invalidUserIds", user_id))
    if store.project_type == "userId" and user_id is None:
        raise unknown_user(record)  # INF; such projects identify by userId
    if store.forgotten and not store.forgotten.isdisjoint((str(email).lower(), user_id)):
        raise ApiError(409, "ForgottenUserError", "User is forgotten", None, where_listed("forgotten", record))


# --- Updates


def store_user(store: Store, user: Json) -> None:
    """Takes an update that was sent, and counts what it did."""
    known = len(store.users)
    key = put_user(store, user)
    is_new = len(store.users) > known
    if store.visible_after_s:
        store.visible_at.setdefault(key, store.clock() + store.visible_after_s)
    if store.keep_payloads:
        store.effects.count_update(key, user.get("dataFields") or {}, is_new)
        if key not in store.user_accepted_seq:
            store.user_accepted_seq[key] = next(store.sequence)
    store.user_updates[key] += 1


def put_user(store: Store, user: Json) -> str:
    """The key of the user who is now as the update says, counted nowhere."""
    key = _key_to_store(store, user)
    data_fields = user.get("dataFields") or {}
    new_email = _new_email(store, key, data_fields)
    stored = store.users.setdefault(key, {"email": None, "userId": None, "dataFields": {}})
    if user.get("email") is not None:
        stored["email"] = user["email"].lower()  # "stored in lower case" (Email Validation in Iterable)
    if user.get("userId") is not None:
        _release_user_id(store, key)
        stored["userId"] = user["userId"]
        store.key_by_user_id[user["userId"]] = key
    if store.keep_payloads:
        update_fields(stored["dataFields"], data_fields, user.get("mergeNestedObjects") is True)
        now = store.updated_at[key] = time.time()
        store.created_at.setdefault(key, now)
    return key if new_email is None else _set_email(store, key, new_email)


def _key_to_store(store: Store, user: Json) -> str:
    """The key of the user that this update is for, known or new."""
    email, user_id = user.get("email"), user.get("userId")
    if store.project_type == "userId":
        return str(user_id)
    if email is None:
        if store.project_type == "email" and not user.get("preferUserId") and store.find(user_id=user_id) is None:
            raise unknown_user(user)  # "Iterable returns an error" (Creating and Identifying Users)
        return store.key_by_user_id.get(str(user_id), str(user_id))
    if store.project_type == "hybrid" and user_id is not None:
        _join_identities(store, user, email.lower(), user_id)
    return str(email.lower())


def _join_identities(store: Store, user: Json, email: str, user_id: str) -> None:
    """Moves a user known only by userId to the address it now has. 409 if id and address belong to two users.

    The status is from the Swagger file ("Email/userId conflict"), the code from a list of response codes.
    """
    key, holder = store.key_by_user_id.get(user_id), store.users.get(email)
    if key == user_id and holder is None:
        _rename(store, user_id, email)
    elif key not in (None, email) or (holder is not None and holder["userId"] not in (None, user_id)):
        raise ApiError(409, "ExternalKeyConflict", "Email/userId conflict", None, where_listed("conflict", user))


def _release_user_id(store: Store, key: str) -> None:
    user_id = store.users[key]["userId"]
    if store.key_by_user_id.get(user_id) == key:  # in an email-based project, several users may have one id
        del store.key_by_user_id[user_id]


# --- Another address


def _new_email(store: Store, key: str, data_fields: Json) -> str | None:
    """The address that a field `email` gives to this user: "To update an email in a userID-based or hybrid project, use
    POST /api/users/update" (Swagger). That a taken address is refused as by updateEmail is INF.
    """
    value = data_fields.get("email")
    if store.project_type == "email" or type(value) is not str:
        return None
    email = value.lower()
    if not is_email(email):
        raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {value}", None, ("invalidEmails", value))
    if store.project_type == "userId":  # there, several users may have one address
        return email
    if email != key and email in store.users:
        raise _email_exists(store, value)
    return email if email != key else None


def _set_email(store: Store, key: str, email: str) -> str:
    if store.users[key]["email"] not in (None, email):
        store.effects.moved.append((str(store.users[key]["email"]), email))
    store.users[key]["email"] = email
    if store.project_type == "userId":
        return key
    _rename(store, key, email)
    return email


def move_user(store: Store, request: Json) -> None:
    """users/updateEmail: "All profile data and events will be migrated" (Swagger).

    Of both identities "currentEmail takes precedence". The codes and texts are from an older article (217502386): an
    unknown old address is BadParams, a new one that exists or "has been forgotten" EmailAlreadyExists; the statuses are
    not stated (INF), and neither is what another type of project answers (INF).
    """
    if store.project_type != "email":
        raise ApiError(400, "BadParams", "Use users/update to change the email of a user in this project")
    email, user_id, new_email = request.get("currentEmail"), request.get("currentUserId"), request["newEmail"]
    if email is None and user_id is None:
        raise ApiError(400, "BadParams", "currentEmail or currentUserId is required")  # INF
    if not is_email(new_email):
        raise ApiError(400, "InvalidEmailAddressError", f"Invalid email: {new_email}")  # INF
    key = store.find(email=email) if email is not None else store.find(user_id=user_id)
    if key is None:
        msg = f"Cannot change user {email if email is not None else user_id} to {new_email}. User does not exist"
        raise ApiError(400, "BadParams", msg)
    if new_email.lower() in store.users or new_email.lower() in store.forgotten:
        raise _email_exists(store, new_email)
    _set_email(store, key, new_email.lower())
    if store.visible_after_s:  # "wait 60 seconds" before other calls about this user (the same article)
        store.visible_at[new_email.lower()] = store.clock() + store.visible_after_s


def _email_exists(store: Store, email: str) -> ApiError:
    return ApiError(int(store.email_exists), "EmailAlreadyExists", f"Email already exists: {email}")


def _rename(store: Store, old: str, new: str) -> None:
    for by_key in _all_by_key(store):
        if old in by_key:
            by_key[new] = by_key.pop(old)
    if old in store.event_ids_of:
        store.event_ids_of[new].update(store.event_ids_of.pop(old))
    user_id = store.users[new]["userId"]
    if store.key_by_user_id.get(user_id) == old:
        store.key_by_user_id[user_id] = new
    for event_id in store.event_ids_of.get(new, ()):
        store.person_of_event[event_id] = new
    store.effects.rename(old, new)


def _all_by_key(store: Store) -> tuple[dict[str, Any], ...]:
    users, times = (store.users, store.user_updates, store.user_accepted_seq), (store.created_at, store.updated_at)
    return *users, *times, store.visible_at, store.other_events


# --- Deleted and forgotten


def delete_user(store: Store, *, email: str | None = None, user_id: str | None = None) -> None:
    """A profile that is made anew has none of the old one's events."""
    key = store.find(email=email, user_id=user_id)
    if key is not None:
        _release_user_id(store, key)
        for event_id in store.event_ids_of.get(key, ()):
            del store.person_of_event[event_id]
        for by_key in _all_by_key(store):
            by_key.pop(key, None)
        store.event_ids_of.pop(key, None)


def forget_user(store: Store, *, email: str | None = None, user_id: str | None = None) -> None:
    key = store.find(email=email, user_id=user_id)
    known = {} if key is None else store.users[key]
    emails = {email and email.lower(), known.get("email")}
    store.forgotten |= {each for each in emails | {user_id, known.get("userId")} if each is not None}
    delete_user(store, email=email, user_id=user_id)
