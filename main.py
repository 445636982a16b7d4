"""The command line: syncs the users and events that a SQL query finds to an Iterable project.

    python main.py --help

`run` shows the steps in order; each is a function in pipeline/.
"""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # The imports below take a quarter of a second: until they are done, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import gc
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline import check, steps
from pipeline.account import Account, conclude, conclude_after, refuse, report
from pipeline.ending import ExitCode
from pipeline.interrupt import Interrupted, catch_signals
from pipeline.log import Console
from pipeline.opening import open_run
from pipeline.version import VERSION

__all__ = ["ExitCode", "main", "run"]


def run(options: argparse.Namespace) -> ExitCode:
    """The whole job, step by step. What it learns ends in the results JSON, also after a failure."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    with ExitStack() as stack:
        try:
            interrupt = stack.enter_context(catch_signals())
            opened = open_run(options, console, interrupt, stack)
        except (Exception, Interrupted) as problem:
            return refuse(problem, console)
        account = Account()
        try:
            steps.introduce(opened)
            account.read = steps.read_rows(opened)
            account.plan = steps.make_plan(opened, account.read)
            account.delivered = steps.deliver(opened, account.plan)
            ending = conclude(opened, account)
        except (Exception, Interrupted) as problem:
            ending = conclude_after(opened, problem)
        return report(opened, account, ending)
    raise AssertionError("unreachable: no context here swallows an exception")


# The command line -----------------------------------------------------------------------------------------------------


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Takes the people and events that a SQL query finds and makes an Iterable project agree with them.",
        epilog="Settings are read from .env beside main.py and from the environment; see .env.example.",
    )
    add = parser.add_argument
    add(
        "--sandbox",
        action="store_true",
        help="the whole job against a stand-in Iterable on this machine; no key needed",
    )
    add("--dry-run", action="store_true", help="query, CSV and plan; show what would be sent, and send nothing")
    add("--full", action="store_true", help="send everything again, also what Iterable has accepted unchanged")
    add("--limit", type=_positive, metavar="N", help="take only the first N rows of the query")
    add("--env-file", type=Path, metavar="PATH", help="read the settings from PATH instead of .env beside main.py")
    add("--check", action="store_true", help="look at everything that a run needs, and at field types; send nothing")
    add("--json", action="store_true", help="print the results JSON on stdout, and nothing else there")
    add("--quiet", action="store_true", help="print nothing unless something is wrong, for cron")
    add("--verbose", action="store_true", help="show the log on stderr, too")
    add("--version", action="version", version=f"iterable-integration {VERSION}")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    # Rows and records come and go by the million and hold no cycles; looking for some would take a quarter of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        return int(check.run_check(options) if options.check else run(options))
    except KeyboardInterrupt:  # where `run` does not catch it: nothing is under way
        return int(ExitCode.SIGINT)
    except Exception as bug:  # Python's own exit code would be 1, which says that some records were rejected
        traceback.print_tb(bug.__traceback__)  # without the bug's text, which may quote anything
        sys.stderr.write(f"A bug: {type(bug).__name__}. Please report it with the lines above.\n")
        return int(ExitCode.BUG)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
