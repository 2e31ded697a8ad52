"""From measurements of a slider to its calibration (docs/method.md, "Measuring").

Legend: K strengths, ascending, 0 among them; P samples (pictures or noisy latents); [P, K].
Strengths are LoRA scales here: only such a measurement finds out what a unit of effect is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bs_ray.sliders.calibration import Calibration

_PER_SIDE = 4  # strengths measured on either side of 0, up to twice the trained range
_MIN_GROWTH = 0.1
"""The effect counts as growing where its slope is at least this share of the steepest slope on that
side."""
_NOISE = 2.0
"""An effect within this many standard errors of 0 counts as none."""


@dataclass(frozen=True)
class Measured:
    """What was measured on one slider."""

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
    judges: tuple[str, ...] = ()
    """Those of drift and identity, where pictures were judged: name and version."""


def swept(max_strength: float) -> list[float]:
    """The strengths at which a slider is measured, ascending."""
    span = 2 * max_strength
    return [span * i / _PER_SIDE for i in range(-_PER_SIDE, _PER_SIDE + 1)]


def calibration(name: str, seen: Measured, max_strength: float) -> Calibration:
    """The calibration that follows from the measurements. max_strength: S, the end of the trained
    range.

    Warns about a slider without effect, which gets unit 0 and the range 0 to 0.
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
        judges=list(seen.judges),
        unit=unit,
        low=low,
        high=high,
    )


def monotone(strengths: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """The effect [K] made monotone: away from 0 it never falls back."""
    zero = int(np.flatnonzero(strengths == 0)[0])
    above = np.maximum.accumulate(np.maximum(effect[zero:], 0))
    below = np.minimum.accumulate(np.minimum(effect[zero::-1], 0))[::-1]
    return np.concatenate([below[:-1], above])


def unit_strength(strengths: np.ndarray, rising: np.ndarray, max_strength: float) -> float:
    """The strength with half the effect of the end of the trained range, mean of both sides."""
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
    """The largest strength up to which the picture stays whole and the effect grows."""
    side = np.flatnonzero(strengths >= 0)
    x, y = strengths[side], rising[side]
    slopes = np.diff(y) / np.diff(x)
    min_slope, last = max(_MIN_GROWTH * float(slopes.max()), 1e-9), 0.0
    for k, slope in enumerate(slopes, start=1):
        if slope < min_slope or not whole[side[k]]:
            break
        last = float(x[k])
    return last
