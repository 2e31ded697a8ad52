"""What a job will take, before it runs: memory, forward passes, the teacher's cache.

Every figure is read off the product's own step, run on shapes alone (dryrun.py); only what
is sharded over workers is arithmetic. Bytes are of one worker, on its device, without what its
kernels take for themselves: on full-size SDXL at 256 px (`bs-ray bench full-size`, two CPU cores)
the plan said 9.5 GB where the process grew by 10.3.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bs_ray.config import CachedTeacher, TrainJob, apply_override
from bs_ray.models import base_folder, load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.models.published import published_name, write_architecture
from bs_ray.storage import StorageError
from bs_ray.train.cache import CachePlan, cache_plan, seconds_a_sample
from bs_ray.train.dryrun import FUSED_ATTENTION, OTHER, DryRun, RowCount
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import untrained_features
from bs_ray.train.loop import assemble, check_rows
from bs_ray.train.losses import Features, Scales
from bs_ray.train.photos import MAX_BYTES, MAX_PHOTOS, PhotoPool
from bs_ray.train.reference import DENOISING_STEPS, reference_step
from bs_ray.train.samples import PATH_STEPS, SampleMaker
from bs_ray.train.step import Parts, train_step
from bs_ray.train.teacher import Teacher, forwards_a_row

GIB = 2**30
STAGES = (0, 1, 2, 3)
_CUDA = 750 * 2**20
"""Allowance for a CUDA context with its libraries' workspaces. Not measured, and not on a CPU."""
_DENOISER, _VAE, _LOSSES = "denoiser activations", "VAE activations", "losses, gradients"
_WORK = {OTHER: _LOSSES, "denoiser": _DENOISER, "vae": _VAE}
_WEIGHTS = {"denoiser": "denoiser weights", "vae": "VAE weights", "text": "text encoder weights"}


class PlanDoesNotFit(ValueError):
    """The job needs more memory than there is; the message says what to change."""


@dataclass(frozen=True)
class StepCost:
    """One step of one worker."""

    work: dict[str, int]
    """Bytes of activations at the step's peak, by part."""
    denoiser_rows: int
    """Forward-equivalents of the denoiser: a trained row counts three times."""
    decoder_rows: int
    """The same of the VAE's decoder, for the losses on pictures."""
    slider_parameters: int
    discriminator_parameters: int


@dataclass(frozen=True)
class Plan:
    """What a job will take."""

    base: str
    resolution: int
    dtype: str
    """Of the frozen base."""
    workers: int
    """The fewest that the job runs with, which is when each needs most memory."""
    rows: int
    """Rows of a step on each of them, for each slider."""
    zero_stage: int
    slider_parameters: int
    discriminator_parameters: int
    memory: dict[int, dict[str, int]]
    """ZeRO stage -> part -> bytes on one worker at the peak of a step."""
    start: int
    """Bytes at the start, when every worker has the whole base (it is sharded afterwards)."""
    memory_by_rows: dict[int, int]
    """Rows of a worker -> bytes, at the job's stage."""
    largest_batch_size: int | None
    """What fits on these workers, where a limit is given."""
    forwards_per_step: float
    """Forward-equivalents of the denoiser, all rows (a trained row counts three times)."""
    forwards_per_sample: float
    """The same for one row of one slider."""
    decodes_per_step: float
    """The same of the VAE's decoder, for the losses on pictures."""
    cache: CachePlan | None
    """The teacher's cache: samples, bytes in storage, forwards to build it."""
    cache_seconds: float | None
    """About how long building it takes; None where nothing here tells."""
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
    its name, where that is a published one's (`models.published`).

    Raises PlanDoesNotFit, naming the largest part and the smallest change that helps, and
    BaseNotFound for a base that is neither.
    """
    check_rows(job, job.most_workers)  # each has the fewest rows
    with _Bench.open(job, dtype) as bench:
        made = _plan(bench, job, gpu_memory_gb)
        if gpu_memory_gb is not None and made.total > gpu_memory_gb * GIB:
            raise PlanDoesNotFit(_refusal(bench, job, made, gpu_memory_gb))
    return made


def show(made: Plan, console: Console) -> None:
    """A plan as tables."""
    table = Table(
        "GiB on a worker", *(f"ZeRO {s}{' *' * (s == made.zero_stage)}" for s in STAGES),
        title=f"{made.base} at {made.resolution} px, {made.dtype}; {made.workers} workers x "
        f"{made.rows} rows (* as the job says)",
    )  # fmt: skip
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


def _plan(bench: _Bench, job: TrainJob, limit_gb: float | None) -> Plan:
    rows, cost = rows_of(job), bench.cost(job, rows_of(job))
    sliders = len(job.slider_names)
    memory = {stage: bench.memory(job, stage) for stage in STAGES}
    by_rows = {n: bench.total(job, n) for n in (rows, 2 * rows)}
    forwards = cost.denoiser_rows + _beside(job, rows)
    flop = bench.forward_flop(job)
    cache = cache_plan(job, bench.latent_shape(job)) if job.teacher.mode == "cached" else None
    return Plan(
        base=job.base,
        resolution=bench.px(job),
        dtype=str(bench.dtype).removeprefix("torch."),
        workers=job.least_workers,
        rows=rows,
        zero_stage=job.zero_stage,
        slider_parameters=cost.slider_parameters,
        discriminator_parameters=cost.discriminator_parameters,
        memory=memory,
        start=bench.start(job),
        memory_by_rows=by_rows,
        largest_batch_size=None if limit_gb is None else bench.largest_batch(job, limit_gb * GIB),
        forwards_per_step=forwards * job.batch_size / rows,
        forwards_per_sample=forwards / (rows * sliders),
        # The first worker has most near rows, where rows are odd in number.
        decodes_per_step=cost.decoder_rows * ((job.batch_size + 1) // 2) / ((rows + 1) // 2),
        cache=cache,
        cache_seconds=cache_seconds(job, cache, flop, bench.dtype) if cache else None,
        forward_tflop=flop / 1e12,
    )


def rows_of(job: TrainJob) -> int:
    """A worker's rows of a step, for each slider, with the fewest workers."""
    return job.batch_size // job.least_workers


