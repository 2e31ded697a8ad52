"""Shards of training photos as a Ray Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bs_ray.data import EmptyInputError
from bs_ray.data.lfw import shard_keys
from bs_ray.storage import Store

if TYPE_CHECKING:
    import ray.data


def read_photos(uri: str) -> ray.data.Dataset:
    """Stream the shards below a prefix: rows of PHOTO_SCHEMA (key, identity, bytes).

    Raises EmptyInputError where there are none, and StorageError.
    """
    import ray.data

    store = Store(uri)
    keys = shard_keys(store)
    if not keys:
        raise EmptyInputError(
            f"photos: got {store.uri}, which holds no shard-*.parquet; expected what `bs-ray "
            "ingest` writes. Run it first, or check the prefix"
        )
    filesystem, root = store.arrow_filesystem()
    return ray.data.read_parquet([f"{root}/{key}" for key in keys], filesystem=filesystem)
