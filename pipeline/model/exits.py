"""How a run ends: the exit codes, and the errors that end a run before it sends anything.

A new error of that kind is a subclass of RunError, with its exit code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ends. Cron and the results JSON see it; the README explains it."""

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


@dataclass(frozen=True)
class Ending:
    """The exit code, and the sentence for it."""

    code: ExitCode
    reason: str


class RunError(Exception):
    """What keeps a run from sending anything. The text is the whole message; each subclass has its exit code."""

    code: ExitCode = ExitCode.BUG


class UsageError(RunError):
    """The command line asks for what can't be."""

    code = ExitCode.USAGE


class OutputError(RunError):
    """A file of this run can't be written."""

    code = ExitCode.NO_OUTPUT
