"""How good a base is by itself: its round trips, and what it generates from captions.

There are two measures. `drawn` is for the bases of the tiny world, which knows the truth of every
picture; `photos` for all others, on photos and by judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import pandas as pd
from PIL import Image

from bs_ray.config import EvalJob
from bs_ray.evaluate.judging import Judging
from bs_ray.evaluate.splits import Split
from bs_ray.evaluate.splits.photos import Photos
from bs_ray.evaluate.splits.tiny import has_world
from bs_ray.models.base import DiffusionModel


@dataclass(frozen=True)
class Sheet:
    """Pictures for the report."""

    name: str
    """Of its file."""
    caption: str
    image: Image.Image


class BaseMeasure(Protocol):
    """Measures a base in pieces, which may be another worker's each."""

    @property
    def digest(self) -> str:
        """Names what decides the rows, beside the base and how many pictures there are."""

    def rows(self, model: DiffusionModel, first: int, count: int) -> list[dict]:
        """What is found at pictures `first` to `first + count`."""

    def figures(self, rows: pd.DataFrame) -> dict:
        """The base's figures from the rows of all pictures. Some are everyone's: `images`,
        `vae_psnr_db`, `vae_psnr_interval`, `class_accuracy` and `class_intervals` by attribute."""

    def sheets(self, rows: pd.DataFrame) -> list[Sheet]:
        """Pictures of what was measured."""


def base_measure(
    job: EvalJob, splits: Mapping[str, Split], judging: Mapping[str, Judging]
) -> BaseMeasure:
    """The measure for a job's base. Raises ValueError where it takes photos and there are none."""
    from bs_ray.evaluate.bases.drawn import DrawnBase
    from bs_ray.evaluate.bases.photos import PhotoBase

    if has_world(job.base):
        return DrawnBase(job.base, job.base_images)
    for name, split in splits.items():
        if isinstance(split, Photos):
            return PhotoBase(job, split, judging[name].panel)
    raise ValueError(
        f"base_images: got base {job.base} without photos; expected a split of photos, which its "
        "round trips and generations are compared with: splits.NAME.photos=FOLDER"
    )
