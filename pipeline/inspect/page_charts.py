"""The charts of `--report`: days -> SVG that stands in the page. Loads matplotlib, so only `--report` imports this.

No text of anybody's is drawn, only numbers and dates. Text stays text, in the page's font; colours are the variables of
the page's style sheet, so that the charts follow it into dark mode; kinds differ by their form as well.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pipeline.inspect.page_days import ENDINGS, Day
from pipeline.model.text import short_duration

INCHES = (5.0, 2.0)
FONT_SIZE = 9.5
MOST_STEPS = 4  # of an axis
DAY_S = 86_400
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
STEPS_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30),
    *(60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 18_000, 36_000, DAY_S, 2 * DAY_S, 5 * DAY_S),
)
_STYLE: Any = {  # over the defaults, whatever a matplotlibrc of this machine says
    **rcParamsDefault,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": FONT_SIZE,
    "axes.linewidth": 0.8,
}
# Colours that stand for a variable of the style sheet while matplotlib draws.
_COLOURS = {
    "#100001": "var(--muted)",
    "#100002": "var(--line)",
    "#100003": "var(--users)",
    "#100004": "var(--events)",
    "#100005": "var(--bad)",
    "#100006": "var(--warn)",
    "#100007": "var(--surface)",
    "#100008": "var(--faint)",
    "#100009": "var(--ink)",
}
_FONT = re.compile(r"font(?:-size)?: ([\d.]+px)[^;]*; (?:font-family: [^;]*; )?")
_BY_NAME = {name[6:-1]: colour for colour, name in _COLOURS.items()}


@dataclass(frozen=True)
class Series:
    """Bars of one kind, a value for each day. is_hollow: only their outline is drawn, which tells them from others also
    without the colour."""

    label: str
    colour: str
    values: Sequence[float]
    is_hollow: bool = False


@dataclass(frozen=True)
class Chart:
    """name: of its elements in the page. headline: the number that counts, in words. dots: drawn over the bars."""

    name: str
    title: str
    headline: str
    series: Sequence[Series]
    summary: str
    dots: Series | None = None
    is_duration: bool = False

    @property
    def legend(self) -> list[Series]:
        return [*self.series, *([self.dots] if self.dots else [])] if len(self.series) > 1 or self.dots else []


def charts_of(days: Sequence[Day]) -> list[Chart]:
    """All charts, with what they say in words."""
    durations = sorted(each for day in days for each in day.durations_s)
    middle = durations[len(durations) // 2] if durations else 0
    return [
        _counting("users", "Users delivered", days, [Series("users", "users", [day.users for day in days])]),
        _counting("events", "Events delivered", days, [Series("events", "events", [day.events for day in days])]),
        _counting(
            "rejected",
            "Records rejected",
            days,
            [
                Series("users", "bad", [day.rejected_users for day in days]),
                Series("events", "warn", [day.rejected_events for day in days], is_hollow=True),
            ],
        ),
        Chart(
            "duration",
            "Duration of runs",
            f"median {took(middle)}" if durations else "–",
            [Series("longest run", "faint", [day.longest_s or 0 for day in days])],
            f"The longest run of each day; at most {took(max(durations, default=0))}. A dot marks the day's median.",
            Series("median", "ink", [math.nan if day.median_s is None else day.median_s for day in days]),
            is_duration=True,
        ),
        _counting(
            "runs",
            "Runs by how they ended",
            days,
            [
                Series(ending, colour, [day.endings[ending] for day in days], is_hollow=colour == "warn")
                for ending, colour in zip(
                    reversed(ENDINGS), ("bad", "warn", "faint"), strict=True
                )  # the few stand on the axis
            ],
        ),
        _counting("rows", "Rows read", days, [Series("rows", "muted", [day.rows for day in days])]),
    ]


def _counting(name: str, title: str, days: Sequence[Day], series: Sequence[Series]) -> Chart:
    totals = [sum(values) for values in zip(*(each.values for each in series), strict=True)]
    total, most = sum(totals), max(totals)
    parts = ", ".join(f"{sum(each.values):,} {each.label}" for each in series) if len(series) > 1 else f"{total:,}"
    summary = f"In all {parts}."
    if most:
        summary += f" Most on {in_words(days[totals.index(most)].date)}: {most:,}."
    return Chart(name, title, f"{total:,}", series, summary)


def in_words(day: date) -> str:
    """`3 Jan 2026`"""
    return f"{day.day} {day:%b %Y}"


# Drawing --------------------------------------------------------------------------------------------------------------


def svg_of(chart: Chart, days: Sequence[Day]) -> str:
    """An element for the page, named by its title and described by the summary."""
    with rc_context(_STYLE):
        figure = Figure(figsize=INCHES)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.095, 0.16, 0.895, 0.77))
        _draw(axes, chart)
        _scale(axes, chart)
        _name_days(axes, [day.date for day in days])
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(file.getvalue(), chart)


def _draw(axes: Axes, chart: Chart) -> None:
    below = [0.0] * len(chart.series[0].values)
    for series in chart.series:
        places = [place for place, value in enumerate(series.values) if value]
        colour = _BY_NAME[series.colour]
        axes.bar(
            places,
            [series.values[place] for place in places],
            width=0.78,
            bottom=[below[place] for place in places],
            color=_BY_NAME["surface"] if series.is_hollow else colour,
            edgecolor=colour,
            linewidth=0.8 if series.is_hollow else 0,
        )
        below = [under + value for under, value in zip(below, series.values, strict=True)]
    if chart.dots:
        places = [place for place, value in enumerate(chart.dots.values) if not math.isnan(value)]
        heights = [chart.dots.values[place] for place in places]
        axes.scatter(places, heights, s=5, color=_BY_NAME[chart.dots.colour], linewidths=0, zorder=3)


def _scale(axes: Axes, chart: Chart) -> None:
    most = max((sum(values) for values in zip(*(each.values for each in chart.series), strict=True)), default=0)
    ticks = duration_ticks(most) if chart.is_duration else count_ticks(most)
    write: Callable[[float], str] = _tick_of_duration if chart.is_duration else compact
    axes.set_yticks(ticks, [write(tick) for tick in ticks])
    axes.set_ylim(0, max(ticks[-1], most) * 1.04)
    axes.yaxis.grid(True, color=_BY_NAME["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_BY_NAME["muted"])
    axes.tick_params(axis="y", length=0, labelcolor=_BY_NAME["muted"], pad=4)
    axes.tick_params(axis="x", length=3, color=_BY_NAME["muted"], labelcolor=_BY_NAME["muted"], pad=3)


def _name_days(axes: Axes, days: Sequence[date]) -> None:
    """The first of each month and its middle."""
    places = [place for place, day in enumerate(days) if day.day in (1, 15)]
    axes.set_xticks(places, [f"{days[place].day} {days[place]:%b}" for place in places])
    axes.set_xlim(-0.8, len(days) - 0.2)


def count_ticks(most: float) -> list[float]:
    """Whole numbers from 0 up to `most`, by steps of 1, 2 or 5 and zeros: 7 -> 0, 2, 4, 6."""
    step = 1.0
    while step * MOST_STEPS < most:
        step = _next_step(step)
    return _ticks(step, most)


def _ticks(step: float, most: float) -> list[float]:
    return [step * number for number in range(max(1, math.floor(most / step + 1e-9)) + 1)]


def _next_step(step: float) -> float:
    """1 -> 2 -> 5 -> 10"""
    return step * 2.5 if f"{step:.0f}"[0] == "2" else step * 2


def duration_ticks(most: float) -> list[float]:
    """As people divide minutes, hours and days."""
    step = next((step for step in STEPS_S if step * MOST_STEPS >= most), math.ceil(most / MOST_STEPS / DAY_S) * DAY_S)
    return _ticks(step, most)


def took(seconds: float) -> str:
    """`0.42s`, `3.1s`, `12s`, `3m`"""
    return short_duration(seconds) if seconds >= 10 else f"{seconds:.{1 if seconds >= 1 else 2}f}s"


def _tick_of_duration(seconds: float) -> str:
    """`0`, `0.2s`, `5s`, `2m`"""
    return f"{seconds:.2g}s" if 0 < seconds < 10 else short_duration(seconds) if seconds else "0"


def compact(number: float) -> str:
    """950 -> `950`, 12,500 -> `12.5k`, 3,000,000 -> `3M`; G and T for more."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:,.4g}{unit}"
    return f"{number:.0f}"


