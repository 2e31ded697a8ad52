"""Sliders to and from other tools' LoRA files: diffusers, PEFT, kohya / ComfyUI, Concept Sliders.

They differ in the names of layers and in where alpha / r is:

    diffusers   <part>.<layer>.lora_A.weight                    one file; alpha / r is folded into B
    PEFT        base_model.model.<layer>.lora_A.weight          a folder; alpha is in its config
    kohya       lora_unet_<layer, dots as _>.lora_down.weight   one file; each layer has its .alpha

Our own files are diffusers'. Concept Sliders' `.pt` files have kohya's names. They are pickles, and
are read by torch's restricted loader, which builds tensors and runs nothing.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from bs_ray.models.base import DiffusionModel
from bs_ray.sliders.card import Card, SliderError
from bs_ray.sliders.slider import Slider

FORMATS = ("diffusers", "peft", "kohya")

_KEY = re.compile(r"(?P<layer>.+)\.(?P<what>lora_(?:A|B|down|up)(?:\.default)?\.weight|alpha)")
_PREFIXES = ("base_model.model.", "unet.", "transformer.", "diffusion_model.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
_SGM = re.compile(r"(input_blocks|middle_block|output_blocks)_")
_CARD = "bs_ray_exported_card"  # another key than in our own files, which must be told apart
_TEXT = re.compile(r"^(lora_te|text_encoder)")


# --- export --------------------------------------------------------------------------------------
def export(slider: Slider, form: str) -> dict[str, bytes]:
    """The slider's files by name in one of FORMATS; a scale there is a lora_scale here.

    kohya names the layers of UNets alone; of a transformer ComfyUI reads diffusers' file.
    """
    name = slider.card.name
    if not slider.factors:
        raise SliderError(
            f"slider {name}: got words, which have no weights to export; expected a trained slider"
        )
    if form == "diffusers" or (form == "kohya" and slider.card.part != "unet"):
        return {f"{name}.safetensors": slider.to_bytes()}
    if form == "kohya":
        return {f"{name}.safetensors": _kohya(slider)}
    return {
        "adapter_model.safetensors": _peft_weights(slider),
        "adapter_config.json": json.dumps(_peft_config(slider), indent=2).encode(),
    }


def _kohya(slider: Slider) -> bytes:
    tensors = {}
    for layer, (a, b) in slider.factors.items():
        stem = _FLAT_PREFIXES[0] + layer.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = a.contiguous()
        tensors[f"{stem}.lora_up.weight"] = b.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(a.shape[0]))  # alpha / r is folded into up
    card = slider.card
    about = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(card.rank),
        "ss_network_alpha": str(card.rank),
        "ss_output_name": card.name,
    }
    return save(tensors, metadata=about | {_CARD: card.to_json()})


def _peft_weights(slider: Slider) -> bytes:
    tensors = {}
    for layer, (a, b) in slider.factors.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{layer}.lora_B.weight"] = b.contiguous()
    return save(tensors, metadata={_CARD: slider.card.to_json()})


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


# --- import --------------------------------------------------------------------------------------
def import_slider(path: Path, name: str, base: str, model: DiffusionModel) -> Slider:
    """A file (.safetensors, .pt) or PEFT folder as a slider for `model`, loaded as base `base`.

    Raises SliderError for a file that is no LoRA, adapts text encoders, holds numbers that are not
    finite, or has layers that this base lacks. Nothing in the file is executed.
    """
    found = _read(path)
    tensors = found.tensors
    if any(_SGM.search(key) for key in tensors):
        tensors = _from_sgm(tensors, model, path)
    names = _layer_names(model)
    layers: dict[str, Any] = dict(model.denoiser.named_modules())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for key, parts in _grouped(tensors, path).items():
        layer = names.get(key.replace(".", "_"))
        down, up = parts["down"].float(), parts["up"].float()
        _check(path, key, layers[layer].weight if layer else None, down, up)
        assert layer is not None
        scale = found.scale(key, down.shape[0])
        if "alpha" in parts:
            scale = _number(path, key, parts["alpha"]) / down.shape[0]
        factors[layer] = (down, up * scale)
    rank = max(a.shape[0] for a, _ in factors.values())
    exported = found.card
    card = Card(
        name=name,
        base=base,
        base_id=model.base_id,
        family=model.family,
        part=model.part,
        rank=rank,
        training={"imported_from": path.name},
        prompts=exported.prompts if exported else None,
        subject=exported.subject if exported else "",
        calibration=exported.calibration if exported else None,
    )
    return Slider(card, {layer: _to_rank(a, b, rank) for layer, (a, b) in factors.items()})


@dataclass(frozen=True)
class _File:
    """What a file holds: tensors by key, settings that scale them, and perhaps our card."""

    tensors: dict[str, Tensor]
    config: Mapping[str, Any]
    """PEFT's settings (lora_alpha, alpha_pattern, use_rslora ...); empty where there are none."""
    card: Card | None = None

    def scale(self, layer: str, rank: int) -> float:
        """alpha / r of a layer, as PEFT computes it; 1 without settings."""
        alpha = self.config.get("lora_alpha")
        if alpha is None:
            return 1.0
        for pattern, own in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = own
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)


