"""A MariaDB or MySQL of the tests' own: the distribution's server, in a temporary folder, on a free port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

STARTS_WITHIN_S = 30
SERVER = next(filter(None, map(shutil.which, ("mariadbd", "/usr/sbin/mariadbd"))), None)


@contextmanager
def run_server() -> Iterator[str]:
    """The URL of an empty database on a server that runs until the block ends."""
    assert SERVER is not None
    with TemporaryDirectory(prefix="mysql-") as name:
        folder = Path(name)
        user = _hand_over(folder)
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}/data", "--skip-test-db", *user]
        command = [*install, "--auth-root-authentication-method=normal", "--innodb-use-native-aio=0"]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": name}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        port = _free_port()
        options = [f"--datadir={folder}/data", f"--socket={folder}/socket", f"--pid-file={folder}/pid", *user]
        options += [
            f"--port={port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=32M",
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [SERVER, "--no-defaults", *options], env={**os.environ, "TMPDIR": name}, stdout=log, stderr=log
            )
        try:
            _wait_for(port, server)
            yield f"mysql+pymysql://root@127.0.0.1:{port}/test"
        finally:
            server.terminate()
            server.wait(STARTS_WITHIN_S)


def _hand_over(folder: Path) -> list[str]:
    """The server does not run as root."""
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "mysql")
    return ["--user=mysql"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    engine = create_engine(f"mysql+pymysql://root@127.0.0.1:{port}/")
    deadline = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(DBAPIError), engine.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE IF NOT EXISTS test")
            engine.dispose()
            return
        time.sleep(0.05)
    raise RuntimeError("MariaDB does not start")
