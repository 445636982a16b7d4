"""What distinguishes Iterable projects in the ledger, and the hashes by which it knows their records.

No hash can be repeated without the secret of its project, so that addresses can't be found by trying them. The secret
comes from the key with which the project was first used, and is in no file. With ITERABLE_PROJECT it must outlive that
key: then the ledger keeps it, sealed with the name, so that whoever has the file and knows the name can repeat them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.model.keys import (
    EVENT_BYTES,
    FIELD_BYTES,
    FIELD_NAME_BYTES,
    GIVEN_KEY,
    HASH_BYTES,
    MADE_KEY,
    ORIGIN_BYTES,
    PERSON_BYTES,
    USER_BYTES,
)

SECRET_BYTES = 32
HEAD_BYTES = 8  # of the fingerprint of an event with a given id


@dataclass(frozen=True)
class Project:
    """An Iterable project, as the settings name it. credential: the API key, or the JWT secret where there is none."""

    base_url: str
    credential: str = field(repr=False)
    name: str | None = None  # ITERABLE_PROJECT

    @property
    def server_hash(self) -> bytes:
        return _digest("server", self.base_url)

    @property
    def key_hash(self) -> bytes:
        return _digest("key", self._key_text)

    @property
    def name_hash(self) -> bytes:
        return _digest("name", self._name_text)

    @property
    def first_secret(self) -> bytes:
        """The secret of a project that was first used with this key."""
        return _digest("", self._key_text, SECRET_BYTES)

    def sealed_by_key(self, secret: bytes) -> bytes:
        """A secret, hidden by this key; a hidden one comes out again."""
        return _exclusive_or(secret, _digest("seal", self._key_text, SECRET_BYTES))

    def sealed_by_name(self, secret: bytes) -> bytes:
        """A secret, hidden by this name; a hidden one comes out again."""
        return _exclusive_or(secret, _digest("seal", self._name_text, SECRET_BYTES))

    @property
    def _key_text(self) -> str:
        return f"{self.base_url}\n{self.credential}"

    @property
    def _name_text(self) -> str:
        return f"{self.base_url}\n{self.name}"


def _digest(purpose: str, text: str, size: int = HASH_BYTES) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=size, person=purpose.encode()).digest()


# A secret is sealed by a one-time pad: 32 bytes that BLAKE2b derives from the key's or the name's text for this purpose
# alone (`person=b"seal"`), as HKDF-Expand derives keys. What it protects is as guessable as that text: an API key is
# not, a name may be, which is why the ledger is a private file and holds hashes only.
def _exclusive_or(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).to_bytes(len(one), "big")


class Hasher:
    """Keys and fingerprints of one project's records. Every ledger holds them: a change would send everything again."""

    def __init__(self, secret: bytes) -> None:
        # Hashers that have read the secret already, by the size of their digests: a copy saves a third of each hash.
        sizes = {
            EVENT_BYTES - 1,
            HASH_BYTES,
            HEAD_BYTES,
            PERSON_BYTES,
            FIELD_NAME_BYTES,
            FIELD_BYTES - FIELD_NAME_BYTES,
        }
        self._hashers = {size: hashlib.blake2b(digest_size=size, key=secret) for size in sizes}
        self._field_names: dict[str, bytes] = {}

    def user_key(self, identity: str) -> bytes:
        return self._hash([identity.encode("utf-8")], HASH_BYTES)[0]

    def event_keys(self, user_keys: Iterable[bytes], contents: Iterable[str]) -> list[bytes]:
        """They begin like their users', so that a user and its events lie together; their length tells them apart.

        contents: all that each event says but for its person.
        """
        hashes = self._hash([content.encode("utf-8") for content in contents], EVENT_BYTES - 1)
        return [user_key[:USER_BYTES] + MADE_KEY + each for user_key, each in zip(user_keys, hashes, strict=True)]

    def given_event_keys(self, user_keys: Iterable[bytes], event_ids: Iterable[str]) -> list[bytes]:
        """The same for ids that the query gives; see `is_given`."""
        hashes = self._hash([event_id.encode("utf-8") for event_id in event_ids], EVENT_BYTES - 1)
        return [user_key[:USER_BYTES] + GIVEN_KEY + each for user_key, each in zip(user_keys, hashes, strict=True)]

    def given_fingerprints(self, heads: Iterable[str], fields: Iterable[str]) -> list[bytes]:
        """Of events with given ids: a hash of what an id may not change (name and time), and one of the fields."""
        return list(
            map(
                bytes.__add__,
                self._hash([each.encode("utf-8") for each in heads], HEAD_BYTES),
                self._hash([each.encode("utf-8") for each in fields], HASH_BYTES - HEAD_BYTES),
            )
        )

    def persons(self, texts: Sequence[str]) -> list[bytes | None]:
        """Who people are, whatever the address; None for an empty text."""
        hashes = self._hash([b"person\n" + text.encode("utf-8") for text in texts], PERSON_BYTES)
        return [each if text else None for text, each in zip(texts, hashes, strict=True)]

    def field_hashes(self, name: str, values: Iterable[str]) -> list[bytes]:
        """Of one field, the values of several users in JSON -> FIELD_BYTES for each; for "", nothing."""
        name_hash = self.field_name(name)
        lead = name.encode("utf-8") + b"\n"
        size = FIELD_BYTES - FIELD_NAME_BYTES
        values = list(values)
        distinct = [value for value in dict.fromkeys(values) if value]
        hashes = self._hash([lead + value.encode("utf-8") for value in distinct], size)
        known = {"": b"", **{value: name_hash + each for value, each in zip(distinct, hashes, strict=True)}}
        return [known[value] for value in values]

    def field_name(self, name: str) -> bytes:
        if name not in self._field_names:
            self._field_names[name] = self._hash([name.encode("utf-8")], FIELD_NAME_BYTES)[0]
        return self._field_names[name]

    def sealed_origin(self, user_key: bytes, origin: bytes) -> bytes:
        """What made event ids say of a person, hidden from those who have only the file; a hidden one comes out again.

        The ids hold an unkeyed hash of an address, which could be found by trying addresses. A keyed hash of the user's
        key, used for this one origin alone, covers it as a one-time pad.
        """
        return self.sealed_origins([user_key], [origin])[0]

    def sealed_origins(self, user_keys: Sequence[bytes], origins: Iterable[bytes]) -> list[bytes]:
        covers = self._hash([b"origin\n" + user_key for user_key in user_keys], ORIGIN_BYTES)
        sealed = _exclusive_or(b"".join(origins), b"".join(covers))
        return [sealed[start : start + ORIGIN_BYTES] for start in range(0, len(sealed), ORIGIN_BYTES)]

    def fingerprints(self, payloads: Iterable[bytes]) -> list[bytes]:
        return self._hash(payloads, HASH_BYTES)

    def row_digests(self, meaning: str) -> Callable[[bytes], bytes]:
        """What makes digests of rows, given all that decides beside them what they become."""
        lead = self._hashers[HASH_BYTES].copy()
        lead.update(f"rows\n{meaning}\n".encode())

        def digest(rows: bytes) -> bytes:
            hasher = lead.copy()
            hasher.update(rows)
            return hasher.digest()

        return digest

    def text(self, text: str) -> bytes:
        """A hash of what the ledger has to recognize and nobody shall read there, such as a reason or a path."""
        return self._hash([text.encode("utf-8")], HASH_BYTES)[0]

    def _hash(self, contents: Iterable[bytes], size: int) -> list[bytes]:
        copy = self._hashers[size].copy
        hashes = []
        for content in contents:
            hasher = copy()
            hasher.update(content)
            hashes.append(hasher.digest())
        return hashes


