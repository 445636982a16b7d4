"""The lease and the keeper against a store that loses answers, and against each other: never two writers, and never an
older copy over a newer one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from iterable.pacing import Abandoned
from pipeline.ledger.file import hold_file
from pipeline.ledger.ledger import LEDGER_NAME, LedgerBusyError
from pipeline.model.exits import Ending, ExitCode
from pipeline.state.files import FileStore
from pipeline.state.lease import AwakeClock, Lease, LeaseLostError, Times
from pipeline.state.record import RECORD_NAME, Holder, StateRecord, parse_record
from pipeline.state.remote import RemoteKeeper
from pipeline.state.store import ConflictError, Store, StoreDownError, StoreRefusedError, Version
from tests.program import wait_until

DONE = Ending(ExitCode.SUCCESS, "All done.")
NEVER = Times(renewed_every_s=1e6, put_back_every_s=1e6)  # the tests do it


class Unreliable(FileStore):
    """A folder, whose answers get lost as a test wants it. on_write: called before each write of the record."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"file://{folder}")
        self.is_down = False
        self.loses_answers = 0
        self.conflicts_after = 0  # the store itself has repeated a write whose answer was lost
        self.on_write: Callable[[], object] = lambda: None
        self.downloads = self.uploads = 0

    def read(self, name: str) -> Any:
        self._check()
        return super().read(name)

    def write(self, name: str, content: bytes, expected: Version | None) -> Version:
        self._check()
        on_write, self.on_write = self.on_write, lambda: None
        on_write()
        version = super().write(name, content, expected)
        if self.loses_answers:
            self.loses_answers -= 1
            raise StoreDownError("the answer was lost")
        if self.conflicts_after:
            self.conflicts_after -= 1
            raise ConflictError
        return version

    def upload(self, name: str, source: Path) -> None:
        self._check()
        self.uploads += 1
        super().upload(name, source)

    def download(self, name: str, target: Path) -> bool:
        self._check()
        self.downloads += 1
        return super().download(name, target)

    def _check(self) -> None:
        if self.is_down:
            raise StoreDownError("the store is down")

    def record(self) -> StateRecord:
        found = FileStore.read(self, RECORD_NAME)
        return parse_record(found.content, self.url) if found is not None else StateRecord()


class Seconds:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Unreliable:
    (tmp_path / "state").mkdir()
    return Unreliable(tmp_path / "state")


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


def holder_of(name: str, sending: int | None = None) -> Holder:
    return Holder(f"host-{name}", 1, f"run-{name}", f"token-{name}", f"place-{name}", "job", sending)


def lease_of(store: Store, name: str, clock: Callable[[], float] | None = None) -> Lease:
    return Lease(store, holder_of(name), times=NEVER, clock=clock)


def expire(store: Unreliable, folder: Path) -> None:
    os.utime(folder / "state" / RECORD_NAME, (0, 0))


# The lease ------------------------------------------------------------------------------------------------------------


def test_lease_is_taken_by_one(store: Unreliable) -> None:
    lease_of(store, "a").take()
    with pytest.raises(LedgerBusyError, match=r"process 1 on host-a \(run run-a\) holds file:"):
        lease_of(store, "b").take()


@pytest.mark.parametrize("is_first", [True, False])
def test_two_that_take_it_at_the_same_moment_get_it_once(store: Unreliable, tmp_path: Path, is_first: bool) -> None:
    if not is_first:
        lease_of(store, "before").take()
        expire(store, tmp_path)
    store.on_write = lambda: lease_of(store, "b").take()
    with pytest.raises(LedgerBusyError, match="host-b"):
        lease_of(store, "a").take()
    assert store.record().holder == holder_of("b")


def test_lease_whose_answer_was_lost_is_known_as_ones_own(store: Unreliable) -> None:
    store.conflicts_after = 1
    lease = lease_of(store, "a")
    assert lease.take() is None
    lease.renew()
    assert store.record().holder == holder_of("a")


def test_write_that_arrived_without_an_answer_does_not_lose_the_lease(store: Unreliable) -> None:
    lease = lease_of(store, "a")
    lease.take()
    store.loses_answers = 1
    with pytest.raises(StoreDownError):
        lease.change(lambda record: replace(record, resends=()))
    lease.renew()
    store.conflicts_after = 1
    lease.renew()
    assert not lease.is_lost


