"""The keeper of a ledger that lives in a store: fetched under a lease, put back while the run sends and at its end.

Two threads beside the run: one renews the lease, one puts copies back. Neither keeps the run from sending.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from iterable.pacing import Abandoned
from pipeline.ledger.file import Fetched, LedgerError
from pipeline.model.exits import Ending, ExitCode, RunError
from pipeline.model.failure_policy import GO_ON
from pipeline.state.keeper import Keeper
from pipeline.state.lease import Lease, LeaseLostError, resend_of
from pipeline.state.local import LocalCopy, Note, damage_of
from pipeline.state.record import COPY, RECORD_NAME, Holder, Snapshot, StateRecord
from pipeline.state.store import Store, StoreDownError

logger = logging.getLogger("pipeline.state")

_PROBLEMS = (RunError, OSError, sqlite3.Error)
_UNFINISHED = re.compile(r"\.iterable_ledger\.new-\w+")  # what FileStore has left, killed as it wrote


class RemoteKeeper(Keeper):
    """Keeps the ledger of one run in a store."""

    is_remote = True

    def __init__(self, store: Store, folder: Path, job: str, *, replaces_damaged: bool) -> None:
        """job: tells this project and query from others. replaces_damaged: --yes."""
        self._store = store
        self._local = LocalCopy(folder)
        self._job = job
        self._replaces_damaged = replaces_damaged
        self.fetch = self._fetch
        self.before_request = self._abandon_if_over
        self._lease: Lease
        self._note: Note
        self._token = secrets.token_hex(8)
        self._is_usable = True  # whether the ledger of this run is what is stored, and not an empty one in its place
        self._has_grown = False  # the local copy has what an earlier run could not put back
        self._is_put_back = False
        self._has_said_so = False  # that it could not be put back
        self._is_ending = threading.Event()  # the last copy is about to be put back
        self._is_over = threading.Event()
        self._putting_back = threading.Lock()
        self._left = 0  # records that may still be sent, as far as the ledger knows
        self._left_in_store = 0  # the same for the copy that is stored

    # At the start ---------------------------------------------------------------------------------------------

    def _fetch(self, stack: ExitStack) -> Fetched:
        self._note = self._local.note()
        place = self._local.place(self._note)
        holder = Holder(socket.gethostname(), os.getpid(), "", self._token, place, self._job)
        self._lease = Lease(self._store, holder)
        before = self._lease.take()
        stack.callback(self._let_go)
        self._start(self._renew_again_and_again)
        try:
            fetched = self._bring()
            self._is_usable = not fetched.damage
            if self._is_usable:
                self._begin_from(self._lease.record.snapshot)
        except (OSError, sqlite3.Error) as problem:
            raise LedgerError(f"The copy of the ledger {self._local.path} can't be written ({problem}).") from problem
        self.resend = self._lease.record.resend_of(self._job)
        if before is not None and self._is_usable:
            self._sweep()
        return fetched

    def _bring(self) -> Fetched:
        """Have the ledger in the folder: what is stored, or what this folder has made of it since."""
        note, stored = self._note, self._lease.record.snapshot
        is_here = note.url == self._store.url
        if is_here and note.snapshot == (stored.name if stored is not None else ""):
            self._has_grown = self._local.has_grown(note)
            if self._has_grown or self._local.is_untouched(note):
                return Fetched()
        if is_here and note.number > (stored.number if stored is not None else 0):
            if not self._replaces_damaged:
                return Fetched(self._damage(f"is older than the copy in {self._local.path}, which was put there"))
            self._local.set_aside(time.time())
        return self._take_in(stored) if stored is not None else self._begin_anew(is_here)

    def _begin_anew(self, is_here: bool) -> Fetched:
        """Nothing is stored. A ledger that was never stored anywhere is the one that will be."""
        if any(number > 1 for number in _copies_among(self._store.names()).values()) and not self._replaces_damaged:
            return Fetched(self._damage(f"has copies, and {RECORD_NAME} does not say which one counts"))
        kept = self._local.set_aside(time.time()) if self._note.url and not is_here else None
        if (damage := self._local.damage()) and not self._replaces_damaged:
            return Fetched(f"The ledger {self._local.path} is damaged ({damage}).")
        return Fetched(warning=self._replaced(kept))

    def _take_in(self, stored: Snapshot) -> Fetched:
        file = self._local.scratch()
        try:
            is_there = self._store.download(stored.name, file)
            damage = damage_of(file, stored) if is_there else None
            if (damage is not None or not is_there) and not self._replaces_damaged:
                reason = damage.reason if damage is not None else "it is gone"
                return Fetched(self._damage(f"is damaged ({reason})"))
            if is_there and (damage is None or damage.is_ledger):
                return Fetched(warning=self._replaced(self._local.take_in(time.time())))
            self._local.set_aside(time.time())
            kept = f" It is now {self._local.keep_fetched(time.time()).name}." if is_there else ""
            return Fetched(warning=f"The ledger at {self._store.url} can't be used, and a new one has begun.{kept}")
        finally:
            self._local.drop_scratch()

    def _replaced(self, kept: Path | None) -> str:
        if kept is None:
            return ""
        return (
            f"The ledger in {kept.parent} was no copy of the one at {self._store.url}, which counts; what it alone "
            f"knows may be sent again. It is now {kept.name}."
        )

    def _damage(self, what: str) -> str:
        return f"The ledger at {self._store.url} {what}."

    def _begin_from(self, stored: Snapshot | None) -> None:
        """From here on, the local copy grows."""
        name, number = (stored.name, stored.number) if stored is not None else ("", 0)
        if not self._has_grown:
            note = self._note
            self._note = Note(note.folder, note.home, self._store.url, name, number, began_as=number, token=self._token)
            self._local.write_note(self._note)
            self._local.set_number(number)

    def _sweep(self) -> None:
        """Delete copies that runs have left which are over, and that nothing names: where nothing is stored yet, only
        what the first run has left."""
        stored = self._lease.record.snapshot
        names = self._store.names()
        for name, number in _copies_among(names).items():
            if name != stored.name if stored is not None else number == 1:
                self._store.delete(name)
        for name in filter(_UNFINISHED.fullmatch, names):
            self._store.delete(name)

    def begin_run(self, run_id: str) -> None:
        self._lease.name_run(run_id)
        if self._has_grown:
            logger.info("What an earlier run could not put back to %s is put back first.", self._store.url)
            known = self._note.token
            self._note = replace(self._note, token=self._token)
            self._put_back(lambda record: _without_resend_of(record, known))
            self.resend = self._lease.record.resend_of(self._job)

    # While it runs --------------------------------------------------------------------------------------------

    def ending(self) -> Ending | None:
        if self._lease.is_valid():
            return None
        if self._lease.is_lost:
            reason = f"Another run has taken the ledger at {self._store.url} over."
        else:
            reason = (
                f"{self._store.url} could not be reached for {self._lease.times.stops_after_s:g} s, so another run may "
                "begin."
            )
        return Ending(ExitCode.TEMPORARY, f"{reason} {GO_ON}")

    def _abandon_if_over(self) -> None:
        """Asked at the last moment, as a process that was stopped wakes up in the middle of its work."""
        if not self._lease.is_valid():
            raise Abandoned

    def begin_sending(self, records: int, *, is_part: bool) -> None:
        earlier = self.resend.records if self.resend is not None and is_part else 0
        self._left = records + earlier
        try:
            self._put_back(self._with_left(self._left))
        except StoreDownError as problem:
            raise StoreDownError(f"{problem} Nothing was sent.") from problem
        except (OSError, sqlite3.Error) as problem:
            raise StoreDownError(f"The ledger can't be copied ({problem}); nothing was sent.") from problem
        self._left_in_store = self._left
        self._start(self._put_back_again_and_again)

    def note_accepted(self, records: int) -> None:
        self._left -= records

    def _start(self, work: Callable[[], None]) -> None:
        try:
            threading.Thread(target=work, name="state", daemon=True).start()
        except RuntimeError as error:
            raise StoreDownError(f"The system refuses to start a thread ({error}). Nothing was sent.") from error

    def _renew_again_and_again(self) -> None:
        times = self._lease.times
        wait_s = times.renewed_every_s
        while not self._is_over.wait(wait_s):
            wait_s = times.tried_again_after_s
            try:
                self._lease.renew()
                wait_s = times.renewed_every_s
            except LeaseLostError as problem:
                logger.error("%s", problem)
                return
            except _PROBLEMS as problem:
                logger.warning("The lease could not be renewed: %s", problem)

    def _put_back_again_and_again(self) -> None:
        times = self._lease.times
        wait_s = times.put_back_every_s
        while not self._is_ending.wait(wait_s):
            wait_s = times.put_back_every_s
            left = self._left
            if left == self._left_in_store:
                continue
            try:
                self._put_back(self._with_left(left))
                self._left_in_store = left
            except LeaseLostError:
                return
            except _PROBLEMS as problem:
                wait_s = times.tried_again_after_s
                logger.warning("The ledger could not be put back: %s", problem)

    @staticmethod
    def _with_left(records: int) -> Callable[[StateRecord], StateRecord]:
        def changed(record: StateRecord) -> StateRecord:
            holder = replace(record.holder, sending=records) if record.holder is not None else None
            return replace(record, holder=holder)

        return changed

    def _put_back(self, changed: Callable[[StateRecord], StateRecord], *, is_last: bool = False) -> None:
        """Store what is committed by now. Raises RunError, OSError or sqlite3.Error, and then it is not stored."""
        with self._putting_back:
            if self._is_ending.is_set() and not is_last:
                return
            if self._lease.is_lost:
                raise LeaseLostError(f"Another run has taken {self._store.url} over.")
            stored = self._lease.record.snapshot
            try:
                snapshot = self._local.copy((stored.number if stored is not None else 0) + 1)
                self._store.upload(snapshot.name, self._local.scratch_path)
            finally:
                self._local.drop_scratch()
            try:
                before = self._lease.change(lambda record: replace(changed(record), snapshot=snapshot)).snapshot
            except LeaseLostError:
                self._store.delete(snapshot.name)
                raise
            self._note = replace(self._note, snapshot=snapshot.name, number=snapshot.number)
            self._local.write_note(self._note)
            if before is not None:
                self._store.delete(before.name)

    # At the end -----------------------------------------------------------------------------------------------

    def confirm(self, ending: Ending) -> Ending:
        problem = self.ending()
        if problem is not None:
            return ending if ending.code is problem.code else _with_problem(ending, problem.reason)
        try:
            self._lease.renew()
        except RunError as error:
            return self._not_put_back(ending, error)
        return ending

    def finish(self, ending: Ending, *, is_settled: bool) -> Ending:
        self._is_ending.set()  # the lease is renewed until it is given back, as a large copy takes its time
        if not self._is_usable:
            return ending
        try:
            self._put_back(lambda record: self._released(record, is_settled), is_last=True)
            self._is_put_back = True
        except _PROBLEMS as error:
            return self._not_put_back(ending, error)
        return ending

    def _released(self, record: StateRecord, is_settled: bool) -> StateRecord:
        record = replace(record, holder=None)
        return record.with_resend(self._job, None) if is_settled else record

    def _not_put_back(self, ending: Ending, error: Exception) -> Ending:
        if self._has_said_so:
            return ending
        self._has_said_so = True
        left = f"{self._local.path} has it, and the next run on this machine puts it back first."
        if self._lease.is_lost:
            left = "what it alone knows is sent again."
        return _with_problem(ending, f"The ledger could not be put back ({str(error).rstrip('.')}); {left}")

    def _let_go(self) -> None:
        """The ledger is closed. Give the lease back, if that is not done yet."""
        self._is_ending.set()
        self._is_over.set()
        with suppress(*_PROBLEMS):
            if self._is_put_back:
                self._local.write_note(replace(self._note, looks=self._local.looks()))
            else:
                self._lease.change(_given_up)


def _copies_among(names: Iterable[str]) -> dict[str, int]:
    """The copies of the ledger, with their numbers."""
    return {each[0]: int(each[1]) for each in map(COPY.fullmatch, names) if each is not None}


def _given_up(record: StateRecord) -> StateRecord:
    if record.holder is not None and record.holder.sending:
        record = record.with_resend(record.holder.job, resend_of(record.holder))
    return replace(record, holder=None)


def _without_resend_of(record: StateRecord, token: str) -> StateRecord:
    return replace(record, resends=tuple(each for each in record.resends if each.token != token))


def _with_problem(ending: Ending, problem: str) -> Ending:
    code = ExitCode.TEMPORARY if ending.code in (ExitCode.SUCCESS, ExitCode.REJECTED) else ending.code
    return Ending(code, f"{ending.reason} {problem}".rstrip())
