"""What a job will take, before it runs: memory, forward passes, the teacher's cache.

Every figure comes from the product's own step, run on shapes alone (dry_run.py); only what is
sharded over workers is arithmetic. Bytes are those of one worker, on its device, without what its
kernels allocate for themselves: on full-size SDXL at 256 px (`bs-ray bench full-size`, two CPU
cores) the plan said 9.5 GB where the process grew by 10.3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from bs_ray.config import CachedTeacher, TrainJob
from bs_ray.progress import counted
from bs_ray.storage import StorageError
from bs_ray.train.loop import check_rows
from bs_ray.train.planning.advice import refusal
from bs_ray.train.planning.measure import STAGES, MetaBase, rows_of
from bs_ray.train.planning.memory import GIB
from bs_ray.train.targets.cache import CachePlan, cache_plan, seconds_a_sample
from bs_ray.train.targets.concept_sliders import DENOISING_STEPS
from bs_ray.train.targets.samples import PATH_STEPS
from bs_ray.train.targets.teacher import forwards_a_row


class PlanDoesNotFit(ValueError):
    """The job needs more memory than there is; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """What a job will take."""

    base: str
    resolution: int
    dtype: str
    """Of the frozen base."""
    workers: int
    """The fewest that the job runs with; each then needs most memory."""
    rows: int
    """Rows of a step on each worker, for each slider."""
    zero_stage: int
    slider_parameters: int
    discriminator_parameters: int
    memory: dict[int, dict[str, int]]
    """ZeRO stage -> part -> bytes on one worker at the peak of a step."""
    start: int
    """Bytes at the start, when every worker has the whole base, before it is sharded."""
    memory_by_rows: dict[int, int]
    """Rows of a worker -> bytes, at the job's stage."""
    largest_batch_size: int | None
    """What fits on these workers; None where no limit is given."""
    forwards_per_step: float
    """Forward-equivalents of the denoiser, all rows (a trained row counts three times)."""
    forwards_per_sample: float
    """Forward-equivalents of the denoiser for one row of one slider."""
    decodes_per_step: float
    """Forward-equivalents of the VAE's decoder in a step, for the losses on pictures."""
    cache: CachePlan | None
    """The teacher's cache: samples, bytes in storage, forwards to build it."""
    cache_seconds: float | None
    """About how long building the cache takes; None where that is unknown."""
    forward_tflop: float
    """10^12 floating point operations of one denoiser forward of one row."""

    @property
    def total(self) -> int:
        """Most bytes on one worker at the job's ZeRO stage."""
        return max(self.start, sum(self.memory[self.zero_stage].values()))


def plan(
    job: TrainJob, gpu_memory_gb: float | None = None, dtype: torch.dtype | None = None
) -> Plan:
    """What `job` takes, without running it or reading any weight.

    gpu_memory_gb: memory of a worker's device in GiB. dtype: of the frozen base; by default what a
    run takes (bfloat16 on GPUs, float32 on CPUs). A base whose folder is not at hand is planned by
    its name, where that is a published one's (published.py).

    Raises PlanDoesNotFit, naming the largest part and the smallest change that helps, and
    BaseNotFound for a base that is neither.
    """
    check_rows(job, job.max_workers)  # each has the fewest rows
    with MetaBase.open(job, dtype) as meta:
        made = _plan(meta, job, gpu_memory_gb)
        if gpu_memory_gb is not None and made.total > gpu_memory_gb * GIB:
            raise PlanDoesNotFit(refusal(meta, job, made.total, gpu_memory_gb))
    return made


