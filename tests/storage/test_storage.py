"""The storage contract, on a folder and on a real object store."""

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bs_ray.storage import (
    AccessError,
    MissingBucketError,
    MissingKeyError,
    StorageError,
    Store,
    UnreachableError,
    split_uri,
)
from bs_ray.storage.base import HURRIED
from bs_ray.storage.s3 import S3
from bs_ray.storage.seaweed import LocalObjectStore
from tests.promptly import promptly


@pytest.fixture(params=["folder", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return Store(tmp_path / "root" if request.param == "folder" else f"memory:/{tmp_path}")


# ------------------------------------------------------------------ what every store does


def test_write_read_list_delete(store: Store) -> None:
    assert store.list() == [] and not store.exists("a/b.bin")
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"three")
    assert store.read("a/b.bin") == b"three" and store.exists("a/b.bin")
    (entry,) = store.list()
    assert (entry.key, entry.size) == ("a/b.bin", 5) and entry.etag
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert not store.exists("a/b.bin") and store.list() == []


def test_reading_what_is_not_there(store: Store) -> None:
    store.write("here", b"")
    with pytest.raises(MissingKeyError, match=r"gone does not exist\. Expected an object"):
        store.read("gone")
    with pytest.raises(FileNotFoundError):
        store.local_copy("gone")


def test_list_is_sorted_by_bytes_and_complete(store: Store) -> None:
    keys = ["a/b", "a b", "a-b", "a.b", "a/b/é", "a/bc", "b", "z/0", "Z"]
    keys = [k for k in keys if k != "a/b"]  # a folder cannot hold both a/b and a/b/c
    for key in keys:
        store.write(key, key.encode())
    assert [e.key for e in store.list()] == sorted(keys, key=str.encode)
    assert [e.key for e in store.list("a/b")] == ["a/b/é", "a/bc"]
    assert [e.key for e in store.list("z/")] == ["z/0"]
    assert store.list("nothing/") == []


def test_conditional_write_has_one_winner(store: Store) -> None:
    gate = threading.Barrier(16)

    def race(i: int) -> bool:
        gate.wait()
        return store.write_if_absent("commit", b"writer %d" % i)

    with ThreadPoolExecutor(16) as pool:
        wins = list(pool.map(race, range(16)))
    assert sum(wins) == 1
    assert store.read("commit") == b"writer %d" % wins.index(True)
    assert [e.key for e in store.list()] == ["commit"]  # losers leave nothing behind


def test_join_pickle_and_equality(store: Store) -> None:
    child = pickle.loads(pickle.dumps(store.join("runs", "r1")))
    child.write("x", b"x")
    assert store.read("runs/r1/x") == b"x"
    assert child == store.join("runs/r1") and child.uri == store.uri + "/runs/r1"
    assert split_uri(child.uri + "/x") == (child, "x")
    assert b"AWS" not in pickle.dumps(child)


def test_local_copy_follows_content(store: Store, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    store.write("s/w.bin", b"old")
    first = store.local_copy("s/w.bin", cache)
    assert first.read_bytes() == b"old" and first.name == "w.bin"
    assert store.local_copy("s/w.bin", cache) == first
    store.write("s/w.bin", b"new")
    assert store.local_copy("s/w.bin", cache).read_bytes() == b"new"


def test_local_copy_downloads_once(bucket: Store, tmp_path: Path) -> None:
    bucket.write("w", b"w" * 3_000_000)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: bucket.local_copy("w", tmp_path), range(8)))
    (path,) = paths
    assert path.stat().st_size == 3_000_000
    inode = path.stat().st_ino
    assert bucket.local_copy("w", tmp_path).stat().st_ino == inode


