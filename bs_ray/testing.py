"""What tests and benches share."""

from __future__ import annotations

import torch

from bs_ray.config import Prompts
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.bank import SliderBank
from bs_ray.sliders.slider import Card, Slider


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
