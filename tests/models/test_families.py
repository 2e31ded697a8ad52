"""Every family against diffusers: the same numbers from the same folder, before any slider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bs_ray.models import FAMILIES, load_base
from bs_ray.models.base import BaseNotFound, Condition
from bs_ray.models.diffusion import guided, sample_euler
from tests.models.conftest import EMBEDDED, HEIGHT, KEYS, PROMPTS, STEPS, WIDTH, Family
from tests.models.random_bases import WRITERS


def close(mine: Tensor, other: Tensor, tolerance: float) -> None:
    assert mine.shape == other.shape and mine.dtype == other.dtype
    difference = float((mine - other).abs().max())
    print(f"max difference {difference:.1e} of {float(other.abs().max()):.2f}")
    assert difference < tolerance


@torch.no_grad()
def test_text_to_image_is_the_pipelines(family: Family) -> None:
    """And so is the prediction at each of its steps, all steps in one batch: t differs by row."""
    theirs = family.draw()
    latents = sample_euler(
        family.model, PROMPTS, KEYS, seed=0, steps=STEPS, guidance_scale=family.guidance
    )
    close((family.model.decode(latents) / 2 + 0.5).clamp(0, 1), theirs, 1e-4)
    assert theirs.shape[-2:] == (HEIGHT, WIDTH) and float(theirs.std()) > 0.02

    x, t = torch.cat(family.samples), torch.tensor(family.timesteps).repeat_interleave(len(PROMPTS))
    condition = family.model.embed([*PROMPTS, *([""] * len(PROMPTS))])
    cond, uncond = condition.rows(slice(0, 2)).tile(STEPS), condition.rows(slice(2, 4)).tile(STEPS)
    forward = guided(family.model.predict, cond, uncond, family.guidance, guide=family.model.guide)
    close(forward(x, t), torch.cat(family.outputs), 1e-4)


@torch.no_grad()
def test_embed_is_encode_prompt(family: Family) -> None:
    mine = family.model.embed(PROMPTS)
    theirs = encode_prompt(family.name, family.pipe)
    for row, text in enumerate(mine.texts()):
        close(text, theirs.texts()[row], 1e-5)
    if theirs.pooled is not None:
        assert mine.pooled is not None
        close(mine.pooled, theirs.pooled, 1e-5)


def encode_prompt(name: str, pipe: Any) -> Condition:
    """What the pipeline makes of PROMPTS."""
    if name.startswith("sdxl"):
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS)
        return Condition(tokens, pooled)
    if name == "sd3":
        tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, PROMPTS, PROMPTS)
        return Condition(tokens, pooled)
    if name in ("flux", "schnell"):
        tokens, pooled, _ = pipe.encode_prompt(PROMPTS)
        return Condition(tokens, pooled)
    if name == "flux2-klein":
        return Condition(pipe.encode_prompt(PROMPTS)[0])
    if name == "z-image":
        rows = pipe.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)[0]
        return Condition.cat([Condition(row[None]) for row in rows])
    tokens, mask = pipe.encode_prompt(PROMPTS)
    return Condition(tokens, mask=mask.bool())


@torch.no_grad()
def test_encode_is_the_pipelines(family: Family) -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 - 1
    latents = family.model.encode(images)
    assert latents.shape[1:] == family.model.latent_shape
    close(latents, encoded(family, images), 1e-5)


def encoded(family: Family, images: Tensor) -> Tensor:
    """The images' latents by the pipelines' rules, the posterior's mean."""
    from diffusers import QwenImageImg2ImgPipeline

    vae, name = family.pipe.vae, family.name
    if name == "flux2-klein":
        latents: Tensor = family.pipe._encode_vae_image(images, None)
        return latents
    if name == "qwen-image":
        posterior = vae.encode(images[:, :, None]).latent_dist
        fake = type("Posterior", (), {"latents": posterior.mean})  # instead of a random draw
        stand_in = type("Pipe", (), {"vae": Stub(vae, fake)})
        film = QwenImageImg2ImgPipeline._encode_vae_image(stand_in, images[:, :, None], None)
        return film.squeeze(2)
    mean: Tensor = vae.encode(images).latent_dist.mean
    if name.startswith("sdxl"):
        return mean * vae.config.scaling_factor
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


class Stub:
    """An autoencoder whose answer is known."""

    def __init__(self, vae: Any, answer: Any):
        self.config, self._answer = vae.config, answer

    def encode(self, images: Tensor) -> Any:
        return self._answer


@torch.no_grad()
def test_a_row_does_not_depend_on_its_companions(family: Family) -> None:
    """Neither on their prompts' lengths nor on their timesteps."""
    model, long = family.model, "a photo of a person, " + "smiling and frowning, " * 6
    x, t = torch.randn(3, *model.latent_shape), torch.tensor([900, 30, 500])
    prompts = ["a photo", long, ""]
    together = model.predict(x, t, model.embed(prompts))
    assert together.std() > 0.05
    others = model.predict(x, t, model.embed(prompts[::-1]))
    assert (together - others)[0].abs().max() > 1e-3  # the prompt is heard
    for row, prompt in enumerate(prompts):
        one = slice(row, row + 1)
        close(together[one], model.predict(x[one], t[one], model.embed([prompt])), 2e-5)


def test_decoding_is_differentiable(family: Family) -> None:
    latents = family.noise().requires_grad_()
    family.model.decode(latents).square().mean().backward()
    assert latents.grad is not None and bool(latents.grad.abs().sum() > 0)


@torch.no_grad()
def test_bfloat16_weights(family: Family) -> None:
    model = load_base(str(family.folder), dtype=torch.bfloat16)
    x, t = torch.randn(2, *family.model.latent_shape), torch.tensor([999, 400])
    exact = family.model.predict(x, t, family.model.embed(PROMPTS))
    rough = model.predict(x, t, model.embed(PROMPTS))
    assert rough.dtype == torch.float32 and model.decode(x).dtype == torch.float32
    assert model.encode(torch.rand(1, 3, HEIGHT, WIDTH)).dtype == torch.float32
    error = float((rough - exact).norm() / exact.norm())
    print(f"relative error {error:.3f}")
    assert error < 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", EMBEDDED)
def test_flux_is_told_its_guidance(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    usual, other = load_base(str(tmp_path)), load_base(str(tmp_path), guidance=7.0)
    x, t = torch.randn(1, *usual.latent_shape), torch.tensor([700])
    condition = usual.embed(["a photo"])
    same = torch.equal(usual.predict(x, t, condition), other.predict(x, t, condition))
    assert same == (name == "schnell")  # which knows no guidance


@pytest.mark.parametrize("pipeline", FAMILIES)
def test_a_part_that_is_missing_is_named(pipeline: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    expected = r"base: got .*, which lacks .*vae.*; expected a diffusers .* folder\. .*bases fetch"
    with pytest.raises(BaseNotFound, match=expected):
        load_base(str(tmp_path))