def test_renewal_after_a_takeover_loses_the_lease_and_changes_nothing(store: Unreliable, tmp_path: Path) -> None:
    lease = lease_of(store, "a")
    lease.take()
    expire(store, tmp_path)
    lease_of(store, "b").take()
    before = store.record()
    with pytest.raises(LeaseLostError):
        lease.renew()
    assert (lease.is_lost, lease.is_valid(), store.record()) == (True, False, before)


def test_lease_that_was_given_back_without_an_answer_is_not_taken_from_the_next_run(store: Unreliable) -> None:
    lease = lease_of(store, "a")
    lease.take()
    store.loses_answers = 1
    with pytest.raises(StoreDownError):
        lease.change(lambda record: replace(record, holder=None))
    lease_of(store, "b").take()
    with pytest.raises(LeaseLostError):
        lease.change(lambda record: replace(record, holder=None))
    assert store.record().holder == holder_of("b")


def test_lease_that_was_given_back_is_renewed_no_more(store: Unreliable) -> None:
    lease = lease_of(store, "a")
    lease.take()
    lease.change(lambda record: replace(record, holder=None))
    lease_of(store, "b").take()
    lease.renew()
    assert (store.record().holder, lease.is_lost) == (holder_of("b"), False)


def test_lease_counts_from_before_the_renewal_was_sent(store: Unreliable, clock: Seconds) -> None:
    lease = lease_of(store, "a", clock)
    lease.take()

    def wait() -> None:
        clock.now += 50

    store.on_write = wait
    lease.renew()  # the answer takes 50 s
    clock.now += 49.9
    assert lease.is_valid()
    clock.now += 0.2
    assert not lease.is_valid()


def test_holder_stops_before_anybody_else_may_begin() -> None:
    times = Times()
    assert times.stops_after_s + 20 <= times.lasts_s < times.lasts_s + times.margin_s
    assert times.renewed_every_s * 3 < times.stops_after_s
    assert times.put_back_every_s + 10 <= 60


def test_lease_that_was_renewed_lately_is_not_taken_over(store: Unreliable, tmp_path: Path) -> None:
    lease_of(store, "a").take()
    path = tmp_path / "state" / RECORD_NAME
    now = path.stat().st_mtime
    os.utime(path, (now - 120, now - 120))
    with pytest.raises(LedgerBusyError):
        lease_of(store, "b").take()
    os.utime(path, (now - 126, now - 126))
    assert lease_of(store, "b").take() == holder_of("a")


def test_clock_goes_on_while_the_machine_sleeps_and_when_it_is_set_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = AwakeClock()
    assert 0 <= clock() < 60
    monkeypatch.setattr("time.time", lambda: 2e12)
    ahead = clock()
    assert ahead > 1e9
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert ahead <= clock() < ahead + 60


@pytest.mark.parametrize("ignored", [None, "newer"])
def test_store_that_does_not_compare_is_refused_again_and_again(
    store: Unreliable, monkeypatch: pytest.MonkeyPatch, ignored: str | None
) -> None:
    write = FileStore.write

    def without_comparing(store: FileStore, name: str, content: bytes, expected: Version | None) -> Version:
        found = FileStore.read(store, name)
        if found is not None and (expected is None) == (ignored is None):
            expected = found.version
        return write(store, name, content, expected)

    monkeypatch.setattr(FileStore, "write", without_comparing)
    for _ in range(2):
        with pytest.raises(StoreRefusedError, match="replaces objects whatever they were"):
            lease_of(store, "a").take()
        assert store.record() == StateRecord()


def test_record_of_another_version_is_refused(store: Unreliable, tmp_path: Path) -> None:
    name = "iterable_ledger.000001-01234567.sqlite3"
    copies: list[dict[str, Any]] = [{"name": f"../{name}", "number": 1}, {"name": name, "number": "1"}]
    empty = asdict(StateRecord()) | {"format": 1}
    others = [json.dumps(empty | {"snapshot": each | {"size": 1, "digest": ""}}).encode() for each in copies]
    for content in (b"", b"[]", b'{"format": 2}', b'{"format": 1, "holder": {"host": "a"}}', *others):
        (tmp_path / "state" / RECORD_NAME).write_bytes(content)
        with pytest.raises(StoreRefusedError, match="was not written by this version"):
            lease_of(store, "a").take()


