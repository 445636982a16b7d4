"""`--forget WHO`: deletes one person's rows in the files of OUTPUT_DIR and what the ledger knows of them, after asking.

What stays are keyed hashes, by which every later run rejects the person. They are kept first, then the ledger forgets,
then the files are written anew, one by one and whole: ended at any moment, it goes on where it stopped when it is run
again. It holds the lock of a run meanwhile.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iterable import VERSION
from iterable.export import rewritten
from iterable.redaction import Redactor
from pipeline.config import Settings
from pipeline.inspect.person_files import UNREADABLE, FoundIn, Wanted, kind_of, look_for, open_text
from pipeline.inspect.session import print_json
from pipeline.ledger.ledger import Ledger, LedgerDamagedError, LedgerError, PersonInLedger
from pipeline.model.exits import Ending, ExitCode, OutputError, RunError
from pipeline.model.text import counted, shown, wrapped
from pipeline.report import Console
from pipeline.report.results import reason_of
from pipeline.report.retention import being_written, sweep
from pipeline.run.conclusion import refuse
from pipeline.run.interrupt import Interrupted, catch_signals
from pipeline.run.opening import hold_ledger, settings_for
from pipeline.state import Keeper, StoreDownError

NOT_DONE = (
    "Not done here: Iterable keeps what it has until it is told to forget (POST /api/users/forget, or the person's "
    "profile there); the database, backups, other copies of these files and mail that a schedule has sent are yours to "
    "look through."
)
WHILE_IN_QUERY = "As long as the query finds the person, the files of each run have these rows: leave them out of it."
SHARED = (
    "Several people have had this address. It is rejected for all of them, and none of them is known under another one."
)
BY_ROWS = (
    "The ledger does not know this address. It knows the person whom the rows at it name under another one, which is "
    "meant, too."
)
SEVERAL = "The ledger has {} of this person, at different addresses and with one id: all of them are meant."
NO_IDENTITY = "This is not {}, so no run sends it, and the ledger does not know it."
UNKNOWN = "Unknown: neither the ledger nor a file of OUTPUT_DIR names this person. Nothing was deleted."
UNKNOWN_USER_ID = (
    "Unknown: neither the ledger nor a file of OUTPUT_DIR has this user id. Nothing was deleted. With "
    "ITERABLE_IDENTIFIER=userId, people are named by their user id and not by their address."
)
OTHER_PROJECTS = (
    "The ledger also knows {}, whose entries only their own key or ITERABLE_PROJECT opens: repeat this with each."
)
IS_WRITTEN = "{} is being written by a dry run or by --verify: repeat this when it has ended."
READ_MEANWHILE = (
    "Another program is reading the ledger, so deleted entries may still lie in the files beside it: repeat this later."
)
OTHER_ADDRESSES = "These rows also have an address of which the ledger knows nothing: repeat this with {}."
HARD_LINK = "{} has a second name (a hard link), under which the rows stay: delete that one yourself."


@dataclass
class Forgetting:
    """What there is about one person, and what became of it. kept: the files that could not be written anew.
    is_compact: nothing deleted is left in the ledger's file, or beside it."""

    who: str
    files: Sequence[FoundIn]
    ledger: PersonInLedger | None
    notes: list[str] = field(default_factory=list)
    kept: list[FoundIn] = field(default_factory=list)
    is_done: bool = False
    is_compact: bool = True

    @property
    def rows(self) -> int:
        return sum(each.count for each in self.files)

    @property
    def unread(self) -> list[FoundIn]:
        return [each for each in self.files if each.problem]

    @property
    def is_found(self) -> bool:
        return bool(self.rows) or (self.ledger is not None and self.ledger.is_known)

    @property
    def was_forgotten(self) -> bool:
        return self.ledger is not None and self.ledger.forgotten_on is not None

    @property
    def exit_code(self) -> ExitCode:
        if not self.is_found and not self.was_forgotten:
            return ExitCode.REJECTED
        if not self.is_done:
            return ExitCode.BRAKE
        is_whole = self.is_compact and not self.kept and not self.unread
        return ExitCode.SUCCESS if is_whole else ExitCode.NO_OUTPUT


