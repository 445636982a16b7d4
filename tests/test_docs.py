"""README, the handbook and CONTRIBUTING against the program: what they say is what it does."""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from datetime import timezone
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
from sqlalchemy import dialects
from sqlalchemy.exc import NoSuchModuleError

from main import ExitCode
from pipeline.config import SETTINGS
from pipeline.config.fields import FieldMap, FieldType
from pipeline.config.settings import SECRET_FILES
from pipeline.delivery.modes import bulk_mode, single_mode
from pipeline.model.records import Outcome
from pipeline.model.text import PIP_INSTALL
from pipeline.report.metrics import METRICS, PREFIX
from pipeline.report.results import RESULT_VERSION, Results
from pipeline.sandbox import SANDBOX_KEY, StandIn
from pipeline.transform.values import field_value
from tests.handbook import MADE, printed_help
from tests.picture import made_of, source
from tests.program import ROOT, Program, results_validator, use_query

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


CHAPTERS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *CHAPTERS]
MOST_LINES, MOST_WORDS = 130, 1200  # of the README


def chapter(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


OPERATIONS = chapter("operations")
MONITORING = chapter("monitoring")
DATABASES = chapter("databases")
TROUBLESHOOTING = chapter("troubleshooting")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def tables(heading: str, text: str) -> list[list[str]]:
    """The cells of the rows of all tables whose first column is called so."""
    lines = text.splitlines()
    rows = []
    for start in (number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")):
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            # A | within code is no border of a cell; a cell ends with a space before it.
            rows.append([cell.strip() for cell in re.split(r"(?<= )\|(?= |$)", line.strip().removeprefix("|"))[:-1]])
    return rows


@cache
def source_texts() -> tuple[str, ...]:
    """Every text in the program's own modules; what an f-string fills in is a line break here."""
    folders = (ROOT / "iterable", ROOT / "pipeline")
    paths = [
        ROOT / "main.py",
        ROOT / "iterable_client.py",
        *(path for folder in folders for path in folder.rglob("*.py")),
    ]
    texts = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, timeout=60
    )


def words(text: str) -> list[str]:
    """Line breaks are where the terminal's width and Python's version put them."""
    return text.split()


def test_the_readme_is_one_page() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.split()) <= MOST_WORDS


def test_nothing_is_left_to_be_filled_in() -> None:
    assert (
        re.findall(
            r"MEASURED_CEILING|TODO|TBD|XXX", "".join(page.read_text(encoding="utf-8") for page in PAGES) + CONTRIBUTING
        )
        == []
    )


def test_the_first_two_commands_run_the_sandbox_and_the_tests() -> None:
    first, second = blocks("bash")
    assert first.splitlines() == [
        "python3 -m venv .venv",
        ".venv/bin/pip install --quiet -r requirements.txt",
        ".venv/bin/python main.py --sandbox",
    ]
    assert second.splitlines() == [
        "python3 -m venv .venv",
        ".venv/bin/pip install --quiet -r requirements-dev.txt",
        ".venv/bin/python -m pytest",
    ]


def test_the_console_in_the_readme_is_that_of_a_sandbox_run(program: Program) -> None:
    """But for what differs from run to run: numbers of ports, stamps and durations, and the name of a folder."""
    (picture,) = (block for block in blocks("text") if block.startswith("Step 1"))
    out = program.run("--sandbox", DATABASE_URL=None).out

    def fixed(text: str) -> list[str]:
        return re.sub(r"127\.0\.0\.1:\d+|\d{8}_\d{6}|\d+\.\d s|sqlite:\S+", "*", text).splitlines()

    before, after = picture.split("  ...\n")
    shown, printed = fixed(before), fixed(out)
    assert printed[: len(shown)] == shown
    assert printed[-2:] == fixed(after)


def test_the_picture_shows_the_page_as_it_is() -> None:
    """`python -m tests.picture` makes it anew."""
    assert made_of() == source()


@pytest.mark.parametrize("path", MADE, ids=lambda path: str(path.name))
def test_what_is_made_of_the_code_is_not_stale(path: Path) -> None:
    """`python -m tests.handbook` writes it anew. Line breaks of --help are where Python's version puts them."""
    assert words(path.read_text(encoding="utf-8")) == words(MADE[path]())


def test_help_names_every_exit_code_and_the_handbook() -> None:
    printed = printed_help()
    assert re.findall(r"^ +(\d+)  \w", printed, re.MULTILINE) == [str(code.value) for code in ExitCode]
    assert "The handbook is in docs/" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_the_chapter_on_settings_names_every_setting_with_its_default() -> None:
    def plain(cell: str) -> str | None:
        return None if cell == "–" else cell.strip("`")

    shown = [(plain(name), plain(default)) for name, default, _ in tables("setting", chapter("settings"))]
    assert shown == [(name, setting.default) for name, setting in SETTINGS.items()]


