"""The file `.env` -> texts by name. Decides nothing about what they mean; never quotes a line that it can't read.

A value in quotes is what stands between them. In others, a # after a space begins a comment, or belongs to the value.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream

_COMMENT_ALONE = re.compile(r"[^=]*=[^\S\r\n]+#")


@dataclass(frozen=True)
class EnvFile:
    """What `.env` says, and what is wrong with it. can_be_read: False: what it sets is not known."""

    path: Path
    texts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of each text
    with_comments: dict[str, str] = field(default_factory=dict)  # of each text that may go on: all of it
    can_be_read: bool = True
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_env_file(path: Path, must_exist: bool) -> EnvFile:
    """Lines that can't be read are named by number and never quoted."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        mode = path.stat().st_mode
    except FileNotFoundError:
        return EnvFile(path, problems=(f"{path} does not exist; check --env-file.",) if must_exist else ())
    except PermissionError as error:
        problem = f"{path} can't be read ({error.strerror}); let the user of the job read it."
        return EnvFile(path, problems=(problem,), can_be_read=False)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path} can't be read ({type(error).__name__}); it must be a text file in UTF-8."
        return EnvFile(path, problems=(problem,), can_be_read=False)
    bindings = list(parse_stream(io.StringIO(text)))
    values = {each.key: each for each in bindings if each.key is not None and each.value is not None}
    broken = [each for each in bindings if each.error or (each.key is not None and each.value is None)]
    return EnvFile(
        path,
        texts={name: _text(each) for name, each in values.items()},
        lines={name: _line(each) for name, each in values.items()},
        with_comments={name: whole for name, each in values.items() if (whole := _whole(each)) != _text(each)},
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


def _text(binding: Binding) -> str:
    """The value. Before python-dotenv 1.2.4, the parser took a comment for it that stands alone after a space."""
    return "" if _COMMENT_ALONE.match(binding.original.string) else binding.value or ""


def _whole(binding: Binding) -> str:
    """The value with what the parser takes for a comment after it; in quotes, the value alone."""
    text = binding.original.string.partition("=")[2].strip()
    return (binding.value or "") if text[:1] in ("'", '"') else text


def _warn_if_others_read(path: Path, mode: int) -> tuple[str, ...]:
    if os.name != "posix" or not stat.S_ISREG(mode) or not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return ()
    return (f"{path} can be read by other users of this machine; run: chmod 600 {shlex.quote(str(path))}",)
