"""`.env` and the environment -> `Settings`, or one error that lists every problem.

Knows what each setting means and allows; reads no other file, and decides nothing about the run.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit
from zoneinfo import ZoneInfo

from dotenv.parser import Binding, parse_stream

from pipeline.config.fields import EVERY_OTHER, FieldMap, parse_fields
from pipeline.model.exits import ExitCode, RunError

PLACEHOLDER = "your-"  # what the values of .env.example that must be replaced begin with
OFFICIAL_HOSTS = ("api.iterable.com", "api.eu.iterable.com")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
ROOT = Path(__file__).resolve().parent.parent.parent  # the folder of main.py
QUOTES = "\"'`“”‘’„‚«»"
MAX_QUOTED_CHARS = 24  # of a wrong value, so that a secret in the wrong line is not shown


class SettingsError(RunError):
    """One or more settings are missing or wrong. `problems` holds a sentence for each."""

    code = ExitCode.SETTINGS

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class MaxChanges:
    """How many pending records stop a run: a number, or percent of what the ledger knows for this project."""

    limit: float
    is_percent: bool


@dataclass(frozen=True)
class Settings:
    """Every setting, by its name in lower case; see .env.example for what each means."""

    iterable_api_key: str | None = field(repr=False)
    use_jwt_auth: bool
    iterable_jwt_secret: str | None = field(repr=False)
    iterable_jwt_issuer: str
    iterable_base_url: str
    iterable_identifier: str
    iterable_project: str | None
    database_url: str | None = field(repr=False)
    query_file: Path
    user_fields: tuple[FieldMap, ...]
    event_fields: tuple[FieldMap, ...]
    event_name: str
    event_timezone: tzinfo
    null_values: str
    merge_nested: bool
    push_mode: str
    max_workers: int | None
    max_retries: int
    backoff_factor: float
    initial_backoff: float
    request_timeout: float
    rate_limit_percent: float
    user_settle_seconds: float
    since_overlap_hours: float
    full_read_days: float
    since_start: datetime
    max_changes: MaxChanges | None
    exit_on_rejected: str
    skip_forgotten: bool
    iterable_allow_custom_host: bool
    iterable_proxy: str | None = field(repr=False)
    iterable_ca_bundle: Path | None
    heartbeat_url: str | None = field(repr=False)
    output_dir: Path
    keep_days: int
    max_run_minutes: float | None
    given: frozenset[str] = frozenset()  # the names that were set, not defaulted
    warnings: tuple[str, ...] = ()

    def secrets(self) -> list[str | None]:
        """Everything that no output may show."""
        secrets = [self.iterable_api_key, self.iterable_jwt_secret, self.heartbeat_url]
        for address in (self.database_url, self.iterable_proxy):
            parts = _split_url(address or "")
            secrets += [parts.password, unquote(parts.password or "")]
            secrets += [value for name, value in parse_qsl(parts.query) if _names_password(name)]
        return secrets

    def shown_database(self) -> str:
        """DATABASE_URL without user, password and options: `postgresql+psycopg://***@host/name`."""
        parts = _split_url(self.database_url or "")
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}"

    def database_without_password(self) -> str:
        """DATABASE_URL with all that says which data it is, and nothing that opens it."""
        parts = _split_url(self.database_url or "")
        login, _, host = parts.netloc.rpartition("@")
        options = [each for each in parse_qsl(parts.query, keep_blank_values=True) if not _names_password(each[0])]
        return parts._replace(netloc=f"{login.partition(':')[0]}@{host}", query=urlencode(options)).geturl()


# A parser takes the text of a set value, and raises ValueError with the rest of the sentence "NAME ...".
Parser = Callable[[str], Any]


def _text(value: str) -> str:
    return value


def _secret(value: str) -> str:
    _refuse_placeholder(value)
    if not (value.isascii() and value.isprintable()) or any(each in value for each in " \"'"):
        raise ValueError("has a space, a quote, a line break or a character beyond ASCII in it; copy it again")
    return value


def _refuse_placeholder(value: str) -> None:
    if value.startswith(PLACEHOLDER):
        raise ValueError("is still the placeholder of .env.example; put the real one there")


def _database_url(value: str) -> str:
    _refuse_placeholder(value)
    scheme, _, rest = value.partition("://")
    if not rest or not re.fullmatch(r"[\w+]+", scheme):
        raise ValueError("must be a URL such as sqlite:///users.db or postgresql+psycopg://user:password@host/name")
    if not _is_unambiguous(value):
        raise ValueError(
            "must have the special characters of its user name and password percent-encoded: "
            "@ as %40, / as %2F, # as %23, ? as %3F, [ as %5B"
        )
    return value


def _is_unambiguous(database_url: str) -> bool:
    """False where readers of URLs would differ on where a password ends, and so on what has to be kept secret."""
    try:
        parts = _split_url(database_url)
    except ValueError:
        return False
    if not parts.netloc:  # the path of an SQLite file may hold anything
        return True
    return parts.netloc.count("@") <= 1 and "@" not in parts.path + parts.query and "#" not in database_url


def _names_password(option: str) -> bool:
    return "pass" in option.lower() or option == "pwd"


def _split_url(database_url: str) -> SplitResult:
    """urllib alone finds nothing in a URL like db2+ibm_db://..., as it knows no schemes with an underscore."""
    scheme, _, rest = database_url.partition("://")
    return urlsplit(f"//{rest}")._replace(scheme=scheme)


