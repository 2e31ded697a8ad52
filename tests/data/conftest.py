"""Image files to feed the pipeline with."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def gradient() -> np.ndarray:
    """uint8 [24, 36, 3], smooth enough for JPEG to keep."""
    y, x = np.mgrid[0:24, 0:36]
    return np.stack([40 + 5 * x, 30 + 8 * y, 200 - 2 * x - 2 * y], axis=-1).astype(np.uint8)


@pytest.fixture(scope="session")
def saved() -> Callable[..., bytes]:
    """saved(image, "PNG", **options) -> the file's bytes."""

    def save(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    return save
