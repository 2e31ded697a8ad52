"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet, _resize


class Identity:
    """Embeds a face so that the same person's pictures lie close (cosine)."""

    def __init__(self, net: JudgeNet):
        self.net = net

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> unit vectors [B, D]."""
        return F.normalize(self.net(_resize(images)), dim=1)

    def similarity(self, images: Tensor, others: Tensor) -> Tensor:
        """Cosine similarity per pair: [B] in [-1, 1]."""
        return (self.embed(images) * self.embed(others)).sum(1)
