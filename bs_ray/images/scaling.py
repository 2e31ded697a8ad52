"""A whole photo at the size at which a base sees it, and the base's change at the photo's size."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike
from PIL import Image

_BAND = 32  # lines that are made at once: few enough for a processor's cache
_A = -0.75  # of the cubic that enlarges changes, as torch's `interpolate` has it


def shrunk(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A photo uint8 [H, W, 3] at `size` (height, width): bicubic, what is too fine is filtered."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def moved(
    pixels: np.ndarray,
    change: np.ndarray,
    mask: np.ndarray | None = None,
    dtype: DTypeLike = np.float32,
) -> np.ndarray:
    """A photo uint8 [H, W, 3] moved by a change: [H, W, 3] in [0, 255], rounded for whole numbers.

    change: float [h, w, 3] in the photo's units, stretched to it (bicubic). mask: float32 [H, W],
    1 where the photo may change. Beside the result, memory holds a few of its lines.
    """
    height, width = pixels.shape[:2]
    rows = _wide(change.astype(np.float32), width).reshape(len(change), -1)
    out = np.empty(pixels.shape, dtype)
    for first, last in _bands(height):
        added = _stretched(rows, height, first, last).reshape(last - first, width, 3)
        if mask is not None:
            added *= mask[first:last, :, None]
        added += pixels[first:last]
        out[first:last] = stored(added, dtype)
    return out


def stored(levels: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Levels float32 cut to [0, 255], in place; rounded where `dtype` is of whole numbers."""
    np.clip(levels, 0, 255, out=levels)
    return np.rint(levels, out=levels) if np.issubdtype(dtype, np.integer) else levels


def _wide(change: np.ndarray, width: int) -> np.ndarray:
    """[h, w, 3] -> [h, width, 3]."""
    columns = change.swapaxes(0, 1).reshape(change.shape[1], -1)
    bands = [_stretched(columns, width, *band) for band in _bands(width)]
    stretched = np.concatenate(bands).reshape(width, len(change), 3)
    return np.ascontiguousarray(stretched.swapaxes(0, 1))


def _bands(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + _BAND, count)) for first in range(0, count, _BAND)]


def _stretched(lines: np.ndarray, count: int, first: int, last: int) -> np.ndarray:
    """Lines [n, m] stretched to `count` lines: those from `first` to `last` - 1."""
    place = (np.arange(first, last)[:, None] + 0.5) * (len(lines) / count) - 0.5
    taps = np.floor(place).astype(int) + np.arange(-1, 3)
    weights = _cubic(np.abs(place - taps))
    taps = np.clip(taps, 0, len(lines) - 1)
    start, end = int(taps.min()), int(taps.max()) + 1
    mixing = np.zeros((last - first, end - start), np.float32)
    np.add.at(mixing, (np.arange(last - first)[:, None], taps - start), weights)
    return mixing @ lines[start:end]


def _cubic(x: np.ndarray) -> np.ndarray:
    """The weight of a line that is x lines away (Keys 1981), 0 <= x <= 2."""
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x <= 1, near, far)
