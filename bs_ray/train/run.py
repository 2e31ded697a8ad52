"""Train sliders on Ray: checks, workers, datasets, checkpoints, publication.

Other modules decide what is trained and how; this one decides where. The same command continues a
run that was stopped, and recognises one that has finished.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import ray.data
import ray.train
import ray.train.collective
from ray.train.torch import TorchTrainer
from rich.console import Console

from bs_ray import __version__
from bs_ray.config import TrainJob, as_begun_before, job_hash
from bs_ray.datasets.pairs import alone, pair_keys, pair_sets, read_pairs
from bs_ray.datasets.pool import PhotoPool, PhotosError
from bs_ray.datasets.sources import read_photos
from bs_ray.images.faces import need_centerface
from bs_ray.judges.load import OWN, find_judges
from bs_ray.models import absolute_base, base_folder, identify_base, load_base
from bs_ray.models.base import DiffusionModel, latent_shape_at
from bs_ray.models.prompts import cut_notes
from bs_ray.progress import ProgressBoard, counted, progress
from bs_ray.ray_session import WORKER_ENV, ray_session
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import Card
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.sliders.words import PromptsDoNotSeparate
from bs_ray.storage import Store
from bs_ray.train import checkpoint
from bs_ray.train.checkpoint import CheckpointError, IncompleteCheckpoint, Progress
from bs_ray.train.engines import DeepSpeedEngine, PlainEngine, shard_frozen
from bs_ray.train.features import features_trunk, load_features
from bs_ray.train.loop import MakeEngine, assemble, check_rows, run
from bs_ray.train.photos import photos_of
from bs_ray.train.step import TrainingDiverged, TrainState
from bs_ray.train.targets.cache import ensure_cache, load_photos, read_cache
from bs_ray.train.targets.teacher import texts_of
from bs_ray.train.watching.preview import missing_judges_message
from bs_ray.train.watching.tracking import check_tracking, open_trackers
from bs_ray.train.watching.watch import Watch

_KEPT_CHECKPOINTS = 2
_NOTED = ("deepspeed", "ray", "torch")
_LISTED = 20
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_FINAL = (CheckpointError, PhotosError, PromptsDoNotSeparate, TrainingDiverged)
"""Errors that another attempt would only repeat."""

_ASYNC = ray.train.CheckpointUploadMode.ASYNC

Report = Callable[[str], None]


class TrainError(RuntimeError):
    """The run ended without a slider; the message says why, and what to do."""


class JobRefused(ValueError):
    """The job cannot be trained, as its workers found out; the message says why."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a run."""

    slider: str
    """name@version in the job's registry; of several sliders, joined by ", "."""
    steps: int
    seconds: float
    """Time spent on training steps, earlier attempts included."""
    wall_seconds: float
    """Time spent in this call, which is next to nothing for a run that had finished."""
    metrics: list[dict[str, float]]
    """Losses and their weights at some steps, the last one among them."""


def train(job: TrainJob, *, console: Console | None = None) -> TrainResult:
    """Train the job's sliders and publish them. Resumes a run that was stopped.

    A run that has finished is not repeated. Raises BaseNotFound, StorageError, EmptyInputError or
    ValueError within seconds where something is missing, JobRefused where workers find the job's
    input unusable, and TrainError where training fails.
    """
    start_s = time.monotonic()
    report = partial(console.print, markup=False) if console else _silent
    job = _as_begun(job, report)
    model = _check(job)
    if model.framing and job.photos and job.region == "photo":
        report(
            "photos: the base knows faces by where their eyes are; region=face frames them so. The "
            "middle squares of photos move less and keep less of the person"
        )
    run_name = name_of(job)
    sliders = _published(job, run_name)
    if len(sliders) == len(job.slider_names):
        report(f"run {run_name} is finished: {_references(sliders)} in {job.registry}")
    else:
        cpus = math.ceil(job.max_workers * job.cpus_per_worker)
        with ray_session(num_cpus=cpus), progress(console, job.name) as board:
            trained = _fit(job, model, run_name, board, report)
        missing = [slider for slider in trained if slider.card.name not in sliders]
        sliders |= {slider.card.name: Registry(job.registry).publish(slider) for slider in missing}
        report(f"published {_references(sliders)} in {job.registry}")
    training = next(iter(sliders.values())).card.training
    return TrainResult(
        slider=_references(sliders),
        steps=training["steps"],
        seconds=training["seconds"],
        wall_seconds=time.monotonic() - start_s,
        metrics=training["history"],
    )


