"""Tells a monitor such as healthchecks.io that a run has begun and how it ended, if HEARTBEAT_URL is set.

    HEARTBEAT_URL/start     at the start
    HEARTBEAT_URL           at success
    HEARTBEAT_URL/1         at the end, with any other exit code

The suffix goes into the path, before a query (`…/job?create=1`). Each ping is a POST; the last one's body is the
run's account in a few lines, without personal data. An address whose query says itself how things are (`…?status=up`)
takes no suffix: it gets the success ping only, by GET, or a failure would be taken for a success.

A slow or failing monitor never changes a run: pings are sent beside it, and each is waited for five seconds at most.
"""

from __future__ import annotations

import logging
import threading
from urllib.parse import parse_qsl, urlsplit

import requests

from iterable.redaction import Redactor
from pipeline.model.exits import Ending, ExitCode
from pipeline.model.text import shortened
from pipeline.report.results import Results

logger = logging.getLogger("pipeline.heartbeat")

TIMEOUT_S = 5.0
MAX_BODY_BYTES = 9_999
MAX_REASON_CHARS = 300
WORDS_FOR_A_STATE = {"status", "state"}  # parameters by which an address says how things are


class Heartbeat:
    """The pings of one run. Without a URL, there are none."""

    def __init__(self, url: str | None) -> None:
        """url: HEARTBEAT_URL."""
        self._url = url
        self._under_way: threading.Thread | None = None
        self._refusals: list[str] = []  # one for each ping that was answered, but not with 2xx

    def start(self) -> None:
        """The run has begun. Does not wait."""
        if self._url is not None and takes_suffix(self._url):
            self._ping("POST", with_suffix(self._url, "/start"), "")

    def finish(self, code: ExitCode, body: str) -> str:
        """The run has ended so. Waits for the first ping, or it might arrive after this one, and for this one. Returns
        a warning if the monitor refused one of them."""
        self._wait()
        if self._url is not None and takes_suffix(self._url):
            suffix = "" if code is ExitCode.SUCCESS else f"/{int(code)}"
            self._ping("POST", with_suffix(self._url, suffix), body)
        elif self._url is not None and code is ExitCode.SUCCESS:
            self._ping("GET", self._url, "")
        self._wait()
        return self._refusals[-1] if self._refusals else ""

    def _ping(self, method: str, address: str, body: str) -> None:
        thread = threading.Thread(target=self._send, args=(method, address, body), name="heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads run on this machine
            logger.warning("The heartbeat could not be sent (%s).", error)
        else:
            self._under_way = thread

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.join(TIMEOUT_S)

    def _send(self, method: str, address: str, body: str) -> None:
        data = body.encode("utf-8")[:MAX_BODY_BYTES].decode("utf-8", "ignore").encode("utf-8")  # no half characters
        headers = {"Content-Type": "text/plain; charset=utf-8"} if data else {}
        try:
            with requests.Session() as session:
                session.trust_env = False
                answer = session.request(
                    method,
                    address,
                    data=data or None,
                    headers=headers,
                    timeout=TIMEOUT_S,
                    allow_redirects=False,
                    stream=True,
                )
                answer.close()
        except (requests.RequestException, OSError, ValueError) as error:
            # The text of the error may quote the address, which is a secret.
            logger.warning("The heartbeat could not be sent (%s).", type(error).__name__)
            return
        if not 200 <= answer.status_code < 300:
            self._refusals.append(f"The monitor answered the heartbeat with {answer.status_code}; check HEARTBEAT_URL.")


def takes_suffix(url: str) -> bool:
    """Whether failures may be reported: not where the query itself says how things are."""
    names = {name.lower() for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}
    return names.isdisjoint(WORDS_FOR_A_STATE)


def with_suffix(url: str, suffix: str) -> str:
    """`https://hc-ping.com/key/job?create=1`, `/75` -> `https://hc-ping.com/key/job/75?create=1`"""
    parts = urlsplit(url)
    return parts._replace(path=parts.path.rstrip("/") + suffix).geturl() if suffix else url


def account_of(results: Results, ending: Ending, redactor: Redactor) -> str:
    """A run in a few lines of plain text: numbers, reasons by their codes, and no person."""
    lines = [
        f"Run {results.run_id} of {results.query_file} on {results.host}: {results.status}",
        f"exit code {int(ending.code)}: {ending.reason}",
        f"{results.counts['rows']:,} rows in {results.duration_s:.1f} s",
    ]
    for kind in ("users", "events"):
        outcomes = [f"{number:,} {name.replace('_', ' ')}" for name, number in results.counts[kind].items() if number]
        lines.append(f"{kind}: {', '.join(outcomes) or 'none'}")
    lines += [f"{each.count:,} {each.outcome}: {each.code or 'no code'} ({each.new:,} new)" for each in results.reasons]
    return "".join(f"{shortened(redactor.line(line), MAX_REASON_CHARS)}\n" for line in lines)
