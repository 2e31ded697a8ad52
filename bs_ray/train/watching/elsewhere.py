"""Measure a published slider on a base that it was not trained on, as its own run measured it."""

from __future__ import annotations

from bs_ray.config import EditorSettings
from bs_ray.editing.editor import Editor
from bs_ray.editing.measure_words import measured
from bs_ray.images.faces import CenterFace
from bs_ray.judges.load import Panel
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.calibration import Calibration
from bs_ray.sliders.card import SliderError
from bs_ray.sliders.slider import Slider
from bs_ray.train.watching.calibrate import calibrate
from bs_ray.train.watching.preview import Previewer

_ETA, _MAX_STRENGTH = 1.0, 2.0
"""What a slider of another tool is measured against."""


def calibrated_on(slider: Slider, model: DiffusionModel, judges: Panel) -> Calibration:
    """What the slider does on this base, at strengths up to twice its trained range.

    Costs about 1000 predictions. Raises SliderError for a slider without prompts, which define what
    an effect is, and for words where no judge of pictures is at hand.
    """
    card = slider.card
    if card.prompts is None:
        raise SliderError(
            f"slider {card.reference}: got one without prompts, whose effect nothing defines; "
            "expected one with a target, a positive and a negative prompt. Try strengths with "
            "`bs-ray edit-one --sweep`"
        )
    if card.pulls:
        found = measured(slider, model, judges).card.calibration
        if not found:
            raise SliderError(
                f"slider {card.reference}: got no judge of pictures beside the base; expected one, "
                "since it says where words break a picture (docs/judges.md)"
            )
        return found
    losses = card.training.get("job", {}).get("losses", {})
    editor = Editor(model, [slider], EditorSettings(calibrated=False))
    editor.lora_scales([editor.mix({slider.reference: 1e-3})])  # into the bank's only slot
    previewer = Previewer(
        model,
        [card.name],
        [card.target],
        {card.name: card.prompts},
        losses.get("eta", _ETA),
        losses.get("max_strength", _MAX_STRENGTH),
        judges,
        CenterFace() if judges.needs_faces else None,
    )
    try:
        return calibrate(previewer, editor.predict)[card.name]
    finally:
        editor.close()
