"""The command line: syncs the users and events that a SQL query finds to an Iterable project.

    python main.py --help

`run` shows the steps in order; each is a function in pipeline/.
"""

# No annotations from __future__ here: with them, Python 3.6 would end in a SyntaxError instead of the sentence.
import gc
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:  # Python leaves it out with -P or PYTHONSAFEPATH=1
        sys.path.insert(0, folder)
    # The imports below take a quarter of a second: until they are done, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))  # which the first process of a container would not hear
    gc.disable()  # what is imported stays, so looking for garbage among it would be a tenth of the start in vain
    from pipeline.launch import require_python_and_packages

    require_python_and_packages()

import argparse
import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import NoReturn

from iterable import VERSION
from pipeline.config import parse_moment
from pipeline.model.exits import MEANINGS, ExitCode
from pipeline.report import Console
from pipeline.run import (
    ALL,
    Account,
    Interrupted,
    brake,
    catch_signals,
    conclude,
    conclude_after,
    deliver,
    introduce,
    make_plan,
    open_run,
    read_rows,
    refuse,
    remember,
    report,
)

__all__ = ["ExitCode", "main", "run"]

MOST_DIGITS = 18  # SQLite's numbers have 63 bits
OPTIONS_OF_RUNS = ("sandbox", "dry_run", "baseline", "full", "limit", "only", "since", "yes")
TAKEN_BY_LOOKS = {  # of those
    "check": ("sandbox", "full", "since", "yes"),
    "history": (),
    "explain": ("sandbox",),
    "verify": ("only",),
    "report": (),
}


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
            introduce(opened)
            account.read = read_rows(opened)
            account.plan = make_plan(opened, account.read)
            stopped = brake(opened, account.read, account.plan)
            account.delivered = stopped or deliver(opened, account.read, account.plan)
            remember(opened, account.read, account.delivered)
            ending = conclude(opened, account.read, account.delivered)
        except (Exception, Interrupted) as problem:
            ending = conclude_after(opened, problem)
        return report(opened, account, ending)
    raise AssertionError("unreachable: no context here swallows an exception")


# The command line -----------------------------------------------------------------------------------------------------


EPILOG = """\
exit codes:
{codes}

Settings are read from .env beside main.py and from the environment; see .env.example.
The handbook is in docs/, beside main.py.
"""


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.baseline and (options.sandbox or options.dry_run or options.full):
        parser.error("--baseline sends nothing, so it can't be used with --sandbox, --dry-run or --full")
    if options.files and options.explain is None:
        parser.error("--files looks for the person of --explain, so it needs --explain")
    if options.sandbox and (options.report or options.verify is not None or options.history is not None):
        look = "--report" if options.report else "--verify" if options.verify is not None else "--history"
        parser.error(f"{look} needs what runs have left in the ledger, and --sandbox keeps none")
    if options.repair and options.verify is None:
        parser.error("--repair marks what --verify finds, so it needs --verify")
    if options.before is not None and not options.baseline:
        parser.error("--before says which events --baseline records, so it needs --baseline")
    if options.forget is not None:
        _check_forget(parser, options)
    else:
        _refuse_what_a_look_ignores(parser, options)
    if options.baseline and not options.yes and not _is_at_terminal():
        parser.error("--baseline asks before it records anything; without a terminal, add --yes")
    return options


