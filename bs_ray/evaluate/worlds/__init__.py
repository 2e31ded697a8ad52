"""Worlds: faces that no base was trained on and whose attributes are known.

A world is a small protocol, so that photographs with labels can be one too. May import models,
judges and tiny.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd

from bs_ray.judges.load import WorldJudges
from bs_ray.models.base import DiffusionModel


class World(Protocol):
    """Held-out faces, and the judges that measure pictures of them."""

    judges: WorldJudges

    def photos(
        self, split: str, first: int, count: int, seed: int, enlarged: int = 1
    ) -> np.ndarray:
        """Photos `first` to `first + count` of the split "faces" or "wild": uint8 [F, H, W, 3].

        enlarged: how many times larger than the base's size photos of "wild" are.
        """

    def prompts(self, attribute: str, first: int, count: int, seed: int) -> list[str]:
        """True descriptions of held-out faces that say nothing of `attribute`."""

    def base_rows(self, model: DiffusionModel, first: int, count: int, total: int) -> list[dict]:
        """How good the base itself is, a row for each of the pictures `first` to `first + count`.

        total: of all pictures, on which each of them depends.
        """

    def base_figures(self, rows: pd.DataFrame) -> dict:
        """The base's figures from the rows of all pictures."""


def open_world(base: str) -> World:
    """The world of a base. Raises BaseNotFound where the base has none."""
    from bs_ray.evaluate.worlds.tiny import TinyWorld

    return TinyWorld(base)
