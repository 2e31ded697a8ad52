"""A training run and a teacher's cache from before: resumed to the same weights, found again."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from bs_ray.config import as_begun_before, job_hash, load
from bs_ray.datasets.shards import format_of
from bs_ray.models import base_folder, load_base
from bs_ray.progress import ProgressBoard
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store
from bs_ray.train import checkpoint
from bs_ray.train.engines import PlainEngine
from bs_ray.train.features import load_features
from bs_ray.train.loop import assemble, run
from bs_ray.train.run import train
from bs_ray.train.targets.cache import cache_store, ensure_cache, finished, load_photos
from bs_ray.train.targets.samples import CachedBatches
from bs_ray.train.targets.teacher import Teacher


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever the machine has, so that a difference is the code's."""
    torch.set_num_threads(1)


def updates(slider: Slider) -> Tensor:
    """B A of every layer, one after another."""
    factors = [pair for _, pair in sorted(slider.factors.items())]
    return torch.cat([(b.flatten(1) @ a.flatten(1)).flatten() for a, b in factors])


def nothing(*_: object) -> None:
    pass


def test_a_checkpoint_is_resumed_to_the_same_weights(old: Path) -> None:
    job = as_begun_before(load("jobs/train.yaml"))
    store = Store(job.runs).join(f"{job.name}-{job_hash(job)[:8]}")
    model, passed_over = load_base(job.base), []
    (name,) = checkpoint.whole(store, passed_over.append)
    assert not passed_over
    features = load_features(base_folder(job.base), "cpu")
    state = assemble(job, model, load_photos(job, model), features, PlainEngine)
    slider = Registry(job.registry).resolve("smile@1")
    with checkpoint.downloaded(store, name) as folder:
        progress, _ = checkpoint.read(folder, job)
        done = run(state, nothing, nothing, folder)
    assert (progress.step, done.step, done.stopped) == (2, 4, False)
    was = updates(slider)
    off = (updates(state.bank.to_slider(slider.card)) - was).norm() / was.norm()
    print(f"off by {off:.1e} of the slider's own norm")
    assert off < 1e-3
    assert done.history[:2] == progress.history and len(done.history) == 4
    then = slider.card.training["losses"]
    assert {name: done.history[-1][name] for name in then} == pytest.approx(then, rel=1e-3)
    assert done.gaps == slider.card.training["gaps"]


def test_a_finished_run_is_recognised(old: Path) -> None:
    screen = io.StringIO()
    result = train(load("jobs/train.yaml"), console=Console(file=screen, width=200))
    assert (result.slider, result.steps) == ("smile@1", 4)
    assert "is finished: smile@1 in sliders" in screen.getvalue()
    assert Registry("sliders").versions("smile") == [1]


def test_a_teacher_cache_is_found_and_read(old: Path, recorded: Any) -> None:
    job, model, said = as_begun_before(load("jobs/train-cached.yaml")), load_base("tiny"), []
    assert finished(cache_store(job, model.base_id)), "found under another name, or not whole"
    store = ensure_cache(
        job, "tiny", model.base_id, model.latent_shape, ProgressBoard(), said.append
    )
    assert said == [f"teacher cache: found {store.uri}"]
    (key,) = (entry.key for entry in store.list() if entry.key.startswith("shard-"))
    rows = [r for rows in format_of(key).batches(store.read(key)) for r in rows.to_pylist()]
    batches = CachedBatches.load(
        rows,
        job=job,
        model=model,
        photos=load_photos(job, model),
        teacher=Teacher(model, job.concepts),
        bank=None,
    )
    batch = batches.at(0, range(2))
    found = {
        "x_t": batch.x_t,
        "t": batch.t,
        "strengths": batch.lora_scales,
        "target": batch.target,
        "neutral": batch.neutral,
        "tokens": batch.condition.tokens[:, :4],
    }
    for name, expected in recorded("batch").items():
        torch.testing.assert_close(
            found[name], torch.from_numpy(expected), rtol=1e-5, atol=1e-5, msg=name
        )