def _check_forget(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    given = _options_of_runs(options, but=("yes",))
    if given:
        parser.error(f"--forget deletes, and is no run, so it can't be used with {given[0]}")
    if not options.yes and not _is_at_terminal():
        parser.error("--forget asks before it deletes anything; without a terminal, add --yes")


def _refuse_what_a_look_ignores(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for look, taken in TAKEN_BY_LOOKS.items():
        if getattr(options, look) in (None, False):
            continue
        given = _options_of_runs(options, but=taken)
        if given:
            parser.error(f"--{look} would ignore {given[0]}, so they can't be used together")


def _options_of_runs(options: argparse.Namespace, but: tuple[str, ...]) -> list[str]:
    """Those that were given."""
    given = (name for name in OPTIONS_OF_RUNS if name not in but and getattr(options, name) not in (None, False))
    return [f"--{name.replace('_', '-')}" for name in given]


def make_parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Syncs users and events from a SQL query to Iterable.",
        epilog=EPILOG.format(codes=codes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a typo must not send
    )
    parser.add_argument("--version", action="version", version=f"iterable-integration {VERSION}")
    _add_options_of_runs(parser.add_argument_group("run"))
    _add_safety(parser.add_argument_group("safety"))
    _add_looks(parser.add_argument_group("instead of a run; these send nothing"))
    _add_output(parser.add_argument_group("settings and output"))
    return parser


def _add_options_of_runs(run: argparse._ArgumentGroup) -> None:
    add = run.add_argument
    add(
        "--sandbox",
        action="store_true",
        help="the whole job against a stand-in Iterable on this machine, without a key",
    )
    add("--limit", type=_positive, metavar="N", help="take only the first N rows of the query")
    add("--only", type=_someone, metavar="WHO", help="take only the rows of one person: an e-mail address, or a userId")
    add(
        "--since",
        type=_when,
        metavar="WHEN",
        help="read from then on, this once: 2026-01-12, 2026-01-12T08:00:00, or all",
    )
    add(
        "--full",
        choices=("users", "events"),
        nargs="?",
        const=True,
        default=False,
        help="send everything again, or all of one kind, also what Iterable has accepted unchanged",
    )


def _add_safety(safety: argparse._ArgumentGroup) -> None:
    add = safety.add_argument
    add("--dry-run", action="store_true", help="query, CSV and plan; show what would be sent, and send nothing")
    add("--baseline", action="store_true", help="record everything as accepted by Iterable, and send nothing")
    add(
        "--before",
        type=_moment,
        metavar="DATE",
        help="with --baseline: record only events that happened before then (UTC), as 2026-01-01",
    )
    add("--yes", action="store_true", help="go on although the brake would stop this run; don't ask")


def _add_looks(look: argparse._ArgumentGroup) -> None:
    add = look.add_mutually_exclusive_group().add_argument
    add("--check", action="store_true", help="look at everything that a run needs, and at field types")
    add("--history", type=_positive, nargs="?", const=20, metavar="N", help="the last N runs (20)")
    add(
        "--explain",
        type=_someone,
        metavar="WHO",
        help="one person: their rows, what would be sent, what was accepted when",
    )
    add(
        "--verify",
        type=_count_or_all,
        nargs="?",
        const=20,
        metavar="N|all",
        help="compare N people (20) or all with Iterable's copy, with their events",
    )
    add("--report", action="store_true", help="write report.html: the last run, 90 days as charts, what is on the disk")
    add(
        "--forget",
        type=_someone,
        metavar="WHO",
        help="one person: delete what OUTPUT_DIR and the ledger have, and reject them later",
    )
    look.add_argument(
        "--files", action="store_true", help="with --explain: also where the files in OUTPUT_DIR have this person"
    )
    look.add_argument(
        "--repair", action="store_true", help="with --verify: mark what differs, so that the next run sends it"
    )


def _add_output(output: argparse._ArgumentGroup) -> None:
    add = output.add_argument
    add("--env-file", type=_file, metavar="PATH", help="read the settings from PATH instead of .env beside main.py")
    add("--json", action="store_true", help="print the results as JSON on stdout, and nothing else there")
    add("--quiet", action="store_true", help="print nothing unless something is wrong, for cron")
    add("--verbose", action="store_true", help="show the log on stderr, too")


def _is_at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # None: the program was started with a closed stdin


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 and at most {MOST_DIGITS} digits")
    return number


def _someone(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be an e-mail address, or a userId")
    return text


def _file(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("must be the path of a file")
    return Path(text)


def _count_or_all(text: str) -> int | str:
    return ALL if text == ALL else _positive(text)


def _when(text: str) -> datetime | str:
    return ALL if text == ALL else _moment(text, more=", or all")


def _moment(text: str, more: str = "") -> datetime:
    try:
        return parse_moment(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; expected 2026-01-12, 2026-01-12 08:00:00{more}"
        ) from None


def _chosen(options: argparse.Namespace) -> Callable[[argparse.Namespace], ExitCode]:
    """What is to be done. What only looks is loaded when it is asked for."""
    if options.check:
        from pipeline.inspect.check import run_check

        return run_check
    if options.history is not None:
        from pipeline.inspect.history import run_history

        return run_history
    if options.explain is not None:
        from pipeline.inspect.explain import run_explain

        return run_explain
    if options.verify is not None:
        from pipeline.inspect.verify import run_verify

        return run_verify
    if options.report:
        from pipeline.inspect.page import run_report

        return run_report
    if options.forget is not None:
        from pipeline.inspect.forget import run_forget

        return run_forget
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    # Rows and records come and go by the million and hold no cycles; looking for some would take a quarter of the time.
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 100)
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        return int(_chosen(options)(options))
    except KeyboardInterrupt:  # where `run` does not catch it: nothing is under way
        return int(ExitCode.SIGINT)
    except Exception as bug:  # Python's own exit code would be 1, which says that some records were rejected
        traceback.print_tb(bug.__traceback__)  # without the bug's text, which may quote anything
        sys.stderr.write(f"A bug: {type(bug).__name__}. Please report it with the lines above.\n")
        return int(ExitCode.BUG)


def _leave(code: int) -> NoReturn:
    """End the process. A driver's thread that hangs could hold it, or abort it, while Python ends in its usual way."""
    if any(thread.daemon for thread in threading.enumerate()):
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _leave(main())
