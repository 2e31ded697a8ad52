"""The node's cache of downloads: one file per content, fetched once by all processes of a node."""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from bs_ray.storage.base import TEMPORARY


def cached(folder: Path | None, identity: str, name: str, download: Callable[[Path], None]) -> Path:
    """The file called `name` of the content that `identity` names, downloaded if it is not there.

    `download` fills the path that it is given. The folder is `bs_ray` in the user's cache folder
    unless it or $BS_RAY_CACHE says otherwise.
    """
    place = (folder or _default_folder()) / hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = place / name
    if path.exists():
        return path
    place.mkdir(parents=True, exist_ok=True)
    with open(place / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others of this node wait, then find it there
        if not path.exists():
            temporary = place / (TEMPORARY + secrets.token_hex(8))
            try:
                download(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return path


def _default_folder() -> Path:
    chosen = os.environ.get("BS_RAY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "bs_ray"
