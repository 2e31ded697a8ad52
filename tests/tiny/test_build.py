"""The recipe: every stage runs, and a stopped stage goes on as if never stopped."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bs_ray.judges.load import WorldJudges
from bs_ray.models import load_base
from bs_ray.tiny.loop import fit
from bs_ray.tiny.recipe import World, build_stage


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    path = tmp_path_factory.mktemp("world") / "world.safetensors"
    return World.load(path, clean=96, cluttered=64, wild=64, seed=0)


def train(world: World, base: Path, work: Path, steps: int) -> None:
    torch.manual_seed(0)
    stage = build_stage("perceptual", world, base)
    fit(stage, work, lambda *_: None, steps)


@pytest.mark.slow
def test_a_stopped_stage_goes_on_exactly(world: World, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bs_ray.tiny.loop._REPORT_EVERY", 3)
    monkeypatch.setattr("bs_ray.tiny.loop._SAVE_SECONDS", 0)
    train(world, tmp_path / "a", tmp_path / "whole", 6)

    calls = iter(range(100))

    class Stopped(Exception):
        pass

    torch.manual_seed(0)
    stage = build_stage("perceptual", world, tmp_path / "b")
    own = stage.loss

    def loss(rng: torch.Generator) -> dict[str, torch.Tensor]:
        if next(calls) == 4:
            raise Stopped
        return own(rng)

    stage.loss = loss  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        fit(stage, tmp_path / "parts", lambda *_: None, 6)
    torch.manual_seed(1)  # a new process has other random weights to start from
    fit(build_stage("perceptual", world, tmp_path / "b"), tmp_path / "parts", lambda *_: None, 6)
    whole = load_file(tmp_path / "whole" / "perceptual.safetensors")
    parts = load_file(tmp_path / "parts" / "perceptual.safetensors")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.ray
def test_the_whole_recipe_runs_on_ray_train(tmp_path: Path) -> None:
    from bs_ray.tiny.build import build

    build(tmp_path / "base", tmp_path / "work", share=0.005)
    assert load_base(str(tmp_path / "base")).native_px == 64
    WorldJudges.load(tmp_path / "base")
    assert list((tmp_path / "work" / "sheets").glob("unet-*.png"))
