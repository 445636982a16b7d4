"""`.env` and the environment -> `Settings`, or one error that lists every problem.

What a setting may say by itself, its parser decides (settings.py); what settings may not say together stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iterable.transport import LOOPBACK_HOSTS
from pipeline.config.env_file import EnvFile, read_env_file
from pipeline.config.fields import EVERY_OTHER
from pipeline.config.parsers import OFFICIAL_HOSTS, content_of, is_placeholder
from pipeline.config.settings import SECRET_FILES, SETTINGS, Settings
from pipeline.model.exits import ExitCode, RunError

LINE_BREAKS_TO_SPACES = str.maketrans("\r\n\t", "   ")
QUOTES = "\"'`“”‘’„‚«»"


class SettingsError(RunError):
    """One or more settings are missing or wrong. `problems` holds a sentence for each, LOG_FORMAT how to write them.
    env_file: where to fix them."""

    code = ExitCode.SETTINGS

    def __init__(self, problems: list[str], log_format: str = "text", env_file: Path | None = None) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems
        self.log_format = log_format
        self.env_file = env_file


def load_settings(
    env_file: Path, environment: Mapping[str, str], *, sandbox: bool = False, must_exist: bool = False
) -> Settings:
    """Read `env_file`, put `environment` over it, and check all of it. Raises SettingsError with every problem.

    An empty value counts as not set, unless blank means something. sandbox: what a sandbox run takes from the stand-in
    is not read, and DATABASE_URL may be missing. must_exist: `env_file` was named by the user, so it has to be there.
    """
    file = read_env_file(env_file, must_exist)
    texts, unread = _texts(file.texts, environment, sandbox)
    problems = [*file.problems, *unread.values(), *_cut_values(file, environment, texts)]
    values: dict[str, Any] = {}
    for name in (each for each in SETTINGS if each not in unread):
        try:
            values[name] = _value(name, texts)
        except ValueError as problem:
            problems.append(f"{name} {problem}.")
    if not sandbox:
        problems += (_missing(values) if file.can_be_read else []) + _strange_host(values)
    problems += _contradictions(values)
    given = frozenset(name for name, text in texts.items() if text)
    places = {name: f"Line {line} of {file.path}" for name, line in file.lines.items() if not _is_known(name)}
    if problems:
        elsewhere = {name: f"{name} in the environment" for name in environment if not _is_known(name)}
        problems += _unknown(places, given) + _misspelt(elsewhere, given)
        raise SettingsError(problems, values.get("LOG_FORMAT", "text"), file.path)
    warnings = (*file.warnings, *_misspelt(places, given))
    return Settings(**{name.lower(): value for name, value in values.items()}, given=given, warnings=warnings)


def _texts(
    file: Mapping[str, str], environment: Mapping[str, str], sandbox: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """What each setting says, the environment over the file `.env`, and secrets from files of their own; and, for each
    secret whose file can't be used, a sentence about it."""
    known = SETTINGS.keys() | SECRET_FILES.keys()
    texts = {name: text.strip() for name, text in file.items() if name in known}
    for name in known & environment.keys():
        text = environment[name].strip()
        if text or (name in SETTINGS and SETTINGS[name].may_be_blank):
            texts[name] = text
    unread: dict[str, str] = {}
    for file_name, name in SECRET_FILES.items():
        path = texts.pop(file_name, "")
        if not path or (sandbox and not SETTINGS[name].in_sandbox):
            continue
        if texts.get(name):
            unread[name] = f"{name} and {file_name} are both set; remove one of them."
            continue
        try:
            texts[name] = content_of(path)
        except ValueError as problem:
            unread[name] = f"{file_name} {problem}."
    if sandbox:
        texts = {name: text for name, text in texts.items() if not _is_left_out_of_sandbox(name, text)}
    return texts, unread


