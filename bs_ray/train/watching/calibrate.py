"""Measure a finished slider over strengths: its effect, its drift, its usable range (METHOD 6).

Legend: K strengths, ascending, 0 among them; P looks (pictures or noisy latents); [P, K].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bs_ray.sliders.calibration import Calibration
from bs_ray.train.watching.preview import Predict, Previewer, reach

_PER_SIDE = 4  # strengths measured on either side of 0, up to twice the trained range
_MIN_GROWTH = 0.1
"""The effect still grows where its slope is at least this share of the steepest on that side."""
_NOISE = 2.0
"""An effect within this many standard errors of 0 is none."""


@dataclass(frozen=True)
class Measured:
    """What was seen of one slider."""

    judge: str
    """What the effect was measured with, and in what unit."""
    strengths: Sequence[float]
    effect: np.ndarray
    """[P, K]: change of the attribute against strength 0."""
    drift: np.ndarray
    """[P, K]: distance from strength 0."""
    identity: np.ndarray | None = None
    """[P, K]: similarity with strength 0."""
    max_drift: float = float("inf")
    """Mean drift beyond which the picture has become another one."""
    min_identity: float = -1.0
    """Mean similarity below which the person has become another one."""


def calibrate(previewer: Previewer, predict: Predict) -> dict[str, Calibration]:
    """Calibrations by slider name; none for image pairs, where nothing says what the effect is.

    Measured from -2 S to 2 S; warns about a slider without effect. The effect is read off noisy
    latents, for CLIP saturates long before the attribute does; where judges are at hand, generated
    pictures say where the picture or the person breaks.
    """
    if not previewer.concepts:
        return {}
    span = 2 * previewer.max_strength
    strengths = [span * i / _PER_SIDE for i in range(-_PER_SIDE, _PER_SIDE + 1)]
    seen = [_on_latents(previewer, m, predict, strengths) for m in range(len(previewer.names))]
    if previewer.judges.perceptual:
        pictures = previewer.draw(predict, strengths)
        seen = [_with_pictures(previewer, one, pictures[m]) for m, one in enumerate(seen)]
    names = zip(previewer.names, seen, strict=True)
    return {name: calibration(name, one, previewer.max_strength) for name, one in names}


def _on_latents(
    previewer: Previewer, slider: int, predict: Predict, strengths: Sequence[float]
) -> Measured:
    """The projection on what strength 1 was told, eta d, and the norm of what lies beside it."""
    direction = previewer.held_out.of(slider).direction
    assert direction is not None
    moved = previewer.moved(slider, predict, strengths)
    pairs = [reach(one, direction) for one in moved]
    return Measured(
        f"share of the change told for strength 1, on {len(direction)} noisy latents",
        strengths,
        torch.stack([share for share, _ in pairs], 1).cpu().numpy(),
        torch.stack([beside for _, beside in pairs], 1).cpu().numpy(),
    )


@torch.no_grad()
def _with_pictures(previewer: Previewer, seen: Measured, pictures: Tensor) -> Measured:
    """pictures [N, K, 3, H, W] in [-1, 1]: drift and identity are theirs then, and their limits.

    Half-way to another seed's picture is too far.
    """
    judges, strengths = previewer.judges, seen.strengths
    assert judges.perceptual
    n, k = pictures.shape[:2]
    still = pictures[:, strengths.index(0.0)]
    flat, twin, others = pictures.flatten(0, 1), still.repeat_interleave(k, 0), still.roll(1, 0)
    drift = judges.perceptual.distance(flat, twin).view(n, k).cpu().numpy()
    most = float(judges.perceptual.distance(still, others).mean()) / 2
    seen = replace(seen, drift=drift, max_drift=most)
    if judges.identity:
        identity = judges.identity.similarity(flat, twin).view(n, k).cpu().numpy()
        least = (1 + float(judges.identity.similarity(still, others).mean())) / 2
        seen = replace(seen, identity=identity, min_identity=least)
    return seen


def calibration(name: str, seen: Measured, max_strength: float) -> Calibration:
    """What the measurements say; max_strength is the end S of the trained range.

    A slider without effect warns, and gets unit 0 and the range 0 to 0.
    """
    strengths = np.asarray(seen.strengths, float)
    effect, drift = seen.effect.mean(0), seen.drift.mean(0)
    identity = None if seen.identity is None else seen.identity.mean(0)
    whole = drift <= seen.max_drift
    if identity is not None:
        whole &= identity >= seen.min_identity
    rising = monotone(strengths, effect)
    low = high = unit = 0.0
    if _dead(seen, max_strength):
        warnings.warn(
            f"slider {name}: got no effect between strengths {-max_strength:g} and "
            f"{max_strength:g} ({seen.judge}); expected one that grows. Train longer, raise lr or "
            "losses.eta, or use prompts that differ more",
            stacklevel=2,
        )
    else:
        high = _usable(strengths, rising, whole)
        low = -_usable(-strengths[::-1], -rising[::-1], whole[::-1])
        unit = unit_strength(strengths, rising, max_strength)
    return Calibration(
        judge=seen.judge,
        strengths=strengths.tolist(),
        effect=rising.tolist(),
        drift=drift.tolist(),
        identity=[] if identity is None else identity.tolist(),
        unit=unit,
        low=low,
        high=high,
    )


def monotone(strengths: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """The effect [K] as far as it rises: outward from 0 it never falls back."""
    zero = int(np.flatnonzero(strengths == 0)[0])
    above = np.maximum.accumulate(np.maximum(effect[zero:], 0))
    below = np.minimum.accumulate(np.minimum(effect[zero::-1], 0))[::-1]
    return np.concatenate([below[:-1], above])


def unit_strength(strengths: np.ndarray, rising: np.ndarray, max_strength: float) -> float:
    """Where the effect is half of what it is at the ends of the trained range, both sides' mean."""
    found = []
    for sign in (1, -1):
        x, y = (strengths, rising) if sign > 0 else (-strengths[::-1], -rising[::-1])
        x, y = x[x >= 0], y[x >= 0]
        half = np.interp(max_strength, x, y) / 2
        if half > 0:
            at = int(np.searchsorted(y, half))
            share = (half - y[at - 1]) / (y[at] - y[at - 1])
            found.append(float(x[at - 1] + share * (x[at] - x[at - 1])))
    return sum(found) / len(found) if found else 0.0


def _dead(seen: Measured, max_strength: float) -> bool:
    """Whether the effect between the ends of the trained range is within its own noise."""
    x = list(seen.strengths)
    between = np.array(
        [np.interp(max_strength, x, e) - np.interp(-max_strength, x, e) for e in seen.effect]
    )
    error = between.std(ddof=1) / len(between) ** 0.5 if len(between) > 1 else 0.0
    return bool(between.mean() <= max(_NOISE * error, 1e-6))


def _usable(strengths: np.ndarray, rising: np.ndarray, whole: np.ndarray) -> float:
    """The largest strength up to which the picture is whole and the effect grows."""
    side = np.flatnonzero(strengths >= 0)
    x, y = strengths[side], rising[side]
    slopes = np.diff(y) / np.diff(x)
    least, last = max(_MIN_GROWTH * float(slopes.max()), 1e-9), 0.0
    for k, slope in enumerate(slopes, start=1):
        if slope < least or not whole[side[k]]:
            break
        last = float(x[k])
    return last
