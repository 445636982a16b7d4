"""What a run leaves behind: the log, the results JSON, the rejected rows, and what the console shows.

Every text that leaves through here is redacted. Decides nothing about the run.
"""

from __future__ import annotations

import csv
import json
import logging
import logging.handlers
import os
import re
import sys
import textwrap
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from iterable_client import RequestCounts, export_results_to_csv, new_file
from pipeline.ledger import Kind, Outcome, Verdict

CSV_NAME = "query_results_{}.csv"
RESULTS_NAME = "integration_results_{}.json"
REJECTED_NAME = "rejected_rows_{}.csv"
LOG_NAME = "iterable_integration.log"
LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
LOG_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
LOG_MAX_BYTES = 10_000_000
LOG_FILES = 5
LOG_DELAY_S = 0.5
OUR_LOGGERS = ("iterable_client", "pipeline", "main", "py.warnings")

RESULT_VERSION = 1
SHORTEST_SECRET = 4  # shorter ones are no secrets, and would blot out half of every text
MAX_FAILURES = 1000
SHOWN_REASONS = 5
MAX_REASON_CHARS = 300
SECONDS_PER_PROGRESS_LINE = 30.0

logger = logging.getLogger("main")


# Redaction ------------------------------------------------------------------------------------------------------------


class Redactor:
    """Takes secrets, and where asked people and control characters, out of a text."""

    # What a key or a token looks like wherever it stands, also one that is not ours.
    _PATTERNS = re.compile(
        r"(?i)(?P<lead>bearer\s+|api[-_]key[\"']?\s*[:=,]\s*[\"']?)[\w.~+/=-]+|eyJ[\w-]{5,}\.[\w-]+\.[\w-]*"
    )
    # The part of an address before the @, which also is the user and the password in a URL.
    _LOCAL_PART = re.compile(r"([^\s@/:<\"'=,(])[^\s@/<\"'=,(]*@")
    _CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if secret and len(secret) >= SHORTEST_SECRET:
                forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        # The longest first, so that a secret within another leaves nothing of it.
        self._secrets = sorted(forms, key=len, reverse=True)

    def without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return self._PATTERNS.sub(lambda match: (match["lead"] or "") + "***", text)

    def line(self, text: str) -> str:
        """One line that can't pass for several, without secrets and full addresses: for the log and the console."""
        text = self.without_secrets(text)
        if "@" in text:
            text = self._LOCAL_PART.sub(r"\1***@", text)
        return self._CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


# The files' names -----------------------------------------------------------------------------------------------------


def free_run_id(folder: Path) -> str:
    """The local time to the second, which names the files of a run. A second run in that second waits for the next."""
    while True:
        run_id = f"{datetime.now():%Y%m%d_%H%M%S}"
        names = (CSV_NAME, RESULTS_NAME, REJECTED_NAME)
        if not any(os.path.lexists(folder / name.format(run_id)) for name in names):
            return run_id
        time.sleep(1.0 - time.time() % 1.0)


def sweep(folder: Path) -> None:
    """Remove the unfinished files that a killed run left behind: they hold personal data. Those of live runs stay."""
    for path in folder.glob(".*.tmp"):
        match = _UNFINISHED.fullmatch(path.name)
        if match and os.name == "posix" and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


_UNFINISHED = re.compile(
    r"\.(?:query_results|rejected_rows|integration_results)_\d{8}_\d{6}\.\w+\.(\d+)\.[0-9a-f]+\.tmp"
)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# The log --------------------------------------------------------------------------------------------------------------