def _cut_values(file: EnvFile, environment: Mapping[str, str], texts: Mapping[str, str]) -> list[str]:
    """A sentence for each value of the file that would also be one with what is taken for a comment after it."""
    problems = []
    for name, whole in file.with_comments.items():
        if name not in SETTINGS or name not in texts or environment.get(name, "").strip():
            continue
        with suppress(ValueError):
            _value(name, {name: whole.translate(LINE_BREAKS_TO_SPACES)})
            problems.append(
                f"Line {file.lines[name]} of {file.path} has a # after a space, which begins a comment there; put the "
                f"value of {name} into quotes if all of it is meant, else the comment on a line of its own."
            )
    return problems


def _is_left_out_of_sandbox(name: str, text: str) -> bool:
    setting = SETTINGS[name]
    return not setting.in_sandbox or (setting.is_secret and is_placeholder(text))


def _value(name: str, texts: Mapping[str, str]) -> Any:
    """The parsed value, None for a setting that has none. Raises ValueError with the rest of a sentence "NAME ..."."""
    setting = SETTINGS[name]
    text = texts.get(name, "")
    if not text and not (setting.may_be_blank and name in texts):
        return setting.parse(setting.default) if setting.default is not None else None
    if setting.may_span_lines:
        text = text.translate(LINE_BREAKS_TO_SPACES)
    if not text.isprintable():
        raise ValueError(
            "has a line break, an invisible character or bytes that are not valid UTF-8 in it; type it again"
        )
    if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        raise ValueError("has quotes around it; remove them")
    return setting.parse(text)


def _is_known(name: str) -> bool:
    return name in SETTINGS or name in SECRET_FILES


def _misspelt(places: Mapping[str, str], given: frozenset[str]) -> list[str]:
    """A sentence for each unknown name that looks like a setting which is not set. `places` says where each stands; the
    name itself is not quoted, since in a file it may be a piece of a secret that was pasted into a line of its own."""
    meant = {name: _meant_by(name) for name in places}
    return [
        f"{places[name]}: unknown setting; did you mean {setting}?"
        for name, setting in meant.items()
        if setting and SECRET_FILES.get(setting, setting) not in given
    ]


def _unknown(places: Mapping[str, str], given: frozenset[str]) -> list[str]:
    """A sentence for each unknown name, whatever it looks like: beside a problem, any of them may be its cause."""
    sentences = []
    for name, place in places.items():
        setting = _meant_by(name)
        if SECRET_FILES.get(setting, setting) in given:
            sentences.append(f"{place}: unknown setting; it is like {setting}, which is set elsewhere.")
        elif setting:
            sentences += _misspelt({name: place}, given)
        else:
            sentences.append(f"{place}: unknown setting; .env.example has all of them.")
    return sentences


def _meant_by(name: str) -> str:
    return "".join(get_close_matches(name.upper(), [*SETTINGS, *SECRET_FILES], n=1, cutoff=0.8))


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
    if values.get("USE_JWT_AUTH") and values.get("EMAIL_CHANGES") == "move":
        problems.append(
            "EMAIL_CHANGES=move can't be used with USE_JWT_AUTH=true, since a JWT-enabled key can't change a person's "
            "address; set EMAIL_CHANGES=hold or new."
        )
    if all(EVERY_OTHER in values.get(name, ()) for name in ("USER_FIELDS", "EVENT_FIELDS")):
        problems.append("USER_FIELDS and EVENT_FIELDS both have *; only one of them can take every other column.")
    identity = values.get("ITERABLE_IDENTIFIER", "")
    if any(each.path[0].casefold() == identity.casefold() for each in values.get("USER_FIELDS", ())):
        problems.append(
            f"USER_FIELDS names {identity}, by which Iterable tells people apart, and writing it could change who "
            "somebody is; leave it out, or give it another field name (column:fieldName)."
        )
    database = (values.get("DATABASE_URL") or "").partition(":")[0].partition("+")[0].lower()
    if values.get("DATABASE_OPTIONS") and database in ("sqlite", "duckdb"):
        problems.append(
            f"DATABASE_OPTIONS can't be used with a {database} DATABASE_URL, since the program opens such a file in "
            "its own way; remove it."
        )
    return problems
