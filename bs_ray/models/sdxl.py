"""The SDXL family, of which `tiny` and `tiny-photo` are members."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from bs_ray.models.base import Condition, Framing
from bs_ray.models.diffusion import Prediction, classifier_free
from bs_ray.models.folder import (
    clip_tokens,
    need_parts,
    read_part,
    read_tokenizer,
    scheduler_config,
    token_ids,
    zero_for_empty,
)
from bs_ray.models.identity import base_hash
from bs_ray.models.schedulers import diffusion_of

_TARGET = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$")
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")


class SDXL:
    """A Stable Diffusion XL base from a diffusers folder (Podell et al. 2023). Frozen."""

    family, part = "sdxl", "unet"
    framing: Framing | None = None
    former_ids: tuple[str, ...] = ()

    def __init__(
        self,
        unet: Any,
        vae: Any,
        encoders: tuple[Any, Any],
        tokenizers: tuple[Any, Any],
        prediction: Prediction,
        base_id: str,
        zero_for_empty: bool = False,
    ):
        """zero_for_empty: whether zeros stand for the empty prompt, as published SDXL has it."""
        self.unet, self.vae = unet, vae
        self.text_encoders, self.tokenizers = encoders, tokenizers
        self.prediction = prediction
        self.base_id, self._zero_for_empty = base_id, zero_for_empty
        for part in (unet, vae, *encoders):
            part.eval().requires_grad_(False)
        self._factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = unet.config.sample_size
        self.latent_shape = (unet.config.in_channels, side, side)
        self.native_px = side * self._factor
        self.multiple_px = self._factor * 2 ** (len(unet.config.block_out_channels) - 1)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        unet: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> SDXL:
        """Load a diffusers folder. A given `unet`, such as one in training, replaces its own.

        Raises BaseNotFound where a part is missing. Nothing is downloaded.
        """
        folder, own = Path(folder), unet is None
        parts = [*_PARTS, *(["unet", "scheduler"] if own else [])]
        repo = "stabilityai/stable-diffusion-xl-base-1.0"
        need_parts(folder, parts, "a diffusers SDXL folder", repo)

        def read(part_class: Any, part: str) -> Any:
            return read_part(part_class, folder / part, dtype, device)

        return cls(
            unet=read(UNet2DConditionModel, "unet") if own else unet,
            vae=read(AutoencoderKL, "vae"),
            encoders=(
                read(CLIPTextModel, "text_encoder"),
                read(CLIPTextModelWithProjection, "text_encoder_2"),
            ),
            tokenizers=tuple(
                read_tokenizer(CLIPTokenizer, folder / p) for p in ("tokenizer", "tokenizer_2")
            ),
            prediction=diffusion_of(scheduler_config(folder), folder),
            base_id=base_hash(folder) if own else "untrained",
            zero_for_empty=zero_for_empty(folder),
        )

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    guide = staticmethod(classifier_free)

    def encode(self, images: Tensor) -> Tensor:
        latents = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        mean, deviation = self._norm(latents.device)
        return (latents.float() - mean) * self.vae.config.scaling_factor / deviation

    def decode(self, latents: Tensor) -> Tensor:
        mean, deviation = self._norm(latents.device)
        z = latents * deviation / self.vae.config.scaling_factor + mean
        return self.vae.decode(z.to(self.vae.dtype)).sample.float()

    def _norm(self, device: torch.device) -> tuple[Any, Any]:
        """Mean and standard deviation of the latents' channels, where the VAE's config has both."""
        found = self.vae.config.latents_mean, self.vae.config.latents_std
        if None in found:
            return 0.0, 1.0
        mean, deviation = torch.tensor(found, device=device).view(2, 1, -1, 1, 1)
        return mean, deviation

    def readers(self) -> list[tuple[Any, int]]:
        return [(tokenizer, clip_tokens(tokenizer)) for tokenizer in self.tokenizers]

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        states = []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = token_ids(tokenizer, prompts, tokenizer.model_max_length)
            output = encoder(ids.to(self.device), output_hidden_states=True)
            # SDXL reads the last but one layer of both towers, and the second tower's projection.
            states.append(output.hidden_states[-2])
        tokens, pooled = torch.cat(states, dim=-1), output.text_embeds
        if self._zero_for_empty:
            said = torch.tensor([bool(prompt) for prompt in prompts], device=tokens.device)
            tokens, pooled = tokens * said.view(-1, 1, 1), pooled * said.view(-1, 1)
        return Condition(tokens, pooled)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        height, width = (side * self._factor for side in x_t.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], device=x_t.device)
        assert condition.pooled is not None
        added = {
            "text_embeds": condition.pooled,
            "time_ids": size.expand(len(x_t), 6).to(condition.pooled.dtype),
        }
        dtype = self.unet.dtype
        tokens = condition.tokens.to(dtype)
        return self.unet(
            x_t.to(dtype), t, encoder_hidden_states=tokens, added_cond_kwargs=added
        ).sample.float()

    def slider_targets(self) -> list[str]:
        return [
            name
            for name, layer in self.unet.named_modules()
            if isinstance(layer, nn.Linear) and _TARGET.search(name)
        ]