class _LogFormatter(logging.Formatter):
    """The specified format, redacted. The lines of a traceback are marked, so that none can pass for a log line."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__(LOG_FORMAT, LOG_DATE_FORMAT)
        self._redactor = redactor
        self._line = lru_cache(maxsize=16)(redactor.line)  # most lines say that a call went well
        self._time = (-1, "")  # the last second, and how it is written

    def format(self, record: logging.LogRecord) -> str:
        second, written = self._time
        if second != int(record.created):
            written = self.formatTime(record, self.datefmt)
            self._time = (int(record.created), written)
        lines = [f"{written} - {record.name} - {record.levelname} - {self._line(record.getMessage())}"]
        if record.exc_info:
            trace = "".join(traceback.format_exception(*record.exc_info))
            lines += [f"    | {self._redactor.line(line)}" for line in trace.splitlines()]
        return "\n".join(lines)


class _PrivateLogFile(logging.handlers.RotatingFileHandler):
    """A log file that only its owner can read, from its first byte. A symbolic link in its place is refused.

    Lines about calls that went well are written some at a time, within LOG_DELAY_S, and without the lock that others
    would wait for: one by one, they take a quarter of all the time that single requests do. Every other line is written
    at once, with those before it.
    """

    def __init__(self, path: Path) -> None:
        self._waiting: deque[str] = deque()
        self._timer: threading.Timer | None = None
        super().__init__(path, maxBytes=LOG_MAX_BYTES, backupCount=LOG_FILES - 1)

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.append(self.format(record) + self.terminator)
            if record.name != "iterable_client" or record.levelno > logging.INFO:
                self.flush()
            elif self._timer is None:
                self._timer = threading.Timer(LOG_DELAY_S, self._flush_late)
                self._timer.daemon = True
                self._timer.start()
        except Exception:
            self.handleError(record)

    def _flush_late(self) -> None:
        self._timer = None
        with suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """Write what waits, whole lines in one piece, so that a run that is killed leaves no half of one."""
        with cast(Any, self.lock):
            lines = "".join(self._waiting.popleft() for _ in range(len(self._waiting)))
            if not lines:
                return
            if self.stream is None:  # as a full disk has kept it from being opened anew
                self.stream = self._open()
            os.write(self.stream.fileno(), lines.encode("utf-8", errors="backslashreplace"))
            if os.fstat(self.stream.fileno()).st_size >= self.maxBytes:
                self.doRollover()

    def _open(self) -> TextIOWrapper:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.baseFilename, flags, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk must not stop the run, nor fill the console with tracebacks: the results JSON tells the rest."""

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._flush_late()  # which takes what waits away, so that a full disk makes it fail once only
        super().close()


def open_log(folder: Path, redactor: Redactor) -> logging.Handler:
    """Send the log of our own modules, Python's warnings and libraries' complaints to the log file.

    OSError where it can't be written.
    """
    handler = _PrivateLogFile(folder / LOG_NAME)
    handler.setFormatter(_LogFormatter(redactor))
    logging.captureWarnings(True)
    for name in OUR_LOGGERS:
        own = logging.getLogger(name)
        own.setLevel(logging.DEBUG)
        own.propagate = False
        own.addHandler(handler)
    logging.getLogger().addHandler(handler)  # at Python's own level, which is WARNING
    return handler


def close_log(handler: logging.Handler) -> None:
    logging.captureWarnings(False)
    for name in ("", *OUR_LOGGERS):
        logging.getLogger(name).removeHandler(handler)
    handler.close()


# The console ----------------------------------------------------------------------------------------------------------


class Console:
    """Says things to the person who started the run, and to the log. A closed console never stops a run."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        """json: stdout is kept for the results, so that everything else goes to stderr."""
        self._keeps_stdout = json
        self.redactor = Redactor()
        self.quiet = quiet
        for name in OUR_LOGGERS:  # without a log file yet, nothing goes to Python's own stderr handler
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(logging.NullHandler())
        # Nor does what libraries complain of: SQLAlchemy writes whole tracebacks when a query is interrupted.
        logging.getLogger().addHandler(logging.NullHandler())
        if verbose:
            self._show_log()

    def _show_log(self) -> None:
        handler = _ConsoleLog(self)
        for name in OUR_LOGGERS:
            if name != "main":  # what main says is on the console anyway
                logging.getLogger(name).addHandler(handler)

    def say(self, text: str, *, log: bool = True) -> None:
        if log:
            logger.info("%s", text)
        if not self.quiet:
            self._write(sys.stderr if self._keeps_stdout else sys.stdout, text)

    def print_json(self, results: Results) -> None:
        self._write(sys.stdout, json.dumps(asdict(results)), is_safe=True)

    def error(self, text: str) -> None:
        logger.error("%s", text)
        self._write(sys.stderr, text)

    def write_log_line(self, text: str) -> None:
        self._write(sys.stderr, text)

    def _write(self, stream: TextIO | None, text: str, *, is_safe: bool = False) -> None:
        try:
            if stream is not None:
                safe = text if is_safe else "\n".join(self.redactor.line(line) for line in text.splitlines() or [""])
                encoding = stream.encoding or "ascii"
                stream.write(safe.encode(encoding, "backslashreplace").decode(encoding) + "\n")
                stream.flush()
        except (OSError, ValueError):  # a closed pipe or a closed file
            _silence(stream)


def _silence(stream: TextIO | None) -> None:
    """Point a broken stream to nowhere, or Python complains about it once more when it exits."""
    if stream is sys.stdout:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays open until the process ends
    elif stream is sys.stderr:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


class _ConsoleLog(logging.Handler):
    """--verbose: the log as it is written, on stderr."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.DEBUG)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.write_log_line(f"{record.levelname} {record.name}: {record.getMessage()}")


_STEPS = {Kind.USER: "Step 6: Updating", Kind.EVENT: "Step 7: Tracking"}


