"""What `--check` says about people. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.inspect.findings import Area, Finding, good, note
from pipeline.model.exits import ExitCode
from pipeline.model.text import counted
from pipeline.transform.address_changes import PeopleReport
from pipeline.transform.rules import Rules


def about_people(people: PeopleReport, rules: Rules, moves: int) -> Iterator[Finding]:
    """moves: how many addresses Iterable would change."""
    if not rules.by_user_id:
        yield from _about_person_column(people, rules)
    if people.shared:
        where = "1 address is" if people.shared == 1 else f"{people.shared:,} addresses are"
        yield note(Area.ROWS, f"{where} in rows of more than one person", "each is one user in Iterable")
    if moves:
        yield note(Area.ROWS, f"{counted(moves, 'person')} with a new address, which Iterable would change first", "")
    if held := people.done["held"]:
        text = f"{counted(held, 'person')} would be held, as the address has changed"
        remedy = "change it in Iterable and run with --baseline --only and the new address, or set EMAIL_CHANGES"
        yield note(Area.ROWS, text, remedy, ExitCode.REJECTED)


def _about_person_column(people: PeopleReport, rules: Rules) -> Iterator[Finding]:
    column = rules.person_column
    if column is None:
        text = "no column identifies people, so a changed address makes a second profile"
        yield note(Area.ROWS, text, "add a column user_id, or name one in PERSON_COLUMN")
    elif rules.person_is_guessed and not people.trusts_guess:
        text = f"{column} has several values for most addresses, so it does not identify people"
        yield note(Area.ROWS, text, "add a column user_id, or name one in PERSON_COLUMN")
    else:
        yield good(Area.ROWS, f"{column} identifies people when their address changes (PERSON_COLUMN)")