# Which project of the ledger -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A project's number in the ledger, 0 where it has none. note: what the user should know about it."""

    number: int
    secret: bytes = field(repr=False)
    note: str = ""


def find_project(database: sqlite3.Connection, project: Project) -> Found:
    """The project that the settings mean. A key opens one Iterable project alone, so it counts for more than a name.

    A key that was only ever used under a name says nothing about another name: that may be the first run of another
    project with a file of settings that was copied. The brake stops what would be sent again.
    """
    by_first_key = _by_first_key(database, project)
    if by_first_key is not None and _knows_records(database, by_first_key):
        return Found(by_first_key, project.first_secret, _note_on_moved_name(database, project, by_first_key))
    found = _by_name(database, project) if project.name is not None else _by_last_key(database, project)
    if found is not None:
        return found
    note = ""
    if project.name is not None and _by_last_key(database, project) is not None:
        note = (
            f"Nothing is known under ITERABLE_PROJECT={project.name}, and this key was last used under another name. "
            "If both mean the same Iterable project, put that name back; else everything is sent again."
        )
    return Found(by_first_key or 0, project.first_secret, note)


def _by_first_key(database: sqlite3.Connection, project: Project) -> int | None:
    row = database.execute("SELECT id FROM projects WHERE first_key = ?", (project.key_hash,)).fetchone()
    return None if row is None else int(row[0])


