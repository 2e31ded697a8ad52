"""The live teacher: the frozen base's predictions for the three prompts, in one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from bs_ray.config import Prompts
from bs_ray.models.base import DiffusionModel

_LEAST_GAP = 2e-3
"""Relative difference below which e(c+) and e(c-) are the same but for rounding."""


class PromptsDoNotSeparate(ValueError):
    """The base predicts the same for c+ and c-: there is nothing for a slider to learn."""


class LiveTeacher:
    """e(x_t, c_n), e(x_t, c+) and e(x_t, c-) of the frozen base, computed when asked."""

    def __init__(self, model: DiffusionModel, prompts: Prompts):
        self.model, self.prompts = model, prompts
        neutral = prompts.neutral if prompts.neutral is not None else prompts.target
        self._conditions = model.embed([neutral, prompts.positive, prompts.negative])

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(neutral, positive, negative), each float32 like x_t [B, C, h, w].

        A slider bank that is attached stays out of it as long as no strengths are set.
        """
        rows = self._conditions.repeat(len(x_t))
        predicted = self.model.predict(x_t.repeat(3, 1, 1, 1), t.repeat(3), rows)
        neutral, positive, negative = predicted.chunk(3)
        return neutral, positive, negative

    def check_gap(self, x_t: Tensor, t: Tensor) -> float:
        """The relative difference of e(c+) and e(c-). Raises PromptsDoNotSeparate near 0."""
        _, positive, negative = self(x_t, t)
        gap = float((positive - negative).norm() / positive.norm())
        if gap < _LEAST_GAP:
            cosine = float(torch.cosine_similarity(positive.flatten(), negative.flatten(), dim=0))
            raise PromptsDoNotSeparate(
                f"prompts: got {self.prompts.positive!r} and {self.prompts.negative!r}, for which "
                f"the base predicts the same (relative difference {gap:.1e}, cosine {cosine:.6f}); "
                f"expected a difference of at least {_LEAST_GAP:g}. Use words that the base knows "
                "and that say opposite things"
            )
        return gap