def _boolean(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if value.lower() not in known:
        raise ValueError(f"must be true or false{_not(value)}")
    return known[value.lower()]


def _one_of(*choices: str) -> Parser:
    def parse(value: str) -> str:
        for choice in choices:
            if value.lower() == choice.lower():
                return choice
        raise ValueError(f"must be {' or '.join(choices)}{_not(value)}")

    return parse


def _number(kind: type[int] | type[float], least: float, most: float, unit: str) -> Parser:
    def parse(value: str) -> float:
        try:
            number = kind(value)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"must be {what} of {unit} from {least:g} to {most:g}{_not(value)}")
        return number

    return parse


def _not(value: str) -> str:
    return f", not {value!r}" if len(value) <= MAX_QUOTED_CHARS else ""


def _time_zone(value: str) -> tzinfo:
    if value.upper() == "UTC":  # needs no time zone database, which Windows lacks
        return timezone.utc
    try:
        return ZoneInfo(value)
    except Exception:  # ZoneInfo raises KeyError, ValueError or OSError, by the kind of mistake
        raise ValueError(f"must be a time zone such as UTC or Europe/Berlin{_not(value)}") from None


def parse_moment(text: str) -> datetime:
    """`2026-01-12`, `2026-01-12 08:00:00`, with `T`, with an offset; UTC without one. ValueError for anything else."""
    text = text.strip()
    if not re.match(r"\d{4}-\d\d-\d\d(?:$|[T ])", text):
        raise ValueError("is not a time")
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1] in "zZ" else text)
    return moment.astimezone(timezone.utc) if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _moment(value: str) -> datetime:
    try:
        return parse_moment(value)
    except (ValueError, OverflowError):
        raise ValueError(f"must be a time such as 2026-01-12 or 2026-01-12 08:00:00{_not(value)}") from None


def _max_changes(value: str) -> MaxChanges:
    number = value.removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,12}(?:\.\d+)?", number) or ("." in number and not value.endswith("%")):
        raise ValueError(f"must be a whole number of records, or a percentage such as 20%{_not(value)}")
    return MaxChanges(float(number), is_percent=value.endswith("%"))


def _base_url(value: str) -> str:
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


def _web_address(value: str) -> str:
    parts = _split_address(value)
    if parts is None or not parts.hostname:
        raise ValueError("must be an address that begins with https:// or http://")
    return value


def _split_address(value: str) -> SplitResult | None:
    """The parts of a web address, None if it is none. urllib's own errors would quote it, and a password in it."""
    try:
        parts = urlsplit(value)
        _ = parts.port  # a port that is no number raises ValueError
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and " " not in value else None


def _existing_file(value: str) -> Path:
    path = _path(value)
    if not _is_there(path.is_file):
        raise ValueError(f"names {path}, which is not a file")
    return path


def _existing_path(value: str) -> Path:
    path = _path(value)
    if not _is_there(path.exists):
        raise ValueError(f"names {path}, which does not exist")
    return path


