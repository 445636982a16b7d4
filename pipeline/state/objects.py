"""STATE_URL=s3://…, gs://… or az://…: an object store, through `obstore` (requirements-state.txt).

Credentials come from where the platform has them: the environment, or the machine's or pod's role. No message has a
word of the store's own answers but its error code, as those may quote what was sent.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model.text import to_install
from pipeline.state.store import ConflictError, Stored, StoreDownError, StoreRefusedError, Version

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

CLOCK_NAME = "iterable_ledger.clock"
PART_BYTES = 5 * 1024 * 1024  # the least that S3 takes
PARTS_AT_ONCE = 2
_ALLOW_HTTP = ("AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "ALLOW_HTTP")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|InvalidBucketName|InvalidResourceName|bucket does not exist")
_NO_CREDENTIALS = re.compile(r"169\.254\.|latest/(?:api/token|meta-data)|metadata|MissingAccount|Account must be")
_OTHER_REGION = re.compile(r"redirect without LOCATION|BareRedirect")  # S3's answer, of which obstore has no status
_TEMPORARY = (408, 429)
_CONFLICTS = (409, 412)
_OF_THIS_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Patience:
    """In seconds: for one request, and for how long one that has failed is tried again."""

    timeout_s: float
    retry_s: float


SMALL = Patience(timeout_s=10, retry_s=15)  # obstore itself would try for 180 s
LARGE = Patience(timeout_s=30, retry_s=20)


class ObjectStore:
    """One folder of a bucket or container."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            import obstore
        except ImportError as error:
            raise StoreRefusedError(
                "STATE_URL names an object store, and the package obstore is not installed; run: "
                f"{to_install('requirements-state.txt')}"
            ) from error
        self._obstore = obstore
        with self._explained():
            self._small = _connect(url, SMALL)
            self._large = _connect(url, LARGE)

    def read(self, name: str) -> Stored | None:
        with self._explained():
            try:
                found = self._obstore.get(self._small, name)
                return Stored(bytes(found.bytes()), _version(found.meta))
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def write(self, name: str, content: bytes, expected: Version | None) -> Version:
        mode: Any = "create" if expected is None else dict(expected)
        with self._explained():
            return _version(self._obstore.put(self._small, name, content, mode=mode, use_multipart=False))

    def age_s(self, name: str) -> float | None:
        with self._explained():
            try:
                written_at = self._obstore.head(self._small, name)["last_modified"]
            except FileNotFoundError:
                return None
            self._obstore.put(self._small, CLOCK_NAME, b"now", use_multipart=False)
            now = self._obstore.head(self._small, CLOCK_NAME)["last_modified"]
        return float((now - written_at).total_seconds())

    def upload(self, name: str, source: Path) -> None:
        with self._explained():
            self._obstore.put(
                self._large,
                name,
                source,
                use_multipart=source.stat().st_size > PART_BYTES,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )

    def download(self, name: str, target: Path) -> bool:
        with self._explained():
            try:
                size = self._obstore.head(self._small, name)["size"]
                with target.open("wb") as file:
                    for start in range(0, size, PART_BYTES):
                        end = min(start + PART_BYTES, size)
                        file.write(self._obstore.get_range(self._large, name, start=start, end=end))
            except FileNotFoundError:
                return False
        return True

    def delete(self, name: str) -> None:
        with suppress(StoreDownError, StoreRefusedError), self._explained(), suppress(FileNotFoundError):
            self._obstore.delete(self._small, name)

    def names(self) -> list[str]:
        with suppress(StoreDownError, StoreRefusedError), self._explained():
            return [each["path"] for page in self._obstore.list(self._small) for each in page]
        return []

    def _check_bucket(self, error: FileNotFoundError) -> None:
        if _NO_BUCKET.search(str(error)):
            raise StoreRefusedError(f"STATE_URL names {self.url}, whose bucket does not exist; create it.") from None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """The store's errors as ours. Chained to nothing, as their texts may end in a log."""
        errors = self._obstore.exceptions
        try:
            yield
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise StoreRefusedError(f"STATE_URL names {self.url}, where nothing can be written (404).") from None
        except (errors.AlreadyExistsError, errors.PreconditionError):
            raise ConflictError from None
        except (errors.BaseError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
                raise
            if (status := _status_in(str(error))) in _CONFLICTS:
                raise ConflictError from None
            raise self._our_error(error, status) from None

    def _our_error(self, error: Exception, status: int | None) -> StoreDownError | StoreRefusedError:
        text = str(error)
        code = f" {found[1]}" if (found := _CODE.search(text)) else ""
        errors = self._obstore.exceptions
        if _NO_CREDENTIALS.search(text):
            return StoreRefusedError(
                f"STATE_URL names {self.url}, and no credentials for it were found in the environment or from the "
                "machine's role."
            )
        if _OTHER_REGION.search(text):
            return StoreRefusedError(
                f"STATE_URL names {self.url}, whose bucket is in another region; name the one that it is in with "
                "AWS_REGION."
            )
        is_refusal = isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError)
        if is_refusal or (status is not None and 300 <= status < 500 and status not in _TEMPORARY):
            return StoreRefusedError(
                f"STATE_URL names {self.url}, which refuses what the job needs ({status or 'no access'}{code}): to "
                "read, write, list and delete there. Check the credentials of this machine, and the region."
            )
        if _NO_BUCKET.search(text):
            return StoreRefusedError(f"STATE_URL names {self.url}, whose bucket does not exist; create it.")
        return StoreDownError(f"STATE_URL names {self.url}, which does not answer now ({status or 'no answer'}{code}).")


def _connect(url: str, patience: Patience) -> Client:
    from obstore.store import from_url

    allow_http = any(os.environ.get(name, "").lower() == "true" for name in _ALLOW_HTTP)
    return from_url(
        url,
        client_options={
            "timeout": timedelta(seconds=patience.timeout_s),
            "connect_timeout": timedelta(seconds=5),
            "allow_http": allow_http,
        },
        retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=patience.retry_s)},
    )


def _status_in(text: str) -> int | None:
    found = _STATUS.search(text)
    return int(found[1]) if found else None


def _version(found: Any) -> Version:
    """What obstore wants to have back; None in it would mean that anything may be overwritten."""
    version = {name: found[name] for name in ("e_tag", "version") if found.get(name) is not None}
    if not version:
        raise StoreRefusedError("STATE_URL names a store that gives no versions, so two runs could not be kept apart.")
    return version
