"""Shards of training photos, read with Ray Data or without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bs_ray.datasets.shards import format_of, shard_keys
from bs_ray.images.formats import EmptyInputError
from bs_ray.storage import Store

if TYPE_CHECKING:
    import ray.data

READ_OPTIONS: dict[str, Any] = {"num_cpus": 0, "concurrency": 2}
"""How Ray Data runs reading tasks: two at a time and without a CPU of their own. They wait more
than they work, and they would never start where training takes every CPU of a cluster."""


def read_photos(uri: str) -> ray.data.Dataset:
    """Stream the shards below a prefix: rows of PHOTO_SCHEMA (key, identity, bytes).

    Raises EmptyInputError where there are none, and StorageError.
    """
    return read_shards(*_shards(uri))


def read_shards(store: Store, keys: list[str]) -> ray.data.Dataset:
    """Stream the rows of Parquet files, or of tars of photos.

    (The listing task of ray.data.read_parquet takes a CPU, whatever its reading tasks take.)
    """
    import ray.data

    def tables(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for key in batch["key"]:
            for rows in format_of(key).batches(store.read(key)):
                yield pa.Table.from_batches([rows])

    items = [{"key": key} for key in keys]
    return ray.data.from_items(items).map_batches(tables, batch_size=1, **READ_OPTIONS)


def iter_photos(uri: str) -> Iterator[dict[str, Any]]:
    """The rows of `read_photos`, shard by shard and without Ray."""
    store, keys = _shards(uri)
    for key in keys:
        for rows in format_of(key).batches(store.read(key)):
            yield from rows.to_pylist()


def photos_digest(uri: str) -> str:
    """16 hex digits that name the shards below a prefix by content.

    In a bucket its own tags tell the content; the files of a folder are read.
    """
    store, keys = _shards(uri)
    tags = {entry.key: entry.etag for entry in store.list()}
    digest = hashlib.sha256()
    for key in keys:
        bucket = store.uri.startswith("s3://")
        content = tags[key] if bucket else hashlib.sha256(store.read(key)).hexdigest()
        digest.update(f"{key}:{content}\n".encode())
    return digest.hexdigest()[:16]


def _shards(uri: str) -> tuple[Store, list[str]]:
    store = Store(uri)
    keys = shard_keys(store)
    if not keys:
        raise EmptyInputError(
            f"photos: got {store.uri}, which holds no shard-*.parquet or .tar; expected what "
            "`bs-ray ingest` writes. Run it first, or check the prefix"
        )
    return store, keys