def _is_there(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except OSError:  # a name that is too long, or a folder that is closed to us
        return False


def _path(value: str) -> Path:
    """Relative paths are taken from the folder of main.py, as cron starts elsewhere."""
    try:
        return ROOT / Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and a user whose home is not known") from None


MAY_BE_BLANK = frozenset({"ITERABLE_JWT_ISSUER"})  # blank: tokens carry no issuer
# A sandbox run takes these from the stand-in, so that it works before anything is set, and no real key is used.
NOT_IN_SANDBOX = frozenset(
    {"ITERABLE_API_KEY", "ITERABLE_JWT_SECRET", "ITERABLE_BASE_URL", "ITERABLE_PROXY", "ITERABLE_CA_BUNDLE"}
    | {"HEARTBEAT_URL"}
)

# name -> (default as it would stand in .env, parser). No default: None.
SETTINGS: dict[str, tuple[str | None, Parser]] = {
    "ITERABLE_API_KEY": (None, _secret),
    "USE_JWT_AUTH": ("false", _boolean),
    "ITERABLE_JWT_SECRET": (None, _secret),
    "ITERABLE_JWT_ISSUER": ("iterable-integration", _text),
    "ITERABLE_BASE_URL": ("https://api.iterable.com", _base_url),
    "ITERABLE_IDENTIFIER": ("email", _one_of("email", "userId")),
    "ITERABLE_PROJECT": (None, _text),
    "DATABASE_URL": (None, _database_url),
    "QUERY_FILE": ("pipeline/user_events.sql", _existing_file),
    "USER_FIELDS": ("first_name,last_name,plan_type,candidate", parse_fields),
    "EVENT_FIELDS": ("page,device,browser,location", parse_fields),
    "EVENT_NAME": ("page_view", _text),
    "EVENT_TIMEZONE": ("UTC", _time_zone),
    "NULL_VALUES": ("omit", _one_of("omit", "clear")),
    "MERGE_NESTED": ("false", _boolean),
    "PUSH_MODE": ("auto", _one_of("auto", "single", "bulk")),
    "MAX_WORKERS": (None, _number(int, 1, 256, "workers")),
    "MAX_RETRIES": ("3", _number(int, 1, 20, "attempts")),
    "BACKOFF_FACTOR": ("2", _number(float, 1, 10, "times")),
    "INITIAL_BACKOFF": ("1", _number(float, 0, 60, "seconds")),
    "REQUEST_TIMEOUT": ("30", _number(float, 0.1, 600, "seconds")),
    "RATE_LIMIT_PERCENT": ("90", _number(float, 1, 100_000, "percent")),
    "USER_SETTLE_SECONDS": ("60", _number(float, 0, 3600, "seconds")),
    "SINCE_OVERLAP_HOURS": ("24", _number(float, 0, 8760, "hours")),
    "FULL_READ_DAYS": ("7", _number(float, 0, 3650, "days")),
    "SINCE_START": ("1970-01-01 00:00:00", _moment),
    "MAX_CHANGES": (None, _max_changes),
    "EXIT_ON_REJECTED": ("always", _one_of("always", "new")),
    "SKIP_FORGOTTEN": ("false", _boolean),
    "ITERABLE_ALLOW_CUSTOM_HOST": ("false", _boolean),
    "ITERABLE_PROXY": (None, _web_address),
    "ITERABLE_CA_BUNDLE": (None, _existing_path),
    "HEARTBEAT_URL": (None, _web_address),
    "OUTPUT_DIR": (".", _path),
    "KEEP_DAYS": ("0", _number(int, 0, 36_500, "days")),
    "MAX_RUN_MINUTES": (None, _number(float, 0.001, 525_600, "minutes")),
}


def load_settings(
    env_file: Path, environment: Mapping[str, str], *, sandbox: bool = False, must_exist: bool = False
) -> Settings:
    """Read `env_file`, put `environment` over it, and check all of it. Raises SettingsError with every problem.

    An empty value counts as not set, but for MAY_BE_BLANK. sandbox: the settings in NOT_IN_SANDBOX are not read, and
    DATABASE_URL may be missing. must_exist: `env_file` was named by the user, so that it has to be there.
    """
    file = _read_env_file(env_file, must_exist)
    texts = file.texts | {name: text for name, text in environment.items() if text.strip() or name in MAY_BE_BLANK}
    texts = {name: text.strip() for name, text in texts.items() if name in SETTINGS}
    if sandbox:
        texts = {
            name: text
            for name, text in texts.items()
            if name not in NOT_IN_SANDBOX and not text.startswith(PLACEHOLDER)
        }
    problems = list(file.problems)
    values: dict[str, Any] = {}
    for name in SETTINGS:
        try:
            values[name] = _value(name, texts)
        except ValueError as problem:
            problems.append(f"{name} {problem}.")
    if not sandbox:
        problems += _missing(values) + _strange_host(values)
    problems += _contradictions(values)
    given = frozenset(name for name, text in texts.items() if text)
    misspelt = _misspelt({name: f"Line {line} of {file.path}" for name, line in file.lines.items()}, given)
    if problems:
        elsewhere = _misspelt({name: f"{name} in the environment" for name in environment}, given)
        raise SettingsError([*problems, *misspelt, *elsewhere])
    warnings = (*file.warnings, *misspelt)
    return Settings(**{name.lower(): value for name, value in values.items()}, given=given, warnings=warnings)


def _value(name: str, texts: Mapping[str, str]) -> Any:
    """The parsed value, None for a setting that has none. Raises ValueError with the rest of a sentence "NAME ..."."""
    default, parse = SETTINGS[name]
    text = texts.get(name, "")
    if not text and not (name in MAY_BE_BLANK and name in texts):
        return parse(default) if default is not None else None
    if not text.isprintable():
        raise ValueError(
            "has a line break, an invisible character or bytes that are not valid UTF-8 in it; type it again"
        )
    if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        raise ValueError("has quotes around it; remove them")
    return parse(text)


# `.env` ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _EnvFile:
    """What `.env` says, and what is wrong with it."""

    path: Path
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of each name
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def _read_env_file(path: Path, must_exist: bool) -> _EnvFile:
    """Lines that can't be read are named by number and never quoted."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return _EnvFile(path, problems=(f"{path} does not exist; check --env-file.",) if must_exist else ())
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} can't be read ({type(error).__name__}); it must be a text file in UTF-8."
        return _EnvFile(path, problems=(problem,))
    bindings = list(parse_stream(io.StringIO(text)))
    broken = [each for each in bindings if each.error or (each.key is not None and each.value is None)]
    return _EnvFile(
        path,
        texts={each.key: each.value for each in bindings if each.key is not None and each.value is not None},
        lines={each.key: _line(each) for each in bindings if each.key is not None},
        problems=tuple(
            f"Line {_line(each)} of {path} can't be read; each line must be NAME=value, or begin with #."
            for each in broken
        ),
        warnings=_warn_if_others_read(path, mode),
    )


def _line(binding: Binding) -> int:
    """The parser counts the blank lines above a binding as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _warn_if_others_read(path: Path, mode: int) -> tuple[str, ...]:
    if os.name != "posix" or not stat.S_ISREG(mode) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return ()
    return (f"{path} can be read by other users of this machine; run: chmod 600 {shlex.quote(str(path))}",)


def _misspelt(places: Mapping[str, str], given: frozenset[str]) -> list[str]:
    """A sentence for each name that looks like a setting which is not set. `places` says where each name stands; the
    name itself is not quoted, since in a file it may be a piece of a secret that was pasted into a line of its own."""
    sentences = []
    for name, place in places.items():
        meant = [] if name in SETTINGS else get_close_matches(name.upper(), SETTINGS, n=1, cutoff=0.8)
        if meant and meant[0] not in given:
            sentences.append(f"{place}: unknown setting; did you mean {meant[0]}?")
    return sentences


# What no setting can be checked for alone. Each takes the values that could be parsed, and returns problems. ---------


def _missing(values: Mapping[str, Any]) -> list[str]:
    needed = {"DATABASE_URL": "is not set; it says where the query runs, for example sqlite:///users.db."}
    if "USE_JWT_AUTH" in values:
        credential = "ITERABLE_JWT_SECRET" if values["USE_JWT_AUTH"] else "ITERABLE_API_KEY"
        needed = {credential: "is not set.", **needed}
    return [f"{name} {problem}" for name, problem in needed.items() if name in values and values[name] is None]


def _strange_host(values: Mapping[str, Any]) -> list[str]:
    host = urlsplit(values.get("ITERABLE_BASE_URL", "")).hostname
    if host is None or host in OFFICIAL_HOSTS + LOOPBACK_HOSTS or values.get("ITERABLE_ALLOW_CUSTOM_HOST", True):
        return []
    return [
        f"ITERABLE_BASE_URL names the host {host}, which is not Iterable's ({' or '.join(OFFICIAL_HOSTS)}); "
        "fix it, or set ITERABLE_ALLOW_CUSTOM_HOST=true for a gateway."
    ]


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    problems = []
    if values.get("USE_JWT_AUTH") and values.get("PUSH_MODE") == "bulk":
        problems.append(
            "PUSH_MODE=bulk can't be used with USE_JWT_AUTH=true, since Iterable's bulk endpoints take no JWT-enabled "
            "key; set PUSH_MODE=auto."
        )
    if values.get("USE_JWT_AUTH") and values.get("SKIP_FORGOTTEN"):
        problems.append(
            "SKIP_FORGOTTEN=true can't be used with USE_JWT_AUTH=true, since a JWT-enabled key can't read Iterable's "
            "list of forgotten people."
        )
    if all(EVERY_OTHER in values.get(name, ()) for name in ("USER_FIELDS", "EVENT_FIELDS")):
        problems.append("USER_FIELDS and EVENT_FIELDS both have *; only one of them can take every other column.")
    return problems
