"""Displacement editing: move a real photo by what the slider changes (docs/method.md, "Editing").

FlowEdit's idea (Kulikov et al. 2024) with a slider in place of a second prompt: no inversion, no
guidance, no caption. Source rows see the base and target rows see the base with sliders, both under
the same noise; several targets share one source row.

Legend: S photos, T edits; x0 [S, C, h, w]; d [T, C, h, w] in x0 units (in a flow: at x_t's scale).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bs_ray.config import EditorSettings
from bs_ray.editing.context import EditContext
from bs_ray.editing.run import DenoiseRequest, EditGenerator
from bs_ray.models.diffusion import FlowMatching, Prediction
from bs_ray.models.masks import magnitude_mask, soft_mask

_MASK_STEPS = 3
"""Steps over which the soft mask is gathered. The first costs nothing, since x_tgt = x_src
there."""

WeightRule = Callable[[Sequence[float]], list[float]]
"""Noise levels of the path, with 0 at its end -> the weight of every step."""


def flowedit(levels: Sequence[float]) -> list[float]:
    """Kulikov et al. 2024: a step weighs as much as the noise that it removes."""
    return [now - then for now, then in pairwise(levels)]


def displacement(
    context: EditContext, settings: EditorSettings, weigh: WeightRule = flowedit
) -> EditGenerator:
    """Edited latents x0 + d, [T, C, h, w].

    Costs S + T evaluations a step, and T more in two of them with `soft_mask`; sliders of words
    cost more (`editing/words.py`). A request's last T rows are those whose sliders move the photo.
    """
    prediction, source_of = context.prediction, context.source_of
    times = prediction.timesteps(settings.steps, settings.start)
    weights = weigh([*(_level(prediction, t) for t in times), 0.0])
    d, wanted = torch.zeros_like(context.x0[source_of]), torch.zeros_like(context.x0[source_of])
    for step, (now, weight) in enumerate(zip(times, weights, strict=True)):
        x_source = context.noised(step, now)
        x_target = x_source[source_of] + _spread(prediction, now) * d
        probes = settings.soft_mask > 0 and step < _MASK_STEPS
        branches = _branches(context, x_source, x_target, probes=probes and step > 0)
        estimate = context.x0[source_of] + d
        request = _request(context, now, branches, estimate, apart=step > 0)
        seen = _readings(context, request, branches, (yield request))
        still, moved = seen["still"][source_of], seen["moved"]
        d = d - weight * (moved - still)
        if probes:
            wanted = wanted + seen.get("probe", moved) - still
        if settings.soft_mask:
            d = soft_mask(d, magnitude_mask(wanted), settings.soft_mask)
    return context.x0[source_of] + d


Branch = tuple[Tensor, Tensor, Tensor]
"""Rows of one kind: x_t, which photo each row is of, and LoRA scales."""


def _branches(
    context: EditContext, x_source: Tensor, x_target: Tensor, *, probes: bool
) -> dict[str, Branch]:
    """The rows that are compared, [S] for "still" and [T] for the rest.

    still: the base at x_source. moved: the sliders at x_target. probe: the sliders at x_source
    (with `probes`), where nothing but the sliders differs from `still`.
    """
    source_of, scales = context.source_of, context.lora_scales
    everyone = torch.arange(len(x_source), device=source_of.device)
    branches = {"still": (x_source, everyone, scales.new_zeros(len(x_source), scales.shape[1]))}
    if probes:
        branches["probe"] = (x_source[source_of], source_of, scales)
    branches["moved"] = (x_target, source_of, scales)
    return branches


def _request(
    context: EditContext, now: int, branches: dict[str, Branch], estimate: Tensor, *, apart: bool
) -> DenoiseRequest:
    """One request for the rows of all branches. apart: whether x_tgt is no longer x_src."""
    x_t, rows, scales = (torch.cat(column) for column in zip(*branches.values(), strict=True))
    t, condition = context.at(now, len(rows)), context.condition.rows(rows)
    same = rows.clone()  # the first rows are x_src, in order
    if apart:
        moved = len(branches["moved"][0])
        same[-moved:] = torch.arange(len(rows) - moved, len(rows), device=rows.device)
    return DenoiseRequest(x_t, t, condition, scales, estimate, context.words, same)


def _readings(
    context: EditContext, request: DenoiseRequest, branches: dict[str, Branch], predicted: Tensor
) -> dict[str, Tensor]:
    """Each branch's prediction in the quantity that is compared: velocity in a flow, else noise."""
    if not isinstance(context.prediction, FlowMatching):
        predicted = context.prediction.to_noise(request.x_t, predicted, request.t)
    parts = predicted.split([len(branch[0]) for branch in branches.values()])
    return dict(zip(branches, parts, strict=True))


def _spread(prediction: Prediction, now: int) -> float:
    """How much of d shows at timestep `now`: a, where x_t = a x0 + b n.

    In a flow d lives at x_t's own scale, as in FlowEdit, so all of it shows.
    """
    if isinstance(prediction, FlowMatching):
        return 1.0
    return float(prediction.coefficients(torch.tensor([now]))[0])


def _level(prediction: Prediction, now: int) -> float:
    """The noise level that the weights are computed from: sigma in a flow, else lambda = b / a."""
    at = torch.tensor([now])
    if isinstance(prediction, FlowMatching):
        return float(prediction.sigma(at))
    return float(prediction.noise_ratio(at))
