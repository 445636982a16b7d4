"""What each kind of store promises: a folder, S3 and Azure. And what our messages say of one that does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest

from pipeline.state.store import ConflictError, Store, StoreDownError, StoreRefusedError, open_store
from tests.state.emulators import ACCOUNT_KEY, SCHEMES, SECRETS, s3_environment

NAME = "iterable_ledger.state.json"


@pytest.fixture(params=["file", *SCHEMES])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty one."""
    if request.param == "file":
        (tmp_path / "of all").mkdir()
        yield open_store(f"file://{tmp_path}/of%20all")
        return
    for name, value in request.getfixturevalue(request.param).items():
        monkeypatch.setenv(name, value)
    folder = uuid4().hex
    yield open_store(f"{SCHEMES[request.param]}/{folder}")


def test_object_is_made_once_and_replaced_only_as_it_was_seen(store: Store) -> None:
    assert store.read(NAME) is None
    assert store.age_s(NAME) is None
    first = store.write(NAME, b"first", None)
    with pytest.raises(ConflictError):
        store.write(NAME, b"another first", None)
    found = store.read(NAME)
    assert found is not None
    assert found.content == b"first"
    second = store.write(NAME, b"second", found.version)
    for stale in (first, found.version):
        with pytest.raises(ConflictError):
            store.write(NAME, b"third", stale)
    third = store.write(NAME, b"third", second)
    with pytest.raises(ConflictError):
        store.write(NAME, b"fourth", second)
    found = store.read(NAME)
    assert found is not None
    assert found.content == b"third"
    assert store.write(NAME, b"fourth", third)


def test_object_that_is_gone_is_not_replaced(store: Store) -> None:
    version = store.write(NAME, b"first", None)
    store.delete(NAME)
    with pytest.raises((ConflictError, StoreRefusedError)):
        store.write(NAME, b"second", version)
    assert store.read(NAME) is None


def test_age_is_told_by_the_store_alone(store: Store) -> None:
    store.write(NAME, b"first", None)
    age_s = store.age_s(NAME)
    assert age_s is not None
    assert 0 <= age_s < 60


@pytest.mark.parametrize("size", [0, 1000, 5 * 1024 * 1024 + 1, 11_000_000])
def test_files_come_back_as_they_were(store: Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(bytes(range(250)) * (size // 250) + b"x" * (size % 250))
    target.touch()
    store.upload("iterable_ledger.1.sqlite3", source)
    assert store.download("iterable_ledger.1.sqlite3", target)
    assert target.read_bytes() == source.read_bytes()
    assert not store.download("iterable_ledger.2.sqlite3", target)
    store.delete("iterable_ledger.1.sqlite3")
    store.delete("iterable_ledger.1.sqlite3")
    assert not store.download("iterable_ledger.1.sqlite3", target)


def test_names_are_those_of_the_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    for name in ("one.sqlite3", "two.sqlite3"):
        store.upload(name, tmp_path / "source")
    assert {name for name in store.names() if name.endswith(".sqlite3")} == {"one.sqlite3", "two.sqlite3"}


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_folders_of_one_bucket_know_nothing_of_each_other(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, request.getfixturevalue(scheme))
    folder = uuid4().hex
    one, two, above = [open_store(f"{SCHEMES[scheme]}/{each}") for each in (f"{folder}/a", f"{folder}/ab", folder)]
    one.write(NAME, b"one", None)
    assert [two.read(NAME), two.names(), above.read(NAME), one.names()] == [None, [], None, [NAME]]
    assert above.names() == [f"a/{NAME}"]


# What our messages say ------------------------------------------------------------------------------------------------


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_bucket_that_is_not_there_is_refused(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, s3)
    with pytest.raises(StoreRefusedError) as caught:
        open_store("s3://no-bucket/folder").read(NAME)
    assert str(caught.value) == ("STATE_URL names s3://no-bucket/folder, whose bucket does not exist; create it.")


def test_container_that_is_not_there_is_refused(azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, azure)
    with pytest.raises(StoreRefusedError, match="whose bucket does not exist"):
        open_store("az://no-container/folder").read(NAME)


def test_bucket_of_google_that_is_not_there_is_refused(google: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, google)
    with pytest.raises(StoreRefusedError, match="whose bucket does not exist"):
        open_store("gs://no-bucket/folder").read(NAME)


def test_wrong_key_is_refused_and_stands_nowhere(azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, azure | {"AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY[:10].lower() + ACCOUNT_KEY[10:]})
    with pytest.raises(StoreRefusedError) as caught:
        open_store("az://container/folder").read(NAME)
    assert str(caught.value) == (
        "STATE_URL names az://container/folder, which refuses what the job needs (403 AuthorizationFailure): to read, "
        "write, list and delete there. Check the credentials of this machine, and the region."
    )
    assert caught.value.__cause__ is None


class OtherRegion(BaseHTTPRequestHandler):
    """As S3 answers where AWS_REGION is not the bucket's."""

    def do_GET(self) -> None:
        self.send_response(301)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_bucket_in_another_region_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with ThreadingHTTPServer(("127.0.0.1", 0), OtherRegion) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use(monkeypatch, s3_environment(server.server_port))
        with pytest.raises(StoreRefusedError, match="is in another region; name the one that it is in with AWS_REGION"):
            open_store("s3://bucket/folder").read(NAME)
        server.shutdown()


def test_server_that_does_not_answer_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    with socket.create_server(("127.0.0.1", 0)) as free:
        use(monkeypatch, s3_environment(free.getsockname()[1]))
    from pipeline.state import objects

    monkeypatch.setattr(objects, "SMALL", objects.Patience(timeout_s=1, retry_s=0))
    with pytest.raises(StoreDownError) as caught:
        open_store("s3://bucket/folder").read(NAME)
    assert str(caught.value) == "STATE_URL names s3://bucket/folder, which does not answer now (no answer)."
    assert not any(secret in repr(caught.value) for secret in SECRETS.values())


def test_no_credentials_at_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    from pipeline.state import objects

    monkeypatch.setattr(objects, "SMALL", objects.Patience(timeout_s=1, retry_s=0))
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(StoreRefusedError) as caught:
        open_store("s3://bucket/folder").read(NAME)
    assert str(caught.value) == (
        "STATE_URL names s3://bucket/folder, and no credentials for it were found in the environment or from the "
        "machine's role."
    )


@pytest.mark.parametrize(("url", "said"), [("file:///nowhere/at/all", "is not a folder")])
def test_folder_that_is_not_there_is_refused(url: str, said: str) -> None:
    with pytest.raises(StoreRefusedError, match=said):
        open_store(url).read(NAME)
