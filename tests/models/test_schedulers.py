"""What a base's scheduler and configs say is honoured, by diffusers' own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from bs_ray.models import identify_base, load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.models.schedulers import check_flow, diffusion_of

_SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_BETAS = np.linspace(1e-4, 0.02, 50).tolist()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}),
        ("EulerAncestralDiscreteScheduler", {"rescale_betas_zero_snr": True}),
        ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True}),
        ("DDIMScheduler", {"beta_schedule": "linear"}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("DDIMScheduler", {"trained_betas": _BETAS, "num_train_timesteps": 50}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("PNDMScheduler", {"num_train_timesteps": 400}),
    ],
)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_schedule_is_diffusers_own(name: str, settings: dict[str, Any], kind: str) -> None:
    theirs = getattr(diffusers, name)(**(_SDXL | settings | {"prediction_type": kind}))
    mine = diffusion_of({**theirs.config, "_class_name": name}, Path("base"))
    torch.testing.assert_close(mine.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=0)
    assert mine.num_train_timesteps == len(theirs.alphas_cumprod)


def test_zero_terminal_snr_ends_in_noise_and_stays_finite() -> None:
    settings = _SDXL | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    model = diffusion_of({**settings, "_class_name": "DDIMScheduler"}, Path("base"))
    ddim = diffusers.DDIMScheduler(**settings)
    torch.testing.assert_close(model.alphas_cumprod[:-1], ddim.alphas_cumprod[:-1])
    last = torch.tensor([999])
    assert float(model.coefficients(last)[0].square()) == pytest.approx(2**-24)
    x = torch.ones(1, 4, 2, 2)
    assert model.to_x0(x, 0.5 * x, last).isfinite().all()
    # The sampler begins where such a model was trained to: at the last timestep.
    assert model.timesteps(4)[0] == 999


def edm(**settings: Any) -> dict[str, Any]:
    return {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", **settings}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (edm(), r"scheduler is EDMEulerScheduler \(its noise levels are EDM's"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDMDPMSolverMultistepScheduler"),
        ({"_class_name": "MadeUpScheduler"}, "whose scheduler is MadeUpScheduler; expected one of"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"prediction_type": "sample"}, "prediction_type sample; expected .*epsilon, v_pred"),
        ({"timestep_type": "continuous"}, "continuous timesteps"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule sigmoid; expected linear, scaled_linear"),
    ],
)
def test_schedulers_that_nobody_here_knows_are_refused_by_name(
    settings: dict[str, Any], message: str, random_base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(random_base, tmp_path / "base")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    for look in (identify_base, load_base):
        with pytest.raises(BaseNotFound, match=message):
            look(str(folder))


def test_flow_schedulers_are_checked_too() -> None:
    check_flow({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, Path("base"))
    with pytest.raises(BaseNotFound, match="EulerDiscreteScheduler; expected one of FlowMatch"):
        check_flow({"_class_name": "EulerDiscreteScheduler"}, Path("base"))
    with pytest.raises(BaseNotFound, match="inverts its sigmas"):
        check_flow({"invert_sigmas": True}, Path("base"))


@torch.no_grad()
def test_latents_mean_and_empty_prompts_are_the_pipelines(
    random_base: Path, tmp_path: Path
) -> None:
    """latents_mean, latents_std and force_zeros_for_empty_prompt, against SDXL's pipelines."""
    torch.set_num_threads(1)
    folder = shutil.copytree(random_base, tmp_path / "base")
    moments = {"latents_mean": [0.3, -0.2, 0.1, 0.0], "latents_std": [0.9, 1.2, 0.7, 1.1]}
    for name, news in (
        ("vae/config.json", moments),
        ("model_index.json", {"force_zeros_for_empty_prompt": True}),
    ):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | news))
    model = load_base(str(folder))
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    embedded = model.embed(["a photo", ""])
    cond, uncond, pooled, no_pooled = pipe.encode_prompt("a photo", device="cpu")
    torch.testing.assert_close(embedded.tokens, torch.cat([cond, uncond]))
    torch.testing.assert_close(embedded.pooled, torch.cat([pooled, no_pooled]))
    assert not uncond.any()

    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = pipe.vae.encode(picture).latent_dist.mean
    with pytest.MonkeyPatch.context() as patch:  # the pipeline would draw from the posterior
        patch.setattr(pipe.vae, "encode", lambda _: SimpleNamespace(latents=mean))
        t = torch.tensor([0])
        theirs = pipe.prepare_latents(picture, t, 1, 1, torch.float32, "cpu", add_noise=False)
    torch.testing.assert_close(model.encode(picture), theirs)
    assert float((theirs - mean * pipe.vae.config.scaling_factor).abs().max()) > 0.1

    drawn = diffusers.StableDiffusionXLPipeline(**pipe.components)
    drawn.set_progress_bar_config(disable=True)
    settings = {"prompt": "a photo", "num_inference_steps": 1, "guidance_scale": 1.0}
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents, image = (
        drawn(**settings, height=64, width=64, latents=start.clone(), output_type=kind).images
        for kind in ("latent", "pt")
    )
    torch.testing.assert_close((model.decode(latents) / 2 + 0.5).clamp(0, 1), image)
