"""What is measured on a sweep, as functions of arrays (docs/method.md, "Measuring").

Legend: F faces, K strengths (ascending), A attributes.
"""

from __future__ import annotations

import numpy as np

from bs_ray.evaluate.intervals import interval

Array = np.ndarray

NOISE = 0.02
"""The tiny world's attribute reader's own rms error on held-out faces, whose range is 1: a smaller
fall counts for none.

A face at the end of an attribute's range, such as a full frown, cannot move further, and its
readings vary by this much.
"""
NOISE_OF_SPREAD = 0.08
"""The same for a reading without a range, as a share of its standard deviation among the photos:
four of those stand for a range."""


def shape_by_face(strengths: Array, curve: Array, noise: float) -> dict[str, Array]:
    """How each face's reading [F, K] follows the strengths, by name of the figure: [F] each.

    monotone_share: it rises overall and never falls by more than `noise`; strictly: it rises with
    every strength, by however little; spearman_share: its rank correlation with strength is above
    0.8; linearity: its Pearson correlation.
    """
    return {
        "monotone_share": is_monotone(curve, noise),
        "strictly_monotone_share": np.all(np.diff(curve, axis=1) > 0, axis=1),
        "spearman_share": row_correlation(_ranks(curve), _ranks(strengths[None])) > 0.8,
        "linearity": row_correlation(curve, strengths[None]),
    }


def is_monotone(curve: Array, noise: float = NOISE) -> Array:
    """Which faces' readings [F, K] rise, and never fall by more than `noise`: bool [F]."""
    steps = np.diff(curve, axis=1)
    return (steps > -noise).all(axis=1) & (steps.sum(axis=1) > 0)


def smoothness_by_face(strengths: Array, following: Array, after: Array) -> dict[str, Array]:
    """How even a sweep looks, after Kontinuous Kontext (arXiv 2510.08532): [F] each, 0 is best.

    following, after: perceptual distances [F, K] of each picture from the next one and from the one
    behind that; nan where there is none. step_spread: standard deviation of the distances between
    neighbours, whose sum is made 1 (each for an equal step of strength). triangle_deficit: by how
    much the way over the neighbour is longer than the direct one, as a share of that; mean over the
    triples. nan for a face that does not move.
    """
    rates = following[:, :-1] / np.diff(strengths)
    total = rates.sum(1, keepdims=True)
    direct = after[:, :-2]
    detour = following[:, :-2] + following[:, 1:-1] - direct
    moves = (total[:, 0] > 0) & (direct > 0).all(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "step_spread": (rates / total).std(1),
            "triangle_deficit": (detour / direct).mean(1),
        }
    return {name: np.where(moves, values, np.nan) for name, values in found.items()}


def drift_by_face(move: Array) -> Array:
    """Each face's mean absolute move of the other attributes: [F], from move [F, A]; nan for A =
    0."""
    return np.abs(move).mean(1) if move.shape[1] else np.full(len(move), np.nan)


def row_correlation(a: Array, b: Array) -> Array:
    """Pearson correlation of each row of a with (each row of) b: [F]; 0 where a row is flat."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.maximum(scale, 1e-12), 0.0)


def _ranks(values: Array) -> Array:
    return values.argsort(-1).argsort(-1).astype(float)


def psnr_figures(squared_error: Array) -> dict[str, float | list[float] | None]:
    """Peak signal-to-noise ratio of all images together, from each one's mean squared error [F].

    vae_psnr_db, and vae_psnr_interval, which follows from that of the mean error. The images are on
    [-1, 1], so the peak is 2.
    """
    ends = interval(squared_error)

    def psnr(error: float) -> float:
        return float(10 * np.log10(4 / error)) if error > 0 else float("inf")

    return {
        "vae_psnr_db": psnr(float(np.mean(squared_error))),
        "vae_psnr_interval": ends and [psnr(ends[1]), psnr(ends[0])],
    }
