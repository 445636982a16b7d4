"""main.py as the user `nobody`, started by root, with the arguments that it is given.

A run in the sandbox comes first, so that all modules are loaded while Python's own folder can be read.
"""

from __future__ import annotations

import sys

sys.path[0] = sys.path[0].rpartition("/")[0]  # the folder of main.py; tests/ has an `inspect` of its own

import os
import pwd
from importlib import import_module
from tempfile import TemporaryDirectory

import main


def become_nobody() -> None:
    user = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


if __name__ == "__main__":
    output_dir = os.environ["OUTPUT_DIR"]
    with TemporaryDirectory() as folder:
        os.environ["OUTPUT_DIR"] = folder
        for look in ([], ["--check"]):
            main.main(["--sandbox", "--quiet", *look])
    for name in ("explain", "history", "verify"):
        import_module(f"pipeline.inspect.{name}")
    os.environ["OUTPUT_DIR"] = output_dir
    become_nobody()
    sys.exit(main.main(sys.argv[1:]))