def _note_on_moved_name(database: sqlite3.Connection, project: Project, number: int) -> str:
    if project.name is None:
        return ""
    rows = database.execute("SELECT 1 FROM projects WHERE name = ? AND id <> ?", (project.name_hash, number))
    if rows.fetchone() is None:
        return ""
    return (
        f"ITERABLE_PROJECT={project.name} was used with another key; from now on it stands for what was sent with this "
        "one. If that key belongs to another Iterable project, give each a name of its own."
    )


def _knows_records(database: sqlite3.Connection, number: int) -> bool:
    tables = ("users", "events", "given_events", "forgotten")
    rows = [database.execute(f"SELECT 1 FROM {table} WHERE project = ? LIMIT 1", (number,)) for table in tables]
    return any(row.fetchone() is not None for row in rows)


def _by_name(database: sqlite3.Connection, project: Project) -> Found | None:
    row = database.execute(
        "SELECT id, secret_by_name, last_key FROM projects WHERE name = ?", (project.name_hash,)
    ).fetchone()
    if row is None:
        return None
    number, sealed, last_key = row
    note = (
        f"The key is new for ITERABLE_PROJECT={project.name}; what was sent under this name counts as sent. If the key "
        "belongs to another Iterable project, give that one a name of its own."
    )
    return Found(number, project.sealed_by_name(sealed), note if last_key != project.key_hash else "")


def _by_last_key(database: sqlite3.Connection, project: Project) -> Found | None:
    row = database.execute(
        "SELECT id, secret_by_last_key FROM projects WHERE last_key = ? AND name IS NOT NULL ORDER BY id",
        (project.key_hash,),
    ).fetchone()
    return None if row is None else Found(row[0], project.sealed_by_key(row[1]))


def enter_project(database: sqlite3.Connection, project: Project, found: Found) -> int:
    """Note under which key and name the project is used now; its number, a new one where it had none."""
    values = (project.key_hash, project.sealed_by_key(found.secret))
    number = found.number
    if number:
        database.execute("UPDATE projects SET last_key = ?, secret_by_last_key = ? WHERE id = ?", (*values, number))
    else:
        cursor = database.execute(
            "INSERT INTO projects (server, first_key, last_key, secret_by_last_key) VALUES (?, ?, ?, ?)",
            (project.server_hash, project.key_hash, *values),
        )
        number = int(cursor.lastrowid or 0)
    if project.name is not None:
        database.execute("UPDATE projects SET name = NULL, secret_by_name = NULL WHERE name = ?", (project.name_hash,))
        database.execute(
            "UPDATE projects SET name = ?, secret_by_name = ? WHERE id = ?",
            (project.name_hash, project.sealed_by_name(found.secret), number),
        )
    return number


def count_others(database: sqlite3.Connection, number: int) -> int:
    """Projects that this key, or name, does not open, and of which records are known."""
    others = database.execute("SELECT id FROM projects WHERE id <> ?", (number,)).fetchall()
    return sum(_knows_records(database, other) for (other,) in others)


def count_forgotten_of_others(database: sqlite3.Connection, project: Project, number: int) -> int:
    """People whom --forget has forgotten in other projects of this server."""
    (count,) = database.execute(
        "SELECT count(*) FROM (SELECT DISTINCT project, number FROM forgotten WHERE project IN"
        " (SELECT id FROM projects WHERE server = ? AND id <> ?))",
        (project.server_hash, number),
    ).fetchone()
    return int(count)


def is_new_key_for_known_host(database: sqlite3.Connection, project: Project, number: int) -> bool:
    """Whether records of other projects of this server are known, and none of this one."""
    others = database.execute(
        "SELECT id FROM projects WHERE server = ? AND id <> ?", (project.server_hash, number)
    ).fetchall()
    return not _knows_records(database, number) and any(_knows_records(database, other) for (other,) in others)
