"""Runs of a script that load the program once for all: loading it takes longer than most of them.

A process that has loaded the program forks one for each run, which finds everything as at a start of Python: its
arguments, environment, streams, folder and `__main__`. This module imports nothing of the program itself, so that a run
finds no more of it loaded than `main` loads.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


class Loaded:
    """A process that has loaded the program. It ends when nobody can write to it any more."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.loaded import serve; serve()"],
            cwd=Path(__file__).parent.parent,
            env={"PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: list[str], environment: dict[str, str], folder: Path, streams: list[Path]) -> int:
        """The exit code of this script with these arguments. streams: the files for its stdin, stdout and stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        run = [command, environment, str(folder), [str(each) for each in streams]]
        print(json.dumps(run), file=self._process.stdin, flush=True)
        has_ended, _, _ = select.select([self._process.stdout], [], [], 60)
        assert has_ended, "the run did not end"
        return int(self._process.stdout.readline())


_idle: list[Loaded] = []


def run_loaded(command: list[str], environment: dict[str, str], folder: Path, streams: list[Path]) -> int:
    """`Loaded.run`, for any thread: as many at once as there are threads."""
    loaded = _idle.pop() if _idle else Loaded()
    code = loaded.run(command, environment, folder, streams)
    _idle.append(loaded)
    return code


# In that process ------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Forks a run for each line of the input, and says with which code it ended, as subprocess does.

    One whose environment has KILLED_AFTER_S is killed then, if it still runs.
    """
    import main  # noqa: F401

    for line in sys.stdin:
        command, environment, *rest = json.loads(line)
        killed_after_s = float(environment.pop("KILLED_AFTER_S", 0))
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            run_here(command, environment, *rest)
            return
        signal.signal(signal.SIGALRM, lambda *_: kill(child))  # noqa: B023
        signal.setitimer(signal.ITIMER_REAL, killed_after_s)
        _, status = os.waitpid(child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def kill(child: int) -> None:
    with suppress(ProcessLookupError):  # it has ended at this very moment
        os.kill(child, signal.SIGKILL)


def run_here(command: list[str], environment: dict[str, str], folder: str, streams: list[str]) -> None:
    for number, path in enumerate(streams):
        stream = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")