def run_forget(options: argparse.Namespace) -> ExitCode:
    """Forget `options.forget`. 0: done; 1: nobody knows this person; 65: the answer was not yes; 73: not all of it."""
    console = Console(quiet=options.quiet, verbose=options.verbose, json=options.json)
    try:
        with ExitStack() as stack:
            stack.enter_context(catch_signals())
            settings, _ = settings_for(options, stack)
            console.configure(Redactor(settings.secrets()), log_format=settings.log_format)
            folder = settings.output_dir
            if not folder.is_dir():
                raise OutputError(f"OUTPUT_DIR names {folder}, which is not a folder; create it, or name another.")
            ledger, keeper = hold_ledger(settings, stack)
            if ledger.damage:
                raise LedgerDamagedError(ledger.damage)
            keeper.begin_run("")
            for warning in (*settings.warnings, ledger.warning, ledger.note):
                if warning:
                    console.warn(warning)
            found = _forget(console, settings, ledger, keeper, options.forget, asks=not options.yes)
    except (RunError, Interrupted) as problem:
        return refuse(problem, console)
    except sqlite3.Error as problem:
        return refuse(LedgerError(f"The ledger can't be written ({problem}); run --forget again."), console)
    except OSError as problem:
        return refuse(OutputError(f"OUTPUT_DIR can't be read ({reason_of(problem)}); run --forget again."), console)
    if options.json:
        return print_json(console, as_json(found), found.exit_code)
    return found.exit_code


def _forget(
    console: Console, settings: Settings, ledger: Ledger, keeper: Keeper, who: str, *, asks: bool
) -> Forgetting:
    folder = settings.output_dir
    sweep(folder, console.warn)
    wanted, files = look_for(ledger, settings, who)
    found = Forgetting(wanted.identity or who, files, wanted.ledger)
    found.notes += _notes(folder, ledger, wanted, console)
    _show(console, _found_as_text(found, folder))
    if not found.is_found:
        return _nothing_left(console, ledger, keeper, found, by_user_id=wanted.by_user_id)
    question = "Delete all this for good, and reject this person from now on? Type yes: "
    if asks and console.ask(question) != "yes":
        console.error("Nothing was deleted.")
        return found
    if wanted.ledger is not None:
        ledger.forget(wanted.ledger)
        _put_back(ledger, keeper, found)
    for each in found.files:
        if not each.problem:
            _rewrite(folder / each.name, wanted, found)
    found.is_done = True
    _show(console, _done_as_text(found))
    if not found.is_compact:
        console.error(READ_MEANWHILE)
    for each in (*found.unread, *found.kept):
        console.error(f"{each.name} stays as it is ({each.problem}); look after it, and run --forget again.")
    return found


def _put_back(ledger: Ledger, keeper: Keeper, found: Forgetting) -> None:
    """Nothing deleted is left in the ledger, and it is where STATE_URL says before any file is touched."""
    found.is_compact = ledger.compact()
    ledger.commit()
    ending = keeper.finish(Ending(ExitCode.SUCCESS, ""), is_settled=False)
    if ending.code is not ExitCode.SUCCESS:
        raise StoreDownError(ending.reason)


def _nothing_left(
    console: Console, ledger: Ledger, keeper: Keeper, found: Forgetting, *, by_user_id: bool
) -> Forgetting:
    if found.was_forgotten and found.ledger is not None:
        _put_back(ledger, keeper, found)  # which an earlier one may not have come to
        found.is_done = True
        _show(console, wrapped(f"Forgotten since {found.ledger.forgotten_on}; nothing is left to delete."))
    else:
        console.error(UNKNOWN_USER_ID if by_user_id and "@" in found.who else UNKNOWN)
    if not found.is_compact:
        console.error(READ_MEANWHILE)
    for each in found.unread:
        console.error(f"{each.name} was not looked through ({each.problem}).")
    return found


