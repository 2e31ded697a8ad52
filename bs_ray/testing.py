"""What tests and benches share: sliders of random weights, and edits that name them briefly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from bs_ray.config import Prompts
from bs_ray.editing.editor import Edit, Editor
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.card import Card
from bs_ray.sliders.slider import Slider


def random_slider(model: DiffusionModel, name: str, seed: int, rank: int = 4) -> Slider:
    """A slider of random weights that fits the model: for timing and plumbing."""
    trainable = SliderBank.trainable(
        [name], model.denoiser, model.slider_targets(), rank, float(rank), seed
    )
    generator = torch.Generator().manual_seed(seed)
    for up in trainable.up.values():
        up.data.normal_(std=0.02, generator=generator)
    prompts = Prompts(target="a", positive="b", negative="c")
    return trainable.to_slider(
        Card(
            name=name,
            base="random",
            base_id=model.base_id,
            family=model.family,
            part=model.part,
            prompts=prompts,
            rank=rank,
        )
    )


def edit_of(
    editor: Editor, key: str, pixels: np.ndarray, *wanted: Mapping[str, float], **options: Any
) -> Edit:
    """An Edit with one output for each dict of strengths, whose sliders go by their bare names.

    options: the other fields of Edit. Raises SliderError as `Editor.mix`.
    """
    references = {slider.card.name: reference for reference, slider in editor.sliders.items()}
    mixes = [editor.mix({references.get(n, n): s for n, s in one.items()}) for one in wanted]
    return Edit(key, pixels, mixes, **options)
