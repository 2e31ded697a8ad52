"""Training steps of every mode, against the plan; saving and resuming; a preview."""

from __future__ import annotations

import gc
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bs_ray.bench.fullsize import cache_samples, engine_maker, fullsize_job
from bs_ray.bench.gpu.base import GB, TRAIN_MODES, Bench
from bs_ray.bench.gpu.run import Put
from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.judges.load import Panel
from bs_ray.train import checkpoint, loop
from bs_ray.train.checkpoint import Progress
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import MakeEngine
from bs_ray.train.planning.dry_run import RowCount
from bs_ray.train.step import TrainState, train_step
from bs_ray.train.watching.watch import Watch


def train_half(bench: Bench, put: Put) -> None:
    _train(bench, put, bench.train_px[0])


def train_whole(bench: Bench, put: Put) -> None:
    _train(bench, put, bench.train_px[-1])


def _train(bench: Bench, put: Put, px: int) -> None:
    """Steps of every mode by plain torch."""
    photos = random_photos(bench, px)
    bench.start_plans()
    for mode in TRAIN_MODES:
        bench.start_peak()
        state = assembled(bench, fullsize_job(bench.base, px, mode), photos, PlainEngine)
        train_step(state, 0)  # warms up
        count = RowCount(bench.model.denoiser)
        steps = [bench.once(partial(train_step, state, step)) for step in range(1, 4)]
        count.close()
        peak = bench.peak_gb()
        state.bank.detach()
        bench.peaks[px, mode] = peak
        size, rows = state.job.batch_size, count.rows / len(steps)
        seconds = statistics.median(steps)
        bare_s, bare_tflop = bench.bare(px, size)
        speed = rows * bare_tflop / size / seconds
        put(
            f"{mode}, {px} px",
            s_a_sample=seconds / size,
            forwards_a_sample=rows / size,
            tflop_s=speed,
            **bench.mfu(speed),
            share=speed / (bare_tflop / bare_s),
            peak_gb=peak,
        )


def planned(bench: Bench, put: Put) -> None:
    """The memory that the plans expect, against what the training rows took."""
    for (px, mode), peak in bench.peaks.items():
        expected = bench.plans[px, mode].result() / GB
        put(f"{mode}, {px} px", plan_gb=expected, peak_gb=peak, plan_over_peak=expected / peak)


def random_photos(bench: Bench, px: int) -> PhotoPool:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, px, px), generator=rng).to(torch.uint8)
    return PhotoPool(["a", "b"], pixels, bench.model)


def assembled(
    bench: Bench, job: TrainJob, photos: PhotoPool, make_engine: MakeEngine
) -> TrainState:
    features = bench.features if job.losses.perceptual else None
    samples = cache_samples(job, bench.model, photos)
    return loop.assemble(job, bench.model, photos, features, make_engine, samples=samples)


def resume_torch(bench: Bench, put: Put) -> None:
    _resume(bench, put, "torch", PlainEngine)


def resume_zero_0(bench: Bench, put: Put) -> None:
    _resume(bench, put, "ZeRO 0", engine_maker(bench.model, 0))


def resume_zero_2(bench: Bench, put: Put) -> None:
    _resume(bench, put, "ZeRO 2", engine_maker(bench.model, 2))


def resume_zero_3(bench: Bench, put: Put) -> None:
    """The frozen denoiser is sharded as well, so that other rows cannot use the base."""
    _resume(bench, put, "ZeRO 3", engine_maker(bench.model, 3))
    bench.fresh()


def _resume(bench: Bench, put: Put, name: str, make_engine: MakeEngine) -> None:
    """Step, save, step; then resume with new objects and take the second step again.

    apart: how far the two second steps end from each other, in lengths of such a step.
    """
    px = bench.train_px[0]
    job, photos = fullsize_job(bench.base, px, "whole_method"), random_photos(bench, px)
    bench.start_peak()
    with _repeatable(), tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch, "saved")

        def keep(_: dict[str, float], folder: Path | None) -> None:
            assert folder
            shutil.copytree(folder, saved)

        state = assembled(bench, job, photos, make_engine)
        first_s = bench.once(lambda: train_step(state, 0))
        save_s = bench.once(lambda: loop.save_checkpoint(state, Progress(step=1), {}, keep))
        before = _weights(state)
        seconds = bench.once(lambda: train_step(state, 1))
        put(name, s_a_step=seconds, first_s=first_s, save_s=save_s, peak_gb=bench.peak_gb())
        expected = _weights(state)
        state.bank.detach()
        del state
        gc.collect()

        state = assembled(bench, job, photos, make_engine)
        resume_s = bench.once(lambda: loop.resume(state, saved))
        train_step(state, checkpoint.read(saved, job)[0].step)
        found = _weights(state)
        state.bank.detach()
    same = all(torch.equal(found[key], expected[key]) for key in expected)
    step = _distance(expected, before)
    put(name, resume_s=resume_s, bit_equal=same, apart=_distance(found, expected) / step)


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5


def _weights(state: TrainState) -> dict[str, Tensor]:
    engines = {"slider": state.student, "discriminator": state.discriminator}
    return {
        f"{name}/{key}": weight.detach().float().cpu().clone()
        for name, engine in engines.items()
        if engine
        for key, weight in engine.named_full_parameters().items()
    }


@contextmanager
def _repeatable() -> Iterator[None]:
    """Use kernels that give the same sums every time, where they exist."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def preview(bench: Bench, put: Put) -> None:
    """A preview, whose effect is averaged over the workers by the GPUs' own process group."""
    px = bench.train_px[0]
    job = fullsize_job(bench.base, px, "live")
    state = assembled(bench, job, random_photos(bench, px), engine_maker(bench.model, 2))
    with torch.no_grad():
        for up in state.bank.up.values():
            up.normal_(std=0.01)
    bench.start_peak()
    watch = Watch(state, Panel(), mock.Mock())
    # One GPU cannot be two workers. With this the reduction runs, over one.
    with mock.patch("torch.distributed.get_world_size", return_value=2):
        seconds = bench.once(lambda: watch.after_step(Progress(step=job.steps), {}))
    put(f"{px} px", seconds=seconds, peak_gb=bench.peak_gb(), **watch.shown)
    state.bank.detach()
