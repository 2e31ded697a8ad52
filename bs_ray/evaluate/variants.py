"""Displacement in ways that no setting offers, so that a comparison can show what they are worth.

The `methods` of an evaluate job name them, as jobs/tiny/displacement.yaml does; docs/results.md has
its table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.config.evaluate import ComparedSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.methods import METHODS, Method
from bs_ray.editing.methods.displacement import WeightRule, displacement, flowedit
from bs_ray.editing.run import DenoiseRequest, EditGenerator
from bs_ray.models.base import Condition


def infedit(levels: Sequence[float]) -> list[float]:
    """Xu et al. 2023: every step jumps all the way to clean data."""
    return list(levels[:-1])


def dds(levels: Sequence[float]) -> list[float]:
    """Hertz et al. 2023: one learning rate, here such that all steps add up to FlowEdit's sum."""
    count = len(levels) - 1
    return [levels[0] / count] * count


WEIGHT_RULES: dict[str, WeightRule] = {"flowedit": flowedit, "infedit": infedit, "dds": dds}


def methods_of(compared: ComparedSettings) -> dict[str, Method]:
    """The edit methods, with displacement as `compared` wants it."""

    def variant(context: EditContext, settings: EditorSettings) -> EditGenerator:
        steps = displacement(context, settings, WEIGHT_RULES[compared.weights])
        return steps if compared.steer == 1 else steered(steps, context, compared.steer)

    return METHODS | {"displacement": variant}


def steered(steps: EditGenerator, context: EditContext, steer: float) -> EditGenerator:
    """Displacement with the split of FlowSlider (arXiv 2604.02088), at a third evaluation a step.

    What holds the photo, eps_b(x_tgt) - eps_b(x_src), stays; what moves it, eps_s(x_tgt) -
    eps_b(x_tgt), is scaled by `steer`.
    """
    edits = len(context.source_of)
    try:
        request = next(steps)
        while True:
            predicted = yield _with_base(request, edits)
            others, moved, held = predicted.split([len(request.x_t) - edits, edits, edits])
            request = steps.send(torch.cat([others, held + steer * (moved - held)]))
    except StopIteration as done:
        latents: Tensor = done.value
        return latents


def _with_base(request: DenoiseRequest, edits: int) -> DenoiseRequest:
    """The request, and its last `edits` rows once more without sliders."""
    first = len(request.x_t) - edits
    off = torch.zeros_like(request.lora_scales[first:])
    return DenoiseRequest(
        torch.cat([request.x_t, request.x_t[first:]]),
        torch.cat([request.t, request.t[first:]]),
        Condition.cat([request.condition, request.condition.rows(slice(first, None))]),
        torch.cat([request.lora_scales, off]),
        request.estimate,
        request.words,
    )
