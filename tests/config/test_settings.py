"""`.env` files and environments in, Settings or a list of problems out."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pipeline.config import ROOT, SETTINGS, FieldMap, Settings, SettingsError, load_settings
from pipeline.config.parsers import Number, OneOf
from tests.handbook import env_example

EXAMPLE = ROOT / ".env.example"
KEY = "0123456789abcdef0123456789abcdef"
SECRET = "fedcba9876543210fedcba9876543210"
NEEDED = {"ITERABLE_API_KEY": KEY, "DATABASE_URL": "sqlite:///users.db"}
KEY_PROBLEM = "ITERABLE_API_KEY has a space, a quote, a line break or a character beyond ASCII in it; copy it again."
UNSEEN = "has a line break, an invisible character or bytes that are not valid UTF-8 in it; type it again."
PLACEHOLDER = "is still a placeholder; put the real value there."
NO_KEY = "ITERABLE_API_KEY is not set."
NO_DATABASE = "DATABASE_URL is not set; it says where the query runs, for example sqlite:///users.db."


@pytest.fixture
def no_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def env_file(folder: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path = folder / ".env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


def problems_of(path: Path, environment: dict[str, str], **options: bool) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environment, **options)
    assert str(caught.value) == " ".join(caught.value.problems)
    return caught.value.problems


def load(environment: dict[str, str], **options: bool) -> Settings:
    """Settings without a file; what is needed is there unless `environment` says otherwise."""
    return load_settings(Path("/nonexistent/.env"), NEEDED | environment, **options)


def problem_of(name: str, text: str, **others: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load({name: text} | others)
    (problem,) = caught.value.problems
    return problem


# Defaults, and what is needed -------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_design(no_file: Path) -> None:
    assert dataclasses.asdict(load_settings(no_file, NEEDED)) == {
        "iterable_api_key": KEY,
        "use_jwt_auth": False,
        "iterable_jwt_secret": None,
        "iterable_jwt_issuer": "iterable-integration",
        "iterable_base_url": "https://api.iterable.com",
        "iterable_identifier": "email",
        "iterable_project": None,
        "database_url": "sqlite:///users.db",
        "query_file": ROOT / "pipeline/user_events.sql",
        "user_fields": tuple(
            {"column": name, "name": name, "type": None}
            for name in ("first_name", "last_name", "plan_type", "candidate")
        ),
        "event_fields": tuple(
            {"column": name, "name": name, "type": None} for name in ("page", "device", "browser", "location")
        ),
        "event_name": "page_view",
        "event_timezone": timezone.utc,
        "null_values": "omit",
        "merge_nested": False,
        "push_mode": "auto",
        "max_workers": None,
        "max_retries": 3,
        "backoff_factor": 2.0,
        "initial_backoff": 1.0,
        "request_timeout": 30.0,
        "rate_limit_percent": 90.0,
        "user_settle_seconds": 60.0,
        "iterable_allow_custom_host": False,
        "iterable_proxy": None,
        "iterable_ca_bundle": None,
        "heartbeat_url": None,
        "output_dir": ROOT,
        "state_url": None,
        "keep_days": 0,
        "max_run_minutes": None,
        "since_overlap_hours": 24.0,
        "full_read_days": 7.0,
        "since_start": datetime(1970, 1, 1, tzinfo=timezone.utc),
        "max_changes": None,
        "exit_on_rejected": "always",
        "skip_forgotten": False,
        "database_options": None,
        "bad_values": "reject",
        "person_column": None,
        "email_changes": "hold",
        "send_user_id": False,
        "max_event_age_days": None,
        "require_ledger": False,
        "alert_after": 4,
        "log_format": "text",
        "metrics_file": None,
        "given": frozenset({"ITERABLE_API_KEY", "DATABASE_URL"}),
        "warnings": (),
    }


@pytest.mark.parametrize("blank", [{}, dict.fromkeys(SETTINGS, ""), dict.fromkeys(SETTINGS, " \t\n")])
def test_nothing_set_and_everything_blank_name_what_is_missing(no_file: Path, blank: dict[str, str]) -> None:
    assert problems_of(no_file, blank) == [NO_KEY, NO_DATABASE]


def test_blank_settings_have_their_defaults(no_file: Path) -> None:
    blank = dict.fromkeys(SETTINGS, " ") | {"ITERABLE_JWT_ISSUER": "iterable-integration"} | NEEDED
    given = frozenset({"ITERABLE_JWT_ISSUER", *NEEDED})
    assert load_settings(no_file, blank) == dataclasses.replace(load_settings(no_file, NEEDED), given=given)


def test_star_in_both_lists_of_fields_is_a_contradiction(no_file: Path) -> None:
    both = NEEDED | {"USER_FIELDS": "*", "EVENT_FIELDS": "page,*"}
    assert problems_of(no_file, both) == [
        "USER_FIELDS and EVENT_FIELDS both have *; only one of them can take every other column."
    ]


def test_jwt_needs_its_secret_and_no_key(no_file: Path) -> None:
    jwt = {"USE_JWT_AUTH": "true", "DATABASE_URL": "sqlite:///users.db"}
    assert problems_of(no_file, jwt) == ["ITERABLE_JWT_SECRET is not set."]
    assert load_settings(no_file, jwt | {"ITERABLE_JWT_SECRET": SECRET}).iterable_jwt_secret == SECRET


def test_all_problems_are_told_at_once(no_file: Path) -> None:
    wrong = {
        "USE_JWT_AUTH": "perhaps",
        "ITERABLE_API_KEY": "two words",
        "ITERABLE_BASE_URL": "https://api.iterabel.com",
        "MAX_RETRIES": "0",
        "EVENT_TIMEZONE": "Mars",
    }
    assert problems_of(no_file, wrong) == [
        KEY_PROBLEM,
        "USE_JWT_AUTH must be true or false, not 'perhaps'.",
        "EVENT_TIMEZONE must be a time zone such as UTC or Europe/Berlin, not 'Mars'.",
        "MAX_RETRIES must be a whole number of attempts from 1 to 20, not '0'.",
        NO_DATABASE,
        "ITERABLE_BASE_URL names the host api.iterabel.com, which is not Iterable's (api.iterable.com or "
        "api.eu.iterable.com); fix it, or set ITERABLE_ALLOW_CUSTOM_HOST=true for a gateway.",
    ]


def test_broken_lines_of_the_file_are_told_with_the_other_problems(tmp_path: Path) -> None:
    path = env_file(tmp_path, "nonsense\nMAX_RETRIES=0\n")
    assert problems_of(path, {}) == [
        f"Line 1 of {path} can't be read; each line must be NAME=value, or begin with #.",
        "MAX_RETRIES must be a whole number of attempts from 1 to 20, not '0'.",
        NO_KEY,
        NO_DATABASE,
    ]


def test_bulk_with_jwt_is_refused() -> None:
    assert problem_of("PUSH_MODE", "bulk", USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SECRET) == (
        "PUSH_MODE=bulk can't be used with USE_JWT_AUTH=true, since Iterable's bulk endpoints take no JWT-enabled key; "
        "set PUSH_MODE=auto."
    )


def test_moving_addresses_with_jwt_is_refused() -> None:
    assert problem_of("EMAIL_CHANGES", "move", USE_JWT_AUTH="true", ITERABLE_JWT_SECRET=SECRET) == (
        "EMAIL_CHANGES=move can't be used with USE_JWT_AUTH=true, since a JWT-enabled key can't change a person's "
        "address; set EMAIL_CHANGES=hold or new."
    )


@pytest.mark.parametrize(
    ("url", "database"),
    [("sqlite:///users.db", "sqlite"), ("SQLite+pysqlite:///a.db", "sqlite"), ("duckdb:///w.duckdb", "duckdb")],
)
def test_options_for_a_database_that_is_a_file_are_refused(url: str, database: str) -> None:
    assert problem_of("DATABASE_OPTIONS", '{"timeout": 5}', DATABASE_URL=url) == (
        f"DATABASE_OPTIONS can't be used with a {database} DATABASE_URL, since the program opens such a file in its "
        "own way; remove it."
    )


def test_options_for_a_server_are_an_object_and_what_opens_it_is_secret() -> None:
    options = (
        '{"sslmode": "require", "connect_args": {"token": "t0k3n", "timeout": 5}, "private_key": "k3y-k3y", '
        '"sslcert": "/etc/job/cert.pem", "hooks": [{"env": "a-long-text"}, ["b-long-text"]]}'
    )
    settings = load({"DATABASE_URL": "postgresql+psycopg://db/x", "DATABASE_OPTIONS": options})
    assert settings.database_options == json.loads(options)
    long = {"/etc/job/cert.pem", "a-long-text", "b-long-text"}
    assert {each for each in settings.secrets() if each} == {KEY, "t0k3n", "k3y-k3y", *long}
    assert "t0k3n" not in repr(settings)


@pytest.mark.parametrize(
    ("query", "secrets"),
    [
        ("access_token=s3cr3t", {"s3cr3t"}),
        ("motherduck_token=s3cr3t&threads=4", {"s3cr3t"}),
        ("private_key=s3cr3t&private_key_file_pwd=0th3r", {"s3cr3t", "0th3r"}),
        ("credentials_base64=czNjcjN0&location=EU", {"czNjcjN0"}),
        ("aws_secret_access_key=s3cr3t&aws_session_token=0th3r", {"s3cr3t", "0th3r"}),
        (
            "odbc_connect=SERVER%3Ddb%3BUID%3Dme%3BPWD%3Ds3cr3t%3BEncrypt%3Dyes",
            {"SERVER=db;UID=me;PWD=s3cr3t;Encrypt=yes", "s3cr3t"},
        ),
        ("sslmode=verify-full&application_name=sync", set()),
    ],
)
def test_what_opens_a_database_is_secret_in_a_url_too(query: str, secrets: set[str]) -> None:
    settings = load({"DATABASE_URL": f"x+y://db/name?{query}"})
    assert {each for each in settings.secrets() if each} == {KEY, *secrets}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ("emailListIds", "emailListIds"),
        ("lists:EMAILLISTIDS", "EMAILLISTIDS"),
        ("a,source:itblInternal.source", "itblInternal"),
        ("phone:phoneNumberDetails:json", "phoneNumberDetails"),
    ],
)
def test_a_profile_field_that_iterable_keeps_is_refused(fields: str, named: str) -> None:
    problem = problem_of("USER_FIELDS", fields)
    assert problem.startswith(f"USER_FIELDS names {named}, a field that Iterable keeps itself: it says wh")
    assert problem.endswith("; leave it out, or give it another field name (column:fieldName).")


@pytest.mark.parametrize("fields", ["emailListIds:lists", "plan:plan.devices", "phoneNumber,locale,signupDate"])
def test_other_profile_fields_are_taken(fields: str) -> None:
    assert load({"USER_FIELDS": fields}).user_fields


@pytest.mark.parametrize(
    ("identifier", "fields"), [("email", "vorname:email"), ("email", "a:Email.b"), ("userId", "name:userId")]
)
def test_a_profile_field_that_says_who_somebody_is_is_refused(identifier: str, fields: str) -> None:
    assert problem_of("USER_FIELDS", fields, ITERABLE_IDENTIFIER=identifier) == (
        f"USER_FIELDS names {identifier}, by which Iterable tells people apart, and writing it could change who "
        "somebody is; leave it out, or give it another field name (column:fieldName)."
    )
    other = {"email": "userId", "userId": "email"}[identifier]
    assert load({"USER_FIELDS": fields, "ITERABLE_IDENTIFIER": other}).user_fields


def test_an_event_may_have_a_field_of_any_name() -> None:
    assert load({"EVENT_FIELDS": "devices"}).event_fields == (FieldMap("devices", "devices"),)


# Each setting by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ITERABLE_API_KEY", f" {KEY}\n", KEY),
        ("ITERABLE_API_KEY", "abc#def$ghi", "abc#def$ghi"),
        ("USE_JWT_AUTH", "FALSE", False),
        ("USE_JWT_AUTH", "no", False),
        ("USE_JWT_AUTH", "0", False),
        ("USE_JWT_AUTH", "off\n", False),
        ("ITERABLE_ALLOW_CUSTOM_HOST", "True", True),
        ("ITERABLE_ALLOW_CUSTOM_HOST", "yes", True),
        ("ITERABLE_ALLOW_CUSTOM_HOST", "1", True),
        ("ITERABLE_ALLOW_CUSTOM_HOST", "on", True),
        ("ITERABLE_JWT_ISSUER", "Müller & Söhne", "Müller & Söhne"),
        ("ITERABLE_IDENTIFIER", "USERID", "userId"),
        ("ITERABLE_IDENTIFIER", "Email", "email"),
        ("DATABASE_URL", "postgresql://user:p%40ss@host:5432/name?a=b", "postgresql://user:p%40ss@host:5432/name?a=b"),
        ("DATABASE_URL", "sqlite:////srv/odd ?#@[%é].db", "sqlite:////srv/odd ?#@[%é].db"),
        ("DATABASE_URL", "mysql+pymysql://u:p:w$x@host/db", "mysql+pymysql://u:p:w$x@host/db"),
        ("USER_FIELDS", "-", ()),
        ("USER_FIELDS", "first_name", (FieldMap("first_name", "first_name"),)),
        ("EVENT_FIELDS", " page , device : deviceType", (FieldMap("page", "page"), FieldMap("device", "deviceType"))),
        ("EVENT_FIELDS", "page,page:copy", (FieldMap("page", "page"), FieldMap("page", "copy"))),
        ("EVENT_NAME", "sign-up #1 $5 ✓", "sign-up #1 $5 ✓"),
        ("EVENT_NAME", 'Viewed "Pricing"', 'Viewed "Pricing"'),
        ("EVENT_TIMEZONE", "utc", timezone.utc),
        ("EVENT_TIMEZONE", "Europe/Berlin", ZoneInfo("Europe/Berlin")),
        ("NULL_VALUES", "CLEAR", "clear"),
        ("PUSH_MODE", "Bulk", "bulk"),
        ("PUSH_MODE", "single", "single"),
        ("MAX_WORKERS", "256", 256),
        ("MAX_RETRIES", "1", 1),
        ("MAX_RETRIES", "20", 20),
        ("BACKOFF_FACTOR", "1.5", 1.5),
        ("INITIAL_BACKOFF", "0", 0.0),
        ("REQUEST_TIMEOUT", "0.1", 0.1),
        ("REQUEST_TIMEOUT", "600", 600.0),
        ("RATE_LIMIT_PERCENT", "250", 250.0),
        ("USER_SETTLE_SECONDS", "3600", 3600.0),
        ("ITERABLE_PROXY", "http://user:pw@proxy.example.com:3128", "http://user:pw@proxy.example.com:3128"),
        ("ITERABLE_CA_BUNDLE", str(ROOT), ROOT),
        ("HEARTBEAT_URL", "https://hc-ping.com/5a4f?x=1#y", "https://hc-ping.com/5a4f?x=1#y"),
        ("QUERY_FILE", "pipeline/../pipeline/user_events.sql", ROOT / "pipeline/../pipeline/user_events.sql"),
        ("OUTPUT_DIR", "/srv/out put #1", Path("/srv/out put #1")),
        ("MAX_EVENT_AGE_DAYS", "0.5", 0.5),
        ("PERSON_COLUMN", "-", "-"),
        ("EMAIL_CHANGES", "Move", "move"),
        ("SEND_USER_ID", "true", True),
        ("REQUIRE_LEDGER", "yes", True),
        ("BAD_VALUES", "OMIT", "omit"),
        ("LOG_FORMAT", "JSON", "json"),
        ("ALERT_AFTER", "0", 0),
        ("METRICS_FILE", "sync.prom", ROOT / "sync.prom"),
        ("OUTPUT_DIR", "~", Path.home()),
        ("OUTPUT_DIR", "out", ROOT / "out"),
    ],
)
def test_setting_takes_its_value(name: str, text: str, value: Any) -> None:
    found = getattr(load({name: text}), name.lower())
    assert (found, type(found)) == (value, type(value))


BOOLEAN = "must be true or false"
LIST = (
    "must be a list of column, column:fieldName or column:fieldName:type, such as page,device:deviceType (* for every "
    "other column, - for none); a column whose own name has a comma or a colon needs another one in the query (AS)."
)
ENCODED = (
    "must have the special characters of its user name and password percent-encoded: "
    "@ as %40, / as %2F, # as %23, ? as %3F, [ as %5B."
)
DATABASE = "must be a URL such as sqlite:///users.db or postgresql+psycopg://user:password@host/name."
OBJECT = 'must be a JSON object such as {"sslmode": "verify-full"}.'
WEB = "must be an address that begins with https:// or http://."


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("ITERABLE_API_KEY", "your-api-key", PLACEHOLDER),
        ("ITERABLE_API_KEY", "your_api_key_here", PLACEHOLDER),
        ("ITERABLE_API_KEY", "Your API Key Here", PLACEHOLDER),
        ("ITERABLE_API_KEY", "<YOUR-API-KEY>", PLACEHOLDER),
        ("ITERABLE_JWT_SECRET", "your_jwt_secret_here", PLACEHOLDER),
        ("ITERABLE_JWT_SECRET", "YOUR_SECRET_HERE", PLACEHOLDER),
        ("ITERABLE_API_KEY", f'{KEY}"', KEY_PROBLEM.removeprefix("ITERABLE_API_KEY ")),
        ("ITERABLE_API_KEY", f"{KEY} # prod", KEY_PROBLEM.removeprefix("ITERABLE_API_KEY ")),
        ("ITERABLE_API_KEY", f"Api-Key: {KEY}", KEY_PROBLEM.removeprefix("ITERABLE_API_KEY ")),
        ("ITERABLE_API_KEY", "clé", KEY_PROBLEM.removeprefix("ITERABLE_API_KEY ")),
        ("ITERABLE_JWT_SECRET", "your-jwt-secret", PLACEHOLDER),
        ("ITERABLE_JWT_SECRET", "”abc", KEY_PROBLEM.removeprefix("ITERABLE_API_KEY ")),
        ("USE_JWT_AUTH", "maybe", f"{BOOLEAN}, not 'maybe'."),
        ("USE_JWT_AUTH", "true # really", f"{BOOLEAN}, not 'true # really'."),
        ("USE_JWT_AUTH", KEY, f"{BOOLEAN}."),
        ("ITERABLE_ALLOW_CUSTOM_HOST", "2", f"{BOOLEAN}, not '2'."),
        ("ITERABLE_IDENTIFIER", "user_id", "must be email or userId, not 'user_id'."),
        ("DATABASE_URL", "your-database-url", PLACEHOLDER),
        ("DATABASE_URL", "<YOUR DATABASE URL>", PLACEHOLDER),
        ("DATABASE_URL", "users.db", DATABASE),
        ("DATABASE_URL", "://host", DATABASE),
        ("DATABASE_URL", "sqlite://", DATABASE),
        ("DATABASE_URL", "my db://host/x", DATABASE),
        ("DATABASE_URL", "postgresql://u:p@w@host/db", ENCODED),
        ("DATABASE_URL", "postgresql://u:p/w@host/db", ENCODED),
        ("DATABASE_URL", "postgresql://u:p#w@host/db", ENCODED),
        ("DATABASE_URL", "postgresql://u:p?w@host/db", ENCODED),
        ("DATABASE_URL", "postgresql://u:p[w@host/db", ENCODED),
        ("DATABASE_URL", "db2+ibm_db://u:p@w@host/db", ENCODED),
        ("DATABASE_URL", "postgresql://u:p＃w@host/db", ENCODED),
        ("QUERY_FILE", "missing.sql", f"names {ROOT}/missing.sql, which is not a file."),
        ("QUERY_FILE", "/", "names /, which is not a file."),
        ("QUERY_FILE", "/" + "x" * 5000, f"names /{'x' * 5000}, which is not a file."),
        ("QUERY_FILE", "~nobody-of-that-name/x", "begins with ~ and a user whose home is not known."),
        ("USER_FIELDS", "a,,b", LIST),
        ("USER_FIELDS", "a,", LIST),
        ("USER_FIELDS", ",", LIST),
        ("EVENT_FIELDS", "a:", LIST),
        ("EVENT_FIELDS", ":a", LIST),
        ("EVENT_FIELDS", "a,b:a", "names the field a twice."),
        ("EVENT_TIMEZONE", "Berlin", "must be a time zone such as UTC or Europe/Berlin, not 'Berlin'."),
        ("EVENT_TIMEZONE", "../UTC", "must be a time zone such as UTC or Europe/Berlin, not '../UTC'."),
        ("EVENT_TIMEZONE", "+01:00", "must be a time zone such as UTC or Europe/Berlin, not '+01:00'."),
        ("NULL_VALUES", "null", "must be omit or clear, not 'null'."),
        ("PUSH_MODE", "batch", "must be auto or single or bulk, not 'batch'."),
        ("MAX_WORKERS", "0", "must be a whole number of workers from 1 to 256, not '0'."),
        ("MAX_WORKERS", "257", "must be a whole number of workers from 1 to 256, not '257'."),
        ("MAX_RETRIES", "3.0", "must be a whole number of attempts from 1 to 20, not '3.0'."),
        ("MAX_RETRIES", "three", "must be a whole number of attempts from 1 to 20, not 'three'."),
        ("MAX_RETRIES", "21", "must be a whole number of attempts from 1 to 20, not '21'."),
        ("MAX_RETRIES", "9" * 5000, "must be a whole number of attempts from 1 to 20."),
        ("BACKOFF_FACTOR", "0.9", "must be a number of times from 1 to 10, not '0.9'."),
        ("BACKOFF_FACTOR", "nan", "must be a number of times from 1 to 10, not 'nan'."),
        ("INITIAL_BACKOFF", "-1", "must be a number of seconds from 0 to 60, not '-1'."),
        ("INITIAL_BACKOFF", "1s", "must be a number of seconds from 0 to 60, not '1s'."),
        ("REQUEST_TIMEOUT", "0", "must be a number of seconds from 0.1 to 600, not '0'."),
        ("REQUEST_TIMEOUT", "inf", "must be a number of seconds from 0.1 to 600, not 'inf'."),
        ("USER_SETTLE_SECONDS", "1,5", "must be a number of seconds from 0 to 3600, not '1,5'."),
        ("ITERABLE_PROXY", "proxy:3128", WEB),
        ("ITERABLE_PROXY", "socks5://proxy", WEB),
        ("ITERABLE_PROXY", "http://u:secret@proxy:port", WEB),
        ("ITERABLE_PROXY", "http://", WEB),
        ("ITERABLE_CA_BUNDLE", "missing.pem", f"names {ROOT}/missing.pem, which does not exist."),
        ("HEARTBEAT_URL", "hc-ping.com/5a4f", WEB),
        ("HEARTBEAT_URL", "https://hc-ping.com/5a 4f", WEB),
        ("HEARTBEAT_URL", "http://hc-ping.com/5a4f", "must begin with https://, since its path is a secret."),
        ("METRICS_FILE", "/tmp", "names /tmp, which is a folder; name a file in it."),
        ("DATABASE_OPTIONS", "[1]", OBJECT),
        ("DATABASE_OPTIONS", "sslmode=require", OBJECT),
        ("DATABASE_OPTIONS", "[" * 20_000, OBJECT),
        ("MAX_EVENT_AGE_DAYS", "0", "must be a number of days from 0.01 to 36500, not '0'."),
        ("BAD_VALUES", "skip", "must be reject or omit, not 'skip'."),
        ("EMAIL_CHANGES", "merge", "must be hold or move or new, not 'merge'."),
        ("LOG_FORMAT", "xml", "must be text or json, not 'xml'."),
        ("ALERT_AFTER", "1.5", "must be a whole number of runs from 0 to 1000, not '1.5'."),
        ("OUTPUT_DIR", "~nobody-of-that-name", "begins with ~ and a user whose home is not known."),
    ],
)
def test_wrong_value_is_named_with_what_it_must_be(name: str, text: str, problem: str) -> None:
    assert problem_of(name, text) == f"{name} {problem}"


def test_rate_limit_of_nothing_is_refused() -> None:
    assert problem_of("RATE_LIMIT_PERCENT", "0").startswith("RATE_LIMIT_PERCENT must be a number of percent from 1 to ")


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("quoted", ['"{}"', "'{}'", "“{}”", "‘{}’", "«{}»"])
def test_quotes_that_the_environment_keeps_are_told(name: str, quoted: str) -> None:
    assert problem_of(name, quoted.format("value")) == f"{name} has quotes around it; remove them."


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\0b", "a\x1bb", "a\u200bb", "a\u00a0b", "caf\udce9"])
def test_unseen_characters_are_told(name: str, text: str) -> None:
    problem = OBJECT if SETTINGS[name].may_span_lines and "\n" in text else UNSEEN
    assert problem_of(name, text) == f"{name} {problem}"


# Where the key goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://api.iterable.com", "https://api.iterable.com"),
        ("https://api.iterable.com/", "https://api.iterable.com"),
        ("HTTPS://API.Iterable.com//", "https://api.iterable.com"),
        ("https://api.iterable.com:443", "https://api.iterable.com"),
        ("https://api.eu.iterable.com", "https://api.eu.iterable.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://localhost", "https://localhost"),
    ],
)
def test_base_url_of_iterable_or_this_machine_is_taken(text: str, url: str) -> None:
    assert load({"ITERABLE_BASE_URL": text}).iterable_base_url == url


ADDRESS = "must be an address such as https://api.iterable.com."
ALONE = "must be https://api.iterable.com alone, without a path or a port."
HTTPS = "must begin with https://, since the key travels with each request."
NO_USER = "must not hold a user name or a password."


@pytest.mark.parametrize("custom", ["false", "true"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("api.iterable.com", ADDRESS),
        ("//api.iterable.com", ADDRESS),
        ("https:api.iterable.com", ADDRESS),
        ("https://", ADDRESS),
        ("ftp://api.iterable.com", ADDRESS),
        ("https://api.iterable.com:key", ADDRESS),
        ("https://api.iterable.com:99999", ADDRESS),
        ("https://[api.iterable.com", ADDRESS),
        ("https://api.iterable.com\\.evil.example", ADDRESS),
        ("https://api.iter able.com", ADDRESS),
        ("https://api.iterаble.com", ADDRESS),  # the а is Cyrillic
        ("https://api．iterable.com", ADDRESS),
        ("https://a:secret＃b@api.iterable.com", ADDRESS),
        ("http://api.iterable.com", HTTPS),
        ("http://api.iterable.com:8080", HTTPS),
        ("http://127.0.0.1.evil.example", HTTPS),
        ("https://user:secret@api.iterable.com", NO_USER),
        ("https://user@127.0.0.1", NO_USER),
        ("https://api.iterable.com@evil.example", NO_USER),
        ("https://api.iterable.com/?key=1", "must not have a ? or a # in it."),
        ("https://api.iterable.com/#top", "must not have a ? or a # in it."),
        ("https://api.iterable.com/api", ALONE),
        ("https://api.iterable.com/api/users/update", ALONE),
        ("https://api.iterable.com:8443", ALONE),
        ("https://localhost/v1/api/", "must not end with /api, which is added to it."),
    ],
)
def test_base_url_that_is_wrong_in_any_case_is_refused(text: str, problem: str, custom: str) -> None:
    found = problem_of("ITERABLE_BASE_URL", text, ITERABLE_ALLOW_CUSTOM_HOST=custom)
    assert found == f"ITERABLE_BASE_URL {problem}"


@pytest.mark.parametrize(
    ("text", "host", "url"),
    [
        ("https://api.iterabel.com", "api.iterabel.com", "https://api.iterabel.com"),
        (
            "https://api.iterable.com.evil.example",
            "api.iterable.com.evil.example",
            "https://api.iterable.com.evil.example",
        ),
        ("https://iterable.com", "iterable.com", "https://iterable.com"),
        ("https://api.iterable.com.", "api.iterable.com.", "https://api.iterable.com."),
        ("https://Gateway.example:8443/iterable/", "gateway.example", "https://gateway.example:8443/iterable"),
    ],
)
def test_other_host_needs_to_be_allowed(text: str, host: str, url: str) -> None:
    assert problem_of("ITERABLE_BASE_URL", text) == (
        f"ITERABLE_BASE_URL names the host {host}, which is not Iterable's (api.iterable.com or api.eu.iterable.com); "
        "fix it, or set ITERABLE_ALLOW_CUSTOM_HOST=true for a gateway."
    )
    assert load({"ITERABLE_BASE_URL": text, "ITERABLE_ALLOW_CUSTOM_HOST": "true"}).iterable_base_url == url


# `.env` -----------------------------------------------------------------------------------------------------------


def test_environment_wins_over_the_file_unless_it_is_empty(tmp_path: Path) -> None:
    path = env_file(
        tmp_path, f"ITERABLE_API_KEY={KEY}\nDATABASE_URL=sqlite:///a.db\nEVENT_NAME=from_file\nMAX_RETRIES=5\n"
    )
    settings = load_settings(path, {"EVENT_NAME": "from_environment", "MAX_RETRIES": " ", "DATABASE_URL": ""})
    assert (settings.event_name, settings.max_retries, settings.database_url) == (
        "from_environment",
        5,
        "sqlite:///a.db",
    )
    assert settings.given == {"ITERABLE_API_KEY", "DATABASE_URL", "EVENT_NAME", "MAX_RETRIES"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("EVENT_NAME=plain", "plain"),
        ("EVENT_NAME = spaced  ", "spaced"),
        ("export EVENT_NAME=exported", "exported"),
        ('EVENT_NAME="double # quoted"', "double # quoted"),
        ("EVENT_NAME='single $quoted'", "single $quoted"),
        ("EVENT_NAME=with#hash", "with#hash"),
        ("EVENT_NAME=${HOME}-$HOME", "${HOME}-$HOME"),
        ('EVENT_NAME="${HOME}"', "${HOME}"),
        ("EVENT_NAME=é✓", "é✓"),
        ("EVENT_NAME=first\nEVENT_NAME=last", "last"),
        ("\ufeffEVENT_NAME=after a byte order mark", "after a byte order mark"),
        ("EVENT_NAME=windows\r", "windows"),
        ("EVENT_NAME=", "page_view"),
        ('EVENT_NAME=""', "page_view"),
        ("#EVENT_NAME=commented out", "page_view"),
    ],
)
def test_line_of_the_file_is_read_to_the_letter(tmp_path: Path, line: str, value: str) -> None:
    assert load_settings(env_file(tmp_path, f"{line}\nMAX_RETRIES=5\n"), NEEDED).event_name == value


@pytest.mark.parametrize(
    "line",
    ["EVENT_NAME=Order #5", "EVENT_NAME= #5", "USER_FIELDS=a, b #c", "OUTPUT_DIR=/data #1", "\nEVENT_NAME=a\t# b"],
)
def test_a_value_that_a_comment_may_belong_to_is_refused(tmp_path: Path, line: str) -> None:
    path = env_file(tmp_path, f"MAX_RETRIES=5\n{line}\n")
    name, number = line.strip().partition("=")[0], 2 + line.startswith("\n")
    assert problems_of(path, NEEDED) == [
        f"Line {number} of {path} has a # after a space, which begins a comment there; put the value of {name} into "
        "quotes if all of it is meant, else the comment on a line of its own."
    ]
    assert load_settings(path, NEEDED | {name: "given"}).max_retries == 5


def test_a_comment_that_can_not_belong_to_its_value_is_none(tmp_path: Path) -> None:
    content = f"ITERABLE_API_KEY={KEY} # of the project\nMAX_RETRIES=5  # not 3\nITERABLE_PROXY= # none\n"
    path = env_file(tmp_path, content + "EVENT_NAME='Order #5' # in quotes\nDATABASE_URL=sqlite:///a.db\n")
    settings = load_settings(path, {})
    assert (settings.iterable_api_key, settings.max_retries, settings.event_name) == (KEY, 5, "Order #5")
    assert settings.iterable_proxy is None


def test_blank_issuer_leaves_it_out_also_where_the_file_has_one(tmp_path: Path) -> None:
    assert load_settings(env_file(tmp_path, "ITERABLE_JWT_ISSUER=\n"), NEEDED).iterable_jwt_issuer == ""
    path = env_file(tmp_path, "ITERABLE_JWT_ISSUER=someone\n")
    assert load_settings(path, NEEDED).iterable_jwt_issuer == "someone"
    assert load_settings(path, NEEDED | {"ITERABLE_JWT_ISSUER": ""}).iterable_jwt_issuer == ""


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("nonsense", [1]),
        ("# comment\n\n  \n\t\nnonsense\n", [5]),
        ("EVENT_NAME=a\r\n\r\nnonsense here\r\nMAX_RETRIES=5\r\nmore nonsense\r\n", [3, 5]),
        ('EVENT_NAME="one\ntwo\nthree"\nnonsense\n', [4]),
        ('EVENT_NAME="never closed\nMAX_RETRIES=5\n', [1]),
        ("\n\nEVENT_NAME='a' trailing\n=value\n\nEVENT_NAME: a\n", [3, 4, 6]),
        ("EVENT_NAME\n", [1]),
        ("  \n \n nonsense\n", [3]),
    ],
)
def test_broken_line_is_named_by_its_number_and_not_quoted(tmp_path: Path, content: str, lines: list[int]) -> None:
    path = env_file(tmp_path, content)
    expected = [
        f"Line {line} of {path} can't be read; each line must be NAME=value, or begin with #." for line in lines
    ]
    assert [each for each in problems_of(path, NEEDED) if each.startswith("Line")] == expected


def test_value_that_swallowed_the_next_lines_is_told(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"ITERABLE_API_KEY='{KEY}\nDATABASE_URL=sqlite:///a.db\nEVENT_NAME='\n")
    assert problems_of(path, {}) == [f"ITERABLE_API_KEY {UNSEEN}", NO_DATABASE]


@pytest.mark.parametrize("content", ["EVENT_NAME=é".encode("latin-1"), "EVENT_NAME=a".encode("utf-16")])
def test_file_that_is_no_utf8_is_told(tmp_path: Path, content: bytes) -> None:
    path = env_file(tmp_path, content)
    assert problems_of(path, NEEDED) == [f"{path} can't be read (UnicodeDecodeError); it must be a text file in UTF-8."]


def test_folder_in_the_place_of_the_file_is_told(tmp_path: Path) -> None:
    problem = f"{tmp_path} can't be read (IsADirectoryError); it must be a text file in UTF-8."
    assert problems_of(tmp_path, NEEDED) == [problem]
    assert problems_of(tmp_path, {}) == [problem]  # what is set there is not known


def test_missing_file_is_a_problem_only_if_the_user_named_it(no_file: Path) -> None:
    assert load_settings(no_file, NEEDED).event_name == "page_view"
    assert problems_of(no_file, NEEDED, must_exist=True) == [f"{no_file} does not exist; check --env-file."]


def test_file_in_a_parent_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file(tmp_path, "EVENT_NAME=of_the_parent\n")
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert load_settings(folder / ".env", NEEDED).event_name == "page_view"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602])
def test_file_that_others_can_read_is_warned_of(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    path = env_file(folder, "EVENT_NAME=a\n", mode)
    assert load_settings(path, NEEDED).warnings == (
        f"{path} can be read by other users of this machine; run: chmod 600 '{path}'",
    )


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_private_file_is_not_warned_of(tmp_path: Path, mode: int) -> None:
    assert load_settings(env_file(tmp_path, "EVENT_NAME=a\n", mode), NEEDED).warnings == ()


def test_misspelt_name_is_warned_of_by_its_line(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"\nNULL_VALUE=clear\nPGPASSWORD=x\nmax_retries=5\nITERABLE_APIKEY={KEY}\n")
    assert load_settings(path, NEEDED).warnings == (
        f"Line 2 of {path}: unknown setting; did you mean NULL_VALUES?",
        f"Line 4 of {path}: unknown setting; did you mean MAX_RETRIES?",
    )


def test_a_misspelt_name_is_told_with_the_problems_that_it_may_have_caused(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"ITERABLE_API_KYE={KEY}\n")
    environment = {"DATABASE_ULR": "sqlite:///users.db", "MAX_RETRIES": "0", "MAX_RETRY": "1", "HOME": "/root"}
    assert problems_of(path, environment) == [
        "MAX_RETRIES must be a whole number of attempts from 1 to 20, not '0'.",
        "ITERABLE_API_KEY is not set.",
        "DATABASE_URL is not set; it says where the query runs, for example sqlite:///users.db.",
        f"Line 1 of {path}: unknown setting; did you mean ITERABLE_API_KEY?",
        "DATABASE_ULR in the environment: unknown setting; did you mean DATABASE_URL?",
    ]


def test_beside_a_problem_every_unknown_name_of_the_file_is_told(tmp_path: Path) -> None:
    path = env_file(tmp_path, f"API_TOKEN={KEY}\nMAX_RETRIES=5\nMAX_RETRYS=7\nDATABASE_URL=sqlite:///users.db\n")
    assert problems_of(path, {"API_TOKEN": "x", "MAX_RETRYS": "9"}) == [
        "ITERABLE_API_KEY is not set.",
        f"Line 1 of {path}: unknown setting; .env.example has all of them.",
        f"Line 3 of {path}: unknown setting; it is like MAX_RETRIES, which is set elsewhere.",
    ]
    assert load_settings(path, {"ITERABLE_API_KEY": KEY}).warnings == ()


# Secrets ----------------------------------------------------------------------------------------------------------


def test_secrets_are_not_in_the_repr() -> None:
    secrets = {
        "ITERABLE_API_KEY": "key0secret",
        "ITERABLE_JWT_SECRET": "jwt0secret",
        "DATABASE_URL": "postgresql://user:db0secret@host/name",
        "ITERABLE_PROXY": "http://user:proxy0secret@proxy:3128",
        "HEARTBEAT_URL": "https://hc-ping.com/heartbeat0secret",
    }
    settings = load(secrets)
    assert [getattr(settings, name.lower()) for name in secrets] == list(secrets.values())
    assert "0secret" not in repr(settings) + str(settings)


SHOW_THEIR_PATH = {"QUERY_FILE", "ITERABLE_CA_BUNDLE"}  # which can't be fixed without seeing it


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - SHOW_THEIR_PATH))
@pytest.mark.parametrize(
    "text",
    [KEY, f"{KEY} x", f'"{KEY}', f"{KEY}\n{KEY}", f"https://user:{KEY}@[host", f"x://{KEY}:{KEY}@@", f"http://{KEY}＃"],
)
def test_secret_in_the_wrong_place_is_not_quoted(name: str, text: str) -> None:
    assert KEY not in message_of({name: text})


def message_of(environment: dict[str, str]) -> str:
    try:
        load(environment)
    except SettingsError as error:
        return str(error)
    return ""


# Secrets from files -----------------------------------------------------------------------------------------------

BY_NAME = {
    "ITERABLE_API_KEY": KEY,
    "ITERABLE_JWT_SECRET": SECRET,
    "DATABASE_URL": "postgresql+psycopg://ada:p%40ss@db.example.com/x",
    "DATABASE_OPTIONS": '{\n\t"sslmode": "require"\r\n}',
    "HEARTBEAT_URL": "https://hc-ping.com/5a4f",
    "ITERABLE_PROXY": "http://user:pw@proxy:3128",
}


def secret_files(folder: Path, contents: dict[str, str], end: str = "\n") -> dict[str, str]:
    """The settings that name a file for each secret."""
    for name, content in contents.items():
        (folder / name).write_bytes(f"{content}{end}".encode())
    return {f"{name}_FILE": str(folder / name) for name in contents}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_each_secret_can_come_from_a_file(tmp_path: Path, end: str) -> None:
    settings = load_settings(tmp_path / ".env", secret_files(tmp_path, BY_NAME, end))
    expected = BY_NAME | {"DATABASE_OPTIONS": {"sslmode": "require"}}
    assert {name: getattr(settings, name.lower()) for name in BY_NAME} == expected
    assert settings.given == BY_NAME.keys()
    assert {KEY, SECRET, "p@ss", "pw"} <= set(settings.secrets())


def test_a_secret_that_is_named_in_env_comes_from_its_file_too(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    path = env_file(tmp_path, f"ITERABLE_API_KEY_FILE={tmp_path}/key\nDATABASE_URL=sqlite:///users.db\n")
    assert load_settings(path, {}).iterable_api_key == KEY


@pytest.mark.parametrize("in_file", ["ITERABLE_API_KEY", "ITERABLE_API_KEY_FILE"])
def test_a_secret_and_its_file_are_not_both_taken(tmp_path: Path, in_file: str) -> None:
    both = {"ITERABLE_API_KEY": SECRET} | secret_files(tmp_path, {"ITERABLE_API_KEY": KEY})
    path = env_file(tmp_path, f"{in_file}={both.pop(in_file)}\n")
    assert problems_of(path, {"DATABASE_URL": "sqlite:///users.db"} | both) == [
        "ITERABLE_API_KEY and ITERABLE_API_KEY_FILE are both set; remove one of them."
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "which is empty."),
        (b"\n", "which is empty."),
        (b"\xff\xfe", "which is not a text file in UTF-8."),
        (b"k" * 70_000, "which is larger than 64 KiB."),
        (None, "which can't be read (No such file or directory)."),
    ],
)
def test_a_file_that_can_not_be_a_secret_is_named_and_nothing_of_it_is_shown(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    environment = {"ITERABLE_API_KEY_FILE": str(path), "DATABASE_URL": "sqlite:///users.db"}
    assert problems_of(tmp_path / ".env", environment) == [f"ITERABLE_API_KEY_FILE names {path}, {problem}"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(f"{KEY}\n\n", UNSEEN), (f"{KEY} \n", KEY_PROBLEM[17:]), ("your_api_key_here\n", PLACEHOLDER)],
)
def test_what_a_file_holds_is_checked_as_if_it_stood_in_env(tmp_path: Path, content: str, problem: str) -> None:
    environment = {"DATABASE_URL": "sqlite:///users.db"} | secret_files(tmp_path, {"ITERABLE_API_KEY": content}, "")
    assert problems_of(tmp_path / ".env", environment) == [f"ITERABLE_API_KEY {problem}"]


def test_a_sandbox_run_reads_no_file_of_a_real_key(tmp_path: Path) -> None:
    named = {f"{name}_FILE": "/nonexistent" for name in BY_NAME if not SETTINGS[name].in_sandbox}
    assert load_settings(tmp_path / ".env", named, sandbox=True).iterable_api_key is None


def test_a_misspelt_name_of_a_file_is_told(tmp_path: Path) -> None:
    problems = problems_of(tmp_path / ".env", {"DATABASE_URL": "sqlite:///a.db", "ITERABLE_API_KEYFILE": "/run/key"})
    assert problems == [
        NO_KEY,
        "ITERABLE_API_KEYFILE in the environment: unknown setting; did you mean ITERABLE_API_KEY_FILE?",
    ]


# A sandbox run ----------------------------------------------------------------------------------------------------


def test_sandbox_needs_nothing(no_file: Path) -> None:
    settings = load_settings(no_file, {}, sandbox=True)
    assert (settings.iterable_api_key, settings.database_url) == (None, None)


def test_sandbox_reads_no_key_no_address_and_no_placeholder(tmp_path: Path) -> None:
    path = env_file(tmp_path, EXAMPLE.read_bytes())
    environment = {
        "ITERABLE_API_KEY": KEY,
        "ITERABLE_JWT_SECRET": SECRET,
        "ITERABLE_BASE_URL": "nonsense",
        "ITERABLE_PROXY": "nonsense",
        "ITERABLE_CA_BUNDLE": "/missing",
        "HEARTBEAT_URL": "nonsense",
        "USE_JWT_AUTH": "true",
        "EVENT_NAME": "rehearsal",
    }
    settings = load_settings(path, environment, sandbox=True)
    assert (settings.iterable_api_key, settings.iterable_jwt_secret, settings.database_url) == (None, None, None)
    assert (settings.iterable_proxy, settings.iterable_ca_bundle, settings.heartbeat_url) == (None, None, None)
    assert (settings.iterable_base_url, settings.event_name) == ("https://api.iterable.com", "rehearsal")
    assert settings.given == {"USE_JWT_AUTH", "EVENT_NAME"}


def test_sandbox_reports_wrong_settings_too(no_file: Path) -> None:
    assert problems_of(no_file, {"MAX_RETRIES": "0", "USE_JWT_AUTH": "true", "PUSH_MODE": "bulk"}, sandbox=True) == [
        "MAX_RETRIES must be a whole number of attempts from 1 to 20, not '0'.",
        "PUSH_MODE=bulk can't be used with USE_JWT_AUTH=true, since Iterable's bulk endpoints take no JWT-enabled key; "
        "set PUSH_MODE=auto.",
    ]


# .env.example -----------------------------------------------------------------------------------------------------


def test_unchanged_example_reports_exactly_its_placeholders(tmp_path: Path) -> None:
    path = env_file(tmp_path, EXAMPLE.read_bytes())
    assert problems_of(path, {}) == [f"ITERABLE_API_KEY {PLACEHOLDER}", f"DATABASE_URL {PLACEHOLDER}"]


def test_the_example_is_what_the_declarations_say() -> None:
    assert EXAMPLE.read_text() == env_example()


def test_each_setting_is_a_field_of_settings() -> None:
    assert [each.name for each in dataclasses.fields(Settings)] == [
        *(name.lower() for name in SETTINGS),
        "given",
        "warnings",
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_explained_in_at_most_two_lines_of_the_example(name: str) -> None:
    (block,) = (each for each in env_example().split("\n\n") if re.search(rf"^#?{name}=", each, re.MULTILINE))
    *comment, _ = block.splitlines()
    assert 1 <= len(comment) <= 2
    assert all(re.match("# .{1,118}$", line) for line in comment)


def numbers() -> list[tuple[str, Number]]:
    return [(name, each.parse) for name, each in SETTINGS.items() if isinstance(each.parse, Number)]


@pytest.mark.parametrize(("name", "parser"), numbers())
def test_a_range_that_is_written_is_the_one_that_is_checked(name: str, parser: Number) -> None:
    for least, most in re.findall(r"([\d.]+) to ([\d.]+)(?=[.,;])", SETTINGS[name].about):
        assert (float(least), float(most.rstrip("."))) == (parser.least, parser.most)


def test_ranges_are_written_where_they_are_narrow() -> None:
    narrow = {name for name, parser in numbers() if parser.most <= 3600 and parser.unit not in ("days", "runs")}
    assert [name for name in narrow if not re.search(r"\d to \d", SETTINGS[name].about)] == []


@pytest.mark.parametrize(
    ("name", "choices"),
    [(name, each.parse.choices) for name, each in SETTINGS.items() if isinstance(each.parse, OneOf)],
)
def test_every_choice_is_explained(name: str, choices: tuple[str, ...]) -> None:
    assert [choice for choice in choices if f"`{choice}`" not in SETTINGS[name].about] == []


def test_the_secrets_are_these() -> None:
    assert {name for name, each in SETTINGS.items() if each.is_secret} == {
        "ITERABLE_API_KEY",
        "ITERABLE_JWT_SECRET",
        "DATABASE_URL",
        "DATABASE_OPTIONS",
        "ITERABLE_PROXY",
        "HEARTBEAT_URL",
    }


def test_example_with_its_two_values_and_all_the_rest_uncommented_is_the_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    settings = load_settings(env_file(tmp_path, text), NEEDED)
    defaults = load_settings(tmp_path / "missing", NEEDED)
    assert dataclasses.replace(settings, given=defaults.given) == defaults


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("sqlite:////srv/users.db", "sqlite:////srv/users.db", None),
        (
            "postgresql+psycopg://ada:p%40ss@db.example.com/x?sslmode=require",
            "postgresql+psycopg://***@db.example.com/x",
            "p@ss",
        ),
        ("mysql+pymysql://ada@db/x", "mysql+pymysql://***@db/x", None),
        ("mssql+pyodbc://db/x?password=p%40ss", "mssql+pyodbc://db/x", "p@ss"),
        ("db2+ibm_db://ada:p%40ss@db:50000/x", "db2+ibm_db://***@db:50000/x", "p@ss"),
        ("sqlite:////srv/ada@home/users.db?timeout=5", "sqlite:////srv/ada@home/users.db", None),
    ],
)
def test_a_database_is_shown_without_user_and_password(url: str, shown: str, password: str | None) -> None:
    settings = load({"DATABASE_URL": url})
    assert settings.shown_database() == shown
    assert password is None or password in settings.secrets()


# Only what changed, and the brake -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-12", datetime(2026, 1, 12, tzinfo=timezone.utc)),
        ("2026-01-12 08:00:00", datetime(2026, 1, 12, 8, tzinfo=timezone.utc)),
        ("2026-01-12T08:00", datetime(2026, 1, 12, 8, tzinfo=timezone.utc)),
        ("2026-01-12T08:00:00Z", datetime(2026, 1, 12, 8, tzinfo=timezone.utc)),
        ("2026-01-12 08:00:00+02:00", datetime(2026, 1, 12, 6, tzinfo=timezone.utc)),
    ],
)
def test_since_start_is_a_day_or_a_time_in_utc_or_with_an_offset(text: str, moment: datetime) -> None:
    assert load({"SINCE_START": text}).since_start == moment


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "20260112", "1768176000", "2026-01-12 25:00"])
def test_since_start_that_is_not_a_time_is_refused(text: str) -> None:
    assert problem_of("SINCE_START", text) == (
        f"SINCE_START must be a time such as 2026-01-12 or 2026-01-12 08:00:00, not {text!r}."
    )


@pytest.mark.parametrize(
    ("text", "limit"), [("0", (0, False)), ("1000", (1000, False)), ("20%", (20, True)), ("0.5 %", (0.5, True))]
)
def test_max_changes_is_a_number_or_a_percentage(text: str, limit: tuple[float, bool]) -> None:
    found = load({"MAX_CHANGES": text}).max_changes
    assert found is not None
    assert (found.limit, found.is_percent) == limit


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "%", "5%%"])
def test_max_changes_that_is_neither_is_refused(text: str) -> None:
    assert problem_of("MAX_CHANGES", text) == (
        f"MAX_CHANGES must be a whole number of records, or a percentage such as 20%, not {text!r}."
    )


# STATE_URL ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("S3://my.bucket-1", "s3://my.bucket-1"),
        ("gs://bucket/a/b=c", "gs://bucket/a/b=c"),
        ("az://container/folder", "az://container/folder"),
        ("file:///mnt/all of us", "file:///mnt/all of us"),
        ("", None),
    ],
)
def test_state_url_is_an_address_of_a_folder(text: str, value: str | None) -> None:
    assert load({"STATE_URL": text}).state_url == value


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (
            "bucket/folder",
            "must be an address such as s3://bucket/folder, gs://bucket/folder, az://container",
        ),
        ("https://bucket.s3.amazonaws.com", "must be an address such as s3://bucket/folder"),
        ("s3://key:secret@bucket", "must not hold credentials or options; they come from the environment"),
        ("az://container?sig=secret", "must not hold credentials or options"),
        ("s3://", "must be s3://, a bucket and a folder, of letters, digits, and any of . _ - ="),
        ("s3://bucket//folder", "must be s3://, a bucket and a folder"),
        ("gs://bucket/a b", "must be gs://, a bucket and a folder"),
        ("s3://bucket/../other", "must not have . or .. for a folder"),
        ("file://host/folder", "must be the whole path of a folder after file://"),
        ("file:///", "must be the whole path of a folder after file://"),
        ("file://folder", "must be the whole path of a folder after file://"),
    ],
)
def test_what_is_no_state_url_is_refused_without_showing_it(text: str, rest: str) -> None:
    said = problem_of("STATE_URL", text)
    assert said.startswith(f"STATE_URL {rest}")
    assert "secret" not in said


def test_sandbox_does_not_use_the_state_of_real_runs() -> None:
    assert load({"STATE_URL": "s3://bucket"}, sandbox=True).state_url is None
