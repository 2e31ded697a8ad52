"""The drawn world of the tiny bases: its renderer knows the true picture of every edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bs_ray.bench.world import pool_of
from bs_ray.config import JudgeSettings
from bs_ray.images.pixels import images_of, pixels_of
from bs_ray.judges.centerface import pooled
from bs_ray.judges.judge import Pictures, Subject
from bs_ray.judges.kid import squared_mmd
from bs_ray.judges.load import WorldJudges, find_judges
from bs_ray.judges.network import resized
from bs_ray.models import base_folder, load_base
from bs_ray.tiny import faces
from bs_ray.tiny.captions import PHRASES

HELD_OUT_SEED = 3_000_000
_PARTS_APART = 1_000_000
_PHOTOS, _PHOTOS_SEED = 96, 5
_TARGET = "a photo of a person"


def prompts_of(attribute: str) -> dict[str, str]:
    """The prompts of a slider of the tiny world, in the words its bases were trained on. Raises
    ValueError for an attribute that it has not."""
    if attribute not in PHRASES:
        raise ValueError(f"attribute: got {attribute}; expected one of {', '.join(PHRASES)}")
    low, high = (ends[0] for ends in PHRASES[attribute])
    return {"target": _TARGET, "positive": f"{_TARGET}, {high}", "negative": f"{_TARGET}, {low}"}


class DrawnWorld:
    """See World."""

    kind = "drawn"
    eyes = "the base's own attribute reader"

    def __init__(self, base: str):
        """Raises BaseNotFound."""
        folder = base_folder(base)
        self.base, self.model = base, load_base(base)
        self.reader = WorldJudges.load(folder).reader
        none: list[str] = []
        own = JudgeSettings(
            identity=["own"], attributes=["own"], perceptual=none, features=none, clip=none
        )
        self.panel = find_judges(folder, own)
        self.ranges = dict.fromkeys(self.reader.names, 1.0)
        drawn = pixels_of(faces.render(faces.sample_scenes(_PHOTOS, _PHOTOS_SEED)))
        self.photos = pool_of([f"{i:04d}" for i in range(_PHOTOS)], drawn, self.model)

    def prompts(self, attribute: str) -> dict[str, str]:
        """See World."""
        return prompts_of(attribute)

    def held_out(self, count: int, part: int = 0) -> DrawnFaces:
        """See World."""
        first = HELD_OUT_SEED + part * _PARTS_APART
        scene, others = (faces.sample_scenes(count, seed) for seed in (first, first + 1))
        subjects = [Subject(photo) for photo in pixels_of(faces.render(scene))]
        return DrawnFaces(subjects, scene, others, self)

    @torch.no_grad()
    def features(self, pictures: Pictures) -> list[Tensor]:
        """See World."""
        return self.reader.net.features(resized(images_of(np.stack(pictures))))


@dataclass
class DrawnFaces:
    """See Faces."""

    subjects: Sequence[Subject]
    scene: faces.Scene
    """What drew the subjects."""
    others: faces.Scene
    """As many other people."""
    world: DrawnWorld

    def realism(
        self, attribute: str, read: np.ndarray, pictures: Pictures, maps: list[Tensor]
    ) -> dict[str, float]:
        """See Faces. Real are the renderer's pictures of others with the values that are read off
        the edits; `truth` is the RMSE to its picture of the face itself with that value."""
        value = {attribute: torch.from_numpy(read).float().clamp(0, 1)}
        error = images_of(np.stack(pictures)) - faces.render(self.scene | value)
        real = self.world.features(list(pixels_of(faces.render(self.others | value))))
        return {
            "truth": float(error.square().mean((1, 2, 3)).sqrt().mean()),
            "kid": squared_mmd(pooled(maps).numpy(), pooled(real).numpy()),
        }
