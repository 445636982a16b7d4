"""What a setting may say: each parser takes the text of a set value and gives the value itself.

A wrong text raises ValueError with the rest of a sentence that begins with the setting's name. No parser quotes more
than a few characters, so that a secret in the wrong line is not shown. Knows no setting by name.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo

from iterable.transport import LOOPBACK_HOSTS

Parser = Callable[[str], Any]

ROOT = Path(__file__).resolve().parent.parent.parent  # the folder of main.py
OFFICIAL_HOSTS = ("api.iterable.com", "api.eu.iterable.com")
STATE_SCHEMES = ("s3", "gs", "az", "file")
MAX_QUOTED_CHARS = 24
MAX_SECRET_BYTES = 64 * 1024


@dataclass(frozen=True)
class MaxChanges:
    """How many pending records stop a run: a number, or percent of what the ledger knows for this project."""

    limit: float
    is_percent: bool


@dataclass(frozen=True)
class Number:
    """A number of `unit` from `least` to `most`."""

    kind: type[int] | type[float]
    least: float
    most: float
    unit: str

    def __call__(self, value: str) -> float:
        try:
            number = self.kind(value)
        except ValueError:
            number = math.nan
        if not self.least <= number <= self.most:
            what = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"must be {what} of {self.unit} from {self.least:g} to {self.most:g}{_not(value)}")
        return number


@dataclass(frozen=True)
class OneOf:
    """One of some words, in upper or lower case."""

    choices: tuple[str, ...]

    def __call__(self, value: str) -> str:
        for choice in self.choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"must be {' or '.join(self.choices)}{_not(value)}")


def whole(least: int, most: int, unit: str) -> Number:
    return Number(int, least, most, unit)


def number(least: float, most: float, unit: str) -> Number:
    return Number(float, least, most, unit)


def one_of(*choices: str) -> OneOf:
    return OneOf(choices)


def _not(value: str) -> str:
    return f", not {value!r}" if len(value) <= MAX_QUOTED_CHARS else ""


def text(value: str) -> str:
    return value


def boolean(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if value.lower() not in known:
        raise ValueError(f"must be true or false{_not(value)}")
    return known[value.lower()]


# Secrets --------------------------------------------------------------------------------------------------------------


def is_placeholder(value: str) -> bool:
    """Whether a secret is still to be filled in: `your-api-key`, `your_api_key_here`, `<YOUR API KEY>` and the like."""
    return re.sub(r"[\W_]", "", value).lower().startswith("your")


def _refuse_placeholder(value: str) -> None:
    if is_placeholder(value):
        raise ValueError("is still a placeholder; put the real value there")


def secret(value: str) -> str:
    _refuse_placeholder(value)
    if not (value.isascii() and value.isprintable()) or any(each in value for each in " \"'"):
        raise ValueError("has a space, a quote, a line break or a character beyond ASCII in it; copy it again")
    return value


def database_url(value: str) -> str:
    _refuse_placeholder(value)
    scheme, _, rest = value.partition("://")
    if not rest or not re.fullmatch(r"[\w+]+", scheme):
        raise ValueError("must be a URL such as sqlite:///users.db or postgresql+psycopg://user:password@host/name")
    if not _is_unambiguous(value):
        raise ValueError(
            "must have the special characters of its user name and password percent-encoded: "
            "@ as %40, / as %2F, # as %23, ? as %3F, [ as %5B"
        )
    if not split_database_url(value).netloc:  # a file
        _refuse_what_no_file_name_holds(rest)
    return value


def _is_unambiguous(address: str) -> bool:
    """False where readers of URLs would differ on where a password ends, and so on what has to be kept secret."""
    try:
        parts = split_database_url(address)
    except ValueError:
        return False
    if not parts.netloc:  # the path of an SQLite file may hold anything
        return True
    return parts.netloc.count("@") <= 1 and "@" not in parts.path + parts.query and "#" not in address


def split_database_url(address: str) -> SplitResult:
    """urllib alone finds nothing in a URL like db2+ibm_db://..., as it knows no schemes with an underscore."""
    scheme, _, rest = address.partition("://")
    return urlsplit(f"//{rest}")._replace(scheme=scheme)


def json_object(value: str) -> dict[str, Any]:
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ValueError('must be a JSON object such as {"sslmode": "verify-full"}')
    return parsed


# Times ----------------------------------------------------------------------------------------------------------------


def time_zone(value: str) -> tzinfo:
    if value.upper() == "UTC":  # needs no time zone database, which Windows lacks
        return timezone.utc
    try:
        return ZoneInfo(value)
    except Exception:  # ZoneInfo raises KeyError, ValueError or OSError, by the kind of mistake
        raise ValueError(f"must be a time zone such as UTC or Europe/Berlin{_not(value)}") from None


def parse_moment(written: str) -> datetime:
    """`2026-01-12`, `2026-01-12 08:00:00`, with `T`, with an offset; UTC without one. ValueError for anything else."""
    written = written.strip()
    if not re.match(r"\d{4}-\d\d-\d\d(?:$|[T ])", written):
        raise ValueError("is not a time")
    moment = datetime.fromisoformat(written[:-1] + "+00:00" if written[-1] in "zZ" else written)
    if moment.tzinfo is None:
        return moment.replace(tzinfo=timezone.utc)
    try:
        return moment.astimezone(timezone.utc)
    except OverflowError:
        raise ValueError("is before the year 1 or after 9999 in UTC") from None


