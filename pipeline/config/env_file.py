"""The file `.env` -> texts by name. Decides nothing about what they mean; never quotes a line that it can't read."""

from __future__ import annotations

import io
import os
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream


@dataclass(frozen=True)
class EnvFile:
    """What `.env` says, and what is wrong with it."""

    path: Path
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of each text
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_env_file(path: Path, must_exist: bool) -> EnvFile:
    """Lines that can't be read are named by number and never quoted."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return EnvFile(path, problems=(f"{path} does not exist; check --env-file.",) if must_exist else ())
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} can't be read ({type(error).__name__}); it must be a text file in UTF-8."
        return EnvFile(path, problems=(problem,))
    bindings = list(parse_stream(io.StringIO(text)))
    broken = [each for each in bindings if each.error or (each.key is not None and each.value is None)]
    return EnvFile(
        path,
        texts={each.key: each.value for each in bindings if each.key is not None and each.value is not None},
        lines={each.key: _line(each) for each in bindings if each.key is not None and each.value is not None},
        problems=tuple(
            f"Line {_line(each)} of {path} can't be read; each line must be NAME=value, or begin with #."
            for each in broken
        ),
        warnings=_warn_if_others_read(path, mode),
    )


def _line(binding: Binding) -> int:
    """The parser counts the blank lines above a binding as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _warn_if_others_read(path: Path, mode: int) -> tuple[str, ...]:
    if os.name != "posix" or not stat.S_ISREG(mode) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return ()
    return (f"{path} can be read by other users of this machine; run: chmod 600 {shlex.quote(str(path))}",)