class DeliveryProgress:
    """Says when a phase begins and ends; in between a bar on a terminal, and a line in the log every 30 seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_terminal = not console.quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._what = ""
        self._total = self._done = 0
        self._started_at = self._told_at = 0.0

    def start(self, kind: Kind, total: int) -> None:
        self._what, self._total, self._done = f"{kind.value}s", total, 0
        self._started_at = self._told_at = time.monotonic()
        self._console.say(f"{_STEPS[kind]} {total:,} {self._what}")
        if self._is_terminal:
            from tqdm import tqdm  # not needed, and so not loaded, without a terminal

            self._bar = tqdm(
                total=total, desc=self._what, unit="", unit_scale=True, leave=False, dynamic_ncols=True,
                colour=None, mininterval=0.2,
            )  # fmt: skip

    def advance(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if now - self._told_at >= SECONDS_PER_PROGRESS_LINE:
            self._told_at = now
            rate = self._done / (now - self._started_at)
            left_s = (self._total - self._done) / rate if rate else 0
            logger.info(
                "%s: %s of %s, %.0f a second, %.0f s left",
                self._what, f"{self._done:,}", f"{self._total:,}", rate, left_s,
            )  # fmt: skip

    def finish(self) -> None:
        self._close_bar()
        took_s = time.monotonic() - self._started_at
        rate = f", {self._done / took_s:,.0f} a second" if took_s >= 1 else ""
        self._console.say(f"        {self._done:,} of {self._total:,} {self._what} settled in {took_s:.1f} s{rate}")

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, text: str) -> None:
        self._close_bar()
        self._console.say(text)


# The results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """The whole account of a run, as it stands in the results JSON."""

    result_version: int
    run_id: str
    status: str
    exit_code: int
    reason: str
    started_at: str
    finished_at: str
    duration_s: float
    authentication: str
    push_mode: str
    base_url: str
    retry: dict[str, float]
    counts: dict[str, Any]
    requests: dict[str, dict[str, int]]
    fields: dict[str, list[str]]
    files: dict[str, str | None]
    failures: list[dict[str, Any]]


def counts_as_json(rows: int, duplicate_events: int, outcomes: Mapping[Kind, Mapping[Outcome, int]]) -> dict[str, Any]:
    by_kind = {
        f"{kind.value}s": {outcome.value: outcomes.get(kind, {}).get(outcome, 0) for outcome in Outcome}
        for kind in Kind
    }
    return {"rows": rows, "duplicate_events": duplicate_events, **by_kind}


def requests_as_json(endpoints: Iterable[str], counts: Mapping[str, RequestCounts]) -> dict[str, dict[str, int]]:
    return {name: asdict(counts.get(name, RequestCounts())) for name in endpoints}


def as_number(value: float) -> float:
    """2.0 -> 2, for people who read it."""
    return int(value) if value == int(value) else value


def failures_as_json(verdicts: Iterable[Verdict], redactor: Redactor, *, by_user_id: bool) -> list[dict[str, Any]]:
    return [
        {
            "row": each.row,
            "kind": each.kind.value,
            "email": None if by_user_id else each.identity,
            "user_id": each.identity if by_user_id else None,
            "outcome": each.outcome.value,
            "status_code": each.status_code,
            "code": each.code,
            "message": redactor.without_secrets(each.message),
            "attempts": each.attempts,
        }
        for each in verdicts
    ]


def write_results(path: Path, results: Results) -> None:
    """Whole or not at all, private, never over another file. OSError where that fails."""
    with new_file(path) as file:
        json.dump(asdict(results), file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_rejected_rows(path: Path, csv_path: Path, verdicts: Iterable[Verdict], redactor: Redactor) -> None:
    """The rows behind the verdicts, which come in the order of the CSV: its columns, then what happened and why."""
    csv.field_size_limit(sys.maxsize)
    with csv_path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        columns = next(lines)
        added = ["kind", "outcome", "code", "message"]
        rows = _rejected_rows(lines, columns, verdicts, redactor)
        export_results_to_csv(rows, str(path), columns=columns + [_unused(name, columns) for name in added])


def _rejected_rows(
    lines: Iterator[list[str]], columns: list[str], verdicts: Iterable[Verdict], redactor: Redactor
) -> Iterator[dict[str, str | None]]:
    number, line = 0, [""]
    for each in verdicts:
        while number < each.row:
            number, line = number + 1, next(lines)
        message = redactor.without_secrets(each.message)
        added = {"kind": each.kind.value, "outcome": each.outcome.value, "code": each.code, "message": message}
        yield {
            **dict(zip(columns, map(_unguarded, line), strict=True)),
            **{_unused(name, columns): value for name, value in added.items()},
        }


def _unguarded(cell: str) -> str:
    """A cell of our own CSV without the ' that guards it; the export guards it anew."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@\t\r\n") and cell[1:2] else cell