@pytest.mark.parametrize("key", ["", "/a", "../a", "a/../../b", "a//b", "a/", ".", "a\0b", "a\\b"])
def test_keys_stay_inside(store: Store, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.read(key),
        lambda: store.write(key, b""),
        lambda: store.write_if_absent(key, b""),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.local_copy(key),
        lambda: store.join(key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is not a key"):
            call()


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("x").uri == str(tmp_path / "x") == Store(f"file://{tmp_path}/x/").uri
    assert Store("s3://b/p/").uri == "s3://b/p"
    assert Store("hdfs:///x/y/").uri == "hdfs:///x/y"
    assert Store(f"local://{tmp_path}/x") == Store("x")
    assert Store("/").join("tmp").uri == "/tmp"
    assert split_uri("s3://b/k") == (Store("s3://b"), "k")
    assert split_uri("k.json") == (Store(tmp_path), "k.json")
    assert split_uri("/k.json") == (Store("/"), "k.json")
    assert split_uri("https://h/a/k") == (Store("https://h/a"), "k")
    for bad in ("s3://b", "s3://b/p/", "x/", "gs://b"):
        with pytest.raises(StorageError, match="names no object"):
            split_uri(bad)
    for bad in ("gcp://b/x", "s3://", "", "s3://b/../c", "gs://", "az://c/../d", "x::s3://b"):
        with pytest.raises(StorageError, match="Expected"):
            Store(bad)


# ------------------------------------------------------------------ refusals, within seconds


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def check(store: Store, kind: type[StorageError], write: bool = False, **env: str) -> str:
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        with promptly(), pytest.raises(kind) as caught:
            store.check(write=write)
        message = str(caught.value)
        assert all(v not in message for k, v in env.items() if "SECRET" in k)
        return message

    return check


def test_check_passes(store: Store) -> None:
    store.check(write=True)
    store.check()
    assert store.list() == []


@pytest.mark.parametrize("write", [False, True])
def test_bad_credentials(
    bucket: Store, bad_credentials: None, refused: Callable[..., str], write: bool
) -> None:
    message = refused(bucket, AccessError, write=write)
    assert "bucket 'bs-ray-tests'" in message and "AWS_SESSION_TOKEN (which expires)" in message
    assert all(value not in message for value in ("mistyped", "made up", "of yesterday"))
    for call in (lambda: bucket.exists("x"), lambda: bucket.read("x")):  # a HEAD and a GET
        with pytest.raises(AccessError, match="bucket 'bs-ray-tests'"):
            call()


def test_no_credentials(
    bucket: Store, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    nowhere = str(tmp_path / "none")
    message = refused(
        bucket, AccessError, AWS_SHARED_CREDENTIALS_FILE=nowhere, AWS_CONFIG_FILE=nowhere
    )
    assert "no credentials for bucket 'bs-ray-tests'" in message


def test_missing_bucket(object_store: LocalObjectStore, refused: Callable[..., str]) -> None:
    message = refused(Store("s3://no-such-bucket/x"), MissingBucketError, write=True)
    assert "Expected a bucket 'no-such-bucket'" in message


def test_read_only_user(
    bucket: Store, object_store: LocalObjectStore, refused: Callable[..., str]
) -> None:
    bucket.write("x", b"x")
    message = refused(bucket, AccessError, write=True, **object_store.read_only_env)
    assert "may write in bucket 'bs-ray-tests'" in message
    bucket.check()
    assert bucket.read("x") == b"x"
    with pytest.raises(AccessError):
        bucket.write_if_absent("y", b"")


def test_nobody_listens(bucket: Store, refused: Callable[..., str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert "bucket 'bs-ray-tests'" in refused(bucket, UnreachableError, AWS_ENDPOINT_URL=url)


def test_store_that_never_answers(bucket: Store, refused: Callable[..., str]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "bs-ray-tests" in refused(bucket, UnreachableError, AWS_ENDPOINT_URL=url)


def test_missing_and_unwritable_folders(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "does not exist" in refused(Store(tmp_path / "none"), MissingBucketError)
    assert "/proc/bs-ray" in refused(Store("/proc/bs-ray"), StorageError, write=True)
    (tmp_path / "file").write_bytes(b"")
    refused(Store(tmp_path / "file"), StorageError, write=True)


# ------------------------------------------------------------------ faults of the wire


class FlakyProxy:
    """Forwards to the store, and spoils the first `budget` replies that `spoils` says."""

    def __init__(self, target: str, spoil: Callable[[bytes], bytes], budget: int = 1) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self.target, self.spoil, self.budget = (host, int(port)), spoil, budget
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(self.target)
            threading.Thread(target=self._pump, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self._reply, args=(upstream, client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def _reply(self, upstream: socket.socket, client: socket.socket) -> None:
        try:
            while data := upstream.recv(65536):
                spoiled = self.spoil(data) if self.budget else data
                self.budget -= spoiled != data
                if not spoiled:
                    client.shutdown(socket.SHUT_RDWR)
                    upstream.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(spoiled)
        except OSError:
            pass


@pytest.fixture
def through(
    object_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., FlakyProxy]]:
    opened: list[FlakyProxy] = []

    def start(spoil: Callable[[bytes], bytes], budget: int = 1) -> FlakyProxy:
        opened.append(FlakyProxy(object_store.endpoint_url, spoil, budget))
        monkeypatch.setenv("AWS_ENDPOINT_URL", opened[-1].url)
        return opened[-1]

    yield start
    for proxy in opened:
        proxy.listener.close()


def test_lost_reply_to_our_own_win_is_a_win(
    bucket: Store, through: Callable[..., FlakyProxy]
) -> None:
    proxy = through(lambda reply: b"")
    assert bucket.write_if_absent("commit", b"ours") is True
    assert proxy.budget == 0
    assert bucket.write_if_absent("commit", b"ours") is False  # no reply lost: plainly too late


def test_lost_reply_after_anothers_win_is_a_loss(
    bucket: Store, through: Callable[..., FlakyProxy]
) -> None:
    bucket.write("commit", b"theirs")
    through(lambda reply: b"")
    assert bucket.write_if_absent("commit", b"ours") is False


def test_flipped_byte_is_noticed_and_fetched_again(
    bucket: Store, through: Callable[..., FlakyProxy], tmp_path: Path
) -> None:
    bucket.write("x", b"payload-payload")
    flip = lambda reply: reply.replace(b"payload-payload", b"payload-Payload")  # noqa: E731
    proxy = through(flip)
    assert bucket.read("x") == b"payload-payload" and proxy.budget == 0
    proxy = through(flip)
    assert bucket.local_copy("x", tmp_path).read_bytes() == b"payload-payload"
    assert proxy.budget == 0


def test_damage_that_stays_is_refused(
    bucket: Store, through: Callable[..., FlakyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("x", b"payload-payload")
    through(lambda reply: reply.replace(b"payload-payload", b"payload-Payload"), budget=100)
    s3 = S3("bs-ray-tests", bucket.uri.split("/", 3)[3] + "/", HURRIED)
    with pytest.raises(StorageError, match=r"sha256 of the bytes .* bucket 'bs-ray-tests'"):
        s3.read("x")


def test_cut_and_busy_replies_are_retried(
    bucket: Store, through: Callable[..., FlakyProxy]
) -> None:
    body = b"0123456789" * 300_000
    bucket.write("x", body)
    cut = iter([200_000])
    through(lambda reply: b"" if next(cut, 0) else reply)
    assert bucket.read("x") == body
    busy = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy = through(lambda reply: busy, budget=2)
    bucket.write("y", b"y")
    assert bucket.read("y") == b"y" and proxy.budget == 0


def test_empty_objects_do_not_spoil_the_connection(
    bucket: Store, through: Callable[..., FlakyProxy]
) -> None:
    replies: list[bytes] = []
    through(lambda reply: replies.append(reply) or reply)  # type: ignore[func-returns-value]
    with promptly():
        for i in range(20):
            bucket.write(f"{i:02d}", b"")
            assert bucket.read(f"{i:02d}") == b""
    assert not any(b"100 Continue" in reply for reply in replies)


def test_long_listing_is_paged(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{i:03d}" for i in range(25)]
    for key in keys:
        bucket.write(key, b"")
    monkeypatch.setattr(S3, "page_keys", 4)
    assert [e.key for e in bucket.list()] == keys


def test_arrow_filesystem(store: Store) -> None:
    store.write("d/x.bin", b"arrow")
    filesystem, path = store.join("d").arrow_filesystem()
    with filesystem.open_input_stream(f"{path}/x.bin") as stream:
        assert stream.read() == b"arrow"