def test_every_outcome_is_explained() -> None:
    assert [cell.strip("`") for cell, _ in tables("outcome", chapter("outputs"))] == [each.value for each in Outcome]


def test_every_key_of_the_results_that_is_explained_is_one() -> None:
    schema = json.loads((ROOT / "docs/results.schema.json").read_text(encoding="utf-8"))
    for cell, _ in tables("key", chapter("outputs")):
        keys = schema["properties"]
        *above, last = cell.strip("`").split(".")
        for name in above:
            keys = keys[name]["properties"]
        assert last in keys


def test_the_schema_has_the_keys_that_the_program_writes_and_its_exit_codes() -> None:
    schema = json.loads((ROOT / "docs/results.schema.json").read_text(encoding="utf-8"))
    assert schema["required"] == [each.name for each in fields(Results)]
    assert schema["properties"]["exit_code"]["enum"] == list(ExitCode)
    assert schema["properties"]["result_version"] == {"const": RESULT_VERSION}


def test_the_example_of_results_is_of_the_schema_but_for_what_it_leaves_out() -> None:
    (example,) = blocks("json", chapter("outputs"))
    errors = [
        error
        for error in results_validator().iter_errors(json.loads(example))
        if error.path or error.validator != "required"
    ]
    assert errors == []


@pytest.mark.parametrize("quoted", [re.findall("`(.*?)`", cell)[0] for cell, _ in tables("message", TROUBLESHOOTING)])
def test_every_message_in_the_table_is_one_of_the_program(quoted: str) -> None:
    """… stands for what the program fills in; all other parts are in one text of the source, in this order."""
    parts = re.compile(".*".join(re.escape(part.strip()) for part in quoted.split("…")), re.DOTALL)
    assert [text for text in source_texts() if parts.search(text)]


DRIVERS = [row for row in tables("database", DATABASES) if len(row) == 3]


@pytest.mark.parametrize("row", DRIVERS, ids=lambda row: str(row[0]))
def test_the_program_tells_to_install_the_driver_that_is_named(
    program: Program, tmp_path: Path, row: list[str]
) -> None:
    name, url, package = (cell.replace("`", "") for cell in row)
    if package == "none" or (name in ("Snowflake", "BigQuery", "Redshift") and _is_known(url)):
        pytest.skip("needs none, or is installed here")
    url = url.split(", ")[0].replace("/warehouse.duckdb", f"/{tmp_path}/warehouse.duckdb")
    duckdb.connect(str(tmp_path / "warehouse.duckdb")).close()
    for module in ("psycopg", "pymysql", "duckdb"):  # as if they were not installed
        (tmp_path / f"{module}.py").write_text("raise ModuleNotFoundError(name=__name__)")
    use_query(program, "SELECT email FROM users")
    run = program.wait_for(program.start(DATABASE_URL=url, PYTHONPATH=str(tmp_path)))
    assert run.code == 66
    assert re.fullmatch(
        rf"The database can't be (opened|reached): its driver is not installed; run: "
        rf"{re.escape(f'{PIP_INSTALL} {package}')}\n",
        run.err,
    )


def _is_known(url: str) -> bool:
    try:
        dialects.registry.load(url.partition(":")[0].replace("+", "."))
    except NoSuchModuleError:
        return False
    return True


@pytest.mark.parametrize("example", blocks("python", chapter("client")))
def test_the_python_examples_run(example: str, iterable: StandIn) -> None:
    done = run(sys.executable, "-c", example, ITERABLE_API_KEY=SANDBOX_KEY, ITERABLE_BASE_URL=iterable.url)
    assert (done.stdout, done.stderr, done.returncode) == ("delivered\n", "", 0)
    assert iterable.project.users["ada@example.com"]["dataFields"] == {"plan_type": "pro"}
    assert list(iterable.project.events) == ["view-17"]


def test_there_is_a_python_example() -> None:
    assert len(blocks("python", chapter("client"))) == 1


@pytest.mark.skipif(os.name != "posix", reason="crontab lines are for sh")
@pytest.mark.parametrize(
    ("code", "printed", "mailed"), [(0, "", ""), (75, "down", ""), (77, "key", "key\n"), (0, "warning", "warning\n")]
)
def test_the_crontab_line_mails_what_it_should(tmp_path: Path, code: int, printed: str, mailed: str) -> None:
    (line,) = (block for block in blocks("text", OPERATIONS) if block.startswith("*/15"))
    command = line.strip().split(" ", 5)[5]
    program = re.findall(r"/opt/\S+ /opt/\S+", command)[0]
    stand_in = tmp_path / "job"
    stand_in.write_text(f'#!/bin/sh\n[ -z "{printed}" ] || echo "{printed}" >&2\nexit {code}\n')
    stand_in.chmod(0o755)
    assert "%" not in command  # cron would take it for a line break
    done = run("/bin/sh", "-c", command.replace(program, str(stand_in)))
    assert (done.stdout, done.stderr) == (mailed, "")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.name))