def _unused(name: str, columns: list[str]) -> str:
    while name in columns:
        name += "_"
    return name


# The summary ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Why some records were not delivered: one of their messages, and how many share its outcome and code."""

    outcome: str
    code: str | None
    message: str
    count: int


def summary(results: Results, reasons: Iterable[Reason]) -> str:
    """What a person wants to know at the end, on less than one screen."""
    counts, retry = results.counts, results.retry
    lines = ["", f"Summary of run {results.run_id}: {results.status}", f"  rows     {counts['rows']:>10,}"]
    for kind in ("users", "events"):
        told = [f"{number:,} {name.replace('_', ' ')}" for name, number in counts[kind].items() if number]
        lines.append(f"  {kind:<8} {sum(counts[kind].values()):>10,}   {', '.join(told)}".rstrip())
    if counts["duplicate_events"]:
        lines.append(f"  {counts['duplicate_events']:,} events stood in more than one row; each was sent once")
    for reason in reasons:
        lines += _wrapped(f"{reason.count:,} {reason.outcome.replace('_', ' ')}: {_first_of(reason)}")
        lines += _wrapped(f"-> {_advice(reason)}", indent=4)
    for name, what in (("filtered_out", "fields that Iterable dropped"), ("created", "fields new in Iterable")):
        if results.fields[name]:
            lines += _wrapped(f"{what}: {', '.join(results.fields[name])}")
    lines += [f"  {name:<8} {path}" for name, path in results.files.items() if path]
    return "\n".join(
        [
            *lines,
            f"  authentication: {results.authentication}; push mode: {results.push_mode}",
            f"  retry configuration: {retry['max_retries']:g} attempts, back-off {retry['initial_backoff']:g} s, "
            f"times {retry['backoff_factor']:g} after each",
            f"  duration: {results.duration_s:.1f} s",
        ]
    )


def _wrapped(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, 79, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2))


def _first_of(reason: Reason) -> str:
    lead = "for example: " if reason.count > 1 and reason.code != "InvalidRecord" else ""
    return f"{lead}{reason.message}"[:MAX_REASON_CHARS]


# What to do, by the code of Iterable, by the list of a bulk answer, or by our own code.
_ADVICE = {
    "InvalidRecord": "mend these rows (the rejected CSV has them), or leave them out in the query",
    "InvalidEmailAddressError": "mend the addresses, or leave these people out in the query",
    "invalidEmails": "mend the addresses, or leave these people out in the query",
    "InvalidUserIdError": "mend the user ids: 1 to 52 printable ASCII characters",
    "invalidUserIds": "mend the user ids: 1 to 52 printable ASCII characters",
    "RequestFieldsTypesMismatched": "python main.py --check names the fields whose types clash",
    "invalidDataEmails": "python main.py --check names the fields whose types clash",
    "invalidDataUserIds": "python main.py --check names the fields whose types clash",
    "ForgottenUserError": "these people asked to be forgotten; leave them out in the query",
    "forgottenEmails": "these people asked to be forgotten; leave them out in the query",
    "forgottenUserIds": "these people asked to be forgotten; leave them out in the query",
    "disallowedEventNames": "allow the event's name in the project's settings, or send another one (EVENT_NAME)",
    "notFoundEmails": "see why the user update of these people was refused, and mend that first",
    "notFoundUserIds": "see why the user update of these people was refused, and mend that first",
    "UnknownEmailError": "see why the user update of these people was refused, and mend that first",
    "UnknownUserIdError": "see why the user update of these people was refused, and mend that first",
    "UniqueFieldsLimitExceeded": "the project has as many fields as it may; send fewer (USER_FIELDS, EVENT_FIELDS)",
    "BadApiKey": "check that ITERABLE_API_KEY is a key of this project, and ITERABLE_BASE_URL its data centre",
    "InvalidJwtPayload": "check ITERABLE_JWT_SECRET, this machine's clock, and that these people are in the project",
}
_ADVICE_BY_OUTCOME = {
    Outcome.UNACKNOWLEDGED.value: "the next run sends them again; nothing doubles",
    Outcome.NOT_ATTEMPTED.value: "the next run sends them",
    Outcome.REJECTED.value: "mend what the message names; until then, each run offers them again",
}


def _advice(reason: Reason) -> str:
    if reason.outcome == Outcome.REJECTED.value and reason.code in _ADVICE:
        return _ADVICE[reason.code]
    return _ADVICE_BY_OUTCOME[reason.outcome]
