"""`--report`: what is on the page in each state of a folder, and what never is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from main import main
from pipeline.inspect.page_account import MOST_REASONS
from pipeline.inspect.page_charts import compact, count_ticks, duration_ticks, took
from pipeline.ledger.ledger import LEDGER_NAME, Project, RunResult, open_ledger
from pipeline.model.exits import ExitCode
from pipeline.sandbox import Fault, StandIn
from tests.program import ROOT, Program, make_table, use_query, wait_until

KEY = "0123456789abcdef0123456789abcdef"
BASE_URL = "https://api.iterable.com"
DAY_S = 86_400
VOID = {"meta", "link", "br", "img"}
OUTCOMES = ("delivered", "unchanged", "rejected", "unacknowledged", "not_attempted")

Report = Callable[..., "Seen"]


# Reading a page -------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """A page as its reader has it: elements, and by the heading above them text and tables. Refuses open elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.sections = {heading: " ".join(" ".join(texts).split()) for heading, texts in self._texts.items()}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag == "tr":
            self.tables.setdefault(self.headings[-1], []).append([])
        if tag in ("td", "th"):
            self.tables[self.headings[-1]][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        if {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data
        elif self.headings:
            self._texts.setdefault(self.headings[-1], []).append(data)
        if {"td", "th"} & set(self._open):
            row = self.tables[self.headings[-1]][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())

    def column(self, heading: str, number: int = 0) -> list[str]:
        return [row[number] for row in self.tables[heading]]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def report(out: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """`main.py --report` in this process, with a folder of its own; returns the page."""
    env_file = out.parent / "settings.env"
    monkeypatch.setenv("TZ", "UTC")
    if hasattr(time, "tzset"):
        time.tzset()

    def run(*arguments: str, code: ExitCode = ExitCode.SUCCESS, **settings: str) -> Seen:
        chosen = {"ITERABLE_API_KEY": KEY, "DATABASE_URL": "sqlite:///users.db", "OUTPUT_DIR": str(out), **settings}
        env_file.write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
        env_file.chmod(0o600)
        assert main(["--report", "--env-file", str(env_file), *arguments]) == code
        return Seen((out / "report.html").read_text(encoding="utf-8"))

    return run


def counted(**numbers: int) -> dict[str, int]:
    return {**dict.fromkeys(OUTCOMES, 0), **numbers}


def ended(code: int = 0, *, status: str = "success", users: int = 0, **more: Any) -> RunResult:
    counts = {"users": counted(delivered=users), "events": counted(), **more}
    return RunResult(status, code, "Ann Delgado", **{"duration_s": 2.0, "rows": users, **counts})


def leave(out: Path, *runs: tuple[float, RunResult | None], project: Project | None = None) -> None:
    """Runs that began at these times, Unix seconds."""
    for started_at, result in runs:
        with open_ledger(out, project or Project(BASE_URL, KEY), now=started_at) as ledger:
            ledger.begin_run(f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime(started_at))}", started_at, "people.sql")
            if result is not None:
                ledger.end_run(result)


# The whole program ----------------------------------------------------------------------------------------------------


def test_page_of_real_runs(program: Program, iterable: StandIn, sample: Path) -> None:
    """A run, a dry run after it, and a verification."""
    program.settings["ITERABLE_PROJECT"] = "shop"
    iterable.project.add_journey("<Welcome>", ["page_view"], lifetimeLimit=1)
    assert program.run().code == 0
    assert program.run("--dry-run", "--full").code == 65
    assert program.run("--verify").code == 0
    before = {path.name: path.read_bytes() for path in program.folder.iterdir() if path.name != "report.html"}
    run = program.run("--report")
    path = program.folder / "report.html"
    assert (run.code, run.out, run.err) == (0, f"Wrote {path}.\n", "")
    assert path.stat().st_mode & 0o777 == 0o600
    assert {path.name: path.read_bytes() for path in program.folder.iterdir() if path.name != "report.html"} == before
    page = Seen(path.read_text(encoding="utf-8"))
    assert page.headings == [
        "User events to Iterable: shop",
        "Last run",
        "What became of the records",
        "Why records were not delivered",
        "The last 90 days",
        *("Users delivered", "Events delivered", "Records rejected", "Duration of runs", "Runs by how they ended"),
        *("Rows read", "Verification", "Journeys", "Disk", "The numbers of the charts, by day"),
    ]
    assert page.tables["What became of the records"] == [
        ["Outcome", "Users", "Events"],
        ["delivered", "12", "36"],
        *([name, "0", "0"] for name in ("unchanged", "rejected", "unacknowledged", "not attempted")),
        ["all", "12", "36"],
    ]
    assert "user_events.sql, began " in page.sections["Last run"]
    assert "exit code 0: every record was delivered" in page.sections["Last run"]
    assert "it would send 12 users and 36 events, and reject 0 records" in page.sections["Last run"]
    assert page.sections["Why records were not delivered"] == "No record was left behind."
    assert "Nothing differs among 12 users and 36 events compared" in page.sections["Verification"]
    assert page.tables["Journeys"] == [
        ["Journey", "Event", "Events", "People"],
        ["<Welcome> any number at a time, 1 in a lifetime", "page_view", "36", "11"],
    ]
    (day,) = page.tables["The numbers of the charts, by day"][1:]
    assert [*day[1:5], *day[7:]] == ["12", "36", "0", "0", "1", "0", "0", "37"]
    assert page.column("Disk")[1:] == [
        *("Rows of queries (CSV)", "Results of runs (JSON)", "Previews of dry runs", "Verification reports", "Logs"),
        *("Ledger", "all"),
    ]
    assert str(program.folder) not in page.html
    assert "KEEP_DAYS is 0, so nothing is ever deleted. With 30, the next run would delete 0 files" in page.html


def test_without_its_packages_it_is_78_and_names_the_file(program: Program, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise ModuleNotFoundError(\"No module named 'jinja2'\", name='jinja2')")
    run = program.wait_for(program.start("--report", PYTHONPATH=str(tmp_path)))
    assert (run.code, run.out, run.err) == (
        ExitCode.SETTINGS,
        "",
        "--report needs Jinja2 and matplotlib (No module named 'jinja2'); "
        f"run: {shlex.quote(sys.executable)} -m pip install -r "
        f"{shlex.quote(str(ROOT / 'requirements-report.txt'))}\n",
    )
    assert not (program.folder / "report.html").exists()


def test_nothing_else_loads_what_makes_the_page() -> None:
    code = "import main, sys, pipeline.inspect.page; print({'jinja2', 'matplotlib', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_it_goes_with_no_sandbox(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report("--sandbox")
    assert "--sandbox keeps none" in capsys.readouterr().err


# The states of a folder -----------------------------------------------------------------------------------------------


def test_before_the_first_run(report: Report) -> None:
    page = report()
    assert "No run of this project has left anything here yet." in page.sections["Last run"]
    assert page.sections["The last 90 days"].startswith("No run is in the ledger for these days.")
    assert "was not compared with the database yet" in page.sections["Verification"]
    assert page.tables == {}
    assert page.sections["Journeys"].startswith("Not known, as there is no dry run.")


def test_what_the_brake_has_stopped_is_not_promised_to_the_next_run(program: Program, sample: Path) -> None:
    assert program.run(MAX_CHANGES="1").code == 65
    assert program.run("--report").code == 0
    reasons = Seen((program.folder / "report.html").read_text(encoding="utf-8")).column(
        "Why records were not delivered"
    )
    assert (
        "no code choose one of the ways to go on; until then, each run stops here (main.py --history 1 names them)"
        in reasons
    )


def test_only_dry_runs(program: Program, sample: Path) -> None:
    assert program.run("--dry-run").code == 0
    page = page_of(program)
    assert "Last dry run" in page.headings
    assert "no real run is known Dry run nothing was sent" in page.sections["Last dry run"]
    assert ["would be sent", "12", "36"] in page.tables["What became of the records"]
    assert page.sections["The last 90 days"].startswith("No run is in the ledger")
    assert "No journey listens to its events." in page.sections["Journeys"]


def test_while_a_run_is_active_the_one_before_it_is_shown(out: Path, report: Report) -> None:
    now = time.time()
    leave(out, (now - 60, ended(users=3)))
    with open_ledger(out, Project(BASE_URL, KEY), now=now) as ledger:
        ledger.begin_run("20260113_143122", now, "people.sql")
        page = report()
    assert "A run is active since" in page.sections["User events to Iterable: api.iterable.com"]
    assert ["delivered", "3", "0"] in page.tables["What became of the records"]
    assert "Not known: the results file" in page.sections["Why records were not delivered"]


def test_real_run_is_active_and_is_not_disturbed(program: Program, iterable: StandIn, sample: Path) -> None:
    assert program.run("--limit", "3").code == 0
    iterable.inject(Fault(path="/api/events/track", latency_s=30))
    process = program.start()
    try:
        wait_until(lambda: len(iterable.project.users) == 12)
        page = page_of(program)
        assert "A run is active since" in page.sections[page.headings[0]]
        assert page.sections["Last run"].startswith("user_events.sql, began ")
        assert ["delivered", "1", "3"] in page.tables["What became of the records"]
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_first_run_is_active(out: Path, report: Report) -> None:
    with open_ledger(out, Project(BASE_URL, KEY), now=time.time()) as ledger:
        ledger.begin_run("20260113_143122", time.time(), "people.sql")
        page = report()
    assert "A run is active since" in page.sections["User events to Iterable: api.iterable.com"]
    assert "No run of this project" in page.sections["Last run"]


def test_a_run_that_was_killed(out: Path, report: Report) -> None:
    leave(out, (time.time(), ended(users=3)), (time.time(), None))
    page = report()
    assert "Did not finish it was killed, or the machine stopped" in page.sections["Last run"]
    assert "Not known" in page.sections["What became of the records"]


def test_other_projects_are_not_counted(out: Path, report: Report) -> None:
    leave(out, (time.time() - 9, ended(users=1)))
    leave(out, (time.time() - 5, ended(users=50)), project=Project(BASE_URL, "another"))
    page = report()
    assert "1 run on 1 of 90 days" in page.sections["The last 90 days"]
    assert ["delivered", "1", "0"] in page.tables["What became of the records"]


def test_a_damaged_ledger_is_65_and_the_page_says_so(
    program: Program, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run().code == 0
    ledger = program.folder / LEDGER_NAME
    ledger.write_bytes(b"this is no database; " * 1000)
    page = page_of(program, code=ExitCode.BRAKE)
    assert "is damaged (file is not a database)" in capsys.readouterr().err
    assert "The ledger is damaged." in page.html
    assert ["delivered", "12", "36"] in page.tables["What became of the records"]
    assert ledger.read_bytes().startswith(b"this is no database")


def test_90_days_of_24_runs_are_a_page_of_moderate_size(out: Path, report: Report) -> None:
    now = time.time()
    with open_ledger(out, Project(BASE_URL, KEY), now=now) as ledger:
        for number, hour in enumerate(range(91 * 24, -1, -1), start=1):  # the last one today, also just after midnight
            ledger.runs.insert("20260113_143122", now - hour * 3600, "people.sql")
            ledger.runs.note_end(number, ended(users=10**12))
        ledger.commit()
    page = report()
    days = page.tables["The numbers of the charts, by day"][1:]
    assert len(days) == 90
    assert days[1][1] == "24,000,000,000,000"
    assert len(page.html) < 300_000


@pytest.mark.parametrize(
    ("zone", "day"), [("UTC", "Tue 13 Jan 2026"), ("XXX-14", "Wed 14 Jan 2026"), ("XXX+11", "Tue 13 Jan 2026")]
)
def test_days_are_local_ones(out: Path, report: Report, monkeypatch: pytest.MonkeyPatch, zone: str, day: str) -> None:
    at = 1_768_314_682  # 2026-01-13 14:31:22 UTC
    leave(out, (at, ended(users=3)))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: at + DAY_S)
    page = report()
    assert page.column("The numbers of the charts, by day")[1:] == [day]
    assert f"began {day}" in page.sections["Last run"]


def test_clock_that_was_set_back_leaves_out_what_is_in_the_future(out: Path, report: Report) -> None:
    leave(out, (time.time() + 5 * DAY_S, ended(users=3)), (time.time() - DAY_S, ended(users=4)))
    page = report()
    assert "1 run on 1 of 90 days" in page.sections["The last 90 days"]
    assert "1 run that began later than now left out: the clock was set back." in page.sections["The last 90 days"]
    assert ["delivered", "4", "0"] in page.tables["What became of the records"]


def test_quiet_says_nothing_and_json_names_the_page(
    out: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    report("--quiet")
    assert capsys.readouterr() == ("", "")
    report("--json")
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found.keys(), found["page"], found["exit_code"], found["runs"], told.err) == (
        {"page", "made_at", "exit_code", "runs"},
        *("report.html", 0, 0, ""),
    )


def test_what_keep_days_will_delete(out: Path, report: Report) -> None:
    for stamp in ("20200101_000000", time.strftime("%Y%m%d_%H%M%S")):
        (out / f"query_results_{stamp}.csv").write_bytes(b"x" * 3_000_000)
    (out / "my_notes.csv").write_bytes(b"x")
    page = report(KEEP_DAYS="7")
    assert "KEEP_DAYS is 7: the next run deletes 1 file (3 MB) when it begins." in page.sections["Disk"]
    assert page.tables["Disk"][1][:3] == ["Rows of queries (CSV)", "2", "6 MB"]
    assert "Wed 1 Jan 2020" in page.tables["Disk"][1][3]


# The file -------------------------------------------------------------------------------------------------------------


def test_a_link_in_its_place_is_replaced_and_not_followed(out: Path, report: Report) -> None:
    (out.parent / "other").write_text("mine")
    (out / "report.html").symlink_to(out.parent / "other")
    report()
    assert not (out / "report.html").is_symlink()
    assert (out.parent / "other").read_text() == "mine"


def test_a_folder_in_its_place_is_73_and_nothing_is_left_over(
    out: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "report.html").mkdir()
    with pytest.raises(IsADirectoryError):
        report(code=ExitCode.NO_OUTPUT)
    assert "report.html can't be written (Is a directory)." in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["report.html"]


def test_wrong_settings_are_78(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError):
        report(code=ExitCode.SETTINGS, EVENT_TIMEZONE="Nowhere")
    assert "EVENT_TIMEZONE" in capsys.readouterr().err


# What is on it, and never ---------------------------------------------------------------------------------------------


def results_of(out: Path) -> Path:
    return sorted(out.glob("integration_results_*.json"))[-1]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    results = json.loads(path.read_text())
    change(results)
    path.write_text(json.dumps(results))


def page_of(program: Program, code: ExitCode = ExitCode.SUCCESS) -> Seen:
    """In this process, which has loaded what makes it."""
    env_file = program.folder.parent / "settings.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in program.settings.items()))
    env_file.chmod(0o600)
    assert main(["--report", "--quiet", "--env-file", str(env_file)]) == code
    return Seen((program.folder / "report.html").read_text(encoding="utf-8"))


MARK = "zzyzx"
PERSONAL: list[tuple[Any, ...]] = [
    (
        f"{MARK}{number}@example.com",
        f"{MARK} Delgado",
        f'{{"{MARK}": "{MARK}"}}',
        MARK,
        f"{MARK}-{number}",
        "2026-01-13",
    )
    for number in range(4)
]


def test_no_cell_of_the_query_gets_there_whatever_becomes_of_it(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    """In each column a value that does not fit, an answer that quotes the request, and one whose code is a person."""
    bad = [(f"{MARK} at home", f"{MARK}", f"{MARK}", f"{MARK}", f"{MARK}", f"{MARK}"), *PERSONAL]
    columns = "email,name,details,event_name,event_id,event_time"
    make_table(tmp_path / "users.db", columns, bad)
    use_query(program, "SELECT *, name AS amount, 'x' AS more FROM rows")
    program.settings |= {"USER_FIELDS": "name,details:details:json", "EVENT_FIELDS": "-", "PUSH_MODE": "single"}
    quoting = json.dumps({"msg": f"{MARK}1@example.com and Delgado", "code": "BadParams", "params": {MARK: MARK}})
    iterable.inject(Fault(match=b"zzyzx1@", status=400, body=quoting.encode()))
    iterable.inject(Fault(match=b"zzyzx2@", status=400, body=quoting.replace("BadParams", f"{MARK}Code").encode()))
    iterable.inject(Fault(match=b"zzyzx3@", status=400, body=quoting.replace("BadParams", "InvalidRecord").encode()))
    iterable.project.dropped_fields.add(f"details.{MARK}")
    iterable.project.blocked_events.add(MARK)
    misfits = {"BAD_VALUES": "omit", "USER_FIELDS": "name:name:integer,amount:amount:date,details:details:json"}
    for arguments in ((), ("--dry-run",), ("--full", "--yes"), ("--verify",)):
        settings = misfits if "--full" in arguments else {}
        assert program.run(*arguments, **dict[str, Any](settings)).code in (0, 1)
        page = page_of(program)
        assert MARK not in page.html.lower()
        assert "Delgado" not in page.html
    codes = {row[0].split(" ")[-1] for row in page.tables["Why records were not delivered"][1:]}
    assert codes


def test_hostile_names_and_messages_are_text(program: Program, iterable: StandIn, tmp_path: Path) -> None:
    """Of columns, fields, the query file, the project, events, and what Iterable says."""
    hostile = (
        "</style><script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "javascript:alert(3)",
        "a\u202eb\u2066c",
        "x" * 5_000,
        "{{ 7 * 7 }}{% raw %}",
    )
    make_table(tmp_path / "users.db", "email,event_name,event_time", [("a@example.com", hostile[0], "2026-01-13")])
    named = ", ".join('1 AS "{}"'.format(name.replace('"', '""')) for name in hostile)
    query = tmp_path / "<img src=x onerror=alert(4)>.sql"
    query.write_text(f"SELECT email, event_name, event_time, {named} FROM rows")
    program.settings |= {"QUERY_FILE": str(query), "USER_FIELDS": "-", "ITERABLE_PROJECT": "<script>alert(5)</script>"}
    program.settings["EVENT_FIELDS"] = "-"
    iterable.project.blocked_events.add(hostile[0])
    assert program.run().code == 1
    page = page_of(program)
    assert [tag for tag, _ in page.elements if tag in ("script", "img", "iframe", "a")] == ["a"]
    assert [name for _, attributes in page.elements for name in attributes if name.startswith("on")] == []
    text = page.html
    for name in hostile[:2]:
        assert name.replace("<", "&lt;").replace(">", "&gt;").replace('"', "&#34;") in text
    assert "a\\u202eb\\u2066c" in text
    assert "\u202e" not in text
    assert "x" * 301 not in text
    assert "User events to Iterable: <script>alert(5)</script>" in page.headings
    assert "<img src=x onerror=alert(4)>.sql, began" in page.sections["Last run"]


def test_of_many_reasons_the_most_frequent_are_shown(results_template: str, out: Path, report: Report) -> None:
    path = out / "integration_results_20260113_143122.json"
    path.write_text(results_template)
    reasons = [
        {"outcome": "rejected", "code": "InvalidRecord", "message": f"c{n} is empty.", "count": n, "new": 0}
        for n in range(1, 10_001)
    ]
    edit(path, lambda results: results.update(reasons=reasons))
    page = report()
    rows = page.tables["Why records were not delivered"][1:]
    assert len(rows) == MOST_REASONS
    assert rows[0][:4] == [
        "c10000 is empty. InvalidRecord fix these rows in the source, or leave them out of the query",
        *("rejected", "10,000", "0"),
    ]
    assert "9,980 more are in the results file" in page.html


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results.update(counts=None),
        lambda results: results["counts"]["users"].update(delivered="<b>5</b>"),
        lambda results: results["counts"]["users"].update(delivered=-1),
        lambda results: results["counts"].update(rows=10**400),
        lambda results: results.update(exit_code=True),
        lambda results: results.update(exit_code=3),
        lambda results: results.update(status="<script>"),
        lambda results: results.update(started_at="yesterday"),
        lambda results: results.update(reasons=[{"outcome": "odd"}]),
        lambda results: results.update(reasons=[None]),
        lambda results: results["fields"].update(not_sent=[{"a": 1}]),
        lambda results: results.pop("omitted_values"),
        lambda results: results.update(journeys=[1]),
        lambda results: results.update(journeys={"problem": None, "started": {"journeys": 1}}),
        lambda results: results.update(run_id="20990101_000000"),
        lambda results: results.update(duration_s=float("nan")),
    ],
)
def test_a_results_file_that_no_run_writes_so_is_named_and_not_believed(
    results_template: str, out: Path, report: Report, change: Callable[[dict[str, Any]], object]
) -> None:
    path = out / "integration_results_20260113_143122.json"
    path.write_text(results_template)
    edit(path, change)
    page = report()
    notes = page.sections["User events to Iterable: api.iterable.com"]
    assert f"1 results file can’t be believed , as no run writes them so: {path.name}" in notes
    assert "No run of this project" in page.sections["Last run"]


def test_one_that_a_run_has_written_is_believed_and_another_project_s_is_not(
    results_template: str, out: Path, report: Report
) -> None:
    (out / "integration_results_20260113_143122.json").write_text(results_template)
    os.mkfifo(out / "integration_results_20260113_143123.json")
    (out / "integration_results_20260113_143124.json").symlink_to("integration_results_20260113_143122.json")
    page = report()
    assert ["delivered", "12", "36"] in page.tables["What became of the records"]
    page = report(ITERABLE_PROJECT="another")
    assert "No run of this project" in page.sections["Last run"]
    assert "can’t be believed" not in page.html


@pytest.fixture(scope="module")
def results_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Results that a run has written, as if for the project of `report`."""
    from pipeline.run.earlier_runs import project_mark
    from pipeline.sandbox import create_sample_database

    folder = tmp_path_factory.mktemp("run")
    create_sample_database(folder / "users.db")
    with StandIn() as iterable:
        program = Program(folder / "out", iterable.url)
        assert program.run(DATABASE_URL=f"sqlite:///{folder}/users.db").code == 0
    results = json.loads(results_of(program.folder).read_text())
    results |= {"project_mark": project_mark(Project(BASE_URL, KEY)), "run_id": "20260113_143122"}
    return json.dumps(results)


# Axes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(0, [0, 1]), (3, [0, 1, 2, 3]), (7, [0, 2, 4, 6]), (4_017, [0, 2_000, 4_000]), (10**12, [0, 5 * 10**11, 10**12])],
)
def test_axes_of_counts_have_round_whole_numbers(most: int, ticks: list[int]) -> None:
    assert count_ticks(most) == ticks


@pytest.mark.parametrize(
    ("most", "ticks"), [(0, [0, 0.01]), (0.3, [0, 0.1, 0.2, 0.3]), (90, [0, 30, 60, 90]), (5_000, [0, 1_800, 3_600])]
)
def test_axes_of_durations_are_divided_as_clocks_are(most: float, ticks: list[float]) -> None:
    assert duration_ticks(most) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (12_500, "12.5k"), (3e6, "3M"), (2e9, "2G"), (10**15, "1,000T")]
)
def test_numbers_of_axes_are_short(number: float, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.42s"), (3.14, "3.1s"), (12, "12s"), (5_400, "90m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert took(seconds) == text


# Accessible -----------------------------------------------------------------------------------------------------------


def test_landmarks_captions_scopes_and_names(out: Path, report: Report) -> None:
    leave(out, *((time.time() - day * DAY_S, ended(users=day)) for day in range(5, 0, -1)))
    page = report()
    tags = [tag for tag, _ in page.elements]
    assert [tags.count(tag) for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    assert page.all("html") == [{"lang": "en"}]
    assert tags.count("table") == tags.count("caption") == 3
    assert [each for each in page.all("th") if "scope" not in each] == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        assert {attributes[name] for _, attributes in page.elements if name in attributes} <= set(ids)
    charts = [each for each in page.all("svg") if each.get("role") == "img"]
    assert len(charts) == 6
    assert tags.count("desc") == 6
    unnamed = [each for each in page.all("svg") if each.get("role") != "img" and "aria-hidden" not in each]
    in_hidden = [each for each in unnamed if each.get("preserveaspectratio") == "none"]  # a bar beside its number
    assert unnamed == in_hidden
    assert "In all 15. Most on " in page.html


COLOURS = re.compile(r"--(\w+): (#[0-9a-f]{6})")


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("number", range(3), ids=["light", "dark", "print"])
def test_contrast_of_text_and_of_bars(number: int) -> None:
    """WCAG: 4.5 for text, 3 for what is drawn."""
    style = (ROOT / "pipeline/inspect/page.html.jinja").read_text()
    colours = dict(COLOURS.findall(style.split(":root")[number + 1]))
    for text in ("ink", "muted", "ok", "warn", "bad"):
        for ground in ("page", "surface", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for drawn in ("users", "events", "bad", "warn", "muted"):
        assert contrast(colours[drawn], colours["surface"]) >= 3, drawn
