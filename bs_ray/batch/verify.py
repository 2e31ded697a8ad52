"""Verify that the store still has every output that the ledger says is written.

A full store, or a rule that expires objects, may lose outputs that had been acknowledged. One
listing finds them: before a generation calls itself whole, its own; before the next one begins,
all that stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from bs_ray.batch.ledger import read_shards
from bs_ray.batch.sinks import FILES, PACKED, split_place
from bs_ray.images.rows import is_quarantined
from bs_ray.storage import Store


class Outputs:
    """The outputs that a store lists. Memory holds 8 bytes for each."""

    def __init__(self, output: Store):
        """Lists them now."""
        self._there = np.sort(np.fromiter(map(_mark, _files(output)), np.uint64))

    def hold(self, rows: Iterable[Mapping[str, Any]]) -> bool:
        """Whether the outputs of all these rows are there in their size; packed ones, whether their
        file is."""
        marks = np.fromiter(map(_mark, _places(rows)), np.uint64)
        at = np.searchsorted(self._there, marks)
        return bool((at < len(self._there)).all() and (self._there[at] == marks).all())


def lost_shards(output: Store, shards: int, generation: int = 1) -> list[int]:
    """The shards of a generation, below `shards`, that have lost an output."""
    if not shards:
        return []
    outputs = Outputs(output)
    lines = read_shards(output, range(shards), generation)
    return [shard for shard, rows in enumerate(lines) if not outputs.hold(rows)]


def _files(output: Store) -> Iterator[str]:
    for entry in output.walk(FILES.rstrip("/")):  # also those of later generations
        yield f"{entry.key} {entry.size}"
    yield from (entry.key for entry in output.walk(PACKED))


def _places(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if not is_quarantined(row):
            key, member = split_place(row["output"])
            yield key if member else f"{key} {row['bytes']}"


def _mark(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
