"""The Z-Image family."""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from torch import Tensor
from transformers import Qwen3ForCausalLM

from bs_ray.models.base import Condition, ragged
from bs_ray.models.chat import ChatTower
from bs_ray.models.diffusion import FlowMatching
from bs_ray.models.flow import flow_shift, linear_mu


class ZImage(ChatTower):
    """A Z-Image base from a diffusers folder (Tongyi-MAI 2025). Frozen.

    diffusers writes its guidance as cond + g (cond - uncond): a `guidance_scale` of g there is
    1 + g here, as in every other family.
    """

    family, thinking = "z-image", True
    networks = (ZImageTransformer2DModel, AutoencoderKL, Qwen3ForCausalLM)
    source = ("a diffusers Z-Image folder", "Tongyi-MAI/Z-Image-Turbo")
    # `context_refiner` is left out, since it sees text alone; `layers` carry both streams.
    targets = re.compile(
        r"(noise_refiner|layers)\.\d+\.(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text: tuple[Any, Any],
        scheduler: dict[str, Any],
        base_id: str,
    ):
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = vae.config.sample_size // factor
        mu = linear_mu(scheduler, (side // 2) ** 2)
        super().__init__(
            transformer,
            vae,
            FlowMatching(shift=flow_shift(scheduler, mu)),
            base_id,
            text,
            channels=transformer.config.in_channels,
            native_px=vae.config.sample_size,
            factor=factor,
            multiple_px=2 * factor,
        )

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> the states of their own tokens in the last but one layer."""
        inputs = self.tokens(prompts)
        states = self.text[1](
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask.bool(),
            output_hidden_states=True,
        ).hidden_states[-2]
        return ragged(states, inputs.attention_mask)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity n - x0 at x_t [B, 16, h, w], h and w even; float32."""
        dtype = self.transformer.dtype
        # The network counts time from noise (0) to picture (1), and its velocity points that way
        # too.
        towards_picture = self.transformer(
            list(x_t.to(dtype).unsqueeze(2)),
            1 - self.prediction.sigma(t),
            [tokens.to(dtype) for tokens in condition.texts()],
        ).sample
        return -torch.stack(list(towards_picture)).squeeze(2).float()
