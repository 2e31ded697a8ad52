"""Whole photos at a base's size, and changes of that size on whole photos."""

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bs_ray.images.scaling import moved, shrunk


def photo(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)]
    return (128 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("photo_size", [(200, 311), (64, 64), (40, 150), (20, 17), (1, 1)])
def test_a_change_is_stretched_as_torch_does_it(
    photo_size: tuple[int, int], size: tuple[int, int]
) -> None:
    before = photo(*photo_size)
    change = np.random.default_rng(0).normal(0, 60, (*size, 3)).astype(np.float32)
    tensor = torch.from_numpy(change).permute(2, 0, 1)[None]
    added = F.interpolate(tensor, photo_size, mode="bicubic")[0].permute(1, 2, 0).numpy()
    expected = np.clip(before + added, 0, 255)
    found = moved(before, change)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 0.01
    whole = moved(before, change, dtype=np.uint8)
    assert whole.dtype == np.uint8 and np.array_equal(whole, np.rint(found))
    mask = np.zeros(photo_size, np.float32)
    assert np.array_equal(moved(before, change, mask), before)


def test_a_smooth_photo_is_shrunk_and_enlarged() -> None:
    before = photo(300, 400)
    tensor = torch.from_numpy(before).permute(2, 0, 1)[None].float()
    for size in ((64, 96), (330, 450)):
        expected = F.interpolate(tensor, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0)
        found = shrunk(before, size)
        assert found.shape == (*size, 3) and np.abs(found - expected.numpy()).max() < 1.5
    assert shrunk(before, (300, 400)) is before


def test_memory_holds_a_few_lines() -> None:
    before, change = np.zeros((1500, 2000, 3), np.uint8), np.ones((64, 64, 3), np.float32)
    tracemalloc.start()
    out = moved(before, change, dtype=np.uint8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (out == 1).all() and peak < out.nbytes + 8_000_000
