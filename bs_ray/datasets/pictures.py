"""The pictures of a folder or an archive, whatever their names: what training data comes as."""

from __future__ import annotations

import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from bs_ray.images.formats import SUFFIXES, is_companion
from bs_ray.storage import Store, is_key, split_uri

Photo = tuple[str, Callable[[], bytes]]
"""A key, and a function that reads the file. Raises UnreadableError."""
Identities = Literal["auto", "folder", "none"]
"""Where identities come from: names like LFW's (Name_Name/Name_Name_0001.jpg), the folder that a
photo lies in, or nowhere."""

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
"""How the names of archives end."""
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error)
"""What reading a damaged archive raises."""
_LFW = re.compile(r"(?:.*/)?(([^/]+)/\2_\d{4,}\.[A-Za-z]+)")
_MAX_BYTES = 64 << 20  # of one picture in an archive, unpacked


class UnreadableError(ValueError):
    """A file that is there and cannot be read; the text is the reason."""


def identity_of(key: str, identities: Identities) -> str:
    """Who is on the photo with this key; "" where that is not known."""
    if identities == "folder":
        return key.rpartition("/")[0]
    found = _LFW.fullmatch(key) if identities == "auto" else None
    return found[2] if found else ""


def pictures_in(source: str) -> Iterator[Photo]:
    """The pictures of a folder (local or s3://) or an archive, in the same order each time.

    What systems put beside photos and what has no picture's suffix is passed over. Raises
    StorageError and those of DAMAGE.
    """
    is_archive = source.lower().endswith(ARCHIVES)
    found = _in_archive(source) if is_archive else _in_folder(source)
    for number, (name, read) in enumerate(found):
        if name.lower().endswith(SUFFIXES) and not is_companion(name):
            yield _key(name, number), read


def _key(name: str, number: int) -> str:
    """LFW's names begin with the person, wherever the folder lies. A name that is no key, such as
    one that leads out of its archive, is replaced by the file's number."""
    name = name.removeprefix("./")
    if match := _LFW.fullmatch(name):
        name = match[1]
    is_text = name.encode("utf-8", "replace").decode() == name
    return name if is_text and is_key(name) else f"{number:08d}{Path(name).suffix}"


def _in_folder(source: str) -> Iterator[Photo]:
    store = Store(source)
    store.check()
    for entry in sorted(store.walk(unreadable=True), key=lambda entry: entry.key.encode()):
        read = partial(_refuse, entry.problem) if entry.problem else partial(store.read, entry.key)
        yield entry.key, read


def _refuse(reason: str) -> bytes:
    raise UnreadableError(reason)


def _in_archive(source: str) -> Iterator[Photo]:
    store, key = split_uri(source)
    path = store.local_copy(key)
    if source.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                yield info.filename, partial(_read_zipped, packed, info)
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, partial(_read_member, archive, member)


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _check_size(info.file_size)
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UnreadableError(f"damaged: {error}") from None  # or locked by a password


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(member.size)
    file = archive.extractfile(member)
    assert file is not None  # a regular file has content
    return file.read()


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise UnreadableError(f"too large: got {size} bytes; expected at most {_MAX_BYTES}")
