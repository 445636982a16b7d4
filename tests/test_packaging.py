"""What is installed: `pip install .`, the requirements and their lock, and what main.py says where they are missing."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from iterable import __version__
from main import ExitCode
from pipeline.launch import OLDEST, PACKAGES, SETTINGS, commands
from tests.program import ROOT

REQUIREMENTS = [
    Requirement(line)
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
LOCK = (ROOT / "requirements.lock").read_text()
STRANGER = """
from iterable_client import IterableClient, failed_in

client = IterableClient("key")
ok, answer = client.bulk_update_users([{"email": "ann@example.com", "dataFields": {"plan": "pro"}}])
reveal_type(client)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


# pip install . --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the checkout was installed."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    backend = run(*pip, "install", "--target", folder / "backend", "hatchling", cwd=folder)
    if backend.returncode:
        pytest.skip("without the network, there is nothing to build with")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    install = (*pip, "--python", python, "install", "--no-build-isolation", ROOT)
    done = run(*install, cwd=folder, PYTHONPATH=str(folder / "backend"))
    assert done.returncode == 0, done.stderr
    return python


def test_the_client_is_installed_and_nothing_else(installed: Path, tmp_path: Path) -> None:
    show = "import iterable_client, sysconfig; print(iterable_client.__file__); print(sysconfig.get_path('purelib'))"
    done = run(installed, "-I", "-c", show, cwd=tmp_path)
    assert done.stderr == ""
    module, site_packages = map(Path, done.stdout.splitlines())
    assert module == site_packages / "iterable_client" / "__init__.py"
    record = (site_packages / f"iterable_integration-{__version__}.dist-info" / "RECORD").read_text()
    assert {line.split("/")[0] for line in record.splitlines()} == {
        "iterable",
        "iterable_client",
        f"iterable_integration-{__version__}.dist-info",
    }


def test_a_stranger_s_script_is_checked_against_the_client_s_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(STRANGER)
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed, "--cache-dir", tmp_path / "c")
    done = run(*mypy, "script.py", cwd=tmp_path)
    assert done.stdout.splitlines() == [
        'script.py:6: note: Revealed type is "iterable_client.IterableClient"',
        "Success: no issues found in 1 source file",
    ]


def test_building_leaves_nothing_in_the_checkout(installed: Path) -> None:
    assert installed.exists()
    assert [path.name for name in ("build", "dist", "*.egg-info") for path in ROOT.glob(name)] == []


def test_the_client_requires_what_the_program_requires() -> None:
    """Read as text: Python 3.10 has no TOML in its library."""
    (line,) = re.findall(r"^dependencies = (\[.*\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert ast.literal_eval(line) == [
        str(requirement) for requirement in REQUIREMENTS if requirement.name in ("requests", "urllib3", "PyJWT")
    ]


# The lock -------------------------------------------------------------------------------------------------------------


def pinned() -> list[Requirement]:
    return [Requirement(line.removesuffix(" \\")) for line in LOCK.splitlines() if re.match(r"\w", line)]


def test_the_lock_holds_every_requirement_in_a_version_that_is_allowed() -> None:
    pins = pinned()
    for requirement in REQUIREMENTS:
        versions = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == requirement.name.lower()]
        assert versions
        assert all(version in requirement.specifier for version in versions)