def show(made: Plan, console: Console) -> None:
    """Print a plan as tables."""
    table = Table(
        "GiB on a worker",
        *(f"ZeRO {s}{' *' * (s == made.zero_stage)}" for s in STAGES),
        title=f"{made.base} at {made.resolution} px, {made.dtype}; "
        f"{counted(made.workers, 'worker')} x {counted(made.rows, 'row')} (* as the job says)",
    )
    for part in made.memory[0]:
        table.add_row(part, *(f"{made.memory[s][part] / GIB:.2f}" for s in STAGES))
    sums = [sum(made.memory[s].values()) / GIB for s in STAGES]
    table.add_section()
    table.add_row("all", *(f"[bold]{total:.2f}[/]" for total in sums))
    console.print(table)
    console.print(f"at the start, before the base is sharded: {made.start / GIB:.2f} GiB")
    by_rows = ", ".join(f"{n}: {size / GIB:.2f} GiB" for n, size in made.memory_by_rows.items())
    fits = f"; batch_size={made.largest_batch_size} fits" if made.largest_batch_size else ""
    console.print(f"rows a worker: {by_rows}{fits}")
    console.print(
        f"trainable: slider {made.slider_parameters:,}, discriminator "
        f"{made.discriminator_parameters:,} parameters"
    )
    console.print(
        f"forward-equivalents: {made.forwards_per_sample:g} a sample, {made.forwards_per_step:g} a "
        f"step ({made.forward_tflop:.3g} TFLOP each), and {made.decodes_per_step:g} VAE decodes a "
        "step for the losses on pictures"
    )
    if made.cache:
        took = f"about {made.cache_seconds:,.0f} s" if made.cache_seconds else "time unknown here"
        console.print(
            f"teacher cache: {made.cache.samples:,} samples, {made.cache.bytes / 1e6:,.1f} MB, "
            f"{made.cache.forwards:,} forwards, {took}"
        )


def _plan(meta: MetaBase, job: TrainJob, limit_gb: float | None) -> Plan:
    rows, cost = rows_of(job), meta.cost(job, rows_of(job))
    sliders = len(job.slider_names)
    memory = {stage: meta.memory(job, stage) for stage in STAGES}
    by_rows = {n: meta.total(job, n) for n in (rows, 2 * rows)}
    forwards = cost.denoiser_rows + _beside(job, rows)
    flop = meta.forward_flop(job)
    cache = cache_plan(job, meta.latent_shape(job)) if job.teacher.mode == "cached" else None
    return Plan(
        base=job.base,
        resolution=meta.px(job),
        dtype=str(meta.dtype).removeprefix("torch."),
        workers=job.min_workers,
        rows=rows,
        zero_stage=job.zero_stage,
        slider_parameters=cost.slider_parameters,
        discriminator_parameters=cost.discriminator_parameters,
        memory=memory,
        start=meta.start(job),
        memory_by_rows=by_rows,
        largest_batch_size=None if limit_gb is None else meta.largest_batch(job, limit_gb * GIB),
        forwards_per_step=forwards * job.batch_size / rows,
        forwards_per_sample=forwards / (rows * sliders),
        # Where the number of rows is odd, the first worker has most near rows.
        decodes_per_step=cost.decoder_rows * ((job.batch_size + 1) // 2) / ((rows + 1) // 2),
        cache=cache,
        cache_seconds=cache_seconds(job, cache, flop, meta.dtype) if cache else None,
        forward_tflop=flop / 1e12,
    )


def _beside(job: TrainJob, rows: int) -> float:
    """Denoiser rows of a step that the dry run leaves out."""
    if job.algorithm == "concept_sliders":
        # It ran one guided step of the partial denoising, where a run has 1 .. 49.
        return (DENOISING_STEPS / 2 - 1) * 2 * rows
    if job.teacher.mode == "cached":
        own = job.teacher.on_policy_fraction * rows
        a_row = PATH_STEPS / 2 * 2 + forwards_a_row(job.concepts)
        return own * a_row / job.checkpoint_every
    return 0.0


def cache_seconds(
    job: TrainJob, cache: CachePlan, forward_flop: float, dtype: torch.dtype
) -> float | None:
    """How long building takes: by an earlier cache of this base, else by this machine's speed.

    The latter takes a whole network to be as fast as matrix products of size 1024; it may take
    twice as long. None where the job asks for GPUs and there is none here.
    """
    try:
        a_sample = seconds_a_sample(job, job.base)
    except (StorageError, OSError):
        a_sample = None  # a plan needs no storage
    if a_sample is not None:
        return a_sample * cache.samples
    if job.use_gpu and not torch.cuda.is_available():
        return None
    speed = _flop_per_second("cuda" if job.use_gpu else "cpu", dtype)
    assert isinstance(job.teacher, CachedTeacher)
    return cache.forwards * forward_flop / speed / job.teacher.workers


def _flop_per_second(device: str, dtype: torch.dtype, side: int = 1024) -> float:
    a = torch.ones(side, side, device=device, dtype=dtype)
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        taken.append(time.perf_counter() - start)
    return 2 * side**3 / min(taken)
