"""The stages on Ray Data. A row of the Dataset is a whole shard.

A row is never split between blocks or batches, so a shard is edited in the same batches on every
run and its ledger line is written in one place. Resuming needs no state but the ledger: shards
that have a line are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bs_ray.batch.edit import EditShard, copy_shard
from bs_ray.batch.fetch import fetch_shard
from bs_ray.batch.prepare import PreparedJob
from bs_ray.batch.write import write_shard
from bs_ray.config import EditJob


def fetchers(job: EditJob, pending: int) -> int:
    """How many fetching tasks run at once.

    Enough to keep the editors busy and no more, since each holds a decoded shard. A fixed number
    also keeps Ray from fusing the stage into the editors, which would then wait for decoding.
    """
    return min(2 * job.workers, pending)


def pipeline(prepared: PreparedJob, pending: Sequence[int], editors: type = EditShard) -> Any:
    """The Dataset of what `write_shard` returns, for every pending shard.

    editors: an actor class that is used like EditShard.
    """
    import ray

    job, at_once = prepared.job, fetchers(prepared.job, len(pending))
    # One block for each shard: a task then takes one shard, and a crash costs no more than that.
    shards = ray.data.range(len(pending), override_num_blocks=len(pending), concurrency=at_once)
    shards.context.enable_progress_bars = False
    shards.context.raise_original_map_exception = True  # the original says what to do
    photos = shards.map(
        fetch_shard,
        fn_kwargs={
            "job": job,
            "input_list": prepared.input_list,
            "edits": prepared.edits,
            "references": prepared.references,
            "pending": pending,
        },
        compute=ray.data.TaskPoolStrategy(at_once),
    )
    if prepared.moves_nothing:
        photos = photos.map(copy_shard)
    else:
        photos = photos.map(
            editors,
            fn_constructor_kwargs={"job": job, "settings": prepared.input_list.settings},
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=job.workers, initial_size=job.workers
            ),
            num_cpus=job.cpus_per_worker,
            num_gpus=job.gpus_per_worker or None,
        )
    return photos.map(
        write_shard,
        fn_kwargs={
            "job": job,
            "stamp": prepared.stamp,
            "generation": prepared.input_list.generation,
        },
        # Every stage has a bound: Ray would start, and keep, a process for each CPU that is free
        # for a moment.
        compute=ray.data.TaskPoolStrategy(at_once),
    )
