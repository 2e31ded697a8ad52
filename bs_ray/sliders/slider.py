"""A slider: low-rank factors and the card that explains them, in one safetensors file.

Keys are diffusers' own: `<part>.<layer>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r], where
the part is "unet" or "transformer". alpha / r is folded into B, so that scale 1.0 of any other
loader is our LoRA scale 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bs_ray.config import Words
from bs_ray.config.base import OtherBases
from bs_ray.models.base_identity import BaseIdentity
from bs_ray.sliders.card import CARD_KEY, Card, SliderError, not_a_slider
from bs_ray.sliders.words import card_of_words


@dataclass(frozen=True)
class Slider:
    """A card, and the float32 factors of each layer: (A [r, in, ...], B [out, r, ...])."""

    card: Card
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def reference(self) -> str:
        """name@version."""
        return self.card.reference

    @classmethod
    def of_words(cls, words: Words, base: str, base_id: str, name: str | None = None) -> Self:
        """The words as a slider of this base. name: `words.label` where left out."""
        return cls(card_of_words(words, base, base_id, name), {})

    def to_bytes(self) -> bytes:
        """The safetensors file; equal sliders give equal bytes."""
        tensors = {}
        for layer, (a, b) in sorted(self.factors.items()):
            tensors[f"{self.card.part}.{layer}.lora_A.weight"] = a.detach().float().contiguous()
            tensors[f"{self.card.part}.{layer}.lora_B.weight"] = b.detach().float().contiguous()
        # A single header entry, since safetensors writes several in no fixed order.
        return save(tensors, metadata={CARD_KEY: self.card.to_json()})

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> Slider:
        """Read what `to_bytes` wrote. Raises SliderError, which names `source`, for anything
        else."""
        card = Card.of_file(data, source)
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise not_a_slider(source, error) from None
        factors = {}
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                stem = key.removesuffix(".lora_A.weight")
                b = tensors[f"{stem}.lora_B.weight"]
                factors[stem.removeprefix(f"{card.part}.")] = (a.float(), b.float())
        if not all(torch.isfinite(t).all() for pair in factors.values() for t in pair):
            raise SliderError(f"slider {source}: got weights that are not finite; train it again")
        return cls(card, factors)

    def on(self, base: BaseIdentity, others: OtherBases = "warn") -> Slider:
        """The slider as this base uses it: itself where it was trained on it.

        On another base of its family, its card says so in the notes of every output, unless
        `others` is "allow". Raises SliderError for another family or other layers, and for any
        other base where `others` is "refuse". An imported slider that names no base passes: the
        shapes of its layers decide (`SliderBank.load`).
        """
        if base.goes_by(self.card.base_id):
            return self
        own = f"{self.card.base_id} ({self.card.base}), which it was trained on"
        if self.card.family not in ("", base.family):
            raise SliderError(
                f"slider {self.reference}: got a base of the family {base.family}; expected one of "
                f"{self.card.family}, best {own}. Use that base, or train it again"
            )
        if others == "refuse":
            raise SliderError(
                f"slider {self.reference}: got base {base.id}; expected {own}. Use that base, set "
                "other_bases=warn, or train it again"
            )
        if odd := self._layer_that_does_not_fit(base.layers):
            raise SliderError(
                f"slider {self.reference}: got base {base.id}, which has no layer {odd} of its "
                f"shape; expected {own}, or a fine-tune of it. Use such a base, or train it again"
            )
        if others == "allow":
            return self
        note = f"{self.card.name} was trained on another base ({self.card.base})"
        if self.card.calibration:
            note += ", and its strengths were not measured on this one"
        return Slider(self.card.model_copy(update={"elsewhere": note}), self.factors)

    def _layer_that_does_not_fit(self, layers: Mapping[str, Sequence[int]]) -> str | None:
        for layer, (a, b) in self.factors.items() if layers else ():
            if list(layers.get(layer, [])) != [len(b), *a.shape[1:]]:
                return layer
        return None
