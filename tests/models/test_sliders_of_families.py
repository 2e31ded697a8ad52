"""Every family's sliders: trained by the product's own loop, then at work in plain diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bs_ray.config import Prompts, TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import sample_euler
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import Card
from bs_ray.sliders.slider import Slider
from bs_ray.train.engines import PlainEngine
from bs_ray.train.loop import assemble, run
from tests.models.conftest import KEYS, PROMPTS, STEPS, Family, open_pipe
from tests.models.test_families import close
from tests.train.conftest import make_job, photo_rows

STRENGTH = -1.3


def job_of() -> TrainJob:
    # alpha differs from the rank on purpose; lr is large so that three steps are seen.
    return make_job(
        losses={"perceptual": 0, "adversarial": 0},
        steps=3,
        batch_size=2,
        rank=2,
        alpha=3.0,
        lr=0.2,
        resolution=32,
    )


@pytest.fixture(scope="session")
def slider(family: Family) -> Slider:
    """Three steps of the loop, without a loss on pictures."""
    job, model = job_of(), load_base(str(family.folder))
    pool = PhotoPool.load(photo_rows(2), model, px=job.resolution)
    state = assemble(job, model, pool, None, PlainEngine)
    progress = run(state, lambda *_: None, lambda *_: None)
    assert progress.step == 3
    assert job.prompts is not None
    prompts: Prompts = job.prompts
    card = Card(
        name=job.name,
        base="b",
        base_id=model.base_id,
        family=model.family,
        part=model.part,
        prompts=prompts,
        rank=job.rank,
    )
    return state.bank.to_slider(card)


@torch.no_grad()
def ours(family: Family, slider: Slider, strength: float) -> Tensor:
    """PROMPTS drawn with the slider at a strength, [2, 3, H, W] in [0, 1]."""
    bank = SliderBank.of([slider])

    def forward(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with bank.scaled(torch.full((len(x), 1), strength)):
            prediction: Tensor = family.model.predict(x, t, condition)
            return prediction

    bank.attach(family.model.denoiser)
    try:
        latents = sample_euler(
            family.model,
            PROMPTS,
            KEYS,
            seed=0,
            steps=STEPS,
            guidance_scale=family.guidance,
            rows_forward=forward,
        )
    finally:
        bank.detach()
    images: Tensor = family.model.decode(latents)
    return (images / 2 + 0.5).clamp(0, 1)


def test_a_trained_slider_draws_the_same_picture_in_diffusers(
    family: Family, slider: Slider, tmp_path: Path
) -> None:
    mine, without = ours(family, slider, STRENGTH), ours(family, slider, 0.0)

    (tmp_path / "smile.safetensors").write_bytes(slider.to_bytes())
    plain = Family(family.name, family.folder, family.model, open_pipe(family.folder, family.name))
    plain.pipe.load_lora_weights(tmp_path, weight_name="smile.safetensors", adapter_name="smile")
    plain.pipe.set_adapters("smile", adapter_weights=STRENGTH)
    theirs = plain.draw()

    moved = float((mine - without).abs().max())
    print(f"the slider moves {moved:.3f}")
    close(mine, theirs, 5e-5)
    assert moved > 0.02


def test_every_target_is_in_the_file_and_takes_part(family: Family, slider: Slider) -> None:
    assert list(slider.factors) == family.model.slider_targets()
    idle = [layer for layer, (_, b) in slider.factors.items() if not bool(b.any())]
    assert idle == []
    again = Slider.from_bytes(slider.to_bytes(), "memory")
    assert again.card.family == family.model.family and again.card.part == family.model.part


def test_recomputed_activations_see_the_same_strengths(family: Family) -> None:
    """Gradient checkpointing under the bank: rows of different strength, the same gradients."""
    found = []
    for checkpointing in (False, True):
        model = load_base(str(family.folder))
        bank = SliderBank.trainable(
            ["smile"], model.denoiser, model.slider_targets(), 2, 3.0, seed=0
        )
        for number, up in enumerate(bank.up.values()):
            up.data = torch.randn(up.shape, generator=torch.Generator().manual_seed(number)) * 0.1
        bank.attach(model.denoiser)
        if checkpointing:
            model.denoiser.train()
            model.denoiser.enable_gradient_checkpointing(bank.checkpointed)
        x, t = family.noise(), torch.tensor([900, 200])
        with bank.scaled(torch.tensor([[1.0], [-0.5]])):
            prediction = model.predict(x, t, model.embed(PROMPTS))
        prediction.square().mean().backward()
        found.append([p.grad for p in bank.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert plain is not None and recomputed is not None and bool(plain.any())
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-7)


def test_plain_gradient_checkpointing_is_no_silent_mistake(family: Family) -> None:
    """Without the bank's own way, recomputing finds no slider: torch notices and says so."""
    model = load_base(str(family.folder))
    bank = SliderBank.trainable(["smile"], model.denoiser, model.slider_targets(), 2, 3.0, seed=0)
    bank.attach(model.denoiser)
    model.denoiser.train()
    model.denoiser.enable_gradient_checkpointing()
    with bank.scaled(torch.ones(2, 1)):
        prediction = model.predict(family.noise(), torch.tensor([900, 200]), model.embed(PROMPTS))
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        prediction.square().mean().backward()
