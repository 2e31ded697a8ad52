"""tiny-photo's autoencoder: 128 px RGB <-> 16 x 16 x 8 latents of unit variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bs_ray.judges.network import JudgeNet
from bs_ray.tiny.photo import nets
from bs_ray.tiny.photo.album import PhotoStage, shifted
from bs_ray.tiny.photo.photos import SIZE
from bs_ray.tiny.stage import from_uint8, grid


class VaeStage(PhotoStage):
    """L1, edges at three scales and what the label reader sees; a trace of KL."""

    name, steps, lr, ema_decay = "photo-vae", 6000, 1.2e-3, 0.999
    batch = 64

    def __init__(self, world: Any, base: Path):
        super().__init__(world, base)
        self.net = self.on_device(nets.build_vae())
        reader = JudgeNet.load(base / "judges" / "reader.safetensors")
        self.reader = self.on_device(reader)
        y = torch.linspace(-1, 1, SIZE, device=self.device)[:, None]
        x = torch.linspace(-1, 1, SIZE, device=self.device)[None, :]
        # Eyes and mouth weigh more than cheeks and surroundings.
        eyes = torch.exp(-((x / 0.55) ** 2 + ((y + 0.17) / 0.25) ** 2))
        mouth = torch.exp(-((x / 0.4) ** 2 + ((y - 0.52) / 0.28) ** 2))
        self.weight = 1 + eyes + 1.5 * mouth

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        x, _ = self.album.batch(rng, self.batch)
        x = shifted(x, rng).contiguous(memory_format=torch.channels_last)
        posterior = self.net.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng, device=self.device)
        y = self.net.decode((posterior.mean + posterior.std * noise).to(x.dtype)).sample.float()
        difference = y - x
        pixels = (difference.abs() * self.weight).mean() + 2 * (difference**2 * self.weight).mean()
        edges = sum(
            F.avg_pool2d(difference, scale).diff(dim=d).abs().mean()
            for scale in (1, 2, 4)
            for d in (-1, -2)
        )
        seen = zip(self.reader.features(y)[:3], self.reader.features(x)[:3], strict=True)
        features = sum(F.l1_loss(a, b) for a, b in seen)
        loss = pixels + 0.4 * edges + 0.05 * features + 2e-7 * posterior.kl().mean()
        return {"loss": loss, "mse": (difference**2).mean().detach()}

    @torch.no_grad()
    def export(self) -> None:
        x = from_uint8(self.album.photos.pixels[self.album.rows[:2048]])
        mean = torch.cat([self.net.encode(part).latent_dist.mean.float() for part in x.split(128)])
        whiten(self.net, mean.mean((0, 2, 3)), mean.std((0, 2, 3)))
        self.net.register_to_config(scaling_factor=1.0)
        self.net.half().save_pretrained(self.base / "vae")

    @torch.no_grad()
    def held_out_psnr(self) -> float:
        """Round trip of held-out faces in dB, peak 2; the mean over faces."""
        x = from_uint8(self.album.photos.pixels[self.album.held])
        parts = [self.net(part).sample.clamp(-1, 1) - part for part in x.split(128)]
        error = (torch.cat(parts).float() ** 2).mean((1, 2, 3))
        return float((10 * torch.log10(4 / error)).mean())

    @torch.no_grad()
    def sheet(self) -> Tensor:
        print(f"{self.name}: held-out round trip {self.held_out_psnr():.2f} dB", flush=True)
        x = from_uint8(self.album.photos.pixels[self.album.held[:16]])
        y = self.net(x).sample.clamp(-1, 1)
        return grid(torch.cat([x[:8], y[:8], x[8:], y[8:]]), columns=8)


@torch.no_grad()
def whiten(vae: Any, mean: Tensor, deviation: Tensor) -> None:
    """Fold a shift and a scale of each latent channel into the autoencoder's 1 x 1 convolutions.

    Afterwards latents have mean 0 and deviation 1 in every channel, round trips are the same, and
    SDXL's one scaling factor is 1.
    """
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # the log variance
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation[None, :, None, None]
