"""Whose file stands in the way: a run that was started as root once leaves files that the service's user can't open."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

OUR_FILES = "iterable_*"  # those that every run opens: the ledger, its lock, and the log


def owner_hint(path: Path) -> str:
    """The end of a sentence: `: it belongs to root, and this run is user-events; run: sudo chown ...`; or a full stop
    if the owner is not the cause. For a file that is not there, its folder is meant."""
    if os.name != "posix":
        return "."
    try:
        found = path if os.path.lexists(path) else path.parent
        owner = found.lstat().st_uid
    except OSError:
        return "."
    if owner == os.geteuid():
        return "."
    us, folder = _name_of(os.geteuid()), shlex.quote(str(path.parent))
    what, target = ("it", f"{folder}/{OUR_FILES}") if found == path else (str(found), folder)
    return f": {what} belongs to {_name_of(owner)}, and this run is {us}; run: sudo chown {us} {target}"


def _name_of(user_id: int) -> str:
    import pwd  # which Windows lacks

    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:  # as in a container that runs under any number
        return str(user_id)
