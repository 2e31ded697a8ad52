"""Whether two pictures show the same person."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet, resized


class Identity:
    """Embeds faces; pictures of the same person have a high cosine similarity."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> unit vectors [B, D]."""
        return F.normalize(self.net(resized(images)), dim=1)

    def similarity(self, images: Tensor, others: Tensor) -> Tensor:
        """Cosine similarity per pair: [B] in [-1, 1]."""
        return (self.embed(images) * self.embed(others)).sum(1)
