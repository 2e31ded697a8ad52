"""The slider's update of one layer, B ((A x) * g), in two forms that are equal to float order."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Gates(NamedTuple):
    """What every row multiplies its inner activations A x by."""

    values: Tensor
    """float32 [B, R]; gathered [B, K]."""
    ranks: Tensor | None
    """int64 [B, K]: the stacked ranks that the values are for; None: all, in order."""


def low_rank_update(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor, gates: Gates) -> Tensor:
    """B ((A x) * g) for a linear layer's input [B, ..., in] or a convolution's [B, in, h, w]."""
    if gates.ranks is not None:
        return _gathered(layer, x, a, b, gates.values, gates.ranks)
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(_convolved(layer, x, a) * gates.values[:, :, None, None], b)
    values = gates.values.view(len(gates.values), *[1] * (x.dim() - 2), -1)
    return F.linear(F.linear(x, a) * values, b)


def _gathered(
    layer: nn.Module, x: Tensor, a: Tensor, b: Tensor, values: Tensor, ranks: Tensor
) -> Tensor:
    """The update where each row has ranks of its own: values, ranks [B, K]."""
    rows, count = ranks.shape
    a = a.index_select(0, ranks.flatten())  # [B K, in, ...]
    b = b.flatten(1).index_select(1, ranks.flatten())  # [out, B K]
    b = b.view(-1, rows, count).transpose(0, 1)  # [B, out, K]
    if isinstance(layer, nn.Conv2d):
        # Rows become groups of channels of one picture, so that one convolution does them all.
        inner = _convolved(layer, x.flatten(0, 1)[None], a, groups=rows)  # [1, B K, h, w]
        inner = inner.view(rows, count, *inner.shape[2:])
        updates = b @ (inner * values[:, :, None, None]).flatten(2)
        return updates.unflatten(2, inner.shape[2:])
    tokens = x.reshape(len(x), -1, x.shape[-1])  # [B, T, in]
    inner = tokens @ a.view(rows, count, -1).transpose(1, 2) * values[:, None]
    return (inner @ b.transpose(1, 2)).reshape(rows, *x.shape[1:-1], -1)


def _convolved(layer: nn.Conv2d, x: Tensor, a: Tensor, groups: int = 1) -> Tensor:
    return F.conv2d(x, a, None, layer.stride, layer.padding, layer.dilation, groups)
