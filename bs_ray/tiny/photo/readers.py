"""Networks that read labels off photographs: one completes the captions, one is a loss's eyes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JUDGE_PX, JudgeNet
from bs_ray.tiny.photo import captions, nets
from bs_ray.tiny.photo.album import READ, Album, PhotoStage, degraded, turned_about
from bs_ray.tiny.stage import from_uint8


class _Reading(PhotoStage):
    """A network that reads labels off a picture, where they are known."""

    outputs: tuple[str, ...] = READ
    batch = 256

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.truth = self.album.truth(self.outputs)
        self.turned = self.outputs.index("turned")
        self.net = self.on_device(JudgeNet(list(self.outputs), self.widths()))

    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return nets.READER_WIDTHS

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, rows = self.album.batch(rng, self.batch)
        x, truth = self.album.framed_tightly(x, rows), self.truth[rows].clone()
        half = self.batch // 2  # these are mirrored, and look the other way
        x = torch.cat([x[:half], x[half:].flip(-1)])
        truth[half:, self.turned] = 1 - truth[half:, self.turned]
        seen = F.interpolate(degraded(turned_about(x, rng), rng), (JUDGE_PX, JUDGE_PX), mode="area")
        known = ~truth.isnan()
        error = (self.net(seen).float() - truth.nan_to_num()) ** 2 * known
        by_label = error.sum(0) / known.sum(0).clamp(min=1)
        shown = {n: by_label[self.outputs.index(n)].detach() for n in ("smile", "woman")}
        age = by_label[self.outputs.index("age")] * 20  # a tenth of a century counts like a coin
        return {"loss": by_label.mean() + age / len(self.outputs), **shown}


class ReaderStage(_Reading):
    """Completes the labels: what one source knows and another does not."""

    name, steps, lr, ema_decay = "photo-reader", 2500, 1e-3, 0.998

    def export(self) -> None:
        self.net.save(self.base / "judges" / "reader.safetensors")


class PerceptualStage(_Reading):
    """Its features are the perceptual distance of training losses."""

    name, steps, lr, ema_decay = "photo-perceptual", 1500, 1e-3, 0.998

    def widths(self) -> tuple[int, ...]:
        return (32, 48, 96, 128)

    def export(self) -> None:
        self.net.save(self.base / "judges" / "perceptual.safetensors")


@torch.no_grad()
def completed(album: Album, base: Path) -> dict[str, Tensor]:
    """All labels of all pictures, float32 [N] each: known ones as they are, others as read."""
    net = JudgeNet.load(base / "judges" / "reader.safetensors").to(album.device)
    known, found = album.truth(READ), []
    turned = READ.index("turned")
    for rows in torch.arange(len(album.photos.pixels), device=album.device).split(512):
        x = album.framed_tightly(from_uint8(album.photos.pixels[rows]), rows)
        x = F.interpolate(x, (JUDGE_PX, JUDGE_PX), mode="area")
        plain, mirrored = net(x), net(x.flip(-1))
        mirrored[:, turned] = 1 - mirrored[:, turned]
        found.append((plain + mirrored) / 2)
    read = torch.cat(found)
    whole = torch.where(known.isnan(), read, known)
    labels = {name: whole[:, i] * (100 if name == "age" else 1) for i, name in enumerate(READ)}
    # An age far below zero or a share beyond 1 is the reader's slip, not a fact.
    labels = {n: v.clamp(0, captions.OLDEST if n == "age" else 1) for n, v in labels.items()}
    still = torch.zeros_like(whole[:, 0])
    return {**labels, "tight": album.photos.labels["tight"], "distorted": still}
