"""Frozen judges: small networks that look at pictures. A loss to train/, a metric to evaluate/.

Offline judges of the tiny world live beside its weights; each is a `JudgeNet` or a CLIP model in
transformers' layout. Images are float32 RGB in [-1, 1], shape [B, 3, H, W]; they are resized to
the judge's own size (64 px) first.
"""

from __future__ import annotations

from torch import Tensor

from bs_ray.judges.network import JudgeNet, _resize


class AttributeReader:
    """Reads a face's attributes, each in [0, 1]: the ground truth of the tiny world's metrics."""

    def __init__(self, net: JudgeNet):
        self.net = net
        self.names = tuple(net.outputs)

    def read(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, len(names)], about [0, 1]; not clipped, so moves show."""
        return self.net(_resize(images))
