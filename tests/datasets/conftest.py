"""The base of random weights, as training's tests have it."""

from pathlib import Path

import pytest

from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel


@pytest.fixture
def model(random_base: Path) -> DiffusionModel:
    return load_base(str(random_base))
