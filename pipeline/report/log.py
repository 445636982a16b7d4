"""The log file and the console. Every text that leaves through here is redacted."""

from __future__ import annotations

import errno
import json
import logging
import logging.handlers
import os
import shutil
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

from iterable.redaction import Redactor

LOG_NAME = "iterable_integration.log"
LOG_FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
LOG_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
LOG_MAX_BYTES = 10_000_000
LOG_FILES = 5
LOG_DELAY_S = 0.5
OUR_LOGGERS = ("iterable_client", "pipeline", "main", "py.warnings")

logger = logging.getLogger("main")


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


def _formatter(log_format: str, redactor: Redactor, run_id: str | None) -> logging.Formatter:
    if log_format == "text":
        return _LogFormatter(redactor)
    from pipeline.report.json_lines import JsonLines  # not needed, and so not loaded, for text

    return JsonLines(redactor, run_id)


class _PrivateLogFile(logging.handlers.RotatingFileHandler):
    """A log file that only its owner can read, from its first byte. A symbolic link in its place is refused.

    Lines about calls that went well are written some at a time, within LOG_DELAY_S, and without the lock that others
    would wait for: one by one, they take a quarter of all the time that single requests do, and by a QueueListener of
    the standard library more than twice as much as here. Every other line is written at once, with those before it.
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
                timer = threading.Timer(LOG_DELAY_S, self._flush_late)
                timer.daemon = True
                timer.start()  # RuntimeError where no thread can be started: then the next line tries again
                self._timer = timer
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
        path = Path(self.baseFilename)
        if path.exists() and not path.is_file():  # to open a pipe would wait for its reader
            raise OSError(errno.EINVAL, "it is not a regular file", self.baseFilename)
        descriptor = os.open(path, flags, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk must not stop the run, nor fill the console with tracebacks: the results JSON has the rest."""

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._flush_late()  # which takes what waits away, so that a full disk makes it fail once only
        super().close()


def open_log(
    folder: Path, redactor: Redactor, *, log_format: str = "text", run_id: str | None = None
) -> logging.Handler:
    """Send the log of our own modules, Python's warnings and libraries' complaints to the log file.

    log_format: `text` or `json`, whose lines have the run_id. OSError where it can't be written.
    """
    handler = _PrivateLogFile(folder / LOG_NAME)
    handler.setFormatter(_formatter(log_format, redactor, run_id))
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
        self.keeps_stdout = json
        self.redactor = Redactor()
        self.quiet = quiet
        self._stderr_format: logging.Formatter | None = None  # None: plain text
        self.hide_live_line: Callable[[], AbstractContextManager[None]] = nullcontext  # while something is written
        for name in OUR_LOGGERS:  # without a log file yet, nothing goes to Python's own stderr handler
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(logging.NullHandler())
        # Nor does what libraries complain of: SQLAlchemy writes whole tracebacks when a query is interrupted.
        logging.getLogger().addHandler(logging.NullHandler())
        if verbose:
            self._show_log()

    def configure(self, redactor: Redactor, *, log_format: str = "text", run_id: str | None = None) -> None:
        """What must not be shown, and how stderr is written: `text`, or `json`, one object a line."""
        self.redactor = redactor
        self._stderr_format = None if log_format == "text" else _formatter(log_format, redactor, run_id)

    @property
    def can_draw(self) -> bool:
        """Whether somebody at a terminal sees what moves on stderr."""
        return not self.quiet and self._stderr_format is None and sys.stderr is not None and sys.stderr.isatty()

    @property
    def columns(self) -> int | None:
        """Of the terminal that stdout is; None where it is none."""
        return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None

    def _show_log(self) -> None:
        handler = _ConsoleLog(self)
        for name in OUR_LOGGERS:
            if name != "main":  # what main says is on the console anyway
                logging.getLogger(name).setLevel(logging.DEBUG)
                logging.getLogger(name).addHandler(handler)

    def say(self, text: str, *, log: bool = True) -> None:
        if log:
            logger.info("%s", text)
        if self.quiet:
            return
        if self.keeps_stdout:
            self._write_stderr(text, logging.INFO)
        else:
            self._write(sys.stdout, text)

    def ask(self, question: str) -> str:
        """What the person at the terminal answers; nothing where there is no answer."""
        self._write(sys.stderr, question)
        try:
            return input().strip()
        except EOFError:
            return ""

    def show(self, lines: Iterable[str]) -> None:
        """On stdout alone, also with --quiet, and as they are: people's own data, which somebody asked to see."""
        try:
            for line in lines:
                if sys.stdout is not None:
                    self._put(sys.stdout, line)
        except (OSError, ValueError):  # such as a `head` that has seen enough
            _silence(sys.stdout)

    def print_json(self, results: object) -> None:
        """Raises OSError where stdout does not take it, as whoever waits for it would not notice otherwise."""
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        try:
            self._put(sys.stdout, json.dumps(results))
        except OSError:
            _silence(sys.stdout)
            raise

    def error(self, text: str, ways_on: Sequence[str] = ()) -> None:
        """Also under --quiet. ways_on: what can be done about it; people read them one below the other."""
        line = " ".join([text, *ways_on])
        logger.error("%s", line)
        is_text = self._stderr_format is None
        self._write_stderr("\n-> ".join([text, *ways_on]) if is_text else line, logging.ERROR)

    def warn(self, text: str) -> None:
        """Also under --quiet."""
        logger.warning("%s", text)
        self._write_stderr(text, logging.WARNING, lead="Warning: ")

    def write_log_record(self, record: logging.LogRecord) -> None:
        """--verbose: a line of the log, on stderr, too."""
        if self._stderr_format is None:
            self._write(sys.stderr, f"{record.levelname} {record.name}: {record.getMessage()}")
        else:
            self._write(sys.stderr, self._stderr_format.format(record))

    def _write_stderr(self, text: str, level: int, *, lead: str = "") -> None:
        if self._stderr_format is None:
            self._write(sys.stderr, f"{lead}{text}")
        elif text.strip():
            self.write_log_record(logging.makeLogRecord(_record_of(text.strip(), level)))

    def _write(self, stream: TextIO | None, text: str) -> None:
        try:
            if stream is not None:
                self._put(stream, "\n".join(self.redactor.line(line) for line in text.splitlines() or [""]))
        except (OSError, ValueError):  # a closed pipe or a closed file
            _silence(stream)

    def _put(self, stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "ascii"
        with self.hide_live_line():
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            stream.flush()


def _record_of(text: str, level: int) -> dict[str, Any]:
    return {"name": logger.name, "levelno": level, "levelname": logging.getLevelName(level), "msg": text}


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
        self._console.write_log_record(record)