def test_the_lock_is_hashes_and_pins_and_names_no_host_or_folder() -> None:
    assert [str(pin) for pin in pinned() if not str(pin.specifier).startswith("==")] == []
    blocks = re.split(r"^(?=\w)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pinned())
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert re.findall(r"^\s*--(?!hash).*|\S*:/\S*", LOCK, re.MULTILINE) == []


# main.py, where a package or a newer Python is missing ----------------------------------------------------------------


def test_every_requirement_is_looked_for() -> None:
    distributions = packages_distributions()
    names = [distributions[package][0].lower() for package in PACKAGES]
    assert names == [requirement.name.lower() for requirement in REQUIREMENTS]


def test_without_the_packages_one_sentence_says_what_to_run(tmp_path: Path) -> None:
    done = run(sys.executable, "-S", ROOT / "main.py", "--sandbox", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        ExitCode.SETTINGS,
        "",
        f"{sys.executable} lacks requests, urllib3, jwt, dotenv, sqlalchemy, tqdm, sqlglot, tzdata, pythonjsonlogger; "
        f"run: cd {shlex.quote(str(ROOT))} && python3 -m venv .venv && .venv/bin/pip install -r "
        "requirements.txt; then start .venv/bin/python main.py\n",
    )


def test_on_windows_the_commands_are_those_of_windows() -> None:
    assert commands("3.10", " --clear", "nt") == (
        f'run: cd "{ROOT}" && py -3.10 -m venv --clear .venv && .venv\\Scripts\\pip install -r requirements.txt; '
        "then start .venv\\Scripts\\python main.py"
    )


def test_the_package_jwt_in_the_place_of_pyjwt_is_named(tmp_path: Path) -> None:
    (tmp_path / "jwt").mkdir()
    (tmp_path / "jwt" / "__init__.py").write_text("from .jwt import JWT\n")
    done = run(sys.executable, ROOT / "main.py", "--sandbox", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    python = shlex.quote(sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (
        ExitCode.SETTINGS,
        "",
        f"{sys.executable} has the package jwt in the place of PyJWT; run: {python} -m pip uninstall -y jwt PyJWT && "
        f"{python} -m pip install -r {shlex.quote(str(ROOT / 'requirements.txt'))}\n",
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python has -P since 3.11")
def test_main_finds_its_modules_where_python_does_not_look_beside_it(tmp_path: Path) -> None:
    done = run(
        sys.executable, ROOT / "main.py", "--sandbox", cwd=tmp_path, PYTHONSAFEPATH="1", OUTPUT_DIR=str(tmp_path)
    )
    assert (done.returncode, done.stderr) == (ExitCode.SUCCESS, "")


def test_the_exit_code_is_that_of_settings() -> None:
    assert SETTINGS == ExitCode.SETTINGS


@pytest.mark.parametrize("name", ["main.py", "pipeline/launch.py"])
def test_what_runs_before_the_check_parses_on_an_old_python(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(), feature_version=(3, 6))
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert futures == []


def old_pythons() -> list[str]:
    names = [f"python3.{minor}" for minor in range(6, OLDEST[1])]
    found = [shutil.which(name) for name in names]
    of_pyenv = [str(path) for name in names for path in Path.home().glob(f".pyenv/versions/*/bin/{name}")]
    return [python for python in [*found, *of_pyenv] if python and not run(python, "-c", "", cwd=ROOT).returncode]


def test_an_old_python_says_so(tmp_path: Path) -> None:
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.10 here")
    for python in pythons:
        version = run(python, "-c", "import platform; print(platform.python_version())", cwd=tmp_path).stdout.strip()
        done = run(python, ROOT / "main.py", "--sandbox", cwd=tmp_path, PYTHONDONTWRITEBYTECODE="1")
        assert (done.returncode, done.stdout, done.stderr) == (
            ExitCode.SETTINGS,
            "",
            f"Python 3.10 or newer is needed, and this is {version}; run: cd {shlex.quote(str(ROOT))} && "
            "python3.10 -m venv --clear .venv && .venv/bin/pip install -r requirements.txt; "
            "then start .venv/bin/python main.py\n",
        )


# git ------------------------------------------------------------------------------------------------------------------


def test_git_ignores_what_runs_and_builds_leave(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    run("git", "init", "--quiet", cwd=tmp_path)
    left = [
        ".query_results_20260113_143122.csv.0a1b2c3d.tmp",
        ".integration_results_20260113_143122.json.0a1b2c3d.tmp",
        ".rejected_rows_20260113_143122.csv.0a1b2c3d.tmp",
        "iterable_ledger.sqlite3",
        "iterable_ledger.sqlite3-wal",
        "iterable_ledger-lock",
        "build/lib/iterable_client.py",
        "dist/iterable_integration-1.2.0.tar.gz",
        "iterable_integration.egg-info/PKG-INFO",
    ]
    assert run("git", "check-ignore", *left, cwd=tmp_path).stdout.splitlines() == left