# Keepers --------------------------------------------------------------------------------------------------------------


class Machine:
    """A run on a machine of its own, step by step. It notes its own name in the ledger where it has sent something."""

    def __init__(self, store: Unreliable, folder: Path, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.keeper = RemoteKeeper(store, folder, "job", replaces_damaged=False, **options)
        self._stack = ExitStack()

    def open(self) -> Machine:
        self.file = self._stack.enter_context(hold_file(self.folder, 0, fetch=self.keeper.fetch))
        self.keeper.begin_run(self.folder.name)
        return self

    def send(self, *names: str) -> Machine:
        self.keeper.begin_sending(10, is_part=False)
        return self.enter(*names)

    def enter(self, *names: str) -> Machine:
        self.file.database.execute("BEGIN")
        self.file.database.executemany("INSERT INTO dropped_fields VALUES (1, 'user', ?)", [(name,) for name in names])
        self.file.database.execute("COMMIT")
        self.keeper.note_accepted(len(names))
        return self

    def names(self) -> list[str]:
        return [name for (name,) in self.file.database.execute("SELECT name FROM dropped_fields ORDER BY name")]

    def finish(self, *, is_settled: bool = True) -> Ending:
        ending = self.keeper.finish(self.keeper.confirm(DONE), is_settled=is_settled)
        self._stack.close()
        return ending

    def die(self) -> None:
        """As by SIGKILL: nothing more is written to the store, and the ledger stays as it is."""
        self.keeper._is_over.set()
        self.keeper._lease.is_lost = True
        copies = {path: path.read_bytes() for path in self.folder.glob(f"{LEDGER_NAME}*")}
        note = (self.folder / "iterable_ledger.copy.json").read_bytes()
        self._stack.close()
        for path, content in copies.items():
            path.write_bytes(content)
        (self.folder / "iterable_ledger.copy.json").write_bytes(note)


@pytest.fixture
def machine(store: Unreliable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    monkeypatch.setattr("pipeline.state.lease.TIMES", NEVER)
    return lambda name: Machine(store, tmp_path / name)


def stored_names(store: Unreliable, tmp_path: Path) -> list[str]:
    snapshot = store.record().snapshot
    assert snapshot is not None
    with closing(sqlite3.connect(tmp_path / "state" / snapshot.name)) as database:
        return [name for (name,) in database.execute("SELECT name FROM dropped_fields ORDER BY name")]


def test_each_run_finds_what_all_before_it_have_put_back(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    assert machine("a").open().send("one").finish() == DONE
    assert machine("b").open().send("two").finish() == DONE
    third = machine("a").open()
    assert third.names() == ["one", "two"]
    assert third.finish() == DONE
    assert stored_names(store, tmp_path) == ["one", "two"]


def test_put_back_whose_answer_was_lost_counts(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    store.conflicts_after = 1
    assert first.finish() == DONE
    assert machine("b").open().names() == ["one"]


def test_later_write_keeps_the_copy_of_a_put_back_whose_answer_was_lost(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    store.loses_answers = 1
    with pytest.raises(StoreDownError):
        first.keeper._put_back(lambda record: record)
    first.keeper._lease.renew()
    assert stored_names(store, tmp_path) == ["one"]
    first.enter("two")
    assert first.finish() == DONE
    assert stored_names(store, tmp_path) == ["one", "two"]
    assert machine("a").open().names() == ["one", "two"]


def test_run_that_lost_its_lease_while_it_uploaded_puts_nothing_back(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    second = machine("b")

    def take_over() -> None:
        expire(store, tmp_path)
        second.open().send("two")

    store.on_write = take_over
    with pytest.raises(LeaseLostError):
        first.keeper._put_back(lambda record: record)
    assert stored_names(store, tmp_path) == []  # as the second one has put it back before it sent
    with pytest.raises(Abandoned):
        first.keeper._abandon_if_over()
    assert first.finish().code is ExitCode.TEMPORARY
    assert second.finish() == DONE
    assert stored_names(store, tmp_path) == ["two"]
    assert len(list((tmp_path / "state").glob("*.sqlite3"))) == 1


def test_last_copy_of_a_run_that_was_overtaken_goes_nowhere(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    expire(store, tmp_path)
    assert machine("b").open().send("two").finish() == DONE
    store.uploads = 0
    assert (first.finish().code, store.uploads) == (ExitCode.TEMPORARY, 0)
    again = machine("a").open()
    assert again.names() == ["two"]
    assert again.finish() == DONE
    assert stored_names(store, tmp_path) == ["two"]


def test_copy_that_was_not_put_back_is_not_put_over_a_newer_one(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    machine("a").open().send("one").die()
    expire(store, tmp_path)
    second = machine("b").open()
    assert second.keeper.resend is not None
    assert (second.keeper.resend.run, second.keeper.resend.records) == ("a", 10)
    second.send("two").die()
    expire(store, tmp_path)
    again = machine("a").open()
    assert again.names() == []
    assert again.keeper.resend is not None
    assert again.keeper.resend.run == "b"


def test_killed_run_is_continued_on_its_machine_and_its_notice_goes(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    machine("a").open().send("one").die()
    again = machine("a").open()
    assert (again.names(), again.keeper.resend) == (["one"], None)
    assert stored_names(store, tmp_path) == ["one"]
    again.send("two").die()
    third = machine("a").open()
    assert (third.names(), third.keeper.resend, third.finish()) == (["one", "two"], None, DONE)
    assert store.record().resends == ()


def test_folder_that_was_copied_is_not_taken_for_the_one_that_had_the_lease(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    first.enter("two")
    first.die()
    with pytest.raises(LedgerBusyError):
        machine("copy").open()
    expire(store, tmp_path)
    copy = machine("copy").open()
    assert (copy.names(), copy.keeper.resend is not None) == ([], True)
    assert copy.finish(is_settled=False) == DONE


def test_store_that_is_down_at_the_end_keeps_the_notice_until_the_machine_is_back(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    first = machine("a").open().send("one")
    store.is_down = True
    ending = first.finish()
    assert ending.code is ExitCode.TEMPORARY
    assert ending.reason.startswith("All done. The ledger could not be put back (the store is down); ")
    store.is_down = False
    again = machine("a").open()
    assert (again.names(), again.keeper.resend, again.finish()) == (["one"], None, DONE)
    assert stored_names(store, tmp_path) == ["one"]


def test_lease_is_renewed_while_the_last_copy_is_uploaded(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.state.lease.TIMES", replace(NEVER, renewed_every_s=0.01))
    first = machine("a").open().send("one")
    upload = FileStore.upload

    def slowly(store: Unreliable, name: str, source: Path) -> None:
        write = store.record().write
        wait_until(lambda: store.record().write != write, timeout_s=5)
        upload(store, name, source)

    monkeypatch.setattr(Unreliable, "upload", slowly)
    assert first.finish() == DONE
    assert store.record().holder is None
    assert stored_names(store, tmp_path) == ["one"]


def test_upload_that_fails_at_the_end_gives_the_lease_back_with_a_notice(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine("a").open().send("one")
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "upload", lambda *_: (_ for _ in ()).throw(StoreDownError("no room")))
        assert first.finish().code is ExitCode.TEMPORARY
    second = machine("b").open()
    assert second.keeper.resend is not None
    assert second.keeper.resend.records == 10
    second.finish(is_settled=False)
    assert machine("a").open().names() == []


def test_first_copy_that_nothing_names_is_swept_and_later_ones_without_a_record_stop_the_run(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    (tmp_path / "state/iterable_ledger.000001-01234567.sqlite3").touch()
    assert machine("a").open().send("one").finish() == DONE
    (tmp_path / "state" / RECORD_NAME).unlink()
    for _ in range(2):
        second = machine("b").open()
        assert "has copies, and iterable_ledger.state.json does not say which one counts" in second.file.damage
        second.finish()
    assert store.record().snapshot is None


def test_run_without_news_moves_nothing_but_its_own_copy(
    store: Unreliable, tmp_path: Path, machine: Callable[..., Machine]
) -> None:
    machine("a").open().send("one").finish()
    store.uploads = store.downloads = 0
    machine("a").open().finish()
    assert (store.uploads, store.downloads) == (1, 0)
    machine("b").open().finish()
    assert (store.uploads, store.downloads) == (2, 1)
