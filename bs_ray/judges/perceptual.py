"""How different two pictures look: a distance between a network's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet, resized


class Perceptual:
    """A distance like LPIPS (Zhang et al. 2018): squared differences of normalised features."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def features(self, images: Tensor, native: bool = False) -> list[Tensor]:
        """The feature maps whose distance is taken, each of unit length over its channels.

        native: at the pictures' own size instead of the judge's.
        """
        seen = images if native else resized(images)
        return [F.normalize(f, dim=1, eps=1e-6) for f in self.net.features(seen)]

    def distance(self, images: Tensor, others: Tensor, native: bool = False) -> Tensor:
        """How different the two pictures of each pair look: [B], 0 where they are equal."""
        return feature_distance(self.features(images, native), self.features(others, native))


def feature_distance(maps: list[Tensor], others: list[Tensor]) -> Tensor:
    """LPIPS' formula without learned weights: [B] of feature maps [B, c, h, w], level by level.

    Squared differences are summed over the channels and the levels, and averaged over the places.
    """
    pairs = zip(maps, others, strict=True)
    return torch.stack([((a - b) ** 2).sum(1).mean((1, 2)) for a, b in pairs]).sum(0)
