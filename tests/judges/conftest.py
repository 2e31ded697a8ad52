"""Faces of our own making, as judges see them."""

from pathlib import Path

import numpy as np
import pytest

from bs_ray.images.faces import Face
from bs_ray.images.pixels import pixels_of
from bs_ray.judges.judge import Subject
from bs_ray.models import base_folder
from bs_ray.tiny.faces import render, sample_scenes

# Where a drawn face stands in its 64 px: measured on its eyes, nose and mouth.
LANDMARKS = np.array([[24, 28], [40, 28], [32, 36], [27, 45], [37, 45]], np.float32)
FACE = Face((16.0, 12.0, 48.0, 54.0), LANDMARKS)


@pytest.fixture(scope="session")
def drawn() -> np.ndarray:
    """Six drawn faces, uint8 [6, 128, 128, 3]."""
    return pixels_of(render(sample_scenes(6, 7))).repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture
def subject(drawn: np.ndarray) -> Subject:
    """The first of them, with its face."""
    return Subject(drawn[0], Face(tuple(2 * side for side in FACE.box), 2 * LANDMARKS))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def tiny() -> Path:
    return base_folder("tiny")
