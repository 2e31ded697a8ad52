"""Displacement editing: move a real photo by what the slider changes (METHOD 4).

FlowEdit's idea (Kulikov et al. 2024) with a slider instead of a second prompt: no inversion, no
guidance, no caption. Source rows see the base, target rows the base plus sliders, both under the
same noise; several targets share one source row.

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
"""Steps over which the soft mask is gathered; the first costs nothing, for there x_tgt = x_src."""


def displacement(work: EditContext, settings: EditorSettings) -> EditGenerator:
    """Edited latents x0 + d, [T, C, h, w].

    Costs S + T evaluations a step; S + 2 T with `steer`; T more in two of them with `soft_mask`.
    """
    prediction, source_of = work.prediction, work.source_of
    times = prediction.timesteps(settings.steps, settings.strength)
    weights = WEIGHT_RULES[settings.weights]([*(_level(prediction, t) for t in times), 0.0])
    d, meant = torch.zeros_like(work.x0[source_of]), torch.zeros_like(work.x0[source_of])
    for step, (now, weight) in enumerate(zip(times, weights, strict=True)):
        x_source = prediction.add_noise(work.x0, work.noise(step), work.at(now, len(work.x0)))
        x_target = x_source[source_of] + _spread(prediction, now) * d
        probes = settings.soft_mask > 0 and step < _MASK_STEPS
        branches = _branches(
            work, x_source, x_target, split=settings.steer != 1, probes=probes and step > 0
        )
        query = _query(work, now, branches, estimate=work.x0[source_of] + d)
        seen = _readings(work, query, branches, (yield query))
        still, moved = seen["still"][source_of], seen["moved"]
        change = moved - still
        if "held" in seen:
            # FlowSlider's split: what holds the photo, and what moves it, the latter scaled.
            change = (seen["held"] - still) + settings.steer * (moved - seen["held"])
        d = d - weight * change
        if probes:
            meant = meant + seen.get("probe", moved) - still
        if settings.soft_mask:
            d = soft_mask(d, magnitude_mask(meant), settings.soft_mask)
    return work.x0[source_of] + d


Branch = tuple[Tensor, Tensor, Tensor]
"""Rows: x_t, which photo each is of, and strengths."""


def _branches(
    work: EditContext, x_source: Tensor, x_target: Tensor, *, split: bool, probes: bool
) -> dict[str, Branch]:
    """What is compared, [S] for "still" and [T] for the rest.

    still: base at x_source. moved: sliders at x_target. held: base at x_target (with `split`).
    probe: sliders at x_source (with `probes`): it differs from `still` by what they mean alone.
    """
    source_of, strengths = work.source_of, work.strengths
    everyone = torch.arange(len(x_source), device=source_of.device)
    off = torch.zeros_like(strengths)
    branches = {"still": (x_source, everyone, strengths.new_zeros(len(x_source), off.shape[1]))}
    if split:
        branches["held"] = (x_target, source_of, off)
    if probes:
        branches["probe"] = (x_source[source_of], source_of, strengths)
    branches["moved"] = (x_target, source_of, strengths)
    return branches


def _query(
    work: EditContext, now: int, branches: dict[str, Branch], estimate: Tensor
) -> DenoiseRequest:
    """All branches in one."""
    x_t, rows, gates = (torch.cat(column) for column in zip(*branches.values(), strict=True))
    return DenoiseRequest(x_t, work.at(now, len(rows)), work.condition.rows(rows), gates, estimate)


def _readings(
    work: EditContext, query: DenoiseRequest, branches: dict[str, Branch], read: Tensor
) -> dict[str, Tensor]:
    """The prediction by branch, as what branches are compared in."""
    if not isinstance(work.prediction, FlowMatching):  # a flow is compared in its velocity
        read = work.prediction.to_noise(query.x_t, read, query.t)
    parts = read.split([len(branch[0]) for branch in branches.values()])
    return dict(zip(branches, parts, strict=True))


def _spread(prediction: Prediction, now: int) -> float:
    """How much of d shows at timestep `now`: a where x_t = a x0 + b n; all of it in a flow, whose
    d lives at x_t's own scale (FlowEdit's own form)."""
    if isinstance(prediction, FlowMatching):
        return 1.0
    return float(prediction.coefficients(torch.tensor([now]))[0])


def _level(prediction: Prediction, now: int) -> float:
    """The noise level that weights are made of: sigma in a flow, elsewhere lambda = b / a."""
    at = torch.tensor([now])
    if isinstance(prediction, FlowMatching):
        return float(prediction.sigma(at))
    return float(prediction.noise_ratio(at))


# --- weight rules: noise levels of the path, 0 at its end, -> w of every step -----------------


def flowedit(levels: Sequence[float]) -> list[float]:
    """Kulikov et al. 2024: every step counts for the noise that it takes away."""
    return [now - then for now, then in pairwise(levels)]


def infedit(levels: Sequence[float]) -> list[float]:
    """Xu et al. 2023: every step jumps all the way to clean data."""
    return list(levels[:-1])


def dds(levels: Sequence[float]) -> list[float]:
    """Hertz et al. 2023: one learning rate, here such that all steps add up to FlowEdit's sum."""
    count = len(levels) - 1
    return [levels[0] / count] * count


WEIGHT_RULES: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "flowedit": flowedit,
    "infedit": infedit,
    "dds": dds,
}
