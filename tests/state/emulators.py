"""Object stores on this machine that speak the real wire: moto for S3, azurite for Azure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import requests

from tests.program import wait_until

SCHEMES = {"s3": "s3://bucket", "azure": "az://container", "google": "gs://bucket"}
S3 = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
input()
"""
SECRETS = {"AWS_SECRET_ACCESS_KEY": "the-secret-access-key", "AWS_SESSION_TOKEN": "the-session-token"}
ACCOUNT = (
    "devstoreaccount1"  # azurite's own, and its key [learn.microsoft.com/azure/storage/common/storage-use-azurite]
)
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE = shutil.which("azurite-blob") or os.environ.get("AZURITE_BLOB")


def s3_environment(port: int) -> dict[str, str]:
    address = f"http://127.0.0.1:{port}"
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "AKIAOFTHETESTS",
        **SECRETS,
    }


@contextmanager
def run_s3() -> Iterator[dict[str, str]]:
    """The environment with which `s3://bucket/…` can be used."""
    with subprocess.Popen(
        [sys.executable, "-c", S3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[1])
        requests.put(f"http://127.0.0.1:{port}/bucket", timeout=30).raise_for_status()
        yield s3_environment(port)
        server.kill()


@contextmanager
def run_azure(folder: Path) -> Iterator[dict[str, str]]:
    """The environment with which `az://container/…` can be used."""
    assert AZURITE is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    with subprocess.Popen(
        [AZURITE, *quiet, "--location", str(folder), "--blobPort", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        wait_until(lambda: _answers(port))
        _make_container(address)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": address,
            "AZURE_ALLOW_HTTP": "true",
        }
        server.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _make_container(address: str) -> None:
    headers = {
        "x-ms-date": f"{datetime.now(timezone.utc):%a, %d %b %Y %H:%M:%S GMT}",
        "x-ms-version": "2021-08-06",
    }
    lines = [f"{name}:{value}" for name, value in headers.items()]
    text = "\n".join(["PUT", *[""] * 11, *lines, f"/{ACCOUNT}/{ACCOUNT}/container", "restype:container"])
    mac = hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}"
    requests.put(f"{address}/container?restype=container", headers=headers, timeout=30).raise_for_status()
