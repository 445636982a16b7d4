"""The lock against a second run: a file of its own, so that others may read the ledger meanwhile.

The operating system frees it however the run ends. The file stays, empty, since who deletes it could let two runs in.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIES = 4  # a look at the lock, as `is_locked` takes it, is over before the next one
PAUSE_S = 0.1


class Locked(Exception):
    """Another process, or another part of this one, holds the lock."""


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock until the block ends. Raises Locked, within a second, and OSError where it can't be known."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        for left in reversed(range(TRIES)):
            if _try_lock(file, shared=False):
                break
            if not left:
                raise Locked
            time.sleep(PAUSE_S)
        yield
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock. Makes no file."""
    try:
        file = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        return not _try_lock(file, shared=True)
    except OSError:
        return False
    finally:
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int, *, shared: bool) -> bool:
        """Windows knows no shared locks here; a look excludes others for as long as it takes."""
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                return False
            raise
        return True

else:
    import fcntl

    def _try_lock(file: int, *, shared: bool) -> bool:
        """flock, not fcntl: a process loses an fcntl lock when it closes any descriptor of the file."""
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
