"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet, _resize


class Perceptual:
    """LPIPS-like distance (Zhang et al. 2018): unit-normalised features, squared difference."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def features(self, images: Tensor, native: bool = False) -> list[Tensor]:
        """The feature maps that distances are taken in, each unit length over its channels.

        native: at the pictures' own size instead of the judge's.
        """
        seen = images if native else _resize(images)
        return [F.normalize(f, dim=1, eps=1e-6) for f in self.net.features(seen)]

    def distance(self, images: Tensor, others: Tensor, native: bool = False) -> Tensor:
        """How different two pictures look, per pair: [B], 0 for equal pictures."""
        return feature_distance(self.features(images, native), self.features(others, native))


def feature_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """LPIPS' formula without learned weights: [B] of feature maps [B, c, h, w], level by level.

    Squared differences are summed over the channels and the levels, and averaged over the places.
    """
    pairs = zip(maps, others, strict=True)
    return torch.stack([((a - b) ** 2).sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
