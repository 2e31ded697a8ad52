"""One interface to folders and object stores: a `Store` is a root; objects below it have keys.

    store = Store("s3://bucket/faces")          # or Store("some/folder"), Store("gs://bucket")
    store.write("a/b.json", b"{}")              # atomic: readers see all of it or the old one
    store.write_if_absent("_done", token)       # exactly one of many racing writers gets True

S3 endpoint and credentials come from the standard environment (AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...) of the process that makes the call, never from the
job and never from a pickle. There is one retry layer, in s3.py, with a deadline. Other protocols
are fsspec's: gs:// and az:// are written to as well, the rest (http://, hdfs://, sftp://, ...) are
only read; credentials and retries are those of their libraries. May import no other room.
"""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bs_ray.storage.base import HURRIED, Backend, Entry, Patience
from bs_ray.storage.errors import (
    AccessError,
    MissingBucketError,
    MissingKeyError,
    StorageError,
    UnreachableError,
)
from bs_ray.storage.exclusive import Azure, Google, Memory
from bs_ray.storage.folder import Folder
from bs_ray.storage.keys import checked_key, is_key, normal_uri
from bs_ray.storage.remote import Remote, Web
from bs_ray.storage.s3 import S3
from bs_ray.storage.s3_client import s3_client, store_name

__all__ = [
    "AccessError",
    "Entry",
    "MissingBucketError",
    "MissingKeyError",
    "Patience",
    "StorageError",
    "Store",
    "UnreachableError",
    "is_key",
    "s3_client",
    "split_uri",
]


class Store:
    """A folder or a prefix. Picklable: clients are opened in the process that uses them.

    `uri` is `s3://bucket[/prefix]`, a folder (made absolute), `file:///folder` or a URL of fsspec.
    Keys are slash-separated and cannot leave the root. Every method raises `StorageError`.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = normal_uri(os.fspath(uri))

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def join(self, *parts: str) -> "Store":
        """The store below this one, e.g. `Store("s3://b").join("runs", "r1")`."""
        return Store("/".join([self.uri.rstrip("/"), *(checked_key(p) for p in parts)]))

    def read(self, key: str) -> bytes:
        """The whole object. Raises MissingKeyError; never returns a short or altered body.

        Alterations are found in S3 objects that this package wrote, or whose tag is their MD5. At
        other stores their libraries check the length alone.
        """
        return self._backend().read(checked_key(key))

    def write(self, key: str, data: bytes) -> None:
        """Create or replace the object in one step."""
        self._backend().write(checked_key(key), bytes(data))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object unless it exists; of any number of racing writers one gets True.

        Where the reply to a winning write is lost, the retry finds the object. It is then read
        back, and equal bytes count as this writer's win. (At gs:// and az:// they always do, since
        their libraries retry without telling anybody.) Where two writers could write the same
        bytes, put a token of the writer into `data`.
        """
        return self._backend().write_if_absent(checked_key(key), bytes(data))

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key; also False where the bucket is missing."""
        return self._backend().stat(checked_key(key)) is not None

    def list(self, prefix: str = "") -> list[Entry]:
        """All objects whose key starts with `prefix`, sorted by the bytes of their keys.

        They are sorted here, since stores page and order in their own ways. `prefix` is a plain
        string: "a/b" also finds "a/bc". A missing folder lists as empty, a missing bucket raises.
        """
        return sorted(self.walk(prefix), key=lambda e: e.key.encode())

    def walk(self, prefix: str = "", unreadable: bool = False) -> Iterator[Entry]:
        """The same objects page by page, in the store's own order.

        unreadable: also what is there and cannot be read, such as a link to nowhere; such entries
        have a `problem`, and a key that names them to people.
        """
        if prefix:
            checked_key(prefix.rstrip("/") or prefix)
        entries = self._backend().walk(prefix)
        return entries if unreadable else (entry for entry in entries if not entry.problem)

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""
        self._backend().delete(checked_key(key))

    def local_copy(self, key: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """A file with the object's content: the file itself in a folder, else a cached download.

        The cache (default: `bs_ray` in the user's cache folder, or $BS_RAY_CACHE) is keyed by the
        content's tag, so that a changed object is fetched again; the processes of one node fetch
        it once. Beyond $BS_RAY_CACHE_GB (20) the files used longest ago are removed, but none that
        was used within 10 minutes: open a path within that time, or call again.
        """
        folder = Path(cache_dir) if cache_dir is not None else None
        return self._backend().local_copy(checked_key(key), folder)

    def download(
        self, entry: Entry, path: Path, report: Callable[[int], None] = lambda count: None
    ) -> None:
        """Write an object of a listing to a file, which may hold the beginning of it already.

        The file's size and, where the store knows one, its hash are checked; a file that fails is
        removed. From S3 an interrupted download goes on where it stopped. report(count) is called
        for every further bytes.
        """
        self._backend().download(entry, path, report)

    def check(self, write: bool = False, timeout_s: float = 5.0) -> None:
        """Raise StorageError within `timeout_s` unless the store can be listed (and written to).

        With `write`, a small object is written and deleted again; a missing folder is created.
        """
        _within(timeout_s, lambda: self._backend(HURRIED).check(write), self.uri)

    def arrow_filesystem(self) -> tuple[Any, str]:
        """A pyarrow file system and this store's path in it, for Ray Train and Ray Data."""
        return self._backend().arrow_filesystem()

    def _backend(self, patience: Patience = Patience()) -> Backend:
        if self.uri.startswith("s3://"):
            bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
            return S3(bucket, prefix and prefix + "/", patience)
        if "://" in self.uri:
            return _KINDS.get(self.uri.partition("://")[0], Remote)(self.uri)
        return Folder(Path(self.uri))


_KINDS: dict[str, type[Remote]] = {
    "gs": Google,
    "gcs": Google,
    "az": Azure,
    "abfs": Azure,
    "memory": Memory,
    "http": Web,
    "https": Web,
}


def split_uri(uri: str | os.PathLike[str]) -> tuple[Store, str]:
    """The store and the key of a URI of one object: `s3://b/x/y.json` -> (s3://b/x, y.json).

    Raises StorageError for a URI that names no object (a bucket, or a trailing slash).
    """
    text = os.fspath(uri)
    head, slash, name = text.rpartition("/")
    if not name or head.endswith(":/"):
        raise StorageError(
            f"{text!r} names no object. Expected s3://bucket/key or a path of a file."
        )
    return Store(head or (slash or ".")), checked_key(name)


def _within(timeout_s: float, work: Callable[[], None], uri: str) -> None:
    """Run `work` for at most `timeout_s`, in a thread: no timeout covers DNS or a dead mount."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        where = store_name(os.environ) if uri.startswith("s3://") else "its file system"
        raise UnreachableError(f"{uri}: no answer from {where} in {timeout_s:g} s. Is it up?")
    if outcome[0] is not None:
        raise outcome[0]
