"""Soft masks of latents."""

import torch

from bs_ray.models.masks import magnitude_mask, soft_mask


def test_soft_mask_keeps_what_is_large_and_fades_the_rest() -> None:
    direction = torch.full((1, 4, 16, 16), 0.01)
    direction[:, :, 4:12, 4:12] = 1.0
    mask = magnitude_mask(direction)
    masked = soft_mask(direction, mask, 1.0)
    assert torch.allclose(masked[:, :, 6:10, 6:10], direction[:, :, 6:10, 6:10])
    assert float(masked[0, 0, 0, 0]) < 0.02 * 0.01
    assert torch.equal(soft_mask(direction, mask, 0.0), direction)
    half = soft_mask(direction, mask, 0.5)
    assert torch.allclose(half, (direction + masked) / 2)
