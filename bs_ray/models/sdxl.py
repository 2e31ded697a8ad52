"""The SDXL family: the diffusers doorway. The tiny base is a member of it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from bs_ray.models.base import BaseNotFound, Condition
from bs_ray.models.diffusion import EpsPrediction

# Loading bars of their own would tear ours apart.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

_TARGET = re.compile(r"\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)$")
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")


class SDXL:
    """A Stable Diffusion XL base from a diffusers folder (Podell et al. 2023). Frozen."""

    def __init__(
        self, unet: Any, vae: Any, encoders: tuple[Any, Any], tokenizers: tuple[Any, Any],
        prediction: EpsPrediction, base_id: str,
    ):  # fmt: skip
        self.unet, self.vae = unet, vae
        self.text_encoders, self.tokenizers = encoders, tokenizers
        self.prediction = prediction
        self.base_id = base_id
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
        """Load a diffusers folder; `unet` stands in for its UNet where given (to train one).

        Raises BaseNotFound where a part is missing. Nothing is downloaded.
        """
        folder = Path(folder)
        needed = [*_PARTS, *([] if unet is not None else ["unet", "scheduler"])]
        missing = [part for part in needed if not (folder / part).is_dir()]
        if missing:
            raise BaseNotFound(
                f"base: got {folder}, which lacks {', '.join(missing)}; expected a diffusers SDXL "
                "folder. Use `tiny`, or download one first: "
                "hf download stabilityai/stable-diffusion-xl-base-1.0 --local-dir FOLDER"
            )

        def read(part_class: Any, part: str) -> Any:
            return part_class.from_pretrained(folder / part, torch_dtype=dtype).to(device)

        own = unet is None
        return cls(
            unet=read(UNet2DConditionModel, "unet") if own else unet,
            vae=read(AutoencoderKL, "vae"),
            encoders=(
                read(CLIPTextModel, "text_encoder"),
                read(CLIPTextModelWithProjection, "text_encoder_2"),
            ),
            tokenizers=tuple(
                CLIPTokenizer.from_pretrained(folder / p) for p in ("tokenizer", "tokenizer_2")
            ),
            prediction=EpsPrediction(_alphas_cumprod(folder)),
            base_id=base_hash(folder) if own else "untrained",
        )

    @property
    def denoiser(self) -> nn.Module:
        return self.unet

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def encode(self, images: Tensor) -> Tensor:
        latents = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        return latents.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        z = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(z).sample.float()

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        states = []
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(
                prompts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = encoder(ids.to(self.device), output_hidden_states=True)
            # SDXL reads the last but one layer of both towers, and the second one's projection.
            states.append(output.hidden_states[-2])
        return Condition(torch.cat(states, dim=-1), output.text_embeds)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        height, width = (side * self._factor for side in x_t.shape[-2:])
        size = torch.tensor([height, width, 0, 0, height, width], device=x_t.device)
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


def _alphas_cumprod(folder: Path) -> Tensor:
    """SDXL's scaled-linear schedule, from the folder's own scheduler file where there is one."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    file = folder / "scheduler" / "scheduler_config.json"
    if file.exists():
        found = json.loads(file.read_text())
        schedule = found.get("beta_schedule"), found.get("prediction_type", "epsilon")
        if schedule != ("scaled_linear", "epsilon"):
            raise BaseNotFound(
                f"base: got a scheduler with {schedule} in {file}; expected a scaled_linear, "
                "epsilon SDXL base"
            )
        settings = {key: found.get(key, value) for key, value in settings.items()}
    start, end = settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5
    betas = torch.linspace(start, end, int(settings["num_train_timesteps"])) ** 2
    return torch.cumprod(1 - betas, dim=0)


def base_hash(folder: Path, sample_bytes: int = 1 << 16, samples: int = 64) -> str:
    """16 hex digits that name a base by content: its UNet's and text encoders' weight files.

    Large files are sampled at `samples` places, so that 5 GB cost milliseconds.
    """
    digest = hashlib.sha256()
    for part in ("text_encoder", "text_encoder_2", "unet"):
        for file in sorted((folder / part).glob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{part}/{file.name}:{size}".encode())
            with file.open("rb") as stream:
                if size <= sample_bytes * samples:
                    digest.update(stream.read())
                    continue
                for index in range(samples):
                    stream.seek((size - sample_bytes) * index // (samples - 1))
                    digest.update(stream.read(sample_bytes))
    return digest.hexdigest()[:16]
