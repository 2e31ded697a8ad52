"""Displacement editing: move a real photo by what the slider changes (METHOD 4).

FlowEdit's idea (Kulikov et al. 2024) with a slider instead of a second prompt: no inversion, no
guidance, no caption. Source rows see the base, target rows the base plus sliders, both under the
same noise; several targets share one source row.

Legend: S photos, T edits; x0 [S, C, h, w]; d [T, C, h, w] in x0 units; source_of int64 [T].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bs_ray.models.base import Condition
from bs_ray.models.diffusion import EpsPrediction, batch_noise, trailing_timesteps

Predict = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""predict(x_t [B], t [B], condition rows [B], strengths [B, sliders]) -> prediction [B]."""


@torch.no_grad()
def displace(
    predict: Predict,
    prediction: EpsPrediction,
    x0: Tensor,
    condition: Condition,
    strengths: Tensor,
    source_of: Tensor,
    *,
    seeds: Sequence[int],
    keys: Sequence[str],
    steps: int,
    strength: float,
) -> Tensor:
    """The displacement d [T, C, h, w] of every edit; decode(x0 + d) is the edited photo.

    condition: one row per photo. strengths: [T, sliders]. seeds, keys: one per photo; they fix
    the noise, so a row does not depend on its companions. Costs S + T evaluations a step.
    """
    d = torch.zeros_like(x0[source_of])
    times = trailing_timesteps(steps, strength, prediction.num_train_timesteps)
    gates = torch.cat([strengths.new_zeros(len(x0), strengths.shape[1]), strengths])
    rows = torch.cat([torch.arange(len(x0), device=source_of.device), source_of])
    told = condition.rows(rows)
    for step, (now, then) in enumerate(zip(times, [*times[1:], None], strict=True)):
        t = torch.full((len(rows),), now, device=x0.device)
        noise = batch_noise(x0.shape[1:], seeds, keys, step).to(x0.device)
        a, _ = prediction.coefficients(t[:1])
        x_source = prediction.add_noise(x0, noise, t[: len(x0)])
        x_target = x_source[source_of] + a * d
        eps = predict(torch.cat([x_source, x_target]), t, told, gates)
        moved = eps[len(x0) :] - eps[: len(x0)][source_of]
        d = d - flowedit_weight(prediction, now, then) * moved
    return d


def flowedit_weight(prediction: EpsPrediction, now: int, then: int | None) -> float:
    """FlowEdit's step: lambda_now - lambda_then with lambda = b / a, and 0 at the clean end."""
    ratio = float(prediction.noise_ratio(torch.tensor([now])))
    return ratio - (0.0 if then is None else float(prediction.noise_ratio(torch.tensor([then]))))
