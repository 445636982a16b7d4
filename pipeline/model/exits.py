"""How a run ends: the exit codes, and the errors that end a run before it sends anything.

A new error of that kind is a subclass of RunError, with its exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ends. Cron and the results JSON see it; docs/operations.md explains it."""

    SUCCESS = 0
    REJECTED = 1
    USAGE = 2  # argparse's own
    BRAKE = 65
    NO_INPUT = 66
    UNAVAILABLE = 69  # 75 that lasts
    BUG = 70
    NO_OUTPUT = 73
    TEMPORARY = 75
    NOT_ITERABLE = 76
    CREDENTIALS = 77
    SETTINGS = 78
    SIGINT = 130
    SIGTERM = 143


MEANINGS = {  # a line each, for --help and the handbook
    ExitCode.SUCCESS: "every record was delivered, or was there already",
    ExitCode.REJECTED: "finished, and some records were rejected",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.BRAKE: "the brake: more than expected would be sent, or something again",
    ExitCode.NO_INPUT: "the database or the query can't be read",
    ExitCode.UNAVAILABLE: "75 for ALERT_AFTER runs in a row, with nothing accepted",
    ExitCode.BUG: "a bug; the traceback is in the log",
    ExitCode.NO_OUTPUT: "an output file can't be written; nothing was sent",
    ExitCode.TEMPORARY: "temporary: the next run continues where this one stopped",
    ExitCode.NOT_ITERABLE: "what answers is not Iterable",
    ExitCode.CREDENTIALS: "Iterable refused the key",
    ExitCode.SETTINGS: "settings are missing or wrong",
    ExitCode.SIGINT: "interrupted by Ctrl-C; what is known was saved",
    ExitCode.SIGTERM: "ended by SIGTERM or SIGHUP; what is known was saved",
}


@dataclass(frozen=True)
class Ending:
    """How a run ends. happened: the sentences for it. ways_on: what can be done about it, one sentence for each way."""

    code: ExitCode
    happened: str
    ways_on: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """All of it on one line, as the log and the results have it."""
        return " ".join([self.happened, *self.ways_on])


class RunError(Exception):
    """What keeps a run from sending anything. The text is the whole message; each subclass has its exit code."""

    code: ExitCode = ExitCode.BUG


class UsageError(RunError):
    """The command line asks for what can't be."""

    code = ExitCode.USAGE


class OutputError(RunError):
    """A file of this run can't be written."""

    code = ExitCode.NO_OUTPUT
