"""Cuts the photos of a listing into shards, bounded in their number and in the size of their
files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD_BYTES = 64 << 20
GROUP = 4096
"""Photos in a row group, about; small groups make a footer that is slow to read."""


class ShardNumbers:
    """As many photos in each shard as their number and size allow, in their order."""

    def __init__(self, shard_images: int, shard_bytes: int):
        self._images, self._most = shard_images, shard_bytes
        self._shard = self._count = self._bytes = 0

    def of(self, sizes: Sequence[int]) -> np.ndarray:
        """The shards of the next photos, int32. Sizes below 0 are unknown and count nothing."""
        found = np.empty(len(sizes), np.int32)
        for index, size in enumerate(max(size, 0) for size in sizes):
            too_large = self._count and self._bytes + size > self._most
            if too_large or self._count == self._images:
                self._shard, self._count, self._bytes = self._shard + 1, 0, 0
            self._count, self._bytes = self._count + 1, self._bytes + size
            found[index] = self._shard
        return found


def tables(path: Path) -> Iterator[pa.Table]:
    """A Parquet file, some thousands of rows at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(GROUP):
            if len(batch):
                yield pa.Table.from_batches([batch])


def cut(path: Path, shard_images: int, shard_bytes: int) -> Iterator[tuple[pa.Table, pa.Array]]:
    """A listing's photos, whole shards at a time, and the shard of each photo."""
    numbers, shards = ShardNumbers(shard_images, shard_bytes), np.zeros(0, np.int32)
    left: pa.Table | None = None
    for table in tables(path):
        left = table if left is None else pa.concat_tables([left, table])
        shards = np.append(shards, numbers.of(table["size"].to_pylist()))
        whole = int(np.searchsorted(shards, shards[-1]))  # the last shard may go on
        if whole >= GROUP:
            yield left.slice(0, whole), pa.array(shards[:whole])
            left, shards = left.slice(whole), shards[whole:]
    if left is not None and len(left):
        yield left, pa.array(shards)


def count_shards(path: Path, shard_images: int, shard_bytes: int) -> int:
    """How many shards a listing's photos make."""
    numbers, shards = ShardNumbers(shard_images, shard_bytes), 0
    for table in tables(path):
        shards = int(numbers.of(table["size"].to_pylist())[-1]) + 1
    return shards
