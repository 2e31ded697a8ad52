"""What the flow-matching families share: a transformer over image tokens, and an autoencoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from bs_ray.models.base import Framing
from bs_ray.models.diffusion import FlowMatching, classifier_free
from bs_ray.models.folder import need_parts, read_part, read_tokenizer, scheduler_config
from bs_ray.models.identity import base_hash


class FlowModel:
    """A frozen flow-matching base. A family adds `load`, `embed` and `predict`."""

    part = "transformer"
    framing: Framing | None = None
    former_ids: tuple[str, ...] = ()
    targets: re.Pattern[str]
    """Which layers of the transformer a slider adapts."""

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        prediction: FlowMatching,
        base_id: str,
        *,
        channels: int,
        native_px: int,
        factor: int,
        multiple_px: int,
    ):
        """factor: how many pixels a latent's side stands for."""
        self.transformer, self.vae = transformer, vae
        self.prediction, self.base_id = prediction, base_id
        side = native_px // factor
        self.latent_shape = (channels, side, side)
        self.native_px, self.multiple_px = native_px, multiple_px

    @property
    def denoiser(self) -> nn.Module:
        """The transformer."""
        module: nn.Module = self.transformer
        return module

    @property
    def device(self) -> torch.device:
        """The device of the transformer."""
        device: torch.device = next(self.transformer.parameters()).device
        return device

    guide = staticmethod(classifier_free)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents float32, the posterior's mean."""
        latents = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        shifted: Tensor = latents.float() - self.vae.config.shift_factor
        return shifted * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, float32, not clipped."""
        z = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample
        return images.float()

    def slider_targets(self) -> list[str]:
        """The layers of the transformer whose whole name `targets` matches."""
        return [n for n, _ in self.transformer.named_modules() if self.targets.fullmatch(n)]

    def sigma_input(self, t: Tensor) -> Tensor:
        """sigma [B] in the network's dtype, computed as the pipelines do.

        They round 1000 sigma to that dtype and then divide, which in bfloat16 gives another number.
        """
        count = self.prediction.num_train_timesteps
        rounded: Tensor = (self.prediction.sigma(t) * count).to(self.transformer.dtype)
        return rounded / count


class OneTower(FlowModel):
    """A family with one text encoder: three networks, a tokenizer and a scheduler."""

    networks: tuple[Any, Any, Any]
    """Classes of `transformer`, `vae` and `text_encoder`."""
    source: tuple[str, str]
    """What messages call its folder, and a repository to download one from."""

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        prediction: FlowMatching,
        base_id: str,
        text: tuple[Any, Any],
        **sizes: int,
    ):
        """text: (tokenizer, encoder). sizes: the sizes that FlowModel takes."""
        super().__init__(transformer, vae, prediction, base_id, **sizes)
        self.text = text

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a diffusers folder. Raises BaseNotFound where a part is missing."""
        folder = Path(folder)
        need_parts(folder, _ONE_TOWER_PARTS, *cls.source)
        parts = ("transformer", "vae", "text_encoder")
        transformer, vae, encoder = (
            read_part(network, folder / part, dtype, device)
            for network, part in zip(cls.networks, parts, strict=True)
        )
        make: Any = cls  # a family's own constructor reads the scheduler
        made: Self = make(
            transformer,
            vae,
            text=(read_tokenizer(AutoTokenizer, folder / "tokenizer"), encoder.model),
            scheduler=scheduler_config(folder),
            base_id=base_hash(folder),
        )
        return made


_ONE_TOWER_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def tokens_of(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h w, C], row by row."""
    return x.flatten(2).transpose(1, 2)


def picture_of(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, h w, C] -> [B, C, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def linear_mu(scheduler: Mapping[str, Any], tokens: int) -> float:
    """mu of a picture with so many image tokens (Flux, Z-Image, Qwen-Image)."""
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    base, top = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return float(base + (top - base) * (tokens - low) / (high - low))


def flow_shift(scheduler: Mapping[str, Any], mu: float) -> float:
    """The shift that the scheduler of a folder uses (Esser et al. 2024, Eq 23).

    scheduler: its settings. mu: matters where the scheduler shifts by the picture's size.
    """
    if not scheduler.get("use_dynamic_shifting", False):
        return float(scheduler.get("shift", 1.0))
    exponential = scheduler.get("time_shift_type", "exponential") == "exponential"
    return math.exp(mu) if exponential else mu
