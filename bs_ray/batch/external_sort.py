"""All files below a prefix, sorted by name in little memory: sorted runs on disk are merged."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.storage import Entry, Store

_RUN = 30_000  # files in memory at once
_PAGE = 10_000
_MERGED = 500  # files of each run in memory
_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])
UNREADABLE = -2
"""Size of what cannot be read, though it is there; its etag then says why."""


class SortedFiles:
    """What a store lists, as (key, size, etag), sorted by the bytes of the keys."""

    def __init__(self, source: Store, folder: Path, wanted: Callable[[str], bool]):
        """Lists `source` now, and keeps the sorted runs in `folder`. Raises StorageError.

        wanted(key): whether a file is kept.
        """
        self.count, self._runs = 0, list[Path]()
        entries = (entry for entry in source.walk(unreadable=True) if wanted(entry.key))
        while run := list(islice(entries, _RUN)):
            self.count += len(run)
            path = folder / f"run-{len(self._runs):05d}.parquet"
            # Without dictionaries, since reading a few rows would load the keys of the whole run.
            pq.write_table(pa.table(_columns(run)).sort_by("key"), path, use_dictionary=False)
            self._runs.append(path)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All files in order, some at a time."""
        if len(self._runs) == 1:
            yield from _batches(self._runs[0])
            return
        rows = heapq.merge(*map(_rows, self._runs))
        while page := list(islice(rows, _PAGE)):
            yield pa.RecordBatch.from_arrays(
                [*map(pa.array, zip(*page, strict=True))], schema=_SCHEMA
            )


def ends(keys: pa.Array, suffixes: Sequence[str]) -> pa.Array:
    """Which of the keys end in one of the suffixes, in upper or lower case."""
    lower = pc.utf8_lower(keys)
    mask = pc.ends_with(lower, suffixes[0])
    for suffix in suffixes[1:]:
        mask = pc.or_(mask, pc.ends_with(lower, suffix))
    return mask


def _columns(run: Sequence[Entry]) -> dict[str, list]:
    return {
        "key": [entry.key for entry in run],
        "size": [UNREADABLE if entry.problem else entry.size for entry in run],
        "etag": [entry.problem or entry.etag for entry in run],
    }


def _batches(
    path: Path, columns: list[str] | None = None, rows: int = _PAGE
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(rows, columns=columns)


def _rows(path: Path) -> Iterator[tuple]:
    for batch in _batches(path, rows=_MERGED):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
