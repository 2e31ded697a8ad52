"""The node's cache of downloads: one file per content, which a node's processes fetch once.

Each content has a folder of its own, named by a hash, with the file and a lock in it. When the
cache grows beyond $BS_RAY_CACHE_GB (20), the contents used longest ago are removed first. A file
may be removed while others have it open: on Linux they go on reading. A caller has _GRACE_S to open
a path that it was given.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bs_ray.storage.base import TEMPORARY
from bs_ray.storage.errors import StorageError

_GRACE_S = 600.0
_DEFAULT_GB = 20.0
_LOCK = ".lock"
_CONTENT = re.compile(r"[0-9a-f]{32}")


def cached(folder: Path | None, identity: str, name: str, download: Callable[[Path], None]) -> Path:
    """The file `name` of the content that `identity` names; it is downloaded if it is missing.

    download: writes the content to the path that it is given. folder: by default $BS_RAY_CACHE, or
    `bs_ray` in the user's cache folder.
    """
    folder, cap_bytes = folder or _default_folder(), _cap_bytes()
    place = folder / hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = place / name
    with _locked(place):  # the node's other processes wait, and then find the file
        if path.exists():
            os.utime(path)  # it counts as used now
            return path
        temporary = place / (TEMPORARY + secrets.token_hex(8))
        try:
            download(temporary)
            os.utime(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    _shrink(folder, cap_bytes)
    return path


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock of a content's folder; the folder is made where it is missing."""
    while True:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                place.mkdir()
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            continue  # the folder was removed before the lock was opened
        except OSError as error:
            raise StorageError(
                f"Cannot keep downloads in {place.parent}: {error.strerror}. Expected a folder "
                "with the rights and the space for it; choose one with BS_RAY_CACHE"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_current(lock, place):
                yield
                return
        finally:
            os.close(lock)


def _is_current(lock: int, place: Path) -> bool:
    """Whether a lock is still the one in the folder; it may have been removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock), os.stat(place / _LOCK))
    except FileNotFoundError:
        return False


@dataclass(frozen=True, order=True)
class _Content:
    used: float
    """When it was used last, in seconds since the epoch."""
    size: int
    """Bytes."""
    place: Path


def _shrink(folder: Path, cap_bytes: float) -> None:
    """Remove the contents used longest ago, until the cap is kept or the rest is in use."""
    contents = sorted(_contents(folder))
    excess = sum(content.size for content in contents) - cap_bytes
    for content in contents:
        if excess <= 0 or content.used > time.time() - _GRACE_S:
            return
        if _removed(content):
            excess -= content.size


def _contents(folder: Path) -> Iterator[_Content]:
    for place in folder.iterdir():
        if _CONTENT.fullmatch(place.name) and (found := _look(place)):
            yield found


def _look(place: Path) -> _Content | None:
    """What lies in a content's folder; None where it has just been removed."""
    try:
        stats = [path.stat() for path in place.iterdir()]
    except FileNotFoundError:
        return None
    if not stats:
        return None
    return _Content(max(s.st_mtime for s in stats), sum(s.st_size for s in stats), place)


def _removed(content: _Content) -> bool:
    """Remove a content, unless somebody fetches it or has used it meanwhile, or another user owns
    it. Returns whether it is gone."""
    place = content.place
    with (
        contextlib.suppress(FileNotFoundError, PermissionError, BlockingIOError),
        open(place / _LOCK) as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(lock.fileno(), place) and _look(place) == content:
            for path in place.iterdir():
                if path.name != _LOCK:
                    path.unlink()
            (place / _LOCK).unlink()  # last: without a lock there is no file either
            with contextlib.suppress(OSError):  # somebody fetches it again
                place.rmdir()
            return True
    return False


def _cap_bytes() -> float:
    text = os.environ.get("BS_RAY_CACHE_GB") or str(_DEFAULT_GB)
    with contextlib.suppress(ValueError):
        if (gigabytes := float(text)) >= 0:
            return gigabytes * 1e9
    raise StorageError(f"BS_RAY_CACHE_GB: got {text!r}; expected gigabytes, such as 20")


def _default_folder() -> Path:
    chosen = os.environ.get("BS_RAY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "bs_ray"
