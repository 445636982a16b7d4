"""Tells a monitor such as healthchecks.io that a run has begun and how it ended, if HEARTBEAT_URL is set.

    HEARTBEAT_URL/start     at the start
    HEARTBEAT_URL           at success
    HEARTBEAT_URL/1         at the end, with any other exit code

A slow or failing monitor never changes a run: pings are sent beside it, and the last one is waited for five seconds.
"""

from __future__ import annotations

import logging
import threading

import requests

logger = logging.getLogger("pipeline.heartbeat")

TIMEOUT_S = 5.0


def ping(url: str | None, suffix: str = "") -> threading.Thread:
    """Send one ping in the background. Join what is returned, TIMEOUT_S at the most."""
    thread = threading.Thread(target=_send, args=(url, suffix), name="heartbeat", daemon=True)
    thread.start()
    return thread


def _send(url: str | None, suffix: str) -> None:
    if url is None:
        return
    try:
        with requests.Session() as session:
            session.trust_env = False
            address = f"{url.rstrip('/')}/{suffix}" if suffix else url
            session.get(address, timeout=TIMEOUT_S, allow_redirects=False, stream=True).close()
    except (requests.RequestException, OSError, ValueError) as error:
        # The text of the error may quote the address, which is a secret.
        logger.warning("The heartbeat could not be sent (%s).", type(error).__name__)
