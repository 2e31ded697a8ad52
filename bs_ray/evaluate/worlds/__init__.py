"""Worlds: faces that no base was trained on and whose attributes are known.

A world is a small protocol, so that photographs with labels can be one too. May import models,
judges and tiny.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

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

    def base_figures(
        self, model: DiffusionModel, count: int, report: Callable[[int], None]
    ) -> dict:
        """How good the base itself is, from `count` pictures; report(pictures done since)."""


def open_world(base: str) -> World:
    """The world of a base. Raises BaseNotFound where the base has none."""
    from bs_ray.evaluate.worlds.tiny import TinyWorld

    return TinyWorld(base)
