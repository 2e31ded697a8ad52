"""The loop, top to bottom: check the teacher, resume, then step, log, save and stop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bs_ray.config import TrainJob
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train import checkpoint
from bs_ray.train.checkpoint import Progress
from bs_ray.train.discriminator import Discriminator
from bs_ray.train.engines import Engine
from bs_ray.train.lessons import Lessons, LiveLessons, PairLessons
from bs_ray.train.losses import Features
from bs_ray.train.photos import PhotoPool
from bs_ray.train.reference import reference_step
from bs_ray.train.samples import CachedLessons
from bs_ray.train.step import Parts, Student, TrainingDiverged, train_step
from bs_ray.train.teacher import Teacher
from bs_ray.train.watch import Watch

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
    samples: Iterable[Mapping[str, Any]] = (),
) -> Parts:
    """Put together what a run trains with; the same on every worker.

    samples: the rows of the teacher's cache, where the job has one. Raises ValueError where rows
    or pictures do not suffice.
    """
    check_rows(job, workers)
    bank = SliderBank.trainable(
        job.slider_names, model.denoiser, model.slider_targets(), job.rank, job.alpha, job.seed
    ).to(model.device)
    if job.gradient_checkpointing:
        # Frozen, it has no dropout to switch on; only in training mode does it checkpoint.
        model.denoiser.train()
        model.denoiser.enable_gradient_checkpointing(bank.checkpointed)  # type: ignore[operator]
    student = make_engine(Student(model, bank), job.lr, (0.9, 0.99))
    discriminator = None
    if job.losses.adversarial:
        network = make_discriminator(job, photos).to(model.device)
        # Little momentum: the slider moves the discriminator's target at every step.
        discriminator = make_engine(network, job.discriminator_lr, (0.5, 0.99))
    teacher = Teacher(model, job.concepts) if job.concepts else None
    lessons = _lessons(job, model, photos, teacher, bank, samples)
    return Parts(
        job, model, photos, teacher, lessons, student, discriminator, features,
        rank=rank, workers=workers,
    )  # fmt: skip


def make_discriminator(job: TrainJob, photos: PhotoPool) -> Discriminator:
    """The job's discriminator: of pictures or of latents."""
    channels, side = 3, photos.px
    if job.losses.discriminator == "latent":
        channels, side = photos.latent_shape[0], photos.latent_shape[1]
    return Discriminator(channels, side, job.losses.r1, job.seed)


def _lessons(
    job: TrainJob, model: DiffusionModel, photos: PhotoPool, teacher: Teacher | None,
    bank: SliderBank, samples: Iterable[Mapping[str, Any]],
) -> Lessons:  # fmt: skip
    if teacher is None:
        assert job.pairs is not None
        return PairLessons(job, model, photos, model.embed([job.pairs.target]))
    if job.teacher.mode == "cached":
        return CachedLessons.load(
            samples, job=job, model=model, photos=photos, teacher=teacher, bank=bank
        )
    return LiveLessons(job, model, photos, teacher)


def one_step(parts: Parts, step: int) -> dict[str, float]:
    """One step of the job's algorithm."""
    if parts.job.algorithm == "concept_sliders":
        return reference_step(parts, step)
    return train_step(parts, step)


def check_rows(job: TrainJob, workers: int) -> None:
    """Raise ValueError where a worker would get no row for the image terms."""
    share, least = job.batch_size // workers, 4 if job.pairs else 2
    image_terms = job.losses.perceptual or job.losses.adversarial
    if share < least and image_terms and job.algorithm == "beyond_sliders":
        raise ValueError(
            f"batch_size: got {share} for each of {workers} workers; expected {least} or more, for "
            f"every second {'pair' if job.pairs else 'row'} feeds the perceptual and adversarial "
            "losses. Raise batch_size"
        )


def run(
    parts: Parts, report: Report, post: Post, resume_from: Path | None = None,
    watch: Watch | None = None,
) -> Progress:  # fmt: skip
    """Train to the job's last step, or a plateau; the progress made, earlier attempts included.

    Raises PromptsDoNotSeparate before step 0, CheckpointError where `resume_from` is not of this
    job, and TrainingDiverged with the last good checkpoint kept.
    """
    job = parts.job
    progress = Progress()
    if resume_from is None:
        progress.gaps = check_teacher(parts)
    else:
        progress = resume(parts, resume_from)
    if watch:
        watch.begin(progress)
    earlier_s, start_s = progress.seconds, time.monotonic()

    for step in range(progress.step, 0 if progress.stopped else job.steps):
        if step % job.checkpoint_every == 0:
            parts.lessons.refresh(step, parts.rows)
        numbers = one_step(parts, step)
        progress.step = step + 1
        progress.seconds = earlier_s + time.monotonic() - start_s
        progress.stopped = watch.after_step(progress, numbers) if watch else False
        last = progress.stopped or progress.step == job.steps

        if last or step % max(1, job.steps // _HISTORY) == 0:
            progress.history.append({"step": float(step), **numbers})
        if parts.rank == 0:
            post(progress.step, numbers | (watch.shown if watch else {}))
        if last or progress.step % job.checkpoint_every == 0:
            save(parts, progress, numbers, report)
            if watch:
                watch.saved()
        if last:
            break
    return progress


def check_teacher(parts: Parts) -> dict[str, float]:
    """The teacher's gap by slider; raises PromptsDoNotSeparate where there is none."""
    if parts.teacher is None:
        return {}
    live = LiveLessons(parts.job, parts.model, parts.photos, parts.teacher)
    _, x_t, t = live.noised(0, range(_GAP_ROWS))  # the same rows on every worker
    return parts.teacher.check_gap(x_t, t)


def _engines(parts: Parts) -> dict[str, Engine]:
    found = {"slider": parts.student}
    if parts.discriminator:
        found["discriminator"] = parts.discriminator
    return found


def resume(parts: Parts, folder: Path) -> Progress:
    """Continue from the checkpoint in `folder`; the progress made so far. Raises CheckpointError.

    Every worker must call it.
    """
    progress, states = checkpoint.read(folder, parts.job)
    # Optimizers have no moments before their first step: take one, of which nothing stays.
    parts.lessons.refresh(progress.step, parts.rows)
    one_step(parts, progress.step)
    for name, engine in _engines(parts).items():
        engine.load_state(states[name])
    parts.scales.load(progress.scales)
    return progress


def save(parts: Parts, progress: Progress, numbers: dict[str, float], report: Report) -> None:
    """Hand a checkpoint to `report`, whose folder is gone afterwards. Every worker must call it.

    Raises TrainingDiverged where weights are not finite.
    """
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
