"""What judges say of pictures of a slider at several strengths: where it breaks them.

Legend: N seeds, K strengths; pictures float32 [N, K, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from bs_ray.images.faces import FaceDetector
from bs_ray.images.pixels import pixels_of
from bs_ray.judges.judge import DistanceJudge, Subject, subject_of
from bs_ray.judges.load import Panel
from bs_ray.sliders.measured import Measured


def subjects(pictures: Tensor, still: int, detector: FaceDetector | None) -> list[Subject]:
    """What judges look at in the pictures, found on those of strength 0: [N].

    still: number of that strength; detector: None where no judge needs a face.
    """
    return [subject_of(photo, detector) for photo in pixels_of(pictures[:, still])]


def with_pictures(
    seen: Measured, pictures: Tensor, judges: Panel, detector: FaceDetector | None
) -> Measured:
    """Take drift, identity and their limits from pictures, each where it has a judge.

    The limits are half-way to the picture of another seed. Identity is 1 less the distance of the
    first identity judge; seeds whose picture shows it no face are left out.
    """
    found = subjects(pictures, list(seen.strengths).index(0.0), detector)
    rows = list(zip(found, pixels_of(pictures), [found[-1], *found[:-1]], strict=True))

    def distances_by(judge: DistanceJudge) -> tuple[np.ndarray, float]:
        """Distances [P, K] of the seeds of which the judge can tell, and the mean of those to
        another seed's picture."""
        own = np.array([judge.distances(subject, row) for subject, row, _ in rows])
        apart = [judge.distances(subject, [other.photo]) for subject, _, other in rows]
        return own[np.isfinite(own).all(1)], mean_of(apart)

    cards = []
    if judges.perceptual:
        drift, apart = distances_by(judges.perceptual[0])
        cards.append(judges.perceptual[0].card)
        seen = replace(seen, drift=drift, max_drift=apart / 2)
    if judges.identity:
        away, apart = distances_by(judges.identity[0])
        if len(away):
            cards.append(judges.identity[0].card)
            seen = replace(seen, identity=1 - away, min_identity=1 - apart / 2)
    return replace(seen, judges=tuple(f"{card.name} {card.version}" for card in cards))


def mean_of(found: Sequence[np.ndarray | float]) -> float:
    """The mean of what judges could tell; nan where they could tell nothing."""
    values = np.asarray(found, np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")
