"""What every diffusion family offers the rest of bs_ray.

Legend: images float32 RGB [B, 3, H, W] in [-1, 1]; latents [B, C, h, w], scaled to about unit
variance; t int64 [B]; a Condition holds one row per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bs_ray.models.diffusion import EpsPrediction


class BaseNotFound(ValueError):
    """The base's folder is missing or incomplete; the message says what to do."""


@dataclass
class Condition:
    """What the denoiser is told besides x_t and t, one row per prompt."""

    tokens: Tensor  # [B, L, D] text states for cross-attention
    pooled: Tensor  # [B, P] pooled text embedding

    def rows(self, index: Tensor | slice) -> Condition:
        """Some rows, in the given order (repeats allowed)."""
        return Condition(self.tokens[index], self.pooled[index])

    def repeat(self, count: int) -> Condition:
        """Row i becomes rows i * count .. i * count + count - 1."""
        return Condition(
            self.tokens.repeat_interleave(count, 0), self.pooled.repeat_interleave(count, 0)
        )

    @staticmethod
    def cat(parts: list[Condition]) -> Condition:
        """One after the other."""
        return Condition(torch.cat([p.tokens for p in parts]), torch.cat([p.pooled for p in parts]))


class DiffusionModel(Protocol):
    """A frozen base: encode, decode, embed prompts, predict."""

    base_id: str
    """Content hash of the weights that a slider depends on."""
    prediction: EpsPrediction
    latent_shape: tuple[int, int, int]
    """(C, h, w) at the model's native size."""
    native_px: int
    """Side of the square image that the model was trained on, pixels."""
    multiple_px: int
    """Image sides must be multiples of this, pixels."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that sliders attach to."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def encode(self, images: Tensor) -> Tensor:
        """Images -> latents (the posterior's mean, scaled)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, float32, not clipped. Differentiable."""

    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> one Condition row each."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's prediction at x_t, float32, same shape. Differentiable."""

    def slider_targets(self) -> list[str]:
        """Names within `denoiser` of the linear and convolution layers that a slider adapts."""
