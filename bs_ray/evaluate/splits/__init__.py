"""Splits: what an evaluation measures on. The user's photos or prompts, or the tiny world's faces.

A split is a small protocol. It is opened once, checked and sampled on the driver, and travels to
the workers, which read its items. May import config, storage, images, judges, datasets and tiny.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bs_ray.config import EvalJob
from bs_ray.config.evaluate import PhotoSplit, PromptSplit


@dataclass(frozen=True)
class Item:
    """One photo to edit, or one prompt to generate from."""

    number: int
    """Within its split."""
    key: str
    """Names its noise, together with the seed."""
    seed: int
    pixels: np.ndarray | None = None
    """uint8 RGB [H, W, 3]; None where a prompt stands, or a problem."""
    prompt: str = ""
    identity: str = ""
    """Who is seen; "" where nobody says."""
    problem: str = ""
    """Why a photo cannot be measured: `kind: details`."""


class Split(Protocol):
    """A kind of pictures. Picklable, and cheap to send."""

    @property
    def title(self) -> str:
        """What its pictures are, for a report."""

    @property
    def drawn(self) -> bool:
        """Whether its pictures are what the base's own world draws, which its own judges know."""

    @property
    def generates(self) -> bool:
        """Whether its items are prompts, not photos."""

    @property
    def digest(self) -> str:
        """Names what the items are made from."""

    def __len__(self) -> int: ...

    def items(self, first: int, count: int) -> list[Item]:
        """Items `first` to `first + count`. Raises StorageError."""


def open_splits(job: EvalJob) -> dict[str, Split]:
    """The job's splits by name, without their pictures.

    Raises BaseNotFound for a split that the base's world would draw where there is none,
    EmptyInputError for a place without photos, ValueError for a table without prompts, and
    StorageError.
    """
    from bs_ray.evaluate.splits.photos import open_photos
    from bs_ray.evaluate.splits.prompts import open_prompts
    from bs_ray.evaluate.splits.tiny import TinySplit

    found: dict[str, Split] = {}
    for name, split in job.splits.items():
        if isinstance(split, PhotoSplit):
            found[name] = open_photos(split, job.seed, job.base_images)
        elif isinstance(split, PromptSplit):
            found[name] = open_prompts(split)
        else:
            found[name] = TinySplit.open(name, split, job)
    return found
