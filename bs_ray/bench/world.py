"""Where benches of training happen: a world gives a base, photos to train on, faces that it has
never seen, and judges. There are two: the drawn one of the tiny bases, and photographs of people.

Legend: F faces, K versions of each, uint8 RGB [F, K, H, W, 3]; R readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.datasets.pool import PhotoPool
from bs_ray.judges.judge import Pictures, Subject
from bs_ray.judges.load import Panel
from bs_ray.judges.perceptual import feature_distance
from bs_ray.models import base_folder, framing_of
from bs_ray.models.base import DiffusionModel


class Faces(Protocol):
    """Some of a world's held-out faces."""

    subjects: Sequence[Subject]
    """The unedited pictures, and where judges look at them and at their edits."""

    def realism(
        self, attribute: str, read: np.ndarray, pictures: Pictures, maps: list[Tensor]
    ) -> dict[str, float]:
        """How far edits are from what is real: `kid`, and more where the world knows more.

        read: the attribute as judges read it off the edits [F]; pictures, maps: one edit of each
        face, and its features."""


class World(Protocol):
    """A base, and what a bench trains on and measures with."""

    kind: str
    """`drawn` or `photos`: whose goals apply."""
    base: str
    model: DiffusionModel
    photos: PhotoPool
    """To train on."""
    panel: Panel
    """Judges of identity and of attributes."""
    eyes: str
    """Name of the network behind `features`."""
    ranges: dict[str, float]
    """Reading -> how far it can move, in its own unit."""

    def prompts(self, attribute: str) -> dict[str, str]:
        """Of a slider, in words that the base was trained on. Raises ValueError where it has
        none."""

    def held_out(self, count: int, part: int = 0) -> Faces:
        """Up to `count` faces that no network here was trained on; parts 0, 1 and 2 share none."""

    def features(self, pictures: Pictures) -> list[Tensor]:
        """Feature maps [K, c, h, w], coarse last, of a network that no loss of training saw."""


def open_world(base: str, faces: str | None = None) -> World:
    """The world of a base: photographs where its card says how faces are framed, else the drawn
    one.

    faces: an archive or folder of LFW, for photographs. Raises ValueError, BaseNotFound,
    JudgeUnavailable and FacesUnavailable.
    """
    # Imported here, since both import this module.
    from bs_ray.bench.drawn_world import DrawnWorld
    from bs_ray.bench.photo_world import PhotoWorld

    if framing_of(base_folder(base)) is None:
        if faces:
            raise ValueError(
                f"faces: got {faces} for base {base}, which is measured on faces that its world "
                "draws; expected none"
            )
        return DrawnWorld(base)
    if not faces:
        raise ValueError(
            f"faces: got none for base {base}, which is measured on photographs; expected LFW, "
            "whose people it holds out: --faces lfw-deepfunneled.tgz"
        )
    return PhotoWorld(base, faces)


@dataclass(frozen=True)
class Moves:
    """What edits do to the readings."""

    effect: float
    """Mean move of the slider's own reading, in its unit, towards the strength's sign."""
    drift: float
    """Mean absolute move of the other readings, as a share of their ranges."""


def read(world: World, faces: Faces, edits: np.ndarray) -> np.ndarray:
    """Readings [F, K, R], in the order of world.ranges."""
    judges = world.panel.attributes
    return np.stack(
        [
            np.concatenate([judge.read(subject, list(versions)) for judge in judges], axis=1)
            for subject, versions in zip(faces.subjects, edits, strict=True)
        ]
    )


def moves(world: World, attribute: str, sign: int, before: np.ndarray, after: np.ndarray) -> Moves:
    """before, after: readings [F, R]."""
    names = list(world.ranges)
    own, move = names.index(attribute), after - before
    others = np.delete(move / np.array(list(world.ranges.values())), own, 1)
    return Moves(float(sign * move[:, own].mean()), float(np.abs(others).mean()))


def identity_distances(world: World, faces: Faces, edits: np.ndarray) -> np.ndarray:
    """Of each version from its unedited face: [F, K]."""
    [judge] = world.panel.identity
    return np.stack(
        [
            judge.distances(subject, list(versions))
            for subject, versions in zip(faces.subjects, edits, strict=True)
        ]
    )


def apart(maps: list[Tensor], others: list[Tensor]) -> float:
    """Mean distance of pictures' features, each of unit length over its channels."""
    unit = [[F.normalize(level, dim=1, eps=1e-6) for level in side] for side in (maps, others)]
    return float(feature_distance(*unit).mean())


def unedited(faces: Faces) -> np.ndarray:
    """The faces themselves, [F, H, W, 3]."""
    return np.stack([subject.photo for subject in faces.subjects])


def pool_of(keys: Sequence[str], pixels: np.ndarray, model: DiffusionModel) -> PhotoPool:
    """Photos uint8 [N, H, W, 3] to train on."""
    flat: Any = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return PhotoPool(keys, flat, model)
