"""The whole way through Ray Train, with DeepSpeed, on two workers; and what is refused before."""

import io
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from bs_ray import cli
from bs_ray.config import TrainJob, load
from bs_ray.datasets.shards import PHOTO_SCHEMA
from bs_ray.images.formats import EmptyInputError
from bs_ray.models import load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.sliders.registry import Registry
from bs_ray.storage import StorageError, Store
from bs_ray.storage.seaweed import LocalObjectStore
from bs_ray.train import run as train_run
from bs_ray.train.features import features_trunk
from bs_ray.train.run import JobRefused, train
from tests.promptly import promptly
from tests.train.conftest import PROMPTS, jpeg, make_job, photo_rows

JOBS = Path(__file__).parents[2] / "jobs" / "tiny"


@pytest.fixture
def places(tmp_path: Path, base: Path) -> dict:
    (tmp_path / "photos").mkdir()
    rows = [*photo_rows(8), {"key": "q/broken.jpg", "identity": "q", "bytes": b"no image"}]
    table = pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA)
    pq.write_table(table, tmp_path / "photos" / "shard-00000.parquet")
    folders = {name: str(tmp_path / name) for name in ("photos", "registry", "runs")}
    return folders | {"base": str(base), "workers": 2, "max_failures": 0, "max_broken_share": 0.2}


def no_ray(**_: object) -> None:
    pytest.fail("expected an answer without Ray")


def test_train_resume_and_finish(ray_cluster, places, monkeypatch) -> None:
    # Two workers take all CPUs of the tests' Ray: reading must need none.
    job = make_job(**places, steps=4, checkpoint_every=2, cpus_per_worker=2)
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
    assert training["judges"] == [features_trunk(Path(job.base))]
    assert slider.card.base_id == load_base(job.base).base_id
    assert any(b.any() for _, b in slider.factors.values())

    # And once more says so, without Ray.
    with monkeypatch.context() as patch:
        patch.setattr(train_run, "ray_session", no_ray)
        assert train(job, console=console).slider == "smile@1"
    shown = screen.getvalue()
    assert "train 4/4" in shown and "w_perceptual" in shown and "broken 1" in shown
    assert "is finished: smile@1" in shown


def test_what_no_retry_can_cure_is_said_once(ray_cluster, places, monkeypatch) -> None:
    same = PROMPTS | {"negative": PROMPTS["positive"]}
    job = make_job(**places | {"max_failures": 5, "workers": 1}, prompts=same, zero_stage=0)
    with pytest.raises(JobRefused, match="for which the base predicts the same") as refusal:
        train(job)
    monkeypatch.setattr(cli, "app", Mock(side_effect=refusal.value))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"base": "nowhere"}, BaseNotFound, "base: got nowhere, which has no model_index.json"),
        ({"photos": "no-such-folder"}, StorageError, "no-such-folder does not exist"),
        ({"registry": "/proc/sliders"}, StorageError, "/proc/sliders"),
        ({"batch_size": 2}, ValueError, "batch_size: got 1 for each of 2 workers"),
    ],
)
def test_what_is_missing_is_said_before_ray_starts(
    places, change, error, message, monkeypatch
) -> None:
    monkeypatch.setattr(train_run, "ray_session", no_ray)
    with pytest.raises(error, match=message):
        train(make_job(**places | change))


def test_a_prefix_without_photos(ray_cluster, places, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyInputError, match="shard-"):
        train(make_job(**places | {"photos": str(tmp_path / "empty")}))


@pytest.mark.parametrize("place", ["photos", "registry", "runs", "cache"])
def test_a_bucket_that_is_not_there_is_named(bucket: Store, places, place: str) -> None:
    with promptly(), pytest.raises(StorageError, match="no-such-bucket"):
        train(make_job(**places | _at(place, "s3://no-such-bucket/lfw")))


@pytest.mark.parametrize("place", ["registry", "runs", "cache"])
def test_a_bucket_that_may_only_be_read_is_named(
    object_store: LocalObjectStore, bucket: Store, places, place: str, monkeypatch
) -> None:
    for name, value in object_store.read_only_env.items():
        monkeypatch.setenv(name, value)
    with promptly(), pytest.raises(StorageError, match="may write in bucket 'bs-ray-tests'"):
        train(make_job(**places | _at(place, bucket.uri)))


def _at(place: str, uri: str) -> dict:
    """The settings that put one of a job's places at `uri`."""
    if place == "cache":
        return {"teacher": {"mode": "cached", "samples": 8, "cache": uri}}
    return {place: uri}


@pytest.mark.slow
def test_several_sliders_over_one_cache(ray_cluster, places, tmp_path: Path) -> None:
    ends = {"age": ("old", "young"), "smile": ("smiling", "frowning")}
    sliders = {
        name: {"target": "a person", "positive": f"{high} person", "negative": f"{low} person"}
        for name, (high, low) in ends.items()
    }
    cache = {"mode": "cached", "samples": 8, "cache": str(tmp_path / "cache")}
    settings = places | {"prompts": None, "sliders": sliders, "teacher": cache, "workers": 1}
    losses = {"perceptual_reference": "real", "adversarial_after": 0.0}
    job = make_job(**settings, losses=losses, steps=2)
    screen = io.StringIO()
    assert train(job, console=Console(file=screen, width=200)).slider == "age@1, smile@1"
    assert "teacher cache: 8 samples" in screen.getvalue()
    found = {name: Registry(job.registry).resolve(name) for name in sliders}
    for name, slider in found.items():
        assert slider.card.prompts.positive == sliders[name]["positive"]
        assert any(b.any() for _, b in slider.factors.values())
    one, other = ((b for _, b in found[name].factors.values()) for name in sliders)
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_slider_from_pictures(ray_cluster, places, tmp_path: Path) -> None:
    for strength in (-1, 1):
        (tmp_path / "pairs" / str(strength)).mkdir(parents=True)
        for i in range(3):
            picture = jpeg(10 * i + strength + 1)
            (tmp_path / "pairs" / str(strength) / f"{i}.jpg").write_bytes(picture)
    pairs = {"images": str(tmp_path / "pairs"), "target": "a person"}
    settings = places | {"prompts": None, "photos": None, "pairs": pairs}
    with pytest.raises(ValueError, match="got 2 for each of 2 workers; expected 4 or more"):
        train(make_job(**settings))
    job = make_job(**settings | {"workers": 1}, steps=2)
    assert job.losses.perceptual_reference == "real"
    assert train(job).slider == "smile@1"
    slider = Registry(job.registry).resolve("smile")
    assert any(b.any() for _, b in slider.factors.values())


@pytest.mark.parametrize("name", ["smile", "age"])
def test_shipped_jobs_load(name: str) -> None:
    job = load(JOBS / f"train-{name}.yaml", kind="train")
    assert isinstance(job, TrainJob) and job.name == name
    train_run.check_rows(job, job.workers)