def _unit(job: TrainJob) -> int:
    """The smallest batch_size: rows for every number of workers, and near and far in pairs."""
    image_terms = job.losses.perceptual or job.losses.adversarial
    each = 2 if job.pairs or image_terms else 1
    return each * math.lcm(*range(job.least_workers, job.most_workers + 1))


def _beside(job: TrainJob, rows: int) -> float:
    """Denoiser rows of a step that the dry step leaves out."""
    if job.algorithm == "concept_sliders":
        # It ran one guided step of the partial denoising; 1 .. 49 are drawn.
        return (DENOISING_STEPS / 2 - 1) * 2 * rows
    if job.teacher.mode == "cached":
        own = job.teacher.on_policy_fraction * rows
        a_row = PATH_STEPS / 2 * 2 + forwards_a_row(job.concepts)
        return own * a_row / job.checkpoint_every
    return 0.0


class _Bench:
    """The job's base on the meta device, and steps taken with it."""

    def __init__(
        self, run: DryRun, model: DiffusionModel, features: Features, features_bytes: int,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.run, self.model, self.features, self.dtype = run, model, features, dtype
        self.features_bytes = features_bytes
        self._costs: dict[tuple, StepCost] = {}
        networks = base_networks(model)
        self.weights = {
            name: sum(bytes_of(network) for network in networks[part])
            for part, name in _WEIGHTS.items()
        }
        run.labelled("denoiser", [model.denoiser])
        run.labelled("vae", [child for vae in networks["vae"] for child in vae.children()])
        self.decoder = networks["vae"][0].decoder

    @classmethod
    @contextmanager
    def open(cls, job: TrainJob, dtype: torch.dtype | None) -> Iterator[_Bench]:
        dtype = dtype or (torch.bfloat16 if job.use_gpu else torch.float32)
        with architecture_folder(job.base) as folder, DryRun() as run:
            model = load_base(str(folder), dtype=dtype, device="meta")
            before = run.mark()
            features = untrained_features(folder, "meta")
            yield cls(run, model, features, run.mark() - before, dtype)

    # --- measuring ----------------------------------------------------------------------------
    def cost(self, job: TrainJob, rows: int) -> StepCost:
        """A step of one worker with `rows` rows."""
        alone = job.model_copy(update={"workers": 1, "batch_size": rows})
        if alone.teacher.mode == "cached":
            fewer = {"samples": max(2, rows), "trajectory_share": 0.0}
            alone = alone.model_copy(update={"teacher": alone.teacher.model_copy(update=fewer)})
        key = (rows, job.gradient_checkpointing, self.px(job), job.losses.model_dump_json())
        if key not in self._costs:
            self._costs[key] = self._measured(alone)
        return self._costs[key]

    def _measured(self, job: TrainJob) -> StepCost:
        parts = self._assembled(job)
        trained = 4 if job.gradient_checkpointing else 3  # recomputing is one forward more
        counts = RowCount(self.model.denoiser, trained), RowCount(self.decoder)
        parts.scales.load({"steps": Scales.SETTLE_STEPS, **dict.fromkeys(Scales.NAMES, 1.0)})
        self.run.mark()
        before = self.run.live.copy()
        if job.algorithm == "concept_sliders":
            reference_step(parts, job.steps - 1, denoised=1)
        else:
            train_step(parts, job.steps - 1)  # the last step has all of the losses
        peak = self.run.peak
        work = {name: max(0, peak[label] - before[label]) for label, name in _WORK.items()}
        for count in counts:
            count.close()
        parts.bank.detach()
        if job.gradient_checkpointing:
            self.model.denoiser.eval()
            self.model.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
        critic = parts.discriminator
        return StepCost(
            work=work,
            denoiser_rows=counts[0].rows,
            decoder_rows=counts[1].rows,
            slider_parameters=_count(parts.bank),
            discriminator_parameters=_count(critic.module) if critic else 0,
        )

    def _assembled(self, job: TrainJob) -> Parts:
        px = self.px(job)
        pixels = torch.zeros(2, 3, px, px, dtype=torch.uint8)
        photos = PhotoPool(["-1/a.png", "1/a.png"], pixels, self.model)
        features = self.features if job.losses.perceptual else None
        samples: list[dict[str, Any]] = []
        if job.teacher.mode == "cached":
            maker = SampleMaker(job, self.model, photos, Teacher(self.model, job.concepts))
            (one,) = maker.make([0])
            samples = [one | {"sample": n} for n in range(job.teacher.samples)]
        return assemble(job, self.model, photos, features, _Gradients, samples=samples)

    # --- adding up ----------------------------------------------------------------------------
    def memory(self, job: TrainJob, stage: int, rows: int | None = None) -> dict[str, int]:
        """Part -> bytes on one worker at the peak of its step."""
        cost, workers = self.cost(job, rows or rows_of(job)), job.least_workers
        found = dict(self.weights)
        deepspeed = job.engine == "deepspeed"
        if stage == 3 and deepspeed and workers > 1:
            found["denoiser weights"] = sharded_bytes(self.model.denoiser, workers)
        for name in ("slider", "discriminator"):
            count = getattr(cost, f"{name}_parameters")
            found[name] = engine_bytes(count, stage if deepspeed else 0, workers)
        if job.losses.perceptual:
            found["perceptual network"] = self.features_bytes
        found["photo latents"] = self._latents_bytes(job)
        found |= cost.work
        if job.use_gpu:
            found["CUDA"] = _CUDA
        return found

    def total(self, job: TrainJob, rows: int | None = None) -> int:
        """The most at the job's own stage."""
        return max(self.start(job), sum(self.memory(job, job.zero_stage, rows).values()))

    def start(self, job: TrainJob) -> int:
        """Bytes of the whole base, as a worker first loads it."""
        return sum(self.weights.values()) + (_CUDA if job.use_gpu else 0)

    def largest_batch(self, job: TrainJob, limit: float) -> int:
        """The largest batch_size that fits into `limit` bytes, by a straight line; 0: none does."""
        rows, unit = rows_of(job), _unit(job)
        here, twice = self.total(job, rows), self.total(job, 2 * rows)
        found = rows + (limit - here) * rows / max(twice - here, 1)
        return max(0, int(found * job.least_workers // unit) * unit)

    def _latents_bytes(self, job: TrainJob) -> int:
        px = self.px(job)
        channels, height, width = self.latent_shape(job)
        return min(MAX_PHOTOS, MAX_BYTES // (3 * px * px)) * channels * height * width * 4

    def px(self, job: TrainJob) -> int:
        """Side of the training pictures."""
        return job.resolution or self.model.native_px

    def latent_shape(self, job: TrainJob) -> tuple[int, int, int]:
        """(C, h, w) of their latents."""
        channels, height, width = self.model.latent_shape
        px, native = self.px(job), self.model.native_px
        return channels, height * px // native, width * px // native

    def forward_flop(self, job: TrainJob) -> float:
        """Floating point operations of one forward of one row (a multiply-add is two)."""
        x = torch.zeros(1, *self.latent_shape(job), device="meta")
        t = torch.zeros(1, dtype=torch.int64, device="meta")
        condition = self.model.embed([""])

        def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            return sdpa_flop_count(query, key, value)

        counter = FlopCounterMode(display=False, custom_mapping={FUSED_ATTENTION: attention})
        with torch.no_grad(), counter:
            self.model.predict(x, t, condition)
        return float(counter.get_total_flops())


class _Gradients(PlainEngine):
    """Gradients and no optimizer: its moments are arithmetic, and its step takes long on meta."""

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        self.module = module
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def backward_and_step(self, loss: Tensor) -> None:
        loss.backward()


def engine_bytes(parameters: int, stage: int, workers: int) -> int:
    """fp32 weights, gradients and AdamW's two moments of `parameters`, as ZeRO shards them."""
    weights = 4 * parameters
    gradients = 4 * parameters // (workers if stage >= 2 else 1)
    moments = 8 * parameters // (workers if stage >= 1 else 1)
    copy = 4 * parameters // workers if stage >= 1 else 0  # the share that its optimizer steps
    return weights + gradients + moments + copy


def base_networks(model: DiffusionModel) -> dict[str, list[Any]]:
    """The networks of a base as `denoiser`, `vae` and `text`."""
    found: dict[str, list[Any]] = {"denoiser": [], "vae": [], "text": []}
    for name, value in vars(model).items():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, nn.Module):
                kind = "denoiser" if part is model.denoiser else "vae" if name == "vae" else "text"
                found[kind].append(part)
    return found


def bytes_of(module: nn.Module) -> int:
    """Bytes of its parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def cache_seconds(
    job: TrainJob, cache: CachePlan, forward_flop: float, dtype: torch.dtype
) -> float | None:
    """How long building takes: by an earlier cache of this base, else by the machine's speed here.

    The second takes matrix products at 1024 for the speed of a whole network: expect up to twice.
    None where the job asks for GPUs and none is here.
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


# --- refusing ---------------------------------------------------------------------------------
def _refusal(bench: _Bench, job: TrainJob, made: Plan, limit_gb: float) -> str:
    parts = made.memory[job.zero_stage]
    largest = max(parts, key=lambda part: parts[part])
    got = (
        f"plan: got {made.total / GIB:.2f} GiB a worker; expected at most {limit_gb:g} GiB "
        f"(--gpu-memory-gb). The largest part: {largest}, {parts[largest] / GIB:.2f} GiB. "
    )
    least = made.total
    for changes in _changes(bench, job, limit_gb * GIB):
        total = bench.total(_changed(job, changes))
        least = min(least, total)
        if total <= limit_gb * GIB:
            settings = " ".join(f"{key}={value}" for key, value in changes.items())
            return got + f"Set {settings}, which takes {total / GIB:.2f} GiB"
    return got + (
        f"Nothing here makes it fit ({least / GIB:.2f} GiB at the least): use devices with more "
        "memory, or more workers with zero_stage=3"
    )


def _changes(bench: _Bench, job: TrainJob, limit: float) -> Iterator[dict[str, str]]:
    """Settings to try, those that change no result first, each set on top of the ones before."""
    changes: dict[str, str] = {}
    shardable = job.zero_stage < 3 and job.least_workers > 1 and job.engine == "deepspeed"
    if shardable:
        yield {"zero_stage": "3"}
    if not job.gradient_checkpointing:
        yield (changes := {"gradient_checkpointing": "true"})
    if shardable:
        yield (changes := changes | {"zero_stage": "3"})
    fitting = bench.largest_batch(_changed(job, changes), limit)
    if 0 < fitting < job.batch_size:
        yield changes | {"batch_size": str(fitting)}
    if job.batch_size > _unit(job):
        yield (changes := changes | {"batch_size": str(_unit(job))})
    if job.losses.perceptual or job.losses.adversarial:
        yield changes | {"losses.perceptual": "0", "losses.adversarial": "0"}
    half = bench.px(job) // 2 // bench.model.multiple_px * bench.model.multiple_px
    if half >= bench.model.native_px // 4:
        yield changes | {"resolution": str(half)}


def _changed(job: TrainJob, changes: dict[str, str]) -> TrainJob:
    """The job with settings as the command line would set them."""
    values = job.model_dump()
    for key, value in changes.items():
        apply_override(values, f"{key}={value}")
    return TrainJob.model_validate(values)


# --- arithmetic -------------------------------------------------------------------------------
def sharded_bytes(denoiser: nn.Module, workers: int) -> int:
    """Most bytes of a frozen denoiser on one worker under `engines.shard_frozen`.

    Its share of all parameters, and what is gathered at once: the root's own parameters, a block
    with the blocks around it, and the next block, which is fetched meanwhile.
    """
    blocks = set(getattr(denoiser, "_no_split_modules", None) or ())
    units = [n for n, m in denoiser.named_modules() if n == "" or type(m).__name__ in blocks]
    own = dict.fromkeys(units, 0)
    for name, parameter in denoiser.named_parameters():
        nearest = max((u for u in units if not u or name.startswith(u + ".")), key=len)
        own[nearest] += parameter.numel() * parameter.element_size()

    def around(unit: str) -> int:
        return sum(own[u] for u in units if not u or (unit + ".").startswith(u + "."))

    whole = bytes_of(denoiser)
    gathered = max(around(unit) + own[unit] for unit in units)
    return min(whole, whole - sum(own.values()) * (workers - 1) // workers + gathered)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def architecture_folder(base: str) -> Iterator[Path]:
    """The base's folder; where it is not at hand, the published architecture of its name."""
    folder, published = base_folder(base), published_name(base)
    if published and not folder.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            write_architecture(published, Path(scratch))
            yield Path(scratch)
    else:
        yield folder
