"""The features of CenterFace, which finds faces: what a network of no loss sees in a picture.

It is MobileNetV2 (arXiv 1801.04381), trained by others on WIDER FACE. It neither reads attributes
nor tells people apart, so it takes no side where other judges measure those.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bs_ray.images.faces import load_centerface, need_centerface
from bs_ray.judges.judge import Card, Embedding, Pictures, Subject, digest

_LEVELS = ("387", "413", "472", "507")
"""The last layers at a quarter to a thirty-second of the picture's side, 24 to 320 channels."""
PX = 128


class CenterFaceFeatures(Embedding):
    """Its maps, averaged over the places; 1 less the cosine. Pictures are resized to 128 px."""

    needs_face = False

    def __init__(self) -> None:
        """Raises FacesUnavailable where a package is missing."""
        self.card = Card(
            "features-centerface",
            digest(need_centerface()),
            "MIT",
            "1 less the cosine of features of the face detector CenterFace, averaged over places",
        )

    @cached_property
    def _net(self) -> Any:
        return load_centerface(_LEVELS)

    def maps(self, pictures: Pictures) -> list[Tensor]:
        """Squares of equal size -> activations of each level: float32 [K, c, h, w]."""
        [entry] = [i for i in self._net.get_inputs() if len(i.shape) == 4]
        seen = np.stack([p.transpose(2, 0, 1) for p in pictures]).astype(np.float32)
        # One at a time, since the file's own shapes are of one picture.
        found = [self._net.run(list(_LEVELS), {entry.name: one[None]}) for one in seen]
        return [torch.from_numpy(np.concatenate(level)) for level in zip(*found, strict=True)]

    def embed(self, subject: Subject, pictures: Pictures) -> np.ndarray:
        """See EmbeddingJudge."""
        return pooled(self.maps(subject.seen(pictures, PX))).numpy()


def pooled(maps: list[Tensor]) -> Tensor:
    """Feature maps, each averaged over its places, side by side: [B, all channels]."""
    return torch.cat([level.mean((2, 3)) for level in maps], 1)
