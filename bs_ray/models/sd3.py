"""The Stable Diffusion 3 family (SD3, SD3.5), of which `tiny-flow` is a member."""

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
from bs_ray.models.flow import FlowModel, flow_shift, linear_mu
from bs_ray.models.folder import (
    clip_tokens,
    need_parts,
    read_part,
    read_tokenizer,
    scheduler_config,
    token_ids,
)
from bs_ray.models.identity import base_hash

_PARTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
_T5_TOKENS = 256  # diffusers' default max_sequence_length


class SD3(FlowModel):
    """A Stable Diffusion 3 base from a diffusers folder (Esser et al. 2024). Frozen.

    A folder without `text_encoder_3` (T5) is used with its two CLIP towers alone, as by diffusers
    with `max_sequence_length=0`.
    """

    family = "sd3"
    # Layers of the image stream only: since attention is joint, a slider that moved text rows would
    # also move the picture's layout.
    targets = re.compile(
        r"transformer_blocks\.\d+\.(attn2?\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        clips: tuple[Any, Any],
        tokenizers: tuple[Any, Any],
        t5: tuple[Any, Any] | None,
        scheduler: dict[str, Any],
        base_id: str,
    ):
        """t5: (tokenizer, encoder), or None."""
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side, patch = transformer.config.sample_size, transformer.config.patch_size
        mu = linear_mu(scheduler, (side // patch) ** 2)
        super().__init__(
            transformer,
            vae,
            FlowMatching(shift=flow_shift(scheduler, mu)),
            base_id,
            channels=transformer.config.in_channels,
            native_px=side * factor,
            factor=factor,
            multiple_px=factor * patch,
        )
        self.clips, self.tokenizers, self.t5 = clips, tokenizers, t5

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        transformer: nn.Module | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> SD3:
        """Load a diffusers folder. A given `transformer`, such as one in training, replaces it.

        Raises BaseNotFound where a part is missing. Nothing is downloaded.
        """
        folder, own = Path(folder), transformer is None
        parts = [*_PARTS, *(["transformer", "scheduler"] if own else [])]
        what = "a diffusers Stable Diffusion 3 folder"
        need_parts(folder, parts, what, "stabilityai/stable-diffusion-3.5-medium")

        def read(part_class: Any, part: str) -> Any:
            return read_part(part_class, folder / part, dtype, device)

        t5 = None
        if (folder / "text_encoder_3").is_dir():
            tokenizer = read_tokenizer(AutoTokenizer, folder / "tokenizer_3")
            t5 = tokenizer, read(T5EncoderModel, "text_encoder_3")
        return cls(
            transformer=read(SD3Transformer2DModel, "transformer") if own else transformer,
            vae=read(AutoencoderKL, "vae"),
            clips=(
                read(CLIPTextModelWithProjection, "text_encoder"),
                read(CLIPTextModelWithProjection, "text_encoder_2"),
            ),
            tokenizers=tuple(
                read_tokenizer(CLIPTokenizer, folder / p) for p in ("tokenizer", "tokenizer_2")
            ),
            t5=t5,
            scheduler=scheduler_config(folder),
            base_id=base_hash(folder) if own else "untrained",
        )

    def readers(self) -> list[tuple[Any, int]]:
        clips = [(tokenizer, clip_tokens(tokenizer)) for tokenizer in self.tokenizers]
        return [*clips, (self.t5[0], _T5_TOKENS - 1)] if self.t5 else clips

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> the states of both CLIP towers, then T5's, and the towers' projections."""
        states, pooled = [], []
        for tokenizer, encoder in zip(self.tokenizers, self.clips, strict=True):
            ids = token_ids(tokenizer, prompts, tokenizer.model_max_length)
            output = encoder(ids.to(self.device), output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        tokens = torch.cat(states, dim=-1)
        width = self.transformer.config.joint_attention_dim
        tokens = F.pad(tokens, (0, width - tokens.shape[-1]))
        if self.t5:
            tokenizer, encoder = self.t5
            ids = token_ids(tokenizer, prompts, _T5_TOKENS)
            tokens = torch.cat([tokens, encoder(ids.to(self.device))[0]], dim=1)
        return Condition(tokens, torch.cat(pooled, dim=-1))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity n - x0 at x_t [B, 16, h, w]; float32."""
        dtype = self.transformer.dtype
        assert condition.pooled is not None
        return self.transformer(
            hidden_states=x_t.to(dtype),
            timestep=self.prediction.sigma(t) * self.prediction.num_train_timesteps,
            encoder_hidden_states=condition.tokens.to(dtype),
            pooled_projections=condition.pooled.to(dtype),
        ).sample.float()
