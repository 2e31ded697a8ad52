"""A base of random weights: the plumbing is the same, and nothing here looks at quality."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bs_ray.config import TrainJob
from bs_ray.datasets.pool import PhotoPool
from bs_ray.models import load_base
from bs_ray.models.base import DiffusionModel

PROMPTS = {
    "target": "a photo of a person",
    "positive": "a photo of a person, smiling",
    "negative": "a photo of a person, frowning",
}


@pytest.fixture(scope="session")
def base(random_base: Path) -> Path:
    return random_base


@pytest.fixture
def model(base: Path) -> DiffusionModel:
    torch.set_num_threads(1)
    return load_base(str(base))


def jpeg(seed: int, size: tuple[int, int] = (80, 64)) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def photo_rows(count: int = 6) -> list[dict]:
    return [{"key": f"p/{i}.jpg", "identity": "p", "bytes": jpeg(i)} for i in range(count)]


@pytest.fixture
def photos(model: DiffusionModel) -> PhotoPool:
    return PhotoPool.load(photo_rows(), model)


def make_job(**changes) -> TrainJob:
    settings = {
        "name": "smile",
        "prompts": PROMPTS,
        "photos": "photos",
        "steps": 6,
        "batch_size": 4,
        "workers": 1,
        "checkpoint_every": 3,
        "losses": {"adversarial": 0.1, "adversarial_after": 0.0},
    }
    return TrainJob.model_validate(settings | changes)
