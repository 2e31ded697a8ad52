"""The whole way through Ray Train, with DeepSpeed, on two workers; and what is refused before."""

import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bs_ray.config import TrainJob, load
from bs_ray.data import PHOTO_SCHEMA, EmptyInputError
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.registry import Registry
from bs_ray.storage import StorageError, Store
from bs_ray.train import run as train_run
from bs_ray.train.run import JobRefused, train
from tests.train.conftest import PROMPTS, make_job, photo_rows

JOBS = Path(__file__).parents[2] / "jobs" / "tiny"


@pytest.fixture
def places(tmp_path: Path, base: Path) -> dict:
    (tmp_path / "photos").mkdir()
    rows = [*photo_rows(8), {"key": "q/broken.jpg", "identity": "q", "bytes": b"no image"}]
    table = pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA)
    pq.write_table(table, tmp_path / "photos" / "shard-00000.parquet")
    folders = {name: str(tmp_path / name) for name in ("photos", "registry", "runs")}
    return folders | {"base": str(base), "workers": 2, "max_failures": 0, "max_broken_share": 0.2}


def test_train_resume_and_finish(ray_cluster, places, monkeypatch) -> None:
    job = make_job(**places, steps=4, checkpoint_every=2)
    screen = io.StringIO()
    console = Console(file=screen, width=200)

    # The driver dies after the workers are done, before anything is published.
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "publish", die)
        with pytest.raises(KeyboardInterrupt):
            train(job, console=console)
    assert Registry(job.registry).list() == {}

    # The same command finds the last checkpoint, has nothing left to train, and publishes.
    result = train(job, console=console)
    assert result.slider == "smile@1" and result.steps == 4
    assert [numbers["step"] for numbers in result.metrics] == [0, 1, 2, 3]
    slider = Registry(job.registry).resolve("smile")
    training = slider.card.training
    assert training["world_size"] == 2 and training["photos_broken"] == 1
    assert training["job"] == job.model_dump() and "deepspeed" in training["versions"]
    slider.check_base(load_base(job.base).base_id)
    assert any(b.any() for _, b in slider.factors.values())

    # And once more says so, without Ray.
    start_s = time.monotonic()
    again = train(job, console=console)
    assert again.slider == "smile@1" and time.monotonic() - start_s < 10
    shown = screen.getvalue()
    assert "train 4/4" in shown and "w_perceptual" in shown and "broken 1" in shown
    assert "is finished: smile@1" in shown


def test_what_no_retry_can_cure_is_said_once(ray_cluster, places) -> None:
    same = PROMPTS | {"negative": PROMPTS["positive"]}
    job = make_job(**places | {"max_failures": 5}, prompts=same, zero_stage=0)
    with pytest.raises(JobRefused, match="for which the base predicts the same"):
        train(job)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": "nowhere"}, BaseNotFound, "base: got nowhere, which has no model_index.json"),
        ({"photos": "no-such-folder"}, StorageError, "no-such-folder does not exist"),
        ({"registry": "/proc/sliders"}, StorageError, "/proc/sliders"),
        ({"batch_size": 2}, ValueError, "batch_size: got 1 row for each of 2 workers"),
    ],
)
def test_what_is_missing_is_said_before_ray_starts(places, change, error, message) -> None:
    start_s = time.monotonic()
    with pytest.raises(error, match=message):
        train(make_job(**places | change))
    assert time.monotonic() - start_s < 10


def test_a_prefix_without_photos(ray_cluster, places, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyInputError, match="shard-"):
        train(make_job(**places | {"photos": str(tmp_path / "empty")}))


def test_a_bucket_that_is_not_there_is_named(bucket: Store, places) -> None:
    with pytest.raises(StorageError, match="no-such-bucket"):
        train(make_job(**places | {"photos": "s3://no-such-bucket/lfw"}))


@pytest.mark.parametrize("name", ["smile", "age"])
def test_shipped_jobs_load(name: str) -> None:
    job = load(JOBS / f"train-{name}.yaml", kind="train")
    assert isinstance(job, TrainJob) and job.name == name
    train_run.check_rows(job, job.workers)
