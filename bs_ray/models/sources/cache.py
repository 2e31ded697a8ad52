"""Where fetched and converted bases are kept on a node, and making each of them once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bs_ray.models.base import BaseNotFound


def cache_folder() -> Path:
    """`bases` in $BS_RAY_CACHE, or in `bs_ray` in the user's cache folder. Nothing in it is ever
    removed, since a job may be reading it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BS_RAY_CACHE") or Path(base) / "bs_ray") / "bases"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; where it is missing, `make` fills it.

    make gets a folder that may hold what an earlier, interrupted call put there; it takes its name
    only when it is complete. The node's other processes wait meanwhile. Raises what `make` raises,
    and BaseNotFound where nothing can be kept.
    """
    place = cache_folder() / name
    part = place.with_name(f"{name}.part")
    if place.is_dir():
        return place
    with _locked(place.with_name(f"{name}.lock")):
        if not place.is_dir():
            part.mkdir(exist_ok=True)
            make(part)
            part.rename(place)
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise BaseNotFound(
            f"base: got {path.parent}, where nothing can be kept ({error.strerror}); expected a "
            "folder with the rights and the space for it. Choose one with BS_RAY_CACHE"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
