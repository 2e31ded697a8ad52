"""Bases in buckets: fetched once for a node, and again where the bucket's files have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from bs_ray.models.base import BaseNotFound
from bs_ray.models.layout import used_files
from bs_ray.models.sources.cache import cache_folder, made_once
from bs_ray.progress import bar
from bs_ray.storage import Entry, Store, split_uri

_THREADS = 4
_MB = 1_000_000


@lru_cache(maxsize=16)
def folder(uri: str, *, fetch: bool = True) -> Path:
    """The copy of a prefix with a diffusers folder: its files that are used, sizes and hashes
    checked. A process stays with the copy that it found first.

    Raises BaseNotFound and StorageError.
    """
    store = Store(uri)
    entries = {entry.key: entry for entry in store.list()}
    if "model_index.json" not in entries:
        raise BaseNotFound(
            f"base: got {uri}, which has no model_index.json; expected a prefix with a diffusers "
            "folder, or a .safetensors file of SDXL. `aws s3 cp --recursive FOLDER` makes one"
        )
    index = json.loads(store.read("model_index.json"))
    wanted = {key: entries[key] for key in used_files(index, entries, uri)}
    return _kept(store, wanted, fetch)


def file(uri: str, *, fetch: bool = True) -> Path:
    """The copy of one file. Raises BaseNotFound and StorageError."""
    store, key = split_uri(uri)
    entries = {entry.key: entry for entry in store.list(key) if entry.key == key}
    if not entries:
        raise BaseNotFound(f"base: got {uri}, which does not exist; expected a file of SDXL")
    return _kept(store, entries, fetch) / key


def _kept(store: Store, wanted: Mapping[str, Entry], fetch: bool) -> Path:
    tags = [store.uri, *(f"{e.key} {e.size} {e.etag}" for e in wanted.values())]
    digest = hashlib.sha256("\n".join(tags).encode()).hexdigest()[:16]
    name = f"{store.uri.rstrip('/').rpartition('/')[2]}-{digest}"
    if not fetch and not (cache_folder() / name).is_dir():
        raise BaseNotFound(f"base: got {store.uri}, which is not on this machine yet")
    return made_once(name, lambda part: _fetch(store, wanted, part))


def _fetch(store: Store, wanted: Mapping[str, Entry], part: Path) -> None:
    total = sum(entry.size for entry in wanted.values())
    seen = [0]
    with (
        bar(Console(stderr=True), f"Fetching {store.uri}", total // _MB, "MB") as report,
        ThreadPoolExecutor(_THREADS) as pool,
    ):

        def count(further: int) -> None:
            before, seen[0] = seen[0] // _MB, seen[0] + further
            report(seen[0] // _MB - before)

        def one(entry: Entry) -> None:
            path = part / entry.key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(entry, path, count)

        list(pool.map(one, wanted.values()))