def _notes(folder: Path, ledger: Ledger, wanted: Wanted, console: Console) -> Iterator[str]:
    if wanted.ledger is None:
        yield NO_IDENTITY.format("a user id" if wanted.by_user_id else "an e-mail address")
    elif wanted.ledger.is_shared:
        yield SHARED
    elif wanted.is_known_by_rows:
        yield BY_ROWS
    elif wanted.ledger.users > 1:
        yield SEVERAL.format(counted(wanted.ledger.users, "user"))
    if wanted.other_addresses:
        yield OTHER_ADDRESSES.format(", ".join(sorted(filter(None, map(shown, wanted.other_addresses)))))
    if others := ledger.count_other_projects():
        yield OTHER_PROJECTS.format(counted(others, "other project"))
    for name in being_written(folder, console.warn):
        yield IS_WRITTEN.format(name)


def _rewrite(path: Path, wanted: Wanted, found: Forgetting) -> None:
    """Whole or not at all; what can't be written stays as it is."""
    try:
        if path.stat().st_nlink > 1:
            found.notes.append(HARD_LINK.format(path.name))
        with rewritten(path) as target, open_text(path) as file:  # Windows replaces no file that is open
            for text in kind_of(path.name).without(file, path, wanted):
                target.write(text)
    except UNREADABLE as problem:
        found.kept.append(FoundIn(path.name, problem=reason_of(problem)))


# Text and JSON --------------------------------------------------------------------------------------------------------


def _show(console: Console, lines: Iterable[str]) -> None:
    """On stdout alone, unmasked, where it is not kept for something else."""
    if not (console.quiet or console.keeps_stdout):
        console.show(lines)


def _found_as_text(found: Forgetting, folder: Path) -> Iterator[str]:
    yield shown(found.who)
    if found.files:
        yield f"Files in {folder}:"
    for each in found.files:
        what = f"can't be read ({each.problem})" if each.problem else counted(each.count, _unit(each.name))
        yield from wrapped(f"{each.name}: {what}", "    ", "        ")
    if found.ledger is not None and found.ledger.is_known:
        yield from wrapped(f"Ledger: {_entries(found.ledger)}")
    if found.was_forgotten and found.ledger is not None and found.is_found:
        yield from wrapped(f"Forgotten before, on {found.ledger.forgotten_on}.")
    for note in found.notes:
        yield from wrapped(note)


def _done_as_text(found: Forgetting) -> Iterator[str]:
    files = len(found.files) - len(found.unread) - len(found.kept)
    kept = {each.name for each in found.kept}
    rows = sum(each.count for each in found.files if each.name not in kept)
    yield from wrapped(f"Deleted: {counted(rows, 'row')} in {counted(files, 'file')}.")
    if found.ledger is not None:
        yield from wrapped(f"Deleted in the ledger: {_entries(found.ledger)}. Every later run rejects this person.")
    for note in found.notes:
        yield from wrapped(note)
    yield from wrapped(WHILE_IN_QUERY)
    yield from wrapped(NOT_DONE)


def _entries(known: PersonInLedger) -> str:
    return (
        f"{counted(known.users, 'user')}, {counted(known.events, 'event')} and "
        f"{counted(known.failures, 'failed record')}"
    )


def _unit(name: str) -> str:
    return "failed record" if name.endswith(".json") else "row"


def as_json(found: Forgetting) -> dict[str, Any]:
    """What was found, which is deleted where `is_done` says so, but for the files with a problem."""
    known = found.ledger
    problems = {each.name: each.problem for each in (*found.unread, *found.kept)}
    return {
        "tool_version": VERSION,
        "who": found.who,
        "is_done": found.is_done,
        "files": [{"name": each.name, "count": each.count, "problem": problems.get(each.name)} for each in found.files],
        "ledger": None
        if known is None
        else {
            "users": known.users,
            "events": known.events,
            "failures": known.failures,
            "forgotten_on": known.forgotten_on.isoformat() if known.forgotten_on is not None else None,
        },
        "notes": found.notes,
        "exit_code": int(found.exit_code),
    }
