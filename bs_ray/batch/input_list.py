"""The pinned input of an edit job: photos listed once, sorted and cut into shards.

One Parquet object holds the list and, in its metadata, the settings that decide what a photo
becomes. It is written before any work, on condition that there is none. So a run that resumes has
the same input in the same shards, and another job cannot mix its photos into this output.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.listing import Listing
from bs_ray.batch.rows import INPUT_SCHEMA, LISTING_SCHEMA, ImageRow
from bs_ray.config import JobError, editor_settings, flat_settings
from bs_ray.storage import MissingKeyError, Store

INPUT_KEY = "_bs_ray/input.parquet"
_META = b"bs_ray"
_GROUP = 4096  # photos in a row group, about; small groups make a footer that is slow to read


class JobChangedError(ValueError):
    """The output prefix belongs to a job with other settings; the message names them."""


@dataclass(frozen=True)
class InputList:
    """The pinned input of an output prefix; the photos themselves stay in the file."""

    output: Store
    photos: int
    shards: int
    shard_images: int
    format: str
    """images, parquet or webdataset."""
    ignored: int
    """Files below the input prefix that hold no photos of this format."""
    bytes: int
    """Size of the files that do hold some."""
    settings: dict[str, Any]
    """The settings that decide an output's pixels, as JSON values."""
    sha256: str
    """Hash of the listing, row by row."""

    def shard(self, number: int) -> list[ImageRow]:
        """The photos of one shard. Each node downloads the input list once."""
        path, size = self.output.local_copy(INPUT_KEY), self.shard_images
        group, start = divmod(number * size, _group_rows(size))
        return _read_group(path, group).slice(start, size).to_pylist()

    def keys(self) -> Iterator[str]:
        """Every photo's key, in order; memory holds some thousands of them."""
        path = self.output.local_copy(INPUT_KEY)
        for batch in pq.ParquetFile(path).iter_batches(_GROUP, columns=["key"]):
            yield from batch["key"].to_pylist()


def read_input_list(output: Store) -> InputList | None:
    """The input list under this output prefix; None before the first run."""
    try:
        path = output.local_copy(INPUT_KEY)
    except MissingKeyError:
        return None
    with pq.ParquetFile(path) as file:
        meta = json.loads(file.schema_arrow.metadata[_META])
        photos = file.metadata.num_rows
    shards = -(-photos // meta["shard_images"])
    return InputList(output=output, photos=photos, shards=shards, **meta)


def open_input_list(
    output: Store, settings: dict[str, Any], shard_images: int, listed: Callable[[Path], Listing]
) -> InputList:
    """The output's input list, which the first run makes from `listed(scratch folder)`.

    Raises JobChangedError where the output was begun with other settings, and what `listed` raises.
    """
    found = read_input_list(output)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            file = _file(listed(Path(folder)), settings, shard_images)
        output.write_if_absent(INPUT_KEY, file)
        found = read_input_list(output)  # this driver's, or that of another one which was first
    assert found is not None
    check_settings(found.settings, settings, output)
    return found


def check_settings(before: dict[str, Any], now: dict[str, Any], output: Store) -> None:
    """Raise JobChangedError unless both are equal but for the version: a newer one goes on."""
    old, new = (flat_settings(_as_stored_today(settings)) for settings in (before, now))
    changed = [
        f"{name}: got {new.get(name)!r}, expected {old.get(name)!r}"
        for name in sorted((old.keys() | new.keys()) - {"bs_ray"})
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise JobChangedError(
            f"{output.uri} was begun with other settings ({'; '.join(changed)}). Go back to those "
            "to finish it, or choose another output"
        )


def _as_stored_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version stored, as this one stores them."""
    try:
        editor = editor_settings(settings.get("editor", {}))
    except JobError:
        return settings  # no editor of this version: the comparison names what differs
    return settings | {"editor": editor.model_dump(mode="json", by_alias=True)}


def _group_rows(shard_images: int) -> int:
    """How many rows a row group has: those of whole shards."""
    return max(1, _GROUP // shard_images) * shard_images


@lru_cache(maxsize=2)
def _read_group(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group)


def _file(listing: Listing, settings: dict[str, Any], shard_images: int) -> bytes:
    """The input list's file. Equal listings give equal bytes."""
    meta = {
        "shard_images": shard_images,
        "format": listing.format,
        "ignored": listing.ignored,
        "bytes": listing.bytes,
        "settings": settings,
        "sha256": _digest(listing),
    }
    schema = INPUT_SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    path, rows = listing.path.with_name("input.parquet"), _group_rows(shard_images)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first, group in _groups(listing, rows):
            numbers = (np.arange(first, first + len(group)) // shard_images).astype(np.int32)
            columns = [*group.columns, pa.array(numbers)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows)
    return path.read_bytes()


def _groups(listing: Listing, rows: int) -> Iterator[tuple[int, pa.Table]]:
    """The listing in tables of `rows` rows, each with the number of its first row."""
    first, left = 0, LISTING_SCHEMA.empty_table()
    for batch in listing.batches():
        left = pa.concat_tables([left, pa.Table.from_batches([batch], schema=LISTING_SCHEMA)])
        while len(left) >= rows:
            yield first, left.slice(0, rows)
            first, left = first + rows, left.slice(rows)
    if len(left):
        yield first, left


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256()
    for batch in listing.batches():
        for row in batch.to_pylist():
            digest.update(json.dumps(list(row.values())).encode() + b"\n")
    return digest.hexdigest()
