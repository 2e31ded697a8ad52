"""A slider's card: how it was made and which strengths it takes. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from bs_ray.config import Prompts
from bs_ray.sliders.calibration import Calibration

CARD_KEY = "bs_ray_card"
"""Where a slider's file has its card: an entry of the safetensors header."""
_ROUNDING = 1e-6
"""How far a strength may lie beyond a limit that was itself computed."""


class SliderError(ValueError):
    """A slider that cannot be used; the message says got, expected and what to do."""


def not_a_slider(source: str, error: Exception) -> SliderError:
    """The error for a file that could not be read."""
    return SliderError(
        f"slider {source}: got a file that is not a bs_ray slider ({type(error).__name__}); "
        "expected the .safetensors file that `bs-ray train` publishes"
    )


class Card(BaseModel):
    """How a slider was made, and what was measured of it. A slider's file holds its `to_json`."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str
    version: int = 0
    """The registry gives a number when the slider is published; before that it is 0."""
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
    subject: str = Field("", alias="pictured")
    """What a slider without prompts acts on, in words. Files call it `pictured`."""
    rank: int
    """0 for a slider of words, which has no weights."""
    eta: float | None = None
    """Of a slider of words: what the difference of its prompts' predictions is multiplied by at
    LoRA scale 1. None for a slider with weights, whose files leave it out."""
    calibration: Calibration | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    """The job's settings and what the run measured."""
    elsewhere: str = Field("", exclude=True)
    """What every output says where the slider is used on another base than its own. No file has
    it."""

    @classmethod
    def of_file(cls, data: bytes, source: str) -> Self:
        """The card in a slider's file. Raises SliderError, which names `source`, for another
        file."""
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return cls.model_validate_json(header["__metadata__"][CARD_KEY])
        except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors
            raise not_a_slider(source, error) from None

    @property
    def target(self) -> str:
        """The prompt that the slider acts on (c_t)."""
        return self.prompts.target if self.prompts else self.subject

    @property
    def reference(self) -> str:
        """name@version, which names one slider for good; words that are not published have a hash
        of their prompts and eta in place of a version."""
        if self.eta is None or self.version or self.prompts is None:
            return f"{self.name}@{self.version}"
        said = f"{self.eta!r} {self.prompts.model_dump_json()}"
        return f"{self.name}@w{hashlib.sha256(said.encode()).hexdigest()[:8]}"

    @property
    def pulls(self) -> Mapping[str, float]:
        """Of a slider of words: prompt -> what its prediction is multiplied by at LoRA scale 1,
        which adds up to 0. Empty for a slider with weights."""
        found: dict[str, float] = {}
        if self.eta is not None and self.prompts is not None:
            sign = self.eta if self.prompts.action == "enhance" else -self.eta
            for end, factor in ((self.prompts.positive, sign), (self.prompts.negative, -sign)):
                for text in self.prompts.with_attributes(end):
                    found[text] = found.get(text, 0.0) + factor
        return found

    def to_json(self) -> str:
        """The card as a slider's file holds it."""
        return self.model_dump_json(by_alias=True, exclude=None if self.eta else {"eta"})

    def lora_scale(self, strength: float, calibrated: bool = True) -> float:
        """The LoRA scale of a strength, which counts units of effect where the card has them.

        calibrated=False: the strength is the LoRA scale. Raises SliderError for a strength that is
        not a finite number, or whose LoRA scale is larger than any that was measured.
        """
        if not math.isfinite(strength):
            raise SliderError(f"slider {self.name}: got strength {strength}; expected a number")
        measured = self.calibration
        if not measured:
            return strength
        scale, limit = measured.lora_scale(strength) if calibrated else strength, measured.max_scale
        if abs(scale) > limit:
            raise SliderError(
                f"slider {self.name}: got strength {strength:g}, a LoRA scale of {scale:.3g}; "
                f"expected a scale of at most {limit:g}, the end of what was measured"
            )
        return scale

    def note(self, strength: float, calibrated: bool = True) -> str:
        """What to tell a user about a strength: on another base, or beyond the usable range."""
        away = self.elsewhere if strength else ""
        return "; ".join(filter(None, [away, self._range_note(strength, calibrated)]))

    def _range_note(self, strength: float, calibrated: bool) -> str:
        measured = self.calibration
        if not measured or not measured.unit:
            return ""
        low, high = measured.units if calibrated else (measured.low, measured.high)
        if low - _ROUNDING <= strength <= high + _ROUNDING:
            return ""
        return f"{self.name} {strength:g} is beyond its usable range, {low:.2g} to {high:.2g}"
