"""The pinned input of a generation: photos listed once, sorted and cut into shards.

One Parquet object holds the list and, in its metadata, the settings that decide what a photo
becomes. It is written before any work, on condition that there is none. So a run that resumes has
the same input in the same shards, and another job cannot mix its photos into this output.

First come the photos that this generation edits, in its shards; then those that stand from earlier
ones. Both are in the order of the listing.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.batch.generations import last_whole, work_folder
from bs_ray.batch.listing import Listing
from bs_ray.batch.rows import INPUT_SCHEMA, ImageRow
from bs_ray.config import JobError, editor_settings, flat_settings
from bs_ray.storage import MissingKeyError, Store

NEW, CHANGED, LOST, GONE, UNCHANGED = "new", "changed", "lost", "gone", "unchanged"
KINDS = (NEW, CHANGED, LOST, GONE, UNCHANGED)
"""What a photo is to the generation before."""

_META = b"bs_ray"
_SCHEMA = INPUT_SCHEMA.append(pa.field("generation", pa.int32(), nullable=False))
_STANDING = -1  # in place of a shard
_GROUP = 4096  # photos in a row group, about; small groups make a footer that is slow to read


class JobChangedError(ValueError):
    """The output prefix belongs to a job with other settings; the message names them."""


@dataclass(frozen=True)
class Changes:
    """A listing against the last whole generation: what the next one is made of."""

    listing: Listing
    to_edit: Path
    """Parquet, LISTING_SCHEMA, in order."""
    standing: Path | None
    """Parquet, LISTING_SCHEMA and a column `generation`, in order; None where nothing stands."""
    counts: Mapping[str, int]
    """How many photos are new, changed, lost, gone and unchanged."""

    @property
    def any(self) -> bool:
        """Whether there is a reason for another generation."""
        return any(count for kind, count in self.counts.items() if kind != UNCHANGED)

    @property
    def edits(self) -> int:
        """Photos that the next generation edits."""
        return sum(self.counts[kind] for kind in (NEW, CHANGED, LOST))


@dataclass(frozen=True)
class InputList:
    """The pinned input of a generation; the photos themselves stay in the file."""

    output: Store
    photos: int
    to_edit: int
    """Those of the photos that this generation edits."""
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
    changes: dict[str, int]
    """How many photos are new, changed, lost, gone and unchanged since the generation before."""
    generation: int = 1

    @property
    def shards(self) -> int:
        """How many there are of photos to edit."""
        return -(-self.to_edit // self.shard_images)

    def shard(self, number: int) -> list[ImageRow]:
        """The photos of one shard. Each node downloads the input list once."""
        group, start = divmod(number * self.shard_images, _group_rows(self.shard_images))
        return _read_group(self._path(), group).slice(start, self.shard_images).to_pylist()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every photo in the order of the listing, with the generation that edits or edited it.

        Memory holds some thousands of them.
        """
        edited = -(-self.to_edit // _group_rows(self.shard_images))  # row groups
        with pq.ParquetFile(self._path()) as file:
            parts = range(edited), range(edited, file.num_row_groups)
            for row in heapq.merge(*(_rows(file, part) for part in parts), key=_order):
                yield {"generation": 1, **row}  # the first versions had one generation

    def _path(self) -> Path:
        return self.output.local_copy(_input_key(self.generation))


def place_of(row: Mapping[str, Any]) -> str:
    """The file that a photo is, or is packed in: listings are sorted by it."""
    return row["file"] or row["key"]


def _order(row: Mapping[str, Any]) -> tuple[str, int]:
    return place_of(row), row["at"]


def _rows(file: pq.ParquetFile, groups: range) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(_GROUP, row_groups=groups) if groups else ():
        yield from batch.to_pylist()


def _input_key(generation: int) -> str:
    return f"{work_folder(generation)}/input.parquet"


def read_input_list(output: Store, generation: int = 1) -> InputList | None:
    """The input list of a generation; None where it has not begun."""
    try:
        path = output.local_copy(_input_key(generation))
    except MissingKeyError:
        return None
    with pq.ParquetFile(path) as file:
        meta = json.loads(file.schema_arrow.metadata[_META])
        photos = file.metadata.num_rows
    meta = {"to_edit": photos, "changes": {NEW: photos}} | meta  # the first versions had neither
    meta["changes"] = counts_of(meta["changes"])
    return InputList(output=output, photos=photos, **meta)


def newest_input_list(output: Store) -> InputList | None:
    """That of the generation that is in work, else of the last whole one; None for neither."""
    last = last_whole(output)
    return read_input_list(output, last + 1) or (read_input_list(output, last) if last else None)


def counts_of(some: Mapping[str, int]) -> dict[str, int]:
    """All kinds of change, with 0 for those that did not occur."""
    return {kind: some.get(kind, 0) for kind in KINDS}


def open_input_list(
    output: Store, settings: dict[str, Any], shard_images: int, listed: Callable[[Path], Listing]
) -> InputList:
    """The output's newest input list; the first run makes it from `listed(scratch folder)`.

    Raises JobChangedError where the output was begun with other settings, and what `listed` raises.
    """
    found = newest_input_list(output)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            listing = listed(Path(folder))
            everything = Changes(listing, listing.path, None, counts_of({NEW: listing.photos}))
            found = pin_input_list(output, 1, settings, shard_images, everything)
    check_settings(found.settings, settings, output)
    return found


def pin_input_list(
    output: Store, generation: int, settings: dict[str, Any], shard_images: int, changes: Changes
) -> InputList:
    """Begin a generation, and return its input list: this driver's, or that of another one which
    was first."""
    file = _file(changes, settings, shard_images, generation)
    output.write_if_absent(_input_key(generation), file)
    found = read_input_list(output, generation)
    assert found is not None
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


def _file(changes: Changes, settings: dict[str, Any], shard_images: int, generation: int) -> bytes:
    """The input list's file. Equal listings give equal bytes."""
    listing = changes.listing
    meta = {
        "generation": generation,
        "to_edit": changes.edits,
        "changes": dict(changes.counts),
        "shard_images": shard_images,
        "format": listing.format,
        "ignored": listing.ignored,
        "bytes": listing.bytes,
        "settings": settings,
        "sha256": _digest(listing),
    }
    schema = _SCHEMA.with_metadata({_META: json.dumps(meta, sort_keys=True).encode()})
    path, rows = listing.path.with_name("input.parquet"), _group_rows(shard_images)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first, group in _groups(changes.to_edit, rows):
            numbers = (np.arange(first, first + len(group)) // shard_images).astype(np.int32)
            made_by = pa.repeat(pa.scalar(generation, pa.int32()), len(group))
            columns = [*group.columns, pa.array(numbers), made_by]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows)
        for _, group in _groups(changes.standing, rows) if changes.standing else ():
            none = pa.repeat(pa.scalar(_STANDING, pa.int32()), len(group))
            columns = [*group.columns[:-1], none, group.columns[-1]]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=rows)
    return path.read_bytes()


def _groups(path: Path, rows: int) -> Iterator[tuple[int, pa.Table]]:
    """A file's photos in tables of `rows` rows, each with the number of its first row."""
    with pq.ParquetFile(path) as file:
        first, left = 0, file.schema_arrow.empty_table()
        for batch in file.iter_batches(_GROUP):
            left = pa.concat_tables([left, pa.Table.from_batches([batch])])
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
