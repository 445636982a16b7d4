"""Whole runs whose ledger lives elsewhere: machines that come and go, are killed, stopped, and lose the store."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.ledger.ledger import LEDGER_NAME
from pipeline.ledger.lock import hold_lock
from pipeline.sandbox import StandIn
from pipeline.state.record import RECORD_NAME
from tests.program import ROOT, Finished, has_logged, wait_until
from tests.state.machines import Machine, Machines

KILLED = "ended without putting its ledger back"


def delivered(run: Finished) -> int:
    return sum(run.results["counts"][kind]["delivered"] for kind in ("users", "events"))


def begin(machines: Machines, machine: Machine, at_least: int = 6) -> subprocess.Popen[str]:
    """A run that has sent some of its records, slowly."""
    before = machines.sends()
    process = machine.begin()
    wait_until(lambda: machines.sends() >= before + at_least or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# Taking turns ---------------------------------------------------------------------------------------------------------


def test_second_machine_sends_nothing_that_the_first_has_sent(machines: Machines) -> None:
    first, second = machines.machine("a").run(), machines.machine("b").run()
    assert (first.code, delivered(first), first.err) == (0, 40, "")
    assert (second.code, delivered(second), second.err) == (0, 0, "")
    assert machines.sends() == 40
    assert machines.record()["holder"] is None
    assert machines.copies() == [machines.record()["snapshot"]["name"]]
    assert {path.name for path in second.folder.iterdir()} >= {LEDGER_NAME, "iterable_ledger.copy.json"}
    assert {oct(path.stat().st_mode & 0o777) for path in machines.state.iterdir()} == {"0o600"}


def test_run_on_a_machine_that_has_the_newest_copy_fetches_nothing(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    before = (machine.folder / LEDGER_NAME).stat().st_ino
    assert machine.run().code == 0
    assert (machine.folder / LEDGER_NAME).stat().st_ino == before


def test_ledger_of_a_machine_is_the_first_that_is_stored(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run(STATE_URL=None)
    assert machine.run().code == 0
    assert machines.machine("b").run().code == 0
    assert machines.sends() == 40


def test_ledger_that_is_no_copy_of_the_stored_one_is_kept_under_another_name(machines: Machines) -> None:
    machine = machines.machine("b")
    machine.run("--limit", "3", STATE_URL=None)
    machines.machine("a").run()
    again = machine.run()
    (kept,) = again.files(f"{LEDGER_NAME}.replaced-*")
    assert (again.code, again.err) == (
        0,
        f"Warning: The ledger in {machine.folder} was no copy of the one at file://{machines.state}, which counts; "
        f"what it alone knows may be sent again. It is now {kept.name}.\n",
    )
    assert machine.run().err == ""


@pytest.mark.parametrize("arguments", [["--forget", "user1@example.com", "--yes"], ["--verify", "--repair"]])
def test_who_changes_the_ledger_outside_of_a_run_says_so_too(machines: Machines, arguments: list[str]) -> None:
    machine = machines.machine("b")
    machine.run("--limit", "3", STATE_URL=None)
    machines.machine("a").run()
    assert "was no copy of the one at" in machine.run(*arguments).err


def test_ledger_that_grew_without_state_url_can_be_made_the_stored_one(machines: Machines) -> None:
    """As the handbook says."""
    machine = machines.machine("a")
    machine.run()
    machines.use_people(25)
    machine.run(STATE_URL=None)
    stopped = machine.run()
    assert (stopped.code, machines.sends()) == (65, 50)
    (kept,) = stopped.files(f"{LEDGER_NAME}.replaced-*")
    kept.rename(machine.folder / LEDGER_NAME)
    (machine.folder / "iterable_ledger.copy.json").unlink()
    for path in machines.state.iterdir():
        path.unlink()
    assert machine.run().code == 0
    assert machines.machine("b").run().code == 0
    assert machines.sends() == 50


def test_run_without_state_url_leaves_no_note_and_loads_nothing_of_it(machines: Machines) -> None:
    machine = machines.machine("a")
    script = machine.folder.parent / "loaded.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv.pop(1))\nimport main\ncode = main.main()\n"
        "print(sorted(name for name in sys.modules if name.startswith(('pipeline.state', 'obstore'))))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, str(script), root, "--env-file", str(machine.env_file), "--quiet"]
    environment = {**machine.settings, "PATH": "/usr/bin"}
    del environment["STATE_URL"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "['pipeline.state', 'pipeline.state.keeper', 'pipeline.state.reading', 'pipeline.state.store']"
    )
    assert not (machine.folder / "iterable_ledger.copy.json").exists()


# A second run ---------------------------------------------------------------------------------------------------------


def test_second_run_leaves_with_75_and_names_the_first(machines: Machines) -> None:
    first = begin(machines, machines.machine("a"))
    sends = machines.sends()
    second = machines.machine("b").run()
    holder = machines.record()["holder"]
    assert second.code == 75
    assert second.err.startswith(f"Another run is active: process {first.pid} on {holder['host']} (run {holder['run']}")
    assert second.files("*.csv") == []
    kill(first)
    assert machines.sends() >= sends


# Killed ---------------------------------------------------------------------------------------------------------------


def test_after_a_kill_another_machine_sends_again_what_is_not_known_and_says_how_many(machines: Machines) -> None:
    kill(begin(machines, machines.machine("a")))
    second = machines.machine("b")
    assert second.run().code == 75  # the lease lasts
    machines.let_lease_expire()
    run = second.run()
    assert run.code == 0
    assert f"{KILLED}: at most 40 records that it may have sent will be sent again" in run.err
    assert machines.record()["resends"] == []
    assert len(machines.iterable.project.users) == 20
    assert max(machines.iterable.project.event_sends.values()) <= 2
    assert machines.machine("c").run().err == ""


def test_after_a_kill_the_same_machine_goes_on_at_once_from_its_own_copy(machines: Machines) -> None:
    machine = machines.machine("a")
    kill(begin(machines, machine))
    run = machine.run()
    assert (run.code, run.err) == (0, "")
    assert machines.record()["resends"] == []
    assert machines.machine("b").run().results["counts"]["users"]["unchanged"] == 20


def test_brake_counts_what_a_killed_run_may_have_sent_and_keeps_the_notice(machines: Machines) -> None:
    kill(begin(machines, machines.machine("a")))
    machines.let_lease_expire()
    second = machines.machine("b")
    for _ in range(2):
        braked = second.run(MAX_CHANGES="5")
        assert braked.code == 65
        assert KILLED in braked.results["reason"]
        assert machines.record()["holder"] is None
        assert [each["records"] for each in machines.record()["resends"]] == [40]
    part = second.run("--limit", "1")
    assert (part.code, len(machines.record()["resends"])) == (0, 1)
    assert second.run("--yes", MAX_CHANGES="5").code == 0
    assert machines.record()["resends"] == []


def test_user_whose_new_value_was_sent_and_not_put_back_gets_the_old_one_again(machines: Machines) -> None:
    machines.machine("a").run()
    machines.use_people(20, plan="pro")
    kill(begin(machines, machines.machine("b")))
    machines.let_lease_expire()
    machines.use_people(20, plan="free")
    assert machines.machine("c").run().code == 0
    plans = {user["dataFields"]["plan"] for user in machines.iterable.project.users.values()}
    assert plans == {"free"}


def test_copies_that_killed_runs_have_left_are_deleted(machines: Machines) -> None:
    machines.machine("a").run()
    (machines.state / "iterable_ledger.000009-0123abcd.sqlite3").write_bytes(b"cut off")
    (machines.state / "mine.sqlite3").write_bytes(b"of somebody else")
    machines.use_people(30)
    kill(begin(machines, machines.machine("b")))
    machines.let_lease_expire()
    assert machines.machine("c").run().code == 0
    assert machines.copies() == [machines.record()["snapshot"]["name"]]
    assert (machines.state / "mine.sqlite3").exists()


def test_ledger_is_put_back_while_a_run_sends(machines: Machines) -> None:
    first = begin(machines, machines.machine("a", put_back_every_s=0.1))
    wait_until(lambda: machines.record()["holder"]["sending"] < 40)
    kill(first)
    machines.let_lease_expire()
    left = machines.record()["holder"]["sending"]
    run = machines.machine("b").run()
    assert f"{KILLED}: at most {left} records" in run.err
    assert delivered(run) <= left


# Stopped, and woken up ------------------------------------------------------------------------------------------------


def test_process_that_was_stopped_sends_nothing_more_when_it_wakes_up_too_late(machines: Machines) -> None:
    first = begin(machines, machines.machine("a", stops_after_s=1.5, renewed_every_s=0.2))
    first.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    machines.let_lease_expire()
    machines.use_people(25)
    assert machines.machine("b").run().code == 0
    wait_until(lambda: time.monotonic() > stopped_at + 2)  # in life, nobody takes it over before 100 s have passed
    number, sends = machines.record()["snapshot"]["number"], machines.sends()
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 75
    assert "Another run" in err or "could not be reached" in err
    lost = f"Another run has taken file://{machines.state} over"
    assert err.endswith(f"The ledger could not be put back ({lost}); what it alone knows is sent again.\n")
    assert machines.sends() == sends
    assert machines.record()["snapshot"]["number"] == number
    assert machines.machine("c").run().code == 0
    assert machines.sends() == sends


def test_lease_that_another_run_has_taken_ends_the_sending(machines: Machines) -> None:
    first = begin(machines, machines.machine("a", renewed_every_s=0.05, tried_again_after_s=0.05))
    with hold_lock(machines.state / "iterable_ledger.state.lock"):  # or the run may write at the same moment
        record = machines.record() | {"write": "of another run"}
        record["holder"] |= {"token": "another", "host": "another"}
        new = machines.folder / "record"
        new.write_text(json.dumps(record))
        new.replace(machines.state / RECORD_NAME)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 75
    assert "Another run has taken the ledger" in err
    assert machines.sends() < 40
    assert machines.record() == record


# The store is down, or refuses ----------------------------------------------------------------------------------------


def test_store_that_is_lost_during_a_run_ends_it_when_the_lease_would_expire(machines: Machines) -> None:
    machine = machines.machine("a", renewed_every_s=0.05, stops_after_s=1.5, tried_again_after_s=0.05)
    first = begin(machines, machine)
    sends = machines.sends()
    machines.state.rename(machines.folder / "lost")
    wait_until(lambda: machines.sends() > sends + 1)  # goes on with its own copy
    _, err = first.communicate(timeout=30)
    assert first.returncode == 75
    assert "could not be reached for 1.5 s, so another run may begin" in err
    assert machines.sends() < 40
    (machines.folder / "lost").rename(machines.state)
    again = machine.run()
    assert (again.code, again.err) == (0, "")
    assert machines.machine("b").run().results["counts"]["users"]["unchanged"] == 20


def test_ledger_that_cannot_be_put_back_at_the_end_is_75_and_put_back_first_by_the_next_run(machines: Machines) -> None:
    machines.use_people(10)
    machine = machines.machine("a")
    first = begin(machines, machine)
    machines.state.rename(machines.folder / "lost")
    _, err = first.communicate(timeout=30)
    assert first.returncode == 75
    assert err.count("The ledger could not be put back") == 1
    (results,) = machine.folder.glob("integration_results_*.json")
    assert json.loads(results.read_text())["exit_code"] == 75  # it is known before they are written
    assert str(machine.folder / LEDGER_NAME) in err
    (machines.folder / "lost").rename(machines.state)
    assert machines.record()["snapshot"]["number"] == 1
    sends = machines.sends()
    again = machine.run()
    assert (again.code, again.err, machines.sends()) == (0, "", sends)
    assert has_logged(machine, "is put back first")
    assert machines.record()["resends"] == []


def test_older_copy_never_replaces_a_newer_one(machines: Machines) -> None:
    """The machine whose ledger was not put back comes back after another one has gone on."""
    machines.use_people(10)
    machine = machines.machine("a")
    first = begin(machines, machine)
    machines.state.rename(machines.folder / "lost")
    first.communicate(timeout=30)
    (machines.folder / "lost").rename(machines.state)
    machines.let_lease_expire()
    machines.use_people(30)
    second = machines.machine("b").run()
    assert (second.code, KILLED in second.err) == (0, True)
    sends = machines.sends()
    again = machine.run()
    assert (again.code, again.err, machines.sends()) == (0, "", sends)


def test_store_that_refuses_is_78_and_nothing_is_sent(machines: Machines) -> None:
    shutil.rmtree(machines.state)
    run = machines.machine("a").run()
    assert (run.code, machines.requests()) == (78, 0)
    assert run.err == (
        f"STATE_URL names {machines.state}, which can't be used ({machines.state} is not a folder); create the folder, "
        "and let this user write there.\n"
    )


def test_store_that_is_down_is_75_and_69_when_the_copy_here_knows_that_it_lasts(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    machines.use_people(30)
    requests = machines.requests()
    with hold_lock(machines.state / "iterable_ledger.state.lock"):
        codes = [machine.run(ALERT_AFTER="3") for _ in range(4)]
        ephemeral = machines.machine("b").run(ALERT_AFTER="1")
    assert [each.code for each in codes] == [75, 75, 69, 69]
    assert "which another program locks" in codes[0].err
    assert "in 3 runs in a row" in codes[2].err
    assert ephemeral.code == 75
    assert machines.requests() == requests
    again = machine.run()
    assert (again.code, delivered(again)) == (0, 20)
    history = machines.machine("c").run("--history").out
    assert history.count("failed") == 4


# What is stored can't be used -----------------------------------------------------------------------------------------


def test_damaged_copy_is_the_brakes_65_and_yes_begins_anew(machines: Machines) -> None:
    machines.machine("a").run()
    name = machines.record()["snapshot"]["name"]
    (machines.state / name).write_bytes(b"damaged")
    for machine in ("b", "c"):
        run = machines.machine(machine).run()
        assert run.code == 65
        assert f"The ledger at file://{machines.state} is damaged (file is not a database)" in run.results["reason"]
        assert machines.record()["snapshot"]["name"] == name
        assert machines.record()["holder"] is None
    assert machines.sends() == 40
    anew = machines.machine("b").run("--yes")
    assert (anew.code, [path.read_bytes() for path in anew.files(f"{LEDGER_NAME}.damaged-*")]) == (0, [b"damaged"])
    assert machines.machine("c").run().code == 0
    assert machines.sends() == 80


def test_older_copy_in_the_place_of_the_newest_is_65(machines: Machines) -> None:
    machines.machine("a").run()
    older = (machines.state / machines.record()["snapshot"]["name"]).read_bytes()
    machines.use_people(30)
    machines.machine("a").run()
    (machines.state / machines.record()["snapshot"]["name"]).write_bytes(older)
    machines.use_people(31)
    run = machines.machine("b").run()
    assert run.code == 65
    assert "is damaged (it was put back 2 times, and should have been 4 times)" in run.results["reason"]
    assert machines.machine("b").run("--dry-run").code == 65


def test_copy_that_somebody_has_changed_is_65(machines: Machines) -> None:
    machines.machine("a").run()
    with closing(sqlite3.connect(machines.state / machines.record()["snapshot"]["name"])) as database, database:
        database.execute("DELETE FROM events")
    run = machines.machine("b").run()
    assert (run.code, machines.sends()) == (65, 40)
    assert "is damaged (its content is not what was put there)" in run.results["reason"]


def test_store_that_was_set_back_is_65_where_the_copy_here_is_newer(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    shutil.copytree(machines.state, machines.folder / "backup")
    machines.use_people(30)
    machine.run()
    shutil.rmtree(machines.state)
    (machines.folder / "backup").rename(machines.state)
    machines.use_people(31)
    run = machine.run()
    assert run.code == 65
    assert f"is older than the copy in {machine.folder / LEDGER_NAME}" in run.results["reason"]


def test_store_that_has_lost_everything_is_65_where_a_copy_is_here(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    shutil.rmtree(machines.state)
    machines.state.mkdir()
    machines.use_people(30)
    assert machine.run().code == 65
    assert machines.sends() == 40


def test_backup_that_was_put_in_the_place_of_the_local_copy_is_not_taken_for_it(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run("--limit", "5")
    backup = (machine.folder / LEDGER_NAME).read_bytes()
    machine.run()
    (machine.folder / LEDGER_NAME).write_bytes(backup)
    assert machine.run().code == 0
    assert machines.sends() == 40


def test_copy_of_a_killed_run_that_was_replaced_by_an_older_one_is_not_put_back(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run("--limit", "5")
    backup = (machine.folder / LEDGER_NAME).read_bytes()
    machine.run("--limit", "8")
    kill(begin(machines, machine))
    for path in machine.folder.glob(f"{LEDGER_NAME}-*"):
        path.unlink()
    (machine.folder / LEDGER_NAME).write_bytes(backup)
    run = machine.run()
    assert run.code == 0
    assert KILLED in run.err


def test_local_copy_that_is_damaged_at_rest_is_fetched_again_and_never_stored(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    path, note = machine.folder / LEDGER_NAME, machine.folder / "iterable_ledger.copy.json"
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    found = path.stat()
    looks = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    note.write_text(json.dumps(json.loads(note.read_text()) | {"looks": looks}))
    assert machine.run().code == 0
    assert machines.machine("b").run().code == 0
    assert machines.sends() == 40


def test_what_a_killed_upload_has_left_on_a_shared_disk_is_deleted(machines: Machines) -> None:
    kill(begin(machines, machines.machine("a")))
    (machines.state / ".iterable_ledger.new-abc_123").write_bytes(b"half")
    machines.let_lease_expire()
    assert machines.machine("b").run().code == 0
    assert not list(machines.state.glob(".*"))


@pytest.mark.parametrize("content", [b"garbage" * 1000, b""])
def test_damaged_ledger_of_the_machine_that_begins_is_65_and_never_stored(machines: Machines, content: bytes) -> None:
    machine = machines.machine("a")
    (machine.folder / LEDGER_NAME).write_bytes(content)
    run = machine.run()
    assert (run.code, machines.sends(), machines.record()["snapshot"]) == (65, 0, None)
    assert f"The ledger {machine.folder / LEDGER_NAME} is damaged" in run.err
    assert "could not be put back" not in run.err
    assert machine.run("--yes").code == 0
    assert machines.machine("b").run().code == 0
    assert machines.sends() == 40


def test_folder_where_the_copy_cannot_be_written_is_73(machines: Machines) -> None:
    machine = machines.machine("a")
    machine.run()
    (machine.folder / "iterable_ledger.copy.json.new").mkdir()
    run = machine.run()
    assert run.code == 73
    assert f"The copy of the ledger {machine.folder / LEDGER_NAME} can't be written" in run.err
    assert machines.record()["holder"] is None


# Several projects -----------------------------------------------------------------------------------------------------


def test_one_store_holds_several_projects_and_each_has_its_own_notice(machines: Machines) -> None:
    kill(begin(machines, machines.machine("a")))
    machines.let_lease_expire()
    with StandIn() as another:
        run = machines.machine("b").run(ITERABLE_BASE_URL=another.url)
    assert (run.code, run.err) == (0, "")
    assert len(machines.record()["resends"]) == 1
    assert KILLED in machines.machine("c").run().err
    name = machines.record()["snapshot"]["name"]
    with closing(sqlite3.connect(machines.state / name)) as database:
        assert database.execute("SELECT count(*) FROM projects").fetchone() == (2,)


# Those who only look --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--history"], ["--check"], ["--verify"], ["--dry-run"]])
def test_others_read_from_there_without_a_lease(machines: Machines, arguments: list[str]) -> None:
    machines.machine("a").run()
    before = machines.record()
    run = machines.machine("b").run(*arguments)
    assert run.code == (75 if arguments == ["--verify"] and "settle" in run.err else 0)
    assert machines.record()["snapshot"]["number"] - before["snapshot"]["number"] == (arguments == ["--verify"])
    shown = {
        "--history": "users +20, events +20",
        "--check": f"40 records are known to be in Iterable, by the ledger at file://{machines.state}",
        "--verify": "20 users compared",
        "--dry-run": "0 users would be sent, 20 unchanged",
    }
    assert shown[arguments[0]] in run.out


def test_they_say_that_a_run_is_active(machines: Machines) -> None:
    machine, other = machines.machine("a"), machines.machine("b")
    first = begin(machines, machine)
    runs = [each.run("--check") for each in (machine, other)]
    assert "running" in machine.run("--history").out
    kill(first)
    assert [each.code for each in runs] == [75, 75]
    assert all(f"process {first.pid} on " in each.out for each in runs)
    assert machine.run("--check").code == 0  # where it is known to be over
    assert other.run("--check").code == 75


def test_repair_is_put_back(machines: Machines) -> None:
    machines.machine("a").run()
    machines.iterable.project.users["user3@example.com"]["dataFields"]["plan"] = "changed by hand"
    assert machines.machine("b").run("--verify", "all", "--repair").code == 1
    assert delivered(machines.machine("c").run()) == 1


# The other stores -----------------------------------------------------------------------------------------------------


def test_object_store_without_obstore_is_78_and_names_the_file_to_install(machines: Machines) -> None:
    blocked = machines.folder / "blocked" / "obstore"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not installed')\n")
    machine = machines.machine("a")
    done = machine.wait_for(machine.begin(STATE_URL="s3://bucket/folder", PYTHONPATH=str(blocked.parent)))
    assert done.code == 78
    assert done.err == (
        "STATE_URL names an object store, and the package obstore is not installed; run: "
        f"{shlex.quote(sys.executable)} -m pip install -r {shlex.quote(str(ROOT / 'requirements-state.txt'))}\n"
    )
