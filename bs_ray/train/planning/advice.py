"""What to change in a job that needs more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator

from bs_ray.config import TrainJob, apply_override
from bs_ray.train.planning.measure import MetaBase, smallest_batch
from bs_ray.train.planning.memory import GIB


def refusal(meta: MetaBase, job: TrainJob, needed: int, limit_gb: float) -> str:
    """The message for a job that needs `needed` bytes a worker where there are `limit_gb` GiB."""
    parts = meta.memory(job, job.zero_stage)
    largest = max(parts, key=lambda part: parts[part])
    got = (
        f"plan: got {needed / GIB:.2f} GiB a worker; expected at most {limit_gb:g} GiB "
        f"(--gpu-memory-gb). The largest part: {largest}, {parts[largest] / GIB:.2f} GiB. "
    )
    smallest = needed
    for changes in _changes(meta, job, limit_gb * GIB):
        total = meta.total(_changed(job, changes))
        smallest = min(smallest, total)
        if total <= limit_gb * GIB:
            settings = " ".join(f"{key}={value}" for key, value in changes.items())
            return got + f"Set {settings}, which takes {total / GIB:.2f} GiB"
    return got + (
        f"Nothing here makes it fit ({smallest / GIB:.2f} GiB at the least): use devices with more "
        "memory, or more workers with zero_stage=3"
    )


def _changes(meta: MetaBase, job: TrainJob, limit: float) -> Iterator[dict[str, str]]:
    """Settings to try, each on top of those before; the first of them change no result."""
    changes: dict[str, str] = {}
    shardable = job.zero_stage < 3 and job.min_workers > 1 and job.engine == "deepspeed"
    if shardable:
        yield {"zero_stage": "3"}
    if not job.gradient_checkpointing:
        yield (changes := {"gradient_checkpointing": "true"})
    if shardable:
        yield (changes := changes | {"zero_stage": "3"})
    fitting = meta.largest_batch(_changed(job, changes), limit)
    if 0 < fitting < job.batch_size:
        yield changes | {"batch_size": str(fitting)}
    if job.batch_size > smallest_batch(job):
        yield (changes := changes | {"batch_size": str(smallest_batch(job))})
    if job.losses.perceptual or job.losses.adversary:
        yield changes | {"losses.perceptual": "0", "losses.adversarial": "0"}
    half = meta.px(job) // 2 // meta.model.multiple_px * meta.model.multiple_px
    if half >= meta.model.native_px // 4:
        yield changes | {"resolution": str(half)}


def _changed(job: TrainJob, changes: dict[str, str]) -> TrainJob:
    """The job with settings as the command line would set them."""
    values = job.model_dump()
    for key, value in changes.items():
        apply_override(values, f"{key}={value}", TrainJob)
    return TrainJob.model_validate(values)
