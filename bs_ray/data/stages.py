"""The pipeline's two light stages: what comes before and after the model.

Apart from the editor for their import's sake: a worker that only decodes should not load torch.
A row between stages is a whole shard, {shard: int, rows: bytes}; see `pack`.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bs_ray.config import EditJob
from bs_ray.data import DecodedRow, EditedRow, ImageRow, QuarantinedRow, is_quarantined
from bs_ray.data.decode import decode
from bs_ray.data.manifest import fetch, read_shard
from bs_ray.data.sinks import commit_shard
from bs_ray.storage import Store

_READERS = 4  # reading is waiting, and decoding lets go of the interpreter's lock


def pack(shard: int, rows: Sequence[DecodedRow | EditedRow | QuarantinedRow]) -> dict[str, Any]:
    """A shard as one row of a Dataset: photos of many sizes are no Arrow columns."""
    return {"shard": shard, "rows": pickle.dumps(rows, protocol=5)}


def unpack(row: dict[str, Any]) -> list[Any]:
    """The rows that `pack` packed."""
    return pickle.loads(row["rows"])


def fetch_shard(
    row: dict[str, Any], *, job: EditJob, copies: bool, pending: Sequence[int]
) -> dict[str, Any]:
    """{id} -> {shard, rows}: read and decode the photos of shard pending[id].

    copies: the job changes no pixel, so the files' bytes are carried along.
    """
    shard, source = pending[row["id"]], Store(job.input)

    def load(image: ImageRow) -> DecodedRow | QuarantinedRow:
        data = fetch(source, image, job.max_bytes)
        if not isinstance(data, bytes):
            return data
        return decode(image["key"], data, max_pixels=job.max_pixels, keep_source=copies)

    with ThreadPoolExecutor(_READERS) as threads:
        return pack(shard, list(threads.map(load, read_shard(Store(job.output), shard))))


def write_shard(row: dict[str, Any], *, job: EditJob, stamp: dict[str, Any]) -> dict[str, int]:
    """{shard, rows} -> {shard, inputs, quarantined}: write the photos, then the ledger's line."""

    def provenance(photo: EditedRow) -> dict[str, Any]:
        return {**stamp, "source_sha256": photo["sha256"]}

    done = commit_shard(Store(job.output), row["shard"], unpack(row), provenance)
    bad = sum(map(is_quarantined, done))
    return {"shard": row["shard"], "inputs": len(done), "quarantined": bad}