def test_files_that_are_named_exist(page: Path) -> None:
    made_by_runs = re.compile(
        r"(query_results|integration_results|rejected_rows|iterable_integration|iterable_ledger|queries/)"
    )
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]*\.(?:py|sql|txt|md|toml|example)|(?:[\w.-]+/)+(?:run)?)`", text))
    missing = [name for name in named if not made_by_runs.match(name) and not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_a_page_has_no_long_lines_and_its_links_lead_somewhere(page: Path) -> None:
    """Lines of tables, for cron, and of the program's own help may be long."""
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 120 and line[:1] not in ("|", "*")] == []
    linked = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [path for path, _, _ in linked if path and not (page.parent / path).exists()] == []
    for path, _, anchor in linked:
        assert not anchor or anchor in anchors(page.parent / path if path else page), anchor


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: str(chapter.name))
def test_a_chapter_is_in_the_contents_and_in_the_readme_and_says_what_it_answers(chapter: Path) -> None:
    if chapter.name == "README.md":
        return
    assert f"]({chapter.name})" in (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert f"](docs/{chapter.name})" in README
    title, blank, first = chapter.read_text(encoding="utf-8").splitlines()[:3]
    assert (title[:2], blank) == ("# ", "")
    assert first[:1].isalpha()


def anchors(document: Path) -> set[str]:
    """Where a link may point to: each heading, in lower case and with hyphens."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_chapters_on_operations_and_monitoring_have_every_exit_code_secret_and_metric() -> None:
    codes = [int(code) for cell, *_ in tables("code", OPERATIONS) for code in cell.split(",")]
    assert codes == list(ExitCode)
    assert sorted(cell.strip("`") for cell, _ in tables("setting", OPERATIONS)) == sorted(SECRET_FILES)
    named = [re.sub(r"\{.*", "", cell.strip("`")) for cell, _ in tables("metric", MONITORING)]
    assert named == [f"{PREFIX}_{name}" for name in METRICS]


def test_which_file_to_open_is_said_for_twenty_usual_changes_and_the_files_exist() -> None:
    _, _, after = CONTRIBUTING.partition("| a change to … | file |\n|---|---|\n")
    rows = [line.strip("|").rsplit("|", 1) for line in after.partition("\n\n")[0].splitlines()]
    files = {change.strip(): re.findall("`(.*?)`", cell) for change, cell in rows}
    assert len(files) >= 20
    assert [change for change, named in files.items() if not named] == []
    assert [name for named in files.values() for name in named if not (ROOT / name).is_file()] == []


def test_every_module_is_in_the_reading_order() -> None:
    modules = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "pipeline").rglob("*.py"))]
    modules = [each for each in modules if not re.search(r"/__|/(sandbox|source)/", each)]
    modules += ["pipeline/sandbox/", "pipeline/source/"]
    assert [module for module in [*modules, "main.py", "iterable_client.py"] if f"`{module}`" not in CONTRIBUTING] == []


def test_the_number_of_workers_that_is_documented_is_that_of_each_mode() -> None:
    said = f"Empty: {bulk_mode(None).workers} in bulk requests, {single_mode(None).workers} in single ones."
    assert SETTINGS["MAX_WORKERS"].about.endswith(said)


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_the_casts_of_messy_values_give_what_the_chapter_says(name: str) -> None:
    casts = [re.findall("`([A-Z][^`]*)`", cell)[0] for _, cell in tables("in the database", chapter("query"))[:3]]
    connect = sqlite3.connect if name == "sqlite" else duckdb.connect
    with closing(connect(":memory:")) as database:

        def value(cast: str, text: str, kind: FieldType | None = None) -> Any:
            (found,) = database.execute(f"SELECT {cast} FROM (SELECT '{text}' AS x) AS t").fetchone() or ()
            return field_value(found, FieldMap("x", "x", kind), timezone.utc)

        null, money, yes_or_no = casts
        assert [value(null, text) for text in ("", "a")] == [None, "a"]
        assert [value(money, text) for text in ("37,09", "12,50")] == [37.09, 12.5]
        assert [value(yes_or_no, text, FieldType.BOOLEAN) for text in "YN?"] == [True, False, None]
