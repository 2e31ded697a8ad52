"""A base of random weights, its pipeline in plain diffusers, and a slider that fits it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.slider import Slider
from bs_ray.testing import random_slider


@pytest.fixture(scope="package")
def random_model(random_base: Path) -> DiffusionModel:
    return load_base(str(random_base))


@pytest.fixture(scope="package")
def smile(random_model: DiffusionModel) -> Slider:
    return random_slider(random_model, "smile", seed=3)


@pytest.fixture(scope="package")
def pipe(random_base: Path) -> Any:
    """Who loads a LoRA unloads it again."""
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(random_base, dtype=torch.float32)
