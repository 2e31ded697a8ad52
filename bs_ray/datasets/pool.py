"""The photos of a training run: decoded once, encoded at first use, addressed by number.

The same photos give the same pool on every worker and after every restart, in whatever order they
arrive: which photos are kept, and their numbers, depend on their keys alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from bs_ray.config.base import MAX_PIXELS
from bs_ray.images.decode import decode
from bs_ray.images.faces import FaceDetector
from bs_ray.images.regions import crop, region_of
from bs_ray.images.rows import is_quarantined
from bs_ray.models.base import DiffusionModel, latent_shape_at
from bs_ray.models.diffusion import sample_euler

MAX_PHOTOS = 2000
MAX_BYTES = 1 << 30
"""A pool holds at most this many photos and decoded bytes: 2,000 at 64 px, 341 at 1024 px."""
MAX_FACES = 500
"""The same where faces have to be found, which every worker does: 25 ms each."""
FACE_MARGIN = 0.3
"""What is added to a face's box on every side, as a share of its longer side, where the base does
not say where it expects the eyes: what editing does."""
_GENERATED, _GENERATED_STEPS, _GENERATED_GUIDANCE = 32, 20, 4.0
_LISTED = 5


class PhotosError(ValueError):
    """The photos cannot be trained on; the message says got, expected and what to do."""


class PhotoPool:
    """Square photos of one size, uint8 [N, 3, px, px], sorted by key."""

    def __init__(
        self,
        keys: Sequence[str],
        pixels: Tensor,
        model: DiffusionModel,
        broken: Sequence[str] = (),
        faceless: Sequence[str] = (),
    ):
        """broken, faceless: keys of the photos that were left out, since they do not decode or show
        no face."""
        self.keys, self.pixels, self.model, self.broken = list(keys), pixels, model, list(broken)
        self.faceless = list(faceless)
        self._latents: dict[int, Tensor] = {}

    @classmethod
    def load(
        cls,
        rows: Iterable[Mapping[str, Any]],
        model: DiffusionModel,
        px: int | None = None,
        max_broken_share: float = 0.5,
        detector: FaceDetector | None = None,
    ) -> PhotoPool:
        """Rows with `key` and `bytes` (an encoded image) -> a pool of px x px photos.

        They are the photos' middle squares; with a detector the largest face of each photo, framed
        as an editor would show it to this base, and photos without a face are left out. Photos that
        cannot be decoded are left out and listed in `broken`. Raises PhotosError where there is no
        photo, or where more than `max_broken_share` of them are broken.
        """
        px = px or model.native_px
        most = MAX_FACES if detector else MAX_PHOTOS
        kept = _sample(rows, min(most, MAX_BYTES // (3 * px * px)))
        shown: dict[str, Tensor] = {}
        broken, faceless = [], []
        for key, data in kept:  # one at a time, since photos may be large
            row: Any = decode(key, data or b"", max_pixels=MAX_PIXELS)
            if is_quarantined(row):
                broken.append(key)
            elif (square := _seen(row["pixels"], px, model, detector)) is None:
                faceless.append(key)
            else:
                shown[key] = square
        if len(broken) == len(kept) or len(broken) > max_broken_share * len(kept):
            raise PhotosError(
                f"photos: got {len(kept)}, of which {len(broken)} do not decode"
                f"{f' ({_some(broken)})' if broken else ''}; expected JPEG or PNG images, at most "
                f"{max_broken_share:.0%} of them broken. Repair these and ingest them again "
                "(bs-ray ingest), or raise max_broken_share"
            )
        if not shown:
            raise PhotosError(
                f"photos: got {len(faceless)} in which no face was found ({_some(faceless)}); "
                "expected faces, since region is face. Set region=photo, or take other photos"
            )
        return cls(list(shown), torch.stack(list(shown.values())), model, broken, faceless)

    @classmethod
    def generated(cls, model: DiffusionModel, prompts: Sequence[str], seed: int) -> PhotoPool:
        """A pool that the base generates, from `prompts` in turn, for a job without photos."""
        texts = [prompts[i % len(prompts)] for i in range(_GENERATED)]
        keys = [f"drawn-{i:03d}" for i in range(_GENERATED)]
        parts = [
            sample_euler(
                model,
                [text],
                [key],
                seed=seed,
                steps=_GENERATED_STEPS,
                guidance_scale=_GENERATED_GUIDANCE,
            )
            for text, key in zip(texts, keys, strict=True)
        ]
        with torch.no_grad():
            images = torch.cat([model.decode(part).clamp(-1, 1).cpu() for part in parts])
        return cls(keys, ((images + 1) * 127.5).round().to(torch.uint8), model)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def px(self) -> int:
        """Side of the photos in pixels."""
        return int(self.pixels.shape[-1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a photo's latents."""
        return latent_shape_at(self.model, self.px)

    def images(self, numbers: list[int]) -> Tensor:
        """Photos as float32 [B, 3, px, px] in [-1, 1]."""
        return self.pixels[numbers].to(self.model.device).float() / 127.5 - 1

    @torch.no_grad()
    def latents(self, numbers: list[int]) -> Tensor:
        """The latents of photos, [B, C, h, w]."""
        for number in numbers:
            if number not in self._latents:
                # One at a time, since a photo's latents must not depend on what is encoded with it.
                self._latents[number] = self.model.encode(self.images([number]))[0]
        return torch.stack([self._latents[number] for number in numbers])


def _sample(rows: Iterable[Mapping[str, Any]], limit: int) -> list[tuple[str, bytes]]:
    """(key, bytes) of at most `limit` rows, sorted by key. A hash of the key decides which."""
    kept: list[tuple[str, str, bytes]] = []
    for row in rows:
        digest = hashlib.sha256(row["key"].encode()).hexdigest()
        kept.append((digest, row["key"], row["bytes"]))
        if len(kept) >= 2 * limit:
            kept = _first(kept, limit)
    return sorted((key, data) for _, key, data in _first(kept, limit))


def _first(rows: list[tuple[str, str, bytes]], limit: int) -> list[tuple[str, str, bytes]]:
    return sorted(rows, key=lambda row: row[:2])[:limit]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:_LISTED]) + (", ..." if len(keys) > _LISTED else "")


def _seen(
    pixels: np.ndarray, px: int, model: DiffusionModel, detector: FaceDetector | None
) -> Tensor | None:
    """uint8 [3, px, px]: what the base is shown of a photo; None where no face is found."""
    if detector is None:
        square = ImageOps.fit(Image.fromarray(pixels), (px, px), Image.Resampling.BICUBIC)
        found = np.array(square)
    else:
        face = max(detector.find(pixels), key=lambda face: face.area, default=None)
        if face is None:
            return None
        found = crop(pixels, region_of(face, model.framing, FACE_MARGIN), px).copy()
    return torch.from_numpy(found).permute(2, 0, 1).contiguous()
