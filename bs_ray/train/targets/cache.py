"""The teacher's cache: a Ray Data job stores samples in shards, and later runs find them.

    <cache>/<16 hex digits>/shard-00000.parquet ...   SAMPLE_SCHEMA, _SHARD_SAMPLES rows each
    <cache>/<16 hex digits>/cache.json                what it was made from; written last

The digits are a hash of what a sample depends on (base, prompts, photos, seed, ...) and of nothing
else: a run with another lr, rank, eta or number of steps finds the same cache. A build that was
stopped continues where it was.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from bs_ray.config import CachedTeacher, TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.datasets.sources import iter_photos, photos_digest, read_shards
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.storage import MissingKeyError, Store
from bs_ray.train.photos import photos_of
from bs_ray.train.targets.samples import PATH_SAMPLES, PATH_STEPS, Row, SampleMaker
from bs_ray.train.targets.teacher import Teacher, forwards_a_row

if TYPE_CHECKING:  # plans read this module on machines that have no Ray
    import ray.data

    from bs_ray.progress import ProgressBoard

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("photo", pa.int32(), nullable=False),  # number in the pool of photos
        pa.field("t", pa.int32(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("x_t", pa.binary(), nullable=False),  # fp16 [C, h, w]
        pa.field("neutral", pa.binary(), nullable=False),  # fp16 [M, C, h, w]
        pa.field("direction", pa.binary(), nullable=False),  # fp16 [M, C, h, w]
    ]
)
_SHARD_SAMPLES = 128
_DONE = "cache.json"
_FORMAT = 1


@dataclass(frozen=True)
class CachePlan:
    """What a cache takes, known before it is built."""

    samples: int
    bytes: int
    """Payload in object storage."""
    forwards: int
    """Forward passes of one row through the frozen denoiser."""


def settings_of(job: TrainJob) -> CachedTeacher:
    """The job's cache settings."""
    assert isinstance(job.teacher, CachedTeacher)
    return job.teacher


def cache_plan(job: TrainJob, latent_shape: tuple[int, int, int]) -> CachePlan:
    """What the job's cache takes. latent_shape: (C, h, w) of its pictures' latents."""
    settings, sliders = settings_of(job), len(job.slider_names)
    values = latent_shape[0] * latent_shape[1] * latent_shape[2]
    paths = round(settings.samples * settings.trajectory_share) // PATH_SAMPLES
    return CachePlan(
        samples=settings.samples,
        bytes=settings.samples * 2 * values * (1 + 2 * sliders),
        forwards=settings.samples * forwards_a_row(job.concepts) + paths * 2 * PATH_STEPS,
    )


def cache_store(job: TrainJob, base_id: str) -> Store:
    """Where the job's cache is, by what it is made from."""
    settings = settings_of(job)
    parts = {
        "format": _FORMAT,
        "base": base_id,
        "concepts": {name: prompts.model_dump() for name, prompts in job.concepts.items()},
        "photos": photos_digest(job.photos) if job.photos else None,
        "resolution": job.resolution,
        "samples": settings.samples,
        "trajectories": [settings.trajectory_share, settings.trajectory_guidance],
        "near": job.losses.image_timestep_max,
        "seed": job.seed,
    }
    # What earlier versions had no setting for is left out by default: their caches are found.
    parts |= job.model_dump(include={"region", "people"})
    text = json.dumps(parts, sort_keys=True)
    return Store(settings.cache).join(hashlib.sha256(text.encode()).hexdigest()[:16])


def finished(store: Store) -> bool:
    """Whether the cache is whole."""
    return store.exists(_DONE)


def build_cache(job: TrainJob, base: str, store: Store, board: ProgressBoard) -> None:
    """Make the shards that do not exist yet, then cache.json. Ray must be running."""
    import ray.data

    settings, start_s = settings_of(job), time.monotonic()
    if job.photos:  # absolute, since an actor has a working folder of its own
        job = job.model_copy(update={"photos": Store(job.photos).uri})
    shards = -(-settings.samples // _SHARD_SAMPLES)
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = ray.data.range(shards, override_num_blocks=shards).map_batches(
        _Builder,
        fn_constructor_args=(job.model_dump(), base, store, _SHARD_SAMPLES),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(settings.workers, shards)),
        num_cpus=job.cpus_per_worker,
        num_gpus=1 if job.use_gpu else 0,
    )
    done = 0
    for batch in made.iter_batches(batch_size=None, prefetch_batches=0):
        done += int(sum(batch["samples"]))
        board.report("teacher cache", done, settings.samples, {})
    seconds = time.monotonic() - start_s
    about = {"samples": done, "base": base, "seconds": round(seconds, 3)}
    store.write(_DONE, json.dumps(about, indent=1).encode())


