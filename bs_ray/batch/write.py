"""The pipeline's last stage: bring the changes back to the photos, write them, then commit the
shard. No torch.

Photos are decoded once more here, a few at a time, so that memory does not grow with the shard.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from bs_ray.batch.fetch import groups
from bs_ray.batch.ledger import commit_shard
from bs_ray.batch.rows import EditedRow, seconds_of, unpack, unpack_files
from bs_ray.batch.sinks import EncodedPhoto
from bs_ray.config import EditJob
from bs_ray.images.decode_pool import Photo, shared_decode_pool
from bs_ray.images.encode import encode
from bs_ray.images.regions import pasted
from bs_ray.images.rows import DecodedRow, QuarantinedRow, is_quarantined, quarantined
from bs_ray.images.scaling import moved
from bs_ray.storage import Store

_THREADS = 2  # one waits for the decoders or encodes, while the other one moves pixels

Made = list[EncodedPhoto | QuarantinedRow]


def write_shard(
    row: dict[str, Any], *, job: EditJob, stamp: dict[str, Any], generation: int = 1
) -> dict[str, Any]:
    """{shard, rows, files} -> {shard, inputs, quarantined, outputs, <stage>_s}: write, then commit.

    stamp: what every output says of its making.
    """
    started = time.monotonic()
    made = encode_all(unpack(row), unpack_files(row), job, stamp)
    done = commit_shard(Store(job.output), job.sink, row["shard"], made, generation)
    bad = sum(map(is_quarantined, done))
    return {
        "shard": row["shard"],
        "inputs": len({r["key"] for r in done}),
        "quarantined": bad,
        "outputs": len(done) - bad,
        **seconds_of(row),
        "write_s": time.monotonic() - started,
    }


def encode_all(
    rows: Sequence[EditedRow | QuarantinedRow],
    files: dict[str, bytes],
    job: EditJob,
    stamp: dict[str, Any],
) -> Made:
    """Every edit as a file, in order; a photo of which one cannot be made is given up whole."""
    made: dict[str, Made] = {row["key"]: [row] for row in rows if is_quarantined(row)}
    photos: dict[str, list[EditedRow]] = {}
    for row in rows:
        if not is_quarantined(row):
            photos.setdefault(row["key"], []).append(row)
    pool = shared_decode_pool(job.decode_s, job.decode_mb)

    def work(group: list[Photo]) -> None:
        decoded = pool.decode(group, max_pixels=job.max_pixels)
        for (key, file), photo in zip(group, decoded, strict=True):
            made[key] = _encoded(photos[key], file, photo, stamp)

    moving = [key for key, edits in photos.items() if any(row["changes"] for row in edits)]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(work, groups([(key, files[key]) for key in moving])))
    for key in photos.keys() - made.keys():  # each edit is the file itself: no need to decode it
        made[key] = [EncodedPhoto(r, files[key], _provenance(r, stamp)) for r in photos[key]]
    return [one for key in dict.fromkeys(row["key"] for row in rows) for one in made[key]]


def _encoded(
    edits: Sequence[EditedRow],
    file: bytes,
    photo: DecodedRow | QuarantinedRow,
    stamp: dict[str, Any],
) -> Made:
    """All edits of a photo; or why one of them cannot be made."""
    if is_quarantined(photo):
        return [photo]
    made: Made = []
    for row in edits:
        about, data = _provenance(row, stamp), file
        if row["changes"]:
            pixels = _changed(photo["pixels"], row)
            try:
                data = encode(DecodedRow(**{**photo, "pixels": pixels}), about)
            except Exception as error:  # such as metadata too long for the format
                reason = f"damaged: {type(error).__name__}: {error}"
                return [quarantined(row["key"], "encode", reason)]
        made.append(EncodedPhoto(EditedRow(**{**row, "changes": []}), data, about))
    return made


def _provenance(row: EditedRow, stamp: dict[str, Any]) -> dict[str, Any]:
    about = {**stamp, "sliders": row["mix"], "source_sha256": row["sha256"]}
    if row["regions"]:
        about["regions"] = [region.described() for region in row["regions"]]
    return about


def _changed(pixels: np.ndarray, row: EditedRow) -> np.ndarray:
    """The photo uint8 [H, W, 3], moved by the changes of its views."""
    if row["regions"] is None:
        [change] = row["changes"]
        return moved(pixels, change, dtype=np.uint8)
    changes = list(zip(row["regions"], row["changes"], strict=True))
    return pasted(pixels, changes, dtype=np.uint8)
