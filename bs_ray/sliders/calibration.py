"""What a slider does at which LoRA scale, as measured, and the LoRA scale of a strength."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field


class Calibration(BaseModel):
    """Measurements of a finished slider (docs/method.md, "Measuring"), as its card stores them.

    Entry k of each list belongs to `strengths[k]`. These are LoRA scales, despite their name, since
    a user's strength counts the units of effect that are found here.
    """

    judge: str
    """What the effect was measured with, and in what unit."""
    strengths: list[float]
    """The LoRA scales that were measured, ascending, 0 among them."""
    effect: list[float]
    """Mean change of the attribute against scale 0; on either side it never falls back."""
    drift: list[float]
    """Mean perceptual distance from scale 0."""
    identity: list[float] = []
    """Mean identity similarity with scale 0 (1 less the judge's distance); empty where no identity
    judge was at hand."""
    judges: list[str] = Field([], exclude_if=lambda judges: not judges)
    """The judges of drift and identity, each with its version; none where no pictures were judged,
    and on cards of earlier versions, whose bytes stay what they were."""
    unit: float
    """LoRA scale whose effect is one unit, which is half of the effect at the ends of the trained
    range, averaged over both sides; 0 for a slider without effect."""
    low: float
    high: float
    """The usable range of LoRA scales; beyond it the picture breaks or the effect no longer
    grows."""

    def lora_scale(self, strength: float) -> float:
        """The LoRA scale whose effect is `strength` units; negative for the other direction.

        Within the usable range the scale follows the measured effect; beyond it every further unit
        costs `unit` of scale. A slider without effect has no units: its strength is its scale.
        """
        if not self.unit or not strength:
            return strength
        sign = 1.0 if strength > 0 else -1.0
        scales, effects = self._usable(sign)
        wanted = abs(strength) * self._one
        beyond = max(0.0, wanted - float(effects[-1])) / self._one * self.unit
        return sign * (float(np.interp(wanted, effects, scales)) + beyond)

    @property
    def units(self) -> tuple[float, float]:
        """The usable range of strengths; (0, 0) for a slider without effect."""
        if not self.unit:
            return 0.0, 0.0
        low, high = (self._usable(sign)[1][-1] / self._one for sign in (-1.0, 1.0))
        return -float(low), float(high)

    @property
    def max_scale(self) -> float:
        """The largest LoRA scale that was measured; larger ones are refused."""
        return max(self.strengths)

    @property
    def _one(self) -> float:
        """The effect of one unit, averaged over both sides."""
        ends = np.interp([-self.unit, self.unit], self.strengths, self.effect)
        return float(ends[1] - ends[0]) / 2

    def _usable(self, sign: float) -> tuple[np.ndarray, np.ndarray]:
        """LoRA scales of one side, from 0 to the end of the usable range, and their effects; all
        positive."""
        end = self.high if sign > 0 else -self.low
        both = np.array([self.strengths, self.effect])[:, :: int(sign)] * sign
        return tuple(both[:, (both[0] >= 0) & (both[0] <= end)])
