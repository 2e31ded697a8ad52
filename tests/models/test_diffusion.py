"""Noise, its schedule and its keys."""

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from bs_ray.models.diffusion import (
    EpsPrediction,
    FlowMatching,
    VPrediction,
    batch_noise,
    keyed_noise,
)

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
    assert EPS.timesteps(20) == scheduler.timesteps.tolist()
    assert EPS.timesteps(12, 0.6) == scheduler.timesteps[8:].tolist()


def test_v_prediction_is_noise_prediction_in_other_words() -> None:
    v_kind, x0, noise = VPrediction(EPS.alphas_cumprod), *torch.randn(2, 3, 4, 8, 8)
    t = torch.tensor([0, 400, 999])
    x_t, v = v_kind.add_noise(x0, noise, t), v_kind.truth(x0, noise, t)
    assert torch.allclose(v_kind.to_x0(x_t, v, t), x0, atol=1e-4)
    assert torch.allclose(v_kind.to_noise(x_t, v, t), noise, atol=1e-4)
    then = torch.tensor([0, 200, 899])
    expected = EPS.step(x_t, noise, t, then)
    assert torch.allclose(v_kind.step(x_t, v, t, then), expected, atol=1e-3)


def test_flow_matching_is_that_of_diffusers() -> None:
    x0, noise = torch.randn(2, 2, 4, 8, 8)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in FlowMatching().timesteps(10)])
    flow = FlowMatching(shift=3.0)
    times = flow.timesteps(10)
    expected = [round(1000 * float(s)) - 1 for s in scheduler.sigmas[:-1]]
    assert times == expected
    t = torch.tensor(times[3:5])
    x_t, v = flow.add_noise(x0, noise, t), flow.truth(x0, noise, t)
    assert torch.allclose(flow.to_x0(x_t, v, t), x0, atol=1e-5)
    assert torch.allclose(flow.to_noise(x_t, v, t), noise, atol=1e-5)
    # Euler's step is x + (sigma' - sigma) v.
    then = torch.tensor(times[4:6])
    move = (flow.sigma(then) - flow.sigma(t)).view(-1, 1, 1, 1) * v
    assert torch.allclose(flow.step(x_t, v, t, then), x_t + move, atol=1e-5)
