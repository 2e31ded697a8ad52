"""What is measured on a slider, as functions of arrays (docs/method.md, "Measuring").

Legend: F faces, K strengths (ascending), A attributes; readings float [F, K, A] in about [0, 1].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from bs_ray.evaluate.intervals import interval

Array = np.ndarray

READER_NOISE = 0.02
"""The attribute reader's own rms error on held-out faces: a smaller fall counts for none.

A face at the end of an attribute's range, such as a full frown, cannot move further, and its
readings vary by this much.
"""


@dataclass(frozen=True)
class SliderFigures:
    """One slider on one split; shares and readings have range 1."""

    faces: int
    effect: float
    """Mean move of the slider's own attribute from strength -1 to +1."""
    drift_other: float
    """Mean absolute move of the other attributes from -1 to +1."""
    monotone_share: float
    """Share of faces whose reading rises overall and never falls by more than READER_NOISE."""
    strictly_monotone_share: float
    """Share of faces whose reading rises with every strength, by however little."""
    spearman_share: float
    """Share of faces whose reading has a rank correlation above 0.8 with strength."""
    linearity: float
    """Mean Pearson correlation of reading and strength."""
    identity: float
    """Mean cosine similarity of the identity embedding at +-1 with strength 0."""
    perceptual: float
    """Mean perceptual distance of +-1 from strength 0."""
    clip_change: float
    """Mean CLIP score of the positive prompt at +1 less that at -1."""
    zero_exact: bool
    """Whether strength 0 returned every input bit for bit; true for text, which has no input."""
    intervals: dict[str, list[float] | None]
    """By the name of a mean or a share above, its 95% confidence interval over faces."""

    def as_dict(self) -> dict:
        return asdict(self)


def slider_figures(
    strengths: Array,
    readings: Array,
    own: int,
    identity: Array,
    perceptual: Array,
    clip: Array,
    zero_exact: bool,
) -> SliderFigures:
    """Summarise a sweep. identity, perceptual, clip: float [F, K]; own: index of the attribute."""
    low, high = int(np.argmax(strengths == -1)), int(np.argmax(strengths == 1))
    move = readings[:, high] - readings[:, low]
    curve = readings[:, :, own]
    by_face = {
        "effect": move[:, own],
        "drift_other": drift_of_others(move, own),
        "monotone_share": is_monotone(curve),
        "strictly_monotone_share": (np.diff(curve, axis=1) > 0).all(axis=1),
        "spearman_share": row_correlation(_ranks(curve), _ranks(strengths[None])) > 0.8,
        "linearity": row_correlation(curve, strengths[None]),
        "identity": identity[:, [low, high]].mean(1),
        "perceptual": perceptual[:, [low, high]].mean(1),
        "clip_change": clip[:, high] - clip[:, low],
    }
    return SliderFigures(
        faces=len(readings),
        zero_exact=zero_exact,
        intervals={name: interval(values) for name, values in by_face.items()},
        **{name: float(values.mean()) for name, values in by_face.items()},
    )


def drift_of_others(move: Array, own: int) -> Array:
    """Each face's mean absolute move of all attributes but `own`: [F], from move [F, A]."""
    return np.delete(np.abs(move), own, axis=1).mean(1)


def is_monotone(curve: Array) -> Array:
    """Which faces' readings [F, K] rise, and never fall by more than READER_NOISE: bool [F]."""
    steps = np.diff(curve, axis=1)
    return (steps > -READER_NOISE).all(axis=1) & (steps.sum(axis=1) > 0)


def row_correlation(a: Array, b: Array) -> Array:
    """Pearson correlation of each row of a with (each row of) b: [F]; 0 where a row is flat."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.maximum(scale, 1e-12), 0.0)


def _ranks(values: Array) -> Array:
    return values.argsort(-1).argsort(-1).astype(float)


def psnr_db(squared_error: Array) -> float:
    """Peak signal-to-noise ratio of all images together, from each one's mean squared error.

    The images are on [-1, 1], so the peak is 2.
    """
    return float(10 * np.log10(4 / np.mean(squared_error)))
