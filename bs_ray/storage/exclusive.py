"""The file systems of fsspec that can create a file exclusively, and so are written to as well.

gcsfs and adlfs, since 2024.12, send "create" as one conditional request (ifGenerationMatch=0,
If-None-Match: *). fsspec's default looks first and then writes, and some file systems ignore the
mode: none of those belongs here.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from bs_ray.storage.base import probe_name
from bs_ray.storage.errors import AccessError, MissingKeyError, StorageError
from bs_ray.storage.remote import Remote


class Exclusive(Remote):
    """A file system in which exactly one of several writers creates a file."""

    options = {"use_listings_cache": False}  # since others write too

    def write(self, key: str, data: bytes) -> None:
        with self._errors("write", key):
            self.fs.pipe_file(self._path(key), data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with self._errors("write", key):
            try:
                self.fs.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return self._is_ours(key, data)
            return True

    def delete(self, key: str) -> None:
        with self._errors("delete", key), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(key))

    def check(self, write: bool) -> None:
        if not write:
            return self._look()
        probe = probe_name()
        won = [self.write_if_absent(probe, data) for data in (b"first", b"second")]
        self.delete(probe)
        if won != [True, False]:
            raise StorageError(
                f"Cannot write to {self.uri}: it created an object that existed already. "
                "Expected exclusive creation; update the library, or take another kind of bucket."
            )

    def _is_ours(self, key: str, data: bytes) -> bool:
        """Whether the object that exists was written by this very call."""
        raise NotImplementedError

    def _look(self) -> None:
        """Raise StorageError unless the root can be listed."""
        raise NotImplementedError


class Bucket(Exclusive):
    """The objects of a bucket or container, in which folders are no objects of their own."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.bucket = self.root.partition("/")[0]

    def _files(self, folder: str) -> Iterator[dict[str, Any]]:
        found = self.fs.find(folder, detail=True)
        if not found:
            self._find_bucket()  # a missing bucket may also list as empty
        yield from found.values()

    def _is_ours(self, key: str, data: bytes) -> bool:
        # These libraries repeat a request whose reply was lost, and then find the object that the
        # first request made.
        return self.read(key) == data

    def _look(self) -> None:
        # A listing of many thousands of objects would take too long.
        with contextlib.suppress(MissingKeyError), self._errors("read", ""):
            self.fs.info(self._path(probe_name()))
        with self._errors("list", ""):
            self._find_bucket()

    def _find_bucket(self) -> None:
        """Raise FileNotFoundError where there is no such bucket."""
        raise NotImplementedError


class Google(Bucket):
    """gs://, by gcsfs."""

    def _find_bucket(self) -> None:
        # fs.info would need the right to see the bucket's settings.
        self.fs.ls(self.bucket, detail=False, max_results=1)


class Azure(Bucket):
    """az:// and abfs://, by adlfs."""

    def _find_bucket(self) -> None:
        # Credentials for a container's blobs may lack the right to see the container itself.
        with contextlib.suppress(AccessError), self._errors("list", ""):
            self.fs.info(self.bucket)


class Memory(Exclusive):
    """memory://, which this process alone sees: for tests and experiments."""

    def write(self, key: str, data: bytes) -> None:
        with _turn:
            super().write(key, data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with _turn:  # fsspec's "create" looks first and then writes
            return super().write_if_absent(key, data)

    def check(self, write: bool) -> None:
        if write:
            self.fs.makedirs(self.root, exist_ok=True)
        super().check(write)

    def _is_ours(self, key: str, data: bytes) -> bool:
        return False

    def _look(self) -> None:
        with self._errors("list", ""):
            self.fs.ls(self.root, detail=False)


_turn = threading.Lock()
