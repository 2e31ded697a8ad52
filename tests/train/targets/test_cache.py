"""The teacher's cache on real storage, built by a real Ray Data job."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bs_ray.config import TrainJob
from bs_ray.datasets.shards import PHOTO_SCHEMA
from bs_ray.models.identity import base_hash
from bs_ray.progress import ProgressBoard
from bs_ray.storage import MissingKeyError, Store
from bs_ray.train.targets import cache
from bs_ray.train.targets.cache import (
    cache_plan,
    cache_store,
    ensure_cache,
    load_photos,
    read_cache,
)
from bs_ray.train.targets.samples import SampleMaker
from bs_ray.train.targets.teacher import Teacher
from tests.train.conftest import make_job, photo_rows

SHAPE = (4, 16, 16)


@pytest.fixture
def job(tmp_path: Path, base: Path, bucket: Store) -> TrainJob:
    (tmp_path / "photos").mkdir()
    table = pa.Table.from_pylist(photo_rows(6), schema=PHOTO_SCHEMA)
    pq.write_table(table, tmp_path / "photos" / "shard-00000.parquet")
    teacher = {"mode": "cached", "samples": 12, "cache": f"{bucket.uri}/cache"}
    return make_job(photos=str(tmp_path / "photos"), base=str(base), teacher=teacher)


def rows_by_number(store: Store) -> dict[int, dict]:
    return {row["sample"]: row for row in read_cache(store).take_all()}


def test_build_find_and_resume(ray_cluster, job, base, model, monkeypatch) -> None:
    monkeypatch.setattr(cache, "_SHARD_SAMPLES", 4)
    said: list[str] = []
    base_id = base_hash(base)

    def ensure() -> Store:
        return ensure_cache(job, str(base), base_id, SHAPE, ProgressBoard(), said.append)

    store = ensure()
    assert "12 samples, 0.1 MB, 36 forward passes, time known after the first shard" in said[-1]
    built = rows_by_number(store)
    assert sorted(built) == list(range(12))
    maker = SampleMaker(job, model, load_photos(job, model), Teacher(model, job.concepts))
    assert built[5] == next(row for row in maker.make(range(4, 8)) if row["sample"] == 5)

    # The same settings find it; what does not matter does not matter.
    changed = job.model_copy(update={"lr": 0.1, "steps": 99})
    assert cache_store(changed, base_id) == store
    ensure()
    assert said[-1] == f"teacher cache: found {store.uri}"

    # A build that was stopped keeps its shards and makes the rest; half a cache is never read.
    store.delete("cache.json")
    store.delete("shard-00000.parquet")
    with pytest.raises(MissingKeyError, match="no finished teacher cache"):
        read_cache(store)
    before = {entry.key: entry.etag for entry in store.list()}
    ensure()
    assert rows_by_number(store) == built
    after = {entry.key: entry.etag for entry in store.list()}
    assert {key: after[key] for key in before} == before
    assert json.loads(store.read("cache.json"))["samples"] == 12


def test_its_name_is_what_it_was_made_from(job, base) -> None:
    base_id, names = base_hash(base), set()
    prompts = job.prompts.model_copy(update={"positive": "something else"})
    variants = [
        job,
        job.model_copy(update={"prompts": prompts}),
        job.model_copy(update={"seed": 1}),
        job.model_copy(update={"teacher": job.teacher.model_copy(update={"samples": 14})}),
    ]
    names = {cache_store(variant, base_id).uri for variant in variants}
    names.add(cache_store(job, "another base").uri)
    table = pa.Table.from_pylist(photo_rows(7), schema=PHOTO_SCHEMA)
    pq.write_table(table, f"{job.photos}/shard-00001.parquet")
    names.add(cache_store(job, base_id).uri)
    assert len(names) == 6


def test_its_size_is_known_before(job) -> None:
    sdxl_512 = cache_plan(make_job(teacher={"mode": "cached", "samples": 2}), (4, 64, 64))
    assert sdxl_512.bytes == 2 * 98_304 and sdxl_512.forwards == 6
    runs = make_job(teacher={"mode": "cached", "samples": 64, "trajectory_share": 0.5})
    assert cache_plan(runs, SHAPE).forwards == 64 * 3 + 2 * 2 * 48
