"""The real photos of a run: decoded once, encoded when first drawn, addressed by number.

The same photos give the same pool on every worker and after every restart, whatever order they
arrive in: what is kept and how it is numbered depends on the keys alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bs_ray.data import is_quarantined
from bs_ray.data.decode import decode
from bs_ray.models.base import DiffusionModel

MAX_PHOTOS = 2000
MAX_BYTES = 1 << 30
"""A pool holds at most this many photos and decoded bytes: 2,000 at 64 px, 341 at 1024 px."""
_MAX_PIXELS = 64_000_000


class PhotosError(ValueError):
    """The photos cannot be trained on; the message says got, expected and what to do."""


class PhotoPool:
    """Square photos at the base's native size, uint8 [N, 3, px, px], sorted by key."""

    def __init__(self, pixels: Tensor, model: DiffusionModel, broken: int = 0):
        self.pixels, self.model, self.broken = pixels, model, broken
        self._latents: dict[int, Tensor] = {}

    @classmethod
    def load(cls, rows: Iterable[Mapping[str, Any]], model: DiffusionModel) -> PhotoPool:
        """Rows with `key` and `bytes` (an encoded image) -> a pool.

        Photos that do not decode are counted and skipped. Raises PhotosError for no photos, or
        when more than half of them are broken.
        """
        px = model.native_px
        kept = _sample(rows, min(MAX_PHOTOS, MAX_BYTES // (3 * px * px)))
        maybe = [_decode(key, data, px) for key, data in kept]
        decoded = [photo for photo in maybe if photo is not None]
        broken = len(kept) - len(decoded)
        if not decoded or 2 * broken > len(kept):
            raise PhotosError(
                f"photos: got {len(kept)}, of which {broken} do not decode; expected most of them "
                "to be JPEG or PNG images. Ingest them again: bs-ray ingest"
            )
        return cls(torch.stack(decoded), model, broken)

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, numbers: list[int]) -> Tensor:
        """Photos as float32 [B, 3, px, px] in [-1, 1]."""
        return self.pixels[numbers].to(self.model.device).float() / 127.5 - 1

    @torch.no_grad()
    def latents(self, numbers: list[int]) -> Tensor:
        """Their latents [B, C, h, w]."""
        for number in numbers:
            if number not in self._latents:
                # One at a time: a photo's latents must not depend on whom it was encoded with.
                self._latents[number] = self.model.encode(self.images([number]))[0]
        return torch.stack([self._latents[number] for number in numbers])


def _sample(rows: Iterable[Mapping[str, Any]], limit: int) -> list[tuple[str, bytes]]:
    """(key, bytes) of at most `limit` rows, by key; which ones stay, a hash of the key decides."""
    kept: list[tuple[str, str, bytes]] = []
    for row in rows:
        digest = hashlib.sha256(row["key"].encode()).hexdigest()
        kept.append((digest, row["key"], row["bytes"]))
        if len(kept) >= 2 * limit:
            kept = _first(kept, limit)
    return sorted((key, data) for _, key, data in _first(kept, limit))


def _first(rows: list[tuple[str, str, bytes]], limit: int) -> list[tuple[str, str, bytes]]:
    return sorted(rows, key=lambda row: row[:2])[:limit]


def _decode(key: str, data: bytes | None, px: int) -> Tensor | None:
    """uint8 [3, px, px], the middle square of the photo; None where the bytes are no photo."""
    row: Any = decode(key, data or b"", max_pixels=_MAX_PIXELS)
    if is_quarantined(row):
        return None
    square = ImageOps.fit(Image.fromarray(row["pixels"]), (px, px), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