def _read(path: Path) -> _File:
    """Read a file or folder. Raises SliderError where it holds no plain LoRA."""
    if not path.exists():
        raise SliderError(f"slider: got {path}, which does not exist; expected a LoRA file")
    try:
        if path.is_dir():
            config = json.loads((path / "adapter_config.json").read_text())
            file = path / "adapter_model.safetensors"
            found = _File(load(file.read_bytes()), {"lora_alpha": 1.0} | config, _card_of(file))
        elif path.suffix == ".safetensors":
            tensors = load(path.read_bytes())
            found = _File(tensors, _diffusers_config(path), _card_of(path))
        else:
            found = _File(_unpickled(path.read_bytes()), {})
    except Exception as error:  # a damaged pickle makes torch's loader raise almost anything
        raise _no_lora(path, error) from None
    kind = found.config.get("peft_type", "LORA")
    if kind != "LORA" or found.config.get("use_dora"):
        raise SliderError(
            f"slider {path.name}: got a {'DoRA' if found.config.get('use_dora') else kind}; "
            "expected a plain LoRA: other adapters are no low-rank sum that strengths can scale"
        )
    return found


def _header(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as opened:
        return dict(opened.metadata() or {})


def _card_of(file: Path) -> Card | None:
    text = _header(file).get(_CARD)
    return Card.model_validate_json(text) if text else None


def _diffusers_config(file: Path) -> dict[str, Any]:
    """PEFT's settings, which diffusers keeps in the header, each behind the part's name."""
    text = _header(file).get("lora_adapter_metadata")
    flat = json.loads(text) if text else {}
    return {key.partition(".")[2]: value for key, value in flat.items()}


def _number(path: Path, layer: str, alpha: Tensor) -> float:
    if alpha.numel() != 1 or not torch.isfinite(alpha.float()).all():
        raise SliderError(
            f"slider {path.name}: got alpha {alpha.tolist()} for {layer}; expected one number"
        )
    return float(alpha)


def _unpickled(data: bytes) -> dict[str, Tensor]:
    """The tensors of a .pt file. torch refuses all but plain data, and executes nothing."""
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"holds a {type(found).__name__}, not tensors by name")
    return found


def _no_lora(path: Path, error: Exception) -> SliderError:
    detail = str(error).partition("\n")[0][:120]
    return SliderError(
        f"slider {path.name}: got a file that holds no LoRA ({type(error).__name__}: {detail}); "
        "expected .safetensors, a PEFT folder, or a .pt of tensors alone, as Concept Sliders "
        "writes it. Nothing in it was run"
    )


def _grouped(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """Layer -> its "down", "up" and perhaps "alpha"."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None or _TEXT.match(key):
            what = "a text encoder's" if _TEXT.match(key) else "an unknown"
            raise SliderError(
                f"slider {path.name}: got {what} key {key!r}; expected LoRA weights of the "
                "denoiser alone, since the text is encoded once for all sliders"
            )
        part = match["what"].removesuffix(".weight").removesuffix(".default")
        side = {"lora_A": "down", "lora_B": "up", "lora_down": "down", "lora_up": "up"}
        groups.setdefault(_bare(match["layer"]), {})[side.get(part, "alpha")] = tensor
    for layer, parts in groups.items():
        if not {"down", "up"} <= parts.keys():
            raise SliderError(
                f"slider {path.name}: got half a LoRA for layer {layer}; expected both factors. "
                "Is the file whole?"
            )
    if not groups:
        raise SliderError(f"slider {path.name}: got no tensors; expected LoRA weights")
    return groups


def _bare(layer: str) -> str:
    for prefix in (*_PREFIXES, *_FLAT_PREFIXES):
        layer = layer.removeprefix(prefix)
    return layer


def _layer_names(model: DiffusionModel) -> dict[str, str]:
    """A layer's name with underscores for dots -> its own name."""
    names: dict[str, str] = {}
    for layer, module in model.denoiser.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            flat = layer.replace(".", "_")
            assert flat not in names, f"{layer} and {names.get(flat)}"
            names[flat] = layer
    return names


def _check(path: Path, key: str, weight: Tensor | None, down: Tensor, up: Tensor) -> None:
    fits = weight is not None and (
        down.shape[1:] == weight.shape[1:]
        and up.shape[0] == weight.shape[0]
        and up.shape[1] == down.shape[0]
    )
    if not fits:
        here = "no such layer" if weight is None else f"a layer of shape {tuple(weight.shape)}"
        raise SliderError(
            f"slider {path.name}: got factors {tuple(down.shape)} and {tuple(up.shape)} for layer "
            f"{key}, where this base has {here}; expected the base that it was trained on"
        )
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise SliderError(f"slider {path.name}: got numbers that are not finite in layer {key}")


def _from_sgm(tensors: dict[str, Tensor], model: DiffusionModel, path: Path) -> dict[str, Tensor]:
    """Tensors with kohya's names for SDXL (input_blocks_4_1...) under diffusers' names, by
    diffusers' own table."""
    from diffusers import StableDiffusionXLPipeline

    config: Any = model.denoiser.config
    if model.part != "unet":
        raise SliderError(f"slider {path.name}: got an SDXL LoRA; expected one for {model.family}")
    try:
        found, alphas = StableDiffusionXLPipeline.lora_state_dict(dict(tensors), unet_config=config)
    except (ValueError, KeyError, IndexError) as error:
        raise _no_lora(path, error) from None
    for key, alpha in (alphas or {}).items():
        found[key if key.endswith(".alpha") else f"{key}.alpha"] = torch.as_tensor(float(alpha))
    return found


def _to_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors filled up with zeros to `rank`, since some tools give layers different ranks."""
    missing = rank - a.shape[0]
    if not missing:
        return a, b
    return (
        torch.cat([a, a.new_zeros(missing, *a.shape[1:])]),
        torch.cat([b, b.new_zeros(b.shape[0], missing, *b.shape[2:])], 1),
    )
