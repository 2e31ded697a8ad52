"""The Flux.1 family (dev, schnell)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from bs_ray.models.base import Condition
from bs_ray.models.diffusion import FlowMatching
from bs_ray.models.flow import FlowModel, flow_shift, linear_mu, picture_of, tokens_of
from bs_ray.models.folder import (
    clip_tokens,
    need_parts,
    read_part,
    read_tokenizer,
    scheduler_config,
    token_ids,
)
from bs_ray.models.identity import base_hash

_PARTS = (
    *("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "scheduler",
)
_T5_TOKENS = 512  # diffusers' default max_sequence_length


class Flux(FlowModel):
    """A Flux.1 base from a diffusers folder (Black Forest Labs 2024). Frozen.

    Latents are the autoencoder's own, [B, 16, H / 8, W / 8]; the transformer sees 2 x 2 patches.
    """

    family = "flux"
    # The layers of the image stream; the layers of a single block carry both streams.
    targets = re.compile(
        r"transformer_blocks\.\d+\.(attn\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        clip: tuple[Any, Any],
        t5: tuple[Any, Any],
        scheduler: dict[str, Any],
        base_id: str,
        guidance: float,
    ):
        """clip, t5: (tokenizer, encoder)."""
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = vae.config.sample_size // factor
        mu = linear_mu(scheduler, (side // 2) ** 2)
        super().__init__(
            transformer,
            vae,
            FlowMatching(shift=flow_shift(scheduler, mu)),
            base_id,
            channels=transformer.config.in_channels // 4,
            native_px=vae.config.sample_size,
            factor=factor,
            multiple_px=2 * factor,
        )
        self.clip, self.t5, self.guidance = clip, t5, guidance

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        guidance: float = 3.5,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Flux:
        """Load a diffusers folder. Raises BaseNotFound where a part is missing.

        guidance: the guidance that Flux.1-dev gets as an input, by default diffusers' own; a slider
        fits the guidance that it was trained at. Flux.1-schnell takes none.
        """
        folder = Path(folder)
        need_parts(folder, _PARTS, "a diffusers Flux.1 folder", "black-forest-labs/FLUX.1-dev")

        def read(part_class: Any, part: str) -> Any:
            return read_part(part_class, folder / part, dtype, device)

        return cls(
            read(FluxTransformer2DModel, "transformer"),
            read(AutoencoderKL, "vae"),
            clip=(
                read_tokenizer(CLIPTokenizer, folder / "tokenizer"),
                read(CLIPTextModel, "text_encoder"),
            ),
            t5=(
                read_tokenizer(AutoTokenizer, folder / "tokenizer_2"),
                read(T5EncoderModel, "text_encoder_2"),
            ),
            scheduler=scheduler_config(folder),
            base_id=base_hash(folder),
            guidance=guidance,
        )

    def readers(self) -> list[tuple[Any, int]]:
        return [(self.clip[0], clip_tokens(self.clip[0])), (self.t5[0], _T5_TOKENS - 1)]

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> T5's 512 states, of which padding is attended to, and CLIP's pooled state."""
        tokenizer, encoder = self.clip
        ids = token_ids(tokenizer, prompts, tokenizer.model_max_length)
        pooled = encoder(ids.to(self.device)).pooler_output
        tokenizer, encoder = self.t5
        ids = token_ids(tokenizer, prompts, _T5_TOKENS)
        return Condition(encoder(ids.to(self.device))[0], pooled)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity n - x0 at x_t [B, 16, h, w], h and w even; float32."""
        dtype = self.transformer.dtype
        assert condition.pooled is not None
        patches = F.pixel_unshuffle(x_t.to(dtype), 2)
        height, width = patches.shape[-2:]
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(x_t),), self.guidance, device=x_t.device)
        velocity = self.transformer(
            hidden_states=tokens_of(patches),
            timestep=self.sigma_input(t),
            guidance=guidance,
            pooled_projections=condition.pooled.to(dtype),
            encoder_hidden_states=condition.tokens.to(dtype),
            txt_ids=x_t.new_zeros(condition.tokens.shape[1], 3, dtype=torch.int64),
            img_ids=_positions(height, width, x_t.device),
        ).sample
        return F.pixel_shuffle(picture_of(velocity, height, width), 2).float()


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """(0, row, column) of every image token: int64 [h w, 3]."""
    axes = (torch.arange(count, device=device) for count in (1, height, width))
    return torch.cartesian_prod(*axes)
