"""The Qwen-Image family."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from bs_ray.models.base import Condition, ragged
from bs_ray.models.diffusion import FlowMatching, classifier_free
from bs_ray.models.flow import OneTower, flow_shift, linear_mu, picture_of, tokens_of

_NATIVE_PX = 1024  # diffusers' default; nothing in the folder tells it
_TOKENS = 1024  # of the longest prompt, without the template
# The instruction that the text encoder was trained with, and how many of its tokens are dropped.
_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity,"
    " text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_DROPPED = 34


class QwenImage(OneTower):
    """A Qwen-Image base from a diffusers folder (Wu et al. 2025). Frozen.

    Its autoencoder is made for video, in which a picture is a film of one frame.
    """

    family = "qwen-image"
    networks = (
        QwenImageTransformer2DModel,
        AutoencoderKLQwenImage,
        Qwen2_5_VLForConditionalGeneration,
    )
    source = ("a diffusers Qwen-Image folder", "Qwen/Qwen-Image")
    targets = re.compile(
        r"transformer_blocks\.\d+\.(attn\.to_(q|k|v|out\.0)|img_mlp\.net\.(0\.proj|2))"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text: tuple[Any, Any],
        scheduler: dict[str, Any],
        base_id: str,
    ):
        factor = 2 ** len(vae.config.temperal_downsample)
        mu = linear_mu(scheduler, (_NATIVE_PX // factor // 2) ** 2)
        super().__init__(
            transformer,
            vae,
            FlowMatching(shift=flow_shift(scheduler, mu)),
            base_id,
            text,
            channels=vae.config.z_dim,
            native_px=_NATIVE_PX,
            factor=factor,
            multiple_px=2 * factor,
        )

    def _norm(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents' channels, each float32 [1, C, 1, 1]."""
        numbers = torch.tensor([self.vae.config.latents_mean, self.vae.config.latents_std])
        mean, deviation = numbers.to(self.device).view(2, 1, -1, 1, 1)
        return mean, deviation

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> latents float32, the posterior's mean."""
        film = images.to(self.device, self.vae.dtype).unsqueeze(2)
        mean, deviation = self._norm()
        latents: Tensor = self.vae.encode(film).latent_dist.mean.squeeze(2)
        return (latents.float() - mean) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> images, float32, not clipped."""
        mean, deviation = self._norm()
        film = (latents * deviation + mean).to(self.vae.dtype).unsqueeze(2)
        images: Tensor = self.vae.decode(film).sample.squeeze(2)
        return images.float()

    @staticmethod
    def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance that keeps the norm that every 2 x 2 patch has in `cond`."""
        mixed = F.pixel_unshuffle(classifier_free(cond, uncond, scale), 2)
        length = F.pixel_unshuffle(cond, 2).norm(dim=1, keepdim=True)
        return F.pixel_shuffle(mixed * (length / mixed.norm(dim=1, keepdim=True)), 2)

    def readers(self) -> list[tuple[Any, int]]:
        tokenizer = self.text[0]
        taken = len(tokenizer(_TEMPLATE.format("")).input_ids)
        return [(tokenizer, _TOKENS + _DROPPED - taken)]

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Condition:
        """Prompts -> the last layer's states of their own tokens, without the instruction's."""
        tokenizer, encoder = self.text
        inputs = tokenizer(
            [_TEMPLATE.format(prompt) for prompt in prompts],
            padding=True,
            max_length=_TOKENS + _DROPPED,
            truncation=True,
            return_tensors="pt",
        )
        states = encoder(
            input_ids=inputs.input_ids.to(self.device),
            attention_mask=inputs.attention_mask.to(self.device),
            output_hidden_states=True,
        ).hidden_states[-1]
        return ragged(states, inputs.attention_mask, _DROPPED)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The velocity n - x0 at x_t [B, 16, h, w], h and w even; float32."""
        dtype = self.transformer.dtype
        patches = F.pixel_unshuffle(x_t.to(dtype), 2)
        height, width = patches.shape[-2:]
        velocity = self.transformer(
            hidden_states=tokens_of(patches),
            timestep=self.sigma_input(t),
            encoder_hidden_states=condition.tokens.to(dtype),
            encoder_hidden_states_mask=condition.mask,
            img_shapes=[[(1, height, width)]] * len(x_t),
        ).sample
        return F.pixel_shuffle(picture_of(velocity, height, width), 2).float()
