"""Verify that the store still has every output that the ledger says is written.

A full store, or a rule that expires objects, may lose outputs that had been acknowledged. One
listing finds them, before a job calls itself finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np

from bs_ray.batch.ledger import Row, read_shards
from bs_ray.batch.sinks import FILES, PACKED, split_place
from bs_ray.images.rows import is_quarantined
from bs_ray.storage import Store


def lost_shards(output: Store, shards: int) -> list[int]:
    """The shards below `shards` that have lost an output, or have one of another size.

    Memory holds 8 bytes for each output. Of packed outputs only the files are looked for.
    """
    there = np.sort(np.fromiter(map(_mark, _files(output)), np.uint64))
    return [
        shard
        for shard, rows in enumerate(read_shards(output, range(shards)))
        if not _holds(there, np.fromiter(map(_mark, _places(rows)), np.uint64))
    ]


def _files(output: Store) -> Iterator[str]:
    yield from (f"{entry.key} {entry.size}" for entry in output.walk(FILES))
    yield from (entry.key for entry in output.walk(PACKED))


def _places(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if not is_quarantined(row):
            key, member = split_place(row["output"])
            yield key if member else f"{key} {row['bytes']}"


def _mark(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def _holds(there: np.ndarray, marks: np.ndarray) -> bool:
    """Whether all marks are among `there`, which is sorted."""
    at = np.searchsorted(there, marks)
    return bool((at < len(there)).all() and (there[at] == marks).all())
