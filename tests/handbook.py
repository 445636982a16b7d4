"""What is made of the code's own declarations: `.env.example`, `docs/settings.md` and `docs/command-line.md`.

python -m tests.handbook     writes all three anew
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from pipeline.config import ROOT, SETTINGS

DOCS = ROOT / "docs"

EXAMPLE_HEADER = """\
# Copy this to .env and make that yours alone: cp .env.example .env && chmod 600 .env
#
# Two settings are needed. Each of the others is shown with its default; to change it, remove the # before its name.
# Variables of the environment win over this file, and an empty value counts as not set. ${NAME} is not replaced.
# Quotes around a value are taken off; it needs them where it has a # after a space, which would begin a comment.
# Relative paths start from the folder of main.py, and ~ is your home folder. Each secret can come from a file of its
# own instead, named by ITERABLE_API_KEY_FILE, DATABASE_URL_FILE and so on.
"""

SETTINGS_HEADER = """\
# Settings

Every setting, with its default. This page is made of the program's own declarations.

Settings are read from `.env` beside `main.py` and from the environment, which wins. An empty value counts as not set,
and `${NAME}` is not replaced. In `.env`, quotes around a value are taken off, and a `#` after a space begins a comment;
where it could also belong to the value, as in `EVENT_NAME=Order #5`, the line is refused until the value stands in
quotes, or the comment on a line of its own. In the environment, a value is taken to the letter. Relative paths start
from the folder of `main.py`, and `~` is your home folder. All problems are listed at once, and end with exit code 78.
Each secret can come from [a file of its own](operations.md#secrets-from-files); `.env` may then be missing.
"""

COMMAND_LINE_HEADER = """\
# Command line

What `main.py` takes. This page is its own `--help`, and a few words on what goes together.

"""

COMMAND_LINE_NOTES = """
- Without an option, the program reads, plans and sends: the job that a schedule runs.
- `--dry-run`, `--check`, `--history`, `--explain`, `--verify` and `--report` send nothing, and work while a run is
  active.
- What a look at the runs would ignore, such as `--limit` with `--check`, is refused with exit code 2. So are
  abbreviated options.
- `--verify` leaves files, `--only` limits it to one person, and `--repair` goes with it alone
  ([proof and repair](verify.md)).
- `--files` goes with `--explain` alone ([privacy](privacy.md)).
- `--report` writes [`report.html`](outputs.md#the-page), and needs `requirements-report.txt`.
- `--forget` deletes, and asks first; without a terminal it needs `--yes`. It holds the lock of a run
  ([privacy](privacy.md#people-who-ask-to-be-forgotten)).
- `--limit` counts rows of the query, not people. A run with `--limit` or `--only` does not move `:since`.
- `--since WHEN` is UTC unless it says an offset, and needs a query with [`:since`](query.md#only-what-changed).
- `--full` reads everything, too. Over what was accepted it needs `--yes`
  ([the brake](what-a-send-does.md#the-brake)).
- `--baseline` asks before it records anything. Without a terminal it needs `--yes`.
- `--json` prints what the [results file](outputs.md#the-results) has. It works with `--check`, `--history`,
  `--explain`, `--verify`, `--report` and `--forget`, too, with keys of their own.
- The exit codes, and what to do about each, are in [operations](operations.md#exit-codes).
"""


def env_example() -> str:
    blocks = [EXAMPLE_HEADER]
    for name, setting in SETTINGS.items():
        if setting.section:
            blocks.append(f"# --- {setting.section} ---\n")
        comment = textwrap.wrap(setting.about.replace("`", ""), 118, break_long_words=False, break_on_hyphens=False)
        line = f"{name}={setting.placeholder}" if setting.placeholder else f"#{name}={setting.default or ''}"
        blocks.append("".join(f"# {each}\n" for each in comment) + line + "\n")
    return "\n".join(blocks)


def settings_chapter() -> str:
    lines = [SETTINGS_HEADER]
    for name, setting in SETTINGS.items():
        if setting.section:
            lines += ["", f"## {setting.section}", "", "| setting | default | what it is |", "|---|---|---|"]
        default = "–" if setting.default is None else f"`{setting.default}`"
        lines.append(f"| `{name}` | {default} | {setting.about} |")
    return re.sub(r"\n\n\n+", "\n\n", "\n".join(lines)) + "\n"


def command_line_chapter() -> str:
    return f"{COMMAND_LINE_HEADER}```text\n{printed_help()}```\n{COMMAND_LINE_NOTES}"


def printed_help() -> str:
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1"}
    command = [sys.executable, "main.py", "--help"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


MADE = {  # the file, and what makes its text
    ROOT / ".env.example": env_example,
    DOCS / "settings.md": settings_chapter,
    DOCS / "command-line.md": command_line_chapter,
}


def write() -> None:
    for path, make in MADE.items():
        Path(path).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    write()
