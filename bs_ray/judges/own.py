"""The judges that lie beside a base's weights, behind the face of all judges.

They look at the whole picture, at the 64 px that they were trained on. The tiny bases bring them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bs_ray.images.pixels import images_of
from bs_ray.judges.attributes import AttributeReader
from bs_ray.judges.identity import Identity
from bs_ray.judges.judge import (
    Card,
    Embedding,
    JudgeUnavailable,
    Pictures,
    Reading,
    Subject,
    digest,
)
from bs_ray.judges.network import JudgeNet, resized
from bs_ray.judges.perceptual import Perceptual, feature_distance

_LICENCE = "the base's"
_ANY_PX = 1 << 30


class _Own:
    """A network of the base's `judges` folder."""

    needs_face = False

    def __init__(self, file: Path, what: str, trunk: str = ""):
        """Raises JudgeUnavailable where the file is missing."""
        if not file.is_file():
            raise JudgeUnavailable(
                f"own-{file.stem}: got no {file}; expected the judge of that name beside the base"
            )
        self._file = file
        self.card = Card(f"own-{file.stem}", digest(file), _LICENCE, what, trunk)

    @cached_property
    def _net(self) -> JudgeNet:
        return JudgeNet.load(self._file)


def _batch(subject: Subject, pictures: Pictures) -> Tensor:
    """[K, 3, 64, 64] in [-1, 1]; one after another, since photos may be large."""
    return torch.cat([resized(images_of(p)[None]) for p in subject.seen(pictures, _ANY_PX)])


class OwnIdentity(_Own, Embedding):
    """1 less the cosine similarity of the base's own identity network."""

    same_below = float("nan")

    def __init__(self, judges: Path):
        """judges: the base's folder of that name."""
        what = "1 less the cosine of embeddings, of a network trained on the base's own world"
        super().__init__(judges / "identity.safetensors", what)

    @torch.no_grad()
    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge."""
        return Identity(self._net).embed(_batch(subject, pictures)).numpy()


class OwnPerceptual(_Own):
    """The distance that the perceptual loss of training uses on this base."""

    def __init__(self, judges: Path):
        file = judges / "perceptual.safetensors"
        what = "a distance of features like LPIPS, of a network trained on the base's own world"
        super().__init__(file, what, digest(file) if file.is_file() else "")

    @torch.no_grad()
    def distances(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See DistanceJudge."""
        maps = Perceptual(self._net).features(_batch(subject, [subject.photo, *pictures]))
        still = [one[:1] for one in maps]
        return feature_distance([one[1:] for one in maps], still).numpy().astype(np.float64)


class OwnReader(_Own):
    """Attributes, on a scale from 0 to 1."""

    def __init__(self, judges: Path):
        super().__init__(
            judges / "reader.safetensors",
            "attributes of the base's own world, each as a share of its range",
        )

    @property
    def readings(self) -> tuple[Reading, ...]:
        """See AttributeJudge."""
        return tuple(Reading(name, "share of the range") for name in self._net.outputs)

    @torch.no_grad()
    def read(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See AttributeJudge."""
        return AttributeReader(self._net).read(_batch(subject, pictures)).numpy().astype(np.float64)
