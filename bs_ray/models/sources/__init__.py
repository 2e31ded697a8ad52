"""Where bases come from: folders, the Hugging Face hub, buckets, and single files.

Each source ends in a diffusers folder on this node, which the rest of the package reads; what is
fetched is kept in a cache. May import config and storage, and the layout of folders.
"""

from __future__ import annotations

import re
from pathlib import Path

_HUB = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)


def kind_of(base: str) -> str:
    """ "bucket", "file", "hub" or "folder": what a base's name, which is not embedded, stands for.

    `org/name` is a folder where there is such a folder, and else a repository of the hub.
    """
    if "://" in base:
        return "bucket"
    if base.endswith(".safetensors"):
        return "file"
    return "hub" if _HUB.fullmatch(base) and not Path(base).exists() else "folder"


def folder_of(base: str, *, fetch: bool = True) -> Path:
    """The diffusers folder of a base on this node.

    A folder that does not exist is returned too. fetch: whether to download what is not here yet;
    a bucket's listing is read all the same. Raises BaseNotFound and StorageError.
    """
    kind = kind_of(base)
    if kind == "hub":
        from bs_ray.models.sources import hub

        return hub.folder(*split_hub(base), fetch=fetch)
    if kind == "bucket":
        from bs_ray.models.sources import bucket

        if not base.endswith(".safetensors"):
            return bucket.folder(base, fetch=fetch)
        base, kind = str(bucket.file(base, fetch=fetch)), "file"
    if kind == "file":
        from bs_ray.models.sources import single_file

        return single_file.folder(Path(base))
    return Path(base)


def pinned(base: str) -> str:
    """The base's name for workers elsewhere: a full path; of the hub the commit that is used here,
    so that all nodes use the same one. Raises BaseNotFound."""
    kind = kind_of(base)
    if kind == "hub":
        return f"{split_hub(base)[0]}@{folder_of(base).name}"
    return base if kind == "bucket" else str(Path(base).absolute())


def at_hand(base: str) -> Path | None:
    """The base's folder where nothing has to be downloaded for it, else None."""
    from bs_ray.models.base import BaseNotFound

    try:
        found = folder_of(base, fetch=False)
    except BaseNotFound:
        return None
    return found if found.is_dir() else None


def split_hub(base: str) -> tuple[str, str | None]:
    """org/name@revision -> its two parts."""
    found = _HUB.fullmatch(base)
    assert found
    return found["repo"], found["revision"]
