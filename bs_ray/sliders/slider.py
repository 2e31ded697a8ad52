"""A slider: low-rank factors and the card that explains them, in one safetensors file.

Keys are diffusers' own (`<part>.<layer>.lora_A.weight` [r, in], `.lora_B.weight` [out, r], part
being "unet" or "transformer"), with alpha / r folded into B, so that any loader's scale 1.0 is our
strength 1.0.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bs_ray.config import Prompts
from bs_ray.sliders.calibration import Calibration

_CARD = "bs_ray_card"
_ROUNDING = 1e-6
"""How far a strength may lie beyond a limit that was itself computed."""


class SliderError(ValueError):
    """A slider that cannot be used; the message says got, expected and what to do."""


class Card(BaseModel):
    """What made a slider and what it is good for."""

    model_config = ConfigDict(extra="ignore")

    name: str
    version: int = 0
    """Given by the registry when published; 0 before."""
    base: str
    """The base's name or folder, for people."""
    base_id: str
    """The base's content hash, for machines; "" for an imported slider whose base is unknown."""
    family: str = "sdxl"
    """Model family, as in `models.FAMILIES`."""
    part: str = "unet"
    """The denoiser's folder in the diffusers layout: "unet" or "transformer"."""
    prompts: Prompts | None = None
    """None for a slider made from pictures, or imported without its prompts."""
    pictured: str = ""
    """What a slider without prompts acts on, in words."""
    rank: int
    calibration: Calibration | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """The job's settings and what the run measured."""

    @property
    def target(self) -> str:
        """The prompt that the slider acts on (c_t)."""
        return self.prompts.target if self.prompts else self.pictured

    def scale_of(self, strength: float, calibrated: bool = True) -> float:
        """The LoRA scale that a strength stands for: units of effect where the card has them.

        calibrated=False: the strength is the scale. Raises SliderError for a strength that is no
        number, or whose scale is beyond all that was measured.
        """
        if not math.isfinite(strength):
            raise SliderError(f"slider {self.name}: got strength {strength}; expected a number")
        measured = self.calibration
        if not measured:
            return strength
        scale, most = measured.scale_of(strength) if calibrated else strength, measured.most
        if abs(scale) > most:
            raise SliderError(
                f"slider {self.name}: got strength {strength:g}, a LoRA scale of {scale:.3g}; "
                f"expected a scale of at most {most:g}, the end of what was measured"
            )
        return scale

    def beyond(self, strength: float, calibrated: bool = True) -> str:
        """A note where a strength is beyond the usable range, else ""."""
        measured = self.calibration
        if not measured or not measured.unit:
            return ""
        low, high = measured.units if calibrated else (measured.low, measured.high)
        if low - _ROUNDING <= strength <= high + _ROUNDING:
            return ""
        return f"{self.name} {strength:g} is beyond its usable range, {low:.2g} to {high:.2g}"


@dataclass(frozen=True)
class Slider:
    """Factors per layer of the denoiser, float32: (A [r, in, ...], B [out, r, ...])."""

    card: Card
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def reference(self) -> str:
        """name@version."""
        return f"{self.card.name}@{self.card.version}"

    def to_bytes(self) -> bytes:
        """The safetensors file; equal sliders give equal bytes."""
        tensors = {}
        for layer, (a, b) in sorted(self.factors.items()):
            tensors[f"{self.card.part}.{layer}.lora_A.weight"] = a.detach().float().contiguous()
            tensors[f"{self.card.part}.{layer}.lora_B.weight"] = b.detach().float().contiguous()
        # One header entry only: safetensors writes several in no fixed order.
        return save(tensors, metadata={_CARD: self.card.model_dump_json()})

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Slider:
        """Read what `to_bytes` wrote. Raises SliderError, naming `source`, for anything else."""
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = load(data)
            card = Card.model_validate_json(header["__metadata__"][_CARD])
        except (SafetensorError, ValueError, KeyError, ValidationError) as error:
            raise SliderError(
                f"slider {source}: got a file that is not a bs_ray slider "
                f"({type(error).__name__}); expected the .safetensors file that `bs-ray train` "
                "publishes"
            ) from None
        factors = {}
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                stem = key.removesuffix(".lora_A.weight")
                factors[stem.removeprefix(f"{card.part}.")] = (a, tensors[f"{stem}.lora_B.weight"])
        if not all(torch.isfinite(t).all() for pair in factors.values() for t in pair):
            raise SliderError(f"slider {source}: got weights that are not finite; train it again")
        return cls(card, factors)

    def check_base(self, base_id: str) -> None:
        """Raise SliderError unless the slider was trained on the base with this hash.

        An imported slider that names no base passes here: its layers' shapes decide (`attach`).
        """
        if self.card.base_id and self.card.base_id != base_id:
            raise SliderError(
                f"slider {self.reference}: got base {base_id}; expected {self.card.base_id} "
                f"({self.card.base}), which it was trained on. Use that base, or train it again"
            )
