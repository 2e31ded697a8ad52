"""A slider: low-rank factors and the card that explains them, in one safetensors file.

Keys are diffusers' own (`<part>.<layer>.lora_A.weight` [r, in], `.lora_B.weight` [out, r], part
being "unet" or "transformer"), with alpha / r folded into B, so that any loader's scale 1.0 is our
strength 1.0.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel


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
