"""The Flux.2 Klein family."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor
from transformers import Qwen3ForCausalLM

from bs_ray.models.base import Condition
from bs_ray.models.chat import ChatTower
from bs_ray.models.diffusion import FlowMatching
from bs_ray.models.flow import flow_shift, picture_of, tokens_of

_LAYERS = (9, 18, 27)  # layers of the text encoder whose states are concatenated
_STEPS = 50  # diffusers' default number of steps, on which the shift depends


class Flux2Klein(ChatTower):
    """A Flux.2 Klein base from a diffusers folder (Black Forest Labs 2026). Frozen.

    Latents are 2 x 2 patches of the autoencoder's latents, normalised by its batch norm: [B, 128,
    H / 16, W / 16].
    """

    family, thinking = "flux2-klein", False
    networks = (Flux2Transformer2DModel, AutoencoderKLFlux2, Qwen3ForCausalLM)
    source = ("a diffusers Flux.2 Klein folder", "black-forest-labs/FLUX.2-klein-4B")
    # The layers of the image stream; the two layers of a single block carry both streams.
    targets = re.compile(
        r"transformer_blocks\.\d+\.(attn\.to_(q|k|v|out\.0)|ff\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.to_(qkv_mlp_proj|out)"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text: tuple[Any, Any],
        scheduler: dict[str, Any],
        base_id: str,
    ):
        factor = 2 * 2 ** (len(vae.config.block_out_channels) - 1)
        mu = _empirical_mu((vae.config.sample_size // factor) ** 2, _STEPS)
        super().__init__(
            transformer,
            vae,
            FlowMatching(shift=flow_shift(scheduler, mu)),
            base_id,
            text,
            channels=transformer.config.in_channels,
            native_px=vae.config.sample_size,
            factor=factor,
            multiple_px=factor,
        )

    def _norm(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the patches' channels, each float32 [1, C, 1, 1]."""
        mean, variance = self.vae.bn.running_mean.float(), self.vae.bn.running_var.float()
        deviation = (variance + self.vae.config.batch_norm_eps).sqrt()
        return mean.view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents float32, the posterior's mean."""
        latents = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mean
        mean, deviation = self._norm()
        return (F.pixel_unshuffle(latents.float(), 2) - mean) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, float32, not clipped."""
        mean, deviation = self._norm()
        z = F.pixel_shuffle(latents * deviation + mean, 2)
        images: Tensor = self.vae.decode(z.to(self.vae.dtype)).sample
        return images.float()

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> the states of 512 tokens in three layers; padding is attended to."""
        inputs = self.tokens(prompts)
        states = self.text[1](
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        return Condition(torch.cat([states[layer] for layer in _LAYERS], dim=-1))

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity n - x0 at x_t [B, 128, h, w]; float32."""
        dtype = self.transformer.dtype
        height, width = x_t.shape[-2:]
        velocity = self.transformer(
            hidden_states=tokens_of(x_t.to(dtype)),
            timestep=self.sigma_input(t),
            encoder_hidden_states=condition.tokens.to(dtype),
            txt_ids=_positions(1, 1, condition.tokens.shape[1], x_t.device),
            img_ids=_positions(height, width, 1, x_t.device),
        ).sample
        return picture_of(velocity, height, width).float()


def _positions(height: int, width: int, length: int, device: torch.device) -> Tensor:
    """(0, row, column, place in the text) of every token: int64 [h w length, 4]."""
    axes = (torch.arange(count, device=device) for count in (1, height, width, length))
    return torch.cartesian_prod(*axes)


def _empirical_mu(tokens: int, steps: int) -> float:
    """mu as Flux.2's authors fitted it: a line in the tokens for 10 steps and one for 200."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) * (steps - 200) / 190
