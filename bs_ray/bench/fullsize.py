"""A full-size base with random weights: real training steps of every mode, and their memory.

The pictures mean nothing. Text encoders, denoiser and VAE have the published sizes in bfloat16, the
slider is fp32, losses look at decoded pictures: memory and time are real.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.models.published import architecture_folder
from bs_ray.train.engines import DeepSpeedEngine, PlainEngine, shard_frozen
from bs_ray.train.features import untrained_features
from bs_ray.train.loop import MakeEngine, assemble
from bs_ray.train.losses import Features
from bs_ray.train.planning.dry_run import RowCount
from bs_ray.train.planning.memory import base_networks, bytes_of
from bs_ray.train.planning.plan import plan
from bs_ray.train.step import TrainState, train_step
from bs_ray.train.targets.concept_sliders import concept_sliders_step
from bs_ray.train.targets.samples import Row, SampleMaker
from bs_ray.train.targets.teacher import Teacher

DENOISED = 25
"""Steps of the reference's partial denoising: the mean of its random number."""
_ROWS = 2
_PROMPTS = {"target": "person", "positive": "person, old", "negative": "person, young"}
_GUIDED = {"perceptual": 0, "soft_mask": 0}
MODES: dict[str, dict[str, Any]] = {
    "whole_method": {"losses": {"adversarial": 0.1, "adversarial_after": 0}},
    "cached": {"losses": _GUIDED, "teacher": {"mode": "cached", "samples": _ROWS}},
    "live": {"losses": _GUIDED},
    "concept_sliders": {"losses": _GUIDED, "algorithm": "concept_sliders", "batch_size": 1},
}
"""`whole_method` is live, with both losses on pictures. The reference has one loss, so the modes
that are compared with it have that one alone; its guided pairs are forwards of two rows as well."""
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}
"""Part of a GPU's name -> dense bfloat16 TFLOP/s of its data sheet."""
_REPEATS = {"whole_method": 2, "cached": 3, "live": 2, "concept_sliders": 1}


def fullsize(
    report: Callable[[str], None],
    base: str = "sdxl-base-1.0",
    px: int = 256,
    device: str = "cpu",
    zero_stage: int | None = None,
    modes: tuple[str, ...] = tuple(MODES),
) -> dict[str, Any]:
    """Steps of every mode on a base of random bfloat16 weights, in one worker: by plain torch, or
    by DeepSpeed's engines at a ZeRO stage.

    seconds_per_sample: by mode, the median of a step's seconds (all are in step_seconds) over its
    rows. ratio_cached, ratio_live: seconds_per_sample of concept_sliders over theirs.
    tflop_per_second: of the denoiser. mfu: that over the peak of a GPU of PEAK_TFLOPS.
    cache_seconds_per_sample: to build the cache, once for all runs with it. peak_bytes: by mode,
    the most memory beyond what the process held before it loaded the base. plan_bytes,
    plan_over_measured: the plan of `whole_method`, and its ratio to that mode's peak.
    """
    whole = fullsize_job(base, px, "whole_method")
    planned = plan(whole, dtype=torch.bfloat16)
    # The plan counts the photos of a whole run; there are two here.
    expected = planned.total - planned.memory[0]["photo latents"]
    report(f"plan: {expected / 1e9:.2f} GB, {planned.forward_tflop:.2f} TFLOP a forward")
    reset_peak(device)
    before = peak_bytes(device)
    start = time.perf_counter()
    model, features = random_base(base, device)
    held = sum(bytes_of(n) for networks in base_networks(model).values() for n in networks)
    report(f"{base}: {held / 1e9:.2f} GB of random weights in {time.perf_counter() - start:.0f} s")
    make_engine = engine_maker(model, zero_stage)
    pixels = torch.randint(256, (2, 3, px, px), generator=_rng(0)).to(torch.uint8)
    photos = PhotoPool(["a", "b"], pixels, model)
    figures: dict[str, Any] = {
        "base": base,
        "px": px,
        "device": device_name(device),
        "zero_stage": zero_stage,
        "plan_bytes": expected,
        "step_seconds": {},
        "seconds_per_sample": {},
        "forward_equivalents_per_sample": {},
        "tflop_per_second": {},
        "peak_bytes": {},
    }
    for mode in modes:
        reset_peak(device)
        job = fullsize_job(base, px, mode)
        figures |= _timed(mode, job, model, photos, features, make_engine, figures, report)
        figures["peak_bytes"][mode] = peak_bytes(device) - before
        report(f"{mode}: peak memory {figures['peak_bytes'][mode] / 1e9:.2f} GB")
    if "whole_method" in modes:
        figures["plan_over_measured"] = expected / figures["peak_bytes"]["whole_method"]
    found = figures["seconds_per_sample"]
    for mode, seconds in found.items():
        rows = figures["forward_equivalents_per_sample"][mode]
        figures["tflop_per_second"][mode] = rows * planned.forward_tflop / seconds
    if peak := next((v for k, v in PEAK_TFLOPS.items() if k in figures["device"]), None):
        figures["mfu"] = {mode: each / peak for mode, each in figures["tflop_per_second"].items()}
    for mode in ("cached", "live"):
        if mode in found and "concept_sliders" in found:
            figures[f"ratio_{mode}"] = found["concept_sliders"] / found[mode]
    return figures


