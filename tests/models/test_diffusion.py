"""Noise, its schedule and its keys."""

import torch
from diffusers import DDIMScheduler

from bs_ray.models.diffusion import EpsPrediction, batch_noise, keyed_noise, trailing_timesteps

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
EPS = EpsPrediction(torch.cumprod(1 - BETAS, 0))


def test_noise_depends_on_seed_key_and_step_alone() -> None:
    shape = (4, 8, 8)
    first = keyed_noise(shape, 0, "a", 3)
    assert torch.equal(first, keyed_noise(shape, 0, "a", 3))
    for other in ((1, "a", 3), (0, "b", 3), (0, "a", 4)):
        assert not torch.equal(first, keyed_noise(shape, *other))
    batch = batch_noise(shape, [0, 0], ["b", "a"], 3)
    assert torch.equal(batch[1], first)


def test_keyed_noise_is_standard_normal() -> None:
    noise = keyed_noise((64, 64, 64), 0, "x", 0)
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


def test_x0_comes_back_from_its_noise() -> None:
    x0, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 400, 999])
    again = EPS.to_x0(EPS.add_noise(x0, noise, t), noise, t)
    assert torch.allclose(again, x0, atol=1e-4)


def test_noising_and_timesteps_are_those_of_diffusers() -> None:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="trailing",
    )
    x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([17, 801])
    assert torch.allclose(EPS.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t), atol=1e-6)
    scheduler.set_timesteps(20)
    assert trailing_timesteps(20, 1.0, 1000) == scheduler.timesteps.tolist()
    assert trailing_timesteps(12, 0.6, 1000) == scheduler.timesteps[8:].tolist()
