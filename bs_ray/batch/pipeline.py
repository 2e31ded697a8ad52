"""The stages on Ray Data. A row of the Dataset is a whole shard.

A row is never split between blocks or batches, so a shard is edited in the same batches on every
run and its ledger line is written in one place. Resuming needs no state but the ledger: shards
with a line are left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bs_ray.batch.edit import copied, edit_rows, gated
from bs_ray.batch.fetch import fetch_shard
from bs_ray.batch.prepare import PreparedJob, digest
from bs_ray.batch.rows import pack, seconds_of, unpack
from bs_ray.batch.write import write_shard
from bs_ray.config import EditJob
from bs_ray.editing.editor import Editor
from bs_ray.images.rows import is_quarantined
from bs_ray.models import load_base
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import SliderError


def fetchers(job: EditJob, pending: int) -> int:
    """Fetching tasks at once.

    Enough to keep the editors fed, no more: each holds a decoded shard. The size also keeps Ray
    from fusing the stage into the editors, which would then wait for their own decoding.
    """
    return min(2 * job.workers, pending)


def pipeline(prepared: PreparedJob, pending: Sequence[int], editors: type | None = None) -> Any:
    """The Dataset of what `write_shard` returns, for every pending shard.

    editors: in place of EditShard, with its face.
    """
    import ray

    job, at_once = prepared.job, fetchers(prepared.job, len(pending))
    # One block per shard: a task then takes one shard, and a crash costs no more.
    shards = ray.data.range(len(pending), override_num_blocks=len(pending), concurrency=at_once)
    shards.context.enable_progress_bars = False
    shards.context.raise_original_map_exception = True  # ours say what to do
    photos = shards.map(
        fetch_shard,
        fn_kwargs={
            "job": job,
            "manifest": prepared.input_list,
            "edits": prepared.edits,
            "names": prepared.names,
            "pending": pending,
        },
        compute=ray.data.TaskPoolStrategy(at_once),
    )
    if prepared.moves_nothing:
        photos = photos.map(copy_shard)
    else:
        photos = photos.map(
            editors or EditShard,
            fn_constructor_kwargs={"job": job, "settings": prepared.input_list.settings},
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=job.workers, initial_size=job.workers
            ),
            num_cpus=job.cpus_per_worker,
            num_gpus=job.gpus_per_worker or None,
        )
    return photos.map(
        write_shard,
        fn_kwargs={"job": job, "stamp": prepared.stamp, "references": prepared.references},
        # Bounded, as is all here: Ray would start a process for each CPU that is free for a moment,
        # and keep them.
        compute=ray.data.TaskPoolStrategy(at_once),
    )


def copy_shard(row: dict[str, Any]) -> dict[str, Any]:
    """{shard, rows} -> {shard, rows}: the photos as their own outputs."""
    rows = [[r] if is_quarantined(r) else copied(r) for r in unpack(row)]
    return pack(
        row["shard"],
        [r for some in rows for r in some],
        **seconds_of(row),
        edit_at_s=time.time(),
        edit_s=0.0,
    )


class EditShard:
    """{shard, rows} -> {shard, rows}: the actor that holds the base and the sliders."""

    def __init__(self, job: EditJob, settings: dict[str, Any]):
        """settings: the job's manifest's. Raises SliderError where a slider has changed since."""
        import torch

        torch.set_num_threads(max(1, round(job.cpus_per_worker)))
        registry, sliders = Registry(job.registry), []
        for used in settings["sliders"].values():
            sliders.append(registry.resolve(used["place"]))
            if digest(sliders[-1]) != used["sha256"]:
                raise SliderError(f"slider {used['place']}: got other weights than at the start")
        model = load_base(job.base, device="cuda" if job.gpus_per_worker else "cpu")
        editor = Editor(model, sliders, job.editor)
        self.job, self.editor, self.working_size = job, gated(editor, job), editor.working_size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began, started = time.time(), time.monotonic()
        rows = edit_rows(unpack(row), self.editor, self.working_size, self.job)
        edit_s = time.monotonic() - started
        return pack(row["shard"], rows, **seconds_of(row), edit_at_s=began, edit_s=edit_s)