def fullsize_job(base: str, px: int, mode: str) -> TrainJob:
    """The job of one of MODES."""
    shared = {
        "name": "old",
        "base": base,
        "prompts": _PROMPTS,
        "photos": "random",
        "resolution": px,
        "batch_size": _ROWS,
        "workers": 1,
        "engine": "torch",
        "steps": 10,
        "alpha": 1.0,
        "lr": 2e-4,
    }
    return TrainJob.model_validate(shared | MODES[mode])


def _timed(
    mode: str,
    job: TrainJob,
    model: DiffusionModel,
    photos: PhotoPool,
    features: Features,
    make_engine: MakeEngine,
    figures: dict[str, Any],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Take optimizer steps of one mode. Returns the figures, with this mode's among them."""
    start = time.perf_counter()
    samples = cache_samples(job, model, photos)
    if samples:
        each = (time.perf_counter() - start) / len(samples)
        figures = figures | {"cache_seconds_per_sample": each}
    state = assemble(
        job,
        model,
        photos,
        features if job.losses.needs_features else None,
        make_engine,
        samples=samples,
    )
    count, taken = RowCount(model.denoiser), []
    before = [up.detach().clone() for up in state.bank.up.values()]
    for step in range(_REPEATS[mode]):
        start = time.perf_counter()
        numbers = _step(state, step)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
        report(f"{mode}: step {step} in {taken[-1]:.1f} s, {_shown(numbers)}")
    count.close()
    state.bank.detach()
    assert all(not torch.equal(a, b) for a, b in zip(before, state.bank.up.values(), strict=True))
    del state
    gc.collect()
    rows = job.batch_size * len(taken)
    figures["step_seconds"][mode] = taken
    figures["seconds_per_sample"][mode] = statistics.median(taken) / job.batch_size
    figures["forward_equivalents_per_sample"][mode] = count.rows / rows
    return figures


def cache_samples(job: TrainJob, model: DiffusionModel, photos: PhotoPool) -> list[Row]:
    """The rows of the teacher's cache, where the job has one."""
    if job.teacher.mode != "cached":
        return []
    maker = SampleMaker(job, model, photos, Teacher(model, job.concepts))
    return list(maker.make(range(job.teacher.samples)))


def engine_maker(model: DiffusionModel, zero_stage: int | None) -> MakeEngine:
    """A function that makes the engines. At stage 3 the frozen denoiser is sharded as well."""
    if zero_stage is None:
        return PlainEngine
    if not dist.is_initialized():
        backend = "gloo" if model.device.type == "cpu" else "nccl"
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    if zero_stage == 3:
        shard_frozen(model.denoiser)
    return partial(DeepSpeedEngine, zero_stage=zero_stage)


def device_name(device: str) -> str:
    """The GPU's own name, or "cpu"."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def _step(state: TrainState, step: int) -> dict[str, float]:
    if state.job.algorithm == "concept_sliders":
        return concept_sliders_step(state, step, denoised=DENOISED)
    return train_step(state, step)


def _shown(numbers: dict[str, float]) -> str:
    return ", ".join(f"{n} {v:.3g}" for n, v in numbers.items() if not n.startswith("w_"))


# --- random weights ---------------------------------------------------------------------------
def random_base(base: str, device: str = "cpu") -> tuple[DiffusionModel, Features]:
    """A base's architecture with random bfloat16 weights, and features with random weights.

    The weights are made in place, so that nothing beyond them needs memory.
    """
    with architecture_folder(base) as folder:
        model = load_base(str(folder), dtype=torch.bfloat16, device="meta")
        features = untrained_features(folder, device)
    rng = _rng(1, device)
    for networks in base_networks(model).values():
        for network in networks:
            _fill(network.to_empty(device=device), rng)
    return model, features


@torch.no_grad()
def _fill(network: nn.Module, rng: torch.Generator) -> None:
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.02, generator=rng)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)  # norms, biases
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.normal_(std=0.02, generator=rng)
        else:
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))  # positions


def _rng(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def reset_peak(device: str) -> None:
    """Let `peak_bytes` start from the memory that is held now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    # Where one of these is missing, the peak is that of the whole process so far.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # otherwise glibc keeps freed memory
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most bytes since `reset_peak`: of the GPU's allocator, or of this process (Linux)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024
