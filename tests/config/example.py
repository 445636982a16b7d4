"""`.env.example` and the README's table of settings, as the declarations in pipeline/config/settings.py have them.

python -m tests.config.example     writes both anew
"""

from __future__ import annotations

import re
import textwrap

from pipeline.config import ROOT, SETTINGS

EXAMPLE = ROOT / ".env.example"
README = ROOT / "README.md"
TABLE = re.compile(r"^\| setting \| default \|.*?\n(?!\|)", re.DOTALL | re.MULTILINE)

HEADER = """\
# Copy this to .env and make that yours alone: cp .env.example .env && chmod 600 .env
#
# Two settings are needed. Each of the others is shown with its default; to change it, remove the # before its name.
# Variables of the environment win over this file, and an empty value counts as not set. A value is taken to the letter:
# ${NAME} is not replaced. Relative paths start from the folder of main.py. Each secret can come from a file of its own
# instead, named by ITERABLE_API_KEY_FILE, DATABASE_URL_FILE and so on.
"""


def env_example() -> str:
    blocks = [HEADER]
    for name, setting in SETTINGS.items():
        if setting.section:
            blocks.append(f"# --- {setting.section} ---\n")
        comment = textwrap.wrap(setting.about.replace("`", ""), 118, break_long_words=False, break_on_hyphens=False)
        line = f"{name}={setting.placeholder}" if setting.placeholder else f"#{name}={setting.default or ''}"
        blocks.append("".join(f"# {each}\n" for each in comment) + line + "\n")
    return "\n".join(blocks)


def settings_table() -> str:
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, setting in SETTINGS.items():
        default = "–" if setting.default is None else f"`{setting.default}`"
        lines.append(f"| `{name}` | {default} | {setting.about} |")
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    (table,) = TABLE.findall(README.read_text(encoding="utf-8"))
    return str(table).rstrip("\n") + "\n"


def write() -> None:
    EXAMPLE.write_text(env_example(), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(readme.replace(readme_table(), settings_table()), encoding="utf-8")


if __name__ == "__main__":
    write()