def moment(value: str) -> datetime:
    try:
        return parse_moment(value)
    except ValueError:
        raise ValueError(f"must be a time such as 2026-01-12 or 2026-01-12 08:00:00{_not(value)}") from None


def max_changes(value: str) -> MaxChanges:
    number = value.removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,12}(?:\.\d+)?", number) or ("." in number and not value.endswith("%")):
        raise ValueError(f"must be a whole number of records, or a percentage such as 20%{_not(value)}")
    return MaxChanges(float(number), is_percent=value.endswith("%"))


# Addresses ------------------------------------------------------------------------------------------------------------


def base_url(value: str) -> str:
    parts = _split_address(value)
    host = (parts.hostname or "") if parts else ""
    if parts is None or not re.fullmatch(r"[a-z0-9._:-]{1,253}", host):
        raise ValueError("must be an address such as https://api.iterable.com")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or a password")
    if parts.query or parts.fragment:
        raise ValueError("must not have a ? or a # in it")
    if parts.scheme == "http" and host not in LOOPBACK_HOSTS:
        raise ValueError("must begin with https://, since the key travels with each request")
    path = parts.path.rstrip("/")
    if host in OFFICIAL_HOSTS and (path or parts.port not in (None, 443)):
        raise ValueError(f"must be https://{host} alone, without a path or a port")
    if path.endswith("/api"):
        raise ValueError("must not end with /api, which is added to it")
    return f"https://{host}" if host in OFFICIAL_HOSTS else f"{parts.scheme}://{parts.netloc.lower()}{path}"


def state_url(value: str) -> str:
    scheme, mark, rest = value.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in STATE_SCHEMES:
        raise ValueError(
            "must be an address such as s3://bucket/folder, gs://bucket/folder, az://container/folder or file:///folder"
        )
    if any(each in rest for each in "@?#"):
        raise ValueError("must not hold credentials or options; they come from the environment or the machine's role")
    parts = rest.rstrip("/").split("/")
    if scheme == "file":
        _refuse_what_no_file_name_holds(rest)
    if scheme == "file" and (parts[0] or len(parts) < 2):
        raise ValueError("must be the whole path of a folder after file://, such as file:///mnt/shared/ledger")
    if scheme != "file" and not re.fullmatch(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._=-]+)*", "/".join(parts)):
        raise ValueError(f"must be {scheme}://, a bucket and a folder, of letters, digits, and any of . _ - =")
    if any(each in (".", "..") for each in parts):
        raise ValueError("must not have . or .. for a folder")
    return f"{scheme}://{'/'.join(parts)}"


def web_address(value: str) -> str:
    parts = _split_address(value)
    if parts is None or not parts.hostname:
        raise ValueError("must be an address that begins with https:// or http://")
    return value


def https_address(value: str) -> str:
    parts = urlsplit(web_address(value))
    if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
        raise ValueError("must begin with https://, since its path is a secret")
    return value


def _split_address(value: str) -> SplitResult | None:
    """The parts of a web address, None if it is none. urllib's own errors would quote it, and a password in it."""
    try:
        parts = urlsplit(value)
        _ = parts.port  # a port that is not a number raises ValueError
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and " " not in value else None


# Files ----------------------------------------------------------------------------------------------------------------


def existing_file(value: str) -> Path:
    named = path(value)
    if not _is_there(named.is_file):
        raise ValueError(f"names {named}, which is not a file")
    return named


def existing_path(value: str) -> Path:
    named = path(value)
    if not _is_there(named.exists):
        raise ValueError(f"names {named}, which does not exist")
    return named


def file_to_write(value: str) -> Path:
    named = path(value)
    if _is_there(named.is_dir):
        raise ValueError(f"names {named}, which is a folder; name a file in it")
    return named


def content_of(value: str) -> str:
    """What the file holds that `value` names, less one line break at its end, as `echo` and editors leave it."""
    named = path(value)
    try:
        with named.open("rb") as file:
            content = file.read(MAX_SECRET_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"names {named}, which is not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ValueError(f"names {named}, which can't be read ({reason})") from None
    if len(content) > MAX_SECRET_BYTES:
        raise ValueError(f"names {named}, which is larger than {MAX_SECRET_BYTES // 1024} KiB")
    if not text.strip():
        raise ValueError(f"names {named}, which is empty")
    return text.removesuffix("\n").removesuffix("\r")


def _refuse_what_no_file_name_holds(value: str) -> None:
    """As where LC_ALL=C makes Python take file names for ASCII."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError(
            f"has a character that file names can't have here, as this process has {sys.getfilesystemencoding()} for "
            "them; start it with LC_ALL=C.UTF-8"
        ) from None


def _is_there(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a name that is too long, or a folder that is closed to us
        return False


def path(value: str) -> Path:
    """Relative paths are taken from the folder of main.py, as cron starts elsewhere."""
    _refuse_what_no_file_name_holds(value)
    try:
        return ROOT / Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and a user whose home is not known") from None
