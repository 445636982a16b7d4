"""Every command of the README and the handbook is run, in order, in a copy of this project and against the stand-in.

A block marked `sh` is not run: it needs root, a server or an index of packages.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from iterable_client import IterableClient
from main import make_parser
from pipeline.config import SETTINGS
from pipeline.config.settings import SECRET_FILES
from pipeline.sandbox import SANDBOX_KEY, StandIn
from tests.test_docs import CHAPTERS, PAGES, README, blocks

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the commands are for sh")

COPIED = ("main.py", "iterable_client.py", "iterable", "pipeline", ".env.example")
PRINTED_ADDRESS = "http://127.0.0.1:8080"  # of the stand-in, in the chapters
SAMPLE_PERSON = "alex.moreau@example.com"
NOT_RUN = re.compile(r"\b(useradd|systemctl|podman|pip install)\b")
OF_OTHER_PROGRAMS = {"--build-arg", "--project-type", "--now"}
OTHER_VARIABLES = {
    *("HTTPS_PROXY", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
}
CHAPTERS_WITH_COMMANDS = [page for page in CHAPTERS if blocks("bash", page.read_text(encoding="utf-8"))]


@dataclass
class Copy:
    """A copy of the project, as a newcomer has it after a clone and the installation."""

    folder: Path
    stand_in: StandIn
    database_url: str

    def run(self, commands: str, **settings: str) -> subprocess.CompletedProcess[str]:
        if "--verify" in commands:
            self._let_a_minute_pass()
        commands = commands.replace(PRINTED_ADDRESS, self.stand_in.url).replace("curl ", "curl -fsS ")
        environment = {
            "PATH": os.environ["PATH"],
            "ITERABLE_API_KEY": SANDBOX_KEY,
            "ITERABLE_BASE_URL": self.stand_in.url,
            "DATABASE_URL": self.database_url,
            "USER_SETTLE_SECONDS": "0",
            **settings,
        }
        command = ["bash", "-euo", "pipefail", "-c", commands]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _let_a_minute_pass(self) -> None:
        """What was accepted less than a minute ago is not compared."""
        with closing(sqlite3.connect(self.folder / "iterable_ledger.sqlite3")) as ledger, ledger:
            for table in ("users", "events", "given_events"):
                ledger.execute(f"UPDATE {table} SET accepted_at = accepted_at - 60")


@pytest.fixture
def copy(tmp_path: Path, sample: Path, iterable: StandIn) -> Copy:
    folder = tmp_path / "clone"
    folder.mkdir()
    from_root = Path(__file__).resolve().parent.parent
    for name in COPIED:
        source = from_root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return Copy(folder, iterable, f"sqlite:///{sample}")


def first_run() -> list[str]:
    """The README's list of the commands that make it."""
    _, _, after = README.partition("## The first real run\n")
    return re.findall(r"^\d\. `(.+?)`", after, re.MULTILINE)


def test_what_the_readme_says_of_your_own_data_leads_to_a_verified_first_run(copy: Copy) -> None:
    (setting_up,) = blocks("sh")
    assert copy.run(setting_up).returncode == 0
    (lines,) = blocks("ini")
    with (copy.folder / ".env").open("a") as file:
        file.writelines(line for line in lines.splitlines(keepends=True) if not line.startswith(("ITER", "DATA")))
    commands = first_run()
    assert len(commands) == 6
    for command in commands:
        done = copy.run(command)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert len(copy.stand_in.project.users) == 12
    assert len(copy.stand_in.project.events) == 36


@pytest.mark.parametrize("chapter", CHAPTERS_WITH_COMMANDS, ids=lambda chapter: str(chapter.name))
def test_the_commands_of_a_chapter_run_one_after_the_other(copy: Copy, chapter: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if chapter.name == "rehearsing.md":
        _send_what_the_chapter_changes(copy.stand_in)
    if chapter.name in ("verify.md", "privacy.md"):
        assert copy.run(".venv/bin/python main.py").returncode == 0
    for block in blocks("bash", chapter.read_text(encoding="utf-8")):
        done = copy.run(re.sub(r"(--(?:only|explain|forget)) ada@example\.com", rf"\1 {SAMPLE_PERSON}", block))
        assert (done.returncode, done.stderr) == (0, ""), block


def _send_what_the_chapter_changes(stand_in: StandIn) -> None:
    client = IterableClient(SANDBOX_KEY, base_url=stand_in.url)
    client.update_user("ada@example.com", {"plan_type": "free"})
    client.track_event("ada@example.com", "page_view", {"page": "home"}, event_id="pv-1")


def test_commands_stand_in_blocks_of_bash_or_sh() -> None:
    kinds = {kind for page in PAGES for kind in re.findall(r"^```(\w+)$", page.read_text("utf-8"), re.MULTILINE)}
    assert kinds <= {"bash", "sh", "text", "ini", "json", "sql", "yaml", "python"}


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: str(page.name))
def test_what_is_not_run_needs_more_than_a_test_has(page: Path) -> None:
    assert [block for block in blocks("sh", page.read_text(encoding="utf-8")) if not NOT_RUN.search(block)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_commands_options_and_settings_in_the_text_exist(page: Path) -> None:
    parser = make_parser()
    in_text = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.M))
    for code in in_text:
        for option in re.findall(r"(?<!\S)--[a-z-]+", code):
            assert option in known_options(parser) | OF_OTHER_PROGRAMS, code
        command = re.fullmatch(r"(?:\.venv/bin/python )?main\.py (--.+)", code)
        if command and command[1] != "--help":
            assert parser.parse_args(command[1].split())
        if name := re.fullmatch(r"([A-Z]+(?:_[A-Z]+)+)(?:=.*)?", code):
            assert name[1] in {*SETTINGS, *SECRET_FILES, *OTHER_VARIABLES}, code
    for line in "".join(blocks("ini", page.read_text(encoding="utf-8"))).splitlines():
        if name := re.match(r"([A-Z_]+)=", line):
            assert name[1] in {*SETTINGS, *SECRET_FILES, *OTHER_VARIABLES}, line


def known_options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}
