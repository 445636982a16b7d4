"""`python -m pipeline.sandbox`."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys

import pytest
import requests

from pipeline.sandbox import SANDBOX_KEY
from tests.program import ROOT
from tests.sandbox.rehearsal import ADA, FORGOTTEN_USER_IDS, TRACK, Rehearsal, bearer, event


def start_command(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.sandbox", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_introduction(process: subprocess.Popen[str]) -> list[str]:
    """The lines of the introduction, which end with how to stop it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.startswith("To stop it"):
            break
    return lines


def read_settings(introduction: list[str]) -> dict[str, str]:
    """The lines to put into .env."""
    assignments = (line.partition("=") for line in introduction)
    return {name: value for name, equals, value in assignments if equals and name.replace("_", "").isupper()}


def run_curl(command: str) -> requests.Response:
    """What `curl URL`, `curl URL -d BODY` and `curl URL -X METHOD` send."""
    _, url, *options = shlex.split(command)
    option, value = options or ["-X", "GET"]
    method, body = ("POST", value) if option == "-d" else (value, None)
    return requests.request(method, url, data=body, timeout=5)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_command_serves_with_the_settings_it_prints_and_ends_on_a_signal(name: signal.Signals) -> None:
    with start_command("--port", "0", "--jwt", "--unknown-users", "accept", "--count-only", "--no-limits") as process:
        settings = read_settings(read_introduction(process))
        headers = bearer(ADA, settings.pop("ITERABLE_JWT_SECRET"))
        headers["Api-Key"] = settings.pop("ITERABLE_API_KEY")
        url = settings.pop("ITERABLE_BASE_URL")
        response = requests.post(url + TRACK, json=event(), headers=headers, timeout=5)
        kept = requests.get(url + "/sandbox/events", timeout=5).json()
        process.send_signal(name)
        out, err = process.communicate(timeout=5)
    assert settings == {"USE_JWT_AUTH": "true"}
    assert (response.status_code, kept) == (200, {"pv-1": {}})
    assert (process.returncode, err) == (0, "")
    assert "0 users and 1 events" in out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_commands_of_the_introduction_do_what_they_say() -> None:
    with start_command("--port", "0", "--project-type", "email", "--no-limits") as process:
        introduction = read_introduction(process)
        commands = [line for line in introduction if line.startswith("curl ")]
        url, headers = read_settings(introduction)["ITERABLE_BASE_URL"], {"Api-Key": SANDBOX_KEY}
        answers = [run_curl(command).json() for command in commands]
        tracked = requests.post(url + TRACK, json=event(), headers=headers, timeout=5).json()
        user_ids = requests.get(url + FORGOTTEN_USER_IDS, headers=headers, timeout=5)
        process.terminate()
        process.communicate(timeout=5)
    ada = {**ADA, "userId": None, "dataFields": {"plan_type": "pro"}}
    assert answers[1:] == [
        {},
        {"created": [], "moved": [], "people": {}},
        {"faults": 1},
        {"faults": 0},
        {"ada@example.com": ada},
        {"deleted": "ada@example.com"},
        {
            **{"id": 1, "name": "Welcome", "enabled": True, "isArchived": False, "journeyType": "Published"},
            "triggerEventNames": ["page_view"],
        },
        {"dropped_fields": ["plan_type"]},
        {"blocked_events": ["page_view"]},
        {"forgotten": ["ada@example.com"]},
    ]
    assert tracked["code"] == "ForgottenUserError"
    assert user_ids.status_code == 400  # as in an email-based project


def test_commands_of_the_chapter_on_rehearsing_work(iterable: Rehearsal) -> None:
    iterable.know("ada@example.com")
    iterable.answer(TRACK, event())
    chapter = (ROOT / "docs" / "rehearsing.md").read_text()
    commands = [line.strip().replace("http://127.0.0.1:8080", iterable.stand_in.url) for line in chapter.splitlines()]
    answers = [run_curl(each) for each in commands if each.startswith("curl ")]
    assert [each.status_code for each in answers] == [200] * 8


@pytest.mark.parametrize("impossible", [None, "65536"])
def test_command_with_a_port_in_use_or_impossible_says_so_and_ends_with_1(impossible: str | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = impossible or str(taken.getsockname()[1])
        with start_command("--port", port) as process:
            out, err = process.communicate(timeout=5)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"Port {port} of 127.0.0.1 can't be used")
    assert err.count("\n") == 1
