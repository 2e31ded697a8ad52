"""A base of random weights, and a slider that fits it."""

from pathlib import Path

import pytest

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
