"""Sliders as other tools' LoRA files: diffusers, PEFT, and kohya's for ComfyUI, A1111, sd-scripts.

    diffusers   <part>.<layer>.lora_A.weight                    one file; alpha / r is folded into B
    PEFT        base_model.model.<layer>.lora_A.weight          a folder; alpha is in its config
    kohya       lora_unet_<layer, dots as _>.lora_down.weight   one file; each layer has its .alpha

A file's header says what such tools look for: A1111 shows a file under SDXL only where
`ss_base_model_version` says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from bs_ray.sliders.card import CARD_KEY, Card, SliderError
from bs_ray.sliders.lora_file import EXPORTED_CARD
from bs_ray.sliders.slider import Slider

FORMATS = ("diffusers", "peft", "kohya")
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

_STABILITY = "https://github.com/Stability-AI/generative-models"
_BLACK_FOREST = "https://github.com/black-forest-labs/flux"


def export(slider: Slider, form: str, dtype: str = "fp16") -> dict[str, bytes]:
    """The slider's files by name in one of FORMATS; a scale there is a lora_scale here.

    dtype: one of DTYPES. kohya names the layers of UNets alone; of a transformer ComfyUI reads
    diffusers' file.
    """
    card, factors = slider.card, dict(_cast(slider, DTYPES[dtype]))
    if not factors:
        raise SliderError(
            f"slider {card.name}: got words, which have no weights to export; expected a trained "
            "slider"
        )
    file = f"{card.name}.safetensors"
    if form == "peft":
        start = "base_model.model.{}"
        tensors = _named(factors, start + ".lora_A.weight", start + ".lora_B.weight")
        return {
            "adapter_model.safetensors": save(tensors, _about(card, factors, EXPORTED_CARD)),
            "adapter_config.json": json.dumps(_peft_config(slider), indent=2).encode(),
        }
    if form == "kohya" and card.part == "unet":
        flat = {layer.replace(".", "_"): pair for layer, pair in factors.items()}
        tensors = _named(flat, "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight")
        for layer, (a, _) in flat.items():  # alpha / r is folded into up
            tensors[f"lora_unet_{layer}.alpha"] = torch.tensor(float(a.shape[0]), dtype=a.dtype)
        about = _about(card, factors, EXPORTED_CARD) | {"ss_network_module": "networks.lora"}
        return {file: save(tensors, about)}
    start = card.part + ".{}"
    tensors = _named(factors, start + ".lora_A.weight", start + ".lora_B.weight")
    return {file: save(tensors, _about(card, factors, CARD_KEY))}


def _named(factors: Mapping[str, tuple[Tensor, Tensor]], down: str, up: str) -> dict[str, Tensor]:
    """Tensors by key. down, up: the keys of the first and the second factor around the layer."""
    first = {down.format(layer): a for layer, (a, _) in factors.items()}
    return first | {up.format(layer): b for layer, (_, b) in factors.items()}


def _cast(slider: Slider, dtype: torch.dtype) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Each layer's factors in that dtype.

    Half precision has its digits between 6e-5 and 65504 alone, and the second factor may be
    smaller than that. A power of two that goes from one factor to the other brings both to one size
    and changes nothing else.
    """
    for layer, (a, b) in slider.factors.items():
        shift = 1.0
        if dtype == torch.float16 and a.any() and b.any():
            shift = 2.0 ** round(math.log2(float(a.abs().max() / b.abs().max())) / 2)
        yield layer, ((a / shift).to(dtype).contiguous(), (b * shift).to(dtype).contiguous())


def _about(card: Card, layers: Mapping[str, Any], card_key: str) -> dict[str, str]:
    """The header, with sd-scripts' words for what it is (train_network.py, library/
    sai_model_spec.py)."""
    about = {
        card_key: card.to_json(),
        "ss_output_name": card.name,
        "ss_network_dim": str(card.rank),
        "ss_network_alpha": str(card.rank),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": card.name,
    }
    if card.prompts:
        about["modelspec.description"] = f"{card.prompts.negative} -> {card.prompts.positive}"
    if card.calibration:
        low, high = card.calibration.low, card.calibration.high
        about["modelspec.usage_hint"] = f"LoRA scale {low:.2g} to {high:.2g}"
    version, architecture, implementation = _base_words(card.family, layers)
    if version:
        about["ss_base_model_version"] = version
        about["modelspec.architecture"] = f"{architecture}/lora"
        about["modelspec.implementation"] = implementation
    return about


def _base_words(family: str, layers: Mapping[str, Any]) -> tuple[str, str, str]:
    """sd-scripts' version, architecture and implementation of a family's base; "" for a family
    that it does not know."""
    if family == "sdxl":
        return "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _STABILITY
    if family == "flux":
        return "flux1", "flux-1", _BLACK_FOREST
    if family == "sd3":
        blocks = {int(layer.split(".")[1]) for layer in layers if "transformer_blocks." in layer}
        size = "5-large" if max(blocks, default=0) >= 24 else "medium"
        if any(".attn2." in layer for layer in layers):
            size = "5-medium"
        return size, f"stable-diffusion-3-{size}", "diffusers"
    return "", "", ""


def _peft_config(slider: Slider) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": slider.card.rank,
        "lora_alpha": slider.card.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(slider.factors),
        "base_model_name_or_path": slider.card.base,
        "inference_mode": True,
    }
