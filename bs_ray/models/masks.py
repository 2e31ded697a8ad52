"""Soft masks: where a difference of latents is large (docs/method.md, "Training", "Editing")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def magnitude_mask(difference: Tensor) -> Tensor:
    """[B, 1, h, w] in [0, 1]: the magnitude of `difference` [B, C, h, w] over its channels.

    It is smoothed, and divided by its 90th percentile in each row.
    """
    magnitude = difference.square().mean(1, keepdim=True).sqrt()
    magnitude = F.avg_pool2d(magnitude, 3, 1, 1, count_include_pad=False)
    high = magnitude.flatten(1).quantile(0.9, dim=1).clamp(min=1e-12)
    return (magnitude / high.view(-1, 1, 1, 1)).clamp(max=1)


def soft_mask(difference: Tensor, mask: Tensor, degree: float) -> Tensor:
    """`difference`, kept where `mask` is 1 and faded elsewhere. Degree 0 fades nothing; with degree
    1 nothing is left where the mask is 0."""
    return difference * (1 - degree + degree * mask)
