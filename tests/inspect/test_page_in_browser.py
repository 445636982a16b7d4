"""`report.html` in a real browser: it asks for nothing, runs nothing, can be read in light and dark, and be printed."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from main import main
from pipeline.ledger.ledger import Project, RunResult, open_ledger
from pipeline.model.exits import ExitCode
from pipeline.sandbox import StandIn
from tests.browser import CHROMIUM, Browser, open_browser
from tests.program import Program, make_table, use_query

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = (
    "</style><script>console.log(1)</script>",
    "<svg onload=console.log(2)><img src=https://example.com/x onerror=console.log(3)>",
)
# The colour of each text beside what is behind it, as the browser has computed both.
CONTRASTS = """
(() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(Number).map(each => each / 255)
      .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!colour.startsWith("rgba(") || !colour.endsWith(", 0)")) return colour;
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("title, desc")) continue;
    const style = getComputedStyle(element);
    const colour = element.closest("svg") ? style.fill : style.color;
    const [dark, light] = [luminance(colour), luminance(ground(element))].sort((a, b) => a - b);
    found.push([(light + 0.05) / (dark + 0.05), walker.currentNode.data]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


@pytest.fixture
def page(program: Program, iterable: StandIn, tmp_path: Path) -> Path:
    """After a run over hostile names, and earlier ones, some of which were killed."""
    now = time.time()
    project = Project(program.settings["ITERABLE_BASE_URL"], program.settings["ITERABLE_API_KEY"])
    counts = {"delivered": 5, "unchanged": 0, "rejected": 2, "unacknowledged": 0, "not_attempted": 0}
    with open_ledger(program.folder, project, now=now) as ledger:
        for day in range(80, 0, -1):
            ledger.begin_run("20260113_143122", now - day * 86_400, "people.sql")
            if day % 7:
                ledger.end_run(RunResult("partial", day % 2, "", day, rows=9, users=counts, events=counts))
    make_table(tmp_path / "users.db", "email,event_name,event_time", [("a@example.com", HOSTILE[0], "2026-01-13")])
    use_query(program, f'SELECT *, 1 AS "{HOSTILE[0]}", 1 AS "{HOSTILE[1]}" FROM rows')
    program.settings |= {"USER_FIELDS": "-", "EVENT_FIELDS": "-"}
    iterable.project.blocked_events.add(HOSTILE[0])
    assert program.run().code == 1
    env_file = tmp_path / "settings.env"
    env_file.write_text("".join(f"{name}={value}\n" for name, value in program.settings.items()))
    env_file.chmod(0o600)
    assert main(["--report", "--quiet", "--env-file", str(env_file)]) == ExitCode.SUCCESS
    return program.folder / "report.html"


def look(browser: Browser, scheme: str) -> tuple[bytes, list[Any]]:
    """A picture, and the texts that are hard to read."""
    browser.prefer(scheme)
    contrasts = browser.value_of(CONTRASTS)
    assert len(contrasts) > 200
    return browser.screenshot(), [each for each in contrasts if each[0] < 4.5]


def test_it_asks_for_nothing_runs_nothing_and_can_be_read_light_dark_and_on_paper(page: Path) -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, open_browser(Path(folder)) as browser:
        browser.open(page)
        assert HOSTILE[0] in browser.value_of("document.body.innerText")
        light, unreadable = look(browser, "light")
        assert unreadable == []
        dark, unreadable = look(browser, "dark")
        assert unreadable == []
        assert light[:8] == dark[:8] == b"\x89PNG\r\n\x1a\n"
        assert light != dark
        assert browser.print()[:5] == b"%PDF-"
        assert browser.value_of("document.scripts.length") == 0
        assert browser.value_of("document.documentElement.scrollWidth <= innerWidth")
        (main_title, *titles) = browser.value_of("[...document.querySelectorAll('h1, h2, h3')].map(h => h.innerText)")
        assert (main_title[:24], len(titles)) == ("User events to Iterable:", 15)
        assert browser.requests == [page.as_uri()]
        assert browser.complaints == []
