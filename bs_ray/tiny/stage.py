"""A stage of a recipe, one network to train, and what recipes share: pixels, sheets, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


class Stage:
    """One network to train. Subclasses set `net`, `loss` and `export`."""

    name: str
    steps: int
    lr: float = 1e-3
    ema_decay: float = 0.0
    device = torch.device("cpu")
    net: Any
    """The nn.Module to train; Any, for diffusers' and transformers' own methods."""

    def __init__(self, world: Any, base: Path):
        self.world = world  # the pictures that the recipe trains on
        self.base = base  # where the exported networks of earlier stages lie

    def loss(self, rng: torch.Generator) -> dict[str, Tensor]:
        """The loss of a random batch, as "loss"; other entries are shown beside it."""
        raise NotImplementedError

    def export(self) -> None:
        """Write the trained network into the base's folder."""
        raise NotImplementedError

    def sheet(self) -> Tensor | None:
        """A picture [3, H, W] in [-1, 1] of what the network does by now, where it makes one."""
        return None


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8 0..255."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def grid(x: Tensor, columns: int) -> Tensor:
    """[B, 3, H, W] -> one picture [3, rows * H, columns * W]."""
    rows = [torch.cat(list(part), dim=2) for part in x.split(columns)]
    return torch.cat(rows, dim=1)


def save_text_towers(base: Path, first: Any, second: Any, tokenizers: list[CLIPTokenizer]) -> None:
    """Write both text towers and their tokenizers into a base's folder, as SDXL has them."""
    plain = CLIPTextModel(first.config)
    own = first.state_dict()
    # The class without a projection leaves out the prefix of the one with it.
    plain.load_state_dict({k: own.get(k, own.get(f"text_model.{k}")) for k in plain.state_dict()})
    plain.half().save_pretrained(base / "text_encoder")
    second.half().save_pretrained(base / "text_encoder_2")
    for tokenizer, folder in zip(tokenizers, ("tokenizer", "tokenizer_2"), strict=True):
        tokenizer.save_pretrained(base / folder)


def write_model_index(base: Path) -> None:
    """Write the index by which `StableDiffusionXLPipeline.from_pretrained` finds the parts."""
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": False,
        "add_watermarker": None,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (base / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