def name_of(job: TrainJob) -> str:
    """The name of the job's run: its own, and its settings'."""
    return f"{job.name}-{job_hash(job)[:8]}"


def _as_begun(job: TrainJob, report: Report) -> TrainJob:
    """The job, or the job as version 0.1.0 read it where that has a run and this one has none."""
    before = as_begun_before(job)
    if before == job or _has_run(job) or not _has_run(before):
        return job
    report(
        f"run {name_of(before)} keeps the losses that an earlier version took by default; give the "
        "job another name to train with today's"
    )
    return before


def _has_run(job: TrainJob) -> bool:
    store = Store(job.runs).join(name_of(job))
    return bool(checkpoint.names(store) or _published(job, name_of(job)))


def _silent(_: str) -> None:
    pass


def _references(sliders: dict[str, Slider]) -> str:
    return ", ".join(slider.reference for slider in sliders.values())


def _check(job: TrainJob) -> DiffusionModel:
    """Check everything that can be checked before workers start; the base, without weights."""
    identify_base(job.base)
    model = load_base(job.base, device="meta")
    check_rows(job, job.max_workers)
    check_tracking(job)
    if job.resolution and job.resolution % model.multiple_px:
        raise ValueError(
            f"resolution: got {job.resolution}; expected a multiple of {model.multiple_px}, as the "
            "base needs it"
        )
    if job.losses.needs_features:
        load_features(base_folder(job.base), "cpu")
    judges = find_judges(base_folder(job.base), job.judges, OWN)
    if job.region == "face" or judges.needs_faces:
        need_centerface()
    for uri in (job.photos, job.pairs and job.pairs.images):
        if uri:
            Store(uri).check()
    if job.pairs:
        pair_sets(pair_keys(Store(job.pairs.images)))
    cache = [job.teacher.cache] if job.teacher.mode == "cached" else []
    for uri in (job.registry, job.runs, *cache):
        Store(uri).check(write=True)
    return model


def _published(job: TrainJob, run_name: str) -> dict[str, Slider]:
    """The sliders that this run has already published, by name."""
    registry, found = Registry(job.registry), {}
    for name in job.slider_names:
        for number in reversed(registry.versions(name)):
            slider = registry.resolve(f"{name}@{number}")
            if slider.card.training.get("run") == run_name:
                found[name] = slider
                break
    return found


def _fit(
    job: TrainJob, model: DiffusionModel, run_name: str, board: ProgressBoard, report: Report
) -> list[Slider]:
    # How often Ray Train polls its workers. With the default of 2 s every checkpoint waits for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    ray.data.DataContext.get_current().enable_progress_bars = False
    base = absolute_base(job.base)
    datasets = _datasets(job, model, base, board, report)
    stage = f"ZeRO {job.zero_stage}" if job.engine == "deepspeed" else "plain torch"
    fewest = f"{job.min_workers} to " if job.min_workers < job.max_workers else ""
    workers = fewest + counted(job.max_workers, "worker")
    report(f"run {run_name}: {workers}, {stage}, {counted(job.steps, 'step')}")
    for note in cut_notes(model, texts_of(job.concepts)):
        report(note)
    absent = missing_judges_message(find_judges(base_folder(base), job.judges, OWN))
    if job.preview_every and absent:
        report(absent)
    store = Store(job.runs).join(run_name)
    _tidy(store, report)
    settings = {
        "job": job.model_dump(),
        "run": run_name,
        "base": base,
        "runs": Store(job.runs).uri,
        "judges": job.judges and job.judges.absolute(),
    }
    trainer = TorchTrainer(
        _worker,
        train_loop_config=settings | {"store": store, "board": board},
        scaling_config=_scaling(job),
        run_config=_run_config(job, run_name),
        datasets=datasets,
        # Every worker sees all photos, since the photo of a step's row depends on that row alone.
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
    )
    try:
        outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise TrainError(
            f"run {run_name}: got a failure after {job.max_failures} restarts; expected none. "
            f"Its checkpoints are kept, and the same command continues. {error}"
        ) from error
    return outcome.result(run_name)


