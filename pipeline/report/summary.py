"""What a person wants to know at the end of a run, on less than one screen. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.model.exits import ExitCode
from pipeline.model.records import Outcome
from pipeline.model.text import WIDTH, counted, generalized, shortened, wrapped
from pipeline.report.advice import advice_for
from pipeline.report.results import Reason, Results

SHOWN_REASONS = 5
NARROWEST, WIDEST = 40, 100  # columns
MAX_REASON_CHARS = 300
NOT_ATTEMPTED = "Not attempted: "  # what the message of each such record begins with


def summary(
    results: Results,
    reasons: Sequence[Reason],
    *,
    left_users: int = 0,
    people: Sequence[str] = (),
    columns: int | None = None,
) -> list[str]:
    """The lines. left_users: known users whom --limit kept from being updated. people: sentences about people. columns:
    of the terminal, if it is one."""
    width = WIDTH if columns is None else max(NARROWEST, min(columns, WIDEST))
    lines = [
        f"Summary of run {results.run_id}: {results.status}",
        *_counts(results.counts),
        *_notes(results.counts, left_users),
        *(f"  {sentence}" for sentence in people),
        *reason_lines(reasons, is_braked=results.exit_code == ExitCode.BRAKE),
        *_other_reasons(results, reasons),
        *_fields(results.fields),
        *(f"  {name:<8} {path}" for name, path in results.files.items() if path),
        *_how(results),
    ]
    return ["", *(part for line in lines for part in fitted(line, width))]


def fitted(line: str, width: int) -> list[str]:
    """As many lines as it needs, none of which ends within a word."""
    text = line.lstrip(" ")
    indent = line[: len(line) - len(text)]
    return wrapped(text, indent, f"{indent}  ", width)


def _counts(counts: Mapping[str, Any]) -> Iterator[str]:
    yield f"  rows     {counts['rows']:>10,}"
    for kind in ("users", "events"):
        outcomes = [f"{number:,} {name.replace('_', ' ')}" for name, number in counts[kind].items() if number]
        yield f"  {kind:<8} {sum(counts[kind].values()):>10,}   {', '.join(outcomes)}".rstrip()


def _notes(counts: Mapping[str, Any], left_users: int) -> Iterator[str]:
    """What one should know of the counts."""
    if repeats := counts["duplicate_events"]:
        rows = "1 row repeats" if repeats == 1 else f"{repeats:,} rows repeat"
        yield f"  {rows} an event of another row; each event counts once"
    if corrected := counts["corrected_events"]:
        rows = "1 row changes" if corrected == 1 else f"{corrected:,} rows change"
        yield f"  {rows} the fields of an event of another row; the last one was used"
    if merged := counts["merged_users"]:
        who = "1 user has" if merged == 1 else f"{merged:,} users have"
        yield f"  {who} rows with different values; the last ones were used"
    if left_users:
        people = counted(left_users, "known user")
        yield f"  {people} not updated, as --limit may have seen only some of their rows"


def reason_lines(reasons: Sequence[Reason], *, is_braked: bool = False) -> Iterator[str]:
    for reason in reasons:
        outcome = reason.outcome.replace("_", " ")
        yield f"  {reason.count:,} {outcome}{_news(reason)}: {_first_of(reason)}"
        yield f"    -> {advice_for(Outcome(reason.outcome), reason.code, is_braked=is_braked)}"


def _other_reasons(results: Results, reasons: Sequence[Reason]) -> Iterator[str]:
    if left := results.failures_total - sum(reason.count for reason in reasons):
        yield f"  and {left:,} more, for other reasons; see the results"


def _fields(fields: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, what in (("filtered_out", "fields that Iterable dropped"), ("created", "fields new in Iterable")):
        if fields[name]:
            yield f"  {what}: {', '.join(fields[name])}"


def _how(results: Results) -> Iterator[str]:
    retry = results.retry
    yield f"  authentication: {results.authentication}; push mode: {results.push_mode}"
    yield (
        f"  retry configuration: {retry['max_retries']:g} attempts, back-off {retry['initial_backoff']:g} s, "
        f"times {retry['backoff_factor']:g} after each"
    )
    yield f"  duration: {results.duration_s:.1f} s"


def _news(reason: Reason) -> str:
    """How many of them earlier runs did not know, where some are known."""
    if reason.new == reason.count or reason.outcome == Outcome.NOT_ATTEMPTED.value:
        return ""
    return f" ({reason.new:,} new)" if reason.new else " (all known from earlier runs)"


def _first_of(reason: Reason) -> str:
    if reason.outcome == Outcome.NOT_ATTEMPTED.value:  # for one and the same reason
        return shortened(reason.message.removeprefix(NOT_ATTEMPTED), MAX_REASON_CHARS)
    may_differ = reason.code != "InvalidRecord" or generalized(reason.message) != reason.message
    lead = "for example: " if reason.count > 1 and may_differ else ""
    return shortened(f"{lead}{reason.message}", MAX_REASON_CHARS)
