"""The ledger says what is done: one line for each shard, written once, after the shard's outputs.

A shard's photos are written first, and then its line, on condition that there is none yet. A crash
before that costs this shard's work and nothing else. Every generation has its own lines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby
from typing import Any

from bs_ray.batch.generations import work_folder
from bs_ray.batch.rows import EditedRow, OutputRow
from bs_ray.batch.sinks import SINKS, EncodedPhoto
from bs_ray.images.encode import encode
from bs_ray.images.rows import QuarantinedRow, is_quarantined, quarantined
from bs_ray.storage import Store

_REQUESTS = 8
_LINES = 64  # shards in memory at once

Row = OutputRow | QuarantinedRow


def commit_shard(
    output: Store,
    sink: str,
    shard: int,
    rows: Sequence[EditedRow | QuarantinedRow],
    provenance: Callable[[EditedRow], dict[str, Any]],
    generation: int = 1,
) -> list[Row]:
    """Write the shard's photos, then its line, whose rows are returned in the given order.

    The edits of a photo follow each other; where one of them cannot be encoded, all are given up.
    """
    photos = [list(edits) for _, edits in groupby(rows, key=lambda row: row["key"])]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        made = list(pool.map(lambda edits: _made(edits, provenance), photos))
    flat = [row for some in made for row in some]
    encoded = [row for row in flat if isinstance(row, EncodedPhoto)]
    written = iter(SINKS[sink](output, generation, shard, encoded))
    done: list[Row] = [next(written) if isinstance(row, EncodedPhoto) else row for row in flat]
    line = {"shard": shard, "rows": done}
    text = json.dumps(line, sort_keys=True, indent=1)
    output.write_if_absent(_shard_key(shard, generation), text.encode())
    return done


def _made(
    edits: Sequence[EditedRow | QuarantinedRow], provenance: Callable[[EditedRow], dict[str, Any]]
) -> Sequence[EncodedPhoto | QuarantinedRow]:
    if is_quarantined(edits[0]):
        return [edits[0]]
    try:
        pairs = [(row, provenance(row)) for row in edits]  # type: ignore[arg-type]
        return [EncodedPhoto(row, encode(row, made), made) for row, made in pairs]  # type: ignore[arg-type]
    except Exception as error:  # such as metadata too long for the format
        reason = f"damaged: {type(error).__name__}: {error}"
        return [quarantined(edits[0]["key"], "encode", reason)]


def done_shards(output: Store, generation: int = 1) -> set[int]:
    """The shards that have a line."""
    entries = output.walk(_shards(generation))
    return {int(e.key.rpartition("/")[2].removesuffix(".json")) for e in entries}


def reopen(output: Store, shards: Sequence[int], generation: int = 1) -> None:
    """Remove the lines of some shards, so that the next run makes them again."""
    for shard in shards:
        output.delete(_shard_key(shard, generation))


def read_lines(output: Store, shards: Sequence[int], generation: int = 1) -> Iterator[Row]:
    """All rows of some shards, in order."""
    return chain.from_iterable(read_shards(output, shards, generation))


def read_shards(output: Store, shards: Sequence[int], generation: int = 1) -> Iterator[list[Row]]:
    """The rows of each of some shards, in order; memory holds a few lines."""

    def rows(shard: int) -> list[Row]:
        return json.loads(output.read(_shard_key(shard, generation)))["rows"]

    with ThreadPoolExecutor(_REQUESTS) as pool:
        for first in range(0, len(shards), _LINES):
            yield from pool.map(rows, shards[first : first + _LINES])


def _shards(generation: int) -> str:
    return f"{work_folder(generation)}/shards/"


def _shard_key(shard: int, generation: int) -> str:
    return f"{_shards(generation)}{shard:05d}.json"
