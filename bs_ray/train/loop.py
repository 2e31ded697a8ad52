"""The training loop from top to bottom: check the teacher, resume, then step, log, save and
stop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.train import checkpoint
from bs_ray.train.adversary import Adversary
from bs_ray.train.batches import Batches, LiveBatches, PairBatches
from bs_ray.train.checkpoint import Progress
from bs_ray.train.discriminator import Critic, Discriminator, FeatureHeads
from bs_ray.train.engines import Engine
from bs_ray.train.losses import Features
from bs_ray.train.step import Student, TrainingDiverged, TrainState, train_step
from bs_ray.train.targets.concept_sliders import concept_sliders_step
from bs_ray.train.targets.samples import CachedBatches
from bs_ray.train.targets.teacher import Teacher
from bs_ray.train.watching.watch import Watch

MakeEngine = Callable[[nn.Module, float, tuple[float, float]], Engine]
"""(network, learning rate, Adam's betas) -> its engine."""
SaveCheckpoint = Callable[[dict[str, float], Path | None], None]
"""save(numbers, folder): a checkpoint is due. Every worker calls it, and rank 0 gives its
folder."""
Report = Callable[[int, dict[str, float]], None]
"""report(steps done, numbers): for a progress bar; called on rank 0."""

_HISTORY = 50  # the card keeps the numbers of about this many steps
_GAP_ROWS = 8
_REPLAY = "replay"  # the file of a checkpoint that holds the adversary's latest fakes


def assemble(
    job: TrainJob,
    model: DiffusionModel,
    photos: PhotoPool,
    features: Features | None,
    make_engine: MakeEngine,
    rank: int = 0,
    workers: int = 1,
    samples: Iterable[Mapping[str, Any]] = (),
) -> TrainState:
    """Put together what a run trains with, the same on every worker.

    samples: the rows of the teacher's cache, where the job has one. Raises ValueError where there
    are too few rows or pictures.
    """
    check_rows(job, workers)
    bank = SliderBank.trainable(
        job.slider_names, model.denoiser, model.slider_targets(), job.rank, job.alpha, job.seed
    ).to(model.device)
    if job.gradient_checkpointing:
        # It checkpoints in training mode alone, and being frozen it has no dropout to switch on.
        model.denoiser.train()
        model.denoiser.enable_gradient_checkpointing(bank.checkpointed)  # type: ignore[operator]
    student = make_engine(Student(model, bank), job.lr, (0.9, 0.99))
    adversary = None
    if job.losses.adversary:
        network = make_discriminator(job, photos, features).to(model.device)
        # Little momentum, since the slider moves the discriminator's target at every step.
        engine = make_engine(network, job.discriminator_lr, (0.5, 0.99))
        adversary = Adversary(engine, job, model, photos, rank, workers)
    teacher = Teacher(model, job.concepts) if job.concepts else None
    batches = _make_batches(job, model, photos, teacher, bank, samples)
    return TrainState(
        job,
        model,
        photos,
        teacher,
        batches,
        student,
        adversary,
        features,
        rank=rank,
        workers=workers,
    )


def make_discriminator(job: TrainJob, photos: PhotoPool, features: Features | None) -> Critic:
    """The job's discriminator: of pictures, of their features, or of latents."""
    losses = job.losses
    if losses.discriminator == "features":
        assert features is not None
        with torch.no_grad():
            levels = features(photos.images([0]))
        return FeatureHeads(features, [level.shape[1] for level in levels], losses.r1, job.seed)
    channels, side = 3, photos.px
    if losses.discriminator == "latent":
        channels, side = photos.latent_shape[0], photos.latent_shape[1]
    return Discriminator(channels, side, losses.r1, job.seed)


def _make_batches(
    job: TrainJob,
    model: DiffusionModel,
    photos: PhotoPool,
    teacher: Teacher | None,
    bank: SliderBank,
    samples: Iterable[Mapping[str, Any]],
) -> Batches:
    if teacher is None:
        assert job.pairs is not None
        return PairBatches(job, model, photos, model.embed([job.pairs.target]))
    if job.teacher.mode == "cached":
        return CachedBatches.load(
            samples, job=job, model=model, photos=photos, teacher=teacher, bank=bank
        )
    return LiveBatches(job, model, photos, teacher)


def one_step(state: TrainState, step: int) -> dict[str, float]:
    """One step of the job's algorithm."""
    if state.job.algorithm == "concept_sliders":
        return concept_sliders_step(state, step)
    return train_step(state, step)


def check_rows(job: TrainJob, workers: int) -> None:
    """Raise ValueError where a worker would get no row for the image terms."""
    share, min_rows = job.batch_size // workers, 4 if job.pairs else 2
    image_terms = job.losses.perceptual or job.losses.adversary
    if share < min_rows and image_terms and job.algorithm == "beyond_sliders":
        raise ValueError(
            f"batch_size: got {share} for each of {workers} workers; expected {min_rows} or more, "
            f"since every second {'pair' if job.pairs else 'row'} is in the perceptual and "
            "adversarial losses. Raise batch_size"
        )


def run(
    state: TrainState,
    save: SaveCheckpoint,
    report: Report,
    resume_from: Path | None = None,
    watch: Watch | None = None,
) -> Progress:
    """Train to the job's last step or to a plateau. Returns the progress, earlier attempts
    included.

    Raises PromptsDoNotSeparate before step 0, CheckpointError where `resume_from` is of another
    job, and TrainingDiverged; the last good checkpoint is then kept.
    """
    job = state.job
    progress = Progress()
    if resume_from is None:
        progress.gaps = check_teacher(state)
    else:
        progress = resume(state, resume_from)
    if watch:
        watch.begin(progress)
    earlier_s, start_s = progress.seconds, time.monotonic()

    for step in range(progress.step, 0 if progress.stopped else job.steps):
        if step % job.checkpoint_every == 0:
            state.batches.refresh(step, state.rows)
        numbers = one_step(state, step)
        progress.step = step + 1
        progress.seconds = earlier_s + time.monotonic() - start_s
        progress.stopped = watch.after_step(progress, numbers) if watch else False
        last = progress.stopped or progress.step == job.steps

        if last or step % max(1, job.steps // _HISTORY) == 0:
            progress.history.append({"step": float(step), **numbers})
        if state.rank == 0:
            report(progress.step, numbers | (watch.shown if watch else {}))
        if last or progress.step % job.checkpoint_every == 0:
            save_checkpoint(state, progress, numbers, save)
            if watch:
                watch.saved()
        if last:
            break
    return progress


def check_teacher(state: TrainState) -> dict[str, float]:
    """The teacher's gap by slider. Raises PromptsDoNotSeparate where there is none."""
    if state.teacher is None:
        return {}
    live = LiveBatches(state.job, state.model, state.photos, state.teacher)
    _, x_t, t = live.noised(0, range(_GAP_ROWS))  # the same rows on every worker
    return state.teacher.check_gap(x_t, t)


def _engines(state: TrainState) -> dict[str, Engine]:
    found = {"slider": state.student}
    if state.adversary:
        found["discriminator"] = state.adversary.engine
    return found


def resume(state: TrainState, folder: Path) -> Progress:
    """Continue from the checkpoint in `folder`. Returns the progress made so far. Raises
    CheckpointError. Every worker must call it.
    """
    progress, engine_states = checkpoint.read(folder, state.job)
    # Optimizers have no moments before their first step, so take one; then overwrite everything.
    state.batches.refresh(progress.step, state.rows)
    one_step(state, progress.step)
    for name, engine in _engines(state).items():
        engine.load_state(engine_states[name])
    if state.adversary:
        state.adversary.load_state(engine_states.get(_REPLAY, {}))
    state.normaliser.load(progress.scales)
    return progress


def save_checkpoint(
    state: TrainState, progress: Progress, numbers: dict[str, float], save: SaveCheckpoint
) -> None:
    """Hand a checkpoint to `save`, whose folder is gone afterwards. Every worker must call it.

    Raises TrainingDiverged where weights are not finite.
    """
    progress.scales = state.normaliser.state()
    engine_states = {name: engine.state() for name, engine in _engines(state).items()}
    if state.adversary and (replay := state.adversary.state()):
        engine_states[_REPLAY] = replay
    for name, tensors in engine_states.items():
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise TrainingDiverged(
                f"step {progress.step}: got {name} weights that are not finite; lower lr"
            )
    if state.rank:
        save(numbers, None)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"step-{progress.step:06d}"
        checkpoint.write(folder, state.job, progress, engine_states)
        save(numbers, folder)
