"""The local copy of the ledger, and what is known of it: which stored copy it began as, and whether it is still that.

Beside the ledger lies a note. While a run is at work, or after one that could not put its ledger back, the note says
which stored copy the ledger here has grown from; at rest, also how the file then looked, so that one which somebody has
replaced is not taken for the stored one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.ledger.file import LEDGER_NAME, LOCK_NAME, Fetch, Fetched, check_content
from pipeline.state.record import Holder, Snapshot

NOTE_NAME = "iterable_ledger.copy.json"
SCRATCH_NAME = "iterable_ledger.copy.sqlite3"  # what is fetched or about to be put back
_HELPERS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True)
class Note:
    """folder: tells this folder from others. home: its lock file, which no copy of the folder has. url, snapshot,
    number: the stored copy that this one has grown from; "" and 0: none. began_as: the number in the file. token: of
    the run that has changed it last. looks: how the file looked at rest; None: it has grown since it was put back."""

    folder: str
    home: int
    url: str = ""
    snapshot: str = ""
    number: int = 0
    began_as: int = 0
    token: str = ""
    looks: tuple[int, ...] | None = None


class LocalCopy:
    """The ledger in one folder. Only who holds the folder's lock changes anything."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_NAME
        self._folder = folder
        self.scratch_path = folder / SCRATCH_NAME

    # The note -------------------------------------------------------------------------------------------------

    def note(self) -> Note:
        """A new one where there is none that can be read, or where it is another folder's, which was copied: then this
        copy is none of any stored one."""
        try:
            found: dict[str, Any] = json.loads((self._folder / NOTE_NAME).read_bytes())
            looks = found.pop("looks")
            note = Note(**found, looks=tuple(looks) if looks is not None else None)
            if note.home == self._home():
                return note
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        return Note(secrets.token_hex(16), self._home())

    def _home(self) -> int:
        try:
            return (self._folder / LOCK_NAME).stat().st_ino
        except OSError:
            return 0

    def write_note(self, note: Note) -> None:
        new = self._folder / f"{NOTE_NAME}.new"
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(json.dumps(asdict(note)).encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / NOTE_NAME)

    def place(self, note: Note) -> str:
        """The same for all runs that the lock of this folder keeps apart; another one in a copy of it, on another
        machine, or after a new start of this one."""
        lock = (self._folder / LOCK_NAME).stat()
        parts = (note.folder, _boot_id(), str(lock.st_dev), str(lock.st_ino))
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def is_own(self, note: Note, holder: Holder | None) -> bool:
        """Whether that run is, or was, one of this folder."""
        return holder is not None and (self._folder / LOCK_NAME).exists() and holder.place == self.place(note)

    # The ledger -----------------------------------------------------------------------------------------------

    def is_untouched(self, note: Note) -> bool:
        """Whether it is just what the stored copy is."""
        return note.looks is not None and self.looks() == note.looks and self._number() is not None

    def has_grown(self, note: Note) -> bool:
        """Whether it is what a run has made of the stored copy, and has not put back."""
        return note.looks is None and note.url != "" and self._number() == note.began_as

    def looks(self) -> tuple[int, ...] | None:
        """None: there is none, or it is not at rest."""
        if any(self._helper(ending).exists() for ending in _HELPERS):
            return None
        try:
            found = self.path.stat()
        except OSError:
            return None
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)

    def _number(self) -> int | None:
        """How often it had been put back when it came here; None where it can't be used."""
        if not self.path.exists():
            return None
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
                check_content(database)
                return number_of(database)
        except (sqlite3.Error, OSError):
            return None

    def take_in(self, now: float) -> Path | None:
        """Put what was fetched in the ledger's place. What is there and is no copy of a stored one is set aside: where
        it is then."""
        note = self.note()
        is_copy = note.url != "" and (note.looks is None or self.is_untouched(note))
        kept = None if is_copy else self.set_aside(now)
        for ending in _HELPERS:
            self._helper(ending).unlink(missing_ok=True)
        self.scratch_path.replace(self.path)
        return kept

    def set_aside(self, now: float) -> Path | None:
        """Keep the ledger that is here under another name, if there is one: where it is then."""
        if not self.path.exists():
            return None
        kept = self.path.rename(self.path.with_name(f"{LEDGER_NAME}.replaced-{int(now)}"))
        for ending in _HELPERS:
            self._helper(ending).unlink(missing_ok=True)
        return kept

    def keep_fetched(self, now: float) -> Path:
        """Keep what was fetched and can't be used."""
        return self.scratch_path.rename(self.path.with_name(f"{LEDGER_NAME}.damaged-{int(now)}"))

    def damage(self) -> str:
        """What is wrong with the ledger that is here; "": nothing, or there is none."""
        if not self.path.exists():
            return ""
        try:
            with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
                check_content(database)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            return str(error)
        return ""

    def set_number(self, number: int) -> None:
        """Have the ledger say which stored copy it was, if there is one; it is not open yet. A damage shows later."""
        if not self.path.exists():
            return
        with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            try:
                set_number(database, number)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                pass

    def _helper(self, ending: str) -> Path:
        return self.path.with_name(LEDGER_NAME + ending)

    # Copies ---------------------------------------------------------------------------------------------------

    def scratch(self) -> Path:
        """A private file, empty, for a copy under way."""
        self.drop_scratch()
        os.close(os.open(self.scratch_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return self.scratch_path

    def drop_scratch(self) -> None:
        for ending in ("", *_HELPERS):
            with suppress(OSError):
                self.scratch_path.with_name(SCRATCH_NAME + ending).unlink(missing_ok=True)

    def copy(self, number: int) -> Snapshot:
        """What is committed, as a file of its own with this number in it, in `scratch`; also while a run writes."""
        target = self.scratch()
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as ledger:
                ledger.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute("PRAGMA synchronous = OFF")
            set_number(copy, number)
            check_content(copy)  # so that no damage of this file is ever stored
        digest = digest_of(target)
        return Snapshot(f"iterable_ledger.{number:06d}-{secrets.token_hex(4)}.sqlite3", number, *digest)


def number_of(database: sqlite3.Connection) -> int:
    """How often the ledger had been put back when this file was made; 0: never."""
    try:
        row = database.execute("SELECT number FROM put_back").fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(row[0]) if row is not None else 0


def set_number(database: sqlite3.Connection, number: int) -> None:
    """In a table that only ledgers with a STATE_URL have."""
    database.execute("BEGIN")
    database.execute("CREATE TABLE IF NOT EXISTS put_back (number INTEGER NOT NULL)")
    database.execute("DELETE FROM put_back")
    database.execute("INSERT INTO put_back VALUES (?)", (number,))
    database.execute("COMMIT")


def digest_of(path: Path) -> tuple[int, str]:
    """The size and the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
        return file.tell(), digest.hexdigest()


def keep_growing(folder: Path, url: str) -> Fetch:
    """For `open_ledger`: the copy of what is stored at this address, as it is here, to enter more. Raises OSError
    where there is none."""

    def fetch(_: ExitStack) -> Fetched:
        local = LocalCopy(folder)
        note = local.note()
        if note.url != url or not (local.is_untouched(note) or local.has_grown(note)):
            raise FileNotFoundError(local.path)
        local.write_note(replace(note, looks=None))
        return Fetched()

    return fetch


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file that should be a stored copy. is_ledger: it can be used all the same, if need be."""

    reason: str
    is_ledger: bool = False


def damage_of(path: Path, snapshot: Snapshot) -> Damage | None:
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            check_content(database)
            number = number_of(database)
    except sqlite3.DatabaseError as error:
        return Damage(str(error))
    if number != snapshot.number:
        return Damage(f"it was put back {number:,} times, and should have been {snapshot.number:,} times", True)
    if digest_of(path) != (snapshot.size, snapshot.digest):
        return Damage("its content is not what was put there", is_ledger=True)
    return None


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""  # where a machine says nothing of its starts
