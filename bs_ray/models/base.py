"""What every family of bases offers: `DiffusionModel`, and the `Condition` that it embeds.

Legend: images float32 RGB [B, 3, H, W] in [-1, 1]; latents [B, C, h, w], scaled to about unit
variance; t int64 [B]; a Condition holds one row for each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bs_ray.models.diffusion import Prediction


class BaseNotFound(ValueError):
    """The base's folder is missing or incomplete; the message says what to do."""


@dataclass
class Condition:
    """What the denoiser gets beside x_t and t: encoded prompts, one row for each."""

    tokens: Tensor
    """[B, L, D]: the text's states."""
    pooled: Tensor | None = None
    """[B, P]: the pooled text embedding, in families that have one."""
    mask: Tensor | None = None
    """bool [B, L]: False for padding, which is at the end. None: there is no padding."""

    def rows(self, index: Tensor | slice) -> Condition:
        """Some rows, in the given order; a row may be repeated."""
        parts: Any = (part if part is None else part[index] for part in self._parts())
        return Condition(*parts)

    def repeat(self, count: int) -> Condition:
        """Each row `count` times in succession: 0, 0, .., 1, 1, .. ."""
        return self.rows(torch.arange(len(self.tokens)).repeat_interleave(count))

    def tile(self, count: int) -> Condition:
        """All rows, `count` times in succession: 0, 1, .. B - 1, 0, 1, .. ."""
        return self.rows(torch.arange(len(self.tokens)).repeat(count))

    @staticmethod
    def cat(parts: list[Condition]) -> Condition:
        """The rows of all parts. Where texts differ in length, shorter ones are padded and
        masked."""
        length = max(part.tokens.shape[1] for part in parts)
        if any(part.mask is not None or part.tokens.shape[1] < length for part in parts):
            parts = [part._padded(length) for part in parts]
        columns: Any = zip(*(part._parts() for part in parts), strict=True)
        joined: Any = (None if c[0] is None else torch.cat(c) for c in columns)
        return Condition(*joined)

    def texts(self) -> list[Tensor]:
        """Each row's own tokens [L_i, D], without padding."""
        if self.mask is None:
            return list(self.tokens)
        lengths = self.mask.sum(dim=1).cpu().tolist()
        return [row[:length] for row, length in zip(self.tokens, lengths, strict=True)]

    def _parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.tokens, self.pooled, self.mask

    def _padded(self, length: int) -> Condition:
        missing = length - self.tokens.shape[1]
        mask = self.mask
        if mask is None:
            mask = torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)
        tokens = F.pad(self.tokens, (0, 0, 0, missing))
        return Condition(tokens, self.pooled, F.pad(mask, (0, missing)))


def latent_shape_at(model: DiffusionModel, px: int) -> tuple[int, int, int]:
    """(C, h, w) of the latents of a square picture with sides of `px` pixels."""
    channels, height, width = model.latent_shape
    return channels, height * px // model.native_px, width * px // model.native_px


def ragged(states: Tensor, own: Tensor, dropped: int = 0) -> Condition:
    """States [B, L, D] without padding and without each row's first `dropped` tokens.

    own: [B, L], 0 where a token is padding, on whichever side. Rows that become shorter than
    others are masked.
    """
    places = [mask.nonzero()[dropped:, 0].to(states.device) for mask in own]
    rows = [Condition(row[place][None]) for row, place in zip(states, places, strict=True)]
    return Condition.cat(rows)


Framing = tuple[tuple[float, float], tuple[float, float]]
"""Where the eyes are in a base's square, as shares of its side: (x, y) of the one that is further
to the left, then of the other."""


class DiffusionModel(Protocol):
    """A frozen base: encode, decode, embed prompts, predict."""

    family: str
    """Name of the family in `models.FAMILIES`, such as "sdxl"."""
    part: str
    """The denoiser's folder in the diffusers layout, "unet" or "transformer". It begins the keys of
    a slider's file."""
    base_id: str
    """Content hash of the weights that a slider depends on (`models.identity`)."""
    former_ids: tuple[str, ...]
    """What earlier versions called it."""
    prediction: Prediction
    latent_shape: tuple[int, int, int]
    """(C, h, w) at the model's native size."""
    native_px: int
    """Side of the square image that the model was trained on, pixels."""
    multiple_px: int
    """Image sides must be multiples of this, pixels."""
    framing: Framing | None
    """Where faces stood in the pictures that the model was trained on, where its card says so."""

    @property
    def denoiser(self) -> nn.Module:
        """The network that sliders attach to."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def encode(self, images: Tensor) -> Tensor:
        """Images -> latents: the posterior's mean, scaled."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, float32, not clipped. Differentiable."""

    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> a Condition with one row for each."""

    def readers(self) -> list[tuple[Any, int]]:
        """Its tokenizers, each with how many tokens of a prompt the encoder behind it reads."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's prediction at x_t: float32, of the same shape. Differentiable."""

    def guide(self, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance as the family defines it; scale 1 is none."""

    def slider_targets(self) -> list[str]:
        """Names within `denoiser` of the linear and convolution layers that a slider adapts."""
