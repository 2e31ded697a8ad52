"""What is measured on a slider, as functions of arrays (docs/method.md, "Measuring").

Legend: F faces, K strengths (ascending), A attributes; readings float [F, K, A] in about [0, 1].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

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
    steps = np.diff(curve, axis=1)
    return SliderFigures(
        faces=len(readings),
        effect=float(move[:, own].mean()),
        drift_other=drift_of_others(move, own),
        monotone_share=monotone_share(curve),
        strictly_monotone_share=float((steps > 0).all(axis=1).mean()),
        spearman_share=float(
            (row_correlation(_ranks(curve), _ranks(strengths[None])) > 0.8).mean()
        ),
        linearity=float(row_correlation(curve, strengths[None]).mean()),
        identity=float(identity[:, [low, high]].mean()),
        perceptual=float(perceptual[:, [low, high]].mean()),
        clip_change=float((clip[:, high] - clip[:, low]).mean()),
        zero_exact=zero_exact,
    )


def drift_of_others(move: Array, own: int) -> float:
    """Mean absolute move [F, A] of all attributes but `own`."""
    return float(np.delete(np.abs(move), own, axis=1).mean())


def monotone_share(curve: Array) -> float:
    """Share of faces whose reading [F, K] rises, and never falls by more than READER_NOISE."""
    steps = np.diff(curve, axis=1)
    return float(((steps > -READER_NOISE).all(axis=1) & (steps.sum(axis=1) > 0)).mean())


def row_correlation(a: Array, b: Array) -> Array:
    """Pearson correlation of each row of a with (each row of) b: [F]; 0 where a row is flat."""
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.where(scale > 0, (a * b).sum(-1) / np.maximum(scale, 1e-12), 0.0)


def _ranks(values: Array) -> Array:
    return values.argsort(-1).argsort(-1).astype(float)


def psnr_db(images: Array, others: Array) -> float:
    """Peak signal-to-noise ratio of images on [-1, 1] (peak 2), over all of them together."""
    return float(10 * np.log10(4 / np.mean((images - others) ** 2)))
