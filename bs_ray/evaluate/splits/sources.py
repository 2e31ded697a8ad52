"""Where the photos of a split lie: a folder or prefix, shards, or one archive.

An archive's members are read into memory; their names are never paths here.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from bs_ray.datasets.ingest import DamagedArchiveError
from bs_ray.datasets.shards import shard_keys
from bs_ray.datasets.sources import iter_photos
from bs_ray.images.formats import SUFFIXES
from bs_ray.storage import MissingKeyError, Store, split_uri

_TARS = (".tgz", ".tar.gz", ".tar")
_ZIPS = (".zip",)
_MAX_BYTES = 200 << 20
"""A larger member of an archive is no photo."""


@dataclass(frozen=True)
class Listed:
    """A photo, before it is read."""

    key: str
    identity: str
    """The folder that it lies in, or what its shard says."""
    tag: str
    """Another one for other content, as far as a listing tells."""


class PhotoSource(Protocol):
    """A place with photos. Picklable."""

    place: str
    packed: bool
    """Whether reading some photos takes a pass through all of them."""

    def list(self) -> Iterable[Listed]: ...

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Key -> the file, without those that are gone."""


def source_of(uri: str) -> PhotoSource:
    """What lies at a URI or path."""
    if uri.lower().endswith((*_TARS, *_ZIPS)):
        return Archive(uri)
    store = Store(uri)
    return Shards(store) if shard_keys(store) else Files(store)


class Files:
    """Photos one by one, below a folder or a prefix."""

    packed = False

    def __init__(self, store: Store):
        self.store, self.place = store, store.uri

    def list(self) -> Iterator[Listed]:
        self.store.check()
        for entry in self.store.list():
            if entry.key.lower().endswith(SUFFIXES):
                yield Listed(entry.key, entry.key.rpartition("/")[0], f"{entry.size}-{entry.etag}")

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for key in keys:
            try:
                found[key] = self.store.read(key)
            except MissingKeyError:
                continue
        return found


class Shards:
    """Shards as `bs-ray ingest` writes them."""

    packed = True

    def __init__(self, store: Store):
        self.place = store.uri

    def list(self) -> Iterator[Listed]:
        for row in iter_photos(self.place):
            yield Listed(row["key"], row["identity"], str(zlib.crc32(row["bytes"])))

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        wanted = set(keys)
        rows = iter_photos(self.place)
        return {row["key"]: row["bytes"] for row in rows if row["key"] in wanted}


class Archive:
    """One .tar (gzipped or not) or .zip."""

    packed = True

    def __init__(self, uri: str):
        self._store, self._key = split_uri(uri)
        self.place = f"{self._store.uri}/{self._key}"

    def list(self) -> Iterator[Listed]:
        for key, size, _ in self._members():
            yield Listed(key, key.rpartition("/")[0], str(size))

    def read(self, keys: Sequence[str]) -> dict[str, bytes]:
        wanted, found = set(keys), {}
        for key, _, read in self._members():
            if key in wanted:
                found[key] = read()
        return found

    def _members(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """(name, bytes, a function that reads it) of every photo, in order."""
        path, key = self._store.local_copy(self._key), self._key
        with _damage_named(self.place):
            if key.lower().endswith(_ZIPS):
                with zipfile.ZipFile(path) as archive:
                    for info in archive.infolist():
                        if _is_photo(info.filename, info.file_size):
                            yield info.filename, info.file_size, partial(archive.read, info)
                return
            with tarfile.open(path, "r|*") as tar:
                for member in tar:
                    if member.isfile() and _is_photo(member.name, member.size):
                        name = member.name.removeprefix("./")
                        yield name, member.size, partial(_content, tar, member)


def _is_photo(name: str, size: int) -> bool:
    hidden = name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")
    return not hidden and name.lower().endswith(SUFFIXES) and size <= _MAX_BYTES


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file has content
    return file.read()


@contextmanager
def _damage_named(place: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DamagedArchiveError(
            f"{place}: got a damaged archive ({error}); expected a whole one. Fetch it again"
        ) from error
