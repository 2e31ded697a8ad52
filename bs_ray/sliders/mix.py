"""What sliders do together to one output: their strengths, resolved once, on their way to the bank.

Sliders are named by their exact reference, name@version, from a request or a job file to the bank.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bs_ray.sliders.card import Card, SliderError


@dataclass(frozen=True)
class Mix:
    """Several sliders on one output."""

    strengths: Mapping[str, float]
    """Slider -> signed strength, as a user asked for it; 0 leaves the slider out."""
    lora_scales: Mapping[str, float]
    """Slider -> what multiplies its LoRA; only of the sliders whose strength is not 0."""
    notes: tuple[str, ...] = ()
    """Which strengths are beyond their slider's usable range."""

    @classmethod
    def of(
        cls, strengths: Mapping[str, float], cards: Mapping[str, Card], calibrated: bool = True
    ) -> Mix:
        """The LoRA scales and notes of some strengths; this is where either is computed.

        calibrated: whether strengths count units of effect, see `Card.lora_scale`. Raises
        SliderError for a slider without a card, or a strength that its card refuses.
        """
        if unknown := [name for name in strengths if name not in cards]:
            raise SliderError(f"slider: got {unknown[0]!r}; expected one of {', '.join(cards)}")
        scales = {n: cards[n].lora_scale(s, calibrated) for n, s in strengths.items()}
        notes = (cards[n].note(s, calibrated) for n, s in strengths.items())
        return cls(
            strengths=strengths,
            lora_scales={name: scale for name, scale in scales.items() if strengths[name]},
            notes=tuple(note for note in notes if note),
        )
