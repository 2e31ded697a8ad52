"""Stores of fsspec: a web server to read from, and what gs:// and az:// have to get right."""

import functools
import io
import multiprocessing
import socket
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from fsspec.registry import _registry

from bs_ray.storage import (
    AccessError,
    MissingBucketError,
    MissingKeyError,
    StorageError,
    Store,
    UnreachableError,
)
from tests.promptly import promptly

KEYS = ["50%.jpg", "a b.jpg", "a#b.jpg", "sub/deep/x.jpg", "sub/y.jpg", "é.jpg"]


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; refuses what lies below `private` and breaks down below `broken`."""

    def send_head(self) -> io.BytesIO | Any:
        for name, status in (("private", 403), ("broken", 503)):
            if self.path.startswith(f"/{name}"):
                return self.send_error(status)
        return super().send_head()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Store]:
    for key in KEYS:
        Store(tmp_path / "www/photos").write(key, key.encode())
    handler = functools.partial(Server, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Store(f"http://127.0.0.1:{server.server_port}/photos")
        server.shutdown()


def other(web: Store, folder: str) -> Store:
    return Store(web.uri.replace("photos", folder))


# ------------------------------------------------------------------ http://, read only


def test_web_pages_are_listed_and_read(web: Store, tmp_path: Path) -> None:
    web.check()
    entries = web.list()
    assert [(e.key, e.size) for e in entries] == [(k, len(k.encode())) for k in KEYS]
    assert all(web.read(key) == key.encode() and web.exists(key) for key in KEYS)
    assert [e.key for e in web.list("sub/d")] == ["sub/deep/x.jpg"]
    assert [e.key for e in web.join("sub").list()] == ["deep/x.jpg", "y.jpg"]
    assert web.list("none/") == []
    path = web.local_copy("a b.jpg", tmp_path / "cache")
    assert path.read_bytes() == b"a b.jpg"
    assert web.local_copy("a b.jpg", tmp_path / "cache") == path
    (tmp_path / "www/photos/a b.jpg").write_bytes(b"longer than before")
    assert web.local_copy("a b.jpg", tmp_path / "cache").read_bytes() == b"longer than before"


def test_web_pages_are_read_by_arrow_too(web: Store) -> None:
    filesystem, path = web.arrow_filesystem()
    with filesystem.open_input_stream(f"{path}/sub/y.jpg") as stream:
        assert stream.read() == b"sub/y.jpg"


def test_web_pages_are_read_in_a_forked_process(web: Store) -> None:
    web.read("sub/y.jpg")  # so that the parent has connections to be confused with
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(web.read, ("sub/y.jpg",)) == b"sub/y.jpg"


def test_web_failures_are_told_apart(web: Store) -> None:
    with pytest.raises(MissingKeyError, match=r"photos/gone does not exist"):
        web.read("gone")
    assert not web.exists("gone")
    with pytest.raises(MissingBucketError, match="none"):
        other(web, "none").check()
    for call in (other(web, "private").check, lambda: other(web, "private").exists("x")):
        with pytest.raises(AccessError, match=r"403.*check FSSPEC_HTTP_"):
            call()
    for broken in (other(web, "broken").check, lambda: other(web, "broken").read("x")):
        with pytest.raises(UnreachableError, match=r"503.*is the URI right, and the store up"):
            broken()


def test_a_folder_that_cannot_be_listed_is_no_empty_one(web: Store, tmp_path: Path) -> None:
    (tmp_path / "www/private").mkdir()
    with pytest.raises(AccessError, match="403"):
        other(web, "").list()


@pytest.mark.parametrize("listens", [False, True])
def test_a_web_server_that_does_not_answer(listens: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        with promptly(), pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            Store(f"http://127.0.0.1:{silent.getsockname()[1]}/x").check()


def test_what_has_no_exclusive_creation_is_only_read(web: Store) -> None:
    writes = (
        lambda: web.check(write=True),
        lambda: web.write("x", b""),
        lambda: web.write_if_absent("x", b""),
        lambda: web.delete("50%.jpg"),
    )
    for write in writes:
        with pytest.raises(StorageError, match=r"http:// cannot let .* is only read\. Expected"):
            write()


# ------------------------------------------------------------------ what is not there


def test_a_missing_package_is_named() -> None:
    with pytest.raises(StorageError, match=r"sftp://h/x: got no paramiko.*pip install paramiko"):
        Store("sftp://h/x").check()


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(StorageError, match="set FSSPEC_FTP_PASSWORD") as caught:
        Store("ftp://me:hush@host/x")
    assert "hush" not in str(caught.value)


def test_memory_folders(tmp_path: Path) -> None:
    store = Store(f"memory:/{tmp_path}/new")
    with pytest.raises(MissingBucketError):
        store.check()
    store.check(write=True)
    store.check()
    assert store.list() == []


# ------------------------------------------------------------------ buckets


class Buckets(fsspec.AbstractFileSystem):
    """Buckets b and c, and d, whose objects are private; behaves as gcsfs does."""

    protocol = "gs"
    objects: dict[str, bytes] = {}
    lost_replies = 0
    """How many creations to carry out and then, as after a retry, to call too late."""
    ignores_mode = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._let_in(path)
        if mode == "create" and path in self.objects and not self.ignores_mode:
            raise FileExistsError(path)
        self.objects[path] = value
        if mode == "create" and self.lost_replies:
            type(self).lost_replies -= 1
            raise FileExistsError(path)

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        self.info(path)
        return self.objects[path]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._let_in(path)
        if path not in self.objects:
            raise FileNotFoundError(path)
        tag = str(hash(self.objects[path]))
        return {"name": path, "type": "file", "size": len(self.objects[path]), "etag": tag}

    def find(self, path: str, **_: Any) -> dict[str, Any]:
        self._let_in(path)
        return {name: self.info(name) for name in self.objects if name.startswith(path + "/")}

    def ls(self, path: str, **_: Any) -> list[str]:
        assert path in ("b", "c", "d", "none"), "a check must not list whole prefixes"
        self._let_in(path)
        return list(self.find(path))

    def rm_file(self, path: str) -> None:
        self.info(path)
        del self.objects[path]

    def _let_in(self, path: str) -> None:
        if path.startswith("none"):
            raise FileNotFoundError(f"b/{path}/o")
        if path.startswith("d"):
            raise OSError(f"Forbidden: {path}\nNobody may not storage.objects.list")


@pytest.fixture
def buckets(monkeypatch: pytest.MonkeyPatch) -> type[Buckets]:
    monkeypatch.setitem(_registry, "gs", Buckets)
    for name, value in {"objects": {}, "lost_replies": 0, "ignores_mode": False}.items():
        monkeypatch.setattr(Buckets, name, value)
    return Buckets


def test_buckets_pass_for_stores(buckets: type[Buckets]) -> None:
    store = Store("gs://b/run")
    assert store.list() == []
    store.check(write=True)
    store.check()
    store.write("a/x", b"x")
    store.delete("gone")
    assert [e.key for e in store.list("a/")] == ["a/x"] and store.read("a/x") == b"x"
    assert not Store("gs://c/run").list()


def test_a_bucket_that_is_missing_or_private(buckets: type[Buckets]) -> None:
    for call in (Store("gs://none/x").check, Store("gs://none/x").list):
        with pytest.raises(MissingBucketError, match="gs://none/x"):
            call()
    for write in (False, True):
        with pytest.raises(AccessError, match=r"gs://d/x.*check GOOGLE_APPLICATION_CREDENTIALS"):
            Store("gs://d/x").check(write=write)


def test_a_lost_reply_to_our_own_win_is_a_win(buckets: type[Buckets]) -> None:
    store = Store("gs://b/run")
    buckets.lost_replies = 1
    assert store.write_if_absent("commit", b"ours") is True
    assert store.write_if_absent("commit", b"theirs") is False
    assert store.read("commit") == b"ours"


def test_a_bucket_that_overwrites_all_the_same_is_refused(buckets: type[Buckets]) -> None:
    buckets.ignores_mode = True
    with pytest.raises(StorageError, match="created an object that existed already"):
        Store("gs://b/run").check(write=True)
    assert not buckets.objects
