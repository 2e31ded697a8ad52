"""Another tool's LoRA file, read: its tensors by key, and what else it says of itself.

Files differ in where alpha / r is: a tensor `<layer>.alpha` (kohya's sd-scripts), the settings of
PEFT (a folder's adapter_config.json, or a header's lora_adapter_metadata), or folded into a factor
(diffusers). Concept Sliders' `.pt` files have kohya's names. They are pickles, and are read by
torch's restricted loader, which builds tensors and runs nothing.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load
from torch import Tensor

from bs_ray.sliders.card import Card, SliderError

EXPORTED_CARD = "bs_ray_exported_card"
"""Header entry of an exported card: not that of our own files, which must be told apart."""

_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<side>A|B|down|up)(?:\.default(?:_\d+)?)?\.weight"  # PEFT, diffusers, kohya
    r"|(?:[._]lora|\.lora_linear_layer)\.(?P<old_side>down|up)\.weight"  # diffusers before PEFT
    r"|\.alpha)"
)
_SIDES = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}
_TEXT = re.compile(r"lora_te\d*_|lora_prior_te_|text_encoders?[._]|text_model\.")
_PREFIX = re.compile(
    r"^(?:base_model\.model\.|unet\.|transformer\.|diffusion_model\.)*"
    r"(?:lora_unet_|lora_transformer_|lycoris_)?"
)
_OTHER_KINDS = (
    ("DoRA", r"dora_scale|lora_magnitude_vector"),
    ("LoHa", r"\.hada_"),
    ("LoKr", r"\.lokr_"),
    ("OFT", r"\.b?oft_"),
    ("IA3", r"\.ia3_|\.on_input$"),
    ("VeRA", r"\.vera_lambda_"),
    ("GLoRA", r"\.[ab][12]\.weight$"),
    ("LoCon in three factors (CP, Tucker)", r"\.lora_mid\."),
    ("full difference of weights", r"\.diff(_b)?$|\.[wb]_norm$"),
)


@dataclass(frozen=True)
class LoraFile:
    """What a file holds: tensors by key, settings that scale them, and perhaps our card."""

    name: str
    tensors: dict[str, Tensor]
    config: Mapping[str, Any]
    """PEFT's settings (lora_alpha, alpha_pattern, use_rslora ...); empty where there are none."""
    header: Mapping[str, str]
    card: Card | None = None

    @property
    def trained_on(self) -> str:
        """What its header says of the base that it was trained on, "" where it says nothing."""
        about = self.header.get("ss_base_model_version") or self.header.get(
            "modelspec.architecture"
        )
        return about or ""

    def scale(self, layer: str, rank: int) -> float:
        """alpha / r of a layer, as PEFT computes it; 1 without settings."""
        alpha = self.config.get("lora_alpha")
        if alpha is None:
            return 1.0
        for pattern, own in (self.config.get("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                alpha = own
        return float(alpha) / (rank**0.5 if self.config.get("use_rslora") else rank)

    def without_text_encoder(self, drop: bool) -> tuple[LoraFile, str]:
        """The file without the text encoder's keys, and how many there were, "" for none.

        Raises SliderError where they do something and `drop` is False.
        """
        text = {key: tensor for key, tensor in self.tensors.items() if _TEXT.match(key)}
        if not text:
            return self, ""
        ups = [tensor for key, tensor in text.items() if re.search(r"up\.|lora_B\.", key)]
        idle = bool(ups) and not any(tensor.any() for tensor in ups)
        if not (drop or idle):
            raise SliderError(
                f"slider {self.name}: got {len(text)} keys of a text encoder, such as "
                f"{next(iter(text))!r}; expected LoRA weights of the denoiser alone, since the "
                "text is encoded once for all sliders. Import it with --drop-text-encoder to "
                "leave them out: the slider then does less than the file does elsewhere"
            )
        rest = {key: tensor for key, tensor in self.tensors.items() if key not in text}
        note = f"{len(text)} keys of the text encoder" + (", which did nothing" if idle else "")
        return replace(self, tensors=rest), note

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """The file's name of each layer -> its "down", "up" and perhaps "alpha".

        Raises SliderError for keys of another kind, and for half a LoRA.
        """
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            match = _KEY.fullmatch(key)
            if match is None:
                raise SliderError(
                    f"slider {self.name}: got an unknown key {key!r}; expected LoRA weights of a "
                    "denoiser, named as diffusers, PEFT or kohya's sd-scripts name them"
                )
            parts = found.setdefault(_bare(match["layer"]), {})
            side = _SIDES[match["side"] or match["old_side"]]
            if side in parts:
                raise SliderError(
                    f"slider {self.name}: got {side} twice for one layer, at {key!r}; expected "
                    "one LoRA in one file"
                )
            parts[side] = tensor
        for layer, parts in found.items():
            if not {"down", "up"} <= parts.keys():
                raise SliderError(
                    f"slider {self.name}: got half a LoRA for layer {layer}; expected both "
                    "factors. Is the file whole?"
                )
        if not found:
            raise SliderError(f"slider {self.name}: got no tensors; expected LoRA weights")
        return found


def read_lora(path: Path, part: str) -> LoraFile:
    """Read a file (.safetensors, .pt) or PEFT folder. Nothing in it is executed.

    part: the base's, "unet" or "transformer". Raises SliderError where it holds no plain LoRA.
    """
    if not path.exists():
        raise SliderError(f"slider: got {path}, which does not exist; expected a LoRA file")
    try:
        if path.is_dir():
            config = {"lora_alpha": 1.0} | json.loads((path / "adapter_config.json").read_text())
            found = _safetensors(path / "adapter_model.safetensors", path.name, config)
        elif path.suffix == ".safetensors":
            found = _safetensors(path, path.name, _diffusers_config(_header(path), part))
        else:
            found = LoraFile(path.name, _unpickled(path.read_bytes()), {}, {})
    except Exception as error:  # a damaged pickle makes torch's loader raise almost anything
        raise _no_lora(path, error) from None
    _refuse_other_kinds(found)
    return found


def _refuse_other_kinds(found: LoraFile) -> None:
    """Raise SliderError for an adapter that is no LoRA, by its name."""
    kind, seen = str(found.config.get("peft_type", "LORA")), "in its settings"
    if found.config.get("use_dora"):
        kind = "DoRA"
    for key in found.tensors:
        for name, pattern in _OTHER_KINDS:
            if kind == "LORA" and not _TEXT.match(key) and re.search(pattern, key):
                kind, seen = name, f"key {key!r}"
    if kind != "LORA":
        raise SliderError(
            f"slider {found.name}: got a {kind} ({seen}); expected a plain LoRA, two factors for "
            "each layer. Extract one from it, for example with sd-scripts' "
            "networks/extract_lora_from_models.py, or train it as a plain LoRA"
        )


def _bare(layer: str) -> str:
    """A file's name of a layer without the network's name and attention processors."""
    return _PREFIX.sub("", layer, count=1).replace(".processor.", ".")


def _safetensors(file: Path, name: str, config: Mapping[str, Any]) -> LoraFile:
    header = _header(file)
    text = header.get(EXPORTED_CARD)
    card = Card.model_validate_json(text) if text else None
    return LoraFile(name, load(file.read_bytes()), config, header, card)


def _header(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as opened:
        return dict(opened.metadata() or {})


def _diffusers_config(header: Mapping[str, str], part: str) -> dict[str, Any]:
    """PEFT's settings of one part, which diffusers keeps in the header behind the part's name."""
    flat = json.loads(header.get("lora_adapter_metadata") or "{}")
    start = f"{part}."
    return {key.removeprefix(start): value for key, value in flat.items() if key.startswith(start)}


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
