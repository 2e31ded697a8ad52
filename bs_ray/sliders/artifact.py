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

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bs_ray.config import Prompts

_CARD = "bs_ray_card"
_ROUNDING = 1e-6
"""How far a strength may lie beyond a limit that was itself computed."""


class SliderError(ValueError):
    """A slider that cannot be used; the message says got, expected and what to do."""


class Calibration(BaseModel):
    """What strengths do, as measured on the finished slider (METHOD 6)."""

    judge: str
    """What the effect was measured with, and in what unit."""
    strengths: list[float]
    """Ascending, 0 among them; the lists below go with it."""
    effect: list[float]
    """Mean change of the attribute against strength 0; outward from 0 it never falls back."""
    drift: list[float]
    """Mean perceptual distance from strength 0."""
    identity: list[float] = []
    """Mean identity similarity with strength 0, where an identity judge was at hand."""
    unit: float
    """Strength whose effect is one unit: half of what it is at the ends of the trained range, both
    sides' mean; 0 for a slider without effect."""
    low: float
    high: float
    """Usable range: beyond it the picture breaks or the effect no longer grows."""

    def scale_of(self, units: float) -> float:
        """The LoRA scale that has `units` times the effect of one unit; negative for the other way.

        Follows the measured effect within the usable range, and goes on in units of scale beyond.
        A slider without effect has no units: its scale is what was asked for.
        """
        if not self.unit or not units:
            return units
        sign = 1.0 if units > 0 else -1.0
        scales, effects = self._usable(sign)
        wanted = abs(units) * self._one
        beyond = max(0.0, wanted - float(effects[-1])) / self._one * self.unit
        return sign * (float(np.interp(wanted, effects, scales)) + beyond)

    @property
    def units(self) -> tuple[float, float]:
        """The usable range in units of effect; (0, 0) for a slider without effect."""
        if not self.unit:
            return 0.0, 0.0
        low, high = (self._usable(sign)[1][-1] / self._one for sign in (-1.0, 1.0))
        return -float(low), float(high)

    @property
    def most(self) -> float:
        """The largest scale that was measured: the hard limit."""
        return max(self.strengths)

    @property
    def _one(self) -> float:
        """The effect of one unit, both sides' mean."""
        ends = np.interp([-self.unit, self.unit], self.strengths, self.effect)
        return float(ends[1] - ends[0]) / 2

    def _usable(self, sign: float) -> tuple[np.ndarray, np.ndarray]:
        """(scales, effects) of one side from 0 to the end of the usable range, all positive."""
        end = self.high if sign > 0 else -self.low
        both = np.array([self.strengths, self.effect])[:, :: int(sign)] * sign
        return tuple(both[:, (both[0] >= 0) & (both[0] <= end)])


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
