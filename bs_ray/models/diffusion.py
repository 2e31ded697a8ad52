"""How a noisy latent, its noise and its clean estimate relate, and samplers as functions.

Legend: x0 clean latents, x_t noisy latents, both [B, C, h, w]; t int64 timesteps [B] in
[0, num_train_timesteps); a = sqrt(alpha_bar_t), b = sqrt(1 - alpha_bar_t), so x_t = a x0 + b n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bs_ray.models.base import Condition, DiffusionModel


class EpsPrediction:
    """A network that predicts the noise n of x_t = a x0 + b n (Ho et al. 2020; SDXL)."""

    def __init__(self, alphas_cumprod: Tensor):
        """alphas_cumprod: float32 [num_train_timesteps], decreasing in (0, 1)."""
        self.alphas_cumprod = alphas_cumprod.float()

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) at timesteps t [B], each [B, 1, 1, 1]."""
        alpha_bar = self.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """METHOD Eq 1: x_t = a x0 + b n."""
        a, b = self.coefficients(t)
        return a * x0 + b * noise

    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The one-step estimate of x0."""
        a, b = self.coefficients(t)
        return (x_t - b * prediction) / a

    def noise_ratio(self, t: Tensor) -> Tensor:
        """lambda = b / a at timesteps t [B]: [B, 1, 1, 1]."""
        a, b = self.coefficients(t)
        return b / a


def keyed_noise(shape: Sequence[int], seed: int, key: str, step: int) -> Tensor:
    """Standard normal noise float32 `shape` that depends on (seed, key, step) alone.

    Not on the batch, the worker or a resume: so neither does any result made from it.
    """
    digest = hashlib.sha256(f"{seed}|{key}|{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.randn(tuple(shape), generator=generator)


def batch_noise(
    shape: Sequence[int], seeds: Sequence[int], keys: Sequence[str], step: int
) -> Tensor:
    """`keyed_noise` of several rows: [len(keys), *shape]."""
    return torch.stack([keyed_noise(shape, s, k, step) for s, k in zip(seeds, keys, strict=True)])


def trailing_timesteps(steps: int, strength: float, num_train_timesteps: int) -> list[int]:
    """`steps` timesteps from `strength` of the noise range down to near 0, evenly spaced.

    The last step ends at clean data. strength in (0, 1]; e.g. (4, 0.6, 1000) -> 599, 449, 299, 149.
    """
    top = strength * num_train_timesteps
    return [max(0, round(top * (steps - i) / steps) - 1) for i in range(steps)]


@torch.no_grad()
def sample_euler(
    model: DiffusionModel,
    prompts: list[str],
    keys: list[str],
    *,
    seed: int,
    steps: int,
    guidance_scale: float,
    rows_forward: Callable[[Tensor, Tensor, Condition], Tensor] | None = None,
) -> Tensor:
    """Prompts -> latents [B, C, h, w] by DDIM with eta 0 (Euler's method on the probability flow).

    Classifier-free guidance (Ho & Salimans 2022) with the empty prompt; `rows_forward` replaces
    `model.predict` where a caller adds sliders.
    """
    predict = rows_forward or model.predict
    count = len(prompts)
    condition = model.embed([*prompts, *([""] * count)])
    x = batch_noise(model.latent_shape, [seed] * count, keys, 0).to(model.device)
    times = trailing_timesteps(steps, 1.0, model.prediction.num_train_timesteps)
    for now, then in zip(times, [*times[1:], None], strict=True):
        t = torch.full((2 * count,), now, device=x.device)
        with_text, without = predict(torch.cat([x, x]), t, condition).chunk(2)
        noise = without + guidance_scale * (with_text - without)
        x0 = model.prediction.to_x0(x, noise, t[:count])
        x = (
            x0
            if then is None
            else model.prediction.add_noise(x0, noise, torch.full_like(t[:count], then))
        )
    return x
