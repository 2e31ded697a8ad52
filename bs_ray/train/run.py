"""Train a slider on Ray: checks, workers, photos, checkpoints, publication.

What is trained and how is the other modules' matter; this one says where. The same command again
continues a stopped run, and finds a finished one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.data
import ray.train
from ray.train.torch import TorchTrainer
from rich.console import Console

from bs_ray import __version__
from bs_ray.config import TrainJob, job_hash
from bs_ray.data.sources import read_photos
from bs_ray.models import base_folder, load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.progress import Board, progress
from bs_ray.raysession import WORKER_ENV, ray_session
from bs_ray.sliders.artifact import Card, Slider
from bs_ray.sliders.registry import Registry
from bs_ray.storage import Store
from bs_ray.train.checkpoint import CheckpointError, Progress
from bs_ray.train.engines import DeepSpeedEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, check_rows, run
from bs_ray.train.photos import PhotoPool, PhotosError
from bs_ray.train.step import Parts, Student, TrainingDiverged
from bs_ray.train.teacher import PromptsDoNotSeparate

_KEPT_CHECKPOINTS = 2
_NOTED = ("deepspeed", "ray", "torch")
_FINAL = (CheckpointError, PhotosError, PromptsDoNotSeparate, TrainingDiverged)
"""Errors that another attempt only repeats."""


class TrainError(RuntimeError):
    """The run ended without a slider; the message says why, and what to do."""


@dataclass(frozen=True)
class TrainResult:
    """What came of a run."""

    slider: str
    """name@version in the job's registry."""
    steps: int
    seconds: float
    """Spent on training steps, earlier attempts included."""
    wall_seconds: float
    """Spent in this call, which is next to nothing for a run found finished."""
    metrics: list[dict[str, float]]
    """Losses and their weights at some steps, the last one among them."""


def train(job: TrainJob, *, console: Console | None = None) -> TrainResult:
    """Train the job's slider and publish it. Resumes a stopped run; a finished one is not redone.

    Raises BaseNotFound, StorageError, EmptyInputError or ValueError within seconds where something
    is missing, and TrainError where training fails.
    """
    start_s = time.monotonic()
    say = console.print if console else _silent
    _check(job)
    run_name = f"{job.name}-{job_hash(job)[:8]}"
    slider = _published(job, run_name)
    if slider is not None:
        say(f"run {run_name} is finished: {slider.reference} in {job.registry}")
    else:
        with ray_session(num_cpus=job.most_workers + 2):  # photos are read by tasks beside the workers
            photos = read_photos(job.photos)
            say(f"run {run_name}: {job.workers} workers, ZeRO {job.zero_stage}, {job.steps} steps")
            with progress(console, job.name) as board:
                trained = _fit(job, run_name, photos, board)
        slider = Registry(job.registry).publish(trained)
        say(f"published {slider.reference} in {job.registry}")
    training = slider.card.training
    return TrainResult(
        slider=slider.reference,
        steps=training["steps"],
        seconds=training["seconds"],
        wall_seconds=time.monotonic() - start_s,
        metrics=training["history"],
    )


def _silent(_: str) -> None:
    pass


def _check(job: TrainJob) -> None:
    """Everything that can be known to be missing before workers start."""
    folder = base_folder(job.base)
    if not (folder / "unet").is_dir():
        raise BaseNotFound(
            f"base: got {folder}, which holds no unet; expected `tiny` or a diffusers SDXL folder"
        )
    check_rows(job, job.most_workers)
    if job.losses.perceptual:
        load_features(folder, "cpu")
    Store(job.photos).check()
    for uri in (job.registry, job.runs):
        Store(uri).check(write=True)


def _published(job: TrainJob, run_name: str) -> Slider | None:
    """The slider that this very run has published, if it has."""
    registry = Registry(job.registry)
    for number in reversed(registry.list().get(job.name, [])):
        slider = registry.resolve(f"{job.name}@{number}")
        if slider.card.training.get("run") == run_name:
            return slider
    return None


def _fit(job: TrainJob, run_name: str, photos: ray.data.Dataset, board: Board) -> Slider:
    # How often Ray Train asks its workers; the default of 2 s makes each checkpoint wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    ray.data.DataContext.get_current().enable_progress_bars = False
    filesystem, path = Store(job.runs).arrow_filesystem()
    accelerator = "cuda" if job.use_gpu else "cpu"
    base = job.base if job.base == "tiny" else str(Path(job.base).absolute())
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job.model_dump(), "run": run_name, "base": base, "board": board},
        scaling_config=ray.train.ScalingConfig(num_workers=job.most_workers, use_gpu=job.use_gpu),
        run_config=ray.train.RunConfig(
            name=run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
            worker_runtime_env={"env_vars": WORKER_ENV | {"DS_ACCELERATOR": accelerator}},
        ),
        datasets={"photos": photos},
        # Every worker sees all photos: which one a row uses depends on the row alone.
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
    )
    try:
        returned = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise TrainError(
            f"run {run_name}: got a failure after {job.max_failures} restarts; expected none. "
            f"Its checkpoints are kept, and the same command continues. {error}"
        ) from error
    if isinstance(returned, str):
        raise TrainError(f"run {run_name}: {returned}")
    return Slider.from_bytes(returned, run_name)


# --- on a worker -------------------------------------------------------------------------------
def _worker(settings: dict[str, Any]) -> bytes | str:
    """Train on one worker: the slider's file, or a message that says why there is none."""
    try:
        return _train_here(settings)
    except _FINAL as error:
        return str(error)  # raised, it would be retried; every worker comes to the same end


def _train_here(settings: dict[str, Any]) -> bytes:
    job, board = TrainJob.model_validate(settings["job"]), settings["board"]
    parts = _assemble_here(job, settings["base"], board)

    def post(step: int, numbers: dict[str, float]) -> None:
        board.post("train", step, job.steps, numbers)

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        done = run(parts, _report, post)
    else:
        with checkpoint.as_directory() as folder:
            done = run(parts, _report, post, Path(folder))
    return _slider(parts, done, settings["run"]).to_bytes()


def _assemble_here(job: TrainJob, base: str, board: Board) -> Parts:
    import torch

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = load_base(base, dtype=dtype, device=device)
    photos = PhotoPool.load(ray.train.get_dataset_shard("photos").iter_rows(), model)
    if rank == 0:
        board.post("photos", len(photos), len(photos), {"broken": photos.broken})
    features = load_features(base_folder(base), device) if job.losses.perceptual else None

    make_engine = partial(DeepSpeedEngine, zero_stage=job.zero_stage)
    return assemble(job, model, photos, features, make_engine, rank, workers)


def _report(numbers: dict[str, float], folder: Path | None) -> None:
    # A barrier: every worker calls it, and rank 0 uploads before anyone goes on.
    checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(numbers, checkpoint=checkpoint)


def _slider(parts: Parts, done: Progress, run_name: str) -> Slider:
    job = parts.job
    card = Card(
        name=job.name,
        base=job.base,
        base_id=parts.model.base_id,
        family=parts.model.family,
        part=parts.model.part,
        prompts=job.prompts,
        rank=job.rank,
        training={
            "run": run_name,
            "job": job.model_dump(),
            "steps": done.step,
            "seconds": round(done.seconds, 3),
            "world_size": parts.workers,
            "photos": len(parts.photos),
            "photos_broken": parts.photos.broken,
            "losses": done.history[-1],
            "history": done.history,
            "versions": {"bs_ray": __version__, **{name: version(name) for name in _NOTED}},
        },
    )
    student = parts.student.module
    assert isinstance(student, Student)
    return student.bank.to_slider(card)
