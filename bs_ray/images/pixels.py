"""Pictures as files hold them (uint8 arrays) and as networks see them (float tensors)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def images_of(pixels: np.ndarray) -> Tensor:
    """uint8 [..., H, W, 3] -> float32 [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(pixels)).movedim(-1, -3).float() / 127.5 - 1


def pixels_of(images: Tensor) -> np.ndarray:
    """float [..., 3, H, W] in [-1, 1] -> uint8 [..., H, W, 3], rounded and clipped."""
    whole = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return whole.movedim(-3, -1).contiguous().cpu().numpy()
