"""The page of `--report` and its charts -> HTML, by `page.html.jinja`, which escapes everything but the charts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.inspect.page_charts import Chart, in_words, took
from pipeline.inspect.page_days import DAYS, ENDINGS
from pipeline.inspect.verification import COUNTS
from pipeline.model.records import Outcome
from pipeline.model.text import counted
from pipeline.report.retention import size_text

if TYPE_CHECKING:
    from pipeline.inspect.page import Page

TEMPLATE = "page.html.jinja"


def render(page: Page, charts: Sequence[tuple[Chart, str]]) -> str:
    """charts: each with its SVG, which is not escaped."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        when=in_local_time,
        iso=lambda unix_s: _local(unix_s).isoformat(timespec="seconds"),
        day=lambda date: f"{date:%a} {in_words(date)}",
        number=lambda value: "–" if value is None else f"{value:,}",
        took=lambda seconds: "–" if seconds is None else took(seconds),
        size=size_text,
        counted=counted,
        share=share,
        spaced=lambda name: name.replace("_", " "),
    )
    drawn = [(chart, Markup(svg)) for chart, svg in charts]  # noqa: S704 - made by page_charts, of numbers
    return environment.get_template(TEMPLATE).render(
        page=page,
        charts=drawn,
        DAYS=DAYS,
        ENDINGS=ENDINGS,
        OUTCOMES=[outcome.value for outcome in Outcome],
        COMPARISONS=COUNTS,
    )


def in_local_time(unix_s: float) -> str:
    """`Tue 13 Jan 2026, 14:31 UTC+01:00`"""
    time = _local(unix_s)
    return f"{time:%a} {in_words(time.date())}, {time:%H:%M} {zone_of(time)}"


def zone_of(time: datetime) -> str:
    """`UTC`, `UTC+01:00`"""
    offset = f"{time:%z}"
    return "UTC" if offset in ("+0000", "") else f"UTC{offset[:3]}:{offset[3:5]}"


def share(part: float, whole: float) -> str:
    """In percent, for the length of a bar; never nothing for something."""
    return f"{max(0.5, 100 * part / whole):.1f}" if part and whole else "0"


def _local(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s).astimezone()
