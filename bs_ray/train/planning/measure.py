"""One step of a job, taken on shapes alone (dry_run.py): what it would need on one worker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import MAX_BYTES, MAX_PHOTOS, PhotoPool
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel, latent_shape_at
from bs_ray.models.published import architecture_folder
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import untrained_features
from bs_ray.train.loop import assemble
from bs_ray.train.losses import Features, LossNormaliser
from bs_ray.train.planning.dry_run import FUSED_ATTENTION, OTHER, DryRun, RowCount
from bs_ray.train.planning.memory import base_networks, bytes_of, engine_bytes, sharded_bytes
from bs_ray.train.step import TrainState, train_step
from bs_ray.train.targets.concept_sliders import concept_sliders_step
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher

STAGES = (0, 1, 2, 3)
_CUDA = 750 * 2**20
"""Allowance for a CUDA context with its libraries' workspaces: a guess, and nothing on a CPU."""
_DENOISER, _VAE, _LOSSES = "denoiser activations", "VAE activations", "losses, gradients"
_WORK = {OTHER: _LOSSES, "denoiser": _DENOISER, "vae": _VAE}
_WEIGHTS = {"denoiser": "denoiser weights", "vae": "VAE weights", "text": "text encoder weights"}


@dataclass(frozen=True)
class StepCost:
    """What one step of one worker costs."""

    work: dict[str, int]
    """Bytes of activations at the step's peak, by part."""
    denoiser_rows: int
    """Forward-equivalents of the denoiser: a trained row counts three times."""
    decoder_rows: int
    """Forward-equivalents of the VAE's decoder, for the losses on pictures."""
    slider_parameters: int
    discriminator_parameters: int


def rows_of(job: TrainJob) -> int:
    """A worker's rows of a step, for each slider, with the fewest workers."""
    return job.batch_size // job.min_workers


class MetaBase:
    """The job's base on the meta device, and steps taken with it."""

    def __init__(
        self,
        run: DryRun,
        model: DiffusionModel,
        features: Features,
        features_bytes: int,
        dtype: torch.dtype,
    ):
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
    def open(cls, job: TrainJob, dtype: torch.dtype | None) -> Iterator[MetaBase]:
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
        trained = 4 if job.gradient_checkpointing else 3  # recomputing costs one more forward
        counts = RowCount(self.model.denoiser, trained), RowCount(self.decoder)
        parts.normaliser.load(
            {"steps": LossNormaliser.SETTLE_STEPS, **dict.fromkeys(LossNormaliser.NAMES, 1.0)}
        )
        self.run.mark()
        before = self.run.live.copy()
        if job.algorithm == "concept_sliders":
            concept_sliders_step(parts, job.steps - 1, denoised=1)
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
        adversary = parts.adversary
        return StepCost(
            work=work,
            denoiser_rows=counts[0].rows,
            decoder_rows=counts[1].rows,
            slider_parameters=_count(parts.bank),
            discriminator_parameters=_count(adversary.critic) if adversary else 0,
        )

    def _assembled(self, job: TrainJob) -> TrainState:
        px = self.px(job)
        pixels = torch.zeros(2, 3, px, px, dtype=torch.uint8)
        photos = PhotoPool(["-1/a.png", "1/a.png"], pixels, self.model)
        features = self.features if job.losses.needs_features else None
        samples: list[dict[str, Any]] = []
        if job.teacher.mode == "cached":
            maker = SampleMaker(job, self.model, photos, Teacher(self.model, job.concepts))
            (one,) = maker.make([0])
            samples = [one | {"sample": n} for n in range(job.teacher.samples)]
        return assemble(job, self.model, photos, features, _Gradients, samples=samples)

    # --- adding up ----------------------------------------------------------------------------
    def memory(self, job: TrainJob, stage: int, rows: int | None = None) -> dict[str, int]:
        """Part -> bytes on one worker at the peak of its step."""
        cost, workers = self.cost(job, rows or rows_of(job)), job.min_workers
        found = dict(self.weights)
        deepspeed = job.engine == "deepspeed"
        if stage == 3 and deepspeed and workers > 1:
            found["denoiser weights"] = sharded_bytes(self.model.denoiser, workers)
        for name in ("slider", "discriminator"):
            count = getattr(cost, f"{name}_parameters")
            found[name] = engine_bytes(count, stage if deepspeed else 0, workers)
        if job.losses.needs_features:
            found["perceptual network"] = self.features_bytes
        found["photo latents"] = self._latents_bytes(job)
        found |= cost.work
        if job.use_gpu:
            found["CUDA"] = _CUDA
        return found

    def total(self, job: TrainJob, rows: int | None = None) -> int:
        """Most bytes at the job's own stage."""
        return max(self.start(job), sum(self.memory(job, job.zero_stage, rows).values()))

    def start(self, job: TrainJob) -> int:
        """Bytes of the whole base, as a worker first loads it."""
        return sum(self.weights.values()) + (_CUDA if job.use_gpu else 0)

    def largest_batch(self, job: TrainJob, limit: float) -> int:
        """The largest batch_size that fits into `limit` bytes, extrapolated linearly; 0: none
        does."""
        rows, unit = rows_of(job), smallest_batch(job)
        here, twice = self.total(job, rows), self.total(job, 2 * rows)
        found = rows + (limit - here) * rows / max(twice - here, 1)
        return max(0, int(found * job.min_workers // unit) * unit)

    def _latents_bytes(self, job: TrainJob) -> int:
        px = self.px(job)
        channels, height, width = self.latent_shape(job)
        return min(MAX_PHOTOS, MAX_BYTES // (3 * px * px)) * channels * height * width * 4

    def px(self, job: TrainJob) -> int:
        """Side of the training pictures."""
        return job.resolution or self.model.native_px

    def latent_shape(self, job: TrainJob) -> tuple[int, int, int]:
        """(C, h, w) of their latents."""
        return latent_shape_at(self.model, self.px(job))

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
    """Gradients without an optimizer: its moments are arithmetic, and its step is slow on meta."""

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        self.module = module
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def step(self) -> None:
        pass


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def smallest_batch(job: TrainJob) -> int:
    """The smallest batch_size that every number of workers can share, with near rows for each."""
    image_terms = job.losses.perceptual or job.losses.adversary
    each = 2 if job.pairs or image_terms else 1
    return each * math.lcm(*range(job.min_workers, job.max_workers + 1))
