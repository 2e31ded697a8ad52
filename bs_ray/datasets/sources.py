"""Where training pictures come from: shards of photos, and folders of image pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bs_ray.datasets.shards import format_of, shard_keys
from bs_ray.images.rows import EmptyInputError
from bs_ray.storage import Store

if TYPE_CHECKING:
    import ray.data

_READS: dict[str, Any] = {"num_cpus": 0, "concurrency": 2}
"""What Ray Data gives reading: two tasks at a time and no CPU of their own, for they wait more than
they work, and where training takes every CPU of a cluster they would never start otherwise."""
_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def read_photos(uri: str) -> ray.data.Dataset:
    """Stream the shards below a prefix: rows of PHOTO_SCHEMA (key, identity, bytes).

    Raises EmptyInputError where there are none, and StorageError.
    """
    return read_shards(*_shards(uri))


def read_shards(store: Store, keys: list[str]) -> ray.data.Dataset:
    """Stream the rows of Parquet files, or of tars of photos.

    Not ray.data.read_parquet: its listing task needs a CPU whatever its reading tasks are given.
    """
    import ray.data

    def tables(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for key in batch["key"]:
            for rows in format_of(key).batches(store.read(key)):
                yield pa.Table.from_batches([rows])

    items = [{"key": key} for key in keys]
    return ray.data.from_items(items).map_batches(tables, batch_size=1, **_READS)


def iter_photos(uri: str) -> Iterator[dict[str, Any]]:
    """The same rows without Ray, shard by shard."""
    store, keys = _shards(uri)
    for key in keys:
        for rows in format_of(key).batches(store.read(key)):
            yield from rows.to_pylist()


def photos_digest(uri: str) -> str:
    """16 hex digits that name the shards below a prefix by content.

    A bucket's own content tags are taken; files of a folder are read.
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


def read_pairs(uri: str) -> ray.data.Dataset:
    """Pictures of an image-pair slider: rows `key` ("<strength>/<name>") and `bytes`.

    Raises EmptyInputError where there is no picture in a folder, and StorageError.
    """
    import ray.data

    store = Store(uri)
    keys = pair_keys(store)
    return ray.data.from_items([{"key": key} for key in keys]).map(
        lambda row: {"key": row["key"], "bytes": store.read(row["key"])}, **_READS
    )


def pair_keys(store: Store) -> list[str]:
    """Keys of the pictures one folder down. Raises EmptyInputError for none."""
    keys = [
        entry.key
        for entry in store.list()
        if entry.key.count("/") == 1 and PurePosixPath(entry.key).suffix.lower() in _IMAGES
    ]
    if not keys:
        raise EmptyInputError(
            f"pairs.images: got {store.uri}, which holds no picture in a folder named by its "
            'strength; expected "-1/face.png", "1/face.png" and so on'
        )
    return keys