# What matplotlib writes -> what may stand in a page ------------------------------------------------------------------


def _for_page(written: str, chart: Chart) -> str:
    """Without what would reach beyond the chart: its own style sheet, names that another chart has, fonts, a size."""
    root = ElementTree.fromstring(written)  # noqa: S314 - made here, of numbers
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata" or child.tag == f"{{{SVG}}}style":
                parent.remove(child)
    names = {
        each.attrib["id"]: f"{chart.name}-{number}" for number, each in enumerate(root.iter()) if "id" in each.attrib
    }
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', written))
    for each in root.iter():
        _clean(each, names, used)
    view = root.attrib["viewBox"]
    root.attrib.clear()
    title, summary = f"{chart.name}-title", f"{chart.name}-summary"
    root.attrib.update({"viewBox": view, "role": "img", "aria-labelledby": title, "aria-describedby": summary})
    for place, (tag, name, text) in enumerate((("title", title, chart.title), ("desc", summary, chart.summary))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": name})
        element.text = text
        root.insert(place, element)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, names: Mapping[str, str], used: set[str]) -> None:
    attributes = element.attrib
    if (name := attributes.pop("id", None)) in used and name is not None:
        attributes["id"] = names[name]
    for attribute, value in attributes.items():
        value = re.sub(r"(?<=url\(#)[^)]+", lambda match: names[match[0]], value)
        if attribute == f"{{{XLINK}}}href":
            value = f"#{names[value[1:]]}"
        for colour, variable in _COLOURS.items():
            value = value.replace(colour, variable)
        attributes[attribute] = _FONT.sub(r"font-size: \1; ", value)
    element.tail = None
    if element.text and not element.text.strip():
        element.text = None
