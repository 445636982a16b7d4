"""Every setting, declared once: its name, default, parser, what it means, and whether it is a secret.

`.env.example` and docs/settings.md are made of these declarations (`python -m tests.handbook` writes them anew). Reads
nothing; see load.py for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from pipeline.config import parsers as parse
from pipeline.config.fields import FieldMap, parse_fields, parse_user_fields
from pipeline.config.parsers import MaxChanges, Parser, split_database_url

_SECRET_OPTION = re.compile(r"pass|pwd|secret|token|credential|jwt|signature|odbc_connect|key$", re.IGNORECASE)
_ODBC_PASSWORD = re.compile(r"(?:PWD|Password)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;]+)", re.IGNORECASE)
OPEN_OPTION_CHARS = 7  # of a text among a driver's options that may be shown, such as "require"


@dataclass(frozen=True)
class Setting:
    """How a setting is read and described. default: as it would stand in `.env`; None: no default."""

    default: str | None
    parse: Parser
    about: str  # one or two lines of .env.example, and the cell in docs/settings.md
    section: str = ""  # of .env.example, where it begins with this setting
    is_secret: bool = False
    in_sandbox: bool = True  # else a sandbox run takes it from the stand-in, so that no real key is used
    may_be_blank: bool = False  # blank says something other than the default
    may_span_lines: bool = False
    placeholder: str = ""  # what .env.example has in its place


def _setting(default: str | None, parse: Parser, about: str, **more: Any) -> Any:
    setting = Setting(default, parse, about, **more)
    return field(repr=not setting.is_secret, metadata={"setting": setting})


@dataclass(frozen=True)
class Settings:
    """Every setting's value, by its name in lower case."""

    iterable_api_key: str | None = _setting(
        None,
        parse.secret,
        "The API key of your Iterable project: a server-side one or, with `USE_JWT_AUTH=true`, the JWT-enabled one "
        "that the secret belongs to.",
        section="Needed",
        is_secret=True,
        in_sandbox=False,
        placeholder="your-api-key",
    )
    database_url: str | None = _setting(
        None,
        parse.database_url,
        "Where the query runs: `sqlite:///users.db`, `postgresql+psycopg://user:password@host/name` or another "
        "SQLAlchemy URL (docs/databases.md has more). In a password, write `@` as `%40`, `/` as `%2F`, `#` as `%23`, "
        "`?` as `%3F`.",
        is_secret=True,
        placeholder="your-database-url",
    )
    # The Iterable project
    iterable_base_url: str = _setting(
        "https://api.iterable.com",
        parse.base_url,
        "The data center: `https://api.iterable.com`, or `https://api.eu.iterable.com` for projects in the EU.",
        section="Your Iterable project",
        in_sandbox=False,
    )
    iterable_identifier: str = _setting(
        "email",
        parse.one_of("email", "userId"),
        "How the project tells people apart: `email` (the query's column email) or `userId` (its column user_id, else "
        "id).",
    )
    iterable_project: str | None = _setting(
        None,
        parse.text,
        "A name of your own for the Iterable project, one for each, so that a new API key does not send everything "
        "again; set it while the old key is still in use. Empty: the ledger tells projects apart by their keys.",
    )
    use_jwt_auth: bool = _setting(
        "false",
        parse.boolean,
        "`true`: a signed token (JWT) goes with each request. Such a key can't use the bulk endpoints, so each record "
        "is a request of its own.",
    )
    iterable_jwt_secret: str | None = _setting(
        None,
        parse.secret,
        "The secret that Iterable showed when the JWT-enabled key was made; needed only with `USE_JWT_AUTH=true`.",
        is_secret=True,
        in_sandbox=False,
    )
    iterable_jwt_issuer: str = _setting(
        "iterable-integration",
        parse.text,
        "The tokens' claim `iss`. Left empty (`ITERABLE_JWT_ISSUER=`), tokens have none.",
        may_be_blank=True,
    )
    # What is read and sent
    query_file: Path = _setting(
        "pipeline/user_events.sql",
        parse.existing_file,
        "The file with the query, one SELECT.",
        section="What is read and sent",
    )
    database_options: Mapping[str, Any] | None = _setting(
        None,
        parse.json_object,
        'Options for the driver of a database server, as a JSON object such as `{"connect_timeout": 10}`; kept secret '
        "like a password.",
        is_secret=True,
        may_span_lines=True,
    )
    user_fields: tuple[FieldMap, ...] = _setting(
        "first_name,last_name,plan_type,candidate",
        parse_user_fields,
        "Columns for the user's profile, a list: `column`, `column:fieldName` or `column:fieldName:type` (text, "
        "integer, number, boolean, date, json). A dot nests a field (`plan:plan.tier`); `*`: every other column; "
        "`-`: none.",
    )
    event_fields: tuple[FieldMap, ...] = _setting(
        "page,device,browser,location",
        parse_fields,
        "Columns for the event, in the same way; only one of the two may have `*`. To change them, or `EVENT_NAME`, "
        "later makes new events of all that have no event_id.",
    )
    event_name: str = _setting(
        "page_view", parse.text, "The name of the events, unless the query has a column event_name."
    )
    event_timezone: tzinfo = _setting(
        "UTC", parse.time_zone, "The time zone of times without an offset, such as `Europe/Berlin`."
    )
    null_values: str = _setting(
        "omit",
        parse.one_of("omit", "clear"),
        "What NULL does: `omit` leaves the field in Iterable as it is, `clear` removes it from the profile.",
    )
    bad_values: str = _setting(
        "reject",
        parse.one_of("reject", "omit"),
        "What to do with a value that does not fit its field: `reject` sends nothing of its record, `omit` leaves only "
        "the field out.",
    )
    merge_nested: bool = _setting(
        "false",
        parse.boolean,
        "`true`: nested fields are merged with the object that a profile has; `false`: they replace it as a whole.",
    )
    # People
    person_column: str | None = _setting(
        None,
        parse.text,
        "The column that says who a person is when the address changes. Empty: user_id, else id where it is a "
        "person's; `-`: none. Not used with `ITERABLE_IDENTIFIER=userId`.",
        section="People whose address changes",
    )
    email_changes: str = _setting(
        "hold",
        parse.one_of("hold", "move", "new"),
        "What to do when a known person has another address: `hold` rejects them until you decide, `move` changes the "
        "address in Iterable, `new` makes a second profile.",
    )
    send_user_id: bool = _setting(
        "false",
        parse.boolean,
        "`true`: each profile gets the person's id as its userId, beside the address.",
    )
    # How it is sent
    push_mode: str = _setting(
        "auto",
        parse.one_of("auto", "single", "bulk"),
        "`single`: one record a request; `bulk`: up to 1,000; `auto`: bulk for more than 100 records.",
        section="How it is sent",
    )
    max_workers: int | None = _setting(
        None,
        parse.whole(1, 256, "workers"),
        "Requests at the same time, 1 to 256. Empty: 16 in bulk requests, 256 in single ones.",
    )
    max_retries: int = _setting(
        "3",
        parse.whole(1, 20, "attempts"),
        "Attempts for each request in total, 1 to 20; so 3 means at most 2 retries.",
    )
    backoff_factor: float = _setting(
        "2",
        parse.number(1, 10, "times"),
        "How many times longer each wait before a retry is than the one before, 1 to 10.",
    )
    initial_backoff: float = _setting(
        "1",
        parse.number(0, 60, "seconds"),
        "Seconds before the first retry, 0 to 60; up to 20 % are added to each wait by chance.",
    )
    request_timeout: float = _setting(
        "30",
        parse.number(0.1, 600, "seconds"),
        "Seconds in which a connection or an answer must come, 0.1 to 600.",
    )
    rate_limit_percent: float = _setting(
        "90",
        parse.number(1, 100_000, "percent"),
        "Percent of the requests a second which Iterable allows that this job may use, at least 1; above 100 where it "
        "has granted you more. 100 stays 3 % below.",
    )
    user_settle_seconds: float = _setting(
        "60",
        parse.number(0, 3600, "seconds"),
        "Seconds from the user updates to the second try for events whose user Iterable did not know at first, 0 to "
        "3600.",
    )
    # Only what changed
    since_overlap_hours: float = _setting(
        "24",
        parse.number(0, 8760, "hours"),
        "Hours before the last complete run's start from which the next run reads, for rows that are committed late.",
        section="Only what changed: for a query that contains :since",
    )
    full_read_days: float = _setting(
        "7",
        parse.number(0, 3650, "days"),
        "After so many days a run reads everything again; `0`: never.",
    )
    since_start: datetime = _setting(
        "1970-01-01 00:00:00",
        parse.moment,
        "The earliest time that `:since` can have, and what it is when everything is read; UTC.",
    )
    # The brake
    max_changes: MaxChanges | None = _setting(
        None,
        parse.max_changes,
        "More changed or new records than this stop a run before it sends anything (exit code 65): a number, or a "
        "percentage of what was accepted before, such as `20%`. Empty: no limit.",
        section="Before something large is sent, and after something was rejected",
    )
    max_event_age_days: float | None = _setting(
        None,
        parse.number(0.01, 36_500, "days"),
        "New events that are older than so many days stop a run before it sends anything (exit code 65). Empty: no "
        "limit.",
    )
    require_ledger: bool = _setting(
        "false",
        parse.boolean,
        "`true`: a run without a ledger for this project stops (exit code 65), for machines that come and go.",
    )
    exit_on_rejected: str = _setting(
        "always",
        parse.one_of("always", "new"),
        "`always`: rejected records end a run with exit code 1; `new`: only those that were not rejected before for "
        "the same reason.",
    )
    skip_forgotten: bool = _setting(
        "false",
        parse.boolean,
        "`true`: read Iterable's lists of forgotten people before each run, and don't send their records.",
    )
    # Network
    iterable_allow_custom_host: bool = _setting(
        "false",
        parse.boolean,
        "`true`: `ITERABLE_BASE_URL` may name another host than Iterable's, such as a gateway of your own.",
        section="Network",
    )
    iterable_proxy: str | None = _setting(
        None,
        parse.web_address,
        "A proxy to use, such as `http://proxy.example.com:3128`. Empty: none; `HTTPS_PROXY` is ignored.",
        is_secret=True,
        in_sandbox=False,
    )
    iterable_ca_bundle: Path | None = _setting(
        None,
        parse.existing_path,
        "A file or folder of certificates to trust instead of the built-in ones. Empty: the built-in ones.",
        in_sandbox=False,
    )
    # Files and time
    output_dir: Path = _setting(
        ".",
        parse.path,
        "The folder for the CSV, the results, the log and the ledger, relative to that of `main.py`; it must exist.",
        section="Files and time",
    )
    state_url: str | None = _setting(
        None,
        parse.state_url,
        "Where the ledger lives between runs, for machines that come and go: `s3://bucket/folder`, "
        "`gs://bucket/folder`, `az://container/folder` or `file:///folder` (docs/state.md). Empty: in `OUTPUT_DIR`.",
        in_sandbox=False,
    )
    keep_days: int = _setting(
        "0",
        parse.whole(0, 36_500, "days"),
        "Days after which CSVs, results, reports, previews and rotated logs are deleted, when a run begins. `0`: keep "
        "everything.",
    )
    max_run_minutes: float | None = _setting(
        None,
        parse.number(0.001, 525_600, "minutes"),
        "Minutes that a run may take, fractions allowed; then it stops with exit code 75, and the next run continues. "
        "Empty: no limit.",
    )
    # Monitoring
    heartbeat_url: str | None = _setting(
        None,
        parse.https_address,
        "A check of healthchecks.io or its like: called with `/start` at the start, bare at success, with `/CODE` "
        "after a failure; the call's body has the run's counts.",
        section="Monitoring",
        is_secret=True,
        in_sandbox=False,
    )
    alert_after: int = _setting(
        "4",
        parse.whole(0, 1000, "runs"),
        "When so many runs in a row have sent nothing and ended with 75, the exit code becomes 69, so that cron and "
        "systemd report it. `0`: never.",
    )
    log_format: str = _setting(
        "text",
        parse.one_of("text", "json"),
        "How the lines of the log and of stderr are written: `text`, or `json`, one object a line.",
    )
    metrics_file: Path | None = _setting(
        None,
        parse.file_to_write,
        "A file for node_exporter's textfile collector, one for each job, such as "
        "`/var/lib/node_exporter/user_events.prom`; replaced after each run.",
        in_sandbox=False,
    )
    given: frozenset[str] = frozenset()  # the names that were set, not defaulted
    warnings: tuple[str, ...] = ()

    def secrets(self) -> list[str | None]:
        """Everything that no output may show."""
        secrets = [self.iterable_api_key, self.iterable_jwt_secret, self.heartbeat_url]
        for address in (self.database_url, self.iterable_proxy):
            parts = split_database_url(address or "")
            secrets += [parts.password, unquote(parts.password or "")]
            for name, value in parse_qsl(parts.query):
                if _names_secret(name):
                    secrets += [value, *_ODBC_PASSWORD.findall(value)]
        return [*secrets, *_secrets_among(self.database_options or {})]

    def shown_database(self) -> str:
        """DATABASE_URL without user, password and options: `postgresql+psycopg://***@host/name`."""
        parts = split_database_url(self.database_url or "")
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{'***@' if '@' in parts.netloc else ''}{host}{parts.path}"

    def database_without_password(self) -> str:
        """DATABASE_URL with all that says which data it is, and nothing that opens it."""
        parts = split_database_url(self.database_url or "")
        login, _, host = parts.netloc.rpartition("@")
        options = [each for each in parse_qsl(parts.query, keep_blank_values=True) if not _names_secret(each[0])]
        return parts._replace(netloc=f"{login.partition(':')[0]}@{host}", query=urlencode(options)).geturl()


SETTINGS: dict[str, Setting] = {
    each.name.upper(): each.metadata["setting"] for each in fields(Settings) if "setting" in each.metadata
}


SECRET_FILES = {f"{name}_FILE": name for name, setting in SETTINGS.items() if setting.is_secret}


def _names_secret(option: str) -> bool:
    return _SECRET_OPTION.search(option) is not None


def _secrets_among(value: Any, is_secret: bool = False) -> Iterator[str]:
    """The texts of a driver's options that are long, or whose name, or that of an object around them, is a secret's."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _secrets_among(each, is_secret or _names_secret(name))
    elif isinstance(value, list):
        for each in value:
            yield from _secrets_among(each, is_secret)
    elif isinstance(value, str) and (is_secret or len(value) > OPEN_OPTION_CHARS):
        yield value
