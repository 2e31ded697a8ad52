"""What every stage of the photo recipe sees: the photos, their labels, and ways to vary them.

Legend: x_B3HW pictures in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.tiny.photo import captions
from bs_ray.tiny.photo.photos import Photos, tightened
from bs_ray.tiny.stage import Stage, from_uint8

READ = tuple(name for name in captions.LABELS if name not in ("distorted", "tight"))
"""What the reader reads; how a picture is framed and whether it is distorted is known."""


@dataclass
class Album:
    """The photos, where the base lies, and the device: what every stage of this recipe sees."""

    photos: Photos
    device: torch.device
    rows: Tensor = field(init=False)
    held: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.held = self.photos.rows(), self.photos.rows(held=True)
        self.tight = self.photos.labels["tight"] > 0.5

    def framed_tightly(self, x: Tensor, rows: Tensor) -> Tensor:
        """Pictures of these rows, the wide ones among them as tight ones: what readers look at."""
        return torch.where(self.tight[rows][:, None, None, None], x, tightened(x))

    def batch(self, rng: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        """Random pictures to train on: x [count, 3, 128, 128] in [-1, 1], and their indices."""
        picked = torch.randint(len(self.rows), (count,), generator=rng, device=self.device)
        rows = self.rows[picked]
        return from_uint8(self.photos.pixels[rows]), rows

    def truth(self, names: tuple[str, ...]) -> Tensor:
        """Labels [N, len(names)] in about [0, 1], age in hundreds of years; NaN where unknown."""
        labels = self.photos.labels
        return torch.stack([labels[n] / (100 if n == "age" else 1) for n in names], dim=1)


class PhotoStage(Stage):
    """A stage on photographs."""

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.album: Album = world
        self.device = self.album.device

    def on_device(self, net: Any) -> Any:
        """The network where the photos are, laid out as convolutions like it."""
        return net.to(self.device, memory_format=torch.channels_last)


def shifted(x: Tensor, rng: torch.Generator, most: int = 6) -> Tensor:
    """Some pictures mirrored, all moved by up to `most` pixels, their borders repeated."""
    count, device = len(x), x.device
    mirrored = torch.rand(count, 1, 1, 1, generator=rng, device=device) < 0.5
    x = torch.where(mirrored, x.flip(-1), x)
    moves = torch.randint(-most, most + 1, (2, count, 1), generator=rng, device=device)
    places = torch.arange(x.shape[-1], device=device)
    down, across = ((places + m).clamp(0, x.shape[-1] - 1) for m in moves)
    batch = torch.arange(count, device=device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)


def degraded(x: Tensor, rng: torch.Generator) -> Tensor:
    """Other light, colour and sharpness, so that a reader does not tell one source by them."""
    count, device = len(x), x.device

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng, device=device)

    x = (x * draw(0.7, 1.3) + draw(-0.25, 0.25)).clamp(-1, 1)
    x = torch.lerp(x, x.mean(1, keepdim=True).expand_as(x), draw(-0.7, 1).clamp(min=0))
    small = F.avg_pool2d(x, 2)
    x = torch.lerp(x, F.interpolate(small, scale_factor=2, mode="bilinear"), draw(-1, 1).clamp(0))
    noise = torch.randn(x.shape, generator=rng, device=device)
    return x + noise * draw(-0.08, 0.08).clamp(0)


def turned_about(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turned, scaled and shifted a little: readers also see faces that are not framed exactly."""
    count, device = len(x), x.device

    def draw(most: float) -> Tensor:
        return most * (2 * torch.rand(count, generator=rng, device=device) - 1)

    angle, scale = draw(0.12), 1 + draw(0.08)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([cos, -sin, draw(0.08), sin, cos, draw(0.08)], 1).view(-1, 2, 3)
    places = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, places, padding_mode="border", align_corners=False)
