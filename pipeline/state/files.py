"""STATE_URL=file:///…: a folder on a disk that all machines share. A small object is replaced under a lock, and by a
rename, so that it is never seen in part; the lock must be one that all of them see."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.ledger.lock import Locked, hold_lock
from pipeline.state.store import ConflictError, Stored, StoreDownError, StoreRefusedError, Version

LOCK_NAME = "iterable_ledger.state.lock"
WAIT_S = 10.0  # for another machine's write, which takes some milliseconds
_REFUSALS = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)


class FileStore:
    """All files are private (0600)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._folder = Path(unquote(urlsplit(url).path))

    def read(self, name: str) -> Stored | None:
        with self._explained():
            content = self._read(name)
        return None if content is None else Stored(content, _version(content))

    def write(self, name: str, content: bytes, expected: Version | None) -> Version:
        with self._explained(), self._lock():
            found = self._read(name)
            if (None if found is None else _version(found)) != expected:
                raise ConflictError
            self._put(name, content)
        return _version(content)

    def age_s(self, name: str) -> float | None:
        with self._explained():
            self._check_folder()
            try:
                written_at = (self._folder / name).stat().st_mtime
            except FileNotFoundError:
                return None
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".iterable_ledger.new-") as probe:
                probe.write(b"now")  # a server sets the time of what is written to it
                probe.flush()
                return Path(probe.name).stat().st_mtime - written_at

    def upload(self, name: str, source: Path) -> None:
        with self._explained(), self._new_file(name) as target, source.open("rb") as content:
            shutil.copyfileobj(content, target, 1024 * 1024)

    def download(self, name: str, target: Path) -> bool:
        with self._explained():
            self._check_folder()
            try:
                shutil.copyfile(self._folder / name, target)
            except FileNotFoundError:
                return False
        return True

    def delete(self, name: str) -> None:
        with suppress(OSError):
            (self._folder / name).unlink()

    def names(self) -> list[str]:
        with self._explained():
            return [each.name for each in self._folder.iterdir()]

    def _read(self, name: str) -> bytes | None:
        self._check_folder()
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def _check_folder(self) -> None:
        if not self._folder.is_dir():
            raise NotADirectoryError(f"{self._folder} is not a folder")

    def _put(self, name: str, content: bytes) -> None:
        with self._new_file(name) as target:
            target.write(content)

    @contextmanager
    def _new_file(self, name: str) -> Iterator[tempfile._TemporaryFileWrapper[bytes]]:
        """A private file that appears whole, under this name, and lasts."""
        self._check_folder()
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".iterable_ledger.new-", delete=False) as target:
            new = Path(target.name)
            try:
                yield target
                target.flush()
                os.fsync(target.fileno())
            except BaseException:
                with suppress(OSError):
                    new.unlink()
                raise
        new.replace(self._folder / name)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                with hold_lock(self._folder / LOCK_NAME):
                    yield
                return
            except Locked:
                if time.monotonic() > deadline:
                    raise StoreDownError(f"STATE_URL names {self._folder}, which another program locks.") from None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except _REFUSALS as error:
            reason = error.strerror or str(error)
            raise StoreRefusedError(
                f"STATE_URL names {self._folder}, which can't be used ({reason}); create the folder, and let this user "
                "write there."
            ) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreDownError(f"STATE_URL names {self._folder}, which can't be used now ({reason}).") from error


def _version(content: bytes) -> Version:
    return {"digest": hashlib.sha256(content).hexdigest()}
