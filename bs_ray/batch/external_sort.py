"""Sorted streams in little memory: all files below a prefix, merged from sorted runs on disk; and
two streams side by side.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bs_ray.storage import Entry, Store

_Left = TypeVar("_Left")
_Right = TypeVar("_Right")

_RUN = 30_000  # files in memory at once
_PAGE = 10_000
_MERGED = 500  # files of each run in memory
_SCHEMA = pa.schema([("key", pa.string()), ("size", pa.int64()), ("etag", pa.string())])


class SortedFiles:
    """What a store lists, as (key, size, etag), sorted by the bytes of the keys."""

    def __init__(self, source: Store, folder: Path):
        """Lists `source` now, and keeps the sorted runs in `folder`. Raises StorageError."""
        self.count, self._runs = 0, list[Path]()
        entries = source.walk()
        while run := list(islice(entries, _RUN)):
            self.count += len(run)
            path = folder / f"run-{len(self._runs):05d}.parquet"
            # Without dictionaries, since reading a few rows would load the keys of the whole run.
            pq.write_table(pa.table(_columns(run)).sort_by("key"), path, use_dictionary=False)
            self._runs.append(path)

    def ending(self, suffixes: Sequence[str]) -> int:
        """How many names have one of these endings, in upper or lower case."""
        keys = (batch["key"] for path in self._runs for batch in _batches(path, ["key"]))
        return sum(pc.sum(ends(some, suffixes)).as_py() for some in keys)

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


def side_by_side(
    left: Iterable[tuple[str, _Left]], right: Iterable[tuple[str, _Right]]
) -> Iterator[tuple[list[_Left], list[_Right]]]:
    """For every name in either of two streams, in order, what each of them has under it.

    The streams are of (name, thing), sorted by names; memory holds what is under one name.
    """
    lefts = ((name, 0, thing) for name, thing in left)
    rights = ((name, 1, thing) for name, thing in right)
    merged: Iterator[tuple[str, int, Any]] = heapq.merge(lefts, rights, key=itemgetter(0))
    for _, group in groupby(merged, key=itemgetter(0)):
        sides: tuple[list[_Left], list[_Right]] = ([], [])
        for _, side, thing in group:
            sides[side].append(thing)
        yield sides


def _columns(run: Sequence[Entry]) -> dict[str, list]:
    return {name: [getattr(entry, name) for entry in run] for name in _SCHEMA.names}


def _batches(
    path: Path, columns: list[str] | None = None, rows: int = _PAGE
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(rows, columns=columns)


def _rows(path: Path) -> Iterator[tuple]:
    for batch in _batches(path, rows=_MERGED):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
