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
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.batch.cutting import GROUP, SHARD_BYTES, cut, tables
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
        last = _last_shards(self._path())
        return last[-1] + 1 if last else 0

    def shard(self, number: int) -> list[ImageRow]:
        """The photos of one shard. Each node downloads the input list once."""
        path = self._path()
        group = _read_group(path, bisect_left(_last_shards(path), number))
        return group.filter(pc.field("shard") == number).to_pylist()

    def photos_of(self, shards: Collection[int]) -> int:
        """How many photos some shards have."""
        numbers = pq.read_table(self._path(), columns=["shard"])["shard"]
        return int(np.isin(numbers.to_numpy(), list(shards)).sum())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every photo in the order of the listing, with the generation that edits or edited it.

        Memory holds some thousands of them.
        """
        edited = len(_last_shards(self._path()))  # row groups
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
    for batch in file.iter_batches(GROUP, row_groups=groups) if groups else ():
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
    output: Store,
    settings: dict[str, Any],
    shard_images: int,
    listed: Callable[[Path], Listing],
    shard_bytes: int = SHARD_BYTES,
) -> InputList:
    """The output's newest input list; the first run makes it from `listed(scratch folder)`.

    shard_images, shard_bytes: how many photos a shard has at most, and the size of their files.
    Raises JobChangedError where the output was begun with other settings, and what `listed` raises.
    """
    found = newest_input_list(output)
    if found is None:
        with tempfile.TemporaryDirectory() as folder:
            listing = listed(Path(folder))
            everything = Changes(listing, listing.path, None, counts_of({NEW: listing.photos}))
            found = pin_input_list(output, 1, settings, shard_images, everything, shard_bytes)
    check_settings(found.settings, settings, output)
    return found


def pin_input_list(
    output: Store,
    generation: int,
    settings: dict[str, Any],
    shard_images: int,
    changes: Changes,
    shard_bytes: int = SHARD_BYTES,
) -> InputList:
    """Begin a generation, and return its input list: this driver's, or that of another one which
    was first."""
    file = _file(changes, settings, generation, shard_images, shard_bytes)
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


@lru_cache(maxsize=2)
def _last_shards(path: Path) -> list[int]:
    """The last shard of each row group of photos to edit."""
    with pq.ParquetFile(path) as file:
        column, groups = file.schema_arrow.names.index("shard"), range(file.num_row_groups)
        last = [file.metadata.row_group(g).column(column).statistics.max for g in groups]
    return [shard for shard in last if shard != _STANDING]


@lru_cache(maxsize=2)
def _read_group(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group)


def _file(
    changes: Changes,
    settings: dict[str, Any],
    generation: int,
    shard_images: int,
    shard_bytes: int,
) -> bytes:
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
    path = listing.path.with_name("input.parquet")
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group, shards in cut(changes.to_edit, shard_images, shard_bytes):
            made_by = pa.repeat(pa.scalar(generation, pa.int32()), len(group))
            columns = [*group.columns, shards, made_by]
            table = pa.Table.from_arrays(columns, schema=schema)
            writer.write_table(table, row_group_size=len(table))
        for group in tables(changes.standing) if changes.standing else ():
            none = pa.repeat(pa.scalar(_STANDING, pa.int32()), len(group))
            columns = [*group.columns[:-1], none, group.columns[-1]]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=GROUP)
    return path.read_bytes()


def _digest(listing: Listing) -> str:
    digest = hashlib.sha256()
    for batch in listing.batches():
        for row in batch.to_pylist():
            digest.update(json.dumps(list(row.values())).encode() + b"\n")
    return digest.hexdigest()
