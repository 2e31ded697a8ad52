"""Models: tensors, a device, weights. No sliders, no rows, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bs_ray.models.base import DiffusionModel

TINY = Path(__file__).parent.parent / "tiny" / "weights"
"""The embedded base's diffusers folder."""


def base_folder(base: str) -> Path:
    """Where a base's files lie: the shipped folder for `tiny`, else the given path."""
    return TINY if base == "tiny" else Path(base)


def load_base(base: str, **options: Any) -> DiffusionModel:
    """Load a base by job-file name: `tiny`, or a diffusers SDXL folder.

    Options go to `SDXL.load` (dtype, device). Raises BaseNotFound; nothing is downloaded.
    """
    from bs_ray.models.sdxl import SDXL

    return SDXL.load(base_folder(base), **options)
