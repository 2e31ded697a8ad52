"""Reading attributes off a face, on a scale from 0 to 1."""

from __future__ import annotations

from torch import Tensor

from bs_ray.judges.network import JudgeNet, resized


class AttributeReader:
    """Reads a face's attributes; the tiny world's measures are its readings."""

    def __init__(self, net: JudgeNet):
        self.net = net
        self.names = tuple(net.outputs)

    def read(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, len(names)], about [0, 1]; not clipped, so that every move shows."""
        return self.net(resized(images))