def _datasets(
    job: TrainJob, model: DiffusionModel, base: str, board: ProgressBoard, report: Report
) -> dict[str, ray.data.Dataset]:
    """What the job's workers read: "photos" (or pictures of pairs) and "teacher" (the cache)."""
    found = {}
    if job.pairs:
        found["photos"] = read_pairs(job.pairs.images)
        if single := alone(pair_keys(Store(job.pairs.images))):
            some = ", ".join(single[:5]) + (", ..." if len(single) > 5 else "")
            report(f"pairs: {len(single)} pictures have no partner and are left out: {some}")
    elif job.photos:
        found["photos"] = read_photos(job.photos)
    if job.teacher.mode == "cached":
        shape = latent_shape_at(model, job.resolution or model.native_px)
        found["teacher"] = read_cache(ensure_cache(job, base, model.base_id, shape, board, report))
    return found


def _scaling(job: TrainJob) -> ray.train.ScalingConfig:
    resources = {"CPU": job.cpus_per_worker} | ({"GPU": 1.0} if job.use_gpu else {})
    fixed = job.min_workers == job.max_workers
    return ray.train.ScalingConfig(
        num_workers=job.max_workers if fixed else (job.min_workers, job.max_workers),
        use_gpu=job.use_gpu,
        resources_per_worker=resources,
    )


def _run_config(job: TrainJob, run_name: str) -> ray.train.RunConfig:
    filesystem, path = Store(job.runs).arrow_filesystem()
    accelerator = "cuda" if job.use_gpu else "cpu"
    return ray.train.RunConfig(
        name=run_name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=job.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=_KEPT_CHECKPOINTS),
        worker_runtime_env={"env_vars": WORKER_ENV | {"DS_ACCELERATOR": accelerator}},
    )


def _tidy(store: Store, report: Report) -> None:
    """Report what an earlier command left of the run, and delete what is no longer needed.

    Ray's own list of checkpoints is deleted: it may name checkpoints that are gone, or be cut off
    itself, and then Ray would not start. Workers choose by content (`_newest`).
    """
    kept = list(
        islice(
            checkpoint.whole(store, lambda found: report(_passed_over(found))), _KEPT_CHECKPOINTS
        )
    )
    if checkpoint.names(store) and not kept:
        report("no checkpoint is whole; starting over")
    if kept:
        report(f"resuming from {kept[0]}")
        checkpoint.delete_older(store, kept[-1])
    store.delete(_SNAPSHOT)


def _passed_over(broken: str) -> str:
    return f"{broken}; going on from the one before"


# --- on a worker -------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Outcome:
    """What a worker returns: files of sliders, or the reason why there are none."""

    sliders: tuple[bytes, ...] = ()
    refusal: str = ""
    bad_input: bool = False

    def result(self, run_name: str) -> list[Slider]:
        """The sliders. Raises JobRefused and TrainError."""
        if self.refusal:
            raise (JobRefused if self.bad_input else TrainError)(f"run {run_name}: {self.refusal}")
        return [Slider.from_bytes(data, run_name) for data in self.sliders]


def _worker(settings: dict[str, Any]) -> _Outcome:
    """Train on one worker."""
    try:
        return _train_here(settings)
    except IncompleteCheckpoint:
        raise  # the download broke: another attempt downloads it again
    except _FINAL as error:
        # Not raised, since Ray would retry it. Every worker comes to the same end.
        return _Outcome(refusal=str(error), bad_input=isinstance(error, ValueError))


def _train_here(settings: dict[str, Any]) -> _Outcome:
    job, board = TrainJob.model_validate(settings["job"]), settings["board"]
    state = _assemble_here(job, settings["base"], board)

    def report(step: int, numbers: dict[str, float]) -> None:
        board.report("train", step, job.steps, numbers)

    # Absolute places, since a worker has a working folder of its own.
    shown = job.model_copy(update={"runs": settings["runs"]})
    watch = Watch(
        state,
        find_judges(base_folder(settings["base"]), settings["judges"], OWN),
        lambda step: open_trackers(shown, settings["run"], step),
    )
    newest = _newest(settings["store"], board)
    with checkpoint.downloaded(settings["store"], newest) as folder:
        done = run(state, _save_checkpoint, report, folder, watch)
    calibrations = watch.calibrations()
    watch.close()
    sliders = _sliders(state, done, settings, calibrations)
    return _Outcome(tuple(slider.to_bytes() for slider in sliders))


