"""What every edit method gets: photos as latents, and the edits wanted of them.

Legend: S photos, T edits, N sliders; latents [., C, h, w]; source_of int64 [T].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bs_ray.editing.run import DenoiseRequest, Predict
from bs_ray.models.base import Condition
from bs_ray.models.diffusion import Prediction, batch_noise


@dataclass(frozen=True)
class EditContext:
    """One run of a method."""

    predict: Predict
    """For methods that differentiate through the denoiser; others yield queries."""
    prediction: Prediction
    x0: Tensor
    """The photos' latents [S, C, h, w]."""
    condition: Condition
    """What both branches are told, S rows."""
    empty: Condition
    """The empty prompt, S rows, for methods that use guidance."""
    strengths: Tensor
    """[T, N]."""
    source_of: Tensor
    """Which photo each edit is of."""
    seeds: Sequence[int]
    """One for each photo; with its key it fixes the noise, whatever shares the batch."""
    keys: Sequence[str]

    def noise(self, step: int) -> Tensor:
        """Standard normal [S, C, h, w], the photo's own for every step."""
        return batch_noise(self.x0.shape[1:], self.seeds, self.keys, step).to(self.x0.device)

    def at(self, t: int, rows: int) -> Tensor:
        """int64 [rows], all t."""
        return torch.full((rows,), t, device=self.x0.device)

    def base(self, x_t: Tensor, t: int, condition: Condition | None = None) -> DenoiseRequest:
        """The base at rows [S]."""
        off = self.strengths.new_zeros(len(x_t), self.strengths.shape[1])
        return DenoiseRequest(x_t, self.at(t, len(x_t)), condition or self.condition, off)

    def edited(self, x_t: Tensor, t: int, estimate: Tensor | None = None) -> DenoiseRequest:
        """The base with the sliders on, at rows [T]."""
        cond = self.condition.rows(self.source_of)
        return DenoiseRequest(x_t, self.at(t, len(x_t)), cond, self.strengths, estimate)

    def answer(self, query: DenoiseRequest) -> Tensor:
        """The prediction at once, for methods that differentiate through it."""
        return self.predict(query.x_t, query.t, query.condition, query.strengths)
