"""The pipeline's last stage: encode and write a shard's photos, then commit it. No torch."""

from __future__ import annotations

import time
from typing import Any

from bs_ray.batch.ledger import commit_shard
from bs_ray.batch.rows import EditedRow, seconds_of, unpack
from bs_ray.config import EditJob
from bs_ray.images.rows import is_quarantined
from bs_ray.storage import Store


def write_shard(
    row: dict[str, Any], *, job: EditJob, stamp: dict[str, Any], generation: int = 1
) -> dict[str, Any]:
    """{shard, rows} -> {shard, inputs, quarantined, outputs, <stage>_s}: write, then commit.

    stamp: what every output says of its making.
    """
    started = time.monotonic()

    def provenance(photo: EditedRow) -> dict[str, Any]:
        made = {**stamp, "sliders": photo["mix"], "source_sha256": photo["sha256"]}
        return {**made, "regions": photo["regions"]} if photo["regions"] else made

    output, rows = Store(job.output), unpack(row)
    done = commit_shard(output, job.sink, row["shard"], rows, provenance, generation)
    bad = sum(map(is_quarantined, done))
    return {
        "shard": row["shard"],
        "inputs": len({r["key"] for r in done}),
        "quarantined": bad,
        "outputs": len(done) - bad,
        **seconds_of(row),
        "write_s": time.monotonic() - started,
    }
