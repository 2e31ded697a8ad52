"""A slider's file in plain diffusers: the same weights, the same picture."""

from functools import partial
from pathlib import Path

import pytest
import torch

from bs_ray.config import EditorSettings, Prompts
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods.sdedit import sdedit
from bs_ray.editing.run import EditRun, run_alone
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.models.diffusion import batch_noise
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import Card
from bs_ray.sliders.slider import Slider
from tests.train.conftest import PROMPTS

PROMPT = PROMPTS["target"]


@pytest.fixture(scope="module")
def slider(base: Path) -> Slider:
    """Factors as large as a trained slider's; alpha differs from the rank on purpose."""
    model = load_base(str(base))
    bank = SliderBank.trainable(["smile"], model.denoiser, model.slider_targets(), 4, 2.0, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for up in bank.up.values():
            torch.nn.init.normal_(up, std=0.3)
    prompts = Prompts.model_validate(PROMPTS)
    card = Card(name="smile", base="b", base_id=model.base_id, prompts=prompts, rank=4)
    return bank.to_slider(card)


@pytest.fixture(scope="module")
def pipe(base: Path, slider: Slider, tmp_path_factory: pytest.TempPathFactory):
    from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline

    folder = tmp_path_factory.mktemp("slider")
    (folder / "smile.safetensors").write_bytes(slider.to_bytes())
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=0,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folder, weight_name="smile.safetensors", adapter_name="smile")
    return pipe


@torch.no_grad()
def ours(model: DiffusionModel, slider: Slider, x0, strength: float) -> torch.Tensor:
    bank = SliderBank.of([slider])
    bank.attach(model.denoiser)

    predict = partial(bank.predict, model)

    condition = model.embed([PROMPT])
    context = EditContext(
        predict=predict,
        prediction=model.prediction,
        x0=x0,
        condition=condition,
        empty=condition,
        lora_scales=torch.full((1, 1), strength),
        source_of=torch.tensor([0]),
        seeds=[1],
        keys=["k"],
    )
    steps = sdedit(context, EditorSettings(method="sdedit", steps=12, start=0.6))
    edited = run_alone(EditRun(steps), predict)
    bank.detach()
    return model.decode(edited)


@torch.no_grad()
def theirs(pipe, image: torch.Tensor, noise: torch.Tensor, strength: float, monkeypatch):
    pipe.set_adapters("smile", adapter_weights=strength)

    # The pipeline draws from the VAE's posterior; ours takes its mean. And the noise is given.
    def latents(image, timestep, batch_size, *_, **__):
        encoded = pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor
        return pipe.scheduler.add_noise(encoded, noise, timestep)

    monkeypatch.setattr(pipe, "prepare_latents", latents)
    return pipe(
        PROMPT,
        image=image,
        strength=0.6,
        num_inference_steps=20,
        guidance_scale=1.0,
        output_type="pt",
    ).images


@pytest.mark.parametrize("strength", [0.7])
def test_diffusers_draws_the_same_picture(
    model: DiffusionModel, slider: Slider, pipe, strength: float, monkeypatch
) -> None:
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bicubic")
    photo = photo.clamp(0, 1)
    with torch.no_grad():
        x0 = model.encode(photo * 2 - 1)
    noise = batch_noise(x0.shape[1:], [1], ["k"], 0)
    mine = (ours(model, slider, x0, strength) / 2 + 0.5).clamp(0, 1)
    base = (ours(model, slider, x0, 0.0) / 2 + 0.5).clamp(0, 1)
    other = theirs(pipe, photo, noise, strength, monkeypatch)
    difference, moved = float((mine - other).abs().max()), float((mine - base).abs().max())
    print(f"strength {strength}: max difference {difference:.1e}; the slider moves {moved:.3f}")
    assert difference < 2e-5
    assert moved > 20 * difference and moved > 5e-3


@torch.no_grad()
def test_the_networks_agree_before_any_sampler(model, slider: Slider, pipe) -> None:
    pipe.set_adapters("smile", adapter_weights=-1.3)
    x, t = torch.randn(2, *model.latent_shape), torch.tensor([100, 700])
    condition = model.embed([PROMPT, ""])
    frozen = model.predict(x, t, condition)
    bank = SliderBank.of([slider])
    bank.attach(model.denoiser)
    with bank.scaled(torch.full((2, 1), -1.3)):
        mine = model.predict(x, t, condition)
    bank.detach()
    ids = torch.tensor([64, 64, 0, 0, 64, 64]).expand(2, 6).float()
    added = {"text_embeds": condition.pooled, "time_ids": ids}
    other = pipe.unet(x, t, encoder_hidden_states=condition.tokens, added_cond_kwargs=added).sample
    print(f"max difference {float((mine - other).abs().max()):.1e}")
    assert torch.allclose(mine, other, atol=1e-4)
    assert float((mine - frozen).abs().max()) > 0.01
