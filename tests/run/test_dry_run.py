"""`--dry-run`: what it shows, as a user runs it, and what it keeps back, by table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.model.records import Kind, Record
from pipeline.run.dry_run import RULE, first_lines, masked
from pipeline.sandbox import StandIn
from tests.program import Program, make_table, sent, use_query


def shown(out: str) -> list[str]:
    """What a dry run says after it has planned, without the summary."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if "Dry run: nothing is sent" in line)
    said = [line.removeprefix("        ") for line in lines[start + 1 :] if line.startswith("        ")]
    return [line for line in said if not line.startswith("All of them, unmasked: preview_")]


def test_counts_and_whole_payloads_without_what_is_personal(
    program: Program, iterable: StandIn, tmp_path: Path
) -> None:
    make_table(
        tmp_path / "users.db",
        "email,full_name,phone,born,event_time,page",
        [
            ("ada@example.com", "Ada Lovelace", 491701234567, "1815-12-10", "2026-01-13 08:45:12", "pricing"),
            ("nobody", "No Body", None, None, None, None),
        ],
    )
    use_query(program, "SELECT * FROM rows")
    fields = "full_name:who.full_name,phone,born:born:date"
    run = program.run("--dry-run", USER_FIELDS=fields, EVENT_FIELDS="page")
    assert run.code == 1
    assert sent(iterable) == []
    lines = shown(run.out)
    event_id = next(line for line in lines if '"id": "ue2-' in line)
    lines[lines.index(event_id)] = "(its id)"
    assert lines == [
        "1 user would be sent, 0 unchanged, 1 rejected",
        "1 event would be sent, 0 unchanged, 0 rejected",
        "The first requests would be:",
        f"({RULE})",
        "user of row 1: {",
        '  "email": "a***@example.com",',
        '  "dataFields": {',
        '    "born": "1815-**-** **:**:** +**:**",',
        '    "phone": 500000000000,',
        '    "who": {',
        '      "full_name": "A***"',
        "    }",
        "  }",
        "}",
        "event of row 1: {",
        '  "email": "a***@example.com",',
        '  "eventName": "page_view",',
        "(its id)",
        '  "createdAt": 1768293912,',
        '  "dataFields": {',
        '    "page": "p***"',
        "  }",
        "}",
    ]


def test_three_of_each_kind_are_shown(program: Program, sample: Path) -> None:
    run = program.run("--dry-run")
    assert [run.out.count(f"{kind.value} of row ") for kind in Kind] == [3, 3]


def test_where_nothing_would_be_sent_no_requests_are_announced(program: Program, sample: Path) -> None:
    assert program.run().code == 0
    run = program.run("--dry-run")
    assert run.code == 0
    assert shown(run.out) == [
        "0 users would be sent, 12 unchanged, 0 rejected",
        "0 events would be sent, 36 unchanged, 0 rejected",
    ]


def test_a_huge_text_is_cut_before_it_is_looked_at(program: Program, tmp_path: Path) -> None:
    """Whatever it costs, it is not the square of its length: that of three million would be minutes."""
    make_table(tmp_path / "users.db", "email,notes", [("ada@example.com", "a@bc " * 600_000)])
    use_query(program, "SELECT * FROM rows")
    run = program.run("--dry-run", USER_FIELDS="notes")
    assert run.code == 0
    assert '"notes": "a***"' in run.out
    assert len(run.out) < 5_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Ada Lovelace", "A***"),
        ("f", "***"),
        ("", ""),
        ("ada@example.com", "a***@example.com"),
        ("call ada@example.com", "c***"),
        ("2026-01-13", "2026-**-**"),
        ("2026-01-13T08:45:12.000Z", "2026-**-**T**:**:**.***Z"),
        (17, 17),
        (491701234567, 500000000000),
        (-1234567.5, -1000000.0),
        (0.5, 0.5),
        (True, True),
        (None, None),
        ({"name": "Ada", "deep": {"x": ["Ada"]}}, {"name": "A***", "deep": {"x": ["A***"]}}),
        (["Ada", "Bob", "Cyd", "Dan", "Eve"], ["A***", "B***", "C***", "... and 2 more"]),
    ],
)
def test_what_is_shown_of_a_value(value: Any, expected: Any) -> None:
    assert masked(value) == expected


def test_an_object_of_many_members_is_cut() -> None:
    cut = masked({f"field{number}": number for number in range(1000)})
    assert len(cut) == 51
    assert cut["... and 950 more"] == "***"


def test_an_event_id_of_the_query_is_masked_and_a_derived_one_is_not() -> None:
    assert '  "id": "o***"' in list(first_lines(event_with_id("order-of-ada")))
    assert '  "id": "ue2-12ab"' in list(first_lines(event_with_id("ue2-12ab")))


def event_with_id(event_id: str) -> Record:
    return Record(Kind.EVENT, 1, "ada@example.com", b"", b"", json.dumps({"id": event_id}).encode())
