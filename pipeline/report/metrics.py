"""METRICS_FILE: the last run's account in Prometheus' text format, for node_exporter's textfile collector.

Each sample has the label `query_file`, so that several jobs can share a collector, each with a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from iterable.export import replacing_file
from pipeline.model.records import Kind
from pipeline.report.results import Results

PREFIX = "iterable_sync"
METRICS = {
    "last_run_timestamp_seconds": "When the last run ended.",
    "last_success_timestamp_seconds": "When a run last ended with 0.",
    "exit_code": "How the last run ended.",
    "duration_seconds": "How long the last run took.",
    "records": "Records of the last run by their outcome.",
    "consecutive_temporary_failures": "Runs in a row that ended with 75 or 69 and had nothing accepted.",
    "known_records": "Records that Iterable has accepted.",
}


@dataclass(frozen=True)
class Standing:
    """What the ledger says of a query file's runs. last_success: Unix seconds; None: there was none."""

    last_success: float | None
    consecutive_temporary_failures: int
    known_records: Mapping[Kind, int]


@dataclass(frozen=True)
class _Sample:
    labels: Mapping[str, str]
    value: float


def metrics_text(results: Results, standing: Standing) -> str:
    """The whole file. A metric without a value, such as the last success where there was none, is left out."""
    finished_at = datetime.fromisoformat(results.finished_at).timestamp()
    known = {kind.value: number for kind, number in standing.known_records.items()}
    by_outcome = [
        _Sample({"kind": kind.value, "outcome": outcome}, number)
        for kind in Kind
        for outcome, number in results.counts[f"{kind.value}s"].items()
    ]
    samples = {
        "last_run_timestamp_seconds": _one(finished_at),
        "last_success_timestamp_seconds": _one(standing.last_success),
        "exit_code": _one(results.exit_code),
        "duration_seconds": _one(results.duration_s),
        "records": by_outcome,
        "consecutive_temporary_failures": _one(standing.consecutive_temporary_failures),
        "known_records": [_Sample({"kind": kind}, number) for kind, number in known.items()],
    }
    return "".join(
        _metric(name, text, samples[name], results.query_file) for name, text in METRICS.items() if samples[name]
    )


def _one(value: float | None) -> list[_Sample]:
    return [] if value is None else [_Sample({}, value)]


def _metric(name: str, text: str, samples: Iterable[_Sample], query_file: str) -> str:
    lines = [f"# HELP {PREFIX}_{name} {text}", f"# TYPE {PREFIX}_{name} gauge"]
    for sample in samples:
        labels = {"query_file": query_file, **sample.labels}
        written = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
        lines.append(f"{PREFIX}_{name}{{{written}}} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 3))


def write_metrics(path: Path, text: str) -> None:
    """Put the file in the place of the last one, whole, readable by all, as the collector is another user. OSError."""
    with replacing_file(path, mode=0o644) as file:
        file.write(text)
