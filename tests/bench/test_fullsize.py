"""The full-size bench, on the tiny base's sizes: everything but the size."""

import subprocess
import sys

import pytest
import torch

from bs_ray.bench.fullsize import MODES, fullsize, random_base


def test_a_mode_takes_real_steps() -> None:
    figures = fullsize(print, base="tiny", px=64, modes=("cached",))
    assert figures["forward_equivalents_per_sample"] == {"cached": 3}
    assert figures["seconds_per_sample"]["cached"] > 0 < figures["cache_seconds_per_sample"]


@pytest.mark.slow
def test_every_mode_takes_real_steps() -> None:
    said: list[str] = []
    figures = fullsize(said.append, base="tiny", px=64)
    assert set(figures["seconds_per_sample"]) == set(MODES)
    assert figures["forward_equivalents_per_sample"] == {
        "whole_method": 6,
        "cached": 3,
        "live": 6,
        "concept_sliders": 62,
    }
    assert figures["ratio_cached"] > figures["ratio_live"] > 1
    assert figures["peak_bytes"]["whole_method"] > 0 and figures["cache_seconds_per_sample"] > 0
    assert any("discriminator" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_the_same_steps(stage: int) -> None:
    """In a process of its own: a process group is for its whole life."""
    code = (
        "from bs_ray.bench.fullsize import fullsize;"
        f"found = fullsize(print, 'tiny', 64, zero_stage={stage}, modes=('live', 'cached'));"
        "assert set(found['step_seconds']) == {'live', 'cached'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_random_weights_are_finite_numbers_in_bfloat16() -> None:
    model, _ = random_base("tiny")
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.bfloat16}
    condition = model.embed(["a", "b"])
    x = torch.randn(2, *model.latent_shape)
    with torch.no_grad():
        out = model.predict(x, torch.tensor([10, 900]), condition)
        assert torch.isfinite(out).all() and out.std() > 0
        assert torch.isfinite(model.decode(x)).all()


@pytest.mark.slow
def test_the_plan_of_full_size_sdxl_is_what_a_real_step_takes() -> None:
    """256 px, bfloat16, with text encoders, VAE and all losses; 12 GB of memory."""
    figures = fullsize(print, modes=("whole_method",))
    assert 0.8 < figures["plan_over_measured"] < 1.25
