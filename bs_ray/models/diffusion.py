"""How noisy latents, their noise and clean latents are related; keyed noise, guidance, sampling.

Legend: x0 clean latents, x_t noisy latents, both [B, C, h, w]; n noise; t int64 timesteps [B] in
[0, num_train_timesteps), high for noise; x_t = a x0 + b n.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bs_ray.models.base import Condition, DiffusionModel


class Prediction(ABC):
    """What a network's output means: how x_t is made, and how x0 and the noise are read from it.

    For every kind x_t = a x0 + b n; each has its own (a, b) and its own reading of the output.
    Samplers and losses need only the methods here.
    """

    num_train_timesteps: int

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b) at timesteps t [B], each [B, 1, 1, 1]."""

    @abstractmethod
    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The one-step estimate of x0."""

    @abstractmethod
    def to_noise(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        """The noise n that the prediction implies."""

    @abstractmethod
    def truth(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network outputs at x_t = a x0 + b n: the target of plain training."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a x0 + b n: Eq 1 of the paper, for the whole way from x0 to x_t."""
        a, b = self.coefficients(t)
        return a * x0 + b * noise

    def noise_ratio(self, t: Tensor) -> Tensor:
        """lambda = b / a at timesteps t [B]: [B, 1, 1, 1]."""
        a, b = self.coefficients(t)
        return b / a

    def timesteps(self, steps: int, start: float = 1.0) -> list[int]:
        """`steps` timesteps from `start` (0, 1] of the noise range down to near 0, descending.

        They are evenly spaced and "trailing", so that the last step ends at clean data: (4, 0.6) of
        1000 -> 599, 449, 299, 149.
        """
        top = start * self.num_train_timesteps
        return [max(0, round(top * (steps - i) / steps) - 1) for i in range(steps)]

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, then: Tensor | None) -> Tensor:
        """x at `then`, by DDIM with eta 0 (Euler's method on the flow); x0 where `then` is None."""
        x0 = self.to_x0(x_t, prediction, t)
        if then is None:
            return x0
        return self.add_noise(x0, self.to_noise(x_t, prediction, t), then)


class _Diffusion(Prediction):
    """Variance-preserving diffusion: a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar)."""

    def __init__(self, alphas_cumprod: Tensor):
        """alphas_cumprod: float32 [num_train_timesteps], decreasing in (0, 1)."""
        self.alphas_cumprod = alphas_cumprod.float()
        self.num_train_timesteps = len(alphas_cumprod)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alphas_cumprod.to(t.device)[t].view(-1, 1, 1, 1)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


class EpsPrediction(_Diffusion):
    """The network predicts the noise n (Ho et al. 2020; SDXL)."""

    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        a, b = self.coefficients(t)
        return (x_t - b * prediction) / a

    def to_noise(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return prediction

    def truth(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise


class VPrediction(_Diffusion):
    """The network predicts v = a n - b x0 (Salimans & Ho 2022)."""

    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        a, b = self.coefficients(t)
        return a * x_t - b * prediction

    def to_noise(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        a, b = self.coefficients(t)
        return a * prediction + b * x_t

    def truth(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, b = self.coefficients(t)
        return a * noise - b * x0


class FlowMatching(Prediction):
    """The network predicts the velocity n - x0 of x_t = (1 - sigma) x0 + sigma n (Lipman et al.
    2023; SD3, Flux).

    Timestep t stands for sigma = (t + 1) / num_train_timesteps, so that 0 .. 999 are the sigmas
    0.001 .. 1 that these models were trained on.
    """

    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        """shift: how far timesteps are moved towards noise (Esser et al. 2024, Eq 23)."""
        self.num_train_timesteps = num_train_timesteps
        self.shift = shift

    def timesteps(self, steps: int, start: float = 1.0) -> list[int]:
        """As for every kind, moved by `shift`: sigma' = shift sigma / (1 + (shift - 1) sigma)."""
        count, found = self.num_train_timesteps, []
        for i in range(steps):
            sigma = start * (steps - i) / steps
            shifted = self.shift * sigma / (1 + (self.shift - 1) * sigma)
            found.append(max(0, round(shifted * count) - 1))
        return found

    def sigma(self, t: Tensor) -> Tensor:
        """The sigma of each timestep: float32 [B] in (0, 1]."""
        return (t.float() + 1) / self.num_train_timesteps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma(t).view(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def to_x0(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t - self.sigma(t).view(-1, 1, 1, 1) * prediction

    def to_noise(self, x_t: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return x_t + (1 - self.sigma(t).view(-1, 1, 1, 1)) * prediction

    def truth(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - x0


def keyed_generator(*key: int | str) -> torch.Generator:
    """A random generator that depends on `key` alone: not on the batch, the worker or a resume."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def keyed_noise(shape: Sequence[int], seed: int, key: str, step: int) -> Tensor:
    """Standard normal noise float32 `shape` that depends on (seed, key, step) alone."""
    return torch.randn(tuple(shape), generator=keyed_generator(seed, key, step))


def batch_noise(
    shape: Sequence[int], seeds: Sequence[int], keys: Sequence[str], step: int
) -> Tensor:
    """`keyed_noise` of several rows: [len(keys), *shape]."""
    return torch.stack([keyed_noise(shape, s, k, step) for s, k in zip(seeds, keys, strict=True)])


def euler_path(
    prediction: Prediction, forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: list[int]
) -> Iterator[tuple[Tensor, int | None]]:
    """Denoise x from times[0] on by DDIM with eta 0 (Euler's method on the probability flow).

    forward(x_t [B, C, h, w], t int64 [B]) -> prediction, guidance included. Yields (x_t, t) at
    every timestep of `times` before `forward` sees it, and (x0, None) at the end.
    """
    for now, then in zip(times, [*times[1:], None], strict=True):
        yield x, now
        t = torch.full((len(x),), now, device=x.device)
        after = None if then is None else torch.full_like(t, then)
        x = prediction.step(x, forward(x, t), t, after)
    yield x, None


def classifier_free(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of two predictions (Ho & Salimans 2022); 1 is none."""
    return uncond + scale * (cond - uncond)


def guided(
    predict: Callable[[Tensor, Tensor, Condition], Tensor],
    condition: Condition,
    without: Condition,
    guidance_scale: float,
    guide: Callable[[Tensor, Tensor, float], Tensor] = classifier_free,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance as a `forward` of `euler_path`.

    condition, without: B rows with the prompt, and B rows without; they share a forward pass.
    guide: the family's own guidance, `DiffusionModel.guide`.
    """
    both = condition.cat([condition, without])

    def forward(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = predict(torch.cat([x, x]), t.repeat(2), both).chunk(2)
        return guide(cond, uncond, guidance_scale)

    return forward


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
    """Prompts -> latents [B, C, h, w] at the base's native size, guided against the empty prompt.

    rows_forward: replaces `model.predict`, such as by one with sliders; it gets 2 B rows.
    """
    condition = model.embed([*prompts, *([""] * len(prompts))])
    count = len(prompts)
    cond, uncond = condition.rows(slice(0, count)), condition.rows(slice(count, 2 * count))
    forward = guided(rows_forward or model.predict, cond, uncond, guidance_scale, guide=model.guide)
    x = batch_noise(model.latent_shape, [seed] * count, keys, 0).to(model.device)
    *_, (x0, _) = euler_path(model.prediction, forward, x, model.prediction.timesteps(steps))
    return x0
