"""The picture in the README: `report.html` after ninety days of real runs, as Debian's chromium shows it.

python -m tests.picture     makes it anew; a test says when that is due
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.inspect.page_charts import charts_of
from pipeline.inspect.page_days import DAYS, history_of
from pipeline.inspect.page_template import TEMPLATE
from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.sandbox import Fault, StandIn
from tests.browser import Browser, open_browser
from tests.program import ROOT, Program, use_query

PICTURE = ROOT / "docs/images/report.png"
MARK = "made of"
RUNS_A_DAY = 2
WIDTH = 1360
SCALE = 1.25
COLOURS = 96
DAY_S = 86_400
SHOWN_UP_TO = "section[aria-labelledby=history]"


def source() -> str:
    """What the page looks like, in short: its template, and what is drawn of ninety days."""
    charts = [(chart.title, [each.label for each in chart.legend]) for chart in charts_of(history_of([], 0).days)]
    template = (ROOT / "pipeline/inspect" / TEMPLATE).read_text(encoding="utf-8")
    return hashlib.sha256(json.dumps([template, charts]).encode()).hexdigest()


def run_for_ninety_days(program: Program, iterable: StandIn) -> None:
    """Over data that grows; some rows are wrong, and at times Iterable is down."""
    chance = random.Random(7)
    database = program.folder.parent / "shop.db"
    program.settings |= {
        "DATABASE_URL": f"sqlite:///{database}",
        "ITERABLE_PROJECT": "shop",
        "USER_FIELDS": "plan",
        "EVENT_FIELDS": "amount:amount:number",
        "MAX_RETRIES": "1",
        "ALERT_AFTER": "0",
    }
    use_query(program, "SELECT email, plan, event_id, event_name, event_time, amount FROM orders")
    program.settings["QUERY_FILE"] = str(
        Path(program.settings["QUERY_FILE"]).rename(program.folder.parent / "orders.sql")
    )
    with closing(sqlite3.connect(database)) as orders:
        orders.execute(
            "CREATE TABLE orders (email, plan, event_id INTEGER PRIMARY KEY, event_name, event_time, amount)"
        )
        for number in range(DAYS * RUNS_A_DAY):
            _add_orders(orders, chance, number)
            if chance.random() < 0.03:
                iterable.inject(Fault(status=503))
            program.run("--yes", "--quiet")
            iterable.clear_faults()
    _spread(program.folder / LEDGER_NAME)


def _add_orders(orders: sqlite3.Connection, chance: random.Random, number: int) -> None:
    """Now and then with wrong rows, which somebody sees to after some runs; the last run has some."""
    day, is_last = number // RUNS_A_DAY, number == DAYS * RUNS_A_DAY - 1
    count = int(30 + day + chance.lognormvariate(3.6, 0.5) * (0.4 if day % 7 in (3, 4) else 1))
    people = [f"customer-{chance.randrange(200 + 40 * day)}@example.com" for _ in range(count)]
    amounts = [f"{chance.randrange(500)}.50" for _ in people]
    if is_last or chance.random() < 0.06:
        people[: chance.randrange(1, 9)] = ["no address"] * 3
        amounts[-chance.randrange(1, 5) :] = ["n/a"] * 2
    elif chance.random() < 0.5:
        orders.execute("DELETE FROM orders WHERE email = 'no address' OR amount = 'n/a'")
    rows = [
        (who, chance.choice(("free", "pro")), "order_placed", "2026-01-13 08:45:12", amount)
        for who, amount in zip(people, amounts, strict=False)
    ]
    orders.executemany("INSERT INTO orders (email, plan, event_name, event_time, amount) VALUES (?, ?, ?, ?, ?)", rows)
    orders.commit()


def _spread(ledger: Path) -> None:
    """Over the days, the last one now."""
    with closing(sqlite3.connect(ledger)) as database, database:
        (last,) = database.execute("SELECT max(id) FROM runs").fetchone()
        database.execute("UPDATE runs SET started_at = started_at - ? * (? - id)", (DAY_S // RUNS_A_DAY, last))


def take(browser: Browser, page: Path) -> bytes:
    """PNG of the upper part of the page."""
    metrics = {"width": WIDTH, "height": 800, "deviceScaleFactor": SCALE, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **metrics)
    browser.prefer("light")
    browser.open(page)
    height = browser.value_of(f"document.querySelector('{SHOWN_UP_TO}').getBoundingClientRect().bottom + 18")
    return browser.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1})


def write() -> None:
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, StandIn() as iterable:
        program = Program(Path(folder, "out"), iterable.url)
        started = time.time()
        run_for_ninety_days(program, iterable)
        program.run("--report", TZ="UTC")
        with open_browser(Path(folder, "profile")) as browser:
            picture = take(browser, program.folder / "report.html")
        print(f"{time.time() - started:.0f} s")
    said = PngInfo()
    said.add_text(MARK, source())
    PICTURE.parent.mkdir(exist_ok=True)
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True, pnginfo=said)


def made_of() -> str:
    """What the picture says that it was made of."""
    with Image.open(PICTURE) as picture:
        return str(picture.info[MARK])


if __name__ == "__main__":
    write()
