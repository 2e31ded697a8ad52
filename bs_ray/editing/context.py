"""What every edit method is given: photos as latents, and the edits that are wanted of them.

Legend: S photos, T edits, N slots of the bank; latents [., C, h, w]; source_of int64 [T].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bs_ray.editing.run import DenoiseRequest, denoise
from bs_ray.editing.words import Words
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import Prediction, batch_noise
from bs_ray.sliders.bank import Predict


@dataclass(frozen=True)
class EditContext:
    """One run of a method."""

    predict: Predict
    """For methods that differentiate through the denoiser; other methods yield requests."""
    prediction: Prediction
    x0: Tensor
    """The photos' latents [S, C, h, w]."""
    condition: Condition
    """The prompt that every branch is conditioned on, S rows."""
    empty: Condition
    """The empty prompt, S rows, for methods that use guidance."""
    lora_scales: Tensor
    """Of the edits, [T, N], and a column more for each prompt of `words`."""
    source_of: Tensor
    """Which photo each edit is of."""
    seeds: Sequence[int]
    """One for each photo. Seed and key fix the photo's noise, whatever else is in the batch."""
    keys: Sequence[str]
    words: Words | None = None
    """The prompts of the edits' sliders of words."""

    def noise(self, step: int) -> Tensor:
        """Standard normal [S, C, h, w]: each photo has its own noise at every step."""
        return batch_noise(self.x0.shape[1:], self.seeds, self.keys, step).to(self.x0.device)

    def at(self, t: int, rows: int) -> Tensor:
        """int64 [rows], all t."""
        return torch.full((rows,), t, device=self.x0.device)

    def noised(self, step: int, t: int) -> Tensor:
        """The photos under step `step`'s noise at timestep t: x_t [S, C, h, w]."""
        return self.prediction.add_noise(self.x0, self.noise(step), self.at(t, len(self.x0)))

    def base(self, x_t: Tensor, t: int, condition: Condition | None = None) -> DenoiseRequest:
        """Ask for the base's prediction at rows [S]."""
        off = self.lora_scales.new_zeros(len(x_t), self.lora_scales.shape[1])
        condition = condition or self.condition
        return DenoiseRequest(x_t, self.at(t, len(x_t)), condition, off, words=self.words)

    def edited(self, x_t: Tensor, t: int, estimate: Tensor | None = None) -> DenoiseRequest:
        """Ask for the prediction with the sliders on, at rows [T]."""
        condition = self.condition.rows(self.source_of)
        at = self.at(t, len(x_t))
        return DenoiseRequest(x_t, at, condition, self.lora_scales, estimate, self.words)

    def predict_now(self, request: DenoiseRequest) -> Tensor:
        """The prediction at once, for methods that differentiate through it."""
        return denoise([request], self.predict)[0]