def seconds_a_sample(job: TrainJob, base: str) -> float | None:
    """Seconds a sample took in an earlier cache of this base; None where there is none."""
    root = Store(settings_of(job).cache)
    for entry in root.list():
        if entry.key.endswith("/" + _DONE):
            about = json.loads(root.read(entry.key))
            if about["base"] == base:
                return float(about["seconds"]) / max(int(about["samples"]), 1)
    return None


def read_cache(store: Store) -> ray.data.Dataset:
    """The samples of a finished cache, in no particular order. Raises MissingKeyError."""
    if not finished(store):
        raise MissingKeyError(
            f"{store.uri} holds no finished teacher cache; train again to build it"
        )
    return read_shards(store, [e.key for e in store.list("shard-") if e.key.endswith(".parquet")])


class _Builder:
    """The Ray Data actor: it has a copy of the base, is given shard numbers and stores shards."""

    def __init__(self, job: dict, base: str, store: Store, shard_samples: int):
        self.job, self.store = TrainJob.model_validate(job), store
        self.shard_samples = shard_samples
        self.base = base
        self._maker: SampleMaker | None = None

    def __call__(self, batch: dict) -> dict:
        counts = [self._shard(int(number)) for number in batch["id"]]
        return {"shard": batch["id"], "samples": counts}

    def _shard(self, number: int) -> int:
        first = number * self.shard_samples
        samples = range(first, min(first + self.shard_samples, settings_of(self.job).samples))
        key = f"shard-{number:05d}.parquet"
        if not self.store.exists(key):
            self.store.write(key, to_parquet(self.maker.make(samples)))
        return len(samples)

    @property
    def maker(self) -> SampleMaker:
        """Loaded at first use, so that a build with nothing left to do loads nothing."""
        if self._maker is None:
            import torch

            gpu = self.job.use_gpu
            dtype = torch.bfloat16 if gpu else torch.float32
            model = load_base(self.base, dtype=dtype, device="cuda" if gpu else "cpu")
            photos = load_photos(self.job, model)
            self._maker = SampleMaker(self.job, model, photos, Teacher(model, self.job.concepts))
        return self._maker


def load_photos(job: TrainJob, model: DiffusionModel) -> PhotoPool:
    """The job's photos, read without Ray; generated by the base where the job has none."""
    if job.photos is None:
        return PhotoPool.generated(model, [p.target for p in job.concepts.values()], job.seed)
    return photos_of(job, iter_photos(job.photos), model)


def to_parquet(rows: Iterator[Row]) -> bytes:
    """Samples as one Parquet file; equal samples give equal bytes."""
    stream = io.BytesIO()
    # Not compressed, since noise does not shrink.
    pq.write_table(pa.Table.from_pylist(list(rows), SAMPLE_SCHEMA), stream, compression="none")
    return stream.getvalue()


def ensure_cache(
    job: TrainJob,
    base: str,
    base_id: str,
    latent_shape: tuple[int, int, int],
    board: ProgressBoard,
    report: Callable[[str], None],
) -> Store:
    """The job's cache, found or built; report(line) first says what building it takes."""
    store = cache_store(job, base_id)
    if finished(store):
        report(f"teacher cache: found {store.uri}")
        return store
    samples, rate = settings_of(job).samples, seconds_a_sample(job, base)
    expected = f"about {rate * samples:.0f} s" if rate else "time known after the first shard"
    plan = cache_plan(job, latent_shape)
    report(
        f"teacher cache: {samples} samples, {plan.bytes / 1e6:.1f} MB, {plan.forwards} forward "
        f"passes, {expected}, in {store.uri}"
    )
    build_cache(job, base, store, board)
    return store