def _newest(store: Store, board: ProgressBoard) -> str | None:
    """Name of the newest checkpoint that is whole; the same on every worker."""
    name = None
    if ray.train.get_context().get_world_rank() == 0:
        name = next(
            checkpoint.whole(store, lambda f: board.report(_passed_over(f), 0, 1, {})), None
        )
    return ray.train.collective.broadcast_from_rank_zero(name)


def _assemble_here(job: TrainJob, base: str, board: ProgressBoard) -> TrainState:
    import torch

    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = load_base(base, dtype=dtype, device=device)
    photos = _photos_here(job, model)
    if rank == 0:
        left_out: dict[str, float] = {"broken": len(photos.broken)}
        left_out["without a face"] = len(photos.faceless)
        board.report("photos", len(photos), len(photos), left_out)
    features = load_features(base_folder(base), device) if job.losses.needs_features else None
    samples = ray.train.get_dataset_shard("teacher").iter_rows() if _cached(job) else ()
    state = assemble(job, model, photos, features, _engine(job), rank, workers, samples)
    if job.engine == "deepspeed" and job.zero_stage == 3:
        shard_frozen(model.denoiser)
    return state


def _cached(job: TrainJob) -> bool:
    return job.teacher.mode == "cached"


def _photos_here(job: TrainJob, model: DiffusionModel) -> PhotoPool:
    if not job.photos and not job.pairs:
        return load_photos(job, model)  # the base generates them
    rows = ray.train.get_dataset_shard("photos").iter_rows()
    return photos_of(job, rows, model)


def _engine(job: TrainJob) -> MakeEngine:
    if job.engine == "torch":
        return PlainEngine
    return partial(DeepSpeedEngine, zero_stage=job.zero_stage)


def _save_checkpoint(numbers: dict[str, float], folder: Path | None) -> None:
    """Hand a checkpoint over for upload, while training goes on.

    An upload that does not finish costs the steps since the checkpoint before, and these are
    repeated exactly. All workers call it, and none waits for the upload.
    """
    if folder is None:
        ray.train.report(numbers, checkpoint_upload_mode=_ASYNC)
        return
    mine = Path(tempfile.mkdtemp(prefix="bs-ray-checkpoint-"))
    folder.rename(mine)  # the caller deletes its folder when this returns
    ray.train.report(
        numbers,
        checkpoint=ray.train.Checkpoint.from_directory(mine),
        checkpoint_dir_name=checkpoint.new_name(mine),
        checkpoint_upload_mode=_ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def _sliders(
    state: TrainState,
    done: Progress,
    settings: dict[str, Any],
    calibrations: dict[str, Calibration],
) -> list[Slider]:
    job, model = state.job, state.model
    training = _training(state, done, settings)
    return [
        state.bank.to_slider(
            Card(
                name=name,
                base=job.base,
                base_id=model.base_id,
                family=model.family,
                part=model.part,
                prompts=job.concepts.get(name),
                subject=job.pairs.target if job.pairs else "",
                rank=job.rank,
                calibration=calibrations.get(name),
                training=training,
            )
        )
        for name in job.slider_names
    ]


def _training(state: TrainState, done: Progress, settings: dict[str, Any]) -> dict[str, Any]:
    """What a card says about the run."""
    broken = state.photos.broken
    return {
        "run": settings["run"],
        "job": state.job.model_dump(),
        "steps": done.step,
        "stopped_early": done.stopped,
        "gaps": done.gaps,
        "seconds": round(done.seconds, 3),
        "world_size": state.workers,
        "photos": len(state.photos),
        "photos_broken": len(broken),
        "photos_broken_keys": broken[:_LISTED],
        "losses": done.history[-1],
        "judges": [features_trunk(base_folder(settings["base"]))] if state.features else [],
        "history": done.history,
        "versions": {"bs_ray": __version__, **{name: version(name) for name in _NOTED}},
    }
