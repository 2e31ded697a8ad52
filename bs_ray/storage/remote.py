"""All other file systems that fsspec opens (http://, hdfs://, sftp://, ...), for reading only.

An edit job's ledger needs writes of which exactly one wins. Few file systems have them; those are
in exclusive.py. Each library finds its credentials in its usual environment variables, or in
fsspec's, FSSPEC_<PROTOCOL>_<OPTION>.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from bs_ray.storage.base import Entry
from bs_ray.storage.cache import cached
from bs_ray.storage.errors import MissingKeyError, StorageError, no_key
from bs_ray.storage.keys import is_key
from bs_ray.storage.remote_errors import explain, missing_package

_TAGS = ("etag", "ETag", "generation", "md5Hash", "Content-MD5", "checksum")
_TIMES = ("mtime", "modified", "last_modified", "LastModified", "Last-Modified", "created")
_THREADS = 16


class Remote:
    """Files of one fsspec file system. Retries and timeouts are that library's."""

    options: dict[str, Any] = {}
    """What the file system is opened with."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.protocol = uri.partition("://")[0]
        with self._errors("open", ""):
            kind = _filesystem_class(uri)
            # fsspec keeps one file system for each process and each set of arguments.
            self.fs = kind(**(self.options | kind._get_kwargs_from_urls(uri)))
            self.root: str = kind._strip_protocol(uri).rstrip("/")

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return bytes(self.fs.cat_file(self._path(key)))

    def write(self, key: str, data: bytes) -> None:
        raise self._read_only()

    def write_if_absent(self, key: str, data: bytes) -> bool:
        raise self._read_only()

    def delete(self, key: str) -> None:
        raise self._read_only()

    def stat(self, key: str) -> Entry | None:
        try:
            with self._errors("read", key):
                info = self.fs.info(self._path(key))
        except MissingKeyError:
            return None
        return None if info["type"] == "directory" else self._entry(key, info)

    def walk(self, prefix: str) -> Iterator[Entry]:
        folder = os.path.dirname(prefix)
        with self._errors("list", prefix):
            top = self._path(folder) if folder else self.root
            for info in self._sized(self._files(top)):
                key = self._key(self.fs._strip_protocol(info["name"]))
                if is_key(key) and key.startswith(prefix):
                    yield self._entry(key, info)

    def local_copy(self, key: str, cache_dir: Path | None) -> Path:
        entry = self.stat(key)
        if entry is None:
            raise no_key(self._name(key))
        tag = entry.etag or secrets.token_hex(8)  # without a tag, a file is fetched every time
        return cached(
            cache_dir,
            f"{self._name(key)}\0{tag}",
            Path(key).name,
            lambda path: self._download(key, entry, path),
        )

    def download(self, entry: Entry, path: Path, report: Callable[[int], None]) -> None:
        self._download(entry.key, entry, path)
        report(entry.size)

    def check(self, write: bool) -> None:
        if write:
            raise self._read_only()
        with self._errors("list", ""):
            self.fs.ls(self.root, detail=False)

    def arrow_filesystem(self) -> tuple[Any, str]:
        # The pickle of it carries what FSSPEC_* variables set, but not a library's own variables.
        from pyarrow import fs

        return fs.PyFileSystem(fs.FSSpecHandler(self.fs)), self.root

    def _files(self, folder: str) -> Iterator[dict[str, Any]]:
        """The files at any depth. (fs.find and fs.walk leave out folders that cannot be listed.)"""
        try:
            found = self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            return
        for info in found:
            below = info["name"].rstrip("/")
            if info["type"] != "directory":
                yield info
            elif below.startswith(folder + "/"):  # a page may link to itself, or elsewhere
                yield from self._files(below)

    def _sized(self, infos: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The same files with their sizes, where a listing does not give them."""
        return infos

    def _download(self, key: str, entry: Entry, path: Path) -> None:
        with self._errors("read", key):
            self.fs.get_file(self._path(key), str(path))
        if path.stat().st_size != entry.size or self.stat(key) != entry:
            raise StorageError(f"{self._name(key)} changed while it was being read. Run again.")

    def _entry(self, key: str, info: dict[str, Any]) -> Entry:
        if info.get("size") is None:
            raise StorageError(
                f"{self._name(key)}: got no size from the store; expected one (an HTTP server "
                "sends Content-Length). Copy the files elsewhere"
            )
        return Entry(key, info["size"], _tag(info))

    def _path(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _key(self, path: str) -> str:
        """The key of a file system's path; "" for a path that is not below the root."""
        return path.removeprefix(f"{self.root}/") if path.startswith(f"{self.root}/") else ""

    def _name(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else self.uri

    def _read_only(self) -> StorageError:
        return StorageError(
            f"Cannot write to {self.uri}: {self.protocol}:// cannot let exactly one of "
            "several writers win, and is only read. Expected a folder, or s3://, gs:// or az://."
        )

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            raise explain(verb, self._name(key), error) from error


class Web(Remote):
    """Files behind the links of pages, as web servers list folders. URLs are quoted, keys are
    not."""

    def _sized(self, infos: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        files = (info["name"] for info in infos if not set("?#") & set(info["name"]))
        with ThreadPoolExecutor(_THREADS) as pool:  # each file's size takes a round trip
            yield from pool.map(self.fs.info, files)

    def _path(self, key: str) -> str:
        return super()._path(quote(key))

    def _key(self, path: str) -> str:
        return unquote(super()._key(path))


def _filesystem_class(uri: str) -> Any:
    """fsspec's class for a URI. Raises StorageError where its package is not installed."""
    from fsspec.registry import get_filesystem_class

    try:
        return get_filesystem_class(uri.partition("://")[0])
    except ImportError as error:
        raise missing_package(uri, error) from error


def _tag(info: dict[str, Any]) -> str:
    """A text that changes with a file's content, where its store tells one; otherwise ""."""
    for name in _TAGS:
        if info.get(name):
            return str(info[name]).strip('"')
    # A listing may give a number where the file's own information has a datetime.
    times = [info[name] for name in _TIMES if info.get(name)]
    stamps = [f"{t.timestamp() if hasattr(t, 'timestamp') else t}" for t in times]
    return "-".join([*stamps, str(info["size"])]) if stamps else ""
