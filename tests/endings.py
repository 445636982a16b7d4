"""The ways in which a run can end: each makes one and returns its exit code. 7@example.com must be among its people."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

from pipeline.sandbox import Fault, StandIn
from tests.program import ROOT, Program, wait_until

BAD_KEY = b'{"msg":"Invalid API key","code":"BadApiKey","params":null}'

Way = Callable[[Program, StandIn], int]


def well(program: Program, iterable: StandIn) -> int:
    return program.run().code


def dry(program: Program, iterable: StandIn) -> int:
    program.run("--dry-run")
    return 0


def braked(program: Program, iterable: StandIn) -> int:
    return program.run(MAX_CHANGES="0").code


def without_database(program: Program, iterable: StandIn) -> int:
    return program.run(DATABASE_URL=f"sqlite:///{program.folder}/none.db").code


def in_a_bug(program: Program, iterable: StandIn) -> int:
    return run_patched(program, "import pipeline.report.results as results; results.write_results = None")


def before_the_export(program: Program, iterable: StandIn) -> int:
    return run_patched(
        program,
        "import pipeline.run.reading as reading\n"
        "def fail(*_, **__): raise OSError(28, 'No space left on device')\n"
        "reading.write_csv = fail",
    )


def without_results(program: Program, iterable: StandIn) -> int:
    return run_patched(
        program,
        "import pipeline.report.results as results\n"
        "def fail(*_): raise OSError(28, 'No space left on device')\n"
        "results.write_results = fail",
    )


def with_a_lost_record(program: Program, iterable: StandIn) -> int:
    iterable.inject(Fault(match=b'"7@example.com"', status=503))
    return program.run().code


def not_iterable(program: Program, iterable: StandIn) -> int:
    iterable.inject(Fault(status=302, headers={"Location": "https://example.com"}, skip=4))
    return program.run(PUSH_MODE="single").code


def with_a_wrong_key(program: Program, iterable: StandIn) -> int:
    iterable.inject(Fault(status=401, body=BAD_KEY, skip=4))
    return program.run(PUSH_MODE="single").code


def by_signal(number: signal.Signals) -> Way:
    def interrupt(program: Program, iterable: StandIn) -> int:
        fault = iterable.inject(Fault(match=b'"7@example.com"', status=503))
        process = program.start(INITIAL_BACKOFF="60")
        wait_until(lambda: fault.matched)
        process.send_signal(number)
        return program.wait_for(process).code

    return interrupt


def killed_in_the_report(program: Program, iterable: StandIn) -> int:
    with StandIn(latency_s=600) as watch:
        process = program.start(HEARTBEAT_URL=f"{watch.url}/ping")
        wait_until(lambda: any(program.folder.glob("integration_results_*.json")), timeout_s=40)
        process.kill()
        return program.wait_for(process).code


def run_patched(program: Program, patch: str) -> int:
    arguments = ["--env-file", str(program.env_file)]
    code = f"import main\n{patch}\nraise SystemExit(main.main({json.dumps(arguments)}))"
    environment = program._environment({})
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True).returncode


WAYS: dict[str, tuple[Way, int]] = {
    "1": (well, 1),
    "0, dry": (dry, 0),
    "65": (braked, 65),
    "66": (without_database, 66),
    "70": (in_a_bug, 70),
    "73": (before_the_export, 73),
    "75, a lost record": (with_a_lost_record, 75),
    "75, no results": (without_results, 75),
    "76": (not_iterable, 76),
    "77": (with_a_wrong_key, 77),
    "130": (by_signal(signal.SIGINT), 130),
    "143": (by_signal(signal.SIGTERM), 143),
    "kill -9": (killed_in_the_report, -9),
}
