"""What main.py looks at before it imports the rest. Parses on Python 3.6 too, to be able to say that it is too old."""

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 10)
# requirements.txt, by what is imported.
PACKAGES = ("requests", "urllib3", "jwt", "dotenv", "sqlalchemy", "tqdm", "sqlglot", "tzdata", "pythonjsonlogger")
FOLDER = Path(__file__).resolve().parent.parent  # of main.py
SETTINGS = 78  # ExitCode.SETTINGS, whose module an old Python can't import


def require_python_and_packages() -> None:
    """Ends the process with the commands to run if this Python is too old or lacks a package."""
    problem = _problem()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(SETTINGS)


def _problem() -> str:
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        return f"Python 3.10 or newer is needed, and this is {version}; {commands('3.10', ' --clear')}"
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        return f"{sys.executable} lacks {', '.join(missing)}; {commands('3')}"
    if not _is_pyjwt():
        python, requirements = _quoted(sys.executable), _quoted(str(FOLDER / "requirements.txt"))
        return (
            f"{sys.executable} has the package jwt in the place of PyJWT; run: {python} -m pip uninstall -y jwt PyJWT "
            f"&& {python} -m pip install -r {requirements}"
        )
    return ""


def _is_pyjwt() -> bool:
    """Another package on PyPI has the same name to import. PyJWT's first file names its modules."""
    spec = find_spec("jwt")
    try:
        return spec is None or spec.origin is None or "api_jwt" in Path(spec.origin).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not a file of source text
        return True


def commands(version: str, options: str = "", system: str = os.name) -> str:
    """What makes an environment with this Python and the packages. system: `os.name`."""
    is_windows = system == "nt"
    python, programs = (f"py -{version}", ".venv\\Scripts\\") if is_windows else (f"python{version}", ".venv/bin/")
    return (
        f"run: cd {_quoted(str(FOLDER), system)} && {python} -m venv{options} .venv && {programs}pip install -r "
        f"requirements.txt; then start {programs}python main.py"
    )


def _quoted(text: str, system: str = os.name) -> str:
    """As a shell of this system takes it."""
    return f'"{text}"' if system == "nt" else shlex.quote(text)
