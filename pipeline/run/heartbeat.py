"""Tells a monitor such as healthchecks.io that a run has begun and how it ended, if HEARTBEAT_URL is set.

    HEARTBEAT_URL/start     at the start
    HEARTBEAT_URL           at success
    HEARTBEAT_URL/1         at the end, with any other exit code

A slow or failing monitor never changes a run: pings are sent beside it, and each is waited for five seconds at most.
"""

from __future__ import annotations

import logging
import threading

import requests

from pipeline.model.exits import ExitCode

logger = logging.getLogger("pipeline.heartbeat")

TIMEOUT_S = 5.0


class Heartbeat:
    """The pings of one run. Without a URL, there are none."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._under_way: threading.Thread | None = None

    def start(self) -> None:
        """The run has begun. Does not wait."""
        self._ping("/start")

    def finish(self, code: ExitCode) -> None:
        """The run has ended so. Waits for the first ping, or it might arrive after this one, and for this one."""
        self._wait()
        self._ping("" if code is ExitCode.SUCCESS else f"/{int(code)}")
        self._wait()

    def _ping(self, suffix: str) -> None:
        if self._url is None:
            return
        address = f"{self._url.rstrip('/')}{suffix}" if suffix else self._url
        thread = threading.Thread(target=_send, args=(address,), name="heartbeat", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads run on this machine
            logger.warning("The heartbeat could not be sent (%s).", error)
        else:
            self._under_way = thread

    def _wait(self) -> None:
        if self._under_way is not None:
            self._under_way.join(TIMEOUT_S)


def _send(address: str) -> None:
    try:
        with requests.Session() as session:
            session.trust_env = False
            session.get(address, timeout=TIMEOUT_S, allow_redirects=False, stream=True).close()
    except (requests.RequestException, OSError, ValueError) as error:
        # The text of the error may quote the address, which is a secret.
        logger.warning("The heartbeat could not be sent (%s).", type(error).__name__)
