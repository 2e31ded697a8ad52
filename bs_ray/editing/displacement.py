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
from bs_ray.models.diffusion import FlowMatching, Prediction, batch_noise

Predict = Callable[[Tensor, Tensor, Condition, Tensor], Tensor]
"""predict(x_t [B], t [B], condition rows [B], strengths [B, sliders]) -> prediction [B]."""


@torch.no_grad()
def displace(
    predict: Predict,
    prediction: Prediction,
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
    times = prediction.timesteps(steps, strength)
    gates = torch.cat([strengths.new_zeros(len(x0), strengths.shape[1]), strengths])
    rows = torch.cat([torch.arange(len(x0), device=source_of.device), source_of])
    told = condition.rows(rows)
    for step, (now, then) in enumerate(zip(times, [*times[1:], None], strict=True)):
        t = torch.full((len(rows),), now, device=x0.device)
        noise = batch_noise(x0.shape[1:], seeds, keys, step).to(x0.device)
        x_source = prediction.add_noise(x0, noise, t[: len(x0)])
        x_target = x_source[source_of] + _spread(prediction, now) * d
        x_t = torch.cat([x_source, x_target])
        moved = _reading(prediction, x_t, predict(x_t, t, told, gates), t)
        change = moved[len(x0) :] - moved[: len(x0)][source_of]
        d = d - flowedit_weight(prediction, now, then) * change
    return d


def _spread(prediction: Prediction, now: int) -> float:
    """How much of d shows at timestep `now`: a where x_t = a x0 + b n; all of it in a flow, whose
    d lives at x_t's own scale (FlowEdit's own form)."""
    if isinstance(prediction, FlowMatching):
        return 1.0
    return float(prediction.coefficients(torch.tensor([now]))[0])


def _reading(prediction: Prediction, x_t: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
    """What the branches are compared in: the velocity of a flow, the noise of a diffusion."""
    if isinstance(prediction, FlowMatching):
        return predicted
    return prediction.to_noise(x_t, predicted, t)


def flowedit_weight(prediction: Prediction, now: int, then: int | None) -> float:
    """FlowEdit's step: sigma_now - sigma_then in a flow; elsewhere lambda_now - lambda_then with
    lambda = b / a. Both are 0 at the clean end."""

    def level(t: int | None) -> float:
        if t is None:
            return 0.0
        at = torch.tensor([t])
        if isinstance(prediction, FlowMatching):
            return float(prediction.sigma(at))
        return float(prediction.noise_ratio(at))

    return level(now) - level(then)
