"""The loop, top to bottom: check the teacher, resume, then step, log, save and stop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bs_ray.config import TrainJob
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train import checkpoint
from bs_ray.train.checkpoint import Progress
from bs_ray.train.discriminator import Discriminator
from bs_ray.train.engines import Engine
from bs_ray.train.losses import Features
from bs_ray.train.photos import PhotoPool
from bs_ray.train.step import Parts, Student, TrainingDiverged, draw_batch, train_step
from bs_ray.train.teacher import LiveTeacher

MakeEngine = Callable[[nn.Module, float, tuple[float, float]], Engine]
"""(network, learning rate, Adam's betas) -> its engine."""
Report = Callable[[dict[str, float], Path | None], None]
"""report(numbers, folder): a checkpoint is due; every worker calls it, rank 0 with its folder."""
Post = Callable[[int, dict[str, float]], None]
"""post(steps done, numbers): for a progress bar; called on rank 0."""

_HISTORY = 50  # numbers of about this many steps are kept
_GAP_ROWS = 8


def assemble(
    job: TrainJob,
    model: DiffusionModel,
    photos: PhotoPool,
    features: Features | None,
    make_engine: MakeEngine,
    rank: int = 0,
    workers: int = 1,
) -> Parts:
    """Put together what a run trains with; the same on every worker."""
    check_rows(job, workers)
    bank = SliderBank.trainable(
        job.slider_names, model.denoiser, model.slider_targets(), job.rank, job.alpha, job.seed
    ).to(model.device)
    student = make_engine(Student(model, bank, job.prompts.target), job.lr, (0.9, 0.99))
    discriminator = None
    if job.losses.adversarial:
        network = Discriminator(model.native_px, job.losses.r1, job.seed).to(model.device)
        # Little momentum: the slider moves the discriminator's target at every step.
        discriminator = make_engine(network, job.discriminator_lr, (0.5, 0.99))
    teacher = LiveTeacher(model, job.prompts)
    return Parts(
        job, model, photos, teacher, student, discriminator, features, rank=rank, workers=workers
    )


def check_rows(job: TrainJob, workers: int) -> None:
    """Raise ValueError where a worker would get no row for the image terms."""
    share = job.batch_size // workers
    if share < 2 and (job.losses.perceptual or job.losses.adversarial):
        raise ValueError(
            f"batch_size: got {share} row for each of {workers} workers; expected 2 or more, for "
            "every second row feeds the perceptual and adversarial losses. Raise batch_size"
        )


def run(parts: Parts, report: Report, post: Post, resume_from: Path | None = None) -> Progress:
    """Train to the job's last step; the progress made, earlier attempts included.

    Raises PromptsDoNotSeparate before step 0, CheckpointError where `resume_from` is not of this
    job, and TrainingDiverged with the last good checkpoint kept.
    """
    job = parts.job
    progress = Progress()
    if resume_from is None:
        check_teacher(parts)
    else:
        progress = _resume(parts, resume_from)
    earlier_s, start_s = progress.seconds, time.monotonic()

    for step in range(progress.step, job.steps):
        numbers = train_step(parts, step)
        progress.step = step + 1
        progress.seconds = earlier_s + time.monotonic() - start_s
        last = progress.step == job.steps

        if last or step % max(1, job.steps // _HISTORY) == 0:
            progress.history.append({"step": float(step), **numbers})
        if parts.rank == 0:
            post(progress.step, numbers)
        if last or progress.step % job.checkpoint_every == 0:
            _save(parts, progress, numbers, report)
    return progress


def check_teacher(parts: Parts) -> float:
    """The teacher's gap on real photos; raises PromptsDoNotSeparate where there is none."""
    batch = draw_batch(parts, range(_GAP_ROWS), step=0)  # the same rows on every worker
    x0 = parts.photos.latents(batch.photos)
    x_t = parts.model.prediction.add_noise(x0, batch.noise, batch.t)
    return parts.teacher.check_gap(x_t, batch.t)


def _engines(parts: Parts) -> dict[str, Engine]:
    found = {"slider": parts.student}
    if parts.discriminator:
        found["discriminator"] = parts.discriminator
    return found


def _resume(parts: Parts, folder: Path) -> Progress:
    progress, states = checkpoint.read(folder, parts.job)
    # Optimizers have no moments before their first step: take one, of which nothing stays.
    train_step(parts, progress.step)
    for name, engine in _engines(parts).items():
        engine.load_state(states[name])
    parts.scales.load(progress.scales)
    return progress


def _save(parts: Parts, progress: Progress, numbers: dict[str, float], report: Report) -> None:
    progress.scales = parts.scales.state()
    states = {name: engine.state() for name, engine in _engines(parts).items()}
    for name, state in states.items():
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise TrainingDiverged(
                f"step {progress.step}: got {name} weights that are not finite; lower lr"
            )
    if parts.rank:
        report(numbers, None)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"step-{progress.step:06d}"
        checkpoint.write(folder, parts.job, progress, states)
        report(numbers, folder)
