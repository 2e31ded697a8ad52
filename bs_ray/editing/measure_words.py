"""Measure a slider of words as a training run measures its own (docs/method.md, "Measuring").

Its effect needs no measurement: on noisy latents it makes exactly `strength` times the change that
training aims at for strength 1, so strength 1 is one unit of effect. What is measured is where the
picture or the person breaks.
"""

from __future__ import annotations

import numpy as np

from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Editor
from bs_ray.editing.generate import generate
from bs_ray.editing.judged import with_pictures
from bs_ray.images.faces import CenterFace
from bs_ray.judges.load import Panel
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.measured import Measured, calibration, swept
from bs_ray.sliders.slider import Slider

_SEEDS = 3
_STEPS, _GUIDANCE = 10, 4.0
_MAX_STRENGTH = 2.0
"""The end of the range that a trained slider would have."""


def measured(slider: Slider, model: DiffusionModel, judges: Panel) -> Slider:
    """The slider with its calibration in its card; without one where no judge of pictures is at
    hand.

    Costs about 800 predictions. Raises PromptsDoNotSeparate.
    """
    editor = Editor(model, [slider], EditorSettings(calibrated=False))
    if not (judges.perceptual or judges.identity):
        editor.close()
        return slider
    strengths = swept(_MAX_STRENGTH)
    pictures = generate(
        editor,
        [slider.card.target] * _SEEDS,
        [[{slider.reference: strength} for strength in strengths]] * _SEEDS,
        keys=[f"preview-{seed}" for seed in range(_SEEDS)],
        seed=0,
        steps=_STEPS,
        guidance_scale=_GUIDANCE,
    )
    editor.close()
    linear = np.tile(strengths, (_SEEDS, 1))
    seen = Measured("share of a trained slider's target at strength 1", strengths, linear, linear)
    detector = CenterFace() if judges.needs_faces else None
    judged = with_pictures(seen, pictures, judges, detector)
    found = calibration(slider.card.name, judged, _MAX_STRENGTH)
    return Slider(slider.card.model_copy(update={"calibration": found}), {})
