"""What the tiny bases' own world draws: held-out faces, photos of them, and their descriptions."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from bs_ray.config import EvalJob
from bs_ray.evaluate.splits import Item
from bs_ray.images.pixels import pixels_of
from bs_ray.models import base_folder
from bs_ray.models.base import BaseNotFound
from bs_ray.tiny import captions, faces

HELD_OUT_SEED = 1_000_000
"""The recipe of the tiny bases draws no scene from this seed on."""
_ENLARGED = 2
"""In a comparison, in-the-wild photos are twice the base's size, as photos are larger than what
bases edit."""
_TITLES = {
    "faces": "Held-out faces, edited",
    "wild": "In-the-wild photos, edited",
    "text": "Text-guided generation",
}


@dataclass(frozen=True)
class TinySplit:
    """Faces by number, rendered when they are needed."""

    name: str
    """faces, wild or text."""
    count: int
    seed: int
    attributes: tuple[str, ...]
    """What the sliders move, of which the prompts of "text" say nothing."""
    enlarged: int = 1

    drawn = True

    @classmethod
    def open(cls, name: str, count: int, job: EvalJob) -> TinySplit:
        """Raises BaseNotFound where the job's base is none of this world."""
        if not has_world(job.base):
            raise BaseNotFound(
                f"splits.{name}: got base {job.base}, which has no world that draws {name}; "
                "expected one of the tiny world (`tiny`, `tiny-flow`). Name photos or prompts "
                "of your own: splits.NAME.photos=FOLDER"
            )
        compared = bool(job.methods or job.compare)
        attributes = tuple(sorted(set(job.moves.values()) & captions.PHRASES.keys()))
        enlarged = _ENLARGED if compared and name == "wild" else 1
        return cls(name, count, job.seed, attributes, enlarged)

    @property
    def title(self) -> str:
        return _TITLES[self.name]

    @property
    def generates(self) -> bool:
        return self.name == "text"

    @property
    def digest(self) -> str:
        return f"{self.name}-{self.seed}-{self.enlarged}-{'.'.join(self.attributes)}"

    def __len__(self) -> int:
        return self.count

    def items(self, first: int, count: int) -> list[Item]:
        """See Split."""
        keys = [f"{self.name}-{first + i}" for i in range(count)]
        if self.generates:
            made = self._prompts(first, count)
            return [
                Item(first + i, keys[i], self.seed, prompt=prompt) for i, prompt in enumerate(made)
            ]
        photos = self._photos(first, count)
        return [Item(first + i, keys[i], self.seed, pixels) for i, pixels in enumerate(photos)]

    def _photos(self, first: int, count: int) -> np.ndarray:
        """uint8 [F, H, W, 3]. Those of "faces" are plain, those of "wild" have a camera's
        faults."""
        scene = faces.sample_scenes(count, HELD_OUT_SEED + self.seed + first)
        if self.name == "faces":
            return pixels_of(faces.render(scene))
        images = faces.render_wild(scene, HELD_OUT_SEED + self.seed + first)
        if self.enlarged > 1:
            images = F.interpolate(images, scale_factor=self.enlarged, mode="bicubic").clamp(-1, 1)
        return pixels_of(images)

    def _prompts(self, first: int, count: int) -> list[str]:
        """True descriptions of held-out faces that say nothing of what the sliders move."""
        scene = faces.sample_scenes(count, HELD_OUT_SEED + self.seed + first)
        rng = random.Random(first)
        own = {p for name in self.attributes for ends in captions.PHRASES[name] for p in ends}
        found = []
        for row in range(count):
            true = [p for p in captions.phrases(scene, row, rng) if p not in own]
            found.append(", ".join(["a photo of a person", *rng.sample(true, 4)]))
        return found


def has_world(base: str) -> bool:
    """Whether a base is one of the tiny world, with the reader of its attributes."""
    return (base_folder(base) / "judges" / "reader.safetensors").is_file()
