"""The fields that Iterable has dropped or created, as its bulk answers say; the single ones don't."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from pipeline.delivery.bulk_answers import Settled
from pipeline.model.records import Kind

FieldsByKind = Mapping[Kind, frozenset[str]]


class DroppedFields:
    """By kind, and which of the watched ones got through: those that Iterable has dropped before."""

    def __init__(self, watched: Mapping[Kind, Collection[str]]) -> None:
        self._filtered_out: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._created: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._passed: dict[Kind, set[str]] = {kind: set() for kind in Kind}
        self._watched = {kind: set(watched.get(kind, ())) for kind in Kind}

    def take_in(self, kind: Kind, settled: Settled) -> None:
        self._filtered_out[kind] |= settled.filtered_out_fields
        self._created[kind] |= settled.created_fields
        for name in self._watched[kind] - self._passed[kind] - settled.filtered_out_fields:
            quoted = json.dumps(name.rpartition(".")[2], ensure_ascii=False).encode() + b":"
            if any(quoted in record.payload for record in settled.delivered):
                self._passed[kind].add(name)

    def found(self) -> tuple[FieldsByKind, FieldsByKind, FieldsByKind]:
        """Filtered out, created, passed."""
        passed = {kind: self._passed[kind] - self._filtered_out[kind] for kind in Kind}
        return _frozen(self._filtered_out), _frozen(self._created), _frozen(passed)


def _frozen(by_kind: Mapping[Kind, set[str]]) -> FieldsByKind:
    return {kind: frozenset(names) for kind, names in by_kind.items()}
