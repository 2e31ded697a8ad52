"""A random slider on a random base, and jobs that use them."""

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bs_ray.batch import run as run_module
from bs_ray.batch.run import EditSummary, edit
from bs_ray.config import EditJob, Prompts
from bs_ray.models import load_base
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import Card
from bs_ray.sliders.registry import Registry
from bs_ray.sliders.slider import Slider
from bs_ray.storage import Store
from tests.batch.brighter import EditingPipeline, HerePipeline, brighter_pipeline

MakeJob = Callable[..., EditJob]


@pytest.fixture(scope="package")
def slider(random_base: Path) -> Slider:
    model = load_base(str(random_base))
    bank = SliderBank.trainable(["smile"], model.denoiser, model.slider_targets(), 4, 4, 0)
    for up in bank.up.values():
        torch.nn.init.normal_(up, std=0.05)
    prompts = Prompts(target="person", positive="person, smiling", negative="person, frowning")
    card = Card(name="smile", base="random", base_id=model.base_id, prompts=prompts, rank=4)
    return bank.to_slider(card)


@pytest.fixture(scope="package")
def registry(slider: Slider, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("registry"))
    Registry(folder).publish(slider)
    return folder


@pytest.fixture
def make_job(random_base: Path, registry: str, tmp_path: Path) -> MakeJob:
    def make(**changes: Any) -> EditJob:
        settings: dict[str, Any] = {
            "name": "test",
            "base": str(random_base),
            "input": str(tmp_path / "in"),
            "output": str(tmp_path / "out"),
            "registry": registry,
            "sliders": {"smile": 1.0},
            "editor": {"steps": 1},
            "shard_images": 4,
            "batch_size": 3,
        }
        return EditJob(**(settings | changes))

    return make


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run their stages in this process, and edit without a model."""
    monkeypatch.setattr(run_module, "pipeline", HerePipeline)
    monkeypatch.setattr(run_module, "ray_session", lambda **_: nullcontext())


@pytest.fixture
def editing_here(without_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run their stages in this process, with the real editor."""
    monkeypatch.setattr(run_module, "pipeline", EditingPipeline)


@pytest.fixture
def brighter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs edit without a model."""
    monkeypatch.setattr(run_module, "pipeline", brighter_pipeline)


TIMINGS = ("report.html", "_bs_ray/drivers/", "_bs_ray/latest.png")  # of no two runs the same


def files(store: Store) -> dict[str, bytes]:
    keys = [entry.key for entry in store.list()]
    return {key: store.read(key) for key in keys if not key.startswith(TIMINGS)}


def run(job: EditJob, **options: Any) -> tuple[EditSummary, str]:
    """The job, and what it said."""
    text = io.StringIO()
    summary = edit(job, console=Console(file=text, width=200), **options)
    return summary, text.getvalue()
