"""The Stable Diffusion 3 family (SD3, SD3.5): the diffusers doorway. `tiny-flow` is a member."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from bs_ray.models.base import Condition
from bs_ray.models.diffusion import FlowMatching
from bs_ray.models.folder import base_hash, need_parts, read_part, scheduler_config

# The image stream only: attention is joint, and text rows that a slider moves would move the
# picture's layout with them.
_TARGET = re.compile(
    r"^transformer_blocks\.\d+\.(attn2?\.to_(q|k|v|out\.0)|ff\.net\.0\.proj|ff\.net\.2)$"
)
_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
_T5_TOKENS = 256  # diffusers' default max_sequence_length


class SD3:
    """A Stable Diffusion 3 base from a diffusers folder (Esser et al. 2024). Frozen.

    A folder without `text_encoder_3` (T5) is used with the two CLIP towers alone; diffusers does
    the same when called with `max_sequence_length=0`.
    """

    family, part = "sd3", "transformer"

    def __init__(
        self, transformer: Any, vae: Any, clips: tuple[Any, Any], tokenizers: tuple[Any, Any],
        t5: tuple[Any, Any] | None, prediction: FlowMatching, base_id: str,
    ):  # fmt: skip
        """t5: (tokenizer, encoder), or None."""
        self.transformer, self.vae = transformer, vae
        self.clips, self.tokenizers, self.t5 = clips, tokenizers, t5
        self.prediction, self.base_id = prediction, base_id
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = transformer.config.sample_size
        self.latent_shape = (transformer.config.in_channels, side, side)
        self.native_px = side * factor
        self.multiple_px = factor * transformer.config.patch_size

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        transformer: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> SD3:
        """Load a diffusers folder; `transformer` stands in for its own where given (to train one).

        Raises BaseNotFound where a part is missing. Nothing is downloaded.
        """
        folder, own = Path(folder), transformer is None
        parts = [*_PARTS, *(["transformer", "scheduler"] if own else [])]
        need_parts(folder, parts, "a diffusers Stable Diffusion 3 folder")

        def read(part_class: Any, part: str) -> Any:
            return read_part(part_class, folder / part, dtype, device)

        t5 = None
        if (folder / "text_encoder_3").is_dir():
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer_3")
            t5 = tokenizer, read(T5EncoderModel, "text_encoder_3")
        return cls(
            transformer=read(SD3Transformer2DModel, "transformer") if own else transformer,
            vae=read(AutoencoderKL, "vae"),
            clips=(
                read(CLIPTextModelWithProjection, "text_encoder"),
                read(CLIPTextModelWithProjection, "text_encoder_2"),
            ),
            tokenizers=tuple(
                CLIPTokenizer.from_pretrained(folder / p) for p in ("tokenizer", "tokenizer_2")
            ),
            t5=t5,
            prediction=FlowMatching(shift=scheduler_config(folder).get("shift", 1.0)),
            base_id=base_hash(folder) if own else "untrained",
        )

    @property
    def denoiser(self) -> nn.Module:
        return self.transformer

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def encode(self, images: Tensor) -> Tensor:
        latents = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        return (latents.float() - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        z = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(z.to(self.vae.dtype)).sample.float()

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        states, pooled = [], []
        for tokenizer, encoder in zip(self.tokenizers, self.clips, strict=True):
            ids = _ids(tokenizer, prompts, tokenizer.model_max_length)
            output = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        tokens = torch.cat(states, dim=-1)
        width = self.transformer.config.joint_attention_dim
        tokens = F.pad(tokens, (0, width - tokens.shape[-1]))
        if self.t5:
            tokenizer, encoder = self.t5
            ids = _ids(tokenizer, prompts, _T5_TOKENS)
            tokens = torch.cat([tokens, encoder(ids.to(self.device))[0]], dim=1)
        return Condition(tokens, torch.cat(pooled, dim=-1))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        dtype = self.transformer.dtype
        assert condition.pooled is not None
        return self.transformer(
            hidden_states=x_t.to(dtype),
            timestep=self.prediction.sigma(t) * self.prediction.num_train_timesteps,
            encoder_hidden_states=condition.tokens.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
        ).sample.float()

    def slider_targets(self) -> list[str]:
        # The last block drops its text stream, but its image stream is like the others'.
        return [name for name, _ in self.transformer.named_modules() if _TARGET.search(name)]


def _ids(tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    ids: Tensor = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
