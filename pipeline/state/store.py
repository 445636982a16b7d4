"""What a place must be able to do to keep the ledger: small objects that are replaced only as they were seen, and large
ones under names of their own. `open_store` finds the one for an address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.model.exits import ExitCode, RunError

Version = Mapping[str, str]  # of an object's content; only the store knows what it means


class StoreDownError(RunError):
    """The store does not answer, or not now."""

    code = ExitCode.TEMPORARY


class StoreRefusedError(RunError):
    """The store answers, and will not let this program do what it needs to."""

    code = ExitCode.SETTINGS


class ConflictError(Exception):
    """The object is not, or no longer, as it was expected to be; nothing was written."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read."""

    content: bytes
    version: Version


class Store(Protocol):
    """Every call raises StoreDownError or StoreRefusedError where it can't be done, within a minute."""

    url: str

    def read(self, name: str) -> Stored | None:
        """A small object; None: there is none."""

    def write(self, name: str, content: bytes, expected: Version | None) -> Version:
        """Replace a small object that is still as expected; None: make it, as there is none yet. Raises ConflictError,
        also where it was written and the answer was lost: read it to find out."""

    def age_s(self, name: str) -> float | None:
        """Seconds since the object was last written, by the store's own clock alone; None: there is none."""

    def upload(self, name: str, source: Path) -> None:
        """Put a file there, under a name that nobody else uses."""

    def download(self, name: str, target: Path) -> bool:
        """Bring it into a file that is there already. False: there is none."""

    def delete(self, name: str) -> None:
        """Delete it, if it is there and may be deleted."""

    def names(self) -> list[str]:
        """All objects there; none, where they may not be listed."""


def open_store(url: str) -> Store:
    """Raises StoreRefusedError where it can't be used as things are set up."""
    if url.startswith("file:"):
        from pipeline.state.files import FileStore

        return FileStore(url)
    from pipeline.state.objects import ObjectStore

    return ObjectStore(url)
