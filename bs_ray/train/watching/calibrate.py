"""Measure a finished slider: its effect, its drift and its usable range (docs/method.md,
"Measuring").

Strengths are LoRA scales here: only this measurement finds out what a unit of effect is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bs_ray.editing.judged import with_pictures
from bs_ray.sliders.bank import Predict
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.measured import Measured, calibration, swept
from bs_ray.train.watching.preview import Previewer, reach


def calibrate(previewer: Previewer, predict: Predict) -> dict[str, Calibration]:
    """Calibrations by slider name, from -2 S to 2 S; none for image pairs, which define no effect.

    The effect is measured on noisy latents, since CLIP saturates long before the attribute does.
    Where judges are at hand, generated pictures show where the picture or the person breaks. Warns
    about a slider without effect.
    """
    if not previewer.concepts:
        return {}
    strengths = swept(previewer.max_strength)
    seen = [_on_latents(previewer, m, predict, strengths) for m in range(len(previewer.names))]
    if previewer.judges.perceptual or previewer.judges.identity:
        pictures = previewer.pictures(predict, strengths)
        seen = [
            with_pictures(one, pictures[m], previewer.judges, previewer.detector)
            for m, one in enumerate(seen)
        ]
    names = zip(previewer.names, seen, strict=True)
    return {name: calibration(name, one, previewer.max_strength) for name, one in names}


def _on_latents(
    previewer: Previewer, slider: int, predict: Predict, strengths: Sequence[float]
) -> Measured:
    """Effect: the projection on eta d, the target's change at strength 1. Drift: the norm of the
    rest."""
    direction = previewer.held_out.of(slider).direction
    assert direction is not None
    moved = previewer.moved(slider, predict, strengths)
    pairs = [reach(one, direction) for one in moved]
    return Measured(
        f"share of the target's change at strength 1, on {len(direction)} noisy latents",
        strengths,
        torch.stack([share for share, _ in pairs], 1).cpu().numpy(),
        torch.stack([beside for _, beside in pairs], 1).cpu().numpy(),
    )
